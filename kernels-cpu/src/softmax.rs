//! Softmax over rows, and what is made of it. Rows are contiguous: [rows, cols].

use crate::float::{Float, as_f32_mut};
use crate::math;
use crate::par;
use crate::simd::{Simd, SimdOp, dispatch};

/// In place: x becomes e^(x - max) / sum; returns max + ln sum. A row of only -infinity (all masked) becomes zeros.
pub fn softmax_row_def<F: Float>(x: &mut [F]) -> F {
    let top = x.iter().fold(F::NEG_INFINITY, |a, &b| if b > a || b.is_nan() { b } else { a });
    if top == F::NEG_INFINITY {
        x.fill(F::ZERO);
        return top;
    }
    x.iter_mut().for_each(|x| *x = (*x - top).exp());
    let sum = x.iter().copied().sum::<F>();
    x.iter_mut().for_each(|x| *x /= sum);
    top + sum.ln()
}

/// A row of [`softmax_row`].
pub(crate) struct Row<'a>(pub &'a mut [f32]);

impl SimdOp for Row<'_> {
    type Output = f32;
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) -> f32 {
        let x = self.0;
        let whole = x.len() / S::LANES * S::LANES;
        let (body, tail) = x.split_at_mut(whole);
        let mut top = s.splat(f32::NEG_INFINITY);
        for v in body.chunks_exact(S::LANES) {
            top = s.max(s.load(v), top);
        }
        if !tail.is_empty() {
            top = s.max(s.load_partial(tail, f32::NEG_INFINITY), top);
        }
        let top = s.max_lane(top);
        if top == f32::NEG_INFINITY && body.iter().chain(tail.iter()).all(|x| *x == f32::NEG_INFINITY) {
            body.fill(0.0);
            tail.fill(0.0);
            return top;
        }
        let mut sum = s.splat(0.0);
        for v in body.chunks_exact_mut(S::LANES) {
            let e = math::exp_of_negative(s, s.sub(s.load(v), s.splat(top)));
            sum = s.add(sum, e);
            s.store(e, v);
        }
        if !tail.is_empty() {
            let e = math::exp_of_negative(s, s.sub(s.load_partial(tail, f32::NEG_INFINITY), s.splat(top)));
            sum = s.add(sum, e);
            s.store_partial(e, tail);
        }
        let sum = s.sum(sum);
        let inverse = s.splat(1.0 / sum);
        for v in body.chunks_exact_mut(S::LANES) {
            s.store(s.mul(s.load(v), inverse), v);
        }
        tail.iter_mut().for_each(|x| *x *= 1.0 / sum);
        top + libm::logf(sum)
    }
}

/// As [`softmax_row_def`], with the vectors of the tier in use for f32.
#[inline]
pub fn softmax_row<F: Float>(x: &mut [F]) -> F {
    match as_f32_mut(x) {
        Some(x) => F::from_f64(f64::from(dispatch(Row(x)))),
        None => softmax_row_def(x),
    }
}

/// y = softmax of each row of x. Where `mask` (u8, broadcast over blocks of `rows_per_mask` rows) is 0, y is 0 and x counts
/// for nothing; a row without any other is 0 throughout.
///
/// # Panics
/// If the sizes do not fit.
pub fn softmax<F: Float>(x: &[F], cols: usize, mask: Option<(&[u8], usize)>, y: &mut [F]) {
    assert_eq!(x.len(), y.len(), "softmax: lengths");
    par::chunks_mut(y, cols, cols * 16, |r, y| {
        y.copy_from_slice(&x[r * cols..][..cols]);
        if let Some((mask, rows_per_mask)) = mask {
            let mask = &mask[r / rows_per_mask * cols..][..cols];
            y.iter_mut().zip(mask).for_each(|(y, &m)| *y = if m == 0 { F::NEG_INFINITY } else { *y });
        }
        softmax_row(y);
    });
}

/// dx = y (dy - sum(dy y)) for each row.
pub fn softmax_backward<F: Float>(y: &[F], dy: &[F], cols: usize, dx: &mut [F]) {
    assert!(y.len() == dy.len() && dy.len() == dx.len(), "softmax_backward: lengths");
    par::chunks_mut(dx, cols, cols * 4, |r, dx| {
        let (y, dy) = (&y[r * cols..][..cols], &dy[r * cols..][..cols]);
        let dot = y.iter().zip(dy).map(|(&y, &d)| y * d).sum::<F>();
        dx.iter_mut().zip(y).zip(dy).for_each(|((dx, &y), &d)| *dx = y * (d - dot));
    });
}

/// y = x - logsumexp(x) for each row.
pub fn log_softmax<F: Float>(x: &[F], cols: usize, y: &mut [F]) {
    assert_eq!(x.len(), y.len(), "log_softmax: lengths");
    par::chunks_mut(y, cols, cols * 16, |r, y| {
        let x = &x[r * cols..][..cols];
        y.copy_from_slice(x);
        let lse = softmax_row(y);
        y.iter_mut().zip(x).for_each(|(y, &x)| *y = x - lse);
    });
}

/// dx = dy - e^y sum(dy) for each row.
pub fn log_softmax_backward<F: Float>(y: &[F], dy: &[F], cols: usize, dx: &mut [F]) {
    assert!(y.len() == dy.len() && dy.len() == dx.len(), "log_softmax_backward: lengths");
    par::chunks_mut(dx, cols, cols * 16, |r, dx| {
        let (y, dy) = (&y[r * cols..][..cols], &dy[r * cols..][..cols]);
        let sum = dy.iter().copied().sum::<F>();
        dx.iter_mut().zip(y).zip(dy).for_each(|((dx, &y), &d)| *dx = d - y.exp() * sum);
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::Isa;
    use crate::simd::eval_on;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_tier_is_the_definition(mut x in prop::collection::vec(-90f32..90.0, 1..70), masked in prop::collection::vec(any::<bool>(), 70)) {
            for (x, m) in x.iter_mut().zip(masked) { if m { *x = f32::NEG_INFINITY; } }
            let mut exact: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
            let lse = softmax_row_def(&mut exact);
            for isa in Isa::available() {
                let mut y = x.clone();
                let ours = f64::from(eval_on(isa, Row(&mut y)));
                prop_assert!(ours == lse || (ours - lse).abs() < 1e-5 * (1.0 + lse.abs()), "{isa}: {ours} instead of {lse}");
                for (y, e) in y.iter().zip(&exact) { prop_assert!((f64::from(*y) - e).abs() < 1e-6); }
            }
        }
    }

    #[test]
    fn nan_is_not_hidden() {
        for isa in Isa::available() {
            for k in 0..20 {
                let mut x = [0.5f32; 20];
                x[k] = f32::NAN;
                eval_on(isa, Row(&mut x));
                assert!(x.iter().any(|x| x.is_nan()), "{isa} {k}");
            }
        }
    }

    /// Rows, masks that serve several of them, and gradients: f64 against the formulas, every tier against f64.
    #[cfg(feature = "rayon")]
    #[test]
    fn rows_masks_and_gradients_are_their_formulas() {
        use crate::testing::{apart, narrow, normals, on_every_tier, wide};
        use alloc::vec;
        use alloc::vec::Vec;
        let mut rng = crate::rng::Rng::new(6, 0);
        for (blocks, rows, cols) in [(1, 1, 1), (2, 3, 5), (3, 1, 37), (2, 40, 130)] {
            let mut draw = || wide(&narrow(&normals(&mut rng, blocks * rows * cols)));
            let (x, dy) = (draw(), draw());
            let mask: Vec<u8> = (0..blocks * cols).map(|k| u8::from(k % 3 != 1)).collect();
            for masked in [false, true] {
                let mask = masked.then_some((&mask[..], rows));
                let seen = |at: usize| mask.is_none_or(|(m, _)| m[at / (rows * cols) * cols + at % cols] != 0);
                let row = |at: usize| at / cols * cols..(at / cols + 1) * cols;
                let total = |at: usize| row(at).filter(|&k| seen(k)).map(|k| x[k].exp()).sum::<f64>();
                let expected: Vec<f64> =
                    (0..x.len()).map(|at| if seen(at) { x[at].exp() / total(at) } else { 0.0 }).collect();
                let (mut y, mut dx) = (vec![7.0; x.len()], vec![7.0; x.len()]);
                softmax(&x, cols, mask, &mut y);
                assert!(apart(&y, &expected) < 1e-13, "{blocks} {rows} {cols}");
                softmax_backward(&y, &dy, cols, &mut dx);
                let dot = |at: usize| row(at).map(|k| y[k] * dy[k]).sum::<f64>();
                let slope: Vec<f64> = (0..x.len()).map(|at| y[at] * (dy[at] - dot(at))).collect();
                assert!(apart(&dx, &slope) < 1e-13);
                on_every_tier(|isa| {
                    let (mut fy, mut fdx) = (vec![7.0f32; x.len()], vec![7.0; x.len()]);
                    softmax(&narrow(&x), cols, mask, &mut fy);
                    softmax_backward(&fy, &narrow(&dy), cols, &mut fdx);
                    assert!(apart(&wide(&fy), &y) < 1e-6 && apart(&wide(&fdx), &dx) < 1e-5, "{isa}");
                });
            }
            let (mut y, mut dx) = (vec![7.0; x.len()], vec![7.0; x.len()]);
            log_softmax(&x, cols, &mut y);
            log_softmax_backward(&y, &dy, cols, &mut dx);
            for at in 0..x.len() {
                let row = at / cols * cols..(at / cols + 1) * cols;
                let lse = x[row.clone()].iter().map(|x| x.exp()).sum::<f64>().ln();
                assert!((y[at] - (x[at] - lse)).abs() < 1e-13);
                let slope = dy[at] - (x[at] - lse).exp() * dy[row].iter().sum::<f64>();
                assert!((dx[at] - slope).abs() < 1e-12);
            }
            on_every_tier(|isa| {
                let (mut fy, mut fdx) = (vec![7.0f32; x.len()], vec![7.0; x.len()]);
                log_softmax(&narrow(&x), cols, &mut fy);
                log_softmax_backward(&fy, &narrow(&dy), cols, &mut fdx);
                assert!(apart(&wide(&fy), &y) < 1e-5 && apart(&wide(&fdx), &dx) < 1e-4, "{isa}");
            });
        }
    }
}
