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

    /// Asks for the next so many of them, or as many as there are.
    #[inline(always)]
    fn ask<S: Simd>(&mut self, s: S, lines: usize) {
        for _ in 0..lines.min(self.lines) {
            s.prefetch_far(self.take());
        }
    }

    /// The next one, of which there is one.
    #[inline(always)]
    fn take(&mut self) -> *const f32 {
        let line = self.next;
        self.next = self.next.wrapping_add(16);
        self.lines -= 1;
        self.left -= 1;
        if self.left == 0 {
            self.next = self.next.wrapping_offset(self.gap);
            self.left = self.run;
        }
        line
    }
}

/// What the tiles of a slab ask for while they are summed up, a few lines with each piece of their steps.
pub(super) struct Asks {
    /// What tiles to come read, and what rows of A will be packed from for them.
    ahead: [Ahead; 2],
    /// How many of these lines each tile asks for, and each piece.
    share: [usize; 2],
    at_once: [usize; 2],
    /// Most rows of a tile, its steps, and the fewest and most of a piece.
    rows: usize,
    depth: usize,
    limits: [usize; 2],
    piece: usize,
    rows_at_once: usize,
    own: Own,
}

/// Lines of C that a tile will write to, and of what is added there.
struct Own {
    /// Where the next one is, or null, and how far apart they are.
    lines: [(*const f32, usize); 2],
    /// How many rows of them are left, and how many numbers each has.
    rows: usize,
    row: usize,
}

impl Asks {
    /// For tiles of at most so many rows, which are summed up in so many steps by pieces of some steps.
    #[inline(always)]
    pub fn new(rows: usize, depth: usize, limits: [usize; 2]) -> Self {
        let own = Own { lines: [(core::ptr::null(), 0); 2], rows: 0, row: 0 };
        let mut asks = Self {
            ahead: [Ahead::NONE; 2],
            share: [0; 2],
            at_once: [0; 2],
            rows,
            depth,
            limits,
            piece: 0,
            rows_at_once: 0,
            own,
        };
        asks.set_pace();
        asks
    }

    /// From here on tiles ask for other lines, all of which so many tiles have asked for together. (Divisions take as long as some products of a small
    /// tile: they are done here, not tile by tile.)
    #[inline(always)]
    pub fn turn_to<const OF: usize>(&mut self, ahead: Ahead, tiles: usize) {
        let share = match tiles {
            1 => ahead.lines,
            _ => ahead.lines.div_ceil(tiles),
        };
        self.ahead[OF] = ahead;
        if share != self.share[OF] {
            self.share[OF] = share;
            self.set_pace();
        }
    }

    /// With longer pieces many lines are asked for by too many at once and hold up those that are needed now; with shorter ones leaving the loop takes as
    /// long as some lines do.
    #[inline(always)]
    fn set_pace(&mut self) {
        /// Lines that are asked for at once, beside the tile's own.
        const TOGETHER: usize = 8;
        let [fewest, most] = self.limits;
        let lines = (self.share[0] + self.share[1]).max(1);
        self.piece = (TOGETHER * self.depth / lines / 16 * 16).clamp(fewest, most);
        let pieces = self.depth.div_ceil(self.piece);
        self.at_once = self.share.map(|lines| lines.div_ceil(pieces));
        self.rows_at_once = self.rows.div_ceil(pieces);
    }

    /// A tile begins, with its lines of C.
    #[inline(always)]
    pub fn begin(&mut self, lines: [(*const f32, usize); 2], [rows, row]: [usize; 2]) {
        self.own = Own { lines, rows, row };
    }

    /// Steps of a piece.
    #[inline(always)]
    pub fn piece(&self) -> usize {
        self.piece
    }

    /// Asks for a piece's share.
    #[inline(always)]
    pub fn ask<S: Simd>(&mut self, s: S) {
        let own = &mut self.own;
        let rows = self.rows_at_once.min(own.rows);
        own.rows -= rows;
        let (last, [(line, apart), (added, added_apart)]) = (own.row - 1, &mut own.lines);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;
    use crate::simd::{SimdOp, eval_on};
    use alloc::vec::Vec;

    #[test]
    fn lines_come_run_by_run() {
        let numbers = [0f32; 16 * 20];
        let x = Mat::new(&numbers, 4, 80);
        let mut ahead = Ahead::of(&x, [1, 3], [16, 40]);
        let places: Vec<isize> =
            (0..ahead.lines).map(|_| ahead.take().addr() as isize - numbers.as_ptr().addr() as isize).collect();
        let lines = [1, 2, 3].map(|row| [0, 1, 2].map(|line| 4 * (80 * row + 16 + 16 * line)));
        assert_eq!(places, lines.concat());
    }

    struct Tile<'a>(&'a mut Asks, usize);

    impl SimdOp for Tile<'_> {
        type Output = ();
        fn eval<S: Simd>(self, s: S) {
            for _ in (0..self.1).step_by(self.0.piece()) {
                self.0.ask(s);
            }
        }
    }

    /// Whatever there is, tiles have asked for all of it once they are through, each for its part.
    #[test]
    fn tiles_ask_for_all_lines_together() {
        let numbers = [0f32; 16];
        for (depth, limits) in [(64, [16, 64]), (768, [16, 64]), (100, [16, 16]), (27, [3, 3]), (1, [16, 64])] {
            for (lines, tiles) in [(0, 3), (1, 1), (7, 3), (100, 4), (1536, 4), (1536, 225)] {
                let mut asks = Asks::new(14, depth, limits);
                asks.turn_to::<0>(Ahead::new(numbers.as_ptr(), 1, lines, 0), tiles);
                asks.turn_to::<1>(Ahead::new(numbers.as_ptr(), lines, 1, 16), tiles);
                for tile in 1..=tiles {
                    asks.begin([(numbers.as_ptr(), 16), (core::ptr::null(), 0)], [9, 16]);
                    eval_on(Isa::Scalar, Tile(&mut asks, depth));
                    assert_eq!(asks.own.rows, 0, "rows of C of {depth} steps");
                    let most = lines - (tile * lines / tiles).min(lines);
                    assert!(
                        asks.ahead.iter().all(|ahead| ahead.lines <= most),
                        "{lines} lines, tile {tile} of {tiles}"
                    );
                }
            }
        }
    }
}
