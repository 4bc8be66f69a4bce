use super::*;
use crate::rng::Rng;

const REPORTS: [&str; 6] = [
    "The lungs are clear. No pleural effusion or pneumothorax.",
    "Small left pleural effusion. Heart size is normal.",
    "No pneumothorax. The heart is enlarged.",
    "Right pleural effusion, 12 mm nodule in the left lung.",
    "The lungs are clear. Heart size is normal.",
    "Left pneumothorax with a small pleural effusion.",
];

fn ids(tokens: &Tokens) -> Vec<Vec<i64>> {
    let (ids, mask, t) = (tokens.ids.to_vec::<i64>(), tokens.mask.to_vec::<u8>(), tokens.ids.dims()[1].max(1));
    ids.chunks(t)
        .zip(mask.chunks(t))
        .map(|(ids, mask)| ids[..mask.iter().filter(|&&m| m == 1).count()].to_vec())
        .collect()
}

#[test]
fn training_depends_on_the_texts_and_not_on_their_order() {
    let json = Tokenizer::train(&REPORTS, 600, 32).unwrap().json().unwrap();
    let mut order = REPORTS;
    for seed in 0..5 {
        Rng::new(seed, 0).shuffle(&mut order);
        assert!(Tokenizer::train(&order, 600, 32).unwrap().json().unwrap() == json);
    }
}

#[test]
fn frequent_words_are_one_piece_and_any_text_has_pieces() {
    let tokenizer = Tokenizer::train(&REPORTS, 1000, 32).unwrap();
    let end = tokenizer.vocabulary() as i64 - 1;
    assert_eq!(
        tokenizer.pieces("Pleural EFFUSION.").unwrap(),
        ["<|startoftext|>", "pleural</w>", "effusion</w>", ".</w>", "<|endoftext|>"]
    );
    assert!(tokenizer.pieces("nodule").unwrap().len() > 3, "a word that occurs once is not learned");
    let tokens = tokenizer.encode(&["", "pleural effusion", "胸部 é", "\u{0}"]).unwrap();
    assert_eq!(tokenizer.pad(), 0);
    for row in ids(&tokens) {
        assert_eq!([row[0], row[row.len() - 1]], [end - 1, end], "the end has the largest id");
        assert!(row[1..row.len() - 1].iter().all(|id| (1..end - 1).contains(id)));
    }
    assert_eq!(tokens.ids.to_vec::<i64>()[2..tokens.ids.dims()[1]], vec![0; tokens.ids.dims()[1] - 2], "padding");
    let small = Tokenizer::train(&REPORTS, 540, 32).unwrap();
    assert_eq!(small.vocabulary(), 540, "the cap is kept and reached");
}

#[test]
fn long_texts_keep_the_end_token_and_are_listed() {
    let tokenizer = Tokenizer::train(&REPORTS, 1000, 5).unwrap();
    let tokens = tokenizer.encode(&["left", "left left left", "left left left left"]).unwrap();
    let end = tokenizer.vocabulary() as i64 - 1;
    assert_eq!(tokens.ids.dims()[..], [3, 5]);
    assert_eq!(tokens.mask.to_vec::<u8>(), [1, 1, 1, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]);
    assert_eq!(tokens.cut, [2]);
    assert!(ids(&tokens).iter().all(|row| row.last() == Some(&end)));
    assert_eq!(tokenizer.encode(&[]).unwrap().ids.dims()[..], [0, 0]);
}

#[test]
fn a_saved_tokenizer_opens_to_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = Tokenizer::train(&REPORTS, 700, 20).unwrap();
    tokenizer.save(&folder.path().join("tokenizer.json")).unwrap();
    let again = Tokenizer::open(folder.path(), None).unwrap();
    assert!(again.json().unwrap() == tokenizer.json().unwrap());
    assert_eq!((again.max_length(), again.pad()), (20, 0));
    assert_eq!(Tokenizer::open(folder.path(), Some(7)).unwrap().max_length(), 7);
}

#[test]
fn older_ways_to_write_a_model_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let ids = |model: &str| {
        let path = folder.path().join("tokenizer.json");
        let around = r#""version": "1.0", "added_tokens": [{"id": 5, "content": "<s>", "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true}]"#;
        std::fs::write(&path, format!("{{{around}, \"model\": {{{model}}}}}")).unwrap();
        let tokenizer = Tokenizer::open(&path, None).unwrap();
        (tokenizer.encode(&["ab<s>a"]).unwrap().ids.to_vec::<i64>(), tokenizer.vocabulary())
    };
    let vocab = r#""vocab": {"a": 0, "b": 1, "ab": 4}"#;
    let now = ids(&format!(r#""type": "BPE", {vocab}, "merges": [["a", "b"]]"#));
    assert_eq!(now, (vec![4, 3, 0], 5), "a token that is not in the vocabulary gets the next id after its pieces");
    assert_eq!(ids(&format!(r#"{vocab}, "merges": ["a b"], "dropout": null"#)), now);
    let words = r#""unk_token": "b", "vocab": {"a": 0, "b": 1}"#;
    assert_eq!(ids(words), (vec![1, 2, 0], 3));
    let pieces = format!(r#"{words}, "continuing_subword_prefix": "", "max_input_chars_per_word": 9"#);
    assert_eq!(ids(&pieces), (vec![0, 1, 2, 0], 3));
}

#[test]
fn wrong_files_and_sizes_are_errors_that_say_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        Tokenizer::open(&path, None).err().unwrap().to_string()
    };
    let empty = Tokenizer::open(folder.path(), None).err().unwrap().to_string();
    assert!(empty.contains("tokenizer.json") && empty.contains("--tokenizer"), "{empty}");
    assert!(Tokenizer::open(&folder.path().join("absent"), None).err().unwrap().to_string().contains("absent"));
    assert!(at("a.txt", "[CLS]\n[SEP]\n").contains("[UNK]"));
    assert!(at("b.txt", "[UNK]\n[CLS]\n[SEP]\nx\nx\n").contains("lines 4 and 5"));
    assert!(at("c.txt", "#version: 0.2\na b c\n").contains("line 2"));
    assert!(at("d.json", "{\"model\": 1}").contains("tokenizer.json"));
    // A merge longer than every piece makes the library panic.
    let contradiction =
        r#"{"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a a"]}}"#;
    assert!(at("e.json", contradiction).contains("e.json"));
    let unigram = r#"{"version": "1.0", "model": {"type": "Unigram", "unk_id": 0, "vocab": [["a", 0.0]]}}"#;
    assert!(at("f.json", unigram).contains("Unigram"));
    assert!(at("g.json", &unigram.replace("1.0", "2.0")).contains("Unigram"));
    let level = r#"{"version": "2.0", "model": {"type": "WordLevel", "unk_token": "a", "vocab": {"a": 0}}}"#;
    assert!(at("h.json", level).contains("version"));
    let pieces: String = (0..250_000).map(|i| format!("{i:x}\n")).collect();
    let many = at("vocab.txt", &format!("[UNK]\n[CLS]\n[SEP]\n{pieces}"));
    assert!(many.contains("250003 pieces and 0 merges") && many.contains("tokenizer.json"), "{many}");
    let around = format!(r#"{{"normalizer": {:?}, "model": {{"vocab": {{}}}}}}"#, "x".repeat(600_000));
    assert!(at("i.json", &around).contains("around its model"));
    assert!(Tokenizer::train(&REPORTS, 100, 20).err().unwrap().to_string().contains("at least 515"));
    assert!(Tokenizer::train(&REPORTS, 600, 2).err().unwrap().to_string().contains("no room"));
    assert!(Tokenizer::train(&REPORTS, 600, 0).is_err());
}

/// Ids that the models' own tokenizers give, where TIER_SHARED names the folder that has them.
#[test]
fn the_reference_ids_are_reproduced() {
    let Some(shared) = crate::shared::shared("") else { return };
    let file = shared.join("parity/tokens.json");
    let json: serde_json::Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    let list =
        |ids: &serde_json::Value| -> Vec<i64> { ids.as_array().unwrap().iter().map(|i| i.as_i64().unwrap()).collect() };
    for (set, path) in [
        ("clip_openai", "data/vocab/bpe_simple_vocab_16e6.txt.gz"),
        ("clip_tiny", "parity/tokenizers/clip-tiny"),
        ("bert_tiny", "parity/tokenizers/bert-tiny"),
    ] {
        let max_length = json[set]["max_length"].as_u64().map(|n| n as usize);
        let tokenizer = Tokenizer::open(&shared.join(path), max_length).unwrap();
        let cases = json[set]["cases"].as_array().unwrap();
        let texts: Vec<&str> = cases.iter().map(|case| case["text"].as_str().unwrap()).collect();
        let tokens = tokenizer.encode(&texts).unwrap();
        for (case, ids) in cases.iter().zip(ids(&tokens)) {
            let either = [&case["ids"], &case["transformers_ids"]];
            assert!(either.iter().any(|e| e.is_array() && list(e) == ids), "{set}: {} gives {ids:?}", case["text"]);
        }
        assert!(cases.len() >= 20 && !tokens.cut.is_empty());
    }
    let bert = Tokenizer::open(&shared.join("data/vocab/bert-base-uncased-vocab.txt"), None).unwrap();
    assert_eq!((bert.vocabulary(), bert.max_length(), bert.pad()), (30_522, 512, 0));
    let tokens = bert.encode(&["The lungs are clear."]).unwrap();
    assert_eq!(tokens.ids.to_vec::<i64>(), [101, 1996, 8948, 2024, 3154, 1012, 102]);
}
