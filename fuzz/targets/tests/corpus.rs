//! Every file of fuzz/corpus, found by fuzzing or written as a start for it, through the target of its folder.

use std::path::Path;

#[test]
fn every_file_of_the_corpus_is_harmless() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../corpus");
    targets::quiet();
    let mut wrong = Vec::new();
    for &(name, target) in targets::ALL {
        let mut files: Vec<_> = std::fs::read_dir(corpus.join(name))
            .unwrap_or_else(|e| panic!("fuzz/corpus/{name}: {e}"))
            .map(|file| file.unwrap().path())
            .collect();
        files.sort();
        assert!(!files.is_empty(), "fuzz/corpus/{name} is empty");
        for file in files {
            let data = std::fs::read(&file).unwrap();
            if let Err(why) = targets::check(target, &data) {
                wrong.push(format!("{name} {}: {why}", file.file_name().unwrap().display()));
            }
        }
    }
    let _ = std::panic::take_hook();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The bound is checked, so a target that allocates too much is found.
#[test]
fn what_is_wrong_is_told() {
    let too_much = |_: &[u8]| targets::bounded(1 << 10, || drop(std::hint::black_box(vec![0u8; 1 << 20])));
    assert!(targets::check(too_much, b"").unwrap_err().starts_with("allocated 10"));
    assert!(targets::check(|_| panic!("no"), b"").unwrap_err().starts_with("no"));
}

/// Long files, too, keep to four times their size and 16 MiB: fuzzing seldom makes one.
#[test]
fn long_files_keep_to_the_bound() {
    let words: String = (0..100_000).map(|i| format!("{}{i:05}\n", ["w", "##"][i % 2])).collect();
    let vocabulary = format!("\x02[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n{words}");
    // The table names itself as the image, which is there.
    let rows =
        |n: usize, text: &str| -> String { (0..n).map(|i| format!("table.csv,{text},p{i},{}\n", i % 7)).collect() };
    let header = "image,text,patient_id,age\n";
    let short = format!("\0{header}{}", rows(36_000, "no edema"));
    let long = format!("\0{header}{}", rows(9_000, &"There is no focal consolidation. ".repeat(3)));
    for (name, target, data) in [
        ("vocab.txt", targets::tokenizer as targets::Target, vocabulary),
        ("pairs.csv of short rows", targets::tables, short),
        ("pairs.csv of long rows", targets::tables, long),
    ] {
        assert!((700_000..1_300_000).contains(&data.len()), "{name}: {}", data.len());
        if let Err(why) = targets::check(target, data.as_bytes()) {
            panic!("{name} of {} bytes: {why}", data.len());
        }
    }
}

/// Random programs: the fuzzer's own start, so that a bare machine tries new graphs too.
#[test]
fn random_graphs_agree_with_the_naive_interpreter() {
    let mut rng = tiergrad::rng::Rng::new(std::env::var("TIER_FUZZ_SEED").map_or(1, |s| s.parse().unwrap()), 0);
    let graphs = std::env::var("TIER_FUZZ_GRAPHS").map_or(200, |s| s.parse().unwrap());
    for number in 0..graphs {
        let data: Vec<u8> = (0..rng.below(300)).map(|_| rng.below(256) as u8).collect();
        if let Err(why) = targets::check(targets::graph, &data) {
            panic!("graph {number}: {why}\n{data:?}");
        }
    }
}
