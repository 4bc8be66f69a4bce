//! Small models of every family against what PyTorch computes with them: see tests/golden/README.md.

use std::path::{Path, PathBuf};

use tiergrad::check::{Case, Check, verify};
use tiergrad::checkpoints::Checkpoint;
use tiergrad::formats::Weights;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn cases() -> Vec<PathBuf> {
    let files = std::fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path());
    let mut cases: Vec<PathBuf> = files.filter(|path| path.to_string_lossy().ends_with(".case.safetensors")).collect();
    cases.sort();
    cases
}

fn case(name: &str) -> (Checkpoint, Case) {
    open(&folder().join(format!("{name}.case.safetensors")))
}

/// A case and its model: one that lies beside it, or two joined by " + ".
fn open(path: &Path) -> (Checkpoint, Case) {
    let beside = |name: &str| path.with_file_name(name);
    let metadata = Weights::open(path, true).unwrap().metadata().clone();
    let checkpoint = match metadata["model"].split_once(" + ") {
        Some((image, text)) => Checkpoint::join(&beside(image), &beside(text), true),
        None => Checkpoint::open(&beside(&metadata["model"]), true),
    };
    (checkpoint.unwrap(), Case::open(path, true).unwrap())
}

fn failed(checks: &[Check]) -> Vec<&Check> {
    checks.iter().filter(|check| !check.passed).collect()
}

#[test]
fn every_case_is_reproduced() {
    let cases = cases();
    assert_eq!(cases.len(), 12, "{cases:?}");
    for path in cases {
        let (checkpoint, case) = open(&path);
        assert!(case.ignored.is_empty(), "{:?}", case.ignored);
        let checks = verify(&checkpoint, &case).unwrap();
        assert!(checks.len() >= case.expected.len());
        assert!(failed(&checks).is_empty(), "{}: {:#?}", path.display(), failed(&checks));
    }
}

#[test]
fn every_kind_of_tensor_is_among_them() {
    let mut names: Vec<String> =
        cases().iter().flat_map(|path| Case::open(path, true).unwrap().expected.into_keys()).collect();
    names.sort();
    for start in [
        "image_embeds",
        "text_embeds",
        "patch_embeds",
        "token_embeds",
        "logits_per_image",
        "loss_clip",
        "loss",
        "patch_entropy",
        "token_entropy",
        "adam.losses",
        "grad.logit_scale",
        "grad.cnn.encoder.encoder.layer4.0.downsample.1.bias",
        "after.cnn.projector.model.1.running_var",
        "grad.transformer.cls_projection_head.LayerNorm.weight",
        "grad.visual.transformer.resblocks.0.attn.in_proj_weight",
        "grad.vision_model.layer3.1.conv2.weight",
    ] {
        assert!(names.iter().any(|name| name == start), "{start}");
    }
}

/// A case that is changed must not pass: what it says is used.
#[test]
fn other_options_than_a_case_was_made_with_fail() {
    let fails = |name: &str, change: &dyn Fn(&mut Case)| {
        let (checkpoint, mut case) = case(name);
        change(&mut case);
        let checks = verify(&checkpoint, &case).unwrap();
        failed(&checks).iter().map(|check| check.name.clone()).collect::<Vec<_>>()
    };
    for (name, what, change) in [
        (
            "open-clip",
            "token_entropy",
            &(|c: &mut Case| c.objective.as_mut().unwrap().mask_padding = false) as &dyn Fn(&mut Case),
        ),
        ("open-clip", "patch_entropy", &|c| c.objective.as_mut().unwrap().eps = 1e-7),
        ("biomedclip", "loss", &|c| c.objective.as_mut().unwrap().swap_lambdas = true),
        ("hf-clip", "adam.losses", &|c| c.adam.as_mut().unwrap().weight_decay = 0.0),
        ("hf-clip", "adam.losses", &|c| c.adam.as_mut().unwrap().lr *= 1.1),
        ("tier.train", "after.cnn.encoder.encoder.bn1.running_var", &|c| c.train = false),
        ("tier.eval", "image_embeds", &|c| c.train = true),
        ("biovil.train", "patch_embeds", &|c| c.train = false),
    ] {
        let names = fails(name, change);
        assert!(names.iter().any(|failed| failed == what), "{name} without {what}: {names:?}");
    }
}

#[test]
fn a_case_of_another_model_is_refused_in_words() {
    let error = |model: &str, of: &str| {
        let (checkpoint, _) = case(model);
        verify(&checkpoint, &case(of).1).unwrap_err().to_string()
    };
    assert!(error("cxr-bert", "biovil").contains("no images"));
    assert!(error("biovil", "cxr-bert").contains("no texts"));
    assert!(error("own", "tier.eval").contains("tokens"), "{}", error("own", "tier.eval"));
    assert!(
        error("open-clip", "tier.eval").contains("multiples of 4")
            || error("open-clip", "tier.eval").contains("tokens")
    );
}
