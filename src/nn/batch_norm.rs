//! Batch norm, and what its statistics are.

use super::{Init, Module, Params};
use crate::dtype::DType;
use crate::error::Result;
use crate::tensor::Tensor;

/// What the batch norms of a forward pass go by.
pub enum Statistics {
    /// Their running statistics, as after training.
    Running,
    /// The batch's own, which are noted. Norms whose weight is frozen go by their running statistics all the same, and keep them.
    Batch(Noted),
}

/// Statistics of a batch, norm by norm in the order of the forward pass.
#[derive(Default)]
pub struct Noted(Vec<Option<Moments>>);

/// Mean and unbiased variance of a batch, and their share in the next running ones.
pub(super) struct Moments {
    values: [Tensor; 2],
    momentum: f64,
}

impl Statistics {
    /// The batch's own, none noted yet.
    pub fn batch() -> Self {
        Self::Batch(Noted::default())
    }

    /// What was noted: nothing where running statistics were used.
    pub fn into_noted(self) -> Noted {
        match self {
            Self::Running => Noted::default(),
            Self::Batch(noted) => noted,
        }
    }

    pub(super) fn note(&mut self, moments: Option<Moments>) {
        if let Self::Batch(noted) = self {
            noted.0.push(moments);
        }
    }
}

impl Noted {
    /// Those of norms that follow.
    pub(crate) fn append(&mut self, mut next: Self) {
        self.0.append(&mut next.0);
    }

    /// Moves the running statistics of the module whose forward pass noted these.
    ///
    /// # Panics
    /// If it is another module.
    pub fn apply(self, module: &mut dyn Module) {
        // Norms are visited in the order of their forward pass, and nothing but norms has buffers.
        let mut noted = self.0.into_iter();
        let (mut second, mut shares) = (None, Shares::default());
        module.visit_buffers("", &mut |name, running| match second.take() {
            None => {
                let moments = noted.next().unwrap_or_else(|| panic!("no statistics for {name}"));
                if let Some(Moments { values: [mean, var], momentum }) = moments {
                    shares.follow(running, &mean, momentum);
                    second = Some(Some((var, momentum)));
                } else {
                    second = Some(None);
                }
            }
            Some(Some((var, momentum))) => shares.follow(running, &var, momentum),
            Some(None) => {}
        });
        assert!(noted.next().is_none(), "statistics of another module");
    }
}

/// What running statistics are moved by.
#[derive(Default)]
struct Shares {
    /// The last share that a device was asked for, `[1]`, and its value.
    #[cfg(feature = "vulkan")]
    there: Option<(f64, Tensor)>,
}

impl Shares {
    /// Moves running statistics towards a batch's: on a device in place, so that the next step finds memory as this one did.
    fn follow(&mut self, running: &mut Tensor, of_batch: &Tensor, momentum: f64) {
        #[cfg(feature = "vulkan")]
        if let Some(gpu) = running.device().cloned() {
            if self.there.as_ref().is_none_or(|(value, _)| *value != momentum) {
                self.there = gpu.filled([1], momentum as f32).map(|share| (momentum, share));
            }
            if self.there.as_ref().is_some_and(|(_, share)| gpu.follow(running, of_batch, share)) {
                return;
            }
        }
        *running = &*running * (1.0 - momentum) + of_batch * momentum;
    }
}

/// Batch norm of the last dimension. Its running statistics are buffers: visited by [`Module::visit_buffers`], never trained.
#[derive(Clone)]
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

    /// x [.., channels].
    pub fn forward(&self, x: &Tensor, statistics: &mut Statistics) -> Tensor {
        if !self.goes_by_batch(statistics) {
            statistics.note(None);
            return x.batch_norm(&self.weight, &self.bias, &self.running_mean, &self.running_var, self.eps);
        }
        let (y, values) = x.batch_norm_train(&self.weight, &self.bias, self.eps);
        statistics.note(Some(Moments { values, momentum: self.momentum }));
        y
    }

    /// relu([`BatchNorm::forward`] + residual), where that goes by the batch's statistics.
    pub(super) fn forward_relu(&self, x: &Tensor, residual: Option<&Tensor>, statistics: &mut Statistics) -> Tensor {
        debug_assert!(self.goes_by_batch(statistics), "running statistics are folded");
        let (y, values) = x.batch_norm_relu_train(&self.weight, &self.bias, residual, self.eps);
        statistics.note(Some(Moments { values, momentum: self.momentum }));
        y
    }

    /// x [.., channels] by its own statistics, which move the running ones. Not inside [`crate::checkpoint`], which runs what it holds
    /// twice.
    pub fn forward_train(&mut self, x: &Tensor) -> Tensor {
        let mut statistics = Statistics::batch();
        let y = self.forward(x, &mut statistics);
        statistics.into_noted().apply(self);
        y
    }

    /// Whether a batch is normalised by its own statistics.
    pub(super) fn goes_by_batch(&self, statistics: &Statistics) -> bool {
        matches!(statistics, Statistics::Batch(_)) && self.weight.is_tracked()
    }

    /// s and t `[channels]` with y = x s + t by the running statistics.
    pub(super) fn scale_and_shift(&self, dtype: DType) -> [Tensor; 2] {
        let [weight, bias, mean, var] =
            [&self.weight, &self.bias, &self.running_mean, &self.running_var].map(|t| t.to_dtype(dtype));
        let scale = weight.mul(&var.affine(1.0, self.eps).rsqrt());
        let shift = bias.sub(&mean.mul(&scale));
        [scale, shift]
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
    use crate::optim::{Optimiser, OptimiserConfig};
    use crate::rng::Rng;

    fn norm() -> BatchNorm {
        BatchNorm::new(&Source::drawn(1, DType::F32).params(), "bn", 3, 1e-5).unwrap()
    }

    #[test]
    fn training_moves_running_statistics_that_no_optimiser_touches() {
        let mut norm = norm();
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
        let [own, running] =
            [Statistics::batch(), Statistics::Running].map(|mut s| norm.forward(&x, &mut s).to_f64_vec());
        assert!(own.iter().zip(&running).all(|(a, b)| (a - b).abs() < 0.03));
        assert!(norm.running_mean.to_f64_vec().iter().all(|mean| (mean - 2.0).abs() < 1.0));
    }

    #[test]
    fn a_frozen_norm_keeps_its_statistics_and_goes_by_them() {
        let mut norm = norm();
        let x = Tensor::randn([4, 3], DType::F32, &mut Rng::new(2, 0));
        let y = norm.forward_train(&x);
        assert_eq!(y.to_f64_vec(), norm.forward(&x, &mut Statistics::Running).to_f64_vec());
        assert_eq!(norm.running_mean.to_f64_vec(), [0.0; 3]);
    }
}
