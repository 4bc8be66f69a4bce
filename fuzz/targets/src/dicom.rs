//! DICOM files: whole, data sets behind a head of any transfer syntax, and compressed frames in a file made for them.

use std::io::Write;

use tiergrad::image::{MAX_PIXELS, SixteenBit, decode, size};

use crate::bounds::{bounded, file, kind, of_file};
use crate::image::LARGEST;

/// UIDs of transfer syntaxes (PS3.6 table A-1).
pub const SYNTAXES: [&str; 12] = [
    "1.2.840.10008.1.2",
    "1.2.840.10008.1.2.1",
    "1.2.840.10008.1.2.2",
    "1.2.840.10008.1.2.1.99",
    "1.2.840.10008.1.2.4.50",
    "1.2.840.10008.1.2.4.51",
    "1.2.840.10008.1.2.4.57",
    "1.2.840.10008.1.2.4.70",
    "1.2.840.10008.1.2.4.80",
    "1.2.840.10008.1.2.4.90",
    "1.2.840.10008.1.2.4.91",
    "1.2.840.10008.1.2.5",
];
const DEFLATED: usize = 3;
/// Added to the number of a syntax, this first byte says that a frame follows.
pub const FRAME: u8 = 0x80;

pub(super) fn run(data: &[u8]) {
    let bytes = match kind(data) {
        (0, file) => file.to_vec(),
        (n, rest) if n < FRAME => {
            let syntax = usize::from(n - 1) % SYNTAXES.len();
            whole(SYNTAXES[syntax], &if syntax == DEFLATED { deflated(rest) } else { rest.to_vec() })
        }
        (n, rest) => {
            let (head, frame) = rest.split_at(rest.len().min(4));
            let head = std::array::from_fn(|i| head.get(i).copied().unwrap_or(8));
            framed(SYNTAXES[usize::from(n - FRAME) % SYNTAXES.len()], head, frame)
        }
    };
    let path = file("picture.dcm", &bytes);
    let (width, height) = size(&path).unwrap_or_default();
    let pixels = width.saturating_mul(height);
    if pixels as u64 > MAX_PIXELS {
        bounded(of_file(&bytes), || assert!(decode(&bytes, SixteenBit::HighByte).is_err(), "a picture beyond the cap"));
        return;
    }
    if pixels as u64 > LARGEST {
        return;
    }
    // Beside the file, memory for what its header declares: samples of 32 bits, levels, and the decoder's coefficients.
    bounded(of_file(&bytes) + 64 * pixels, || {
        if let Ok(picture) = decode(&bytes, SixteenBit::HighByte) {
            assert_eq!(picture.pixels.len(), picture.width * picture.height * picture.channels);
        }
    });
}

/// A file of a data set.
pub fn whole(syntax: &str, set: &[u8]) -> Vec<u8> {
    let mut meta = element(0x0002_0001, b"OB", &[0, 1]);
    meta.extend(element(0x0002_0010, b"UI", syntax.as_bytes()));
    let length = element(0x0002_0000, b"UL", &(meta.len() as u32).to_le_bytes());
    [&[0; 128][..], b"DICM", &length, &meta, set].concat()
}

/// A file of one compressed frame of so many rows and columns, bits stored, and kind of levels.
pub fn framed(syntax: &str, [rows, columns, bits, what]: [u8; 4], frame: &[u8]) -> Vec<u8> {
    let (bits, allocated) = (u16::from(bits % 16) + 1, if bits % 16 < 8 { 8u16 } else { 16 });
    let (samples, photometric) =
        [(1u16, "MONOCHROME2 "), (1, "MONOCHROME1 "), (3, "RGB "), (3, "YBR_FULL_422"), (3, "YBR_FULL")]
            [usize::from(what & 0x7F) % 5];
    let word = |tag, value: u16| element(tag, b"US", &value.to_le_bytes());
    let mut set = [
        element(0x0008_0060, b"CS", b"DX"),
        word(0x0028_0002, samples),
        element(0x0028_0004, b"CS", photometric.as_bytes()),
        word(0x0028_0010, u16::from(rows)),
        word(0x0028_0011, u16::from(columns)),
        word(0x0028_0100, allocated),
        word(0x0028_0101, bits),
        word(0x0028_0102, bits - 1),
        word(0x0028_0103, u16::from(what >> 7)),
    ]
    .concat();
    // Pixel data of undefined length: an empty table of offsets, the frame, the end.
    set.extend([&[0xE0, 0x7F, 0x10, 0][..], b"OB\0\0", &[0xFF; 4], &item(0xE000, &[]), &item(0xE000, frame)].concat());
    set.extend(item(0xE0DD, &[]));
    whole(syntax, &set)
}

fn item(element: u16, value: &[u8]) -> Vec<u8> {
    let length = (value.len().next_multiple_of(2) as u32).to_le_bytes();
    let mut out = [&[0xFE, 0xFF][..], &element.to_le_bytes(), &length, value].concat();
    out.resize(out.len().next_multiple_of(2), 0);
    out
}

/// An element with its type, little-endian (PS3.5 section 7.1.2).
pub fn element(tag: u32, vr: &[u8; 2], value: &[u8]) -> Vec<u8> {
    let length = value.len().next_multiple_of(2);
    let mut out = [&((tag >> 16) as u16).to_le_bytes()[..], &(tag as u16).to_le_bytes(), vr].concat();
    match vr {
        b"OB" | b"OW" | b"SQ" => out.extend([&[0, 0][..], &(length as u32).to_le_bytes()].concat()),
        _ => out.extend((length as u16).to_le_bytes()),
    }
    out.extend(value);
    out.resize(out.len() - value.len() + length, 0);
    out
}

/// The data set as the deflated syntax has it.
pub fn deflated(set: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(set).and_then(|()| encoder.finish()).unwrap_or_default()
}
