//! The optimiser's step taken during backward: each parameter moves as soon as its gradient is whole, which is then freed, so that the gradients of all
//! parameters are never there together (PyTorch has it as `_apply_optimizer_in_backward`).

use std::collections::BTreeMap;

use super::{Norm, Optimiser, Step, missing, norm, shared};
use crate::error::{Error, Result};
use crate::nn::Module;
use crate::tensor::Tensor;

/// A parameter that is away from its model.
struct Away {
    name: String,
    parameter: Tensor,
    stepped: bool,
}

impl Optimiser {
    /// As [`Optimiser::step`] with the gradient of `loss`, to the same bits in less memory. Nothing clips the gradient, as its norm is known last.
    ///
    /// # Errors
    /// As there, but that other parameters have moved; or if the configuration clips, or a parameter is on a device: nothing is changed then.
    pub fn step_in_backward(&mut self, model: &mut dyn Module, loss: Tensor, lr: f64) -> Result<f64> {
        let mut there = false;
        model.visit("", &mut |_, p| there |= p.device().is_some());
        if there {
            return Err(Error::new("a step during backward is the CPU's: on a device, step after it"));
        }
        if self.config.clip_norm > 0.0 {
            return Err(Error::new(
                "a step during backward knows the gradient's norm too late to clip by it: set clip_norm = 0",
            ));
        }
        // A parameter changes where nothing else holds it: not the model either.
        let mut away = BTreeMap::new();
        model.visit("", &mut |name, p| {
            if let Some(leaf) = p.leaf() {
                let parameter = std::mem::replace(p, Tensor::zeros([0], p.dtype()));
                away.insert(leaf, Away { name: name.to_owned(), parameter, stepped: false });
            }
        });
        self.steps += 1;
        // By which nothing is clipped.
        let unknown = Norm::Here(0.0);
        let (step, state) = (Step::new(&self.config, self.steps, lr, &unknown), &mut self.state);
        let (mut squares, mut held) = (0.0, Vec::new());
        loss.backward_into(&mut |leaf, gradient| {
            squares += norm::squares(&gradient);
            if let Some(Away { name, parameter, stepped }) = away.get_mut(&leaf) {
                if parameter.buffer().is_unshared() {
                    step.change(state, name, parameter, gradient);
                } else {
                    held.push(name.clone());
                }
                *stepped = true;
            }
        });
        let left: Vec<String> = away.values().filter(|p| !p.stepped).map(|p| p.name.clone()).collect();
        let mut back: BTreeMap<String, Tensor> = away.into_values().map(|p| (p.name, p.parameter)).collect();
        model.visit("", &mut |name, p| {
            if let Some(parameter) = back.remove(name) {
                *p = parameter;
            }
        });
        missing(&left)?;
        shared(&held)?;
        Ok(f64::sqrt(squares))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::DType;
    use crate::optim::OptimiserConfig;
    use crate::rng::Rng;
    use crate::tape::checkpoint;

    /// Two matrices, of which the first is used twice, once in a part that is computed again.
    struct Tied([Tensor; 2]);

    impl Tied {
        fn new() -> Self {
            let mut rng = Rng::new(4, 0);
            Self([(); 2].map(|()| Tensor::randn([5, 5], DType::F64, &mut rng).trainable()))
        }

        fn loss(&self, x: &Tensor) -> Tensor {
            let [a, b] = self.0.clone();
            let y = x.matmul(&self.0[0]).tanh().matmul(&self.0[1]).tanh();
            checkpoint(&[&y], move |y| y[0].matmul(&a).tanh().mul(&y[0].matmul(&b))).square().sum_all()
        }
    }

    impl Module for Tied {
        fn visit(&mut self, _: &str, f: &mut dyn FnMut(&str, &mut Tensor)) {
            self.0.iter_mut().zip(["a", "b"]).for_each(|(p, name)| f(name, p));
        }
    }

    fn unclipped() -> Optimiser {
        Optimiser::new(OptimiserConfig { clip_norm: 0.0, ..OptimiserConfig::default() })
    }

    #[test]
    fn parameters_move_as_in_a_step_after_backward() {
        let x = Tensor::randn([3, 5], DType::F64, &mut Rng::new(5, 0));
        let (mut during, mut after) = (Tied::new(), Tied::new());
        let (mut of_during, mut of_after) = (unclipped(), unclipped());
        for _ in 0..3 {
            let loss = during.loss(&x);
            let norm = of_during.step_in_backward(&mut during, loss, 0.1).unwrap();
            let grads = after.loss(&x).backward();
            let expected = of_after.step(&mut after, grads, 0.1).unwrap();
            assert!((norm - expected).abs() <= 1e-12 * expected);
            let [got, wanted] = [&during, &after].map(|model| model.0.each_ref().map(Tensor::to_vec::<f64>));
            assert_eq!(got, wanted);
        }
        assert_ne!(during.0[0].to_vec::<f64>(), Tied::new().0[0].to_vec::<f64>());
    }

    #[test]
    fn what_cannot_be_stepped_is_named_and_the_model_is_whole() {
        let x = Tensor::full([1, 5], 1.0, DType::F64);
        let (mut model, mut optimiser) = (Tied::new(), unclipped());
        let said = |outcome: Result<f64>| outcome.unwrap_err().to_string();
        let loss = x.matmul(&model.0[0]).sum_all();
        assert!(said(optimiser.step_in_backward(&mut model, loss, 0.1)).contains("no gradient reached b"));
        let (loss, kept) = (model.loss(&x), model.0[1].clone());
        assert!(said(optimiser.step_in_backward(&mut model, loss, 0.1)).contains("b cannot be changed in place"));
        drop(kept);
        let (loss, before) = (model.loss(&x), model.0[0].to_vec::<f64>());
        let mut clipping = Optimiser::new(OptimiserConfig::default());
        assert!(said(clipping.step_in_backward(&mut model, loss, 0.1)).contains("clip_norm"));
        assert_eq!(model.0[0].to_vec::<f64>(), before);
        let loss = model.loss(&x);
        optimiser.step_in_backward(&mut model, loss, 0.1).unwrap();
    }
}
