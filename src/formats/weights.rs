//! Named tensors of a file, whatever its format: listed at once, their bytes mapped or copied when first asked for.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use super::{safetensors, torch};
use crate::buffer::{Buffer, FileBytes};
use crate::dtype::DType;
use crate::error::{At, Error, Result};
use crate::layout::{Dims, Layout, MAX_RANK};
use crate::op::Meta;
use crate::tensor::Tensor;

/// Most tensors a file may have: ten times what the largest model here has.
pub const MAX_TENSORS: usize = 16_384;
/// Longest name of a tensor, in bytes.
pub(super) const MAX_NAME: usize = 1024;

/// Names to tensors, and the file they came from.
pub struct Weights {
    path: PathBuf,
    format: &'static str,
    tensors: BTreeMap<String, Entry>,
    metadata: BTreeMap<String, String>,
    notes: Vec<String>,
    /// The files whose bytes the tensors are.
    files: Vec<Arc<FileBytes>>,
    /// By file, the parts that it has checksums of.
    sums: BTreeMap<PathBuf, Vec<Sum>>,
}

/// A part of a file and the CRC-32 that the file gives it.
pub(super) struct Sum {
    pub name: String,
    pub start: usize,
    pub len: usize,
    pub crc: u32,
}

/// A tensor that is made when first asked for.
struct Entry {
    layout: Layout,
    dtype: DType,
    storage: Arc<Storage>,
    tensor: OnceLock<Tensor>,
}

/// Bytes that one tensor or several share.
pub(super) struct Storage {
    source: Source,
    buffer: OnceLock<Buffer>,
}

enum Source {
    /// A part of the file that lies inside it, wanted as elements of `alignment` bytes.
    File { file: Arc<FileBytes>, start: usize, len: usize, alignment: usize },
    /// Bytes that had to be unpacked.
    Memory(Buffer),
}

impl Storage {
    /// Bytes `start..start + len` of a file, seen in place where their alignment allows, else copied when first asked for.
    ///
    /// # Errors
    /// If they are not inside the file.
    pub fn in_file(file: &Arc<FileBytes>, start: usize, len: usize, alignment: usize) -> Result<Arc<Self>> {
        if start.checked_add(len).is_none_or(|end| end > file.bytes().len()) {
            let size = file.bytes().len();
            return Err(Error::new(format!(
                "cut short: bytes {start} to {start} + {len} are wanted of a file of {size}; fetch it again"
            )));
        }
        let source = Source::File { file: file.clone(), start, len, alignment };
        Ok(Arc::new(Self { source, buffer: OnceLock::new() }))
    }

    /// Bytes in memory.
    pub fn in_memory(bytes: &[u8]) -> Arc<Self> {
        Arc::new(Self { source: Source::Memory(Buffer::copied(bytes)), buffer: OnceLock::new() })
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        match &self.source {
            Source::File { len, .. } => *len,
            Source::Memory(buffer) => buffer.bytes().len(),
        }
    }

    fn buffer(&self) -> Buffer {
        let make = || match &self.source {
            Source::File { file, start, len, alignment } => Buffer::in_file(file, *start, *len, *alignment)
                .or_else(|_| Buffer::read(file, *start, *len))
                .unwrap_or_else(|e| panic!("{e}")),
            Source::Memory(buffer) => buffer.clone(),
        };
        self.buffer.get_or_init(make).clone()
    }
}

impl Weights {
    /// Opens a safetensors file or one of torch.save (zip or the format before 1.6; state dicts, checkpoints around them,
    /// TorchScript archives), recognised by its first bytes. With `map`, and where that is safe (see [`FileBytes`]), no tensor's
    /// bytes are read, and tensors are views of the mapped file (a misaligned one is copied when first asked for); else the file is
    /// copied into memory at once.
    ///
    /// # Errors
    /// If the file cannot be read, is damaged, is of another format, or holds what tensors need but this program does not
    /// read: element types, more than 6 dimensions, callables outside the allow-list of `formats::torch`.
    pub fn open(path: impl AsRef<Path>, map: bool) -> Result<Self> {
        let path = path.as_ref();
        let file = FileBytes::open(path, map)?;
        let parse = || match Format::of(file.bytes())? {
            Format::Safetensors => safetensors::parse(&file),
            Format::TorchZip => torch::parse_zip(&file),
            Format::TorchLegacy => torch::parse_legacy(&file),
        };
        let mut weights = file.scattered(parse).at(path)?;
        weights.files.push(file);
        weights.path = path.to_path_buf();
        if let Some(sums) = weights.sums.remove(Path::new("")) {
            weights.sums.insert(path.to_path_buf(), sums);
        }
        Ok(weights)
    }

    /// Nothing yet, of a file whose path is filled in later.
    pub(super) fn empty(format: &'static str) -> Self {
        Self {
            path: PathBuf::new(),
            format,
            tensors: BTreeMap::new(),
            metadata: BTreeMap::new(),
            notes: Vec::new(),
            files: Vec::new(),
            sums: BTreeMap::new(),
        }
    }

    /// Adds a view of a storage.
    ///
    /// # Errors
    /// If the view reaches beyond the storage, the name is unreasonable or there are too many.
    pub(super) fn insert(&mut self, name: String, layout: Layout, dtype: DType, storage: &Arc<Storage>) -> Result<()> {
        if name.len() > MAX_NAME || self.tensors.len() >= MAX_TENSORS {
            let (shown, cut) = (name.chars().take(40).collect::<String>(), MAX_NAME);
            return Err(Error::new(format!(
                "at {shown:?}: more than {MAX_TENSORS} tensors or a name of more than {cut} bytes; this is no model's file"
            )));
        }
        if layout.end().checked_mul(dtype.size()).is_none_or(|end| end > storage.len()) {
            return Err(Error::new(format!(
                "tensor {name} ({dtype} {layout:?}) reaches beyond its {} bytes",
                storage.len()
            )));
        }
        self.tensors.insert(name, Entry { layout, dtype, storage: storage.clone(), tensor: OnceLock::new() });
        Ok(())
    }

    /// Notes checksums of the file, whose path is filled in later.
    pub(super) fn sums(&mut self, sums: Vec<Sum>) {
        self.sums.insert(PathBuf::new(), sums);
    }

    /// Takes the files of other weights, with their checksums.
    pub(super) fn take_files(&mut self, other: &mut Self) {
        self.files.append(&mut other.files);
        self.sums.append(&mut other.sums);
    }

    /// Whether the files are still those that were opened, and what their checksums say, where the format has any: torch.save's zip
    /// does, of the pickle and of every storage. Reads those bytes, once and in order, without mapping them.
    ///
    /// # Errors
    /// If a mapped file was cut or written to, the checksums differ, naming the storage, or the file cannot be read.
    pub fn check(&self) -> Result<()> {
        self.files.iter().try_for_each(|file| file.intact())?;
        for (path, sums) in &self.sums {
            let mut file = BufReader::with_capacity(1 << 20, File::open(path).at(path)?);
            let mut wrong = Vec::new();
            for Sum { name, start, len, crc } in sums {
                file.seek(SeekFrom::Start(*start as u64)).at(path)?;
                if crc32((&mut file).take(*len as u64)).at(path)? != *crc {
                    wrong.push(name.as_str());
                }
            }
            // torch.save can be told to leave checksums out; then it is wrong about everything.
            if !wrong.is_empty() && (wrong.len() < sums.len() || sums.len() == 1) {
                return Err(Error::new(format!(
                    "damaged: {} of {} parts are not what their checksums say, among them {}; fetch or write it again",
                    wrong.len(),
                    sums.len(),
                    wrong[0]
                ))
                .at(path));
            }
        }
        Ok(())
    }

    /// Takes one tensor out of other weights; false if they have none of that name.
    pub(super) fn take(&mut self, name: &str, other: &mut Self) -> bool {
        let Some((name, entry)) = other.tensors.remove_entry(name) else { return false };
        self.tensors.insert(name, entry);
        true
    }

    pub(super) fn set_path(&mut self, path: &Path) {
        self.path = path.to_path_buf();
    }

    pub(super) fn describe(&mut self, key: String, value: String) {
        self.metadata.insert(key, value);
    }

    pub(super) fn note(&mut self, note: String) {
        self.notes.push(note);
    }

    /// The files whose bytes the tensors are: one, or those that an index names.
    pub fn files(&self) -> &[Arc<FileBytes>] {
        &self.files
    }

    /// The tensor of that name. Views of one torch storage share their bytes.
    ///
    /// # Panics
    /// If it has to be copied, as a misaligned one, and the file was cut since it was opened, which [`Weights::check`] tells.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name).map(Entry::tensor)
    }

    /// The tensor of that name for a single use: read past the mapping, so that no page of the file stays in memory for it.
    ///
    /// # Errors
    /// If it cannot be read, as where the file was cut or written to since it was opened.
    pub fn read(&self, name: &str) -> Result<Option<Tensor>> {
        self.tensors.get(name).map(Entry::read).transpose()
    }

    /// Every name and tensor, in order of names.
    ///
    /// # Panics
    /// As [`Weights::get`].
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.tensors.iter().map(|(name, entry)| (name.as_str(), entry.tensor()))
    }

    /// Every name with the dims and type of its tensor, in order of names; touches no tensor's bytes.
    pub fn metas(&self) -> impl Iterator<Item = (&str, Meta)> {
        self.tensors.iter().map(|(name, entry)| (name.as_str(), entry.meta()))
    }

    /// Dims and type of the tensor of that name; touches no tensor's bytes.
    pub fn meta(&self, name: &str) -> Option<Meta> {
        self.tensors.get(name).map(Entry::meta)
    }

    /// What the file says of itself; for torch files the plain numbers and texts that lie beside the tensors.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// What was skipped, stripped or chosen on the way, one line each.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// What kind of file it is, in words.
    pub fn format(&self) -> &'static str {
        self.format
    }

    /// The file; of a model in several files their index.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Entry {
    fn tensor(&self) -> &Tensor {
        self.tensor.get_or_init(|| Tensor::from_buffer(self.storage.buffer(), self.layout, self.dtype))
    }

    fn read(&self) -> Result<Tensor> {
        let made = self.tensor.get().is_some() || self.storage.buffer.get().is_some();
        match &self.storage.source {
            Source::File { file, start, .. } if !made => {
                let (from, size) = (self.layout.offset(), self.dtype.size());
                let bytes = Buffer::read(file, start + from * size, (self.layout.end() - from) * size)?;
                let layout = Layout::strided(*self.layout.dims(), self.layout.strides(), 0);
                Ok(Tensor::from_buffer(bytes, layout, self.dtype))
            }
            _ => Ok(self.tensor().clone()),
        }
    }

    fn meta(&self) -> Meta {
        Meta { dims: *self.layout.dims(), dtype: self.dtype }
    }
}

enum Format {
    Safetensors,
    TorchZip,
    TorchLegacy,
}

impl Format {
    /// Recognises a file by its bytes.
    fn of(bytes: &[u8]) -> Result<Self> {
        const OTHERS: [(&[u8], &str); 9] = [
            (b"version https://git-lfs", "a Git LFS pointer, not the file itself; run `git lfs pull`"),
            (b"<", "a web page, so the download went wrong; fetch the file again"),
            (b"\x1f\x8b", "gzip-compressed; unpack it first"),
            (b"\x89HDF", "HDF5 (Keras, TensorFlow); convert it to safetensors"),
            (b"GGUF", "GGUF; convert it to safetensors"),
            (b"\x93NUMPY", "a NumPy array; convert it to safetensors"),
            (b"\x89PNG", "a picture, not weights"),
            (b"\xff\xd8\xff", "a picture, not weights"),
            (b"PK\x05\x06", "an empty zip archive; fetch or write it again"),
        ];
        // First, because the length that it begins with can look like any other format's first bytes.
        let header = bytes.split_first_chunk::<8>().filter(|(_, rest)| rest.starts_with(b"{"));
        if header.is_some_and(|(length, rest)| u64::from_le_bytes(*length) <= rest.len() as u64) {
            return Ok(Self::Safetensors);
        }
        if let Some((_, what)) = OTHERS.iter().find(|(start, _)| bytes.starts_with(start)) {
            return Err(Error::new(*what));
        }
        if bytes.starts_with(b"PK\x03\x04") {
            return Ok(Self::TorchZip);
        }
        if bytes.first() == Some(&0x80) && bytes.get(1).is_some_and(|&protocol| (2..=5).contains(&protocol)) {
            return Ok(Self::TorchLegacy);
        }
        if bytes.get(257..262) == Some(b"ustar") {
            return Err(Error::new(
                "torch.save's tar format of before 2017; load and save it again with a current torch",
            ));
        }
        match bytes.split_first_chunk::<8>() {
            Some((_, rest)) if rest.starts_with(b"{") => Ok(Self::Safetensors),
            _ => Err(Error::new("neither safetensors nor a file of torch.save, or cut short; fetch or write it again")),
        }
    }
}

/// CRC-32 (that of zip and gzip) of all that a reader gives.
pub(super) fn crc32(reader: impl Read) -> std::io::Result<u32> {
    let mut reader = flate2::CrcReader::new(reader);
    std::io::copy(&mut reader, &mut std::io::sink())?;
    Ok(reader.crc().sum())
}

/// Dims from sizes that a file declares.
///
/// # Errors
/// If there are more than 6, or more elements than memory has addresses.
pub(super) fn dims(sizes: &[u64]) -> Result<Dims> {
    if sizes.len() > MAX_RANK {
        return Err(Error::new(format!("has {} dimensions, more than {MAX_RANK}", sizes.len())));
    }
    let mut out = [0; MAX_RANK];
    let mut product = 1usize;
    for (o, &size) in out.iter_mut().zip(sizes) {
        let fits = usize::try_from(size).ok().and_then(|s| product.checked_mul(s.max(1)).map(|p| (s, p)));
        let Some((size, p)) = fits.filter(|&(_, p)| p <= isize::MAX as usize / 16) else {
            return Err(Error::new(format!("has dimensions {sizes:?}, more elements than any memory holds")));
        };
        (*o, product) = (size, p);
    }
    Ok(Dims::new(&out[..sizes.len()]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn declared_dims_never_overflow() {
        assert_eq!(dims(&[2, 0, 3]).unwrap(), Dims::new(&[2, 0, 3]));
        assert!(dims(&[0, u64::MAX, u64::MAX]).is_err());
        assert!(dims(&[1 << 40, 1 << 40, 0]).is_err());
        assert!(dims(&[1; 7]).is_err());
    }

    #[test]
    fn a_storage_is_inside_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        std::fs::write(&path, [1, 2, 3, 4]).unwrap();
        let file = FileBytes::open(&path, true).unwrap();
        assert!(Storage::in_file(&file, 1, 4, 1).is_err());
        assert!(Storage::in_file(&file, usize::MAX, 2, 1).is_err());
        let storage = Storage::in_file(&file, 1, 2, 2).unwrap();
        let mut weights = Weights::empty("test");
        assert!(weights.insert("far".into(), Layout::contiguous(Dims::new(&[3]), 0), DType::U8, &storage).is_err());
        weights.insert("w".into(), Layout::contiguous(Dims::new(&[2]), 0), DType::U8, &storage).unwrap();
        assert_eq!(weights.get("w").unwrap().to_vec::<u8>(), [2, 3]);
    }
}
