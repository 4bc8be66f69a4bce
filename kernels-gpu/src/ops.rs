//! The kernels: what each computes, its sizes, and how it is laid out on the device. Outputs are written whole, and nothing beside them.
//! A view of no elements is nothing to do.

mod attention;
mod conv;
mod gemm;
mod index;
mod map;
mod rows;
mod step;
mod sums;
mod windows;

pub use attention::Attention;
pub(crate) use attention::BLOCKS;
pub(crate) use conv::{MATRICES as CONV_MATRICES, Of};
pub use gemm::Gemm;
pub(crate) use gemm::{MATRICES, Way};
pub use index::by_row;
pub use map::Function;
pub use rows::Softmax;
pub use step::Clip;

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

    /// As [`Self::each`], for kernels that take elements, or fours of them where `by` is 4, `per` at a time.
    fn places(
        &self,
        shader: Shader,
        [by, per]: [u32; 2],
        spec: &[u32],
        bindings: &[Binding],
        push: &[u32],
        n: usize,
    ) -> Result<()> {
        let threads = self.threads();
        let spec = [&[threads, u32::from(by == 4), per], spec].concat();
        let groups = [(n as u64).div_ceil(u64::from(threads * by * per)), 1, 1];
        self.dispatch(Kernel { shader, spec: &spec, bindings, push, groups, work: 8 * n as u64 })
    }

    /// A kernel of which each workgroup takes rows of `n` elements one by one, in fours where `by` is 4; `spec` follows what rows have.
    fn rows(
        &self,
        shader: Shader,
        by: u32,
        spec: &[u32],
        bindings: &[Binding],
        push: &[u32],
        [rows, n]: [usize; 2],
    ) -> Result<()> {
        // A power of two, as the sums of a workgroup are a tree; up to four fours to a thread before there are more threads. Rows that do not
        // fit into eight, or four element by element, are read more than once.
        let most = 1 << self.threads().ilog2();
        let fours = n.div_ceil(4);
        let threads = fours.div_ceil(4).next_power_of_two().clamp(32, most);
        let (per, kept) = match fours.div_ceil(threads) {
            per if per <= 4 || per <= 8 && by == 4 => (per, 1),
            _ => (4, 0),
        };
        let spec = [&[threads as u32, u32::from(by == 4), per as u32, kept], spec].concat();
        let work = 16 * (rows * n) as u64;
        self.dispatch(Kernel { shader, spec: &spec, bindings, push, groups: [rows as u64, 1, 1], work })
    }
}
