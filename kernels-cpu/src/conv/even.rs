//! Maps of bf16 copied with margins, so that windows over them lie at equal distances and are multiplied without being gathered: as AMX reads rows.
//!
//! Where windows step by two, rows and columns of a map are copied by their remainders, so that what a tap reads lies side by side. Over few
//! channels the taps of a row lie side by side already, and a row of them is read as one.

use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;

use half::bf16;

use super::gather::Gather;
use super::rounded::TOGETHER;
use crate::gemm::scratch::{self, Use};
use crate::gemm::{EvenWindows, Finish, Packed, Rounds, Written, halves, multiply_even, numbers, round_each};
use crate::par::{self, Shared};
use crate::simd::{Simd, SimdOp, dispatch};

/// Channels of pixels that lie side by side, as a part of a window's numbers is no longer.
const WIDE: usize = 256;
/// Numbers that the last window may read beyond its map.
const BEYOND: usize = 32;

/// Copies of maps: for every remainder of rows and of columns, lines of windows with the margins that their taps read.
struct Margins {
    remainders: [Vec<usize>; 2],
    /// Where lines and columns of a copy begin, in steps.
    first: [isize; 2],
    /// Lines of a copied map, and windows on one.
    size: [usize; 2],
    /// Columns of the map on a line, and how far apart they are in the map.
    columns: [usize; 2],
    /// Numbers from a column to the next.
    pixel: usize,
    /// Numbers from a window to the next.
    apart: usize,
}

/// Different remainders of taps' places, and the least and the largest place in steps.
fn by_step(offsets: &[isize], step: usize) -> (Vec<usize>, [isize; 2]) {
    let step = step as isize;
    let mut remainders: Vec<usize> = offsets.iter().map(|o| o.rem_euclid(step) as usize).collect();
    remainders.sort_unstable();
    remainders.dedup();
    let steps = || offsets.iter().map(|o| o.div_euclid(step));
    (remainders, [steps().min().unwrap_or(0), steps().max().unwrap_or(0)])
}

impl Margins {
    /// Of windows whose rows of taps are read as one or not.
    fn new<T>(windows: &Gather<'_, T>, by_rows: bool) -> Self {
        let ([rows, cols], [down, right], c) = (&windows.offsets, windows.step, windows.channels);
        let (of_rows, [top, bottom]) = by_step(rows, down);
        let lines = windows.grid[0] + (bottom - top) as usize;
        if by_rows {
            // Whole windows' columns on a line.
            let wide = windows.grid[1] - 1 + cols.len().div_ceil(right);
            let (remainders, first) = ([of_rows, vec![0]], [top, cols[0]]);
            return Self {
                remainders,
                first,
                size: [lines, wide],
                columns: [wide * right, 1],
                pixel: c,
                apart: right * c,
            };
        }
        let (of_cols, [left, end]) = by_step(cols, right);
        let wide = windows.grid[1] + (end - left) as usize;
        // An odd number of lines of 64 bytes where there are many, so that pixels spread over the sets of a cache.
        let apart = if c > WIDE && c.is_multiple_of(64) { c + 32 } else { c };
        Self {
            remainders: [of_rows, of_cols],
            first: [top, left],
            size: [lines, wide],
            columns: [wide, right],
            pixel: apart,
            apart,
        }
    }

    fn line(&self) -> usize {
        self.size[1] * self.apart
    }

    /// Numbers of one map's copies.
    fn of_a_map(&self) -> usize {
        self.remainders.iter().map(Vec::len).product::<usize>() * self.size[0] * self.line()
    }

    /// Where taps of the first window start in copies of so many maps, in numbers.
    fn taps<T>(&self, windows: &Gather<'_, T>, maps: usize, by_rows: bool) -> Vec<usize> {
        let plane = maps * self.size[0] * self.line();
        // Which of the remainders, and steps from the first one.
        let place = |axis: usize, offset: isize| {
            let step = windows.step[axis] as isize;
            let remainder = offset.rem_euclid(step) as usize;
            let at = self.remainders[axis].iter().position(|&r| r == remainder).expect("one of all");
            (at, (offset.div_euclid(step) - self.first[axis]) as usize)
        };
        let [rows, cols] = &windows.offsets;
        let mut taps = Vec::new();
        for &row in rows {
            let (of_row, line) = place(0, row);
            for &col in if by_rows { &cols[..1] } else { &cols[..] } {
                let (of_col, column) = if by_rows { (0, 0) } else { place(1, col) };
                let planes = of_row * self.remainders[1].len() + of_col;
                taps.push(planes * plane + line * self.line() + column * self.apart);
            }
        }
        taps
    }
}

/// Whether windows are multiplied so: of whole words of AMX at each tap, or at each row of taps if those have so many numbers.
pub(super) fn serves<T>(windows: &Gather<'_, T>, row_of_words: Option<usize>, matrix: &Packed) -> bool {
    matrix.reads_evenly(row_of_words.unwrap_or(windows.channels))
}

/// Windows times a matrix [taps * channels, outputs], finished.
pub(super) fn multiply<T: Rounds, Y: Written>(
    windows: &Gather<'_, T>,
    row_of_words: Option<usize>,
    matrix: &Packed,
    finish: Finish<'_, f32, Y>,
    y: &mut [Y],
) {
    let (margins, [_, outputs]) = (Margins::new(windows, row_of_words.is_some()), matrix.size());
    let (map, positions) = (windows.size[0] * windows.size[1] * windows.channels, windows.grid[0] * windows.grid[1]);
    let copied = margins.of_a_map();
    let together = (TOGETHER / copied.max(1)).clamp(1, windows.n);
    let mut lines = scratch::take(Use::Maps, (together * copied + BEYOND).div_ceil(2));
    for first in (0..windows.n).step_by(together) {
        let maps = together.min(windows.n - first);
        let (copies, beyond) = halves(&mut lines)[..maps * copied + BEYOND].split_at_mut(maps * copied);
        beyond.fill(bf16::ZERO);
        let source = &windows.source[first * map..][..maps * map];
        let (count, out) = (copies.len() / margins.line().max(1), Shared::new(copies));
        par::for_each(count, margins.line() / 8, |range| {
            dispatch(CopyLines { windows, margins: &margins, source, maps, range, out });
        });
        let even = EvenWindows {
            taps: margins.taps(windows, maps, row_of_words.is_some()).into_iter().map(|tap| tap / 2).collect(),
            source: &numbers(&mut lines)[..(maps * copied + BEYOND) / 2],
            words: row_of_words.unwrap_or(windows.channels) / 2,
            apart: margins.apart / 2,
            line: [margins.size[1], windows.grid[1]],
            lines: [margins.size[0], windows.grid[0]],
            maps,
        };
        let rows = first * positions;
        let finish = finish.part(rows, outputs, 0..outputs);
        multiply_even(&even, matrix, &mut y[rows * outputs..][..maps * positions * outputs], outputs, finish);
    }
    scratch::give(Use::Maps, lines);
}

/// Lines of copies, rounded to bf16, with zeros where they lie outside of their map.
struct CopyLines<'a, 'b, T> {
    windows: &'a Gather<'b, T>,
    margins: &'a Margins,
    source: &'a [T],
    maps: usize,
    range: Range<usize>,
    out: Shared<bf16>,
}

impl<T: Rounds> SimdOp for CopyLines<'_, '_, T> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd>(self, _: S) {
        let (margins, [h, w], c) = (self.margins, self.windows.size, self.windows.channels);
        let ([of_rows, of_cols], [lines, _]) = (&margins.remainders, margins.size);
        let ([columns, right], down) = (margins.columns, self.windows.step[0]);
        for i in self.range {
            let (plane, map, line) = (i / (self.maps * lines), i / lines % self.maps, i % lines);
            // SAFETY: a line of the copies, handed out once.
            let out = unsafe { self.out.slice(i * margins.line()..(i + 1) * margins.line()) };
            let row = (margins.first[0] + line as isize) * down as isize + of_rows[plane / of_cols.len()] as isize;
            if row < 0 || row >= h as isize {
                out.fill(bf16::ZERO);
                continue;
            }
            let pixels = &self.source[(map * h + row as usize) * w * c..][..w * c];
            // Column k of the line is column `start + k * right` of the map.
            let start = margins.first[1] * right as isize + of_cols[plane % of_cols.len()] as isize;
            let before = (-start).max(0).unsigned_abs().div_ceil(right).min(columns);
            let end = (w as isize - start).max(0).unsigned_abs().div_ceil(right).clamp(before, columns);
            let pixel = margins.pixel;
            out[..before * pixel].fill(bf16::ZERO);
            out[end * pixel..].fill(bf16::ZERO);
            let from = |k: usize| (start + (k * right) as isize) as usize;
            if right == 1 && pixel == c {
                round_each(&pixels[from(before) * c..][..(end - before) * c], &mut out[before * c..end * c]);
            } else {
                for k in before..end {
                    round_each(&pixels[from(k) * c..][..c], &mut out[k * pixel..][..c]);
                }
            }
        }
    }
}
