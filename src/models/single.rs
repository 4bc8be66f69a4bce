//! One encoder alone, with what its checkpoint puts at its end.

use serde::{Deserialize, Serialize};

use super::dual_encoder::{Embeddings, GlobalImage};
use super::image_tower::{ImageProjection, ImageProjectionKind, ImageTower, ImageTowerConfig};
use super::text_tower::{TextTower, TextTowerConfig};
use crate::error::{Error, Result};
use crate::nn::{
    LayerNorm, Linear, Module, Noted, Params, Projection, ProjectionKind, Statistics, Unary, join, normed,
};
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
        if let End::Joint(projection) = &self.end {
            let projected = projection.forward(&self.vision.forward(pixels, statistics), statistics);
            let embeddings = self.global_image().split(&projected, self.config.vision.class_token());
            return (embeddings.whole.clone(), Some(embeddings));
        }
        let whole = normed(self.pooled_norm.as_ref(), self.vision.whole(self.global_image(), pixels, statistics));
        let output = match &self.end {
            End::Pooler(pooler) => pooler.forward(&whole, Some(Unary::Tanh)),
            End::Logits(classifier) => classifier.forward(&whole, None),
            End::Features | End::Joint(_) => whole,
        };
        (output, None)
    }

    /// The output of [`Self::forward`] without what the patches alone need.
    pub fn whole(&self, pixels: &Tensor) -> Tensor {
        match &self.end {
            End::Joint(projection) if self.global_image() == GlobalImage::Cls => projection.whole(&self.vision, pixels),
            _ => self.forward(pixels).0,
        }
    }

    fn global_image(&self) -> GlobalImage {
        GlobalImage::or_default(self.config.global_image, self.config.vision.class_token())
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
        let Some(projection) = &self.projection else { return (self.whole(ids, mask), None) };
        let parts = projection.forward(&self.text.forward(ids, mask));
        let whole = self.text.whole(&parts, ids, mask);
        (whole.clone(), Some(Embeddings { whole, parts }))
    }

    /// The output of [`Self::forward`] without what the other tokens alone need.
    pub fn whole(&self, ids: &Tensor, mask: &Tensor) -> Tensor {
        let token = self.text.forward_whole(ids, mask);
        match &self.projection {
            Some(projection) => projection.forward(&token).at(1, 0),
            None => self.text.pool(&token).unwrap_or_else(|| token.at(1, 0)),
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::DType;
    use crate::models::vit::VitConfig;
    use crate::nn::Source;
    use crate::rng::Rng;

    /// With a class token and without, an image's vector is that of its embeddings.
    #[test]
    fn the_whole_alone_has_the_bits_of_the_whole_beside_its_parts() {
        for (class_token, global_image) in
            [(true, None), (true, Some(GlobalImage::MaxPatches)), (false, Some(GlobalImage::MeanNormalisedPatches))]
        {
            let vision = VitConfig {
                image_size: 8,
                patch_size: 4,
                width: 8,
                depth: 2,
                heads: 2,
                class_token,
                ..VitConfig::default()
            };
            let output = ImageOutput::Joint { joint: 6, projection: ImageProjectionKind::Linear };
            let config = ImageModelConfig { vision: vision.into(), global_image, pooled_norm: None, output };
            let model = ImageModel::new(&Source::drawn(3, DType::F32).params(), &config).unwrap();
            let pixels = Tensor::randn([3, 1, 8, 8], DType::F32, &mut Rng::new(5, 0));
            assert_eq!(model.whole(&pixels).to_vec::<f32>(), model.forward(&pixels).0.to_vec::<f32>());
        }
        let text = TextTowerConfig::default();
        let output = TextOutput::Joint { joint: 6, projection: ProjectionKind::Linear };
        let model = TextModel::new(&Source::drawn(3, DType::F32).params(), &TextModelConfig { text, output }).unwrap();
        let ids = Tensor::from_slice(&[1i64, 7, 5, 9, 4, 2, 3, 3, 3, 3], [2, 5]);
        let mask = Tensor::from_slice(&[1u8, 1, 1, 1, 1, 1, 1, 0, 0, 0], [2, 5]);
        assert_eq!(model.whole(&ids, &mask).to_vec::<f32>(), model.forward(&ids, &mask).0.to_vec::<f32>());
    }
}
