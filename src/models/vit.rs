//! Vision transformer (Dosovitskiy et al. 2021) in CLIP's pre-norm form, with the parameter names of Hugging Face's CLIP.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::nn::{Encoder, EncoderConfig, Init, LayerNorm, Module, Params, Unary};
use crate::tensor::Tensor;

/// Sizes of a vision transformer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VitConfig {
    /// Side of the square input in pixels.
    pub image_size: usize,
    /// Side of a patch; divides the image size.
    pub patch_size: usize,
    /// Channels of the input.
    pub channels: usize,
    /// Width of the stream.
    pub width: usize,
    /// Blocks.
    pub depth: usize,
    /// Heads; divides the width.
    pub heads: usize,
    /// CLIP's class token; without it the image is the mean of its patches.
    pub class_token: bool,
    /// CLIP's QuickGELU instead of GELU.
    pub quick_gelu: bool,
}

impl VitConfig {
    /// Patches along a side.
    pub fn grid(&self) -> usize {
        self.image_size / self.patch_size
    }

    /// # Errors
    /// If the sizes do not divide.
    pub fn check(&self) -> Result<()> {
        let divides = |a: usize, b: usize| b > 0 && a > 0 && a.is_multiple_of(b);
        if !divides(self.image_size, self.patch_size) || !divides(self.width, self.heads) || self.channels == 0 {
            return Err(Error::usage(format!(
                "vision: patch_size must divide image_size, heads must divide width: {self:?}"
            )));
        }
        Ok(())
    }
}

/// A vision transformer.
pub struct Vit {
    config: VitConfig,
    class_embedding: Option<Tensor>,
    patch_embedding: Tensor,
    position_embedding: Tensor,
    pre_norm: LayerNorm,
    encoder: Encoder,
    post_norm: LayerNorm,
}

impl Vit {
    /// Asks for `embeddings.*`, `pre_layrnorm.*` (as CLIP spells it), `encoder.*` and `post_layernorm.*`.
    pub fn new(params: &Params, config: &VitConfig) -> Result<Self> {
        config.check()?;
        let (d, embeddings) = (config.width, params.at("embeddings"));
        let tokens = config.grid().pow(2) + usize::from(config.class_token);
        let patch = config.channels * config.patch_size.pow(2);
        let scale = (d as f64).powf(-0.5);
        let act = if config.quick_gelu { Unary::QuickGelu } else { Unary::Gelu };
        Ok(Self {
            class_embedding: config
                .class_token
                .then(|| embeddings.get("class_embedding", &[d], Init::Normal(scale)))
                .transpose()?,
            patch_embedding: embeddings.at("patch_embedding").get(
                "weight",
                &[d, config.channels, config.patch_size, config.patch_size],
                Init::Normal((patch as f64).powf(-0.5)),
            )?,
            position_embedding: embeddings.at("position_embedding").get("weight", &[tokens, d], Init::Normal(scale))?,
            pre_norm: LayerNorm::new(params, "pre_layrnorm", d, 1e-5)?,
            encoder: Encoder::new(
                &params.at("encoder"),
                &EncoderConfig { width: d, depth: config.depth, heads: config.heads, mlp: 4 * d, act, eps: 1e-5 },
            )?,
            post_norm: LayerNorm::new(params, "post_layernorm", d, 1e-5)?,
            config: config.clone(),
        })
    }

    /// Pixels [n, c, h, w] to tokens [n, T, width] after the last norm: the class token first where there is one, then the patches
    /// in row-major order.
    pub fn forward(&self, pixels: &Tensor) -> Tensor {
        let (g, p, d) = (self.config.grid(), self.config.patch_size, self.config.width);
        let n = pixels.dims()[0];
        assert_eq!(pixels.dims()[1..], [self.config.channels, g * p, g * p], "vit: pixels {:?}", pixels.dims());
        let patch = self.config.channels * p * p;
        // [n, c, g, p, g, p] to [n, g g, c p p]
        let patches = pixels.reshape([n, self.config.channels, g, p, g, p]).permute(&[0, 2, 4, 1, 3, 5]).reshape([
            n,
            g * g,
            patch,
        ]);
        let mut x = patches.linear(&self.patch_embedding.reshape([d, patch]), None, None);
        if let Some(class) = &self.class_embedding {
            let class = class.reshape([1, 1, d]).broadcast_to([n, 1, d]);
            x = Tensor::concat(&[&class, &x], 1);
        }
        let x = self.pre_norm.forward(&(x + &self.position_embedding));
        self.post_norm.forward(&self.encoder.forward(x, false, None))
    }
}

impl Module for Vit {
    fn visit(&mut self, at: &str, f: &mut dyn FnMut(&str, &mut Tensor)) {
        if let Some(class) = &mut self.class_embedding {
            f(&format!("{at}.embeddings.class_embedding"), class);
        }
        f(&format!("{at}.embeddings.patch_embedding.weight"), &mut self.patch_embedding);
        f(&format!("{at}.embeddings.position_embedding.weight"), &mut self.position_embedding);
        self.pre_norm.visit(&format!("{at}.pre_layrnorm"), f);
        self.encoder.visit(&format!("{at}.encoder"), f);
        self.post_norm.visit(&format!("{at}.post_layernorm"), f);
    }
}
