//! Layer norm (Ba, Kiros and Hinton 2016) and L2 normalisation of rows.

use alloc::vec;
use alloc::vec::Vec;

use crate::float::Float;
use crate::par::{self, Shared};
use crate::simd::{Simd, SimdOp, dispatch};

/// Sixteen running sums, combined as a tree: fast, and the same order on every call.
#[inline(always)]
fn lanes<F: Float>(n: usize, term: impl Fn(usize) -> F) -> F {
    let mut sums = [F::ZERO; 16];
    let whole = n / 16 * 16;
    for i in (0..whole).step_by(16) {
        for k in 0..16 {
            sums[k] += term(i + k);
        }
    }
    for i in whole..n {
        sums[i - whole] += term(i);
    }
    let mut half = 8;
    while half > 0 {
        for k in 0..half {
            sums[k] += sums[k + half];
        }
        half /= 2;
    }
    sums[0]
}

struct Forward<'a, F> {
    x: &'a [F],
    weight: &'a [F],
    bias: &'a [F],
    eps: F,
    y: &'a mut [F],
}

impl<F: Float> SimdOp for Forward<'_, F> {
    type Output = (F, F);
    #[inline(always)]
    fn eval<S: Simd>(self, _: S) -> (F, F) {
        let (x, n) = (self.x, F::from_f64(self.x.len() as f64));
        let mean = lanes(x.len(), |i| x[i]) / n;
        let var = lanes(x.len(), |i| (x[i] - mean) * (x[i] - mean)) / n;
        let rstd = F::ONE / (var + self.eps).sqrt();
        for (((y, &x), &w), &b) in self.y.iter_mut().zip(x).zip(self.weight).zip(self.bias) {
            *y = (x - mean) * rstd * w + b;
        }
        (mean, rstd)
    }
}

/// y = (x - mean) / sqrt(var + eps) * weight + bias for each row of `weight.len()` elements; var is biased. Writes mean and
/// 1 / sqrt(var + eps) of each row.
///
/// # Panics
/// If the lengths do not fit.
pub fn layer_norm<F: Float>(x: &[F], weight: &[F], bias: &[F], eps: F, y: &mut [F], mean: &mut [F], rstd: &mut [F]) {
    let cols = weight.len();
    assert!(
        cols > 0
            && bias.len() == cols
            && x.len() == y.len()
            && mean.len() * cols == x.len()
            && rstd.len() == mean.len(),
        "layer_norm: lengths"
    );
    let (y, mean, rstd) = (Shared::new(y), Shared::new(mean), Shared::new(rstd));
    par::for_each(x.len() / cols, cols * 4, |rows| {
        for r in rows {
            // SAFETY: one row, handed out once.
            let (y, mean, rstd) =
                unsafe { (y.slice(r * cols..(r + 1) * cols), mean.slice(r..r + 1), rstd.slice(r..r + 1)) };
            (mean[0], rstd[0]) = dispatch(Forward { x: &x[r * cols..][..cols], weight, bias, eps, y });
        }
    });
}

struct Backward<'a, F> {
    x: &'a [F],
    weight: &'a [F],
    mean: F,
    rstd: F,
    dy: &'a [F],
    dx: &'a mut [F],
    dweight: &'a mut [F],
    dbias: &'a mut [F],
}

impl<F: Float> SimdOp for Backward<'_, F> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd>(self, _: S) {
        // With z = (x - mean) rstd and g = dy weight: dx = rstd (g - mean(g) - z mean(g z)).
        let (x, dy, w, n) = (self.x, self.dy, self.weight, F::from_f64(self.x.len() as f64));
        let (mean, rstd) = (self.mean, self.rstd);
        let g_mean = lanes(x.len(), |i| dy[i] * w[i]) / n;
        let gz_mean = lanes(x.len(), |i| dy[i] * w[i] * ((x[i] - mean) * rstd)) / n;
        for i in 0..x.len() {
            let z = (x[i] - mean) * rstd;
            self.dx[i] = rstd * (dy[i] * w[i] - g_mean - z * gz_mean);
            self.dweight[i] += dy[i] * z;
            self.dbias[i] += dy[i];
        }
    }
}

/// Gradients of [`layer_norm`].
#[allow(clippy::too_many_arguments)]
pub fn layer_norm_backward<F: Float>(
    x: &[F],
    weight: &[F],
    mean: &[F],
    rstd: &[F],
    dy: &[F],
    dx: &mut [F],
    dweight: &mut [F],
    dbias: &mut [F],
) {
    // Rows in fixed groups; the sums of groups are added in order.
    const GROUP: usize = 32;
    let cols = weight.len();
    assert!(
        x.len() == dy.len()
            && dy.len() == dx.len()
            && mean.len() * cols == x.len()
            && dweight.len() == cols
            && dbias.len() == cols,
        "layer_norm_backward: lengths"
    );
    let dx = Shared::new(dx);
    let parts: Vec<(Vec<F>, Vec<F>)> = par::map_chunks(mean.len(), GROUP, cols * 8, |rows| {
        let (mut dweight, mut dbias) = (vec![F::ZERO; cols], vec![F::ZERO; cols]);
        for r in rows {
            let place = r * cols..(r + 1) * cols;
            // SAFETY: one row, handed out once.
            let dx = unsafe { dx.slice(place.clone()) };
            dispatch(Backward {
                x: &x[place.clone()],
                weight,
                mean: mean[r],
                rstd: rstd[r],
                dy: &dy[place],
                dx,
                dweight: &mut dweight,
                dbias: &mut dbias,
            });
        }
        (dweight, dbias)
    });
    dweight.fill(F::ZERO);
    dbias.fill(F::ZERO);
    for (w, b) in parts {
        crate::zip::add_assign(dweight, &w);
        crate::zip::add_assign(dbias, &b);
    }
}

/// y = x / max(|x|, 1e-12) for each row, as torch's normalize. Writes max(|x|, 1e-12).
pub fn l2_normalise<F: Float>(x: &[F], cols: usize, y: &mut [F], norm: &mut [F]) {
    assert!(x.len() == y.len() && norm.len() * cols == x.len(), "l2_normalise: lengths");
    for (r, norm) in norm.iter_mut().enumerate() {
        let row = &x[r * cols..][..cols];
        *norm = lanes(cols, |i| row[i] * row[i]).sqrt().max(F::from_f64(1e-12));
        y[r * cols..][..cols].iter_mut().zip(row).for_each(|(y, &x)| *y = x / *norm);
    }
}

/// dx = (dy - y (y . dy)) / norm for each row.
pub fn l2_normalise_backward<F: Float>(y: &[F], norm: &[F], dy: &[F], cols: usize, dx: &mut [F]) {
    assert!(
        y.len() == dy.len() && dy.len() == dx.len() && norm.len() * cols == y.len(),
        "l2_normalise_backward: lengths"
    );
    for (r, &norm) in norm.iter().enumerate() {
        let place = r * cols..(r + 1) * cols;
        let (y, dy) = (&y[place.clone()], &dy[place.clone()]);
        let dot = lanes(cols, |i| y[i] * dy[i]);
        dx[place].iter_mut().zip(y).zip(dy).for_each(|((dx, &y), &d)| *dx = (d - y * dot) / norm);
    }
}
