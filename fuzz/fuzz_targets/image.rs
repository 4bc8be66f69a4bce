//! Pictures: PNG and JPEG.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tiergrad::image::{SixteenBit, decode};

fuzz_target!(init: fuzz::start(), |data: &[u8]| {
    let path = fuzz::file("picture", data);
    // Beside the file, memory for what its header declares, up to the cap: RGBA of 16 bits, what is made of it, and the decoder's.
    let (width, height) = tiergrad::image::size(&path).unwrap_or_default();
    let pixels = (width.saturating_mul(height) as u64).min(tiergrad::image::MAX_PIXELS) as usize;
    for rule in [SixteenBit::HighByte, SixteenBit::Window] {
        fuzz::bounded(fuzz::of_file(data) + 32 * pixels, || {
            if let Ok(picture) = decode(data, rule) {
                assert_eq!(picture.pixels.len(), picture.width * picture.height * picture.channels);
            }
        });
    }
});
