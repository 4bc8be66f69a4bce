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
use crate::formats::MAX_TENSORS;

pub use classifier::{Classifier, ClassifierConfig};
pub use dual_encoder::{DualEncoder, DualEncoderConfig, GlobalImage, GlobalText};
pub use image_tower::{ImageProjectionKind, ImageTowerConfig};
pub use network::{Network, NetworkConfig, Said};
pub use planned::{Held, Planned, Planning};
pub use single::{ImageModel, ImageModelConfig, TextModel, TextModelConfig};
pub use text_tower::TextTowerConfig;

/// Most of any size of a model. What is computed from two of them can be counted.
const MAX_SIZE: usize = 1 << 20;

/// Most blocks, which have 16 tensors each: files of more tensors are not read.
const MAX_DEPTH: usize = MAX_TENSORS / 16;

/// Blocks, sizes that must not be 0, and pairs of which the first must divide the second.
///
/// # Errors
/// Naming the first that does not, or is more than any model has.
fn check_sizes(side: &str, depth: usize, sizes: &[(&str, usize)], divisors: &[[(&str, usize); 2]]) -> Result<()> {
    let sizes = || sizes.iter().chain(divisors.iter().flatten());
    if let Some((key, _)) = sizes().find(|(_, size)| *size == 0) {
        return Err(Error::usage(format!("{side}: {key} must not be 0")));
    }
    check_most(side, [("depth", depth)], MAX_DEPTH)?;
    check_most(side, sizes().copied(), MAX_SIZE)?;
    // A perceptron is four times as wide.
    check_most(side, sizes().copied().filter(|(key, _)| *key == "width"), MAX_SIZE / 4)?;
    match divisors.iter().find(|[(_, part), (_, whole)]| !whole.is_multiple_of(*part)) {
        Some([(key, part), (of, whole)]) => {
            Err(Error::usage(format!("{side}: {key} = {part} does not divide {of} = {whole}")))
        }
        None => Ok(()),
    }
}

/// Sizes of which none may be more than `most`.
///
/// # Errors
/// Naming the first that is.
fn check_most<'k>(side: &str, sizes: impl IntoIterator<Item = (&'k str, usize)>, most: usize) -> Result<()> {
    match sizes.into_iter().find(|(_, size)| *size > most) {
        Some((key, size)) => Err(Error::usage(format!("{side}: {key} = {size} is more than {most}"))),
        None => Ok(()),
    }
}
