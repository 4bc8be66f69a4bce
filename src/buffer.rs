//! Bytes behind tensors: 64-byte aligned heap blocks from a pool, a file's, mapped or copied, or a device's; shared by counting.

mod arena;
mod file;
mod pool;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::device::{Gpu, Mirrored};
use crate::dtype::Element;
use crate::error::{Error, Result};
use crate::plan::trace;
use pool::Counted;

pub use file::FileBytes;
pub(crate) use pool::{Heap, count_beside, count_scratch, is_counting, uncomputed};
pub use pool::{Memory, counted, memory, release, watched};

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
    Counted(Counted),
    File {
        file: Arc<FileBytes>,
        start: usize,
        len: usize,
    },
    #[cfg_attr(not(feature = "vulkan"), allow(dead_code))]
    Device(Mirrored),
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
        Self::of_size(len * size_of::<T>())
    }

    fn of_size(len: usize) -> Self {
        Self::new(if is_counting() { Bytes::Counted(Counted::new(len)) } else { Bytes::Heap(Heap::new(len)) })
    }

    /// `len` elements on the heap that `fill` writes, unless memory is only [`counted`].
    pub fn written<T: Element>(len: usize, fill: impl FnOnce(&mut [T])) -> Self {
        let mut buffer = Self::heap::<T>(len);
        if !is_counting() {
            fill(&mut buffer.get_mut::<T>().expect("a new buffer is unshared")[..len]);
        }
        buffer
    }

    /// `len` zeros on the heap.
    pub fn zeros<T: Element>(len: usize) -> Self {
        Self::written(len, |out: &mut [T]| out.fill(T::default()))
    }

    /// A copy of `data` on the heap.
    pub fn copied<T: Element>(data: &[T]) -> Self {
        Self::written(data.len(), |out: &mut [T]| out.copy_from_slice(data))
    }

    /// A part of a file's bytes, without a copy.
    ///
    /// # Errors
    /// If the part is not inside the file, or not aligned for elements of `alignment` bytes (the caller copies then).
    pub fn in_file(file: &Arc<FileBytes>, start: usize, len: usize, alignment: usize) -> Result<Self> {
        let bytes = file.part(start, len)?;
        if !(bytes.as_ptr() as usize).is_multiple_of(alignment) {
            return Err(Error::new(format!("byte {start} is not aligned to {alignment}")));
        }
        Ok(Self::new(Bytes::File { file: file.clone(), start, len }))
    }

    /// A part of a file on the heap, read past a mapping, whose pages stay untouched.
    ///
    /// # Errors
    /// If it cannot be read, as where the file was cut since it was opened.
    pub fn read(file: &FileBytes, start: usize, len: usize) -> Result<Self> {
        let part = file.part(start, len)?;
        if !file.is_mapped() {
            return Ok(Self::copied(part));
        }
        let mut read = Ok(());
        let buffer = Self::written(len, |out| read = file.read(start, out));
        read.map(|()| buffer)
    }

    /// Bytes that live on a device.
    #[cfg(feature = "vulkan")]
    pub(crate) fn on_device(bytes: Mirrored) -> Self {
        Self::new(Bytes::Device(bytes))
    }

    /// The device that the bytes live on.
    pub fn device(&self) -> Option<&Gpu> {
        self.mirrored().map(Mirrored::device)
    }

    /// The bytes there and here.
    pub(crate) fn mirrored(&self) -> Option<&Mirrored> {
        match &self.0.bytes {
            Bytes::Device(mirrored) => Some(mirrored),
            _ => None,
        }
    }

    /// As [`Buffer::mirrored`], for writing: only where no other handle shares the bytes.
    #[cfg(feature = "vulkan")]
    pub(crate) fn mirrored_mut(&mut self) -> Option<&mut Mirrored> {
        match &mut Arc::get_mut(&mut self.0)?.bytes {
            Bytes::Device(mirrored) => Some(mirrored),
            _ => None,
        }
    }

    /// All bytes; those that live on a device are brought here, and kept.
    pub fn bytes(&self) -> &[u8] {
        match &self.0.bytes {
            Bytes::Heap(heap) => heap.bytes(),
            Bytes::Counted(counted) => counted.bytes(),
            Bytes::File { file, start, len } => &file.bytes()[*start..start + len],
            Bytes::Device(mirrored) => mirrored.bytes(),
        }
    }

    /// Number of bytes.
    pub fn size(&self) -> usize {
        match &self.0.bytes {
            Bytes::Heap(heap) => heap.len,
            Bytes::Counted(counted) => counted.len,
            Bytes::File { len, .. } => *len,
            Bytes::Device(mirrored) => mirrored.len(),
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
            Bytes::Counted(counted) => Some(counted.get_mut()),
            Bytes::File { .. } => None,
            Bytes::Device(mirrored) => Some(mirrored.get_mut()),
        }
    }

    /// Whether a write would be allowed: heap bytes with no other handle.
    pub fn is_unshared(&self) -> bool {
        !matches!(self.0.bytes, Bytes::File { .. }) && Arc::strong_count(&self.0) == 1
    }

    /// Whether the bytes are a view of a mapped file.
    pub fn is_mapped(&self) -> bool {
        matches!(&self.0.bytes, Bytes::File { file, .. } if file.is_mapped())
    }

    /// The file whose bytes from a place on these are.
    pub fn file(&self) -> Option<(&Arc<FileBytes>, usize)> {
        match &self.0.bytes {
            Bytes::File { file, start, .. } => Some((file, *start)),
            _ => None,
        }
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
}
