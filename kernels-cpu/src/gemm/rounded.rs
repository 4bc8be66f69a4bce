//! Products of operands that are rounded to bf16 while they are packed: what mixed precision multiplies (Micikevicius et al. 2018).
//!
//! C = bf16(A) bf16(B), each number rounded to the nearest, ties to even; products are exact in f32, sums are f32 in the order of the tier.

use half::bf16;

use super::nest;
use super::number::Rounds;
use super::pack;
use super::packed::{Lines, Packed, lines_for};
use super::round_words::{left, right};
use super::scratch::{self, Use};
use super::words::Words;
use super::{Finish, Mat, Out, Right, Written, check, has_terms};
use crate::isa::Isa;

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
    use super::super::multiply;
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

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        /// Beside an operand packed from bf16, f32 and bf16 on the left have the bits of what is rounded to bf16 and widened, and what is written
        /// in bf16 is the nearest. What is added to stays: within the bound of a sum of one term more.
        #[test]
        fn what_is_rounded_on_its_way_is_what_was_before((m, n, k) in sizes(), seed in any::<u64>()) {
            let rng = &mut Rng::new(seed, 0);
            let (a, b) = (drawn(rng, m, k, |rng| rng.normal() as f32), drawn(rng, k, n, |rng| bf16::from_f64(rng.normal())));
            let data: Vec<bf16> = a.data.iter().map(|&x| bf16::from_f32(x)).collect();
            let Mat { offset, rows, cols, row_stride, col_stride, .. } = a;
            let a16 = Mat { data: &data[..], offset, rows, cols, row_stride, col_stride };
            let data: Vec<f32> = data.iter().map(|x| x.to_f32()).collect();
            let near = Mat { data: &data[..], ..a };
            let end = Drawn::new(rng, m, n);
            let added: Option<Vec<bf16>> = end.finish().residual.map(|r| r.iter().map(|&r| bf16::from_f32(r)).collect());
            let widened: Option<Vec<f32>> = added.as_ref().map(|r| r.iter().map(|r| r.to_f32()).collect());
            let before: Vec<f32> = (0..m * n).map(|_| rng.normal() as f32).collect();
            for (isa, words) in every_way(OF_BF16) {
                let b = &Packed::rounded_for(isa, words, b);
                let room = m * end.ldc;
                let (mut expected, mut c, mut c16) = (vec![7.0; room], vec![7.0; room], vec![7.0; room]);
                multiply(near, Right::Packed(b), &mut expected, end.ldc, end.finish(), true);
                multiply_packed(a, b, &mut c, end.ldc, end.finish());
                multiply_packed(a16, b, &mut c16, end.ldc, end.finish());
                prop_assert!(same(&c, &expected) && same(&c16, &expected), "{isa} {words:?}");

                let finish = Finish { residual: widened.as_deref(), ..end.finish() };
                multiply(near, Right::Packed(b), &mut expected, end.ldc, finish, true);
                let finish = Finish { bias: finish.bias, residual: added.as_deref(), act: finish.act };
                let [mut c, mut c16] = [0; 2].map(|_| vec![bf16::from_f32(7.0); room]);
                multiply_to_bf16(a, b, &mut c, end.ldc, finish);
                multiply_to_bf16(a16, b, &mut c16, end.ldc, finish);
                let expected: Vec<bf16> = expected.iter().map(|&x| bf16::from_f32(x)).collect();
                prop_assert!(c == expected && c16 == expected, "{isa} {words:?}");
            }
            for isa in Isa::available() {
                let mut c = before.clone();
                Pool::on(isa, 1).install(|| accumulate_bf16(a, b, &mut c));
                for (i, j) in (0..m).flat_map(|i| (0..n).map(move |j| (i, j))) {
                    let terms = (0..k).map(|l| f64::from(near.at(i, l)) * f64::from(b.at(l, j)));
                    let terms = terms.chain([f64::from(before[i * n + j])]);
                    let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), x| (sum + x, size + x.abs()));
                    let got = f64::from(c[i * n + j]);
                    prop_assert!((got - sum).abs() <= (k + 1) as f64 * size / f64::from(1 << 24), "{isa} [{i}, {j}]: {got} instead of {sum}");
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
    fn nothing_to_sum_up_leaves_what_is_added() {
        let mut c = [7.0; 6];
        let finish = Finish { bias: Some(&[1.0, 2.0, 3.0]), ..Finish::default() };
        multiply_bf16(Mat::<f32>::new(&[], 2, 0), Mat::<bf16>::new(&[], 0, 3), &mut c, 3, finish, true);
        assert_eq!(c, [1.0, 2.0, 3.0, 1.0, 2.0, 3.0]);
    }
}
