//! Batch norm (Ioffe and Szegedy 2015) of rows [rows, cols]: statistics of each column over all rows.

mod sums;

use alloc::vec;
use alloc::vec::Vec;

use crate::float::Float;
use crate::map::Unary;
use crate::par::{self, Shared};
use crate::simd::{Simd, SimdOp, dispatch};
use sums::column_sums;
pub use sums::statistics;

/// What follows a norm in the same pass: y = relu(norm + residual), each where it is given.
#[derive(Clone, Copy, Debug)]
pub struct Then<'a, F> {
    /// Of the norm's size.
    pub residual: Option<&'a [F]>,
    /// Whether what is negative becomes 0.
    pub relu: bool,
}

impl<F> Default for Then<'_, F> {
    fn default() -> Self {
        Self { residual: None, relu: false }
    }
}

struct Affine<'a, F> {
    x: &'a [F],
    mean: &'a [F],
    scale: &'a [F],
    bias: &'a [F],
    then: Then<'a, F>,
    y: &'a mut [F],
}

impl<F: Float> SimdOp for Affine<'_, F> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd>(self, _: S) {
        let cols = self.mean.len();
        // What follows finds a row in the first-level cache.
        for (r, (x, y)) in self.x.chunks_exact(cols).zip(self.y.chunks_exact_mut(cols)).enumerate() {
            for ((((y, &x), &m), &s), &b) in y.iter_mut().zip(x).zip(self.mean).zip(self.scale).zip(self.bias) {
                *y = (x - m) * s + b;
            }
            if let Some(residual) = self.then.residual {
                y.iter_mut().zip(&residual[r * cols..][..cols]).for_each(|(y, &residual)| *y += residual);
            }
            if self.then.relu {
                y.iter_mut().for_each(|y| *y = Unary::Relu.f(*y));
            }
        }
    }
}

/// y = (x - mean) rstd weight + bias, column by column, and what follows.
///
/// # Panics
/// If lengths do not fit.
pub fn batch_norm<F: Float>(x: &[F], mean: &[F], rstd: &[F], weight: &[F], bias: &[F], then: Then<'_, F>, y: &mut [F]) {
    let cols = mean.len();
    assert!(
        [rstd, weight, bias].iter().all(|v| v.len() == cols)
            && x.len() == y.len()
            && then.residual.is_none_or(|residual| residual.len() == x.len())
            && (cols == 0 || x.len().is_multiple_of(cols)),
        "batch_norm: lengths"
    );
    if x.is_empty() {
        return;
    }
    let scale = scale(rstd, weight);
    let y = Shared::new(y);
    par::for_each(x.len() / cols, cols * 2, |rows| {
        let place = rows.start * cols..rows.end * cols;
        let then = Then { residual: then.residual.map(|residual| &residual[place.clone()]), ..then };
        // SAFETY: rows, each handed out once.
        let y = unsafe { y.slice(place.clone()) };
        dispatch(Affine { x: &x[place], mean, scale: &scale, bias, then, y });
    });
}

fn scale<F: Float>(rstd: &[F], weight: &[F]) -> Vec<F> {
    rstd.iter().zip(weight).map(|(&r, &w)| r * w).collect()
}

/// How the gradient of [`batch_norm`]'s output comes to the norm itself.
pub enum Gate<'a, F> {
    /// As it is: nothing follows the norm.
    Open,
    /// Through a ReLU, whose sign is found again from x by the bias: nothing else need be read.
    Relu(&'a [F]),
    /// Through a ReLU by its output, and to the residual too, whose gradient is written.
    Output(&'a [F], &'a mut [F]),
}

struct Backward<'a, F> {
    x: &'a [F],
    dy: &'a [F],
    mean: &'a [F],
    /// Scale and bias of a ReLU that dy comes through.
    relu: Option<[&'a [F]; 2]>,
    /// dx = a dy + b (x - mean) + c
    a: &'a [F],
    b: &'a [F],
    c: &'a [F],
    dx: &'a mut [F],
}

impl<F: Float> SimdOp for Backward<'_, F> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd>(self, _: S) {
        let Self { mean, a, b, c, .. } = self;
        let cols = mean.len();
        let rows = self.x.chunks_exact(cols).zip(self.dy.chunks_exact(cols)).zip(self.dx.chunks_exact_mut(cols));
        for ((x, dy), dx) in rows {
            if let Some([scale, bias]) = self.relu {
                for i in 0..cols {
                    let centred = x[i] - mean[i];
                    let dy = Unary::Relu.df(centred * scale[i] + bias[i]) * dy[i];
                    dx[i] = a[i] * dy + b[i] * centred + c[i];
                }
            } else {
                for i in 0..cols {
                    dx[i] = a[i] * dy[i] + b[i] * (x[i] - mean[i]) + c[i];
                }
            }
        }
    }
}

/// Gradients of [`batch_norm`]; `of_batch` where mean and rstd are the batch's own, so that they depend on x.
///
/// # Panics
/// If lengths do not fit.
#[allow(clippy::too_many_arguments)]
pub fn batch_norm_backward<F: Float>(
    x: &[F],
    dy: &[F],
    mean: &[F],
    rstd: &[F],
    weight: &[F],
    of_batch: bool,
    gate: Gate<'_, F>,
    dx: &mut [F],
    dweight: &mut [F],
    dbias: &mut [F],
) {
    let cols = mean.len();
    let fits = match &gate {
        Gate::Open => true,
        Gate::Relu(bias) => bias.len() == cols,
        Gate::Output(y, dz) => y.len() == x.len() && dz.len() == x.len(),
    };
    assert!(
        fits && [rstd, weight, dweight, dbias].iter().all(|v| v.len() == cols)
            && x.len() == dy.len()
            && x.len() == dx.len()
            && (cols == 0 || x.len().is_multiple_of(cols)),
        "batch_norm_backward: lengths"
    );
    let rows = x.len() / cols.max(1);
    let scale = scale(rstd, weight);
    let (relu, mut through) = match gate {
        Gate::Open => (None, None),
        Gate::Relu(bias) => (Some([&scale[..], bias]), None),
        Gate::Output(y, dz) => (None, Some((y, dz))),
    };
    let written = through.as_mut().map(|(y, dz)| (*y, Shared::new(dz)));
    // Of dy, and of dy (x - mean).
    let sums = column_sums(rows, 2 * cols, |r, sum: &mut [F]| {
        let (plain, centred) = sum.split_at_mut(cols);
        let place = r * cols..(r + 1) * cols;
        let (x, dy) = (&x[place.clone()], &dy[place.clone()]);
        if let Some([scale, bias]) = relu {
            for i in 0..cols {
                let from_mean = x[i] - mean[i];
                let dy = Unary::Relu.df(from_mean * scale[i] + bias[i]) * dy[i];
                plain[i] += dy;
                centred[i] += dy * from_mean;
            }
        } else if let Some((y, dz)) = written {
            // SAFETY: rows, each handed out once.
            let (y, dz) = (&y[place.clone()], unsafe { dz.slice(place) });
            for i in 0..cols {
                let dy = Unary::Relu.df(y[i]) * dy[i];
                dz[i] = dy;
                plain[i] += dy;
                centred[i] += dy * (x[i] - mean[i]);
            }
        } else {
            for i in 0..cols {
                plain[i] += dy[i];
                centred[i] += dy[i] * (x[i] - mean[i]);
            }
        }
    });
    let dy = through.map_or(dy, |(_, dz)| dz);
    let [mut a, mut b, mut c] = [0; 3].map(|_| vec![F::ZERO; cols]);
    for i in 0..cols {
        let (rstd, plain, centred) = (rstd[i].to_f64(), sums[i], sums[cols + i]);
        dweight[i] = F::from_f64(centred * rstd);
        dbias[i] = F::from_f64(plain);
        // With z = (x - mean) rstd: dx = weight rstd (dy - mean(dy) - z mean(dy z)).
        let scale = weight[i].to_f64() * rstd;
        a[i] = F::from_f64(scale);
        if of_batch {
            b[i] = F::from_f64(-scale * rstd * rstd * centred / rows as f64);
            c[i] = F::from_f64(-scale * plain / rows as f64);
        }
    }
    if x.is_empty() {
        return;
    }
    let dx = Shared::new(dx);
    par::for_each(rows, cols * 4, |rows| {
        let place = rows.start * cols..rows.end * cols;
        // SAFETY: rows, each handed out once.
        let dx = unsafe { dx.slice(place.clone()) };
        dispatch(Backward { x: &x[place.clone()], dy: &dy[place], mean, relu, a: &a, b: &b, c: &c, dx });
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values far from zero and near to each other: one pass over squares would lose them all.
    #[test]
    fn statistics_survive_a_large_mean() {
        let (rows, cols) = (10_000, 3);
        let x: Vec<f32> = (0..rows * cols).map(|i| 4096.0 + ((i / cols) % 2) as f32 * (1 + i % cols) as f32).collect();
        let (mut mean, mut var) = (vec![0.0; cols], vec![0.0; cols]);
        statistics(&x, &mut mean, &mut var);
        assert_eq!(mean, [4096.5, 4097.0, 4097.5]);
        assert_eq!(var, [0.25, 1.0, 2.25]);
    }

    #[test]
    fn thread_counts_do_not_change_bits() {
        let (rows, cols) = (5000, 17);
        let x: Vec<f32> = (0..rows * cols).map(|i| libm::sinf(i as f32)).collect();
        let dy: Vec<f32> = x.iter().map(|&x| libm::cosf(40.0 * x)).collect();
        let run = |threads: usize| {
            par::Pool::new(threads).install(|| {
                let [mut mean, mut var, mut dw, mut db] = [0; 4].map(|_| vec![0.0; cols]);
                let (mut y, mut dx) = (vec![0.0; x.len()], vec![0.0; x.len()]);
                let ones = vec![1.0; cols];
                statistics(&x, &mut mean, &mut var);
                batch_norm(&x, &mean, &var, &ones, &ones, Then::default(), &mut y);
                batch_norm_backward(&x, &dy, &mean, &var, &ones, true, Gate::Open, &mut dx, &mut dw, &mut db);
                (mean, y, dx, dw, db)
            })
        };
        let one = run(1);
        assert!([2, 3, 7].iter().all(|&threads| run(threads) == one));
    }

    /// To the bit, on every tier.
    #[cfg(feature = "rayon")]
    #[test]
    fn what_follows_in_the_same_pass_is_what_would_follow_by_itself() {
        use crate::map;
        use crate::testing::{narrow, normals, on_every_tier};
        let mut rng = crate::rng::Rng::new(6, 0);
        for (rows, cols) in [(1, 1), (5, 3), (64, 17), (1100, 2), (70, 64)] {
            let mut draw = |n: usize| narrow(&normals(&mut rng, n));
            let [x, dy, residual] = [0; 3].map(|_| draw(rows * cols));
            let [weight, bias, mean, rstd] = [0; 4].map(|_| draw(cols));
            on_every_tier(|isa| {
                let room = || [0; 2].map(|_| vec![7.0f32; x.len()]);
                let by_column = || [0; 2].map(|_| vec![7.0f32; cols]);
                for residual in [None, Some(&residual[..])] {
                    let [mut y, mut one] = room();
                    batch_norm(&x, &mean, &rstd, &weight, &bias, Then::default(), &mut y);
                    if let Some(residual) = residual {
                        y.iter_mut().zip(residual).for_each(|(y, r)| *y += r);
                    }
                    map::map_in_place(Unary::Relu, &mut y);
                    batch_norm(&x, &mean, &rstd, &weight, &bias, Then { residual, relu: true }, &mut one);
                    let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                    assert_eq!(bits(&y), bits(&one), "{isa}: {rows} by {cols}");

                    let [mut dz, mut dx] = room();
                    let [mut dw, mut db] = by_column();
                    map::map_backward(Unary::Relu, &y, &dy, &mut dz);
                    batch_norm_backward(&x, &dz, &mean, &rstd, &weight, true, Gate::Open, &mut dx, &mut dw, &mut db);
                    let [mut to_residual, mut own] = room();
                    let [mut own_dw, mut own_db] = by_column();
                    let gate = if residual.is_some() { Gate::Output(&y, &mut to_residual) } else { Gate::Relu(&bias) };
                    batch_norm_backward(&x, &dy, &mean, &rstd, &weight, true, gate, &mut own, &mut own_dw, &mut own_db);
                    assert!(residual.is_none() || bits(&to_residual) == bits(&dz), "{isa}: {rows} by {cols}");
                    for (one, other) in [(own, dx), (own_dw, dw), (own_db, db)] {
                        assert_eq!(bits(&one), bits(&other), "{isa}: {rows} by {cols}");
                    }
                }
            });
        }
    }

    #[cfg(feature = "rayon")]
    #[test]
    fn every_tier_is_the_formula_and_gradients_are_differences() {
        use crate::testing::{apart, narrow, normals, on_every_tier, wide};
        let mut rng = crate::rng::Rng::new(5, 0);
        for (rows, cols) in [(1, 1), (5, 3), (64, 2), (65, 17), (200, 4), (1100, 2)] {
            let mut draw = |n: usize| wide(&narrow(&normals(&mut rng, n)));
            let (x, dy, weight, bias) = (draw(rows * cols), draw(rows * cols), draw(cols), draw(cols));
            let column = |x: &[f64], j: usize| x.iter().skip(j).step_by(cols).copied().collect::<Vec<f64>>();
            let (mut mean, mut var) = (vec![7.0; cols], vec![7.0; cols]);
            statistics(&x, &mut mean, &mut var);
            for j in 0..cols {
                let m = column(&x, j).iter().sum::<f64>() / rows as f64;
                let v = column(&x, j).iter().map(|x| (x - m) * (x - m)).sum::<f64>() / rows as f64;
                assert!((m - mean[j]).abs() < 1e-12 && (v - var[j]).abs() < 1e-12);
            }
            let normalise = |x: &[f64], mean: &[f64], var: &[f64]| -> Vec<f64> {
                let of = |(at, x): (usize, &f64)| {
                    let j = at % cols;
                    (x - mean[j]) / (var[j] + 0.1).sqrt() * weight[j] + bias[j]
                };
                x.iter().enumerate().map(of).collect()
            };
            let rstd: Vec<f64> = var.iter().map(|v| 1.0 / (v + 0.1).sqrt()).collect();
            let mut y = vec![7.0; x.len()];
            batch_norm(&x, &mean, &rstd, &weight, &bias, Then::default(), &mut y);
            assert!(apart(&y, &normalise(&x, &mean, &var)) < 1e-12);
            for of_batch in [false, true] {
                let (mut dx, mut dw, mut db) = (vec![7.0; x.len()], vec![7.0; cols], vec![7.0; cols]);
                batch_norm_backward(&x, &dy, &mean, &rstd, &weight, of_batch, Gate::Open, &mut dx, &mut dw, &mut db);
                let loss = |x: &[f64]| {
                    let (mut m, mut v) = (mean.clone(), var.clone());
                    if of_batch {
                        statistics(x, &mut m, &mut v);
                    }
                    normalise(x, &m, &v).iter().zip(&dy).map(|(y, d)| y * d).sum::<f64>()
                };
                for at in (0..x.len()).step_by(x.len() / 9 + 1) {
                    let shifted = |h: f64| {
                        let mut x = x.clone();
                        x[at] += h;
                        loss(&x)
                    };
                    let numeric = (shifted(1e-5) - shifted(-1e-5)) / 2e-5;
                    assert!((numeric - dx[at]).abs() < 1e-6, "{rows} by {cols}: {} instead of {numeric}", dx[at]);
                }
                for j in 0..cols {
                    let (x, dy) = (column(&x, j), column(&dy, j));
                    let slope: f64 = x.iter().zip(&dy).map(|(x, d)| d * (x - mean[j]) * rstd[j]).sum();
                    assert!((dw[j] - slope).abs() < 1e-10 && (db[j] - dy.iter().sum::<f64>()).abs() < 1e-10);
                }
                let [sx, sdy, sw, sb, sm, sr] = [&x, &dy, &weight, &bias, &mean, &rstd].map(|v| narrow(v));
                on_every_tier(|isa| {
                    let [mut fy, mut fdx] = [0; 2].map(|_| vec![7.0f32; x.len()]);
                    let [mut fm, mut fv, mut fdw, mut fdb] = [0; 4].map(|_| vec![7.0f32; cols]);
                    statistics(&sx, &mut fm, &mut fv);
                    batch_norm(&sx, &sm, &sr, &sw, &sb, Then::default(), &mut fy);
                    batch_norm_backward(&sx, &sdy, &sm, &sr, &sw, of_batch, Gate::Open, &mut fdx, &mut fdw, &mut fdb);
                    // Numbers of about one after few roundings, and sums, which lose by the root of how many they are of.
                    for (ours, exact) in [(fm, &mean), (fv, &var), (fy, &y), (fdx, &dx)] {
                        assert!(apart(&wide(&ours), exact) < 2e-6, "{isa}: {rows} by {cols}");
                    }
                    for (ours, exact) in [(fdw, &dw), (fdb, &db)] {
                        let bound = 1e-6 * (1.0 + rows as f64).sqrt();
                        assert!(apart(&wide(&ours), exact) < bound, "{isa}: {rows} by {cols}");
                    }
                });
            }
        }
    }
}
