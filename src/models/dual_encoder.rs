//! Image and text in one joint space, whole and by patch and token.

use serde::{Deserialize, Serialize};

use super::image_tower::{ImageProjection, ImageProjectionKind, ImageTower, ImageTowerConfig};
use super::text_tower::{TextTower, TextTowerConfig};
use super::{MAX_SIZE, check_most};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::for_float;
use crate::formats::Weights;
use crate::nn::{Init, Module, Noted, Params, Projection, ProjectionKind, Source, Statistics, join};
use crate::tensor::Tensor;

/// Sizes of a dual encoder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DualEncoderConfig {
    /// The image side.
    pub vision: ImageTowerConfig,
    /// The text side.
    pub text: TextTowerConfig,
    /// Width of the joint space.
    pub joint: usize,
    /// What stands for the whole image; default: the class token where there is one, else the mean.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub global_image: Option<GlobalImage>,
    /// What stands for the whole text; default: the text side's own token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub global_text: Option<GlobalText>,
    /// How patches get into the joint space.
    pub visual_projection: ImageProjectionKind,
    /// How tokens get into the joint space.
    pub text_projection: ProjectionKind,
}

/// What stands for a whole image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GlobalImage {
    /// The projected class token.
    Cls,
    /// The mean of the unnormalised projected patches.
    MeanPatches,
    /// The mean of the patches, each projected and L2-normalised, as TIER's pseudocode has it.
    MeanNormalisedPatches,
    /// The largest of the unnormalised projected patches, feature by feature: a finding that fills one patch is not averaged away.
    MaxPatches,
}

impl GlobalImage {
    /// What was chosen, or the default: the class token where there is one, else the mean.
    pub fn or_default(chosen: Option<Self>, class_token: bool) -> Self {
        chosen.unwrap_or(if class_token { Self::Cls } else { Self::MeanPatches })
    }

    /// Its name in configs and parity cases.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cls => "cls",
            Self::MeanPatches => "mean_patches",
            Self::MeanNormalisedPatches => "mean_normalised_patches",
            Self::MaxPatches => "max_patches",
        }
    }

    /// The whole [n, d] and the patches [n, P, d] of an image's tokens [n, T, d], the first of which is the class token where there is
    /// one.
    pub fn split(self, tokens: &Tensor, class_token: bool) -> Embeddings {
        let class = usize::from(class_token);
        let parts = tokens.narrow(1, class, tokens.dims()[1] - class);
        let whole = match self {
            Self::Cls => tokens.at(1, 0),
            Self::MeanPatches => parts.mean(&[1], false),
            Self::MeanNormalisedPatches => parts.l2_normalise().mean(&[1], false),
            Self::MaxPatches => parts.amax(1),
        };
        Embeddings { whole, parts }
    }
}

/// What stands for a whole text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GlobalText {
    /// One token, projected: CLIP's last real one, BERT's first.
    Token,
    /// The mean of the unnormalised projected real tokens; small models learn it sooner.
    MeanTokens,
}

impl Default for DualEncoderConfig {
    /// A small one that a CPU trains from scratch.
    fn default() -> Self {
        Self {
            vision: ImageTowerConfig::default(),
            text: TextTowerConfig::default(),
            joint: 128,
            global_image: None,
            global_text: Some(GlobalText::MeanTokens),
            visual_projection: ImageProjectionKind::default(),
            text_projection: ProjectionKind::default(),
        }
    }
}

impl DualEncoderConfig {
    /// The same model, with what absent keys stand for.
    #[must_use]
    pub fn in_full(mut self) -> Self {
        self.global_image = Some(GlobalImage::or_default(self.global_image, self.vision.class_token()));
        self.global_text.get_or_insert(GlobalText::Token);
        if let ImageTowerConfig::Vit(vit) = &mut self.vision {
            vit.mlp = Some(vit.mlp_width());
        }
        if let TextTowerConfig::Clip(text) = &mut self.text {
            text.mlp = Some(text.mlp_width());
        }
        self
    }

    /// # Errors
    /// If the parts do not fit each other, or a size is more than any model has.
    pub fn check(&self) -> Result<()> {
        self.vision.check()?;
        self.text.check()?;
        let hidden = match self.text_projection {
            ProjectionKind::Mlp { hidden, .. } => hidden,
            _ => 0,
        };
        check_most("model", [("joint", self.joint), ("text_projection.mlp.hidden", hidden)], MAX_SIZE)?;
        if self.global_image == Some(GlobalImage::Cls) && !self.vision.class_token() {
            return Err(Error::usage("global_image = cls needs class_token = true in vision; or take mean_patches"));
        }
        if matches!(&self.vision, ImageTowerConfig::Resnet(resnet) if resnet.classes > 0) {
            return Err(Error::usage("vision: a dual encoder does not use a residual network's fc; set classes = 0"));
        }
        if matches!(&self.text, TextTowerConfig::Bert(bert) if bert.pooler) {
            return Err(Error::usage("text: a dual encoder does not use BERT's pooler; set pooler = false"));
        }
        Ok(())
    }
}

/// Embeddings of images or texts in the joint space: projected, not normalised.
pub struct Embeddings {
    /// Of the whole: [n, d].
    pub whole: Tensor,
    /// Of each patch or token: [n, P, d].
    pub parts: Tensor,
}

/// A CLIP-style model with local embeddings.
pub struct DualEncoder {
    config: DualEncoderConfig,
    vision: ImageTower,
    text: TextTower,
    visual_projection: ImageProjection,
    text_projection: Projection,
    /// Logarithm of the factor of cosines; a scalar.
    pub logit_scale: Tensor,
}

/// Largest logarithm of the logit scale, ln 100, as CLIP clamps it.
pub const MAX_LOGIT_SCALE: f64 = 4.605_170_185_988_092;

impl DualEncoder {
    /// A model with parameters drawn from `seed`.
    pub fn init(config: &DualEncoderConfig, seed: u64, dtype: DType) -> Result<Self> {
        Self::new(&Source::drawn(seed, dtype).params(), config)
    }

    /// A model whose parameters are views of a file.
    ///
    /// # Errors
    /// If a tensor is missing, has other dims, or is not part of the model.
    pub fn load(config: &DualEncoderConfig, weights: &Weights) -> Result<Self> {
        let source = Source::file(weights);
        let model = Self::new(&source.params(), config)?;
        source.all_used()?;
        Ok(model)
    }

    /// Asks for every parameter.
    ///
    /// # Errors
    /// If the parts of the config do not fit each other, or a parameter is missing or has other dims.
    pub fn new(params: &Params, config: &DualEncoderConfig) -> Result<Self> {
        config.check()?;
        let (width, joint) = (config.vision.width(), config.joint);
        Ok(Self {
            vision: ImageTower::new(&params.at("vision_model"), &config.vision)?,
            text: TextTower::new(&params.at("text_model"), &config.text)?,
            visual_projection: ImageProjection::new(
                params,
                "visual_projection",
                [width, joint],
                config.visual_projection,
            )?,
            text_projection: Projection::new(
                params,
                "text_projection",
                [config.text.width(), joint],
                config.text_projection,
            )?,
            logit_scale: params.get("logit_scale", &[], Init::Constant((1.0f64 / 0.07).ln()))?,
            config: config.clone(),
        })
    }

    /// Its sizes.
    pub fn config(&self) -> &DualEncoderConfig {
        &self.config
    }

    /// Pixels [n, c, h, w]. The whole is what [`GlobalImage`] says.
    pub fn encode_image(&self, pixels: &Tensor) -> Embeddings {
        self.image(pixels, &mut Statistics::Running)
    }

    /// As [`Self::encode_image`], with batch norms by the batch's own statistics. Whoever takes these embeddings for a step of training
    /// applies what was noted to the model; a pass whose embeddings are computed again does not.
    pub fn encode_image_train(&self, pixels: &Tensor) -> (Embeddings, Noted) {
        let mut statistics = Statistics::batch();
        let embeddings = self.image(pixels, &mut statistics);
        (embeddings, statistics.into_noted())
    }

    fn image(&self, pixels: &Tensor, statistics: &mut Statistics) -> Embeddings {
        let projected = self.visual_projection.forward(&self.vision.forward(pixels, statistics), statistics);
        self.global_image().split(&projected, self.config.vision.class_token())
    }

    /// The whole of [`Self::encode_image`], [n, d], without what the patches alone need.
    pub fn whole_image(&self, pixels: &Tensor) -> Tensor {
        match self.global_image() {
            GlobalImage::Cls => self.visual_projection.whole(&self.vision, pixels),
            _ => self.encode_image(pixels).whole,
        }
    }

    fn global_image(&self) -> GlobalImage {
        GlobalImage::or_default(self.config.global_image, self.config.vision.class_token())
    }

    /// Ids i64 [n, T] and mask u8 [n, T]; padding is at the end. The whole is what [`GlobalText`] says.
    pub fn encode_text(&self, ids: &Tensor, mask: &Tensor) -> Embeddings {
        let parts = self.text_projection.forward(&self.text.forward(ids, mask));
        if self.config.global_text == Some(GlobalText::MeanTokens) {
            let real = mask.to_dtype(parts.dtype());
            let shares = real.div(&real.sum(&[1], true).clamp(1.0, f64::INFINITY)).unsqueeze(1);
            return Embeddings { whole: shares.matmul(&parts).at(1, 0), parts };
        }
        Embeddings { whole: self.text.whole(&parts, ids, mask), parts }
    }

    /// The whole of [`Self::encode_text`], [n, d], without what the other tokens alone need.
    pub fn whole_text(&self, ids: &Tensor, mask: &Tensor) -> Tensor {
        match self.config.global_text {
            Some(GlobalText::MeanTokens) => self.encode_text(ids, mask).whole,
            _ => self.text_projection.forward(&self.text.forward_whole(ids, mask)).at(1, 0),
        }
    }

    /// Holds the logit scale at [`MAX_LOGIT_SCALE`] at most, as CLIP does after each step.
    ///
    /// # Errors
    /// If another tensor shares the parameter's bytes.
    pub fn clamp_logit_scale(&mut self) -> Result<()> {
        #[cfg(feature = "vulkan")]
        if let Some(gpu) = self.logit_scale.device().cloned()
            && gpu.clamp(&mut self.logit_scale, f32::NEG_INFINITY, MAX_LOGIT_SCALE as f32)
        {
            return Ok(());
        }
        let clamped = for_float!("clamp_logit_scale", self.logit_scale.dtype(), F => {
            Tensor::update([&mut self.logit_scale], |[values]: [&mut [F]; 1]| {
                values.iter_mut().for_each(|value| *value = value.min(MAX_LOGIT_SCALE as F));
            })
        });
        if clamped { Ok(()) } else { Err(Error::new("logit_scale is shared, so it cannot be changed in place")) }
    }
}

impl Module for DualEncoder {
    fn visit(&mut self, at: &str, f: &mut dyn FnMut(&str, &mut Tensor)) {
        let name = |part| join(at, part);
        self.vision.visit(&name("vision_model"), f);
        self.text.visit(&name("text_model"), f);
        self.visual_projection.visit(&name("visual_projection"), f);
        self.text_projection.visit(&name("text_projection"), f);
        f(&name("logit_scale"), &mut self.logit_scale);
    }

    fn visit_buffers(&mut self, at: &str, f: &mut dyn FnMut(&str, &mut Tensor)) {
        self.vision.visit_buffers(&join(at, "vision_model"), f);
        self.visual_projection.visit_buffers(&join(at, "visual_projection"), f);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_image_is_its_class_token_or_a_mean_or_the_largest_of_its_patches() {
        let tokens = Tensor::from_slice(&[9.0f64, -9.0, 0.0, 4.0, 3.0, 4.0], [1, 3, 2]);
        for (global, whole) in [
            (GlobalImage::Cls, [9.0, -9.0]),
            (GlobalImage::MeanPatches, [1.5, 4.0]),
            (GlobalImage::MeanNormalisedPatches, [0.3, 0.9]),
            (GlobalImage::MaxPatches, [3.0, 4.0]),
        ] {
            let embeddings = global.split(&tokens, true);
            crate::gradcheck::assert_close(
                global.name(),
                &embeddings.whole,
                &Tensor::from_slice(&whole, [1, 2]),
                1e-15,
            );
            assert_eq!(embeddings.parts.to_f64_vec(), [0.0, 4.0, 3.0, 4.0]);
            assert_eq!(serde_json::to_value(global).unwrap(), global.name());
        }
        let default = |class_token| GlobalImage::or_default(None, class_token);
        assert_eq!([true, false].map(default), [GlobalImage::Cls, GlobalImage::MeanPatches]);
    }
}
