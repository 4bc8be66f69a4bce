//! Right operands that were packed before, in memory of their own or in somebody else's.

use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::ops::Deref;

use super::nest::pack_panels;
use super::pack::{self, Line};
use super::words::Words;
use super::{Mat, Numbers};
use crate::isa::Isa;

/// A right operand in the order in which the register tile of a tier reads it.
pub struct Packed {
    pub(super) isa: Isa,
    pub(super) words: Words,
    rows: usize,
    cols: usize,
    pub(super) lines: Lines,
    /// Of levels, a number per column: its scale ...
    pub(super) scale: Vec<f32>,
    /// ... and what its sums have too much.
    pub(super) zero: Vec<i32>,
}

impl Packed {
    /// Packs `b` [k, n] for a tier.
    pub(super) fn on(isa: Isa, b: Mat<'_, f32>) -> Self {
        Self::filled(isa, Words::F32, [b.rows, b.cols], |lines| {
            if b.rows > 0 {
                pack_panels(isa, b, 0..b.rows, 0, lines, true);
            }
        })
    }

    /// As `fill` makes it of zeros.
    pub(super) fn filled(isa: Isa, words: Words, [rows, cols]: [usize; 2], fill: impl FnOnce(&mut [Line])) -> Self {
        let mut lines = vec![Line::ZERO; lines_for(isa, words, [rows, cols])];
        fill(&mut lines);
        Self::of(isa, words, [rows, cols], Lines::Own(lines))
    }

    /// What was packed into `lines`.
    pub(super) fn of(isa: Isa, words: Words, [rows, cols]: [usize; 2], lines: Lines) -> Self {
        Self { isa, words, rows, cols, lines, scale: Vec::new(), zero: Vec::new() }
    }

    /// What [`Packed::content`] was of a matrix [rows, cols] that was packed for the tier in use, in a program with the same
    /// [`packing`](super::packing). `None`: it cannot be that.
    pub fn kept(numbers: Numbers, [rows, cols]: [usize; 2], content: Kept) -> Option<Self> {
        let isa = Isa::current();
        let words = match numbers {
            Numbers::F32 => Words::F32,
            Numbers::Bf16 => Words::bf16(isa),
            Numbers::Int8 => return None,
        };
        let lines = Lines::kept(content, lines_for(isa, words, [rows, cols]))?;
        Some(Self::of(isa, words, [rows, cols], lines))
    }

    /// All there is of a matrix of f32 or bf16, to be kept: whole lines, which must begin where a multiple of 64 bytes does.
    pub fn content(&self) -> &[f32] {
        pack::numbers_of(&self.lines)
    }

    pub(super) fn isa(&self) -> Isa {
        self.isa
    }

    /// Rows and columns of the operand.
    pub fn size(&self) -> [usize; 2] {
        [self.rows, self.cols]
    }
}

/// Lines of an operand: whole panels, and a vector more.
pub(super) fn lines_for(isa: Isa, words: Words, [rows, cols]: [usize; 2]) -> usize {
    (cols.next_multiple_of(words.tile(isa).1) * words.count(rows) + 16).div_ceil(16)
}

/// Numbers that somebody else keeps, as those of a file.
pub type Kept = Arc<dyn AsRef<[f32]> + Send + Sync>;

/// Lines that are read alone.
pub(super) enum Lines {
    Own(Vec<Line>),
    /// So many, kept elsewhere.
    Kept(Kept, usize),
}

impl Lines {
    /// Those that are kept elsewhere. `None`: they are not so many whole lines, or do not begin where a line may.
    pub fn kept(numbers: Kept, lines: usize) -> Option<Self> {
        whole((*numbers).as_ref(), lines)?;
        Some(Self::Kept(numbers, lines))
    }
}

impl Deref for Lines {
    type Target = [Line];
    fn deref(&self) -> &[Line] {
        match self {
            Self::Own(lines) => lines,
            // Nothing obliges the keeper to answer twice the same.
            Self::Kept(numbers, lines) => whole((**numbers).as_ref(), *lines).expect("what was kept is kept"),
        }
    }
}

/// Numbers as lines, if they are so many and begin where one may.
fn whole(numbers: &[f32], lines: usize) -> Option<&[Line]> {
    if numbers.len() != 16 * lines || !numbers.as_ptr().cast::<Line>().is_aligned() {
        return None;
    }
    // SAFETY: a line is sixteen numbers and nothing else; they are aligned as one, and so many.
    Some(unsafe { core::slice::from_raw_parts(numbers.as_ptr().cast(), lines) })
}
