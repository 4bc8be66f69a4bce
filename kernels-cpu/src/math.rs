//! exp, log, tanh and erf on vectors of f32.
//!
//! Cephes-style argument reduction with polynomials fitted for f32; bounds are from a sweep over a dense sample of all
//! floats (see the tests). NaN gives NaN.

#![allow(clippy::excessive_precision)]

use crate::simd::Simd;

/// e^x within 2 ulp. Below -87.33 (where the result would be denormal) it is 0; above 88.72 infinity.
#[inline(always)]
pub fn exp<S: Simd>(s: S, x: S::F) -> S::F {
    // Within the range of exponents; beyond it the result is replaced below.
    let y = exp_of_negative(s, s.min(x, s.splat(89.0)));
    let y = s.select(s.lt(s.splat(88.722_84), x), s.splat(f32::INFINITY), y);
    s.select(s.eq(x, x), y, x)
}

/// The bits of [`exp`] where x is at most 0, but for roundings, or NaN: the probabilities of a softmax.
#[inline(always)]
pub fn exp_of_negative<S: Simd>(s: S, x: S::F) -> S::F {
    // x = n ln 2 + r with |r| <= ln 2 / 2, ln 2 in two parts so that n ln 2 is exact enough.
    let n = s.max(s.round(s.mul(x, s.splat(core::f32::consts::LOG2_E))), s.splat(-127.0));
    let r = s.fma(n, s.splat(-0.693_359_4), x);
    let r = s.fma(n, s.splat(2.121_944_4e-4), r);
    let mut p = s.splat(1.987_569_1e-4);
    for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = s.fma(p, r, s.splat(c));
    }
    let y = s.add(s.fma(s.mul(r, r), p, r), s.splat(1.0));
    s.select(s.lt(x, s.splat(-87.336_54)), s.splat(0.0), s.scale(y, n))
}

/// Natural logarithm within 2 ulp. 0 gives -infinity, negative numbers NaN; denormals are taken as they are.
#[inline(always)]
pub fn log<S: Simd>(s: S, x: S::F) -> S::F {
    // Denormals are scaled into the normal range.
    let tiny = s.lt(x, s.splat(f32::MIN_POSITIVE));
    let scaled = s.select(tiny, s.mul(x, s.splat(8_388_608.0)), x);
    // x = 2^e m with m in [sqrt(1/2), sqrt(2)).
    let shifted = s.sub_i(s.bits(scaled), s.splat_i(0x3f35_04f3));
    let e = s.shr_i::<23>(shifted);
    let m = s.as_float(s.add_i(s.and_i(shifted, s.splat_i(0x007f_ffff)), s.splat_i(0x3f35_04f3)));
    let e = s.sub(s.to_f32(e), s.select(tiny, s.splat(23.0), s.splat(0.0)));
    let r = s.sub(m, s.splat(1.0));
    let mut p = s.splat(7.037_683_6e-2);
    for c in [
        -1.151_461e-1,
        1.167_699_84e-1,
        -1.242_014_1e-1,
        1.424_932_3e-1,
        -1.666_805_7e-1,
        2.000_071_5e-1,
        -2.499_999_4e-1,
        3.333_333e-1,
    ] {
        p = s.fma(p, r, s.splat(c));
    }
    let r2 = s.mul(r, r);
    let y = s.mul(s.mul(p, r), r2);
    let y = s.fma(e, s.splat(-2.121_944_4e-4), y);
    let y = s.fma(r2, s.splat(-0.5), y);
    let y = s.fma(e, s.splat(0.693_359_4), s.add(r, y));
    let y = s.select(s.lt(x, s.splat(f32::INFINITY)), y, x);
    let y = s.select(s.eq(x, s.splat(0.0)), s.splat(f32::NEG_INFINITY), y);
    s.select(s.lt(x, s.splat(0.0)), s.splat(f32::NAN), y)
}

/// Hyperbolic tangent within 3 ulp.
#[inline(always)]
pub fn tanh<S: Simd>(s: S, x: S::F) -> S::F {
    let a = s.abs(x);
    // Small: odd polynomial. Large: 1 - 2 / (e^2a + 1).
    let x2 = s.mul(x, x);
    let mut p = s.splat(-5.704_988_7e-3);
    for c in [2.063_908_9e-2, -5.373_971_2e-2, 1.333_144_2e-1, -3.333_328_2e-1] {
        p = s.fma(p, x2, s.splat(c));
    }
    let small = s.fma(s.mul(x2, p), x, x);
    let e = exp(s, s.add(a, a));
    let large = s.sub(s.splat(1.0), s.div(s.splat(2.0), s.add(e, s.splat(1.0))));
    let large = s.select(s.lt(x, s.splat(0.0)), s.sub(s.splat(0.0), large), large);
    let y = s.select(s.lt(a, s.splat(0.625)), small, large);
    s.select(s.eq(x, x), y, x)
}

/// 1 / (1 + e^-x) within 4 ulp.
#[inline(always)]
pub fn sigmoid<S: Simd>(s: S, x: S::F) -> S::F {
    s.div(s.splat(1.0), s.add(s.splat(1.0), exp(s, s.sub(s.splat(0.0), x))))
}

/// The normal distribution function (1 + erf(x / sqrt 2)) / 2, and e^(-x^2 / 2), with one exponential for both. Absolute error
/// below 3e-7; nothing cancels in the lower tail. Formula 7.1.26 of Abramowitz and Stegun (1964).
#[inline(always)]
pub fn normal_cdf<S: Simd>(s: S, x: S::F) -> (S::F, S::F) {
    let e = exp_of_negative(s, s.mul(s.splat(-0.5), s.mul(x, x)));
    // Their p is divided by sqrt 2 and their coefficients by 2.
    let t = s.div(s.splat(1.0), s.fma(s.abs(x), s.splat(0.231_641_89), s.splat(1.0)));
    let mut p = s.splat(0.530_702_714_5);
    for c in [-0.726_576_013_5, 0.710_706_870_5, -0.142_248_368, 0.127_414_796] {
        p = s.fma(p, t, s.splat(c));
    }
    let tail = s.mul(s.mul(p, t), e);
    (s.select(s.lt(x, s.splat(0.0)), tail, s.sub(s.splat(1.0), tail)), e)
}

/// x times the normal distribution function F of x: the error is below 1.5e-6 (1 + |x F(x)|), that of F below 3e-7. Without an exponential, as a fraction
/// of polynomials in x^2 fitted to (F(x) - 1/2) / x up to |x| = 5.45, where F is 0 or 1 but for 3e-8.
#[inline(always)]
pub fn gelu<S: Simd>(s: S, x: S::F) -> S::F {
    const MOST: f32 = 5.45;
    let within = s.max(s.min(x, s.splat(MOST)), s.splat(-MOST));
    let u = s.mul(within, within);
    let (mut p, mut q) = (s.splat(2.306_428_3e-8), s.splat(1.206_840_5e-6));
    for c in [6.354_598e-6, 1.665_090_5e-4, 4.663_611e-3, 3.360_703e-2, 3.989_422_3e-1] {
        p = s.fma(p, u, s.splat(c));
    }
    for c in [7.299_847_5e-5, 1.871_331_7e-3, 2.850_889_8e-2, 2.509_063_5e-1, 1.0] {
        q = s.fma(q, u, s.splat(c));
    }
    let f = s.fma(within, s.div(p, q), s.splat(0.5));
    s.mul(x, s.select(s.lt(s.splat(-MOST), within), f, s.splat(0.0)))
}

/// Error function, absolute error below 3e-7 (relative below 4e-7 near 0).
#[inline(always)]
pub fn erf<S: Simd>(s: S, x: S::F) -> S::F {
    let a = s.abs(x);
    // |x| < 0.921875: x + x P(x^2). Above: 1 - e^Q(|x|). Chebyshev interpolations of erf(x)/x - 1 and ln erfc(x).
    let x2 = s.mul(x, x);
    let mut p = s.splat(8.35189706e-5);
    for c in [-0.000813879238, 0.00520072967, -0.0268592973, 0.112836941, -0.376126337, 0.128379167] {
        p = s.fma(p, x2, s.splat(c));
    }
    let small = s.fma(p, x, x);
    let mut q = s.splat(-4.45389645e-8);
    for c in [
        2.59433933e-6,
        -5.49361694e-5,
        0.000643316472,
        -0.00491077997,
        0.0267362339,
        -0.110499571,
        -0.631483494,
        -1.13038842,
        0.000349582114,
    ] {
        q = s.fma(q, a, s.splat(c));
    }
    let large = s.sub(s.splat(1.0), exp(s, q));
    let large = s.select(s.lt(s.splat(3.95), a), s.splat(1.0), large);
    let large = s.select(s.lt(x, s.splat(0.0)), s.sub(s.splat(0.0), large), large);
    let y = s.select(s.lt(a, s.splat(0.921_875)), small, large);
    s.select(s.eq(x, x), y, x)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::Isa;
    use crate::simd::{SimdOp, eval_on};
    use alloc::vec::Vec;

    #[derive(Clone, Copy, Debug)]
    enum F {
        Exp,
        Log,
        Tanh,
        Sigmoid,
        Erf,
        NormalCdf,
        Gelu,
    }

    struct Run<'a>(F, &'a [f32]);
    impl SimdOp for Run<'_> {
        type Output = Vec<f32>;
        fn eval<S: Simd>(self, s: S) -> Vec<f32> {
            let mut out = alloc::vec![0.0; self.1.len().next_multiple_of(16)];
            for (x, y) in self.1.chunks(S::LANES).zip(out.chunks_mut(S::LANES)) {
                let v = if x.len() == S::LANES { s.load(x) } else { s.load_partial(x, 1.0) };
                let r = match self.0 {
                    F::Exp => exp(s, v),
                    F::Log => log(s, v),
                    F::Tanh => tanh(s, v),
                    F::Sigmoid => sigmoid(s, v),
                    F::Erf => erf(s, v),
                    F::NormalCdf => normal_cdf(s, v).0,
                    F::Gelu => gelu(s, v),
                };
                s.store(r, y);
            }
            out.truncate(self.1.len());
            out
        }
    }

    /// Every 4099th float of either sign, and the specials.
    fn floats() -> Vec<f32> {
        (0..=u32::MAX)
            .step_by(4099)
            .map(f32::from_bits)
            .chain([0.0, -0.0, 1.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN])
            .collect()
    }

    fn worst(f: F, exact: fn(f64) -> f64, error: fn(f64, f64) -> f64) -> f64 {
        let x = floats();
        let mut worst: f64 = 0.0;
        for isa in Isa::available() {
            for (&x, y) in x.iter().zip(eval_on(isa, Run(f, &x))) {
                let e = exact(f64::from(x));
                if e.is_nan() {
                    assert!(y.is_nan(), "{f:?}({x:e}) = {y:e} on {isa}");
                } else if e.abs() > f64::from(f32::MAX) || e.abs() < f64::from(f32::MIN_POSITIVE) {
                    assert!(
                        (f64::from(y) - e).abs() < 1.2e-38 || f64::from(y) == e || y.is_infinite(),
                        "{f:?}({x:e}) = {y:e} on {isa}"
                    );
                } else {
                    let this = error(f64::from(y), e);
                    assert!(this.is_finite(), "{f:?}({x:e}) = {y:e}, exact {e:e}, on {isa}");
                    worst = worst.max(this);
                }
            }
        }
        worst
    }

    fn ulps(y: f64, exact: f64) -> f64 {
        let ulp = f64::from(f32::from_bits((exact.abs() as f32).to_bits() + 1)) - f64::from(exact.abs() as f32);
        (y - exact).abs() / ulp
    }

    #[test]
    fn exp_bound() {
        let worst = worst(F::Exp, libm::exp, ulps);
        assert!(worst < 2.0, "{worst} ulp");
    }

    #[test]
    fn log_bound() {
        let worst = worst(F::Log, libm::log, ulps);
        assert!(worst < 2.0, "{worst} ulp");
    }

    #[test]
    fn tanh_bound() {
        let worst = worst(F::Tanh, libm::tanh, ulps);
        assert!(worst < 3.0, "{worst} ulp");
    }

    #[test]
    fn sigmoid_bound() {
        let worst = worst(F::Sigmoid, |x| 1.0 / (1.0 + libm::exp(-x)), ulps);
        assert!(worst < 4.0, "{worst} ulp");
    }

    #[test]
    fn erf_bound() {
        let worst = worst(F::Erf, libm::erf, |y, e| (y - e).abs() / e.abs());
        assert!(worst < 4e-7, "{worst}");
    }

    #[test]
    fn gelu_bound() {
        let exact = |x: f64| 0.5 * x * libm::erfc(-x * core::f64::consts::FRAC_1_SQRT_2);
        let near = worst(F::Gelu, exact, |y, e| (y - e).abs() / (1.0 + e.abs()));
        assert!(near < 1.5e-6, "{near}");
    }

    #[test]
    fn normal_cdf_bound() {
        let worst =
            worst(F::NormalCdf, |x| 0.5 * libm::erfc(-x * core::f64::consts::FRAC_1_SQRT_2), |y, e| (y - e).abs());
        assert!(worst < 3e-7, "{worst}");
    }
}
