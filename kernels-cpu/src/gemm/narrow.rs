//! Operands of fewer bits: weights packed from bf16 or int8, and rows of A narrowed to the same for a product.
//!
//! bf16: numbers of A are rounded to the nearest (ties to even), products are summed up in f32. int8: a row of A has the scale s, its
//! largest |x| over 127, and the levels round(x / s); levels are multiplied and summed up exactly, so
//! `C[i, j] = s[i] scale[j] sum`, on every tier the same.

use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;

use half::bf16;

use super::nest::{PackPanels, slab_of, spread};
use super::pack::{self, Line};
use super::packed::Packed;
use super::scratch::{self, Use};
use super::words::Words;
use super::{Left, Mat, round_words};
use crate::hash;
use crate::isa::Isa;
use crate::par::Shared;
use crate::simd::{Simd, SimdOp, eval_on};

/// Largest level.
const LEVELS: f32 = 127.0;
/// Most terms whose sum i32 holds: each is at most 255 times 128.
const MOST_TERMS: usize = i32::MAX as usize / (255 * 128);

/// What a right operand is packed from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Numbers {
    /// [`Packed::new`]
    F32,
    /// [`Packed::bf16`]
    Bf16,
    /// [`Packed::int8`]
    Int8,
}

/// What tells how this program packs on the tier in use from how another does: a hash of a matrix of several slabs and panels, packed.
pub fn packing() -> u64 {
    const SIZE: [usize; 2] = [1600, 40];
    let numbers: Vec<f32> = (0..SIZE[0] * SIZE[1]).map(|i| i as f32).collect();
    let half: Vec<bf16> = (0..numbers.len()).map(|i| bf16::from_bits(i as u16)).collect();
    let packed = [Packed::new(Mat::new(&numbers, SIZE[0], SIZE[1])), Packed::bf16(Mat::new(&half, SIZE[0], SIZE[1]))];
    let words = packed.iter().flat_map(|packed| packed.content()).map(|x| x.to_bits());
    hash::of_words(0, words.map(u64::from))
}

impl Numbers {
    /// Bytes that k by n of them take when they are packed for the tier in use.
    pub fn packed_bytes(self, [k, n]: [usize; 2]) -> usize {
        let isa = Isa::current();
        let words = match self {
            Self::F32 => Words::F32,
            Self::Bf16 => Words::bf16(isa),
            Self::Int8 => Words::int8(isa),
        };
        4 * words.count(k) * n.next_multiple_of(words.tile(isa).1)
    }
}

impl Packed {
    /// Packs `b` [k, n] for products of bf16 on the tier in use: the left operand of a product with it is rounded to bf16.
    ///
    /// # Panics
    /// If it leaves its data.
    pub fn bf16(b: Mat<'_, bf16>) -> Self {
        let isa = Isa::current();
        Self::rounded_for(isa, Words::bf16(isa), b)
    }

    /// Packs the levels `b` [k, n], whose columns have these scales, for products of int8 on the tier in use: the rows of the left operand
    /// of a product with it become levels too.
    ///
    /// # Panics
    /// If it leaves its data, there is not a scale for each column, or k is more than 65,000.
    pub fn int8(b: Mat<'_, i8>, scale: &[f32]) -> Self {
        let isa = Isa::current();
        Self::int8_for(isa, Words::int8(isa), b, scale)
    }

    pub(super) fn int8_for(isa: Isa, words: Words, b: Mat<'_, i8>, scale: &[f32]) -> Self {
        assert!(
            scale.len() == b.cols && b.rows <= MOST_TERMS,
            "gemm: [{}, {}], {} scales",
            b.rows,
            b.cols,
            scale.len()
        );
        let mut packed = match words {
            Words::I16 => Self::narrow(isa, words, b, |x| i16::from(x).to_ne_bytes()),
            _ => Self::narrow(isa, words, b, i8::to_ne_bytes),
        };
        packed.scale = scale.to_vec();
        packed.zero = match words.zero_point() {
            0 => vec![0; b.cols],
            point => {
                let mut copy = Vec::new();
                let mut sum = |j| row(b.t(), j, &mut copy).iter().map(|&x| i32::from(x)).sum::<i32>();
                (0..b.cols).map(|j| point * sum(j)).collect()
            }
        };
        packed
    }

    /// Packs numbers of which a word has several, each in N bytes.
    fn narrow<T: Copy + Sync, const N: usize>(
        isa: Isa,
        words: Words,
        b: Mat<'_, T>,
        bytes: impl Fn(T) -> [u8; N] + Sync,
    ) -> Self {
        b.check();
        let (k, (_, nr)) = (words.count(b.rows), words.tile(isa));
        let (panels, slab) = (b.cols.div_ceil(nr), slab_of(words, k));
        Self::filled(isa, words, [b.rows, b.cols], |lines| {
            if b.rows == 0 {
                return;
            }
            let place = Shared::new(pack::numbers(lines));
            spread(true, panels, nr * k * words.numbers(), &|range| {
                let (mut rows, mut copy) = (vec![Line::ZERO; (nr * k).div_ceil(16) + 1], Vec::new());
                for p in range {
                    let (first, real) = (p * nr, nr.min(b.cols - p * nr));
                    for (j, place) in pack::numbers(&mut rows).chunks_mut(k).take(real).enumerate() {
                        let places = pack::bytes(place).as_chunks_mut::<N>().0.iter_mut();
                        places.zip(row(b.t(), first + j, &mut copy)).for_each(|(place, &x)| *place = bytes(x));
                    }
                    let x = Mat::new(&pack::numbers(&mut rows)[..nr * k], nr, k);
                    for start in (0..k).step_by(slab) {
                        let depth = slab.min(k - start);
                        // SAFETY: one panel of a slab, handed out once; the product of panels and slabs has room for it.
                        let out = unsafe { place.at((start * panels + p * depth) * nr) };
                        eval_on(
                            isa,
                            PackPanels { x, rows: [0, real], width: [nr, 0], columns: [start, depth], out, apart: 0 },
                        );
                    }
                }
            });
        })
    }
}

/// Calls `f` with the rows of `a` as a product with a packed operand needs them.
pub(super) fn narrowed(a: Mat<'_, f32>, b: &Packed, threads: bool, f: impl FnOnce(Left<'_>)) {
    let (isa, words) = (b.isa, b.words);
    if !words.are_levels() {
        return round_words::left(isa, words, a, b.size()[1], threads, f);
    }
    let k = words.count(a.cols);
    let (rows, stride) = (a.rows, pack::apart(k));
    let mut lines = scratch::take(Use::Words, rows * stride);
    let mut scale = vec![0.0f32; a.rows];
    let (out, of_rows) = (Shared::new(pack::numbers(&mut lines)), Shared::new(&mut scale));
    spread(threads, a.rows, 2 * a.cols / 16, &|rows| {
        eval_on(isa, NarrowRows { a, rows, words, stride, out, scale: of_rows });
    });
    let data = &pack::numbers(&mut lines)[..rows * stride];
    let narrow = Mat { data, offset: 0, rows: a.rows, cols: k, row_stride: stride as isize, col_stride: 1 };
    f(Left::Words(narrow, &scale));
    scratch::give(Use::Words, lines);
}

/// Rows of `a` as levels in words, `stride` apart, and their scales.
struct NarrowRows<'a> {
    a: Mat<'a, f32>,
    rows: Range<usize>,
    words: Words,
    stride: usize,
    out: Shared<f32>,
    scale: Shared<f32>,
}

impl SimdOp for NarrowRows<'_> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd>(self, _: S) {
        let (a, used) = (self.a, self.words.count(self.a.cols));
        let mut copy = Vec::new();
        for i in self.rows {
            // SAFETY: this row of the output, handed out once.
            let out = unsafe { self.out.slice(i * self.stride..i * self.stride + used) };
            let x = row(a, i, &mut copy);
            let (out, zeros) = pack::bytes(out).split_at_mut(a.cols * 4 / self.words.numbers());
            zeros.fill(0);
            let scale = scale_of(x);
            // SAFETY: this row's scale, handed out once.
            unsafe { *self.scale.at(i) = scale };
            let steps = if scale > 0.0 { 1.0 / scale } else { 0.0 };
            if self.words == Words::I16 {
                out.as_chunks_mut().0.iter_mut().zip(x).for_each(|(y, &x)| *y = (level(x, steps) as i16).to_ne_bytes());
            } else {
                out.iter_mut().zip(x).for_each(|(y, &x)| *y = (level(x, steps) + 128) as u8);
            }
        }
    }
}

/// Row `i` of a matrix, where it lies or copied.
#[inline(always)]
fn row<'a, T: Copy>(x: Mat<'a, T>, i: usize, copy: &'a mut Vec<T>) -> &'a [T] {
    if x.col_stride == 1 {
        let start = (x.offset as isize + i as isize * x.row_stride) as usize;
        return &x.data[start..start + x.cols];
    }
    copy.clear();
    copy.extend((0..x.cols).map(|j| x.at(i, j)));
    copy
}

/// The scale of a row's levels, NaN if an element is.
#[inline(always)]
fn scale_of(x: &[f32]) -> f32 {
    // Bits of positive floats are in the order of their values, those of NaN behind all; integers have a largest in any order of steps.
    let most = x.iter().map(|x| x.to_bits() & 0x7fff_ffff).fold(0, u32::max);
    f32::from_bits(most) / LEVELS
}

/// x / scale to the nearest integer, ties to even.
#[inline(always)]
fn level(x: f32, steps: f32) -> i32 {
    // Adding 1.5 * 2^23 leaves no bits for a fraction.
    const MAGIC: f32 = 12_582_912.0;
    ((x * steps + MAGIC).to_bits() as i32).wrapping_sub(MAGIC.to_bits() as i32)
}

#[cfg(all(test, feature = "rayon"))]
pub(super) mod tests {
    use super::super::{Finish, Right, multiply};
    use super::*;
    use crate::map::Unary;
    use crate::par::Pool;
    use crate::rng::Rng;
    use alloc::boxed::Box;
    use proptest::prelude::*;

    #[test]
    fn packed_bytes_are_those_of_what_is_packed() {
        for [k, n] in [[1, 1], [64, 48], [97, 130]] {
            let (wide, half, levels) = (vec![1f32; k * n], vec![bf16::ONE; k * n], vec![1i8; k * n]);
            for (numbers, packed) in [
                (Numbers::F32, Packed::new(Mat::new(&wide, k, n))),
                (Numbers::Bf16, Packed::bf16(Mat::new(&half, k, n))),
                (Numbers::Int8, Packed::int8(Mat::new(&levels, k, n), &vec![1.0; n])),
            ] {
                let (told, taken) = (numbers.packed_bytes([k, n]), size_of_val(&packed.lines[..]));
                // Whole lines, and one beyond.
                assert!((told..=told + 128).contains(&taken), "{numbers:?} {k} x {n}: {told} of {taken}");
            }
        }
    }

    /// What products of bf16 and of int8 may be made of, on every tier of this machine.
    pub(in super::super) fn every_way(kinds: [Words; 3]) -> impl Iterator<Item = (Isa, Words)> {
        Isa::available()
            .flat_map(move |isa| kinds.map(|words| (isa, words)))
            .filter(|(isa, words)| words.is_available(*isa))
    }

    pub(in super::super) const OF_BF16: [Words; 3] = [Words::WideBf16, Words::Bf16, Words::Bf16Tiles];
    const OF_INT8: [Words; 3] = [Words::I16, Words::Bytes, Words::ByteTiles];

    /// A matrix of drawn numbers, transposed in memory or not, with gaps.
    pub(in super::super) fn drawn<T: Copy>(
        rng: &mut Rng,
        rows: usize,
        cols: usize,
        mut one: impl FnMut(&mut Rng) -> T,
    ) -> Mat<'static, T> {
        let (transposed, gap) = (rng.chance(0.5), rng.below(3));
        let (outer, inner) = if transposed { (cols, rows) } else { (rows, cols) };
        let data: Vec<T> = (0..gap + outer * (inner + gap)).map(|_| one(rng)).collect();
        let x = Mat {
            data: Box::leak(data.into_boxed_slice()),
            offset: gap,
            rows: outer,
            cols: inner,
            row_stride: (inner + gap) as isize,
            col_stride: 1,
        };
        if transposed { x.t() } else { x }
    }

    fn numbers(rng: &mut Rng, n: usize) -> Vec<f32> {
        (0..n).map(|_| rng.normal() as f32).collect()
    }

    /// What is added and applied to a drawn product.
    pub(in super::super) struct Drawn {
        bias: Option<Vec<f32>>,
        residual: Option<Vec<f32>>,
        act: Option<Unary>,
        pub ldc: usize,
    }

    impl Drawn {
        pub fn new(rng: &mut Rng, m: usize, n: usize) -> Self {
            let ldc = n + rng.below(3);
            Self {
                bias: rng.chance(0.5).then(|| numbers(rng, n)),
                residual: rng.chance(0.5).then(|| numbers(rng, m * ldc)),
                act: [None, Some(Unary::Relu), Some(Unary::Gelu)][rng.below(3)],
                ldc,
            }
        }

        pub fn finish(&self) -> Finish<'_, f32> {
            Finish { bias: self.bias.as_deref(), residual: self.residual.as_deref(), act: self.act }
        }

        /// Finished one step after the other, from a product that was only multiplied.
        pub fn step_by_step(&self, isa: Isa, product: &[f32], n: usize) -> Vec<f32> {
            let mut c = product.to_vec();
            for (i, c) in c.chunks_mut(self.ldc.max(1)).enumerate().filter(|(_, c)| c.len() >= n) {
                let c = &mut c[..n];
                self.bias.iter().for_each(|bias| c.iter_mut().zip(bias).for_each(|(x, b)| *x += b));
                self.residual.iter().for_each(|r| c.iter_mut().zip(&r[i * self.ldc..]).for_each(|(x, r)| *x += r));
                if let Some(act) = self.act {
                    eval_on(isa, super::super::tests::Activated(act, c));
                }
            }
            c
        }
    }

    fn product(a: Mat<'_, f32>, b: &Packed, ldc: usize, finish: Finish<'_, f32>, threads: bool) -> Vec<f32> {
        let mut c = vec![7.0; a.rows * ldc];
        multiply(a, Right::Packed(b), &mut c, ldc, finish, threads);
        c
    }

    pub(in super::super) fn same(a: &[f32], b: &[f32]) -> bool {
        a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits()) && a.len() == b.len()
    }

    pub(in super::super) fn sizes() -> impl Strategy<Value = (usize, usize, usize)> {
        (0usize..50, 0usize..50, prop_oneof![0usize..40, 500usize..560, 1020usize..1100, 2040usize..2300])
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        /// Within the bound of a sum of k terms in f32 in any order: k 2^-24 of the sum of their sizes.
        #[test]
        fn products_of_bf16_are_those_of_rounded_numbers((m, n, k) in sizes(), seed in any::<u64>()) {
            let rng = &mut Rng::new(seed, 0);
            let (a, b) = (drawn(rng, m, k, |rng| rng.normal() as f32), drawn(rng, k, n, |rng| bf16::from_f64(rng.normal())));
            let end = Drawn::new(rng, m, n);
            let near = |x: f32| f64::from(bf16::from_f32(x));
            for (isa, words) in every_way(OF_BF16) {
                let packed = Packed::rounded_for(isa, words, b);
                let c = product(a, &packed, end.ldc, Finish::default(), seed % 2 == 0);
                for (i, j) in (0..m).flat_map(|i| (0..n).map(move |j| (i, j))) {
                    let term = |l| near(a.at(i, l)) * f64::from(b.at(l, j));
                    let (sum, size) = (0..k).map(term).fold((0.0, 0.0), |(sum, size), x| (sum + x, size + x.abs()));
                    let got = f64::from(c[i * end.ldc + j]);
                    prop_assert!((got - sum).abs() <= k as f64 * size / f64::from(1 << 24), "{isa} {words:?} [{i}, {j}]: {got} instead of {sum}");
                }
                prop_assert!((0..m).all(|i| c[i * end.ldc + n..(i + 1) * end.ldc].iter().all(|&x| x == 7.0)));
                let finished = product(a, &packed, end.ldc, end.finish(), true);
                if k > 0 { prop_assert!(same(&finished, &end.step_by_step(isa, &c, n)), "{isa} {words:?}"); }
            }
        }

        /// Exactly, on every tier.
        #[test]
        fn products_of_int8_are_exact((m, n, k) in sizes(), seed in any::<u64>()) {
            let rng = &mut Rng::new(seed, 0);
            let (a, b) = (drawn(rng, m, k, |rng| if rng.chance(0.1) { 0.0 } else { 3.0 * rng.normal() as f32 }), drawn(rng, k, n, |rng| rng.below(256) as u8 as i8));
            let (scale, end) = (numbers(rng, n), Drawn::new(rng, m, n));
            let mut expected = vec![7.0f32; m * end.ldc];
            for i in 0..m {
                let most = (0..k).map(|l| a.at(i, l).abs()).fold(0.0, f32::max);
                let (of_row, steps) = (most / 127.0, if most > 0.0 { 1.0 / (most / 127.0) } else { 0.0 });
                for j in 0..n {
                    let term = |l| (a.at(i, l) * steps).round_ties_even() as i64 * i64::from(b.at(l, j));
                    expected[i * end.ldc + j] = (0..k).map(term).sum::<i64>() as f32 * of_row * scale[j];
                }
            }
            for (isa, words) in every_way(OF_INT8) {
                let packed = Packed::int8_for(isa, words, b, &scale);
                let c = product(a, &packed, end.ldc, Finish::default(), seed % 2 == 0);
                prop_assert!(c.iter().zip(&expected).all(|(x, y)| x == y), "{isa} {words:?}");
                let finished = product(a, &packed, end.ldc, end.finish(), true);
                if k > 0 { prop_assert!(same(&finished, &end.step_by_step(isa, &c, n)), "{isa} {words:?}"); }
            }
        }
    }

    #[test]
    fn bits_depend_on_k_alone() {
        let (k, n) = (1300, 200);
        let rng = &mut Rng::new(1, 0);
        let (a, w) = (numbers(rng, 300 * k), numbers(rng, k * n));
        let halves: Vec<bf16> = w.iter().map(|&x| bf16::from_f32(x)).collect();
        let levels: Vec<i8> = w.iter().map(|&x| (30.0 * x) as i8).collect();
        let scale = numbers(rng, n);
        let packs = every_way(OF_BF16).map(|(isa, words)| Packed::rounded_for(isa, words, Mat::new(&halves, k, n)));
        let packs = packs.chain(
            every_way(OF_INT8).map(|(isa, words)| Packed::int8_for(isa, words, Mat::new(&levels, k, n), &scale)),
        );
        for packed in packs.collect::<Vec<_>>() {
            let run = |m: usize, threads: usize| {
                Pool::new(threads).install(|| product(Mat::new(&a[..m * k], m, k), &packed, n, Finish::default(), true))
            };
            let whole = run(300, 1);
            for threads in [2, 3, 7] {
                assert!(same(&run(300, threads), &whole), "{:?} on {threads} threads", packed.words);
            }
            for m in [1, 15, 16, 17, 33, 197] {
                assert!(same(&run(m, 2), &whole[..m * n]), "{:?}: {m} rows", packed.words);
            }
        }
    }

    /// Whichever operand stays near, in parts or not, and however many tiles wait for the next part.
    #[test]
    fn rows_of_many_are_those_of_few() {
        let (m, k, few) = (600, 1700, 50);
        let rng = &mut Rng::new(2, 0);
        let a = numbers(rng, m * k);
        for n in [64, 160] {
            let halves: Vec<bf16> = numbers(rng, k * n).iter().map(|&x| bf16::from_f32(x)).collect();
            let levels: Vec<i8> = (0..k * n).map(|_| rng.below(256) as u8 as i8).collect();
            let scale = numbers(rng, n);
            let packs = every_way(OF_BF16).map(|(isa, words)| Packed::rounded_for(isa, words, Mat::new(&halves, k, n)));
            let packs = packs.chain(
                every_way(OF_INT8).map(|(isa, words)| Packed::int8_for(isa, words, Mat::new(&levels, k, n), &scale)),
            );
            for packed in packs {
                let run = |a: &[f32]| product(Mat::new(a, a.len() / k, k), &packed, n, Finish::default(), false);
                let parts: Vec<f32> = a.chunks(few * k).flat_map(run).collect();
                assert!(same(&run(&a), &parts), "{:?}, {n} columns", packed.words);
            }
        }
    }

    #[test]
    fn what_is_not_finite_does_not_become_a_number() {
        let (k, n) = (40, 5);
        let weights = vec![bf16::ONE; k * n];
        let levels = vec![1i8; k * n];
        let packs = every_way(OF_BF16).map(|(isa, words)| Packed::rounded_for(isa, words, Mat::new(&weights, k, n)));
        let packs = packs.chain(
            every_way(OF_INT8).map(|(isa, words)| Packed::int8_for(isa, words, Mat::new(&levels, k, n), &[1.0; 5])),
        );
        for packed in packs {
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut a = vec![1.0f32; 3 * k];
                a[k + 7] = bad;
                let c = product(Mat::new(&a, 3, k), &packed, n, Finish::default(), false);
                assert!(
                    c[n..2 * n].iter().all(|x| !x.is_finite()),
                    "{:?}: {bad} became {:?}",
                    packed.words,
                    &c[n..2 * n]
                );
                assert!(c[..n].iter().chain(&c[2 * n..]).all(|&x| x == 40.0), "{:?}", packed.words);
            }
        }
    }

    /// The largest levels on both sides, for which sums of pairs in i16 would saturate.
    #[test]
    fn sums_of_the_largest_levels_do_not_saturate() {
        for (isa, words) in every_way(OF_INT8) {
            for (level, sign) in [(-128i8, 1.0), (127, -1.0), (127, 1.0)] {
                let (a, b) = (vec![sign * 127.0f32; 64], vec![level; 64]);
                let packed = Packed::int8_for(isa, words, Mat::new(&b, 64, 1), &[1.0]);
                let c = product(Mat::new(&a, 1, 64), &packed, 1, Finish::default(), false);
                assert_eq!(c, [64.0 * 127.0 * sign * f32::from(level)], "{isa} {words:?}");
            }
        }
    }
}
