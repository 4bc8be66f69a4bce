//! Weights in safetensors files: mapped and viewed without a copy, written whole or not at all.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors, View};

use crate::buffer::{Buffer, MappedFile};
use crate::dtype::DType;
use crate::error::{At, Error, Result};
use crate::files;
use crate::for_dtype;
use crate::layout::{Dims, Layout, MAX_RANK};
use crate::tensor::Tensor;

/// Names to tensors, and the file they came from.
pub struct Weights {
    path: PathBuf,
    tensors: BTreeMap<String, Tensor>,
    metadata: BTreeMap<String, String>,
}

impl Weights {
    /// Opens a file. With `map` tensors are views of the mapped file (one below its element's alignment is copied), else copies.
    ///
    /// # Errors
    /// If the file cannot be read, its header is damaged, or a tensor has a type or rank that is not supported.
    pub fn open(path: impl AsRef<Path>, map: bool) -> Result<Self> {
        let path = path.as_ref();
        let file = MappedFile::open(path)?;
        Self::parse(path, &file, map).at(path)
    }

    fn parse(path: &Path, file: &std::sync::Arc<MappedFile>, map: bool) -> Result<Self> {
        let damaged = |e| Error::new(format!("not a whole safetensors file ({e}); fetch or write it again"));
        let (header, metadata) = SafeTensors::read_metadata(file.bytes()).map_err(damaged)?;
        // Checks that every tensor's bytes are inside the file.
        SafeTensors::deserialize(file.bytes()).map_err(damaged)?;
        let mut tensors = BTreeMap::new();
        for (name, info) in metadata.tensors() {
            let dtype = dtype(info.dtype).ok_or_else(|| {
                Error::new(format!("tensor {name} has type {:?}, which is not supported", info.dtype))
            })?;
            if info.shape.len() > MAX_RANK {
                return Err(Error::new(format!(
                    "tensor {name} has {} dimensions, more than {MAX_RANK}",
                    info.shape.len()
                )));
            }
            let (start, end) = (8 + header + info.data_offsets.0, 8 + header + info.data_offsets.1);
            let layout = Layout::contiguous(Dims::new(&info.shape), 0);
            let aligned = map.then(|| Buffer::mapped(file, start, end - start, dtype.size()).ok()).flatten();
            let tensor = match aligned {
                Some(buffer) => Tensor::from_buffer(buffer, layout, dtype),
                None => copied(&file.bytes()[start..end], layout, dtype),
            };
            tensors.insert(name, tensor);
        }
        let metadata = metadata.metadata().clone().unwrap_or_default().into_iter().collect();
        Ok(Self { path: path.to_path_buf(), tensors, metadata })
    }

    /// The tensor of that name.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name)
    }

    /// Every name and tensor, in order of names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// What the file says of itself.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn copied(bytes: &[u8], layout: Layout, dtype: DType) -> Tensor {
    let mut buffer = Buffer::heap::<u8>(bytes.len());
    buffer.get_mut::<u8>().expect("a new buffer is unshared")[..bytes.len()].copy_from_slice(bytes);
    Tensor::from_buffer(buffer, layout, dtype)
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
        self.0.numel() * self.0.dtype().size()
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
    // One entry at most keeps its order; more are joined into one JSON text, so that a hash map's order cannot reach the file.
    let described = match metadata.len() {
        0 => None,
        1 => Some(metadata.clone().into_iter().collect::<HashMap<_, _>>()),
        _ => Some(HashMap::from([(
            "tiergrad".to_owned(),
            serde_json::to_string(metadata).map_err(|e| Error::new(e.to_string()))?,
        )])),
    };
    let bytes = safetensors::serialize(tensors, described).map_err(|e| Error::new(e.to_string())).at(path)?;
    files::write_atomic(path, &bytes)
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
