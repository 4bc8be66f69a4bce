//! The `tier` command as a user meets it: phantoms in, a trained model, scores, pictures and reports out.

mod runs;

use std::path::Path;
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
    assert!(table.contains("layer_norm") && table.contains("GPU: ") && table.contains("FAIL resnet + bert"), "{table}");
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
    // A GPU, where there is one, is beside the tiers.
    let of = |part: &str| findings.iter().filter(|f| f["part"] == part && f["on"] != "vulkan").count();
    assert_eq!(
        (of("kernels"), of("gradients")),
        (
            tiers * (tiergrad::ops::REGISTRY.len() + tiergrad::check::kernels::KERNELS.len()),
            tiergrad::ops::REGISTRY.len()
        )
    );
    // What is allowed, and why, is printed and recorded.
    let tolerances = record["tolerances"].as_array().unwrap();
    assert!(tolerances.len() == 7 && tolerances.iter().all(|t| table.contains(t["why"].as_str().unwrap())), "{table}");
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
    // Nor those of other phantoms.
    let fewer = arguments.iter().map(|&argument| if argument == "100" { "101" } else { argument }).collect::<Vec<_>>();
    refused(&fewer, 1, &["another recipe or --count", "another --out", text(&out)]);
    refused(&[&arguments[..], &["--set", "schedule.lr=0"]].concat(), 2, &["schedule.lr"]);
}
