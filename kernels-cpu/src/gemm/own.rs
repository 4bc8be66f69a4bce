//! Panels of B that nobody else reads: each is packed right before it is multiplied, while what the next is made of is asked for. So a weight that was
//! not packed before is read once, and its packed form does not leave the second-level cache.

use alloc::vec::Vec;
use core::ops::Range;

use super::Mat;
use super::ahead::Ahead;
use super::job::element;
use super::pack::{self, Line};
use super::scratch::{self, Use};
use crate::simd::Simd;

/// Of a mapped file, about as many numbers come to the process at least where one is looked at.
const AT_ONCE: usize = 1 << 12;

/// Panels that a job packs for itself: one at a time, or a slab of few.
pub(super) struct OwnPanels {
    lines: Vec<Line>,
    /// The first that is packed.
    first: usize,
    /// What the one after them will be packed from.
    pub next: Ahead,
}

impl OwnPanels {
    /// Room for a job's panels of a slab where they are `near` numbers at most, or for one of them, of so many numbers each; for none of 0.
    pub fn new(panels: usize, each: usize, near: usize) -> Self {
        let room = (panels * each).min(near).max(each);
        let lines = if each == 0 { Vec::new() } else { scratch::take(Use::Panels, room + 16) };
        Self { lines, first: 0, next: Ahead::NONE }
    }

    /// Packs panels over rows `start..start + depth` of B; more may follow before panel `end`.
    ///
    /// # Safety
    /// All must be in B, whose elements must be in its data.
    #[inline(always)]
    pub unsafe fn pack<S: Simd>(
        &mut self,
        s: S,
        b: &Mat<'_, f32>,
        panels: Range<usize>,
        end: usize,
        nr: usize,
        columns: [usize; 2],
    ) {
        self.first = panels.start;
        self.next = if panels.end < end { lines_of(b, panels.end, nr, columns) } else { Ahead::NONE };
        let rows = [panels.start * nr, (panels.end * nr).min(b.cols) - panels.start * nr];
        let numbers = pack::numbers(&mut self.lines);
        assert!(numbers.len() >= panels.len() * nr * columns[1] + 16, "gemm: no room for panels {panels:?}");
        // SAFETY: the caller's promise, and there is room.
        unsafe { pack::panels(s, b.t(), rows, [nr, 0], columns, numbers.as_mut_ptr(), nr * columns[1]) };
    }

    /// Where a panel of so many numbers lies.
    pub fn panel(&self, p: usize, size: usize) -> *const f32 {
        self.lines.as_ptr().cast::<f32>().wrapping_add((p - self.first) * size)
    }

    pub fn give(self) {
        if !self.lines.is_empty() {
            scratch::give(Use::Panels, self.lines);
        }
    }
}

/// The lines of a panel over rows `start..start + depth` of B, where they lie. Of a weight, whose rows are B's columns, pages are looked at, as lines of a
/// mapped file's page that nobody has looked at yet are asked for in vain.
fn lines_of(b: &Mat<'_, f32>, panel: usize, nr: usize, [start, depth]: [usize; 2]) -> Ahead {
    let columns = nr.min(b.cols - panel * nr);
    let first = element(b, start, panel * nr);
    if b.row_stride == 1 {
        for c in (0..columns).step_by((AT_ONCE / b.col_stride.unsigned_abs().max(1)).max(1)) {
            // SAFETY: an element of B, which was checked to lie in its data.
            unsafe { first.wrapping_offset(c as isize * b.col_stride).read_volatile() };
        }
    }
    Ahead::of(&b.t(), [panel * nr, columns], [start, depth])
}
