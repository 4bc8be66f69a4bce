//! The loop nest around the register tile.

use core::ops::Range;

use super::job::{Job, PackedRows, packed_tile};
use super::order::Passing;
use super::pack::{self, Line};
use super::split::{Form, Split};
use super::tile;
use super::words::Words;
use super::{Left, Mat, Out, Right, scratch};
use crate::isa::Isa;
use crate::par::{self, Shared};
use crate::simd::{Simd, SimdOp, eval_on};
use scratch::{Name, Use};

/// Longest slab of k: a panel of B over it comes from the second-level cache, which the tile's products hide, and C is passed over seldom. Fixed, as
/// a size probed from the machine's caches would change bits between machines.
const KC: usize = 768;
/// And for AMX, which has C to pass over sooner.
const KC_IN_TILES: usize = 1024;
/// Numbers of packed B that several slabs may take together.
const PACKED_B: usize = 1 << 21;
/// Bytes of an operand that is packed in passing.
pub(crate) const MOST_PACKED_BYTES: usize = PACKED_B * size_of::<f32>();
/// With at most so many rows of C, rows of B are read where they lie, as packing them would not pay ...
const FEW_ROWS: usize = 128;
/// ... unless they are further apart than this: nearly every one would be in a page of memory of its own.
const FAR_APART: usize = 1024;
/// Rows of A that crowd each other out of a cache are read by lower tiles where fewer panels of B meet them (AMX reads there what could lie better) ...
const FEW_PANELS: usize = 16;
/// ... and packed otherwise, as are all where more panels meet them than these.
const MANY_PANELS: usize = 24;
/// Most numbers of rows that are packed for several jobs.
const PACKED_A: usize = 1 << 21;

/// Slabs of about equal length, which depends on K alone: for `k` words.
pub(super) fn slab_of(words: Words, k: usize) -> usize {
    let most = if words.in_tiles() { KC_IN_TILES } else { KC };
    k.div_ceil(k.div_ceil(most).max(1)).next_multiple_of(words.step())
}

/// Rows `ks` of `b` but for its `skip` first panels, as [slab][panel][depth][width].
pub(super) fn pack_panels(isa: Isa, b: Mat<'_, f32>, ks: Range<usize>, skip: usize, lines: &mut [Line], threads: bool) {
    let (_, nr) = tile::size(isa);
    pack_slabs(isa, b.t(), [skip, nr, 0], ks, &|depth| depth * nr, lines, threads);
}

/// Columns `ks` of `x` but for its `skip` first panels of `width` rows, as [slab][panel][depth][width], where a panel has so much room. A last one
/// that is not whole begins `early` rows before its place.
fn pack_slabs(
    isa: Isa,
    x: Mat<'_, f32>,
    [skip, width, early]: [usize; 3],
    ks: Range<usize>,
    room: &(dyn Fn(usize) -> usize + Sync),
    lines: &mut [Line],
    threads: bool,
) {
    let (slab, panels) = (slab_of(Words::F32, x.cols), x.rows.div_ceil(width) - skip);
    let place = Shared::new(pack::numbers(lines));
    spread(threads, ks.len().div_ceil(slab) * panels, 2 * width * slab, &|mut range| {
        while !range.is_empty() {
            // Those of one slab together: rows that lie side by side are read in long runs.
            let (i, p) = (range.start / panels, range.start % panels);
            let together = range.len().min(panels - p);
            range.start += together;
            let depth = slab.min(ks.len() - i * slab);
            // SAFETY: panels that are handed out once; all of all slabs have room.
            let out = unsafe { place.at(i * panels * room(slab) + p * room(depth)) };
            let first = (skip + p) * width;
            let rows = [first, (together * width).min(x.rows - first)];
            eval_on(
                isa,
                PackPanels {
                    x,
                    rows,
                    width: [width, early],
                    columns: [ks.start + i * slab, depth],
                    out,
                    apart: room(depth),
                },
            );
        }
    });
}

pub(super) fn spread(threads: bool, items: usize, cost: usize, f: &(dyn Fn(Range<usize>) + Sync)) {
    if threads { par::for_each(items, cost, f) } else { f(0..items) }
}

/// C = A B (+ C), finished, on a tier. No size is 0.
pub(super) fn product(isa: Isa, a: Left<'_>, b: Right<'_, f32>, out: Out<'_>, threads: bool) {
    let ([m, k], n, words) = (a.size(), b.cols(), b.words());
    let ((tall, nr), slab) = (words.tile(isa), slab_of(words, k));

    // Rows that many panels read are packed, and those that would crowd each other out of the cache but where lower tiles read them. Those that all
    // jobs have in common each thread packs once for itself, if it has panels enough to read them; else they are packed once for all, unless they
    // are so many that they would only pass through the caches. Words were written so that they are read in place.
    let (there, form) = match a {
        Left::Mat(a) | Left::Words(a, _) => (in_place(isa, words, &a, n, threads), Form::of(&a)),
        Left::Windows(_) | Left::Even(_) => (Some(tall), Form::Windows),
    };
    let mr = there.unwrap_or(tall);
    let split = Split::new(isa, words, [m, k, n], mr, form, threads);
    let Split { row_tiles, panels, row_jobs, col_jobs, by_thread, .. } = split;
    let early = match split.tiles_of(row_jobs - 1).len() {
        _ if words.in_tiles() || mr < tall => 0,
        1 => 0,
        _ => tile::early(isa, m),
    };
    let pack_a = match a {
        Left::Mat(a) if a.col_stride != 1 || there.is_none() || split.meets() > MANY_PANELS => Some(a),
        _ => None,
    };
    // What is read where it lies passes by B in another way than what is packed.
    let passing = Passing::new(isa, words, m, form == Form::Rows && pack_a.is_none());
    let together = col_jobs > 1 && !by_thread && row_tiles * mr * k <= PACKED_A;
    let c = Shared::new(out.c);
    let run = |packed_b: Option<&[Line]>, direct_b: usize, ks: Range<usize>| {
        let common = pack_a.filter(|_| together).map(|a| {
            let mut lines = scratch::take(Use::CommonRows, ks.len().div_ceil(slab) * row_tiles * packed_tile(mr, slab));
            pack_slabs(isa, a, [0, mr, early], ks.clone(), &|depth| packed_tile(mr, depth), &mut lines, threads);
            lines
        });
        let packed_a = match (pack_a, &common) {
            (None, _) => PackedRows::None,
            (_, Some(lines)) => PackedRows::Common(lines),
            _ if by_thread => PackedRows::PerThread(Name::new()),
            _ => PackedRows::Own,
        };
        // About 16 multiply-adds take the time of one elementary operation.
        let cost = split.tiles_per_job() * mr * split.panels_per_job() * nr * ks.len() / 16;
        spread(threads, row_jobs * col_jobs, cost, &|range| {
            for job in range {
                let (tiles, panels) = (split.tiles_of(job), split.panels_of(job));
                let rows = tiles.start * mr..(tiles.end * mr).min(m);
                let job = Job {
                    a,
                    b,
                    mr,
                    early: if rows.end == m { early } else { 0 },
                    rows,
                    panels,
                    packed_b,
                    direct_b,
                    packed_a,
                    passing,
                    ks: ks.clone(),
                    k,
                    slab,
                    c,
                    ldc: out.ldc,
                    accumulate: out.accumulate,
                    finish: out.finish,
                    rounded: out.rounded,
                };
                words.eval(isa, job);
            }
        });
        if let Some(lines) = common {
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
    let at_once = (PACKED_B / (slab * panels * nr)).clamp(1, k.div_ceil(slab)) * slab;
    let mut packed_b = scratch::take(Use::Panels, packed_panels * nr * at_once.min(k) + 16);
    for start in (0..k).step_by(at_once) {
        let ks = start..(start + at_once).min(k);
        pack_panels(isa, loose, ks.clone(), direct_b, &mut packed_b, threads);
        run(Some(&packed_b), direct_b, ks);
    }
    scratch::give(Use::Panels, packed_b);
}

/// Rows of the tile that reads rows of `a` where they lie: fewer where they would crowd each other out of a cache, if they are many and few panels of the
/// `n` columns of B meet them, as lower tiles pass over these more often. None where rows are better read from elsewhere.
pub(super) fn in_place(isa: Isa, words: Words, a: &Mat<'_, f32>, n: usize, threads: bool) -> Option<usize> {
    let (tall, nr) = words.tile(isa);
    let crowds = crowds_cache_sets(a.row_stride, tall);
    if words.in_tiles() {
        // Rows an even number of lines apart leave some sets of the first-level cache empty and take what stays there out of the others.
        let spreads = a.row_stride % 32 != 0 || n.div_ceil(nr) < FEW_PANELS;
        return (spreads && !crowds).then_some(tall);
    }
    if !crowds {
        return Some(tall);
    }
    if a.rows <= FEW_ROWS {
        return None;
    }
    let split = Split::new(isa, words, [a.rows, a.cols, n], tall, Form::of(a), threads);
    (split.meets() < FEW_PANELS).then_some(tile::LOW)
}

/// Whether rows this far apart would push each other out of the first-level cache (64 sets of lines of 16 numbers).
fn crowds_cache_sets(stride: isize, rows: usize) -> bool {
    let lines = stride.unsigned_abs() / 16;
    let period = 64 >> lines.trailing_zeros().min(6);
    stride.unsigned_abs().is_multiple_of(16) && rows > 8 * period
}

pub(super) struct PackPanels<'a> {
    pub x: Mat<'a, f32>,
    pub rows: [usize; 2],
    /// And how many rows a last one begins early.
    pub width: [usize; 2],
    pub columns: [usize; 2],
    pub out: *mut f32,
    /// From a panel to the next.
    pub apart: usize,
}

impl SimdOp for PackPanels<'_> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) {
        // SAFETY: the caller gives rows and columns of the matrix, and a place of their size.
        unsafe { pack::panels(s, self.x, self.rows, self.width, self.columns, self.out, self.apart) }
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
            (1024, 9, true),
            (1024, 8, false),
            (-1024, 14, true),
            (512, 17, true),
            (512, 16, false),
            (2048, 9, true),
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
