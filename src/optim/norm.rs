//! The norm of a whole gradient, where the gradient lives.

use kernels_cpu::reduce;

use crate::device;
use crate::for_float;
use crate::tape::Grads;
use crate::tensor::Tensor;

/// The Euclidean norm of a whole gradient; not finite where one of its numbers is not.
#[derive(Clone)]
pub enum Norm {
    /// As a number.
    Here(f64),
    /// Asked of a device, and not waited for: the sum of the squares, `[1]`.
    There(Tensor),
}

impl Norm {
    /// Of all gradients together.
    pub fn of(grads: &Grads) -> Self {
        #[cfg(feature = "vulkan")]
        if let Some(squares) = squares_there(grads) {
            return Self::There(squares);
        }
        Self::Here(grads.values().map(squares).sum::<f64>().sqrt())
    }

    /// As [`Self::of`]; where it lives on a device, and so does the loss, not finite where the loss is not.
    pub fn beside(grads: &Grads, loss: Option<&Tensor>) -> Self {
        match (Self::of(grads), loss.filter(|loss| loss.device().is_some())) {
            (Self::There(squares), Some(loss)) => Self::There(squares + loss.detach().affine(0.0, 0.0)),
            (norm, _) => norm,
        }
    }

    /// Whether asking for the value waits for a device.
    pub fn is_there(&self) -> bool {
        matches!(self, Self::There(_))
    }

    /// As a number, which is waited for.
    pub fn value(&self) -> f64 {
        match self {
            Self::Here(norm) => *norm,
            Self::There(squares) => squares.item().sqrt(),
        }
    }

    /// As [`Self::value`], with the values of other tensors waited for at once.
    pub fn value_beside(&self, others: &[&Tensor]) -> f64 {
        let own = if let Self::There(squares) = self { Some(squares) } else { None };
        device::bring(&own.into_iter().chain(others.iter().copied()).collect::<Vec<_>>());
        self.value()
    }
}

/// The sum of a gradient's squares.
pub(super) fn squares(gradient: &Tensor) -> f64 {
    for_float!("norm", gradient.dtype(), F => reduce::sum_squares(gradient.packed().as_slice::<F>()))
}

/// The sum of the squares of gradients that all live on a device.
#[cfg(feature = "vulkan")]
fn squares_there(grads: &Grads) -> Option<Tensor> {
    let all: Vec<&Tensor> = grads.values().collect();
    let gpu = all.first()?.device()?;
    if all.iter().all(|g| g.device().is_some()) { gpu.sum_of_squares(&all) } else { None }
}
