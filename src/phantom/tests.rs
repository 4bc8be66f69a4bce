use std::collections::BTreeMap;
use std::fs;

use super::words::impression;
use super::*;

fn plan_of(index: u64) -> Plan {
    Plan::draw(&mut stream(5, index, Stream::Plan))
}

fn text_of(index: u64) -> String {
    impression(&plan_of(index), 20.0 + (index % 70) as f32, &mut stream(5, index, Stream::Words))
}

/// FNV-1a.
fn checksum(pixels: &[u16]) -> u64 {
    pixels.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &v| (hash ^ u64::from(v)).wrapping_mul(0x0100_0000_01b3))
}

#[test]
fn the_same_seed_gives_the_same_pixels_everywhere() {
    let phantom = Phantom::draw(1, 9, 64);
    assert_eq!(phantom.pixels.len(), 64 * 64);
    assert_eq!(
        checksum(&phantom.pixels),
        16002536497355407579,
        "the drawing changed: pin the new sum if that was meant"
    );
    assert_ne!(phantom.pixels, Phantom::draw(2, 9, 64).pixels);
}

#[test]
fn every_finding_shows_inside_its_boxes() {
    let size = 64;
    for index in 0..60 {
        let phantom = Phantom::draw(3, index, size);
        let full = Scene::new(3, index, size);
        for (i, finding) in phantom.findings.iter().enumerate() {
            assert!(!finding.boxes.is_empty(), "film {index}: {finding:?} shows nowhere");
            let mut without = Scene::new(3, index, size);
            without.plan.findings.remove(i);
            // The patient stays as the finding shaped it, except for the heart's own size.
            if finding.label == Label::Cardiomegaly {
                without.anatomy = Scene::anatomy(3, index, &without.plan);
            }
            let (with, without) = (full.cast().values, without.cast().values);
            let (mut inside, mut outside) = ((0.0, 0.0), (0.0, 0.0));
            for pixel in 0..size * size {
                let (x, y) = ((pixel % size) as u32, (pixel / size) as u32);
                let hit = |&[left, top, w, h]: &[u32; 4]| x >= left && y >= top && x < left + w && y < top + h;
                let part = if finding.boxes.iter().any(hit) { &mut inside } else { &mut outside };
                part.0 += with[pixel] - without[pixel];
                part.1 += 1.0;
            }
            for [x, y, w, h] in &finding.boxes {
                assert!(*w > 0 && *h > 0 && x + w <= size as u32 && y + h <= size as u32);
            }
            let sign = if finding.label == Label::Pneumothorax { -1.0 } else { 1.0 };
            let (inside, outside) = (sign * inside.0 / inside.1, sign * outside.0 / f32::max(outside.1, 1.0));
            assert!(
                inside > 0.004 && inside > 4.0 * outside,
                "film {index}: {finding:?}: {inside} inside, {outside} outside"
            );
        }
    }
}

#[test]
fn a_text_names_every_finding() {
    let words = |label: Label| -> &[&str] {
        match label {
            Label::Cardiomegaly => &["cardiomegaly", "enlarge", "cardiothoracic ratio", "diameter of the heart"],
            Label::Effusion => &["effusion", "pleural fluid", "costophrenic"],
            Label::Consolidation => &["consolidation", "airspace", "infiltrate", "opacification"],
            Label::Pneumothorax => &["pneumothorax"],
            Label::Nodule => &["nodul"],
            Label::Atelectasis => &["atelectasis", "collapse"],
            Label::Device => &["tube", "line", "catheter", "picc", "port-a-cath", "pacemaker", "pacing", "drain"],
        }
    };
    for index in 0..4000 {
        let (plan, text) = (plan_of(index), text_of(index).to_lowercase());
        // What is denied is no mention.
        let said: String = text
            .split('.')
            .filter(|s| !["no ", "without "].iter().any(|no| s.trim_start().starts_with(no)))
            .map(|s| s.split(", without").next().unwrap_or(s))
            .collect::<Vec<_>>()
            .join(".");
        for finding in &plan.findings {
            let named = words(finding.label).iter().any(|word| said.contains(word));
            assert!(named, "{:?} is not named in: {text}", finding.label);
        }
        let count = text.split_whitespace().count();
        assert!((3..=52).contains(&count), "{count} words: {text}");
        assert!(!text.contains(['{', '|', '@']) && !text.contains("  ") && !text.contains(" ,"), "{text}");
    }
}

#[test]
fn no_prompt_stands_in_a_text() {
    let texts: Vec<String> = (0..8000).map(|index| text_of(index).to_lowercase()).collect();
    for prompts in &PROMPTS {
        assert!((3..=5).contains(&prompts.positive.len()) && !prompts.negative.is_empty());
        for prompt in prompts.positive.iter().chain(prompts.negative) {
            let prompt = prompt.to_lowercase();
            assert!(!texts.iter().any(|text| text.contains(&prompt)), "{prompt}");
        }
    }
    let names: Vec<&str> = Label::ALL.iter().map(|label| label.name()).chain([NORMAL]).collect();
    assert_eq!(PROMPTS.iter().map(|p| p.label).collect::<Vec<_>>(), names);
}

#[test]
fn findings_are_as_frequent_as_promised() {
    let n = 6000;
    let mut counts = BTreeMap::new();
    let mut normal = 0;
    for index in 0..n {
        let plan = plan_of(index);
        normal += u64::from(plan.findings.is_empty());
        for finding in &plan.findings {
            *counts.entry(finding.label).or_insert(0) += 1;
        }
    }
    let share = |count: u64| count as f64 / n as f64;
    assert!((0.25..0.33).contains(&share(normal)));
    for label in Label::ALL {
        assert!((0.14..0.20).contains(&share(counts[&label])), "{label:?}");
    }
}

#[test]
fn tables_agree_for_any_thread_count() {
    let folders = [1, 3].map(|threads| {
        let folder = tempfile::tempdir().unwrap();
        let pool = kernels_cpu::par::Pool::new(threads);
        pool.install(|| write(folder.path(), 24, 11, 32, Format::Png, |_| {})).unwrap();
        folder
    });
    let read = |name: &str| folders.each_ref().map(|folder| fs::read(folder.path().join(name)).unwrap());
    for name in ["pairs.csv", "labels.csv", "boxes.json", "prompts.csv", "images/000000.png", "images/000023.png"] {
        let [one, three] = read(name);
        assert!(!one.is_empty() && one == three, "{name}");
    }
    let rows = |name: &str| -> Vec<BTreeMap<String, String>> {
        csv::Reader::from_path(folders[0].path().join(name)).unwrap().into_deserialize().map(Result::unwrap).collect()
    };
    let (pairs, labels) = (rows("pairs.csv"), rows("labels.csv"));
    assert_eq!((pairs.len(), labels.len()), (24, 24));
    let mut split_of = BTreeMap::new();
    for (pair, label) in pairs.iter().zip(&labels) {
        assert_eq!(pair["image"], label["image"]);
        let split = split_of.entry(pair["patient_id"].clone()).or_insert(pair["split"].clone());
        assert_eq!(*split, pair["split"]);
        let picture = ::image::open(folders[0].path().join(&pair["image"])).unwrap();
        assert!(matches!(picture, ::image::DynamicImage::ImageLuma16(ref p) if p.dimensions() == (32, 32)));
        let names = Label::ALL.iter().map(|l| l.name());
        assert!(names.clone().all(|name| (label[name] == "1") == pair["details"].contains(name)));
        assert_eq!(label[NORMAL] == "1", names.clone().all(|name| label[name] == "0"));
    }
    let coco: serde_json::Value = serde_json::from_slice(&read("boxes.json")[0]).unwrap();
    for annotation in coco["annotations"].as_array().unwrap() {
        let id = |key: &str| annotation[key].as_u64().unwrap() as usize - 1;
        assert_eq!(coco["images"][id("image_id")]["file_name"], labels[id("image_id")]["image"].as_str());
        let name = coco["categories"][id("category_id")]["name"].as_str().unwrap();
        assert_eq!(labels[id("image_id")][name], "1");
    }
    assert_eq!(rows("prompts.csv").iter().filter(|row| row["label"] == NORMAL).count(), 8);
}

#[test]
fn a_wrong_size_is_a_usage_error() {
    let folder = tempfile::tempdir().unwrap();
    let error = write(folder.path(), 1, 0, 8, Format::Png, |_| {}).unwrap_err();
    assert_eq!(error.kind(), crate::error::Kind::Usage);
}

#[test]
fn a_film_in_dicom_shows_what_was_drawn() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), 2, 3, 32, Format::Dicom, |_| {}).unwrap();
    let pairs = std::fs::read_to_string(folder.path().join("pairs.csv")).unwrap();
    assert!(pairs.lines().nth(1).unwrap().starts_with("images/000000.dcm,"), "{pairs}");
    let path = folder.path().join("images/000001.dcm");
    let (picture, notes) = crate::image::open_with_notes(path, crate::image::SixteenBit::HighByte).unwrap();
    // The whole range of 16 bits is spread over the 8.
    let levels =
        Phantom::draw(3, 1, 32).pixels.iter().map(|&x| ((u32::from(x) + 128) / 257) as u8).collect::<Vec<u8>>();
    assert_eq!((picture.pixels, notes), (levels, Vec::<String>::new()));
}
