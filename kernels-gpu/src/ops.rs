//! The kernels: what each computes, its sizes, and how it is laid out on the device. Outputs are written whole, and nothing beside them.
//! A view of no elements is nothing to do.

mod conv;
mod gemm;
mod index;
mod map;
mod rows;
mod step;
mod sums;
mod windows;

pub(crate) use conv::MATRICES as CONV_MATRICES;
pub use gemm::Gemm;
pub(crate) use gemm::Way;
pub use index::by_row;
pub use map::Function;
pub use rows::Softmax;

use crate::device::{Device, Kernel};
use crate::error::Result;
use crate::shaders::Shader;
use crate::view::Binding;

impl Device {
    /// Threads of a workgroup for kernels that take one element each.
    fn threads(&self) -> u32 {
        self.limits().threads.min(256)
    }

    /// A kernel of which each thread takes elements one by one.
    fn each(&self, shader: Shader, spec: &[u32], bindings: &[Binding], push: &[u32], n: usize) -> Result<()> {
        let threads = self.threads();
        let spec = [&[threads], spec].concat();
        let groups = [(n as u64).div_ceil(u64::from(threads)), 1, 1];
        self.dispatch(Kernel { shader, spec: &spec, bindings, push, groups, work: 8 * n as u64 })
    }

    /// A kernel of which each workgroup takes rows of `n` elements one by one.
    fn rows(
        &self,
        shader: Shader,
        spec: &[u32],
        bindings: &[Binding],
        push: &[u32],
        [rows, n]: [usize; 2],
    ) -> Result<()> {
        // A power of two: the sums of a workgroup are a tree.
        let most = 1 << self.threads().ilog2();
        let threads = (n.next_power_of_two() as u32).clamp(8, most);
        let spec = [&[threads], spec].concat();
        let work = 16 * (rows * n) as u64;
        self.dispatch(Kernel { shader, spec: &spec, bindings, push, groups: [rows as u64, 1, 1], work })
    }
}
