//! What tests of several kernels draw their inputs with.

use alloc::vec::Vec;

use crate::isa::Isa;
use crate::par::Pool;
use crate::rng::Rng;
use crate::view::Strided;

/// A view with its own data: dimensions in any order in memory, gaps, flips, an offset.
pub(crate) struct Drawn<T> {
    data: Vec<T>,
    offset: usize,
    strides: Vec<isize>,
}

impl<T: Copy> Drawn<T> {
    /// A view of `dims`; where `stretched`, some dimensions stay on one element (a stride of 0).
    pub(crate) fn new(rng: &mut Rng, dims: &[usize], stretched: bool, mut value: impl FnMut(&mut Rng) -> T) -> Self {
        let mut order: Vec<usize> = (0..dims.len()).collect();
        if rng.chance(0.5) {
            rng.shuffle(&mut order);
        }
        let (mut strides, mut offset, mut last) = (alloc::vec![0isize; dims.len()], rng.below(3), 0);
        // Innermost first; half of the views are dense.
        let gaps = usize::from(rng.chance(0.5));
        let mut step = 1 + rng.below(1 + gaps);
        for &k in order.iter().rev() {
            if stretched && rng.chance(0.3) {
                continue;
            }
            let reach = step * (dims[k].max(1) - 1);
            last += reach;
            strides[k] = step as isize;
            if rng.chance(0.2) {
                strides[k] = -strides[k];
                offset += reach;
            }
            step = step * dims[k].max(1) + rng.below(1 + gaps);
        }
        let data = (0..offset + last + 1 + rng.below(2)).map(|_| value(rng)).collect();
        Self { data, offset, strides }
    }

    /// Other data in the places of a view.
    pub(crate) fn of(data: &[T], view: Strided<'_, T>) -> Self {
        Self { data: data.to_vec(), offset: view.offset, strides: view.strides.to_vec() }
    }

    /// As kernels take it.
    pub(crate) fn view(&self) -> Strided<'_, T> {
        Strided { data: &self.data, offset: self.offset, strides: &self.strides }
    }

    /// The elements in row-major order, each found by its index alone.
    pub(crate) fn elements(&self, dims: &[usize]) -> Vec<T> {
        indices(dims).map(|index| self.data[self.place(&index)]).collect()
    }

    fn place(&self, index: &[usize]) -> usize {
        let steps = index.iter().zip(&self.strides).map(|(&i, &s)| i as isize * s).sum::<isize>();
        (self.offset as isize + steps) as usize
    }
}

impl Drawn<f64> {
    /// Normal numbers that f32 has too.
    pub(crate) fn normal(rng: &mut Rng, dims: &[usize]) -> Self {
        Self::new(rng, dims, false, |rng| f64::from(rng.normal() as f32))
    }

    /// The same in f32.
    pub(crate) fn single(&self) -> Drawn<f32> {
        Drawn { data: narrow(&self.data), offset: self.offset, strides: self.strides.clone() }
    }

    /// The same with `by` added to the element at `index`.
    pub(crate) fn shifted(&self, index: &[usize], by: f64) -> Self {
        let mut data = self.data.clone();
        data[self.place(index)] += by;
        Self { data, offset: self.offset, strides: self.strides.clone() }
    }
}

/// Every index of `dims` in row-major order.
pub(crate) fn indices(dims: &[usize]) -> impl Iterator<Item = Vec<usize>> {
    let count: usize = dims.iter().product();
    (0..count).map(move |mut n| {
        let mut index = alloc::vec![0; dims.len()];
        for (i, &d) in index.iter_mut().zip(dims).rev() {
            *i = n % d;
            n /= d;
        }
        index
    })
}

/// Runs a check of public kernels on each tier of the machine, with two threads.
pub(crate) fn on_every_tier(check: impl Fn(Isa) + Sync) {
    for isa in Isa::available() {
        Pool::on(isa, 2).install(|| check(isa));
    }
}

/// `n` normal numbers.
pub(crate) fn normals(rng: &mut Rng, n: usize) -> Vec<f64> {
    (0..n).map(|_| rng.normal()).collect()
}

/// To f32.
pub(crate) fn narrow(x: &[f64]) -> Vec<f32> {
    x.iter().map(|&x| x as f32).collect()
}

/// To f64.
pub(crate) fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| f64::from(x)).collect()
}

/// The largest |a - b|, infinite where lengths or what is not finite differ.
pub(crate) fn apart(a: &[f64], b: &[f64]) -> f64 {
    let of = |(a, b): (&f64, &f64)| if a == b || a.is_nan() && b.is_nan() { 0.0 } else { (a - b).abs() };
    let most = a.iter().zip(b).map(of).fold(0.0, |m, x| if x <= m { m } else { x });
    if a.len() == b.len() && !most.is_nan() { most } else { f64::INFINITY }
}
