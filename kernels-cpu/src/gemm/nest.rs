//! The loop nest around the register tile, and how it is split over threads.

use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;

use super::pack::{self, Line};
use super::tile::{self, Columns, Rows, Target};
use super::{Mat, Out};
use crate::isa::Isa;
use crate::par::{self, Shared};
use crate::simd::{Simd, SimdOp, eval_on};

/// Longest slab of k: two vectors of B over it stay in the first-level cache. Fixed, as a size probed from the machine's
/// caches would change bits between machines.
const KC: usize = 256;
/// Most tiles of rows in a job: their packed slab takes a quarter of a second-level cache.
const ROW_TILES: usize = 32;
/// Numbers of packed B that several slabs may take together.
const PACKED_B: usize = 1 << 18;
/// With at most so many rows of C, rows of B are read where they lie: packing them would not pay ...
const FEW_ROWS: usize = 128;
/// ... unless they are further apart than this: nearly every one would be in a page of memory of its own.
const FAR_APART: usize = 1024;

/// C = A B (+ C) (+ bias) on a tier. No size is 0.
pub(super) fn product(isa: Isa, a: Mat<'_, f32>, b: Mat<'_, f32>, out: Out<'_>, threads: bool) {
    let (m, k, n) = (a.rows, a.cols, b.cols);
    let (mr, nr) = tile::size(isa);
    let (row_tiles, panels) = (m.div_ceil(mr), n.div_ceil(nr));
    // Slabs of about equal length, which depends on K alone.
    let slab = k.div_ceil(k.div_ceil(KC));
    let group = (PACKED_B / (slab * panels * nr)).clamp(1, k.div_ceil(slab)) * slab;

    // Enough jobs that a disturbed thread does not hold up the rest, each at least two tiles high.
    let wanted = if threads && par::threads() > 1 { 4 * par::threads() } else { 1 };
    let tiles_per_job = row_tiles.div_ceil(wanted.min(row_tiles / 2).max(row_tiles.div_ceil(ROW_TILES)).max(1));
    let row_jobs = row_tiles.div_ceil(tiles_per_job);
    let panels_per_job = panels.div_ceil((wanted / row_jobs).clamp(1, panels));
    let col_jobs = panels.div_ceil(panels_per_job);
    let spread = |items: usize, cost: usize, f: &(dyn Fn(Range<usize>) + Sync)| {
        if threads { par::for_each(items, cost, f) } else { f(0..items) }
    };

    // Panels of B that are read where they lie, from the first on.
    let near = b.col_stride == 1 && b.row_stride.unsigned_abs() <= FAR_APART;
    let direct_b = if m <= FEW_ROWS && near { n / nr } else { 0 };
    let packed_panels = panels - direct_b;
    let direct_a = a.col_stride == 1 && !crowds_cache_sets(a.row_stride, mr);
    let mut packed_b = scratch::take(1, packed_panels * nr * group.min(k) + 16);
    let c = Shared::new(out.c);
    for start in (0..k).step_by(group) {
        let end = (start + group).min(k);
        let slabs = (end - start).div_ceil(slab);
        let depth_of = |i: usize| slab.min(end - start - i * slab);
        if packed_panels > 0 {
            let place = Shared::new(pack::numbers(&mut packed_b));
            spread(slabs * packed_panels, 2 * nr * slab, &|range| {
                for item in range {
                    let (i, p) = (item / packed_panels, item % packed_panels);
                    // SAFETY: one panel, handed out once; the product of panels and slabs has room for it.
                    let out = unsafe { place.at((i * slab * packed_panels + p * depth_of(i)) * nr) };
                    let first = (direct_b + p) * nr;
                    let rows = [first, nr.min(n - first)];
                    eval_on(
                        isa,
                        PackPanel { x: b.t(), rows, width: nr, columns: [start + i * slab, depth_of(i)], out },
                    );
                }
            });
        }
        // About 16 multiply-adds take the time of one elementary operation.
        let cost = tiles_per_job * mr * panels_per_job * nr * (end - start) / 16;
        spread(row_jobs * col_jobs, cost, &|range| {
            for job in range {
                let (i, j) = (job % row_jobs, job / row_jobs);
                let rows = i * tiles_per_job * mr..((i + 1) * tiles_per_job * mr).min(m);
                let panels = j * panels_per_job..((j + 1) * panels_per_job).min(panels);
                let packed_b = packed_b.as_ptr();
                let job = Job {
                    a,
                    b,
                    rows,
                    panels,
                    packed_b,
                    direct_b,
                    direct_a,
                    start,
                    end,
                    slab,
                    c,
                    ldc: out.ldc,
                    accumulate: out.accumulate,
                    bias: out.bias,
                };
                eval_on(isa, job);
            }
        });
    }
    scratch::give(1, packed_b);
}

/// Whether rows this far apart would push each other out of the first-level cache (64 sets of lines of 16 numbers).
fn crowds_cache_sets(stride: isize, rows: usize) -> bool {
    let lines = stride.unsigned_abs() / 16;
    let period = 64 >> lines.trailing_zeros().min(6);
    stride.unsigned_abs().is_multiple_of(16) && rows > 4 * period
}

struct PackPanel<'a> {
    x: Mat<'a, f32>,
    rows: [usize; 2],
    width: usize,
    columns: [usize; 2],
    out: *mut f32,
}

impl SimdOp for PackPanel<'_> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) {
        // SAFETY: the caller gives rows and columns of the matrix, and a place of their size.
        unsafe { pack::panels(s, self.x, self.rows, self.width, self.columns, self.out) }
    }
}

/// A block of C over a group of slabs.
struct Job<'a> {
    a: Mat<'a, f32>,
    b: Mat<'a, f32>,
    rows: Range<usize>,
    panels: Range<usize>,
    packed_b: *const Line,
    direct_b: usize,
    direct_a: bool,
    start: usize,
    end: usize,
    slab: usize,
    c: Shared<f32>,
    ldc: usize,
    accumulate: bool,
    bias: Option<&'a [f32]>,
}

impl SimdOp for Job<'_> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) {
        if self.direct_a {
            return self.slabs::<S, false>(s, core::ptr::null_mut());
        }
        let (mr, _) = tile::size(S::ISA);
        let mut packed =
            scratch::take(0, self.rows.len().next_multiple_of(mr) * self.slab.min(self.end - self.start) + 16);
        self.slabs::<S, true>(s, pack::numbers(&mut packed).as_mut_ptr());
        scratch::give(0, packed);
    }
}

impl Job<'_> {
    #[inline(always)]
    fn slabs<S: Simd, const PACKED: bool>(&self, s: S, packed_a: *mut f32) {
        let (mr, nr) = tile::size(S::ISA);
        let (m, k, n) = (self.rows.len(), self.a.cols, self.b.cols);
        let packed_panels = n.div_ceil(nr) - self.direct_b;
        let element = |x: &Mat<'_, f32>, i: usize, j: usize| {
            x.data.as_ptr().wrapping_offset(x.offset as isize + i as isize * x.row_stride + j as isize * x.col_stride)
        };
        for start in (self.start..self.end).step_by(self.slab) {
            let depth = self.slab.min(self.end - start);
            if PACKED {
                // SAFETY: rows and columns of A, into a buffer of their size and a vector.
                unsafe { pack::panels(s, self.a, [self.rows.start, m], mr, [start, depth], packed_a) };
            }
            for p in self.panels.clone() {
                let b = if p < self.direct_b {
                    Columns { start: element(&self.b, start, p * nr), step: self.b.row_stride }
                } else {
                    let at = (start - self.start) * packed_panels + (p - self.direct_b) * depth;
                    Columns { start: self.packed_b.cast::<f32>().wrapping_add(at * nr), step: nr as isize }
                };
                let cols = nr.min(n - p * nr);
                let bias =
                    self.bias.filter(|_| start + depth == k).map_or(core::ptr::null(), |bias| bias[p * nr..].as_ptr());
                for i in (0..m).step_by(mr) {
                    let a = if PACKED {
                        Rows { start: packed_a.wrapping_add(i * depth), row_stride: 0 }
                    } else {
                        Rows { start: element(&self.a, self.rows.start + i, start), row_stride: self.a.row_stride }
                    };
                    // SAFETY: the tile is a part of C that belongs to this job; the operands were checked to lie in their
                    // data, and packed panels are whole.
                    unsafe {
                        let c = self.c.at((self.rows.start + i) * self.ldc + p * nr);
                        let out = Target { c, ldc: self.ldc, accumulate: self.accumulate || start > 0, bias };
                        tile::run::<S, PACKED>(s, a, b, depth, mr.min(m - i), cols, out);
                    }
                }
            }
        }
    }
}

/// Pack buffers, kept per thread between calls. Taken out while in use, so that a thread that steals another product's
/// work while it waits has buffers of its own.
mod scratch {
    use super::*;

    #[cfg(feature = "std")]
    std::thread_local! {
        static KEPT: core::cell::RefCell<[Vec<Line>; 2]> = const { core::cell::RefCell::new([Vec::new(), Vec::new()]) };
    }

    /// Room for `len` numbers.
    pub(super) fn take(which: usize, len: usize) -> Vec<Line> {
        #[cfg(feature = "std")]
        let mut buffer = KEPT.with(|kept| core::mem::take(&mut kept.borrow_mut()[which]));
        #[cfg(not(feature = "std"))]
        let mut buffer = {
            let _ = which;
            Vec::new()
        };
        if buffer.len() * 16 < len {
            buffer = vec![Line::ZERO; len.div_ceil(16)];
        }
        buffer
    }

    pub(super) fn give(which: usize, buffer: Vec<Line>) {
        #[cfg(feature = "std")]
        KEPT.with(|kept| {
            let slot = &mut kept.borrow_mut()[which];
            if slot.len() < buffer.len() {
                *slot = buffer;
            }
        });
        #[cfg(not(feature = "std"))]
        let _ = (which, buffer);
    }
}
