//! Resampling along one axis with a table of weights: what interpolation and averaging have in common.

use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;

use crate::float::Float;
use crate::par::{self, Shared};
use crate::simd::{Simd, SimdOp, dispatch};

/// A sparse matrix [output, input]: element i of the output is a weighted sum of few elements of the input.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    input: usize,
    /// Row i has the terms `ends[i - 1]..ends[i]`.
    ends: Vec<usize>,
    terms: Vec<(usize, f64)>,
}

impl Table {
    /// Row i is `row(i)`: pairs of an input index and a weight.
    ///
    /// # Panics
    /// If an index is beyond the input.
    pub fn new(input: usize, output: usize, row: impl Fn(usize) -> Vec<(usize, f64)>) -> Self {
        let (mut ends, mut terms) = (Vec::with_capacity(output), Vec::new());
        for i in 0..output {
            terms.extend(row(i));
            ends.push(terms.len());
        }
        assert!(terms.iter().all(|&(k, _)| k < input), "a table of weights reaches beyond {input} elements");
        Self { input, ends, terms }
    }

    /// Size of the input.
    pub fn input(&self) -> usize {
        self.input
    }

    /// Size of the output.
    pub fn output(&self) -> usize {
        self.ends.len()
    }

    /// Terms of row `i`.
    #[inline(always)]
    pub fn row(&self, i: usize) -> &[(usize, f64)] {
        let start = if i == 0 { 0 } else { self.ends[i - 1] };
        &self.terms[start..self.ends[i]]
    }

    /// The transposed matrix: what the gradient is resampled with.
    pub fn transposed(&self) -> Self {
        let mut rows = vec![Vec::new(); self.input];
        for i in 0..self.output() {
            self.row(i).iter().for_each(|&(k, weight)| rows[k].push((i, weight)));
        }
        Self::new(self.output(), self.input, |k| rows[k].clone())
    }

    /// y [outer, output, inner] from x [outer, input, inner].
    ///
    /// # Panics
    /// If lengths do not fit.
    pub fn apply<F: Float>(&self, x: &[F], outer: usize, inner: usize, y: &mut [F]) {
        let fits = x.len() == outer * self.input * inner && y.len() == outer * self.output() * inner;
        assert!(fits, "resample: {} elements to {} as {outer} times {inner}", x.len(), y.len());
        if y.is_empty() {
            return;
        }
        let y = Shared::new(y);
        par::for_each(outer * self.output(), (self.terms.len() / self.output() + 1) * inner * 2, |rows| {
            // SAFETY: rows of the output, each handed out once.
            let y = unsafe { y.slice(rows.start * inner..rows.end * inner) };
            dispatch(Resample { table: self, rows, x, inner, y });
        });
    }
}

struct Resample<'a, F> {
    table: &'a Table,
    rows: Range<usize>,
    x: &'a [F],
    inner: usize,
    y: &'a mut [F],
}

impl<F: Float> SimdOp for Resample<'_, F> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd>(self, _: S) {
        for (row, y) in self.rows.zip(self.y.chunks_exact_mut(self.inner)) {
            let (outer, i) = (row / self.table.output(), row % self.table.output());
            y.fill(F::ZERO);
            for &(k, weight) in self.table.row(i) {
                let (x, weight) =
                    (&self.x[(outer * self.table.input + k) * self.inner..][..self.inner], F::from_f64(weight));
                y.iter_mut().zip(x).for_each(|(y, &x)| *y += x * weight);
            }
        }
    }
}

/// How values between pixels are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// Linear between neighbours.
    Bilinear,
    /// Cubic convolution of four neighbours (Keys 1981), a = -0.75; with antialiasing a = -0.5.
    Bicubic,
}

/// Cubic convolution kernel.
fn cubic(x: f64, a: f64) -> f64 {
    let x = libm::fabs(x);
    if x < 1.0 {
        ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * a
    } else {
        0.0
    }
}

/// Interpolation along one axis with pixel centres at half coordinates (`align_corners=False`): the semantics of
/// PyTorch's `interpolate`. Without `antialias` a reduced image samples few of its pixels; with it the filter is as wide as
/// the reduction.
///
/// # Panics
/// If there is nothing to interpolate.
pub fn interpolation(input: usize, output: usize, filter: Filter, antialias: bool) -> Table {
    assert!(input > 0 || output == 0, "interpolation: {output} values from none");
    let scale = input as f64 / output as f64;
    let last = input.saturating_sub(1);
    Table::new(input, output, |i| {
        let center = (i as f64 + 0.5) * scale;
        if antialias {
            let (wide, reach) = (scale.max(1.0), if filter == Filter::Bilinear { 1.0 } else { 2.0 });
            let first = libm::floor(center - reach * wide + 0.5).max(0.0) as usize;
            let end = (libm::floor(center + reach * wide + 0.5) as usize).min(input);
            let weight = |k: usize| {
                let x = (k as f64 + 0.5 - center) / wide;
                if filter == Filter::Bilinear { (1.0 - libm::fabs(x)).max(0.0) } else { cubic(x, -0.5) }
            };
            let total: f64 = (first..end).map(weight).sum();
            return (first..end).map(|k| (k, weight(k) / total)).collect();
        }
        let at = if filter == Filter::Bilinear { (center - 0.5).max(0.0) } else { center - 0.5 };
        let (base, t) = (libm::floor(at), at - libm::floor(at));
        let term = |k: isize, weight: f64| ((base as isize + k).clamp(0, last as isize) as usize, weight);
        match filter {
            Filter::Bilinear => vec![term(0, 1.0 - t), term(1, t)],
            Filter::Bicubic => (-1..3).map(|k| term(k, cubic(t - k as f64, -0.75))).collect(),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dense(table: &Table) -> Vec<Vec<f64>> {
        let mut rows = vec![vec![0.0; table.input()]; table.output()];
        for (i, row) in rows.iter_mut().enumerate() {
            table.row(i).iter().for_each(|&(k, weight)| row[k] += weight);
        }
        rows
    }

    #[test]
    fn rows_sum_to_one_and_equal_sizes_change_nothing() {
        for filter in [Filter::Bilinear, Filter::Bicubic] {
            for (input, output) in [(1, 1), (1, 5), (7, 7), (7, 14), (14, 7), (5, 13), (13, 5), (24, 14), (3, 0)] {
                for antialias in [false, true] {
                    let rows = dense(&interpolation(input, output, filter, antialias));
                    assert_eq!(rows.len(), output);
                    for (i, row) in rows.iter().enumerate() {
                        assert!(
                            (row.iter().sum::<f64>() - 1.0).abs() < 1e-12,
                            "{filter:?} {input} to {output}: {row:?}"
                        );
                        if input == output {
                            assert!(
                                row.iter().enumerate().all(|(k, &w)| (w - f64::from(u8::from(i == k))).abs() < 1e-15)
                            );
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn transposed_is_transposed() {
        let table = interpolation(9, 4, Filter::Bicubic, false);
        let (a, b) = (dense(&table), dense(&table.transposed()));
        assert!((0..4).all(|i| (0..9).all(|k| a[i][k] == b[k][i])));
    }

    #[test]
    fn both_axes_and_types_agree_with_the_dense_matrix() {
        let table = interpolation(5, 8, Filter::Bicubic, false);
        let x: Vec<f64> = (0..3 * 5 * 19).map(|i| libm::sin(i as f64)).collect();
        let single: Vec<f32> = x.iter().map(|&x| x as f32).collect();
        let (mut y, mut fast) = (vec![0.0; 3 * 8 * 19], vec![0f32; 3 * 8 * 19]);
        table.apply(&x, 3, 19, &mut y);
        table.apply(&single, 3, 19, &mut fast);
        let rows = dense(&table);
        for at in 0..y.len() {
            let (outer, i, inner) = (at / (8 * 19), at / 19 % 8, at % 19);
            let e: f64 = (0..5).map(|k| rows[i][k] * x[(outer * 5 + k) * 19 + inner]).sum();
            assert!((y[at] - e).abs() < 1e-12 && (f64::from(fast[at]) - e).abs() < 1e-5);
        }
    }

    /// Weights from the formulas of PyTorch's `interpolate`, written down a second time, element by element.
    #[test]
    fn weights_are_those_of_the_field() {
        let keys = |x: f64, a: f64| match x.abs() {
            x if x < 1.0 => (a + 2.0) * x.powi(3) - (a + 3.0) * x.powi(2) + 1.0,
            x if x < 2.0 => a * x.powi(3) - 5.0 * a * x.powi(2) + 8.0 * a * x - 4.0 * a,
            _ => 0.0,
        };
        let tent = |x: f64| (1.0 - x.abs()).max(0.0);
        for (input, output) in [(1, 1), (1, 5), (7, 7), (7, 14), (14, 7), (5, 13), (13, 5), (24, 14), (9, 2)] {
            let scale = input as f64 / output as f64;
            for filter in [Filter::Bilinear, Filter::Bicubic] {
                let (plain, wide) =
                    (interpolation(input, output, filter, false), interpolation(input, output, filter, true));
                let (plain, wide) = (dense(&plain), dense(&wide));
                for i in 0..output {
                    let center = (i as f64 + 0.5) * scale;
                    // Pixels beyond the edge are the edge's.
                    let mut expected = vec![0.0; input];
                    for k in -3..input as isize + 3 {
                        let x = k as f64 + 0.5 - center;
                        let weight = if filter == Filter::Bilinear { tent(x) } else { keys(x, -0.75) };
                        expected[k.clamp(0, input as isize - 1) as usize] += weight;
                    }
                    for (ours, e) in plain[i].iter().zip(&expected) {
                        assert!((ours - e).abs() < 1e-12, "{filter:?} {input} to {output}: {:?}", plain[i]);
                    }
                    let width = scale.max(1.0);
                    let weight = |k: usize| {
                        let x = (k as f64 + 0.5 - center) / width;
                        if filter == Filter::Bilinear { tent(x) } else { keys(x, -0.5) }
                    };
                    let total: f64 = (0..input).map(weight).sum();
                    for (k, ours) in wide[i].iter().enumerate() {
                        assert!(
                            (ours - weight(k) / total).abs() < 1e-12,
                            "{filter:?} {input} to {output}, antialiased"
                        );
                    }
                }
            }
        }
    }

    #[cfg(feature = "rayon")]
    #[test]
    fn threads_take_rows_of_several_outer_blocks() {
        use crate::testing::on_every_tier;
        let table = interpolation(50, 70, Filter::Bilinear, false);
        let x: Vec<f64> = (0..20 * 50 * 9).map(|i| libm::cos(i as f64)).collect();
        let run = || {
            let mut y = vec![7.0; 20 * 70 * 9];
            table.apply(&x, 20, 9, &mut y);
            y
        };
        let one = par::Pool::new(1).install(run);
        let rows = dense(&table);
        for (at, y) in one.iter().enumerate() {
            let (outer, i, inner) = (at / (70 * 9), at / 9 % 70, at % 9);
            let e: f64 = (0..50).map(|k| rows[i][k] * x[(outer * 50 + k) * 9 + inner]).sum();
            assert!((y - e).abs() < 1e-12);
        }
        on_every_tier(|isa| assert!(run().iter().zip(&one).all(|(a, b)| (a - b).abs() < 1e-14), "{isa}"));
    }
}
