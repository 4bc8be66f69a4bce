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

pub use classifier::{Classifier, ClassifierConfig};
pub use dual_encoder::{DualEncoder, DualEncoderConfig, GlobalImage, GlobalText};
pub use image_tower::{ImageProjectionKind, ImageTowerConfig};
pub use network::{Network, NetworkConfig, Said};
pub use planned::Planned;
pub use single::{ImageModel, ImageModelConfig, TextModel, TextModelConfig};
pub use text_tower::TextTowerConfig;
