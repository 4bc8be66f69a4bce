//! CLIP's causal text transformer (Radford et al. 2021), with the parameter names of Hugging Face's CLIP.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::nn::{Encoder, EncoderConfig, Init, LayerNorm, Module, Params, Unary};
use crate::tensor::Tensor;

/// Sizes of a text transformer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TextConfig {
    /// Number of token ids.
    pub vocabulary: usize,
    /// Longest text in tokens.
    pub max_length: usize,
    /// Width of the stream.
    pub width: usize,
    /// Blocks.
    pub depth: usize,
    /// Heads; divides the width.
    pub heads: usize,
    /// CLIP's QuickGELU instead of GELU.
    pub quick_gelu: bool,
}

impl Default for TextConfig {
    /// A small one that a CPU trains from scratch.
    fn default() -> Self {
        Self { vocabulary: 2000, max_length: 64, width: 128, depth: 2, heads: 2, quick_gelu: false }
    }
}

/// A causal text transformer.
pub struct ClipText {
    token_embedding: Tensor,
    position_embedding: Tensor,
    encoder: Encoder,
    final_norm: LayerNorm,
}

impl ClipText {
    /// Asks for `embeddings.*`, `encoder.*` and `final_layer_norm.*`.
    pub fn new(params: &Params, config: &TextConfig) -> Result<Self> {
        let d = config.width;
        if config.heads == 0
            || d == 0
            || !d.is_multiple_of(config.heads)
            || config.vocabulary == 0
            || config.max_length == 0
        {
            return Err(Error::usage(format!("text: heads must divide width, sizes must not be 0: {config:?}")));
        }
        let embeddings = params.at("embeddings");
        let act = if config.quick_gelu { Unary::QuickGelu } else { Unary::Gelu };
        Ok(Self {
            token_embedding: embeddings.at("token_embedding").get(
                "weight",
                &[config.vocabulary, d],
                Init::Normal(0.02),
            )?,
            position_embedding: embeddings.at("position_embedding").get(
                "weight",
                &[config.max_length, d],
                Init::Normal(0.01),
            )?,
            encoder: Encoder::new(
                &params.at("encoder"),
                &EncoderConfig { width: d, depth: config.depth, heads: config.heads, mlp: 4 * d, act, eps: 1e-5 },
            )?,
            final_norm: LayerNorm::new(params, "final_layer_norm", d, 1e-5)?,
        })
    }

    /// Ids i64 [n, T] and mask u8 [n, T] (1 where a token is real) to tokens [n, T, width] after the last norm.
    pub fn forward(&self, ids: &Tensor, mask: &Tensor) -> Tensor {
        let t = ids.dims()[1];
        assert!(
            t <= self.position_embedding.dims()[0],
            "clip_text: {t} tokens, at most {}",
            self.position_embedding.dims()[0]
        );
        let x = self.token_embedding.embedding(ids) + self.position_embedding.narrow(0, 0, t);
        self.final_norm.forward(&self.encoder.forward(x, true, Some(mask)))
    }
}

impl Module for ClipText {
    fn visit(&mut self, at: &str, f: &mut dyn FnMut(&str, &mut Tensor)) {
        f(&format!("{at}.embeddings.token_embedding.weight"), &mut self.token_embedding);
        f(&format!("{at}.embeddings.position_embedding.weight"), &mut self.position_embedding);
        self.encoder.visit(&format!("{at}.encoder"), f);
        self.final_norm.visit(&format!("{at}.final_layer_norm"), f);
    }
}
