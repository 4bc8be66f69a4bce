//! One encoder alone, with what its checkpoint puts at its end.

use serde::{Deserialize, Serialize};

use super::dual_encoder::{Embeddings, GlobalImage};
use super::image_tower::{ImageProjection, ImageProjectionKind, ImageTower, ImageTowerConfig};
use super::text_tower::{TextTower, TextTowerConfig};
use crate::error::{Error, Result};
use crate::nn::{LayerNorm, Linear, Module, Noted, Params, Projection, ProjectionKind, Statistics, Unary, join};
use crate::tensor::Tensor;

/// An image encoder and its end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageModelConfig {
    /// The encoder.
    pub vision: ImageTowerConfig,
    /// What stands for the whole image; default: the class token where there is one, else the mean of the patches.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub global_image: Option<GlobalImage>,
    /// Epsilon of a layer norm of what stands for the whole image, which timm's `fc_norm` is; default: there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pooled_norm: Option<f64>,
    /// What is made of it.
    pub output: ImageOutput,
}

/// The end of an image encoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImageOutput {
    /// What stands for the whole image, as it is.
    Features,
    /// A tanh layer of the same width: Hugging Face's ViTModel.
    Pooler,
    /// A layer with so many logits.
    Logits(usize),
    /// Whole and patches projected into a joint space.
    Joint {
        /// Its width.
        joint: usize,
        /// The way into it.
        projection: ImageProjectionKind,
    },
}

impl ImageOutput {
    /// In words.
    pub fn describe(self) -> String {
        match self {
            Self::Features => "its features as they are".to_owned(),
            Self::Pooler => "a tanh pooler".to_owned(),
            Self::Logits(n) => format!("{n} logits"),
            Self::Joint { joint, .. } => format!("projected into a joint space of {joint}"),
        }
    }
}

/// An image encoder alone.
pub struct ImageModel {
    config: ImageModelConfig,
    vision: ImageTower,
    pooled_norm: Option<LayerNorm>,
    end: End,
}

/// What is behind the encoder.
#[expect(clippy::large_enum_variant, reason = "there is one in a model")]
enum End {
    Features,
    Pooler(Linear),
    Logits(Linear),
    Joint(ImageProjection),
}

impl ImageModel {
    /// Asks for `vision_model.*`, `pooled_norm.*` where there is one and, by its output, `pooler.*`, `classifier.*` or
    /// `visual_projection.*`.
    ///
    /// # Errors
    /// If the parts of the config do not fit each other, or a parameter is missing or has other dims.
    pub fn new(params: &Params, config: &ImageModelConfig) -> Result<Self> {
        if config.global_image == Some(GlobalImage::Cls) && !config.vision.class_token() {
            return Err(Error::usage("global_image = cls needs class_token = true in vision; or take mean_patches"));
        }
        if config.pooled_norm.is_some_and(|eps| !(0.0..1.0).contains(&eps)) {
            return Err(Error::usage("pooled_norm is an epsilon, which must be small"));
        }
        if config.pooled_norm.is_some() && matches!(config.output, ImageOutput::Joint { .. }) {
            return Err(Error::usage("pooled_norm: in a joint space patches are projected as the whole image is"));
        }
        let width = config.vision.width();
        let norm = |eps| LayerNorm::new(params, "pooled_norm", width, eps);
        let linear = |name, out| Linear::new(params, name, [width, out], true, (width as f64).powf(-0.5));
        Ok(Self {
            vision: ImageTower::new(&params.at("vision_model"), &config.vision)?,
            pooled_norm: config.pooled_norm.map(norm).transpose()?,
            end: match config.output {
                ImageOutput::Features => End::Features,
                ImageOutput::Pooler => End::Pooler(linear("pooler", width)?),
                ImageOutput::Logits(n) => End::Logits(linear("classifier", n)?),
                ImageOutput::Joint { joint, projection } => {
                    End::Joint(ImageProjection::new(params, "visual_projection", [width, joint], projection)?)
                }
            },
            config: config.clone(),
        })
    }

    /// Its sizes.
    pub fn config(&self) -> &ImageModelConfig {
        &self.config
    }

    /// Pixels [n, c, h, w] to the output [n, k] and, where it is projected into a joint space, the embeddings.
    pub fn forward(&self, pixels: &Tensor) -> (Tensor, Option<Embeddings>) {
        self.compute(pixels, &mut Statistics::Running)
    }

    /// As [`Self::forward`], with batch norms by the batch's own statistics; what was noted is to be applied to the model.
    pub fn forward_train(&self, pixels: &Tensor) -> ((Tensor, Option<Embeddings>), Noted) {
        let mut statistics = Statistics::batch();
        let output = self.compute(pixels, &mut statistics);
        (output, statistics.into_noted())
    }

    fn compute(&self, pixels: &Tensor, statistics: &mut Statistics) -> (Tensor, Option<Embeddings>) {
        let tokens = self.vision.forward(pixels, statistics);
        let class_token = self.config.vision.class_token();
        let global = GlobalImage::or_default(self.config.global_image, class_token);
        let whole = |tokens: &Tensor| {
            let whole = global.split(tokens, class_token).whole;
            match &self.pooled_norm {
                Some(norm) => norm.forward(&whole),
                None => whole,
            }
        };
        match &self.end {
            End::Features => (whole(&tokens), None),
            End::Pooler(pooler) => (pooler.forward(&whole(&tokens), Some(Unary::Tanh)), None),
            End::Logits(classifier) => (classifier.forward(&whole(&tokens), None), None),
            End::Joint(projection) => {
                let embeddings = global.split(&projection.forward(&tokens, statistics), class_token);
                (embeddings.whole.clone(), Some(embeddings))
            }
        }
    }
}

impl Module for ImageModel {
    fn visit(&mut self, at: &str, f: &mut dyn FnMut(&str, &mut Tensor)) {
        self.vision.visit(&join(at, "vision_model"), f);
        if let Some(norm) = &mut self.pooled_norm {
            norm.visit(&join(at, "pooled_norm"), f);
        }
        match &mut self.end {
            End::Features => {}
            End::Pooler(pooler) => pooler.visit(&join(at, "pooler"), f),
            End::Logits(classifier) => classifier.visit(&join(at, "classifier"), f),
            End::Joint(projection) => projection.visit(&join(at, "visual_projection"), f),
        }
    }

    fn visit_buffers(&mut self, at: &str, f: &mut dyn FnMut(&str, &mut Tensor)) {
        self.vision.visit_buffers(&join(at, "vision_model"), f);
        if let End::Joint(projection) = &mut self.end {
            projection.visit_buffers(&join(at, "visual_projection"), f);
        }
    }
}

/// A text encoder and its end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextModelConfig {
    /// The encoder.
    pub text: TextTowerConfig,
    /// What is made of it.
    pub output: TextOutput,
}

/// The end of a text encoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TextOutput {
    /// The token that stands for the whole text, by way of BERT's pooler where there is one.
    Features,
    /// Whole and tokens projected into a joint space.
    Joint {
        /// Its width.
        joint: usize,
        /// The way into it.
        projection: ProjectionKind,
    },
}

impl TextOutput {
    /// In words.
    pub fn describe(self) -> String {
        match self {
            Self::Features => "its features as they are".to_owned(),
            Self::Joint { joint, .. } => format!("projected into a joint space of {joint}"),
        }
    }
}

/// A text encoder alone.
pub struct TextModel {
    config: TextModelConfig,
    text: TextTower,
    projection: Option<Projection>,
}

impl TextModel {
    /// Asks for `text_model.*` and, where its output is projected, `text_projection.*`.
    ///
    /// # Errors
    /// If a parameter is missing or has other dims.
    pub fn new(params: &Params, config: &TextModelConfig) -> Result<Self> {
        let projection = match config.output {
            TextOutput::Features => None,
            TextOutput::Joint { joint, projection } => {
                Some(Projection::new(params, "text_projection", [config.text.width(), joint], projection)?)
            }
        };
        let text = TextTower::new(&params.at("text_model"), &config.text)?;
        Ok(Self { config: config.clone(), text, projection })
    }

    /// Its sizes.
    pub fn config(&self) -> &TextModelConfig {
        &self.config
    }

    /// Ids i64 [n, T] and mask u8 [n, T] (1 where a token is real) to the output [n, k] and, where it is projected into a joint space,
    /// the embeddings.
    pub fn forward(&self, ids: &Tensor, mask: &Tensor) -> (Tensor, Option<Embeddings>) {
        let tokens = self.text.forward(ids, mask);
        let whole = |tokens: &Tensor| self.text.whole(tokens, ids, mask);
        if let Some(projection) = &self.projection {
            let parts = projection.forward(&tokens);
            let whole = whole(&parts);
            return (whole.clone(), Some(Embeddings { whole, parts }));
        }
        (self.text.pool(&tokens).unwrap_or_else(|| whole(&tokens)), None)
    }
}

impl Module for TextModel {
    fn visit(&mut self, at: &str, f: &mut dyn FnMut(&str, &mut Tensor)) {
        self.text.visit(&join(at, "text_model"), f);
        if let Some(projection) = &mut self.projection {
            projection.visit(&join(at, "text_projection"), f);
        }
    }
}
