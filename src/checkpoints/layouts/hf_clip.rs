//! Hugging Face's CLIPModel, and its towers alone: CLIPVisionModel, CLIPTextModel, each with its projection or without. The names are
//! those of the models here.

use serde_json::json;

use super::{Evidence, Layout, Pixels};
use crate::checkpoints::keys::Keys;
use crate::checkpoints::sizes::Shapes;
use crate::error::{Error, Result};
use crate::models::clip_text::{TextConfig, WholeText};
use crate::models::image_tower::ImageProjectionKind;
use crate::models::single::{ImageOutput, TextOutput};
use crate::models::vit::VitConfig;
use crate::models::{DualEncoderConfig, GlobalImage, GlobalText, ImageModelConfig, NetworkConfig, TextModelConfig};
use crate::nn::Activation;

const NAMES: &str = "
    *position_ids -> ignored: the numbers of the positions
    vision_model.* -> vision_model.*
    text_model.* -> text_model.*
    visual_projection.weight -> visual_projection.weight
    text_projection.weight -> text_projection.weight
    logit_scale -> logit_scale
";

/// A tower's names without the tower's own.
const BARE: &str = "
    embeddings.* -> @.embeddings.*
    encoder.* -> @.encoder.*
    pre_layrnorm.* -> @.pre_layrnorm.*
    post_layernorm.* -> @.post_layernorm.*
    final_layer_norm.* -> @.final_layer_norm.*
";

const PATCHES: &str = "embeddings.patch_embedding.weight";
const TOKENS: &str = "embeddings.token_embedding.weight";

fn has(evidence: &Evidence, tower: &str, name: &str) -> bool {
    evidence.has(&format!("{tower}.{name}"))
}

pub(super) const BOTH: Layout = Layout {
    name: "Hugging Face CLIPModel",
    pixels: Pixels::Clip,
    fits: |e| has(e, "vision_model", PATCHES) && has(e, "text_model", TOKENS),
    names: || NAMES.to_owned(),
    config: |shapes, evidence| {
        let (vision, text) = (vision(shapes, &evidence.config)?, text(shapes, &evidence.config)?);
        let [joint, _] = shapes.of("visual_projection.weight")?;
        Ok(NetworkConfig::TiergradDualEncoder(DualEncoderConfig {
            vision: vision.into(),
            text: text.into(),
            joint,
            global_image: Some(GlobalImage::Cls),
            global_text: Some(GlobalText::Token),
            ..DualEncoderConfig::default()
        }))
    },
};

pub(super) const VISION: Layout = Layout {
    name: "Hugging Face CLIP vision model",
    pixels: Pixels::Clip,
    fits: |e| has(e, "vision_model", PATCHES) || e.has(PATCHES) && e.has("pre_layrnorm.weight"),
    names: || format!("{NAMES}{}", BARE.replace('@', "vision_model")),
    config: |shapes, evidence| {
        let output = match shapes.has("visual_projection.weight") {
            true => {
                let [joint, _] = shapes.of("visual_projection.weight")?;
                ImageOutput::Joint { joint, projection: ImageProjectionKind::Linear }
            }
            false => ImageOutput::Features,
        };
        let vision = vision(shapes, &evidence.config)?.into();
        Ok(NetworkConfig::TiergradImageModel(ImageModelConfig { vision, global_image: None, output }))
    },
};

pub(super) const TEXT: Layout = Layout {
    name: "Hugging Face CLIP text model",
    pixels: Pixels::Nothing,
    fits: |e| has(e, "text_model", TOKENS) || e.has(TOKENS) && e.has("final_layer_norm.weight"),
    names: || format!("{NAMES}{}", BARE.replace('@', "text_model")),
    config: |shapes, evidence| {
        let output = match shapes.text_projection()? {
            Some((joint, projection)) => TextOutput::Joint { joint, projection },
            None => TextOutput::Features,
        };
        let text = text(shapes, &evidence.config)?.into();
        Ok(NetworkConfig::TiergradTextModel(TextModelConfig { text, output }))
    },
};

/// The keys of a tower: a part of a whole model's config, with what old files have beside it, or all of a tower's own.
fn tower(config: &Keys, name: &str) -> Keys {
    let part = config.part(&format!("{name}_config"));
    let beside = config.part(&format!("{name}_config_dict"));
    match (part.is_some(), beside.is_some()) {
        (true, _) => part.overlaid(&beside),
        (false, true) => beside,
        (false, false) => config.clone(),
    }
}

fn vision(shapes: &Shapes, config: &Keys) -> Result<VitConfig> {
    let keys = tower(config, "vision");
    // Where a config is silent, what CLIPVisionConfig has.
    let heads = if keys.is_some() { Some(keys.count("num_attention_heads")?.unwrap_or(12)) } else { None };
    let vit = VitConfig {
        activation: keys.activation("hidden_act")?.unwrap_or(Activation::QuickGelu),
        eps: keys.number("layer_norm_eps")?.unwrap_or(1e-5),
        ..shapes.vit(heads)?
    };
    keys.agree(&[
        ("hidden_size", vit.width),
        ("num_hidden_layers", vit.depth),
        ("intermediate_size", vit.mlp.unwrap_or(4 * vit.width)),
        ("num_channels", vit.channels),
        ("image_size", vit.image_size),
        ("patch_size", vit.patch_size),
    ])?;
    if vit.class_token { Ok(vit) } else { Err(Error::new("CLIP's vision model has a class token, this one has none")) }
}

fn text(shapes: &Shapes, config: &Keys) -> Result<TextConfig> {
    let keys = tower(config, "text");
    let heads = if keys.is_some() { Some(keys.count("num_attention_heads")?.unwrap_or(8)) } else { None };
    let whole = match keys.count("eos_token_id")? {
        // What old configs have, whatever the vocabulary.
        Some(2) => WholeText::LargestId,
        Some(end) => WholeText::First(i64::try_from(end).unwrap_or(i64::MAX)),
        None if keys.is_some() => WholeText::First(49407),
        None => WholeText::LargestId,
    };
    let text = TextConfig {
        activation: keys.activation("hidden_act")?.unwrap_or(Activation::QuickGelu),
        eps: keys.number("layer_norm_eps")?.unwrap_or(1e-5),
        text_uses_attention_mask: true,
        whole,
        ..shapes.clip_text(heads)?
    };
    keys.agree(&[
        ("hidden_size", text.width),
        ("num_hidden_layers", text.depth),
        ("intermediate_size", text.mlp.unwrap_or(4 * text.width)),
        ("vocab_size", text.vocabulary),
        ("max_position_embeddings", text.max_length),
    ])?;
    keys.only("model_type", &[json!("clip"), json!("clip_text_model")])?;
    Ok(text)
}
