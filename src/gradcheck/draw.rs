//! The drawing of inputs.

use crate::dtype::DType;
use crate::layout::{Dims, Layout};
use crate::rng::Rng;
use crate::tensor::Tensor;

/// Draws inputs for [`Case`](super::Case)s: dims up to a size with 0, 1 and primes among them, values, and layouts (permuted, sliced, flipped).
pub struct Gen {
    /// Random numbers for anything else that a case draws.
    pub rng: Rng,
    size: usize,
}

impl Gen {
    /// Dims go up to about `size`.
    pub fn new(seed: u64, size: usize) -> Self {
        Self { rng: Rng::new(seed, 0x67_656e), size: size.max(1) }
    }

    /// A size from 0 on, mostly small; 0 in about one of twelve.
    pub fn size(&mut self) -> usize {
        if self.rng.chance(0.08) { 0 } else { self.size_from(1) }
    }

    /// A size from `low` on.
    pub fn size_from(&mut self, low: usize) -> usize {
        low + self.rng.below(self.size)
    }

    /// One of `choices`.
    pub fn choose<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.rng.below(choices.len())]
    }

    /// Dims of a rank in `low..=high`, zero sizes among them.
    pub fn dims(&mut self, low: usize, high: usize) -> Dims {
        let rank = low + self.rng.below(high - low + 1);
        let sizes: Vec<usize> = (0..rank).map(|_| self.size()).collect();
        Dims::new(&sizes)
    }

    /// Dims of a rank in `low..=high` and one of the dimensions, which is not empty; the others may be.
    pub fn dims_along(&mut self, low: usize, high: usize) -> (Dims, usize) {
        let dims = self.dims(low, high);
        let dim = self.rng.below(dims.len());
        let size = self.size_from(1);
        (dims.with(dim, size), dim)
    }

    /// Dims without zero sizes.
    pub fn full_dims(&mut self, low: usize, high: usize) -> Dims {
        let rank = low + self.rng.below(high - low + 1);
        let sizes: Vec<usize> = (0..rank).map(|_| self.size_from(1)).collect();
        Dims::new(&sizes)
    }

    /// Dims that broadcast to `dims`: some leading ones left off, some sizes 1.
    pub fn broadcastable(&mut self, dims: &[usize]) -> Dims {
        let skip = if self.rng.chance(0.3) { self.rng.below(dims.len() + 1) } else { 0 };
        let sizes: Vec<usize> = dims[skip..].iter().map(|&d| if self.rng.chance(0.3) { 1 } else { d }).collect();
        Dims::new(&sizes)
    }

    /// Standard normal f64 values in some layout.
    pub fn tensor(&mut self, dims: impl Into<Dims>) -> Tensor {
        self.tensor_of(dims, |rng| rng.normal())
    }

    /// Values uniform in [low, high).
    pub fn uniform(&mut self, dims: impl Into<Dims>, low: f64, high: f64) -> Tensor {
        self.tensor_of(dims, |rng| rng.range(low, high))
    }

    /// Normal values at least 0.01 away from each of `kinks`, where a derivative jumps.
    pub fn away_from(&mut self, dims: impl Into<Dims>, kinks: &[f64]) -> Tensor {
        self.tensor_of(dims, |rng| {
            loop {
                let x = 1.5 * rng.normal();
                if kinks.iter().all(|k| (x - k).abs() > 0.01) {
                    return x;
                }
            }
        })
    }

    /// Values no two of which are nearer than 0.01: no ties for max and sorting.
    pub fn distinct(&mut self, dims: impl Into<Dims>) -> Tensor {
        let dims = dims.into();
        let mut values: Vec<f64> = (0..dims.numel())
            .map(|i| 0.02 * i as f64 - 0.01 * dims.numel() as f64 + self.rng.range(0.0, 0.01))
            .collect();
        self.rng.shuffle(&mut values);
        let mut values = values.into_iter();
        self.laid_out(dims, |_| values.next().expect("one value per element"))
    }

    /// Values from `draw` in some layout.
    pub fn tensor_of(&mut self, dims: impl Into<Dims>, mut draw: impl FnMut(&mut Rng) -> f64) -> Tensor {
        self.laid_out(dims.into(), &mut draw)
    }

    /// i64 values in 0..below, in some layout.
    pub fn ids(&mut self, dims: impl Into<Dims>, below: usize) -> Tensor {
        retyped(&self.tensor_of(dims, |rng| rng.below(below) as f64), DType::I64)
    }

    /// u8 values, 1 with probability `p`, in some layout.
    pub fn mask(&mut self, dims: impl Into<Dims>, p: f64) -> Tensor {
        retyped(&self.tensor_of(dims, |rng| f64::from(u8::from(rng.chance(p)))), DType::U8)
    }

    /// Half of the time contiguous, else stored in another order of dimensions, with gaps and flips.
    fn laid_out(&mut self, dims: Dims, mut draw: impl FnMut(&mut Rng) -> f64) -> Tensor {
        let values: Vec<f64> = (0..dims.numel()).map(|_| draw(&mut self.rng)).collect();
        let plain = Tensor::from_slice(&values, dims);
        if dims.is_empty() || self.rng.chance(0.5) {
            return plain;
        }
        let mut order: Vec<usize> = (0..dims.len()).collect();
        self.rng.shuffle(&mut order);
        let mut stored = plain.layout().permute(&order);
        let flips: Vec<usize> = (0..dims.len()).filter(|_| self.rng.chance(0.2)).collect();
        flips.iter().for_each(|&k| stored = stored.flip(k));
        let stored = plain.with_layout(stored).packed();
        // Gaps: the values lie in a larger buffer whose other elements are NaN and must never be read.
        let room: Vec<usize> = stored.dims().iter().map(|&d| d + self.rng.below(3)).collect();
        let start: Vec<usize> =
            room.iter().zip(stored.dims().iter()).map(|(&r, &d)| self.rng.below(r - d + 1)).collect();
        let mut cells = vec![f64::NAN; room.iter().product()];
        let packed = stored.to_f64_vec();
        for (k, &value) in packed.iter().enumerate() {
            let (mut rest, mut at, mut step) = (k, 0, 1);
            for axis in (0..room.len()).rev() {
                at += (start[axis] + rest % stored.dims()[axis]) * step;
                rest /= stored.dims()[axis];
                step *= room[axis];
            }
            cells[at] = value;
        }
        let room = Tensor::from_slice(&cells, Dims::new(&room));
        let mut layout = *room.layout();
        for axis in 0..dims.len() {
            layout = layout.narrow(axis, start[axis], stored.dims()[axis]);
        }
        flips.iter().for_each(|&k| layout = layout.flip(k));
        let mut inverse = vec![0; order.len()];
        order.iter().enumerate().for_each(|(k, &o)| inverse[o] = k);
        room.with_layout(layout.permute(&inverse))
    }
}

/// The same elements in another type and in the same layout, gaps included.
pub(super) fn retyped(x: &Tensor, dtype: DType) -> Tensor {
    let stored = x.with_layout(Layout::contiguous(Dims::from([x.layout().end()]), 0));
    stored.converted(dtype).with_layout(*x.layout())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drawn_layouts_hold_the_drawn_values() {
        let mut g = Gen::new(1, 5);
        let mut odd = 0;
        for k in 0..200 {
            let dims = g.dims(0, 4);
            let mut next = k as f64;
            let x = g.tensor_of(dims, |_| {
                next += 1.0;
                next
            });
            assert_eq!(*x.dims(), dims);
            assert_eq!(x.to_f64_vec(), (1..=dims.numel()).map(|i| (k + i) as f64).collect::<Vec<_>>());
            odd += usize::from(!x.is_contiguous());
        }
        assert!(odd > 40, "only {odd} of 200 drawn layouts are not contiguous");
    }
}
