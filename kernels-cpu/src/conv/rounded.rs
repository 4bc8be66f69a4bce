//! Convolution of maps in bf16, or rounded to it, with weights of bf16, in one group: products of bf16 over gathered windows, whose sums are f32.

use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;

use half::bf16;

use super::gather::{Gather, Inside, PACKED_ROWS, RUN, Target};
use super::{Conv2d, MANY_WEIGHTS, Order, PackedWeight, even, phases, winograd};
use crate::gemm::scratch::{self, Use};
use crate::gemm::{
    Finish, Mat, Numbers, Packed, Right, Rounds, Written, accumulate_bf16, bf16_is_quick, bf16_step, halves,
    multiply_bf16, multiply_halves, numbers, round, round_each, widen,
};
use crate::par;
use crate::simd::{Simd, SimdOp, dispatch};

/// A window's numbers that lie side by side, where they are few.
const SHORT: usize = 32;
/// Numbers of maps that are rounded before their windows are multiplied, where a map does not have more.
pub(super) const TOGETHER: usize = 1 << 19;

impl Conv2d {
    /// Whether maps of f32 are rounded to bf16 beside a weight that is: in one group, where the tier's products of bf16 are quicker than those of f32.
    /// Elsewhere such a weight is widened.
    pub fn rounds(&self) -> bool {
        self.groups == 1 && bf16_is_quick()
    }

    /// A weight of bf16 for [`Conv2d::forward_packed`], which rounds the numbers of its map to bf16: where [`Conv2d::rounds`].
    ///
    /// # Panics
    /// If its length does not fit the sizes, or there are several groups.
    pub fn pack_bf16(&self, weight: &[bf16]) -> PackedWeight {
        assert!(self.lengths()[1] == weight.len() && self.groups == 1, "conv2d: length of the weight for {self:?}");
        let ordered = self.reordered(weight);
        PackedWeight(if winograd::serves_bf16(self) {
            let mut wide = vec![0.0; ordered.len()];
            widen(&ordered, &mut wide);
            Order::RoundedWinograd(winograd::Weight::new(self, &wide, Packed::rounded))
        } else {
            Order::Rounded(self.by_words(&ordered, Packed::bf16))
        })
    }

    /// Bytes that [`Conv2d::pack_bf16`] makes of the weight.
    pub fn packed_bf16_bytes(&self) -> usize {
        if winograd::serves_bf16(self) {
            return 16 * Numbers::Bf16.packed_bytes([self.input, self.output]);
        }
        let depth = self.row_of_words().map_or(self.depth(), |row| self.window.kernel[0] * row);
        Numbers::Bf16.packed_bytes([depth, self.output])
    }

    /// Numbers of a row of the kernel over few channels, filled up to whole words, where windows start at words too and rows of them are read
    /// where they lie. The number that fills a row up is multiplied by 0: where it is not finite, so is the sum.
    fn row_of_words(&self) -> Option<usize> {
        let (c, row) = (self.input, self.window.kernel[1] * self.input);
        let side_by_side = c < RUN && row >= RUN && self.window.dilation[1] == 1;
        let starts = (self.window.stride[1] * c).is_multiple_of(2);
        bf16_step().filter(|_| side_by_side && starts).map(|step| row.next_multiple_of(step))
    }

    /// A weight [output][tap][channel] as it is multiplied: rows of the kernel are filled up with zeros where they are read by words.
    fn by_words<T: Copy + Default>(&self, ordered: &[T], pack: impl Fn(Mat<'_, T>) -> Packed) -> Packed {
        let row = self.window.kernel[1] * self.input;
        let Some(whole) = self.row_of_words().filter(|&whole| whole > row) else {
            return pack(self.matrix(ordered, 0));
        };
        let mut filled = vec![T::default(); ordered.len() / row * whole];
        filled
            .chunks_exact_mut(whole)
            .zip(ordered.chunks_exact(row))
            .for_each(|(to, row)| to[..row.len()].copy_from_slice(row));
        pack(Mat::new(&filled, self.output, self.window.kernel[0] * whole).t())
    }

    /// Maps times a weight packed from [`Conv2d::by_words`], finished.
    fn multiply_words<T: Rounds + Default, Y: Written>(
        &self,
        x: &[T],
        weight: &Packed,
        finish: Finish<'_, f32, Y>,
        y: &mut [Y],
    ) {
        let target = Target { size: self.grid(), step: [1, 1], start: [0, 0] };
        multiply(&self.windows(x), self.row_of_words(), weight, finish, y, target);
    }

    /// Bytes that the products in bf16 take beside their operands, about: the weight in the kernels' order and packed, and what threads keep.
    pub fn bf16_bytes(&self) -> usize {
        let of_jobs = || self.packed_bf16_bytes() + par::threads() * winograd::bytes_of_a_job::<bf16>(self);
        8 * self.lengths()[1] + if winograd::serves_bf16(self) { of_jobs() } else { 0 }
    }

    /// y = x * weight + bias, as [`Conv2d::forward`].
    ///
    /// # Panics
    /// If lengths do not fit the sizes, or there are several groups.
    pub fn forward_bf16(&self, x: &[bf16], weight: &[f32], bias: Option<&[f32]>, y: &mut [f32]) {
        assert!(
            self.lengths() == [x.len(), weight.len(), y.len()]
                && self.groups == 1
                && bias.is_none_or(|b| b.len() == self.output),
            "conv2d: lengths for {self:?}"
        );
        let packed = self.by_words(&self.reordered(weight), Packed::rounded);
        self.multiply_words(x, &packed, Finish { bias, ..Finish::default() }, y);
    }

    /// As [`Conv2d::forward_packed`] for a weight of [`Conv2d::pack_bf16`] and a map that is rounded.
    ///
    /// # Panics
    /// If lengths do not fit the sizes, or the weight was packed from something else.
    pub fn forward_halves(&self, x: &[bf16], weight: &PackedWeight, finish: Finish<'_, f32>, y: &mut [f32]) {
        self.multiply_rounded(x, weight, finish, y);
    }

    /// y = bf16(act(x * weight + bias + residual)), of what [`Conv2d::forward_halves`] and [`Conv2d::forward_packed`] compute.
    ///
    /// # Panics
    /// As [`Conv2d::forward_halves`].
    pub fn forward_rounded<X: Rounds + Default>(
        &self,
        x: &[X],
        weight: &PackedWeight,
        finish: Finish<'_, f32, bf16>,
        y: &mut [bf16],
    ) {
        self.multiply_rounded(x, weight, finish, y);
    }

    pub(super) fn multiply_rounded<X: Rounds + Default, Y: winograd::Number>(
        &self,
        x: &[X],
        weight: &PackedWeight,
        finish: Finish<'_, f32, Y>,
        y: &mut [Y],
    ) {
        self.check_finish(x.len(), y.len(), &finish);
        match &weight.0 {
            Order::Rounded(weight) => self.multiply_words(x, weight, finish, y),
            Order::RoundedWinograd(weight) => match X::halves(x) {
                Some(x) => weight.multiply(self, x, finish, y),
                None => {
                    let mut lines = scratch::take(Use::Maps, x.len().div_ceil(2));
                    let rounded = &mut halves(&mut lines)[..x.len()];
                    round(x, rounded);
                    weight.multiply(self, rounded, finish, y);
                    scratch::give(Use::Maps, lines);
                }
            },
            Order::Windows(_) | Order::Winograd(_) => panic!("conv2d: a weight that is not packed from bf16"),
        }
    }

    /// dx, from dy and the weight.
    ///
    /// # Panics
    /// As [`Conv2d::forward_bf16`].
    pub fn backward_input_bf16(&self, dy: &[bf16], weight: &[f32], dx: &mut [f32]) {
        assert!(
            self.lengths() == [dx.len(), weight.len(), dy.len()] && self.groups == 1,
            "conv2d: lengths for {self:?}"
        );
        let [rows, cols] = [0, 1].map(|axis| phases(&self.window, axis, self.size[axis]));
        for (row, col) in rows.iter().flat_map(|row| cols.iter().map(move |col| (row, col))) {
            let (windows, target, taps) = self.phase(dy, row, col);
            let depth = taps[0].len() * taps[1].len() * self.output;
            let packed = Packed::rounded(Mat::new(&self.by_tap(weight, &taps), depth, self.input));
            multiply(&windows, None, &packed, Finish::default(), dx, target);
        }
    }

    /// dweight, from x and dy.
    ///
    /// # Panics
    /// As [`Conv2d::forward_bf16`].
    pub fn backward_weight_bf16(&self, x: &[bf16], dy: &[bf16], dweight: &mut [f32]) {
        assert!(
            self.lengths() == [x.len(), dweight.len(), dy.len()] && self.groups == 1,
            "conv2d: lengths for {self:?}"
        );
        let windows = self.windows(x);
        let total: Vec<f32> = if dweight.len() > MANY_WEIGHTS {
            self.by_rows(x, dy, |a, b, c, ldc| multiply_bf16(a, b, c, ldc, Finish::default(), true))
        } else {
            self.by_parts(&windows, |range, sum| self.add_block(&windows, dy, range, sum, accumulate_bf16))
        };
        self.by_channel(&total, dweight);
    }
}

/// Windows times a matrix [taps * channels, outputs], finished. Its rows of taps may be filled up to so many numbers ([`Conv2d::row_of_words`]).
fn multiply<T: Rounds + Default, Y: Written>(
    windows: &Gather<'_, T>,
    row_of_words: Option<usize>,
    matrix: &Packed,
    finish: Finish<'_, f32, Y>,
    y: &mut [Y],
    target: Target,
) {
    let [_, outputs] = matrix.size();
    if outputs == 0 || windows.items() == 0 {
        return;
    }
    let channels = windows.channels;
    if !windows.is_plain() && target.is_whole(windows.grid) && even::serves(windows, row_of_words, matrix) {
        return even::multiply(windows, row_of_words, matrix, finish, y);
    }
    if windows.is_plain() && target.is_whole(windows.grid) {
        let pixels = Mat::new(windows.source, windows.items(), channels);
        if T::pairs(pixels).is_some() {
            return multiply_halves(pixels, matrix, y, outputs, finish, true);
        }
    }
    if !windows.is_plain() && target.is_whole(windows.grid) && channels >= RUN && matrix.reads_windows(channels) {
        return multiply_in_place(windows, matrix, finish, y);
    }
    if let Some([left, wide]) = windows.columns().filter(|_| target.is_whole(windows.grid)) {
        // Rows of the copies are whole words where they are read by words.
        let wide = wide + row_of_words.map_or(0, |_| wide * channels % 2);
        let len = windows.n * windows.size[0] * wide * channels;
        let mut lines = scratch::take(Use::Maps, len.div_ceil(2));
        let (rows, run) = windows.by_rows([left, wide], &mut halves(&mut lines)[..len], |x, y| round(x, y));
        if let Some(row) = row_of_words {
            let (offsets, [down, right]) = ([rows.offsets[0].clone(), vec![0]], windows.step);
            let (n, size, step) = (windows.n, [windows.size[0], wide * channels / 2], [down, right * channels / 2]);
            let source = &numbers(&mut lines)[..len / 2];
            let words = Gather { source, n, size, channels: 1, grid: windows.grid, step, offsets };
            words.multiply_in_place(source, 0..row / 2, Right::Packed(matrix), y, outputs, finish);
        } else {
            multiply_rounded(&rows, run, matrix, finish, y, target);
        }
        return scratch::give(Use::Maps, lines);
    }
    multiply_rounded(windows, channels, matrix, finish, y, target);
}

/// As [`multiply`], of windows that are rounded block by block, with so many numbers at a tap.
fn multiply_rounded<T: Rounds + Default, Y: Written>(
    windows: &Gather<'_, T>,
    channels: usize,
    matrix: &Packed,
    finish: Finish<'_, f32, Y>,
    y: &mut [Y],
    target: Target,
) {
    let ([depth, outputs], inside) = (matrix.size(), windows.inside());
    let (block, work) = (windows.even(windows.block(depth)), depth * outputs / 32 + depth);
    windows.blocks(block, work, outputs, y, target, |rows, _, into, shared| {
        let finish = finish.part(rows.start, outputs, 0..outputs);
        let (whole, apart) = matrix.whole_words();
        let mut lines = scratch::take(Use::Operand, (rows.len() * apart).div_ceil(2));
        let data = &mut halves(&mut lines)[..rows.len() * apart];
        let round = |i: usize, out: &mut [bf16]| {
            let first = rows.start + i * PACKED_ROWS;
            dispatch(RoundWindows { windows, inside: &inside, first, channels, depth, whole, apart, out });
        };
        if shared {
            par::chunks_mut(data, PACKED_ROWS * apart, PACKED_ROWS * depth / 4, round);
        } else {
            data.chunks_mut(PACKED_ROWS * apart).enumerate().for_each(|(i, out)| round(i, out));
        }
        let a = Mat { row_stride: apart as isize, rows: rows.len(), cols: whole, ..Mat::new(data, 0, 0) };
        multiply_halves(a, matrix, into, outputs, finish, shared);
        scratch::give(Use::Operand, lines);
    });
}

/// As [`multiply`], of windows that are read where they lie, once the maps are rounded.
fn multiply_in_place<T: Rounds + Default, Y: Written>(
    windows: &Gather<'_, T>,
    matrix: &Packed,
    finish: Finish<'_, f32, Y>,
    y: &mut [Y],
) {
    let ([h, w], channels, [_, outputs]) = (windows.size, windows.channels, matrix.size());
    let of_words = |words: &[f32], maps: usize, y: &mut [Y], finish| {
        let offsets = windows.offsets.clone();
        let Gather { size, grid, step, .. } = *windows;
        let words = Gather { source: words, n: maps, size, channels: channels / 2, grid, step, offsets };
        words.multiply_in_place(words.source, 0..channels / 2, Right::Packed(matrix), y, outputs, finish);
    };
    if let Some(there) = T::pairs(Mat::new(windows.source, windows.n * h * w, channels)) {
        return of_words(there.data, windows.n, y, finish);
    }
    let (map, positions) = (h * w * channels, windows.grid[0] * windows.grid[1]);
    let together = (TOGETHER / map.max(1)).max(1);
    let mut lines = scratch::take(Use::Maps, (map * together.min(windows.n)).div_ceil(2));
    for first in (0..windows.n).step_by(together) {
        let maps = together.min(windows.n - first);
        round(&windows.source[first * map..][..maps * map], &mut halves(&mut lines)[..maps * map]);
        let (rows, finish) = (first * positions, finish.part(first * positions, outputs, 0..outputs));
        of_words(
            &numbers(&mut lines)[..maps * map / 2],
            maps,
            &mut y[rows * outputs..][..maps * positions * outputs],
            finish,
        );
    }
    scratch::give(Use::Maps, lines);
}

/// Rounds numbers from one on. So many at once where there is room, without a call for so few: what comes after writes over what is too much.
#[inline(always)]
fn round_run<T: Rounds>(source: &[T], from: usize, line: &mut [bf16], run: Range<usize>) {
    let [x, y] = [from..from + SHORT, run.start..run.start + SHORT];
    if let (true, Some(x), Some(y)) = (run.len() <= SHORT, source.get(x), line.get_mut(y)) {
        for i in 0..SHORT {
            y[i] = bf16::from_bits(x[i].rounded());
        }
    } else {
        let x = &source[from..from + run.len()];
        round_each(x, &mut line[run]);
    }
}

/// Windows from a position on, rounded to bf16, each with zeros to `whole` numbers, as rows `apart`.
struct RoundWindows<'a, T> {
    windows: &'a Gather<'a, T>,
    inside: &'a Inside,
    first: usize,
    channels: usize,
    depth: usize,
    whole: usize,
    apart: usize,
    out: &'a mut [bf16],
}

impl<T: Rounds + Default> SimdOp for RoundWindows<'_, T> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd>(self, _: S) {
        let (windows, inside) = (self.windows, self.inside);
        let (mut at, c) = (windows.position(self.first), self.channels);
        for line in self.out.chunks_exact_mut(self.apart) {
            if let Some(stands) = windows.stands(inside, at) {
                for (t, &tap) in inside.taps.iter().enumerate() {
                    round_run(windows.source, (stands + tap) as usize, line, t * c..(t + 1) * c);
                }
            } else {
                windows.each_run(at, &(0..c), |run, from| match from {
                    Some(from) => round_run(windows.source, from, line, run),
                    None => line[run].fill(bf16::ZERO),
                });
            }
            line[self.depth..self.whole].fill(bf16::ZERO);
            at = windows.next(at);
        }
    }
}
