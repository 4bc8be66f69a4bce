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
}

/// Where a tile goes: element (0, 0), the distance of rows, and what is added.
#[derive(Clone, Copy)]
pub(super) struct Target {
    pub c: *mut f32,
    pub ldc: usize,
    pub accumulate: bool,
    /// The tile's part of the bias, or null.
    pub bias: *const f32,
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
            let sums = multiply::<S, MR, WIDTH, 2, PACKED>(s, a, b, depth, rows);
            store(s, sums, rows, cols, out);
        } else {
            let sums = multiply::<S, MR, WIDTH, 1, PACKED>(s, a, b, depth, rows);
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
) -> [[S::F; NV]; MR] {
    let mut sums = [[s.splat(0.0); NV]; MR];
    let starts: [*const f32; MR] =
        core::array::from_fn(|r| a.start.wrapping_offset(r.min(rows - 1) as isize * a.row_stride));
    let (mut packed, mut row) = (a.start, b.start);
    for k in 0..depth {
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
        packed = packed.wrapping_add(WIDTH);
        row = row.wrapping_offset(b.step);
    }
    sums
}

/// Writes the tile, or adds it to what is there.
#[inline(always)]
unsafe fn store<S: Simd, const MR: usize, const NV: usize>(
    s: S,
    sums: [[S::F; NV]; MR],
    rows: usize,
    cols: usize,
    out: Target,
) {
    for r in 0..MR {
        if r == rows {
            break;
        }
        for v in 0..NV {
            let (from, n) = (v * S::LANES, S::LANES.min(cols - v * S::LANES));
            // SAFETY: the caller's promise; `n` columns from `from` on are the tile's.
            unsafe {
                let place = out.c.add(r * out.ldc + from);
                let load = |x: *const f32| {
                    if n == S::LANES { s.load_ptr(x) } else { s.load_partial(core::slice::from_raw_parts(x, n), 0.0) }
                };
                let mut x = sums[r][v];
                if out.accumulate {
                    x = s.add(load(place), x);
                }
                if !out.bias.is_null() {
                    x = s.add(x, load(out.bias.add(from)));
                }
                if n == S::LANES {
                    s.store_ptr(x, place);
                } else {
                    s.store_partial(x, core::slice::from_raw_parts_mut(place, n));
                }
            }
        }
    }
}
