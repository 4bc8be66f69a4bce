//! Numbers that a product takes as bf16, each rounded to the nearest, ties to even.

use half::bf16;

use super::Mat;
use super::pack::{self, Line};
use crate::par::{self, Shared};
use crate::simd::{Simd, SimdOp, dispatch};

/// The upper half of a word.
pub(crate) const UPPER: i32 = 0xffff_u32.cast_signed() << 16;

/// A number that a product takes as bf16.
pub trait Rounds: Copy + Send + Sync {
    /// 0.
    const ZERO: Self;
    /// The bits of the nearest bf16, ties to even; NaN stays one.
    fn rounded(self) -> u16;
    /// As [`Rounds::rounded`] of a vector's numbers, in the upper halves of words; the lower ones may hold anything.
    fn upper<S: Simd>(s: S, x: &[Self]) -> S::F;
    /// Two numbers to a word, of two vectors' numbers.
    #[inline(always)]
    fn pairs_of<S: Simd>(s: S, x: &[Self]) -> S::F {
        s.upper_halves(Self::upper(s, &x[..S::LANES]), Self::upper(s, &x[S::LANES..]))
    }
    /// The same numbers where they are bf16.
    fn halves(_x: &[Self]) -> Option<&[bf16]> {
        None
    }
    /// A matrix of pairs that lie as words where a word holds two, in whole words.
    #[inline(always)]
    fn pairs(_x: Mat<'_, Self>) -> Option<Mat<'_, f32>> {
        None
    }
}

/// The nearest bf16 in the upper halves of words, whose lower ones may hold anything.
#[inline(always)]
pub(crate) fn nearest<S: Simd>(s: S, x: S::F) -> S::F {
    // A sum with NaN is one that rounding does not lose.
    s.select(s.eq(x, x), nearest_sum(s, x), s.add(x, x))
}

/// As [`nearest`], of sums of products of bf16: where such a sum is NaN, its lower half is 0, as that of a bf16 and of the processor's own NaN
/// is, and rounding leaves it.
#[inline(always)]
pub(crate) fn nearest_sum<S: Simd>(s: S, x: S::F) -> S::F {
    let bits = s.bits(x);
    let odd = s.and_i(s.shr_i::<16>(bits), s.splat_i(1));
    s.as_float(s.add_i(bits, s.add_i(odd, s.splat_i(0x7fff))))
}

impl Rounds for f32 {
    const ZERO: Self = 0.0;
    #[inline(always)]
    fn upper<S: Simd>(s: S, x: &[f32]) -> S::F {
        nearest(s, s.load(x))
    }
    #[inline(always)]
    fn rounded(self) -> u16 {
        let bits = self.to_bits();
        let nearest = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
        ((if self.is_nan() { bits | 0x40_0000 } else { nearest }) >> 16) as u16
    }
}

impl Rounds for bf16 {
    const ZERO: Self = bf16::ZERO;
    #[inline(always)]
    fn rounded(self) -> u16 {
        self.to_bits()
    }
    #[inline(always)]
    fn upper<S: Simd>(s: S, x: &[bf16]) -> S::F {
        let mut upper = [0.0; 16];
        upper.iter_mut().zip(&x[..S::LANES]).for_each(|(to, x)| *to = wide(*x));
        s.load(&upper)
    }
    #[inline(always)]
    fn pairs_of<S: Simd>(s: S, x: &[bf16]) -> S::F {
        assert!(x.len() >= 2 * S::LANES);
        // SAFETY: as many numbers, each half of a word, of whose bits all are f32.
        unsafe { s.load_ptr(x.as_ptr().cast()) }
    }

    fn halves(x: &[bf16]) -> Option<&[bf16]> {
        Some(x)
    }

    fn pairs(x: Mat<'_, bf16>) -> Option<Mat<'_, f32>> {
        let data = x.data.get(x.offset..)?;
        let even = x.col_stride == 1 && x.row_stride % 2 == 0 && x.row_stride > 0 && x.cols.is_multiple_of(2);
        if !even || !data.as_ptr().cast::<f32>().is_aligned() {
            return None;
        }
        // SAFETY: two bf16 have the bytes of one f32, of which all are numbers; as many as there are whole pairs, aligned.
        let data = unsafe { core::slice::from_raw_parts(data.as_ptr().cast(), data.len() / 2) };
        Some(Mat { data, offset: 0, rows: x.rows, cols: x.cols / 2, row_stride: x.row_stride / 2, col_stride: 1 })
    }
}

/// Numbers as the nearest bf16.
///
/// # Panics
/// If the lengths differ.
pub fn round<T: Rounds>(x: &[T], y: &mut [bf16]) {
    assert_eq!(x.len(), y.len(), "round: lengths");
    let out = Shared::new(y);
    par::for_each(x.len(), 1, |range| {
        // SAFETY: the ranges are disjoint.
        dispatch(RoundAll(&x[range.clone()], unsafe { out.slice(range) }));
    });
}

/// A number of bf16 as f32.
#[inline(always)]
pub(super) fn wide(x: bf16) -> f32 {
    f32::from_bits(u32::from(x.to_bits()) << 16)
}

/// Numbers of bf16 as f32.
///
/// # Panics
/// If the lengths differ.
pub fn widen(x: &[bf16], y: &mut [f32]) {
    assert_eq!(x.len(), y.len(), "widen: lengths");
    let out = Shared::new(y);
    par::for_each(x.len(), 1, |range| {
        // SAFETY: the ranges are disjoint.
        dispatch(WidenAll(&x[range.clone()], unsafe { out.slice(range) }));
    });
}

struct WidenAll<'a>(&'a [bf16], &'a mut [f32]);

impl SimdOp for WidenAll<'_> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd>(self, _: S) {
        self.1.iter_mut().zip(self.0).for_each(|(y, x)| *y = wide(*x));
    }
}

struct RoundAll<'a, T>(&'a [T], &'a mut [bf16]);

impl<T: Rounds> SimdOp for RoundAll<'_, T> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd>(self, _: S) {
        round_each(self.0, self.1);
    }
}

/// As [`round`], inside a kernel: compilers make vectors of it.
#[inline(always)]
pub(crate) fn round_each<T: Rounds>(x: &[T], y: &mut [bf16]) {
    y.iter_mut().zip(x).for_each(|(y, x)| *y = bf16::from_bits(x.rounded()));
}

/// Lines as numbers of bf16.
pub(crate) fn halves(lines: &mut [Line]) -> &mut [bf16] {
    let numbers = pack::numbers(lines);
    // SAFETY: an f32 has the bytes of two bf16, of which all are numbers, and is aligned as such.
    unsafe { core::slice::from_raw_parts_mut(numbers.as_mut_ptr().cast(), 2 * numbers.len()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    #[test]
    fn the_nearest_bf16_is_found_and_nan_stays() {
        let mut rng = Rng::new(2, 0);
        for i in 0..200_000u32 {
            // Ties, their neighbours, and anything else.
            let bits = rng.next_u64() as u32;
            let x = f32::from_bits(
                [bits, bits & 0xffff_0000 | 0x8000, (bits & 0xffff_0000 | 0x8000) + i % 3 - 1, 0x7f80_0000 + i % 9]
                    [i as usize % 4],
            );
            let (ours, theirs) = (bf16::from_bits(x.rounded()), bf16::from_f32(x));
            assert!(ours == theirs || ours.is_nan() && theirs.is_nan(), "{x:e}: {ours} instead of {theirs}");
            let mut wide = [0.0];
            widen(&[ours], &mut wide);
            assert!(wide[0] == ours.to_f32() || wide[0].is_nan() && ours.is_nan(), "{ours} widened to {wide:?}");
        }
    }
}
