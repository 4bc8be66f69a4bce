//! Optimisers and learning-rate schedules.

mod schedule;

use std::collections::BTreeMap;

use kernels_cpu::{optim as kernel, reduce};
use serde::{Deserialize, Serialize};

pub use schedule::{Schedule, Shape};

use crate::error::{Error, Result};
use crate::for_float;
use crate::nn::Module;
use crate::tape::Grads;
use crate::tensor::Tensor;

/// Which rule, and its constants.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OptimiserConfig {
    /// `adam`, `adamw` or `sgd`.
    pub rule: Rule,
    /// Decay of Adam's first moment; momentum of SGD.
    pub beta1: f64,
    /// Decay of Adam's second moment.
    pub beta2: f64,
    /// Added to the root of Adam's second moment.
    pub eps: f64,
    /// Weight decay.
    pub weight_decay: f64,
    /// Parameters whose name contains one of these do not decay.
    pub decay_exempt: Vec<String>,
    /// Largest norm of the whole gradient; 0: no clipping.
    pub clip_norm: f64,
}

impl Default for OptimiserConfig {
    fn default() -> Self {
        let decay_exempt = ["bias", "norm", "logit_scale"].map(String::from).to_vec();
        Self {
            rule: Rule::Adamw,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.01,
            decay_exempt,
            clip_norm: 1.0,
        }
    }
}

/// The rule of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rule {
    /// Weight decay through the gradient.
    Adam,
    /// Weight decay on the parameter itself.
    Adamw,
    /// With momentum.
    Sgd,
}

/// An optimiser with its state: two tensors per parameter, by name.
pub struct Optimiser {
    /// Rule and constants.
    pub config: OptimiserConfig,
    /// Steps taken.
    pub steps: u64,
    /// First and second moment (or momentum and nothing) of each parameter.
    pub state: BTreeMap<String, [Tensor; 2]>,
}

impl Optimiser {
    /// With empty moments.
    pub fn new(config: OptimiserConfig) -> Self {
        Self { config, steps: 0, state: BTreeMap::new() }
    }

    /// One step of every trainable parameter with learning rate `lr`. Returns the norm of the gradient before clipping.
    ///
    /// # Errors
    /// If a trainable parameter has no gradient, or other tensors share its bytes; nothing is changed then.
    pub fn step(&mut self, model: &mut dyn Module, grads: Grads, lr: f64) -> Result<f64> {
        let norm = norm(&grads);
        self.step_of_norm(model, grads, norm, lr)?;
        Ok(norm)
    }

    /// As [`Optimiser::step`] with a gradient whose [`norm`] is known.
    ///
    /// # Errors
    /// As [`Optimiser::step`].
    pub fn step_of_norm(&mut self, model: &mut dyn Module, mut grads: Grads, norm: f64, lr: f64) -> Result<()> {
        let (mut missing, mut shared) = (Vec::new(), Vec::new());
        model.visit("", &mut |name, p| {
            if p.is_tracked() {
                if grads.get(p).is_none() {
                    missing.push(name.to_owned());
                }
                if !p.buffer().is_unshared() {
                    shared.push(name.to_owned());
                }
            }
        });
        if !missing.is_empty() {
            return Err(Error::new(format!("no gradient reached {}: freeze them or use them", missing.join(", "))));
        }
        if !shared.is_empty() {
            return Err(Error::new(format!(
                "{} cannot be changed in place: another tensor (a kept output, a clone) shares the bytes",
                shared.join(", ")
            )));
        }
        if self.config.clip_norm > 0.0 && norm > self.config.clip_norm {
            let scale = self.config.clip_norm / norm;
            grads.values_mut().for_each(|g| *g = g.affine(scale, 0.0));
        }
        self.steps += 1;
        model.visit("", &mut |name, p| {
            if let Some(gradient) = grads.take(p) {
                let state = self.state.entry(name.to_owned()).or_insert_with(|| [p.zeros_like(), p.zeros_like()]);
                let exempt = self.config.decay_exempt.iter().any(|e| name.contains(e.as_str()));
                update(
                    &self.config,
                    self.steps,
                    lr,
                    if exempt { 0.0 } else { self.config.weight_decay },
                    p,
                    &gradient.packed(),
                    state,
                );
            }
        });
        Ok(())
    }
}

/// The Euclidean norm of a whole gradient; not finite where one of its numbers is not.
pub fn norm(grads: &Grads) -> f64 {
    let squares = |g: &Tensor| for_float!("norm", g.dtype(), F => reduce::sum_squares(g.packed().as_slice::<F>()));
    grads.values().map(squares).sum::<f64>().sqrt()
}

fn update(
    c: &OptimiserConfig,
    step: u64,
    lr: f64,
    weight_decay: f64,
    p: &mut Tensor,
    gradient: &Tensor,
    [m, v]: &mut [Tensor; 2],
) {
    let written = for_float!("optimiser", p.dtype(), F => Tensor::update([p, m, v], |[p, m, v]: [&mut [F]; 3]| {
        let g = gradient.as_slice();
        match c.rule {
            Rule::Sgd => kernel::sgd(p, g, m, lr, c.beta1, weight_decay),
            Rule::Adam | Rule::Adamw => {
                let decoupled = c.rule == Rule::Adamw;
                let adam = kernel::Adam { lr, beta1: c.beta1, beta2: c.beta2, eps: c.eps, weight_decay, decoupled, step };
                kernel::adam(p, g, m, v, adam);
            }
        }
    }));
    assert!(written, "parameters and moments are unshared (checked before the step)");
}
