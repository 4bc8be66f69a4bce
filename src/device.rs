//! Devices beside the CPU. Where a tensor lives is where its bytes were last needed; an op one of whose inputs lives on a device runs
//! there, and its result lives there too, so nothing but the parameters has to be moved. An op without a GPU arm runs on the CPU, is
//! counted, and its result is moved back.

#[cfg(feature = "vulkan")]
mod gpu;
#[cfg(not(feature = "vulkan"))]
mod none;
#[cfg(all(test, feature = "vulkan"))]
mod tests;

#[cfg(feature = "vulkan")]
pub use gpu::{Gpu, caught, found};
#[cfg(feature = "vulkan")]
pub(crate) use gpu::{Mirrored, Operand, bring, indices};
#[cfg(not(feature = "vulkan"))]
pub use none::{Gpu, caught, found};
#[cfg(not(feature = "vulkan"))]
pub(crate) use none::{Mirrored, bring};

use std::time::{Duration, Instant};

use crate::dtype::DType;
use crate::for_dtype;
use crate::op::{Meta, Op, Output, Saved};
use crate::tensor::Tensor;

/// Runs an op where its inputs live.
pub(crate) fn run(op: &dyn Op, x: &[&Tensor], out: Meta) -> Output {
    let Some(gpu) = x.iter().find_map(|x| x.device()) else { return op.cpu(x, out) };
    if let Some(output) = op.gpu(gpu, x, out) {
        return output;
    }
    let Output { value, aux } = op.cpu(x, out);
    // What is still there was not computed: a view, or a copy or cast that was made there.
    let value = if value.device().is_some() { value } else { gpu.fallen_back(op.name().to_owned(), value) };
    Output { value, aux }
}

/// The derivative of an op, where its result's gradient lives.
pub(crate) fn vjp(op: &dyn Op, saved: &Saved, dy: &Tensor) -> Vec<Option<Tensor>> {
    let Some(gpu) = dy.device() else { return op.vjp(saved, dy) };
    if let Some(gradients) = op.gpu_vjp(gpu, saved, dy) {
        return gradients;
    }
    let place = |g: Tensor| match g.device() {
        Some(_) => g,
        None => gpu.fallen_back(format!("{} backward", op.name()), g),
    };
    op.vjp(saved, dy).into_iter().map(|g| g.map(place)).collect()
}

impl Tensor {
    /// The device that the tensor lives on; `None`: the CPU.
    pub fn device(&self) -> Option<&Gpu> {
        self.buffer().device()
    }

    /// The same values on a device, without a graph node. Half types stay what they are, and are widened where they are read; types
    /// that no kernel knows (masks, ids) stay where they are.
    pub fn to_device(&self, gpu: &Gpu) -> Tensor {
        match self.dtype() {
            DType::F32 | DType::BF16 | DType::F16 if self.device().is_none() => gpu.take(self),
            _ => self.detach(),
        }
    }

    /// The same values on the CPU alone, without a graph node.
    pub fn to_cpu(&self) -> Tensor {
        match self.device() {
            Some(_) => for_dtype!(self.dtype(), T => Tensor::from_slice(&self.to_vec::<T>(), *self.dims())),
            None => self.detach(),
        }
    }

    /// As [`Tensor::to_device`], where there is a device.
    pub fn placed(&self, gpu: Option<&Gpu>) -> Tensor {
        gpu.map_or_else(|| self.detach(), |gpu| self.to_device(gpu))
    }
}

/// What a device was asked so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Activity {
    /// Kernels.
    pub kernels: u64,
    /// Submissions, short sequences of kernels.
    pub submitted: u64,
    /// Those that were known from before, and not recorded anew.
    pub replayed: u64,
    /// How long it had work, up to what was last waited for; where it tells.
    pub busy: Option<Duration>,
}

/// A device from a moment on when it had nothing to do.
pub struct Watch<'a> {
    gpu: &'a Gpu,
    start: Instant,
    before: Activity,
}

impl<'a> Watch<'a> {
    /// From now on.
    pub fn new(gpu: &'a Gpu) -> Self {
        gpu.wait();
        Self { gpu, start: Instant::now(), before: gpu.activity() }
    }

    /// What it was asked since, and the share of the time in which it had nothing to do.
    pub fn activity(&self) -> (Activity, Option<f64>) {
        self.gpu.wait();
        let (now, before, passed) = (self.gpu.activity(), self.before, self.start.elapsed().as_secs_f64());
        let activity = Activity {
            kernels: now.kernels - before.kernels,
            submitted: now.submitted - before.submitted,
            replayed: now.replayed - before.replayed,
            busy: now.busy.zip(before.busy).map(|(now, before)| now.saturating_sub(before)),
        };
        // Clocks differ a little.
        (activity, activity.busy.map(|busy| (1.0 - busy.as_secs_f64() / passed).max(0.0)))
    }
}
