//! Memory: what a run takes is told before it starts, and weights that change under a mapping are an error in words.
#![cfg(unix)]

#[path = "common/device.rs"]
mod device;
mod runs;

use std::process::{Command, Stdio};
use std::time::Duration;

use runs::*;
use tiergrad::nn::Module;
use tiergrad::pipeline::{Asked, Batches, Pipeline};

/// Sizes whose activations are more than the program itself.
const MIDDLING: &[&str] = &[
    "model.vision.image_size=64",
    "model.vision.width=96",
    "model.vision.depth=4",
    "model.vision.heads=4",
    "train.batch=32",
    "train.epochs=1",
    "train.ema=0.9",
];

fn settings(of: &[&'static str]) -> Vec<&'static str> {
    of.iter().flat_map(|setting| ["--set", *setting]).collect()
}

#[test]
fn the_peak_is_predicted_and_written_down() {
    predicted(&[]);
}

#[test]
fn the_peak_in_bf16_and_of_blocks_computed_again_is_predicted() {
    predicted(&["train.precision=bf16"]);
    predicted(&["train.recompute=true"]);
    predicted(&["train.recompute=true", "train.step_in_backward=true", "optimiser.clip_norm=0"]);
}

fn predicted(more: &[&'static str]) {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let arguments = train(&out, &settings(&[MIDDLING, more].concat()));
    let output = tier(&arguments.iter().map(String::as_str).filter(|a| *a != "-q").collect::<Vec<_>>());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && said.contains("memory: "), "{said}");
    let memory: serde_json::Value = serde_json::from_slice(&std::fs::read(out.join("memory.json")).unwrap()).unwrap();
    let ratio = |a: &serde_json::Value, b: &serde_json::Value| a.as_f64().unwrap() / b.as_f64().unwrap();
    if cfg!(target_os = "linux") {
        let of_all = ratio(&memory["predicted"], &memory["measured"]);
        assert!((0.75..1.25).contains(&of_all), "{memory}");
    }
    // Tensors take what was counted, but for batches that may or may not be there ahead.
    let parts = &memory["parts"];
    let [tensors, loader] = ["tensors", "loader"].map(|part| parts[part].as_f64().unwrap());
    let measured = memory["tensors_measured"].as_f64().unwrap();
    assert!(measured >= tensors * 0.99 && measured <= (tensors + loader) * 1.13, "{memory}");
}

/// Where tensors are little, what else there is shows: the program, what validation packs, the charts and examples of the report.
#[test]
fn the_peak_of_a_small_run_is_not_more_than_was_predicted() {
    let folder = tempfile::tempdir().unwrap();
    let boxes = phantoms().join("boxes.json");
    let small: &[&str] = &["model.vision.image_size=64", "model.vision.width=96", "model.vision.depth=2"];
    for (sizes, more) in
        [(&[][..], &[][..]), (small, &[]), (&[], &["--boxes", text(&boxes)]), (small, &["--boxes", text(&boxes)])]
    {
        for threads in ["1", "2"] {
            let out = folder.path().join(format!("{}-{}-{threads}", sizes.len(), more.len()));
            run(&train(&out, &[&["--threads", threads], more, &settings(sizes)].concat()));
            let memory = std::fs::read(out.join("memory.json")).unwrap();
            let memory: serde_json::Value = serde_json::from_slice(&memory).unwrap();
            let [predicted, measured] = ["predicted", "measured"].map(|key| memory[key].as_f64().unwrap_or(0.0));
            println!("{:.1} predicted, {:.1} measured", predicted / 1048576.0, measured / 1048576.0);
            if cfg!(target_os = "linux") {
                assert!((1.0..1.25).contains(&(predicted / measured)), "{memory}");
            }
        }
    }
}

#[test]
fn a_run_that_cannot_fit_is_refused_with_the_number() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let huge = ["model.vision.width=65536", "model.vision.depth=200"];
    let arguments = train(&out, &settings(&huge));
    let words = [
        "this run would take ",
        " GiB, but ",
        "train.micro_batch (now 8 of 8",
        "train.accumulate",
        "train.check_memory",
    ];
    refused(&arguments.iter().map(String::as_str).collect::<Vec<_>>(), 1, &words);
    assert!(!out.exists());
    // The largest that can be counted, which takes no longer.
    let largest = ["model.vision.width=262144", "model.vision.depth=250", "model.text.width=262144"];
    let arguments = train(&out, &settings(&largest));
    let began = std::time::Instant::now();
    refused(&arguments.iter().map(String::as_str).collect::<Vec<_>>(), 1, &words);
    assert!(began.elapsed() < Duration::from_secs(20));
    // What is small enough for the machine, but not for the limit that it runs under.
    let arguments = train(&out, &settings(&["model.vision.width=2048", "model.vision.depth=8"]));
    let limited = "ulimit -v 4000000; exec \"$0\" \"$@\"";
    let output =
        Command::new("sh").args(["-c", limited, env!("CARGO_BIN_EXE_tier")]).args(&arguments).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    if cfg!(target_os = "linux") {
        assert!(output.status.code() == Some(1) && errors.contains("`ulimit -v` allows"), "{errors}");
    }
}

/// A model of its own, to be spoilt.
fn copy_of_model(folder: &std::path::Path) -> std::path::PathBuf {
    let copy = folder.join("model");
    std::fs::create_dir(&copy).unwrap();
    for entry in std::fs::read_dir(model()).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), copy.join(entry.file_name())).unwrap();
    }
    copy
}

/// Embeds a picture that comes late, after `meanwhile` was done to the weights of the opened model.
fn embed_while(more: &[&str], meanwhile: impl FnOnce(&std::path::Path)) -> (std::process::Output, Option<Vec<u8>>) {
    let folder = tempfile::tempdir().unwrap();
    let model = copy_of_model(folder.path());
    let (picture, out) = (folder.path().join("late.png"), folder.path().join("e.safetensors"));
    assert!(Command::new("mkfifo").arg(&picture).status().unwrap().success());
    let arguments = ["embed", "--model", text(&model), "--images", text(&picture), "-o", text(&out)];
    let mut child =
        Command::new(env!("CARGO_BIN_EXE_tier")).args(arguments).args(more).stderr(Stdio::piped()).spawn().unwrap();
    // Opening a pipe for writing waits until the program reads it, which it does once the model is open.
    let pipe = std::fs::File::options().write(true).open(&picture);
    // Files are stamped by a coarse clock.
    std::thread::sleep(Duration::from_millis(20));
    meanwhile(&model.join("model.safetensors"));
    let image = std::fs::read_dir(phantoms().join("images")).unwrap().next().unwrap().unwrap().path();
    std::io::copy(&mut std::fs::File::open(image).unwrap(), &mut pipe.unwrap()).unwrap();
    let _ = child.try_wait();
    (child.wait_with_output().unwrap(), std::fs::read(out).ok())
}

#[test]
fn weights_that_change_while_they_are_in_use_are_told_and_no_crash() {
    let (plain, untouched) = embed_while(&[], |_| ());
    let said = String::from_utf8_lossy(&plain.stderr).into_owned();
    assert!(plain.status.success(), "{said}");
    let mapped = said.contains("weights: mapped");
    assert!(mapped || said.contains("weights: copied into memory (on "), "{said}");
    let cut = |path: &std::path::Path| std::fs::File::options().write(true).open(path).unwrap().set_len(100).unwrap();
    if mapped {
        // A page that is gone would end the process by a signal.
        let (output, out) = embed_while(&[], cut);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), out), (Some(1), None), "{said}");
        assert!(said.contains("model.safetensors: was cut from ") && said.contains("to 100 bytes"), "{said}");
        // Written over in place.
        let (output, _) = embed_while(&[], |path| std::fs::write(path, std::fs::read(path).unwrap()).unwrap());
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(1) && said.contains("was written to while it was in use"), "{said}");
    }
    // Another model renamed over it leaves the old bytes; a copy does not care.
    let (_, replaced) = embed_while(&[], |path| {
        std::fs::write(path.with_extension("new"), b"another").unwrap();
        std::fs::rename(path.with_extension("new"), path).unwrap();
    });
    let (output, copied) = embed_while(&["--no-mmap"], cut);
    assert!(String::from_utf8_lossy(&output.stderr).contains("weights: copied into memory (as --no-mmap says)"));
    // The metadata has the names of folders, which differ.
    let embeddings = |bytes: Option<Vec<u8>>| {
        let bytes = bytes.expect("embeddings");
        let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        bytes[8 + header..].to_vec()
    };
    let untouched = embeddings(untouched);
    assert!(embeddings(replaced) == untouched && embeddings(copied) == untouched);
}

/// Sizes beside which the program itself is not all: a vision transformer and a residual network.
fn middling(folder: &std::path::Path) -> [std::path::PathBuf; 2] {
    let own: serde_json::Value = serde_json::from_slice(&std::fs::read(model().join("config.json")).unwrap()).unwrap();
    let vit = serde_json::json!({ "kind": "vit", "image_size": 192, "patch_size": 16, "channels": 1, "width": 160, "depth": 4, "heads": 4 });
    let resnet = serde_json::json!({ "kind": "resnet", "image_size": 128, "channels": 1, "block": "basic", "depths": [1, 1, 1], "base": 64 });
    [("vit", vit, "linear"), ("resnet", resnet, "projector")].map(|(name, vision, projection)| {
        let mut config = own.clone();
        config["vision"] = vision;
        config["visual_projection"] = projection.into();
        let at = folder.join(name);
        let size = config["vision"]["image_size"].as_u64().unwrap() as usize;
        let mut pipeline = Pipeline::open(model(), false).unwrap();
        let config = serde_json::from_value(config).unwrap();
        let source = tiergrad::nn::Source::drawn(1, tiergrad::DType::F32);
        pipeline.network = tiergrad::pipeline::Network::new(&source.params(), &config).unwrap();
        (pipeline.preprocess.resize, pipeline.preprocess.crop) = (size, size);
        pipeline.save(&at, None).unwrap();
        at
    })
}

/// What a command says that it will take, and in the end has taken, in MiB.
fn said(arguments: &[&str]) -> [f64; 2] {
    let output = tier(&[arguments, &["-v", "--threads", "2"]].concat());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    let told: Vec<&str> = said.lines().filter_map(|line| line.split("memory: ").nth(1)).collect();
    let [before, after] = told[..] else { panic!("{said}") };
    assert!(before.contains(" MiB at most, of which ") && after.ends_with("at most in the end"), "{said}");
    [before, after].map(|line| line.split(' ').next().unwrap().parse().unwrap())
}

#[test]
fn what_inference_takes_is_predicted() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| text(&folder.path().join(name)).to_owned();
    let mut images: Vec<String> = std::fs::read_dir(phantoms().join("images"))
        .unwrap()
        .map(|entry| text(&entry.unwrap().path()).to_owned())
        .collect();
    images.sort();
    let many: Vec<&str> = images.iter().take(49).map(String::as_str).collect();
    let texts: Vec<String> = (0..140).map(|i| format!("effusion {i}")).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let [vit, resnet] = middling(folder.path());
    let golden = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let table = |name: &str| text(&phantoms().join(name)).to_owned();
    let (prompts, pairs, out) = (table("prompts.csv"), table("pairs.csv"), at("out.safetensors"));
    let mut far = Vec::new();
    let mut compare = |arguments: &[&str]| {
        let [predicted, measured] = said(arguments);
        let line = format!("{predicted} predicted, {measured} measured: {}", arguments[..3].join(" "));
        println!("{line}");
        if cfg!(target_os = "linux") && !(0.75..1.25).contains(&(measured / predicted)) {
            far.push(line);
        }
    };
    for model in [model(), &vit, &resnet] {
        let model = text(model);
        for arguments in [
            [&["embed", "--model", model, "-o", &out, "--images"], &many[..1]].concat(),
            [&["embed", "--model", model, "-o", &out, "--images"], &many[..], &["--texts"], &texts].concat(),
            [&["classify", "--model", model, "--prompts", &prompts], &many[..]].concat(),
            vec!["heatmap", "--model", model, "--text", "effusion", many[0], "-o", &at("h.png")],
            vec!["report", "--model", model, "--prompts", &prompts, many[0], "-o", &at("r.html")],
            vec!["eval", "--model", model, "--pairs", &pairs, "--prompts", &prompts, "--all", "--out", &at("eval")],
            vec!["bench", "--model", model, "--batch", "12", "--once"],
            vec!["bench", "--model", model, "--batch", "12", "--seconds", "0"],
            vec!["bench", "--model", model, "--batch", "12", "--what", "text", "--seconds", "0"],
        ] {
            compare(&arguments);
        }
    }
    // Packed weights are kept of models that were not written just now.
    std::thread::sleep(Duration::from_millis(2100));
    let embed = ["embed", "--model", text(&vit), "-o", &out, "--weights"];
    for how in ["lean", "fast", "cached", "cached"] {
        compare(&[&embed[..], &[how, "--images"], &many[..20]].concat());
    }
    for name in ["biovil.pt", "hf-clip", "cxr-bert"] {
        compare(&["bench", "--model", text(&golden.join(name)), "--seconds", "0"]);
    }
    assert!(far.is_empty(), "{far:#?}");

    // What cannot be had is refused, with the number and what takes less.
    let huge = ["bench", "--model", text(&vit), "--batch", "4000000"];
    refused(&huge, 1, &["this would take ", " GiB, but ", "(weights ", "tensors ", "Lower --batch (now 4000000)"]);
    let limited = "ulimit -v 250000; exec \"$0\" \"$@\"";
    let asked = ["embed", "--threads", "1", "--model", text(&vit), "--resize", "768", "-o", &out, "--images"];
    let asked = [&asked[..], &many].concat();
    let output = Command::new("sh").args(["-c", limited, env!("CARGO_BIN_EXE_tier")]).args(asked).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    if cfg!(target_os = "linux") {
        assert!(output.status.code() == Some(1) && errors.contains("`ulimit -v` allows"), "{errors}");
        assert!(errors.contains("Embed fewer images or texts at once"), "{errors}");
    }
}

/// Neither weights nor what is computed with them: with the numbers and what takes less, before anything is there.
#[test]
fn what_a_device_does_not_hold_is_refused() {
    let Some(gpu) = device::gpu() else { return };
    let folder = tempfile::tempdir().unwrap();
    let [vit, _] = middling(folder.path());
    let bench = |mib: u32, batch: &str| {
        let arguments = ["bench", "--once", "--model", text(&vit), "--batch", batch, "--device", &gpu.name()];
        let limits = format!("memory={}", mib << 20);
        let run = Command::new(env!("CARGO_BIN_EXE_tier")).args(arguments).env("TIER_VULKAN_LIMITS", limits).output();
        let output = run.unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, said) = bench(32, "1");
    assert!(code == Some(0) && said.contains(&format!("; weights and tensors on {}", gpu.name())), "{said}");
    for (mib, batch, words) in [
        (1, "1", ["this model would take at least ", "tier convert --dtype"]),
        (32, "256", ["this would take at least ", "Lower --batch (now 256)"]),
    ] {
        let (code, said) = bench(mib, batch);
        let all = words.iter().chain(&["--device cpu"]).all(|word| said.contains(word));
        assert!(code == Some(1) && all && said.contains(&format!("which has {mib} MiB")), "{said}");
    }
}

/// Before anything is computed there; with all that lives there.
#[test]
fn what_answers_take_there_is_counted_and_not_computed() {
    let Some(gpu) = device::gpu() else { return };
    let mut pipeline = Pipeline::open(model(), false).unwrap();
    let p = &pipeline.preprocess;
    let images = Some(Batches { dims: [4, p.channels, p.crop, p.crop].into(), rows: 12 });
    let texts = Some(Batches { dims: [4, 7].into(), rows: 12 });
    let asked = Asked { images, texts, ..Asked::default() };
    let here = pipeline.memory(&asked);
    pipeline.to_device(&gpu).unwrap();
    let kernels = gpu.activity().kernels;
    let there = pipeline.memory(&asked);
    assert_eq!(gpu.activity().kernels, kernels);
    let mut weights = 0;
    pipeline
        .network
        .visit_all("", &mut |_, p| weights += if p.device().is_some() { p.meta().bytes() as u64 } else { 0 });
    assert!(weights > 0 && there.weights == weights, "{weights}, {there:?}");
    assert!((1..=here.tensors).contains(&there.tensors), "{here:?} here, {there:?} there");
}
