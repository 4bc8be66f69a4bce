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
fn images_that_cannot_be_read_are_left_out_and_named_and_fail_the_command_in_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| text(&folder.path().join(name)).to_owned();
    let mut images: Vec<_> =
        std::fs::read_dir(phantoms().join("images")).unwrap().map(|entry| entry.unwrap().path()).collect();
    images.sort();
    let whole = std::fs::read(&images[1]).unwrap();
    let [first, last, cut, gone] = [text(&images[0]), text(&images[2]), &at("cut.png"), &at("gone.png")];
    std::fs::write(cut, &whole[..whole.len() / 2]).unwrap();
    let asked = [first, cut, gone, last];
    let prompts = phantoms().join("prompts.csv");
    let fails = |arguments: &[&str]| {
        let output = tier(&[arguments, &asked].concat());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        let end = said.split("tier: ").last().unwrap();
        assert!(
            end.starts_with("2 of 4 images could not be read") && end.contains(cut) && end.contains(gone),
            "{said}"
        );
        String::from_utf8(output.stdout).unwrap()
    };
    let lines = fails(&["classify", "--model", text(model()), "--prompts", text(&prompts)]);
    let names: Vec<&str> = lines.lines().map(|line| line.split(',').next().unwrap()).collect();
    assert_eq!(names, ["image", first, last]);
    let lines = fails(&["classify", "--json", "-q", "--model", text(model()), "--prompts", text(&prompts)]);
    let named = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["image"].clone();
    assert_eq!(lines.lines().map(named).collect::<Vec<_>>(), [first, last]);

    let out = at("e.safetensors");
    fails(&["embed", "--model", text(model()), "-o", &out, "--images"]);
    let shown: serde_json::Value = serde_json::from_str(&done(&["inspect", &out, "--json"])).unwrap();
    assert_eq!(shown["tensors"]["image_embeds"]["shape"][0], 2);
    let described: serde_json::Value = serde_json::from_str(shown["metadata"]["tiergrad"].as_str().unwrap()).unwrap();
    assert_eq!(described["images"].as_str().unwrap(), serde_json::json!([first, last]).to_string());

    // Of one image, and where none can be read, nothing is written.
    let out = at("none.safetensors");
    refused(&["embed", "--model", text(model()), "-o", &out, "--images", cut], 1, &[cut]);
    let none = tier(&["embed", "--model", text(model()), "-o", &out, "--images", cut, gone]);
    let said = String::from_utf8_lossy(&none.stderr);
    assert!(none.status.code() == Some(1) && ["2 of 2", cut, gone].iter().all(|part| said.contains(part)), "{said}");
    assert!(!Path::new(&out).exists());
}

#[test]
fn scores_of_classify_are_csv_whatever_labels_and_files_are_called() {
    let folder = tempfile::tempdir().unwrap();
    let image = phantoms().join("images");
    let image = std::fs::read_dir(image).unwrap().map(|e| e.unwrap().path()).min().unwrap();
    let names = ["a, b.png", "say \"c\".png", "two\nlines.png"].map(|name| folder.path().join(name));
    for name in &names {
        std::fs::copy(&image, name).unwrap();
    }
    let prompts = folder.path().join("prompts.csv");
    std::fs::write(&prompts, "label,polarity,text\n\"A, left\",positive,the heart\n\"B \"\"2\"\"\",positive,lungs\n")
        .unwrap();
    let mut arguments = vec!["classify", "-q", "--model", text(model()), "--prompts", text(&prompts)];
    arguments.extend(names.iter().map(|name| text(name)));
    let lines = done(&arguments);
    let mut rows = csv::Reader::from_reader(lines.as_bytes());
    assert_eq!(rows.headers().unwrap(), &csv::StringRecord::from(vec!["image", "A, left", "B \"2\""]));
    let rows: Vec<csv::StringRecord> = rows.records().map(Result::unwrap).collect();
    assert_eq!(rows.iter().map(|row| row[0].to_owned()).collect::<Vec<_>>(), names.each_ref().map(|name| text(name)));
    assert!(rows.iter().all(|row| row.iter().skip(1).all(|z| z.parse::<f64>().is_ok())), "{lines}");
}

/// A PNG file that declares a size and holds one pixel.
fn claim(path: &Path, width: u32, height: u32) {
    image::GrayImage::new(1, 1).save(path).unwrap();
    let mut file = std::fs::read(path).unwrap();
    file[16..20].copy_from_slice(&width.to_be_bytes());
    file[20..24].copy_from_slice(&height.to_be_bytes());
    let sum = !file[12..29].iter().fold(!0u32, |sum, &byte| {
        (0..8).fold(sum ^ u32::from(byte), |s, _| (s >> 1) ^ (0xEDB8_8320 & (s & 1).wrapping_neg()))
    });
    file[29..33].copy_from_slice(&sum.to_be_bytes());
    std::fs::write(path, file).unwrap();
}

#[test]
fn a_picture_that_declares_too_much_is_left_out_or_named_with_its_row() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| text(&folder.path().join(name)).to_owned();
    let image = phantoms().join("images");
    let image = std::fs::read_dir(image).unwrap().map(|e| e.unwrap().path()).min().unwrap();
    let [huge, out] = ["huge.png", "e.safetensors"].map(at);
    claim(Path::new(&huge), 2_000_000, 2_000_000);
    let (model, prompts) = (text(model()), phantoms().join("prompts.csv"));
    let words = ["1 of 2 images could not be read", &huge, "2000000 x 2000000 pixels, more than"];
    for arguments in [
        &["classify", "--model", model, "--prompts", text(&prompts), text(&image), &huge][..],
        &["embed", "--model", model, "-o", &out, "--images", text(&image), &huge],
    ] {
        let output = tier(arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(1) && words.iter().all(|word| said.contains(word)), "{said}");
    }
    let shown: serde_json::Value = serde_json::from_str(&done(&["inspect", &out, "--json"])).unwrap();
    assert_eq!(shown["tensors"]["image_embeds"]["shape"][0], 1);

    // Where it is among those that are looked at before the run, where it is not, and where it is judged.
    let lines = std::fs::read_to_string(phantoms().join("pairs.csv")).unwrap();
    let pairs = text(&phantoms().join("pairs-with-huge.csv")).to_owned();
    for (place, split) in [(1, "train"), (2, "train"), (2, "val")] {
        let mut lines: Vec<String> = lines.lines().map(str::to_owned).collect();
        lines.insert(place, format!("{huge},a text,{split},somebody else,"));
        std::fs::write(&pairs, lines.join("\n")).unwrap();
        let mut arguments = train(&folder.path().join(format!("run-{place}-{split}")), &[]);
        *arguments.iter_mut().find(|argument| argument.ends_with("/pairs.csv")).unwrap() = pairs.clone();
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let line = format!("{pairs}: line {}, column \"image\": {huge}: declares 2000000 x", place + 1);
        refused(&arguments, 1, &[&line, "scale it down first"]);
    }
}

#[test]
fn a_mark_at_a_texts_begin_is_no_token() {
    let folder = tempfile::tempdir().unwrap();
    let (marked, plain) = (folder.path().join("marked.txt"), folder.path().join("plain.txt"));
    std::fs::write(&marked, "\u{feff}the heart\r\nthe lungs\r\n").unwrap();
    std::fs::write(&plain, "the heart\nthe lungs\n").unwrap();
    let [marked, plain] =
        [marked, plain].map(|file| done(&["tokenize", "--model", text(model()), "--file", text(&file), "-q"]));
    assert_eq!(marked, plain);
}

/// The arguments of a run with another table in the place of that of this name.
fn with_table(mut arguments: Vec<String>, name: &str, table: &Path) -> Vec<String> {
    *arguments.iter_mut().find(|argument| argument.ends_with(&format!("/{name}"))).unwrap() = text(table).to_owned();
    arguments.retain(|argument| argument != "-q");
    arguments
}

fn said(arguments: &[String]) -> String {
    let output = tier(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(output.status.success());
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn labels_of_other_images_are_refused_and_those_of_some_are_told_of() {
    let folder = tempfile::tempdir().unwrap();
    let labels = folder.path().join("l.csv");
    let table = std::fs::read_to_string(phantoms().join("labels.csv")).unwrap();
    let pairs = phantoms().join("pairs.csv");
    let refuse = |more: &[&str], words: &[&str]| {
        let arguments = with_table(train(&folder.path().join("none"), more), "labels.csv", &labels);
        refused(&arguments.iter().map(String::as_str).collect::<Vec<_>>(), 1, words);
    };
    std::fs::write(&labels, table.replace("images/", "other/")).unwrap();
    let words = [text(&labels), text(&pairs), "\"other/000000.png\"", "\"images/000000.png\""];
    refuse(&[], &words);
    refuse(&["--objective", "supervised"], &words);
    let eval = ["eval", "--model", text(model()), "--pairs", text(&pairs), "--labels", text(&labels), "--out"];
    refused(&[&eval[..], &[text(&folder.path().join("eval"))]].concat(), 1, &words);
    // No training row has one.
    let split = std::fs::read_to_string(&pairs).unwrap();
    let of = |name: &str| -> Vec<&str> {
        split
            .lines()
            .filter(|line| line.contains(&format!(",{name},")))
            .map(|line| line.split(',').next().unwrap())
            .collect()
    };
    let (training, judged) = (of("train"), of("val"));
    let without = |images: &[&str]| {
        let kept = |line: &&str| !images.contains(&line.split(',').next().unwrap());
        table.lines().filter(kept).map(|line| format!("{line}\n")).collect::<String>()
    };
    std::fs::write(&labels, without(&training)).unwrap();
    refuse(
        &["--objective", "supervised"],
        &[text(&labels), &format!("none of the {} training rows has a known label", training.len())],
    );
    // Some are of other images; one that is judged, then all, have none.
    let run = |name: &str, text: String| {
        std::fs::write(&labels, text).unwrap();
        said(&with_table(train(&folder.path().join(name), &["--set", "train.epochs=1"]), "labels.csv", &labels))
    };
    let all = table.lines().count() - 1;
    let part = run("part", table.replace(judged[0], "other.png"));
    let note = format!(
        "1 of {all} images of the labels are not in the pairs, such as \"other.png\"; 1 of {} images that are judged have no labels, such as {:?}\n",
        judged.len(),
        judged[0]
    );
    assert!(part.contains(&note) && part.contains(" AUC "), "{part}");
    let bare = run("bare", without(&judged));
    assert!(bare.contains("no validation row has labels: the best epoch is chosen by the validation loss"), "{bare}");
    assert!(!run("all", table.clone()).contains("labels"));
}

#[test]
fn boxes_that_fit_no_picture_or_table_are_told_of() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| text(&folder.path().join(name)).to_owned();
    let (pairs, boxes) = (phantoms().join("pairs.csv"), at("b.json"));
    let whole: serde_json::Value =
        serde_json::from_slice(&std::fs::read(phantoms().join("boxes.json")).unwrap()).unwrap();
    let table = std::fs::read_to_string(&pairs).unwrap();
    let annotations = whole["annotations"].as_array().unwrap();
    let name = |id: &serde_json::Value| {
        whole["images"].as_array().unwrap().iter().find(|i| i["id"] == *id).unwrap()["file_name"].as_str().unwrap()
    };
    // The first annotation of an image of that split.
    let of = |split: &str| {
        let has = |line: &str, image: &str| line.starts_with(image) && line.contains(&format!(",{split},"));
        let found = |a: &serde_json::Value| table.lines().any(|line| has(line, name(&a["image_id"])));
        annotations.iter().position(found).unwrap()
    };
    let prompts = phantoms().join("prompts.csv");
    let eval = |part: &str| -> Vec<String> {
        let tables = [
            "--pairs",
            text(&pairs),
            "--prompts",
            text(&prompts),
            "--boxes",
            &boxes,
            "--split",
            part,
            "--out",
            &at("eval"),
        ]
        .map(str::to_owned);
        [&["eval", "--model", text(model())].map(str::to_owned)[..], &tables].concat()
    };
    let changed = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut json = whole.clone();
        change(&mut json);
        std::fs::write(&boxes, json.to_string()).unwrap();
    };
    let refuse = |arguments: &[String], words: &[&str]| {
        refused(&arguments.iter().map(String::as_str).collect::<Vec<_>>(), 1, words);
    };
    let runs = train(&folder.path().join("run"), &["--boxes", &boxes, "--set", "train.epochs=1"]);
    let (tested, judged) = (of("test"), of("val"));
    // Another size than the film's, and one that reaches out of a film whose size is not said.
    let image = |of: usize| annotations[of]["image_id"].as_u64().unwrap() as usize - 1;
    let film = phantoms().join(name(&annotations[tested]["image_id"]));
    let heat = ["heatmap", "--model", text(model()), "--text", "a", "--boxes", &boxes, text(&film), "-o", &at("h.png")]
        .map(str::to_owned);
    for (at, arguments) in [(tested, &eval("test")[..]), (tested, &heat), (judged, &runs)] {
        let name = format!("{:?} has 64 x 64 pixels, ", name(&annotations[at]["image_id"]));
        changed(&|json| json["images"][image(at)]["width"] = 128.into());
        refuse(arguments, &[&boxes, &format!("{name}not 128 x 64 as it is declared")]);
        changed(&|json| {
            json["images"][image(at)].as_object_mut().unwrap().remove("height");
            json["annotations"][at]["bbox"] = serde_json::json!([100, 190, 200, 110]);
        });
        refuse(arguments, &[&boxes, &format!("{name}and bbox [100.0, 190.0, 200.0, 110.0] of ")]);
    }
    changed(&|json| json["annotations"][3]["bbox"] = serde_json::json!([1, 2, 1e30, 4]));
    refuse(&eval("test"), &[&boxes, "annotation 3 (counted from 0): bbox [1.0, 2.0, 1e30, 4.0] reaches out of image"]);
    // Of an image and a label that nothing else knows.
    changed(&|json| {
        json["images"][image(tested)]["file_name"] = "other.png".into();
        json["categories"].as_array_mut().unwrap().push(serde_json::json!({ "id": 99, "name": "Other" }));
        json["annotations"][judged]["category_id"] = 99.into();
    });
    let note = format!(
        "{boxes}: left out are boxes of 1 images that are not in the pairs, such as \"other.png\"; and of 1 labels that no table has, such as \"Other\""
    );
    assert!(said(&eval("test")).contains(&format!("note: {note}")));
    let runs: Vec<String> = runs.into_iter().filter(|argument| argument != "-q").collect();
    let run = said(&runs);
    assert_eq!(run.matches(&note).count(), 1, "{run}");
    changed(&|_| ());
    assert!(!said(&eval("test")).contains("left out are boxes"));
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
    refused(&["devices", "--threads", "20000"], 2, &["--threads", "1024"]);
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
    let weights = model().join("model.safetensors");
    let before = std::fs::read(&weights).unwrap();
    refused(
        &["embed", "--model", text(model()), "--texts", "a", "-o", text(&weights)],
        2,
        &["model.safetensors", "replace"],
    );
    assert!(std::fs::read(&weights).unwrap() == before);
    refused(&heat(&["--text", "a", "-o", "h.png", "--grid", "./h.png"]), 2, &["h.png", "written twice"]);
    refused(&heat(&["--text", "a", "-o", "x.png"]), 2, &["x.png", "what is read"]);
    refused(&["report", "--model", "m", "--prompts", "p.csv", "x.png", "-o", "p.csv"], 2, &["p.csv", "what is read"]);
    refused(&["metrics", "--labels", "l.csv", "--scores", "s.csv", "-o", "l.csv"], 2, &["l.csv", "what is read"]);
    refused(&["preprocess", "--preset", "tier", "x.png", "-o", "x.png"], 2, &["x.png", "what is read"]);
    refused(&["bench", "--model", "m", "--what", "train"], 2, &["m: ", "--config"]);
    let garbage = folder.path().join("garbage.png");
    std::fs::write(&garbage, b"\x89PNG\r\n\x1a\nnot a picture").unwrap();
    let prompts = phantoms().join("prompts.csv");
    refused(&["classify", "--model", text(model()), "--prompts", text(&prompts), text(&garbage)], 1, &["garbage.png"]);
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
