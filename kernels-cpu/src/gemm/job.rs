//! A job: a block of C, tile by tile.

use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;

use super::ahead::{Ahead, Asks};
use super::order::{At, Order, Passing};
use super::own::OwnPanels;
use super::pack::{self, Line};
use super::rows;
use super::tile::{self, Columns, Target};
use super::words::{Dot, Words, WordsOp};
use super::written::{RoundTile, Rounded};
use super::{Finish, Left, Mat, Right, amx, scratch};
use crate::map::{self, Unary};
use crate::par::Shared;
use crate::simd::{Simd, SimdOp, again};
use scratch::{Name, Use};

/// Words of both operands that a first-level cache holds, so that nothing of them is asked for.
const NEAREST: usize = 1 << 13;

/// Turns of the outer loop over tiles that ask for what is packed after them.
const LAST_TURNS: usize = 4;

/// A block of C over a range of k.
pub(super) struct Job<'a> {
    pub a: Left<'a>,
    pub b: Right<'a, f32>,
    pub rows: Range<usize>,
    /// Rows of a tile.
    pub mr: usize,
    /// How many rows the last tile begins before its place.
    pub early: usize,
    pub panels: Range<usize>,
    /// Panels of B that are packed; without them the job packs its own as it comes to them.
    pub packed_b: Option<&'a [Line]>,
    /// Panels of a loose B, from the first on, that are read where they lie.
    pub direct_b: usize,
    pub packed_a: PackedRows<'a>,
    pub passing: Passing,
    pub ks: Range<usize>,
    /// Words of all slabs.
    pub k: usize,
    pub slab: usize,
    pub c: Shared<f32>,
    pub ldc: usize,
    pub accumulate: bool,
    pub finish: Finish<'a, f32>,
    pub rounded: Option<Rounded<'a>>,
}

/// Who packs a job's rows of A.
#[derive(Clone, Copy)]
pub(super) enum PackedRows<'a> {
    /// Nobody: they are read where they lie.
    None,
    /// The job.
    Own,
    /// The first of the jobs that a thread has of a product, which all have the same rows.
    PerThread(Name),
    /// They were packed for all jobs: all rows over all slabs.
    Common(&'a [Line]),
}

/// Numbers that a packed tile of rows takes: whole lines, and one that the last vector may write to.
pub(super) fn packed_tile(height: usize, depth: usize) -> usize {
    (height * depth + 16).next_multiple_of(16)
}

#[inline(always)]
pub(super) fn element(x: &Mat<'_, f32>, i: usize, j: usize) -> *const f32 {
    x.data.as_ptr().wrapping_offset(x.offset as isize + i as isize * x.row_stride + j as isize * x.col_stride)
}

impl WordsOp for Job<'_> {
    #[inline(always)]
    fn eval<S: Simd, D: Dot>(self, s: S, d: D) {
        let (mr, early) = (self.mr, self.early);
        let tiles = self.rows.len().div_ceil(mr);
        match (self.a, self.packed_a) {
            (Left::Mat(a), PackedRows::None) | (Left::Words(a, _), _) => {
                let rows_of = |start: usize, _: usize, t: usize| rows::Strided {
                    start: element(&a, self.rows.start + self.tile_at(t), start),
                    row_stride: a.row_stride,
                };
                self.tiles(s, d, |_| Ahead::NONE, rows_of);
            }
            (Left::Mat(a), packed) => {
                assert!(matches!(D::WORDS, Words::F32), "words lie as they should");
                let (common, name) = match packed {
                    PackedRows::Common(lines) => (Some(lines.as_ptr().cast::<f32>()), Name::NONE),
                    PackedRows::PerThread(name) => (None, name),
                    _ => (None, Name::NONE),
                };
                // Slabs that later jobs read have a place each.
                let (apart, depth) = match name {
                    Name::NONE => (0, self.slab.min(self.ks.len())),
                    _ => (tiles * mr, self.ks.len()),
                };
                let room = if common.is_some() { 0 } else { tiles * mr * depth + 16 };
                let (mut lines, packed) = scratch::take_named(Use::Rows, name, room);
                let own = pack::numbers(&mut lines).as_mut_ptr();
                let slab_at = |start: usize| own.wrapping_add((start - self.ks.start) * apart);
                let pack = |[start, depth]: [usize; 2]| {
                    if packed || common.is_some() {
                        return Ahead::NONE;
                    }
                    let rows = [self.rows.start, self.rows.len()];
                    // SAFETY: rows and columns of A, into a buffer of their size and a vector.
                    unsafe { pack::panels(s, a, rows, [mr, early], [start, depth], slab_at(start), mr * depth) };
                    self.next_rows(&a, start + depth)
                };
                let rows_of = |start: usize, depth: usize, t: usize| {
                    let start = match common {
                        Some(common) => {
                            let slabs_before = (start - self.ks.start) / self.slab * a.rows.div_ceil(mr);
                            let before = (self.rows.start / mr + t) * packed_tile(mr, depth);
                            common.wrapping_add(slabs_before * packed_tile(mr, self.slab) + before)
                        }
                        None => slab_at(start).cast_const().wrapping_add(t * mr * depth),
                    };
                    rows::Packed { start, width: mr }
                };
                self.tiles(s, d, pack, rows_of);
                scratch::give_named(Use::Rows, name, lines);
            }
            (Left::Even(windows), _) => {
                assert!(D::TILES, "AMX reads windows that lie evenly");
                let rows_of = |start: usize, _: usize, t: usize| rows::Even {
                    windows,
                    row: self.rows.start + self.tile_at(t),
                    first: start,
                };
                self.tiles(s, d, |_| Ahead::NONE, rows_of);
            }
            (Left::Windows(windows), _) => {
                assert!(matches!(D::WORDS, Words::F32 | Words::Bf16), "windows are read a word at a time");
                // [tile of rows][tap][row of the tile]
                let taps = windows.taps;
                let mut table = vec![core::ptr::null::<f32>(); tiles * mr * taps];
                (windows.locate)(self.rows.clone(), mr, &mut table);
                if early > 0 {
                    let last = self.rows.start + self.tile_at(tiles - 1)..self.rows.end;
                    (windows.locate)(last, mr, &mut table[(tiles - 1) * mr * taps..]);
                }
                let table = table.as_ptr();
                let rows_of = |start: usize, _: usize, t: usize| rows::Windowed {
                    table: table.wrapping_add(t * mr * taps),
                    width: mr,
                    channels: windows.channels,
                    first: start,
                };
                self.tiles(s, d, |_| Ahead::NONE, rows_of);
            }
        }
    }
}

/// A tile of C: its first row of A; its rows of C, and its columns, the first and how many.
struct Place {
    row: usize,
    rows: [usize; 2],
    cols: [usize; 2],
}

impl Job<'_> {
    /// The scales of levels from a row and a column on.
    #[inline(always)]
    fn scale(&self, row: usize, col: usize) -> Option<tile::Scale> {
        let (Left::Words(_, rows), Right::Packed(b)) = (self.a, self.b) else { return None };
        let (rows, cols, zero) = (rows.get(row..)?, b.scale.get(col..)?, b.zero.get(col..)?);
        Some(tile::Scale { rows: rows.as_ptr(), cols: cols.as_ptr(), zero: zero.as_ptr().cast() })
    }

    /// The lines of the rows of A after a slab that ends before a column: those over the next one, or those of the next job.
    #[inline(always)]
    fn next_rows(&self, a: &Mat<'_, f32>, column: usize) -> Ahead {
        let (rows, left) = (self.rows.len(), self.slab.min(self.ks.end - column));
        if left > 0 {
            return Ahead::of(a, [self.rows.start, rows], [column, left]);
        }
        let first = [self.ks.start, self.slab.min(self.ks.len())];
        Ahead::of(a, [self.rows.end, rows.min(a.rows - self.rows.end)], first)
    }

    /// The row of the job's that a tile begins with; after the last one, how many rows there are.
    #[inline(always)]
    fn tile_at(&self, t: usize) -> usize {
        let (place, rows) = (t * self.mr, self.rows.len());
        if place < rows && place + self.mr >= rows { place - self.early } else { place.min(rows) }
    }

    /// Every tile, slab by slab, each after it was `prepare`d, which says where its next rows will be packed from. `rows_of` gives a tile's rows over a
    /// slab that starts somewhere and is so deep.
    #[inline(always)]
    fn tiles<S: Simd, D: Dot, A: rows::Rows>(
        &self,
        s: S,
        _: D,
        prepare: impl Fn([usize; 2]) -> Ahead,
        rows_of: impl Fn(usize, usize, usize) -> A,
    ) {
        let (mr, (_, nr)) = (self.mr, if D::TILES { amx::SIZE } else { tile::size(S::ISA) });
        // SAFETY: what is in tiles is on the tier that has them.
        let configured = D::TILES.then(|| unsafe { amx::Configured::new(self.rows.len()) });
        let (m, n) = (self.rows.len(), self.b.cols());
        let (tiles, panels) = (m.div_ceil(mr), self.panels.len());
        let each = if self.packed_b.is_some() || self.panels.end <= self.direct_b { 0 } else { nr * self.slab };
        let mut own = OwnPanels::new(panels, each, self.passing.near);
        let mut sums = if D::TILES { scratch::take(Use::Sums, amx::TOGETHER * mr * nr) } else { Vec::new() };
        // A tile that is rounded when it is whole, and a line beside it.
        let mut unrounded = self.rounded.map(|_| vec![Line::ZERO; (mr * nr).div_ceil(16) + 1]);
        for start in self.ks.clone().step_by(self.slab) {
            let depth = self.slab.min(self.ks.end - start);
            let packed_later = prepare([start, depth]);
            let is_nearest = (m + panels * nr) * depth <= NEAREST;
            let rows_first = self.passing.by_rows([m, depth, panels * nr]);
            let (turns, inner) = if rows_first { (tiles, panels) } else { (panels, tiles) };
            // AMX takes what stays by parts that the first-level cache holds, each for a few tiles, whose sums wait meanwhile.
            let (parts, together) =
                if D::TILES && inner > 1 { (depth.div_ceil(amx::DEEP), amx::TOGETHER) } else { (1, inner) };
            let deep = if parts > 1 { depth.div_ceil(parts).next_multiple_of(D::WORDS.step()) } else { depth };
            let (turn_tiles, last_turns) = (inner * parts, turns.min(LAST_TURNS));
            let mut asks = match D::TILES {
                true => Asks::new(mr, (depth / parts).max(D::WORDS.step()), [D::WORDS.step(); 2]),
                false => Asks::new(mr, depth, tile::pieces(rows_of(start, depth, 0).run(0))),
            };
            for At { outer: turn, inner: i, part, nth } in Order::new([turns, inner], parts, together) {
                let (t, p) = if rows_first { (turn, i) } else { (i, turn) };
                let (waits, p) = (i, self.panels.start + p);
                let (i, end) = (self.tile_at(t), self.tile_at(t + 1));
                let (b, next_panel) = match (self.b, self.packed_b) {
                    (Right::Loose(b), _) if p < self.direct_b => {
                        (Columns { start: element(&b, start, p * nr), step: b.row_stride }, Ahead::NONE)
                    }
                    (Right::Loose(b), None) => {
                        let all = if rows_first { self.panels.clone() } else { p..p + 1 };
                        let first = all.start.max(self.direct_b);
                        if t == 0 && p == first {
                            // SAFETY: the panels are the job's, and B was checked.
                            unsafe { own.pack(s, &b, first..all.end, self.panels.end, nr, [start, depth]) };
                        }
                        (Columns { start: own.panel(p, nr * depth), step: nr as isize }, own.next)
                    }
                    _ => (Columns { start: self.panel(p, start, nr), step: nr as isize }, self.after(p, start, nr)),
                };
                // What comes after this panel comes to the second-level cache by parts, one with each tile of rows. Where panels are gone
                // through for each tile, all at the first one, and then the next tile's rows, a part with each panel. Rows that are packed
                // after these come with the last turns alone, not to take the place of these too soon.
                match rows_first {
                    _ if is_nearest => {}
                    true if t == 0 => asks.turn_to::<0>(if part == 0 { next_panel } else { Ahead::NONE }, 1),
                    _ if nth > 0 => {}
                    true if t + 1 == tiles => asks.turn_to::<0>(Ahead::NONE, 1),
                    true => {
                        let rows = self.tile_at(t + 2) - end;
                        asks.turn_to::<0>(rows_of(start, depth, t + 1).lines(rows, depth), turn_tiles);
                    }
                    false => asks.turn_to::<0>(next_panel, turn_tiles),
                }
                if !is_nearest && nth == 0 && turn + last_turns == turns {
                    asks.turn_to::<1>(packed_later, last_turns * turn_tiles);
                }
                let (rows, cols) = (end - i, nr.min(n - p * nr));
                // Those of C.
                let [first, beyond] = [i, end].map(|row| self.a.before(self.rows.start + row));
                if first == beyond {
                    continue;
                }
                let (whole, last) = (part + 1 == parts, start + depth == self.k);
                let place = Place { row: self.rows.start + i, rows: [first, beyond - first], cols: [p * nr, cols] };
                let is_whole = if D::TILES { cols == nr } else { tile::is_whole(S::ISA, rows, cols) };
                // One that is rounded waits in f32, if it does not wait in C for more slabs.
                let waiting = unrounded.as_mut().filter(|_| start == 0 && last);
                let waiting = waiting.map(|tile| (pack::numbers(tile).as_mut_ptr(), nr));
                // SAFETY: the tile is a part of C that belongs to this job; the operands were checked to lie in their
                // data, and packed panels are whole.
                unsafe {
                    let (out, round) = self.target::<D>(place, [start > 0, last], waiting, is_whole);
                    if let Some(configured) = &configured {
                        let from = part * deep;
                        let b = Columns { start: b.start.wrapping_add(from * nr), step: b.step };
                        let of = tile::Part {
                            depth: deep.min(depth - from),
                            first: part == 0,
                            last: whole,
                            sums: pack::numbers(&mut sums).as_mut_ptr().add(waits % amx::TOGETHER * mr * nr),
                            once: if rows_first || tiles == 1 { tile::Once::B } else { tile::Once::A },
                        };
                        amx::run::<S, A, D>(
                            s,
                            configured,
                            rows_of(start + from, depth, t),
                            b,
                            &mut asks,
                            of,
                            [i, rows, cols],
                            out,
                        );
                    } else {
                        tile::run::<S, A, D>(s, rows_of(start, depth, t), b, &mut asks, depth, rows, cols, out);
                    }
                    if let Some(act) = self.finish.act.filter(|_| last && whole && !out.relu) {
                        again(s, Activate { act, c: out.c, ldc: self.ldc, rows: beyond - first, cols });
                    }
                    if let Some(round) = round.filter(|_| whole && out.halves.is_none()) {
                        again(s, round);
                    }
                }
            }
        }
        if D::TILES {
            scratch::give(Use::Sums, sums);
        }
        own.give();
    }

    /// Where a tile goes over the first slab or `more` of them, up to the last one or not; and how it is rounded, `waiting` somewhere until it is whole. A tile
    /// with all its rows and columns is rounded as it is written, where that can be.
    ///
    /// # Safety
    /// The place must be a part of C that belongs to the job.
    #[inline(always)]
    unsafe fn target<D: Dot>(
        &self,
        Place { row, rows: [first, rows], cols: [col, cols] }: Place,
        [more, last]: [bool; 2],
        waiting: Option<(*mut f32, usize)>,
        is_whole: bool,
    ) -> (Target, Option<RoundTile>) {
        let finish = if last { self.finish } else { Finish::default() };
        let at = first * self.ldc + col;
        // SAFETY: the caller's promise.
        let (c, ldc) = waiting.unwrap_or_else(|| (unsafe { self.c.at(at) }, self.ldc));
        let round = self.rounded.filter(|_| last);
        // SAFETY: as above.
        let round = round.map(|y| unsafe { y.tile([first, col], c, ldc, [rows, cols]) });
        let halves = round.as_ref().filter(|_| D::HALVES && is_whole).and_then(RoundTile::halves);
        let residual = finish.residual.map_or(core::ptr::null(), |r| r[at..].as_ptr());
        let target = Target {
            c,
            ldc,
            accumulate: self.accumulate || more,
            scale: self.scale(row, col).filter(|_| last),
            bias: finish.bias.map_or(core::ptr::null(), |bias| bias[col..].as_ptr()),
            residual,
            relu: finish.act == Some(Unary::Relu) || halves.is_some_and(|halves| halves.relu),
            halves,
            lines: round.as_ref().map_or([(c, ldc), (residual, ldc)], RoundTile::lines),
        };
        (target, round)
    }

    /// Where a packed panel over the slab that begins with a row lies, in [slab][panel][depth][width].
    #[inline(always)]
    fn panel(&self, p: usize, start: usize, nr: usize) -> *const f32 {
        let packed = self.packed_b.map_or(core::ptr::null(), |lines| lines.as_ptr().cast::<f32>());
        let (panels, depth) = (self.b.cols().div_ceil(nr) - self.direct_b, self.slab.min(self.ks.end - start));
        packed.wrapping_add(((start - self.ks.start) * panels + (p - self.direct_b) * depth) * nr)
    }

    /// What the job reads after a packed panel: its next one, or its first of the next slab; at its end, what the next job begins with.
    #[inline(always)]
    fn after(&self, p: usize, start: usize, nr: usize) -> Ahead {
        let (p, start) = match p + 1 {
            p if p < self.panels.end => (p, start),
            _ if start + self.slab < self.ks.end => (self.panels.start.max(self.direct_b), start + self.slab),
            p => (p, self.ks.start),
        };
        Ahead::new(self.panel(p, start, nr), 1, self.slab.min(self.ks.end - start) * nr / 16, 0)
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
