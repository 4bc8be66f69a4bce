//! Grey JPEG of 12 bits, coded sequentially with Huffman codes (ITU-T T.81, process 4), which no codec in Rust that fits here reads.

use std::f64::consts::{FRAC_1_SQRT_2, PI};

use super::{damaged, refused};
use crate::error::Result;

/// Where in its block each coefficient of the zigzag order stands (T.81 figure A.6).
const ZIGZAG: [u8; 64] = [
    0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6, 7, 14, 21,
    28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54,
    47, 55, 62, 63,
];
/// Levels of 12 bits.
const LEVELS: f64 = 4096.0;

/// The levels of a picture whose size is `(columns, rows)`, row by row.
///
/// # Errors
/// If the picture is damaged, of another size, or coded in another way.
pub(super) fn decode(data: &[u8], size: (usize, usize)) -> Result<Vec<u16>> {
    let mut tables = Tables::default();
    let mut quantisation = None;
    let mut at = 2;
    loop {
        let (marker, body) = segment(data, at)?;
        at += 4 + body.len();
        match marker {
            0xC1 => {
                let &[12, y1, y0, x1, x0, 1, _, _, table] = body else {
                    return Err(refused(
                        "holds a 12-bit JPEG picture of other than one component",
                        super::codec::REWRITE,
                    ));
                };
                let own = [[x1, x0], [y1, y0]].map(|pair| usize::from(u16::from_be_bytes(pair)));
                if own != [size.0, size.1] {
                    return Err(damaged(format!(
                        "compressed pixels of {} x {}, not {} x {}",
                        own[0], own[1], size.0, size.1
                    )));
                }
                quantisation = Some(usize::from(table & 3));
            }
            0xC0 | 0xC2..=0xC3 | 0xC5..=0xC7 | 0xC9..=0xCB | 0xCD..=0xCF => {
                let what = format!("holds a 12-bit JPEG picture coded as process SOF{}", marker - 0xC0);
                return Err(refused(what, super::codec::REWRITE));
            }
            0xC4 => tables.huffman(body)?,
            0xDB => tables.quantisation(body)?,
            0xDD => tables.restart = body.first_chunk().map_or(0, |&two| usize::from(u16::from_be_bytes(two))),
            0xDA => {
                let &[1, _, selected, 0, 63, 0] = body else { return Err(damaged("a JPEG scan of an unknown kind")) };
                let table = quantisation.ok_or_else(|| damaged("a JPEG scan before its frame"))?;
                let (dc, ac) = (usize::from(selected >> 4 & 3), usize::from(selected & 3));
                return tables.scan(Bits::new(&data[at..]), table, dc, ac, size);
            }
            0xD9 => return Err(damaged("a JPEG picture without a scan")),
            _ => {}
        }
    }
}

/// The marker at a place and what its segment holds after the length.
fn segment(data: &[u8], at: usize) -> Result<(u8, &[u8])> {
    let Some(&[0xFF, marker, high, low]) = data.get(at..).and_then(|rest| rest.first_chunk()) else {
        return Err(damaged("no JPEG marker where one is expected"));
    };
    let length = usize::from(u16::from_be_bytes([high, low]));
    let body = data.get(at + 4..at + 2 + length).ok_or_else(|| damaged("a JPEG segment cut short"))?;
    Ok((marker, body))
}

#[derive(Default)]
struct Tables {
    quantisation: [Option<[f64; 64]>; 4],
    dc: [Option<Huffman>; 4],
    ac: [Option<Huffman>; 4],
    /// Blocks between restarts; 0: none.
    restart: usize,
}

impl Tables {
    /// Tables of divisors, of 8 or 16 bits, in zigzag order (T.81 section B.2.4.1).
    fn quantisation(&mut self, mut body: &[u8]) -> Result<()> {
        while let Some((&head, rest)) = body.split_first() {
            let wide = 1 + usize::from(head >> 4 != 0);
            let (values, rest) = rest.split_at_checked(64 * wide).ok_or_else(|| damaged("a JPEG table cut short"))?;
            let value = |bytes: &[u8]| bytes.iter().fold(0.0, |sum, &byte| 256.0 * sum + f64::from(byte));
            let mut table = [0.0; 64];
            values.chunks(wide).zip(&mut table).for_each(|(bytes, entry)| *entry = value(bytes));
            self.quantisation[usize::from(head & 3)] = Some(table);
            body = rest;
        }
        Ok(())
    }

    /// Tables of Huffman codes (T.81 section B.2.4.2).
    fn huffman(&mut self, mut body: &[u8]) -> Result<()> {
        let short = || damaged("a JPEG table cut short");
        while let Some((&head, rest)) = body.split_first() {
            let (counts, rest) = rest.split_first_chunk::<16>().ok_or_else(short)?;
            let all = counts.iter().map(|&n| usize::from(n)).sum();
            let (values, rest) = rest.split_at_checked(all).ok_or_else(short)?;
            let tables = if head >> 4 == 0 { &mut self.dc } else { &mut self.ac };
            tables[usize::from(head & 3)] = Some(Huffman::new(counts, values));
            body = rest;
        }
        Ok(())
    }

    fn scan(
        &self,
        mut bits: Bits,
        table: usize,
        dc: usize,
        ac: usize,
        (columns, rows): (usize, usize),
    ) -> Result<Vec<u16>> {
        let missing = || damaged("a JPEG scan without its tables");
        let quantisation = self.quantisation[table].as_ref().ok_or_else(missing)?;
        let (dc, ac) = (self.dc[dc].as_ref().ok_or_else(missing)?, self.ac[ac].as_ref().ok_or_else(missing)?);
        let basis = basis();
        let (across, down) = (columns.div_ceil(8), rows.div_ceil(8));
        let mut levels = vec![0; columns * rows];
        let mut before = 0;
        for number in 0..across * down {
            if self.restart > 0 && number > 0 && number % self.restart == 0 {
                bits.restart()?;
                before = 0;
            }
            let mut block = [0.0; 64];
            let size = u32::from(dc.next(&mut bits)?);
            before = i32::wrapping_add(before, bits.signed(size)?);
            block[0] = f64::from(before) * quantisation[0];
            let mut place = 1;
            while place < 64 {
                let symbol = ac.next(&mut bits)?;
                let (zeros, size) = (usize::from(symbol >> 4), u32::from(symbol & 15));
                place += zeros;
                match (zeros, size) {
                    (15, 0) => place += 1,
                    (_, 0) => break,
                    _ if place > 63 => return Err(damaged("a JPEG block of more than 64 coefficients")),
                    _ => {
                        block[usize::from(ZIGZAG[place])] = f64::from(bits.signed(size)?) * quantisation[place];
                        place += 1;
                    }
                }
            }
            let block = inverse(&block, &basis);
            let (left, top) = (number % across * 8, number / across * 8);
            for (y, row) in block.chunks(8).enumerate().take(rows - top) {
                let start = (top + y) * columns + left;
                let level = |x: f64| (x + LEVELS / 2.0 + 0.5).clamp(0.0, LEVELS - 1.0) as u16;
                levels[start..].iter_mut().zip(row).take(columns - left).for_each(|(to, &x)| *to = level(x));
            }
        }
        Ok(levels)
    }
}

/// The cosines of the transform by frequency and place, scaled (T.81 section A.3.3).
fn basis() -> [[f64; 8]; 8] {
    std::array::from_fn(|u| {
        let scale = if u == 0 { FRAC_1_SQRT_2 / 2.0 } else { 0.5 };
        std::array::from_fn(|x| scale * libm::cos((2 * x + 1) as f64 * u as f64 * PI / 16.0))
    })
}

/// The inverse discrete cosine transform of a block, rows of 8.
fn inverse(block: &[f64; 64], basis: &[[f64; 8]; 8]) -> [f64; 64] {
    let mut rows = [0.0; 64];
    for v in 0..8 {
        for x in 0..8 {
            rows[8 * v + x] = (0..8).map(|u| block[8 * v + u] * basis[u][x]).sum();
        }
    }
    std::array::from_fn(|i| (0..8).map(|v| rows[8 * v + i % 8] * basis[v][i / 8]).sum())
}

/// A canonical code (T.81 annex C and section F.2.2.3).
struct Huffman {
    /// By length less 1: the first code, the code after the last, and the position of the first one's value.
    lengths: [(u32, u32, usize); 16],
    values: Vec<u8>,
}

impl Huffman {
    fn new(counts: &[u8; 16], values: &[u8]) -> Self {
        let (mut code, mut position) = (0, 0);
        let lengths = counts.map(|count| {
            let end = code + u32::from(count);
            let length = (code, end, position);
            position += usize::from(count);
            code = end << 1;
            length
        });
        Self { lengths, values: values.to_vec() }
    }

    fn next(&self, bits: &mut Bits) -> Result<u8> {
        let mut code = 0;
        for &(start, end, position) in &self.lengths {
            code = code << 1 | bits.take(1)?;
            if (start..end).contains(&code) {
                let value = self.values.get(position + (code - start) as usize);
                return value.copied().ok_or_else(|| damaged("a JPEG code without a value"));
            }
        }
        Err(damaged("an unknown JPEG code"))
    }
}

/// The bits of a scan.
struct Bits<'a> {
    data: &'a [u8],
    held: u32,
    count: u32,
}

impl<'a> Bits<'a> {
    fn new(data: &'a [u8]) -> Self {
        Self { data, held: 0, count: 0 }
    }

    /// The next bits, at most 16, the first of them the highest.
    fn take(&mut self, wanted: u32) -> Result<u32> {
        while self.count < wanted {
            // A byte FF of the data is followed by 0; else it begins a marker, where the data ends.
            let (byte, rest) = match *self.data {
                [0xFF, 0, ref rest @ ..] => (0xFF, rest),
                [0xFF, ..] | [] => return Err(damaged("a JPEG scan that ends early")),
                [byte, ref rest @ ..] => (byte, rest),
            };
            self.data = rest;
            self.held = self.held << 8 | u32::from(byte);
            self.count += 8;
        }
        self.count -= wanted;
        let bits = self.held >> self.count;
        self.held &= (1 << self.count) - 1;
        Ok(bits)
    }

    /// A number of a size in bits; the lower half of the range stands for negative ones (T.81 section F.2.2.1).
    fn signed(&mut self, size: u32) -> Result<i32> {
        if size > 15 {
            return Err(damaged(format!("a JPEG coefficient of {size} bits")));
        }
        let value = self.take(size)? as i32;
        Ok(if size > 0 && value < 1 << (size - 1) { value - (1 << size) + 1 } else { value })
    }

    /// Passes a restart marker.
    fn restart(&mut self) -> Result<()> {
        match *self.data {
            [0xFF, 0xD0..=0xD7, ref rest @ ..] => *self = Self::new(rest),
            _ => return Err(damaged("a JPEG restart that is not where it should be")),
        }
        Ok(())
    }
}
