//! The families of checkpoints, one file each: how a family is recognised, its names, and what its config says.

mod bert;
mod hf_clip;
mod open_clip;
mod own;
mod timm;

use std::collections::BTreeSet;
use std::path::Path;

use super::keys::Keys;
use super::sizes::Shapes;
use crate::error::Result;
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
}

/// Where a family says how its pictures are prepared, and what is usual where nothing does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pixels {
    /// preprocessor_config.json, which must be there.
    Own,
    /// preprocessor_config.json; usually as CLIP.
    Clip,
    /// open_clip_config.json; usually as CLIP.
    OpenClip,
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

/// Every layout; the first that fits counts.
pub(super) const LAYOUTS: [&Layout; 7] = [
    &own::LAYOUT,
    &hf_clip::BOTH,
    &open_clip::OPENAI,
    &open_clip::OPEN_CLIP,
    &bert::LAYOUT,
    &hf_clip::VISION,
    &hf_clip::TEXT,
];
