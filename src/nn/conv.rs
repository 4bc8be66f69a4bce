//! Layers of convolutional networks, on maps [n, h, w, channels].

use kernels_cpu::gemm::bf16_is_quick;

use super::{BatchNorm, Init, Module, Params, Statistics, join};
use crate::dtype::DType;
use crate::error::Result;
use crate::ops::conv::Conv2d as Options;
use crate::ops::matmul::{is_half, sums};
use crate::tensor::Tensor;

/// Convolution.
#[derive(Clone)]
pub struct Conv2d {
    /// [out, in / groups, kh, kw]
    pub weight: Tensor,
    /// `[out]`
    pub bias: Option<Tensor>,
    /// Stride, padding, dilation, groups.
    pub options: Options,
}

impl Conv2d {
    /// Asks for `weight` [out, in / groups, kernel, kernel], normal with variance 2 / fan-in where it is drawn (He et al. 2015), and
    /// `bias` where `bias`.
    ///
    /// # Errors
    /// If a file does not have them, or with other dims.
    pub fn new(
        params: &Params,
        name: &str,
        [input, output]: [usize; 2],
        kernel: usize,
        bias: bool,
        options: Options,
    ) -> Result<Self> {
        let (p, input) = (params.at(name), input / options.groups);
        let std = (2.0 / (input * kernel * kernel) as f64).sqrt();
        let weight = p.get("weight", &[output, input, kernel, kernel], Init::Normal(std))?;
        let bias = bias.then(|| p.get("bias", &[output], Init::Constant(0.0))).transpose()?;
        Ok(Self { weight, bias, options })
    }

    /// x [n, h, w, in] to [n, oh, ow, out].
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let x = if self.options.groups == 1 { &x.operand() } else { x };
        x.conv2d(&self.weight, self.bias.as_ref(), self.options)
    }
}

impl Module for Conv2d {
    fn visit(&mut self, at: &str, f: &mut dyn FnMut(&str, &mut Tensor)) {
        f(&format!("{at}.weight"), &mut self.weight);
        if let Some(bias) = &mut self.bias {
            f(&format!("{at}.bias"), bias);
        }
    }
}

/// Convolution without bias, then batch norm: two layers of a file, by their names below one parent.
#[derive(Clone)]
pub struct ConvNorm {
    conv: Conv2d,
    norm: BatchNorm,
    names: [&'static str; 2],
}

impl ConvNorm {
    /// Asks for the convolution's and the norm's parameters below `names`.
    ///
    /// # Errors
    /// If a file does not have them, or with other dims.
    pub fn new(
        params: &Params,
        names: [&'static str; 2],
        channels: [usize; 2],
        kernel: usize,
        options: Options,
    ) -> Result<Self> {
        Ok(Self {
            conv: Conv2d::new(params, names[0], channels, kernel, false, options)?,
            norm: BatchNorm::new(params, names[1], channels[1], 1e-5)?,
            names,
        })
    }

    /// x [n, h, w, in] to [n, oh, ow, out]. By running statistics the norm is folded: conv(x, w s) + b - mean s with
    /// s = weight / sqrt(var + eps). A weight that is stored in half is folded in f32 and rounded to its type again.
    pub fn forward(&self, x: &Tensor, statistics: &mut Statistics) -> Tensor {
        if self.norm.goes_by_batch(statistics) {
            return self.norm.forward(&self.conv.forward(x), statistics);
        }
        statistics.note(None);
        // Groups are multiplied in f32.
        let x = if self.conv.options.groups > 1 { &x.to_dtype(sums(x.dtype())) } else { x };
        let [scale, shift] = self.norm.scale_and_shift(sums(x.dtype()));
        let scale = scale.reshape([scale.numel(), 1, 1, 1]);
        x.conv2d(&self.folded(&scale), Some(&shift), self.conv.options)
    }

    /// The weight times `scale` [out, 1, 1, 1]. On a device in the order in which its kernels read it, so that a plan has no more to do.
    fn folded(&self, scale: &Tensor) -> Tensor {
        let weight = &self.conv.weight;
        let rounded = if is_half(weight.dtype()) { weight.dtype() } else { scale.dtype() };
        let wide = weight.to_dtype(scale.dtype());
        match weight.device() {
            Some(_) => wide.permute(&[0, 2, 3, 1]).mul(scale).to_dtype(rounded).permute(&[0, 3, 1, 2]),
            None => wide.mul(scale).to_dtype(rounded),
        }
    }

    /// relu([`ConvNorm::forward`] + residual).
    pub fn forward_relu(&self, x: &Tensor, residual: Option<&Tensor>, statistics: &mut Statistics) -> Tensor {
        if self.norm.goes_by_batch(statistics) {
            return self.norm.forward_relu(&self.conv.forward(x), residual, statistics);
        }
        let y = self.forward(x, statistics);
        residual.map_or(y.clone(), |residual| y.add(&residual.to_dtype(y.dtype()))).relu()
    }

    /// A map as it is kept: in bf16 behind a weight that is, where convolutions would round it anyway, and by running statistics.
    pub fn kept(&self, map: Tensor, statistics: &Statistics) -> Tensor {
        let weight = &self.conv.weight;
        let rounds = weight.dtype() == DType::BF16 && weight.device().is_none() && bf16_is_quick();
        if rounds && !self.norm.goes_by_batch(statistics) { map.to_dtype(DType::BF16) } else { map }
    }
}

impl Module for ConvNorm {
    fn visit(&mut self, at: &str, f: &mut dyn FnMut(&str, &mut Tensor)) {
        self.conv.visit(&join(at, self.names[0]), f);
        self.norm.visit(&join(at, self.names[1]), f);
    }

    fn visit_buffers(&mut self, at: &str, f: &mut dyn FnMut(&str, &mut Tensor)) {
        self.norm.visit_buffers(&join(at, self.names[1]), f);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;
    use crate::gradcheck::assert_close;
    use crate::nn::Source;
    use crate::rng::Rng;

    #[test]
    fn a_folded_norm_is_the_norm_in_value_and_gradient() {
        let mut layer =
            ConvNorm::new(&Source::drawn(1, DType::F64).params(), ["c", "n"], [3, 5], 3, Options::new(2, 1)).unwrap();
        let mut rng = Rng::new(2, 0);
        layer.visit_all("", &mut |_, p| *p = Tensor::randn(*p.dims(), DType::F64, &mut rng));
        layer.norm.running_var = layer.norm.running_var.square();
        layer.visit("", &mut |_, p| *p = p.trainable());
        let x = Tensor::randn([2, 7, 6, 3], DType::F64, &mut rng).trainable();
        let folded = layer.forward(&x, &mut Statistics::Running);
        let plain = layer.norm.forward(&layer.conv.forward(&x), &mut Statistics::Running);
        assert_close("value", &folded, &plain, 1e-12);
        let [a, b] = [folded, plain].map(|y| y.square().sum_all().backward());
        assert_close("input", a.get(&x).unwrap(), b.get(&x).unwrap(), 1e-11);
        layer.visit("", &mut |name, p| assert_close(name, a.get(p).unwrap(), b.get(p).unwrap(), 1e-11));
    }
}
