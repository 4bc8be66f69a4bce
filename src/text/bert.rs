//! BERT's WordPiece tokenizer (Devlin et al. 2019), written down as a tokenizer.json: words and punctuation, longest piece first.

use serde_json::json;
use tokenizers::models::bpe::Vocab;

use super::assemble::{self, Assembled};
use super::clip::added_token;
use crate::error::{Error, Result};

/// Positions of BERT's models.
pub(super) const MAX_LENGTH: usize = 512;
const UNKNOWN: &str = "[UNK]";
/// Letters of the longest word that is not unknown.
const LONGEST_WORD: usize = 100;

/// The tokenizer of a vocab.txt, whose line numbers are the ids.
///
/// # Errors
/// If a special token is missing, a piece stands twice, or there are too many for the file.
pub(super) fn tokenizer(text: String, lower_case: bool) -> Result<Assembled> {
    let lines = || text.trim_end_matches(['\r', '\n']).lines();
    assemble::check_room(lines().count(), 0, text.len())?;
    let mut ids = Vocab::new();
    for (piece, id) in lines().zip(0u32..) {
        if let Some(first) = ids.insert(piece.to_owned(), id) {
            return Err(Error::new(format!(
                "piece {piece:?} stands on lines {} and {}; each needs one id",
                first + 1,
                id + 1
            )));
        }
    }
    drop(text);
    let id = |token: &str| {
        let missing = || Error::new(format!("the vocabulary has no {token}, so it is not BERT's"));
        ids.get(token).copied().ok_or_else(missing)
    };
    let (cls, sep) = (id("[CLS]")?, id("[SEP]")?);
    id(UNKNOWN)?;
    let mut special: Vec<(u32, &str)> =
        ["[PAD]", UNKNOWN, "[CLS]", "[SEP]", "[MASK]"].iter().filter_map(|&t| Some((*ids.get(t)?, t))).collect();
    special.sort_unstable();
    let special: Vec<_> = special.iter().map(|&(id, token)| added_token(id, token)).collect();
    let parts = json!({
        "added_tokens": special,
        "normalizer": {
            "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null,
            "lowercase": lower_case,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "BertProcessing", "cls": ["[CLS]", cls], "sep": ["[SEP]", sep]},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
    });
    assemble::of_json(parts, assemble::word_pieces(ids, UNKNOWN.to_owned(), "##".to_owned(), LONGEST_WORD)?)
}
