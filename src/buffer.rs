//! Bytes behind tensors: 64-byte aligned heap blocks from a pool, or a file's, mapped or copied, shared by counting.

use std::alloc;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::SystemTime;

use memmap2::{Mmap, MmapMut};

use crate::dtype::Element;
use crate::error::{At, Error, Result};
use crate::mount;
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
    Counted(Counted),
    File { file: Arc<FileBytes>, start: usize, len: usize },
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
        let len = len * size_of::<T>();
        Self::new(if is_counting() { Bytes::Counted(Counted::new(len)) } else { Bytes::Heap(Heap::new(len)) })
    }

    /// `len` zeros on the heap.
    pub fn zeros<T: Element>(len: usize) -> Self {
        let mut buffer = Self::heap::<T>(len);
        if !is_counting() {
            buffer.get_mut::<T>().expect("a new buffer is unshared").fill(T::default());
        }
        buffer
    }

    /// A copy of `data` on the heap.
    pub fn copied<T: Element>(data: &[T]) -> Self {
        let mut buffer = Self::heap::<T>(data.len());
        if !is_counting() {
            buffer.get_mut::<T>().expect("a new buffer is unshared")[..data.len()].copy_from_slice(data);
        }
        buffer
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
        file.intact()?;
        let mut buffer = Self::heap::<u8>(len);
        let bytes = buffer.get_mut::<u8>().expect("a new buffer is unshared");
        let mut source = file.file.lock().unwrap_or_else(|e| e.into_inner());
        source.seek(SeekFrom::Start(start as u64)).and_then(|_| source.read_exact(&mut bytes[..len])).at(&file.path)?;
        drop(source);
        Ok(buffer)
    }

    /// All bytes.
    pub fn bytes(&self) -> &[u8] {
        match &self.0.bytes {
            Bytes::Heap(heap) => heap.bytes(),
            Bytes::Counted(counted) => counted.bytes(),
            Bytes::File { file, start, len } => &file.bytes()[*start..start + len],
        }
    }

    /// Number of bytes.
    pub fn size(&self) -> usize {
        match &self.0.bytes {
            Bytes::Heap(heap) => heap.len,
            Bytes::Counted(counted) => counted.len,
            Bytes::File { len, .. } => *len,
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

/// A file's bytes: mapped read-only, or copied into memory when it was opened.
///
/// A mapping is a view of the file. While it is alive nobody may truncate or rewrite the file in place: touching a page that is no longer
/// there ends the process, and no program can prevent that on its own. Replacing a file by renaming another one over it, as everything
/// here does, is safe: the mapping keeps the old bytes. [`FileBytes::intact`] is asked before the bytes are used, so that
/// a file that was cut or written to is an error in words, but for what happens between the question and the use. A file that can
/// go away by itself ([`mount::fleeting`]) is copied; of a copy all this is no concern.
pub struct FileBytes {
    held: Held,
    path: PathBuf,
    file: Mutex<File>,
    /// When the file was last written to, as it was opened.
    written: Option<SystemTime>,
}

enum Held {
    Mapped(Mmap),
    /// In anonymous memory, for this reason.
    Copied(Mmap, String),
}

impl FileBytes {
    /// A whole file, with `map` mapped where it lies on a disk of this machine, else copied.
    ///
    /// # Errors
    /// If it cannot be opened, mapped or read.
    pub fn open(path: impl AsRef<Path>, map: bool) -> Result<Arc<Self>> {
        let path = path.as_ref();
        let mut file = File::open(path).at(path)?;
        let written = file.metadata().and_then(|found| found.modified()).ok();
        let why = if map { mount::fleeting(&file) } else { Some("as --no-mmap says".to_owned()) };
        let held = match why {
            // SAFETY: read-only, and the contract above (no truncation in place) is documented to users.
            None => Held::Mapped(unsafe { Mmap::map(&file) }.at(path)?),
            Some(why) => Held::Copied(copied(&mut file).at(path)?, why),
        };
        Ok(Arc::new(Self { held, path: path.to_path_buf(), file: Mutex::new(file), written }))
    }

    /// The file's bytes.
    pub fn bytes(&self) -> &[u8] {
        match &self.held {
            Held::Mapped(map) | Held::Copied(map, _) => map,
        }
    }

    /// Some of them.
    ///
    /// # Errors
    /// If they are not inside the file.
    fn part(&self, start: usize, len: usize) -> Result<&[u8]> {
        let end = start.checked_add(len);
        end.and_then(|end| self.bytes().get(start..end)).ok_or_else(|| {
            let size = self.bytes().len();
            Error::new(format!("bytes {start}..{start}+{len} are not inside the file of {size} bytes"))
        })
    }

    /// Whether the bytes are those of the file itself, not a copy.
    pub fn is_mapped(&self) -> bool {
        matches!(self.held, Held::Mapped(_))
    }

    /// How the bytes are held, and why so, in words.
    pub fn describe(&self) -> String {
        match &self.held {
            Held::Mapped(_) => "mapped".to_owned(),
            Held::Copied(_, why) => format!("copied into memory ({why})"),
        }
    }

    /// Whether the bytes are still those that were opened; to be asked before a mapping is used. One call of the system.
    ///
    /// # Errors
    /// If the file is mapped and was cut or written to.
    pub fn intact(&self) -> Result<()> {
        let Held::Mapped(map) = &self.held else { return Ok(()) };
        let now = self.file.lock().unwrap_or_else(|e| e.into_inner()).metadata().at(&self.path)?;
        let what = match now.len() {
            len if len < map.len() as u64 => format!("was cut from {} to {len} bytes", map.len()),
            _ if now.modified().ok() != self.written => "was written to".to_owned(),
            _ => return Ok(()),
        };
        Err(Error::new(format!(
            "{what} while it was in use; start again, and replace a model by renaming a new file over the old one (or give --no-mmap, \
             which copies it first)"
        ))
        .at(&self.path))
    }

    /// Tells the system that the pages of these bytes will be read soon, so that it fetches many such places at once.
    pub fn soon(&self, start: usize, len: usize) {
        #[cfg(unix)]
        if let (Held::Mapped(map), Ok(_)) = (&self.held, self.part(start, len)) {
            let _ = map.advise_range(memmap2::Advice::WillNeed, start, len);
        }
    }

    /// Runs `read` telling the system that it reads a few bytes here and there: it then fetches those alone from the disk.
    pub fn scattered<T>(&self, read: impl FnOnce() -> T) -> T {
        // Advice only: nothing depends on it being taken.
        #[cfg(unix)]
        let advise = |advice| match &self.held {
            Held::Mapped(map) => drop(map.advise(advice)),
            Held::Copied(..) => {}
        };
        #[cfg(unix)]
        advise(memmap2::Advice::Random);
        let out = read();
        #[cfg(unix)]
        advise(memmap2::Advice::Normal);
        out
    }
}

impl fmt::Debug for FileBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}", self.path.display(), self.describe())
    }
}

/// All bytes of a file in anonymous memory, which begins where a page does, as a mapping would.
fn copied(file: &mut File) -> std::io::Result<Mmap> {
    let len = usize::try_from(file.metadata()?.len()).map_err(std::io::Error::other)?;
    let mut bytes = MmapMut::map_anon(len)?;
    file.read_exact(&mut bytes[..len])?;
    bytes.make_read_only()
}

/// A block of the pool, of which `len` bytes are used. Given back when dropped.
struct Heap {
    block: Option<Block>,
    len: usize,
}

// SAFETY: a Heap owns its block; access follows Rust's borrowing of the Heap itself.
unsafe impl Send for Heap {}
// SAFETY: as above; shared access only reads.
unsafe impl Sync for Heap {}

impl Heap {
    fn new(len: usize) -> Self {
        let capacity = size_class(len);
        // One that was given back, or else a new one.
        let kept = || pool().take(capacity).unwrap_or_else(|| Block::new(capacity));
        taken(capacity as isize);
        Self { block: (capacity > 0).then(kept), len }
    }

    fn bytes(&self) -> &[u8] {
        let Some(block) = &self.block else { return &[] };
        // SAFETY: the block is allocated, at least `len` long, and initialised (zeroed when first allocated).
        unsafe { std::slice::from_raw_parts(block.start.as_ptr(), self.len) }
    }

    fn get_mut<T: Element>(&mut self) -> &mut [T] {
        let Some(block) = &self.block else { return &mut [] };
        // SAFETY: as in `bytes`; ALIGNMENT is enough for any Element, and `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(block.start.as_ptr().cast(), self.len / size_of::<T>()) }
    }
}

impl Drop for Heap {
    fn drop(&mut self) {
        if let Some(block) = self.block.take() {
            let capacity = block.capacity;
            taken(-(capacity as isize));
            pool().give(block, capacity);
        }
    }
}

/// Allocated memory, aligned to [`ALIGNMENT`].
struct Block {
    start: NonNull<u8>,
    capacity: usize,
}

// SAFETY: a Block owns its memory, which is plain bytes.
unsafe impl Send for Block {}

impl Block {
    fn new(capacity: usize) -> Self {
        let layout = Self::layout(capacity);
        // SAFETY: the size is not zero. Zeroed, so that bytes are initialised from the start.
        let start = unsafe { alloc::alloc_zeroed(layout) };
        Self { start: NonNull::new(start).unwrap_or_else(|| alloc::handle_alloc_error(layout)), capacity }
    }

    fn layout(capacity: usize) -> alloc::Layout {
        alloc::Layout::from_size_align(capacity, ALIGNMENT).expect("a tensor's size fits the address space")
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: allocated by `new` with the same layout, and owned.
        unsafe { alloc::dealloc(self.start.as_ptr(), Self::layout(self.capacity)) }
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

/// Bytes of tensor memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// In use now.
    pub now: usize,
    /// Most in use at once.
    pub peak: usize,
    /// Most that was held at once: in use, or kept for the next tensor of that size.
    pub held: usize,
}

/// Freed blocks kept for the next allocation of their class. What is in use and what is kept together exceed the most that
/// was ever in use at once by an eighth at most: enough that a training step finds every block of the step before.
struct Pool<B> {
    free: BTreeMap<usize, Vec<B>>,
    kept: usize,
    memory: Memory,
}

static POOL: Mutex<Pool<Block>> = Mutex::new(Pool::new());

fn pool() -> MutexGuard<'static, Pool<Block>> {
    POOL.lock().unwrap_or_else(|e| e.into_inner())
}

/// Tensor memory of this process.
pub fn memory() -> Memory {
    pool().memory
}

thread_local! {
    /// Bytes that this thread took, less those that it gave back, and the most that this ever was.
    static TAKEN: Cell<[isize; 2]> = const { Cell::new([0; 2]) };
}

fn taken(bytes: isize) {
    let [now, peak] = TAKEN.get();
    TAKEN.set([now + bytes, peak.max(now + bytes)]);
}

/// Runs `f` and gives the bytes of tensor memory that this thread has in use at its end, and that it had at once, beyond those of before.
pub fn watched<R>(f: impl FnOnce() -> R) -> (R, [usize; 2]) {
    let [before, peak] = TAKEN.get();
    TAKEN.set([before; 2]);
    let result = f();
    let seen = TAKEN.get();
    TAKEN.set([seen[0], peak.max(seen[1])]);
    (result, seen.map(|bytes| (bytes - before).max(0) as usize))
}

impl<B> Pool<B> {
    const fn new() -> Self {
        Self { free: BTreeMap::new(), kept: 0, memory: Memory { now: 0, peak: 0, held: 0 } }
    }

    /// A kept block; `None`: the caller makes a new one.
    fn take(&mut self, capacity: usize) -> Option<B> {
        self.memory.now += capacity;
        self.memory.peak = self.memory.peak.max(self.memory.now);
        let block = self.free.get_mut(&capacity).and_then(Vec::pop);
        if block.is_some() {
            self.kept -= capacity;
        } else {
            self.shrink();
        }
        self.memory.held = self.memory.held.max(self.memory.now + self.kept);
        block
    }

    fn give(&mut self, block: B, capacity: usize) {
        self.memory.now -= capacity;
        self.kept += capacity;
        self.free.entry(capacity).or_default().push(block);
        self.shrink();
    }

    /// Frees kept blocks, largest first, until use and kept together are within an eighth above the peak.
    fn shrink(&mut self) {
        let Memory { now, peak, .. } = self.memory;
        while now + self.kept > peak + peak / 8 {
            let Some(mut largest) = self.free.last_entry() else { return };
            let capacity = *largest.key();
            match largest.get_mut().pop() {
                Some(block) => drop(block),
                None => {
                    largest.remove();
                    continue;
                }
            }
            self.kept -= capacity;
        }
    }
}

thread_local! {
    /// Stands in for the pool while this thread counts.
    static COUNT: RefCell<Option<Count>> = const { RefCell::new(None) };
}

struct Count {
    id: u64,
    pool: Pool<()>,
}

/// Runs `f` for the memory that its tensors take and nothing else: none is allocated and nothing is computed, on this thread. Values
/// read as zeros, so `f` must take the same course whatever they are.
///
/// What [`Tensor::write`](crate::Tensor::write) would fill is not filled; everything that ops, backward passes and optimisers do
/// with tensors' memory happens as it would.
pub fn counted<R>(f: impl FnOnce() -> R) -> (R, Memory) {
    struct End;
    impl Drop for End {
        fn drop(&mut self) {
            COUNT.set(None);
        }
    }
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let before = COUNT.replace(Some(Count { id: NEXT.fetch_add(1, Ordering::Relaxed), pool: Pool::new() }));
    assert!(before.is_none(), "counted inside of counted");
    let end = End;
    let result = f();
    let memory = COUNT.with_borrow(|count| count.as_ref().map_or_else(Memory::default, |count| count.pool.memory));
    drop(end);
    (result, memory)
}

/// Whether this thread counts memory, and computes nothing.
pub(crate) fn is_counting() -> bool {
    COUNT.with_borrow(Option::is_some)
}

/// Bytes that are counted, and made, all zero, where somebody looks at them after all.
struct Counted {
    /// In which counting.
    count: u64,
    len: usize,
    zeros: OnceLock<MmapMut>,
}

impl Counted {
    fn new(len: usize) -> Self {
        let count = COUNT.with_borrow_mut(|count| {
            count.as_mut().map(|count| {
                count.pool.take(size_class(len));
                count.id
            })
        });
        Self { count: count.unwrap_or(u64::MAX), len, zeros: OnceLock::new() }
    }

    /// Pages that nobody writes to take no memory.
    fn bytes(&self) -> &[u8] {
        let make =
            || MmapMut::map_anon(self.len).unwrap_or_else(|_| alloc::handle_alloc_error(Block::layout(self.len)));
        &self.zeros.get_or_init(make)[..self.len]
    }

    fn get_mut<T: Element>(&mut self) -> &mut [T] {
        self.bytes();
        let zeros = self.zeros.get_mut().expect("made just now");
        // SAFETY: a mapping begins where a page does, which is aligned for any Element; `len / size` elements fit, and are initialised.
        unsafe { std::slice::from_raw_parts_mut(zeros.as_mut_ptr().cast(), self.len / size_of::<T>()) }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        // Nothing is given back where that counting is over.
        COUNT.with_borrow_mut(|count| {
            if let Some(count) = count.as_mut().filter(|count| count.id == self.count) {
                count.pool.give((), size_class(self.len));
            }
        });
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
    fn memory_is_counted_without_being_taken() {
        let huge = 1 << 50;
        let (buffer, memory) = counted(|| {
            let mut a = Buffer::heap::<u8>(huge);
            drop(Buffer::heap::<u8>(huge / 4));
            assert!(a.is_unshared() && a.size() == huge);
            let mut small = Buffer::copied(&[1.0f32; 3]);
            // Looked at, it is there: zeros, and what is written.
            assert_eq!(small.get::<f32>(), [0.0; 3]);
            small.get_mut::<f32>().unwrap()[1] = 2.0;
            assert_eq!(small.get::<f32>(), [0.0, 2.0, 0.0]);
            a = small;
            a
        });
        let peak = huge + huge / 4;
        assert_eq!((memory.now, memory.peak), (ALIGNMENT, peak));
        // The quarter was kept beside what came after it.
        assert_eq!(memory.held, peak + ALIGNMENT);
        assert!(!is_counting() && !buffer.is_mapped());
        drop(buffer);
        assert!(std::panic::catch_unwind(|| counted(|| panic!("in the middle"))).is_err() && !is_counting());
    }

    /// Every op of the registry, forward and backward, takes what is counted for it.
    #[test]
    fn ops_take_what_is_counted() {
        use crate::gradcheck::Gen;
        use crate::tensor::Tensor;
        for entry in crate::ops::REGISTRY {
            for seed in 0..8 {
                let mut g = Gen::new(seed, 2 + seed as usize);
                let case = (entry.cases)(&mut g);
                let run = || {
                    let x: Vec<Tensor> = case.inputs().to_vec();
                    let leaves: Vec<Tensor> =
                        x.iter().map(|x| if x.dtype().is_float() { x.trainable() } else { x.clone() }).collect();
                    let y = case.run(&leaves);
                    let forward = y.is_tracked() && case.is_differentiable();
                    forward.then(|| {
                        let dy = Tensor::zeros(*y.dims(), y.dtype());
                        crate::tape::backward_with(vec![(y, dy)])
                    })
                };
                let ((_, memory), (_, taken)) = (counted(run), watched(run));
                assert_eq!([memory.now, memory.peak], taken, "{}, seed {seed}", entry.name);
            }
        }
    }

    #[test]
    fn parts_of_files_are_checked() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.bin");
        std::fs::write(&path, [0, 0, 128, 63, 7]).unwrap();
        for map in [true, false] {
            let file = FileBytes::open(&path, map).unwrap();
            let part = Buffer::in_file(&file, 0, 4, 4).unwrap();
            assert_eq!(part.get::<f32>(), [1.0]);
            assert!(part.is_mapped() == file.is_mapped() && part.clone().get_mut::<f32>().is_none());
            let read = Buffer::read(&file, 1, 4).unwrap();
            assert!(read.bytes() == [0, 128, 63, 7] && !read.is_mapped());
            assert!(Buffer::read(&file, 3, 4).is_err() && Buffer::read(&file, usize::MAX, 4).is_err());
            assert!(Buffer::in_file(&file, 2, 4, 4).is_err());
            assert!(Buffer::in_file(&file, 1, 4, 4).is_err());
            assert!(Buffer::in_file(&file, usize::MAX, 4, 1).is_err());
        }
        assert!(FileBytes::open(folder.path().join("none"), true).err().unwrap().to_string().contains("none"));
    }

    #[test]
    fn what_happens_to_a_file_in_use_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.bin");
        let fresh = |map: bool| {
            std::fs::write(&path, [7; 9000]).unwrap();
            FileBytes::open(&path, map).unwrap()
        };
        let cut = || File::options().write(true).open(&path).unwrap().set_len(5).unwrap();
        let file = fresh(true);
        file.intact().unwrap();
        if file.is_mapped() {
            cut();
            let error = file.intact().unwrap_err().to_string();
            assert!(error.contains("x.bin: was cut from 9000 to 5 bytes while it was in use"), "{error}");
            assert!(Buffer::read(&file, 0, 9000).is_err());
            // Written over in place; the clock that files are stamped with is coarse.
            let file = fresh(true);
            File::options().write(true).open(&path).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
            assert!(file.intact().unwrap_err().to_string().contains("was written to while it was in use"));
        }
        // A copy does not care, and what is renamed over a mapping leaves it its bytes.
        let file = fresh(false);
        cut();
        file.intact().unwrap();
        assert!(file.bytes() == [7; 9000] && !file.is_mapped() && file.describe().contains("--no-mmap"));
        let file = fresh(true);
        let other = folder.path().join("y.bin");
        std::fs::write(&other, [8; 5]).unwrap();
        std::fs::rename(&other, &path).unwrap();
        file.intact().unwrap();
        assert!(file.bytes() == [7; 9000]);
    }
}
