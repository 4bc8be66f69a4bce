//! Weights in safetensors files: mapped and viewed without a copy, written whole or not at all.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use safetensors::{Dtype, SafeTensors, View};

use super::weights::{self, Storage, Weights};
use crate::buffer::FileBytes;
use crate::dtype::DType;
use crate::error::{At, Error, Result};
use crate::files;
use crate::for_dtype;
use crate::layout::Layout;
use crate::tensor::Tensor;

/// Reads the header, which names every tensor and where its bytes are; touches nothing else.
pub(super) fn parse(file: &Arc<FileBytes>) -> Result<Weights> {
    let bytes = file.bytes();
    // Parsing takes some ten times the header's size in memory, so a header is not allowed to be the file.
    let length = bytes.first_chunk::<8>().map_or(0, |b| u64::from_le_bytes(*b));
    let limit = (1 << 19) + bytes.len() / 16;
    if length > limit as u64 {
        return Err(Error::new(format!(
            "not a whole safetensors file (a header of {length} bytes where {limit} would be much); fetch or write it again"
        )));
    }
    // Checks also that every tensor's bytes are inside the file.
    let (length, header) = SafeTensors::read_metadata(bytes)
        .map_err(|e| Error::new(format!("not a whole safetensors file ({e}); fetch or write it again")))?;
    let mut out = Weights::empty("safetensors");
    for name in header.offset_keys() {
        let Some(info) = header.info(&name) else { continue };
        let refused = |e: Error| Error::new(format!("tensor {name} {e}"));
        let dtype = dtype(info.dtype)
            .ok_or_else(|| refused(Error::new(format!("has type {:?}, which is not supported", info.dtype))))?;
        let sizes: Vec<u64> = info.shape.iter().map(|&s| s as u64).collect();
        let dims = weights::dims(&sizes).map_err(refused)?;
        let (start, end) = (8 + length + info.data_offsets.0, 8 + length + info.data_offsets.1);
        let storage = Storage::in_file(file, start, end - start, dtype.size())?;
        out.insert(name, Layout::contiguous(dims, 0), dtype, &storage)?;
    }
    for (key, value) in header.metadata().iter().flatten() {
        out.describe(key.clone(), value.clone());
    }
    Ok(out)
}

fn dtype(dtype: Dtype) -> Option<DType> {
    Some(match dtype {
        Dtype::F32 => DType::F32,
        Dtype::F64 => DType::F64,
        Dtype::BF16 => DType::BF16,
        Dtype::F16 => DType::F16,
        Dtype::I64 => DType::I64,
        Dtype::I32 => DType::I32,
        Dtype::U8 => DType::U8,
        Dtype::I8 => DType::I8,
        _ => return None,
    })
}

struct Packed(Tensor);

impl View for Packed {
    fn dtype(&self) -> Dtype {
        match self.0.dtype() {
            DType::F32 => Dtype::F32,
            DType::F64 => Dtype::F64,
            DType::BF16 => Dtype::BF16,
            DType::F16 => Dtype::F16,
            DType::I64 => Dtype::I64,
            DType::I32 => Dtype::I32,
            DType::U8 => Dtype::U8,
            DType::I8 => Dtype::I8,
        }
    }
    fn shape(&self) -> &[usize] {
        self.0.dims()
    }
    fn data(&self) -> std::borrow::Cow<'_, [u8]> {
        let start = self.0.layout().offset() * self.0.dtype().size();
        self.0.buffer().bytes()[start..start + self.data_len()].into()
    }
    fn data_len(&self) -> usize {
        self.0.meta().bytes()
    }
}

/// Writes tensors and a description to `path`, whole or not at all. The same input gives the same bytes.
pub fn save<'a>(
    path: impl AsRef<Path>,
    tensors: impl IntoIterator<Item = (String, &'a Tensor)>,
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    let path = path.as_ref();
    let tensors: BTreeMap<String, Packed> = tensors.into_iter().map(|(name, t)| (name, Packed(t.packed()))).collect();
    let bytes = described(metadata)
        .and_then(|described| safetensors::serialize(tensors, described).map_err(|e| Error::new(e.to_string())));
    files::write_atomic(path, &bytes.at(path)?)
}

/// The metadata of a header. More than one entry are joined into one JSON text, but for `format`, which Hugging Face's library looks for.
/// A hash map's order must not reach the file; each new one has another, so the first that has the right one is taken.
fn described(metadata: &BTreeMap<String, String>) -> Result<Option<HashMap<String, String>>> {
    let mut entries = metadata.clone();
    if metadata.len() > 1 {
        let format = entries.remove_entry("format");
        let joined = serde_json::to_string(&entries).map_err(|e| Error::new(e.to_string()))?;
        entries = format.into_iter().chain([("tiergrad".to_owned(), joined)]).collect();
    }
    loop {
        let unordered: HashMap<String, String> = entries.clone().into_iter().collect();
        if unordered.keys().eq(entries.keys()) {
            return Ok((!entries.is_empty()).then_some(unordered));
        }
    }
}

impl Tensor {
    /// Zeros of the same dims and type.
    pub fn zeros_like(&self) -> Tensor {
        for_dtype!(self.dtype(), T => Tensor::write(*self.dims(), |out: &mut [T]| out.fill(T::default())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_saved_is_mapped_back_bit_for_bit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w.safetensors");
        let a = Tensor::from_slice(&[1.5f32, f32::NAN, -0.0, 3.0, 4.0, 5.0], [2, 3]).transpose(0, 1);
        let b = Tensor::from_slice(&[1u8, 2, 3], [3]);
        save(&path, [("a".to_owned(), &a), ("b".to_owned(), &b)], &BTreeMap::from([("k".to_owned(), "v".to_owned())]))
            .unwrap();
        for map in [true, false] {
            let weights = Weights::open(&path, map).unwrap();
            let back = weights.get("a").unwrap();
            assert_eq!(back.buffer().is_mapped(), map);
            let bits = |t: &Tensor| t.to_vec::<f32>().iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            assert_eq!((bits(back), *back.dims()), (bits(&a), *a.dims()));
            assert_eq!(weights.get("b").unwrap().to_vec::<u8>(), [1, 2, 3]);
            assert_eq!(weights.metadata()["k"], "v");
        }
    }

    #[test]
    fn damaged_files_are_errors_that_name_them() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w.safetensors");
        let a = Tensor::zeros([100], DType::F32);
        save(&path, [("a".to_owned(), &a)], &BTreeMap::new()).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for cut in [0, 4, 20, whole.len() - 1] {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let error = Weights::open(&path, true).err().unwrap().to_string();
            assert!(error.contains("w.safetensors"), "{error}");
        }
    }
}
