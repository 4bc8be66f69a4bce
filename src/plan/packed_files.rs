//! Packed weights that are kept in a file and mapped: a process that starts packs nothing, and reads weights in the order of the kernels.
//!
//! A file of weights has one such file for each tier, beside it or, where that cannot be written, in the user's folder of caches. It is the
//! matrices one after the other, each from a multiple of 64 bytes on, then a header as JSON, the header's hash and length, and a mark. It is written whole
//! or not at all, and never in place. What must be the same for it to be used is its `Key`; everything else is as if it were not there.

use std::collections::HashMap;
use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kernels_cpu::Isa;
use kernels_cpu::gemm::{self, Packed};
use kernels_cpu::hash::of_words;
use serde::{Deserialize, Serialize};

use crate::buffer::{ALIGNMENT, Buffer, FileBytes};
use crate::error::{At, Error, Result};
use crate::files::{self, Stamp};
use crate::ops::matmul::{keeps, packed};
use crate::tensor::Tensor;

/// At the end of every file.
const MARK: &[u8; 8] = b"TIERPACK";
/// Of the header's hash, its length, and the mark.
const FOOT: usize = 24;
/// Longest header: thousands of matrices.
const MOST_HEADER: usize = 4 << 20;
/// A file that was changed later than so long before it was opened may be changed again without a sign of it: times of change are as coarse as this.
const SETTLED: Duration = Duration::from_secs(2);

/// What packed weights are packed from, and how.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Key {
    version: String,
    isa: String,
    /// Of [`gemm::packing`].
    packing: u64,
    weights: Identity,
}

/// What tells a file of weights from any other and from itself after a change, without reading it all: every change of its bytes, and every copy,
/// has another time of change, which no program can set. The sample is there for clocks that are set back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Identity {
    stamp: Stamp,
    sample: u64,
}

#[derive(Serialize, Deserialize)]
struct Header {
    key: Key,
    matrices: Vec<(Matrix, Place)>,
}

/// A matrix [out, in] in a file of weights.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
struct Matrix {
    /// Where its tensor's bytes start.
    start: usize,
    dims: [usize; 2],
    strides: [isize; 2],
    offset: usize,
    dtype: String,
}

/// Where it is packed.
#[derive(Clone, Serialize, Deserialize)]
struct Place {
    bytes: Range<usize>,
    /// A hash of the first and last of them.
    ends: u64,
}

/// The packed weights of files of weights, those that there are.
#[derive(Default)]
pub struct PackedFiles(Vec<Opened>);

struct Opened {
    weights: Arc<FileBytes>,
    packed: Arc<FileBytes>,
    matrices: HashMap<Matrix, Place>,
}

struct Lent(Buffer);

impl AsRef<[f32]> for Lent {
    fn as_ref(&self) -> &[f32] {
        self.0.get()
    }
}

impl PackedFiles {
    /// Opens what is kept of these files. What does not fit is passed over.
    pub fn open(weights: &[Arc<FileBytes>]) -> Self {
        let kept = weights.iter().filter(|weights| weights.is_mapped()).filter_map(|weights| {
            let there = places(weights.path()).into_iter().filter_map(|path| FileBytes::open_mapped(&path).ok()?);
            let there: Vec<Arc<FileBytes>> = there.collect();
            let key = if there.is_empty() { None } else { Key::of(weights) }?;
            let matrices = |packed: &FileBytes| parse(packed.bytes().len(), &read_of(packed), &key);
            let (packed, matrices) = there.into_iter().find_map(|packed| Some((packed.clone(), matrices(&packed)?)))?;
            packed.in_order();
            Some(Opened { weights: weights.clone(), packed, matrices })
        });
        Self(kept.collect())
    }

    /// Packs matrices that are in these files, and keeps them: where, file by file.
    ///
    /// # Errors
    /// If a file was changed a moment ago, or neither of the places for it can be written to.
    pub fn write(weights: &[Arc<FileBytes>], matrices: &[Tensor]) -> Result<Vec<PathBuf>> {
        let mut written = Vec::new();
        for file in weights {
            let own = |x: &&Tensor| Matrix::of(x).is_some_and(|(of, _)| Arc::ptr_eq(of, file));
            let matrices: Vec<&Tensor> = matrices.iter().filter(own).collect();
            if !matrices.is_empty() {
                written.push(write(file, &matrices).at(file.path())?);
            }
        }
        Ok(written)
    }

    /// Whether nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The files, which must stay as they are while what is in them is used: [`FileBytes::intact`].
    pub fn files(&self) -> impl Iterator<Item = &Arc<FileBytes>> {
        self.0.iter().map(|opened| &opened.packed)
    }

    fn find(&self, matrix: &Tensor) -> Option<(&Opened, &Place)> {
        let (file, matrix) = Matrix::of(matrix)?;
        let opened = self.0.iter().find(|opened| Arc::ptr_eq(&opened.weights, file))?;
        Some((opened, opened.matrices.get(&matrix)?))
    }

    /// Whether a matrix [out, in] is kept.
    pub fn holds(&self, matrix: &Tensor) -> bool {
        self.find(matrix).is_some()
    }

    /// A matrix [out, in], packed. `None` also where it is damaged.
    pub fn get(&self, matrix: &Tensor) -> Option<Packed> {
        // Its ends are looked at now that all of it will be read. When the file is opened, a look here and there would bring small pages of one that
        // is on the disk alone, which then are in the way of large ones.
        let (opened, place) = self.find(matrix).filter(|(opened, place)| place.is_whole(opened.packed.bytes()))?;
        let bytes = &place.bytes;
        let buffer = Buffer::in_file(&opened.packed, bytes.start, bytes.len(), ALIGNMENT).ok()?;
        Packed::kept(keeps(matrix)?, [matrix.dims()[1], matrix.dims()[0]], Arc::new(Lent(buffer)))
    }

    /// Bytes in which the bytes of a buffer are packed, which then are not read themselves.
    pub fn instead_of(&self, buffer: &Buffer) -> Option<usize> {
        let (file, start) = buffer.file()?;
        let opened = self.0.iter().find(|opened| Arc::ptr_eq(&opened.weights, file))?;
        let of = opened.matrices.iter().filter(|(matrix, _)| matrix.start == start);
        of.map(|(_, place)| place.bytes.len()).reduce(|a, b| a + b)
    }
}

impl Matrix {
    /// One that can be kept, and the file that it is in.
    fn of(matrix: &Tensor) -> Option<(&Arc<FileBytes>, Self)> {
        keeps(matrix)?;
        let (file, start) = matrix.buffer().file().filter(|(file, _)| file.is_mapped())?;
        let (dims, layout) = (matrix.dims(), matrix.layout());
        let (dims, strides) = ([dims[0], dims[1]], [layout.strides()[0], layout.strides()[1]]);
        Some((file, Self { start, dims, strides, offset: layout.offset(), dtype: matrix.dtype().to_string() }))
    }
}

impl Place {
    /// Whether the bytes of a file have those ends there.
    fn is_whole(&self, file: &[u8]) -> bool {
        file.get(self.bytes.clone()).is_some_and(|bytes| ends(bytes) == self.ends)
    }
}

impl Key {
    /// For weights in this file, packed by this program on this machine. `None`: the system does not say enough of the file, or it is not mapped.
    fn of(weights: &FileBytes) -> Option<Self> {
        let stamp = weights.stamp().filter(|_| weights.is_mapped())?;
        Some(Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            isa: Isa::current().to_string(),
            packing: gemm::packing(),
            weights: Identity { stamp, sample: sample(weights.bytes().len(), &read_of(weights))? },
        })
    }
}

/// Where the packed weights of a file may be, the best place first.
fn places(weights: &Path) -> Vec<PathBuf> {
    if !files::may_cache() {
        return Vec::new();
    }
    let end = format!("{}.packed", Isa::current());
    let name = weights.file_name().unwrap_or_default().to_string_lossy();
    let beside = weights.with_file_name(format!("{name}.{end}"));
    // Models of the same name lie in different folders.
    let own = std::fs::canonicalize(weights).ok().zip(files::caches()).map(|(whole, folder)| {
        folder.join(format!("{name}-{:016x}.{end}", hash(whole.as_os_str().as_encoded_bytes())))
    });
    std::iter::once(beside).chain(own).collect()
}

fn hash(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    let words = words.iter().map(|word| u64::from_le_bytes(*word));
    of_words(bytes.len() as u64, words.chain(rest.iter().map(|&byte| u64::from(byte))))
}

/// Bytes of a file; none where it has not got them.
type Read<'a> = dyn Fn(Range<usize>) -> Option<Vec<u8>> + 'a;

/// Past the mapping: a page that is looked at here would count as read.
fn read_of(file: &FileBytes) -> impl Fn(Range<usize>) -> Option<Vec<u8>> {
    |range| {
        let mut bytes = vec![0; range.len()];
        file.read(range.start, &mut bytes).ok()?;
        Some(bytes)
    }
}

/// A hash of what a matrix begins and ends with.
fn ends(packed: &[u8]) -> u64 {
    const END: usize = 128;
    let end = END.min(packed.len());
    hash(&packed[..end]) ^ hash(&packed[packed.len() - end..]).rotate_left(1)
}

/// A hash of a few parts of a file: its start, where formats have their headers, and pages from there to the end.
fn sample(length: usize, read: &Read<'_>) -> Option<u64> {
    const START: usize = 1 << 16;
    const PAGE: usize = 1 << 12;
    const PAGES: usize = 16;
    let start = START.min(length);
    let step = (length - start) / PAGES;
    let page = |i: usize| start + (i * step).saturating_sub(PAGE)..start + i * step;
    (1..=PAGES)
        .map(page)
        .chain(std::iter::once(0..start))
        .try_fold(length as u64, |sum, part| Some(sum.rotate_left(9) ^ hash(&read(part)?)))
}

/// The matrices of a whole file of this key.
fn parse(length: usize, read: &Read<'_>, key: &Key) -> Option<HashMap<Matrix, Place>> {
    let rest = length.checked_sub(FOOT)?;
    let foot = read(rest..length)?;
    let [sum, header, mark] = foot.as_chunks::<8>().0 else { return None };
    let header = usize::try_from(u64::from_le_bytes(*header)).ok().filter(|&header| header <= MOST_HEADER)?;
    let content = rest.checked_sub(header).filter(|_| mark == MARK)?;
    let header = read(content..rest)?;
    if hash(&header) != u64::from_le_bytes(*sum) {
        return None;
    }
    let header: Header = serde_json::from_slice(&header).ok()?;
    let inside = |Place { bytes, .. }: &Place| bytes.start <= bytes.end && bytes.end <= content;
    let fits = header.key == *key && header.matrices.iter().all(|(_, place)| inside(place));
    fits.then(|| header.matrices.into_iter().collect())
}

/// Packs matrices of a file, each in its turn, into the first place that can be written to.
fn write(weights: &FileBytes, matrices: &[&Tensor]) -> Result<PathBuf> {
    let key = Key::of(weights).ok_or_else(|| Error::new("packed weights are kept of mapped files alone"))?;
    if !weights.was_settled(SETTLED) {
        return Err(Error::new("was written a moment ago; its packed weights are kept when it is opened again"));
    }
    let mut failed = Error::new("packed weights are not kept where TIER_NO_CACHE is set");
    for path in places(weights.path()) {
        match write_to(&path, weights, &key, matrices) {
            Ok(()) => return Ok(path),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

fn write_to(path: &Path, weights: &FileBytes, key: &Key, matrices: &[&Tensor]) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    if !folder.exists() {
        std::fs::create_dir_all(folder).at(folder)?;
    }
    files::write_atomic_with(path, |file| {
        let (mut told, mut at) = (Vec::new(), 0);
        for matrix in matrices {
            let packed = Buffer::copied(packed(matrix, None).content());
            let bytes = packed.bytes();
            file.write_all(bytes)?;
            let (_, matrix) = Matrix::of(matrix).ok_or_else(|| std::io::Error::other("a matrix of no file"))?;
            told.push((matrix, Place { bytes: at..at + bytes.len(), ends: ends(bytes) }));
            at += bytes.len();
        }
        let header = serde_json::to_vec(&Header { key: key.clone(), matrices: told })?;
        file.write_all(&header)?;
        file.write_all(&hash(&header).to_le_bytes())?;
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(MARK)?;
        // What was packed is what the key says only if the file is still as it was opened.
        if weights.stamp_now().as_ref() != Some(&key.weights.stamp) {
            return Err(std::io::Error::other("the weights were written to meanwhile"));
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::SystemTime;

    use super::*;
    use crate::dtype::DType;
    use crate::layout::{Dims, Layout};

    /// A file of weights with two matrices, [50, 700] of f32 and [40, 30] of bf16.
    fn model(folder: &Path) -> (Arc<FileBytes>, [Tensor; 2]) {
        let path = folder.join("w.bin");
        let numbers: Vec<u8> = (0..35000u32).flat_map(|i| (i as f32).to_ne_bytes()).collect();
        let halves: Vec<u8> = (0..1200u16).flat_map(|i| (16000 + i).to_ne_bytes()).collect();
        fs::write(&path, [numbers, halves].concat()).unwrap();
        opened(&path)
    }

    fn opened(path: &Path) -> (Arc<FileBytes>, [Tensor; 2]) {
        let file = FileBytes::open(path, true).unwrap();
        let sizes = [(0, [50, 700], DType::F32), (140_000, [40, 30], DType::BF16)];
        let matrices = sizes.map(|(start, dims, dtype)| {
            let buffer = Buffer::in_file(&file, start, dims[0] * dims[1] * dtype.size(), 2).unwrap();
            Tensor::from_buffer(buffer, Layout::contiguous(Dims::new(&dims), 0), dtype)
        });
        (file, matrices)
    }

    /// Writes beside the model, however old that is.
    fn keep((file, matrices): &(Arc<FileBytes>, [Tensor; 2])) -> PathBuf {
        let path = places(file.path()).swap_remove(0);
        write_to(&path, file, &Key::of(file).unwrap(), &matrices.iter().collect::<Vec<_>>()).unwrap();
        path
    }

    fn matrices_of(bytes: &[u8], key: &Key) -> Option<usize> {
        let found = parse(bytes.len(), &|range| bytes.get(range).map(<[u8]>::to_vec), key)?;
        // As `get` asks of each.
        found.values().all(|place| place.is_whole(bytes)).then_some(found.len())
    }

    #[test]
    fn what_is_kept_is_what_is_packed() {
        let folder = tempfile::tempdir().unwrap();
        let model = model(folder.path());
        let (file, matrices) = &model;
        if !file.is_mapped() {
            return;
        }
        assert!(PackedFiles::open(std::slice::from_ref(file)).is_empty());
        keep(&model);
        let kept = PackedFiles::open(std::slice::from_ref(file));
        for matrix in matrices {
            let (ours, fresh) = (kept.get(matrix).unwrap(), packed(matrix, None));
            assert!(kept.holds(matrix) && ours.size() == fresh.size());
            assert!(ours.content().iter().map(|x| x.to_bits()).eq(fresh.content().iter().map(|x| x.to_bits())));
            assert_eq!(kept.instead_of(matrix.buffer()), Some(4 * fresh.content().len()));
        }
        // Another view of the same bytes, and bytes of no file, are not.
        assert!(!kept.holds(&matrices[0].transpose(0, 1)) && !kept.holds(&matrices[0].copied()));
        assert!(kept.files().all(|file| file.intact().is_ok()));
        // A model that was changed a moment ago may change again without a sign of it.
        let error = PackedFiles::write(std::slice::from_ref(file), matrices).unwrap_err().to_string();
        assert!(error.contains("w.bin: was written a moment ago"), "{error}");
    }

    #[test]
    fn every_part_of_the_key_counts() {
        let folder = tempfile::tempdir().unwrap();
        let model = model(folder.path());
        if !model.0.is_mapped() {
            return;
        }
        let bytes = fs::read(keep(&model)).unwrap();
        let key = serde_json::to_value(Key::of(&model.0).unwrap()).unwrap();
        let parts = |value: &serde_json::Value| -> Vec<String> {
            fn walk(value: &serde_json::Value, at: &str, out: &mut Vec<String>) {
                match value {
                    serde_json::Value::Object(map) => map.iter().for_each(|(k, v)| walk(v, &format!("{at}/{k}"), out)),
                    serde_json::Value::Array(list) => {
                        list.iter().enumerate().for_each(|(i, v)| walk(v, &format!("{at}/{i}"), out));
                    }
                    _ => out.push(at.to_owned()),
                }
            }
            let mut out = Vec::new();
            walk(value, "", &mut out);
            out
        };
        assert_eq!(matrices_of(&bytes, &serde_json::from_value(key.clone()).unwrap()), Some(2));
        let parts = parts(&key);
        assert_eq!(parts.len(), 10, "{parts:?}");
        for part in parts {
            let mut other = key.clone();
            let value = other.pointer_mut(&part).unwrap();
            *value = match value.as_u64() {
                Some(n) => (n ^ 1).into(),
                None => "another".into(),
            };
            assert!(matrices_of(&bytes, &serde_json::from_value(other).unwrap()).is_none(), "{part}");
        }
    }

    #[test]
    fn what_is_damaged_is_as_if_it_were_not_there() {
        let folder = tempfile::tempdir().unwrap();
        let model = model(folder.path());
        if !model.0.is_mapped() {
            return;
        }
        let (bytes, key) = (fs::read(keep(&model)).unwrap(), Key::of(&model.0).unwrap());
        let header = bytes.windows(8).position(|part| part == b"{\"key\":{").unwrap();
        for cut in (0..bytes.len()).step_by(997).chain(header..bytes.len()) {
            assert!(matrices_of(&bytes[..cut], &key).is_none(), "cut to {cut}");
        }
        for at in (header..bytes.len()).chain(0..128).chain(header - 100..header) {
            let mut other = bytes.clone();
            other[at] ^= 4;
            assert!(matrices_of(&other, &key).is_none(), "byte {at}");
        }
        assert_eq!(matrices_of(&bytes, &key), Some(2));
        // One that begins with something else is packed anew.
        let path = places(model.0.path()).swap_remove(0);
        let kept = || PackedFiles::open(std::slice::from_ref(&model.0));
        let is_there = |kept: &PackedFiles| model.1.each_ref().map(|matrix| kept.get(matrix).is_some());
        assert_eq!(is_there(&kept()), [true, true]);
        let mut other = bytes.clone();
        other[0] ^= 4;
        files::write_atomic(&path, &other).unwrap();
        assert_eq!(is_there(&kept()), [false, true]);
    }

    #[test]
    fn packed_weights_of_other_weights_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let first = model(folder.path());
        if !first.0.is_mapped() {
            return;
        }
        let path = first.0.path().to_owned();
        let fits = |path: &Path| !PackedFiles::open(std::slice::from_ref(&opened(path).0)).is_empty();
        keep(&first);
        assert!(fits(&path));
        // The same bytes in another folder, with all that a copy can take along.
        let other = tempfile::tempdir().unwrap();
        assert!(
            std::process::Command::new("cp").arg("-a").arg(folder.path()).arg(other.path()).status().unwrap().success()
        );
        assert!(!fits(&other.path().join(folder.path().file_name().unwrap()).join("w.bin")));
        // Written over in place, the time of writing set back: a number far from all samples.
        let modified = fs::metadata(&path).unwrap().modified().unwrap();
        let mut bytes = fs::read(&path).unwrap();
        bytes[70_001] ^= 1;
        std::thread::sleep(Duration::from_millis(20));
        fs::write(&path, &bytes).unwrap();
        fs::File::options().write(true).open(&path).unwrap().set_modified(modified).unwrap();
        assert!(fs::metadata(&path).unwrap().modified().unwrap() == modified && !fits(&path));
        let again = opened(&path);
        keep(&again);
        assert!(fits(&path));
        // Only touched, which cannot be told from that.
        fs::File::options().write(true).open(&path).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
        assert!(!fits(&path));
    }

    #[test]
    fn writers_do_not_get_into_each_others_way() {
        let folder = tempfile::tempdir().unwrap();
        let model = model(folder.path());
        if !model.0.is_mapped() {
            return;
        }
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..10 {
                        keep(&model);
                        assert!(!PackedFiles::open(std::slice::from_ref(&model.0)).is_empty());
                    }
                });
            }
        });
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }
}
