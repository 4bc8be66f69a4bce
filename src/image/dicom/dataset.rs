//! The few elements of a DICOM data set that make a picture; everything else is passed over without being held.

use std::collections::BTreeMap;
use std::io::{Cursor, Read};

use dicom_core::{Tag, VR};
use dicom_dictionary_std::tags;
use dicom_encoding::transfer_syntax::TransferSyntaxIndex;
use dicom_parser::dataset::LazyDataToken;
use dicom_parser::dataset::lazy_read::LazyDataSetReader;
use dicom_parser::stateful::decode::StatefulDecode;
use dicom_transfer_syntax_registry::{TransferSyntaxRegistry, entries};

use super::damaged;
use crate::error::Result;
use crate::image::decode::check_size;

/// Bytes of a deflated data set within which the size of its pixels is declared, and which it may inflate to beside them.
const HEAD: u64 = 4 << 20;
/// Most bytes of one element other than the pixels (a table of 65536 16-bit entries is the largest in use).
const MAX_VALUE: u32 = 1 << 18;
/// The preamble and the letters that follow it (PS3.10 section 7.1).
const PREAMBLE: usize = 128;
const MAGIC: &[u8] = b"DICM";

/// The sequence that an element of interest stands in; the main data set is [`MAIN`].
pub(super) const MAIN: Tag = Tag(0, 0);

/// The pixels as the file holds them.
pub(super) enum Pixels {
    /// One value of samples, not compressed; `words` if it is one of 16-bit words (VR OW) whatever the samples are.
    Native { bytes: Vec<u8>, words: bool },
    /// All fragments of a compressed frame, in one.
    Compressed(Vec<u8>),
}

/// Elements of a file by the sequence they stand in, as raw bytes.
pub(super) struct DataSet {
    /// UID of the transfer syntax.
    pub syntax: String,
    /// Whether numbers are big-endian.
    pub big_endian: bool,
    /// By sequence and tag.
    elements: BTreeMap<(Tag, Tag), (VR, Vec<u8>)>,
    /// `None` if the data set ends without any, or if only the header was asked for.
    pub pixels: Option<Pixels>,
    /// Whether pixels of floating-point numbers were met.
    pub float: bool,
    /// Whether graphics to lay over the picture were met.
    pub overlays: bool,
}

/// Sequences whose first item is read, wherever they stand.
const SEQUENCES: [Tag; 4] = [
    tags::MODALITY_LUT_SEQUENCE,
    tags::VOILUT_SEQUENCE,
    tags::PIXEL_VALUE_TRANSFORMATION_SEQUENCE,
    tags::FRAME_VOILUT_SEQUENCE,
];

/// Elements read from the main data set and from [`SEQUENCES`].
const WANTED: [Tag; 25] = [
    tags::SOP_CLASS_UID,
    tags::MODALITY,
    tags::SAMPLES_PER_PIXEL,
    tags::PHOTOMETRIC_INTERPRETATION,
    tags::PLANAR_CONFIGURATION,
    tags::NUMBER_OF_FRAMES,
    tags::ROWS,
    tags::COLUMNS,
    tags::PIXEL_SPACING,
    tags::IMAGER_PIXEL_SPACING,
    tags::PIXEL_ASPECT_RATIO,
    tags::BITS_ALLOCATED,
    tags::BITS_STORED,
    tags::HIGH_BIT,
    tags::PIXEL_REPRESENTATION,
    tags::PIXEL_PADDING_VALUE,
    tags::PIXEL_PADDING_RANGE_LIMIT,
    tags::WINDOW_CENTER,
    tags::WINDOW_WIDTH,
    tags::VOILUT_FUNCTION,
    tags::RESCALE_INTERCEPT,
    tags::RESCALE_SLOPE,
    tags::LUT_DESCRIPTOR,
    tags::LUT_DATA,
    tags::PRESENTATION_LUT_SHAPE,
];

/// Whether these are the first bytes of a DICOM file: by its preamble, or, where that is missing, by a first element of one of
/// the groups that a file begins with.
pub(in crate::image) fn recognise(bytes: &[u8]) -> bool {
    if bytes.get(PREAMBLE..PREAMBLE + MAGIC.len()) == Some(MAGIC) {
        return true;
    }
    let Some(&[g0, g1, e0, e1, l0, l1, l2, l3]) = bytes.first_chunk() else { return false };
    let (group, element) = (u16::from_le_bytes([g0, g1]), u16::from_le_bytes([e0, e1]));
    let implicit = u32::from_le_bytes([l0, l1, l2, l3]) <= 64;
    matches!((group, element), (0x0002, 0..=0x0102) | (0x0008, 0..=0x0018))
        && (VR::from_binary([l0, l1]).is_some() || implicit)
}

impl DataSet {
    /// Reads a file's bytes as far as its pixels; leaves those out if `header` is all that is asked for.
    pub(super) fn read(bytes: &[u8], header: bool) -> Result<Self> {
        let start = match bytes.get(PREAMBLE..PREAMBLE + MAGIC.len()) {
            Some(magic) if magic == MAGIC => PREAMBLE + MAGIC.len(),
            _ => 0,
        };
        let (syntax, meta) = meta(&bytes[start..])?;
        let body = &bytes[start + meta..];
        let syntax = match syntax {
            Some(syntax) => syntax,
            None if body.get(4..6).is_some_and(|vr| VR::from_binary([vr[0], vr[1]]).is_some()) => {
                entries::EXPLICIT_VR_LITTLE_ENDIAN.uid().to_owned()
            }
            None => entries::IMPLICIT_VR_LITTLE_ENDIAN.uid().to_owned(),
        };
        let mut set = Self {
            big_endian: syntax == entries::EXPLICIT_VR_BIG_ENDIAN.uid(),
            syntax,
            elements: BTreeMap::new(),
            pixels: None,
            float: false,
            overlays: false,
        };
        if set.syntax == entries::DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN.uid() {
            // What it may inflate to is known once it has said how large its pixels are.
            let head = inflate(body, HEAD)?;
            let parsed = set.parse(&head, true);
            if header || (head.len() as u64) < HEAD {
                parsed?;
            }
            if !header {
                let word = |tag: Tag| set.word(tag).map_or(1, u32::from);
                let (columns, rows) = (word(tags::COLUMNS), word(tags::ROWS));
                check_size(columns, rows)?;
                let bytes = u64::from(word(tags::SAMPLES_PER_PIXEL).min(3) * word(tags::BITS_ALLOCATED).min(32) / 8);
                set.parse(&inflate(body, HEAD + u64::from(columns) * u64::from(rows) * bytes)?, false)?;
            }
        } else {
            set.parse(body, header)?;
        }
        Ok(set)
    }

    fn parse(&mut self, bytes: &[u8], header_only: bool) -> Result<()> {
        let uid = match self.syntax.as_str() {
            uid if uid == entries::IMPLICIT_VR_LITTLE_ENDIAN.uid() || self.big_endian => uid,
            _ => entries::EXPLICIT_VR_LITTLE_ENDIAN.uid(),
        };
        let mut reader = reader(bytes, uid)?;
        // Sequences around the present place, each with the number of its items so far.
        let mut around: Vec<(Tag, usize)> = Vec::new();
        let mut fragments: Option<(usize, Vec<u8>)> = None;
        while let Some(token) = reader.advance() {
            match token.map_err(damaged)? {
                LazyDataToken::SequenceStart { tag, .. } => around.push((tag, 0)),
                LazyDataToken::SequenceEnd if fragments.is_some() => {
                    self.pixels = fragments.map(|(_, data)| Pixels::Compressed(data));
                    return Ok(());
                }
                LazyDataToken::SequenceEnd => drop(around.pop()),
                LazyDataToken::ItemStart { .. } => match (&mut fragments, around.last_mut()) {
                    (Some((count, _)), _) | (None, Some((_, count))) => *count += 1,
                    (None, None) => {}
                },
                LazyDataToken::PixelSequenceStart if header_only => return Ok(()),
                LazyDataToken::PixelSequenceStart if around.is_empty() => fragments = Some((0, Vec::new())),
                // The first item is the table of offsets; a single frame needs none.
                token @ LazyDataToken::LazyItemValue { .. } => match &mut fragments {
                    Some((count, data)) if *count > 1 => token.read_value_into(data).map_err(damaged)?,
                    _ => token.skip().map_err(damaged)?,
                },
                LazyDataToken::LazyValue { header, decoder } => {
                    let (tag, vr, length) = (header.tag, header.vr, header.len.0);
                    let place = match around.last() {
                        None => Some(MAIN),
                        Some(&(sequence, 1)) if SEQUENCES.contains(&sequence) => Some(sequence),
                        Some(_) => None,
                    };
                    let token = LazyDataToken::LazyValue { header, decoder };
                    match (place, tag) {
                        (Some(MAIN), tags::PIXEL_DATA) if header_only => return Ok(()),
                        (Some(MAIN), tags::PIXEL_DATA) => {
                            let mut value = Vec::new();
                            token.read_value_into(&mut value).map_err(damaged)?;
                            if value.len() < length as usize {
                                return Err(damaged(format!("cut short: {} of {length} bytes of pixels", value.len())));
                            }
                            self.pixels = Some(Pixels::Native { bytes: value, words: vr == VR::OW });
                            return Ok(());
                        }
                        (Some(place), _) if WANTED.contains(&tag) && length <= MAX_VALUE => {
                            let mut value = Vec::new();
                            token.read_value_into(&mut value).map_err(damaged)?;
                            self.elements.entry((place, tag)).or_insert((vr, value));
                        }
                        (place, _) => {
                            let main = place == Some(MAIN);
                            self.float |= main && matches!(tag, tags::FLOAT_PIXEL_DATA | tags::DOUBLE_FLOAT_PIXEL_DATA);
                            self.overlays |= main && tag.group() & 0xFF01 == 0x6000 && tag.element() == 0x3000;
                            token.skip().map_err(damaged)?;
                        }
                    }
                }
                _ => {}
            }
        }
        match fragments {
            Some(_) => Err(damaged("cut short within its pixels")),
            None => Ok(()),
        }
    }

    /// An element of the main data set, or of a functional group of its single frame.
    fn find(&self, tag: Tag) -> Option<&[u8]> {
        let places = [MAIN, tags::PIXEL_VALUE_TRANSFORMATION_SEQUENCE, tags::FRAME_VOILUT_SEQUENCE];
        places.iter().find_map(|&place| self.raw(place, tag))
    }

    /// Text without its padding; nothing if the element is absent or empty.
    pub(super) fn text(&self, tag: Tag) -> Option<String> {
        Some(trimmed(self.find(tag)?)).filter(|text| !text.is_empty())
    }

    /// Numbers written as text (VR DS or IS); what is no number is NaN.
    pub(super) fn numbers(&self, tag: Tag) -> Vec<f64> {
        let number = |part: &str| part.trim().parse().unwrap_or(f64::NAN);
        self.text(tag).map_or_else(Vec::new, |text| text.split('\\').map(number).collect())
    }

    /// Binary 16-bit numbers (VR US, SS or OW) of an element.
    pub(super) fn words(&self, sequence: Tag, tag: Tag) -> Option<Vec<u16>> {
        let word = if self.big_endian { u16::from_be_bytes } else { u16::from_le_bytes };
        Some(self.raw(sequence, tag)?.as_chunks().0.iter().map(|&pair| word(pair)).collect())
    }

    /// The first 16-bit number of an element of the main data set.
    pub(super) fn word(&self, tag: Tag) -> Option<u16> {
        self.words(MAIN, tag)?.first().copied()
    }

    /// An element as the file holds it.
    pub(super) fn raw(&self, sequence: Tag, tag: Tag) -> Option<&[u8]> {
        self.elements.get(&(sequence, tag)).map(|(_, bytes)| bytes.as_slice())
    }

    /// Whether an element holds signed numbers, by its value representation.
    pub(super) fn is_signed(&self, sequence: Tag, tag: Tag) -> bool {
        self.elements.get(&(sequence, tag)).is_some_and(|(vr, _)| *vr == VR::SS)
    }
}

/// Text of an element without the padding at its ends.
fn trimmed(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim_matches(|c: char| c == '\0' || c.is_whitespace()).to_owned()
}

/// The beginning of what deflated bytes stand for.
fn inflate(bytes: &[u8], most: u64) -> Result<Vec<u8>> {
    let mut inflated = Vec::new();
    let mut reader = flate2::read::DeflateDecoder::new(bytes).take(most);
    reader.read_to_end(&mut inflated).map_err(|e| damaged(format!("its deflated part: {e}")))?;
    Ok(inflated)
}

type Reader<'a> = LazyDataSetReader<dicom_parser::stateful::decode::DynStatefulDecoder<Cursor<&'a [u8]>>>;

fn reader<'a>(bytes: &'a [u8], uid: &str) -> Result<Reader<'a>> {
    let syntax = TransferSyntaxRegistry.get(uid).ok_or_else(|| damaged("no transfer syntax"))?;
    LazyDataSetReader::new_with_ts(Cursor::new(bytes), syntax).map_err(damaged)
}

/// The transfer syntax that the file's meta group names, if there is one, and the group's length in bytes.
fn meta(bytes: &[u8]) -> Result<(Option<String>, usize)> {
    let (mut syntax, mut end) = (None, 0);
    // The group is in explicit VR, little-endian, whatever follows it (PS3.10 section 7.1).
    if bytes.first_chunk() != Some(&[2u8, 0]) {
        return Ok((syntax, end));
    }
    let mut reader = reader(bytes, entries::EXPLICIT_VR_LITTLE_ENDIAN.uid())?;
    while let Some(token) = reader.advance() {
        match token {
            Ok(LazyDataToken::LazyValue { header, decoder }) if header.tag.group() == 2 => {
                end = usize::try_from(decoder.position() + u64::from(header.len.0)).unwrap_or(usize::MAX);
                let token = LazyDataToken::LazyValue { header, decoder };
                if header.tag == tags::TRANSFER_SYNTAX_UID && header.len.0 <= MAX_VALUE {
                    let mut value = Vec::new();
                    token.read_value_into(&mut value).map_err(damaged)?;
                    syntax = Some(trimmed(&value));
                } else {
                    token.skip().map_err(damaged)?;
                }
            }
            Ok(LazyDataToken::ElementHeader(header)) if header.tag.group() == 2 => {}
            // What follows the group need not be in this transfer syntax.
            _ => break,
        }
    }
    if end > bytes.len() {
        return Err(damaged("cut short within its first elements"));
    }
    Ok((syntax, end))
}
