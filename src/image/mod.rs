//! Pictures: decoding, checking, resizing, preprocessing and augmentation.

mod augment;
mod decode;
#[cfg(feature = "dicom")]
mod dicom;
mod plausible;
mod preprocess;
mod resize;

pub use augment::Augment;
pub use decode::{MAX_ASPECT, MAX_PIXELS, SixteenBit, decode, open, open_with_notes, size};
#[cfg(feature = "dicom")]
pub use dicom::write_dicom;
pub use plausible::doubts;
pub use preprocess::{MAX_SIDE, Preprocess, Preset};
pub use resize::{Filter, resize};

use std::borrow::Cow;
use std::path::Path;

use ::image::ImageEncoder;

use crate::error::{At, Error, Result};

/// A decoded picture of 8-bit levels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// 1 (grey) or 3 (red, green, blue).
    pub channels: usize,
    /// Rows from the top, channels interleaved: `height * width * channels` levels.
    pub pixels: Vec<u8>,
}

impl Picture {
    /// A picture of the given levels.
    ///
    /// # Panics
    /// If there are not 1 or 3 channels, a side is 0, or the levels do not fill the picture.
    #[track_caller]
    pub fn new(width: usize, height: usize, channels: usize, pixels: Vec<u8>) -> Self {
        assert!(channels == 1 || channels == 3, "a picture has 1 or 3 channels, not {channels}");
        assert!(width > 0 && height > 0, "a picture of {width} x {height} pixels has no pixels");
        assert_eq!(pixels.len(), width * height * channels, "levels of a {width} x {height} x {channels} picture");
        Self { width, height, channels, pixels }
    }

    /// A black picture.
    pub fn black(width: usize, height: usize, channels: usize) -> Self {
        Self::new(width, height, channels, vec![0; width * height * channels])
    }

    /// The luma of a colour picture, as Pillow's mode "L" computes it (ITU-R 601-2); a grey one is unchanged.
    pub fn grey(&self) -> Cow<'_, Self> {
        if self.channels == 1 {
            return Cow::Borrowed(self);
        }
        let luma = |p: &[u8]| (luma(u32::from(p[0]), u32::from(p[1]), u32::from(p[2])) >> 16) as u8;
        Cow::Owned(Self::new(self.width, self.height, 1, self.pixels.chunks_exact(3).map(luma).collect()))
    }

    /// The picture as the bytes of a PNG file.
    pub fn png(&self) -> Result<Vec<u8>> {
        let colour = if self.channels == 1 { ::image::ExtendedColorType::L8 } else { ::image::ExtendedColorType::Rgb8 };
        let (mut bytes, sides) = (Vec::new(), (u32::try_from(self.width), u32::try_from(self.height)));
        let (Ok(width), Ok(height)) = sides else {
            return Err(Error::new(format!("{} x {} pixels do not fit a PNG file", self.width, self.height)));
        };
        ::image::codecs::png::PngEncoder::new(&mut bytes)
            .write_image(&self.pixels, width, height, colour)
            .map_err(|e| Error::new(e.to_string()))?;
        Ok(bytes)
    }

    /// Writes a PNG file.
    pub fn save_png(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        crate::files::write_atomic(path, &self.png().at(path)?)
    }
}

/// 65536 times the luma (Pillow's integer weights, which sum to 65536), with half a level added for rounding.
fn luma(red: u32, green: u32, blue: u32) -> u32 {
    19595 * red + 38470 * green + 7471 * blue + 0x8000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grey_is_pillows_mode_l() {
        // Image.fromarray(..., "RGB").convert("L") of Pillow for the same colours.
        let colours = [255, 0, 0, 0, 255, 0, 0, 0, 255, 200, 100, 50, 1, 2, 3, 255, 255, 255];
        let grey = Picture::new(6, 1, 3, colours.to_vec()).grey().into_owned();
        assert_eq!((grey.channels, grey.pixels), (1, vec![76, 150, 29, 124, 2, 255]));
    }

    #[test]
    fn png_gives_the_picture_back() {
        for channels in [1, 3] {
            let picture = Picture::new(3, 2, channels, (0..6 * channels as u8).map(|i| i * 11).collect());
            assert_eq!(decode(&picture.png().unwrap(), SixteenBit::HighByte).unwrap(), picture);
        }
    }
}
