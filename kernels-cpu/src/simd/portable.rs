//! Eight numbers at a time through the `wide` crate, which uses what the build target has (SSE2, NEON, wasm128).

use wide::{f32x8, i16x16, i32x8};

use super::Simd;
use crate::isa::Isa;

/// Token of [`Isa::Portable`].
#[derive(Clone, Copy)]
pub struct Portable(());

impl Portable {
    pub(super) fn new() -> Self {
        Self(())
    }
}

impl Simd for Portable {
    const LANES: usize = 8;
    const ISA: Isa = Isa::Portable;
    type F = f32x8;
    type I = i32x8;
    type M = f32x8;

    #[inline(always)]
    fn splat(self, x: f32) -> f32x8 {
        f32x8::splat(x)
    }
    #[inline(always)]
    fn splat_i(self, x: i32) -> i32x8 {
        i32x8::splat(x)
    }
    #[inline(always)]
    unsafe fn load_ptr(self, p: *const f32) -> f32x8 {
        // SAFETY: the caller's promise.
        f32x8::new(unsafe { p.cast::<[f32; 8]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn store_ptr(self, x: f32x8, p: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { p.cast::<[f32; 8]>().write_unaligned(x.to_array()) }
    }
    #[inline(always)]
    fn add(self, a: f32x8, b: f32x8) -> f32x8 {
        a + b
    }
    #[inline(always)]
    fn sub(self, a: f32x8, b: f32x8) -> f32x8 {
        a - b
    }
    #[inline(always)]
    fn mul(self, a: f32x8, b: f32x8) -> f32x8 {
        a * b
    }
    #[inline(always)]
    fn div(self, a: f32x8, b: f32x8) -> f32x8 {
        a / b
    }
    #[inline(always)]
    fn min(self, a: f32x8, b: f32x8) -> f32x8 {
        self.select(self.lt(a, b), a, b)
    }
    #[inline(always)]
    fn max(self, a: f32x8, b: f32x8) -> f32x8 {
        self.select(self.lt(b, a), a, b)
    }
    #[inline(always)]
    fn fma(self, a: f32x8, b: f32x8, c: f32x8) -> f32x8 {
        a * b + c
    }
    #[inline(always)]
    fn abs(self, a: f32x8) -> f32x8 {
        a.abs()
    }
    #[inline(always)]
    fn sqrt(self, a: f32x8) -> f32x8 {
        a.sqrt()
    }
    #[inline(always)]
    fn round(self, a: f32x8) -> f32x8 {
        // Adding 1.5 * 2^23 leaves no bits for a fraction, and the addition rounds ties to even. Larger numbers are integers.
        let magic = f32x8::splat(12_582_912.0);
        self.select(self.lt(a.abs(), f32x8::splat(4_194_304.0)), a + magic - magic, a)
    }
    #[inline(always)]
    fn lt(self, a: f32x8, b: f32x8) -> f32x8 {
        a.simd_lt(b)
    }
    #[inline(always)]
    fn le(self, a: f32x8, b: f32x8) -> f32x8 {
        a.simd_le(b)
    }
    #[inline(always)]
    fn eq(self, a: f32x8, b: f32x8) -> f32x8 {
        a.simd_eq(b)
    }
    #[inline(always)]
    fn select(self, m: f32x8, a: f32x8, b: f32x8) -> f32x8 {
        m.select(a, b)
    }
    #[inline(always)]
    fn to_i32(self, a: f32x8) -> i32x8 {
        a.fast_round_int()
    }
    #[inline(always)]
    fn to_f32(self, a: i32x8) -> f32x8 {
        f32x8::from_i32x8(a)
    }
    #[inline(always)]
    fn bits(self, a: f32x8) -> i32x8 {
        i32x8::new(a.to_array().map(|x| x.to_bits() as i32))
    }
    #[inline(always)]
    fn as_float(self, a: i32x8) -> f32x8 {
        f32x8::new(a.to_array().map(|x| f32::from_bits(x as u32)))
    }
    #[inline(always)]
    fn add_i(self, a: i32x8, b: i32x8) -> i32x8 {
        a + b
    }
    #[inline(always)]
    fn sub_i(self, a: i32x8, b: i32x8) -> i32x8 {
        a - b
    }
    #[inline(always)]
    fn and_i(self, a: i32x8, b: i32x8) -> i32x8 {
        a & b
    }
    #[inline(always)]
    fn shl_i<const N: u32>(self, a: i32x8) -> i32x8 {
        a << N
    }
    #[inline(always)]
    fn shr_i<const N: u32>(self, a: i32x8) -> i32x8 {
        a >> N
    }
    #[inline(always)]
    fn dot_i16(self, sum: i32x8, a: i32x8, b: i32x8) -> i32x8 {
        let halves = |x: i32x8| {
            let x = x.to_array();
            i16x16::new(core::array::from_fn(|k| (x[k / 2] >> (16 * (k % 2))) as i16))
        };
        sum + halves(a).dot(halves(b))
    }
}
