//! A folder of phantoms with its tables: images, pairs.csv, labels.csv, boxes.json, prompts.csv.

use std::fs;
use std::io::Cursor;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use ::image::codecs::png::{CompressionType, FilterType, PngEncoder};
use ::image::{ExtendedColorType, ImageEncoder};

use super::prompts::{ALL_CLEAR, NORMAL, PROMPTS};
use super::{Finding, Label, Phantom};
use crate::error::{At, Error, Result};
use crate::files::write_atomic;
use crate::image::write_dicom;

/// Sides of a film, in pixels, that can be drawn.
pub const SIZES: std::ops::RangeInclusive<usize> = 32..=4096;

/// What films are written as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// 16-bit PNG.
    #[default]
    Png,
    /// DICOM, as a digital radiography system writes it.
    Dicom,
}

/// What a table needs of a film.
#[derive(Default)]
struct Row {
    image: String,
    text: String,
    split: &'static str,
    patient: u64,
    findings: Vec<Finding>,
}

/// Draws films `0..count` of `seed` with `size` pixels per side into `folder`, as files of `format`; `progress` hears how many are
/// written.
///
/// The same arguments give the same bytes, for any number of threads. The tables are written last: where they stand, every film does.
///
/// # Errors
/// A wrong size, and what the file system reports.
pub fn write(
    folder: &Path,
    count: usize,
    seed: u64,
    size: usize,
    format: Format,
    progress: impl Fn(u64) + Sync,
) -> Result<()> {
    if !SIZES.contains(&size) {
        return Err(Error::usage(format!(
            "--size {size}: phantoms have {} to {} pixels per side",
            SIZES.start(),
            SIZES.end()
        )));
    }
    let images = folder.join("images");
    fs::create_dir_all(&images).at(&images)?;
    let mut rows: Vec<Option<Result<Row>>> = Vec::new();
    rows.resize_with(count, || None);
    let written = AtomicU64::new(0);
    kernels_cpu::par::chunks_mut(&mut rows, 1, size * size * 1000, |index, slot| {
        slot[0] = Some(film(folder, seed, index as u64, size, format));
        progress(written.fetch_add(1, Ordering::Relaxed) + 1);
    });
    let rows = rows.into_iter().flatten().collect::<Result<Vec<Row>>>()?;
    table(&folder.join("pairs.csv"), pairs(&rows))?;
    table(&folder.join("labels.csv"), labels(&rows))?;
    table(&folder.join("prompts.csv"), prompts())?;
    let path = folder.join("boxes.json");
    write_atomic(&path, &serde_json::to_vec(&boxes(&rows, size)).map_err(|e| Error::new(e.to_string()).at(&path))?)
}

/// Draws and writes one film.
fn film(folder: &Path, seed: u64, index: u64, size: usize, format: Format) -> Result<Row> {
    let phantom = Phantom::draw(seed, index, size);
    let (extension, bytes) = match format {
        Format::Png => ("png", png(&phantom)),
        Format::Dicom => ("dcm", dicom(&phantom, seed, index)),
    };
    let image = format!("images/{index:06}.{extension}");
    let path = folder.join(&image);
    write_atomic(&path, &bytes.at(&path)?)?;
    let Phantom { text, split, patient, findings, .. } = phantom;
    Ok(Row { image, text, split, patient, findings })
}

fn png(phantom: &Phantom) -> Result<Vec<u8>> {
    let mut png = Cursor::new(Vec::new());
    let bytes: Vec<u8> = phantom.pixels.iter().flat_map(|v| v.to_ne_bytes()).collect();
    PngEncoder::new_with_quality(&mut png, CompressionType::Fast, FilterType::Sub)
        .write_image(&bytes, phantom.size as u32, phantom.size as u32, ExtendedColorType::L16)
        .map_err(|e| Error::new(e.to_string()))?;
    Ok(png.into_inner())
}

fn dicom(phantom: &Phantom, seed: u64, index: u64) -> Result<Vec<u8>> {
    // Seed and index make the UIDs: the same film has the same ones wherever it is drawn.
    let instance = u128::from(seed) << 64 | u128::from(index) << 2;
    write_dicom(&phantom.pixels, phantom.size, phantom.size, instance, &patient(phantom.patient))
}

/// The name of a patient.
fn patient(number: u64) -> String {
    format!("p{number:06}")
}

type Table = Vec<Vec<String>>;

fn table(path: &Path, rows: Table) -> Result<()> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    for row in rows {
        writer.write_record(row).map_err(|e| Error::new(e.to_string()).at(path))?;
    }
    let bytes = writer.into_inner().map_err(|e| Error::new(e.to_string()).at(path))?;
    write_atomic(path, &bytes)
}

fn pairs(rows: &[Row]) -> Table {
    let head = ["image", "text", "split", "patient_id", "details"].map(String::from).to_vec();
    let body = rows.iter().map(|row| {
        let details: Vec<String> = row.findings.iter().map(Finding::describe).collect();
        vec![row.image.clone(), row.text.clone(), row.split.to_string(), patient(row.patient), details.join("; ")]
    });
    std::iter::once(head).chain(body).collect()
}

fn labels(rows: &[Row]) -> Table {
    let names = Label::ALL.iter().map(|label| label.name()).chain([NORMAL]);
    let head = std::iter::once("image").chain(names).map(String::from).collect();
    let body = rows.iter().map(|row| {
        let has = |label: &Label| row.findings.iter().any(|finding| finding.label == *label);
        let bits = Label::ALL.iter().map(has).chain([row.findings.is_empty()]);
        std::iter::once(row.image.clone()).chain(bits.map(|bit| u8::from(bit).to_string())).collect()
    });
    std::iter::once(head).chain(body).collect()
}

fn prompts() -> Table {
    let mut rows = vec![["label", "polarity", "text"].map(String::from).to_vec()];
    for prompts in &PROMPTS {
        let shared: &[&str] = if prompts.label == NORMAL { &[] } else { &ALL_CLEAR };
        let negative = prompts.negative.iter().chain(shared).map(|text| ("negative", text));
        for (polarity, text) in prompts.positive.iter().map(|text| ("positive", text)).chain(negative) {
            rows.push([prompts.label, polarity, text].map(String::from).to_vec());
        }
    }
    rows
}

/// COCO: images, annotations with `[x, y, w, h]` in pixels, categories; ids count from 1.
fn boxes(rows: &[Row], size: usize) -> serde_json::Value {
    let mut annotations = Vec::new();
    for (image, row) in rows.iter().enumerate() {
        for finding in &row.findings {
            let category = Label::ALL.iter().position(|label| *label == finding.label).map_or(0, |i| i + 1);
            for bbox in &finding.boxes {
                annotations.push(serde_json::json!({
                    "id": annotations.len() + 1, "image_id": image + 1, "category_id": category,
                    "bbox": bbox, "area": bbox[2] * bbox[3], "iscrowd": 0,
                }));
            }
        }
    }
    let images: Vec<_> = rows
        .iter()
        .enumerate()
        .map(|(i, row)| serde_json::json!({ "id": i + 1, "file_name": row.image, "width": size, "height": size }))
        .collect();
    let categories: Vec<_> = Label::ALL
        .iter()
        .enumerate()
        .map(|(i, label)| serde_json::json!({ "id": i + 1, "name": label.name() }))
        .collect();
    serde_json::json!({ "images": images, "annotations": annotations, "categories": categories })
}
