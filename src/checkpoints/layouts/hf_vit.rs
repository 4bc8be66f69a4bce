//! Hugging Face's ViTModel and ViTForImageClassification, by the names that they had and by those of transformers 5.

use super::{Evidence, Layout, Pixels};
use crate::checkpoints::keys::Keys;
use crate::checkpoints::sizes::Shapes;
use crate::error::Result;
use crate::models::single::ImageOutput;
use crate::models::vit::VitConfig;
use crate::models::{GlobalImage, ImageModelConfig, NetworkConfig};
use crate::nn::Activation;

/// Below `@`, which is empty or `vit.`; the newer names last.
const NAMES: &str = "
    @embeddings.mask_token -> ignored: for masked pretraining alone
    @embeddings.cls_token -> vision_model.embeddings.class_embedding, leading 2
    @embeddings.position_embeddings -> vision_model.embeddings.position_embedding.weight, leading 1
    @embeddings.patch_embeddings.projection.* -> vision_model.embeddings.patch_embedding.*
    @encoder.layer.#.layernorm_before.* -> vision_model.encoder.layers.#.layer_norm1.*
    @encoder.layer.#.attention.attention.query.* -> vision_model.encoder.layers.#.self_attn.q_proj.*
    @encoder.layer.#.attention.attention.key.* -> vision_model.encoder.layers.#.self_attn.k_proj.*
    @encoder.layer.#.attention.attention.value.* -> vision_model.encoder.layers.#.self_attn.v_proj.*
    @encoder.layer.#.attention.output.dense.* -> vision_model.encoder.layers.#.self_attn.out_proj.*
    @encoder.layer.#.layernorm_after.* -> vision_model.encoder.layers.#.layer_norm2.*
    @encoder.layer.#.intermediate.dense.* -> vision_model.encoder.layers.#.mlp.fc1.*
    @encoder.layer.#.output.dense.* -> vision_model.encoder.layers.#.mlp.fc2.*
    @layers.#.layernorm_before.* -> vision_model.encoder.layers.#.layer_norm1.*
    @layers.#.attention.q_proj.* -> vision_model.encoder.layers.#.self_attn.q_proj.*
    @layers.#.attention.k_proj.* -> vision_model.encoder.layers.#.self_attn.k_proj.*
    @layers.#.attention.v_proj.* -> vision_model.encoder.layers.#.self_attn.v_proj.*
    @layers.#.attention.o_proj.* -> vision_model.encoder.layers.#.self_attn.out_proj.*
    @layers.#.layernorm_after.* -> vision_model.encoder.layers.#.layer_norm2.*
    @layers.#.mlp.fc1.* -> vision_model.encoder.layers.#.mlp.fc1.*
    @layers.#.mlp.fc2.* -> vision_model.encoder.layers.#.mlp.fc2.*
    @layernorm.* -> vision_model.post_layernorm.*
    @pooler.dense.* -> pooler.*
    classifier.* -> classifier.*
";

pub(super) const LAYOUT: Layout = Layout {
    name: "Hugging Face ViT",
    assumed: super::no_config,
    pixels: Pixels::HfVit,
    fits: |e| ["vit.", ""].iter().any(|at| e.has(&format!("{at}embeddings.patch_embeddings.projection.weight"))),
    names: || [NAMES.replace('@', "vit."), NAMES.replace('@', "")].concat(),
    config,
};

/// A vision transformer as Hugging Face's configs say it, which must agree with the tensors; activation and eps where they are silent.
pub(super) fn sizes(shapes: &Shapes, keys: &Keys, activation: Activation, eps: f64) -> Result<VitConfig> {
    let heads = if keys.is_some() { Some(keys.count("num_attention_heads")?.unwrap_or(12)) } else { None };
    let vit = VitConfig {
        activation: keys.activation("hidden_act")?.unwrap_or(activation),
        eps: keys.number("layer_norm_eps")?.unwrap_or(eps),
        ..shapes.vit(heads)?
    };
    keys.agree(&[
        ("hidden_size", vit.width),
        ("num_hidden_layers", vit.depth),
        ("intermediate_size", vit.mlp_width()),
        ("num_channels", vit.channels),
        ("image_size", vit.image_size),
        ("patch_size", vit.patch_size),
    ])?;
    Ok(vit)
}

fn config(shapes: &Shapes, evidence: &Evidence) -> Result<NetworkConfig> {
    let keys = &evidence.config;
    // Where a config is silent, what ViTConfig has.
    let vit = sizes(shapes, keys, Activation::Gelu, 1e-12)?;
    keys.only("pooler_act", &["tanh".into()])?;
    let output = if shapes.has("classifier.weight") {
        ImageOutput::Logits(shapes.of::<2>("classifier.weight")?[0])
    } else if shapes.has("pooler.weight") {
        ImageOutput::Pooler
    } else {
        ImageOutput::Features
    };
    let global_image = Some(GlobalImage::Cls);
    Ok(NetworkConfig::TiergradImageModel(ImageModelConfig {
        vision: vit.into(),
        global_image,
        pooled_norm: None,
        output,
    }))
}
