//! Entropy of the softmax of rows, and its slope.

use alloc::vec;

use crate::float::{Float, as_f32_mut};
use crate::math;
use crate::simd::{Simd, SimdOp, dispatch};
use crate::softmax::{Row, softmax_row_def};

/// Rows of [`entropies`].
struct Rows<'a, F> {
    x: &'a mut [F],
    cols: usize,
    eps: F,
    slope: Option<F>,
}

impl SimdOp for Rows<'_, f32> {
    type Output = f64;
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) -> f64 {
        let (cols, eps, one) = (self.cols, s.splat(self.eps), s.splat(1.0));
        // ln (p + eps) of a row, and room for the last vector.
        let mut logs = vec![0.0f32; cols + S::LANES];
        let mut total = 0.0;
        for row in self.x.chunks_exact_mut(cols) {
            Row(row).eval(s);
            let (mut h, mut dot) = (s.splat(0.0), s.splat(0.0));
            for i in (0..cols).step_by(S::LANES) {
                let p = s.load_at(row, i, 0.0);
                let mut q = s.add(p, eps);
                if cols - i < S::LANES {
                    // Beyond the end ln 1.
                    let mut ends = [1.0; 16];
                    ends.iter_mut().zip(&row[i..]).for_each(|(end, &p)| *end = p + self.eps);
                    q = s.load(&ends);
                }
                let log = math::log(s, q);
                h = s.fma(q, log, h);
                dot = s.fma(p, s.add(log, one), dot);
                s.store(log, &mut logs[i..]);
            }
            total -= f64::from(s.sum(h));
            if let Some(slope) = self.slope {
                // dH/dp is -(ln (p + eps) + 1); through the softmax dH/dx = p (dH/dp - sum p dH/dp).
                let (dot, slope) = (s.splat(s.sum(dot) - 1.0), s.splat(slope));
                for i in (0..cols).step_by(S::LANES) {
                    let p = s.load_at(row, i, 0.0);
                    s.store_at(s.mul(s.mul(p, s.sub(dot, s.load(&logs[i..]))), slope), row, i);
                }
            }
        }
        total
    }
}

impl<F: Float> Rows<'_, F> {
    /// The definition.
    fn define(self) -> f64 {
        let mut total = 0.0;
        for row in self.x.chunks_exact_mut(self.cols) {
            softmax_row_def(row);
            let log = |p: F| (p + self.eps).ln();
            total -= row.iter().map(|&p| (p + self.eps) * log(p)).sum::<F>().to_f64();
            if let Some(slope) = self.slope {
                let dot = row.iter().map(|&p| p * -(log(p) + F::ONE)).sum::<F>();
                row.iter_mut().for_each(|p| *p = *p * (-(log(*p) + F::ONE) - dot) * slope);
            }
        }
        total
    }
}

/// The sum of the entropies -sum (p + eps) ln (p + eps) of the softmaxes p of each row of x, in the rows' order. What becomes of x: the
/// softmaxes, or where `slope` is given, slope dH/dx.
///
/// # Panics
/// If x is not rows of `cols` elements.
pub fn entropies<F: Float>(x: &mut [F], cols: usize, eps: F, slope: Option<F>) -> f64 {
    if x.is_empty() {
        return 0.0;
    }
    assert!(cols > 0 && x.len().is_multiple_of(cols), "entropies: {} elements in rows of {cols}", x.len());
    match as_f32_mut(x) {
        Some(x) => {
            let (eps, slope) = (eps.to_f64() as f32, slope.map(|slope| slope.to_f64() as f32));
            dispatch(Rows { x, cols, eps, slope })
        }
        None => Rows { x, cols, eps, slope }.define(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::Isa;
    use crate::simd::eval_on;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_tier_is_the_definition(
            x in prop::collection::vec(-4f32..4.0, 1..120), rows in 1usize..4, eps in prop::sample::select(vec![0.0f32, 1e-7, 1e-2]), sloped in any::<bool>(),
        ) {
            let cols = x.len().div_ceil(rows);
            let x: Vec<f32> = x.iter().copied().cycle().take(cols * rows).collect();
            let slope = sloped.then_some(0.7f32);
            let mut exact: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
            let h = Rows { x: &mut exact, cols, eps: f64::from(eps), slope: slope.map(f64::from) }.define();
            for isa in Isa::available() {
                let mut y = x.clone();
                let ours = eval_on(isa, Rows { x: &mut y, cols, eps, slope });
                prop_assert!((ours - h).abs() < 1e-5 * (1.0 + h), "{isa}: {ours} instead of {h}");
                for (y, e) in y.iter().zip(&exact) {
                    prop_assert!((f64::from(*y) - e).abs() < 3e-6, "{isa}: {y} instead of {e}");
                }
            }
        }
    }

    /// The formula for rows of any length, and its slope by differences.
    #[test]
    fn the_definition_is_the_formula_and_its_slope() {
        let x = [0.3f64, -1.0, 2.0, 0.0, 0.7, -0.4];
        for (cols, eps) in [(1, 0.0), (2, 1e-3), (3, 1e-2), (6, 0.0)] {
            let formula = |x: &[f64]| -> f64 {
                let row = |row: &[f64]| {
                    let sum: f64 = row.iter().map(|x| x.exp()).sum();
                    -row.iter().map(|x| (x.exp() / sum + eps) * (x.exp() / sum + eps).ln()).sum::<f64>()
                };
                x.chunks(cols).map(row).sum()
            };
            let (mut p, mut slope) = (x, x);
            assert!((entropies(&mut p, cols, eps, None) - formula(&x)).abs() < 1e-14);
            assert!((entropies(&mut slope, cols, eps, Some(-0.6)) - formula(&x)).abs() < 1e-14);
            for at in 0..x.len() {
                let sum: f64 = x[at / cols * cols..][..cols].iter().map(|x| x.exp()).sum();
                assert!((p[at] - x[at].exp() / sum).abs() < 1e-14);
                let shifted = |h: f64| {
                    let mut x = x;
                    x[at] += h;
                    formula(&x)
                };
                let numeric = -0.6 * (shifted(1e-5) - shifted(-1e-5)) / 2e-5;
                assert!((slope[at] - numeric).abs() < 1e-9, "{} instead of {numeric}", slope[at]);
            }
        }
        assert_eq!(entropies::<f64>(&mut [], 3, 0.0, None), 0.0);
    }
}
