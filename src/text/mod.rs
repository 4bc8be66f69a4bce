//! Tokenizers: text to ids. The files that models come with are read by [`Tokenizer::open`]; [`Tokenizer::train`] learns a
//! vocabulary from texts.

mod assemble;
mod bert;
mod clip;
mod open;
mod train;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use assemble::Assembled;
use tokenizers::{PaddingParams, PaddingStrategy, TruncationParams};

use crate::error::{Error, Result};
use crate::files;
use crate::tensor::Tensor;

/// Texts to ids, as one model was trained with them.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    pad: u32,
    /// One more than the largest id.
    vocabulary: usize,
    max_length: usize,
}

/// A batch of texts as ids.
pub struct Tokens {
    /// i64 [n, T]: start, text, end, then the pad id; T is the longest text of the batch.
    pub ids: Tensor,
    /// u8 [n, T]: 1 where a token is real.
    pub mask: Tensor,
    /// Positions of the texts that were longer than the maximal length. They end in the end token all the same.
    pub cut: Vec<usize>,
}

/// What its own files say of a tokenizer beside the pipeline itself.
#[derive(Default)]
struct Hints {
    max_length: Option<usize>,
    pad_token: Option<String>,
}

impl Tokenizer {
    /// Learns a byte-pair vocabulary in CLIP's form: lower-cased words, digits one by one, `</w>` at the end of a word. Ids: 0 is
    /// `<|pad|>`, then the 256 bytes inside and at the end of a word, then the learned pieces, and last `<|startoftext|>` and
    /// `<|endoftext|>`, so that the end has the largest id, as in CLIP. A piece must occur at least twice. The result depends on the
    /// texts alone, not on their order.
    ///
    /// # Errors
    /// If `vocabulary` (the largest number of ids) has no room for bytes and special tokens, or `max_length` none for a text.
    pub fn train(texts: &[&str], vocabulary: usize, max_length: usize) -> Result<Self> {
        train::train(texts, vocabulary, max_length)
    }

    /// Opens a directory with, or a file that is, one of: tokenizer.json (ours or Hugging Face's); vocab.json beside merges.txt
    /// (CLIP); vocab.txt (BERT's WordPiece, lower-casing unless tokenizer_config.json says otherwise); bpe_simple_vocab_16e6.txt or
    /// .txt.gz (OpenAI's CLIP). The maximal length is the caller's, else what the files say, else the kind's usual one.
    ///
    /// # Errors
    /// If no such file is there, it is damaged, or the maximal length leaves no room for text.
    pub fn open(path: &Path, max_length: Option<usize>) -> Result<Self> {
        open::open(path, max_length)
    }

    /// Whether a directory holds a file that [`Tokenizer::open`] would take.
    pub fn is_in(folder: &Path) -> bool {
        open::is_in(folder)
    }

    /// Around the library's.
    fn new(assembled: Assembled, max_length: Option<usize>, hints: &Hints) -> Result<Self> {
        let Assembled { mut inner, ids: vocabulary } = assembled;
        // A thread count is honoured exactly: the library must not start threads of its own.
        tokenizers::parallelism::set_parallelism(false);
        let pad = inner.get_padding().map(|p| p.pad_id);
        let named = hints.pad_token.iter().map(String::as_str).chain(["[PAD]", "<pad>", "<|pad|>"]);
        let pad = pad.or_else(|| named.filter_map(|token| inner.token_to_id(token)).next()).unwrap_or(0);
        let own = hints.max_length.or_else(|| inner.get_truncation().map(|t| t.max_length));
        let usual = if inner.token_to_id(clip::START).is_some() { clip::MAX_LENGTH } else { bert::MAX_LENGTH };
        let max_length = max_length.or(own).unwrap_or(usual);

        // One text is never padded by the library; the parameters travel with the file.
        let pad_token = inner.id_to_token(pad).unwrap_or_default();
        let padding = PaddingParams {
            strategy: PaddingStrategy::BatchLongest,
            pad_id: pad,
            pad_token,
            ..PaddingParams::default()
        };
        inner.with_padding(Some(padding));
        let cannot = |e| Error::new(format!("the tokenizer cannot be used: {e}"));
        inner.with_truncation(None).map_err(cannot)?;
        let mut tokenizer = Self { inner, pad, vocabulary, max_length };
        let special = tokenizer.encode_one("")?.get_ids().len();
        if max_length <= special {
            return Err(Error::usage(format!(
                "a maximal length of {max_length} tokens has no room for text beside {special} special tokens; give a larger one"
            )));
        }
        let truncation = TruncationParams { max_length, ..TruncationParams::default() };
        tokenizer.inner.with_truncation(Some(truncation)).map_err(cannot)?;
        Ok(tokenizer)
    }

    /// Writes it as a tokenizer.json, which [`Tokenizer::open`] and Hugging Face's library read.
    pub fn save(&self, path: &Path) -> Result<()> {
        files::write_atomic(path, &self.json()?)
    }

    fn json(&self) -> Result<Vec<u8>> {
        let json =
            self.inner.to_string(true).map_err(|e| Error::new(format!("the tokenizer cannot be written: {e}")))?;
        Ok(json.into_bytes())
    }

    /// Ids of texts, padded to the longest. A text longer than the maximal length keeps its first tokens and the end token.
    ///
    /// # Errors
    /// If the vocabulary has neither a piece nor an unknown token for a part of a text.
    pub fn encode(&self, texts: &[&str]) -> Result<Tokens> {
        let encodings = texts.iter().map(|text| self.encode_one(text)).collect::<Result<Vec<_>>>()?;
        let longest = encodings.iter().map(|e| e.get_ids().len()).max().unwrap_or(0);
        let (mut ids, mut mask) = (vec![i64::from(self.pad); texts.len() * longest], vec![0u8; texts.len() * longest]);
        let mut cut = Vec::new();
        for (i, encoding) in encodings.iter().enumerate() {
            let real = encoding.get_ids();
            ids[i * longest..].iter_mut().zip(real).for_each(|(to, &id)| *to = i64::from(id));
            mask[i * longest..][..real.len()].fill(1);
            if !encoding.get_overflowing().is_empty() {
                cut.push(i);
            }
        }
        let dims = [texts.len(), longest];
        Ok(Tokens { ids: Tensor::from_slice(&ids, dims), mask: Tensor::from_slice(&mask, dims), cut })
    }

    /// The vocabulary's entries that a text becomes, special tokens and the maximal length included: `pieces(t)[k]` is the token
    /// whose id is `encode([t]).ids[0, k]`.
    pub fn pieces(&self, text: &str) -> Result<Vec<String>> {
        Ok(self.encode_one(text)?.get_tokens().to_vec())
    }

    fn encode_one(&self, text: &str) -> Result<tokenizers::Encoding> {
        guarded("a text cannot be tokenized", || self.inner.encode(text, true))
    }

    /// Rows that an embedding table needs: one more than the largest id.
    pub fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    /// Longest text in tokens, special tokens included.
    pub fn max_length(&self) -> usize {
        self.max_length
    }

    /// The id of padding.
    pub fn pad(&self) -> i64 {
        i64::from(self.pad)
    }
}

/// Runs a part of the library on outside bytes: its panics become errors.
fn guarded<T>(what: &str, run: impl FnOnce() -> tokenizers::Result<T>) -> Result<T> {
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(Error::new(format!("{what}: {error}"))),
        Err(_) => Err(Error::new(format!("{what}: its parts contradict each other"))),
    }
}

#[cfg(test)]
mod tests;
