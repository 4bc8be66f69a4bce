//! Residual networks of torchvision, whose names timm keeps.

use super::{Layout, Pixels};
use crate::models::single::ImageOutput;
use crate::models::{GlobalImage, ImageModelConfig, NetworkConfig};

pub(super) const LAYOUT: Layout = Layout {
    name: "torchvision ResNet",
    assumed: super::nothing,
    pixels: Pixels::Imagenet,
    fits: |e| e.has("conv1.weight") && e.has("bn1.running_mean") && e.has("layer1.0.conv1.weight"),
    names: || {
        "
        *num_batches_tracked -> ignored: a count of training's batches
        fc.* -> classifier.*
        * -> vision_model.*
        "
        .to_owned()
    },
    config: |shapes, _| {
        let output = match shapes.has("classifier.weight") {
            true => ImageOutput::Logits(shapes.of::<2>("classifier.weight")?[0]),
            false => ImageOutput::Features,
        };
        let global_image = Some(GlobalImage::MeanPatches);
        Ok(NetworkConfig::TiergradImageModel(ImageModelConfig {
            vision: shapes.resnet()?.into(),
            global_image,
            pooled_norm: None,
            output,
        }))
    },
};
