//! AMX: 32 rows by 32 columns of C in four registers of 16 rows of 64 bytes. Instructions are written out, as Rust has no stable names for
//! them; the compiler uses none of these registers, so they keep what they have from one block of instructions to the next.

use core::arch::asm;

use super::ahead::Asks;
use super::rows::Rows;
use super::tile::{self, Columns, Once, Part, Target};
use super::words::Dot;
use crate::simd::Simd;

/// Rows and columns of a tile.
pub(super) const SIZE: (usize, usize) = (32, 32);
/// Most words of a row or column that a tile is summed up over at a time where it has more than one after the other: a panel of so many and the rows of a
/// tile take two thirds of the first-level cache (48 KiB on Sapphire Rapids), beside what comes next. Shorter parts pass over sums more often than
/// they save.
pub(super) const DEEP: usize = 128;
/// Tiles whose sums wait for the next part: 64 KiB.
pub(super) const TOGETHER: usize = 16;

/// The registers of this thread, for as long as it lives: rows of 64 bytes, of B sixteen, of A and C as many as a tile has.
pub(super) struct Configured {
    rows: usize,
}

#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    bytes: [u16; 16],
    rows: [u8; 16],
}

impl Configured {
    /// For so many rows of C, in tiles of 32 at most: all tiles are as high as the first, or 16 rows high.
    ///
    /// # Safety
    /// The machine must have AMX and the system have given it to the process.
    pub unsafe fn new(rows: usize) -> Self {
        let rows = rows.min(32);
        let (upper, lower) = (rows.min(16) as u8, rows.saturating_sub(16) as u8);
        let mut config = Config { palette: 1, start_row: 0, reserved: [0; 14], bytes: [0; 16], rows: [0; 16] };
        for (i, rows) in [upper, upper, lower, lower, upper, lower, 16, 16].into_iter().enumerate() {
            config.rows[i] = rows;
            config.bytes[i] = if rows > 0 { 64 } else { 0 };
        }
        // SAFETY: the caller's promise; reads the configuration alone.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const config, options(nostack, readonly)) };
        Self { rows }
    }
}

impl Drop for Configured {
    fn drop(&mut self) {
        // SAFETY: that it exists proves that there are such registers.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}

/// As [`tile::run`] for `rows` by `cols` of a tile, the rows after `above` of those that the registers are configured for, over a part of a slab.
///
/// # Safety
/// As there; rows of A must be as far apart as its first two, those above included, rows of B packed 32 wide, and the part's depth a multiple of 16.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
pub(super) unsafe fn run<S: Simd, A: Rows, D: Dot>(
    s: S,
    configured: &Configured,
    a: A,
    b: Columns,
    asks: &mut Asks,
    part: Part,
    [above, rows, cols]: [usize; 3],
    out: Target,
) {
    // SAFETY: the caller's promise; where sums wait there is room for four registers.
    unsafe {
        // Registers are configured once: the last rows are multiplied with some of those above, whose results are there.
        let tall = if rows > 16 { configured.rows } else { configured.rows.min(16) };
        let back = tall - rows;
        debug_assert!(back <= above);
        let apart = a.at(1, 0).byte_offset_from(a.at(0, 0));
        let upper = a.at(0, 0).wrapping_byte_offset(-apart * back as isize);
        let columns = b.start;
        let steps = part.depth / 16;
        // A line that a row shares with the next step is read again.
        let in_lines = (upper as usize | apart as usize).is_multiple_of(64);
        let once = if part.once == Once::A && !in_lines { Once::Neither } else { part.once };
        let (low, waiting) = (part.sums.add(16 * 32), 128usize);
        if part.first {
            asm!("tilezero tmm0", "tilezero tmm1", options(nostack, nomem));
            if tall > 16 {
                asm!("tilezero tmm2", "tilezero tmm3", options(nostack, nomem));
            }
        } else {
            asm!("tileloadd tmm0, [{c} + {line}]", "tileloadd tmm1, [{c} + {line} + 64]", c = in(reg) part.sums, line = in(reg) waiting, options(nostack, readonly));
            if tall > 16 {
                asm!("tileloadd tmm2, [{c} + {line}]", "tileloadd tmm3, [{c} + {line} + 64]", c = in(reg) low, line = in(reg) waiting, options(nostack, readonly));
            }
        }
        // A row is a line of 32 halves, or two of as many numbers.
        let row_of_c = if out.halves.is_some() { 16 } else { 32 };
        asks.begin(out.lines, [if part.last { rows } else { 0 }, row_of_c]);
        let (mut upper, mut run) = (upper, a.run(0) / 16);
        for step in 0..steps {
            if run == 0 {
                upper = a.at(0, 16 * step).wrapping_byte_offset(-apart * back as isize);
                run = a.run(16 * step) / 16;
            }
            run -= 1;
            asks.ask(s);
            let (lower, columns) = (upper.wrapping_byte_offset(16 * apart), columns.add(512 * step));
            macro_rules! multiply {
                ($of_a:literal, $of_b:literal, $product:literal) => {{
                    asm!(concat!($of_a, " tmm4, [{a} + {apart}]"), concat!($of_b, " tmm6, [{b} + {line}]"), concat!($product, " tmm0, tmm4, tmm6"),
                        concat!($of_b, " tmm7, [{b} + {line} + 64]"), concat!($product, " tmm1, tmm4, tmm7"),
                        b = in(reg) columns, line = in(reg) 128usize, a = in(reg) upper, apart = in(reg) apart, options(nostack, readonly));
                    if tall > 16 {
                        asm!(concat!($of_a, " tmm5, [{a} + {apart}]"),
                            concat!($product, " tmm2, tmm5, tmm6"), concat!($product, " tmm3, tmm5, tmm7"),
                            a = in(reg) lower, apart = in(reg) apart, options(nostack, readonly));
                    }
                }};
            }
            match (D::LEVELS, once) {
                (false, Once::A) => multiply!("tileloaddt1", "tileloadd", "tdpbf16ps"),
                (false, Once::B) => multiply!("tileloadd", "tileloaddt1", "tdpbf16ps"),
                (true, Once::A) => multiply!("tileloaddt1", "tileloadd", "tdpbusd"),
                (true, Once::B) => multiply!("tileloadd", "tileloaddt1", "tdpbusd"),
                (false, Once::Neither) => multiply!("tileloadd", "tileloadd", "tdpbf16ps"),
                (true, Once::Neither) => multiply!("tileloadd", "tileloadd", "tdpbusd"),
            }
            upper = upper.wrapping_add(16);
        }
        let stored = |c: *mut f32, ldc: usize| {
            let line = 4 * ldc;
            asm!("tilestored [{c} + {line}], tmm0", "tilestored [{c} + {line} + 64], tmm1", c = in(reg) c, line = in(reg) line, options(nostack));
            if tall > 16 {
                asm!("tilestored [{c} + {line}], tmm2", "tilestored [{c} + {line} + 64], tmm3", c = in(reg) c.add(16 * ldc), line = in(reg) line, options(nostack));
            }
        };
        if part.last && back == 0 && cols == 32 && out.is_product() && a.placed(0, rows) == (rows, Some(0)) {
            return stored(out.c, out.ldc);
        }
        stored(part.sums, 32);
        let mut r = if part.last { 0 } else { rows };
        while r < rows {
            let (run, place) = a.placed(r, rows);
            if let Some(place) = place {
                tile::finish_rows::<S, D>(s, part.sums.add(32 * (back + r)), run, cols, out.below(place));
            }
            r += run;
        }
    }
}
