//! Where a tile reads its rows of A: in a matrix, in what was packed, or in windows over a map.

use super::EvenWindows;
use super::ahead::Ahead;

/// A tile's rows of A.
pub(super) trait Rows: Copy {
    /// How they lie.
    #[inline(always)]
    fn apart(&self) -> Apart {
        Apart::Anywhere
    }
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
    #[inline(always)]
    fn apart(&self) -> Apart {
        Apart::Evenly(self.row_stride)
    }
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
    #[inline(always)]
    fn apart(&self) -> Apart {
        Apart::InColumns(self.width)
    }
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

/// How rows lie to each other.
#[derive(Clone, Copy)]
pub(super) enum Apart {
    /// Numbers k of all rows side by side, so many of them.
    InColumns(usize),
    /// So many numbers from a row to the next, with all of a row's numbers one after the other.
    Evenly(isize),
    Anywhere,
}

/// Where numbers k of a tile's rows are, step by step.
pub(super) trait Places {
    /// That of a row.
    fn of(&self, r: usize) -> *const f32;
    /// To the next step.
    fn next(&mut self);
}

/// Side by side.
pub(super) struct Column {
    pub at: *const f32,
    pub width: usize,
}

impl Places for Column {
    #[inline(always)]
    fn of(&self, r: usize) -> *const f32 {
        self.at.wrapping_add(r)
    }
    #[inline(always)]
    fn next(&mut self) {
        self.at = self.at.wrapping_add(self.width);
    }
}

/// Each somewhere.
pub(super) struct Anywhere<const MR: usize> {
    starts: [*const f32; MR],
    k: usize,
}

impl<const MR: usize> Anywhere<MR> {
    #[inline(always)]
    pub fn new(starts: [*const f32; MR]) -> Self {
        Self { starts, k: 0 }
    }
}

impl<const MR: usize> Places for Anywhere<MR> {
    #[inline(always)]
    fn of(&self, r: usize) -> *const f32 {
        self.starts[r].wrapping_add(self.k)
    }
    #[inline(always)]
    fn next(&mut self) {
        self.k += 1;
    }
}

/// As far apart as each other: up to fourteen by two addresses and three distances, which all stay in registers. Of an address for each row most would
/// come from memory at every step.
pub(super) struct Evenly {
    /// Rows 0 and 7.
    starts: [*const u8; 2],
    /// Bytes to a row, three and five rows on.
    to: [isize; 3],
}

impl Evenly {
    /// From the first row's place on, `apart` numbers from a row to the next.
    #[inline(always)]
    pub fn new(first: *const f32, apart: isize) -> Self {
        let (first, apart) = (first.cast::<u8>(), apart * size_of::<f32>() as isize);
        Self { starts: [first, first.wrapping_offset(7 * apart)], to: [apart, 3 * apart, 5 * apart] }
    }
}

impl Places for Evenly {
    #[inline(always)]
    fn of(&self, r: usize) -> *const f32 {
        let (start, [once, thrice, five]) = (self.starts[r / 7], self.to);
        // What an instruction adds to an address: a register times a power of two.
        let by = [0, once, 2 * once, thrice, 4 * once, five, 2 * thrice][r % 7];
        start.wrapping_offset(by).cast()
    }
    #[inline(always)]
    fn next(&mut self) {
        self.starts = self.starts.map(|start| start.wrapping_add(size_of::<f32>()));
        // To the compiler they are other distances from here on, so that it does not make addresses of all rows before the loop.
        #[cfg(target_arch = "x86_64")]
        {
            let [once, thrice, five] = &mut self.to;
            // SAFETY: does nothing.
            unsafe {
                core::arch::asm!(
                    "/* {} {} {} */",
                    inout(reg) * once,
                    inout(reg) * thrice,
                    inout(reg) * five,
                    options(pure, nomem, nostack, preserves_flags)
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_as_far_apart_as_each_other_are_where_they_would_be_one_by_one() {
        const MR: usize = 14;
        let numbers = [0f32; 2048];
        for (first, apart) in [(5, 0), (7, 1), (3, 48), (2000, -48), (64, 17)] {
            let first = &raw const numbers[first];
            let starts: [*const f32; MR] = core::array::from_fn(|r| first.wrapping_offset(r as isize * apart));
            let (mut evenly, mut anywhere) = (Evenly::new(first, apart), Anywhere::new(starts));
            for k in 0..40 {
                for (r, start) in starts.iter().enumerate() {
                    let place = start.wrapping_add(k);
                    assert_eq!([evenly.of(r), anywhere.of(r)], [place; 2], "row {r} of {apart} apart, step {k}");
                }
                evenly.next();
                anywhere.next();
            }
        }
    }
}
