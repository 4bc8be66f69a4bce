//! Hugging Face's CLIPModel, and its towers alone: CLIPVisionModel, CLIPTextModel, each with its projection or without. The names are
//! those of the models here.

use serde_json::{Value, json};

use super::{Evidence, Layout, Pixels, hf_vit};
use crate::checkpoints::keys::Keys;
use crate::checkpoints::sizes::Shapes;
use crate::error::{Error, Result};
use crate::models::clip_text::{TextConfig, WholeText};
use crate::models::image_tower::ImageProjectionKind;
use crate::models::single::{ImageOutput, TextOutput};
use crate::models::vit::VitConfig;
use crate::models::{
    DualEncoderConfig, GlobalImage, GlobalText, ImageModelConfig, ImageTowerConfig, NetworkConfig, TextModelConfig,
    TextTowerConfig,
};
use crate::nn::{Activation, ProjectionKind};

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
    assumed: super::no_config_quick,
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
    assumed: super::no_config_quick,
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
        Ok(NetworkConfig::TiergradImageModel(ImageModelConfig {
            vision,
            global_image: None,
            pooled_norm: None,
            output,
        }))
    },
};

pub(super) const TEXT: Layout = Layout {
    name: "Hugging Face CLIP text model",
    assumed: super::no_config_quick,
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
    let vit = hf_vit::sizes(shapes, &keys, Activation::QuickGelu, 1e-5)?;
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
        ("intermediate_size", text.mlp_width()),
        ("vocab_size", text.vocabulary),
        ("max_position_embeddings", text.max_length),
    ])?;
    keys.only("model_type", &[json!("clip"), json!("clip_text_model")])?;
    Ok(text)
}

/// What a tokenizer says of the texts that a model gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    /// The id that a text begins with.
    pub start: i64,
    /// The id that a text ends in.
    pub end: i64,
    /// The id of padding.
    pub pad: i64,
    /// The largest of all ids.
    pub largest: i64,
}

/// config.json of CLIPModel for a model with these sizes, and what differs there, one line each.
///
/// # Errors
/// Listing what of the model CLIPModel does not have.
pub fn written(config: &NetworkConfig, ends: Option<Ends>) -> Result<(Value, Vec<String>)> {
    let NetworkConfig::TiergradDualEncoder(model) = config else {
        return Err(misfit(&["it is not a model of images and texts in one space".to_owned()]));
    };
    let (ImageTowerConfig::Vit(v), TextTowerConfig::Clip(t)) = (&model.vision, &model.text) else {
        let resnet = matches!(model.vision, ImageTowerConfig::Resnet(_)).then_some("the image side is a ResNet");
        let bert = matches!(model.text, TextTowerConfig::Bert(_)).then_some("the text side is BERT");
        return Err(misfit(&resnet.into_iter().chain(bert).map(str::to_owned).collect::<Vec<_>>()));
    };
    let (mut why, mut notes) = (Vec::new(), Vec::new());
    for (wrong, what) in [
        (!v.class_token, "the image side has no class token"),
        (!v.pre_norm, "the image side has no norm before the first block"),
        (!v.post_norm, "the image side has no norm after the last block"),
        (v.patch_bias, "the patch embedding has a bias"),
        (!v.stem.is_empty(), "the image side has a convolutional stem"),
        (!matches!(model.global_image, None | Some(GlobalImage::Cls)), "an image is not its class token"),
        (model.global_text == Some(GlobalText::MeanTokens), "a text is the mean of its tokens"),
        (model.visual_projection != ImageProjectionKind::Linear, "the projection of images is not one matrix"),
        (model.text_projection != ProjectionKind::Linear, "the projection of texts is not one matrix"),
    ] {
        if wrong {
            why.push(what.to_owned());
        }
    }
    // With 2 the token of the largest id is taken, with any other number the first of that id.
    let end = match (t.whole, ends) {
        (WholeText::LargestId, _) => 2,
        (WholeText::First(id), _) if id != 2 => id,
        (WholeText::First(_), _) => {
            why.push("a text is its first token of id 2, a number that means another thing there".to_owned());
            2
        }
        (WholeText::LastReal, Some(ends)) if ends.end == ends.largest => {
            notes.push(
                "a text is its token of the largest id there, which is its last real one with this tokenizer"
                    .to_owned(),
            );
            2
        }
        (WholeText::LastReal, _) => {
            why.push(
                "a text is its last real token, and no tokenizer whose end token has the largest id is there"
                    .to_owned(),
            );
            2
        }
    };
    if !why.is_empty() {
        return Err(misfit(&why));
    }
    if !t.text_uses_attention_mask {
        notes.push("padding is masked there, which changes the embeddings of padded tokens alone".to_owned());
    }
    let activation = |activation: Activation| match activation {
        Activation::Gelu => "gelu",
        Activation::QuickGelu => "quick_gelu",
        Activation::GeluTanh => "gelu_pytorch_tanh",
        Activation::Relu => "relu",
    };
    let mut text = json!({
        "model_type": "clip_text_model",
        "hidden_size": t.width,
        "intermediate_size": t.mlp_width(),
        "num_hidden_layers": t.depth,
        "num_attention_heads": t.heads,
        "hidden_act": activation(t.activation),
        "layer_norm_eps": t.eps,
        "vocab_size": t.vocabulary,
        "max_position_embeddings": t.max_length,
        "projection_dim": model.joint,
        "eos_token_id": end,
    });
    if let Some(ends) = ends {
        text["bos_token_id"] = ends.start.into();
        text["pad_token_id"] = ends.pad.into();
    }
    let vision = json!({
        "model_type": "clip_vision_model",
        "hidden_size": v.width,
        "intermediate_size": v.mlp_width(),
        "num_hidden_layers": v.depth,
        "num_attention_heads": v.heads,
        "hidden_act": activation(v.activation),
        "layer_norm_eps": v.eps,
        "num_channels": v.channels,
        "image_size": v.image_size,
        "patch_size": v.patch_size,
        "projection_dim": model.joint,
    });
    let config = json!({
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": model.joint,
        "logit_scale_init_value": 2.6592,
        "torch_dtype": "float32",
        "text_config": text,
        "vision_config": vision,
    });
    Ok((config, notes))
}

fn misfit(why: &[String]) -> Error {
    Error::new(format!("not a model that Hugging Face's CLIPModel can be: {}; leave out --to hf-clip", why.join(", ")))
}
