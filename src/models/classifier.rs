//! The supervised baseline: an image encoder and a perceptron, one logit per label.

use serde::{Deserialize, Serialize};

use super::dual_encoder::GlobalImage;
use super::image_tower::{ImageTower, ImageTowerConfig};
use crate::dtype::DType;
use crate::error::Result;
use crate::formats::Weights;
use crate::nn::{Linear, Module, Noted, Params, Source, Statistics, Unary, join};
use crate::tensor::Tensor;

/// Sizes of a classifier.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClassifierConfig {
    /// The image encoder.
    pub vision: ImageTowerConfig,
    /// Width between the two layers of the head.
    pub hidden: usize,
    /// One logit each.
    pub labels: Vec<String>,
}

/// An image encoder and a two-layer head.
pub struct Classifier {
    config: ClassifierConfig,
    vision: ImageTower,
    fc1: Linear,
    fc2: Linear,
}

impl Classifier {
    /// A model with parameters drawn from `seed`.
    pub fn init(config: &ClassifierConfig, seed: u64, dtype: DType) -> Result<Self> {
        Self::new(&Source::drawn(seed, dtype).params(), config)
    }

    /// A model whose parameters are views of a file.
    ///
    /// # Errors
    /// If a tensor is missing, has other dims, or is not part of the model.
    pub fn load(config: &ClassifierConfig, weights: &Weights) -> Result<Self> {
        let source = Source::file(weights);
        let model = Self::new(&source.params(), config)?;
        source.all_used()?;
        Ok(model)
    }

    /// Asks for every parameter.
    pub fn new(params: &Params, config: &ClassifierConfig) -> Result<Self> {
        let head = params.at("head");
        let (width, hidden) = (config.vision.width(), config.hidden);
        Ok(Self {
            vision: ImageTower::new(&params.at("vision_model"), &config.vision)?,
            fc1: Linear::new(&head, "fc1", [width, hidden], true, (2.0 / width as f64).sqrt())?,
            fc2: Linear::new(&head, "fc2", [hidden, config.labels.len()], true, (hidden as f64).powf(-0.5))?,
            config: config.clone(),
        })
    }

    /// Its sizes.
    pub fn config(&self) -> &ClassifierConfig {
        &self.config
    }

    /// Pixels [n, c, h, w] to logits [n, labels].
    pub fn forward(&self, pixels: &Tensor) -> Tensor {
        self.logits(pixels, &mut Statistics::Running)
    }

    /// As [`Self::forward`], with batch norms by the batch's own statistics; what was noted is to be applied to the model.
    pub fn forward_train(&self, pixels: &Tensor) -> (Tensor, Noted) {
        let mut statistics = Statistics::batch();
        let logits = self.logits(pixels, &mut statistics);
        (logits, statistics.into_noted())
    }

    fn logits(&self, pixels: &Tensor, statistics: &mut Statistics) -> Tensor {
        let global = GlobalImage::or_default(None, self.config.vision.class_token());
        let whole = self.vision.whole(global, pixels, statistics);
        self.fc2.forward(&self.fc1.forward(&whole, Some(Unary::Relu)), None)
    }
}

impl Module for Classifier {
    fn visit(&mut self, at: &str, f: &mut dyn FnMut(&str, &mut Tensor)) {
        let name = |part| join(at, part);
        self.vision.visit(&name("vision_model"), f);
        self.fc1.visit(&name("head.fc1"), f);
        self.fc2.visit(&name("head.fc2"), f);
    }

    fn visit_buffers(&mut self, at: &str, f: &mut dyn FnMut(&str, &mut Tensor)) {
        self.vision.visit_buffers(&join(at, "vision_model"), f);
    }
}
