//! DICOM files as pictures: one frame of whole numbers, shown as the standard says a viewer shows it.
//!
//! The file is parsed by dicom-rs ([`dataset`]), its pixels are decoded by codecs written in Rust ([`codec`]), and the levels go
//! through the pipeline of PS3.3 section C.11 and the rules of C.7.6.3.1 ([`display`]). What cannot be shown so is refused by name.

mod codec;
mod dataset;
mod display;
mod extended;
mod rle;
#[cfg(test)]
mod tests;
mod write;

use dicom_core::Tag;
use dicom_dictionary_std::tags;

use self::dataset::DataSet;
use super::Picture;
use super::decode::{check_size, damaged};
use crate::error::{Error, Result};

pub(super) use self::dataset::recognise;
pub use self::write::write_dicom;

/// How the samples of the one frame are laid out (PS3.3 section C.7.6.3).
#[derive(Clone, Debug)]
struct Frame {
    rows: usize,
    columns: usize,
    /// 1 or 3.
    samples: usize,
    photometric: Photometric,
    /// 8, 16 or 32.
    allocated: u32,
    /// 1 to `allocated`.
    stored: u32,
    /// Position of the most significant of the stored bits, from 0.
    high: u32,
    signed: bool,
    /// Colours one after the other, not pixel by pixel.
    planar: bool,
}

/// What the samples mean (PS3.3 section C.7.6.3.1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Photometric {
    /// The lowest level is white.
    Monochrome1,
    /// The lowest level is black.
    Monochrome2,
    /// Red, green and blue, possibly as JPEG 2000's own transform of them.
    Rgb,
    /// Luminance and two colour differences, subsampled (`YBR_FULL_422`) or not.
    Ybr { subsampled: bool },
}

/// The picture of a DICOM file's bytes, and what a user should know of how it was made, one line each.
///
/// # Errors
/// If the file is damaged, declares too many pixels, or holds what is no single frame of integer levels or colours.
pub(super) fn decode(bytes: &[u8]) -> Result<(Picture, Vec<String>)> {
    let mut set = DataSet::read(bytes, false)?;
    let frame = Frame::of(&set)?;
    let pixels = set.pixels.take().ok_or_else(|| refused("holds no pixels", "give the file of an image"))?;
    let samples = codec::decode(&set.syntax, pixels, set.big_endian, &frame)?;
    let mut notes = Vec::new();
    let levels = match frame.samples {
        1 => display::grey(&samples, &frame, &set, &mut notes)?,
        _ => samples,
    };
    display::remarks(&frame, &set, &mut notes);
    Ok((Picture::new(frame.columns, frame.rows, frame.samples, levels), notes))
}

/// Width and height that the file declares.
///
/// # Errors
/// As [`decode`], as far as the header tells.
pub(super) fn size(bytes: &[u8]) -> Result<(usize, usize)> {
    let frame = Frame::of(&DataSet::read(bytes, true)?)?;
    Ok((frame.columns, frame.rows))
}

/// A DICOM file that is whole, but not for us.
fn refused(what: impl std::fmt::Display, remedy: &str) -> Error {
    Error::new(format!("a DICOM file that {what}; {remedy}"))
}

impl Frame {
    /// The layout that a file declares, if it is of a kind that can be shown.
    fn of(set: &DataSet) -> Result<Self> {
        let modality = set.text(tags::MODALITY).unwrap_or_default();
        let class = set.text(tags::SOP_CLASS_UID).unwrap_or_default();
        let export = "export the radiograph as a DICOM image of integers, PNG or JPEG";
        if set.float {
            return Err(refused("holds floating-point pixels (a parametric map), not levels of grey", export));
        }
        if modality == "SEG" || class.starts_with("1.2.840.10008.5.1.4.1.1.66.") {
            return Err(refused("holds a segmentation, not an image", "give the image that it was made on"));
        }
        if modality == "RTDOSE" || class == "1.2.840.10008.5.1.4.1.1.481.2" {
            return Err(refused(
                "holds a radiotherapy dose (RTDOSE), not an image",
                "give the image that it was made on",
            ));
        }
        let frames = set.numbers(tags::NUMBER_OF_FRAMES).first().copied().unwrap_or(1.0);
        if frames != 1.0 {
            let remedy = "extract the frame first, for example with dcmtk's `dcm2img --frame 1`";
            return Err(refused(format!("holds {frames} frames, and which one is meant is not known"), remedy));
        }
        let needed = |tag: Tag, name: &str| {
            let missing =
                || refused(format!("does not say its {name} {tag}"), "give the file of an image, or fetch it again");
            set.word(tag).ok_or_else(missing)
        };
        let (rows, columns) = (needed(tags::ROWS, "Rows")?, needed(tags::COLUMNS, "Columns")?);
        check_size(u32::from(columns), u32::from(rows))?;
        let allocated = u32::from(needed(tags::BITS_ALLOCATED, "Bits Allocated")?);
        let stored = set.word(tags::BITS_STORED).map_or(allocated, u32::from);
        let high = set.word(tags::HIGH_BIT).map_or(stored.saturating_sub(1), u32::from);
        if !matches!(allocated, 8 | 16 | 32) {
            return Err(refused(format!("allocates {allocated} bits to a sample, not 8, 16 or 32"), export));
        }
        if stored == 0 || stored > allocated || high >= allocated || high + 1 < stored {
            return Err(damaged(format!("{stored} bits up to bit {high} of {allocated} allocated")));
        }
        let samples = usize::from(set.word(tags::SAMPLES_PER_PIXEL).unwrap_or(1));
        let named = set.text(tags::PHOTOMETRIC_INTERPRETATION).unwrap_or_default();
        let photometric = match (named.as_str(), samples) {
            ("MONOCHROME1", 1) => Photometric::Monochrome1,
            ("MONOCHROME2", 1) => Photometric::Monochrome2,
            ("RGB" | "YBR_RCT" | "YBR_ICT", 3) => Photometric::Rgb,
            ("YBR_FULL", 3) => Photometric::Ybr { subsampled: false },
            ("YBR_FULL_422", 3) => Photometric::Ybr { subsampled: true },
            ("PALETTE COLOR", _) => {
                return Err(refused("holds colours of a palette (PALETTE COLOR), not grey", export));
            }
            _ => {
                let what = format!("holds {samples} samples per pixel of photometric interpretation {named:?}");
                return Err(refused(what, export));
            }
        };
        if samples == 3 && (allocated, stored) != (8, 8) {
            return Err(refused(format!("holds colours of {stored} bits, not 8"), export));
        }
        Ok(Self {
            rows: usize::from(rows),
            columns: usize::from(columns),
            samples,
            photometric,
            allocated,
            stored,
            high,
            signed: set.word(tags::PIXEL_REPRESENTATION) == Some(1),
            planar: set.word(tags::PLANAR_CONFIGURATION) == Some(1),
        })
    }

    /// Samples of the frame.
    fn len(&self) -> usize {
        self.rows * self.columns * self.samples
    }
}
