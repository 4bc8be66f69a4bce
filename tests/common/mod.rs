//! What several test files make.

use std::path::Path;

/// Writes a tokenizer.json in CLIP's form whose every word is an entry: `entries` ids, of which the last two begin and end a text.
/// `longest` is the length that the file itself says.
pub fn clip_tokenizer(path: &Path, entries: usize, longest: usize) {
    let (start, end) = (entries - 2, entries - 1);
    let mut vocabulary: serde_json::Map<String, serde_json::Value> =
        (1..start).map(|id| (format!("w{id}"), id.into())).collect();
    vocabulary.insert("<unk>".into(), 0.into());
    vocabulary.insert("<|startoftext|>".into(), start.into());
    vocabulary.insert("<|endoftext|>".into(), end.into());
    let special = |id: usize, content: &str| {
        serde_json::json!({ "id": id, "content": content, "special": true, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false })
    };
    let json = serde_json::json!({
        "version": "1.0",
        "truncation": { "max_length": longest, "strategy": "LongestFirst", "stride": 0, "direction": "Right" },
        "padding": null,
        "added_tokens": [special(start, "<|startoftext|>"), special(end, "<|endoftext|>")],
        "normalizer": { "type": "Lowercase" },
        "pre_tokenizer": { "type": "Whitespace" },
        "post_processor": { "type": "BertProcessing", "cls": ["<|startoftext|>", start], "sep": ["<|endoftext|>", end] },
        "decoder": null,
        "model": { "type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>" },
    });
    std::fs::write(path, json.to_string()).unwrap();
}

/// Writes a vocab.txt of BERT's with so many entries: the special ones, then w5, w6, ...
pub fn bert_vocabulary(path: &Path, entries: usize) {
    let special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"].map(str::to_owned);
    let lines: Vec<String> = special.into_iter().chain((5..entries).map(|id| format!("w{id}"))).collect();
    std::fs::write(path, lines.join("\n") + "\n").unwrap();
}
