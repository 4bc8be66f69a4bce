//! The weights of a model folder: one file, or the index of several.

use std::collections::BTreeMap;
use std::path::{Component, Path};

use serde::Deserialize;

use super::weights::{MAX_TENSORS, Weights};
use crate::error::{At, Error, Result};

/// Files of weights, the first that is there is taken. Safetensors before pickles.
const FILES: [&str; 6] = [
    "model.safetensors",
    "model.safetensors.index.json",
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "open_clip_pytorch_model.bin",
];
/// Longest index, in bytes.
const MAX_INDEX: u64 = 2 << 20;

/// Which file has which tensor, as Hugging Face writes it.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Weights {
    /// Opens the weights of a model folder as [`Weights::open`] does: the first of model.safetensors, model.safetensors.index.json
    /// (and the files that it names), open_clip_model.safetensors, pytorch_model.bin, pytorch_model.bin.index.json,
    /// open_clip_pytorch_model.bin. Others that are there are noted.
    ///
    /// # Errors
    /// If there is none, the index names files outside the folder or tensors that are in none, or as [`Weights::open`] does.
    pub fn open_folder(folder: impl AsRef<Path>, map: bool) -> Result<Self> {
        let folder = folder.as_ref();
        let mut there = FILES.iter().filter(|name| folder.join(name).is_file());
        let Some(first) = there.next() else {
            return Err(Error::new(format!("a folder without weights: none of {}", FILES.join(", "))).at(folder));
        };
        let path = folder.join(first);
        let mut weights =
            if first.ends_with(".json") { Self::open_index(&path, map)? } else { Self::open(&path, map)? };
        for other in there {
            weights.note(format!("{first} was read; {other} is there too and was not"));
        }
        Ok(weights)
    }

    /// Opens the files that an index names; the index is the path of the whole.
    pub fn open_index(path: impl AsRef<Path>, map: bool) -> Result<Self> {
        let path = path.as_ref();
        let size = std::fs::metadata(path).at(path)?.len();
        if size > MAX_INDEX {
            return Err(Error::new(format!("{size} bytes, too long for an index of weights")).at(path));
        }
        let index: Index = serde_json::from_slice(&std::fs::read(path).at(path)?)
            .map_err(|e| Error::new(format!("not an index of weights, which maps tensors to files: {e}")))
            .at(path)?;
        if index.weight_map.is_empty() || index.weight_map.len() > MAX_TENSORS {
            let count = index.weight_map.len();
            return Err(Error::new(format!("names {count} tensors, where 1 to {MAX_TENSORS} are expected")).at(path));
        }
        let mut by_file: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (tensor, file) in &index.weight_map {
            by_file.entry(file).or_default().push(tensor);
        }
        let mut out = Self::empty("several files");
        for (file, tensors) in &by_file {
            let relative = Path::new(file);
            if file.is_empty()
                || file.contains('\\')
                || !relative.components().all(|c| matches!(c, Component::Normal(_)))
            {
                return Err(Error::new(format!("names {file:?}, which is not a file inside its folder")).at(path));
            }
            let mut part = Self::open(path.with_file_name(relative), map)?;
            for tensor in tensors {
                if !out.take(tensor, &mut part) {
                    return Err(Error::new(format!(
                        "says that {tensor} is in {file}, where it is not; fetch both again"
                    ))
                    .at(path));
                }
            }
            for (extra, _) in part.metas() {
                out.note(format!("{extra} of {file} is not in the index and was not read"));
            }
            for (key, value) in part.metadata() {
                out.describe(key.clone(), value.clone());
            }
            out.take_files(&mut part);
            part.notes().iter().for_each(|note| out.note(format!("{file}: {note}")));
        }
        out.set_path(path);
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::safetensors;
    use crate::tensor::Tensor;

    fn write(path: &Path, tensors: &[(&str, f32)]) {
        let tensors: Vec<_> =
            tensors.iter().map(|&(name, x)| (name.to_owned(), Tensor::from_slice(&[x], [1]))).collect();
        safetensors::save(path, tensors.iter().map(|(n, t)| (n.clone(), t)), &BTreeMap::new()).unwrap();
    }

    #[test]
    fn an_index_joins_its_files_and_stays_in_its_folder() {
        let outside = tempfile::tempdir().unwrap();
        let folder = outside.path().join("model");
        std::fs::create_dir(&folder).unwrap();
        let index = |text: &str| {
            std::fs::write(folder.join("model.safetensors.index.json"), text).unwrap();
            Weights::open_folder(&folder, true).map_err(|e| e.to_string())
        };
        write(&folder.join("a.safetensors"), &[("one", 1.0), ("two", 2.0)]);
        write(&folder.join("b.safetensors"), &[("three", 3.0), ("four", 4.0)]);
        write(&outside.path().join("c.safetensors"), &[("one", 1.0)]);

        let weights =
            index(r#"{"weight_map": {"one": "a.safetensors", "two": "a.safetensors", "three": "b.safetensors"}}"#)
                .unwrap();
        assert_eq!(weights.iter().map(|(_, t)| t.to_vec::<f32>()[0]).collect::<Vec<_>>(), [1.0, 3.0, 2.0]);
        assert!(weights.notes()[0].contains("four") && weights.path().ends_with("model.safetensors.index.json"));

        let error = |text: &str| index(text).err().unwrap();
        let absolute = outside.path().join("c.safetensors").display().to_string();
        for escaping in ["../c.safetensors", &absolute, "a/../../c.safetensors", ".", "", "..\\c.safetensors"] {
            let text = serde_json::json!({ "weight_map": { "one": escaping } }).to_string();
            assert!(error(&text).contains("not a file inside its folder"), "{escaping}");
        }
        assert!(
            error(r#"{"weight_map": {"five": "a.safetensors"}}"#).contains("five is in a.safetensors, where it is not")
        );
        assert!(error(r#"{"weight_map": {"one": "gone.safetensors"}}"#).contains("gone.safetensors"));
        assert!(error(r#"{"weight_map": {}}"#).contains("0 tensors"));
        assert!(error("[]").contains("not an index"));
    }

    #[test]
    fn a_folder_has_one_file_of_weights_that_counts() {
        let folder = tempfile::tempdir().unwrap();
        let error = Weights::open_folder(folder.path(), true).err().unwrap().to_string();
        assert!(error.contains("pytorch_model.bin"), "{error}");
        write(&folder.path().join("open_clip_model.safetensors"), &[("w", 1.0)]);
        std::fs::write(folder.path().join("pytorch_model.bin"), b"").unwrap();
        let weights = Weights::open_folder(folder.path(), true).unwrap();
        assert!(weights.get("w").is_some() && weights.notes()[0].contains("pytorch_model.bin"));
    }
}
