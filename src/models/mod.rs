//! The models, one readable file each.

pub mod clip_text;
pub mod dual_encoder;
pub mod vit;

pub use dual_encoder::{DualEncoder, DualEncoderConfig};
