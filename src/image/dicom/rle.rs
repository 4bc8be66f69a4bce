//! RLE Lossless (PS3.5 annex G): PackBits segments, one for each byte of a sample, the most significant first.

use super::damaged;
use crate::error::Result;

/// Segments that the header has room for.
const MOST: usize = 15;

/// The planes of a frame, each of `pixels` bytes.
///
/// # Errors
/// If there are not `planes` segments, or one of them does not fill its plane.
pub(super) fn planes(data: &[u8], planes: usize, pixels: usize) -> Result<Vec<Vec<u8>>> {
    let words = data.get(..4 * (1 + MOST)).ok_or_else(|| damaged("no room for an RLE header"))?;
    let words: Vec<usize> = words.as_chunks().0.iter().map(|&w| u32::from_le_bytes(w) as usize).collect();
    let (count, offsets) = (words[0], &words[1..]);
    if count != planes || count > MOST {
        return Err(damaged(format!("{count} RLE segments, not {planes}")));
    }
    let end = |i: usize| if i + 1 < count { offsets[i + 1] } else { data.len() };
    let segment = |i: usize| data.get(offsets[i]..end(i)).ok_or_else(|| damaged("an RLE segment outside of the frame"));
    (0..count).map(|i| unpack(segment(i)?, pixels)).collect()
}

/// PackBits: a count and what it counts, until `length` bytes are there.
fn unpack(mut packed: &[u8], length: usize) -> Result<Vec<u8>> {
    let short = || damaged("an RLE segment that ends early");
    let mut bytes = Vec::with_capacity(length);
    while bytes.len() < length {
        let (&code, rest) = packed.split_first().ok_or_else(short)?;
        let room = length - bytes.len();
        match code as i8 {
            count @ 0.. => {
                let (literal, rest) = rest.split_at_checked(count as usize + 1).ok_or_else(short)?;
                bytes.extend_from_slice(&literal[..literal.len().min(room)]);
                packed = rest;
            }
            -128 => packed = rest,
            count => {
                let (&byte, rest) = rest.split_first().ok_or_else(short)?;
                bytes.resize(bytes.len() + room.min(1 + usize::from(count.unsigned_abs())), byte);
                packed = rest;
            }
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_and_literals() {
        // The example of Apple's Technical Note 1023.
        let packed = [0xFE, 0xAA, 0x02, 0x80, 0x00, 0x2A, 0xFD, 0xAA, 0x03, 0x80, 0x00, 0x2A, 0x22, 0xF7, 0xAA];
        let expected = [
            0xAA, 0xAA, 0xAA, 0x80, 0x00, 0x2A, 0xAA, 0xAA, 0xAA, 0xAA, 0x80, 0x00, 0x2A, 0x22, 0xAA, 0xAA, 0xAA, 0xAA,
            0xAA, 0xAA, 0xAA, 0xAA, 0xAA, 0xAA,
        ];
        assert_eq!(unpack(&packed, 24).unwrap(), expected);
        assert_eq!(unpack(&packed, 20).unwrap(), expected[..20]);
        assert!(unpack(&packed, 25).is_err());
        assert!(unpack(&packed[..5], 24).is_err());
    }
}
