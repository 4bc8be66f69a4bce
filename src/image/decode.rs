//! Files to pictures: PNG (8 and 16 bit), JPEG and DICOM, told apart by their content.

use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use ::image::codecs::{jpeg::JpegDecoder, png::PngDecoder};
use ::image::{DynamicImage, ImageDecoder, ImageError, ImageFormat, Limits};
use serde::{Deserialize, Serialize};

use super::Picture;
use crate::error::{At, Error, Result};

/// Most pixels that a file may declare; more is refused before any memory is asked for.
pub const MAX_PIXELS: u64 = 100_000_000;
/// Most that one side may be longer than the other: a strip cannot be resized by its shorter side.
pub const MAX_ASPECT: u64 = 20;

/// How 16-bit levels of PNG files become 8-bit ones; a DICOM file says itself how it is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum SixteenBit {
    /// The high byte, `x >> 8`.
    #[default]
    HighByte,
    /// As the public readers of PadChest do: `x / 255`, cut off at 255.
    Padchest,
    /// The range between the 0.5th and the 99.5th percentile becomes 0 to 255.
    Window,
}

impl std::fmt::Display for SixteenBit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::HighByte => "high-byte",
            Self::Padchest => "padchest",
            Self::Window => "window",
        })
    }
}

/// Reads a picture. Transparency and a rotation in the file's metadata are ignored, as Pillow does.
///
/// # Errors
/// If the file cannot be read, is no PNG, JPEG or DICOM, is damaged or cut short, declares more than [`MAX_PIXELS`] pixels or sides
/// that differ by more than [`MAX_ASPECT`], or is a DICOM file of another kind than a single radiograph.
pub fn open(path: impl AsRef<Path>, sixteen: SixteenBit) -> Result<Picture> {
    Ok(open_with_notes(path, sixteen)?.0)
}

/// As [`open`], with what a user should know of how a DICOM file was shown (its window, inversion, overlays), one line each.
pub fn open_with_notes(path: impl AsRef<Path>, sixteen: SixteenBit) -> Result<(Picture, Vec<String>)> {
    let path = path.as_ref();
    guarded(|| read(&std::fs::read(path)?, sixteen)).at(path)
}

/// Width and height of a picture, from its header.
///
/// # Errors
/// As [`open`], as far as the header tells.
pub fn size(path: impl AsRef<Path>) -> Result<(usize, usize)> {
    let path = path.as_ref();
    guarded(|| {
        #[cfg(feature = "dicom")]
        {
            use std::io::Read;
            let mut start = Vec::new();
            std::fs::File::open(path)?.take(256).read_to_end(&mut start)?;
            if super::dicom::recognise(&start) {
                return super::dicom::size(&std::fs::read(path)?);
            }
        }
        let reader = ::image::ImageReader::open(path)?.with_guessed_format()?;
        let (width, height) = reader.into_dimensions().map_err(refused)?;
        check_size(width, height)?;
        Ok((width as usize, height as usize))
    })
    .at(path)
}

/// As [`open`], of a file's bytes.
pub fn decode(bytes: &[u8], sixteen: SixteenBit) -> Result<Picture> {
    Ok(guarded(|| read(bytes, sixteen))?.0)
}

/// A decoder must not panic on any bytes; if one does, that is an error about this file, not the end of the process.
fn guarded<T>(decode: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(decode)).unwrap_or_else(|_| Err(damaged("its decoder gave up")))
}

pub(super) fn damaged(why: impl std::fmt::Display) -> Error {
    Error::new(format!("damaged picture ({why}); fetch or write it again"))
}

fn read(bytes: &[u8], sixteen: SixteenBit) -> Result<(Picture, Vec<String>)> {
    let image = match ::image::guess_format(bytes).ok() {
        Some(ImageFormat::Png) => {
            let limits = Limits::default();
            pixels(PngDecoder::with_limits(Cursor::new(bytes), limits).map_err(refused)?)?
        }
        Some(ImageFormat::Jpeg) => {
            let decoder = JpegDecoder::new(Cursor::new(bytes)).map_err(refused)?;
            if !jpeg_is_whole(bytes) {
                return Err(damaged("cut short: it has no end marker"));
            }
            pixels(decoder)?
        }
        _ if bytes.is_empty() => return Err(Error::new("an empty file; fetch or write it again")),
        #[cfg(feature = "dicom")]
        _ if super::dicom::recognise(bytes) => return super::dicom::decode(bytes),
        _ => return Err(Error::new("neither PNG, JPEG nor DICOM by its first bytes; convert it to one of them")),
    };
    let (width, height) = (image.width() as usize, image.height() as usize);
    let (channels, pixels) = match image {
        DynamicImage::ImageLuma8(i) => (1, i.into_raw()),
        DynamicImage::ImageRgb8(i) => (3, i.into_raw()),
        DynamicImage::ImageLumaA8(i) => (1, without_alpha(&i, 1)),
        DynamicImage::ImageRgba8(i) => (3, without_alpha(&i, 3)),
        DynamicImage::ImageLuma16(i) => (1, eight_bit(&i, sixteen)),
        DynamicImage::ImageRgb16(i) => (3, eight_bit(&i, sixteen)),
        DynamicImage::ImageLumaA16(i) => (1, eight_bit(&without_alpha(&i, 1), sixteen)),
        DynamicImage::ImageRgba16(i) => (3, eight_bit(&without_alpha(&i, 3), sixteen)),
        other => {
            return Err(Error::new(format!(
                "pixels of type {:?} are not supported; convert it to grey",
                other.color()
            )));
        }
    };
    Ok((Picture::new(width, height, channels, pixels), Vec::new()))
}

/// Decodes what the header has promised, if that is a size we accept.
fn pixels(mut decoder: impl ImageDecoder) -> Result<DynamicImage> {
    let (width, height) = decoder.dimensions();
    check_size(width, height)?;
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(decoder.total_bytes().saturating_mul(2) + (64 << 20));
    decoder.set_limits(limits).map_err(refused)?;
    DynamicImage::from_decoder(decoder).map_err(refused)
}

/// Refuses sizes that no radiograph has.
pub(super) fn check_size(width: u32, height: u32) -> Result<()> {
    let (short, long) = (u64::from(width.min(height)), u64::from(width.max(height)));
    let size = format!("{width} x {height} pixels");
    if short == 0 {
        return Err(damaged(format!("it declares {size}")));
    }
    if short * long > MAX_PIXELS {
        return Err(Error::new(format!("declares {size}, more than {MAX_PIXELS} in all; scale it down first")));
    }
    if long > short * MAX_ASPECT {
        return Err(Error::new(format!("is {size}: a strip, not a radiograph; crop it to its content first")));
    }
    Ok(())
}

fn refused(error: ImageError) -> Error {
    match error {
        ImageError::Unsupported(e) => Error::new(format!("{e}; convert it to an 8-bit PNG or JPEG")),
        other => damaged(other),
    }
}

/// Whether the end marker is reached: the decoder fills what a cut file lacks with grey and says nothing.
pub(super) fn jpeg_is_whole(bytes: &[u8]) -> bool {
    let mut at = 2;
    let byte = |at: usize| bytes.get(at).copied();
    // Segments carry their length; in the coded data after a scan header only FF 00 and the restart markers D0..D7 are no marker.
    loop {
        let (Some(lead), Some(marker)) = (byte(at), byte(at + 1)) else { return false };
        match (lead, marker) {
            (0xFF, 0xD9) => return true,
            (0xFF, 0xFF) => at += 1,
            (0xFF, 0x00 | 0x01 | 0xD0..=0xD8) => at += 2,
            (0xFF, _) => {
                let (Some(high), Some(low)) = (byte(at + 2), byte(at + 3)) else { return false };
                at += 2 + usize::from(u16::from_be_bytes([high, low]));
            }
            _ => match bytes[at..].iter().position(|&b| b == 0xFF) {
                Some(skip) => at += skip,
                None => return false,
            },
        }
    }
}

/// Leaves out the last of each `colours + 1` samples.
fn without_alpha<T: Copy>(samples: &[T], colours: usize) -> Vec<T> {
    samples.chunks_exact(colours + 1).flat_map(|pixel| &pixel[..colours]).copied().collect()
}

/// 16-bit levels as 8-bit ones.
fn eight_bit(levels: &[u16], rule: SixteenBit) -> Vec<u8> {
    match rule {
        SixteenBit::HighByte => levels.iter().map(|&x| (x >> 8) as u8).collect(),
        SixteenBit::Padchest => levels.iter().map(|&x| (x / 255).min(255) as u8).collect(),
        SixteenBit::Window => {
            let (low, high) = percentiles(levels);
            let span = u32::from(high - low).max(1);
            let scaled = |x: u16| (u32::from(x.clamp(low, high) - low) * 510 + span) / (2 * span);
            levels.iter().map(|&x| scaled(x) as u8).collect()
        }
    }
}

/// The levels that 0.5 % and 99.5 % of all levels reach at most.
fn percentiles(levels: &[u16]) -> (u16, u16) {
    let mut counts = vec![0u64; 1 << 16];
    levels.iter().for_each(|&x| counts[usize::from(x)] += 1);
    let all = levels.len() as u64;
    let reach = |per_mille: u64| {
        let mut seen = 0;
        let level = counts.iter().position(|&n| {
            seen += n;
            seen * 1000 >= all * per_mille && seen > 0
        });
        level.unwrap_or(0) as u16
    };
    (reach(5), reach(995))
}

#[cfg(test)]
mod tests {
    use ::image::codecs::jpeg::JpegEncoder;
    use ::image::{ExtendedColorType, ImageEncoder};

    use super::*;

    fn png(bytes: &[u8], width: u32, height: u32, colour: ExtendedColorType) -> Vec<u8> {
        let mut file = Vec::new();
        ::image::codecs::png::PngEncoder::new(&mut file).write_image(bytes, width, height, colour).unwrap();
        file
    }

    fn sixteen(levels: &[u16], rule: SixteenBit) -> Vec<u8> {
        let bytes: Vec<u8> = levels.iter().flat_map(|x| x.to_ne_bytes()).collect();
        let width = levels.len().min(100);
        let height = levels.len() / width;
        decode(&png(&bytes, width as u32, height as u32, ExtendedColorType::L16), rule).unwrap().pixels
    }

    #[test]
    fn sixteen_bit_rules() {
        let levels = [0, 255, 256, 510, 32768, 65025, 65535];
        assert_eq!(sixteen(&levels, SixteenBit::HighByte), [0, 0, 1, 1, 128, 254, 255]);
        assert_eq!(sixteen(&levels, SixteenBit::Padchest), [0, 1, 1, 2, 128, 255, 255]);
        // A 12-bit ramp fills the range; one white pixel does not spoil it.
        let mut ramp: Vec<u16> = (0..1000).map(|i| 1000 + i).collect();
        ramp[999] = 65535;
        let ramp = sixteen(&ramp, SixteenBit::Window);
        assert_eq!((ramp[0], ramp[4], ramp[499], ramp[994], ramp[999]), (0, 0, 128, 255, 255));
        assert_eq!(sixteen(&[7; 5], SixteenBit::Window), [0; 5]);
    }

    #[test]
    fn every_kind_of_png_is_read_and_alpha_left_out() {
        let decoded = |bytes: &[u8], colour| decode(&png(bytes, 2, 1, colour), SixteenBit::HighByte).unwrap();
        assert_eq!(decoded(&[1, 2], ExtendedColorType::L8), Picture::new(2, 1, 1, vec![1, 2]));
        assert_eq!(decoded(&[1, 0, 2, 9], ExtendedColorType::La8), Picture::new(2, 1, 1, vec![1, 2]));
        let colours = vec![1, 2, 3, 4, 5, 6];
        assert_eq!(decoded(&colours, ExtendedColorType::Rgb8), Picture::new(2, 1, 3, colours.clone()));
        assert_eq!(
            decoded(&[1, 2, 3, 0, 4, 5, 6, 9], ExtendedColorType::Rgba8),
            Picture::new(2, 1, 3, colours.clone())
        );
        let wide: Vec<u8> = [256u16, 512, 768, 1, 1024, 1280, 1536, 2].iter().flat_map(|x| x.to_ne_bytes()).collect();
        assert_eq!(decoded(&wide, ExtendedColorType::Rgba16), Picture::new(2, 1, 3, colours));
        // A 1-bit palette of black and red, and one row of red, black, red; no encoder here makes one.
        let palette = [
            137, 80, 78, 71, 13, 10, 26, 10, 0, 0, 0, 13, 73, 72, 68, 82, 0, 0, 0, 3, 0, 0, 0, 1, 1, 3, 0, 0, 0, 33,
            46, 134, 247, 0, 0, 0, 6, 80, 76, 84, 69, 0, 0, 0, 255, 0, 0, 27, 255, 141, 34, 0, 0, 0, 10, 73, 68, 65,
            84, 120, 156, 99, 88, 0, 0, 0, 162, 0, 161, 220, 141, 177, 204, 0, 0, 0, 0, 73, 69, 78, 68, 174, 66, 96,
            130,
        ];
        let picture = decode(&palette, SixteenBit::HighByte).unwrap();
        assert_eq!(picture, Picture::new(3, 1, 3, vec![255, 0, 0, 0, 0, 0, 255, 0, 0]));
    }

    #[test]
    fn a_jpeg_is_read_by_content_and_a_cut_one_is_refused() {
        let levels: Vec<u8> = (0..64u32 * 48).map(|i| (i % 64 * 4) as u8).collect();
        let mut file = Vec::new();
        JpegEncoder::new_with_quality(&mut file, 95).encode(&levels, 64, 48, ExtendedColorType::L8).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("misnamed.png");
        std::fs::write(&path, &file).unwrap();
        let picture = open(&path, SixteenBit::HighByte).unwrap();
        assert_eq!((picture.width, picture.height, picture.channels), (64, 48, 1));
        assert!(picture.pixels.iter().zip(&levels).all(|(a, b)| a.abs_diff(*b) < 8));
        for keep in [file.len() - 2, file.len() / 2, 3, 1, 0] {
            std::fs::write(&path, &file[..keep]).unwrap();
            let error = open(&path, SixteenBit::HighByte).unwrap_err().to_string();
            assert!(error.contains("misnamed.png: "), "{error}");
        }
    }

    #[test]
    fn sizes_are_checked_before_memory_is_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        // A header alone: the checksum of the changed header is recomputed by the encoder's own sizes, so patch and re-sum.
        let claim = |width: u32, height: u32| {
            let mut file = png(&[0], 1, 1, ExtendedColorType::L8);
            file[16..20].copy_from_slice(&width.to_be_bytes());
            file[20..24].copy_from_slice(&height.to_be_bytes());
            let sum = crc(&file[12..29]).to_be_bytes();
            file[29..33].copy_from_slice(&sum);
            let path = folder.path().join("claim.png");
            std::fs::write(&path, &file).unwrap();
            (decode(&file, SixteenBit::HighByte).unwrap_err().to_string(), size(&path).map_err(|e| e.to_string()))
        };
        for (width, height, words) in
            [(100_000, 100_000, "100000 x 100000 pixels, more than 100000000"), (2_000, 10, "a strip")]
        {
            let (decoded, size) = claim(width, height);
            assert!(decoded.contains(words));
            assert!(size.unwrap_err().ends_with(&format!("claim.png: {decoded}")));
        }
        let (decoded, size) = claim(9_000, 9_000);
        assert!(decoded.contains("damaged picture"));
        assert_eq!(size, Ok((9_000, 9_000)));
    }

    /// The checksum of PNG chunks, bit by bit.
    fn crc(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(!0u32, |sum, &byte| {
            (0..8).fold(sum ^ u32::from(byte), |s, _| (s >> 1) ^ (0xEDB8_8320 & (s & 1).wrapping_neg()))
        })
    }

    #[test]
    fn other_files_and_damaged_pictures_are_errors() {
        let error = |bytes: &[u8]| decode(bytes, SixteenBit::HighByte).unwrap_err().to_string();
        assert!(error(b"GIF89a....").contains("neither PNG, JPEG nor DICOM"));
        assert!(error(b"").contains("empty"));
        let noise: Vec<u8> = (0..900u32).map(|i| (i * i % 251) as u8).collect();
        let whole = png(&noise, 30, 30, ExtendedColorType::L8);
        for cut in 8..whole.len() - 16 {
            assert!(decode(&whole[..cut], SixteenBit::HighByte).is_err(), "{cut} bytes of {}", whole.len());
        }
        let mut jpeg = Vec::new();
        JpegEncoder::new(&mut jpeg).encode(&noise, 30, 30, ExtendedColorType::L8).unwrap();
        for file in [whole, jpeg] {
            for at in 2..file.len() {
                let mut bent = file.clone();
                bent[at] ^= 0x55;
                let _ = decode(&bent, SixteenBit::HighByte); // an error or a picture, never a panic
            }
        }
    }
}
