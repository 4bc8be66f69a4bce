//! The register tile: up to `MR` rows by two vectors of C, summed over a slab of k.

use half::bf16;

use super::job::element;
use super::rounded::{Rounds, nearest_sum};
use super::words::Dot;
use super::{EvenWindows, Mat};
use crate::isa::Isa;
use crate::map::{self, Unary};
use crate::simd::{Simd, array};

/// Rows and columns of the largest tile of a tier.
pub(super) const fn size(isa: Isa) -> (usize, usize) {
    match isa {
        Isa::Scalar => (4, 2),
        Isa::Portable => (4, 16),
        Isa::Avx2 => (6, 16),
        Isa::Avx512 | Isa::Amx => (14, 32),
    }
}

/// Rows of a lower tile that is about as quick: it takes what stays of B from the second-level cache more often.
pub(super) const LOW: usize = 8;

/// Rows of the tile for so many: lower ones for the last rows, so that nothing is multiplied for nothing.
const fn height(isa: Isa, rows: usize) -> usize {
    match (isa, rows) {
        (Isa::Avx512 | Isa::Amx, 9..) => 14,
        (Isa::Avx512 | Isa::Amx, 5..) => 8,
        (Isa::Avx2, 4..) => 6,
        (Isa::Avx2, _) => 3,
        _ => 4,
    }
}

/// Rows by which the last tile of `rows` begins early, so that the one before is lower: a whole tile and a few rows take longer than two lower tiles.
pub(super) const fn early(isa: Isa, rows: usize) -> usize {
    let (tall, _) = size(isa);
    let rest = rows % tall;
    let half = (tall + rest).div_ceil(2);
    if rest > 0 && 2 * height(isa, half) < tall + height(isa, rest) { tall - half } else { 0 }
}

/// Whether a tile has all its rows and columns.
pub(super) const fn is_whole(isa: Isa, rows: usize, cols: usize) -> bool {
    cols == size(isa).1 && rows == height(isa, rows)
}

/// Where a tile reads its rows of A.
pub(super) trait Rows: Copy {
    /// Whether numbers k of all rows lie side by side.
    const PACKED: bool;
    /// Steps for which the numbers of a row follow each other, from step `k` on.
    #[inline(always)]
    fn run(&self, _k: usize) -> usize {
        usize::MAX
    }
    /// Where number `k` of row `r` is; where rows lie side by side, that of the first.
    ///
    /// # Safety
    /// The row and the step must be the tile's.
    unsafe fn at(&self, r: usize, k: usize) -> *const f32;
    /// How many rows from row `r` on go to rows of C that follow each other, of the `rows` there are, and the row of the tile's part of C that the first goes
    /// to. None: they go nowhere.
    #[inline(always)]
    fn placed(&self, r: usize, rows: usize) -> (usize, Option<usize>) {
        (rows - r, Some(r))
    }
    /// The lines of so many rows over so many steps, for an earlier tile to ask for. None where something else brought them near.
    #[inline(always)]
    fn lines(&self, _rows: usize, _depth: usize) -> Ahead {
        Ahead::NONE
    }
}

/// Rows anywhere in a matrix whose numbers follow each other along k.
#[derive(Clone, Copy)]
pub(super) struct Strided {
    pub start: *const f32,
    pub row_stride: isize,
}

impl Rows for Strided {
    const PACKED: bool = false;
    #[inline(always)]
    unsafe fn at(&self, r: usize, k: usize) -> *const f32 {
        self.start.wrapping_offset(r as isize * self.row_stride).wrapping_add(k)
    }
    #[inline(always)]
    fn lines(&self, rows: usize, depth: usize) -> Ahead {
        Ahead::new(self.start, rows, depth.div_ceil(16), self.row_stride)
    }
}

/// A column of `width` numbers for each k.
#[derive(Clone, Copy)]
pub(super) struct Packed {
    pub start: *const f32,
    pub width: usize,
}

impl Rows for Packed {
    const PACKED: bool = true;
    #[inline(always)]
    unsafe fn at(&self, _: usize, k: usize) -> *const f32 {
        self.start.wrapping_add(k * self.width)
    }
}

/// Rows that are windows over a map: `channels` numbers at each of their taps.
#[derive(Clone, Copy)]
pub(super) struct Windowed {
    /// [tap][width]: where a row's channels at a tap start.
    pub table: *const *const f32,
    pub width: usize,
    pub channels: usize,
    /// Where step 0 stands in the order of taps and channels.
    pub first: usize,
}

impl Rows for Windowed {
    const PACKED: bool = false;
    #[inline(always)]
    fn run(&self, k: usize) -> usize {
        self.channels - (self.first + k) % self.channels
    }
    #[inline(always)]
    unsafe fn at(&self, r: usize, k: usize) -> *const f32 {
        let (tap, channel) = ((self.first + k) / self.channels, (self.first + k) % self.channels);
        // SAFETY: the table has a place for every tap and row, whose pixel has all channels.
        unsafe { (*self.table.add(tap * self.width + r)).add(channel) }
    }
}

/// Rows that are windows at equal distances over a map with margins, which lie on lines that end with windows to pass over.
#[derive(Clone, Copy)]
pub(super) struct Even<'a> {
    pub windows: &'a EvenWindows<'a>,
    /// The tile's first row.
    pub row: usize,
    /// Where step 0 stands in the order of taps and words.
    pub first: usize,
}

impl Rows for Even<'_> {
    const PACKED: bool = false;
    #[inline(always)]
    fn run(&self, k: usize) -> usize {
        self.windows.words - (self.first + k) % self.windows.words
    }
    #[inline(always)]
    unsafe fn at(&self, r: usize, k: usize) -> *const f32 {
        let (tap, word) = ((self.first + k) / self.windows.words, (self.first + k) % self.windows.words);
        let row = (self.row + r) * self.windows.apart;
        self.windows.source.as_ptr().wrapping_add(self.windows.taps[tap] + row + word)
    }
    #[inline(always)]
    fn placed(&self, r: usize, rows: usize) -> (usize, Option<usize>) {
        let (run, is_there) = self.windows.run(self.row + r);
        let before = || self.windows.before(self.row + r) - self.windows.before(self.row);
        (run.min(rows - r), is_there.then(before))
    }
}

/// Where a tile reads its columns of B: row k at `start + k * step`.
#[derive(Clone, Copy)]
pub(super) struct Columns {
    pub start: *const f32,
    pub step: isize,
    /// What later tiles will read, and this one is to ask for: of B, and of rows of A that are packed.
    pub ahead: [Ahead; 2],
}

/// Lines of 16 numbers to be asked for: runs of them that follow each other, and start a distance apart.
#[derive(Clone, Copy)]
pub(super) struct Ahead {
    next: *const f32,
    /// How many there are.
    pub lines: usize,
    /// Of the run under way.
    left: usize,
    run: usize,
    /// Numbers from the end of a run to the start of the next.
    gap: isize,
}

impl Ahead {
    /// None.
    pub const NONE: Self = Self { next: core::ptr::null(), lines: 0, left: 0, run: 0, gap: 0 };

    /// `runs` of so many lines, `apart` numbers from one to the next; the address may be any.
    pub fn new(start: *const f32, runs: usize, run: usize, apart: isize) -> Self {
        Self { next: start, lines: runs * run, left: run, run, gap: apart - 16 * run as isize }
    }

    /// The lines of rows `first..first + rows` of `x` over columns `start..start + depth`. None where neither follow each other.
    pub fn of(x: &Mat<'_, f32>, [first, rows]: [usize; 2], [start, depth]: [usize; 2]) -> Self {
        let place = element(x, first, start);
        match (x.row_stride, x.col_stride) {
            (apart, 1) => Self::new(place, rows, depth.div_ceil(16), apart),
            (1, apart) => Self::new(place, depth, rows.div_ceil(16), apart),
            _ => Self::NONE,
        }
    }

    /// So many of them from one on, or as many as there are.
    pub fn part(self, from: usize, lines: usize) -> Self {
        let Some(left) = self.lines.checked_sub(from).filter(|&left| left > 0) else { return Self::NONE };
        let (runs, within) = (from / self.run, from % self.run);
        let next = self.next.wrapping_offset(runs as isize * (self.gap + 16 * self.run as isize));
        Self { next: next.wrapping_add(16 * within), lines: lines.min(left), left: self.run - within, ..self }
    }

    /// Asks for the next `lines`, which may be more than there are.
    #[inline(always)]
    pub fn ask<S: Simd>(&mut self, s: S, lines: usize) {
        for _ in 0..lines {
            s.prefetch_far(self.next);
            self.next = self.next.wrapping_add(16);
            self.left = self.left.wrapping_sub(1);
            if self.left == 0 {
                self.next = self.next.wrapping_offset(self.gap);
                self.left = self.run;
            }
        }
    }
}

/// Where a tile goes: element (0, 0), the distance of rows, and what is added.
#[derive(Clone, Copy)]
pub(super) struct Target {
    pub c: *mut f32,
    pub ldc: usize,
    pub accumulate: bool,
    /// What makes numbers of finished sums of levels.
    pub scale: Option<Scale>,
    /// The tile's part of the bias, or null.
    pub bias: *const f32,
    /// Its part of what is added last, rows as far apart as those of C, or null.
    pub residual: *const f32,
    /// Whether ReLU comes after all.
    pub relu: bool,
    /// Where a whole tile goes that is rounded to bf16, which no other function comes before.
    pub halves: Option<Halves>,
    /// Rows that the tile will read or write, to be asked for: where the first starts, or null, and numbers of f32 from one to the next.
    pub lines: [(*const f32, usize); 2],
}

impl Target {
    /// What is below its first rows.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    pub fn below(self, rows: usize) -> Self {
        fn skip<T>(x: *const T, by: usize) -> *const T {
            if x.is_null() { x } else { x.wrapping_add(by) }
        }
        let halves = self.halves.map(|halves| Halves {
            y: halves.y.wrapping_add(rows * halves.ld),
            residual: skip(halves.residual, rows * halves.ld),
            ..halves
        });
        Self {
            c: self.c.wrapping_add(rows * self.ldc),
            scale: self.scale.map(|scale| Scale { rows: scale.rows.wrapping_add(rows), ..scale }),
            residual: skip(self.residual, rows * self.ldc),
            halves,
            ..self
        }
    }

    /// Whether it is the sums and nothing else.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    pub fn is_product(&self) -> bool {
        let plain = !self.accumulate && self.scale.is_none() && self.halves.is_none();
        plain && self.bias.is_null() && self.residual.is_null() && !self.relu
    }
}

/// Where a tile's rows in bf16 start, and what is added to them, or null; `ld` numbers from a row to the next.
#[derive(Clone, Copy)]
pub(super) struct Halves {
    pub y: *mut bf16,
    pub residual: *const bf16,
    pub ld: usize,
    /// Whether ReLU comes before.
    pub relu: bool,
}

/// The tile's part of the scales of levels: a number is (sum - zero of the column) * scale of the row * scale of the column.
#[derive(Clone, Copy)]
pub(super) struct Scale {
    pub rows: *const f32,
    pub cols: *const f32,
    pub zero: *const f32,
}

/// Which part of a slab one of AMX's tiles is summed up over.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
pub(super) struct Part {
    pub depth: usize,
    /// Whether sums begin with it.
    pub first: bool,
    /// Whether they end with it. Else they wait.
    pub last: bool,
    /// Where they wait: room for a tile.
    pub sums: *mut f32,
    pub once: Once,
}

/// The operand that passes: what is read of it is not read again soon, and loaded so that it does not crowd the other out of the first-level cache.
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
pub(super) enum Once {
    A,
    B,
    Neither,
}

/// C (+)= A B (+ bias) (+ residual) for a tile of `rows` by `cols`.
///
/// # Safety
/// Everything of the tile must be readable, and C writable; two vectors (one where `cols` fits it) of B must be readable for every k.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
pub(super) unsafe fn run<S: Simd, A: Rows, D: Dot>(
    s: S,
    a: A,
    b: Columns,
    depth: usize,
    rows: usize,
    cols: usize,
    out: Target,
) {
    // An element is the same sum in a tile of any height.
    // SAFETY: the caller's promise.
    unsafe {
        match (S::ISA, height(S::ISA, rows)) {
            (Isa::Avx512, 14) => wide::<S, A, D, 14>(s, a, b, depth, rows, cols, out),
            (Isa::Avx512, 8) => wide::<S, A, D, 8>(s, a, b, depth, rows, cols, out),
            (Isa::Avx512, _) => wide::<S, A, D, 4>(s, a, b, depth, rows, cols, out),
            (Isa::Avx2, 6) => wide::<S, A, D, 6>(s, a, b, depth, rows, cols, out),
            (Isa::Avx2, _) => wide::<S, A, D, 3>(s, a, b, depth, rows, cols, out),
            _ => wide::<S, A, D, 4>(s, a, b, depth, rows, cols, out),
        }
    }
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn wide<S: Simd, A: Rows, D: Dot, const MR: usize>(
    s: S,
    a: A,
    b: Columns,
    depth: usize,
    rows: usize,
    cols: usize,
    out: Target,
) {
    // SAFETY: the caller's promise.
    unsafe {
        if cols > S::LANES {
            let sums = multiply::<S, A, D, MR, 2>(s, a, b, depth, rows, out);
            store::<S, D, MR, _>(s, sums, rows, cols, out);
        } else {
            let sums = multiply::<S, A, D, MR, 1>(s, a, b, depth, rows, out);
            store::<S, D, MR, _>(s, sums, rows, cols, out);
        }
    }
}

/// Sum over k of (column of A) times (row of B). Rows beyond `rows` repeat the last one, or are whatever was packed.
#[inline(always)]
unsafe fn multiply<S: Simd, A: Rows, D: Dot, const MR: usize, const NV: usize>(
    s: S,
    a: A,
    b: Columns,
    depth: usize,
    rows: usize,
    out: Target,
) -> [[S::F; NV]; MR] {
    let mut sums = [[s.splat(0.0); NV]; MR];
    let mut row = b.start;
    // Lines of C, of what is added and of what comes after are asked for a few at a time.
    let pieces = depth.div_ceil(PIECE);
    let ([(mut line, apart), (mut added, added_apart)], lines) = (out.lines, MR.div_ceil(pieces));
    let (mut ahead, ahead_lines) = (b.ahead, b.ahead.map(|ahead| ahead.lines.div_ceil(pieces)));
    let (mut start, mut row_asked) = (0, 0);
    while start < depth {
        for _ in 0..lines.min(MR - row_asked) {
            s.prefetch(line);
            s.prefetch(line.wrapping_add(NV * S::LANES - 1));
            line = line.wrapping_add(apart);
            if !added.is_null() {
                s.prefetch(added);
                s.prefetch(added.wrapping_add(NV * S::LANES - 1));
                added = added.wrapping_add(added_apart);
            }
        }
        row_asked = MR.min(row_asked + lines);
        ahead[0].ask(s, ahead_lines[0]);
        if A::PACKED {
            ahead[1].ask(s, ahead_lines[1]);
        }
        let steps = PIECE.min(depth - start).min(a.run(start));
        // SAFETY: the caller's promise.
        unsafe {
            let starts: [*const f32; MR] = array(|r| a.at(r.min(rows - 1), start));
            let mut packed = starts[0];
            for k in 0..steps {
                let b_row: [S::F; NV] = array(|v| s.load_ptr(row.add(v * S::LANES)));
                for r in 0..MR {
                    let x = s.splat(if A::PACKED { *packed.add(r) } else { *starts[r].add(k) });
                    for v in 0..NV {
                        sums[r][v] = D::add_product(s, sums[r][v], x, b_row[v]);
                    }
                }
                for v in 0..NV {
                    s.prefetch(row.wrapping_offset(AHEAD * b.step).wrapping_add(v * S::LANES));
                }
                if A::PACKED {
                    packed = a.at(0, start + k + 1);
                }
                row = row.wrapping_offset(b.step);
            }
        }
        start += steps;
    }
    sums
}

/// Steps of k at a time: with more, lines are asked for by too many at once and hold up those that are needed now; with fewer, finding out where steps
/// start takes as long as they do.
const PIECE: usize = 16;

/// So many rows of B are on their way.
const AHEAD: isize = 32;

/// Writes the tile, or adds it to what is there.
#[inline(always)]
unsafe fn store<S: Simd, D: Dot, const MR: usize, const NV: usize>(
    s: S,
    sums: [[S::F; NV]; MR],
    rows: usize,
    cols: usize,
    out: Target,
) {
    // SAFETY: the caller's promise.
    unsafe {
        if rows == MR && cols == NV * S::LANES {
            // A loop over the additions for each of them: sums stay in registers, which an index that is not constant would forbid.
            let place = |r: usize, v: usize| out.c.add(r * out.ldc + v * S::LANES);
            let mut sums = sums;
            if out.accumulate {
                each(&mut sums, |r, v, x| D::add(s, s.load_ptr(place(r, v)), x));
            }
            if let Some(scale) = out.scale.filter(|_| D::LEVELS) {
                each(&mut sums, |r, v, x| {
                    let at = v * S::LANES;
                    let (cols, zero) = (s.load_ptr(scale.cols.add(at)), s.load_ptr(scale.zero.add(at)));
                    scaled(s, x, zero, s.splat(*scale.rows.add(r)), cols)
                });
            }
            if !out.bias.is_null() {
                let mut bias: [S::F; NV] = array(|v| s.load_ptr(out.bias.add(v * S::LANES)));
                if D::HALVES {
                    // As `nearest_sum` takes it.
                    bias = array(|v| s.select(s.eq(bias[v], bias[v]), bias[v], s.splat(f32::NAN)));
                }
                each(&mut sums, |_, v, x| s.add(x, bias[v]));
            }
            if let Some(halves) = out.halves.filter(|_| NV == 2 && D::HALVES) {
                return store_halves::<S, MR, NV>(s, sums, halves);
            }
            if !out.residual.is_null() {
                each(&mut sums, |r, v, x| s.add(x, s.load_ptr(out.residual.add(r * out.ldc + v * S::LANES))));
            }
            if out.relu {
                each(&mut sums, |_, _, x| map::vector(s, Unary::Relu, x));
            }
            each(&mut sums, |r, v, x| {
                s.store_ptr(x, place(r, v));
                x
            });
            return;
        }
        let mut block = [[[0.0; 16]; NV]; MR];
        each(&mut { sums }, |r, v, x| {
            s.store(x, &mut block[r][v]);
            x
        });
        for (r, sums) in block.iter().enumerate().take(rows) {
            for (v, sums) in sums.iter().enumerate().take(cols.div_ceil(S::LANES)) {
                finish::<S, D>(s, s.load(sums), r, v * S::LANES, cols, out);
            }
        }
    }
}

/// Writes a whole tile, finished and rounded.
///
/// # Safety
/// As of [`run`].
#[inline(always)]
unsafe fn store_halves<S: Simd, const MR: usize, const NV: usize>(s: S, mut sums: [[S::F; NV]; MR], halves: Halves) {
    // SAFETY: the caller's promise.
    unsafe {
        if !halves.residual.is_null() {
            each(&mut sums, |r, v, x| {
                let added = halves.residual.add(r * halves.ld + v * S::LANES);
                s.add(x, bf16::upper(s, core::slice::from_raw_parts(added, S::LANES)))
            });
        }
        if halves.relu {
            each(&mut sums, |_, _, x| map::vector(s, Unary::Relu, x));
        }
        for r in 0..MR {
            let pairs = s.upper_halves(nearest_sum(s, sums[r][0]), nearest_sum(s, sums[r][NV - 1]));
            s.store_ptr(pairs, halves.y.add(r * halves.ld).cast());
        }
    }
}

/// Writes rows of sums that lie in memory, 32 apart: several at a time where they have all columns.
///
/// # Safety
/// As of [`run`]; the sums must be readable.
#[inline(always)]
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
pub(super) unsafe fn finish_rows<S: Simd, D: Dot>(s: S, sums: *const f32, rows: usize, cols: usize, out: Target) {
    const MANY: usize = 4;
    // SAFETY: the caller's promise.
    unsafe {
        let place = |r: usize, from: usize| sums.add(32 * r + from);
        if cols < 2 * S::LANES {
            for r in 0..rows {
                for from in (0..cols).step_by(S::LANES) {
                    finish::<S, D>(s, s.load_ptr(place(r, from)), r, from, cols, out);
                }
            }
            return;
        }
        let whole = rows / MANY * MANY;
        for r in (0..whole).step_by(MANY) {
            let sums: [[S::F; 2]; MANY] = array(|i| array(|v| s.load_ptr(place(r + i, v * S::LANES))));
            store::<S, D, MANY, 2>(s, sums, MANY, cols, out.below(r));
        }
        for r in whole..rows {
            let sums: [[S::F; 2]; 1] = [array(|v| s.load_ptr(place(r, v * S::LANES)))];
            store::<S, D, 1, 2>(s, sums, 1, cols, out.below(r));
        }
    }
}

/// The number of levels' sum.
#[inline(always)]
fn scaled<S: Simd>(s: S, sum: S::F, zero: S::F, row: S::F, col: S::F) -> S::F {
    s.mul(s.mul(s.to_f32(s.sub_i(s.bits(sum), s.bits(zero))), row), col)
}

/// The first `n` numbers of a vector, the others 0.
///
/// # Safety
/// They must be readable.
#[inline(always)]
unsafe fn read<S: Simd>(s: S, start: *const f32, n: usize) -> S::F {
    // SAFETY: the caller's promise.
    unsafe {
        if n == S::LANES { s.load_ptr(start) } else { s.load_partial(core::slice::from_raw_parts(start, n), 0.0) }
    }
}

/// Writes a vector of sums, or as much as there is of it, from column `from` of row `r` on.
///
/// # Safety
/// The place must be in the tile, which is [`Target`]'s.
#[inline(always)]
pub(super) unsafe fn finish<S: Simd, D: Dot>(s: S, sum: S::F, r: usize, from: usize, cols: usize, out: Target) {
    let n = S::LANES.min(cols - from);
    // SAFETY: the caller's promise.
    unsafe {
        let place = out.c.add(r * out.ldc);
        let mut x = sum;
        if out.accumulate {
            x = D::add(s, read(s, place.add(from), n), x);
        }
        if let Some(scale) = out.scale.filter(|_| D::LEVELS) {
            let (cols, zero) = (read(s, scale.cols.add(from), n), read(s, scale.zero.add(from), n));
            x = scaled(s, x, zero, s.splat(*scale.rows.add(r)), cols);
        }
        if !out.bias.is_null() {
            x = s.add(x, read(s, out.bias.add(from), n));
        }
        if !out.residual.is_null() {
            x = s.add(x, read(s, out.residual.add(r * out.ldc + from), n));
        }
        if out.relu {
            x = map::vector(s, Unary::Relu, x);
        }
        match n == S::LANES {
            true => s.store_ptr(x, place.add(from)),
            false => s.store_partial(x, core::slice::from_raw_parts_mut(place.add(from), n)),
        }
    }
}

/// x = f(row, vector, x) for every vector of a tile.
#[inline(always)]
fn each<F: Copy, const MR: usize, const NV: usize>(sums: &mut [[F; NV]; MR], mut f: impl FnMut(usize, usize, F) -> F) {
    for r in 0..MR {
        for v in 0..NV {
            sums[r][v] = f(r, v, sums[r][v]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_last_tile_begins_early_where_two_lower_ones_take_less() {
        for isa in [Isa::Avx512, Isa::Amx] {
            assert_eq!(
                [14, 15, 16, 17, 28, 197, 196, 128].map(|rows| early(isa, rows)),
                [0, 6, 6, 0, 0, 6, 0, 6],
                "{isa}"
            );
            assert!(height(isa, LOW) == LOW && LOW < size(isa).0, "{isa}: no tile of {LOW} rows");
        }
        for isa in [Isa::Scalar, Isa::Portable, Isa::Avx2, Isa::Avx512, Isa::Amx] {
            let (tall, _) = size(isa);
            for rows in tall..4 * tall {
                let (early, rest) = (early(isa, rows), rows % tall);
                let cost = |early: usize| height(isa, tall - early) + height(isa, rest + early);
                assert!(early == 0 || rest > 0 && rest + early <= tall && cost(early) < cost(0), "{isa}: {rows} rows");
            }
        }
    }
}
