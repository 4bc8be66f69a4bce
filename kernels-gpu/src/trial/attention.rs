//! Attention and its gradients by cooperative matrices against those in f32, of the same operands in half.

use kernels_cpu::rng::Rng;

use super::{Trial, downloaded, narrowed};
use crate::device::Device;
use crate::error::Result;
use crate::matrices::By;
use crate::memory::Memory;
use crate::ops::Attention;
use crate::view::{Stored, View};

/// Values, and gradients, are whole numbers up to this.
const LARGEST: u64 = 32;

/// Of whole numbers: scores are exact in f32 alone, so that their log-sum-exp is that of f32 but for its last digits; a mean is off by the rounding of its
/// weights at most.
pub(super) struct Attended<'a> {
    device: &'a Device,
    stored: Stored,
    /// Items, queries, keys and a head's width.
    sizes: [usize; 4],
    /// q, k, v, y and the log-sum-exp.
    memory: [Memory; 5],
}

/// Apart, or no number.
fn apart(a: u32, b: u32, most: f32) -> bool {
    let apart = (f32::from_bits(a) - f32::from_bits(b)).abs();
    apart > most || apart.is_nan()
}

/// Whole numbers below `most`.
fn numbers(rng: &mut Rng, n: usize, most: u64) -> Vec<f32> {
    (0..n).map(|_| (rng.next_u64() % most) as f32).collect()
}

impl<'a> Attended<'a> {
    pub fn new(device: &'a Device, stored: Stored, sizes: [usize; 4]) -> Result<Self> {
        let [items, queries, keys, width] = sizes;
        let mut rng = Rng::new(7, 7);
        let mut upload = |n: usize, most: u64| {
            let halves = numbers(&mut rng, n, most).into_iter().map(|x| narrowed(stored, x));
            device.upload(&halves.flat_map(u16::to_le_bytes).collect::<Vec<u8>>())
        };
        let (rows, cols) = (items * queries, items * keys);
        let [q, k, v] = [upload(rows * width, 64)?, upload(cols * width, 64)?, upload(cols * width, LARGEST + 1)?];
        let memory = [q, k, v, device.memory(4 * rows * width)?, device.memory(4 * rows)?];
        Ok(Self { device, stored, sizes, memory })
    }

    /// With the attention, and the layout of what has a row for each query, and for each key.
    fn with<R>(&self, then: impl FnOnce(&Attention<'_>, [([usize; 4], [isize; 4]); 2]) -> R) -> R {
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
        let to = [queries, keys].map(|n| ([items, n, 1, width], [(n * width) as isize, width as isize, 0, 1]));
        then(&a, to)
    }
}

impl Trial for Attended<'_> {
    fn run(&self, by: Option<By>) -> Result<()> {
        let [.., y, lse] = &self.memory;
        self.with(|a, [(dims, strides), _]| self.device.attention_by(a, View::new(y, 0, &dims, &strides), lse, by))
    }

    fn result(&self) -> Result<Vec<u32>> {
        Ok([downloaded(&self.memory[3])?, downloaded(&self.memory[4])?].concat())
    }

    fn wrong(&self, words: &[u32], made: &[u32]) -> usize {
        let means = words.len() - self.sizes[0] * self.sizes[1];
        let most = |i: usize| if i < means { LARGEST as f32 / 256.0 } else { 3e-5 };
        (0..words.len()).filter(|&i| apart(words[i], made[i], most(i))).count()
    }
}

/// Gradients for one of y that is whole numbers too. What is rounded are terms of sums, and few parts in a thousand of each.
pub(super) struct Gradients<'a> {
    of: Attended<'a>,
    dy: Memory,
    sums: Memory,
    /// dq, dk and dv.
    memory: [Memory; 3],
}

impl<'a> Gradients<'a> {
    pub fn new(device: &'a Device, stored: Stored, sizes: [usize; 4]) -> Result<Self> {
        let of = Attended::new(device, stored, sizes)?;
        of.run(None)?;
        let [items, queries, keys, width] = sizes;
        let [rows, cols] = [queries, keys].map(|n| items * n * width);
        let dy = numbers(&mut Rng::new(8, 8), rows, LARGEST + 1);
        let dy = device.upload(&dy.into_iter().flat_map(f32::to_le_bytes).collect::<Vec<u8>>())?;
        let sums = of.with(|a, [(dims, strides), _]| {
            let [y, dy] = [&of.memory[3], &dy].map(|x| View::new(x, 0, &dims, &strides));
            device.attention_sums(a, y, View::new(&of.memory[4], 0, &[items * queries], &[1]), dy)
        })?;
        let memory = [device.memory(4 * rows)?, device.memory(4 * cols)?, device.memory(4 * cols)?];
        Ok(Self { of, dy, sums, memory })
    }
}

impl Trial for Gradients<'_> {
    fn run(&self, by: Option<By>) -> Result<()> {
        let (device, [dq, dk, dv]) = (self.of.device, &self.memory);
        self.of.with(|a, [(dims, strides), (of_keys, along)]| {
            let [dy, dq] = [&self.dy, dq].map(|x| View::new(x, 0, &dims, &strides));
            let dkv = [dk, dv].map(|x| View::new(x, 0, &of_keys, &along));
            device.attention_gradients(a, dy, &self.sums, &[dq], by)?;
            device.attention_gradients(a, dy, &self.sums, &dkv, by)
        })
    }

    fn result(&self) -> Result<Vec<u32>> {
        Ok(self.memory.iter().map(downloaded).collect::<Result<Vec<_>>>()?.concat())
    }

    fn wrong(&self, words: &[u32], made: &[u32]) -> usize {
        let mut from = 0;
        let of = |memory: &Memory| {
            let part = from..from + memory.len() / 4;
            from = part.end;
            let largest = words[part.clone()].iter().fold(0.0f32, |most, &w| most.max(f32::from_bits(w).abs()));
            part.filter(|&i| apart(words[i], made[i], largest / 32.0)).count()
        };
        self.memory.iter().map(of).sum()
    }
}
