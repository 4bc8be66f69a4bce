//! The two arithmetic types: f32 is what runs fast, f64 is what definitions are checked in.

use core::any::TypeId;
use core::fmt::Debug;
use core::iter::Sum;
use core::ops::{Add, AddAssign, Div, DivAssign, Mul, MulAssign, Neg, Sub, SubAssign};

/// f32 or f64. Scalar definitions are written once over this trait; transcendental functions come
/// from `libm`, so that they give the same bits on every platform.
pub trait Float:
    Copy
    + Debug
    + Default
    + PartialEq
    + PartialOrd
    + Send
    + Sync
    + Sum
    + 'static
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
    + SubAssign
    + MulAssign
    + DivAssign
{
    /// 0
    const ZERO: Self;
    /// 1
    const ONE: Self;
    /// Positive infinity.
    const INFINITY: Self;
    /// Negative infinity.
    const NEG_INFINITY: Self;
    /// Nearest value.
    fn from_f64(x: f64) -> Self;
    /// Exact.
    fn to_f64(self) -> f64;
    /// e^x
    fn exp(self) -> Self;
    /// Natural logarithm.
    fn ln(self) -> Self;
    /// Square root, correctly rounded.
    fn sqrt(self) -> Self;
    /// Hyperbolic tangent.
    fn tanh(self) -> Self;
    /// Error function.
    fn erf(self) -> Self;
    /// 1 - erf x, to the last bits where that is small.
    fn erfc(self) -> Self;
    /// x^y
    fn powf(self, y: Self) -> Self;
    /// |x|
    fn abs(self) -> Self;
    /// a * b + c rounded once.
    fn mul_add(self, b: Self, c: Self) -> Self;
    /// The larger; the other one where one is NaN.
    fn max(self, other: Self) -> Self;
    /// The smaller; the other one where one is NaN.
    fn min(self, other: Self) -> Self;
    /// Neither NaN nor infinite.
    fn is_finite(self) -> bool;
    /// Not a number.
    fn is_nan(self) -> bool;
}

macro_rules! float {
    ($t:ident, $exp:ident, $ln:ident, $sqrt:ident, $tanh:ident, $erf:ident, $erfc:ident, $pow:ident, $fma:ident, $abs:ident, $max:ident, $min:ident) => {
        impl Float for $t {
            const ZERO: Self = 0.0;
            const ONE: Self = 1.0;
            const INFINITY: Self = $t::INFINITY;
            const NEG_INFINITY: Self = $t::NEG_INFINITY;
            fn from_f64(x: f64) -> Self {
                x as $t
            }
            fn to_f64(self) -> f64 {
                f64::from(self)
            }
            fn exp(self) -> Self {
                libm::$exp(self)
            }
            fn ln(self) -> Self {
                libm::$ln(self)
            }
            fn sqrt(self) -> Self {
                libm::$sqrt(self)
            }
            fn tanh(self) -> Self {
                libm::$tanh(self)
            }
            fn erf(self) -> Self {
                libm::$erf(self)
            }
            fn erfc(self) -> Self {
                libm::$erfc(self)
            }
            fn powf(self, y: Self) -> Self {
                libm::$pow(self, y)
            }
            fn abs(self) -> Self {
                libm::$abs(self)
            }
            fn mul_add(self, b: Self, c: Self) -> Self {
                libm::$fma(self, b, c)
            }
            fn max(self, other: Self) -> Self {
                libm::$max(self, other)
            }
            fn min(self, other: Self) -> Self {
                libm::$min(self, other)
            }
            fn is_finite(self) -> bool {
                $t::is_finite(self)
            }
            fn is_nan(self) -> bool {
                $t::is_nan(self)
            }
        }
    };
}
float!(f32, expf, logf, sqrtf, tanhf, erff, erfcf, powf, fmaf, fabsf, fmaxf, fminf);
float!(f64, exp, log, sqrt, tanh, erf, erfc, pow, fma, fabs, fmax, fmin);

/// The slice as f32, if that is what `F` is: the way from a generic entry to its SIMD body.
pub fn as_f32<F: Float>(x: &[F]) -> Option<&[f32]> {
    // SAFETY: the types are the same, checked by their ids.
    (TypeId::of::<F>() == TypeId::of::<f32>()).then(|| unsafe { &*(x as *const [F] as *const [f32]) })
}

/// As [`as_f32`], mutable.
pub fn as_f32_mut<F: Float>(x: &mut [F]) -> Option<&mut [f32]> {
    // SAFETY: the types are the same, checked by their ids.
    (TypeId::of::<F>() == TypeId::of::<f32>()).then(|| unsafe { &mut *(x as *mut [F] as *mut [f32]) })
}

/// The slice as f64, if that is what `F` is.
pub fn as_f64<F: Float>(x: &[F]) -> Option<&[f64]> {
    // SAFETY: the types are the same, checked by their ids.
    (TypeId::of::<F>() == TypeId::of::<f64>()).then(|| unsafe { &*(x as *const [F] as *const [f64]) })
}

/// As [`as_f64`], mutable.
pub fn as_f64_mut<F: Float>(x: &mut [F]) -> Option<&mut [f64]> {
    // SAFETY: the types are the same, checked by their ids.
    (TypeId::of::<F>() == TypeId::of::<f64>()).then(|| unsafe { &mut *(x as *mut [F] as *mut [f64]) })
}
