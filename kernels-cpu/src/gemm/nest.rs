//! The loop nest around the register tile, and how it is split over threads.

use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;

use super::pack::{self, Line};
use super::tile::{self, Columns, Rows, Target};
use super::{Finish, Mat, Out, Right};
use crate::isa::Isa;
use crate::map::{self, Unary};
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

/// Slabs of about equal length, which depends on K alone.
fn slab_of(k: usize) -> usize {
    k.div_ceil(k.div_ceil(KC).max(1))
}

/// A right operand in the order in which the register tile of a tier reads it.
pub struct Packed {
    isa: Isa,
    rows: usize,
    cols: usize,
    lines: Vec<Line>,
}

impl Packed {
    /// Packs `b` [k, n] for a tier.
    pub(super) fn on(isa: Isa, b: Mat<'_, f32>) -> Self {
        let ((k, n), (_, nr)) = ((b.rows, b.cols), tile::size(isa));
        let panels = n.div_ceil(nr);
        let mut lines = vec![Line::ZERO; (panels * nr * k + 16).div_ceil(16)];
        if k > 0 && n > 0 {
            pack_panels(isa, b, 0..k, 0, &mut lines, true);
        }
        Self { isa, rows: k, cols: n, lines }
    }

    pub(super) fn isa(&self) -> Isa {
        self.isa
    }

    /// Rows and columns of the operand.
    pub fn size(&self) -> [usize; 2] {
        [self.rows, self.cols]
    }

    /// Bytes taken.
    pub fn bytes(&self) -> usize {
        self.lines.len() * size_of::<Line>()
    }
}

/// Rows `ks` of `b` but for its `skip` first panels, as [slab][panel][depth][width].
fn pack_panels(isa: Isa, b: Mat<'_, f32>, ks: Range<usize>, skip: usize, lines: &mut [Line], threads: bool) {
    let (_, nr) = tile::size(isa);
    let (slab, panels) = (slab_of(b.rows), b.cols.div_ceil(nr) - skip);
    let place = Shared::new(pack::numbers(lines));
    spread(threads, ks.len().div_ceil(slab) * panels, 2 * nr * slab, &|range| {
        for item in range {
            let (i, p) = (item / panels, item % panels);
            let depth = slab.min(ks.len() - i * slab);
            // SAFETY: one panel, handed out once; the product of panels and slabs has room for it.
            let out = unsafe { place.at((i * slab * panels + p * depth) * nr) };
            let first = (skip + p) * nr;
            let rows = [first, nr.min(b.cols - first)];
            eval_on(isa, PackPanel { x: b.t(), rows, width: nr, columns: [ks.start + i * slab, depth], out });
        }
    });
}

fn spread(threads: bool, items: usize, cost: usize, f: &(dyn Fn(Range<usize>) + Sync)) {
    if threads { par::for_each(items, cost, f) } else { f(0..items) }
}

/// C = A B (+ C), finished, on a tier. No size is 0.
pub(super) fn product(isa: Isa, a: Mat<'_, f32>, b: Right<'_, f32>, out: Out<'_>, threads: bool) {
    let (m, k, n) = (a.rows, a.cols, b.cols());
    let (mr, nr) = tile::size(isa);
    let (row_tiles, panels) = (m.div_ceil(mr), n.div_ceil(nr));
    let slab = slab_of(k);

    // Enough jobs that a disturbed thread does not hold up the rest, each at least two tiles high.
    let wanted = if threads && par::threads() > 1 { 4 * par::threads() } else { 1 };
    let tiles_per_job = row_tiles.div_ceil(wanted.min(row_tiles / 2).max(row_tiles.div_ceil(ROW_TILES)).max(1));
    let row_jobs = row_tiles.div_ceil(tiles_per_job);
    let panels_per_job = panels.div_ceil((wanted / row_jobs).clamp(1, panels));
    let col_jobs = panels.div_ceil(panels_per_job);

    let direct_a = a.col_stride == 1 && !crowds_cache_sets(a.row_stride, mr) && panels < 16;
    let c = Shared::new(out.c);
    let run = |b: Option<Mat<'_, f32>>, packed_b: &[Line], direct_b: usize, ks: Range<usize>| {
        let packed_b = SendPtr(packed_b.as_ptr().cast());
        // About 16 multiply-adds take the time of one elementary operation.
        let cost = tiles_per_job * mr * panels_per_job * nr * ks.len() / 16;
        spread(threads, row_jobs * col_jobs, cost, &|range| {
            for job in range {
                let (i, j) = (job % row_jobs, job / row_jobs);
                let rows = i * tiles_per_job * mr..((i + 1) * tiles_per_job * mr).min(m);
                let panels = j * panels_per_job..((j + 1) * panels_per_job).min(panels);
                let job = Job {
                    a,
                    b: b.unwrap_or(Mat { data: &[], offset: 0, rows: k, cols: n, row_stride: 0, col_stride: 0 }),
                    rows,
                    panels,
                    packed_b: packed_b.get(),
                    direct_b,
                    direct_a,
                    start: ks.start,
                    end: ks.end,
                    slab,
                    c,
                    ldc: out.ldc,
                    accumulate: out.accumulate,
                    finish: out.finish,
                };
                eval_on(isa, job);
            }
        });
    };
    let b = match b {
        Right::Packed(b) => {
            assert!(b.isa == isa && b.rows == k, "gemm: an operand packed for {} and k = {}", b.isa, b.rows);
            return run(None, &b.lines, 0, 0..k);
        }
        Right::Loose(b) => b,
    };
    // Panels of B that are read where they lie, from the first on.
    let near = b.col_stride == 1 && b.row_stride.unsigned_abs() <= FAR_APART;
    let direct_b = if m <= FEW_ROWS && near { n / nr } else { 0 };
    let packed_panels = panels - direct_b;
    let group = (PACKED_B / (slab * panels * nr)).clamp(1, k.div_ceil(slab)) * slab;
    let mut packed_b = scratch::take(1, packed_panels * nr * group.min(k) + 16);
    for start in (0..k).step_by(group) {
        let ks = start..(start + group).min(k);
        if packed_panels > 0 {
            pack_panels(isa, b, ks.clone(), direct_b, &mut packed_b, threads);
        }
        run(Some(b), &packed_b, direct_b, ks);
    }
    scratch::give(1, packed_b);
}

/// Read by several threads at once.
#[derive(Clone, Copy)]
struct SendPtr(*const f32);

impl SendPtr {
    fn get(self) -> *const f32 {
        self.0
    }
}

// SAFETY: what it points to is not written while it is shared.
unsafe impl Send for SendPtr {}
// SAFETY: as above.
unsafe impl Sync for SendPtr {}

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
    packed_b: *const f32,
    direct_b: usize,
    direct_a: bool,
    start: usize,
    end: usize,
    slab: usize,
    c: Shared<f32>,
    ldc: usize,
    accumulate: bool,
    finish: Finish<'a, f32>,
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
                    let start = element(&self.b, start, p * nr);
                    Columns { start, step: self.b.row_stride, next: start, next_lines: 0 }
                } else {
                    let at = (start - self.start) * packed_panels + (p - self.direct_b) * depth;
                    // The panel after this one comes to the second-level cache by parts, one with each tile of rows.
                    let start = self.packed_b.wrapping_add(at * nr);
                    let next = start.wrapping_add(depth * nr);
                    Columns { start, step: nr as isize, next, next_lines: (depth * nr / 16).div_ceil(m.div_ceil(mr)) }
                };
                let cols = nr.min(n - p * nr);
                let last = start + depth == k;
                let bias = self.finish.bias.filter(|_| last).map_or(core::ptr::null(), |bias| bias[p * nr..].as_ptr());
                let residual = self.finish.residual.filter(|_| last);
                for i in (0..m).step_by(mr) {
                    let b = Columns { next: b.next.wrapping_add(i / mr * b.next_lines * 16), ..b };
                    let a = if PACKED {
                        Rows { start: packed_a.wrapping_add(i * depth), row_stride: 0 }
                    } else {
                        Rows { start: element(&self.a, self.rows.start + i, start), row_stride: self.a.row_stride }
                    };
                    // SAFETY: the tile is a part of C that belongs to this job; the operands were checked to lie in their
                    // data, and packed panels are whole.
                    unsafe {
                        let at = (self.rows.start + i) * self.ldc + p * nr;
                        let residual = residual.map_or(core::ptr::null(), |r| r[at..].as_ptr());
                        let accumulate = self.accumulate || start > 0;
                        let (c, rows) = (self.c.at(at), mr.min(m - i));
                        tile::run::<S, PACKED>(
                            s,
                            a,
                            b,
                            depth,
                            rows,
                            cols,
                            Target { c, ldc: self.ldc, accumulate, bias, residual },
                        );
                        if let (Some(act), true) = (self.finish.act, last) {
                            eval_on(S::ISA, Activate { act, c, ldc: self.ldc, rows, cols });
                        }
                    }
                }
            }
        }
    }
}

/// The activation of a tile that was just written.
struct Activate {
    act: Unary,
    c: *mut f32,
    ldc: usize,
    rows: usize,
    cols: usize,
}

impl SimdOp for Activate {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) {
        for r in 0..self.rows {
            // SAFETY: the tile's row is a part of C that belongs to the job.
            let row = unsafe { core::slice::from_raw_parts_mut(self.c.add(r * self.ldc), self.cols) };
            map::activate(s, self.act, row);
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
