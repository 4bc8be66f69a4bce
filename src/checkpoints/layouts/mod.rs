//! The families of checkpoints, one file each: how a family is recognised, its names, and what its config says.

mod bert;
pub(super) mod hf_clip;
mod hf_vit;
mod open_clip;
mod own;
mod resnet;
mod tier;
mod timm;

use std::collections::BTreeSet;
use std::path::Path;

use super::keys::Keys;
use super::sizes::Shapes;
use crate::error::{Error, Result};
use crate::models::NetworkConfig;

/// One family of checkpoints.
pub struct Layout {
    /// In words.
    pub name: &'static str,
    /// How its pictures are usually prepared.
    pub pixels: Pixels,
    pub(super) fits: fn(&Evidence) -> bool,
    pub(super) names: fn() -> String,
    pub(super) config: fn(&Shapes, &Evidence) -> Result<NetworkConfig>,
    /// What is assumed where nothing says it.
    pub(super) assumed: fn(&Evidence) -> Option<&'static str>,
}

/// Nothing is assumed.
fn nothing(_: &Evidence) -> Option<&'static str> {
    None
}

/// What Hugging Face's classes have where nothing else is said.
fn no_config(evidence: &Evidence) -> Option<&'static str> {
    (!evidence.config.is_some()).then_some("no config.json beside: GELU and heads of 64 are assumed")
}

/// As [`no_config`], for CLIP.
fn no_config_quick(evidence: &Evidence) -> Option<&'static str> {
    (!evidence.config.is_some()).then_some("no config.json beside: QuickGELU and heads of 64 are assumed")
}

/// Where a family says how its pictures are prepared, and what is usual where nothing does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pixels {
    /// preprocessor_config.json, which must be there.
    Own,
    /// preprocessor_config.json; usually as CLIP.
    Clip,
    /// As CLIP; CheXzero's weights, which wear the same names, want their own.
    OpenAi,
    /// open_clip_config.json; usually as CLIP.
    OpenClip,
    /// As the TIER paper's training.
    Tier,
    /// As BioViL's, values 0 to 1.
    Biovil,
    /// preprocessor_config.json; usually 224 x 224 whatever the shape, and values -1 to 1.
    HfVit,
    /// As torchvision's classifiers: timm's config.json, else 256 bilinear, 224 and ImageNet's statistics.
    Imagenet,
    /// It knows no pictures.
    Nothing,
}

/// What a layout is recognised by and configured from.
pub struct Evidence {
    /// Names of the tensors.
    pub names: BTreeSet<String>,
    /// config.json beside them.
    pub config: Keys,
    /// open_clip_config.json beside them.
    pub open_clip: Keys,
}

impl Evidence {
    /// Tensors of these names, with the configs of a folder, if they have one.
    pub(super) fn new(names: BTreeSet<String>, folder: Option<&Path>) -> Result<Self> {
        let open = |name: &str| folder.map_or_else(|| Ok(Keys::default()), |folder| Keys::open(&folder.join(name)));
        Ok(Self { names, config: open("config.json")?, open_clip: open("open_clip_config.json")? })
    }

    /// Whether there is a tensor of that name.
    pub fn has(&self, name: &str) -> bool {
        self.names.contains(name)
    }
}

/// What is not computed here, by a part of a tensor's name that no layout has.
const OTHERS: [(&str, &str); 15] = [
    ("attnpool.positional_embedding", "CLIP's modified ResNet"),
    ("logit_bias", "SigLIP"),
    ("head.probe", "SigLIP"),
    ("text_decoder.", "CoCa or BLIP"),
    ("layer_scale1.", "DINOv2"),
    ("distillation_token", "a distilled DeiT"),
    ("relative_position_bias_table", "Swin"),
    ("denseblock1.", "DenseNet"),
    ("embedder.convolution.", "Hugging Face's ResNet"),
    ("encoder_layer_0.", "torchvision's vision transformer"),
    ("attention.q_lin.", "DistilBERT"),
    ("attn_pool.", "attention pooling"),
    ("reg_token", "register tokens"),
    (".ls1.gamma", "layer scale"),
    (".q_norm.", "norms of queries and keys"),
];

/// Refuses by name what has a tensor of [`OTHERS`].
///
/// # Errors
/// If there is one.
pub(super) fn none_other(evidence: &Evidence) -> Result<()> {
    let found = OTHERS.iter().find_map(|(part, what)| Some((what, evidence.names.iter().find(|n| n.contains(part))?)));
    found.map_or(Ok(()), |(what, tensor)| Err(Error::new(format!("{what} (tensor {tensor}) is not supported here"))))
}

/// Every layout; the first that fits counts.
pub(super) const LAYOUTS: [&Layout; 13] = [
    &own::LAYOUT,
    &hf_clip::BOTH,
    &tier::TIER,
    &tier::BIOVIL,
    &open_clip::OPENAI,
    &open_clip::CUSTOM,
    &open_clip::OPEN_CLIP,
    &bert::LAYOUT,
    &hf_clip::VISION,
    &hf_clip::TEXT,
    &hf_vit::LAYOUT,
    &timm::LAYOUT,
    &resnet::LAYOUT,
];
