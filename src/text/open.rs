//! Finds out which tokenizer a path holds.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{Hints, Tokenizer, assemble, bert, clip};
use crate::error::{At, Error, Result};

/// Names in a directory, the first that is there wins.
const NAMES: [&str; 5] =
    ["tokenizer.json", "vocab.json", "vocab.txt", "bpe_simple_vocab_16e6.txt", "bpe_simple_vocab_16e6.txt.gz"];

/// More than a vocabulary of `packed` bytes has after unpacking, which is two or three times as much.
fn largest_text(packed: usize) -> u64 {
    (1 << 20) + 8 * packed as u64
}

pub(super) fn open(path: &Path, max_length: Option<usize>) -> Result<Tokenizer> {
    let file = find(path)?;
    let config = Config::beside(&file)?;
    let bytes = read(&file).at(&file)?;
    let size = bytes.len();
    let inner = match &file {
        _ if is_pair(&file) => {
            drop(bytes);
            let [vocabulary, merges] = ["vocab.json", "merges.txt"].map(|name| file.with_file_name(name));
            let merges_text = text(read(&merges).at(&merges)?).at(&merges)?;
            clip::from_vocabulary_and_merges(&read(&vocabulary).at(&vocabulary)?, &merges_text)
                .and_then(|layout| layout.tokenizer(clip::MAX_LENGTH))
                .at(&vocabulary)?
        }
        _ if file.extension().is_some_and(|e| e == "json") => assemble::read(bytes).at(&file)?,
        _ => {
            let text = text(bytes).at(&file)?;
            if text.lines().next().is_some_and(clip::is_heading) {
                let layout = clip::from_merges(&text, size).at(&file)?;
                drop(text);
                layout.tokenizer(clip::MAX_LENGTH).at(&file)?
            } else {
                bert::tokenizer(text, config.lower_case).at(&file)?
            }
        }
    };
    Tokenizer::new(inner, max_length, &config.hints).at(&file)
}

/// The file of a tokenizer: `path` itself, or the one in it.
fn find(path: &Path) -> Result<PathBuf> {
    if !path.is_dir() {
        return Ok(path.to_path_buf());
    }
    NAMES.iter().map(|name| path.join(name)).find(|file| file.is_file()).ok_or_else(|| {
        Error::new(format!("no tokenizer in this directory: none of {}; give --tokenizer", NAMES.join(", "))).at(path)
    })
}

/// Whether a directory holds a tokenizer, damaged or not.
pub(super) fn is_in(folder: &Path) -> bool {
    NAMES.iter().any(|name| folder.join(name).is_file())
}

/// Whether `file` is one of the pair vocab.json and merges.txt.
fn is_pair(file: &Path) -> bool {
    let name = file.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    name == "vocab.json" || name == "merges.txt" && file.with_file_name("vocab.json").is_file()
}

/// The bytes of a file, unpacked where it is gzip.
fn read(file: &Path) -> Result<Vec<u8>> {
    let bytes = fs::read(file)?;
    if !bytes.starts_with(&[0x1f, 0x8b]) {
        return Ok(bytes);
    }
    let mut unpacked = Vec::new();
    let largest = largest_text(bytes.len());
    let mut reader = flate2::read::GzDecoder::new(&bytes[..]).take(largest + 1);
    reader.read_to_end(&mut unpacked).map_err(|e| Error::new(format!("damaged gzip ({e}); fetch it again")))?;
    if unpacked.len() as u64 > largest {
        return Err(Error::new(format!("more than {largest} bytes unpacked, which is no vocabulary")));
    }
    Ok(unpacked)
}

fn text(bytes: Vec<u8>) -> Result<String> {
    String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        Error::new(format!("byte {at} is not UTF-8, so it is no vocabulary"))
    })
}

/// What tokenizer_config.json says.
struct Config {
    lower_case: bool,
    hints: Hints,
}

impl Config {
    fn beside(file: &Path) -> Result<Self> {
        let path = file.with_file_name("tokenizer_config.json");
        if !path.is_file() {
            return Ok(Self { lower_case: true, hints: Hints::default() });
        }
        let json: Value = fs::read(&path)
            .map_err(Error::from)
            .and_then(|bytes| serde_json::from_slice(&bytes).map_err(|e| Error::new(format!("not JSON: {e}"))))
            .at(&path)?;
        // "No limit" is written as a number beyond any model.
        let max_length = json["model_max_length"].as_f64().filter(|&n| (1.0..1e6).contains(&n)).map(|n| n as usize);
        let pad = &json["pad_token"];
        let pad_token = pad.as_str().or_else(|| pad["content"].as_str()).map(str::to_owned);
        Ok(Self { lower_case: json["do_lower_case"].as_bool().unwrap_or(true), hints: Hints { max_length, pad_token } })
    }
}
