//! The exponential moving average of a model's parameters.

use std::collections::BTreeMap;

use crate::nn::Module;
use crate::tensor::Tensor;

/// Averages of the trainable parameters, by name. Buffers have none: with the average go the latest, as in PyTorch's `AveragedModel`,
/// since batch norm's running statistics are averages already.
pub(super) struct Average(pub BTreeMap<String, Tensor>);

impl Average {
    /// Begins at the parameters as they are.
    pub fn new(model: &mut dyn Module) -> Self {
        let mut average = BTreeMap::new();
        model.visit("", &mut |name, p| {
            if p.is_tracked() {
                average.insert(name.to_owned(), p.copied());
            }
        });
        Self(average)
    }

    /// Moves towards the parameters after that many optimiser steps: 1 - `decay` of the way, further at first, so that the drawn start is
    /// forgotten.
    pub fn follow(&mut self, model: &mut dyn Module, decay: f64, steps: u64) {
        let decay = decay.min((1.0 + steps as f64) / (10.0 + steps as f64)) as f32;
        let share = 1.0 - decay;
        // It changes from step to step, so a device has it in memory.
        #[cfg(feature = "vulkan")]
        let there = std::cell::OnceCell::new();
        model.visit("", &mut |name, p| {
            if let Some(average) = self.0.get_mut(name) {
                #[cfg(feature = "vulkan")]
                if let Some(gpu) = p.device()
                    && gpu.follow(average, p, there.get_or_init(|| Tensor::from_slice(&[share], [1]).to_device(gpu)))
                {
                    return;
                }
                let moved = Tensor::update([average], |[average]: [&mut [f32]; 1]| {
                    average.iter_mut().zip(p.as_slice::<f32>()).for_each(|(a, &p)| *a += share * (p - *a));
                });
                assert!(moved, "an average is shared with nobody");
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct One(Tensor);

    impl Module for One {
        fn visit(&mut self, _: &str, f: &mut dyn FnMut(&str, &mut Tensor)) {
            f("p", &mut self.0);
        }
    }

    #[test]
    fn an_average_follows_with_its_decay_and_faster_at_first() {
        let at = |x: f32| One(Tensor::from_slice(&[x], [1]).trainable());
        let mut average = Average::new(&mut at(1.0));
        let mut expected = 1.0f64;
        for step in 1..=200u32 {
            // (1 + steps) / (10 + steps) until it reaches 0.9.
            let decay = f64::min(0.9, f64::from(1 + step) / f64::from(10 + step));
            let p = f64::from(step % 7);
            expected = decay * expected + (1.0 - decay) * p;
            average.follow(&mut at(p as f32), 0.9, step.into());
            assert!(
                (average.0["p"].item() - expected).abs() < 1e-5,
                "step {step}: {} {expected}",
                average.0["p"].item()
            );
        }
        // What does not train is not averaged.
        assert!(Average::new(&mut One(Tensor::from_slice(&[1f32], [1]))).0.is_empty());
    }
}
