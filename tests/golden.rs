//! Small models of every family against what PyTorch computes with them: see tests/golden/README.md.

#[path = "common/device.rs"]
mod device;

use std::path::{Path, PathBuf};

use tiergrad::check::{Case, Check, verify, verify_on};
use tiergrad::checkpoints::Checkpoint;
use tiergrad::formats::Weights;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn cases() -> Vec<PathBuf> {
    cases_in(&folder())
}

fn cases_in(folder: &Path) -> Vec<PathBuf> {
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
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
fn every_case_is_reproduced_on_a_device() {
    let Some(gpu) = device::gpu() else { return };
    for path in cases().into_iter().chain(cases_in(&folder().join("alone"))) {
        let (checkpoint, case) = open(&path);
        let checks = verify_on(Some(&gpu), &checkpoint, &case).unwrap();
        assert!(failed(&checks).is_empty(), "{}: {:#?}", path.display(), failed(&checks));
    }
    assert_eq!(gpu.fallbacks(), []);
}

/// What transformers', torchvision's and timm's own classes give: logits, a pooler's output, features, projected texts.
#[test]
fn towers_alone_give_what_their_classes_give() {
    let cases = cases_in(&folder().join("alone"));
    let names: Vec<String> =
        cases.iter().map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect();
    let all = ["bert", "clip-text", "clip-vision", "hf-vit", "hf-vit-old", "hf-vit.interpolated", "resnet"];
    for name in all.into_iter().chain(["timm-fc-norm", "timm-no-class"]) {
        assert!(names.contains(&format!("{name}.case.safetensors")), "{name}: {names:?}");
    }
    for path in cases {
        let (checkpoint, case) = open(&path);
        assert!(case.expected.contains_key("output"), "{}", path.display());
        let checks = verify(&checkpoint, &case).unwrap();
        assert!(failed(&checks).is_empty(), "{}: {:#?}", path.display(), failed(&checks));
        // The bound is one that another epsilon, activation or pooling breaks.
        assert!(checks.iter().all(|check| check.tolerance < 1e-3));
    }
}

/// Hugging Face's ViT wants both sides resized, whatever the picture's shape.
#[test]
fn pictures_are_stretched_as_pillow_does() {
    use tiergrad::image::{Filter, Picture, Preprocess, Preset};
    let golden = Weights::open(folder().join("alone/stretch.safetensors"), true).unwrap();
    let mut compared = 0;
    for name in ["wide", "tall", "grey"] {
        let levels = golden.get(&format!("{name}.picture")).unwrap();
        let [height, width, channels] = [0, 1, 2].map(|k| levels.dims()[k]);
        let picture = Picture { width, height, channels, pixels: levels.to_vec() };
        for (filter, kernel) in [("bilinear", Filter::Bilinear), ("bicubic", Filter::Bicubic)] {
            let expected = golden.get(&format!("{name}.{filter}")).unwrap();
            let side = expected.dims()[0];
            let way =
                Preprocess { stretch: true, resize: side, crop: side, filter: kernel, ..Preset::Clip.preprocess() };
            let seen = way.seen(&picture);
            let three = 3 / seen.channels;
            let found: Vec<u8> = seen.pixels.iter().flat_map(|&level| std::iter::repeat_n(level, three)).collect();
            assert_eq!((seen.width, seen.height), (side, side));
            assert!(found == expected.to_vec::<u8>(), "{name}, {filter}");
            compared += 1;
        }
    }
    assert_eq!(compared, 6);
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

/// A copy of a case's file with another header.
fn changed(name: &str, folder: &Path, change: &dyn Fn(&mut serde_json::Value)) -> PathBuf {
    let bytes = std::fs::read(self::folder().join(format!("{name}.case.safetensors"))).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    change(&mut header);
    let header = serde_json::to_vec(&header).unwrap();
    let path = folder.join("changed.case.safetensors");
    let parts = [&(header.len() as u64).to_le_bytes(), &header[..], &bytes[8 + length..]];
    std::fs::write(&path, parts.concat()).unwrap();
    path
}

#[test]
fn a_malformed_case_is_refused_by_what_is_wrong_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let error = |change: &dyn Fn(&mut serde_json::Value)| {
        let path = changed("own", folder.path(), change);
        let opened = Case::open(&path, true).and_then(|case| verify(&self::case("own").0, &case));
        opened.map(|checks| failed(&checks).len()).unwrap_err().to_string()
    };
    let without = |key: &'static str| {
        move |header: &mut serde_json::Value| {
            header["__metadata__"].as_object_mut().unwrap().remove(key);
        }
    };
    let with = |key: &'static str, value: &'static str| {
        move |header: &mut serde_json::Value| header["__metadata__"][key] = value.into()
    };
    let renamed = |from: &'static str, to: &'static str| {
        move |header: &mut serde_json::Value| {
            let tensor = header.as_object_mut().unwrap().remove(from).unwrap();
            header[to] = tensor;
        }
    };
    for key in ["rtol", "lambda_t", "eps", "mask_padding", "train_mode", "adam_steps", "lr", "weight_decay"] {
        assert!(error(&without(key)).contains(key), "{key}");
    }
    assert!(error(&without("format")).contains("not a parity case"));
    for (key, value) in
        [("lambda_p", "nan"), ("eps", "-1"), ("rtol", "small"), ("train_mode", "maybe"), ("adam_steps", "2.5")]
    {
        assert!(error(&with(key, value)).contains(key), "{key}");
    }
    assert!(error(&with("adam_steps", "7")).contains("adam.losses has 3"));
    assert!(error(&renamed("pixel_values", "pixels")).contains("needs pixel_values"));
    assert!(error(&renamed("input_ids", "ids")).contains("attention_mask without input_ids"));
    let swapped = |header: &mut serde_json::Value| {
        let tensors = header.as_object_mut().unwrap();
        let [ids, embeds] = ["input_ids", "expect.text_embeds"].map(|name| tensors.remove(name).unwrap());
        tensors.insert("input_ids".to_owned(), embeds);
        tensors.insert("expect.text_embeds".to_owned(), ids);
    };
    assert!(error(&swapped).contains("text_embeds is i64"), "{}", error(&swapped));
    let longer = |header: &mut serde_json::Value| header["input_ids"]["shape"] = serde_json::json!([1, 30]);
    assert!(error(&longer).contains("input_ids"), "{}", error(&longer));
    // A tensor of a name that this model cannot give fails by itself, the others still pass.
    let path = changed("own", folder.path(), &renamed("expect.loss_clip", "expect.loss_klip"));
    let checks = verify(&case("own").0, &Case::open(&path, true).unwrap()).unwrap();
    assert_eq!(failed(&checks).iter().map(|check| check.name.as_str()).collect::<Vec<_>>(), ["loss_klip"]);
}

/// Twenty steps of AdamW on changing batches, by the code that trains, against PyTorch's float64: see tests/golden/curves.py. On a device too,
/// where there is one.
#[cfg(feature = "cli")]
#[test]
fn training_follows_pytorchs_curve() {
    use tiergrad::checkpoints::Checkpoint;
    use tiergrad::loss::TierOptions;
    use tiergrad::models::Network;
    use tiergrad::nn::Module;
    use tiergrad::optim::{Optimiser, OptimiserConfig};
    use tiergrad::train::step::{Pairs, step};
    use tiergrad::{DType, Tensor};

    for (name, gpu) in [("vit", None), ("resnet", None), ("vit", device::gpu()), ("resnet", device::gpu())] {
        let file = Weights::open(folder().join(format!("{name}.curve.safetensors")), true).unwrap();
        let said = |key: &str| file.metadata()[key].parse::<f64>().unwrap();
        let beside = |name: &str| folder().join(name);
        let checkpoint = match file.metadata()["model"].split_once(" + ") {
            Some((image, text)) => Checkpoint::join(&beside(image), &beside(text), true),
            None => Checkpoint::open(&beside(&file.metadata()["model"]), true),
        };
        let Network::Dual(mut model) = checkpoint.unwrap().network_in_f32().unwrap() else { panic!("{name}") };
        model.visit("", &mut |_, p| *p = p.copied().placed(gpu.as_ref()).trainable());
        let options = TierOptions {
            lambda_p: said("lambda_p"),
            lambda_t: said("lambda_t"),
            eps: said("eps"),
            ..TierOptions::default()
        };
        let config = OptimiserConfig {
            weight_decay: said("weight_decay"),
            decay_exempt: Vec::new(),
            clip_norm: said("clip_norm"),
            ..OptimiserConfig::default()
        };
        let mut optimiser = Optimiser::new(config);
        let batches = file.iter().filter(|(name, _)| name.starts_with("pixel_values.")).count();
        let batch = |i: usize| {
            let of = |what: &str| file.get(&format!("{what}.{i}")).unwrap().clone();
            let n = of("input_ids").dims()[0];
            let groups = Tensor::from_slice(&(0..n as i64).collect::<Vec<_>>(), [n]);
            let mask = of("attention_mask").to_dtype(DType::U8);
            Pairs { views: vec![of("pixel_values")], ids: of("input_ids"), mask, groups }
        };
        let (curve, own) = (file.get("curve").unwrap().to_f64_vec(), file.get("deviation").unwrap().to_f64_vec());
        let mut furthest = [0.0f64; 4];
        assert_eq!(curve.len(), 20 * 4);
        for (i, expected) in curve.chunks(4).enumerate() {
            let one = step(&mut model, &batch(i % batches), &options, 0);
            optimiser.step(&mut model, one.grads, said("lr")).unwrap();
            let parts = one.values.parts();
            let found = [parts.total, parts.clip, parts.patch_entropy, parts.token_entropy];
            for k in 0..4 {
                let off = (found[k] - expected[k]).abs();
                furthest[k] = furthest[k].max(off);
                assert!(off <= 20.0 * own[k], "{name}, step {i}, part {k}: {} instead of {}", found[k], expected[k]);
            }
        }
        println!("{name} on {gpu:?}: furthest {furthest:?}, PyTorch's float32 {own:?}");
        gpu.iter().for_each(|gpu| assert_eq!(gpu.fallbacks(), []));
    }
}
