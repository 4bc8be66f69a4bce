//! The register tile: `MR` rows by two vectors of C, summed over a slab of k.

use core::ops::Range;

use super::tile_size;
use crate::isa::Isa;
use crate::par::Shared;
use crate::simd::{Simd, SimdOp};

/// A block of C: some panels of packed A times some panels of packed B.
pub(super) struct Block<'a> {
    pub a: &'a [f32],
    pub b: &'a [f32],
    pub depth: usize,
    pub a_panels: Range<usize>,
    pub b_panels: Range<usize>,
    pub m: usize,
    pub n: usize,
    pub c: Shared<f32>,
    pub ldc: usize,
    pub accumulate: bool,
    pub bias: Option<&'a [f32]>,
}

impl SimdOp for Block<'_> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) {
        match S::ISA {
            Isa::Avx512 => self.tiles::<S, 14>(s),
            Isa::Avx2 => self.tiles::<S, 6>(s),
            Isa::Portable | Isa::Scalar => self.tiles::<S, 4>(s),
        }
    }
}

impl Block<'_> {
    #[inline(always)]
    fn tiles<S: Simd, const MR: usize>(self, s: S) {
        let nr = 2 * S::LANES;
        debug_assert_eq!((MR, nr), tile_size(S::ISA));
        for jp in self.b_panels.clone() {
            let b = &self.b[jp * nr * self.depth..][..nr * self.depth];
            for ip in self.a_panels.clone() {
                let a = &self.a[ip * MR * self.depth..][..MR * self.depth];
                let acc = multiply::<S, MR>(s, a, b);
                self.store::<S, MR>(s, acc, ip * MR, jp * nr);
            }
        }
    }

    /// Adds or writes the tile to C at row `i`, column `j`, with the bias in the last slab.
    #[inline(always)]
    fn store<S: Simd, const MR: usize>(&self, s: S, acc: [[S::F; 2]; MR], i: usize, j: usize) {
        let (rows, cols) = (MR.min(self.m - i), (2 * S::LANES).min(self.n - j));
        let mut bias = [0.0; 32];
        if let Some(given) = self.bias {
            bias[..cols].copy_from_slice(&given[j..j + cols]);
        }
        for r in 0..rows {
            let start = (i + r) * self.ldc + j;
            // SAFETY: blocks of C are disjoint, and each is one job's.
            let c = unsafe { self.c.slice(start..start + cols) };
            let mut line = [0.0; 32];
            let target: &mut [f32] = if cols == 2 * S::LANES { c } else { &mut line };
            if cols < 2 * S::LANES && self.accumulate {
                // SAFETY: as above; `c` is not used while this one is.
                target[..cols].copy_from_slice(unsafe { self.c.slice(start..start + cols) });
            }
            for v in 0..2 {
                let place = &mut target[v * S::LANES..];
                let mut x = acc[r][v];
                if self.accumulate {
                    x = s.add(s.load(place), x);
                }
                if self.bias.is_some() {
                    x = s.add(x, s.load(&bias[v * S::LANES..]));
                }
                s.store(x, place);
            }
            if cols < 2 * S::LANES {
                // SAFETY: as above.
                unsafe { self.c.slice(start..start + cols) }.copy_from_slice(&line[..cols]);
            }
        }
    }
}

/// Sum over k of (column of A) times (row of B).
#[inline(always)]
fn multiply<S: Simd, const MR: usize>(s: S, a: &[f32], b: &[f32]) -> [[S::F; 2]; MR] {
    let mut acc = [[s.splat(0.0); 2]; MR];
    for (a, b) in a.chunks_exact(MR).zip(b.chunks_exact(2 * S::LANES)) {
        let (b0, b1) = (s.load(b), s.load(&b[S::LANES..]));
        for r in 0..MR {
            let x = s.splat(a[r]);
            acc[r][0] = s.fma(x, b0, acc[r][0]);
            acc[r][1] = s.fma(x, b1, acc[r][1]);
        }
    }
    acc
}
