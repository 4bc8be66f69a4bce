//! Rows of an operand as words of bf16: a number to a word, or the two of a pair along k.

use core::ops::Range;

use super::nest::{self, slab_of, spread};
use super::number::{Rounds, UPPER};
use super::pack::{self, Line};
use super::scratch::{self, Use};
use super::words::Words;
use super::{Left, Mat};
use crate::isa::Isa;
use crate::par::Shared;
use crate::simd::{Simd, SimdOp, eval_on};

/// Rows that are rounded at a time: so many are read side by side where they are columns in memory.
const ROWS: usize = 64;

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
