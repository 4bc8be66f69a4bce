//! Writes the first files of fuzz/corpus for DICOM files and graphs: `cargo run -p tiergrad-fuzz-targets --bin seeds`, from the
//! repository's root. They are made here, byte by byte, so that no file of anyone else is needed.

use std::path::Path;

use targets::dicom::{FRAME, SYNTAXES, element, framed};
use tiergrad::rng::Rng;

fn main() -> std::io::Result<()> {
    let corpus = Path::new("fuzz/corpus");
    for (name, bytes) in dicom() {
        std::fs::write(corpus.join("dicom").join(name), bytes)?;
    }
    for (name, bytes) in graphs() {
        std::fs::write(corpus.join("graph").join(name), bytes)?;
    }
    Ok(())
}

fn syntax(uid_end: &str) -> u8 {
    SYNTAXES.iter().position(|uid| uid.ends_with(uid_end)).map_or(0, |n| n as u8)
}

fn dicom() -> Vec<(&'static str, Vec<u8>)> {
    let levels: Vec<u16> = (0..12).map(|i| i * 1000).collect();
    let ours = tiergrad::image::write_dicom(&levels, 4, 3, 7, "P1").unwrap_or_default();
    let set = native(&[]);
    let tables = native(&[
        sequence(0x0028_3000, &[lut(&[0, 10, 20, 30])]),
        sequence(0x0028_3010, &[lut(&[5, 6]), lut(&[1, 2])]),
        element(0x0028_1050, b"DS", b"127.5\\60"),
        element(0x0028_1051, b"DS", b"255\\20"),
        element(0x0028_0120, b"US", &[3, 0]),
    ]);
    let framed = |uid: &str, head: [u8; 4], frame: &[u8]| [&[FRAME + syntax(uid)][..], &head, frame].concat();
    let grey8 = [8, 8, 7, 0];
    vec![
        ("ours", [&[0][..], &ours].concat()),
        ("jpeg_in_file", [&[0][..], &self::framed(SYNTAXES[4], grey8, &jpeg(0xC0, &[0; 64]))].concat()),
        ("explicit", [&[1 + syntax("1.2.1")][..], &set].concat()),
        ("deflated", [&[1 + syntax("1.99")][..], &set].concat()),
        ("tables", [&[1 + syntax("1.2.1")][..], &tables].concat()),
        ("implicit", [&[1][..], &implicit()].concat()),
        ("rle", framed(".1.2.5", [4, 4, 15, 0], &rle())),
        ("jpeg_baseline", framed(".4.50", grey8, &jpeg(0xC0, &[0; 64]))),
        ("jpeg_lossless", framed(".4.70", grey8, &jpeg(0xC3, &[]))),
        ("jpeg_ls", framed(".4.80", grey8, &jpeg_ls())),
        ("jpeg_2000", framed(".4.90", grey8, &jpeg_2000())),
    ]
}

/// 4 x 3 pixels of 16 bits, with more elements before them.
fn native(more: &[Vec<u8>]) -> Vec<u8> {
    let word = |tag, value: u16| element(tag, b"US", &value.to_le_bytes());
    let pixels: Vec<u8> = (0..12u16).flat_map(|i| (i * 1000).to_le_bytes()).collect();
    let head = [
        element(0x0008_0060, b"CS", b"CR"),
        word(0x0028_0002, 1),
        element(0x0028_0004, b"CS", b"MONOCHROME1 "),
        word(0x0028_0010, 3),
        word(0x0028_0011, 4),
        word(0x0028_0100, 16),
        word(0x0028_0101, 14),
        word(0x0028_0102, 13),
        word(0x0028_0103, 0),
    ];
    let end =
        [element(0x0028_1052, b"DS", b"-5"), element(0x0028_1053, b"DS", b"2 "), element(0x7FE0_0010, b"OW", &pixels)];
    [head.concat(), more.concat(), end.concat()].concat()
}

/// The same without types.
fn implicit() -> Vec<u8> {
    let element = |tag: u32, value: &[u8]| {
        let tag = [((tag >> 16) as u16).to_le_bytes(), (tag as u16).to_le_bytes()].concat();
        [&tag[..], &(value.len() as u32).to_le_bytes(), value].concat()
    };
    let word = |tag, value: u16| element(tag, &value.to_le_bytes());
    [
        element(0x0028_0004, b"MONOCHROME2 "),
        word(0x0028_0010, 2),
        word(0x0028_0011, 2),
        word(0x0028_0100, 8),
        element(0x7FE0_0010, &[1, 2, 3, 4]),
    ]
    .concat()
}

fn sequence(tag: u32, items: &[Vec<u8>]) -> Vec<u8> {
    let item = |set: &Vec<u8>| [&[0xFE, 0xFF, 0, 0xE0][..], &(set.len() as u32).to_le_bytes(), set].concat();
    element(tag, b"SQ", &items.iter().flat_map(item).collect::<Vec<u8>>())
}

fn lut(entries: &[u16]) -> Vec<u8> {
    let bytes = |words: &[u16]| words.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<u8>>();
    let descriptor = bytes(&[entries.len() as u16, 0, 8]);
    [element(0x0028_3002, b"US", &descriptor), element(0x0028_3006, b"OW", &bytes(entries))].concat()
}

/// Two segments of 16 bytes (PS3.5 annex G): zeros, and literals.
fn rle() -> Vec<u8> {
    let header = [2u32, 64, 66].into_iter().chain([0; 13]).flat_map(u32::to_le_bytes);
    header.chain([241, 0, 15]).chain(0..16).collect()
}

/// 8 x 8 pixels whose differences are all 0: one code, of one bit, for that (ISO 10918-1). `C0` is the baseline, with a table of
/// quantisation, `C3` the lossless process.
fn jpeg(process: u8, quantisation: &[u8]) -> Vec<u8> {
    let code = |class: u8| [&[0xFF, 0xC4, 0, 20, class, 1][..], &[0; 15], &[0]].concat();
    let (mut tables, mut scan) = (code(0), vec![0xFF, 0xDA, 0, 8, 1, 1, 0, 1, 0, 0]);
    scan.extend([0; 8]);
    if !quantisation.is_empty() {
        let ones: Vec<u8> = quantisation.iter().map(|q| q + 1).collect();
        tables.extend([&code(0x10)[..], &[0xFF, 0xDB, 0, 67, 0], &ones].concat());
        (scan[7], scan[8]) = (0, 63);
    }
    let frame = [0xFF, process, 0, 11, 8, 0, 8, 0, 8, 1, 1, 0x11, 0];
    [&[0xFF, 0xD8][..], &tables, &frame, &scan, &[0xFF, 0xD9]].concat()
}

/// 8 x 8 zeros as runs (ISO 14495-1): every bit is 1, and after a byte of ones a 0 is stuffed.
fn jpeg_ls() -> Vec<u8> {
    let frame = [0xFF, 0xF7, 0, 11, 8, 0, 8, 0, 8, 1, 1, 0x11, 0];
    let scan = [0xFF, 0xDA, 0, 8, 1, 1, 0, 0, 0, 0];
    [&[0xFF, 0xD8][..], &frame, &scan, &[0xFF, 0x7F, 0xFF, 0x7F], &[0xFF, 0xD9]].concat()
}

/// 8 x 8 pixels in one tile without decomposition whose only packet is empty (ISO 15444-1 annex A).
fn jpeg_2000() -> Vec<u8> {
    let numbers = |all: &[u32]| all.iter().flat_map(|n| n.to_be_bytes()).collect::<Vec<u8>>();
    let size = [&[0xFF, 0x51, 0, 41, 0, 0][..], &numbers(&[8, 8, 0, 0, 8, 8, 0, 0]), &[0, 1, 7, 1, 1]].concat();
    let coding = [0xFF, 0x52, 0, 12, 0, 0, 0, 1, 0, 0, 2, 2, 0, 1];
    let quantisation = [0xFF, 0x5C, 0, 4, 0x40, 0x40];
    let tile = [0xFF, 0x90, 0, 10, 0, 0, 0, 0, 0, 15, 0, 1, 0xFF, 0x93, 0];
    [&[0xFF, 0x4F][..], &size, &coding, &quantisation, &tile, &[0xFF, 0xD9]].concat()
}

/// A few programs for each op: two leaves, then that op again and again among others.
fn graphs() -> Vec<(String, Vec<u8>)> {
    (0..targets::OPS_OF_GRAPHS)
        .map(|op| {
            let mut rng = Rng::new(op as u64, 0);
            let mut bytes = vec![1, 2, 20, 31, 0, op as u8, 4, 1, 41, 31, 1, 0, 9];
            for _ in 0..8 {
                bytes.push(op as u8);
                bytes.extend((0..6).map(|_| rng.below(8) as u8));
            }
            (format!("op{op:02}"), bytes)
        })
        .collect()
}
