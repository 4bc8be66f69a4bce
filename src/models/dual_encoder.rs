//! Image and text in one joint space, whole and by patch and token.

use serde::{Deserialize, Serialize};

use super::clip_text::{ClipText, TextConfig};
use super::vit::{Vit, VitConfig};
use crate::dtype::DType;
use crate::error::Result;
use crate::formats::Weights;
use crate::nn::{Init, Linear, Module, Params, Source};
use crate::tensor::Tensor;

/// Sizes of a dual encoder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DualEncoderConfig {
    /// The image side.
    pub vision: VitConfig,
    /// The text side.
    pub text: TextConfig,
    /// Width of the joint space.
    pub joint: usize,
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
    vision: Vit,
    text: ClipText,
    visual_projection: Linear,
    text_projection: Linear,
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
    pub fn new(params: &Params, config: &DualEncoderConfig) -> Result<Self> {
        let project =
            |name, width: usize| Linear::new(params, name, [width, config.joint], false, (width as f64).powf(-0.5));
        Ok(Self {
            vision: Vit::new(&params.at("vision_model"), &config.vision)?,
            text: ClipText::new(&params.at("text_model"), &config.text)?,
            visual_projection: project("visual_projection", config.vision.width)?,
            text_projection: project("text_projection", config.text.width)?,
            logit_scale: params.get("logit_scale", &[], Init::Constant((1.0f64 / 0.07).ln()))?,
            config: config.clone(),
        })
    }

    /// Its sizes.
    pub fn config(&self) -> &DualEncoderConfig {
        &self.config
    }

    /// Pixels [n, c, h, w]. The whole is the class token's projection, or the mean of the unnormalised projected patches.
    pub fn encode_image(&self, pixels: &Tensor) -> Embeddings {
        let projected = self.visual_projection.forward(&self.vision.forward(pixels), None);
        if self.config.vision.class_token {
            let patches = projected.dims()[1] - 1;
            Embeddings { whole: projected.at(1, 0), parts: projected.narrow(1, 1, patches) }
        } else {
            Embeddings { whole: projected.mean(&[1], false), parts: projected }
        }
    }

    /// Ids i64 [n, T] and mask u8 [n, T]; padding is at the end. The whole is the last real token's projection.
    pub fn encode_text(&self, ids: &Tensor, mask: &Tensor) -> Embeddings {
        let [n, t] = [ids.dims()[0], ids.dims()[1]];
        let parts = self.text_projection.forward(&self.text.forward(ids, mask), None);
        let mask = mask.to_vec::<u8>();
        let ends: Vec<i64> =
            (0..n).map(|i| (i * t + mask[i * t..][..t].iter().rposition(|&m| m != 0).unwrap_or(0)) as i64).collect();
        let whole = parts.reshape([n * t, self.config.joint]).embedding(&Tensor::from_slice(&ends, [n]));
        Embeddings { whole, parts }
    }
}

impl Module for DualEncoder {
    fn visit(&mut self, at: &str, f: &mut dyn FnMut(&str, &mut Tensor)) {
        let name = |part: &str| if at.is_empty() { part.to_owned() } else { format!("{at}.{part}") };
        self.vision.visit(&name("vision_model"), f);
        self.text.visit(&name("text_model"), f);
        self.visual_projection.visit(&name("visual_projection"), f);
        self.text_projection.visit(&name("text_projection"), f);
        f(&name("logit_scale"), &mut self.logit_scale);
    }
}
