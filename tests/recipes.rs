//! What the options of a training run do.

mod runs;

use std::collections::BTreeMap;
use std::path::Path;

use runs::*;
use tiergrad::formats::Weights;

fn tensors(path: &Path) -> BTreeMap<String, Vec<f64>> {
    Weights::open(path, false).unwrap().iter().map(|(name, t)| (name.to_owned(), t.to_f64_vec())).collect()
}

fn settings(of: &[&str]) -> Vec<String> {
    of.iter().flat_map(|setting| ["--set".to_owned(), (*setting).to_owned()]).collect()
}

/// A run that ends well, with more settings.
fn trained(out: &Path, more: &[&str]) {
    run(&[train(out, &[]), settings(more)].concat());
}

#[test]
fn the_best_epochs_are_kept_and_the_best_of_them_is_the_model() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    trained(&out, &["train.epochs=5", "train.keep=2", "schedule.lr=3e-3"]);
    let mut epochs: Vec<(u64, f64)> =
        log(&out).iter().filter_map(|r| Some((r["epoch"].as_u64()?, r["val_auc"].as_f64()?))).collect();
    assert_eq!(epochs.len(), 5);
    // Of equal ones the earlier.
    epochs.sort_by(|a, b| b.1.total_cmp(&a.1));
    let file = |k: usize| out.join(format!("checkpoints/epoch-{:04}.safetensors", epochs[k].0));
    let kept: Vec<bool> = (0..5).map(|k| file(k).exists()).collect();
    assert_eq!(kept, [true, true, false, false, false], "{epochs:?}");
    assert!(
        tensors(&file(0)) == tensors(&out.join("model/model.safetensors")) && tensors(&file(0)) != tensors(&file(1))
    );

    // A kept epoch is a model too, with the run's tokenizer and preprocessing; several are an ensemble, as the paper's code evaluates.
    let [pairs, labels, prompts] =
        ["pairs.csv", "labels.csv", "prompts.csv"].map(|name| text(&phantoms().join(name)).to_owned());
    let auc = |models: &[&Path]| {
        let at = folder.path().join("eval");
        let tables =
            ["--pairs", &pairs, "--labels", &labels, "--prompts", &prompts, "--split", "val", "--out", text(&at)];
        let models: Vec<&str> = models.iter().flat_map(|model| ["--model", text(model)]).collect();
        done(&[&["eval", "-q"], &tables[..], &models].concat());
        let metrics = std::fs::read(at.join("metrics.json")).unwrap();
        serde_json::from_slice::<serde_json::Value>(&metrics).unwrap()["auc_mean"].as_f64().unwrap()
    };
    let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-9, "{a} {b}");
    near(auc(&[&file(0)]), epochs[0].1);
    near(auc(&[&file(0)]), auc(&[&out.join("model")]));
    near(auc(&[&file(1)]), epochs[1].1);
    assert!(auc(&[&file(0), &file(1)]) > 0.0);
}

#[test]
fn frozen_prefixes_stay_and_the_rest_learns() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let freeze = "train.freeze=[\"text_model.\", \"vision_model.embeddings\"]";
    run(&[train(&out, &["--init", text(model())]), settings(&[freeze, "train.ema=0.9"])].concat());
    let [before, after] = [model().to_path_buf(), out.join("model")].map(|m| tensors(&m.join("model.safetensors")));
    assert!(before.keys().eq(after.keys()));
    let frozen = |name: &str| ["text_model.", "vision_model.embeddings"].iter().any(|start| name.starts_with(start));
    for (name, values) in &after {
        assert_eq!(*values == before[name], frozen(name), "{name}");
    }
    assert!(after.keys().any(|name| frozen(name)) && !after.keys().all(|name| frozen(name)));
}

/// A supervised run's model: so many times the first film, labels of the first two as given.
fn supervised(rows: usize, labels: [&str; 2], more: &[&str]) -> BTreeMap<String, Vec<f64>> {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| text(&folder.path().join(name)).to_owned();
    let mut films: Vec<_> = std::fs::read_dir(phantoms().join("images")).unwrap().map(|e| e.unwrap().path()).collect();
    films.sort();
    let [first, second] = [text(&films[0]), text(&films[1])];
    let table = format!("{first},a,train\n").repeat(rows);
    std::fs::write(at("pairs.csv"), format!("image,text,split\n{table}{second},b,val\n")).unwrap();
    std::fs::write(at("labels.csv"), format!("image,a,b\n{first},{}\n{second},{}\n", labels[0], labels[1])).unwrap();
    let mut arguments = train(&folder.path().join("run"), &["--objective", "supervised"]);
    for flag in ["--pairs", "--labels"] {
        let place = arguments.iter().position(|argument| argument == flag).unwrap();
        arguments[place + 1] = at(&format!("{}.csv", flag.trim_start_matches('-')));
    }
    let plain = [
        "augment={ crop_scale = [1.0, 1.0], crop_ratio = [1.0, 1.0], degrees = 0.0, translate = 0.0, scale = [1.0, 1.0], \
         brightness = 0.0, contrast = 0.0 }",
        "train.batch=2",
        "train.epochs=1",
        "optimiser.rule=sgd",
        "optimiser.clip_norm=0.0",
    ];
    run(&[arguments, settings(&[&plain[..], more].concat())].concat());
    tensors(&folder.path().join("run/model/model.safetensors"))
}

#[test]
fn accumulated_batches_step_by_the_mean_of_their_gradients() {
    // Batches of one film have the same gradient, so a step by two of them is a step by one.
    let of = |rows, more: &[&str]| supervised(rows, ["1,0", "0,1"], more);
    let (one, mean) = (of(2, &[]), of(4, &["train.accumulate=2"]));
    assert!(one == mean && one != of(4, &[]));
}

#[test]
fn labels_that_are_not_known_teach_nothing() {
    let head = |labels| {
        let all = supervised(2, labels, &["optimiser.weight_decay=0.0"]);
        ["head.fc2.weight", "head.fc2.bias"].map(|name| {
            let values = &all[name];
            values.chunks(values.len() / 2).map(<[f64]>::to_vec).collect::<Vec<_>>()
        })
    };
    let [blank, minus, one] = [["1,", "0,1"], ["1,-1", "0,1"], ["1,1", "0,1"]].map(head);
    let [untaught, _] = [["0,", "0,1"], ["1,", "0,1"]].map(head);
    assert_eq!(blank, minus);
    for part in 0..2 {
        assert!(blank[part][1] == untaught[part][1] && blank[part][1] != one[part][1]);
        assert!(blank[part][0] != untaught[part][0]);
    }
}

#[test]
fn an_evaluation_on_drawn_validation_rows_takes_those_of_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let table = std::fs::read_to_string(phantoms().join("pairs.csv")).unwrap().replace(",val,", ",train,");
    let pairs = phantoms().join("pairs-without-val.csv");
    std::fs::write(&pairs, table).unwrap();
    let out = folder.path().join("run");
    let mut arguments = [train(&out, &[]), settings(&["seed=3", "train.epochs=1"])].concat();
    let table = arguments.iter_mut().find(|argument| argument.ends_with("/pairs.csv")).unwrap();
    *table = text(&pairs).to_owned();
    run(&arguments);
    let split = std::fs::read_to_string(out.join("splits.csv")).unwrap();
    let drawn: Vec<&str> = split.lines().filter_map(|line| line.strip_suffix(",val")).collect();
    assert!(drawn.len() > 2, "{split}");

    let scored = |more: &[&str]| {
        let (model, at) = (out.join("model"), folder.path().join("eval"));
        let [labels, prompts] = ["labels.csv", "prompts.csv"].map(|name| phantoms().join(name));
        let tables =
            ["--pairs", text(&pairs), "--labels", text(&labels), "--prompts", text(&prompts), "--split", "val"];
        done(&[&["eval", "-q", "--model", text(&model), "--out", text(&at)], &tables[..], more].concat());
        let scores = std::fs::read_to_string(at.join("scores.csv")).unwrap();
        scores.lines().skip(1).map(|line| format!("{:?}", line.split(',').next().unwrap())).collect::<Vec<_>>()
    };
    assert_eq!(scored(&[]), drawn);
    assert_eq!(scored(&["--seed", "3"]), drawn);
    assert_ne!(scored(&["--seed", "4"]), drawn);
}

#[test]
fn a_run_that_goes_on_without_finite_numbers_ends_and_resumes() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    trained(&out, &["train.epochs=2", "train.check_finite=false", "schedule.lr=1e30"]);
    let lost = log(&out);
    assert!(lost.iter().any(|r| r["loss"].is_null()), "{lost:?}");
    // Of epochs without a score the later one is the model.
    let epoch = tensors(&out.join("checkpoints/epoch-0002.safetensors"));
    assert!(epoch.keys().eq(tensors(&out.join("model/model.safetensors")).keys()));
    run(&["train", "--resume", "-q", "--out", text(&out)].map(str::to_owned));
    assert_eq!(log(&out), lost);
}

#[test]
fn what_no_run_can_have_is_refused_before_there_is_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    for (setting, words) in [
        ("image.resize=5000", "image.resize: 5000 is more than 4096"),
        ("model.vision.depth=1000000", "vision: depth = 1000000 is more than 1024"),
        ("model.text.depth=500", "lower depth"),
        ("train.views=300", "train.views: 300 is more than 256"),
    ] {
        let arguments = [train(&out, &[]), settings(&[setting])].concat();
        refused(&arguments.iter().map(String::as_str).collect::<Vec<_>>(), 2, &[words]);
        assert!(!out.exists(), "{setting}");
    }
}

#[test]
fn a_runs_config_has_every_key_and_one_without_the_defaults_is_resumed() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    trained(&out, &["train.epochs=1"]);
    let text_of = |file: &str| std::fs::read_to_string(out.join(file)).unwrap();
    let written: toml::Table = text_of("config.toml").parse().unwrap();
    let keys = |table: &toml::Table| table.keys().cloned().collect::<Vec<_>>().join(" ");
    let model = written["model"].as_table().unwrap();
    assert_eq!(keys(model), "global_image global_text joint text text_projection vision visual_projection");
    assert_eq!(
        keys(model["vision"].as_table().unwrap()),
        "activation channels class_token depth eps heads image_size kind mlp patch_bias patch_size post_norm pre_norm stem \
         stem_residuals width"
    );
    assert_eq!(
        keys(model["text"].as_table().unwrap()),
        "activation depth eps heads kind max_length mlp text_uses_attention_mask vocabulary whole width"
    );
    assert!(model["global_image"].as_str() == Some("mean_patches") && model["text"]["mlp"].as_integer() == Some(64));
    // As runs wrote it before.
    let left_out = ["global_image", "mlp", "post_norm", "stem"];
    let all = text_of("config.toml");
    let less = all.lines().filter(|line| !left_out.iter().any(|key| line.starts_with(key)));
    std::fs::write(out.join("config.toml"), less.collect::<Vec<_>>().join("\n")).unwrap();
    let before = bytes(&out);
    run(&["train", "--resume", "-q", "--out", text(&out)].map(str::to_owned));
    assert!(bytes(&out) == before);
}
