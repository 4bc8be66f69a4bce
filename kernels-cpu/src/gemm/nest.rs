//! The loop nest around the register tile, and how it is split over threads.

use alloc::vec;
use core::ops::Range;

use super::own::OwnPanels;
use super::pack::{self, Line};
use super::tile::{self, Ahead, Columns, Target};
use super::words::{Dot, Words, WordsOp};
use super::{Finish, Left, Mat, Out, Right, amx, scratch};
use crate::isa::Isa;
use crate::map::{self, Unary};
use crate::par::{self, Shared};
use crate::simd::{Simd, SimdOp, again, eval_on};
use scratch::Use;

/// Longest slab of k: a panel of B over it comes from the second-level cache, which the tile's products hide, and C is passed over
/// seldom; twice as long for AMX, which has C to pass over sooner. Fixed, as a size probed from the machine's caches would change bits between machines.
const KC: usize = 512;
/// Numbers of packed B that several slabs may take together.
const PACKED_B: usize = 1 << 20;
/// Bytes of an operand that is packed in passing.
pub(crate) const MOST_PACKED_BYTES: usize = PACKED_B * size_of::<f32>();
/// With at most so many rows of C, rows of B are read where they lie: packing them would not pay ...
const FEW_ROWS: usize = 128;
/// ... unless they are further apart than this: nearly every one would be in a page of memory of its own.
const FAR_APART: usize = 1024;
/// Numbers that stay in a second-level cache beside what passes through.
pub(super) const NEAR: usize = 1 << 16;
/// Words of A that stay in a second-level cache beside a panel of B, job after job, and the most that a slab of a job's rows takes: half of 2 MiB.
const NEAR_A: usize = 1 << 18;
/// Rows of A that so many panels of B meet are packed, however they lie.
const MANY_PANELS: usize = 16;
/// Most numbers of rows that are packed for several jobs.
const PACKED_A: usize = 1 << 20;

/// Slabs of about equal length, which depends on K alone: for `k` words.
pub(super) fn slab_of(words: Words, k: usize) -> usize {
    let most = if words.in_tiles() { 2 * KC } else { KC };
    k.div_ceil(k.div_ceil(most).max(1)).next_multiple_of(words.step())
}

/// Rows `ks` of `b` but for its `skip` first panels, as [slab][panel][depth][width].
pub(super) fn pack_panels(isa: Isa, b: Mat<'_, f32>, ks: Range<usize>, skip: usize, lines: &mut [Line], threads: bool) {
    let (_, nr) = tile::size(isa);
    let (slab, panels) = (slab_of(Words::F32, b.rows), b.cols.div_ceil(nr) - skip);
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

/// Numbers that a packed tile of rows takes: whole lines, and one that the last vector may write to.
fn packed_tile(height: usize, depth: usize) -> usize {
    (height * depth + 16).next_multiple_of(16)
}

/// Columns `ks` of `a`, as [slab][tile of rows][depth][height], each tile in a place of [`packed_tile`].
fn pack_rows(isa: Isa, a: Mat<'_, f32>, ks: Range<usize>, lines: &mut [Line], threads: bool) {
    let (mr, _) = tile::size(isa);
    let (slab, tiles) = (slab_of(Words::F32, a.cols), a.rows.div_ceil(mr));
    let place = Shared::new(pack::numbers(lines));
    spread(threads, ks.len().div_ceil(slab) * tiles, mr * slab, &|range| {
        for item in range {
            let (i, t) = (item / tiles, item % tiles);
            let depth = slab.min(ks.len() - i * slab);
            let rows = [t * mr, mr.min(a.rows - t * mr)];
            // SAFETY: one tile's rows, handed out once; tiles of all slabs have room.
            let out = unsafe { place.at(i * tiles * packed_tile(mr, slab) + t * packed_tile(mr, depth)) };
            eval_on(isa, PackPanel { x: a, rows, width: mr, columns: [ks.start + i * slab, depth], out });
        }
    });
}

pub(super) fn spread(threads: bool, items: usize, cost: usize, f: &(dyn Fn(Range<usize>) + Sync)) {
    if threads { par::for_each(items, cost, f) } else { f(0..items) }
}

/// C = A B (+ C), finished, on a tier. No size is 0.
pub(super) fn product(isa: Isa, a: Left<'_>, b: Right<'_, f32>, out: Out<'_>, threads: bool) {
    let ([m, k], n, words) = (a.size(), b.cols(), b.words());
    let (mr, nr) = words.tile(isa);
    let (row_tiles, panels) = (m.div_ceil(mr), n.div_ceil(nr));
    let slab = slab_of(words, k);

    // Enough jobs that a disturbed thread does not hold up the rest, but where every job reads more rows of A than stay near, one for each
    // thread. The larger operand is split, so that none of it is read twice; a job of rows is at least two tiles high.
    let long = n > m && m * k > NEAR_A && !matches!(a, Left::Windows(_));
    let wanted = match if threads { par::threads() } else { 1 } {
        1 => 1,
        threads if long => threads,
        threads => 4 * threads,
    };
    let high = row_tiles.div_ceil((NEAR_A / (mr * slab)).max(2));
    let (row_jobs, col_jobs) = if n > m {
        let col_jobs = wanted.min(panels);
        ((wanted / col_jobs).min(row_tiles / 2).max(high).max(1), col_jobs)
    } else {
        let row_jobs = wanted.min(row_tiles / 2).max(high).max(1);
        (row_jobs, (wanted / row_jobs).clamp(1, panels))
    };
    let (tiles_per_job, panels_per_job) = (row_tiles.div_ceil(row_jobs), panels.div_ceil(col_jobs));
    let (row_jobs, col_jobs) = (row_tiles.div_ceil(tiles_per_job), panels.div_ceil(panels_per_job));

    // Rows that many panels read, and those that would crowd each other out of the cache, are packed: once for all jobs that have them in
    // common, unless they are so many that they would only pass through the caches. Words were written so that they are read in place.
    let pack_a = match a {
        Left::Mat(a) if a.col_stride != 1 || crowds_cache_sets(a.row_stride, mr) || panels_per_job >= MANY_PANELS => {
            Some(a)
        }
        _ => None,
    };
    let together = col_jobs > 1 && row_tiles * mr * k <= PACKED_A;
    let c = Shared::new(out.c);
    let run = |packed_b: Option<&[Line]>, direct_b: usize, ks: Range<usize>| {
        let packed_a = pack_a.filter(|_| together).map(|a| {
            let mut lines = scratch::take(Use::CommonRows, ks.len().div_ceil(slab) * row_tiles * packed_tile(mr, slab));
            pack_rows(isa, a, ks.clone(), &mut lines, threads);
            lines
        });
        // About 16 multiply-adds take the time of one elementary operation.
        let cost = tiles_per_job * mr * panels_per_job * nr * ks.len() / 16;
        spread(threads, row_jobs * col_jobs, cost, &|range| {
            for job in range {
                let (i, j) = (job % row_jobs, job / row_jobs);
                let rows = i * tiles_per_job * mr..((i + 1) * tiles_per_job * mr).min(m);
                let panels = j * panels_per_job..((j + 1) * panels_per_job).min(panels);
                let job = Job {
                    a,
                    b,
                    rows,
                    panels,
                    packed_b,
                    direct_b,
                    pack_a: pack_a.is_some(),
                    packed_a: packed_a.as_deref(),
                    start: ks.start,
                    end: ks.end,
                    k,
                    slab,
                    c,
                    ldc: out.ldc,
                    accumulate: out.accumulate,
                    finish: out.finish,
                };
                words.eval(isa, job);
            }
        });
        if let Some(lines) = packed_a {
            scratch::give(Use::CommonRows, lines);
        }
    };
    let loose = match b {
        Right::Packed(b) => {
            assert!(
                b.isa == isa && words.count(b.size()[0]) == k,
                "gemm: an operand packed for {} and k = {}",
                b.isa,
                b.size()[0]
            );
            return run(Some(&b.lines), 0, 0..k);
        }
        Right::Loose(b) => b,
    };
    // Panels of B that are read where they lie, from the first on.
    let near = loose.col_stride == 1 && loose.row_stride.unsigned_abs() <= FAR_APART;
    let direct_b = if m <= FEW_ROWS && near { n / nr } else { 0 };
    let packed_panels = panels - direct_b;
    if row_jobs == 1 || packed_panels == 0 {
        // No other job reads a job's panels.
        return run(None, direct_b, 0..k);
    }
    let group = (PACKED_B / (slab * panels * nr)).clamp(1, k.div_ceil(slab)) * slab;
    let mut packed_b = scratch::take(Use::Panels, packed_panels * nr * group.min(k) + 16);
    for start in (0..k).step_by(group) {
        let ks = start..(start + group).min(k);
        pack_panels(isa, loose, ks.clone(), direct_b, &mut packed_b, threads);
        run(Some(&packed_b), direct_b, ks);
    }
    scratch::give(Use::Panels, packed_b);
}

/// Whether rows this far apart would push each other out of the first-level cache (64 sets of lines of 16 numbers).
fn crowds_cache_sets(stride: isize, rows: usize) -> bool {
    let lines = stride.unsigned_abs() / 16;
    let period = 64 >> lines.trailing_zeros().min(6);
    stride.unsigned_abs().is_multiple_of(16) && rows > 4 * period
}

pub(super) struct PackPanel<'a> {
    pub x: Mat<'a, f32>,
    pub rows: [usize; 2],
    pub width: usize,
    pub columns: [usize; 2],
    pub out: *mut f32,
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
    a: Left<'a>,
    b: Right<'a, f32>,
    rows: Range<usize>,
    panels: Range<usize>,
    /// Panels of B that are packed; without them the job packs its own as it comes to them.
    packed_b: Option<&'a [Line]>,
    /// Panels of a loose B, from the first on, that are read where they lie.
    direct_b: usize,
    pack_a: bool,
    /// All rows over all slabs, where they are packed for all jobs.
    packed_a: Option<&'a [Line]>,
    start: usize,
    end: usize,
    /// Words of all slabs.
    k: usize,
    slab: usize,
    c: Shared<f32>,
    ldc: usize,
    accumulate: bool,
    finish: Finish<'a, f32>,
}

impl WordsOp for Job<'_> {
    #[inline(always)]
    fn eval<S: Simd, D: Dot>(self, s: S, d: D) {
        let (mr, _) = tile::size(S::ISA);
        match self.a {
            Left::Mat(a) if self.pack_a => {
                assert!(matches!(D::WORDS, Words::F32), "words lie as they should");
                let depth = self.slab.min(self.end - self.start);
                let size = self.packed_a.map_or(self.rows.len().next_multiple_of(mr) * depth + 16, |_| 0);
                let mut lines = scratch::take(Use::Rows, size);
                let own = pack::numbers(&mut lines).as_mut_ptr();
                let (common, tiles) = (self.packed_a.map(|lines| lines.as_ptr().cast::<f32>()), a.rows.div_ceil(mr));
                self.slabs(s, d, |start, depth| {
                    let (first, apart) = match common {
                        Some(common) => {
                            let before = (start - self.start) / self.slab * tiles * packed_tile(mr, self.slab);
                            let apart = packed_tile(mr, depth);
                            (common.wrapping_add(before + self.rows.start / mr * apart), apart)
                        }
                        None => {
                            let rows = [self.rows.start, self.rows.len()];
                            // SAFETY: rows and columns of A, into a buffer of their size and a vector.
                            unsafe { pack::panels(s, a, rows, mr, [start, depth], own) };
                            (own.cast_const(), mr * depth)
                        }
                    };
                    move |i: usize| tile::Packed { start: first.wrapping_add(i / mr * apart), width: mr }
                });
                scratch::give(Use::Rows, lines);
            }
            Left::Mat(a) | Left::Words(a, _) => self.slabs(s, d, |start, _| {
                move |i: usize| tile::Strided {
                    start: element(&a, self.rows.start + i, start),
                    row_stride: a.row_stride,
                }
            }),
            Left::Windows(windows) => {
                assert!(matches!(D::WORDS, Words::F32), "windows are of f32");
                // [tile of rows][tap][row of the tile]
                let taps = windows.taps;
                let mut table = vec![core::ptr::null::<f32>(); self.rows.len().next_multiple_of(mr) * taps];
                (windows.locate)(self.rows.clone(), mr, &mut table);
                let table = table.as_ptr();
                self.slabs(s, d, |start, _| {
                    move |i: usize| tile::Windowed {
                        table: table.wrapping_add(i * taps),
                        width: mr,
                        channels: windows.channels,
                        first: start,
                    }
                });
            }
        }
    }
}

#[inline(always)]
pub(super) fn element(x: &Mat<'_, f32>, i: usize, j: usize) -> *const f32 {
    x.data.as_ptr().wrapping_offset(x.offset as isize + i as isize * x.row_stride + j as isize * x.col_stride)
}

impl Job<'_> {
    /// The scales of levels from a row and a column on.
    #[inline(always)]
    fn scale(&self, row: usize, col: usize) -> Option<tile::Scale> {
        let (Left::Words(_, rows), Right::Packed(b)) = (self.a, self.b) else { return None };
        let (rows, cols, zero) = (rows.get(row..)?, b.scale.get(col..)?, b.zero.get(col..)?);
        Some(tile::Scale { rows: rows.as_ptr(), cols: cols.as_ptr(), zero: zero.as_ptr().cast() })
    }

    /// Every tile. For a slab that starts somewhere and is so deep, `rows_of` gives the rows of the tile that begins with a row of the job.
    #[inline(always)]
    fn slabs<S: Simd, D: Dot, A: tile::Rows, F: Fn(usize) -> A>(
        &self,
        s: S,
        _: D,
        rows_of: impl Fn(usize, usize) -> F,
    ) {
        let (mr, nr) = if D::TILES { amx::SIZE } else { tile::size(S::ISA) };
        // SAFETY: what is in tiles is on the tier that has them.
        let mut configured = D::TILES.then(|| unsafe { amx::Configured::new() });
        let (m, k, n) = (self.rows.len(), self.k, self.b.cols());
        let packed_panels = n.div_ceil(nr) - self.direct_b;
        let each = if self.packed_b.is_some() || self.panels.end <= self.direct_b { 0 } else { nr * self.slab };
        let mut own = OwnPanels::new(self.panels.len(), each);
        for start in (self.start..self.end).step_by(self.slab) {
            let depth = self.slab.min(self.end - start);
            let rows_of = rows_of(start, depth);
            let (tiles, panels) = (m.div_ceil(mr), self.panels.len());
            // A slab of B that stays in the second-level cache is gone through for each tile of rows, which then is read once. Else a panel
            // stays near for all tiles.
            let rows_first = panels < tiles && panels * nr * depth <= NEAR;
            for t in 0..tiles * panels {
                let (i, p) = if rows_first { (t / panels, t % panels) } else { (t % tiles, t / tiles) };
                let (i, p) = (i * mr, self.panels.start + p);
                // What comes after this panel comes to the second-level cache by parts, one with each tile of rows; where panels are gone
                // through for each tile, all at the first.
                let part = |ahead: Ahead| match rows_first {
                    true => ahead.part(0, if i == 0 { usize::MAX } else { 0 }),
                    false => {
                        let share = ahead.lines.div_ceil(tiles);
                        ahead.part(i / mr * share, share)
                    }
                };
                let b = match (self.b, self.packed_b) {
                    (Right::Loose(b), _) if p < self.direct_b => {
                        Columns { start: element(&b, start, p * nr), step: b.row_stride, ahead: Ahead::NONE }
                    }
                    (Right::Loose(b), None) => {
                        let all = if rows_first { self.panels.clone() } else { p..p + 1 };
                        let first = all.start.max(self.direct_b);
                        if i == 0 && p == first {
                            // SAFETY: the panels are the job's, and B was checked.
                            unsafe { own.pack(s, &b, first..all.end, self.panels.end, nr, [start, depth]) };
                        }
                        Columns { start: own.panel(p, nr * depth), step: nr as isize, ahead: part(own.next) }
                    }
                    (_, packed) => {
                        let packed = packed.map_or(core::ptr::null(), |lines| lines.as_ptr().cast::<f32>());
                        let at = (start - self.start) * packed_panels + (p - self.direct_b) * depth;
                        let start = packed.wrapping_add(at * nr);
                        let next = Ahead::new(start.wrapping_add(depth * nr), 1, depth * nr / 16, 0);
                        Columns { start, step: nr as isize, ahead: part(next) }
                    }
                };
                let (rows, cols, last) = (mr.min(m - i), nr.min(n - p * nr), start + depth == k);
                let finish = if last { self.finish } else { Finish::default() };
                // SAFETY: the tile is a part of C that belongs to this job; the operands were checked to lie in their
                // data, and packed panels are whole.
                unsafe {
                    let at = (self.rows.start + i) * self.ldc + p * nr;
                    let out = Target {
                        c: self.c.at(at),
                        ldc: self.ldc,
                        accumulate: self.accumulate || start > 0,
                        scale: self.scale(self.rows.start + i, p * nr).filter(|_| last),
                        bias: finish.bias.map_or(core::ptr::null(), |bias| bias[p * nr..].as_ptr()),
                        residual: finish.residual.map_or(core::ptr::null(), |r| r[at..].as_ptr()),
                        relu: finish.act == Some(Unary::Relu),
                    };
                    if let Some(configured) = &mut configured {
                        amx::run::<S, A, D>(s, configured, rows_of(i), b, depth, rows, cols, out);
                    } else {
                        tile::run::<S, A, D>(s, rows_of(i), b, depth, rows, cols, out);
                    }
                    if let Some(act) = finish.act.filter(|_| !out.relu) {
                        again(s, Activate { act, c: out.c, ldc: self.ldc, rows, cols });
                    }
                }
            }
        }
        own.give();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slabs_are_as_few_as_fit_and_about_equal() {
        for k in 1..4 * KC {
            let slab = slab_of(Words::F32, k);
            assert!(slab <= KC && k.div_ceil(slab) == k.div_ceil(KC), "{k} in slabs of {slab}");
            assert!(k.div_ceil(slab) * slab - k < k.div_ceil(slab), "{k}: the last slab of {slab} is short");
        }
    }

    /// Rows 1024 apart have all their lines in one of 64 sets, of which each has room for a few; rows 48 apart go through all of them.
    #[test]
    fn rows_a_power_of_two_apart_crowd_each_other_out() {
        for (stride, rows, crowded) in [
            (1024, 5, true),
            (1024, 4, false),
            (-1024, 14, true),
            (512, 9, true),
            (512, 8, false),
            (2048, 5, true),
            (48, 200, false),
            (1030, 14, false),
        ] {
            assert_eq!(crowds_cache_sets(stride, rows), crowded, "{rows} rows {stride} apart");
        }
    }

    #[test]
    fn a_packed_tile_has_whole_lines_and_one_more() {
        for (height, depth) in [(1, 1), (6, 8), (8, 16), (14, 512)] {
            let room = packed_tile(height, depth);
            assert!(
                room.is_multiple_of(16) && (16..32).contains(&(room - height * depth)),
                "{height} x {depth}: {room}"
            );
        }
    }

    /// On a thread of its own, whose buffers no other product has used.
    #[cfg(feature = "std")]
    #[test]
    fn a_pack_buffer_has_room_for_one_slab_and_is_kept() {
        let (m, k, n) = (20, 2 * KC + 10, 3);
        let product = move || {
            let (a, b, mut c) = (vec![1f32; k * m], vec![1f32; k * n], vec![0f32; m * n]);
            super::super::gemm_serial(Mat::new(&a, k, m).t(), Mat::new(&b, k, n), false, &mut c, n, None);
            let rows = m.next_multiple_of(tile::size(Isa::current()).0);
            let kept = scratch::take(Use::Rows, 1);
            assert_eq!(kept.len(), (rows * slab_of(Words::F32, k) + 16).div_ceil(16));
            let place = kept.as_ptr();
            scratch::give(Use::Rows, kept);
            let again = scratch::take(Use::Rows, rows * slab_of(Words::F32, k));
            assert_eq!(again.as_ptr(), place);
        };
        std::thread::spawn(product).join().unwrap();
    }
}
