//! boxes.json: where findings are, as COCO files say it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;

use super::{Labels, Pairs, Prompts};
use crate::error::{At, Error, Result};
use crate::files::ROOM;

/// Boxes of images.
#[derive(Clone, Default, PartialEq)]
pub struct Boxes {
    /// The file.
    pub path: PathBuf,
    /// By image (its `file_name`, as the tables name it); an image without a finding has none.
    pub of: BTreeMap<String, Vec<Annotation>>,
    /// Width and height that the file declares, of images with findings.
    pub declared: BTreeMap<String, [f64; 2]>,
}

/// A run's fingerprint is made of this: of the boxes, wherever their file lies.
impl fmt::Debug for Boxes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Boxes").field("of", &self.of).finish()
    }
}

/// One finding in one place.
#[derive(Clone, Debug, PartialEq)]
pub struct Annotation {
    /// The category's name: a label.
    pub label: Arc<str>,
    /// Left, top, width, height in pixels of the source picture.
    pub bbox: [f64; 4],
}

#[derive(Deserialize)]
struct Coco {
    images: Vec<Image>,
    annotations: Vec<Found>,
    categories: Vec<Category>,
}

#[derive(Deserialize)]
struct Image {
    id: i64,
    file_name: String,
    width: Option<f64>,
    height: Option<f64>,
}

#[derive(Deserialize)]
struct Category {
    id: i64,
    name: Arc<str>,
}

#[derive(Deserialize)]
struct Found {
    image_id: i64,
    category_id: i64,
    bbox: [f64; 4],
}

/// Memory that an image or annotation takes while it is put in its place.
const OBJECT: usize = 260;
/// Pixels that a box may reach out of its picture: as many as rounding takes.
const ROUNDING: f64 = 1.0;
/// What a box has to be.
const REMEDY: &str = "give [x, y, width, height] in source pixels";

impl Boxes {
    /// Reads a COCO file; keys besides `images`, `annotations` and `categories` are ignored.
    ///
    /// # Errors
    /// If it is no such file, an id is twice or nowhere, or a box has no area or reaches out of the size that the file declares; the
    /// message names the annotation.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        Self::parse(path, &std::fs::read(path).at(path)?).at(path)
    }

    fn parse(path: &Path, bytes: &[u8]) -> Result<Self> {
        let bytes = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes);
        let objects = bytes.iter().filter(|&&byte| byte == b'{').count();
        if OBJECT * objects > 3 * bytes.len() + ROOM {
            let len = bytes.len();
            return Err(Error::new(format!(
                "{objects} objects in {len} bytes are more, and shorter, than those of boxes"
            )));
        }
        let coco: Coco = serde_json::from_slice(bytes)
            .map_err(|e| Error::new(format!("{e}; boxes are COCO JSON with images, annotations and categories")))?;
        let twice = |what: &str, id: i64| Error::new(format!("{what} id {id} is there twice; give each its own"));
        let mut images = BTreeMap::new();
        let mut of: BTreeMap<String, Vec<Annotation>> = BTreeMap::new();
        let mut declared = BTreeMap::new();
        for image in &coco.images {
            if images.insert(image.id, image).is_some() {
                return Err(twice("image", image.id));
            }
            if of.insert(image.file_name.clone(), Vec::new()).is_some() {
                return Err(Error::new(format!("image {:?} is there twice; keep one", image.file_name)));
            }
        }
        let mut categories = BTreeMap::new();
        for category in &coco.categories {
            if categories.insert(category.id, category.name.clone()).is_some() {
                return Err(twice("category", category.id));
            }
        }
        for (i, found) in coco.annotations.iter().enumerate() {
            let wrong = |what: String| Error::new(format!("annotation {i} (counted from 0): {what}"));
            let image =
                *images.get(&found.image_id).ok_or_else(|| wrong(format!("no image has id {}", found.image_id)))?;
            let label = categories
                .get(&found.category_id)
                .ok_or_else(|| wrong(format!("no category has id {}", found.category_id)))?;
            let bbox = found.bbox;
            if bbox.iter().any(|x| !x.is_finite()) || bbox[2] <= 0.0 || bbox[3] <= 0.0 {
                return Err(wrong(format!("bbox {bbox:?} has no area; {REMEDY}")));
            }
            let name = &image.file_name;
            if let (Some(width), Some(height)) = (image.width, image.height) {
                if reaches_out(bbox, [width, height]) {
                    let of = format!("image {name:?}, declared as {width} x {height} pixels");
                    return Err(wrong(format!("bbox {bbox:?} reaches out of {of}; {REMEDY}")));
                }
                declared.entry(name.clone()).or_insert([width, height]);
            }
            of.entry(name.clone()).or_default().push(Annotation { label: label.clone(), bbox });
        }
        Ok(Self { path: path.to_path_buf(), of, declared })
    }

    /// The boxes of an image, where it has some.
    pub fn found(&self, image: &str) -> Option<&[Annotation]> {
        self.of.get(image).map(Vec::as_slice).filter(|found| !found.is_empty())
    }

    /// Checks an image's boxes against its picture of so many pixels.
    ///
    /// # Errors
    /// If the file declares another size, or a box reaches out of the picture by more than a pixel; the message names image and box.
    pub fn check(&self, image: &str, (width, height): (usize, usize)) -> Result<()> {
        let size = [width as f64, height as f64];
        let wrong = |what: String| {
            Err(Error::new(format!("image {image:?} has {width} x {height} pixels, {what}")).at(&self.path))
        };
        if let Some([width, height]) = self.declared.get(image).filter(|declared| **declared != size) {
            return wrong(format!("not {width} x {height} as it is declared; give size and boxes of this picture"));
        }
        match self.found(image).unwrap_or_default().iter().find(|found| reaches_out(found.bbox, size)) {
            Some(Annotation { label, bbox }) => {
                wrong(format!("and bbox {bbox:?} of {label:?} reaches out of them; {REMEDY}"))
            }
            None => Ok(()),
        }
    }

    /// One line on boxes that are left out because nothing else names their images or labels, if there are such.
    pub fn strangers(&self, pairs: &Pairs, labels: Option<&Labels>, prompts: &Prompts) -> Option<String> {
        let images: BTreeSet<&str> = pairs.rows.iter().map(|row| row.image.as_str()).collect();
        let labels = labels.iter().flat_map(|l| &l.names).chain(prompts.0.iter().map(|p| &p.label));
        let labels: BTreeSet<&str> = labels.map(String::as_str).collect();
        let boxed = self.of.keys().map(String::as_str).filter(|image| self.found(image).is_some());
        let of_images: Vec<&str> = boxed.filter(|image| !images.contains(image)).collect();
        let named: BTreeSet<&str> = self.of.values().flatten().map(|found| &*found.label).collect();
        let of_labels: Vec<&str> = named.into_iter().filter(|label| !labels.contains(label)).collect();
        let some = [(of_images, "images that are not in the pairs"), (of_labels, "labels that no table has")];
        let some: Vec<String> = some
            .iter()
            .filter(|(names, _)| !names.is_empty())
            .map(|(names, what)| {
                let first = names.iter().take(3).map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", ");
                format!("{} {what}, such as {first}", names.len())
            })
            .collect();
        (!some.is_empty()).then(|| format!("{}: left out are boxes of {}", self.path.display(), some.join("; and of ")))
    }
}

fn reaches_out([x, y, width, height]: [f64; 4], size: [f64; 2]) -> bool {
    x.min(y) < -ROUNDING || x + width > size[0] + ROUNDING || y + height > size[1] + ROUNDING
}

#[cfg(test)]
mod tests {
    use super::super::table::tests::folder;
    use super::*;

    fn read(json: &str) -> Result<Boxes> {
        Boxes::parse(Path::new("b.json"), json.as_bytes())
    }

    fn parse(annotations: &str) -> Result<Boxes> {
        let json = format!(
            r#"{{"info": {{}}, "images": [{{"id": 7, "file_name": "images/a.png", "width": 4}}, {{"id": 8, "file_name": "b.png"}}],
                "categories": [{{"id": 1, "name": "Nodule"}}], "annotations": [{annotations}]}}"#
        );
        read(&json)
    }

    #[test]
    fn boxes_are_found_by_image() {
        let boxes = parse(r#"{"id": 0, "image_id": 7, "category_id": 1, "bbox": [1, 2.5, 3, 4], "area": 12}"#).unwrap();
        assert_eq!(boxes.of["images/a.png"], [Annotation { label: "Nodule".into(), bbox: [1.0, 2.5, 3.0, 4.0] }]);
        assert!(boxes.of["b.png"].is_empty());
    }

    #[test]
    fn complaints_name_the_annotation() {
        let error = |annotations| parse(annotations).unwrap_err().to_string();
        assert!(
            error(r#"{"image_id": 9, "category_id": 1, "bbox": [1, 2, 3, 4]}"#)
                .contains("annotation 0 (counted from 0): no image has id 9")
        );
        assert!(error(r#"{"image_id": 7, "category_id": 2, "bbox": [1, 2, 3, 4]}"#).contains("no category has id 2"));
        assert!(error(r#"{"image_id": 7, "category_id": 1, "bbox": [1, 2, 0, 4]}"#).contains("has no area"));
        assert!(error(r#"{"image_id": 7, "category_id": 1, "bbox": [1, 2, 3]}"#).contains("line "));
        let twice = |what: &str, more: &str| {
            let (mut images, mut categories) =
                (r#"{"id": 1, "file_name": "a"}"#.to_owned(), r#"{"id": 1, "name": "n"}"#.to_owned());
            (if what == "image" { &mut images } else { &mut categories }).push_str(more);
            let json = format!(r#"{{"images": [{images}], "categories": [{categories}], "annotations": []}}"#);
            read(&json).unwrap_err().to_string()
        };
        assert!(twice("image", r#", {"id": 1, "file_name": "b"}"#).contains("image id 1 is there twice"));
        assert!(twice("image", r#", {"id": 2, "file_name": "a"}"#).contains("image \"a\" is there twice"));
        assert!(twice("category", r#", {"id": 1, "name": "m"}"#).contains("category id 1 is there twice"));
        let hollow = format!(r#"{{"images": [{}], "annotations": [], "categories": []}}"#, "{},".repeat(90_000));
        assert!(read(&hollow).unwrap_err().to_string().contains("90001 objects"));
        assert!(read("[]").unwrap_err().to_string().contains("COCO"));
        assert!(read("").is_err());
    }

    /// Boxes of the label `n` of a film, whose size is declared or not.
    fn film(size: &str, bbox: &str) -> Result<Boxes> {
        read(&format!(
            r#"{{"images": [{{"id": 1, "file_name": "a.png"{size}}}], "categories": [{{"id": 1, "name": "n"}}],
                "annotations": [{{"image_id": 1, "category_id": 1, "bbox": {bbox}}}]}}"#
        ))
    }

    #[test]
    fn boxes_that_do_not_fit_their_picture_are_errors() {
        let declared = r#", "width": 64, "height": 48"#;
        for (bbox, fits) in [
            ("[0, 0, 64, 48]", true),
            ("[-1, -0.5, 66, 49.5]", true),
            ("[60, 40, 5, 9]", true),
            ("[60, 40, 5.1, 9]", false),
            ("[60, 40, 5, 9.1]", false),
            ("[-1.1, 0, 4, 4]", false),
            ("[0, -1.1, 4, 4]", false),
            ("[100, 190, 200, 110]", false),
            ("[1, 2, 1e30, 4]", false),
        ] {
            // Where it is declared and where it is not.
            assert_eq!(film(declared, bbox).is_ok(), fits, "{bbox}");
            assert_eq!(film("", bbox).unwrap().check("a.png", (64, 48)).is_ok(), fits, "{bbox}");
        }
        assert_eq!(
            film(declared, "[100, 190, 200, 110]").unwrap_err().to_string(),
            "annotation 0 (counted from 0): bbox [100.0, 190.0, 200.0, 110.0] reaches out of image \"a.png\", declared as 64 x 48 \
             pixels; give [x, y, width, height] in source pixels"
        );
        let (small, other) = (film("", "[50, 2, 30, 4]").unwrap(), film(declared, "[1, 2, 3, 4]").unwrap());
        assert_eq!(
            small.check("a.png", (64, 48)).unwrap_err().to_string(),
            "b.json: image \"a.png\" has 64 x 48 pixels, and bbox [50.0, 2.0, 30.0, 4.0] of \"n\" reaches out of them; give [x, y, \
             width, height] in source pixels"
        );
        assert_eq!(
            other.check("a.png", (128, 96)).unwrap_err().to_string(),
            "b.json: image \"a.png\" has 128 x 96 pixels, not 64 x 48 as it is declared; give size and boxes of this picture"
        );
        other.check("a.png", (64, 48)).unwrap();
        other.check("b.png", (1, 1)).unwrap();
    }

    #[test]
    fn boxes_that_no_table_names_are_counted_and_the_first_named() {
        let images: String = (0..6).map(|i| format!(r#"{{"id": {i}, "file_name": "{i}.png"}},"#)).collect();
        let found: String = (0..5)
            .map(|i| format!(r#"{{"image_id": {i}, "category_id": {}, "bbox": [1, 2, 3, 4]}},"#, i % 2))
            .collect();
        let boxes = read(&format!(
            r#"{{"images": [{}], "categories": [{{"id": 0, "name": "n"}}, {{"id": 1, "name": "m"}}], "annotations": [{}]}}"#,
            images.trim_end_matches(','),
            found.trim_end_matches(',')
        ))
        .unwrap();
        let names = ["0.png", "1.png", "2.png", "3.png", "4.png"];
        let tables =
            names.map(|name| (name, "")).into_iter().chain([("all.csv", ""), ("some.csv", ""), ("prompts.csv", "")]);
        let folder = folder(&tables.collect::<Vec<_>>());
        let write = |name: &str, text: String| std::fs::write(folder.path().join(name), text).unwrap();
        write("all.csv", format!("image,text\n{},t\n", names.join(",t\n")));
        write("some.csv", "image,text\n4.png,t\n".to_owned());
        write("prompts.csv", "label,polarity,text\nn,positive,t\n".to_owned());
        let prompts = Prompts::open(folder.path().join("prompts.csv")).unwrap();
        let known = Labels { names: vec!["m".to_owned()], of: BTreeMap::new() };
        let of = |pairs: &str, labels: Option<&Labels>| {
            boxes.strangers(&Pairs::open(folder.path().join(pairs), 0).unwrap(), labels, &prompts)
        };
        assert_eq!(of("all.csv", Some(&known)), None);
        assert_eq!(
            of("some.csv", None).unwrap(),
            "b.json: left out are boxes of 4 images that are not in the pairs, such as \"0.png\", \"1.png\", \"2.png\"; and of 1 labels \
             that no table has, such as \"m\""
        );
    }
}
