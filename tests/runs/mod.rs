//! What tests of the `tier` command share: running it, phantoms, a tiny model.
#![allow(dead_code)] // Each file of tests uses a part.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

pub fn tier(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tier")).args(arguments).output().unwrap()
}

#[track_caller]
pub fn done(arguments: &[&str]) -> String {
    let output = tier(arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "tier {}: {errors}", arguments.join(" "));
    String::from_utf8(output.stdout).unwrap()
}

/// A command that must fail with `code`, its complaint one line, the last, that holds `words`.
#[track_caller]
pub fn refused(arguments: &[&str], code: i32, words: &[&str]) {
    let output = tier(arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "tier {}: {errors}", arguments.join(" "));
    let complaint = errors.lines().last().unwrap_or_default();
    assert!(complaint.starts_with("tier: ") && errors.matches("tier: ").count() == 1, "{errors}");
    for word in words {
        assert!(complaint.contains(word), "{word:?} is not in: {errors}");
    }
    assert!(!errors.contains("panicked"), "{errors}");
}

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A folder for all tests of this file, with phantoms in it.
pub fn phantoms() -> &'static Path {
    static FOLDER: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = FOLDER.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("phantoms");
        done(&["phantom", "--out", text(&path), "--count", "60", "--seed", "5", "--size", "64", "-q"]);
        (folder, path)
    });
    path
}

/// Sizes at which a step takes milliseconds.
pub const TINY: &[&str] = &[
    "model.vision.image_size=32",
    "model.vision.patch_size=8",
    "model.vision.width=24",
    "model.vision.depth=1",
    "model.vision.heads=2",
    "model.vision.stem=[]",
    "model.text.width=16",
    "model.text.depth=1",
    "model.text.heads=2",
    "model.text.max_length=48",
    "model.joint=12",
    "tokenizer.vocabulary=600",
    "train.batch=8",
    "train.epochs=2",
    "train.keep=1",
    "schedule.lr=1e-3",
];

pub fn train(out: &Path, more: &[&str]) -> Vec<String> {
    let table = |name: &str| text(&phantoms().join(name)).to_owned();
    let mut arguments: Vec<String> =
        ["train", "--out", text(out), "-q", "--pairs"].iter().map(|s| (*s).to_owned()).collect();
    arguments.extend([table("pairs.csv"), "--labels".into(), table("labels.csv")]);
    arguments.extend(["--prompts".into(), table("prompts.csv")]);
    for setting in TINY {
        arguments.extend(["--set".to_owned(), (*setting).to_owned()]);
    }
    arguments.extend(more.iter().map(|s| (*s).to_owned()));
    arguments
}

#[track_caller]
pub fn run(arguments: &[String]) -> String {
    done(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
}

/// A model that all tests may read.
pub fn model() -> &'static Path {
    static MODEL: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = MODEL.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("run");
        run(&train(&out, &["--boxes", text(&phantoms().join("boxes.json"))]));
        let model = out.join("model");
        (folder, model)
    });
    model_files(path);
    path
}

pub fn model_files(path: &Path) {
    for file in ["config.json", "model.safetensors", "tokenizer.json", "preprocessor_config.json"] {
        assert!(path.join(file).is_file(), "{file}");
    }
}

/// The log without times.
pub fn log(out: &Path) -> Vec<serde_json::Value> {
    let lines = std::fs::read_to_string(out.join("log.jsonl")).unwrap();
    lines
        .lines()
        .map(|line| {
            let mut record: serde_json::Value = serde_json::from_str(line).unwrap();
            record.as_object_mut().unwrap().remove("items_per_s");
            record
        })
        .collect()
}

pub fn bytes(out: &Path) -> [Vec<u8>; 2] {
    ["model/model.safetensors", "checkpoints/last.safetensors"].map(|f| std::fs::read(out.join(f)).unwrap())
}
