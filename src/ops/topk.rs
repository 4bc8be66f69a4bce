//! The largest elements of a dimension.

use kernels_cpu::gather as kernel;

use super::gather::around;
use crate::for_float;
use crate::gradcheck::{Case, Gen};
use crate::op::{Meta, Op, Output, Saved, Saves, apply_aux};
use crate::tensor::Tensor;

/// The k largest or smallest elements along one dimension, best first; their places (i64) are the by-product. Of equal elements the
/// lower place comes first; NaN counts as larger than any number.
#[derive(Clone, Copy)]
pub struct TopK {
    /// Dimension.
    pub dim: usize,
    /// How many.
    pub k: usize,
    /// Largest, else smallest.
    pub largest: bool,
}

impl Op for TopK {
    fn name(&self) -> &'static str {
        "topk"
    }

    fn shape(&self, x: &[Meta]) -> Meta {
        let dims = x[0].dims;
        assert!(self.k <= dims[self.dim], "topk: {} along dimension {} of {dims:?}", self.k, self.dim);
        Meta { dims: dims.with(self.dim, self.k), ..x[0] }
    }

    fn cpu(&self, x: &[&Tensor], out: Meta) -> Output {
        let (sizes, x) = (around(x[0].dims(), self.dim), x[0].packed());
        for_float!("topk", out.dtype, F => {
            let index = Tensor::write(out.dims, |i: &mut [i64]| kernel::topk(x.as_slice::<F>(), sizes, self.k, self.largest, i));
            let value = Tensor::write(out.dims, |y: &mut [F]| kernel::gather(x.as_slice(), sizes, index.as_slice(), y));
            Output { value, aux: vec![index] }
        })
    }

    fn saves(&self, _: &[bool]) -> Saves {
        Saves::NOTHING
    }

    fn vjp(&self, saved: &Saved, dy: &Tensor) -> Vec<Option<Tensor>> {
        let zeros = Tensor::zeros(saved.dims(0), dy.dtype());
        vec![Some(zeros.scatter_add(self.dim as isize, saved.aux(0), &dy.detach()))]
    }

    fn cases(g: &mut Gen) -> Case {
        let (dims, dim) = g.dims_along(1, 4);
        let (k, largest) = (g.rng.below(dims[dim] + 1), g.rng.chance(0.5));
        Case::new(vec![g.distinct(dims)], move |x| x[0].topk(k, dim as isize, largest).0).equals(move |x| {
            // One after the other, what was taken put out of reach.
            let (mut left, mut best) = (x[0].clone(), vec![x[0].narrow(dim, 0, 0)]);
            let far = if largest { -1e3 } else { 1e3 };
            for _ in 0..k {
                let (next, _) = if largest { left.max(dim as isize) } else { left.min(dim as isize) };
                let next = next.unsqueeze(dim);
                let taken = left.sub(&next).detach().square().affine(-1e9, 1.0).relu();
                left = left.add(&taken.affine(far, 0.0));
                best.push(next);
            }
            Tensor::concat(&best.iter().collect::<Vec<_>>(), dim as isize)
        })
    }
}

impl Tensor {
    /// The `k` largest (or smallest) elements along `dim`, best first, and their places (i64). See [`TopK`].
    #[track_caller]
    pub fn topk(&self, k: usize, dim: isize, largest: bool) -> (Tensor, Tensor) {
        let (value, mut aux) = apply_aux(TopK { dim: self.axis(dim), k, largest }, &[self]);
        (value, aux.swap_remove(0))
    }
}

crate::check_ops!(TopK);
