//! Tests of the whole path from bytes to picture.

use std::path::Path;

use super::dataset::{DataSet, Pixels};
use super::*;

/// Samples of a file as they are stored.
fn samples(bytes: &[u8]) -> Result<(Frame, Vec<u8>)> {
    let mut set = DataSet::read(bytes, false)?;
    let frame = Frame::of(&set)?;
    let pixels = set.pixels.take().unwrap_or(Pixels::Compressed(Vec::new()));
    let samples = codec::decode(&set.syntax, pixels, set.big_endian, &frame)?;
    Ok((frame, samples))
}

#[test]
fn trial() {
    let Ok(dir) = std::env::var("TIER_SHARED") else { return };
    let dir = Path::new(&dir).join("data/dicom/files");
    let out = Path::new("/tmp/dcmtest/out");
    std::fs::create_dir_all(out).unwrap();
    let mut names: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|e| e.unwrap().path()).collect();
    names.sort();
    for path in names {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        match samples(&std::fs::read(&path).unwrap()) {
            Ok((_, bytes)) => {
                std::fs::write(out.join(format!("{name}.raw")), bytes).unwrap();
                let (picture, notes) = crate::image::open_with_notes(&path, Default::default()).unwrap();
                picture.save_png(out.join(format!("{name}.png"))).unwrap();
                println!("{name}: {notes:?}");
            }
            Err(e) => println!("{name}: ERROR {e}"),
        }
    }
}
