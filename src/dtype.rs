//! Element types.

use half::{bf16, f16};

/// The type of a tensor's elements, known at run time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// 32-bit float: what runs fast.
    F32,
    /// 64-bit float: what gradients are checked in.
    F64,
    /// bfloat16: storage only.
    BF16,
    /// IEEE half: storage only.
    F16,
    /// 64-bit integer: ids and indices.
    I64,
    /// 32-bit integer.
    I32,
    /// Masks, comparisons, pixels.
    U8,
    /// Quantised weights.
    I8,
}

impl DType {
    /// Bytes per element; also its alignment.
    pub fn size(self) -> usize {
        match self {
            Self::F64 | Self::I64 => 8,
            Self::F32 | Self::I32 => 4,
            Self::BF16 | Self::F16 => 2,
            Self::U8 | Self::I8 => 1,
        }
    }

    /// Short name, as in `f32`.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F64 => "f64",
            Self::BF16 => "bf16",
            Self::F16 => "f16",
            Self::I64 => "i64",
            Self::I32 => "i32",
            Self::U8 => "u8",
            Self::I8 => "i8",
        }
    }

    /// f32 or f64: the types that arithmetic and autodiff work in.
    pub fn is_arithmetic(self) -> bool {
        matches!(self, Self::F32 | Self::F64)
    }

    /// Any of the four float types.
    pub fn is_float(self) -> bool {
        matches!(self, Self::F32 | Self::F64 | Self::BF16 | Self::F16)
    }
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

mod sealed {
    pub trait Sealed {}
}

/// A Rust type that a tensor can hold. Every bit pattern of it is a valid value.
pub trait Element: sealed::Sealed + Copy + Default + PartialEq + Send + Sync + std::fmt::Debug + 'static {
    /// The run-time name of this type.
    const DTYPE: DType;
    /// Value as f64; i64 beyond 2^53 is rounded.
    fn to_f64(self) -> f64;
    /// Nearest value; integers truncate and saturate.
    fn from_f64(x: f64) -> Self;
}

macro_rules! element {
    ($($t:ty, $dtype:ident, $to:expr, $from:expr;)*) => {$(
        impl sealed::Sealed for $t {}
        impl Element for $t {
            const DTYPE: DType = DType::$dtype;
            fn to_f64(self) -> f64 { $to(self) }
            fn from_f64(x: f64) -> Self { $from(x) }
        }
    )*};
}

/// The number itself or, where f32 does not have it, the odd one of its two neighbours: rounded once more, to fewer bits, that is as the number is. (The
/// conversions from f64 of the crate half drop bits, or round twice.)
fn odd(x: f64) -> f32 {
    let near = x as f32;
    if f64::from(near) == x || x.is_nan() {
        return near;
    }
    let beyond = u32::from(f64::from(near).abs() > x.abs());
    f32::from_bits((near.to_bits() - beyond) | 1)
}

element! {
    f32, F32, f64::from, |x| x as f32;
    f64, F64, |x| x, |x| x;
    bf16, BF16, f64::from, |x| bf16::from_f32(odd(x));
    f16, F16, f64::from, |x| f16::from_f32(odd(x));
    i64, I64, |x| x as f64, |x| x as i64;
    i32, I32, f64::from, |x| x as i32;
    u8, U8, f64::from, |x| x as u8;
    i8, I8, f64::from, |x| x as i8;
}

/// Runs `$body` with the type `$T` standing for the Rust type of `$dtype`.
#[macro_export]
macro_rules! for_dtype {
    ($dtype:expr, $T:ident => $body:expr) => {
        match $dtype {
            $crate::DType::F32 => {
                type $T = f32;
                $body
            }
            $crate::DType::F64 => {
                type $T = f64;
                $body
            }
            $crate::DType::BF16 => {
                type $T = ::half::bf16;
                $body
            }
            $crate::DType::F16 => {
                type $T = ::half::f16;
                $body
            }
            $crate::DType::I64 => {
                type $T = i64;
                $body
            }
            $crate::DType::I32 => {
                type $T = i32;
                $body
            }
            $crate::DType::U8 => {
                type $T = u8;
                $body
            }
            $crate::DType::I8 => {
                type $T = i8;
                $body
            }
        }
    };
}

/// Runs `$body` with `$F` standing for f32 or f64; any other type panics, naming the op.
#[macro_export]
macro_rules! for_float {
    ($op:expr, $dtype:expr, $F:ident => $body:expr) => {
        match $dtype {
            $crate::DType::F32 => {
                type $F = f32;
                $body
            }
            $crate::DType::F64 => {
                type $F = f64;
                $body
            }
            other => panic!("{}: needs f32 or f64, got {other}", $op),
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f64_is_rounded_once_to_types_of_16_bits() {
        // Just above, on and below the middle of two neighbours: by less than f32 has, and in both directions.
        for (end, little) in [(-8, 2f64.powi(-40)), (-8, 2f64.powi(-52)), (-11, 2f64.powi(-40)), (-11, 2f64.powi(-52))]
        {
            let (middle, step) = (1.0 + 2f64.powi(end), 1.0 + 2f64.powi(end + 1));
            for sign in [1.0, -1.0] {
                let of = |x: f64| match end {
                    -8 => nearest::<bf16>(sign * x),
                    _ => nearest::<f16>(sign * x),
                };
                assert_eq!([middle - little, middle, middle + little].map(of), [1.0, 1.0, step].map(|x| sign * x));
            }
        }
        for x in [0.0, -0.0, 1e-50, -1e-50, 1e39, -1e39, f64::INFINITY, f64::NAN, 3e-40, 6e-8] {
            // What both roundings agree on.
            let (b, h) = (nearest::<bf16>(x), nearest::<f16>(x));
            let expected = [bf16::from_f32(x as f32).to_f64(), f16::from_f32(x as f32).to_f64()];
            assert_eq!([b, h].map(f64::to_bits), expected.map(f64::to_bits), "{x:e}");
        }
    }

    fn nearest<T: Element>(x: f64) -> f64 {
        T::from_f64(x).to_f64()
    }
}
