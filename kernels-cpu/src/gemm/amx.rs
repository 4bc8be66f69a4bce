//! AMX: 32 rows by 32 columns of C in four registers of 16 rows of 64 bytes. Instructions are written out, as Rust has no stable names for
//! them; the compiler uses none of these registers, so they keep what they have from one block of instructions to the next.

use core::arch::asm;
use core::mem::MaybeUninit;

use super::tile::{self, Columns, Rows, Target};
use super::words::Dot;
use crate::simd::Simd;

/// Rows and columns of a tile.
pub(super) const SIZE: (usize, usize) = (32, 32);

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
    /// For tiles of 32 rows.
    ///
    /// # Safety
    /// The machine must have AMX and the system have given it to the process.
    pub unsafe fn new() -> Self {
        let mut configured = Self { rows: 0 };
        // SAFETY: the caller's promise.
        unsafe { configured.set(32) };
        configured
    }

    /// For tiles of so many rows, 1 to 32.
    ///
    /// # Safety
    /// As [`Configured::new`].
    #[inline(always)]
    unsafe fn set(&mut self, rows: usize) {
        if self.rows == rows {
            return;
        }
        self.rows = rows;
        let (upper, lower) = (rows.min(16) as u8, rows.saturating_sub(16) as u8);
        let mut config = Config { palette: 1, start_row: 0, reserved: [0; 14], bytes: [0; 16], rows: [0; 16] };
        for (i, rows) in [upper, upper, lower, lower, upper, lower, 16, 16].into_iter().enumerate() {
            config.rows[i] = rows;
            config.bytes[i] = if rows > 0 { 64 } else { 0 };
        }
        // SAFETY: the caller's promise; reads the configuration alone.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const config, options(nostack, readonly)) };
    }
}

impl Drop for Configured {
    fn drop(&mut self) {
        // SAFETY: that it exists proves that there are such registers.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}

#[repr(align(64))]
struct Block {
    _sums: [f32; 32 * 32],
}

/// As [`tile::run`] for a tile of at most 32 by 32.
///
/// # Safety
/// As there; rows of A must be as far apart as its first two, rows of B packed 32 wide, and `depth` a multiple of 16.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
pub(super) unsafe fn run<S: Simd, A: Rows, D: Dot>(
    s: S,
    configured: &mut Configured,
    a: A,
    b: Columns,
    depth: usize,
    rows: usize,
    cols: usize,
    out: Target,
) {
    let mut block = MaybeUninit::<Block>::uninit();
    let sums = block.as_mut_ptr().cast::<f32>();
    // SAFETY: the caller's promise; the block has room for four registers.
    unsafe {
        let (upper, lower, columns) = (a.at(0, 0), a.at(16, 0), b.start);
        let apart = a.at(1, 0).byte_offset_from(upper);
        let (steps, mut ahead) = (depth / 16, b.ahead);
        let (lines, of_c) = (ahead.lines.div_ceil(steps), rows.div_ceil(steps));
        configured.set(rows);
        asm!("tilezero tmm0", "tilezero tmm1", options(nostack, nomem));
        if rows > 16 {
            asm!("tilezero tmm2", "tilezero tmm3", options(nostack, nomem));
        }
        let mut line = out.c.cast_const();
        for step in 0..steps {
            // As in other tiles, C is asked for a little at a time.
            for _ in 0..of_c {
                s.prefetch(line);
                s.prefetch(line.wrapping_add(31));
                line = line.wrapping_add(out.ldc);
            }
            ahead.ask(s, lines);
            let (upper, lower, columns) =
                (upper.add(16 * step), lower.wrapping_add(16 * step), columns.add(512 * step));
            macro_rules! multiply {
                ($product:literal) => {
                    asm!("tileloadd tmm6, [{b} + {line}]", "tileloadd tmm7, [{b} + {line} + 64]", "tileloadd tmm4, [{a} + {apart}]",
                        concat!($product, " tmm0, tmm4, tmm6"), concat!($product, " tmm1, tmm4, tmm7"),
                        b = in(reg) columns, line = in(reg) 128usize, a = in(reg) upper, apart = in(reg) apart, options(nostack, readonly));
                    if rows > 16 {
                        asm!("tileloadd tmm5, [{a} + {apart}]",
                            concat!($product, " tmm2, tmm5, tmm6"), concat!($product, " tmm3, tmm5, tmm7"),
                            a = in(reg) lower, apart = in(reg) apart, options(nostack, readonly));
                    }
                };
            }
            if D::LEVELS {
                multiply!("tdpbusd");
            } else {
                multiply!("tdpbf16ps");
            }
        }
        let stored = |c: *mut f32, ldc: usize| {
            let line = 4 * ldc;
            asm!("tilestored [{c} + {line}], tmm0", "tilestored [{c} + {line} + 64], tmm1", c = in(reg) c, line = in(reg) line, options(nostack));
            if rows > 16 {
                asm!("tilestored [{c} + {line}], tmm2", "tilestored [{c} + {line} + 64], tmm3", c = in(reg) c.add(16 * ldc), line = in(reg) line, options(nostack));
            }
        };
        if cols == 32 && out.is_product() {
            return stored(out.c, out.ldc);
        }
        stored(sums, 32);
        for r in 0..rows {
            for from in (0..cols).step_by(S::LANES) {
                tile::finish::<S, D>(s, s.load_ptr(sums.add(32 * r + from)), r, from, cols, out);
            }
        }
    }
}
