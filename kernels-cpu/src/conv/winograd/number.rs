//! What maps and their transforms are held in: f32, or bf16, whose transforms are computed in f32 and rounded.

use half::bf16;

use super::{OfInput, each, twice};
use crate::gemm::{
    Finish, Line, Mat, Packed, Right, Rounds, UPPER, Written, halves, multiply, multiply_halves, nearest, nearest_sum,
    numbers,
};
use crate::simd::{Simd, array};

/// A number of a map.
pub(in crate::conv) trait Number: Rounds + Written + Default {
    /// Vectors of f32 that are made of those that lie side by side in memory.
    const VECTORS: usize;

    /// Numbers of a buffer.
    fn of(lines: &mut [Line]) -> &mut [Self];

    /// C = A B with a matrix that was packed from such numbers.
    fn multiply(a: Mat<'_, Self>, b: &Packed, c: &mut [f32], ldc: usize);

    /// Bᵀ d B of `LANES * VECTORS` channels of 4 x 4 pixels: element i goes to `out + i * apart`.
    ///
    /// # Safety
    /// The numbers must be readable, and the places writable.
    unsafe fn transform<S: Simd>(s: S, pixel: impl Fn(usize, usize) -> *const Self, out: *mut Self, apart: usize);

    /// `VECTORS` vectors, widened.
    ///
    /// # Safety
    /// They must be readable.
    unsafe fn read<S: Simd>(s: S, from: *const Self) -> [S::F; 2];

    /// The first `VECTORS` of the vectors, rounded.
    ///
    /// # Safety
    /// The place must be writable.
    unsafe fn write<S: Simd>(s: S, x: [S::F; 2], to: *mut Self);

    /// The nearest number.
    fn nearest_to(x: f32) -> Self;
}

impl Number for f32 {
    const VECTORS: usize = 1;

    fn of(lines: &mut [Line]) -> &mut [f32] {
        numbers(lines)
    }

    fn multiply(a: Mat<'_, f32>, b: &Packed, c: &mut [f32], ldc: usize) {
        multiply(a, Right::Packed(b), c, ldc, Finish::default(), false);
    }

    #[inline(always)]
    unsafe fn transform<S: Simd>(s: S, pixel: impl Fn(usize, usize) -> *const f32, out: *mut f32, apart: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            let d: [[S::F; 4]; 4] = array(|i| array(|j| s.load_ptr(pixel(i, j))));
            each(twice(OfInput, s, d), |i, x| s.store_ptr(x, out.add(i * apart)));
        }
    }

    #[inline(always)]
    unsafe fn read<S: Simd>(s: S, from: *const f32) -> [S::F; 2] {
        // SAFETY: the caller's promise.
        [unsafe { s.load_ptr(from) }; 2]
    }

    #[inline(always)]
    unsafe fn write<S: Simd>(s: S, [x, _]: [S::F; 2], to: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { s.store_ptr(x, to) }
    }

    #[inline(always)]
    fn nearest_to(x: f32) -> f32 {
        x
    }
}

impl Number for bf16 {
    const VECTORS: usize = 2;

    fn of(lines: &mut [Line]) -> &mut [bf16] {
        halves(lines)
    }

    fn multiply(a: Mat<'_, bf16>, b: &Packed, c: &mut [f32], ldc: usize) {
        multiply_halves(a, b, c, ldc, Finish::default(), false);
    }

    /// Of words that hold two numbers: those of the lower halves, then those of the upper ones.
    #[inline(always)]
    unsafe fn transform<S: Simd>(s: S, pixel: impl Fn(usize, usize) -> *const bf16, out: *mut bf16, apart: usize) {
        // SAFETY: the caller's promise.
        let words: [[S::I; 4]; 4] = array(|i| array(|j| s.bits(unsafe { s.load_ptr(pixel(i, j).cast()) })));
        let lower = twice(OfInput, s, array(|i| array(|j| s.as_float(s.shl_i::<16>(words[i][j])))));
        let upper = twice(OfInput, s, array(|i| array(|j| s.as_float(s.and_i(words[i][j], s.splat_i(UPPER))))));
        each(lower, |i, lower| {
            let lower = s.and_i(s.shr_i::<16>(s.bits(nearest_sum(s, lower))), s.splat_i(0xffff));
            let upper = s.and_i(s.bits(nearest_sum(s, upper[i / 4][i % 4])), s.splat_i(UPPER));
            // SAFETY: as above.
            unsafe { s.store_ptr(s.as_float(s.add_i(lower, upper)), out.add(i * apart).cast()) };
        });
    }

    #[inline(always)]
    unsafe fn read<S: Simd>(s: S, from: *const bf16) -> [S::F; 2] {
        // SAFETY: the caller's promise.
        let x = unsafe { core::slice::from_raw_parts(from, 2 * S::LANES) };
        [bf16::upper(s, &x[..S::LANES]), bf16::upper(s, &x[S::LANES..])]
    }

    #[inline(always)]
    fn nearest_to(x: f32) -> bf16 {
        bf16::from_bits(x.rounded())
    }

    #[inline(always)]
    unsafe fn write<S: Simd>(s: S, [a, b]: [S::F; 2], to: *mut bf16) {
        // SAFETY: the caller's promise.
        unsafe { s.store_ptr(s.upper_halves(nearest(s, a), nearest(s, b)), to.cast()) }
    }
}
