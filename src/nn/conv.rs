//! Layers of convolutional networks, on maps [n, h, w, channels].

use super::{Init, Module, Params};
use crate::error::Result;
use crate::ops::conv::Conv2d as Options;
use crate::tensor::Tensor;

/// Convolution.
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

/// Batch norm of the last dimension. Its running statistics are buffers: visited by [`Module::visit_buffers`], never trained.
pub struct BatchNorm {
    /// `[channels]`
    pub weight: Tensor,
    /// `[channels]`
    pub bias: Tensor,
    /// `[channels]`
    pub running_mean: Tensor,
    /// `[channels]`, of the unbiased variance.
    pub running_var: Tensor,
    /// Added to the variance.
    pub eps: f64,
    /// Share of the running statistics that each batch replaces.
    pub momentum: f64,
}

impl BatchNorm {
    /// Asks for `weight`, `bias`, `running_mean` and `running_var`. Momentum is 0.1, as PyTorch's.
    ///
    /// # Errors
    /// If a file does not have them, or with other dims.
    pub fn new(params: &Params, name: &str, channels: usize, eps: f64) -> Result<Self> {
        let p = params.at(name);
        let get = |name, value| p.get(name, &[channels], Init::Constant(value));
        Ok(Self {
            weight: get("weight", 1.0)?,
            bias: get("bias", 0.0)?,
            running_mean: get("running_mean", 0.0)?,
            running_var: get("running_var", 1.0)?,
            eps,
            momentum: 0.1,
        })
    }

    /// x [.., channels] by the running statistics.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        x.batch_norm(&self.weight, &self.bias, &self.running_mean, &self.running_var, self.eps)
    }

    /// x [.., channels] by its own statistics, which move the running ones. Not inside [`crate::checkpoint`], which runs
    /// what it holds twice.
    pub fn forward_train(&mut self, x: &Tensor) -> Tensor {
        let (y, [mean, var]) = x.batch_norm_train(&self.weight, &self.bias, self.eps);
        let moved = |running: &Tensor, of_batch: &Tensor| running * (1.0 - self.momentum) + of_batch * self.momentum;
        self.running_mean = moved(&self.running_mean, &mean);
        self.running_var = moved(&self.running_var, &var);
        y
    }
}

impl Module for BatchNorm {
    fn visit(&mut self, at: &str, f: &mut dyn FnMut(&str, &mut Tensor)) {
        f(&format!("{at}.weight"), &mut self.weight);
        f(&format!("{at}.bias"), &mut self.bias);
    }

    fn visit_buffers(&mut self, at: &str, f: &mut dyn FnMut(&str, &mut Tensor)) {
        f(&format!("{at}.running_mean"), &mut self.running_mean);
        f(&format!("{at}.running_var"), &mut self.running_var);
    }
}

#[cfg(test)]
mod tests {
    use super::super::Source;
    use super::*;
    use crate::DType;
    use crate::optim::{Optimiser, OptimiserConfig};
    use crate::rng::Rng;

    #[test]
    fn training_moves_running_statistics_that_no_optimiser_touches() {
        let mut norm = BatchNorm::new(&Source::drawn(1, DType::F32).params(), "bn", 3, 1e-5).unwrap();
        norm.visit("bn", &mut |_, p| *p = p.trainable());
        let mut names = Vec::new();
        norm.visit_all("bn", &mut |name, p| names.push((name.to_owned(), p.is_tracked())));
        let expected = [("weight", true), ("bias", true), ("running_mean", false), ("running_var", false)];
        assert_eq!(names, expected.map(|(name, trained)| (format!("bn.{name}"), trained)));

        let x = Tensor::randn([4, 5, 5, 3], DType::F32, &mut Rng::new(2, 0)).affine(3.0, 2.0);
        for _ in 0..60 {
            let loss = norm.forward_train(&x).sub(&x).square().mean_all();
            let grads = loss.backward();
            Optimiser::new(OptimiserConfig::default()).step(&mut norm, grads, 1e-3).unwrap();
        }
        // After many batches the running statistics are the batch's, and both ways agree up to the unbiased variance.
        let [own, running] = [norm.forward_train(&x), norm.forward(&x)].map(|y| y.to_f64_vec());
        assert!(own.iter().zip(&running).all(|(a, b)| (a - b).abs() < 0.03));
        assert!(norm.running_mean.to_f64_vec().iter().all(|mean| (mean - 2.0).abs() < 1.0));
    }
}
