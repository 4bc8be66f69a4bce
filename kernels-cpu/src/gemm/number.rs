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

#[cfg(all(test, feature = "rayon"))]
mod tests {
    use super::*;
    use crate::isa::Isa;
    use crate::rng::Rng;
    use crate::simd::eval_on;
    use crate::testing::on_every_tier;
    use alloc::vec;
    use alloc::vec::Vec;

    /// Any bits, ties and their neighbours, and of both signs: zero, subnormal numbers, what becomes infinite, infinity, NaN.
    fn drawn(rng: &mut Rng) -> f32 {
        const SPECIAL: [u32; 12] = [
            0,
            1,
            0x8000,
            0x8001,
            0x1_8000,
            0x7f_ffff,
            0x7f7f_7fff,
            0x7f7f_8000,
            0x7f7f_ffff,
            0x7f80_0000,
            0x7f80_0001,
            0x7fff_ffff,
        ];
        let bits = rng.next_u64() as u32;
        f32::from_bits(match rng.below(3) {
            0 => bits,
            1 => (bits & 0xffff_0000 | 0x7fff) + rng.below(3) as u32,
            _ => SPECIAL[rng.below(SPECIAL.len())] | bits & 0x8000_0000,
        })
    }

    /// The same bits, or NaN of any.
    fn same(a: f32, b: f32) -> bool {
        a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan()
    }

    /// As by the `half` crate, of any length and from anywhere.
    #[test]
    fn the_nearest_bf16_is_found_and_nan_stays() {
        let mut rng = Rng::new(2, 0);
        let lengths = (0..70).flat_map(|n| (0..4).map(move |start| (n, start))).chain([(150_000, 1)]);
        for (n, start) in lengths {
            let x: Vec<f32> = (0..start + n).map(|_| drawn(&mut rng)).collect();
            let x = &x[start..];
            let halves: Vec<bf16> = x.iter().map(|&x| bf16::from_f32(x)).collect();
            let wide: Vec<f32> = halves.iter().map(|x| x.to_f32()).collect();
            on_every_tier(|isa| {
                let room = || vec![bf16::ONE; start + n];
                let (mut rounded, mut copied, mut widened) = (room(), room(), vec![7.0; start + n]);
                let [rounded, copied] = [&mut rounded, &mut copied].map(|y| &mut y[start..]);
                round(x, rounded);
                round(&halves, copied);
                widen(&halves, &mut widened[start..]);
                let (widened, copies) = (&widened[start..], [&*rounded, &*copied]);
                assert!(widened.iter().zip(&wide).all(|(a, b)| same(*a, *b)), "{isa}: {n} from {start} widened");
                for half in copies {
                    let all = half.iter().zip(&halves).all(|(a, b)| same(a.to_f32(), b.to_f32()));
                    assert!(all, "{isa}: {n} from {start} rounded");
                }
            });
        }
    }

    #[test]
    fn pairs_are_two_numbers_to_a_word() {
        struct Pairs<'a>(&'a [f32]);
        impl SimdOp for Pairs<'_> {
            type Output = ();
            fn eval<S: Simd>(self, s: S) {
                for x in self.0.chunks_exact(2 * S::LANES) {
                    let halves: Vec<bf16> = x.iter().map(|&x| bf16::from_f32(x)).collect();
                    let (mut pairs, mut upper) = ([0.0; 16], [0.0; 16]);
                    for (words, kind) in [(f32::pairs_of(s, x), "f32"), (bf16::pairs_of(s, &halves), "bf16")] {
                        s.store(words, &mut pairs);
                        for (k, half) in halves.iter().enumerate() {
                            let ours = f32::from_bits(pairs[k / 2].to_bits() >> (16 * (k % 2)) << 16);
                            assert!(same(ours, half.to_f32()), "{}, {kind}: {ours} instead of {half}", S::ISA);
                        }
                    }
                    s.store(bf16::upper(s, &halves), &mut upper);
                    for (upper, half) in upper.iter().zip(&halves[..S::LANES]) {
                        let ours = f32::from_bits(upper.to_bits() & 0xffff_0000);
                        assert!(same(ours, half.to_f32()), "{}: {ours} instead of {half}", S::ISA);
                    }
                }
            }
        }
        let mut rng = Rng::new(3, 0);
        let x: Vec<f32> = (0..32 * 500).map(|_| drawn(&mut rng)).collect();
        Isa::available().for_each(|isa| eval_on(isa, Pairs(&x)));
    }
}
