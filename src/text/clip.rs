//! CLIP's byte-pair tokenizer (Radford et al. 2021), written down as a tokenizer.json: Unicode NFC, lower-casing, words and runs of
//! punctuation and single digits, their bytes as letters, merges by rank with `</w>` at the end of a word.

use serde_json::{Value, json};
use tokenizers::models::bpe::{Merges, Vocab};

use super::assemble::{self, Assembled};
use crate::error::{Error, Result};

/// Before every text.
pub(super) const START: &str = "<|startoftext|>";
/// After every text.
pub(super) const END: &str = "<|endoftext|>";
/// Positions of OpenAI's models.
pub(super) const MAX_LENGTH: usize = 77;
/// Marks a piece that ends a word.
pub(super) const END_OF_WORD: &str = "</w>";

/// The pattern of OpenAI's code: contractions, words, single digits, runs of anything else but space.
const PATTERN: &str = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// Merges that OpenAI's code takes from the start of its longer file.
const OPENAI_MERGES: usize = 49_152 - 256 - 2;

/// A vocabulary, its merges, and what surrounds them.
pub(super) struct Layout {
    /// Piece to id.
    pub vocabulary: Vocab,
    /// Pairs of pieces, first merged first.
    pub merges: Merges,
    /// The token of padding.
    pub pad: String,
    /// Whether typographic quotes, ligatures and HTML entities are replaced first, as OpenAI's code does.
    pub fixes_text: bool,
}

impl Layout {
    /// The tokenizer.
    ///
    /// # Errors
    /// If a special token is missing, or a merge makes no piece of the vocabulary.
    pub fn tokenizer(self, max_length: usize) -> Result<Assembled> {
        let id = |token: &str| {
            let missing = || Error::new(format!("the vocabulary has no {token}, so it is not CLIP's"));
            self.vocabulary.get(token).copied().ok_or_else(missing)
        };
        let (start, end, pad) = (id(START)?, id(END)?, id(&self.pad)?);
        let mut special = vec![(start, START), (end, END), (pad, self.pad.as_str())];
        special.retain(|(_, token)| token.starts_with("<|"));
        special.sort_unstable();
        special.dedup();
        let special: Vec<Value> = special.iter().map(|&(id, token)| added_token(id, token)).collect();
        let mut normalizers = vec![json!({"type": "NFC"})];
        if self.fixes_text {
            normalizers.splice(0..0, FIXES.iter().map(|&(from, to)| replace(from, to)));
        }
        normalizers.push(replace(r"\s+", " "));
        normalizers.push(json!({"type": "Lowercase"}));
        let parts = json!({
            "truncation": {"max_length": max_length, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
            "padding": {
                "strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": null,
                "pad_id": pad, "pad_type_id": 0, "pad_token": self.pad,
            },
            "added_tokens": special,
            "normalizer": {"type": "Sequence", "normalizers": normalizers},
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Removed", "invert": true},
                {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
            ]},
            "post_processor": {"type": "BertProcessing", "cls": [START, start], "sep": [END, end]},
            "decoder": {"type": "BPEDecoder", "suffix": END_OF_WORD},
        });
        assemble::of_json(parts, assemble::byte_pairs(self.vocabulary, self.merges, END, END_OF_WORD)?)
    }
}

/// What ftfy and HTML unescaping change in text that people type and copy: the part of them that OpenAI's code needs for reports.
const FIXES: [(&str, &str); 15] = [
    ("&lt;", "<"),
    ("&gt;", ">"),
    ("&quot;", "\""),
    ("&#39;|&apos;", "'"),
    ("&nbsp;", "\u{a0}"),
    ("&amp;", "&"),
    ("[\u{201c}\u{201d}\u{201e}\u{201f}]", "\""),
    ("[\u{2018}\u{2019}\u{201a}\u{201b}\u{2bc}]", "'"),
    ("\u{fb00}", "ff"),
    ("\u{fb01}", "fi"),
    ("\u{fb02}", "fl"),
    ("\u{fb03}", "ffi"),
    ("\u{fb04}", "ffl"),
    ("\u{fb05}", "st"),
    ("\u{fb06}", "st"),
];

fn replace(pattern: &str, content: &str) -> Value {
    json!({"type": "Replace", "pattern": {"Regex": pattern}, "content": content})
}

/// A token that is never split.
pub(super) fn added_token(id: u32, content: &str) -> Value {
    json!({
        "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true,
    })
}

/// The letters that stand for the 256 bytes, in the order of CLIP's ids: printable bytes stand for themselves.
pub(super) fn bytes_as_letters() -> Vec<char> {
    let printable = |b: &u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let others = (0..=u8::MAX).filter(|b| !printable(b)).count() as u32;
    (0..=u8::MAX).filter(printable).map(char::from).chain((0..others).filter_map(|n| char::from_u32(256 + n))).collect()
}

/// The pieces that every CLIP vocabulary starts with: the bytes inside a word, then the bytes that end one.
pub(super) fn alphabet() -> impl Iterator<Item = String> {
    let ends = bytes_as_letters().into_iter().map(|c| format!("{c}{END_OF_WORD}"));
    bytes_as_letters().into_iter().map(String::from).chain(ends)
}

/// OpenAI's single file of so many bytes: a heading, then one merge per line. The ids follow from the order: bytes, merges, start, end.
pub(super) fn from_merges(text: &str, file: usize) -> Result<Layout> {
    let most = text.lines().count().min(OPENAI_MERGES);
    assemble::check_room(most + 514, most, file)?;
    let merges = parse_merges(text, OPENAI_MERGES)?;
    let pieces = merges.iter().map(|(a, b)| format!("{a}{b}"));
    let tokens = alphabet().chain(pieces).chain([START.to_owned(), END.to_owned()]);
    let vocabulary: Vocab = tokens.zip(0..).collect();
    // Id 0: OpenAI's code pads with zeros.
    Ok(Layout { vocabulary, merges, pad: "!".to_owned(), fixes_text: true })
}

/// Hugging Face's pair of files.
pub(super) fn from_vocabulary_and_merges(vocabulary: &[u8], merges: &str) -> Result<Layout> {
    assemble::check_room(assemble::entries(vocabulary), merges.lines().count(), vocabulary.len() + merges.len())?;
    let vocabulary = assemble::vocabulary(vocabulary)
        .map_err(|e| Error::new(format!("not a vocabulary, which maps pieces to ids: {e}")))?;
    Ok(Layout { vocabulary, merges: parse_merges(merges, usize::MAX)?, pad: END.to_owned(), fixes_text: false })
}

/// The first `most` merges of a text with one per line.
fn parse_merges(text: &str, most: usize) -> Result<Merges> {
    let lines = text.lines().enumerate().skip(usize::from(text.lines().next().is_some_and(is_heading)));
    lines
        .filter(|(_, line)| !line.trim().is_empty())
        .take(most)
        .map(|(i, line)| match line.split_whitespace().collect::<Vec<_>>()[..] {
            [a, b] => Ok((a.to_owned(), b.to_owned())),
            _ => Err(Error::new(format!("line {}: a merge is two pieces with a space between, not {line:?}", i + 1))),
        })
        .collect()
}

/// Whether this is the first line of a file of merges.
pub(super) fn is_heading(line: &str) -> bool {
    line.contains("#version")
}
