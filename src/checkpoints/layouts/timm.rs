//! timm's vision transformers.

use super::{Layout, Pixels};
use crate::checkpoints::sizes::Shapes;
use crate::error::{Error, Result};
use crate::models::single::ImageOutput;
use crate::models::vit::VitConfig;
use crate::models::{ImageModelConfig, NetworkConfig};
use crate::nn::Activation;

/// timm's names below `at`.
pub(super) fn names(at: &str) -> String {
    "
    @cls_token -> vision_model.embeddings.class_embedding, leading 2
    @pos_embed -> vision_model.embeddings.position_embedding.weight, leading 1
    @patch_embed.proj.* -> vision_model.embeddings.patch_embedding.*
    @norm_pre.* -> vision_model.pre_layrnorm.*
    @blocks.#.norm1.* -> vision_model.encoder.layers.#.layer_norm1.*
    @blocks.#.attn.qkv.* -> vision_model.encoder.layers.#.self_attn.{q,k,v}_proj.*
    @blocks.#.attn.proj.* -> vision_model.encoder.layers.#.self_attn.out_proj.*
    @blocks.#.norm2.* -> vision_model.encoder.layers.#.layer_norm2.*
    @blocks.#.mlp.fc1.* -> vision_model.encoder.layers.#.mlp.fc1.*
    @blocks.#.mlp.fc2.* -> vision_model.encoder.layers.#.mlp.fc2.*
    @norm.* -> vision_model.post_layernorm.*
    "
    .replace('@', at)
}

/// A vision transformer of timm's; `name` is its architecture's, where it is known. Its CLIP models, with a norm before the blocks, have
/// another epsilon than the rest.
pub(super) fn vit(shapes: &Shapes, name: &str) -> Result<VitConfig> {
    // The only ones whose heads are not 64 wide.
    let wide = ["_huge_", "_giant_", "_gigantic_", "_so400m_"].iter().any(|size| name.contains(size));
    let vit = shapes.vit(wide.then_some(16))?;
    Ok(VitConfig {
        eps: if vit.pre_norm { 1e-5 } else { 1e-6 },
        activation: if name.contains("quickgelu") { Activation::QuickGelu } else { Activation::Gelu },
        ..vit
    })
}

pub(super) const LAYOUT: Layout = Layout {
    name: "timm vision transformer",
    assumed: super::nothing,
    pixels: Pixels::Imagenet,
    fits: |e| e.has("patch_embed.proj.weight") && e.has("pos_embed") && e.has("blocks.0.attn.qkv.weight"),
    names: || format!("{}head.* -> classifier.*\n", names("")),
    config: |shapes, evidence| {
        if evidence.has("fc_norm.weight") {
            return Err(Error::new("a head on averaged patches (fc_norm) is not supported here; class tokens are"));
        }
        evidence.config.only("global_pool", &["token".into(), "".into()])?;
        let vision = vit(shapes, evidence.config.text("architecture")?.unwrap_or_default())?;
        let output = match shapes.has("classifier.weight") {
            true => ImageOutput::Logits(shapes.of::<2>("classifier.weight")?[0]),
            false => ImageOutput::Features,
        };
        Ok(NetworkConfig::TiergradImageModel(ImageModelConfig { vision: vision.into(), global_image: None, output }))
    },
};
