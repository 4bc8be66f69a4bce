//! Lines of memory that are asked for before they are needed.

use super::Mat;
use super::job::element;
use crate::simd::Simd;

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

/// What a tile asks for while it is summed up, a few lines with each piece.
pub(super) struct Asks {
    /// Its lines of C and of what is added: where the next one is, or null, and how far apart they are.
    lines: [(*const f32, usize); 2],
    /// How many rows of them are left, and how many numbers each has.
    rows: usize,
    row: usize,
    rows_at_once: usize,
    ahead: [Ahead; 2],
    at_once: [usize; 2],
}

impl Asks {
    /// Of a tile of so many rows of so many numbers that is summed up in so many pieces.
    #[inline(always)]
    pub fn new(lines: [(*const f32, usize); 2], [rows, row]: [usize; 2], ahead: [Ahead; 2], pieces: usize) -> Self {
        let at_once = ahead.map(|ahead| ahead.lines.div_ceil(pieces));
        Self { lines, rows, row, rows_at_once: rows.div_ceil(pieces), ahead, at_once }
    }

    /// Asks for a piece's share.
    #[inline(always)]
    pub fn ask<S: Simd>(&mut self, s: S) {
        let rows = self.rows_at_once.min(self.rows);
        self.rows -= rows;
        let (last, [(line, apart), (added, added_apart)]) = (self.row - 1, &mut self.lines);
        for _ in 0..rows {
            s.prefetch(*line);
            s.prefetch(line.wrapping_add(last));
            *line = line.wrapping_add(*apart);
            if !added.is_null() {
                s.prefetch(*added);
                s.prefetch(added.wrapping_add(last));
                *added = added.wrapping_add(*added_apart);
            }
        }
        self.ahead[0].ask(s, self.at_once[0]);
        self.ahead[1].ask(s, self.at_once[1]);
    }
}
