//! The models, one readable file each.

pub mod bert;
pub mod classifier;
pub mod clip_text;
pub mod dual_encoder;
pub mod image_tower;
pub mod network;
pub mod planned;
pub mod resnet;
pub mod single;
pub mod text_tower;
pub mod vit;

use crate::error::{Error, Result};

pub use classifier::{Classifier, ClassifierConfig};
pub use dual_encoder::{DualEncoder, DualEncoderConfig, GlobalImage, GlobalText};
pub use image_tower::{ImageProjectionKind, ImageTowerConfig};
pub use network::{Network, NetworkConfig, Said};
pub use planned::{Held, Planned, Planning};
pub use single::{ImageModel, ImageModelConfig, TextModel, TextModelConfig};
pub use text_tower::TextTowerConfig;

/// Sizes that must not be 0, and pairs of which the first must divide the second.
///
/// # Errors
/// Naming the first that does not.
fn check_sizes(side: &str, sizes: &[(&str, usize)], divisors: &[[(&str, usize); 2]]) -> Result<()> {
    if let Some((key, _)) = sizes.iter().chain(divisors.iter().flatten()).find(|(_, size)| *size == 0) {
        return Err(Error::usage(format!("{side}: {key} must not be 0")));
    }
    match divisors.iter().find(|[(_, part), (_, whole)]| !whole.is_multiple_of(*part)) {
        Some([(key, part), (of, whole)]) => {
            Err(Error::usage(format!("{side}: {key} = {part} does not divide {of} = {whole}")))
        }
        None => Ok(()),
    }
}
