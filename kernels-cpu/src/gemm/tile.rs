//! The register tile: up to `MR` rows by two vectors of C, summed over a slab of k.

use half::bf16;

use super::ahead::Asks;
use super::number::{Rounds, nearest_sum};
use super::rows::{Anywhere, Apart, Column, Evenly, Places, Rows};
use super::words::Dot;
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

/// Where a tile reads its columns of B: row k at `start + k * step`.
#[derive(Clone, Copy)]
pub(super) struct Columns {
    pub start: *const f32,
    pub step: isize,
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
    asks: &mut Asks,
    depth: usize,
    rows: usize,
    cols: usize,
    out: Target,
) {
    // An element is the same sum in a tile of any height.
    // SAFETY: the caller's promise.
    unsafe {
        match (S::ISA, height(S::ISA, rows)) {
            (Isa::Avx512, 14) => wide::<S, A, D, 14>(s, a, b, asks, depth, rows, cols, out),
            (Isa::Avx512, 8) => wide::<S, A, D, 8>(s, a, b, asks, depth, rows, cols, out),
            (Isa::Avx512, _) => wide::<S, A, D, 4>(s, a, b, asks, depth, rows, cols, out),
            (Isa::Avx2, 6) => wide::<S, A, D, 6>(s, a, b, asks, depth, rows, cols, out),
            (Isa::Avx2, _) => wide::<S, A, D, 3>(s, a, b, asks, depth, rows, cols, out),
            _ => wide::<S, A, D, 4>(s, a, b, asks, depth, rows, cols, out),
        }
    }
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn wide<S: Simd, A: Rows, D: Dot, const MR: usize>(
    s: S,
    a: A,
    b: Columns,
    asks: &mut Asks,
    depth: usize,
    rows: usize,
    cols: usize,
    out: Target,
) {
    // SAFETY: the caller's promise.
    unsafe {
        if cols > S::LANES {
            let sums = multiply::<S, A, D, MR, 2>(s, a, b, asks, depth, rows, out);
            store::<S, D, MR, _>(s, sums, rows, cols, out);
        } else {
            let sums = multiply::<S, A, D, MR, 1>(s, a, b, asks, depth, rows, out);
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
    asks: &mut Asks,
    depth: usize,
    rows: usize,
    out: Target,
) -> [[S::F; NV]; MR] {
    let mut sums = [[s.splat(0.0); NV]; MR];
    asks.begin(out.lines, [MR, NV * S::LANES]);
    // SAFETY: the caller's promise.
    unsafe {
        let (mut row, mut start) = (b.start, 0);
        let mut evenly = Evenly::new(a.at(0, 0), if let Apart::Evenly(apart) = a.apart() { apart } else { 0 });
        while start < depth {
            asks.ask(s);
            let steps = asks.piece().min(depth - start).min(a.run(start));
            row = match a.apart() {
                Apart::InColumns(width) => {
                    let mut places = Column { at: a.at(0, start), width };
                    add_products::<S, D, _, MR, NV>(s, &mut sums, &mut places, steps, row, b.step)
                }
                Apart::Evenly(_) if rows == MR => {
                    add_products::<S, D, _, MR, NV>(s, &mut sums, &mut evenly, steps, row, b.step)
                }
                _ => {
                    let mut places = Anywhere::<MR>::new(array(|r| a.at(r.min(rows - 1), start)));
                    add_products::<S, D, _, MR, NV>(s, &mut sums, &mut places, steps, row, b.step)
                }
            };
            start += steps;
        }
    }
    sums
}

/// Fewest and most steps of k at a time, none of them more than a run of numbers that follow each other.
pub(super) fn pieces(run: usize) -> [usize; 2] {
    [16, 64].map(|steps: usize| steps.min(run))
}

/// So many rows of B are on their way.
const AHEAD: isize = 32;

/// Adds the products of so many steps. Where the next row of B is.
///
/// # Safety
/// As of [`run`].
#[inline(always)]
unsafe fn add_products<S: Simd, D: Dot, P: Places, const MR: usize, const NV: usize>(
    s: S,
    sums: &mut [[S::F; NV]; MR],
    places: &mut P,
    steps: usize,
    mut row: *const f32,
    step: isize,
) -> *const f32 {
    for _ in 0..steps {
        // SAFETY: the caller's promise.
        unsafe {
            let b: [S::F; NV] = array(|v| s.load_ptr(row.add(v * S::LANES)));
            for r in 0..MR {
                let x = s.splat(*places.of(r));
                for v in 0..NV {
                    sums[r][v] = D::add_product(s, sums[r][v], x, b[v]);
                }
            }
        }
        for v in 0..NV {
            s.prefetch(row.wrapping_offset(AHEAD * step).wrapping_add(v * S::LANES));
        }
        places.next();
        row = row.wrapping_offset(step);
    }
    row
}

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
