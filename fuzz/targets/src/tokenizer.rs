//! Files of tokenizers, and texts through those that can be opened.

use tiergrad::text::Tokenizer;

use crate::bounds::{bounded, file, folder, kind, of_file};

const TEXTS: [&str; 4] = [
    "",
    "No pleural effusion.",
    "1.5 cm nodule &amp; ca\u{301}f\u{e9} \u{1f600}\u{4e2d}",
    "\0\u{7f}<|endoftext|>[MASK]",
];

pub(super) fn run(data: &[u8]) {
    let (kind, rest) = kind(data);
    let _ = std::fs::remove_file(folder().join("merges.txt"));
    let name = match kind % 6 {
        0 => "tokenizer.json",
        1 => {
            let at = rest.iter().position(|&b| b == 0).unwrap_or(rest.len());
            file("merges.txt", rest.get(at + 1..).unwrap_or_default());
            file("vocab.json", &rest[..at]);
            open(data, "vocab.json");
            return;
        }
        2 => "vocab.txt",
        3 => "bpe_simple_vocab_16e6.txt",
        4 => "bpe_simple_vocab_16e6.txt.gz",
        _ => {
            file("vocab.txt", b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n");
            file("tokenizer_config.json", rest);
            open(data, "vocab.txt");
            let _ = std::fs::remove_file(folder().join("tokenizer_config.json"));
            return;
        }
    };
    file(name, rest);
    open(data, name);
}

fn open(data: &[u8], name: &str) {
    bounded(of_file(data), || {
        if let Ok(tokenizer) = Tokenizer::open(&folder().join(name), None) {
            let _ = tokenizer.encode(&TEXTS);
            let _ = tokenizer.vocabulary();
        }
    });
}
