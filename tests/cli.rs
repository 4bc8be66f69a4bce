//! The `tier` command as a user meets it: phantoms in, a trained model, scores, pictures and reports out.

mod common;
mod runs;

use std::path::{Path, PathBuf};
use std::process::Command;

use runs::*;

#[test]
fn a_run_has_its_files_and_its_model_can_be_used() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| text(&folder.path().join(name)).to_owned();
    let image = phantoms().join("images");
    let image = std::fs::read_dir(image).unwrap().map(|e| e.unwrap().path()).min().unwrap();
    let (model, prompts) = (text(model()), phantoms().join("prompts.csv"));

    let run_folder = Path::new(model).parent().unwrap();
    for file in ["config.toml", "log.jsonl", "splits.csv", "curves.png", "report.html", "checkpoints/last.safetensors"]
    {
        assert!(run_folder.join(file).is_file(), "{file}");
    }
    let records = log(run_folder);
    assert!(records.len() >= 8, "{} steps", records.len());
    let last = records.last().unwrap();
    assert!(last["val_auc"].is_number() && last["val_loss"].is_number(), "{last}");
    assert!(last["loss"].as_f64().unwrap() < records[0]["loss"].as_f64().unwrap());

    let report = std::fs::read_to_string(run_folder.join("report.html")).unwrap();
    assert!(report.contains("validation rows it was chosen by") && report.contains("Heat maps"));

    let line = done(&["classify", "--model", model, "--prompts", text(&prompts), text(&image), "--json", "-q"]);
    let scored: serde_json::Value = serde_json::from_str(line.trim()).unwrap();
    let scores = scored["scores"].as_object().unwrap();
    assert!(scores.len() >= 8 && scores.values().all(|z| z.as_f64().unwrap().abs() <= 2.0), "{line}");
    assert_eq!(scores.len(), scored["probabilities"].as_object().unwrap().len());

    assert_eq!(scored["warnings"], serde_json::json!([]), "{line}");

    // An inverted film; a picture of the wrong shape; a prompt that is cut.
    let (inverted, wide, long) = (at("inverted.png"), at("wide.png"), at("long.csv"));
    let mut film = image::open(&image).unwrap();
    film.invert();
    film.save(&inverted).unwrap();
    film.crop_imm(0, 0, 64, 20).save(&wide).unwrap();
    let prompt = "a long prompt ".repeat(48);
    std::fs::write(&long, format!("label,polarity,text\nx,positive,{prompt}\nx,negative,short\n")).unwrap();
    let lines = done(&["classify", "--model", model, "--prompts", &long, &inverted, &wide, "--json", "-q"]);
    for (line, words) in lines.lines().zip(["looks inverted", "64 x 20 pixels"]) {
        let scored: serde_json::Value = serde_json::from_str(line).unwrap();
        let warnings: Vec<&str> = scored["warnings"].as_array().unwrap().iter().map(|w| w.as_str().unwrap()).collect();
        assert!(warnings.iter().any(|w| w.contains(words)), "{warnings:?}");
        assert!(warnings.iter().any(|w| w.contains("cut after 48 tokens")), "{warnings:?}");
    }

    let (png, grid) = (at("heat.png"), at("grid.json"));
    let boxes = phantoms().join("boxes.json");
    done(&[
        "heatmap",
        "--model",
        model,
        "--text",
        "the heart is enlarged",
        "--negative",
        "normal",
        "--boxes",
        text(&boxes),
        text(&image),
        "-o",
        &png,
        "--grid",
        &grid,
        "-q",
    ]);
    assert!(std::fs::read(&png).unwrap().starts_with(b"\x89PNG"));
    let grid: serde_json::Value = serde_json::from_slice(&std::fs::read(&grid).unwrap()).unwrap();
    assert_eq!((grid["grid"].as_array().unwrap().len(), grid["grid"][0].as_array().unwrap().len()), (4, 4));

    let embeddings = at("e.safetensors");
    done(&["embed", "--model", model, "--images", text(&image), "--texts", "a b", "c", "-o", &embeddings, "-q"]);
    let shown = done(&["inspect", &embeddings, "--json"]);
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(shown["tensors"]["patch_embeds"]["shape"], serde_json::json!([1, 16, 12]));
    assert_eq!(shown["tensors"]["text_embeds"]["shape"], serde_json::json!([2, 12]));
    assert!(done(&["inspect", model]).contains("patch_size"));

    let page = at("x.html");
    done(&["report", "--model", model, "--prompts", text(&prompts), text(&image), "-o", &page, "-q"]);
    assert!(std::fs::read_to_string(&page).unwrap().contains("cardiomegaly"));

    let line = done(&["bench", "--model", model, "--batch", "2", "--once", "--json", "-q"]);
    let timed: serde_json::Value = serde_json::from_str(line.trim()).unwrap();
    assert!(timed["ms"].as_f64().unwrap() > 0.0 && timed["batch"] == 2, "{line}");
}

#[test]
fn evaluation_writes_its_metrics_scores_and_report() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("eval");
    let table = |name: &str| text(&phantoms().join(name)).to_owned();
    done(&[
        "eval",
        "--model",
        text(model()),
        "--pairs",
        &table("pairs.csv"),
        "--split",
        "test",
        "--labels",
        &table("labels.csv"),
        "--prompts",
        &table("prompts.csv"),
        "--boxes",
        &table("boxes.json"),
        "--out",
        text(&out),
        "-q",
    ]);
    let metrics: serde_json::Value = serde_json::from_slice(&std::fs::read(out.join("metrics.json")).unwrap()).unwrap();
    assert_eq!(metrics["schema"], 1);
    let (labels, undefined) = (metrics["labels"].as_object().unwrap(), metrics["undefined"].as_array().unwrap());
    assert!(labels.len() >= 8);
    for (name, label) in labels {
        let one_class = undefined.iter().any(|u| u == name);
        assert_eq!(label["auroc"].is_null(), one_class, "{name}");
    }
    assert!(
        metrics["retrieval"]["recall_at_5"].as_f64().unwrap() >= metrics["retrieval"]["recall_at_1"].as_f64().unwrap()
    );
    assert!(metrics["sparsity"]["patches"].as_f64().unwrap() >= 0.0);
    assert!(out.join("scores.csv").is_file() && out.join("report.html").is_file());

    // By the softmax: classify's probabilities, which order images as Z does. An ensemble has the mean of its models' scores.
    let [other, both] = ["other", "both"].map(|name| folder.path().join(name));
    done(&["convert", text(model()), "-o", text(&other), "--dtype", "int8", "-q"]);
    let scored = |models: &[&str], more: &[&str]| -> (serde_json::Value, Vec<Vec<f64>>) {
        let [pairs, labels, prompts] = ["pairs.csv", "labels.csv", "prompts.csv"].map(table);
        let tables = ["--pairs", &pairs, "--labels", &labels, "--prompts", &prompts, "--out", text(&both), "-q"];
        let models: Vec<&str> = models.iter().flat_map(|model| ["--model", model]).collect();
        done(&[&["eval"], &models[..], &tables, more].concat());
        let mut rows = csv::Reader::from_path(both.join("scores.csv")).unwrap();
        let numbers = |row: csv::StringRecord| row.iter().skip(1).map(|x| x.parse().unwrap()).collect();
        let scores = rows.records().map(|row| numbers(row.unwrap())).collect();
        (serde_json::from_slice(&std::fs::read(both.join("metrics.json")).unwrap()).unwrap(), scores)
    };
    let (own, z) = scored(&[text(model())], &[]);
    let (softmax, p) = scored(&[text(model())], &["--softmax"]);
    assert!(own["auc_mean"] == softmax["auc_mean"] && own["labels"] != softmax["labels"]);
    let mut rows = csv::Reader::from_path(both.join("scores.csv")).unwrap();
    let (names, first) = (rows.headers().unwrap().clone(), rows.records().next().unwrap().unwrap());
    let image = phantoms().join(&first[0]);
    let line =
        done(&["classify", "--model", text(model()), "--prompts", &table("prompts.csv"), text(&image), "--json", "-q"]);
    let line: serde_json::Value = serde_json::from_str(line.trim()).unwrap();
    for (name, (p, z)) in names.iter().skip(1).zip(p[0].iter().zip(&z[0])) {
        for (found, key) in [(p, "probabilities"), (z, "scores")] {
            assert!((found - line[key][name].as_f64().unwrap()).abs() < 1e-6, "{key} of {name}: {found} in {line}");
        }
    }
    let (_, second) = scored(&[text(&other)], &[]);
    let (_, mean) = scored(&[text(model()), text(&other)], &[]);
    assert!(second != z);
    for (mean, (a, b)) in mean.concat().iter().zip(z.concat().iter().zip(second.concat())) {
        assert!((mean - (a + b) / 2.0).abs() < 1e-12, "{mean}, not the mean of {a} and {b}");
    }

    // Without labels there is retrieval and sparsity.
    let bare = folder.path().join("bare");
    done(&["eval", "--model", text(model()), "--pairs", &table("pairs.csv"), "--out", text(&bare), "-q"]);
    let metrics: serde_json::Value =
        serde_json::from_slice(&std::fs::read(bare.join("metrics.json")).unwrap()).unwrap();
    assert!(metrics["retrieval"]["recall_at_5"].is_number() && metrics["labels"].as_object().unwrap().is_empty());
}

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
    let images: Vec<_> = std::fs::read_dir(phantoms().join("images")).unwrap().map(|e| e.unwrap().path()).collect();
    let [model, prompts, image] = [text(model()), &table("prompts.csv"), text(images.iter().min().unwrap())];
    let mut results =
        THREADS.iter().enumerate().map(|(i, [threads, workers])| {
            // The same names in a folder of their own: reports hold the command.
            let place = folder.path().join(i.to_string());
            std::fs::create_dir(&place).unwrap();
            let tables = [table("pairs.csv"), table("labels.csv"), table("boxes.json")];
            let [pairs, labels, boxes] = tables.each_ref().map(String::as_str);
            for command in [
                &[
                    "embed",
                    "--model",
                    model,
                    "--images",
                    image,
                    "--texts",
                    "left effusion",
                    "no",
                    "-o",
                    "e.safetensors",
                ][..],
                &["heatmap", "--model", model, "--text", "left effusion", image, "-o", "h.png", "--grid", "g.json"],
                &["report", "--model", model, "--prompts", prompts, image, "-o", "r.html"],
                &[
                    "eval",
                    "--model",
                    model,
                    "--pairs",
                    pairs,
                    "--labels",
                    labels,
                    "--prompts",
                    prompts,
                    "--boxes",
                    boxes,
                    "--out",
                    "eval",
                ],
            ] {
                let mut tier = Command::new(env!("CARGO_BIN_EXE_tier"));
                let output =
                    tier.current_dir(&place).args(command).args(["-q", "--threads", threads, "--workers", workers]);
                let output = output.output().unwrap();
                assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            }
            let files = [
                "e.safetensors",
                "h.png",
                "g.json",
                "r.html",
                "eval/metrics.json",
                "eval/scores.csv",
                "eval/report.html",
            ];
            files.map(|file| {
                let bytes = std::fs::read(place.join(file)).unwrap();
                let asked = format!("--threads {threads} --workers {workers}");
                let text = String::from_utf8(bytes);
                text.map_or_else(|bytes| bytes.into_bytes(), |text| text.replace(&asked, "").into_bytes())
            })
        });
    let first = results.next().unwrap();
    for (i, other) in results.enumerate() {
        let same: Vec<bool> = first.iter().zip(&other).map(|(a, b)| a == b).collect();
        assert!(same.iter().all(|&same| same), "{:?}: {same:?}", THREADS[i + 1]);
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

/// Trains into `whole`, and into `killed` with as many kills on the way; both end in the same bits.
fn killed_and_resumed(more: &[&str], kills: usize) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("whole");
    run(&train(&whole, more));
    let out = folder.path().join("killed");
    let start = train(&out, more);
    let resume = ["train", "--resume", "--out", text(&out), "-q"].map(String::from).to_vec();
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
fn a_supervised_baseline_trains_and_is_evaluated() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    run(&train(&out, &["--objective", "supervised"]));
    let table = |name: &str| text(&phantoms().join(name)).to_owned();
    let eval = folder.path().join("eval");
    done(&[
        "eval",
        "--model",
        text(&out.join("model")),
        "--pairs",
        &table("pairs.csv"),
        "--labels",
        &table("labels.csv"),
        "--out",
        text(&eval),
        "-q",
    ]);
    let metrics: serde_json::Value =
        serde_json::from_slice(&std::fs::read(eval.join("metrics.json")).unwrap()).unwrap();
    assert!(metrics["auc_mean"].is_number(), "{metrics}");
}

#[test]
fn results_that_nobody_reads_end_a_command_quietly_and_those_that_cannot_be_written_fail_it() {
    let many = vec!["a b"; 2000];
    let tokenizer = model().join("tokenizer.json");
    let long = [&["tokenize", "--tokenizer", text(&tokenizer)], &many[..]].concat();
    let image = phantoms().join("images");
    let image = std::fs::read_dir(image).unwrap().map(|e| e.unwrap().path()).min().unwrap();
    let (prompts, model) = (phantoms().join("prompts.csv"), text(model()));
    let classify = ["classify", "--model", model, "--prompts", text(&prompts), text(&image)];
    for arguments in [&long[..], &["inspect", model], &classify, &["devices", "--json"]] {
        // Both ends: what is said goes to a closed pipe too.
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let (out, errors) = (writer.try_clone().unwrap(), writer);
        let unread = Command::new(env!("CARGO_BIN_EXE_tier")).args(arguments).stdout(out).stderr(errors).status();
        assert_eq!(unread.unwrap().code(), Some(0), "{}", arguments[0]);
        let (reader, out) = std::io::pipe().unwrap();
        drop(reader);
        let quiet = Command::new(env!("CARGO_BIN_EXE_tier")).args(arguments).arg("-q").stdout(out).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&quiet.stderr), "", "{}", arguments[0]);
        if let Ok(full) = std::fs::OpenOptions::new().write(true).open("/dev/full") {
            let failed = Command::new(env!("CARGO_BIN_EXE_tier")).args(arguments).stdout(full).output().unwrap();
            let errors = String::from_utf8_lossy(&failed.stderr);
            assert!(failed.status.code() == Some(1) && errors.contains("tier: stdout: No space left"), "{errors}");
        }
    }
}

#[test]
fn mistakes_get_one_clear_line_and_the_right_exit_code() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let with = |more: &[&str]| train(&out, more);
    let refuse = |more: &[&str], code, words: &[&str]| {
        let arguments = with(more);
        refused(&arguments.iter().map(String::as_str).collect::<Vec<_>>(), code, words);
        assert!(!out.join("checkpoints/last.safetensors").exists());
    };
    refused(&["train", "--nonsense"], 2, &["--nonsense"]);
    refused(&["trian"], 2, &["trian", "similar", "train", "--help"]);
    refused(&["phantom", "--count", "3"], 2, &["--out <DIR>", "--seed <S>"]);
    refused(&["phantom", "--count", "many", "--seed", "1", "--out", "p"], 2, &["many", "--count"]);
    for (flag, value) in [("--split", "tset"), ("--temperature", "0"), ("--draws", "0")] {
        refused(&["eval", "--model", "m", "--pairs", "p.csv", "--out", "e", flag, value], 2, &[flag, value]);
    }
    refused(&["devices", "--device", "tpu"], 2, &["cpu", "vulkan"]);
    refuse(&["--set", "train.bacth=3"], 2, &["bacth", "batch"]);
    refuse(&["--set", "train.batch=x"], 2, &["batch"]);
    refuse(&["--set", "model.vision.patch_size=5"], 2, &["patch_size"]);
    refuse(&["--set", "train.freeze=[\"nobody\"]"], 2, &["nobody"]);
    refused(&["train", "--resume", "--out", text(&folder.path().join("none"))], 1, &["none", "no run"]);
    let missing = folder.path().join("missing.csv");
    refused(&["train", "--out", text(&out), "--pairs", text(&missing)], 1, &["missing.csv"]);
    let ragged = folder.path().join("ragged.csv");
    std::fs::write(&ragged, "image,text\na.png\n").unwrap();
    refused(&["train", "--out", text(&out), "--pairs", text(&ragged)], 1, &["ragged.csv"]);
    refused(&["inspect", text(&ragged)], 1, &["ragged.csv", "safetensors"]);
    refused(&["classify", "--model", text(folder.path()), "--prompts", "p.csv", "x.png"], 1, &["model.safetensors"]);
    let heat = ["heatmap", "--model", text(model()), "x.png"];
    let heat = |more: &[&'static str]| [&heat[..], more].concat();
    refused(&heat(&["--text", "a", "-o", "h.jpg"]), 2, &["h.jpg", "PNG"]);
    refused(&heat(&["--text", " ", "-o", "h.png"]), 2, &["says nothing"]);
    refused(&heat(&["--text", "a", "-o", "h.png", "--scale", "-1"]), 2, &["--scale -1"]);
    let garbage = folder.path().join("garbage.png");
    std::fs::write(&garbage, b"\x89PNG\r\n\x1a\nnot a picture").unwrap();
    let prompts = phantoms().join("prompts.csv");
    refused(&["classify", "--model", text(model()), "--prompts", text(&prompts), text(&garbage)], 1, &["garbage.png"]);
}

#[test]
fn verify_tells_tensor_by_tensor_and_fails_where_one_does() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let at = |name: &str| text(&golden.join(name)).to_owned();
    let [model, case] = [at("own"), at("own.case.safetensors")];
    let lines = done(&["verify", "--model", &model, "--case", &case, "--json", "-q"]);
    let lines: Vec<serde_json::Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(lines.len() > 100 && lines.iter().all(|line| line["pass"] == true && line["rel_l2"].is_number()));
    let parts = ["--image-model", &at("biovil.pt"), "--text-model", &at("cxr-bert")].map(str::to_owned);
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    done(&[&["verify", "--case", &at("parts.case.safetensors")], &parts[..]].concat());

    // The same model with one value changed.
    let folder = tempfile::tempdir().unwrap();
    let changed = folder.path().join("model");
    std::fs::create_dir(&changed).unwrap();
    std::fs::copy(golden.join("own/config.json"), changed.join("config.json")).unwrap();
    let mut bytes = std::fs::read(golden.join("own/model.safetensors")).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 0x40;
    std::fs::write(changed.join("model.safetensors"), &bytes).unwrap();
    let output = tier(&["verify", "--model", text(&changed), "--case", &case]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stdout).contains("FAIL"));
    assert!(String::from_utf8_lossy(&output.stderr).contains("differ by more than the case allows"));
    // Also where nobody reads its lines to the end.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let arguments = ["verify", "--model", text(&changed), "--case", &case];
    let unread = Command::new(env!("CARGO_BIN_EXE_tier")).args(arguments).stdout(writer).output().unwrap();
    assert_eq!(unread.status.code(), Some(1));

    // No case, half a case, another model's case.
    refused(&["verify", "--model", &model, "--case", &at("own/model.safetensors")], 1, &["not a parity case"]);
    let half = folder.path().join("half.case.safetensors");
    let whole = std::fs::read(&case).unwrap();
    std::fs::write(&half, &whole[..whole.len() / 2]).unwrap();
    refused(&["verify", "--model", &model, "--case", text(&half)], 1, &["half.case.safetensors"]);
    refused(&["verify", "--model", &at("cxr-bert"), "--case", &case], 1, &["own.case.safetensors", "no images"]);
}

#[test]
fn a_selftest_says_what_was_checked_and_fails_where_a_number_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let [record, wrong] = ["record.json", "golden.json"].map(|name| folder.path().join(name));
    let golden = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/check/golden.json")).unwrap();
    let mut numbers: serde_json::Value = serde_json::from_str(&golden).unwrap();
    numbers["resnet + bert"]["loss"][1] = (1.001 * numbers["resnet + bert"]["loss"][1].as_f64().unwrap()).into();
    std::fs::write(&wrong, numbers.to_string()).unwrap();
    let output = tier(&["selftest", "-q", "--golden", text(&wrong), "-o", text(&record)]);
    let table = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{table}");
    assert!(
        table.contains("layer_norm") && table.contains("GPU: not built") && table.contains("FAIL resnet + bert"),
        "{table}"
    );
    let tiers = kernels_cpu::Isa::available().count();
    let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(complaint.contains(&format!("{} of", tiers + 1)), "{complaint}");

    // All else passed.
    let record: serde_json::Value = serde_json::from_slice(&std::fs::read(&record).unwrap()).unwrap();
    let findings = record["findings"].as_array().unwrap();
    assert!(
        record["passed"] == false && record["schema"] == 1 && record["machine"]["cores"].as_u64() > Some(0),
        "{record}"
    );
    let of = |part: &str| findings.iter().filter(|f| f["part"] == part).count();
    assert_eq!(
        (of("kernels"), of("gradients")),
        (
            tiers * (tiergrad::ops::REGISTRY.len() + tiergrad::check::kernels::KERNELS.len()),
            tiergrad::ops::REGISTRY.len()
        )
    );
    // What is allowed, and why, is printed and recorded.
    let tolerances = record["tolerances"].as_array().unwrap();
    assert!(tolerances.len() == 6 && tolerances.iter().all(|t| table.contains(t["why"].as_str().unwrap())), "{table}");
    assert_eq!((of("golden"), of("threads"), of("speed")), (2 * (tiers + 1), 6, tiers + 1));
    for finding in findings {
        let planted = finding["part"] == "golden" && finding["name"] == "resnet + bert";
        assert_eq!(finding["passed"], !planted, "{finding}");
        assert_eq!(finding["why"], if planted { "loss".into() } else { serde_json::Value::Null });
    }
}

#[test]
fn the_demo_sums_up_its_seeds_and_goes_on_from_what_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("demo");
    let mut arguments = vec!["demo", "-q", "--seeds", "2", "--count", "100", "--out", text(&out)];
    let quick = [
        "schedule.warmup=1",
        "tier.lambda_p=50",
        "image.resize=32",
        "model.vision.image_size=32",
        "model.vision.stem=[]",
        "train.epochs=3",
        "train.batch=16",
    ];
    arguments.extend(quick.iter().flat_map(|setting| ["--set", *setting]));
    done(&arguments);
    let read =
        || -> serde_json::Value { serde_json::from_slice(&std::fs::read(out.join("summary.json")).unwrap()).unwrap() };
    let first = read();
    let auc = |side: &str| first[side]["auc_mean"].as_f64().unwrap();
    let runs = first["runs"].as_array().unwrap();
    let of_runs: f64 = runs.iter().map(|run| run["tier"]["auc_mean"].as_f64().unwrap()).sum::<f64>() / 2.0;
    assert!((auc("tier") - of_runs).abs() < 1e-12);
    let difference = &first["auc_difference"];
    assert!((difference["observed"].as_f64().unwrap() - (auc("tier") - auc("unregularised"))).abs() < 1e-9);
    let ends = [0, 1].map(|k| difference["ci95"][k].as_f64().unwrap());
    assert!(ends[0] < ends[1], "{ends:?}");
    assert!(std::fs::read_to_string(out.join("report.html")).unwrap().contains("Over several seeds"));
    // Nothing is trained again: the same weights and figures.
    let weights = || std::fs::read(out.join("tier-1/model/model.safetensors")).unwrap();
    let before = weights();
    done(&arguments);
    let mut second = read();
    second["seconds"] = first["seconds"].clone();
    assert!(second == first && weights() == before);
    // Models of another recipe are not taken for this one's.
    let other = [&arguments[..], &["--set", "optimiser.weight_decay=0.5"]].concat();
    refused(&other, 1, &["another recipe", text(&out)]);
    refused(&[&arguments[..], &["--set", "schedule.lr=0"]].concat(), 2, &["schedule.lr"]);
}

#[test]
fn a_converted_model_embeds_the_same_bits_and_one_of_fewer_bits_tells_its_error() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| text(&folder.path().join(name)).to_owned();
    let source = text(model());
    let image = phantoms().join("images").read_dir().unwrap().next().unwrap().unwrap().path();
    let embed = |model: &str, name: &str| {
        let out = at(name);
        let asked = ["--images", text(&image), "--texts", "left effusion", "normal heart"];
        done(&[&["embed", "-q", "--model", model, "-o", &out], &asked[..]].concat());
        // The tensors, which come after the header.
        let bytes = std::fs::read(&out).unwrap();
        let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        bytes[8 + header..].to_vec()
    };
    done(&["convert", source, "-o", &at("same"), "-q"]);
    model_files(&folder.path().join("same"));
    assert!(embed(source, "a.safetensors") == embed(&at("same"), "b.safetensors"));

    for dtype in ["bf16", "int8"] {
        let output = tier(&["convert", source, "-o", &at(dtype), "--dtype", dtype, "--json"]);
        let said = String::from_utf8_lossy(&output.stderr);
        let told = said.lines().find(|line| line.starts_with(&format!("{dtype} against the source in f32"))).unwrap();
        assert!(told.contains("image_embeds") && told.contains("text_embeds"), "{told}");
        let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let error = json["rel_l2"]["text_embeds"].as_f64().unwrap();
        assert!(error > 0.0 && error < 0.05, "{json}");
        embed(&at(dtype), "c.safetensors");
        let inspected: serde_json::Value = serde_json::from_str(&done(&["inspect", &at(dtype), "--json"])).unwrap();
        assert!(inspected["dtypes"][if dtype == "int8" { "i8" } else { dtype }].as_u64() > Some(0), "{inspected}");
    }

    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let golden = |name: &str| text(&golden.join(name)).to_owned();
    let parts = ["--image-model", &golden("biovil.pt"), "--text-model", &golden("cxr-bert")].map(str::to_owned);
    let case = golden("parts.case.safetensors");
    let convert =
        [&["convert", "-o", &at("joined"), "--case", &case, "--json"], &parts.each_ref().map(String::as_str)[..]];
    let json: serde_json::Value = serde_json::from_str(&done(&convert.concat())).unwrap();
    assert!(json["rel_l2"].as_object().unwrap().values().all(|error| error.as_f64() == Some(0.0)), "{json}");
    done(&["embed", "--model", &at("joined"), "--inputs", &case, "-o", &at("d.safetensors")]);

    refused(&["convert", source, "-o", &at("same")], 2, &["same", "--force"]);
    refused(&["convert", source, "-o", source, "--force"], 2, &["read from"]);
    refused(&["convert", source, "-o", &at("clip"), "--to", "hf-clip"], 1, &["CLIPModel", "class token"]);
    refused(&["convert", "-o", &at("none")], 2, &["SRC"]);
    assert!(!folder.path().join("clip").exists());
}

#[test]
fn models_of_one_side_and_of_two_files_are_timed_and_shown_without_what_they_do_not_need() {
    let folder = tempfile::tempdir().unwrap();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let at = |name: &str| text(&golden.join(name)).to_owned();
    let timed = |arguments: &[&str]| -> serde_json::Value {
        let line = done(&[&["bench", "--once", "--json", "-q"], arguments].concat());
        serde_json::from_str(line.trim()).unwrap()
    };
    let (biovil, bert, clip) = (at("biovil.pt"), at("cxr-bert"), at("hf-clip"));
    assert_eq!(timed(&["--model", &biovil, "--crop", "64", "--batch", "2"])["what"], "image");
    assert_eq!(timed(&["--model", &bert])["what"], "text");
    let pair = ["--image-model", &biovil, "--text-model", &bert];
    assert_eq!(timed(&[&pair[..], &["--what", "text"]].concat())["model"], format!("{biovil} + {bert}"));
    assert_eq!(timed(&["--model", &clip, "--what", "text", "--batch", "3"])["batch"], 3);
    refused(&["bench", "--model", &bert, "--what", "image", "-q"], 2, &["no images"]);
    refused(&["bench"], 2, &["--model"]);
    refused(&["tokenize", "--model", &biovil, "a"], 2, &["no texts"]);
    refused(&["preprocess", "--model", &bert, "x.png", "-o", "x.safetensors"], 2, &["no images"]);
    refused(&["devices", "--threads", "0"], 2, &["--threads"]);

    // Our own format without preprocessor_config.json and tokenizer.json, which given values do not need.
    let out = text(&folder.path().join("e.safetensors")).to_owned();
    let embed = |inputs: &str| tier(&["embed", "--model", &at("own"), "--inputs", inputs, "-o", &out, "-q"]);
    assert!(embed(&at("own.case.safetensors")).status.success());
    let shown: serde_json::Value = serde_json::from_str(&done(&["inspect", &out, "--json"])).unwrap();
    let described: serde_json::Value = serde_json::from_str(shown["metadata"]["tiergrad"].as_str().unwrap()).unwrap();
    let rows: Vec<String> = serde_json::from_str(described["images"].as_str().unwrap()).unwrap();
    assert!(rows.len() > 1 && rows[1].ends_with("own.case.safetensors[1]"), "{rows:?}");

    // What is not an id, a mask or a pixel is said, not cast.
    let inputs = folder.path().join("inputs.safetensors");
    let ids = |values: &[i64]| tiergrad::Tensor::from_slice(values, [1, values.len()]);
    let floats = |values: &[f32]| tiergrad::Tensor::from_slice(values, [1, values.len()]);
    let pixels = |x: f32| tiergrad::Tensor::from_slice(&vec![x; 3 * 32 * 32], [1, 3, 32, 32]);
    for (tensors, words) in [
        (vec![("input_ids", floats(&[1.0, 2.7]))], "integers"),
        (vec![("input_ids", ids(&[1, 2])), ("attention_mask", ids(&[1, 7]))], "has 7"),
        (vec![("input_ids", ids(&[1, 2])), ("attention_mask", ids(&[0, 0]))], "no real token in row 0"),
        (vec![("input_ids", ids(&[1, 2])), ("attention_mask", ids(&[1]))], "attention_mask [1, 1]"),
        (vec![("input_ids", ids(&[1, 1 << 40]))], "input_ids[0, 1]"),
        (vec![("pixel_values", pixels(f32::NAN))], "not finite at element 0"),
        (vec![("pixels", pixels(0.0))], "neither pixel_values nor input_ids"),
    ] {
        let named = tensors.iter().map(|(name, t)| ((*name).to_owned(), t));
        tiergrad::formats::safetensors::save(&inputs, named, &std::collections::BTreeMap::new()).unwrap();
        let output = embed(text(&inputs));
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(1) && said.contains(words), "{words:?} is not in: {said}");
    }
}

#[test]
fn training_starts_from_the_weights_of_other_programs_checkpoints() {
    let folder = tempfile::tempdir().unwrap();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let [clip60, clip40, bert50] = ["clip60.json", "clip40.json", "vocab.txt"].map(|name| folder.path().join(name));
    common::clip_tokenizer(&clip60, 60, 77);
    common::clip_tokenizer(&clip40, 40, 77);
    common::bert_vocabulary(&bert50, 50);
    let (whole, image, text_side) = ("--init", "--init-image", "--init-text");
    for (i, (from, tokenizer)) in [
        (vec![(whole, "hf-clip")], &clip60),
        (vec![(image, "alone/hf-vit-old"), (text_side, "alone/clip-text")], &clip40),
        (vec![(image, "alone/resnet"), (text_side, "cxr-bert")], &bert50),
        (vec![(image, "biovil.pt"), (text_side, "cxr-bert")], &bert50),
    ]
    .into_iter()
    .enumerate()
    {
        let out = folder.path().join(format!("run-{i}"));
        let pairs = phantoms().join("pairs.csv");
        let tokenizer = format!("tokenizer.path={}", text(tokenizer));
        let from: Vec<(&str, PathBuf)> = from.into_iter().map(|(flag, name)| (flag, golden.join(name))).collect();
        let mut arguments = vec!["train", "--out", text(&out), "-q", "--pairs", text(&pairs), "--set", &tokenizer];
        // So small a step that nothing moves: what is saved at the end is what the first step saw.
        for setting in ["train.batch=16", "train.epochs=1", "schedule.lr=1e-30"] {
            arguments.extend(["--set", setting]);
        }
        arguments.extend(from.iter().flat_map(|(flag, path)| [*flag, text(path)]));
        done(&arguments);
        let model = tiergrad::checkpoints::Checkpoint::open(&out.join("model"), true).unwrap().tensors().unwrap();
        let mut compared = 0;
        for (flag, path) in &from {
            let source = tiergrad::checkpoints::Checkpoint::open(path, true).unwrap().tensors().unwrap();
            let sides = match *flag {
                "--init-image" => ["vision_model.", "visual_projection."],
                "--init-text" => ["text_model.", "text_projection."],
                _ => ["", "logit_scale"],
            };
            for (name, t) in &source {
                // The pooler leads nowhere; running statistics move; a new joint space has a new way into it.
                let Some(found) = model.get(name).filter(|_| sides.iter().any(|side| name.starts_with(side))) else {
                    continue;
                };
                if name.contains(".running_") || found.dims() != t.dims() {
                    continue;
                }
                let off = found.to_f64_vec().iter().zip(t.to_f64_vec()).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
                assert!(off < 1e-25, "{name} of {}: {off}", path.display());
                compared += 1;
            }
        }
        assert!(compared >= 30, "{compared} tensors of {from:?}");
        assert_eq!(log(&out)[0]["step"], 1);
    }
}
