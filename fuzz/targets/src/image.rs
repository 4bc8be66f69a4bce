//! Pictures: PNG and JPEG.

use tiergrad::image::{MAX_PIXELS, SixteenBit, decode};

use crate::bounds::{bounded, file, of_file};

/// Larger pictures are left alone: a few bytes can declare them, and a second each leaves little time for others.
pub(crate) const LARGEST: u64 = 1 << 23;

pub(super) fn run(data: &[u8]) {
    let path = file("picture", data);
    let (width, height) = tiergrad::image::size(&path).unwrap_or_default();
    let pixels = width.saturating_mul(height);
    if pixels as u64 > MAX_PIXELS {
        bounded(of_file(data), || assert!(decode(data, SixteenBit::HighByte).is_err(), "a picture beyond the cap"));
        return;
    }
    if pixels as u64 > LARGEST {
        return;
    }
    // Beside the file, memory for what its header declares: RGBA of 16 bits, what is made of it, and the decoder's.
    for rule in [SixteenBit::HighByte, SixteenBit::Window] {
        bounded(of_file(data) + 32 * pixels, || {
            if let Ok(picture) = decode(data, rule) {
                assert_eq!(picture.pixels.len(), picture.width * picture.height * picture.channels);
            }
        });
    }
}
