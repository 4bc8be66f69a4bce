//! The TIER paper's checkpoints (a residual network with BioViL's projector, and CXR-BERT), and BioViL's image model alone.

use super::{Evidence, Layout, Pixels, bert};
use crate::checkpoints::sizes::Shapes;
use crate::error::{Error, Result};
use crate::models::image_tower::ImageProjectionKind;
use crate::models::resnet::ResnetConfig;
use crate::models::single::ImageOutput;
use crate::models::{DualEncoderConfig, GlobalImage, GlobalText, ImageModelConfig, NetworkConfig};

/// The image side below `@`.
const IMAGES: &str = "
    *num_batches_tracked -> ignored: a count of training's batches
    @encoder.encoder.fc.* -> ignored: the classifier of the pretraining
    @encoder.encoder.* -> vision_model.*
    @projector.model.* -> visual_projection.model.*
";

const JOINT: &str = "
    logit_scale -> logit_scale
    cls_projection_head.* -> text_projection.*
";

pub(super) const TIER: Layout = Layout {
    name: "TIER",
    assumed: super::nothing,
    pixels: Pixels::Tier,
    fits: |e| e.has("cnn.encoder.encoder.conv1.weight") && e.has("transformer.bert.embeddings.word_embeddings.weight"),
    names: || [IMAGES.replace('@', "cnn."), bert::model("transformer."), JOINT.to_owned()].concat(),
    config: |shapes, evidence| {
        let mut text = bert::bert(shapes, &evidence.config)?;
        text.pooler = false;
        let Some((joint, text_projection)) = shapes.text_projection()? else {
            let near = shapes.near("cls_projection_head.dense_to_output.weight");
            return Err(Error::new(format!("cls_projection_head, the projection of texts, is missing{near}")));
        };
        Ok(NetworkConfig::TiergradDualEncoder(DualEncoderConfig {
            vision: shapes.resnet()?.into(),
            text: text.into(),
            joint,
            global_image: Some(GlobalImage::MeanPatches),
            global_text: Some(GlobalText::Token),
            visual_projection: ImageProjectionKind::Projector,
            text_projection,
        }))
    },
};

pub(super) const BIOVIL: Layout = Layout {
    name: "BioViL image model",
    assumed: super::nothing,
    pixels: Pixels::Biovil,
    fits: |e| e.has("encoder.encoder.conv1.weight") && e.has("projector.model.0.weight"),
    names: || IMAGES.replace('@', ""),
    config: |shapes: &Shapes, _: &Evidence| -> Result<NetworkConfig> {
        let [joint, ..] = shapes.of::<4>("visual_projection.model.3.weight")?;
        Ok(NetworkConfig::TiergradImageModel(ImageModelConfig {
            vision: ResnetConfig { image_size: 480, ..shapes.resnet()? }.into(),
            global_image: Some(GlobalImage::MeanPatches),
            pooled_norm: None,
            output: ImageOutput::Joint { joint, projection: ImageProjectionKind::Projector },
        }))
    },
};
