//! Layer norm (Ba, Kiros and Hinton 2016) and L2 normalisation of rows.

use alloc::vec;
use alloc::vec::Vec;

use crate::float::{Float, as_f32, as_f32_mut};
use crate::par::{self, Shared};
use crate::simd::{Simd, SimdOp, array, dispatch};

/// Sixteen running sums, combined as a tree: fast, and the same order on every call.
#[inline(always)]
pub(crate) fn lanes<F: Float>(n: usize, term: impl Fn(usize) -> F) -> F {
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

/// Rows of [`layer_norm`].
struct Forward<'a, F> {
    x: &'a [F],
    weight: &'a [F],
    bias: &'a [F],
    eps: F,
    y: &'a mut [F],
    mean: &'a mut [F],
    rstd: &'a mut [F],
}

impl SimdOp for Forward<'_, f32> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd>(mut self, s: S) {
        // Two rows at a time, as one has little to do while its sums wait for each other.
        let pairs = self.mean.len() / 2;
        for pair in 0..pairs {
            self.rows::<S, 2>(s, 2 * pair);
        }
        if self.mean.len() % 2 == 1 {
            self.rows::<S, 1>(s, 2 * pairs);
        }
    }
}

impl Forward<'_, f32> {
    /// `R` rows from one on.
    #[inline(always)]
    fn rows<S: Simd, const R: usize>(&mut self, s: S, first: usize) {
        let (cols, start) = (self.weight.len(), first * self.weight.len());
        let x: [&[f32]; R] = array(|r| &self.x[start + r * cols..][..cols]);
        let mut sums = [s.splat(0.0); R];
        for i in (0..cols).step_by(S::LANES) {
            for r in 0..R {
                sums[r] = s.add(sums[r], s.load_at(x[r], i, 0.0));
            }
        }
        let mean: [f32; R] = array(|r| s.sum(sums[r]) / cols as f32);
        let mut squares = [s.splat(0.0); R];
        for i in (0..cols).step_by(S::LANES) {
            for r in 0..R {
                let d = s.sub(s.load_at(x[r], i, mean[r]), s.splat(mean[r]));
                squares[r] = s.fma(d, d, squares[r]);
            }
        }
        let rstd: [f32; R] = array(|r| 1.0 / libm::sqrtf(s.sum(squares[r]) / cols as f32 + self.eps));
        for i in (0..cols).step_by(S::LANES) {
            let (weight, bias) = (s.load_at(self.weight, i, 0.0), s.load_at(self.bias, i, 0.0));
            for r in 0..R {
                let z = s.mul(s.sub(s.load_at(x[r], i, 0.0), s.splat(mean[r])), s.splat(rstd[r]));
                s.store_at(s.fma(z, weight, bias), &mut self.y[start + r * cols..][..cols], i);
            }
        }
        self.mean[first..first + R].copy_from_slice(&mean);
        self.rstd[first..first + R].copy_from_slice(&rstd);
    }
}

impl<F: Float> Forward<'_, F> {
    /// The definition.
    fn define(self) {
        let cols = self.weight.len();
        let n = F::from_f64(cols as f64);
        let rows = self.x.chunks_exact(cols).zip(self.y.chunks_exact_mut(cols));
        for ((x, y), (mean_out, rstd_out)) in rows.zip(self.mean.iter_mut().zip(self.rstd)) {
            let mean = lanes(cols, |i| x[i]) / n;
            let var = lanes(cols, |i| (x[i] - mean) * (x[i] - mean)) / n;
            let rstd = F::ONE / (var + self.eps).sqrt();
            for (((y, &x), &w), &b) in y.iter_mut().zip(x).zip(self.weight).zip(self.bias) {
                *y = (x - mean) * rstd * w + b;
            }
            (*mean_out, *rstd_out) = (mean, rstd);
        }
    }

    fn run(self) {
        let Self { x, weight, bias, eps, y, mean, rstd } = self;
        match (as_f32(x), as_f32(weight), as_f32(bias), as_f32_mut(y), as_f32_mut(mean), as_f32_mut(rstd)) {
            (Some(x), Some(weight), Some(bias), Some(y), Some(mean), Some(rstd)) => {
                dispatch(Forward { x, weight, bias, eps: eps.to_f64() as f32, y, mean, rstd });
            }
            _ => Self { x, weight, bias, eps, y, mean, rstd }.define(),
        }
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
    par::for_each(x.len() / cols, cols * 2, |rows| {
        let places = rows.start * cols..rows.end * cols;
        // SAFETY: some rows, handed out once.
        let (y, mean, rstd) = unsafe { (y.slice(places.clone()), mean.slice(rows.clone()), rstd.slice(rows)) };
        Forward { x: &x[places], weight, bias, eps, y, mean, rstd }.run();
    });
}

/// Rows of [`layer_norm_backward`]; adds to the gradients of weight and bias.
struct Backward<'a, F> {
    x: &'a [F],
    weight: &'a [F],
    mean: &'a [F],
    rstd: &'a [F],
    dy: &'a [F],
    dx: &'a mut [F],
    dweight: &'a mut [F],
    dbias: &'a mut [F],
}

// With z = (x - mean) rstd and g = dy weight: dx = rstd (g - mean(g) - z mean(g z)).
impl SimdOp for Backward<'_, f32> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) {
        let cols = self.weight.len();
        let rows = self.x.chunks_exact(cols).zip(self.dy.chunks_exact(cols)).zip(self.dx.chunks_exact_mut(cols));
        for (((x, dy), dx), (&mean, &rstd)) in rows.zip(self.mean.iter().zip(self.rstd)) {
            let (center, rstd) = (s.splat(mean), s.splat(rstd));
            let (mut g_sum, mut gz_sum) = (s.splat(0.0), s.splat(0.0));
            for i in (0..cols).step_by(S::LANES) {
                let z = s.mul(s.sub(s.load_at(x, i, mean), center), rstd);
                let g = s.mul(s.load_at(dy, i, 0.0), s.load_at(self.weight, i, 0.0));
                g_sum = s.add(g_sum, g);
                gz_sum = s.fma(g, z, gz_sum);
            }
            let (g_mean, gz_mean) = (s.splat(s.sum(g_sum) / cols as f32), s.splat(s.sum(gz_sum) / cols as f32));
            for i in (0..cols).step_by(S::LANES) {
                let z = s.mul(s.sub(s.load_at(x, i, mean), center), rstd);
                let d = s.load_at(dy, i, 0.0);
                let g = s.mul(d, s.load_at(self.weight, i, 0.0));
                s.store_at(s.mul(rstd, s.sub(s.sub(g, g_mean), s.mul(z, gz_mean))), dx, i);
                s.store_at(s.fma(d, z, s.load_at(self.dweight, i, 0.0)), self.dweight, i);
                s.store_at(s.add(d, s.load_at(self.dbias, i, 0.0)), self.dbias, i);
            }
        }
    }
}

impl<F: Float> Backward<'_, F> {
    /// The definition.
    fn define(self) {
        let cols = self.weight.len();
        let (w, n) = (self.weight, F::from_f64(cols as f64));
        let rows = self.x.chunks_exact(cols).zip(self.dy.chunks_exact(cols)).zip(self.dx.chunks_exact_mut(cols));
        for (((x, dy), dx), (&mean, &rstd)) in rows.zip(self.mean.iter().zip(self.rstd)) {
            let g_mean = lanes(cols, |i| dy[i] * w[i]) / n;
            let gz_mean = lanes(cols, |i| dy[i] * w[i] * ((x[i] - mean) * rstd)) / n;
            for i in 0..cols {
                let z = (x[i] - mean) * rstd;
                dx[i] = rstd * (dy[i] * w[i] - g_mean - z * gz_mean);
                self.dweight[i] += dy[i] * z;
                self.dbias[i] += dy[i];
            }
        }
    }

    fn run(self) {
        let Self { x, weight, mean, rstd, dy, dx, dweight, dbias } = self;
        let read = [x, weight, mean, rstd, dy].map(as_f32);
        match (read, as_f32_mut(dx), as_f32_mut(dweight), as_f32_mut(dbias)) {
            ([Some(x), Some(weight), Some(mean), Some(rstd), Some(dy)], Some(dx), Some(dweight), Some(dbias)) => {
                dispatch(Backward { x, weight, mean, rstd, dy, dx, dweight, dbias });
            }
            _ => Self { x, weight, mean, rstd, dy, dx, dweight, dbias }.define(),
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
            && rstd.len() == mean.len()
            && dweight.len() == cols
            && dbias.len() == cols,
        "layer_norm_backward: lengths"
    );
    let dx = Shared::new(dx);
    let parts: Vec<(Vec<F>, Vec<F>)> = par::map_chunks(mean.len(), GROUP, cols * 8, |rows| {
        let (mut dweight, mut dbias) = (vec![F::ZERO; cols], vec![F::ZERO; cols]);
        let places = rows.start * cols..rows.end * cols;
        Backward {
            x: &x[places.clone()],
            weight,
            mean: &mean[rows.clone()],
            rstd: &rstd[rows],
            dy: &dy[places.clone()],
            // SAFETY: some rows, handed out once.
            dx: unsafe { dx.slice(places) },
            dweight: &mut dweight,
            dbias: &mut dbias,
        }
        .run();
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
    let (y, norm) = (Shared::new(y), Shared::new(norm));
    par::for_each(x.len() / cols.max(1), cols * 4, |rows| {
        for r in rows {
            let (place, row) = (r * cols..(r + 1) * cols, &x[r * cols..][..cols]);
            // SAFETY: one row, handed out once.
            let (y, norm) = unsafe { (y.slice(place), &mut norm.slice(r..r + 1)[0]) };
            let (length, least) = (lanes(cols, |i| row[i] * row[i]).sqrt(), F::from_f64(1e-12));
            // NaN stays, as it would not by a maximum.
            *norm = if length < least { least } else { length };
            y.iter_mut().zip(row).for_each(|(y, &x)| *y = x / *norm);
        }
    });
}

/// dx = (dy - y (y . dy)) / norm for each row.
pub fn l2_normalise_backward<F: Float>(y: &[F], norm: &[F], dy: &[F], cols: usize, dx: &mut [F]) {
    assert!(
        y.len() == dy.len() && dy.len() == dx.len() && norm.len() * cols == y.len(),
        "l2_normalise_backward: lengths"
    );
    if dx.is_empty() {
        return;
    }
    par::chunks_mut(dx, cols, cols * 4, |r, dx| {
        let (y, dy) = (&y[r * cols..][..cols], &dy[r * cols..][..cols]);
        let dot = lanes(cols, |i| y[i] * dy[i]);
        dx.iter_mut().zip(y).zip(dy).for_each(|((dx, &y), &d)| *dx = (d - y * dot) / norm[r]);
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::Isa;
    use crate::simd::eval_on;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn every_tier_is_the_definition(rows in 1usize..5, cols in 1usize..70, seed in any::<u64>()) {
            let mut rng = crate::rng::Rng::new(seed, 0);
            let mut draw = |n: usize| (0..n).map(|_| rng.normal() as f32).collect::<Vec<f32>>();
            let (x, weight, bias, dy) = (draw(rows * cols), draw(cols), draw(cols), draw(rows * cols));
            let eps = 0.1f32;
            let wide = |x: &[f32]| x.iter().map(|&x| f64::from(x)).collect::<Vec<f64>>();
            let (wx, ww, wb, wdy) = (wide(&x), wide(&weight), wide(&bias), wide(&dy));
            let (mut y, mut mean, mut rstd) = (vec![0.0f64; rows * cols], vec![0.0; rows], vec![0.0; rows]);
            layer_norm(&wx, &ww, &wb, f64::from(eps), &mut y, &mut mean, &mut rstd);
            let (mut dx, mut dw, mut db) = (vec![0.0f64; rows * cols], vec![0.0; cols], vec![0.0; cols]);
            layer_norm_backward(&wx, &ww, &mean, &rstd, &wdy, &mut dx, &mut dw, &mut db);
            let close = |a: &[f32], b: &[f64]| a.iter().zip(b).all(|(&a, b)| (f64::from(a) - b).abs() < 1e-4);
            for isa in Isa::available() {
                let (mut fy, mut fm, mut fr) = (vec![7.0f32; rows * cols], vec![7.0; rows], vec![7.0; rows]);
                eval_on(isa, Forward { x: &x, weight: &weight, bias: &bias, eps, y: &mut fy, mean: &mut fm, rstd: &mut fr });
                prop_assert!(close(&fy, &y) && close(&fm, &mean) && close(&fr, &rstd), "{isa}: {fy:?} instead of {y:?}");
                let (mut fdx, mut fdw, mut fdb) = (vec![7.0f32; rows * cols], vec![0.0; cols], vec![0.0; cols]);
                eval_on(isa, Backward { x: &x, weight: &weight, mean: &fm, rstd: &fr, dy: &dy, dx: &mut fdx, dweight: &mut fdw, dbias: &mut fdb });
                prop_assert!(close(&fdx, &dx) && close(&fdw, &dw) && close(&fdb, &db), "{isa}: {fdx:?} instead of {dx:?}");
            }
        }
    }

    #[test]
    fn nan_is_not_hidden() {
        for isa in Isa::available() {
            for k in 0..20 {
                let (mut x, ones) = ([0.5f32; 20], [1.0; 20]);
                x[k] = f32::NAN;
                let [mut y, mut mean, mut rstd] = [0; 3].map(|_| [7.0; 20]);
                let rows = Forward {
                    x: &x,
                    weight: &ones,
                    bias: &ones,
                    eps: 0.1,
                    y: &mut y,
                    mean: &mut mean[..1],
                    rstd: &mut rstd[..1],
                };
                eval_on(isa, rows);
                assert!(y.iter().all(|y| y.is_nan()), "{isa} {k}");
            }
        }
        let (x, mut y, mut norm, mut dx) = ([3.0, f32::NAN, 3.0, 4.0], [7.0; 4], [7.0; 2], [7.0; 4]);
        l2_normalise(&x, 2, &mut y, &mut norm);
        l2_normalise_backward(&y, &norm, &[1.0; 4], 2, &mut dx);
        assert!(norm[0].is_nan() && y[..2].iter().chain(&dx[..2]).all(|x| x.is_nan()), "{norm:?} {y:?} {dx:?}");
        assert!(
            norm[1] == 5.0 && y[2..] == [0.6, 0.8] && dx[2..].iter().all(|x| x.is_finite()),
            "{norm:?} {y:?} {dx:?}"
        );
    }

    /// More rows than a group, so that sums of groups are added, and threads that share them; both norms with their gradients by differences.
    #[cfg(feature = "rayon")]
    #[test]
    fn many_rows_give_the_formula_and_its_differences() {
        use crate::testing::{apart, narrow, normals, on_every_tier, wide};
        let mut rng = crate::rng::Rng::new(7, 0);
        for (rows, cols) in [(1, 1), (3, 5), (33, 7), (70, 40), (2000, 33)] {
            let mut draw = |n: usize| wide(&narrow(&normals(&mut rng, n)));
            let (x, dy, weight, bias) = (draw(rows * cols), draw(rows * cols), draw(cols), draw(cols));
            let (eps, line) = (0.1f64, |at: usize| at / cols * cols..(at / cols + 1) * cols);
            let normalise = |x: &[f64]| -> Vec<f64> {
                let mut out = Vec::new();
                for row in x.chunks(cols) {
                    let mean = row.iter().sum::<f64>() / cols as f64;
                    let var = row.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / cols as f64;
                    out.extend((0..cols).map(|j| (row[j] - mean) / (var + eps).sqrt() * weight[j] + bias[j]));
                }
                out
            };
            let length = |row: &[f64]| row.iter().map(|x| x * x).sum::<f64>().sqrt();
            let unit = |x: &[f64]| -> Vec<f64> {
                x.chunks(cols).flat_map(|row| row.iter().map(|x| x / length(row)).collect::<Vec<_>>()).collect()
            };
            let (mut y, mut mean, mut rstd) = (vec![7.0; x.len()], vec![7.0; rows], vec![7.0; rows]);
            layer_norm(&x, &weight, &bias, eps, &mut y, &mut mean, &mut rstd);
            assert!(apart(&y, &normalise(&x)) < 1e-12, "{rows} {cols}");
            let (mut u, mut norm) = (vec![7.0; x.len()], vec![7.0; rows]);
            l2_normalise(&x, cols, &mut u, &mut norm);
            assert!(apart(&u, &unit(&x)) < 1e-13, "{rows} {cols}");
            let (mut dx, mut dw, mut db) = (vec![7.0; x.len()], vec![7.0; cols], vec![7.0; cols]);
            layer_norm_backward(&x, &weight, &mean, &rstd, &dy, &mut dx, &mut dw, &mut db);
            let mut du = vec![7.0; x.len()];
            l2_normalise_backward(&u, &norm, &dy, cols, &mut du);
            for at in (0..x.len()).step_by(x.len() / 30 + 1) {
                let numeric = |f: &dyn Fn(&[f64]) -> Vec<f64>| {
                    let shifted = |h: f64| {
                        let mut row = x[line(at)].to_vec();
                        row[at % cols] += h;
                        f(&row).iter().zip(&dy[line(at)]).map(|(y, d)| y * d).sum::<f64>()
                    };
                    (shifted(1e-5) - shifted(-1e-5)) / 2e-5
                };
                assert!((numeric(&normalise) - dx[at]).abs() < 1e-6, "{rows} {cols}: layer norm at {at}");
                assert!((numeric(&unit) - du[at]).abs() < 1e-6, "{rows} {cols}: l2 at {at}");
            }
            for j in 0..cols {
                let z = |at: usize| (y[at] - bias[j]) / weight[j];
                let of = |f: &dyn Fn(usize) -> f64| (j..x.len()).step_by(cols).map(f).sum::<f64>();
                assert!((dw[j] - of(&|at| dy[at] * z(at))).abs() < 1e-9 && (db[j] - of(&|at| dy[at])).abs() < 1e-9);
            }
            let lengths: Vec<f64> = norm.iter().flat_map(|&n| vec![n; cols]).collect();
            let [sx, sdy, sw, sb] = [&x, &dy, &weight, &bias].map(|v| narrow(v));
            on_every_tier(|isa| {
                let [mut fy, mut fdx, mut fu, mut fdu] = [0; 4].map(|_| vec![7.0f32; x.len()]);
                let [mut fm, mut fr, mut fn_] = [0; 3].map(|_| vec![7.0f32; rows]);
                let [mut fdw, mut fdb] = [0; 2].map(|_| vec![7.0f32; cols]);
                layer_norm(&sx, &sw, &sb, eps as f32, &mut fy, &mut fm, &mut fr);
                layer_norm_backward(&sx, &sw, &fm, &fr, &sdy, &mut fdx, &mut fdw, &mut fdb);
                l2_normalise(&sx, cols, &mut fu, &mut fn_);
                l2_normalise_backward(&fu, &fn_, &sdy, cols, &mut fdu);
                let pairs = [(fy, &y), (fdx, &dx), (fu, &u), (fdw, &dw), (fdb, &db)];
                assert!(pairs.iter().all(|(ours, exact)| apart(&wide(ours), exact) < 2e-4), "{isa}: {rows} by {cols}");
                // A row of one element divides by its own size.
                let sized = |du: &[f64]| -> Vec<f64> { du.iter().zip(&lengths).map(|(du, n)| du * n).collect() };
                assert!(apart(&sized(&wide(&fdu)), &sized(&du)) < 2e-5, "{isa}: {rows} by {cols}");
            });
        }
        let (mut y, mut norm) = ([7.0], [7.0]);
        l2_normalise(&[0.0], 1, &mut y, &mut norm);
        assert_eq!((y, norm), ([0.0], [1e-12]));
    }
}
