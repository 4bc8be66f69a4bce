//! Steps on a device. What changes from step to step lies in its memory, so that it is told the same in each.

use std::cell::OnceCell;

use kernels_gpu::ops::Clip;
use kernels_gpu::{Memory, View};

use super::{Norm, Rule, Step};
use crate::device::{Gpu, Operand};
use crate::dtype::DType;
use crate::tensor::Tensor;

/// The most constants that a rule has.
const CONSTANTS: usize = 8;

/// What every parameter's step reads, made for the first of them.
#[derive(Default)]
pub(super) struct Shared(OnceCell<Option<Numbers>>);

struct Numbers {
    /// Those of parameters that decay, then those of others.
    constants: Memory,
    /// The sum of the squares of the whole gradient, `[1]`.
    squares: Operand,
}

impl Numbers {
    fn new(gpu: &Gpu, step: &Step<'_>) -> Option<Self> {
        let of = |exempt: bool| {
            let mut words = [0; CONSTANTS];
            words.iter_mut().zip(step.constants(exempt)).for_each(|(word, c)| *word = (c as f32).to_bits());
            words
        };
        let squares = match step.norm {
            Norm::There(squares) => gpu.operand(squares)?,
            Norm::Here(norm) => gpu.operand(&Tensor::full([1], norm * norm, DType::F32))?,
        };
        Some(Self { constants: gpu.words(&[of(false), of(true)].concat()), squares })
    }
}

impl Step<'_> {
    /// Changes a parameter that lives on a device and its moments there; tells whether, or nothing is changed. A step of a gradient whose norm
    /// is not finite does nothing there.
    pub(super) fn update_there(
        &self,
        exempt: bool,
        p: &mut Tensor,
        gradient: &Tensor,
        [m, v]: &mut [Tensor; 2],
    ) -> bool {
        let Some(gpu) = p.device().cloned() else { return false };
        let numbers = self.there.0.get_or_init(|| Numbers::new(&gpu, self)).as_ref();
        let (Some(Numbers { constants, squares }), Some(g)) = (numbers, gpu.packed(gradient)) else { return false };
        let rule = self.config.rule;
        let dims = [if rule == Rule::Sgd { 3 } else { CONSTANTS }];
        let constants = View::new(constants, if exempt { CONSTANTS } else { 0 }, &dims, &[1]);
        let clip = Clip { squares: squares.view(), most: self.config.clip_norm as f32 };
        gpu.update([p, m, v], |[p, m, v]| match rule {
            Rule::Sgd => gpu.kernels().sgd(g.view(), [p, m], constants, clip),
            Rule::Adam | Rule::Adamw => gpu.kernels().adam(g.view(), [p, m, v], constants, clip),
        })
    }
}
