//! boxes.json: where findings are, as COCO files say it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;

use crate::error::{At, Error, Result};
use crate::files::ROOM;

/// Boxes of images.
#[derive(Clone, Debug, PartialEq)]
pub struct Boxes {
    /// By image (its `file_name`, as the tables name it); an image without a finding has none.
    pub of: BTreeMap<String, Vec<Annotation>>,
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
const OBJECT: usize = 200;

impl Boxes {
    /// Reads a COCO file; keys besides `images`, `annotations` and `categories` are ignored.
    ///
    /// # Errors
    /// If it is no such file, an id is twice or nowhere, or a box has no area; the message names the annotation.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        Self::parse(&std::fs::read(path).at(path)?).at(path)
    }

    fn parse(bytes: &[u8]) -> Result<Self> {
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
        for image in &coco.images {
            if images.insert(image.id, &image.file_name).is_some() {
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
                images.get(&found.image_id).ok_or_else(|| wrong(format!("no image has id {}", found.image_id)))?;
            let label = categories
                .get(&found.category_id)
                .ok_or_else(|| wrong(format!("no category has id {}", found.category_id)))?;
            let bbox = found.bbox;
            if bbox.iter().any(|x| !x.is_finite()) || bbox[2] <= 0.0 || bbox[3] <= 0.0 {
                return Err(wrong(format!("bbox {bbox:?} has no area; give [x, y, width, height] in source pixels")));
            }
            of.entry((*image).clone()).or_default().push(Annotation { label: label.clone(), bbox });
        }
        Ok(Self { of })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(annotations: &str) -> Result<Boxes> {
        let json = format!(
            r#"{{"info": {{}}, "images": [{{"id": 7, "file_name": "images/a.png", "width": 4}}, {{"id": 8, "file_name": "b.png"}}],
                "categories": [{{"id": 1, "name": "Nodule"}}], "annotations": [{annotations}]}}"#
        );
        Boxes::parse(json.as_bytes())
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
            Boxes::parse(json.as_bytes()).unwrap_err().to_string()
        };
        assert!(twice("image", r#", {"id": 1, "file_name": "b"}"#).contains("image id 1 is there twice"));
        assert!(twice("image", r#", {"id": 2, "file_name": "a"}"#).contains("image \"a\" is there twice"));
        assert!(twice("category", r#", {"id": 1, "name": "m"}"#).contains("category id 1 is there twice"));
        let hollow = format!(r#"{{"images": [{}], "annotations": [], "categories": []}}"#, "{},".repeat(90_000));
        assert!(Boxes::parse(hollow.as_bytes()).unwrap_err().to_string().contains("90001 objects"));
        assert!(Boxes::parse(b"[]").unwrap_err().to_string().contains("COCO"));
        assert!(Boxes::parse(b"").is_err());
    }
}
