//! Attention by cooperative matrices against attention in f32, of the same operands in half.

use kernels_cpu::rng::Rng;

use super::{Trial, downloaded, narrowed};
use crate::device::Device;
use crate::error::Result;
use crate::memory::Memory;
use crate::ops::{Attention, By};
use crate::view::{Stored, View};

/// Values are whole numbers up to this.
const LARGEST: u64 = 32;

/// Of whole numbers: scores are exact in f32 alone, so that their log-sum-exp is that of f32 but for its last digits; a mean is off by the rounding of its
/// weights at most.
pub(super) struct AttentionTrial<'a> {
    device: &'a Device,
    stored: Stored,
    /// Items, queries, keys and a head's width.
    sizes: [usize; 4],
    /// q, k, v, y and the log-sum-exp.
    memory: [Memory; 5],
}

impl<'a> AttentionTrial<'a> {
    pub fn new(device: &'a Device, stored: Stored, sizes: [usize; 4]) -> Result<Self> {
        let [items, queries, keys, width] = sizes;
        let mut rng = Rng::new(7, 7);
        let mut upload = |n: usize, most: u64| {
            let number = |_| narrowed(stored, (rng.next_u64() % most) as f32);
            device.upload(&(0..n).map(number).flat_map(u16::to_le_bytes).collect::<Vec<u8>>())
        };
        let (rows, cols) = (items * queries, items * keys);
        let [q, k, v] = [upload(rows * width, 64)?, upload(cols * width, 64)?, upload(cols * width, LARGEST + 1)?];
        let memory = [q, k, v, device.memory(4 * rows * width)?, device.memory(4 * rows)?];
        Ok(Self { device, stored, sizes, memory })
    }
}

impl Trial for AttentionTrial<'_> {
    fn run(&self, by: Option<By>) -> Result<()> {
        let [items, queries, keys, width] = self.sizes;
        let dims = [queries, keys].map(|n| [items, 1, n, width]);
        let strides = dims.map(|[_, _, n, _]| [(n * width) as isize, 0, width as isize, 1]);
        let view = |i: usize, of: usize| View {
            stored: self.stored,
            ..View::new(&self.memory[i], 0, &dims[of], &strides[of])
        };
        let [q, k, v] = [view(0, 0), view(1, 1), view(2, 1)];
        // Scores are some ten thousand: so much less that many weights count.
        let a = Attention { q, k, v, scale: 1.0 / 4096.0, causal: false, mask: None, dropout: None };
        let (to, along) = ([items, queries, 1, width], [(queries * width) as isize, width as isize, 0, 1]);
        self.device.attention_by(&a, View::new(&self.memory[3], 0, &to, &along), &self.memory[4], by)
    }

    fn result(&self) -> Result<Vec<u32>> {
        Ok([downloaded(&self.memory[3])?, downloaded(&self.memory[4])?].concat())
    }

    fn off(&self, i: usize, words: u32, matrices: u32) -> bool {
        let [items, queries, _, width] = self.sizes;
        let mean = i < items * queries * width;
        let most = if mean { LARGEST as f32 / 256.0 } else { 3e-5 };
        let apart = (f32::from_bits(words) - f32::from_bits(matrices)).abs();
        apart > most || apart.is_nan()
    }
}
