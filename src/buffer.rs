//! Bytes behind tensors: 64-byte aligned heap blocks from a pool, or a mapped file, shared by counting.

use std::alloc::{self, Layout as Block};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use memmap2::Mmap;

use crate::dtype::Element;
use crate::error::{At, Error, Result};
use crate::plan::trace;

/// Alignment of heap bytes: a cache line, and the widest SIMD register.
pub const ALIGNMENT: usize = 64;

/// Shared bytes. Clones share; writing needs the only handle.
#[derive(Clone)]
pub struct Buffer(Arc<Shared>);

struct Shared {
    /// No other buffer of this process ever has it.
    id: u64,
    bytes: Bytes,
}

enum Bytes {
    Heap(Heap),
    Mapped { file: Arc<MappedFile>, start: usize, len: usize },
}

impl Buffer {
    fn new(bytes: Bytes) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(Arc::new(Shared { id: NEXT.fetch_add(1, Ordering::Relaxed), bytes }))
    }

    /// What tells the bytes from all others, also from those that lie where freed ones did.
    pub fn id(&self) -> u64 {
        self.0.id
    }

    /// `len` elements on the heap with unspecified (but initialised) values: for outputs that are written whole.
    pub fn heap<T: Element>(len: usize) -> Self {
        Self::new(Bytes::Heap(Heap::new(len * size_of::<T>())))
    }

    /// `len` zeros on the heap.
    pub fn zeros<T: Element>(len: usize) -> Self {
        let mut buffer = Self::heap::<T>(len);
        buffer.get_mut::<T>().expect("a new buffer is unshared").fill(T::default());
        buffer
    }

    /// A copy of `data` on the heap.
    pub fn copied<T: Element>(data: &[T]) -> Self {
        let mut buffer = Self::heap::<T>(data.len());
        buffer.get_mut::<T>().expect("a new buffer is unshared")[..data.len()].copy_from_slice(data);
        buffer
    }

    /// A part of a mapped file, without a copy.
    ///
    /// # Errors
    /// If the part is not inside the file, or not aligned for elements of `alignment` bytes (the caller copies then).
    pub fn mapped(file: &Arc<MappedFile>, start: usize, len: usize, alignment: usize) -> Result<Self> {
        let inside = start.checked_add(len).is_some_and(|end| end <= file.bytes().len());
        if !inside {
            return Err(Error::new(format!(
                "bytes {start}..{start}+{len} are not inside the file of {} bytes",
                file.bytes().len()
            )));
        }
        if !(file.bytes().as_ptr() as usize + start).is_multiple_of(alignment) {
            return Err(Error::new(format!("byte {start} is not aligned to {alignment}")));
        }
        Ok(Self::new(Bytes::Mapped { file: file.clone(), start, len }))
    }

    /// A part of a file on the heap, read past the mapping, whose pages stay untouched.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn read(file: &MappedFile, start: usize, len: usize) -> Result<Self> {
        let mut buffer = Self::heap::<u8>(len);
        let bytes = buffer.get_mut::<u8>().expect("a new buffer is unshared");
        let mut file = file.file.lock().unwrap_or_else(|e| e.into_inner());
        file.seek(SeekFrom::Start(start as u64))?;
        file.read_exact(&mut bytes[..len])?;
        drop(file);
        Ok(buffer)
    }

    /// All bytes.
    pub fn bytes(&self) -> &[u8] {
        match &self.0.bytes {
            Bytes::Heap(heap) => heap.bytes(),
            Bytes::Mapped { file, start, len } => &file.bytes()[*start..start + len],
        }
    }

    /// All bytes as elements; a rest shorter than an element is left out.
    ///
    /// # Panics
    /// If the bytes are not aligned for `T`.
    #[track_caller]
    pub fn get<T: Element>(&self) -> &[T] {
        trace::check_read(self.id());
        cast(self.bytes())
    }

    /// As [`Buffer::get`], for writing: only where no other handle shares the bytes and they are not mapped.
    pub fn get_mut<T: Element>(&mut self) -> Option<&mut [T]> {
        match &mut Arc::get_mut(&mut self.0)?.bytes {
            Bytes::Heap(heap) => Some(heap.get_mut()),
            Bytes::Mapped { .. } => None,
        }
    }

    /// Whether a write would be allowed: heap bytes with no other handle.
    pub fn is_unshared(&self) -> bool {
        matches!(self.0.bytes, Bytes::Heap(_)) && Arc::strong_count(&self.0) == 1
    }

    /// Whether the bytes are a view of a mapped file.
    pub fn is_mapped(&self) -> bool {
        matches!(self.0.bytes, Bytes::Mapped { .. })
    }

    /// Whether two handles share the same bytes.
    pub fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

fn cast<T: Element>(bytes: &[u8]) -> &[T] {
    if bytes.is_empty() {
        return &[];
    }
    assert!((bytes.as_ptr() as usize).is_multiple_of(align_of::<T>()), "bytes are not aligned for {}", T::DTYPE);
    // SAFETY: aligned (checked), initialised, `len / size` elements fit, and every bit pattern of an Element is valid.
    unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast(), bytes.len() / size_of::<T>()) }
}

/// A file mapped read-only.
///
/// The mapping is a view of the file: while it is alive nobody may truncate or rewrite the file in place. Replacing
/// it by renaming another one over it, as everything here does, is safe: the mapping keeps the old bytes.
pub struct MappedFile {
    map: Mmap,
    file: Mutex<File>,
}

impl MappedFile {
    /// Maps a whole file.
    pub fn open(path: impl AsRef<Path>) -> Result<Arc<Self>> {
        let path = path.as_ref();
        let file = File::open(path).at(path)?;
        // SAFETY: read-only, and the contract above (no truncation in place) is documented to users.
        let map = unsafe { Mmap::map(&file) }.at(path)?;
        Ok(Arc::new(Self { map, file: Mutex::new(file) }))
    }

    /// The file's bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Tells the system that the pages of these bytes will be read soon, so that it fetches many such places at once.
    pub fn soon(&self, start: usize, len: usize) {
        #[cfg(unix)]
        if start.checked_add(len).is_some_and(|end| end <= self.map.len()) {
            let _ = self.map.advise_range(memmap2::Advice::WillNeed, start, len);
        }
    }

    /// Runs `read` telling the system that it reads a few bytes here and there: it then fetches those alone from the disk.
    pub fn scattered<T>(&self, read: impl FnOnce() -> T) -> T {
        // Advice only: nothing depends on it being taken.
        #[cfg(unix)]
        let _ = self.map.advise(memmap2::Advice::Random);
        let out = read();
        #[cfg(unix)]
        let _ = self.map.advise(memmap2::Advice::Normal);
        out
    }
}

/// An owned heap block of `capacity` bytes, of which `len` are used. Given back to the pool when dropped.
struct Heap {
    block: NonNull<u8>,
    capacity: usize,
    len: usize,
}

// SAFETY: a Heap owns its block; access follows Rust's borrowing of the Heap itself.
unsafe impl Send for Heap {}
// SAFETY: as above; shared access only reads.
unsafe impl Sync for Heap {}

impl Heap {
    fn new(len: usize) -> Self {
        let capacity = size_class(len);
        let block = if capacity == 0 {
            NonNull::dangling()
        } else {
            POOL.lock().unwrap_or_else(|e| e.into_inner()).take(capacity)
        };
        Self { block, capacity, len }
    }

    fn bytes(&self) -> &[u8] {
        if self.len == 0 {
            return &[];
        }
        // SAFETY: the block is allocated, at least `len` long, and initialised (zeroed when first allocated).
        unsafe { std::slice::from_raw_parts(self.block.as_ptr(), self.len) }
    }

    fn get_mut<T: Element>(&mut self) -> &mut [T] {
        if self.len == 0 {
            return &mut [];
        }
        // SAFETY: as in `bytes`; ALIGNMENT is enough for any Element, and `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.block.as_ptr().cast(), self.len / size_of::<T>()) }
    }
}

impl Drop for Heap {
    fn drop(&mut self) {
        if self.capacity > 0 {
            POOL.lock().unwrap_or_else(|e| e.into_inner()).give(self.block, self.capacity);
        }
    }
}

/// Block sizes: eighths of a power of two, so that at most a fifth is wasted and freed blocks fit again; of large blocks, which come back with
/// the same sizes step after step, finer ones.
fn size_class(len: usize) -> usize {
    const LARGE: usize = 1 << 20;
    if len <= ALIGNMENT {
        return if len == 0 { 0 } else { ALIGNMENT };
    }
    let parts = if len > LARGE { 64 } else { 8 };
    len.next_multiple_of((len.next_power_of_two() / parts).max(ALIGNMENT))
}

/// Freed blocks kept for the next allocation of their class. What is in use and what is kept together exceed the most that
/// was ever in use at once by an eighth at most: enough that a training step finds every block of the step before.
struct Pool {
    free: std::collections::BTreeMap<usize, Vec<NonNull<u8>>>,
    in_use: usize,
    kept: usize,
    peak: usize,
}

// SAFETY: the pool owns the blocks it keeps; they are plain memory.
unsafe impl Send for Pool {}

static POOL: Mutex<Pool> = Mutex::new(Pool { free: std::collections::BTreeMap::new(), in_use: 0, kept: 0, peak: 0 });

/// Bytes of tensor memory: (in use now, most ever in use at once).
pub fn memory_in_use() -> (usize, usize) {
    let pool = POOL.lock().unwrap_or_else(|e| e.into_inner());
    (pool.in_use, pool.peak)
}

impl Pool {
    fn take(&mut self, capacity: usize) -> NonNull<u8> {
        self.in_use += capacity;
        self.peak = self.peak.max(self.in_use);
        if let Some(block) = self.free.get_mut(&capacity).and_then(Vec::pop) {
            self.kept -= capacity;
            return block;
        }
        self.shrink();
        // SAFETY: the size is not zero. Zeroed, so that bytes are initialised from the start.
        let block = unsafe { alloc::alloc_zeroed(Self::block(capacity)) };
        NonNull::new(block).unwrap_or_else(|| alloc::handle_alloc_error(Self::block(capacity)))
    }

    fn give(&mut self, block: NonNull<u8>, capacity: usize) {
        self.in_use -= capacity;
        self.kept += capacity;
        self.free.entry(capacity).or_default().push(block);
        self.shrink();
    }

    /// Frees kept blocks, largest first, until use and kept together are within an eighth above the peak.
    fn shrink(&mut self) {
        while self.in_use + self.kept > self.peak + self.peak / 8 {
            let Some(mut largest) = self.free.last_entry() else { return };
            let capacity = *largest.key();
            match largest.get_mut().pop() {
                // SAFETY: allocated by `take` with the same layout, and owned by the pool.
                Some(block) => unsafe { alloc::dealloc(block.as_ptr(), Self::block(capacity)) },
                None => {
                    largest.remove();
                    continue;
                }
            }
            self.kept -= capacity;
        }
    }

    fn block(capacity: usize) -> Block {
        Block::from_size_align(capacity, ALIGNMENT).expect("a tensor's size fits the address space")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heap_is_aligned_and_exclusive_only_when_unshared() {
        let mut a = Buffer::copied(&[1.0f32, 2.0, 3.0]);
        assert_eq!(a.bytes().as_ptr() as usize % ALIGNMENT, 0);
        let b = a.clone();
        assert!(a.get_mut::<f32>().is_none() && !a.is_unshared() && a.same(&b));
        drop(b);
        a.get_mut::<f32>().unwrap()[1] = 5.0;
        assert_eq!(a.get::<f32>(), [1.0, 5.0, 3.0]);
    }

    #[test]
    fn empty_buffers_are_fine() {
        let mut empty = Buffer::zeros::<f64>(0);
        assert!(empty.get::<f64>().is_empty() && empty.get_mut::<f64>().unwrap().is_empty());
    }

    #[test]
    fn size_classes_waste_little_and_grow() {
        let mut last = 0;
        for len in 1..100_000 {
            let class = size_class(len);
            assert!(class >= len && class >= last && (class - len) * 4 <= class + 4 * ALIGNMENT, "{len} -> {class}");
            last = class;
        }
        for len in (1 << 20..1 << 28).step_by(999_983) {
            let class = size_class(len);
            assert!(class >= len && (class - len) * 30 <= len, "{len} -> {class}");
        }
    }

    #[test]
    fn mapped_parts_are_checked() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.bin");
        std::fs::write(&path, [0, 0, 128, 63, 7]).unwrap();
        let file = MappedFile::open(&path).unwrap();
        let part = Buffer::mapped(&file, 0, 4, 4).unwrap();
        assert_eq!(part.get::<f32>(), [1.0]);
        assert!(part.is_mapped() && part.clone().get_mut::<f32>().is_none());
        let read = Buffer::read(&file, 1, 4).unwrap();
        assert!(read.bytes() == [0, 128, 63, 7] && !read.is_mapped());
        assert!(Buffer::read(&file, 3, 4).is_err());
        assert!(Buffer::mapped(&file, 2, 4, 4).is_err());
        assert!(Buffer::mapped(&file, 1, 4, 4).is_err());
        assert!(Buffer::mapped(&file, usize::MAX, 4, 1).is_err());
        assert!(MappedFile::open(folder.path().join("none")).err().unwrap().to_string().contains("none"));
    }
}
