//! How weights are held for products, by the command line: same bits, and packed weights that are kept where they can be.
#![cfg(unix)]

mod runs;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use runs::*;

/// A model of its own, old enough to keep packed weights of.
fn settled(folder: &Path) -> PathBuf {
    let copy = folder.join("model");
    std::fs::create_dir(&copy).unwrap();
    for entry in std::fs::read_dir(model()).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), copy.join(entry.file_name())).unwrap();
    }
    std::thread::sleep(Duration::from_millis(2100));
    copy
}

struct Embedder {
    folder: tempfile::TempDir,
    model: PathBuf,
    asked: Vec<String>,
}

impl Embedder {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let model = settled(folder.path());
        let images = std::fs::read_dir(phantoms().join("images")).unwrap().take(20);
        let mut asked: Vec<String> = images.map(|entry| text(&entry.unwrap().path()).to_owned()).collect();
        asked.sort();
        asked.extend(["--texts", "effusion", "no finding"].map(str::to_owned));
        Self { folder, model, asked }
    }

    fn caches(&self) -> PathBuf {
        self.folder.path().join("caches")
    }

    fn command(&self, more: &[&str], out: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tier"));
        command.env("XDG_CACHE_HOME", self.caches()).args(["embed", "--model", text(&self.model)]);
        command.args(["-o", text(&self.folder.path().join(out))]).args(more).arg("--images").args(&self.asked);
        command
    }

    /// The embeddings and what was said.
    fn embed(&self, more: &[&str]) -> (Vec<u8>, String) {
        let Output { status, stderr, .. } = self.command(more, "e.safetensors").output().unwrap();
        let said = String::from_utf8_lossy(&stderr).into_owned();
        assert!(status.success(), "{said}");
        let bytes = std::fs::read(self.folder.path().join("e.safetensors")).unwrap();
        // The metadata may name where weights were.
        let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        (bytes[8 + header..].to_vec(), said)
    }

    fn packed(&self) -> Vec<PathBuf> {
        let all = [&self.model, &self.caches().join("tiergrad")].map(std::fs::read_dir);
        let paths = all.into_iter().flatten().flatten().map(|entry| entry.unwrap().path());
        paths.filter(|path| path.extension().is_some_and(|end| end == "packed" || end == "part")).collect()
    }
}

#[test]
fn every_way_has_the_same_bits() {
    let e = Embedder::new();
    let (expected, said) = e.embed(&["--threads", "1"]);
    if !said.contains("weights: mapped") {
        return;
    }
    for more in [&["--weights", "lean"][..], &["--weights", "fast"], &["--weights", "cached", "--no-mmap"]] {
        let (ours, said) = e.embed(more);
        assert!(ours == expected && e.packed().is_empty(), "{more:?}: {said}");
    }
    for (how, word) in [("cached", "written to "), ("cached", "mapped ("), ("auto", "mapped (")] {
        let (ours, said) = e.embed(&["--weights", how, "--threads", "2"]);
        assert!(ours == expected && said.contains(&format!("packed weights: {word}")), "{how}: {said}");
    }
    let [packed] = &e.packed()[..] else { panic!("{:?}", e.packed()) };
    // Packed for this tier alone.
    let scalar = e.command(&["--weights", "auto"], "s.safetensors").env("TIER_ISA", "scalar").output().unwrap();
    assert!(scalar.status.success() && !String::from_utf8_lossy(&scalar.stderr).contains("packed weights"));
    // What is damaged is passed over, and made again.
    let whole = std::fs::read(packed).unwrap();
    std::fs::write(packed, &whole[..whole.len() / 2]).unwrap();
    let (ours, said) = e.embed(&["--weights", "auto"]);
    assert!(ours == expected && !said.contains("packed weights"), "{said}");
    let (ours, said) = e.embed(&["--weights", "cached"]);
    assert!(ours == expected && said.contains("packed weights: written to "), "{said}");
    assert_eq!(std::fs::read(packed).unwrap(), whole);
    let off = e.command(&["--weights", "cached"], "o.safetensors").env("TIER_NO_CACHE", "1").output().unwrap();
    assert!(String::from_utf8_lossy(&off.stderr).contains("packed weights: in memory ("));
}

#[test]
fn where_nothing_can_be_written_beside_the_model_the_users_folder_is_taken() {
    let e = Embedder::new();
    let (expected, said) = e.embed(&[]);
    if !said.contains("weights: mapped") {
        return;
    }
    // A folder in the way: permissions do not stop everyone.
    let (_, said) = e.embed(&["--weights", "cached"]);
    let beside = e.packed().swap_remove(0);
    assert!(said.contains(text(&beside)), "{said}");
    std::fs::remove_file(&beside).unwrap();
    std::fs::create_dir(&beside).unwrap();
    for word in ["written to ", "mapped ("] {
        let (ours, said) = e.embed(&["--weights", "cached"]);
        let there = format!("packed weights: {word}{}", text(&e.caches()));
        assert!(ours == expected && said.contains(&there), "{said}");
    }
    // Nor there: what was asked for is answered all the same.
    std::fs::remove_dir_all(e.caches()).unwrap();
    std::fs::write(e.caches(), b"").unwrap();
    let (ours, said) = e.embed(&["--weights", "cached"]);
    assert!(ours == expected && said.contains("packed weights: in memory ("), "{said}");
}

#[test]
fn processes_that_write_at_once_all_answer() {
    let e = Embedder::new();
    let (expected, said) = e.embed(&[]);
    if !said.contains("weights: mapped") {
        return;
    }
    let names: Vec<String> = (0..4).map(|i| format!("{i}.safetensors")).collect();
    let children: Vec<_> =
        names.iter().map(|name| e.command(&["--weights", "cached", "-q"], name).spawn().unwrap()).collect();
    children.into_iter().for_each(|mut child| assert!(child.wait().unwrap().success()));
    for name in names {
        let bytes = std::fs::read(e.folder.path().join(name)).unwrap();
        assert!(bytes.ends_with(&expected));
    }
    assert_eq!(e.packed().len(), 1, "{:?}", e.packed());
    assert!(e.embed(&[]).1.contains("packed weights: mapped ("));
}
