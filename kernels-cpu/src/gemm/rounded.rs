//! Operands rounded to bf16 while they are packed, and products of two such: what mixed precision multiplies (Micikevicius et al. 2018).
//!
//! C = bf16(A) bf16(B), each number rounded to the nearest, ties to even; products are exact in f32, sums are f32 in the order of the tier.

use core::ops::Range;

use half::bf16;

use super::nest::{self, slab_of, spread};
use super::pack::{self, Line};
use super::packed::{Lines, Packed, lines_for};
use super::scratch::{self, Use};
use super::words::Words;
use super::{Finish, Left, Mat, Out, Right, Written, check, has_terms};
use crate::isa::Isa;
use crate::par::{self, Shared};
use crate::simd::{Simd, SimdOp, dispatch, eval_on};

/// Rows that are rounded at a time: so many are read side by side where they are columns in memory.
const ROWS: usize = 64;
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

/// The word of two numbers, or of the first alone where a word has but one.
#[inline(always)]
fn word<const PAIRS: bool>(first: u16, second: u16) -> f32 {
    let first = u32::from(first);
    f32::from_bits(if PAIRS { first | u32::from(second) << 16 } else { first << 16 })
}

/// A vector of words of numbers side by side.
#[inline(always)]
fn words<S: Simd, T: Rounds, const PAIRS: bool>(s: S, numbers: &[T]) -> S::F {
    if PAIRS {
        return T::pairs_of(s, numbers);
    }
    s.as_float(s.and_i(s.bits(T::upper(s, numbers)), s.splat_i(UPPER)))
}

/// Rows of a matrix as words: word w of row r at `out + r * row_step + w * word_step`, one of which steps is 1. Beyond the last number of a row
/// come zeros.
struct Round<'a, T> {
    x: Mat<'a, T>,
    words: Words,
    rows: Range<usize>,
    of_row: Range<usize>,
    /// Where the first of them goes.
    out: *mut f32,
    row_step: usize,
    word_step: usize,
}

impl<T: Rounds> SimdOp for Round<'_, T> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) {
        if self.words.numbers() == 2 { self.run::<S, true>(s) } else { self.run::<S, false>(s) }
    }
}

impl<T: Rounds> Round<'_, T> {
    #[inline(always)]
    fn run<S: Simd, const PAIRS: bool>(&self, s: S) {
        let (x, per_word) = (&self.x, 1 + usize::from(PAIRS));
        if x.col_stride == 1 && self.word_step == 1 {
            return self.rows_of_words::<S, PAIRS>(s);
        }
        let mut block = Line::ZERO_BLOCK;
        let block = pack::numbers(&mut block);
        for w in self.of_row.clone().step_by(S::LANES) {
            for r in self.rows.clone().step_by(S::LANES) {
                let [rows, deep] = [S::LANES.min(self.rows.end - r), S::LANES.min(self.of_row.end - w)];
                // SAFETY: words of the rows and the range that were asked for, for which the caller has room.
                let out = unsafe {
                    self.out.add((r - self.rows.start) * self.row_step + (w - self.of_row.start) * self.word_step)
                };
                let whole = rows == S::LANES && deep == S::LANES && (w + deep) * per_word <= x.cols;
                let start = x.offset as isize + r as isize * x.row_stride + (w * per_word) as isize * x.col_stride;
                // `LANES` vectors of words, one for each row or one for each word of all rows, put where they belong, or turned there.
                let (along, across) = (x.col_stride == 1, x.row_stride == 1);
                if whole && (along || across) {
                    let (step, turned) =
                        if along { (self.row_step, self.word_step != 1) } else { (self.word_step, self.row_step != 1) };
                    for i in 0..S::LANES {
                        // SAFETY: as above, or the block, which has room for sixteen vectors of sixteen.
                        let place = unsafe {
                            let place = if turned { block.as_mut_ptr().add(16 * i) } else { out.add(i * step) };
                            core::slice::from_raw_parts_mut(place, S::LANES)
                        };
                        if along {
                            let from = (start + i as isize * x.row_stride) as usize;
                            s.store(words::<S, T, PAIRS>(s, &x.data[from..from + S::LANES * per_word]), place);
                        } else {
                            let from = |k: usize| (start + (i * per_word + k) as isize * x.col_stride) as usize;
                            let (first, second) =
                                (&x.data[from(0)..][..S::LANES], &x.data[from(per_word - 1)..][..S::LANES]);
                            // Side by side in both: compilers make vectors of this.
                            for k in 0..S::LANES {
                                place[k] = word::<PAIRS>(first[k].rounded(), second[k].rounded());
                            }
                        }
                    }
                    if turned {
                        let step = if along { self.word_step } else { self.row_step };
                        // SAFETY: as above.
                        unsafe { s.transpose(block.as_ptr(), 16, S::LANES, out, step) };
                    }
                    continue;
                }
                for (i, j) in (0..rows).flat_map(|i| (0..deep).map(move |j| (i, j))) {
                    let number = |k: usize| if k < x.cols { x.at(r + i, k).rounded() } else { 0 };
                    let [first, second] = [0, per_word - 1].map(|k| number((w + j) * per_word + k));
                    // SAFETY: as above.
                    unsafe { *out.add(i * self.row_step + j * self.word_step) = word::<PAIRS>(first, second) };
                }
            }
        }
    }

    /// Rows that lie along memory, as words that do.
    #[inline(always)]
    fn rows_of_words<S: Simd, const PAIRS: bool>(&self, s: S) {
        let (x, per_word) = (&self.x, 1 + usize::from(PAIRS));
        let numbers = [self.of_row.start, self.of_row.end].map(|w| (w * per_word).min(x.cols));
        for (i, r) in self.rows.clone().enumerate() {
            let start = (x.offset as isize + r as isize * x.row_stride) as usize;
            let row = &x.data[start + numbers[0]..start + numbers[1]];
            // SAFETY: words of the rows and the range that were asked for, for which the caller has room.
            let mut out =
                unsafe { core::slice::from_raw_parts_mut(self.out.add(i * self.row_step), self.of_row.len()) };
            let whole = row.chunks_exact(S::LANES * per_word);
            let mut rest = [T::ZERO; 2 * 16];
            rest[..whole.remainder().len()].copy_from_slice(whole.remainder());
            for numbers in whole {
                let (to, after) = out.split_at_mut(S::LANES);
                s.store(words::<S, T, PAIRS>(s, numbers), to);
                out = after;
            }
            for w in (0..out.len()).step_by(S::LANES) {
                let words = if w == 0 { words::<S, T, PAIRS>(s, &rest) } else { s.splat(0.0) };
                s.store_at(words, out, w);
            }
        }
    }
}

/// Whether products of bf16 are quicker than those of f32 on the tier in use.
pub fn bf16_is_quick() -> bool {
    Words::bf16(Isa::current()).numbers() > 1
}

/// Whether they take two numbers to a word, which are read where they lie.
pub(crate) fn bf16_is_in_words() -> bool {
    Words::bf16(Isa::current()) == Words::Bf16
}

/// Numbers that are multiplied at a time, where they are two to a word.
pub(crate) fn bf16_step() -> Option<usize> {
    let words = Words::bf16(Isa::current());
    (words.numbers() == 2).then(|| 2 * words.step())
}

/// Lines as numbers of bf16.
pub(crate) fn halves(lines: &mut [Line]) -> &mut [bf16] {
    let numbers = pack::numbers(lines);
    // SAFETY: an f32 has the bytes of two bf16, of which all are numbers, and is aligned as such.
    unsafe { core::slice::from_raw_parts_mut(numbers.as_mut_ptr().cast(), 2 * numbers.len()) }
}

/// Calls `f` with the rows of `a` in such words, for a product with `n` columns.
pub(super) fn left<T: Rounds>(
    isa: Isa,
    words: Words,
    a: Mat<'_, T>,
    n: usize,
    threads: bool,
    f: impl FnOnce(Left<'_>),
) {
    let k = words.count(a.cols);
    // Where they lie, if they are whole words and are well read there.
    let there = if words.numbers() == 2 { T::pairs(a) } else { None };
    if let Some(a) = there.filter(|a| a.cols == k && nest::in_place(isa, words, a, n, threads).is_some()) {
        return f(Left::Words(a, &[]));
    }
    let (rows, stride) = (a.rows, pack::apart(k));
    let mut lines = scratch::take(Use::Words, rows * stride);
    let place = Shared::new(pack::numbers(&mut lines));
    spread(threads, a.rows.div_ceil(ROWS), ROWS * a.cols / 8, &|items| {
        for i in items {
            let rows = i * ROWS..((i + 1) * ROWS).min(a.rows);
            // SAFETY: these rows, handed out once.
            let out = unsafe { place.at(rows.start * stride) };
            eval_on(isa, Round { x: a, words, rows, of_row: 0..k, out, row_step: stride, word_step: 1 });
        }
    });
    let data = &pack::numbers(&mut lines)[..rows * stride];
    let narrow = Mat { data, offset: 0, rows: a.rows, cols: k, row_stride: stride as isize, col_stride: 1 };
    f(Left::Words(narrow, &[]));
    scratch::give(Use::Words, lines);
}

/// `b` [k, n] in panels, for `lines` that have room for it.
pub(super) fn right<T: Rounds>(isa: Isa, words: Words, b: Mat<'_, T>, threads: bool, lines: &mut [Line]) {
    let (k, (_, nr)) = (words.count(b.rows), words.tile(isa));
    let (panels, slab) = (b.cols.div_ceil(nr), slab_of(words, k));
    let place = Shared::new(pack::numbers(lines));
    spread(threads, k.div_ceil(slab) * panels, nr * slab * words.numbers() / 8, &|items| {
        for item in items {
            let (i, p) = (item / panels, item % panels);
            let of_row = i * slab..((i + 1) * slab).min(k);
            // SAFETY: one panel of a slab, handed out once; the product of panels and slabs has room for it.
            let out = unsafe { place.at((i * slab * panels + p * of_row.len()) * nr) };
            let rows = p * nr..((p + 1) * nr).min(b.cols);
            eval_on(isa, Round { x: b.t(), words, rows, of_row, out, row_step: 1, word_step: nr });
        }
    });
}

/// Bytes that [`super::multiply_bf16`] keeps for the operands of a product of [m, k] and [k, n] on the calling thread.
pub fn bf16_bytes([m, k, n]: [usize; 3]) -> usize {
    let (isa, words) = (Isa::current(), Words::bf16(Isa::current()));
    4 * (m * pack::apart(words.count(k)) + 16 * lines_for(isa, words, [k, n]))
}

impl Packed {
    /// Packs `b` [k, n], rounded to bf16, for the tier in use: as [`Packed::bf16`].
    ///
    /// # Panics
    /// If it leaves its data.
    pub fn rounded(b: Mat<'_, f32>) -> Self {
        let isa = Isa::current();
        Self::rounded_for(isa, Words::bf16(isa), b)
    }

    /// Numbers of a row of a left operand of bf16 that are whole words, and how far apart its rows may lie: such rows are multiplied where they lie.
    pub(crate) fn whole_words(&self) -> (usize, usize) {
        let (k, numbers) = (self.words.count(self.size()[0]), self.words.numbers());
        (k * numbers, pack::apart(k) * numbers)
    }

    /// Whether windows over maps of bf16 with so many channels are multiplied where they lie.
    pub(crate) fn reads_windows(&self, channels: usize) -> bool {
        self.words == Words::Bf16 && channels.is_multiple_of(2)
    }

    /// Whether windows over such maps that lie evenly are multiplied where they lie.
    pub(crate) fn reads_evenly(&self, numbers: usize) -> bool {
        self.words == Words::Bf16Tiles
            && numbers > 0
            && numbers.is_multiple_of(self.words.step() * self.words.numbers())
    }

    pub(super) fn rounded_for<T: Rounds>(isa: Isa, words: Words, b: Mat<'_, T>) -> Self {
        b.check();
        Self::filled(isa, words, [b.rows, b.cols], |lines| {
            if b.rows > 0 {
                right(isa, words, b, true, lines);
            }
        })
    }
}

/// C = act(A B + bias + residual) of operands rounded to bf16. No size is 0.
pub(super) fn product<A: Rounds, B: Rounds>(
    isa: Isa,
    words: Words,
    a: Mat<'_, A>,
    b: Mat<'_, B>,
    out: Out<'_>,
    threads: bool,
) {
    let size = [b.rows, b.cols];
    let mut lines = scratch::take(Use::Panels, 16 * lines_for(isa, words, size));
    right(isa, words, b, threads, &mut lines);
    let packed = Packed::of(isa, words, size, Lines::Own(lines));
    left(isa, words, a, b.cols, threads, |a| nest::product(isa, a, Right::Packed(&packed), out, threads));
    if let Lines::Own(lines) = packed.lines {
        scratch::give(Use::Panels, lines);
    }
}

/// As [`super::multiply`], with the numbers of both operands rounded to the nearest bf16, ties to even; sums are f32.
///
/// # Panics
/// As [`super::gemm()`].
pub fn multiply_bf16<A: Rounds, B: Rounds>(
    a: Mat<'_, A>,
    b: Mat<'_, B>,
    c: &mut [f32],
    ldc: usize,
    finish: Finish<'_, f32>,
    threads: bool,
) {
    run(a, b, Out { c, ldc, accumulate: false, finish, rounded: None }, threads);
}

/// C + A B with the numbers of both operands rounded to the nearest bf16, on the calling thread; C is row-major.
///
/// # Panics
/// As [`super::gemm()`].
pub fn accumulate_bf16<A: Rounds, B: Rounds>(a: Mat<'_, A>, b: Mat<'_, B>, c: &mut [f32]) {
    run(a, b, Out { c, ldc: b.cols, accumulate: true, finish: Finish::default(), rounded: None }, false);
}

fn run<A: Rounds, B: Rounds>(a: Mat<'_, A>, b: Mat<'_, B>, out: Out<'_>, threads: bool) {
    a.check();
    b.check();
    if has_terms([a.rows, a.cols], [b.rows, b.cols], out.accumulate, out.c, out.ldc, &out.finish) {
        let isa = Isa::current();
        product(isa, Words::bf16(isa), a, b, out, threads);
    }
}

/// As [`super::multiply`], with a right operand packed from bf16 ([`Packed::bf16`]), of what is rounded to it.
///
/// # Panics
/// As [`super::multiply`].
pub fn multiply_packed<A: Rounds>(a: Mat<'_, A>, b: &Packed, c: &mut [f32], ldc: usize, finish: Finish<'_, f32>) {
    multiply_halves(a, b, c, ldc, finish, true);
}

/// C = bf16(act(A B + bias + residual)), of what [`multiply_packed`] computes.
///
/// # Panics
/// As [`super::multiply`].
pub fn multiply_to_bf16<A: Rounds>(
    a: Mat<'_, A>,
    b: &Packed,
    c: &mut [bf16],
    ldc: usize,
    finish: Finish<'_, f32, bf16>,
) {
    multiply_halves(a, b, c, ldc, finish, true);
}

/// As [`super::multiply`], with a right operand packed from bf16 ([`Packed::bf16`], [`Packed::rounded`]) and a left one that is bf16, whose rows may
/// be filled up with zeros to whole words.
///
/// # Panics
/// As [`super::gemm()`]; also if B was packed from something else.
pub(crate) fn multiply_halves<A: Rounds, C: Written>(
    a: Mat<'_, A>,
    b: &Packed,
    c: &mut [C],
    ldc: usize,
    finish: Finish<'_, f32, C>,
    threads: bool,
) {
    a.check();
    assert!(b.words != Words::F32 && !b.words.are_levels(), "gemm: an operand that is not packed from bf16");
    let [k, _] = b.size();
    let terms = if a.cols == b.whole_words().0 { k } else { a.cols };
    check([a.rows, terms], b.size(), c, ldc, &finish);
    let size = [a.rows, b.size()[1]];
    if terms == 0 {
        return C::nothing(size, c, ldc, finish);
    }
    if size.iter().all(|&n| n > 0) {
        left(b.isa(), b.words, a, size[1], threads, |a| {
            C::product(b.isa(), a, Right::Packed(b), c, ldc, finish, threads)
        });
    }
}

#[cfg(all(test, feature = "rayon"))]
mod tests {
    use super::super::narrow::tests::{Drawn, OF_BF16, drawn, every_way, same, sizes};
    use super::*;
    use crate::par::Pool;
    use crate::rng::Rng;
    use alloc::vec;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    fn run<A: Rounds, B: Rounds>(
        isa: Isa,
        words: Words,
        a: Mat<'_, A>,
        b: Mat<'_, B>,
        ldc: usize,
        finish: Finish<'_, f32>,
        threads: bool,
    ) -> Vec<f32> {
        let mut c = vec![7.0; a.rows * ldc];
        if a.rows * a.cols * b.cols > 0 {
            product(isa, words, a, b, Out { c: &mut c, ldc, accumulate: false, finish, rounded: None }, threads);
        }
        c
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// Of f32 and of bf16 on either side, in any layout: within the bound of a sum of k terms in f32 in any order, k 2^-24 of the sum of
        /// their sizes.
        #[test]
        fn products_are_those_of_rounded_numbers((m, n, k) in sizes(), seed in any::<u64>()) {
            let rng = &mut Rng::new(seed, 0);
            let wide = |rng: &mut Rng| rng.normal() as f32;
            let (a, b) = (drawn(rng, m, k, wide), drawn(rng, k, n, wide));
            let narrow = |x: &[f32]| x.iter().map(|&x| bf16::from_f32(x)).collect::<Vec<_>>();
            let (a_data, b_data) = (narrow(a.data), narrow(b.data));
            let as_bf16 = |x: Mat<'static, f32>| (x.offset, x.rows, x.cols, x.row_stride, x.col_stride);
            fn with<'a>(data: &'a [bf16], (offset, rows, cols, row_stride, col_stride): (usize, usize, usize, isize, isize)) -> Mat<'a, bf16> {
                Mat { data, offset, rows, cols, row_stride, col_stride }
            }
            let (a16, b16) = (with(&a_data, as_bf16(a)), with(&b_data, as_bf16(b)));
            let end = Drawn::new(rng, m, n);
            for (isa, words) in every_way(OF_BF16) {
                let c = run(isa, words, a, b, end.ldc, Finish::default(), seed % 2 == 0);
                for (i, j) in (0..m).flat_map(|i| (0..n).map(move |j| (i, j))).filter(|_| k > 0) {
                    let term = |l| f64::from(a16.at(i, l)) * f64::from(b16.at(l, j));
                    let (sum, size) = (0..k).map(term).fold((0.0, 0.0), |(sum, size), x| (sum + x, size + x.abs()));
                    let got = f64::from(c[i * end.ldc + j]);
                    prop_assert!((got - sum).abs() <= k as f64 * size / f64::from(1 << 24), "{isa} {words:?} [{i}, {j}]: {got} instead of {sum}");
                }
                prop_assert!((0..m).all(|i| n == 0 || c[i * end.ldc + n..(i + 1) * end.ldc].iter().all(|&x| x == 7.0)));
                // What was rounded before has the same bits, and so has what is finished on its way.
                prop_assert!(same(&run(isa, words, a16, b, end.ldc, Finish::default(), true), &c));
                prop_assert!(same(&run(isa, words, a, b16, end.ldc, Finish::default(), false), &c));
                if m * n * k > 0 {
                    prop_assert!(same(&run(isa, words, a16, b16, end.ldc, end.finish(), true), &end.step_by_step(isa, &c, n)), "{isa} {words:?}");
                }
            }
        }
    }

    #[test]
    fn bits_depend_on_k_alone() {
        let (k, n) = (1300, 200);
        let rng = &mut Rng::new(1, 0);
        let mut numbers = |n: usize| (0..n).map(|_| rng.normal() as f32).collect::<Vec<_>>();
        let (a, b) = (numbers(300 * k), numbers(k * n));
        for (isa, words) in every_way(OF_BF16) {
            // The columns of A lie side by side, as those of an output's gradient do for a weight's.
            let of = |m: usize, threads: usize| {
                Pool::new(threads).install(|| {
                    run(
                        isa,
                        words,
                        Mat { rows: m, ..Mat::new(&a, k, 300).t() },
                        Mat::new(&b, k, n),
                        n,
                        Finish::default(),
                        true,
                    )
                })
            };
            let whole = of(300, 1);
            for threads in [2, 3, 7] {
                assert!(same(&of(300, threads), &whole), "{isa} {words:?} on {threads} threads");
            }
            for m in [1, 15, 16, 17, 33, 197] {
                assert!(same(&of(m, 2), &whole[..m * n]), "{isa} {words:?}: {m} rows");
            }
            // Rows of bf16 that are read where they lie, 4 KiB apart or not.
            for apart in [k, 2048] {
                let mut rows = vec![bf16::NAN; 300 * apart];
                for (i, row) in rows.chunks_mut(apart).enumerate() {
                    row[..k].iter_mut().enumerate().for_each(|(j, x)| *x = bf16::from_f32(a[j * 300 + i]));
                }
                let rows = Mat { row_stride: apart as isize, ..Mat::new(&rows, 300, k) };
                let c = run(isa, words, rows, Mat::new(&b, k, n), n, Finish::default(), true);
                assert!(same(&c, &whole), "{isa} {words:?}: rows {apart} apart");
            }
        }
    }

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

    #[test]
    fn nothing_to_sum_up_leaves_what_is_added() {
        let mut c = [7.0; 6];
        let finish = Finish { bias: Some(&[1.0, 2.0, 3.0]), ..Finish::default() };
        multiply_bf16(Mat::<f32>::new(&[], 2, 0), Mat::<bf16>::new(&[], 0, 3), &mut c, 3, finish, true);
        assert_eq!(c, [1.0, 2.0, 3.0, 1.0, 2.0, 3.0]);
    }
}
