//! Sums of the columns of [rows, cols], a group of rows at a time; groups are added in order in f64.

use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;

use crate::float::Float;
use crate::par;
use crate::simd::{Simd, SimdOp, dispatch};

/// Rows summed in the type itself before the sum goes to f64.
const GROUP: usize = 64;
/// Rows of one job. A multiple of [`GROUP`].
const CHUNK: usize = 1024;
/// Of narrow rows, so many columns of a group at a time, whose sums stay in registers ...
const BLOCK: usize = 32;
/// ... and of rows beyond so many columns all at once: parts of theirs would be in too many pages of memory.
const NARROW: usize = 128;

struct Sum<'a, F, T> {
    rows: Range<usize>,
    term: &'a T,
    sum: &'a mut [F],
}

impl<F: Float, T: Fn(usize, &mut [F])> SimdOp for Sum<'_, F, T> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd>(self, _: S) {
        for r in self.rows {
            (self.term)(r, self.sum);
        }
    }
}

/// Sums of `width` columns: `term(row, sums)` adds a row. In groups of rows, whose sums are added in order in f64.
pub(super) fn column_sums<F: Float>(rows: usize, width: usize, term: impl Fn(usize, &mut [F]) + Sync) -> Vec<f64> {
    let parts = par::map_chunks(rows, CHUNK, width * 2, |range| {
        let (mut total, mut sum) = (vec![0.0; width], vec![F::ZERO; width]);
        for start in range.clone().step_by(GROUP) {
            sum.fill(F::ZERO);
            dispatch(Sum { rows: start..range.end.min(start + GROUP), term: &term, sum: &mut sum });
            total.iter_mut().zip(&sum).for_each(|(total, s)| *total += s.to_f64());
        }
        total
    });
    parts.iter().fold(vec![0.0; width], |mut total, part| {
        total.iter_mut().zip(part).for_each(|(total, s)| *total += s);
        total
    })
}

/// Of some rows: their mean and the sum of the squares about it, column by column.
#[derive(Clone, Default)]
struct Moments {
    rows: f64,
    mean: Vec<f64>,
    squares: Vec<f64>,
}

impl Moments {
    fn new(cols: usize) -> Self {
        Self { rows: 0.0, mean: vec![0.0; cols], squares: vec![0.0; cols] }
    }

    /// Columns from `first` on, together with those of `others` other rows (Chan, Golub and LeVeque 1983).
    #[inline(always)]
    fn join<F: Float>(&mut self, others: f64, first: usize, mean: &[F], squares: &[F]) {
        let all = self.rows + others;
        let (share, between) = (others / all, self.rows * others / all);
        let ours = self.mean[first..].iter_mut().zip(&mut self.squares[first..]);
        for ((our_mean, our_squares), (mean, squares)) in ours.zip(mean.iter().zip(squares)) {
            let apart = mean.to_f64() - *our_mean;
            *our_mean += apart * share;
            *our_squares += squares.to_f64() + apart * apart * between;
        }
    }
}

/// The moments of a job's rows, each group in two passes while it is in the cache.
struct OfRows<'a, F> {
    x: &'a [F],
    rows: Range<usize>,
    cols: usize,
    moments: &'a mut Moments,
}

impl<F: Float> OfRows<'_, F> {
    #[inline(always)]
    fn add(&mut self, rows: Range<usize>, first: usize, mean: &mut [F], squares: &mut [F]) {
        let (count, n) = (rows.len() as f64, mean.len());
        let row = |r: usize| &self.x[r * self.cols + first..][..n];
        mean.fill(F::ZERO);
        squares.fill(F::ZERO);
        for r in rows.clone() {
            mean.iter_mut().zip(row(r)).for_each(|(mean, &x)| *mean += x);
        }
        mean.iter_mut().for_each(|mean| *mean = F::from_f64(mean.to_f64() / count));
        for r in rows {
            let terms = row(r).iter().zip(&*mean).map(|(&x, &mean)| (x - mean) * (x - mean));
            squares.iter_mut().zip(terms).for_each(|(sum, term)| *sum += term);
        }
        self.moments.join(count, first, mean, squares);
    }

    /// The same of a fixed number of columns, whose sums stay in registers.
    #[inline(always)]
    fn add_block(&mut self, rows: Range<usize>, first: usize) {
        let count = rows.len() as f64;
        let (mut mean, mut squares) = ([F::ZERO; BLOCK], [F::ZERO; BLOCK]);
        for r in rows.clone() {
            let x = &self.x[r * self.cols + first..][..BLOCK];
            for i in 0..BLOCK {
                mean[i] += x[i];
            }
        }
        for mean in &mut mean {
            *mean = F::from_f64(mean.to_f64() / count);
        }
        for r in rows {
            let x = &self.x[r * self.cols + first..][..BLOCK];
            for i in 0..BLOCK {
                squares[i] += (x[i] - mean[i]) * (x[i] - mean[i]);
            }
        }
        // Copies, so that the sums themselves are never looked at in memory.
        let (mut means, mut sums) = ([0.0; BLOCK], [0.0; BLOCK]);
        for i in 0..BLOCK {
            (means[i], sums[i]) = (mean[i].to_f64(), squares[i].to_f64());
        }
        self.moments.join(count, first, &means, &sums);
    }
}

impl<F: Float> SimdOp for OfRows<'_, F> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd>(mut self, _: S) {
        let blocks = if self.cols > NARROW { 0 } else { self.cols / BLOCK * BLOCK };
        let [mut mean, mut squares] = [0; 2].map(|_| vec![F::ZERO; self.cols - blocks]);
        for start in self.rows.clone().step_by(GROUP) {
            let rows = start..self.rows.end.min(start + GROUP);
            for first in (0..blocks).step_by(BLOCK) {
                self.add_block(rows.clone(), first);
            }
            if blocks < self.cols {
                self.add(rows.clone(), blocks, &mut mean, &mut squares);
            }
            self.moments.rows += rows.len() as f64;
        }
    }
}

/// Mean and biased variance of each column of x [rows, cols], in two passes over a group of rows while it is in the cache.
///
/// # Panics
/// If there are no rows, or lengths do not fit.
pub fn statistics<F: Float>(x: &[F], mean: &mut [F], var: &mut [F]) {
    let cols = mean.len();
    assert!(cols == var.len() && (cols == 0 || !x.is_empty() && x.len().is_multiple_of(cols)), "batch_norm: lengths");
    let rows = x.len() / cols.max(1);
    let parts = par::map_chunks(rows, CHUNK, cols * 3, |rows| {
        let mut moments = Moments::new(cols);
        dispatch(OfRows { x, rows, cols, moments: &mut moments });
        moments
    });
    let mut all = Moments::new(cols);
    for part in &parts {
        all.join(part.rows, 0, &part.mean, &part.squares);
        all.rows += part.rows;
    }
    mean.iter_mut().zip(all.mean).for_each(|(mean, m)| *mean = F::from_f64(m));
    var.iter_mut().zip(all.squares).for_each(|(var, s)| *var = F::from_f64(s / rows as f64));
}
