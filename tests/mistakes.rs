//! What `tier` says of files, tables and flags that are wrong: one clear line, the right exit code, and nothing left out silently.

mod runs;

use std::path::Path;

use runs::*;

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
