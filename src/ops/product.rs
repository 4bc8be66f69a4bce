//! Ops that a plan prepares as products with a constant matrix, packed as the kernels read it.

use half::bf16;
use kernels_cpu::gemm::Finish;
use kernels_cpu::map::Unary;

use super::matmul::widened;
use crate::buffer::count_beside;
use crate::dtype::DType;
use crate::op::Meta;
use crate::plan::{Joined, Prepared};
use crate::tensor::Tensor;

/// Writes the product of an input with a packed weight, finished.
pub(super) type Multiply = dyn Fn(&Tensor, Finish<'_, f32>, &mut [f32]) + Send + Sync;

/// As [`Multiply`], rounded to bf16, beside a residual that is.
pub(super) type MultiplyRounded = dyn Fn(&Tensor, Finish<'_, f32, bf16>, &mut [bf16]) + Send + Sync;

/// What multiplies by a weight that was packed.
pub(super) struct Multiplies {
    pub multiply: Box<Multiply>,
    /// Where that can be.
    pub rounded: Option<Box<MultiplyRounded>>,
}

impl Multiplies {
    /// In f32 alone.
    pub fn new(multiply: impl Fn(&Tensor, Finish<'_, f32>, &mut [f32]) + Send + Sync + 'static) -> Self {
        Self { multiply: Box::new(multiply), rounded: None }
    }
}

/// y = act(x W + bias), whose weight is packed.
pub(super) struct Product {
    /// Lays the input out for the product.
    arrange: fn(&Tensor) -> Tensor,
    by: Multiplies,
    bias: Option<Tensor>,
    act: Option<Unary>,
}

impl Product {
    /// Of an op on x, a weight and perhaps a bias, if x alone changes; packed, the weight takes so many bytes, and its product may be rounded or
    /// not. `pack` may see no gain in it.
    pub(super) fn prepare(
        constants: &[Option<&Tensor>],
        act: Option<Unary>,
        arrange: fn(&Tensor) -> Tensor,
        (bytes, rounds): (usize, bool),
        pack: impl FnOnce(&Tensor) -> Option<Multiplies>,
    ) -> Option<Box<dyn Prepared>> {
        if constants[0].is_some() {
            return None;
        }
        let weight = constants[1]?;
        let bias = match constants.get(2) {
            Some(bias) => Some(widened((*bias)?).packed()),
            None => None,
        };
        let by = if count_beside(bytes) {
            // Nothing will be multiplied.
            let rounded = rounds.then(|| Box::new(|_: &Tensor, _: Finish<'_, f32, bf16>, _: &mut [bf16]| ()) as _);
            Multiplies { rounded, ..Multiplies::new(|_, _, _| ()) }
        } else {
            pack(weight)?
        };
        Some(Box::new(Self { arrange, by, bias, act }))
    }
}

impl Prepared for Product {
    fn joins(&self) -> bool {
        self.act.is_none()
    }

    fn rounds(&self) -> bool {
        self.by.rounded.is_some()
    }

    fn run(&self, x: &[&Tensor], joined: Joined<'_>, out: Meta) -> Tensor {
        let (x, act) = ((self.arrange)(x[0]), joined.act.or(self.act));
        let bias = || self.bias.as_ref().map(|b| b.as_slice());
        if let (DType::BF16, Some(multiply)) = (out.dtype, &self.by.rounded) {
            let residual = joined.residual.map(|r| r.converted(DType::BF16).packed());
            return Tensor::write(out.dims, |y| {
                let residual = residual.as_ref().map(|r| r.as_slice());
                multiply(&x, Finish { bias: bias(), residual, act }, y);
            });
        }
        let residual = joined.residual.map(|r| widened(r).packed());
        Tensor::write(out.dims, |y| {
            let residual = residual.as_ref().map(|r| r.as_slice());
            (self.by.multiply)(&x, Finish { bias: bias(), residual, act }, y);
        })
    }
}
