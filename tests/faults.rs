//! Training when the machine or its user misbehaves: kills, full disks, files that vanish or change, numbers that are not finite.

#[path = "common/device.rs"]
mod device;
mod runs;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use runs::*;
use tiergrad::formats::Weights;
use tiergrad::rng::Rng;

const LAST: &str = "checkpoints/last.safetensors";

/// A run of its own phantoms, so that a test may spoil them, killed when its first checkpoint is there.
struct Interrupted {
    folder: tempfile::TempDir,
}

impl Interrupted {
    fn new() -> Self {
        let this = Self { folder: tempfile::tempdir().unwrap() };
        done(&["phantom", "--out", text(&this.data()), "--count", "30", "--seed", "6", "--size", "64", "-q"]);
        let mut child = Command::new(env!("CARGO_BIN_EXE_tier")).args(this.start("run")).spawn().unwrap();
        while !this.run().join(LAST).exists() {
            assert!(child.try_wait().unwrap().is_none_or(|status| status.success()));
            std::thread::sleep(Duration::from_millis(2));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        this
    }

    fn data(&self) -> std::path::PathBuf {
        self.folder.path().join("data")
    }

    fn run(&self) -> std::path::PathBuf {
        self.folder.path().join("run")
    }

    fn start(&self, name: &str) -> Vec<String> {
        let (out, pairs) = (self.folder.path().join(name), self.data().join("pairs.csv"));
        let mut arguments: Vec<String> =
            ["train", "-q", "--out", text(&out), "--pairs", text(&pairs)].map(str::to_owned).to_vec();
        for setting in TINY.iter().chain(&["train.epochs=8", "train.checkpoint_steps=1"]) {
            arguments.extend(["--set".to_owned(), (*setting).to_owned()]);
        }
        arguments
    }

    fn resume(&self) -> [String; 5] {
        ["train", "--resume", "-q", "--out", text(&self.run())].map(str::to_owned)
    }

    /// Resuming fails in these words, and loses nothing.
    #[track_caller]
    fn refuses(&self, words: &[&str]) {
        let before = std::fs::read(self.run().join(LAST)).unwrap();
        refused(&self.resume().each_ref().map(String::as_str), 1, words);
        assert!(std::fs::read(self.run().join(LAST)).unwrap() == before, "the checkpoint has changed");
    }

    /// Resuming ends in the bits of a run that was never interrupted.
    #[track_caller]
    fn ends_well(&self) {
        run(&self.resume());
        run(&self.start("whole"));
        let whole = self.folder.path().join("whole");
        assert!(bytes(&self.run()) == bytes(&whole) && log(&self.run()) == log(&whole));
    }
}

/// Every file under its final name is whole.
#[track_caller]
fn whole_files(out: &Path) {
    for folder in ["", "checkpoints", "model"] {
        for entry in std::fs::read_dir(out.join(folder)).into_iter().flatten() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            let bytes = || std::fs::read(&path).unwrap();
            match name.rsplit_once('.').map(|(_, end)| end) {
                Some("part") => assert!(name.starts_with('.'), "{name}"),
                Some("safetensors") => drop(Weights::open(&path, false).unwrap()),
                Some("json") => drop(serde_json::from_slice::<serde_json::Value>(&bytes()).unwrap()),
                Some("toml") => drop(tiergrad::train::Config::read(Some(&path), &[]).unwrap()),
                Some("html") => assert!(bytes().trim_ascii_end().ends_with(b"</html>"), "{name}"),
                Some("png") => assert!(bytes().ends_with(b"IEND\xaeB`\x82"), "{name}"),
                Some("csv") => assert!(bytes().ends_with(b"\n"), "{name}"),
                _ => {}
            }
        }
    }
}

#[test]
fn killed_at_random_moments_a_run_ends_in_the_same_bytes() {
    // Some here; TIER_KILLS=200 for a proof.
    let kills: usize = std::env::var("TIER_KILLS").map_or(3, |n| n.parse().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let more = ["--set", "train.checkpoint_steps=1", "--set", "train.ema=0.9", "--threads", "1"];
    // The report has the folder's name.
    let [whole, out] = ["whole/run", "killed/run"].map(|name| folder.path().join(name));
    let began = std::time::Instant::now();
    run(&train(&whole, &more));
    let length = began.elapsed();
    let (start, resume) = (train(&out, &more), ["train", "--resume", "-q", "--out", text(&out)].map(String::from));
    let (mut rng, mut killed, mut ended, mut longest, mut in_a_row) = (Rng::new(kills as u64, 3), 0, 0, 0, 0);
    while killed < kills || ended == 0 {
        let begun = out.join("config.toml").exists();
        let mut command = Command::new(env!("CARGO_BIN_EXE_tier"));
        command.args(if begun { &resume[..] } else { &start[..] }).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        if killed < kills {
            std::thread::sleep(length.mul_f64(rng.range(0.0, 0.8)));
        } else {
            child.wait().unwrap();
        }
        let _ = child.kill();
        let output = child.wait_with_output().unwrap();
        whole_files(&out);
        if output.status.success() {
            ended += 1;
            longest = longest.max(in_a_row);
            in_a_row = 0;
            assert!(bytes(&out) == bytes(&whole) && log(&out) == log(&whole), "other bytes after {killed} kills");
            for file in ["report.html", "curves.png", "splits.csv", "model/tokenizer.json", "model/config.json"] {
                assert!(std::fs::read(out.join(file)).unwrap() == std::fs::read(whole.join(file)).unwrap(), "{file}");
            }
            std::fs::remove_dir_all(&out).unwrap();
        } else {
            // Killed, not failed.
            assert_eq!(output.status.code(), None, "{}", String::from_utf8_lossy(&output.stderr));
            (killed, in_a_row) = (killed + 1, in_a_row + 1);
        }
    }
    println!("{killed} kills, up to {longest} of one run; {ended} runs ended, all in the same bytes");
}

#[cfg(unix)]
#[test]
fn an_interrupt_finishes_the_step_saves_and_says_how_to_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let [whole, out] = ["whole/run", "stopped/run"].map(|name| folder.path().join(name));
    let more = ["--set", "train.epochs=25", "--set", "train.ema=0.9"];
    run(&train(&whole, &more));
    let arguments: Vec<String> = train(&out, &more).into_iter().filter(|argument| argument != "-q").collect();
    let child = Command::new(env!("CARGO_BIN_EXE_tier")).args(&arguments).stderr(Stdio::piped()).spawn().unwrap();
    let logged = || std::fs::read_to_string(out.join("log.jsonl")).is_ok_and(|log| log.contains('\n'));
    while !logged() {
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let next = format!("continue with: tier train --resume --out {}", text(&out));
    assert!(said.contains("stopping after this step") && said.contains(&next), "{said}");
    let saved = Weights::open(out.join(LAST), false).unwrap();
    let state: serde_json::Value = serde_json::from_str(&saved.metadata()["state"]).unwrap();
    assert!(state["step"] == log(&out).len() && log(&out).len() < log(&whole).len(), "{state}");
    run(&["train", "--resume", "-q", "--out", text(&out)].map(String::from));
    assert!(bytes(&out) == bytes(&whole) && log(&out) == log(&whole));
}

#[test]
fn a_full_disk_is_told_and_costs_nothing() {
    let run = Interrupted::new();
    // Files may not grow beyond half a checkpoint, as on a disk that has no more room for one. The signal is ignored, so writing fails.
    let blocks = std::fs::metadata(run.run().join(LAST)).unwrap().len() / 2 / 512;
    let limited = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\"");
    let before = std::fs::read(run.run().join(LAST)).unwrap();
    let output =
        Command::new("sh").args(["-c", &limited, env!("CARGO_BIN_EXE_tier")]).args(run.resume()).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(errors.contains("last.safetensors: File too large"), "{errors}");
    assert!(std::fs::read(run.run().join(LAST)).unwrap() == before);
    whole_files(&run.run());
    let left = |folder: &str| {
        let files = std::fs::read_dir(run.run().join(folder)).unwrap();
        files.filter(|e| e.as_ref().unwrap().file_name().to_string_lossy().ends_with(".part")).count()
    };
    assert_eq!(left("checkpoints") + left(""), 0, "what did not fit is removed");
    run.ends_well();
}

/// Mounts where this process may; elsewhere the tests that need it say that they are skipped.
struct Mounted<'a>(&'a Path);

impl<'a> Mounted<'a> {
    fn tmpfs(at: &'a Path, options: &str) -> Option<Self> {
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", options, "none", text(at)]).output();
        let mounted = mount.is_ok_and(|output| output.status.success()).then_some(Self(at));
        if mounted.is_none() {
            println!("skipped: this process may not mount a tmpfs");
        }
        mounted
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0).status();
    }
}

#[test]
fn a_small_disk_runs_full_in_words() {
    let folder = tempfile::tempdir().unwrap();
    let small = folder.path().join("small");
    std::fs::create_dir(&small).unwrap();
    let Some(_mounted) = Mounted::tmpfs(&small, "size=300k") else { return };
    let out = small.join("run");
    let arguments = train(&out, &[]);
    refused(&arguments.iter().map(String::as_str).collect::<Vec<_>>(), 1, &["No space left on device", text(&small)]);
    whole_files(&out);
}

#[test]
fn a_folder_that_cannot_be_written_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let fixed = folder.path().join("fixed");
    std::fs::create_dir(&fixed).unwrap();
    let Some(_mounted) = Mounted::tmpfs(&fixed, "ro") else { return };
    let words = [text(&fixed), "Read-only file system"];
    let arguments = train(&fixed.join("run"), &[]);
    refused(&arguments.iter().map(String::as_str).collect::<Vec<_>>(), 1, &words);
    let out = fixed.join("e.safetensors");
    refused(&["embed", "--model", text(model()), "--texts", "a", "-o", text(&out), "-q"], 1, &words);
    refused(&["phantom", "--out", text(&fixed.join("p")), "--count", "1", "--seed", "1", "-q"], 1, &words);
}

#[test]
fn a_picture_that_vanished_is_named_and_a_changed_table_refused() {
    let run = Interrupted::new();
    let pairs = run.data().join("pairs.csv");
    let table = std::fs::read_to_string(&pairs).unwrap();
    let row = table.lines().find(|line| line.contains(",train")).unwrap();
    let image = row.split(',').next().unwrap();
    let picture = run.data().join(image);
    let aside = run.folder.path().join("aside.png");
    std::fs::rename(&picture, &aside).unwrap();
    run.refuses(&["pairs.csv", image]);
    std::fs::write(&picture, &std::fs::read(&aside).unwrap()[..300]).unwrap();
    // This one shows when its batch comes; the steps before it are not lost.
    refused(&run.resume().each_ref().map(String::as_str), 1, &[image]);
    whole_files(&run.run());
    std::fs::rename(&aside, &picture).unwrap();

    std::fs::write(&pairs, table.replacen("left", "right", 1)).unwrap();
    run.refuses(&["the tables have changed"]);
    std::fs::remove_file(&pairs).unwrap();
    run.refuses(&["pairs.csv"]);
    std::fs::write(&pairs, &table).unwrap();
    run.ends_well();
}

#[test]
fn two_processes_do_not_train_in_one_folder() {
    let run = Interrupted::new();
    let held = |folder: &Path| {
        let lock = std::fs::File::create(folder.join("lock")).unwrap();
        // A process that was killed holds nothing.
        lock.try_lock().unwrap();
        lock
    };
    let lock = held(&run.run());
    run.refuses(&["another process trains here", text(&run.run())]);
    drop(lock);
    let [new, demo] = ["new", "demo"].map(|name| run.folder.path().join(name));
    for (folder, arguments) in [
        (&new, run.start("new")),
        (&demo, ["demo", "-q", "--count", "100", "--out", text(&demo)].map(str::to_owned).to_vec()),
    ] {
        std::fs::create_dir(folder).unwrap();
        let _lock = held(folder);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        refused(&arguments, 1, &["another process trains here", text(folder)]);
        assert_eq!(std::fs::read_dir(folder).unwrap().count(), 1);
    }
    // One that trains holds it.
    let long = [run.start("new"), ["--set", "train.epochs=100000"].map(str::to_owned).to_vec()].concat();
    let mut child = Command::new(env!("CARGO_BIN_EXE_tier")).args(long).spawn().unwrap();
    while !new.join(LAST).exists() {
        assert!(child.try_wait().unwrap().is_none());
        std::thread::sleep(Duration::from_millis(2));
    }
    refused(&["train", "--resume", "-q", "--out", text(&new)], 1, &["another process trains here", text(&new)]);
    child.kill().unwrap();
    child.wait().unwrap();
    drop(held(&new));
    run.ends_well();
}

#[test]
fn what_fails_before_its_first_step_begins_anew() {
    let run = Interrupted::new();
    let aside = run.folder.path().join("aside");
    std::fs::rename(run.data().join("images"), &aside).unwrap();
    std::fs::create_dir(run.data().join("images")).unwrap();
    for entry in std::fs::read_dir(&aside).unwrap() {
        let entry = entry.unwrap();
        let broken = &std::fs::read(entry.path()).unwrap()[..300];
        std::fs::write(run.data().join("images").join(entry.file_name()), broken).unwrap();
    }
    let arguments = run.start("whole");
    refused(&arguments.iter().map(String::as_str).collect::<Vec<_>>(), 1, &[".png"]);
    std::fs::remove_dir_all(run.data().join("images")).unwrap();
    std::fs::rename(&aside, run.data().join("images")).unwrap();
    run.ends_well();
}

/// Of each number of a tensor.
type Change = fn(f32) -> f32;

/// The tests' model with the numbers of some tensors changed.
fn changed_model(to: &Path, changes: &[(&str, Change)]) {
    std::fs::create_dir(to).unwrap();
    for file in ["config.json", "tokenizer.json", "preprocessor_config.json"] {
        std::fs::copy(model().join(file), to.join(file)).unwrap();
    }
    let mut bytes = std::fs::read(model().join("model.safetensors")).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let tensors: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    for (name, change) in changes {
        let [start, end] = [0, 1].map(|k| 8 + header + tensors[*name]["data_offsets"][k].as_u64().unwrap() as usize);
        for number in bytes[start..end].chunks_exact_mut(4) {
            let changed = change(f32::from_le_bytes(number.try_into().unwrap()));
            number.copy_from_slice(&changed.to_le_bytes());
        }
    }
    std::fs::write(to.join("model.safetensors"), bytes).unwrap();
}

/// Of weights that are finite as is their loss: on a device the norm is looked at after the step.
#[test]
fn a_gradient_that_is_not_finite_on_a_device_stops_training() {
    let Some(gpu) = device::gpu() else { return };
    let folder = tempfile::tempdir().unwrap();
    let broken = folder.path().join("broken");
    changed_model(
        &broken,
        &[
            ("text_model.final_layer_norm.weight", |x| 1e20 * x),
            ("text_model.final_layer_norm.bias", |x| 1e20 * x),
            ("text_projection.weight", |x| 1e-20 * x),
        ],
    );
    for accumulate in ["train.accumulate=1", "train.accumulate=2"] {
        let out = folder.path().join(accumulate);
        let more = ["--init", text(&broken), "--device", &gpu.name(), "--set", accumulate];
        let arguments = train(&out, &more);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        refused(&arguments, 1, &["step 1: the gradient is not finite", "the sum of its squares", ".png"]);
        assert!(!out.join(LAST).exists() && log(&out).is_empty());
    }
}

#[test]
fn what_is_not_finite_stops_training_with_its_place_and_keeps_the_last_checkpoint() {
    // A step that goes too far: the first is saved, the second cannot be computed.
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("far");
    let far = [
        "optimiser.rule=sgd",
        "optimiser.clip_norm=0.0",
        "schedule.lr=1e30",
        "schedule.shape=constant",
        "train.checkpoint_steps=1",
    ];
    let far: Vec<&str> = far.iter().flat_map(|setting| ["--set", *setting]).collect();
    let arguments = train(&out, &far);
    refused(
        &arguments.iter().map(String::as_str).collect::<Vec<_>>(),
        1,
        &[
            "step 2: the loss is not finite",
            "it began in",
            "of vision_model",
            "the samples: ",
            ".png",
            "the last checkpoint stays",
        ],
    );
    let saved = Weights::open(out.join(LAST), false).unwrap();
    let state: serde_json::Value = serde_json::from_str(&saved.metadata()["state"]).unwrap();
    assert!(state["step"] == 1 && log(&out).len() == 1, "{state}");
    assert!(saved.iter().all(|(_, t)| tiergrad::finite::is_finite(t)));

    // Weights that are NaN, and no care.
    let name = "vision_model.encoder.layers.0.mlp.fc1.weight";
    let broken = folder.path().join("broken");
    changed_model(&broken, &[(name, |_| f32::NAN)]);
    let out = folder.path().join("nan");
    let arguments = train(&out, &["--init", text(&broken)]);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    refused(&arguments, 1, &["step 1: the loss is not finite", "it began in the weights themselves", name]);
    assert!(!out.join(LAST).exists());

    // Pixels that overflow f32.
    let out = folder.path().join("pixels");
    let arguments = train(&out, &["--set", "image.std=[1e-300]"]);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    refused(&arguments, 1, &["step 1: the pixels are not finite", "the samples: ", ".png"]);
}
