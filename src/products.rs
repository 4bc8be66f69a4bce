//! Mixed precision (Micikevicius et al. 2018): in what the products of layers are multiplied.

use std::cell::Cell;

use serde::{Deserialize, Serialize};

use crate::dtype::DType;
use crate::scoped;
use crate::tensor::Tensor;

thread_local! {
    static CURRENT: Cell<Products> = const { Cell::new(Products::F32) };
}

/// What layers multiply. All else is f32: parameters, sums, norms, softmax, the stream between blocks, losses, optimiser steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Products {
    /// The numbers as they are.
    #[default]
    F32,
    /// Numbers rounded to the nearest bf16, ties to even, in both directions.
    Bf16,
}

impl Products {
    /// Runs `f`, in which layers on this thread multiply so. Backward of what they compute does too, wherever it runs.
    pub fn within<R>(self, f: impl FnOnce() -> R) -> R {
        scoped::with(&CURRENT, self, f)
    }

    /// What layers on this thread multiply.
    pub fn current() -> Self {
        CURRENT.get()
    }

    /// Its short name, as in a configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }
}

impl Tensor {
    /// This tensor as the layers on this thread multiply it: of f32, rounded to bf16 where [`Products`] say so. An op takes such an input, beside
    /// a weight in f32, for a product in bf16, and gives its gradient in f32.
    pub fn operand(&self) -> Tensor {
        let rounded = Products::current() == Products::Bf16 && self.dtype() == DType::F32;
        if rounded { self.to_dtype(DType::BF16) } else { self.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_are_of_bf16_inside_alone() {
        let x = Tensor::full([3], 1.0 + 1.0 / 512.0, DType::F32).trainable();
        let caught = std::panic::catch_unwind(|| Products::Bf16.within(|| panic!("in the middle")));
        assert!(caught.is_err() && Products::current() == Products::F32 && x.operand().dtype() == DType::F32);
        Products::Bf16.within(|| {
            let y = x.operand();
            assert_eq!((y.dtype(), y.to_f64_vec()), (DType::BF16, vec![1.0; 3]));
            Products::F32.within(|| assert_eq!(x.operand().dtype(), DType::F32));
            // Once is enough, and other types stay.
            assert_eq!(y.operand().buffer().id(), y.buffer().id());
            assert_eq!(x.to_dtype(DType::F64).operand().dtype(), DType::F64);
            // The gradient passes in f32.
            let grads = y.to_dtype(DType::F32).affine(3.0, 0.0).sum_all().backward();
            assert_eq!(grads.get(&x).unwrap().to_vec::<f32>(), [3.0; 3]);
        });
    }
}
