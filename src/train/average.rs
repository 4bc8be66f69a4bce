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
        model.visit("", &mut |name, p| {
            if let Some(average) = self.0.get_mut(name) {
                let moved = Tensor::update([average], |[average]: [&mut [f32]; 1]| {
                    average.iter_mut().zip(p.as_slice::<f32>()).for_each(|(a, &p)| *a += (1.0 - decay) * (p - *a));
                });
                assert!(moved, "an average is shared with nobody");
            }
        });
    }
}
