//! Packing: panels of a few rows with k running slowest, as the register tile reads them.

use super::Mat;
use crate::simd::Simd;

/// A 64-byte line of packed numbers: vectors of packed B never straddle two lines.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(crate) struct Line(#[allow(dead_code)] [f32; 16]);

impl Line {
    pub(super) const ZERO: Self = Self([0.0; 16]);
    /// Sixteen of them.
    pub(super) const ZERO_BLOCK: [Self; 16] = [Self::ZERO; 16];
}

/// The numbers of lines.
pub(crate) fn numbers(lines: &mut [Line]) -> &mut [f32] {
    // SAFETY: a line is sixteen numbers and nothing else.
    unsafe { core::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), lines.len() * 16) }
}

/// As [`numbers`], for reading.
pub(super) fn numbers_of(lines: &[Line]) -> &[f32] {
    // SAFETY: as there.
    unsafe { core::slice::from_raw_parts(lines.as_ptr().cast(), lines.len() * 16) }
}

/// The bytes of numbers.
pub(super) fn bytes(numbers: &mut [f32]) -> &mut [u8] {
    // SAFETY: four bytes each; any bytes are numbers.
    unsafe { core::slice::from_raw_parts_mut(numbers.as_mut_ptr().cast(), 4 * numbers.len()) }
}

/// How far apart rows of so many words are put: an odd number of lines, so that they go through all sets of a cache.
pub(super) fn apart(k: usize) -> usize {
    k.next_multiple_of(16) | 16
}

/// Rows `first..first + rows` of `x`, columns `start..start + depth`, as `[panel][depth][width]`, panels `apart` numbers apart. The
/// places of missing rows of the last panel get numbers that mean nothing; one that is not whole begins `early` rows before its place. Columns of B
/// are rows of its transpose.
///
/// # Safety
/// The rows and columns must be in `x`, whose elements must be in its data. `out` must have room for the panels and one more
/// vector.
#[inline(always)]
pub(super) unsafe fn panels<S: Simd>(
    s: S,
    x: Mat<'_, f32>,
    [first, rows]: [usize; 2],
    [width, early]: [usize; 2],
    [start, depth]: [usize; 2],
    out: *mut f32,
    apart: usize,
) {
    // SAFETY: positions are of rows and columns of `x`, or of the panels; vectors are kept within the rows that they read, and
    // may write beyond their panel's width only into places that are written later or are the spare vector.
    unsafe {
        let at = |r: usize, p: usize| {
            let offset = r as isize * x.row_stride + (start + p) as isize * x.col_stride;
            x.data.as_ptr().offset(x.offset as isize + offset)
        };
        let panel_at = |r: usize| {
            let early = if rows - r < width { early } else { 0 };
            (first + r - early, width.min(rows - r + early), out.add(r / width * apart))
        };
        let whole = depth / S::LANES * S::LANES;
        if x.row_stride == 1 {
            // A few steps of k at a time: the source is read in long runs, and the panels written stay in the first-level cache.
            const STEPS: usize = 8;
            for p in (0..depth).step_by(STEPS) {
                let steps = STEPS.min(depth - p);
                for next in p + steps..depth.min(p + steps + STEPS) {
                    for line in (0..rows).step_by(16) {
                        s.prefetch(at(first + line, next));
                    }
                }
                for r in (0..rows).step_by(width) {
                    let (r, real, panel) = panel_at(r);
                    copy(s, at(r, p), x.col_stride, [steps, real], panel.add(p * width), width);
                }
            }
            return;
        }
        for r in (0..rows).step_by(width) {
            let (r, real, panel) = panel_at(r);
            let mut done = 0;
            if x.col_stride == 1 {
                for p in (0..whole).step_by(S::LANES) {
                    for v in (0..real).step_by(S::LANES) {
                        let place = panel.add(p * width + v);
                        s.transpose(at(r + v, p), x.row_stride, S::LANES.min(real - v), place, width);
                    }
                }
                done = whole;
            }
            for p in done..depth {
                for v in 0..real {
                    *panel.add(p * width + v) = *at(r + v, p);
                }
            }
        }
    }
}

/// `steps` runs of `n` numbers, which are `apart` numbers apart and become `step` apart.
///
/// # Safety
/// The caller must have checked the runs and have room for as many.
#[inline(always)]
unsafe fn copy<S: Simd>(s: S, x: *const f32, apart: isize, [steps, n]: [usize; 2], out: *mut f32, step: usize) {
    let (whole, rest) = (n / S::LANES * S::LANES, n % S::LANES);
    // SAFETY: the caller's promise.
    unsafe {
        for i in 0..steps {
            let (x, out) = (x.offset(i as isize * apart), out.add(i * step));
            for v in (0..whole).step_by(S::LANES) {
                s.store_ptr(s.load_ptr(x.add(v)), out.add(v));
            }
            if rest > 0 {
                let x = core::slice::from_raw_parts(x.add(whole), rest);
                s.store_partial(s.load_partial(x, 0.0), core::slice::from_raw_parts_mut(out.add(whole), rest));
            }
        }
    }
}
