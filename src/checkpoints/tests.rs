use std::path::Path;

use super::*;
use crate::models::bert::BertConfig;
use crate::models::clip_text::{TextConfig, WholeText};
use crate::models::dual_encoder::Embeddings;
use crate::models::resnet::{BlockKind, ResnetConfig};
use crate::models::vit::VitConfig;
use crate::models::{GlobalImage, ImageProjectionKind, ImageTowerConfig, TextTowerConfig};
use crate::nn::{Activation, Module, ProjectionKind};

/// Embeddings of both sides of any network; batch norms go by the batch's statistics where `train`.
fn embed(network: &Network, case: &Weights, train: bool) -> [Option<Embeddings>; 2] {
    let pixels = case.get("pixel_values");
    let texts = case.get("input_ids").map(|ids| (ids, case.get("attention_mask").unwrap().to_dtype(DType::U8)));
    let images = pixels.and_then(|pixels| match network {
        Network::Dual(model) if train => Some(model.encode_image_train(pixels).0),
        Network::Dual(model) => Some(model.encode_image(pixels)),
        Network::Image(model) => model.forward(pixels).1,
        _ => None,
    });
    let texts = texts.and_then(|(ids, mask)| match network {
        Network::Dual(model) => Some(model.encode_text(ids, &mask)),
        Network::Text(model) => model.forward(ids, &mask).1,
        _ => None,
    });
    [images, texts]
}

fn open(folder: &Path, model: &str) -> Result<Checkpoint> {
    match model.split_once(" + ") {
        Some((image, text)) => Checkpoint::join(&folder.join(image), &folder.join(text), true),
        None => Checkpoint::open(&folder.join(model), true),
    }
}

fn relative_error(ours: &Tensor, theirs: &Tensor) -> f64 {
    assert_eq!(ours.dims(), theirs.dims());
    let length = |x: Tensor| x.square().sum_all().item().sqrt();
    length(ours.sub(theirs)) / length(theirs.clone())
}

/// Every case of the parity folder, where TIER_SHARED names the folder that has it.
#[test]
fn embeddings_of_every_layout_are_those_of_pytorch() {
    let Some(folder) = crate::shared::shared("parity") else { return };
    let mut compared = 0;
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        if !path.to_string_lossy().ends_with(".case.safetensors") {
            continue;
        }
        let case = Weights::open(&path, true).unwrap();
        let said = case.metadata();
        let (name, rtol) = (&said["case"], said["rtol"].parse::<f64>().unwrap());
        let train = said.get("train_mode").is_some_and(|mode| mode == "train");
        let checkpoint = open(&folder, &said["model"]).unwrap();
        let mut network = checkpoint.network().unwrap();
        if train {
            // Batch norms that do not train keep to their running statistics.
            network.visit("", &mut |_, p| *p = p.trainable());
        }
        let [images, texts] = embed(&network, &case, train);
        let mut found: Vec<(&str, Tensor)> = Vec::new();
        if let Some(e) = &images {
            found.extend([("image_embeds", e.whole.clone()), ("patch_embeds", e.parts.clone())]);
        }
        if let Some(e) = &texts {
            found.extend([("text_embeds", e.whole.clone()), ("token_embeds", e.parts.clone())]);
        }
        if let (Some(image), Some(text), Network::Dual(model)) = (&images, &texts, &network) {
            found.push(("logits_per_image", crate::loss::logits(&image.whole, &text.whole, &model.logit_scale)));
        }
        let wanted = case.iter().filter(|(name, _)| name.ends_with("embeds") || name.ends_with("per_image")).count();
        assert_eq!(found.len(), wanted, "{name}: {}", checkpoint.layout.name);
        for (what, ours) in found {
            let error = relative_error(&ours, case.get(&format!("expect.{what}")).unwrap());
            println!("{name} ({}): {what} {error:.1e}", checkpoint.layout.name);
            assert!(error <= rtol, "{name}: {what} {error:.2e} > {rtol:.1e}");
            compared += 1;
        }
    }
    assert!(compared > 0, "no cases in {}", folder.display());
}

fn vision() -> VitConfig {
    let sizes =
        VitConfig { image_size: 8, patch_size: 4, channels: 3, width: 64, depth: 2, heads: 1, ..VitConfig::default() };
    VitConfig { class_token: true, mlp: Some(24), ..sizes }
}

fn text() -> TextConfig {
    TextConfig { vocabulary: 12, max_length: 5, width: 64, depth: 1, heads: 1, mlp: Some(40), ..TextConfig::default() }
}

fn bert(pooler: bool) -> BertConfig {
    let json = serde_json::json!({ "vocabulary": 9, "max_length": 6, "width": 64, "depth": 1, "heads": 1, "mlp": 20, "pooler": pooler });
    serde_json::from_value(json).unwrap()
}

fn resnet(image_size: usize) -> ResnetConfig {
    ResnetConfig { image_size, block: BlockKind::Basic, depths: vec![1, 1], base: 4, ..ResnetConfig::default() }
}

/// A layout's name, a model of it, and the configs that lie beside it.
type Example = (&'static str, NetworkConfig, Vec<(&'static str, serde_json::Value)>);

/// One model of every layout.
fn examples() -> Vec<Example> {
    use serde_json::json;
    let clip = |vision: VitConfig, text: TextConfig| {
        let config = DualEncoderConfig {
            vision: vision.into(),
            text: text.into(),
            joint: 7,
            global_image: Some(GlobalImage::Cls),
            global_text: Some(GlobalText::Token),
            ..DualEncoderConfig::default()
        };
        NetworkConfig::TiergradDualEncoder(config)
    };
    let image = |vision: ImageTowerConfig, global_image, output| {
        NetworkConfig::TiergradImageModel(ImageModelConfig { vision, global_image, pooled_norm: None, output })
    };
    let text_model = |text: TextTowerConfig, output| NetworkConfig::TiergradTextModel(TextModelConfig { text, output });
    let quick = Activation::QuickGelu;
    let plain = VitConfig { pre_norm: false, patch_bias: true, eps: 1e-6, ..vision() };
    let openai = TextConfig { text_uses_attention_mask: false, whole: WholeText::LargestId, ..text() };
    let (linear, head) = (ImageProjectionKind::Linear, ProjectionKind::Head);
    let biovil = ImageOutput::Joint { joint: 7, projection: ImageProjectionKind::Projector };
    let mean = Some(GlobalImage::MeanPatches);
    let biomed = DualEncoderConfig {
        vision: plain.clone().into(),
        text: bert(false).into(),
        joint: 7,
        global_image: Some(GlobalImage::Cls),
        global_text: Some(GlobalText::Token),
        text_projection: ProjectionKind::Mlp { hidden: 10, bias: false },
        ..DualEncoderConfig::default()
    };
    let tier = DualEncoderConfig {
        vision: resnet(224).into(),
        global_image: mean,
        visual_projection: ImageProjectionKind::Projector,
        text_projection: head,
        ..biomed.clone()
    };
    let eos = json!({ "num_attention_heads": 1, "eos_token_id": 3 });
    let hf = json!({ "vision_config": { "num_attention_heads": 1 }, "text_config": eos });
    let first = TextConfig { whole: WholeText::First(3), activation: quick, ..text() };
    vec![
        (
            "Hugging Face CLIPModel",
            clip(VitConfig { activation: quick, ..vision() }, first.clone()),
            vec![("config.json", hf)],
        ),
        (
            "OpenAI CLIP",
            clip(VitConfig { activation: quick, ..vision() }, TextConfig { activation: quick, ..openai.clone() }),
            vec![],
        ),
        (
            "open_clip",
            clip(VitConfig { heads: 2, ..vision() }, TextConfig { heads: 4, ..openai }),
            vec![(
                "open_clip_config.json",
                json!({ "model_cfg": { "embed_dim": 7, "vision_cfg": { "head_width": 32 }, "text_cfg": { "heads": 4 } } }),
            )],
        ),
        ("open_clip CustomTextCLIP", NetworkConfig::TiergradDualEncoder(biomed), vec![]),
        ("TIER", NetworkConfig::TiergradDualEncoder(tier), vec![]),
        ("BioViL image model", image(resnet(480).into(), mean, biovil), vec![]),
        ("BERT", text_model(bert(true).into(), TextOutput::Features), vec![]),
        ("BERT", text_model(bert(false).into(), TextOutput::Joint { joint: 7, projection: head }), vec![]),
        (
            "Hugging Face CLIP vision model",
            image(
                VitConfig { activation: quick, ..vision() }.into(),
                None,
                ImageOutput::Joint { joint: 7, projection: linear },
            ),
            vec![],
        ),
        (
            "Hugging Face CLIP text model",
            text_model(first.into(), TextOutput::Features),
            vec![("config.json", json!({ "num_attention_heads": 1, "eos_token_id": 3 }))],
        ),
        (
            "Hugging Face ViT",
            image(VitConfig { eps: 1e-12, ..plain.clone() }.into(), Some(GlobalImage::Cls), ImageOutput::Logits(3)),
            vec![],
        ),
        ("timm vision transformer", image(plain.into(), Some(GlobalImage::Cls), ImageOutput::Logits(3)), vec![]),
        ("torchvision ResNet", image(resnet(224).into(), mean, ImageOutput::Logits(5)), vec![]),
    ]
}

/// Tensors of a drawn model, by canonical name.
fn drawn(config: &NetworkConfig) -> BTreeMap<String, Tensor> {
    let mut network = Network::new(&Source::drawn(7, DType::F32).params(), config).unwrap();
    let mut tensors = BTreeMap::new();
    network.visit_all("", &mut |name, t| drop(tensors.insert(name.to_owned(), t.detach())));
    tensors
}

fn table(layout: &str) -> Table {
    let layout = LAYOUTS.into_iter().find(|known| known.name == layout).unwrap();
    Table::new(&(layout.names)())
}

fn save(folder: &Path, tensors: &BTreeMap<String, Tensor>) {
    let named = tensors.iter().map(|(name, t)| (name.clone(), t));
    crate::formats::safetensors::save(folder.join("model.safetensors"), named, &BTreeMap::new()).unwrap();
}

#[test]
fn every_layout_is_written_recognised_and_read_back_bit_for_bit() {
    let mut seen = BTreeSet::new();
    for (name, config, configs) in examples() {
        let canonical = drawn(&config);
        let names = table(name).names(canonical.keys().map(String::as_str)).unwrap();
        let foreign = names.foreign(&canonical).unwrap();
        let folder = tempfile::tempdir().unwrap();
        save(folder.path(), &foreign);
        for (file, json) in &configs {
            std::fs::write(folder.path().join(file), json.to_string()).unwrap();
        }
        let checkpoint = Checkpoint::open(folder.path(), true).unwrap();
        assert_eq!(checkpoint.layout.name, name);
        assert_eq!(checkpoint.config, config, "{name}");
        let back = checkpoint.tensors().unwrap();
        assert_eq!(back.keys().collect::<Vec<_>>(), canonical.keys().collect::<Vec<_>>(), "{name}");
        assert!(canonical.iter().all(|(key, t)| equal(t, &back[key])), "{name}");
        assert!(checkpoint.names().foreign(&back).unwrap().iter().all(|(key, t)| equal(t, &foreign[key])), "{name}");
        checkpoint.network().unwrap();
        seen.insert(name);
    }
    // Our own folders are tested where they are written.
    assert_eq!(seen.len() + 1, LAYOUTS.len());
}

#[test]
fn tensors_that_do_not_fit_are_listed_with_the_nearest_names() {
    let (name, config, _) = examples().swap_remove(1);
    let canonical = drawn(&config);
    let good = table(name).names(canonical.keys().map(String::as_str)).unwrap().foreign(&canonical).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let refused = |change: &dyn Fn(&mut BTreeMap<String, Tensor>)| {
        let mut tensors = good.clone();
        change(&mut tensors);
        save(folder.path(), &tensors);
        Checkpoint::open(folder.path(), true).err().map(|e| e.to_string())
    };
    let moved = refused(&|t| {
        let bias = t.remove("visual.ln_post.bias").unwrap();
        t.insert("visual.lnpost.bias".to_owned(), bias);
    })
    .unwrap();
    assert!(moved.contains("visual.ln_post.bias (nearest: visual.lnpost.bias)"), "{moved}");
    assert!(moved.contains("model.safetensors"), "{moved}");
    // Names that a layout is known by, and that sizes are taken from.
    for (name, wrong) in [
        ("visual.class_embedding", "visual.class_embeding"),
        ("text_projection", "text_projektion"),
        ("visual.conv1.weight", "visual.conv_1.weight"),
        ("token_embedding.weight", "token_embeddings.weight"),
    ] {
        let told = refused(&|t| {
            let tensor = t.remove(name).unwrap();
            t.insert(wrong.to_owned(), tensor);
        })
        .unwrap();
        let told_missing = told.contains(name) && told.contains(&format!("is missing (nearest: {wrong})"));
        assert!(told_missing || told.contains(&format!("{wrong} (nearest: {name})")), "{told}");
    }
    let other = refused(&|t| drop(t.insert("visual.ln_post.bias".to_owned(), Tensor::zeros([3], DType::F32)))).unwrap();
    assert!(other.contains("visual.ln_post.bias") && other.contains("[3]"), "{other}");
    // What is known to be harmless passes, with a note; so does the prefix of training on several devices.
    let harmless = |t: &mut BTreeMap<String, Tensor>| {
        t.insert("context_length".to_owned(), Tensor::scalar(5i64));
        *t = std::mem::take(t).into_iter().map(|(name, t)| (format!("module.{name}"), t)).collect();
    };
    assert_eq!(refused(&harmless), None);
    let notes = Checkpoint::open(folder.path(), true).unwrap().notes.join("\n");
    assert!(notes.contains("context_length") && notes.contains("module."), "{notes}");
    assert!(notes.contains("QuickGELU and heads of 64 are assumed"), "{notes}");
    // Lightning's prefix, before that of several devices; long lists are counts, in full in the details.
    let lightning = |t: &mut BTreeMap<String, Tensor>| {
        (0..9).for_each(|i| drop(t.insert(format!("{i}.attn_mask"), Tensor::scalar(0.0f32))));
        *t = std::mem::take(t).into_iter().map(|(name, t)| (format!("model.module.{name}"), t)).collect();
    };
    assert_eq!(refused(&lightning), None);
    let checkpoint = Checkpoint::open(folder.path(), true).unwrap();
    let (notes, details) = (checkpoint.notes.join("\n"), checkpoint.details.join("\n"));
    assert!(notes.contains("model.module. left off") && notes.contains("9 tensors, the first 0.attn_mask"), "{notes}");
    assert!(details.contains("8.attn_mask") && !notes.contains("8.attn_mask"), "{details}");
    checkpoint.network().unwrap();
    let unknown = refused(&|t| *t = BTreeMap::from([("a".to_owned(), Tensor::scalar(1.0f32))])).unwrap();
    assert!(unknown.contains("no known model"), "{unknown}");
}

#[test]
fn a_config_that_contradicts_the_tensors_is_refused_by_key() {
    let (name, config, _) = examples().swap_remove(0);
    let canonical = drawn(&config);
    let folder = tempfile::tempdir().unwrap();
    save(folder.path(), &table(name).names(canonical.keys().map(String::as_str)).unwrap().foreign(&canonical).unwrap());
    for (json, named) in [
        (
            r#"{"vision_config": {"hidden_size": 65, "num_attention_heads": 1}, "text_config": {"num_attention_heads": 1}}"#,
            "vision_config.hidden_size",
        ),
        (r#"{"vision_config": {"num_attention_heads": 1}, "text_config": {"num_attention_heads": 5}}"#, "5 heads"),
        (r#"{"vision_config": {"num_attention_heads": 1, "hidden_act": "silu"}, "text_config": {}}"#, "hidden_act"),
        ("[]", "config.json"),
    ] {
        std::fs::write(folder.path().join("config.json"), json).unwrap();
        let error = Checkpoint::open(folder.path(), true).err().unwrap().to_string();
        assert!(error.contains(named), "{error}");
    }
}

#[test]
fn what_is_not_computed_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |tensors: &BTreeMap<String, Tensor>, config: &str| {
        save(folder.path(), tensors);
        std::fs::write(folder.path().join("config.json"), config).unwrap();
        Checkpoint::open(folder.path(), true).err().map(|e| e.to_string()).unwrap_or_default()
    };
    let only = |name: &str| BTreeMap::from([(name.to_owned(), Tensor::scalar(1.0f32))]);
    for (tensor, named) in [
        ("visual.attnpool.positional_embedding", "CLIP's modified ResNet"),
        ("logit_bias", "SigLIP"),
        ("module.blocks.0.ls1.gamma", "layer scale"),
    ] {
        let error = refused(&only(tensor), "{}");
        assert!(error.contains(named) && error.contains(tensor), "{error}");
    }
    // timm's pooling and grids, where its config tells.
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/alone/timm-no-class");
    let tensors = Checkpoint::weights_of(&golden, true).unwrap();
    let mut tensors: BTreeMap<String, Tensor> = tensors.iter().map(|(name, t)| (name.to_owned(), t.clone())).collect();
    for (config, named) in [
        (r#"{"global_pool": "avgmax"}"#, "global_pool"),
        (r#"{"global_pool": "token"}"#, "global_pool"),
        (r#"{"model_args": {"img_size": [8, 32]}}"#, "model_args.img_size"),
        (r#"{"pretrained_cfg": {"input_size": [3, 8, 32]}}"#, "pretrained_cfg.input_size"),
        (r#"{"model_args": {"pool_include_prefix": true}}"#, "pool_include_prefix"),
        (r#"{"global_pool": "avg"}"#, ""),
    ] {
        let error = refused(&tensors, config);
        assert!(error.contains(named) && error.is_empty() == named.is_empty(), "{error}");
    }
    tensors.insert("cls_token".to_owned(), Tensor::zeros([1, 1, 64], DType::F32));
    assert!(refused(&tensors, "{}").contains("no_embed_class"));
}
