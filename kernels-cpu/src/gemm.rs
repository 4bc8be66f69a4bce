//! Matrix multiplication: C = A B (+ C) + bias.
//!
//! The loop nest is that of BLIS (Van Zee and van de Geijn, 2015): both operands are packed into panels that the register
//! tile reads in order. An element of C is summed over k in slabs of fixed length, in order, whatever the sizes of the rest, the
//! batch and the number of threads: its bits depend on K and the tier alone.

mod ahead;
#[cfg_attr(not(target_arch = "x86_64"), path = "gemm/amx/none.rs")]
mod amx;
mod job;
mod narrow;
mod nest;
mod number;
mod order;
mod own;
mod pack;
mod packed;
mod round_words;
mod rounded;
mod rows;
pub(crate) mod scratch;
mod split;
mod tile;
mod words;
mod written;

use alloc::vec::Vec;

use crate::float::{Float, as_f32, as_f32_mut, as_f64, as_f64_mut};
use crate::isa::Isa;
use crate::map::{self, Unary};
use crate::par;

pub use narrow::{Numbers, packing};

pub(crate) use nest::MOST_PACKED_BYTES;
pub use number::{Rounds, round, widen};
pub(crate) use number::{UPPER, halves, nearest, nearest_sum, round_each};
pub(crate) use pack::{Line, numbers};
pub use packed::{Kept, Packed};
pub use rounded::{accumulate_bf16, bf16_bytes, bf16_is_quick, multiply_bf16, multiply_packed, multiply_to_bf16};
pub(crate) use rounded::{bf16_is_in_words, bf16_step, multiply_halves};
use words::Words;
pub(crate) use written::Written;

/// A matrix anywhere in a slice: any transpose, any slice of a larger array.
#[derive(Clone, Copy, Debug)]
pub struct Mat<'a, F> {
    /// The whole buffer.
    pub data: &'a [F],
    /// Position of element [0, 0].
    pub offset: usize,
    /// Number of rows.
    pub rows: usize,
    /// Number of columns.
    pub cols: usize,
    /// From a row to the next.
    pub row_stride: isize,
    /// From a column to the next.
    pub col_stride: isize,
}

impl<'a, T> Mat<'a, T> {
    /// A row-major matrix that fills `data`.
    pub fn new(data: &'a [T], rows: usize, cols: usize) -> Self {
        Self { data, offset: 0, rows, cols, row_stride: cols as isize, col_stride: 1 }
    }

    /// The transposed matrix.
    pub fn t(self) -> Self {
        Self { rows: self.cols, cols: self.rows, row_stride: self.col_stride, col_stride: self.row_stride, ..self }
    }
}

impl<'a, F: Float> Mat<'a, F> {
    /// The same as f32, if it is.
    pub(crate) fn single(self) -> Option<Mat<'a, f32>> {
        let Self { data, offset, rows, cols, row_stride, col_stride } = self;
        Some(Mat { data: as_f32(data)?, offset, rows, cols, row_stride, col_stride })
    }
}

impl<T: Copy> Mat<'_, T> {
    #[inline(always)]
    fn at(&self, i: usize, j: usize) -> T {
        self.data[(self.offset as isize + i as isize * self.row_stride + j as isize * self.col_stride) as usize]
    }

    fn check(&self) {
        if self.rows * self.cols > 0 {
            crate::Strided { data: self.data, offset: self.offset, strides: &[self.row_stride, self.col_stride] }
                .check(&[self.rows, self.cols]);
        }
    }
}

/// The definition: C = A B (+ C) + bias, C row-major with rows `ldc` apart. For tests.
pub fn gemm_def<F: Float>(a: Mat<'_, F>, b: Mat<'_, F>, accumulate: bool, c: &mut [F], ldc: usize, bias: Option<&[F]>) {
    for i in 0..a.rows {
        for j in 0..b.cols {
            let sum = (0..a.cols).map(|k| a.at(i, k) * b.at(k, j)).sum::<F>();
            let before = if accumulate { c[i * ldc + j] } else { F::ZERO };
            c[i * ldc + j] = before + sum + bias.map_or(F::ZERO, |bias| bias[j]);
        }
    }
}

/// What a product becomes on its way out: act(A B + bias + residual), each where it is given.
#[derive(Clone, Copy, Debug)]
pub struct Finish<'a, F, C = F> {
    /// A number per column.
    pub bias: Option<&'a [F]>,
    /// A matrix of the product's size with rows as far apart as those of C, and its numbers.
    pub residual: Option<&'a [C]>,
    /// Applied last.
    pub act: Option<Unary>,
}

impl<F, C> Default for Finish<'_, F, C> {
    fn default() -> Self {
        Self { bias: None, residual: None, act: None }
    }
}

impl<'a, F: Float> Finish<'a, F> {
    /// The same as f32, if it is.
    pub(crate) fn single(self) -> Option<Finish<'a, f32>> {
        let Self { bias, residual, act } = self;
        // Without either there is nothing that is not f32.
        let same = |x: Option<&'a [F]>| x.map_or(Some(None), |x| as_f32(x).map(Some));
        Some(Finish { bias: same(bias)?, residual: same(residual)?, act })
    }
}

impl<F, C> Finish<'_, F, C> {
    /// For `columns` of a product whose first row is row `row` of one with `ldc` columns.
    pub(crate) fn part(self, row: usize, ldc: usize, columns: core::ops::Range<usize>) -> Self {
        Self {
            bias: self.bias.map(|bias| &bias[columns.clone()]),
            residual: self.residual.map(|residual| &residual[row * ldc + columns.start..]),
            act: self.act,
        }
    }
}

impl Packed {
    /// Packs `b` [k, n] for the tier in use: worth its memory where many products have it on their right.
    ///
    /// # Panics
    /// If it leaves its data.
    pub fn new(b: Mat<'_, f32>) -> Self {
        b.check();
        Self::on(Isa::current(), b)
    }
}

/// The left operand of a product in f32.
#[derive(Clone, Copy)]
pub(crate) enum Left<'a> {
    Mat(Mat<'a, f32>),
    /// Words of narrower numbers, and the scales of rows of levels.
    Words(Mat<'a, f32>, &'a [f32]),
    Windows(&'a Windows<'a>),
    Even(&'a EvenWindows<'a>),
}

impl Left<'_> {
    fn size(&self) -> [usize; 2] {
        match self {
            Self::Mat(a) | Self::Words(a, _) => [a.rows, a.cols],
            Self::Windows(w) => [w.rows, w.taps * w.channels],
            Self::Even(w) => [w.rows(), w.taps.len() * w.words],
        }
    }

    /// How many of the rows before one go to C, where it goes if it does.
    #[inline(always)]
    fn before(&self, row: usize) -> usize {
        if let Self::Even(w) = self { w.before(row) } else { row }
    }
}

/// A matrix whose rows are windows over a map, read where they lie: `channels` numbers, or words of what B was packed from, at each of `taps` places.
pub(crate) struct Windows<'a> {
    pub rows: usize,
    pub taps: usize,
    pub channels: usize,
    /// Writes where the channels of `rows` start, as [tile][tap][row of the tile] for tiles of a height. Every place that a row of the range has
    /// must be readable for all channels.
    pub locate: &'a Locate<'a>,
}

pub(crate) type Locate<'a> = dyn Fn(core::ops::Range<usize>, usize, &mut [*const f32]) + Sync + 'a;

/// C = act(A B + bias + residual) for windows A, with the bits of the product of their copies.
///
/// # Safety
/// [`Windows::locate`] must keep its promise.
///
/// # Panics
/// If the sizes do not fit, or one is 0.
pub(crate) unsafe fn multiply_windows<C: Written>(
    a: &Windows<'_>,
    b: Right<'_, f32>,
    c: &mut [C],
    ldc: usize,
    finish: Finish<'_, f32, C>,
) {
    let (k, n) = (a.taps * a.channels, b.cols());
    check([a.rows, k], [b.words().count(b.rows()), n], c, ldc, &finish);
    assert!(a.rows > 0 && n > 0 && k > 0, "gemm: [{}, {k}] windows times [{k}, {n}]", a.rows);
    C::product(b.isa(), Left::Windows(a), b, c, ldc, finish, true);
}

/// A matrix whose rows are windows at equal distances over maps with margins, as AMX reads them: words of what B was packed from. Windows lie on lines; those
/// behind the first ones of a line, and lines behind the first ones of a map, are multiplied for nothing and go nowhere.
pub(crate) struct EvenWindows<'a> {
    pub source: &'a [f32],
    /// Where each tap of the first window starts.
    pub taps: Vec<usize>,
    /// Words of a tap: whole steps.
    pub words: usize,
    /// From a window to the next.
    pub apart: usize,
    /// Windows on a line, and those of them that are there.
    pub line: [usize; 2],
    /// Lines of a map, and those of them that are there.
    pub lines: [usize; 2],
    pub maps: usize,
}

impl EvenWindows<'_> {
    /// Rows up to the last one that is there.
    fn rows(&self) -> usize {
        let ([all, there], [lines, there_of_map]) = (self.line, self.lines);
        match self.maps * there_of_map * there {
            0 => 0,
            _ => ((self.maps - 1) * lines + there_of_map - 1) * all + there,
        }
    }

    /// How many rows from one on are alike: there, or not.
    #[inline(always)]
    fn run(&self, row: usize) -> (usize, bool) {
        let ([all, there], [lines, there_of_map]) = (self.line, self.lines);
        let at = row % all;
        match row / all % lines < there_of_map && at < there {
            true => (there - at, true),
            false => (all - at, false),
        }
    }

    /// How many of the rows before one are there.
    #[inline(always)]
    fn before(&self, row: usize) -> usize {
        let ([all, there], [lines, there_of_map]) = (self.line, self.lines);
        let (line, at) = (row / all, row % all);
        let (map, line) = (line / lines, line % lines);
        let of_line = if line < there_of_map { at.min(there) } else { 0 };
        (map * there_of_map + line.min(there_of_map)) * there + of_line
    }
}

/// C = act(A B + bias + residual) for windows A that lie evenly, with the bits of the product of their copies.
///
/// # Panics
/// If the sizes do not fit, one is 0, a window leaves its maps, or B was not packed for AMX.
pub(crate) fn multiply_even<C: Written>(
    a: &EvenWindows<'_>,
    b: &Packed,
    c: &mut [C],
    ldc: usize,
    finish: Finish<'_, f32, C>,
) {
    let (rows, k, n) = (a.rows(), a.taps.len() * a.words, b.size()[1]);
    let there = a.before(rows);
    check([there, k], [b.words.count(b.size()[0]), n], c, ldc, &finish);
    assert!(b.words == Words::Bf16Tiles && a.words.is_multiple_of(b.words.step()), "gemm: windows for other words");
    assert!(there > 0 && n > 0 && k > 0, "gemm: [{there}, {k}] windows times [{k}, {n}]");
    let last = a.taps.iter().max().expect("some taps") + (rows - 1) * a.apart;
    assert!(last + a.words <= a.source.len(), "gemm: windows beyond their maps");
    C::product(b.isa, Left::Even(a), Right::Packed(b), c, ldc, finish, true);
}

/// The right operand of a product.
#[derive(Clone, Copy)]
pub enum Right<'a, F> {
    /// Packed in passing, or read where it lies.
    Loose(Mat<'a, F>),
    /// Packed before, all of it, from f32 or from fewer bits: for products in f32 alone.
    Packed(&'a Packed),
}

impl<'a, F: Float> Right<'a, F> {
    /// The same as f32, if it is.
    pub(crate) fn single(self) -> Option<Right<'a, f32>> {
        match self {
            Self::Loose(b) => b.single().map(Right::Loose),
            Self::Packed(b) => Some(Right::Packed(b)),
        }
    }

    /// The tier that a product with it runs on.
    fn isa(&self) -> Isa {
        if let Self::Packed(b) = self { b.isa() } else { Isa::current() }
    }

    /// What is multiplied.
    fn words(&self) -> Words {
        if let Self::Packed(b) = self { b.words } else { Words::F32 }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        match self {
            Self::Loose(b) => b.rows,
            Self::Packed(b) => b.size()[0],
        }
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        match self {
            Self::Loose(b) => b.cols,
            Self::Packed(b) => b.size()[1],
        }
    }
}

/// C = act(A B + bias + residual), on several threads or the calling one alone. How B is given does not change a bit, but where it was packed
/// from bf16 ([`Packed::bf16`]) or int8 ([`Packed::int8`]) A is narrowed to the same.
///
/// # Panics
/// As [`gemm`]; also if B is packed and not of f32.
pub fn multiply<F: Float>(
    a: Mat<'_, F>,
    b: Right<'_, F>,
    c: &mut [F],
    ldc: usize,
    finish: Finish<'_, F>,
    threads: bool,
) {
    run(a, b, false, c, ldc, finish, threads);
}

/// C = A B, or C + A B where `accumulate`; plus a bias per column. C is row-major with rows `ldc` apart.
///
/// # Panics
/// If the sizes do not fit, or a matrix leaves its data.
pub fn gemm<F: Float>(a: Mat<'_, F>, b: Mat<'_, F>, accumulate: bool, c: &mut [F], ldc: usize, bias: Option<&[F]>) {
    run(a, Right::Loose(b), accumulate, c, ldc, Finish { bias, ..Finish::default() }, true);
}

/// As [`gemm`], on the calling thread alone: for kernels that split work themselves.
pub fn gemm_serial<F: Float>(
    a: Mat<'_, F>,
    b: Mat<'_, F>,
    accumulate: bool,
    c: &mut [F],
    ldc: usize,
    bias: Option<&[F]>,
) {
    run(a, Right::Loose(b), accumulate, c, ldc, Finish { bias, ..Finish::default() }, false);
}

/// `batch` products of equal sizes, item i written to the i-th block of `rows * cols` elements of `c`.
pub fn gemm_batched<'a, F: Float>(
    batch: usize,
    a: impl Fn(usize) -> Mat<'a, F> + Sync,
    b: impl Fn(usize) -> Mat<'a, F> + Sync,
    c: &mut [F],
) {
    if batch == 0 || c.is_empty() {
        return;
    }
    if batch == 1 {
        let (a, b) = (a(0), b(0));
        return gemm(a, b, false, c, b.cols, None);
    }
    let (m, k, n) = (a(0).rows, a(0).cols, b(0).cols);
    par::chunks_mut(c, m * n, 2 * m * n * k / 16 + m * n, |i, c| gemm_serial(a(i), b(i), false, c, n, None));
}

fn check<F, C>([m, k]: [usize; 2], [rows, n]: [usize; 2], c: &[C], ldc: usize, finish: &Finish<'_, F, C>) {
    assert_eq!(k, rows, "gemm: [{m}, {k}] times [{rows}, {n}]");
    assert!(
        ldc >= n && finish.bias.is_none_or(|bias| bias.len() == n),
        "gemm: rows of {n} placed {ldc} apart, bias of {:?}",
        finish.bias.map(<[F]>::len)
    );
    if m > 0 && n > 0 {
        let least = (m - 1) * ldc + n;
        assert!(c.len() >= least, "gemm: {} elements for [{m}, {n}] with rows {ldc} apart", c.len());
        assert!(finish.residual.is_none_or(|r| r.len() >= least), "gemm: a residual too short for [{m}, {n}]");
    }
}

/// A product without terms.
fn nothing<F: Float>(accumulate: bool, m: usize, n: usize, c: &mut [F], ldc: usize, finish: &Finish<'_, F>) {
    if !accumulate {
        c.chunks_mut(ldc).take(m).for_each(|row| row[..n].fill(F::ZERO));
    }
    complete(m, n, c, ldc, finish);
}

/// Whether a product of these sizes has something to sum up. One without terms is done here.
fn has_terms<F: Float>(
    [m, k]: [usize; 2],
    [rows, n]: [usize; 2],
    accumulate: bool,
    c: &mut [F],
    ldc: usize,
    finish: &Finish<'_, F>,
) -> bool {
    check([m, k], [rows, n], c, ldc, finish);
    let any = m > 0 && n > 0;
    if any && k == 0 {
        nothing(accumulate, m, n, c, ldc, finish);
    }
    any && k > 0
}

/// What is left to do where a product was only multiplied.
fn complete<F: Float>(m: usize, n: usize, c: &mut [F], ldc: usize, finish: &Finish<'_, F>) {
    for (i, row) in c.chunks_mut(ldc).take(m).enumerate() {
        let row = &mut row[..n];
        if let Some(bias) = finish.bias {
            row.iter_mut().zip(bias).for_each(|(x, &b)| *x += b);
        }
        if let Some(residual) = finish.residual {
            row.iter_mut().zip(&residual[i * ldc..]).for_each(|(x, &r)| *x += r);
        }
        if let Some(act) = finish.act {
            map::map_in_place(act, row);
        }
    }
}

fn run<F: Float>(
    a: Mat<'_, F>,
    b: Right<'_, F>,
    accumulate: bool,
    c: &mut [F],
    ldc: usize,
    finish: Finish<'_, F>,
    threads: bool,
) {
    let (m, n) = (a.rows, b.cols());
    a.check();
    if let Right::Loose(b) = b {
        b.check();
    }
    if !has_terms([m, a.cols], [b.rows(), n], accumulate, c, ldc, &finish) {
        return;
    }
    let Some(a) = a.single() else {
        let Right::Loose(b) = b else { panic!("gemm: an operand packed in f32 for a product in f64") };
        double(a, b, accumulate, c, ldc);
        return complete(m, n, c, ldc, &finish);
    };
    let (b, finish) = b.single().zip(finish.single()).expect("same type as A");
    let out = Out { c: as_f32_mut(c).expect("same type as A"), ldc, accumulate, finish, rounded: None };
    match b {
        Right::Packed(packed) if packed.words != Words::F32 => {
            narrow::narrowed(a, packed, threads, |a| nest::product(b.isa(), a, b, out, threads));
        }
        _ => nest::product(b.isa(), Left::Mat(a), b, out, threads),
    }
}

/// f64 through `matrixmultiply`.
fn double<F: Float>(a: Mat<'_, F>, b: Mat<'_, F>, accumulate: bool, c: &mut [F], ldc: usize) {
    let (da, db) = (as_f64(a.data).expect("f32 or f64"), as_f64(b.data).expect("f32 or f64"));
    let dc = as_f64_mut(c).expect("f32 or f64");
    // SAFETY: all three matrices were checked to lie in their slices.
    unsafe {
        matrixmultiply::dgemm(
            a.rows,
            a.cols,
            b.cols,
            1.0,
            da.as_ptr().add(a.offset),
            a.row_stride,
            a.col_stride,
            db.as_ptr().add(b.offset),
            b.row_stride,
            b.col_stride,
            f64::from(u8::from(accumulate)),
            dc.as_mut_ptr(),
            ldc as isize,
            1,
        );
    }
}

/// Where a product goes.
struct Out<'a> {
    c: &'a mut [f32],
    ldc: usize,
    accumulate: bool,
    finish: Finish<'a, f32>,
    /// Where it is rounded to bf16, which C then holds the sums for.
    rounded: Option<written::Rounded<'a>>,
}

#[cfg(test)]
mod tests;
