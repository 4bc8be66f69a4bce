//! What a product is written as: f32, or rounded to bf16 tile by tile.

use alloc::vec;
use alloc::vec::Vec;

use half::bf16;

use super::nest::{self, slab_of};
use super::number::{Rounds, round, round_each, wide};
use super::scratch::{self, Use};
use super::tile::Halves;
use super::{Finish, Left, Out, Right, nothing, pack};
use crate::isa::Isa;
use crate::map::{self, Unary};
use crate::par::Shared;
use crate::simd::{Simd, SimdOp};

/// The numbers of a product.
pub(crate) trait Written: Copy + Default + Send + Sync {
    /// C = act(A B + bias + residual). No size is 0.
    fn product(
        isa: Isa,
        a: Left<'_>,
        b: Right<'_, f32>,
        c: &mut [Self],
        ldc: usize,
        finish: Finish<'_, f32, Self>,
        threads: bool,
    );
    /// C = act(bias + residual), [m, n].
    fn nothing(size: [usize; 2], c: &mut [Self], ldc: usize, finish: Finish<'_, f32, Self>);
}

impl Written for f32 {
    fn product(
        isa: Isa,
        a: Left<'_>,
        b: Right<'_, f32>,
        c: &mut [f32],
        ldc: usize,
        finish: Finish<'_, f32>,
        threads: bool,
    ) {
        nest::product(isa, a, b, Out { c, ldc, accumulate: false, finish, rounded: None }, threads);
    }

    fn nothing([m, n]: [usize; 2], c: &mut [f32], ldc: usize, finish: Finish<'_, f32>) {
        nothing(false, m, n, c, ldc, &finish);
    }
}

impl Written for bf16 {
    fn product(
        isa: Isa,
        a: Left<'_>,
        b: Right<'_, f32>,
        y: &mut [bf16],
        ldc: usize,
        finish: Finish<'_, f32, bf16>,
        threads: bool,
    ) {
        let ([m, k], n) = (a.size(), b.cols());
        // Sums of several slabs wait in f32; of one, a tile is rounded from where it was just written.
        let waiting = if slab_of(b.words(), k) < k { m * n } else { 0 };
        let mut sums = scratch::take(Use::Unrounded, waiting);
        let Finish { bias, residual, act } = finish;
        let rounded = Some(Rounded { y: Shared::new(y), ldy: ldc, residual, act });
        let finish = Finish { bias, ..Finish::default() };
        let c = &mut pack::numbers(&mut sums)[..waiting];
        nest::product(isa, a, b, Out { c, ldc: n, accumulate: false, finish, rounded }, threads);
        scratch::give(Use::Unrounded, sums);
    }

    fn nothing([m, n]: [usize; 2], y: &mut [bf16], ldc: usize, finish: Finish<'_, f32, bf16>) {
        let mut wide = vec![0.0; n];
        for (i, y) in y.chunks_mut(ldc).take(m).enumerate() {
            let residual = finish.residual.map(|r| r[i * ldc..][..n].iter().map(|r| r.to_f32()).collect::<Vec<_>>());
            let finish = Finish { bias: finish.bias, residual: residual.as_deref(), act: finish.act };
            <f32 as Written>::nothing([1, n], &mut wide, n, finish);
            round(&wide, &mut y[..n]);
        }
    }
}

/// Where sums go that are rounded to bf16: y = bf16(act(sums + residual)).
#[derive(Clone, Copy)]
pub(super) struct Rounded<'a> {
    y: Shared<bf16>,
    ldy: usize,
    residual: Option<&'a [bf16]>,
    act: Option<Unary>,
}

impl Rounded<'_> {
    /// The part of a tile that begins at an element, of sums with rows `ldc` apart.
    ///
    /// # Safety
    /// The tile must be a part of the result that nobody else writes, and its sums readable and writable.
    pub unsafe fn tile(
        &self,
        [row, col]: [usize; 2],
        sums: *mut f32,
        ldc: usize,
        [rows, cols]: [usize; 2],
    ) -> RoundTile {
        let at = row * self.ldy + col;
        RoundTile {
            sums,
            ldc,
            // SAFETY: the caller's promise.
            y: unsafe { self.y.at(at) },
            residual: self.residual.map_or(core::ptr::null(), |r| r[at..].as_ptr()),
            ldy: self.ldy,
            act: self.act,
            rows,
            cols,
        }
    }
}

/// A tile of sums, finished and rounded.
pub(super) struct RoundTile {
    sums: *mut f32,
    ldc: usize,
    y: *mut bf16,
    residual: *const bf16,
    ldy: usize,
    act: Option<Unary>,
    rows: usize,
    cols: usize,
}

impl RoundTile {
    /// Where it goes if a whole tile may be rounded as it is written: with ReLU or nothing to come.
    pub fn halves(&self) -> Option<Halves> {
        let relu = self.act == Some(Unary::Relu);
        let plain = relu || self.act.is_none();
        plain.then_some(Halves { y: self.y, residual: self.residual, ld: self.ldy, relu })
    }

    /// Where the first row goes, and where what is added to it is, or null, with words from a row to the next.
    pub fn lines(&self) -> [(*const f32, usize); 2] {
        [(self.y.cast_const().cast(), self.ldy / 2), (self.residual.cast(), self.ldy / 2)]
    }
}

impl SimdOp for RoundTile {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) {
        // SAFETY: the tile's rows, of the sums, of the result and of what is added, by the promise of `Rounded::tile`.
        let sums = |r: usize, len: usize| unsafe { core::slice::from_raw_parts_mut(self.sums.add(r * self.ldc), len) };
        for r in 0..if self.residual.is_null() { 0 } else { self.rows } {
            // SAFETY: as above.
            let added = unsafe { core::slice::from_raw_parts(self.residual.add(r * self.ldy), self.cols) };
            sums(r, self.cols).iter_mut().zip(added).for_each(|(x, r)| *x += wide(*r));
        }
        // All rows at once where they follow each other.
        let (runs, len) = if self.ldc == self.cols { (1, self.rows * self.cols) } else { (self.rows, self.cols) };
        if let Some(act) = self.act {
            for run in 0..runs {
                map::activate(s, act, sums(run, len));
            }
        }
        for r in 0..self.rows {
            // SAFETY: as above.
            let y = unsafe { core::slice::from_raw_parts_mut(self.y.add(r * self.ldy), self.cols) };
            let (pairs, rest) = y.split_at_mut(self.cols / (2 * S::LANES) * 2 * S::LANES);
            let sums = sums(r, self.cols);
            for at in (0..pairs.len()).step_by(2 * S::LANES) {
                // SAFETY: a vector has the bytes of so many halves.
                unsafe { s.store_ptr(f32::pairs_of(s, &sums[at..at + 2 * S::LANES]), pairs[at..].as_mut_ptr().cast()) };
            }
            round_each(&sums[pairs.len()..], rest);
        }
    }
}
