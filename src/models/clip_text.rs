//! CLIP's causal text transformer (Radford et al. 2021), with the parameter names of Hugging Face's CLIP.

use serde::{Deserialize, Serialize};

use super::check_sizes;
use crate::dtype::DType;
use crate::error::Result;
use crate::nn::{Activation, Encoder, EncoderConfig, Init, LayerNorm, Module, Params};
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
    /// Inside the blocks' perceptrons.
    #[serde(alias = "quick_gelu")]
    pub activation: Activation,
    /// Width between the two layers of a perceptron; default: four times the width.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mlp: Option<usize>,
    /// Added to the variance in layer norms.
    pub eps: f64,
    /// Whether padding is masked beside what comes later. OpenAI's and open_clip's models see it, which changes padded positions alone.
    pub text_uses_attention_mask: bool,
    /// The token that stands for the whole text.
    pub whole: WholeText,
}

/// Which token of CLIP's text transformer stands for the whole text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WholeText {
    /// The last that the mask calls real.
    #[default]
    LastReal,
    /// The one with the largest id, the first of them: OpenAI, open_clip, and Hugging Face where `eos_token_id` is 2.
    LargestId,
    /// The first with this id, else the first of all: Hugging Face.
    First(i64),
}

impl WholeText {
    /// Its position i64 `[n]` in each text (ids i64 [n, T], mask u8 [n, T]).
    fn position(self, ids: &Tensor, mask: &Tensor) -> Tensor {
        // Ids and positions are exact in f32; of equal ones the first is taken.
        let score = match self {
            Self::LastReal => {
                let positions: Vec<f32> = (1..=ids.dims()[1]).map(|i| i as f32).collect();
                mask.to_dtype(DType::F32).mul(&Tensor::from_slice(&positions, [positions.len()]))
            }
            Self::LargestId => ids.to_dtype(DType::F32),
            Self::First(end) => ids.eq(&Tensor::scalar(end)).to_dtype(DType::F32),
        };
        score.argmax(1)
    }
}

impl Default for TextConfig {
    /// A small one that a CPU trains from scratch.
    fn default() -> Self {
        Self {
            vocabulary: 2000,
            max_length: 64,
            width: 128,
            depth: 2,
            heads: 2,
            activation: Activation::Gelu,
            mlp: None,
            eps: 1e-5,
            text_uses_attention_mask: true,
            whole: WholeText::LastReal,
        }
    }
}

impl TextConfig {
    /// Width of a block's perceptron: four times the tokens' where it is not said.
    pub fn mlp_width(&self) -> usize {
        self.mlp.unwrap_or(4 * self.width)
    }

    /// # Errors
    /// If the sizes do not divide, or are more than any model has.
    pub fn check(&self) -> Result<()> {
        let sizes = [("vocabulary", self.vocabulary), ("max_length", self.max_length), ("mlp", self.mlp.unwrap_or(1))];
        check_sizes("text", self.depth, &sizes, &[[("heads", self.heads), ("width", self.width)]])
    }
}

/// A causal text transformer.
pub struct ClipText {
    uses_mask: bool,
    whole: WholeText,
    token_embedding: Tensor,
    position_embedding: Tensor,
    encoder: Encoder,
    final_norm: LayerNorm,
}

impl ClipText {
    /// Asks for `embeddings.*`, `encoder.*` and `final_layer_norm.*`.
    pub fn new(params: &Params, config: &TextConfig) -> Result<Self> {
        config.check()?;
        let d = config.width;
        let embeddings = params.at("embeddings");
        Ok(Self {
            uses_mask: config.text_uses_attention_mask,
            whole: config.whole,
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
                &EncoderConfig {
                    width: d,
                    depth: config.depth,
                    heads: config.heads,
                    mlp: config.mlp_width(),
                    act: config.activation.unary(),
                    eps: config.eps,
                },
            )?,
            final_norm: LayerNorm::new(params, "final_layer_norm", d, config.eps)?,
        })
    }

    /// Ids i64 [n, T] and mask u8 [n, T] (1 where a token is real) to tokens [n, T, width] after the last norm.
    pub fn forward(&self, ids: &Tensor, mask: &Tensor) -> Tensor {
        self.final_norm.forward(&self.encoder.forward(self.embed(ids), true, self.uses_mask.then_some(mask)))
    }

    /// The token of [`Self::forward`] that stands for the whole text, [n, 1, width], without what the others alone need.
    pub fn forward_whole(&self, ids: &Tensor, mask: &Tensor) -> Tensor {
        let (at, seen) = (self.whole(ids, mask), self.uses_mask.then_some(mask));
        self.final_norm.forward(&self.encoder.forward_at(&at, self.embed(ids), true, seen))
    }

    /// Ids to what goes into the first block.
    fn embed(&self, ids: &Tensor) -> Tensor {
        let t = ids.dims()[1];
        assert!(
            t <= self.position_embedding.dims()[0],
            "clip_text: {t} tokens, at most {}",
            self.position_embedding.dims()[0]
        );
        self.token_embedding.embedding(ids) + self.position_embedding.narrow(0, 0, t)
    }

    /// Of each text (ids i64 [n, T], mask u8 [n, T]) the position i64 `[n]` of the token that stands for the whole.
    pub fn whole(&self, ids: &Tensor, mask: &Tensor) -> Tensor {
        self.whole.position(ids, mask)
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
