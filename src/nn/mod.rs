//! Layers: plain structs of tensors with `forward`; one visitor names their parameters.

mod activation;
mod batch_norm;
mod block;
mod conv;
mod params;
mod projection;
mod token;

pub use activation::Activation;
pub use batch_norm::{BatchNorm, Noted, Statistics};
pub use block::{Block, Config as EncoderConfig, Encoder};
pub use conv::{Conv2d, ConvNorm};
pub use kernels_cpu::map::Unary;
pub(crate) use params::join;
pub use params::{Init, Module, Params, SCALE, Source};
pub use projection::{Projection, ProjectionHead, ProjectionKind, ProjectionMlp};
pub use token::token_at;

use kernels_cpu::gemm::bf16_is_quick;

use crate::dtype::DType;
use crate::error::Result;
use crate::tensor::Tensor;

/// y = act(x W^T + b).
#[derive(Clone)]
pub struct Linear {
    /// [out, in]
    pub weight: Tensor,
    /// `[out]`, of a weight of int8.
    pub scale: Option<Tensor>,
    /// `[out]`
    pub bias: Option<Tensor>,
}

impl Linear {
    /// Asks for `weight`, and `bias` where `bias`.
    pub fn new(params: &Params, name: &str, [input, output]: [usize; 2], bias: bool, std: f64) -> Result<Self> {
        let p = params.at(name);
        let weight = p.get("weight", &[output, input], Init::Normal(std))?;
        let bias = bias.then(|| p.get("bias", &[output], Init::Constant(0.0))).transpose()?;
        Ok(Self { weight, scale: p.scale("weight"), bias })
    }

    /// x [.., in] to [.., out].
    pub fn forward(&self, x: &Tensor, act: Option<Unary>) -> Tensor {
        match &self.scale {
            Some(scale) => x.linear_int8(&self.weight, scale, self.bias.as_ref(), act),
            None => Self::input([self], x).linear(&self.weight, self.bias.as_ref(), act),
        }
    }

    /// x as all of these layers multiply it: rounded to bf16 where products are, or where their weights are in bf16 and that is quicker than f32. Done
    /// by each of them, but once where all read the same.
    pub fn input<const N: usize>(layers: [&Self; N], x: &Tensor) -> Tensor {
        let of_bf16 = layers.iter().all(|layer| layer.weight.dtype() == DType::BF16);
        let rounds = of_bf16 && x.device().is_none() && !x.is_tracked() && bf16_is_quick();
        if rounds { x.to_dtype(DType::BF16) } else { x.operand() }
    }

    /// What [`Self::forward`] says as attention multiplies it: rounded to bf16 where products are, or where the weight is in bf16 or int8 and that is
    /// quicker than f32.
    pub fn operand(&self, x: &Tensor) -> Tensor {
        let y = self.forward(x, None);
        match self.weight.dtype() {
            DType::BF16 | DType::I8 if y.device().is_some() || bf16_is_quick() => y.to_dtype(DType::BF16),
            _ => y.operand(),
        }
    }
}

impl Module for Linear {
    fn visit(&mut self, at: &str, f: &mut dyn FnMut(&str, &mut Tensor)) {
        f(&format!("{at}.weight"), &mut self.weight);
        if let Some(scale) = &mut self.scale {
            f(&format!("{at}.weight{SCALE}"), scale);
        }
        if let Some(bias) = &mut self.bias {
            f(&format!("{at}.bias"), bias);
        }
    }
}

/// Layer norm along the last dimension.
#[derive(Clone)]
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

/// x by a norm, where there is one.
pub fn normed(norm: Option<&LayerNorm>, x: Tensor) -> Tensor {
    match norm {
        Some(norm) => norm.forward(&x),
        None => x,
    }
}

/// Group norm with one group (Wu and He 2018): an image's whole map to mean 0 and variance 1, then a factor and a shift per channel.
pub struct GroupNorm {
    /// `[channels]`
    pub weight: Tensor,
    /// `[channels]`
    pub bias: Tensor,
    /// Added to the variance.
    pub eps: f64,
}

impl GroupNorm {
    /// Asks for `weight` and `bias`.
    ///
    /// # Errors
    /// If a file does not have them, or with other dims.
    pub fn new(params: &Params, name: &str, channels: usize, eps: f64) -> Result<Self> {
        let LayerNorm { weight, bias, eps } = LayerNorm::new(params, name, channels, eps)?;
        Ok(Self { weight, bias, eps })
    }

    /// x [n, h, w, channels].
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let (dims, map) = (*x.dims(), x.dims()[1..].iter().product::<usize>());
        let (one, zero) = (Tensor::full([map], 1.0, x.dtype()), Tensor::zeros([map], x.dtype()));
        let normed = x.reshape([dims[0], map]).layer_norm(&one, &zero, self.eps).reshape(dims);
        normed.mul(&self.weight) + &self.bias
    }
}

impl Module for GroupNorm {
    fn visit(&mut self, at: &str, f: &mut dyn FnMut(&str, &mut Tensor)) {
        f(&format!("{at}.weight"), &mut self.weight);
        f(&format!("{at}.bias"), &mut self.bias);
    }
}

impl Module for LayerNorm {
    fn visit(&mut self, at: &str, f: &mut dyn FnMut(&str, &mut Tensor)) {
        f(&format!("{at}.weight"), &mut self.weight);
        f(&format!("{at}.bias"), &mut self.bias);
    }
}
