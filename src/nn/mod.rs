//! Layers: plain structs of tensors with `forward`; one visitor names their parameters.

mod block;
mod params;

pub use block::{Block, Config as EncoderConfig, Encoder};
pub use kernels_cpu::map::Unary;
pub use params::{Init, Module, Params, Source};

use crate::error::Result;
use crate::tensor::Tensor;

/// y = act(x W^T + b).
pub struct Linear {
    /// [out, in]
    pub weight: Tensor,
    /// `[out]`
    pub bias: Option<Tensor>,
}

impl Linear {
    /// Asks for `weight`, and `bias` where `bias`.
    pub fn new(params: &Params, name: &str, [input, output]: [usize; 2], bias: bool, std: f64) -> Result<Self> {
        let p = params.at(name);
        let weight = p.get("weight", &[output, input], Init::Normal(std))?;
        let bias = bias.then(|| p.get("bias", &[output], Init::Constant(0.0))).transpose()?;
        Ok(Self { weight, bias })
    }

    /// x [.., in] to [.., out].
    pub fn forward(&self, x: &Tensor, act: Option<Unary>) -> Tensor {
        x.linear(&self.weight, self.bias.as_ref(), act)
    }
}

impl Module for Linear {
    fn visit(&mut self, at: &str, f: &mut dyn FnMut(&str, &mut Tensor)) {
        f(&format!("{at}.weight"), &mut self.weight);
        if let Some(bias) = &mut self.bias {
            f(&format!("{at}.bias"), bias);
        }
    }
}

/// Layer norm along the last dimension.
pub struct LayerNorm {
    /// `[width]`
    pub weight: Tensor,
    /// `[width]`
    pub bias: Tensor,
    /// Added to the variance.
    pub eps: f64,
}

impl LayerNorm {
    /// Asks for `weight` and `bias`.
    pub fn new(params: &Params, name: &str, width: usize, eps: f64) -> Result<Self> {
        let p = params.at(name);
        Ok(Self {
            weight: p.get("weight", &[width], Init::Constant(1.0))?,
            bias: p.get("bias", &[width], Init::Constant(0.0))?,
            eps,
        })
    }

    /// x [.., width].
    pub fn forward(&self, x: &Tensor) -> Tensor {
        x.layer_norm(&self.weight, &self.bias, self.eps)
    }
}

impl Module for LayerNorm {
    fn visit(&mut self, at: &str, f: &mut dyn FnMut(&str, &mut Tensor)) {
        f(&format!("{at}.weight"), &mut self.weight);
        f(&format!("{at}.bias"), &mut self.bias);
    }
}
