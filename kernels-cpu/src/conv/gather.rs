//! Windows over a map as rows of a matrix, and their products.

use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;

use crate::float::{Float, as_f32, as_f32_mut};
use crate::gemm::scratch::{self, Use};
use crate::gemm::{Finish, Mat, Right, Windows, Written, multiply, multiply_windows, numbers};
use crate::par::{self, Shared};
use crate::simd::{Simd, SimdOp, dispatch};

/// With so many channels at a tap, windows are multiplied where they lie.
pub(super) const RUN: usize = 16;

/// Windows that a thread copies at a time.
pub(super) const PACKED_ROWS: usize = 64;

/// Windows over a map, without copies: position [i, j] of the grid and tap [a, b] read source row
/// `i * step + offsets[a]` and column `j * step + offsets[b]`, or zero outside.
pub(super) struct Gather<'a, F> {
    /// [n, h, w, channels]
    pub source: &'a [F],
    pub n: usize,
    pub size: [usize; 2],
    pub channels: usize,
    pub grid: [usize; 2],
    pub step: [usize; 2],
    pub offsets: [Vec<isize>; 2],
}

/// Windows that reach beyond no edge of their map, and where their taps lie from where such a window stands.
pub(super) struct Inside {
    /// Of the grid's rows and columns.
    grid: [Range<usize>; 2],
    pub taps: Vec<isize>,
}

/// Where results of a grid's positions go: rows `start`, `start + step`, .. of maps of `size`, and columns alike.
#[derive(Clone, Copy)]
pub(super) struct Target {
    pub size: [usize; 2],
    pub step: [usize; 2],
    pub start: [usize; 2],
}

impl<T: Copy + Default + Send + Sync> Gather<'_, T> {
    pub(super) fn items(&self) -> usize {
        self.n * self.grid[0] * self.grid[1]
    }

    /// Positions in a block: windows of some 256 KiB, but enough of them to be worth packing the other matrix.
    pub(super) fn block(&self, depth: usize) -> usize {
        (65_536 / depth.max(1)).clamp(256, 2048)
    }

    /// Positions in a block that is no larger, such that threads have blocks of about equal size.
    pub(super) fn even(&self, block: usize) -> usize {
        let blocks = self.items().div_ceil(block);
        if blocks < 2 { block } else { self.items().div_ceil(blocks.next_multiple_of(par::threads())) }
    }

    /// Map, row and column of a position.
    #[inline(always)]
    pub(super) fn position(&self, item: usize) -> [usize; 3] {
        let [rows, cols] = self.grid;
        [item / (rows * cols), item / cols % rows, item % cols]
    }

    #[inline(always)]
    pub(super) fn next(&self, [n, i, j]: [usize; 3]) -> [usize; 3] {
        let [rows, cols] = self.grid;
        match (i + 1 == rows, j + 1 == cols) {
            (_, false) => [n, i, j + 1],
            (false, true) => [n, i + 1, 0],
            (true, true) => [n + 1, 0, 0],
        }
    }

    /// The windows that reach beyond no edge.
    pub(super) fn inside(&self) -> Inside {
        let along = |k: usize| {
            let (step, size) = (self.step[k] as isize, self.size[k] as isize);
            let [low, high] = [self.offsets[k].iter().min(), self.offsets[k].iter().max()].map(|o| *o.unwrap_or(&0));
            let first = (-low).max(0).unsigned_abs().div_ceil(self.step[k]);
            first..((size - 1 - high).div_euclid(step) + 1).clamp(0, self.grid[k] as isize) as usize
        };
        let (wide, c) = (self.size[1] as isize, self.channels as isize);
        let [rows, cols] = &self.offsets;
        let taps = rows.iter().flat_map(|row| cols.iter().map(move |col| (row * wide + col) * c)).collect();
        Inside { grid: [along(0), along(1)], taps }
    }

    /// Where a window stands that is [`Inside`].
    #[inline(always)]
    pub(super) fn stands(&self, inside: &Inside, [n, i, j]: [usize; 3]) -> Option<isize> {
        let ([h, w], [down, right]) = (self.size, self.step);
        let is_inside = inside.grid[0].contains(&i) && inside.grid[1].contains(&j);
        is_inside.then(|| (((n * h + i * down) * w + j * right) * self.channels) as isize)
    }

    /// Whether windows are the pixels themselves. With a step, a grid may be as large as its map by padding that other rows of the kernel read.
    pub(super) fn is_plain(&self) -> bool {
        let stays = |k: usize| self.step[k] == 1 || self.grid[k] <= 1;
        self.grid == self.size && stays(0) && stays(1) && self.offsets.iter().all(|o| o[..] == [0])
    }

    /// Where windows over few channels have taps that lie side by side along a row: columns before a map's own, and columns in all, so that no
    /// window reaches beyond them.
    pub(super) fn columns(&self) -> Option<[usize; 2]> {
        let (c, cols) = (self.channels, &self.offsets[1]);
        let (first, last) = (*cols.first()?, *cols.last()?);
        let side_by_side = cols.iter().zip(first..).all(|(&o, run)| o == run);
        if !side_by_side || c >= RUN || cols.len() * c < RUN {
            return None;
        }
        let left = first.min(0).unsigned_abs();
        let end = ((self.grid[1].max(1) - 1) * self.step[1]).saturating_add_signed(last + 1);
        Some([left, left + end.max(self.size[1])])
    }

    /// Such windows with a row of taps as one, and how many numbers that has, over copies of the maps with so many columns, a row by `copy`.
    pub(super) fn by_rows<'s, U: Copy + Default + Send>(
        &self,
        [left, wide]: [usize; 2],
        maps: &'s mut [U],
        copy: impl Fn(&[T], &mut [U]) + Sync,
    ) -> (Gather<'s, U>, usize) {
        let ([h, w], c) = (self.size, self.channels);
        par::chunks_mut(maps, wide * c, wide * c / 8, |row, out| {
            out[..left * c].fill(U::default());
            copy(&self.source[row * w * c..][..w * c], &mut out[left * c..][..w * c]);
            out[(left + w) * c..].fill(U::default());
        });
        let [rows, cols] = &self.offsets;
        let offsets = [rows.clone(), vec![cols[0] + left as isize]];
        let (n, grid, step) = (self.n, self.grid, self.step);
        (Gather { source: maps, n, size: [h, wide], channels: c, grid, step, offsets }, cols.len() * c)
    }

    /// Windows of `rows`, restricted to some channels, as a matrix [positions, taps * channels]: packed into `scratch`,
    /// or a view of the source where that is the same. On several threads or the calling one alone.
    pub(super) fn matrix<'s>(
        &'s self,
        rows: Range<usize>,
        channels: Range<usize>,
        scratch: &'s mut Vec<T>,
        threads: bool,
    ) -> Mat<'s, T> {
        if self.is_plain() {
            return Mat {
                data: self.source,
                offset: rows.start * self.channels + channels.start,
                rows: rows.len(),
                cols: channels.len(),
                row_stride: self.channels as isize,
                col_stride: 1,
            };
        }
        let depth = self.offsets[0].len() * self.offsets[1].len() * channels.len();
        if scratch.len() < rows.len() * depth {
            scratch.resize(rows.len() * depth, T::default());
        }
        let count = rows.len();
        if threads {
            par::chunks_mut(
                &mut scratch[..count * depth],
                PACKED_ROWS * depth.max(1),
                PACKED_ROWS * depth,
                |i, out| {
                    let start = rows.start + i * PACKED_ROWS;
                    self.pack(start..rows.end.min(start + PACKED_ROWS), channels.clone(), depth, out);
                },
            );
        } else if depth > 0 {
            self.pack(rows, channels, depth, scratch);
        }
        Mat::new(&scratch[..count * depth], count, depth)
    }

    fn pack(&self, rows: Range<usize>, channels: Range<usize>, depth: usize, out: &mut [T]) {
        let mut at = self.position(rows.start);
        for line in out.chunks_exact_mut(depth).take(rows.len()) {
            self.each_run(at, &channels, |run, from| match from {
                Some(from) => copy(&self.source[from..][..run.len()], &mut line[run]),
                None => line[run].fill(T::default()),
            });
            at = self.next(at);
        }
    }

    /// Calls `f` with the parts of a window that lie side by side, in order, and where each starts in the source. `None`: outside of the map.
    #[inline(always)]
    pub(super) fn each_run(
        &self,
        [n, i, j]: [usize; 3],
        channels: &Range<usize>,
        mut f: impl FnMut(Range<usize>, Option<usize>),
    ) {
        let ([h, w], [rows_of, cols_of], all) = (self.size, &self.offsets, self.channels);
        let (width, first) = (channels.len(), cols_of.first().copied().unwrap_or(0));
        // Taps side by side and all channels: a window's row is one run of the source.
        let is_run = width == all && cols_of.iter().zip(first..).all(|(&o, run)| o == run);
        let left = (j * self.step[1]) as isize + first;
        let is_inside = left >= 0 && left + cols_of.len() as isize <= w as isize;
        let mut place = 0;
        for &offset in rows_of {
            let y = (i * self.step[0]) as isize + offset;
            let is_row = y >= 0 && y < h as isize;
            let whole = !is_row || is_run && is_inside;
            let (parts, len) = if whole { (1, cols_of.len() * width) } else { (cols_of.len(), width) };
            for &offset in cols_of.iter().take(parts) {
                let x = (j * self.step[1]) as isize + offset;
                let from = (is_row && (whole || x >= 0 && x < w as isize))
                    .then(|| ((n * h + y as usize) * w + x as usize) * all + channels.start);
                f(place..place + len, from);
                place += len;
            }
        }
    }

    /// Positions of a block where windows are copied but if they are the pixels: those need no blocks, where results need no other place.
    pub(super) fn block_of_copies(&self, depth: usize, target: Target) -> usize {
        if target.is_whole(self.grid) && self.is_plain() { self.items() } else { self.block(depth) }
    }

    /// Calls `multiply` with `block` positions at a time, the room for their results, rows of `outputs` numbers, and whether it is the only block, whose product the
    /// threads share; then results go to their places. `work` is what a position costs.
    pub(super) fn blocks<S: Copy + Default + Send>(
        &self,
        block: usize,
        work: usize,
        outputs: usize,
        y: &mut [S],
        target: Target,
        multiply: impl Fn(Range<usize>, &mut Vec<T>, &mut [S], bool) + Sync,
    ) {
        let in_place = target.is_whole(self.grid);
        // Threads take blocks, or share the only one.
        let items = self.items();
        let y = Shared::new(y);
        par::for_each(items.div_ceil(block.max(1)), block * work, |blocks| {
            let (mut scratch, mut results) = (Vec::new(), Vec::new());
            for b in blocks {
                let rows = b * block..items.min((b + 1) * block);
                let into: &mut [S] = if in_place {
                    // SAFETY: blocks are disjoint, each handed out once.
                    unsafe { y.slice(rows.start * outputs..rows.end * outputs) }
                } else {
                    results.resize(block * outputs, S::default());
                    &mut results
                };
                multiply(rows.clone(), &mut scratch, into, items <= block);
                if !in_place {
                    let mut at = self.position(rows.start);
                    for line in results.chunks_exact(outputs).take(rows.len()) {
                        let start = target.row(at) * outputs;
                        // SAFETY: positions are distinct, and each belongs to one block.
                        unsafe { y.slice(start..start + outputs) }.copy_from_slice(line);
                        at = self.next(at);
                    }
                }
            }
        });
    }

    /// Calls `f` with each tap that lies inside, and where its pixel starts in the source.
    #[inline(always)]
    fn each_tap(&self, [n, i, j]: [usize; 3], mut f: impl FnMut(usize, usize)) {
        let [h, w] = self.size;
        for (a, &offset) in self.offsets[0].iter().enumerate() {
            let y = (i * self.step[0]) as isize + offset;
            if y < 0 || y >= h as isize {
                continue;
            }
            for (b, &offset) in self.offsets[1].iter().enumerate() {
                let x = (j * self.step[1]) as isize + offset;
                if x >= 0 && x < w as isize {
                    f(a * self.offsets[1].len() + b, ((n * h + y as usize) * w + x as usize) * self.channels);
                }
            }
        }
    }
}

impl<F: Float> Gather<'_, F> {
    /// Windows times a matrix [taps * channels, outputs of the group] for each group, finished. What is added lies as `y` does.
    pub(super) fn multiply<'m>(
        &self,
        groups: usize,
        matrix: &(impl Fn(usize) -> Right<'m, F> + Sync),
        outputs: usize,
        finish: Finish<'_, F>,
        y: &mut [F],
        target: Target,
    ) {
        if outputs == 0 || self.items() == 0 {
            return;
        }
        let (c, o, depth) = (self.channels / groups, outputs / groups, matrix(0).rows());
        let in_place = target.is_whole(self.grid);
        assert!(in_place || finish.residual.is_none(), "conv2d: something added to scattered results");
        let part = |row: usize, group: usize| finish.part(row, outputs, group * o..(group + 1) * o);
        if let (true, true, Some(source)) = (in_place && !self.is_plain(), c >= RUN, as_f32(self.source)) {
            let y = as_f32_mut(y).expect("same type as the map");
            for group in 0..groups {
                let (matrix, finish) =
                    matrix(group).single().zip(part(0, group).single()).expect("same type as the map");
                let (channels, y) = (group * c..(group + 1) * c, &mut y[group * o..]);
                self.multiply_in_place(source, channels, matrix, y, outputs, finish);
            }
            return;
        }
        if let (true, Some(columns)) = (in_place && groups == 1 && as_f32(self.source).is_some(), self.columns()) {
            let y = as_f32_mut(y).expect("same type as the map");
            let (matrix, finish) = matrix(0).single().zip(finish.single()).expect("same type as the map");
            let len = self.n * self.size[0] * columns[1] * self.channels;
            let mut lines = scratch::take(Use::Maps, len);
            let copy = |x: &[F], y: &mut [f32]| y.copy_from_slice(as_f32(x).expect("as said"));
            let (windows, run) = self.by_rows(columns, &mut numbers(&mut lines)[..len], copy);
            windows.multiply_in_place(windows.source, 0..run, matrix, y, outputs, finish);
            return scratch::give(Use::Maps, lines);
        }
        let work = depth * o * groups / 8 + depth * groups;
        self.blocks(self.block_of_copies(depth, target), work, outputs, y, target, |rows, scratch, into, shared| {
            for group in 0..groups {
                let a = self.matrix(rows.clone(), group * c..(group + 1) * c, scratch, false);
                multiply(a, matrix(group), &mut into[group * o..], outputs, part(rows.start, group), shared);
            }
        });
    }

    /// Windows, restricted to some channels, times a matrix, without a copy of them.
    pub(super) fn multiply_in_place<Y: Written>(
        &self,
        source: &[f32],
        channels: Range<usize>,
        matrix: Right<'_, f32>,
        y: &mut [Y],
        outputs: usize,
        finish: Finish<'_, f32, Y>,
    ) {
        let (inside, zeros) = (self.inside(), vec![0.0f32; channels.len()]);
        let taps = inside.taps.len();
        let locate = |rows: Range<usize>, tall: usize, table: &mut [*const f32]| {
            let (mut at, start) = (self.position(rows.start), source.as_ptr().wrapping_add(channels.start));
            for (t, first) in rows.clone().step_by(tall).enumerate() {
                for r in 0..tall.min(rows.end - first) {
                    let places = table[t * tall * taps + r..].iter_mut().step_by(tall);
                    if let Some(stands) = self.stands(&inside, at) {
                        let start = start.wrapping_offset(stands);
                        places.zip(&inside.taps).for_each(|(place, &tap)| *place = start.wrapping_offset(tap));
                    } else {
                        places.take(taps).for_each(|place| *place = zeros.as_ptr());
                        self.each_tap(at, |tap, from| {
                            table[(t * taps + tap) * tall + r] = start.wrapping_add(from);
                        });
                    }
                    at = self.next(at);
                }
            }
        };
        let windows = Windows { rows: self.items(), taps, channels: channels.len(), locate: &locate };
        // SAFETY: a tap's pixel lies inside the map with all its channels; outside of it zeros are read.
        unsafe { multiply_windows(&windows, matrix, y, outputs, finish) }
    }

    /// Windows times weights [tap][channel], channel by channel.
    pub(super) fn multiply_depthwise(&self, weights: &[F], bias: Option<&[F]>, y: &mut [F], target: Target) {
        let y = Shared::new(y);
        let taps = self.offsets[0].len() * self.offsets[1].len();
        par::for_each(self.items(), self.channels * (taps + 1), |range| {
            dispatch(Depthwise { windows: self, range, weights, bias, y, target });
        });
    }
}

/// A copy that does not call a function for a few elements.
#[inline(always)]
fn copy<F: Copy>(from: &[F], to: &mut [F]) {
    if let ([a, b, c], [x, y, z]) = (from, &mut *to) {
        (*x, *y, *z) = (*a, *b, *c);
    } else if let ([a], [x]) = (from, &mut *to) {
        *x = *a;
    } else {
        to.copy_from_slice(from);
    }
}

impl Target {
    /// Whether positions of a grid are the pixels.
    pub fn is_whole(&self, grid: [usize; 2]) -> bool {
        self.step == [1, 1] && self.size == grid
    }

    /// Index of the pixel of a position.
    #[inline(always)]
    fn row(&self, [n, i, j]: [usize; 3]) -> usize {
        let [row, col] = [i * self.step[0] + self.start[0], j * self.step[1] + self.start[1]];
        (n * self.size[0] + row) * self.size[1] + col
    }
}

struct Depthwise<'a, F> {
    windows: &'a Gather<'a, F>,
    range: Range<usize>,
    weights: &'a [F],
    bias: Option<&'a [F]>,
    y: Shared<F>,
    target: Target,
}

impl<F: Float> SimdOp for Depthwise<'_, F> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd>(self, _: S) {
        let c = self.windows.channels;
        let mut at = self.windows.position(self.range.start);
        for _ in self.range {
            let start = self.target.row(at) * c;
            // SAFETY: positions are distinct, and each is handed out once.
            let y = unsafe { self.y.slice(start..start + c) };
            match self.bias {
                Some(bias) => y.copy_from_slice(bias),
                None => y.fill(F::ZERO),
            }
            self.windows.each_tap(at, |tap, from| {
                let (x, weights) = (&self.windows.source[from..][..c], &self.weights[tap * c..][..c]);
                y.iter_mut().zip(x).zip(weights).for_each(|((y, &x), &w)| *y += x * w);
            });
            at = self.windows.next(at);
        }
    }
}

/// Sum over positions of dy times the window, channel by channel.
pub(super) struct DepthwiseWeight<'a, F> {
    pub windows: &'a Gather<'a, F>,
    pub range: Range<usize>,
    pub dy: &'a [F],
    pub sum: &'a mut [F],
}

impl<F: Float> SimdOp for DepthwiseWeight<'_, F> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd>(self, _: S) {
        let c = self.windows.channels;
        let mut at = self.windows.position(self.range.start);
        for item in self.range {
            let dy = &self.dy[item * c..][..c];
            self.windows.each_tap(at, |tap, from| {
                let (x, sum) = (&self.windows.source[from..][..c], &mut self.sum[tap * c..][..c]);
                sum.iter_mut().zip(x).zip(dy).for_each(|((s, &x), &d)| *s += x * d);
            });
            at = self.windows.next(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_256_kib_of_windows_where_those_are_neither_few_nor_many() {
        let offsets = [vec![0], vec![0]];
        let x = Gather::<f32> { source: &[], n: 0, size: [0; 2], channels: 1, grid: [0; 2], step: [1; 2], offsets };
        for (depth, windows) in [(0, 2048), (1, 2048), (64, 1024), (9 * 16, 455), (9 * 64, 256)] {
            assert_eq!(x.block(depth), windows, "windows of {depth}");
        }
    }
}
