//! From bytes to pictures: files written here, one for each rule, and the shared set of real ones.

use dicom_core::value::{DataSetSequence, PixelFragmentSequence};
use dicom_core::{DataElement, PrimitiveValue, VR};
use dicom_dictionary_std::uids;
use dicom_encoding::transfer_syntax::TransferSyntaxIndex;
use dicom_object::mem::InMemElement;
use dicom_object::{FileMetaTableBuilder, InMemDicomObject};
use dicom_transfer_syntax_registry::TransferSyntaxRegistry;

use sha2::Digest;

use super::*;
use crate::image::{MAX_PIXELS, SixteenBit};

fn word(tag: Tag, value: u16) -> InMemElement {
    DataElement::new(tag, VR::US, PrimitiveValue::from(value))
}

fn text(tag: Tag, vr: VR, value: &str) -> InMemElement {
    DataElement::new(tag, vr, PrimitiveValue::from(value))
}

fn words(tag: Tag, vr: VR, values: &[u16]) -> InMemElement {
    DataElement::new(tag, vr, PrimitiveValue::U16(values.into()))
}

fn sequence(tag: Tag, items: Vec<InMemDicomObject>) -> InMemElement {
    DataElement::new(tag, VR::SQ, DataSetSequence::from(items))
}

/// A lookup table as the first item of a sequence.
fn table(tag: Tag, first: u16, bits: u16, entries: &[u16]) -> InMemElement {
    let item = InMemDicomObject::from_element_iter([
        words(tags::LUT_DESCRIPTOR, VR::US, &[entries.len() as u16, first, bits]),
        words(tags::LUT_DATA, VR::OW, entries),
    ]);
    sequence(tag, vec![item])
}

/// A 16-bit image of one row, with some elements added or replaced.
fn image(pixels: &[u16], changes: impl IntoIterator<Item = InMemElement>) -> InMemDicomObject {
    let mut object = InMemDicomObject::from_element_iter([
        text(tags::SOP_CLASS_UID, VR::UI, uids::COMPUTED_RADIOGRAPHY_IMAGE_STORAGE),
        text(tags::SOP_INSTANCE_UID, VR::UI, "2.25.1"),
        text(tags::MODALITY, VR::CS, "CR"),
        word(tags::SAMPLES_PER_PIXEL, 1),
        text(tags::PHOTOMETRIC_INTERPRETATION, VR::CS, "MONOCHROME2"),
        word(tags::ROWS, 1),
        word(tags::COLUMNS, pixels.len() as u16),
        word(tags::BITS_ALLOCATED, 16),
        word(tags::BITS_STORED, 16),
        word(tags::HIGH_BIT, 15),
        word(tags::PIXEL_REPRESENTATION, 0),
        words(tags::PIXEL_DATA, VR::OW, pixels),
    ]);
    changes.into_iter().for_each(|element| drop(object.put(element)));
    object
}

/// The bytes of a file.
fn file(object: &InMemDicomObject, syntax: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let meta = FileMetaTableBuilder::new().transfer_syntax(syntax);
    object.clone().with_meta(meta).unwrap().write_all(&mut bytes).unwrap();
    bytes
}

const LITTLE: &str = uids::EXPLICIT_VR_LITTLE_ENDIAN;
/// Retired from the standard, but not from archives.
const BIG: &str = "1.2.840.10008.1.2.2";

/// Levels and notes of an image that is not compressed.
fn shown(object: &InMemDicomObject) -> (Vec<u8>, String) {
    let (picture, notes) = decode(&file(object, LITTLE)).unwrap();
    (picture.pixels, notes.join("; "))
}

fn window(centre: &str, width: &str) -> [InMemElement; 2] {
    [text(tags::WINDOW_CENTER, VR::DS, centre), text(tags::WINDOW_WIDTH, VR::DS, width)]
}

#[test]
fn every_rule_of_display_is_kept() {
    let monochrome1 = || text(tags::PHOTOMETRIC_INTERPRETATION, VR::CS, "MONOCHROME1");
    let rescale =
        |slope, intercept| [text(tags::RESCALE_SLOPE, VR::DS, slope), text(tags::RESCALE_INTERCEPT, VR::DS, intercept)];
    let levels = [100u16, 200, 300, 355];
    let case = |changes: Vec<InMemElement>| shown(&image(&levels, changes));
    // No window: the range of the pixels, without padding.
    let (range, notes) = case(vec![]);
    assert_eq!((range.as_slice(), notes.contains("levels 100 to 355")), (&[0u8, 100, 200, 255][..], true), "{notes}");
    assert_eq!(case(vec![word(tags::PIXEL_PADDING_VALUE, 355)]).0, [0, 128, 255, 255]);
    let limit = vec![word(tags::PIXEL_PADDING_VALUE, 300), word(tags::PIXEL_PADDING_RANGE_LIMIT, 400)];
    assert_eq!(case(limit).0, [0, 255, 255, 255]);
    // Black and white change places once, whoever says so.
    let (inverted, notes) = case(vec![monochrome1()]);
    assert_eq!((inverted.as_slice(), notes.contains("inverted")), (&[255u8, 155, 55, 0][..], true), "{notes}");
    let inverse = || text(tags::PRESENTATION_LUT_SHAPE, VR::CS, "INVERSE");
    assert_eq!(case(vec![inverse()]).0, inverted);
    assert_eq!(case(vec![inverse(), monochrome1()]).0, inverted);
    // Windows: of the stored values, and of the rescaled ones.
    assert_eq!(case(window("227.5", "255").into()).0, [0, 100, 201, 255]);
    let exact = || text(tags::VOILUT_FUNCTION, VR::CS, "LINEAR_EXACT");
    assert_eq!(case([&window("227.5", "255")[..], &[exact()]].concat()).0, [0, 100, 200, 255]);
    let sigmoid = text(tags::VOILUT_FUNCTION, VR::CS, "SIGMOID");
    assert_eq!(case([&window("200", "200")[..], &[sigmoid]].concat()).0, [30, 128, 225, 244]);
    let rescaled = [&window("-45", "510")[..], &rescale("2", "-500"), &[exact()]].concat();
    assert_eq!(case(rescaled).0, [0, 100, 200, 255]);
    let (first, notes) = case([&window("227.5\\10", "255\\20")[..], &[exact()]].concat());
    assert_eq!(
        (first.as_slice(), notes.as_str()),
        (&[0u8, 100, 200, 255][..], "2 windows: shown by the first, centre 227.5, width 255")
    );
    let (none, notes) = case(window("200", "0").into());
    assert!(none == range && notes.contains("no window: ignored"), "{notes}");
    // A negative slope turns the range around.
    assert_eq!(case(rescale("-1", "0").into()).0, inverted);
    // Tables: values beyond their ends get the ends' entries.
    let doubled: Vec<u16> = (0..101).map(|i| 2 * i).collect();
    let (by_table, notes) = case(vec![table(tags::MODALITY_LUT_SEQUENCE, 200, 8, &doubled)]);
    assert_eq!((by_table.as_slice(), notes.contains("levels 0 to 200")), (&[0u8, 0, 255, 255][..], true), "{notes}");
    let voi = [&window("1", "2")[..], &[table(tags::VOILUT_SEQUENCE, 299, 12, &[0, 2048, 4095])]].concat();
    let (by_table, notes) = case(voi);
    assert_eq!((by_table.as_slice(), notes.contains("not by its window")), (&[0u8, 0, 128, 255][..], true), "{notes}");
    // What is not shown is said.
    let overlay = words(Tag(0x6000, 0x3000), VR::OW, &[0xFFFF]);
    let (_, notes) = case([&window("1", "2")[..], &[overlay, text(tags::PIXEL_SPACING, VR::DS, "0.2\\0.1")]].concat());
    assert_eq!(notes, "its overlays are not drawn; its pixels are 0.2 high and 0.1 wide; they are taken as square");
}

#[test]
fn only_stored_bits_count_and_carry_the_sign() {
    // 12 stored bits below garbage, 0x800 being the lowest; then the same four bits higher.
    let stored = [word(tags::BITS_STORED, 12), word(tags::PIXEL_REPRESENTATION, 1)];
    let window = [text(tags::WINDOW_CENTER, VR::DS, "0"), text(tags::WINDOW_WIDTH, VR::DS, "4096")];
    let changes = |high| [&stored[..], &window, &[word(tags::HIGH_BIT, high)]].concat();
    let expected = [0, 127, 129, 255];
    assert_eq!(shown(&image(&[0xF800, 0x2FF0, 0x7010, 0xA7FF], changes(11))).0, expected);
    assert_eq!(shown(&image(&[0x800A, 0xFF0B, 0x010C, 0x7FFD], changes(15))).0, expected);
    // 8-bit and 32-bit samples, spread too far for a table of all values.
    let bits = |allocated| [word(tags::BITS_ALLOCATED, allocated), word(tags::BITS_STORED, allocated)];
    let changes = |allocated: u16| [&bits(allocated)[..], &[word(tags::HIGH_BIT, allocated - 1)]].concat();
    let mut object = image(&[0x0201, 0x0403], changes(8));
    object.put(word(tags::COLUMNS, 4));
    assert_eq!(shown(&object).0, [0, 85, 170, 255]);
    let mut object = image(&[0, 0, 0, 0x8000, 0xFFFF, 0xFFFF], changes(32));
    object.put(word(tags::COLUMNS, 3));
    assert_eq!(shown(&object).0, [0, 128, 255]);
}

/// 2 x 1 pixels of colour.
fn colours(photometric: &str, planar: u16, bytes: &[u8]) -> InMemDicomObject {
    let eight = [
        word(tags::SAMPLES_PER_PIXEL, 3),
        text(tags::PHOTOMETRIC_INTERPRETATION, VR::CS, photometric),
        word(tags::PLANAR_CONFIGURATION, planar),
        word(tags::BITS_ALLOCATED, 8),
        word(tags::BITS_STORED, 8),
        word(tags::HIGH_BIT, 7),
        DataElement::new(tags::PIXEL_DATA, VR::OB, PrimitiveValue::U8(bytes.into())),
    ];
    image(&[0, 0], eight)
}

#[test]
fn colours_become_red_green_and_blue() {
    let decoded = |object: &InMemDicomObject| decode(&file(object, LITTLE)).unwrap().0;
    let expected = Picture::new(2, 1, 3, vec![1, 2, 3, 4, 5, 6]);
    assert_eq!(decoded(&colours("RGB", 0, &[1, 2, 3, 4, 5, 6])), expected);
    assert_eq!(decoded(&colours("RGB", 1, &[1, 4, 2, 5, 3, 6])), expected);
    // Red and grey, by the equations of C.7.6.3.1.2.
    assert_eq!(decoded(&colours("YBR_FULL", 0, &[76, 85, 255, 50, 128, 128])).pixels, [254, 0, 0, 50, 50, 50]);
}

#[test]
fn other_encodings_give_the_same_picture() {
    let object = image(&[100, 200, 300, 355], []);
    let expected = vec![0, 100, 200, 255];
    for syntax in [LITTLE, uids::IMPLICIT_VR_LITTLE_ENDIAN, BIG] {
        let bytes = file(&object, syntax);
        assert_eq!(decode(&bytes).unwrap().0.pixels, expected, "{syntax}");
        assert_eq!(size(&bytes).unwrap(), (4, 1));
        // Without preamble, and, little-endian, without meta elements as well.
        assert!(recognise(&bytes) && recognise(&bytes[132..]));
        assert_eq!(decode(&bytes[132..]).unwrap().0.pixels, expected, "{syntax}");
        if syntax != BIG {
            let mut bare = Vec::new();
            object.write_dataset_with_ts(&mut bare, TransferSyntaxRegistry.get(syntax).unwrap()).unwrap();
            assert!(recognise(&bare));
            assert_eq!(decode(&bare).unwrap().0.pixels, expected, "{syntax}");
        }
    }
    assert_eq!(decode(&deflated(&object)).unwrap().0.pixels, expected);
    for bytes in
        [&b"\x89PNG\r\n\x1a\n"[..], b"\xff\xd8\xff\xe0\0\x10JFIF", b"BM123456", b"", b"PK\x03\x04\0\0\0\0", &[0; 200]]
    {
        assert!(!recognise(bytes), "{bytes:?}");
    }
}

/// The file in the deflated transfer syntax.
fn deflated(object: &InMemDicomObject) -> Vec<u8> {
    let plain = file(object, LITTLE);
    let mut body = Vec::new();
    object.write_dataset_with_ts(&mut body, TransferSyntaxRegistry.get(LITTLE).unwrap()).unwrap();
    let head = plain.len() - body.len();
    let from = plain.windows(LITTLE.len()).position(|w| w == LITTLE.as_bytes()).unwrap();
    // The longer UID fills the padded place of the shorter one but for two bytes, which the two lengths before it count.
    let uid = format!("{}\0", uids::DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN);
    let mut bytes = plain[..from].to_vec();
    bytes[from - 2] = uid.len() as u8;
    bytes.extend_from_slice(uid.as_bytes());
    bytes.extend_from_slice(&plain[from + LITTLE.len() + 1..head]);
    let mut encoder = flate2::write::DeflateEncoder::new(bytes, flate2::Compression::fast());
    std::io::Write::write_all(&mut encoder, &body).unwrap();
    encoder.finish().unwrap()
}

/// A compressed frame in a file.
fn compressed(pixels: &[u16], changes: impl IntoIterator<Item = InMemElement>, syntax: &str, data: Vec<u8>) -> Vec<u8> {
    let mut object = image(pixels, changes);
    let mut data = data;
    if data.len() % 2 == 1 {
        data.push(0);
    }
    object.put(DataElement::new(tags::PIXEL_DATA, VR::OB, PixelFragmentSequence::new_fragments(vec![data])));
    file(&object, syntax)
}

/// 8 x 8 pixels in JPEG-LS, in RLE and in JPEG, and as they are with tables.
fn small_files() -> Vec<(Vec<u8>, Vec<u8>)> {
    let levels: Vec<u16> = (0..64).map(|i| (i * 37) % 256).collect();
    let expected: Vec<u8> = levels.iter().map(|&x| x as u8).collect();
    let square = |bits: u16| {
        [
            word(tags::ROWS, 8),
            word(tags::COLUMNS, 8),
            word(tags::BITS_ALLOCATED, bits),
            word(tags::BITS_STORED, bits),
            word(tags::HIGH_BIT, bits - 1),
            text(tags::WINDOW_CENTER, VR::DS, "127.5"),
            text(tags::WINDOW_WIDTH, VR::DS, "255"),
            text(tags::VOILUT_FUNCTION, VR::CS, "LINEAR_EXACT"),
        ]
    };
    let identity: Vec<u16> = (0..256).collect();
    let with_tables = [
        &square(16)[..],
        &[table(tags::MODALITY_LUT_SEQUENCE, 0, 8, &identity), table(tags::VOILUT_SEQUENCE, 0, 8, &identity)],
    ];
    let plain = file(&image(&levels, with_tables.concat()), LITTLE);
    let mut lossless = Vec::new();
    jpegls::encode(&levels, 8, 8, &mut lossless).unwrap();
    let jpeg_ls = compressed(&levels, square(16), uids::JPEGLS_LOSSLESS, lossless);
    // Two segments: nothing but zeros for the high bytes, literals for the low ones.
    let mut rle: Vec<u8> = [2u32, 64, 66].iter().chain([0u32; 13].iter()).flat_map(|x| x.to_le_bytes()).collect();
    rle.extend_from_slice(&[193, 0, 63]);
    rle.extend_from_slice(&expected);
    let rle = compressed(&levels, square(16), uids::RLE_LOSSLESS, rle);
    let mut jpeg = Vec::new();
    ::image::codecs::jpeg::JpegEncoder::new_with_quality(&mut jpeg, 90)
        .encode(&[77; 64], 8, 8, ::image::ExtendedColorType::L8)
        .unwrap();
    let jpeg = compressed(&levels, square(8), uids::JPEG_BASELINE8_BIT, jpeg);
    vec![(plain, expected.clone()), (jpeg_ls, expected.clone()), (rle, expected), (jpeg, vec![77; 64])]
}

#[test]
fn damaged_files_give_errors_or_pictures() {
    for (case, (bytes, expected)) in small_files().into_iter().enumerate() {
        assert_eq!(decode(&bytes).unwrap().0.pixels, expected, "case {case}");
        for cut in (0..50).map(|i| i * bytes.len() / 50) {
            let error = crate::image::decode(&bytes[..cut], SixteenBit::HighByte);
            assert!(error.is_err(), "case {case} cut at {cut}");
        }
        flip(&bytes, case as u64);
    }
}

/// Decodes a file 200 times with one byte changed: any outcome but a panic will do, which [`crate::image::decode`] turns into errors.
fn flip(bytes: &[u8], seed: u64) {
    let mut state = seed.wrapping_mul(2) + 1;
    let mut random = |below: usize| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as usize % below
    };
    for _ in 0..200 {
        let mut bytes = bytes.to_vec();
        let at = random(bytes.len());
        bytes[at] ^= 1 + random(255) as u8;
        if let Ok(picture) = crate::image::decode(&bytes, SixteenBit::HighByte) {
            assert_eq!(picture.pixels.len(), picture.width * picture.height * picture.channels);
        }
    }
}

#[test]
fn what_is_no_radiograph_is_refused_by_name() {
    let refused = |changes: Vec<InMemElement>| decode(&file(&image(&[1, 2], changes), LITTLE)).unwrap_err().to_string();
    let photometric = |name| text(tags::PHOTOMETRIC_INTERPRETATION, VR::CS, name);
    let float = DataElement::new(tags::FLOAT_PIXEL_DATA, VR::OF, PrimitiveValue::F32([0.5; 2].as_slice().into()));
    for (changes, named) in [
        (vec![text(tags::NUMBER_OF_FRAMES, VR::IS, "12")], "12 frames"),
        (vec![photometric("PALETTE COLOR")], "PALETTE COLOR"),
        (vec![photometric("CMYK")], "\"CMYK\""),
        (vec![float], "floating-point"),
        (vec![text(tags::MODALITY, VR::CS, "SEG")], "segmentation"),
        (vec![text(tags::MODALITY, VR::CS, "RTDOSE")], "dose"),
        (vec![word(tags::BITS_ALLOCATED, 1), word(tags::BITS_STORED, 1), word(tags::HIGH_BIT, 0)], "1 bits"),
        (vec![word(tags::BITS_STORED, 17)], "17 bits"),
        (vec![DataElement::empty(tags::ROWS, VR::US)], "Rows (0028,0010)"),
        (vec![word(tags::ROWS, 0)], "2 x 0 pixels"),
        (vec![word(tags::ROWS, 60000), word(tags::COLUMNS, 60000)], &MAX_PIXELS.to_string()),
        (vec![word(tags::COLUMNS, 50)], "strip"),
        (vec![word(tags::COLUMNS, 3)], "cut short"),
        (vec![text(tags::RESCALE_SLOPE, VR::DS, "wide")], "rescale"),
    ] {
        let error = refused(changes);
        assert!(error.contains(named) && error.contains(';'), "{named}: {error}");
    }
    let high_throughput = compressed(&[1, 2], [], uids::HTJ2K_LOSSLESS, vec![0; 8]);
    let error = decode(&high_throughput).unwrap_err().to_string();
    assert!(error.contains("High-Throughput JPEG 2000") && error.contains(uids::HTJ2K_LOSSLESS), "{error}");
    let mut empty = image(&[1, 2], []);
    empty.remove_element(tags::PIXEL_DATA);
    assert!(decode(&file(&empty, LITTLE)).unwrap_err().to_string().contains("holds no pixels"));
    // Compressed pixels of another size than declared are not decoded at all.
    let mut large = Vec::new();
    jpegls::encode(&vec![0; 4000 * 4000], 4000, 4000, &mut large).unwrap();
    let error = decode(&compressed(&[1, 2], [], uids::JPEGLS_LOSSLESS, large)).unwrap_err().to_string();
    assert!(error.contains("4000 x 4000 x 1, not 2 x 1 x 1"), "{error}");
}

/// Samples of a file as they are stored, little-endian.
fn samples(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut set = DataSet::read(bytes, false)?;
    let frame = Frame::of(&set)?;
    let pixels = set.pixels.take().ok_or_else(|| Error::new("no pixels"))?;
    codec::decode(&set.syntax, pixels, set.big_endian, &frame)
}

/// The fields of a line of a CSV table.
fn fields(line: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut quoted = false;
    for c in line.chars() {
        match (c, fields.last_mut()) {
            ('"', _) => quoted = !quoted,
            (',', _) if !quoted => fields.push(String::new()),
            (_, Some(field)) => field.push(c),
            (_, None) => {}
        }
    }
    fields
}

/// Least, greatest and mean sample.
fn statistics(samples: &[u8], dtype: &str) -> [f64; 3] {
    let values: Vec<f64> = match dtype {
        "uint8" => samples.iter().map(|&x| f64::from(x)).collect(),
        "int16" => samples.as_chunks().0.iter().map(|&x| f64::from(i16::from_le_bytes(x))).collect(),
        _ => samples.as_chunks().0.iter().map(|&x| f64::from(u16::from_le_bytes(x))).collect(),
    };
    let (low, high) = values.iter().fold((f64::MAX, f64::MIN), |(low, high), &x| (low.min(x), high.max(x)));
    [low, high, values.iter().sum::<f64>() / values.len() as f64]
}

#[test]
fn the_shared_files_are_decoded_to_their_hashes_or_refused_by_name() {
    let Some(folder) = crate::shared::shared("data/dicom") else { return };
    let manifest = std::fs::read_to_string(folder.join("manifest.csv")).unwrap();
    let mut lines = manifest.lines().map(fields);
    let head = lines.next().unwrap();
    let (mut exact, mut near, mut refused) = (0, 0, Vec::new());
    for row in lines {
        let of = |name: &str| row[head.iter().position(|h| h == name).unwrap()].as_str();
        let path = folder.join("files").join(of("file"));
        let bytes = std::fs::read(&path).unwrap();
        let samples = match samples(&bytes) {
            Ok(samples) => samples,
            Err(error) => {
                let picture = crate::image::open(&path, SixteenBit::HighByte);
                assert_eq!(picture.unwrap_err().to_string(), format!("{}: {error}", path.display()));
                refused.push((of("file").to_owned(), error.to_string()));
                continue;
            }
        };
        let hash = sha2::Sha256::digest(&samples).iter().map(|b| format!("{b:02x}")).collect::<String>();
        if hash == of("sha256_pixels_le") {
            exact += 1;
        } else {
            assert_eq!(of("lossy"), "yes", "{}", path.display());
            let [low, high, mean] = statistics(&samples, of("dtype"));
            let expected = |name: &str| of(name).parse::<f64>().unwrap();
            assert!(
                (low - expected("min")).abs() <= 2.0 && (high - expected("max")).abs() <= 2.0,
                "{}",
                path.display()
            );
            assert!((mean - expected("mean")).abs() <= 0.05, "{}: mean {mean}", path.display());
            near += 1;
        }
        let (picture, _) = crate::image::open_with_notes(&path, SixteenBit::HighByte).unwrap();
        let declared = (of("cols").parse().unwrap(), of("rows").parse().unwrap());
        assert_eq!((picture.width, picture.height), declared);
        assert_eq!(crate::image::size(&path).unwrap(), declared);
        if of("file") == "MR_small_jp2klossless.dcm"
            || of("file") == "693_J2KI.dcm"
            || of("file") == "JPEGLSNearLossless_16.dcm"
        {
            flip(&bytes, 0);
        }
    }
    refused.iter().for_each(|(file, why)| println!("{file}: {why}"));
    for (file, named) in [
        ("parametric_map_float.dcm", "floating-point"),
        ("parametric_map_double_float.dcm", "floating-point"),
        ("liver_1frame.dcm", "segmentation"),
        ("liver_expb_1frame.dcm", "segmentation"),
        ("rtdose_1frame.dcm", "dose"),
        ("rtdose_expb_1frame.dcm", "dose"),
        ("rtdose_rle_1frame.dcm", "dose"),
        ("OBXXXX1A.dcm", "PALETTE"),
        ("OBXXXX1A_expb.dcm", "PALETTE"),
        ("OBXXXX1A_rle.dcm", "PALETTE"),
        ("gdcm-US-ALOKA-16.dcm", "PALETTE"),
        ("gdcm-US-ALOKA-16_big.dcm", "PALETTE"),
        ("examples_palette.dcm", "PALETTE"),
    ] {
        let at = refused.iter().position(|(name, why)| name == file && why.contains(named));
        refused.remove(at.unwrap_or_else(|| panic!("{file} is not refused as {named}")));
    }
    assert_eq!((exact, near, refused.len()), (30, 7, 0), "{refused:?}");
}
