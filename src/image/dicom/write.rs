//! DICOM files of grey pictures, as a digital radiography system writes them.

use dicom_core::{DataElement, PrimitiveValue, Tag, VR};
use dicom_dictionary_std::{tags, uids};
use dicom_object::{FileMetaTableBuilder, InMemDicomObject};

use crate::error::{Error, Result};

/// The bytes of a DX image (PS3.3 section A.26) of 16-bit levels, black at 0, with a window over all of them: rows of `width`
/// pixels, not compressed. `instance` is its UID, below 2.25 as PS3.5 section B.2 has it, the two numbers after it those of its study
/// and series; `patient` names whom it is of.
///
/// # Errors
/// If the sides do not fit into 16 bits, or the levels do not fill the rows.
pub fn write_dicom(levels: &[u16], width: usize, height: usize, instance: u128, patient: &str) -> Result<Vec<u8>> {
    let (Ok(columns), Ok(rows)) = (u16::try_from(width), u16::try_from(height)) else {
        return Err(Error::new(format!("{width} x {height} pixels do not fit a DICOM file")));
    };
    if levels.len() != width * height {
        return Err(Error::new(format!("{} levels do not fill {width} x {height} pixels", levels.len())));
    }
    let text = |tag: Tag, vr: VR, value: &str| DataElement::new(tag, vr, PrimitiveValue::from(value));
    let word = |tag: Tag, value: u16| DataElement::new(tag, VR::US, PrimitiveValue::from(value));
    let uid = |after: u128| format!("2.25.{}", instance.wrapping_add(after));
    let object = InMemDicomObject::from_element_iter([
        text(tags::SOP_CLASS_UID, VR::UI, uids::DIGITAL_X_RAY_IMAGE_STORAGE_FOR_PRESENTATION),
        text(tags::SOP_INSTANCE_UID, VR::UI, &uid(0)),
        text(tags::STUDY_INSTANCE_UID, VR::UI, &uid(1)),
        text(tags::SERIES_INSTANCE_UID, VR::UI, &uid(2)),
        text(tags::MODALITY, VR::CS, "DX"),
        text(tags::BODY_PART_EXAMINED, VR::CS, "CHEST"),
        text(tags::VIEW_POSITION, VR::CS, "PA"),
        text(tags::PATIENT_ID, VR::LO, patient),
        text(tags::PRESENTATION_INTENT_TYPE, VR::CS, "FOR PRESENTATION"),
        text(tags::PHOTOMETRIC_INTERPRETATION, VR::CS, "MONOCHROME2"),
        text(tags::PRESENTATION_LUT_SHAPE, VR::CS, "IDENTITY"),
        text(tags::RESCALE_INTERCEPT, VR::DS, "0"),
        text(tags::RESCALE_SLOPE, VR::DS, "1"),
        text(tags::RESCALE_TYPE, VR::LO, "US"),
        text(tags::WINDOW_CENTER, VR::DS, "32768"),
        text(tags::WINDOW_WIDTH, VR::DS, "65536"),
        word(tags::SAMPLES_PER_PIXEL, 1),
        word(tags::ROWS, rows),
        word(tags::COLUMNS, columns),
        word(tags::BITS_ALLOCATED, 16),
        word(tags::BITS_STORED, 16),
        word(tags::HIGH_BIT, 15),
        word(tags::PIXEL_REPRESENTATION, 0),
        DataElement::new(tags::PIXEL_DATA, VR::OW, PrimitiveValue::U16(levels.into())),
    ]);
    let meta = FileMetaTableBuilder::new().transfer_syntax(uids::EXPLICIT_VR_LITTLE_ENDIAN);
    let mut bytes = Vec::new();
    let written = object.with_meta(meta).map_err(|e| e.to_string());
    written.and_then(|file| file.write_all(&mut bytes).map_err(|e| e.to_string())).map_err(Error::new)?;
    Ok(bytes)
}
