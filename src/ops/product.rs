//! Ops that a plan prepares as products with a constant matrix, packed as the kernels read it.

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

/// y = act(x W + bias), whose weight is packed.
pub(super) struct Product {
    /// Lays the input out for the product.
    arrange: fn(&Tensor) -> Tensor,
    multiply: Box<Multiply>,
    bias: Option<Tensor>,
    act: Option<Unary>,
}

impl Product {
    /// Of an op on x, a weight and perhaps a bias, if x alone changes, which is f32; packed, the weight takes so many bytes. `pack` may see no
    /// gain in it.
    pub(super) fn prepare(
        x: &[Meta],
        constants: &[Option<&Tensor>],
        act: Option<Unary>,
        arrange: fn(&Tensor) -> Tensor,
        bytes: usize,
        pack: impl FnOnce(&Tensor) -> Option<Box<Multiply>>,
    ) -> Option<Box<dyn Prepared>> {
        if x[0].dtype != DType::F32 || constants[0].is_some() {
            return None;
        }
        let weight = constants[1]?;
        let bias = match constants.get(2) {
            Some(bias) => Some(widened((*bias)?).packed()),
            None => None,
        };
        let multiply = if count_beside(bytes) {
            // Nothing will be multiplied.
            Box::new(|_: &Tensor, _: Finish<'_, f32>, _: &mut [f32]| ())
        } else {
            pack(weight)?
        };
        Some(Box::new(Self { arrange, multiply, bias, act }))
    }
}

impl Prepared for Product {
    fn joins(&self) -> bool {
        self.act.is_none()
    }

    fn run(&self, x: &[&Tensor], joined: Joined<'_>, out: Meta) -> Tensor {
        let (x, residual) = ((self.arrange)(x[0]), joined.residual.map(Tensor::packed));
        Tensor::write(out.dims, |y: &mut [f32]| {
            let finish = Finish {
                bias: self.bias.as_ref().map(|b| b.as_slice()),
                residual: residual.as_ref().map(|r| r.as_slice()),
                act: joined.act.or(self.act),
            };
            (self.multiply)(&x, finish, y);
        })
    }
}
