//! The register tile: up to `MR` rows by two vectors of C, summed over a slab of k.

use crate::isa::Isa;
use crate::simd::Simd;

/// Rows and columns of the largest tile of a tier.
pub(super) const fn size(isa: Isa) -> (usize, usize) {
    match isa {
        Isa::Scalar => (4, 2),
        Isa::Portable => (4, 16),
        Isa::Avx2 => (6, 16),
        Isa::Avx512 => (14, 32),
    }
}

/// Where a tile reads its rows of A: element (r, k) at `start + r * row_stride + k * step`.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    pub start: *const f32,
    pub row_stride: isize,
}

/// Where a tile reads its columns of B: row k at `start + k * step`.
#[derive(Clone, Copy)]
pub(super) struct Columns {
    pub start: *const f32,
    pub step: isize,
    /// Numbers that later tiles will read, as many lines of 16 as this tile is to ask for.
    pub next: *const f32,
    pub next_lines: usize,
}

/// Where a tile goes: element (0, 0), the distance of rows, and what is added.
#[derive(Clone, Copy)]
pub(super) struct Target {
    pub c: *mut f32,
    pub ldc: usize,
    pub accumulate: bool,
    /// The tile's part of the bias, or null.
    pub bias: *const f32,
    /// Its part of what is added last, rows as far apart as those of C, or null.
    pub residual: *const f32,
}

/// C (+)= A B (+ bias) for a tile of `rows` by `cols`. Packed rows of A are a column of `MR` numbers for each k; others lie as `Rows`
/// says, with k from element to element.
///
/// # Safety
/// Everything of the tile must be readable, and C writable; two vectors (one where `cols` fits it) of B must be readable for every k.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
pub(super) unsafe fn run<S: Simd, const PACKED: bool>(
    s: S,
    a: Rows,
    b: Columns,
    depth: usize,
    rows: usize,
    cols: usize,
    out: Target,
) {
    // Lower tiles for the last rows: no multiplications for nothing. An element is the same sum in a tile of any height.
    // SAFETY: the caller's promise.
    unsafe {
        match (S::ISA, rows) {
            (Isa::Avx512, 9..) => wide::<S, 14, 14, PACKED>(s, a, b, depth, rows, cols, out),
            (Isa::Avx512, 5..) => wide::<S, 8, 14, PACKED>(s, a, b, depth, rows, cols, out),
            (Isa::Avx512, _) => wide::<S, 4, 14, PACKED>(s, a, b, depth, rows, cols, out),
            (Isa::Avx2, 4..) => wide::<S, 6, 6, PACKED>(s, a, b, depth, rows, cols, out),
            (Isa::Avx2, _) => wide::<S, 3, 6, PACKED>(s, a, b, depth, rows, cols, out),
            _ => wide::<S, 4, 4, PACKED>(s, a, b, depth, rows, cols, out),
        }
    }
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn wide<S: Simd, const MR: usize, const WIDTH: usize, const PACKED: bool>(
    s: S,
    a: Rows,
    b: Columns,
    depth: usize,
    rows: usize,
    cols: usize,
    out: Target,
) {
    // SAFETY: the caller's promise.
    unsafe {
        if cols > S::LANES {
            let sums = multiply::<S, MR, WIDTH, 2, PACKED>(s, a, b, depth, rows, out);
            store(s, sums, rows, cols, out);
        } else {
            let sums = multiply::<S, MR, WIDTH, 1, PACKED>(s, a, b, depth, rows, out);
            store(s, sums, rows, cols, out);
        }
    }
}

/// Sum over k of (column of A) times (row of B). Rows beyond `rows` repeat the last one, or are whatever was packed.
#[inline(always)]
unsafe fn multiply<S: Simd, const MR: usize, const WIDTH: usize, const NV: usize, const PACKED: bool>(
    s: S,
    a: Rows,
    b: Columns,
    depth: usize,
    rows: usize,
    out: Target,
) -> [[S::F; NV]; MR] {
    let mut sums = [[s.splat(0.0); NV]; MR];
    let starts: [*const f32; MR] =
        core::array::from_fn(|r| a.start.wrapping_offset(r.min(rows - 1) as isize * a.row_stride));
    let (mut packed, mut row) = (a.start, b.start);
    // The tile's lines of C are asked for one after the other on the way: all at once they would hold up those of A and B.
    let piece = depth.div_ceil(MR);
    let mut line = out.c.cast_const();
    let (mut next, next_lines) = (b.next, b.next_lines.div_ceil(MR));
    for start in (0..depth).step_by(piece) {
        for _ in 0..next_lines {
            s.prefetch_far(next);
            next = next.wrapping_add(16);
        }
        s.prefetch(line);
        s.prefetch(line.wrapping_add(NV * S::LANES - 1));
        line = line.wrapping_add(out.ldc);
        for k in start..depth.min(start + piece) {
            // SAFETY: the caller's promise.
            unsafe {
                let b: [S::F; NV] = core::array::from_fn(|v| s.load_ptr(row.add(v * S::LANES)));
                for r in 0..MR {
                    let x = s.splat(if PACKED { *packed.add(r) } else { *starts[r].add(k) });
                    for v in 0..NV {
                        sums[r][v] = s.fma(x, b[v], sums[r][v]);
                    }
                }
            }
            for v in 0..NV {
                s.prefetch(row.wrapping_offset(AHEAD * b.step).wrapping_add(v * S::LANES));
            }
            packed = packed.wrapping_add(WIDTH);
            row = row.wrapping_offset(b.step);
        }
    }
    sums
}

/// So many rows of B are on their way.
const AHEAD: isize = 32;

/// Writes the tile, or adds it to what is there.
#[inline(always)]
unsafe fn store<S: Simd, const MR: usize, const NV: usize>(
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
                each(&mut sums, |r, v, x| s.add(s.load_ptr(place(r, v)), x));
            }
            if !out.bias.is_null() {
                let bias: [S::F; NV] = core::array::from_fn(|v| s.load_ptr(out.bias.add(v * S::LANES)));
                each(&mut sums, |_, v, x| s.add(x, bias[v]));
            }
            if !out.residual.is_null() {
                each(&mut sums, |r, v, x| s.add(x, s.load_ptr(out.residual.add(r * out.ldc + v * S::LANES))));
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
            for (v, sum) in sums.iter().enumerate() {
                let (from, n) = (v * S::LANES, S::LANES.min(cols - v * S::LANES));
                let place = out.c.add(r * out.ldc + from);
                for (i, &sum) in sum[..n].iter().enumerate() {
                    let mut x = sum;
                    if out.accumulate {
                        x += *place.add(i);
                    }
                    if !out.bias.is_null() {
                        x += *out.bias.add(from + i);
                    }
                    if !out.residual.is_null() {
                        x += *out.residual.add(r * out.ldc + from + i);
                    }
                    *place.add(i) = x;
                }
            }
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
