//! BERT's WordPiece tokenizer (Devlin et al. 2019), written down as a tokenizer.json: words and punctuation, longest piece first.

use std::collections::BTreeMap;

use serde_json::json;

use super::clip::added_token;
use crate::error::{Error, Result};

/// Positions of BERT's models.
pub(super) const MAX_LENGTH: usize = 512;

/// The text of a tokenizer.json for a vocab.txt, whose line numbers are the ids.
///
/// # Errors
/// If a special token is missing or a piece stands twice.
pub(super) fn json(vocabulary: &str, lower_case: bool) -> Result<Vec<u8>> {
    let mut ids = BTreeMap::new();
    for (piece, id) in vocabulary.trim_end_matches(['\r', '\n']).lines().zip(0u32..) {
        if let Some(first) = ids.insert(piece, id) {
            return Err(Error::new(format!(
                "piece {piece:?} stands on lines {} and {}; each needs one id",
                first + 1,
                id + 1
            )));
        }
    }
    let id = |token: &str| {
        let missing = || Error::new(format!("the vocabulary has no {token}, so it is not BERT's"));
        ids.get(token).copied().ok_or_else(missing)
    };
    let (cls, sep) = (id("[CLS]")?, id("[SEP]")?);
    id("[UNK]")?;
    let mut special: Vec<(u32, &str)> =
        ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"].iter().filter_map(|&t| Some((*ids.get(t)?, t))).collect();
    special.sort_unstable();
    let special: Vec<_> = special.iter().map(|&(id, token)| added_token(id, token)).collect();
    let json = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": special,
        "normalizer": {
            "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null,
            "lowercase": lower_case,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "BertProcessing", "cls": ["[CLS]", cls], "sep": ["[SEP]", sep]},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        "model": {
            "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
            "vocab": ids,
        },
    });
    Ok(json.to_string().into_bytes())
}
