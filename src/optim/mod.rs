//! Optimisers and learning-rate schedules.

mod in_backward;
mod norm;
mod schedule;
#[cfg(feature = "vulkan")]
mod there;

use std::collections::BTreeMap;

use kernels_cpu::optim as kernel;
use serde::{Deserialize, Serialize};

pub use norm::Norm;
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
    /// Parameters whose name contains one of these, in any case, do not decay. `norm` stands for every norm's weight, whatever its name
    /// (torchvision has `bn1.weight`): it is the one weight that is a vector.
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

impl OptimiserConfig {
    /// Whether weight decay leaves a parameter alone.
    fn exempts(&self, name: &str, p: &Tensor) -> bool {
        let lower = name.to_lowercase();
        let norm = p.rank() == 1 && name.ends_with("weight");
        self.decay_exempt.iter().any(|e| lower.contains(&e.to_lowercase()) || (e == "norm" && norm))
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
        let norm = Norm::of(&grads);
        self.step_of_norm(model, grads, &norm, lr)?;
        Ok(norm.value())
    }

    /// As [`Optimiser::step`] with a gradient whose norm is known, or will be: parameters on a device are changed without waiting for it, and not
    /// at all where it turns out not to be finite.
    ///
    /// # Errors
    /// As [`Optimiser::step`].
    pub fn step_of_norm(&mut self, model: &mut dyn Module, mut grads: Grads, norm: &Norm, lr: f64) -> Result<()> {
        let (mut without, mut held) = (Vec::new(), Vec::new());
        model.visit("", &mut |name, p| {
            if p.is_tracked() {
                if grads.get(p).is_none() {
                    without.push(name.to_owned());
                }
                if !p.buffer().is_unshared() {
                    held.push(name.to_owned());
                }
            }
        });
        missing(&without)?;
        shared(&held)?;
        self.steps += 1;
        let (step, state) = (Step::new(&self.config, self.steps, lr, norm), &mut self.state);
        model.visit("", &mut |name, p| {
            if let Some(gradient) = grads.take(p) {
                step.change(state, name, p, gradient);
            }
        });
        Ok(())
    }
}

/// Refuses parameters without a gradient.
fn missing(names: &[String]) -> Result<()> {
    if names.is_empty() {
        return Ok(());
    }
    Err(Error::new(format!("no gradient reached {}: freeze them or use them", names.join(", "))))
}

/// Refuses parameters whose bytes others hold.
fn shared(names: &[String]) -> Result<()> {
    if names.is_empty() {
        return Ok(());
    }
    Err(Error::new(format!(
        "{} cannot be changed in place: another tensor (a kept output, a clone) shares the bytes",
        names.join(", ")
    )))
}

/// One step, as it concerns every parameter.
struct Step<'a> {
    config: &'a OptimiserConfig,
    /// From 1.
    number: u64,
    lr: f64,
    norm: &'a Norm,
    #[cfg(feature = "vulkan")]
    there: there::Shared,
}

impl<'a> Step<'a> {
    fn new(config: &'a OptimiserConfig, number: u64, lr: f64, norm: &'a Norm) -> Self {
        Self {
            config,
            number,
            lr,
            norm,
            #[cfg(feature = "vulkan")]
            there: Default::default(),
        }
    }

    /// Moves a parameter, whose moments are zeros at first.
    fn change(&self, state: &mut BTreeMap<String, [Tensor; 2]>, name: &str, p: &mut Tensor, gradient: Tensor) {
        let moments = || [(); 2].map(|()| p.zeros_like().placed(p.device()));
        let state = state.entry(name.to_owned()).or_insert_with(moments);
        self.update(self.config.exempts(name, p), p, gradient, state);
    }

    fn decay(&self, exempt: bool) -> f64 {
        if exempt { 0.0 } else { self.config.weight_decay }
    }

    fn adam(&self, exempt: bool) -> kernel::Adam {
        let OptimiserConfig { rule, beta1, beta2, eps, .. } = *self.config;
        let (weight_decay, decoupled) = (self.decay(exempt), rule == Rule::Adamw);
        kernel::Adam { lr: self.lr, beta1, beta2, eps, weight_decay, decoupled, step: self.number }
    }

    /// The numbers of the rule's formula.
    #[cfg(feature = "vulkan")]
    fn constants(&self, exempt: bool) -> Vec<f64> {
        match self.config.rule {
            Rule::Sgd => vec![self.lr, self.config.beta1, self.decay(exempt)],
            Rule::Adam | Rule::Adamw => self.adam(exempt).constants().to_vec(),
        }
    }

    /// A gradient as it is applied: scaled where the whole of it is too long.
    fn clipped(&self, gradient: Tensor) -> Tensor {
        let (most, norm) = (self.config.clip_norm, self.norm.value());
        if most > 0.0 && norm > most { gradient.affine(most / norm, 0.0) } else { gradient.packed() }
    }

    fn update(&self, exempt: bool, p: &mut Tensor, gradient: Tensor, state: &mut [Tensor; 2]) {
        #[cfg(feature = "vulkan")]
        if self.update_there(exempt, p, &gradient, state) {
            return;
        }
        // What a device could not change goes with what it did.
        if self.norm.is_there() && !self.norm.value().is_finite() {
            return;
        }
        let (gradient, [m, v]) = (self.clipped(gradient), state);
        let written = for_float!("optimiser", p.dtype(), F => Tensor::update([p, m, v], |[p, m, v]: [&mut [F]; 3]| {
            let g = gradient.as_slice();
            match self.config.rule {
                Rule::Sgd => kernel::sgd(p, g, m, self.lr, self.config.beta1, self.decay(exempt)),
                Rule::Adam | Rule::Adamw => kernel::adam(p, g, m, v, self.adam(exempt)),
            }
        }));
        assert!(written, "parameters and moments are unshared (checked before the step)");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::DType;
    use crate::models::bert::BertConfig;
    use crate::models::resnet::{BlockKind, ResnetConfig};
    use crate::models::{DualEncoder, DualEncoderConfig, ImageProjectionKind};
    use crate::nn::{Activation, ProjectionKind};
    use crate::tape::backward_with;

    /// Parameters by name.
    struct Named(Vec<(&'static str, Tensor)>);

    impl Module for Named {
        fn visit(&mut self, _: &str, f: &mut dyn FnMut(&str, &mut Tensor)) {
            self.0.iter_mut().for_each(|(name, p)| f(name, p));
        }
    }

    /// One step of parameters (2, 2) with gradients that are multiples of (3, 4); what is left of each parameter.
    fn stepped(config: OptimiserConfig, gradients: &[(&'static str, f64)]) -> Vec<[f64; 2]> {
        let p = |&(name, _): &(&'static str, f64)| (name, Tensor::full([1, 2], 2.0, DType::F64).trainable());
        let mut model = Named(gradients.iter().map(p).collect());
        let slope = |x: f64| Tensor::from_slice(&[3.0 * x, 4.0 * x], [1, 2]);
        let outputs = model.0.iter().zip(gradients).map(|((_, p), (_, x))| (p.affine(1.0, 0.0), slope(*x))).collect();
        Optimiser::new(config).step(&mut model, backward_with(outputs), 0.1).unwrap();
        model.0.iter().map(|(_, p)| p.to_vec::<f64>().try_into().unwrap()).collect()
    }

    #[test]
    fn the_whole_gradient_is_clipped_to_the_norm_and_a_shorter_one_left() {
        let sgd = |clip_norm| OptimiserConfig { rule: Rule::Sgd, weight_decay: 0.0, clip_norm, ..Default::default() };
        // Norms 5 and 12 of 5: 13 together.
        let gradients = [("a", 1.0), ("b", 2.4)];
        for (clip_norm, share) in [(0.0, 1.0), (13.1, 1.0), (1.3, 0.1)] {
            let left = stepped(sgd(clip_norm), &gradients);
            for (p, (_, x)) in left.iter().zip(gradients) {
                for (p, slope) in p.iter().zip([3.0, 4.0]) {
                    assert!((p - (2.0 - 0.1 * share * slope * x)).abs() < 1e-12, "{clip_norm}: {left:?}");
                }
            }
        }
    }

    #[test]
    fn weights_decay_but_what_is_exempt_does_not() {
        let config = OptimiserConfig { weight_decay: 0.5, ..Default::default() };
        let names = ["fc.weight", "fc.bias", "layer_norm1.weight", "LayerNorm.weight", "logit_scale"];
        let left = stepped(config.clone(), &names.map(|name| (name, 0.0)));
        assert!((left[0][0] - 2.0 * 0.95).abs() < 1e-12, "{left:?}");
        assert!(left[1..].iter().all(|p| *p == [2.0; 2]), "{left:?}");
        let all = OptimiserConfig { decay_exempt: Vec::new(), ..config };
        assert!(stepped(all, &names.map(|name| (name, 0.0))).iter().all(|p| p[0] < 2.0));
    }

    #[test]
    fn every_norm_of_every_tower_is_exempt() {
        let bert = BertConfig {
            vocabulary: 9,
            max_length: 4,
            width: 8,
            depth: 1,
            heads: 2,
            mlp: 16,
            token_types: 2,
            pooler: false,
            eps: 1e-12,
            activation: Activation::Gelu,
            padding: 0,
        };
        let block = BlockKind::Basic;
        let resnet = ResnetConfig { block, depths: vec![1, 1], base: 4, ..ResnetConfig::default() };
        let of_checkpoints = DualEncoderConfig {
            vision: resnet.into(),
            text: bert.into(),
            visual_projection: ImageProjectionKind::Projector,
            text_projection: ProjectionKind::Head,
            ..DualEncoderConfig::default()
        };
        for config in [of_checkpoints, DualEncoderConfig::default()] {
            let mut model = DualEncoder::init(&config, 1, DType::F32).unwrap();
            let (mut decays, mut exempt) = (0, 0);
            model.visit("", &mut |name, p| {
                // A norm's weight is drawn as ones.
                let norm = name.ends_with("weight") && p.to_f64_vec().iter().all(|&x| x == 1.0);
                let expected = norm || name.ends_with("bias") || name == "logit_scale";
                assert_eq!(OptimiserConfig::default().exempts(name, p), expected, "{name}");
                *(if expected { &mut exempt } else { &mut decays }) += 1;
            });
            assert!(decays > 5 && exempt > 10, "{decays} {exempt}");
        }
    }
}
