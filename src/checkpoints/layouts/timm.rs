//! timm's vision transformers.

use super::{Evidence, Layout, Pixels};
use crate::checkpoints::sizes::Shapes;
use crate::error::{Error, Result};
use crate::models::single::ImageOutput;
use crate::models::vit::VitConfig;
use crate::models::{GlobalImage, ImageModelConfig, NetworkConfig};
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

/// A vision transformer of timm's; `name` is its architecture's, where it is known. Its CLIP models, with a norm before the
/// blocks, have another epsilon than the rest.
///
/// # Errors
/// If the sizes do not fit, or the class token has no position.
pub(super) fn vit(shapes: &Shapes, name: &str) -> Result<VitConfig> {
    let [positions, _] = shapes.of("vision_model.embeddings.position_embedding.weight")?;
    if shapes.has("vision_model.embeddings.class_embedding") && positions > 1 && positions.isqrt().pow(2) == positions {
        return Err(Error::new(format!(
            "a class token without a position of its own (pos_embed has {positions}; no_embed_class): not supported here"
        )));
    }
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
    assumed,
    pixels: Pixels::Imagenet,
    fits: |e| e.has("patch_embed.proj.weight") && e.has("pos_embed") && e.has("blocks.0.attn.qkv.weight"),
    names: || format!("fc_norm.* -> pooled_norm.*\nhead.* -> classifier.*\n{}", names("")),
    config,
};

/// Pooling leaves no trace in the tensors.
fn assumed(evidence: &Evidence) -> Option<&'static str> {
    let silent = evidence.config.text("global_pool").is_ok_and(|pool| pool.is_none());
    let (class_token, pooled) = (evidence.has("cls_token"), evidence.has("fc_norm.weight"));
    silent.then_some(match (class_token, pooled) {
        (true, false) => "no global_pool in a config.json beside: GELU, heads of 64 and the class token are assumed",
        _ => "no global_pool in a config.json beside: GELU, heads of 64 and the mean of the patches are assumed",
    })
}

fn config(shapes: &Shapes, evidence: &Evidence) -> Result<NetworkConfig> {
    let keys = &evidence.config;
    let args = keys.part("model_args");
    for (keys, key) in [(&args, "img_size"), (&args, "patch_size"), (&keys.part("pretrained_cfg"), "input_size")] {
        if let Ok(Some(sizes)) = keys.numbers(key)
            && sizes.iter().rev().take(2).any(|&side| Some(&side) != sizes.last())
        {
            return Err(keys.wrong(key, "only square pictures and patches can be used here"));
        }
    }
    args.only("pool_include_prefix", &[false.into()])?;
    let vit = vit(shapes, keys.text("architecture")?.unwrap_or_default())?;
    // With fc_norm the last norm is behind the pooling.
    let pooled_norm = shapes.has("pooled_norm.weight").then_some(vit.eps);
    let global_image = match keys.text("global_pool")? {
        None if pooled_norm.is_some() => GlobalImage::MeanPatches,
        None | Some("") => GlobalImage::or_default(None, vit.class_token),
        Some("token") if vit.class_token => GlobalImage::Cls,
        Some("avg") => GlobalImage::MeanPatches,
        Some("max") => GlobalImage::MaxPatches,
        Some(_) => return Err(keys.wrong("global_pool", "not supported here: token, avg and max are")),
    };
    let output = match shapes.has("classifier.weight") {
        true => ImageOutput::Logits(shapes.of::<2>("classifier.weight")?[0]),
        false => ImageOutput::Features,
    };
    Ok(NetworkConfig::TiergradImageModel(ImageModelConfig {
        vision: VitConfig { post_norm: pooled_norm.is_none(), ..vit }.into(),
        global_image: Some(global_image),
        pooled_norm,
        output,
    }))
}
