//! Blocks of heap memory that are used again, and how much of it there is: taken, or only counted.

use std::alloc;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock};

use memmap2::MmapMut;

use super::ALIGNMENT;
use crate::dtype::Element;

/// A block of the pool, of which `len` bytes are used. Given back when dropped.
pub(crate) struct Heap {
    block: Option<Block>,
    pub(super) len: usize,
}

// SAFETY: a Heap owns its block; access follows Rust's borrowing of the Heap itself.
unsafe impl Send for Heap {}
// SAFETY: as above; shared access only reads.
unsafe impl Sync for Heap {}

impl Heap {
    pub(crate) fn new(len: usize) -> Self {
        let capacity = size_class(len);
        // One that was given back, or else a new one.
        let kept = || pool().take(capacity).unwrap_or_else(|| Block::new(capacity));
        taken(capacity as isize);
        Self { block: (capacity > 0).then(kept), len }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        let Some(block) = &self.block else { return &[] };
        // SAFETY: the block is allocated, at least `len` long, and initialised (zeroed when first allocated).
        unsafe { std::slice::from_raw_parts(block.start.as_ptr(), self.len) }
    }

    pub(crate) fn get_mut<T: Element>(&mut self) -> &mut [T] {
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

/// Memory of its own, aligned to [`ALIGNMENT`].
struct Block {
    start: NonNull<u8>,
    capacity: usize,
    /// A large block's. An allocator keeps what it is given back, in pieces between others that are in use; a mapping's pages are the system's
    /// again at once.
    mapping: Option<MmapMut>,
}

// SAFETY: a Block owns its memory, which is plain bytes.
unsafe impl Send for Block {}

impl Block {
    /// Zeroed, so that bytes are initialised from the start.
    fn new(capacity: usize) -> Self {
        let layout = Self::layout(capacity);
        let mut mapping = (capacity > LARGE).then(|| Self::mapped(capacity));
        let start = match &mut mapping {
            Some(mapping) => mapping.as_mut_ptr(),
            // SAFETY: the size is not zero.
            None => unsafe { alloc::alloc_zeroed(layout) },
        };
        Self { start: NonNull::new(start).unwrap_or_else(|| alloc::handle_alloc_error(layout)), capacity, mapping }
    }

    /// Pages of zeros, which take no memory until they are written to.
    fn mapped(len: usize) -> MmapMut {
        MmapMut::map_anon(len).unwrap_or_else(|_| alloc::handle_alloc_error(Self::layout(len)))
    }

    fn layout(capacity: usize) -> alloc::Layout {
        alloc::Layout::from_size_align(capacity, ALIGNMENT).expect("a tensor's size fits the address space")
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        if self.mapping.is_none() {
            // SAFETY: allocated by `new` with the same layout, and owned.
            unsafe { alloc::dealloc(self.start.as_ptr(), Self::layout(self.capacity)) }
        }
    }
}

/// Beyond so many bytes a block is large.
const LARGE: usize = 1 << 20;

/// Block sizes: eighths of a power of two, so that at most a fifth is wasted and freed blocks fit again; of large blocks, which come back with
/// the same sizes step after step, finer ones.
fn size_class(len: usize) -> usize {
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
    /// Where it is only counted, what is no tensor and stays: packed weights of plans.
    pub beside: usize,
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

/// Gives the system back what is kept for the next tensors, and measures from here on: before work that the last says nothing about.
pub fn release() {
    let mut pool = pool();
    pool.free.clear();
    pool.kept = 0;
    let now = pool.memory.now;
    pool.memory = Memory { now, peak: now, held: now, ..pool.memory };
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
        Self { free: BTreeMap::new(), kept: 0, memory: Memory { now: 0, peak: 0, held: 0, beside: 0 } }
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

/// Counts bytes that are no tensor's, where this thread counts; tells whether it does.
pub(crate) fn count_beside(bytes: usize) -> bool {
    COUNT.with_borrow_mut(|count| count.as_mut().map(|count| count.pool.memory.beside += bytes).is_some())
}

/// Bytes that are counted, and made, all zero, where somebody looks at them after all.
pub(super) struct Counted {
    /// In which counting.
    count: u64,
    pub(super) len: usize,
    zeros: OnceLock<MmapMut>,
}

impl Counted {
    pub(super) fn new(len: usize) -> Self {
        let count = COUNT.with_borrow_mut(|count| {
            count.as_mut().map(|count| {
                count.pool.take(size_class(len));
                count.id
            })
        });
        Self { count: count.unwrap_or(u64::MAX), len, zeros: OnceLock::new() }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.zeros.get_or_init(|| Block::mapped(self.len))[..self.len]
    }

    pub(super) fn get_mut<T: Element>(&mut self) -> &mut [T] {
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
    use crate::buffer::Buffer;

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
}
