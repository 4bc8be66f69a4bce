//! From stored values to what a viewer shows: PS3.3 section C.11.1 (modality), C.11.2 (VOI) and C.7.6.3.1.2 (photometric
//! interpretation), with 8-bit output.

use dicom_core::Tag;
use dicom_dictionary_std::tags;

use super::dataset::DataSet;
use super::{Frame, Photometric, damaged};
use crate::error::Result;

/// Stored values become modality values (PS3.3 section C.11.1).
enum Modality {
    /// `value * slope + intercept` (C.11.1.1.2).
    Rescale { slope: f64, intercept: f64 },
    /// A table (C.11.1.1.1).
    Table(Table),
}

/// Modality values become levels from 0 to 1 (PS3.3 section C.11.2).
enum Voi {
    /// A table (C.11.2.1.1).
    Table(Table),
    /// A window (C.11.2.1.2.1, and C.11.2.1.3 for its functions).
    Window { centre: f64, width: f64, function: Function },
    /// No window: the range of the values.
    Range { low: f64, high: f64 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Function {
    Linear,
    LinearExact,
    Sigmoid,
}

/// A lookup table (the description of LUT Descriptor in PS3.3 sections C.11.1.1 and C.11.2.1.1).
struct Table {
    /// The value that the first entry stands for; lower values get it as well.
    first: f64,
    entries: Vec<u16>,
    /// The largest entry that the declared bits allow.
    top: f64,
}

impl Table {
    /// The table of a sequence's first item, if there is one.
    fn of(set: &DataSet, sequence: Tag) -> Result<Option<Self>> {
        let Some(descriptor) = set.words(sequence, tags::LUT_DESCRIPTOR) else { return Ok(None) };
        let &[count, first, bits] = descriptor.as_slice() else {
            return Err(damaged("a lookup table's descriptor of other than three numbers"));
        };
        let count = if count == 0 { 1 << 16 } else { usize::from(count) };
        // 8-bit entries may stand in single bytes.
        let bytes = set.raw(sequence, tags::LUT_DATA).unwrap_or_default();
        let mut entries: Vec<u16> = match bytes.len() {
            length if bits <= 8 && length < 2 * count => bytes.iter().map(|&x| u16::from(x)).collect(),
            _ => set.words(sequence, tags::LUT_DATA).unwrap_or_default(),
        };
        if entries.len() < count || !(1..=16).contains(&bits) {
            return Err(damaged(format!("a lookup table of {} entries of {bits} bits, not {count}", entries.len())));
        }
        entries.truncate(count);
        let signed = set.is_signed(sequence, tags::LUT_DESCRIPTOR);
        let first = if signed { f64::from(first as i16) } else { f64::from(first) };
        Ok(Some(Self { first, entries, top: f64::from((1u32 << bits) - 1) }))
    }

    fn look_up(&self, value: f64) -> f64 {
        let last = self.entries.len() - 1;
        f64::from(self.entries[((value - self.first).round().max(0.0) as usize).min(last)])
    }
}

impl Modality {
    fn of(set: &DataSet) -> Result<Self> {
        if let Some(table) = Table::of(set, tags::MODALITY_LUT_SEQUENCE)? {
            return Ok(Self::Table(table));
        }
        let number = |tag: Tag, default: f64| set.numbers(tag).first().copied().unwrap_or(default);
        let (slope, intercept) = (number(tags::RESCALE_SLOPE, 1.0), number(tags::RESCALE_INTERCEPT, 0.0));
        if !slope.is_finite() || !intercept.is_finite() {
            return Err(damaged("a rescale slope or intercept that is no number"));
        }
        Ok(Self::Rescale { slope, intercept })
    }

    fn apply(&self, value: f64) -> f64 {
        match self {
            Self::Rescale { slope, intercept } => value * slope + intercept,
            Self::Table(table) => table.look_up(value),
        }
    }
}

impl Voi {
    /// The file's own table or first window; nothing if it has none.
    fn of(set: &DataSet, notes: &mut Vec<String>) -> Result<Option<Self>> {
        let (centres, widths) = (set.numbers(tags::WINDOW_CENTER), set.numbers(tags::WINDOW_WIDTH));
        let windows = centres.len().min(widths.len());
        if let Some(table) = Table::of(set, tags::VOILUT_SEQUENCE)? {
            let instead = if windows > 0 { ", not by its window" } else { "" };
            notes.push(format!("shown by the file's lookup table (VOI LUT){instead}"));
            return Ok(Some(Self::Table(table)));
        }
        let (Some(&centre), Some(&width)) = (centres.first(), widths.first()) else { return Ok(None) };
        let function = match set.text(tags::VOILUT_FUNCTION).as_deref() {
            None | Some("LINEAR") => Function::Linear,
            Some("LINEAR_EXACT") => Function::LinearExact,
            Some("SIGMOID") => Function::Sigmoid,
            Some(other) => {
                notes.push(format!("its window's function {other:?} is unknown: taken as LINEAR"));
                Function::Linear
            }
        };
        let least = if function == Function::Linear { 1.0 } else { f64::MIN_POSITIVE };
        if !centre.is_finite() || !width.is_finite() || width < least {
            notes.push(format!("its window of centre {centre} and width {width} is no window: ignored"));
            return Ok(None);
        }
        if windows > 1 {
            notes.push(format!("{windows} windows: shown by the first, centre {centre}, width {width}"));
        }
        Ok(Some(Self::Window { centre, width, function }))
    }

    /// A modality value as a level from 0 to 1.
    fn apply(&self, x: f64) -> f64 {
        match *self {
            Self::Table(ref table) => table.look_up(x) / table.top,
            Self::Window { centre, width, function: Function::Linear } => {
                let (centre, width) = (centre - 0.5, width - 1.0);
                match x {
                    _ if x <= centre - width / 2.0 => 0.0,
                    _ if x > centre + width / 2.0 => 1.0,
                    _ => (x - centre) / width + 0.5,
                }
            }
            Self::Window { centre, width, function: Function::LinearExact } => (x - centre) / width + 0.5,
            Self::Window { centre, width, function: Function::Sigmoid } => {
                1.0 / (1.0 + libm::exp(-4.0 * (x - centre) / width))
            }
            Self::Range { low, high } if high > low => (x - low) / (high - low),
            Self::Range { .. } => 0.0,
        }
    }
}

/// The 8-bit levels of grey samples, black at 0.
pub(super) fn grey(samples: &[u8], frame: &Frame, set: &DataSet, notes: &mut Vec<String>) -> Result<Vec<u8>> {
    match (frame.allocated, frame.signed) {
        (8, false) => show(samples, |[x]: [u8; 1]| i64::from(x), frame, set, notes),
        (8, true) => show(samples, |[x]: [u8; 1]| i64::from(x as i8), frame, set, notes),
        (16, false) => show(samples, |x| i64::from(u16::from_le_bytes(x)), frame, set, notes),
        (16, true) => show(samples, |x| i64::from(i16::from_le_bytes(x)), frame, set, notes),
        (_, false) => show(samples, |x| i64::from(u32::from_le_bytes(x)), frame, set, notes),
        (_, true) => show(samples, |x| i64::from(i32::from_le_bytes(x)), frame, set, notes),
    }
}

fn show<const N: usize>(
    samples: &[u8],
    value: impl Fn([u8; N]) -> i64,
    frame: &Frame,
    set: &DataSet,
    notes: &mut Vec<String>,
) -> Result<Vec<u8>> {
    let values = || samples.as_chunks::<N>().0.iter().map(|&bytes| value(bytes));
    let modality = Modality::of(set)?;
    let voi = match Voi::of(set, notes)? {
        Some(voi) => voi,
        None => {
            let padding = padding(frame, set);
            let own = values().filter(|x| !padding.as_ref().is_some_and(|p| p.contains(x)));
            let (low, high) = own.map(|x| modality.apply(x as f64)).fold((f64::MAX, f64::MIN), bounds);
            notes.push(format!("no window in the file: levels {low} to {high} of its pixels become black to white"));
            Voi::Range { low, high }
        }
    };
    let inverted = frame.photometric == Photometric::Monochrome1 || shape(set).as_deref() == Some("INVERSE");
    let level = |x: i64| {
        let level = (255.0 * voi.apply(modality.apply(x as f64)) + 0.5).clamp(0.0, 255.0) as u8;
        if inverted { 255 - level } else { level }
    };
    // Few values repeat often: a table of them all is faster unless they spread too far.
    let (low, high) = values().fold((i64::MAX, i64::MIN), |(low, high), x| (low.min(x), high.max(x)));
    if high - low >= 1 << 16 {
        return Ok(values().map(level).collect());
    }
    let levels: Vec<u8> = (low..=high).map(level).collect();
    Ok(values().map(|x| levels[(x - low) as usize]).collect())
}

fn bounds((low, high): (f64, f64), x: f64) -> (f64, f64) {
    (low.min(x), high.max(x))
}

/// Stored values that fill up the picture beyond what was exposed (PS3.3 section C.7.5.1.1.2).
fn padding(frame: &Frame, set: &DataSet) -> Option<std::ops::RangeInclusive<i64>> {
    let number = |word: u16| if frame.signed { i64::from(word as i16) } else { i64::from(word) };
    let value = number(set.word(tags::PIXEL_PADDING_VALUE)?);
    let limit = set.word(tags::PIXEL_PADDING_RANGE_LIMIT).map_or(value, number);
    Some(value.min(limit)..=value.max(limit))
}

fn shape(set: &DataSet) -> Option<String> {
    set.text(tags::PRESENTATION_LUT_SHAPE)
}

/// What a user should know of a file, beyond its window.
pub(super) fn remarks(frame: &Frame, set: &DataSet, notes: &mut Vec<String>) {
    match (frame.photometric, shape(set).as_deref()) {
        (Photometric::Monochrome1, Some("IDENTITY")) => {
            notes.push("MONOCHROME1, but with presentation shape IDENTITY: inverted all the same".to_owned());
        }
        (Photometric::Monochrome1, _) => notes.push("MONOCHROME1: inverted, so that black is least".to_owned()),
        (Photometric::Monochrome2, Some("INVERSE")) => {
            notes.push("inverted: its presentation shape is INVERSE".to_owned())
        }
        _ => {}
    }
    if set.overlays {
        notes.push("its overlays are not drawn".to_owned());
    }
    // Rows and columns apart, in this order; of an aspect ratio, the height and the width of a pixel (C.7.6.3.1.7).
    let sides = [tags::PIXEL_ASPECT_RATIO, tags::IMAGER_PIXEL_SPACING, tags::PIXEL_SPACING].map(|tag| set.numbers(tag));
    if let Some([height, width]) = sides.iter().find_map(|s| s.first_chunk())
        && *height > 0.0
        && *width > 0.0
        && (height / width - 1.0).abs() > 0.01
    {
        notes.push(format!("its pixels are {height} high and {width} wide; they are taken as square"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_as_the_standard_tabulates_them() {
        let window = |centre, width, function| Voi::Window { centre, width, function };
        // The examples after the equations of C.11.2.1.2.1: c = 2048, w = 4096 spans 0 to 4095; c = 2048, w = 1 is a threshold.
        let linear = window(2048.0, 4096.0, Function::Linear);
        assert_eq!((linear.apply(0.0), linear.apply(4095.0)), (0.0, 1.0));
        let threshold = window(2048.0, 1.0, Function::Linear);
        assert_eq!((threshold.apply(2047.0), threshold.apply(2048.0)), (0.0, 1.0));
        let narrow = window(0.0, 100.0, Function::Linear);
        assert_eq!((narrow.apply(-50.0), narrow.apply(-0.5), narrow.apply(49.0)), (0.0, 0.5, 1.0));
        let exact = window(127.5, 255.0, Function::LinearExact);
        assert_eq!((exact.apply(0.0), exact.apply(127.5), exact.apply(255.0)), (0.0, 0.5, 1.0));
        let sigmoid = window(10.0, 4.0, Function::Sigmoid);
        assert_eq!(sigmoid.apply(10.0), 0.5);
        assert!((sigmoid.apply(11.0) - 1.0 / (1.0 + (-1f64).exp())).abs() < 1e-15);
    }
}
