//! The same bits: for any number of threads and workers, in batches or one by one, killed and resumed or not.

#[path = "common/device.rs"]
mod device;
mod runs;

use std::path::Path;
use std::process::Command;

use runs::*;

/// Numbers of threads and of loader workers; the first again at the end.
const THREADS: [[&str; 2]; 5] = [["1", "1"], ["2", "3"], ["3", "0"], ["7", "4"], ["1", "1"]];

#[test]
fn threads_and_workers_do_not_change_a_bit_of_a_run() {
    let folder = tempfile::tempdir().unwrap();
    let mut runs = THREADS.iter().enumerate().map(|(i, [threads, workers])| {
        let out = folder.path().join(i.to_string()).join("run");
        let more = ["--threads", threads, "--workers", workers, "--set", "train.views=2", "--set", "train.ema=0.9"];
        run(&train(&out, &more));
        let files = ["report.html", "curves.png", "config.toml", "splits.csv", "model/tokenizer.json"];
        (bytes(&out), log(&out), files.map(|file| std::fs::read(out.join(file)).unwrap()))
    });
    let first = runs.next().unwrap();
    assert!(runs.all(|run| run == first));
}

#[test]
fn threads_and_workers_do_not_change_a_bit_of_results() {
    let folder = tempfile::tempdir().unwrap();
    let table = |name: &str| text(&phantoms().join(name)).to_owned();
    let [pairs, labels, prompts, boxes] = ["pairs.csv", "labels.csv", "prompts.csv", "boxes.json"].map(table);
    // Batches of which the first is computed as it comes and the others by a plan.
    let images = images();
    let images: Vec<&str> = images.iter().map(String::as_str).collect();
    let (model, image) = (text(model()), images[0]);
    let embed = ["embed", "--model", model, "--texts", "left effusion", "no", "-o", "e.safetensors", "--images"];
    let classify = ["classify", "--json", "--model", model, "--prompts", &prompts];
    let commands = [
        [&embed[..], &images].concat(),
        [&classify[..], &images].concat(),
        vec!["heatmap", "--model", model, "--text", "left effusion", image, "-o", "h.png", "--grid", "g.json"],
        vec!["report", "--model", model, "--prompts", &prompts, image, "-o", "r.html"],
        [
            &["eval", "--model", model, "--pairs", &pairs, "--labels", &labels][..],
            &["--prompts", &prompts, "--boxes", &boxes, "--out", "eval"],
        ]
        .concat(),
    ];
    let mut results = THREADS.iter().enumerate().map(|(i, [threads, workers])| {
        // The same names in a folder of their own: reports hold the command.
        let place = folder.path().join(i.to_string());
        std::fs::create_dir(&place).unwrap();
        let mut told = Vec::new();
        for command in &commands {
            let mut tier = Command::new(env!("CARGO_BIN_EXE_tier"));
            let output =
                tier.current_dir(&place).args(command).args(["-q", "--threads", threads, "--workers", workers]);
            let output = output.output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            told.push(output.stdout);
        }
        let files = ["e.safetensors", "h.png", "g.json", "r.html"];
        let of_eval = ["eval/metrics.json", "eval/scores.csv", "eval/report.html"];
        told.extend(files.iter().chain(&of_eval).map(|file| {
            let bytes = std::fs::read(place.join(file)).unwrap();
            let asked = format!("--threads {threads} --workers {workers}");
            let text = String::from_utf8(bytes);
            text.map_or_else(|bytes| bytes.into_bytes(), |text| text.replace(&asked, "").into_bytes())
        }));
        told
    });
    let first = results.next().unwrap();
    assert!(first[1].iter().filter(|&&byte| byte == b'\n').count() == images.len());
    for (i, other) in results.enumerate() {
        let same: Vec<bool> = first.iter().zip(&other).map(|(a, b)| a == b).collect();
        assert!(same.iter().all(|&same| same), "{:?}: {same:?}", THREADS[i + 1]);
    }
}

fn images() -> Vec<String> {
    let mut images: Vec<String> = std::fs::read_dir(phantoms().join("images"))
        .unwrap()
        .map(|entry| text(&entry.unwrap().path()).to_owned())
        .collect();
    images.sort();
    images
}

/// An image alone is computed as it comes, one of the third batch by a plan; the same for texts.
#[test]
fn an_answer_does_not_depend_on_what_is_asked_beside_it() {
    let folder = tempfile::tempdir().unwrap();
    let images = images();
    let texts: Vec<String> = (0..150).map(|i| format!("film {i:03}")).collect();
    let embed = |images: &[String], texts: &[String]| -> std::collections::BTreeMap<String, Vec<Vec<f32>>> {
        let out = folder.path().join("e.safetensors");
        let words = |words: &[&'static str], of: &[String]| -> Vec<String> {
            let flag = words.iter().filter(|_| !of.is_empty()).map(|word| (*word).to_owned());
            flag.chain(of.iter().cloned()).collect()
        };
        let fixed = ["embed", "-q", "--model", text(model()), "-o", text(&out)].map(str::to_owned);
        run(&[&fixed[..], &words(&["--images"], images), &words(&["--texts"], texts)].concat());
        let rows =
            |x: &tiergrad::Tensor| x.to_vec::<f32>().chunks(x.numel() / x.dims()[0]).map(<[f32]>::to_vec).collect();
        let weights = tiergrad::formats::Weights::open(&out, false).unwrap();
        weights.iter().filter(|(_, t)| t.dtype().is_float()).map(|(name, t)| (name.to_owned(), rows(t))).collect()
    };
    let all = embed(&images, &texts);
    assert_eq!(all.len(), 4);
    for at in [0, 17, 40, images.len() - 1] {
        for (name, alone) in embed(&images[at..=at], &texts[at + 80..=at + 80]) {
            let place = if name.starts_with("text") || name.starts_with("token") { at + 80 } else { at };
            assert!(alone[0] == all[&name][place], "{name} of {at}");
        }
    }
}

/// A residual network in the place of the vision transformer.
const RESNET: &[&str] = &[
    "--set",
    "model.vision={ kind = \"resnet\", image_size = 32, channels = 1, block = \"basic\", depths = [1, 1], base = 4 }",
    "--set",
    "model.visual_projection=projector",
];

#[test]
fn a_residual_network_trains_and_resumes_running_statistics_included() {
    let whole = killed_and_resumed(&[RESNET, &["--set", "train.checkpoint_steps=1"]].concat(), 2);
    let records = log(&whole.path().join("whole"));
    let loss = |i: usize| records[i]["loss"].as_f64().unwrap();
    assert!(loss(records.len() - 1) < loss(0), "from {} to {}", loss(0), loss(records.len() - 1));
    assert!(records.last().unwrap()["val_loss"].is_number());
    let path = whole.path().join("whole/model/model.safetensors");
    let weights = tiergrad::formats::Weights::open(path, true).unwrap();
    let running: Vec<(&str, &tiergrad::Tensor)> = weights.iter().filter(|(n, _)| n.contains(".running_")).collect();
    assert_eq!(running.len(), 2 * (1 + 2 + 3 + 1), "stem, two stages, one with a projected shortcut, projector");
    for (name, t) in running {
        let start = if name.ends_with("mean") { 0.0 } else { 1.0 };
        assert!(t.to_f64_vec().iter().all(|&x| x != start), "{name}");
    }
}

#[test]
fn a_killed_run_resumes_to_the_bits_of_one_that_was_not() {
    let more = ["--set", "train.checkpoint_steps=1", "--set", "train.accumulate=2", "--set", "train.ema=0.9"];
    killed_and_resumed(&more, 6);
}

#[test]
fn a_run_in_bf16_has_the_same_bits_on_any_threads_and_resumed() {
    let bf16 = ["--set", "train.precision=bf16"];
    let whole = killed_and_resumed(&[&bf16[..], &["--set", "train.checkpoint_steps=1"]].concat(), 2);
    let out = |name: &str| whole.path().join(name);
    run(&train(&out("three"), &[&bf16[..], &["--threads", "3", "--set", "train.checkpoint_steps=1"]].concat()));
    assert_eq!(log(&out("three")), log(&out("whole")));
    // Another run than that in f32, but near: bf16 has 8 bits.
    run(&train(&out("f32"), &[]));
    let losses = |name: &str| log(&out(name)).iter().map(|r| r["loss"].as_f64().unwrap()).collect::<Vec<_>>();
    let off = tiergrad::distance::largest(&losses("whole"), &losses("f32"));
    assert!(off > 0.0 && off < 0.05, "{off} apart");
}

#[test]
fn a_killed_run_on_a_device_resumes_to_the_bits_of_one_that_was_not() {
    let Some(gpu) = device::gpu() else { return };
    let more = ["--set", "train.checkpoint_steps=1", "--set", "train.ema=0.9", "--device", &gpu.name()];
    let there = killed_and_resumed(&more, 2);
    // The run here is the same but for the roundings.
    let here = there.path().join("here");
    run(&train(&here, &more[..4]));
    let losses = |out: &Path| log(out).iter().map(|r| r["loss"].as_f64().unwrap()).collect::<Vec<_>>();
    for (there, here) in losses(&there.path().join("whole")).iter().zip(losses(&here)) {
        assert!((there - here).abs() < 1e-3, "{there} there, {here} here");
    }
}

/// Trains into `whole`, and into `killed` with as many kills on the way; both end in the same bits.
fn killed_and_resumed(more: &[&str], kills: usize) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("whole");
    run(&train(&whole, more));
    let out = folder.path().join("killed");
    let start = train(&out, more);
    let mut resume = ["train", "--resume", "--out", text(&out), "-q"].map(String::from).to_vec();
    let device = more.iter().position(|flag| *flag == "--device").map_or(&[][..], |at| &more[at..at + 2]);
    resume.extend(device.iter().map(|flag| flag.to_string()));
    let mut wait = 150;
    for kill in 0..=kills {
        let begun = out.join("config.toml").exists();
        let arguments = if begun { &resume } else { &start };
        if !begun {
            let _ = std::fs::remove_dir_all(&out);
        }
        let mut child = Command::new(env!("CARGO_BIN_EXE_tier")).args(arguments).spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(wait));
        if kill == kills {
            assert!(child.wait().unwrap().success());
            break;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        wait += 37;
    }
    assert!(bytes(&out) == bytes(&whole), "other bits after {kills} kills");
    assert_eq!(log(&out), log(&whole));
    folder
}

#[test]
#[cfg(target_os = "linux")]
fn no_thread_beside_those_asked_for_computes_or_loads() {
    let folder = tempfile::tempdir().unwrap();
    let arguments = train(&folder.path().join("run"), &["--threads", "2", "--workers", "5"]);
    let mut run = std::process::Command::new(env!("CARGO_BIN_EXE_tier")).args(&arguments).spawn().unwrap();
    let own = format!("/proc/{}", run.id());
    let named = |of: &std::path::Path| std::fs::read_to_string(of.join("comm")).map(|name| name.trim().to_owned());
    let mut seen = std::collections::BTreeSet::new();
    while run.try_wait().unwrap().is_none() {
        // Until the program stands in it, a new process bears the name of the thread that made it.
        let begun = named(own.as_ref()).is_ok_and(|name| name == "tier");
        for task in std::fs::read_dir(format!("{own}/task")).into_iter().flatten().flatten().filter(|_| begun) {
            seen.extend(named(&task.path()));
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    assert!(run.wait().unwrap().success());
    // The first waits for the rest, and one for Ctrl-C.
    let others: Vec<_> = seen.iter().filter(|name| !["tier", "ctrl-c"].contains(&name.as_str())).collect();
    assert_eq!(others, ["kernel-0", "kernel-1"]);
}
