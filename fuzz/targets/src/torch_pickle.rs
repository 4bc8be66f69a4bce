//! Files of torch.save: whole files, and pickles inside a zip archive or behind the old format's head.

use tiergrad::formats::Weights;

use crate::bounds::{bounded, file, kind, of_file};

/// Magic number, version and system, as every old file starts.
const HEAD: &[u8] =
    b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}X\x0d\0\0\0little_endian\x88s.";

pub(super) fn run(data: &[u8]) {
    let bytes = match kind(data) {
        (0, pickle) => zip(&[("w/data.pkl", pickle), ("w/data/0", &[1; 64])]),
        (1, pickles) => [HEAD, pickles].concat(),
        _ => data.to_vec(),
    };
    let path = file("w.pt", &bytes);
    bounded(of_file(&bytes), || {
        for map in [true, false] {
            let Ok(weights) = Weights::open(&path, map) else { return };
            for (name, tensor) in weights.iter() {
                assert_eq!(weights.meta(name), Some(tensor.meta()));
                if tensor.numel() < 1000 {
                    std::hint::black_box(tensor.to_f64_vec());
                }
            }
        }
    });
}

/// A zip archive of stored entries.
fn zip(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    for (name, bytes) in entries {
        let (start, len) = ((out.len() as u32).to_le_bytes(), (bytes.len() as u32).to_le_bytes());
        let sizes = [&[0; 4][..], &len, &len, &(name.len() as u16).to_le_bytes(), &[0; 2]].concat();
        out.extend([b"PK\x03\x04\x14\0\0\0\0\0\0\0\0\0", &sizes[..], name.as_bytes(), bytes].concat());
        directory.extend(
            [b"PK\x01\x02\x14\0\x14\0\0\0\0\0\0\0\0\0", &sizes[..], &[0; 12], &start, name.as_bytes()].concat(),
        );
    }
    let count = (entries.len() as u16).to_le_bytes();
    let (len, start) = ((directory.len() as u32).to_le_bytes(), (out.len() as u32).to_le_bytes());
    [&out[..], &directory, b"PK\x05\x06\0\0\0\0", &count, &count, &len, &start, &[0; 2]].concat()
}
