//! From the pixels as the file holds them to samples: the transfer syntaxes (PS3.5 section 8.2 and annex A.4).

use dicom_encoding::transfer_syntax::TransferSyntaxIndex;
use dicom_transfer_syntax_registry::TransferSyntaxRegistry;
use jpeg_decoder::{ColorTransform, PixelFormat, UnsupportedFeature};

use super::dataset::Pixels;
use super::{Frame, Photometric, damaged, extended, refused, rle};
use crate::error::{Error, Result};
use crate::image::decode::jpeg_is_whole;

/// The samples of the frame: of grey, numbers of `allocated` bits in little-endian order, their unused bits cleared or filled
/// with the sign; of colour, red, green and blue by pixel.
///
/// # Errors
/// If no codec here reads the transfer syntax, or the pixels are damaged, cut short or of another size than declared.
pub(super) fn decode(syntax: &str, pixels: Pixels, big_endian: bool, frame: &Frame) -> Result<Vec<u8>> {
    let mut samples = match (syntax, pixels) {
        (_, Pixels::Native { bytes, words }) => native(bytes, words, big_endian, frame),
        ("1.2.840.10008.1.2.5", Pixels::Compressed(data)) => run_lengths(&data, frame),
        (
            "1.2.840.10008.1.2.4.50" | "1.2.840.10008.1.2.4.51" | "1.2.840.10008.1.2.4.57" | "1.2.840.10008.1.2.4.70",
            Pixels::Compressed(data),
        ) => return jpeg(&data, frame).map_err(|e| of(e, syntax)),
        ("1.2.840.10008.1.2.4.80" | "1.2.840.10008.1.2.4.81", Pixels::Compressed(data)) => jpeg_ls(&data, frame),
        ("1.2.840.10008.1.2.4.90" | "1.2.840.10008.1.2.4.91", Pixels::Compressed(data)) => jpeg_2000(&data, frame),
        (_, Pixels::Compressed(_)) => {
            let what = format!("is compressed as {}, which cannot be read here", name(syntax));
            return Err(refused(what, REWRITE));
        }
    }
    .map_err(|e| of(e, syntax))?;
    if let Photometric::Ybr { .. } = frame.photometric {
        samples.as_chunks_mut().0.iter_mut().for_each(to_rgb);
    }
    Ok(samples)
}

/// What to do about a compression that is not read here.
pub(super) const REWRITE: &str =
    "write it without compression first, for example with dcmtk's `dcmdjpeg` or gdcm's `gdcmconv --raw`";

/// A transfer syntax by name and UID.
pub(super) fn name(uid: &str) -> String {
    match TransferSyntaxRegistry.get(uid) {
        Some(syntax) => format!("{} ({uid})", syntax.name()),
        None => format!("transfer syntax {uid:?}"),
    }
}

/// The same error, naming the transfer syntax.
fn of(error: Error, syntax: &str) -> Error {
    Error::new(format!("{error} [{}]", name(syntax)))
}

/// Samples as numbers of `allocated` bits in little-endian order, with all bits above the lowest `bits` cleared or, of signed
/// samples, filled with the sign.
fn store(samples: impl Iterator<Item = u32>, bits: u32, frame: &Frame) -> Vec<u8> {
    let unused = 32 - bits.clamp(1, 32);
    let extend = |x: u32| if frame.signed { ((x << unused) as i32 >> unused) as u32 } else { x << unused >> unused };
    match frame.allocated {
        8 => samples.map(|x| extend(x) as u8).collect(),
        16 => samples.flat_map(|x| (extend(x) as u16).to_le_bytes()).collect(),
        _ => samples.flat_map(|x| extend(x).to_le_bytes()).collect(),
    }
}

/// Samples that are not compressed.
fn native(mut bytes: Vec<u8>, words: bool, big_endian: bool, frame: &Frame) -> Result<Vec<u8>> {
    if frame.photometric == (Photometric::Ybr { subsampled: true }) {
        let what = "holds uncompressed colours of half the resolution (YBR_FULL_422)";
        return Err(refused(what, "convert it to RGB or grey first"));
    }
    let expected = frame.len() * (frame.allocated / 8) as usize;
    if bytes.len() < expected {
        return Err(damaged(format!("cut short: {} bytes of pixels, not {expected}", bytes.len())));
    }
    if words && big_endian && frame.allocated == 8 {
        bytes.as_chunks_mut::<2>().0.iter_mut().for_each(|pair| pair.reverse());
    }
    bytes.truncate(expected);
    if frame.samples == 3 {
        return Ok(if frame.planar { interleaved(&bytes) } else { bytes });
    }
    let shift = frame.high + 1 - frame.stored;
    let bits = frame.stored;
    Ok(match (frame.allocated, big_endian) {
        (8, _) => store(bytes.iter().map(|&x| u32::from(x) >> shift), bits, frame),
        (16, false) => {
            store(bytes.as_chunks().0.iter().map(|&x| u32::from(u16::from_le_bytes(x)) >> shift), bits, frame)
        }
        (16, true) => {
            store(bytes.as_chunks().0.iter().map(|&x| u32::from(u16::from_be_bytes(x)) >> shift), bits, frame)
        }
        (_, false) => store(bytes.as_chunks().0.iter().map(|&x| u32::from_le_bytes(x) >> shift), bits, frame),
        (_, true) => store(bytes.as_chunks().0.iter().map(|&x| u32::from_be_bytes(x) >> shift), bits, frame),
    })
}

/// Pixels of three colours whose planes stand one after the other.
fn interleaved(planes: &[u8]) -> Vec<u8> {
    let pixels = planes.len() / 3;
    (0..pixels).flat_map(|i| [planes[i], planes[pixels + i], planes[2 * pixels + i]]).collect()
}

fn run_lengths(data: &[u8], frame: &Frame) -> Result<Vec<u8>> {
    let wide = (frame.allocated / 8) as usize;
    let planes = rle::planes(data, wide * frame.samples, frame.rows * frame.columns)?;
    if frame.samples == 3 {
        return Ok(interleaved(&planes.concat()));
    }
    let shift = frame.high + 1 - frame.stored;
    let sample = |i: usize| planes.iter().fold(0, |sum, plane| sum << 8 | u32::from(plane[i])) >> shift;
    Ok(store((0..frame.len()).map(sample), frame.stored, frame))
}

/// JPEG of 8 bits (processes 1 and 2) or 12 (process 4, grey), and lossless JPEG (process 14).
fn jpeg(data: &[u8], frame: &Frame) -> Result<Vec<u8>> {
    let refuse = |e: jpeg_decoder::Error| match e {
        jpeg_decoder::Error::Unsupported(feature) => {
            refused(format!("is compressed in a way that cannot be read here: {feature:?}"), REWRITE)
        }
        other => damaged(other),
    };
    let mut decoder = jpeg_decoder::Decoder::new(data);
    match decoder.read_info() {
        Err(jpeg_decoder::Error::Unsupported(UnsupportedFeature::SamplePrecision(12))) if frame.samples == 1 => {
            let levels = extended::decode(data, (frame.columns, frame.rows))?;
            return Ok(store(levels.iter().map(|&x| u32::from(x)), frame.stored.min(12), frame));
        }
        other => other.map_err(refuse)?,
    }
    let info = decoder.info().ok_or_else(|| damaged("no JPEG frame"))?;
    let (channels, wide) = match info.pixel_format {
        PixelFormat::L8 => (1, 1),
        PixelFormat::L16 => (1, 2),
        PixelFormat::RGB24 => (3, 1),
        PixelFormat::CMYK32 => (4, 1),
    };
    check(frame, (usize::from(info.width), usize::from(info.height), channels))?;
    if !jpeg_is_whole(data) {
        return Err(damaged("cut short: its JPEG part has no end marker"));
    }
    if frame.samples == 3 {
        let rgb = frame.photometric == Photometric::Rgb;
        decoder.set_color_transform(if rgb { ColorTransform::RGB } else { ColorTransform::YCbCr });
    }
    decoder.set_max_decoding_buffer_size(frame.len() * wide);
    let samples = decoder.decode().map_err(refuse)?;
    if samples.len() != frame.len() * wide {
        return Err(damaged(format!("{} samples, not {}", samples.len() / wide, frame.len())));
    }
    if frame.samples == 3 {
        return Ok(samples);
    }
    Ok(match wide {
        1 => store(samples.iter().map(|&x| u32::from(x)), frame.stored.min(8), frame),
        _ => {
            let words = samples.as_chunks().0.iter().map(|&x| u32::from(u16::from_ne_bytes(x)));
            store(words, frame.stored.min(16), frame)
        }
    })
}

/// JPEG-LS, lossless and nearly so, of one component.
fn jpeg_ls(data: &[u8], frame: &Frame) -> Result<Vec<u8>> {
    if frame.samples != 1 {
        return Err(refused("holds colours in JPEG-LS", REWRITE));
    }
    // The start of frame (T.87 section C.2.2): length, precision, lines, samples per line, components.
    let start = data.windows(2).position(|pair| pair == [0xFF, 0xF7]).ok_or_else(|| damaged("no JPEG-LS frame"))?;
    let header = data.get(start + 4..start + 10).ok_or_else(|| damaged("a JPEG-LS header cut short"))?;
    let (rows, columns) = (u16::from_be_bytes([header[1], header[2]]), u16::from_be_bytes([header[3], header[4]]));
    check(frame, (usize::from(columns), usize::from(rows), usize::from(header[5])))?;
    let (samples, ..) = jpegls::decode(data, u32::from(columns), u32::from(rows)).map_err(damaged)?;
    if samples.len() != frame.len() {
        return Err(damaged(format!("{} samples, not {}", samples.len(), frame.len())));
    }
    Ok(store(samples.iter().map(|&x| u32::from(x)), frame.stored.min(u32::from(header[0])), frame))
}

/// JPEG 2000 Part 1, reversible or not.
fn jpeg_2000(data: &[u8], frame: &Frame) -> Result<Vec<u8>> {
    // The image and tile size marker (T.800 section A.5.1) says of each component how wide it is and whether it is signed,
    // which the decoder does not tell.
    let start = data.windows(4).position(|four| four == [0xFF, 0x4F, 0xFF, 0x51]);
    let data = start.and_then(|at| data.get(at..)).ok_or_else(|| damaged("no JPEG 2000 codestream"))?;
    let size = &data[4..];
    let number = |at: usize| size.get(at..at + 4).and_then(|b| b.first_chunk()).map_or(0, |&b| u32::from_be_bytes(b));
    let (columns, rows) = (number(4).saturating_sub(number(12)), number(8).saturating_sub(number(16)));
    let components = usize::from(size.get(36..38).map_or(0, |b| u16::from_be_bytes([b[0], b[1]])));
    check(frame, (columns as usize, rows as usize, components))?;
    // The decoder holds something for every tile, which is a lot for tiles of a few pixels.
    let tiles = u64::from(number(4).div_ceil(number(20).max(1))) * u64::from(number(8).div_ceil(number(24).max(1)));
    if tiles > 16 + (frame.rows * frame.columns / 1024) as u64 {
        return Err(damaged(format!("{tiles} tiles in {columns} x {rows} pixels")));
    }
    let depths: Vec<u8> = size.iter().skip(38).step_by(3).take(components).copied().collect();
    let settings = hayro_jpeg2000::DecodeSettings { resolve_palette_indices: false, ..Default::default() };
    let image = hayro_jpeg2000::Image::new(data, &settings).map_err(damaged)?;
    let mut context = hayro_jpeg2000::DecoderContext::default();
    let decoded = image.decode(&mut context).map_err(damaged)?;
    let components = decoded.components();
    if components.len() != frame.samples || components.iter().any(|c| c.samples().len() != frame.rows * frame.columns) {
        return Err(damaged("JPEG 2000 components of other sizes than declared"));
    }
    let precision = depths.first().map_or(8, |d| u32::from(d & 0x7F) + 1).min(24);
    let signed = depths.first().is_some_and(|d| d & 0x80 != 0);
    let top = ((1u64 << precision) - 1) as f32;
    // The decoder shifts signed samples up by half their range as it must shift unsigned ones.
    let sample = |x: f32| {
        let level = x.round().clamp(0.0, top) as u32;
        if signed { level.wrapping_sub(1 << (precision - 1)) } else { level }
    };
    if frame.samples == 3 {
        let pixels = (0..frame.rows * frame.columns).flat_map(|i| components.iter().map(move |c| c.samples()[i]));
        return Ok(pixels.map(|x| sample(x) as u8).collect());
    }
    let bits = if signed { precision } else { precision.min(frame.stored) };
    Ok(store(components[0].samples().iter().map(|&x| sample(x)), bits, frame))
}

/// Whether the compressed pixels are of the size that the data set declares, before memory is asked for.
fn check(frame: &Frame, (columns, rows, components): (usize, usize, usize)) -> Result<()> {
    if (columns, rows, components) == (frame.columns, frame.rows, frame.samples) {
        return Ok(());
    }
    Err(damaged(format!(
        "compressed pixels of {columns} x {rows} x {components}, not {} x {} x {} as declared",
        frame.columns, frame.rows, frame.samples
    )))
}

/// YBR_FULL to RGB (PS3.3 section C.7.6.3.1.2, the inverse of its equations).
fn to_rgb(pixel: &mut [u8; 3]) {
    let [y, b, r] = pixel.map(f64::from);
    let (b, r) = (b - 128.0, r - 128.0);
    let level = |x: f64| (x + 0.5).clamp(0.0, 255.0) as u8;
    *pixel = [level(y + 1.402 * r), level(y - 0.344_136 * b - 0.714_136 * r), level(y + 1.772 * b)];
}
