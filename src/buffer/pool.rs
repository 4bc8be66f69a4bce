//! Blocks of heap memory that are used again, and how much of it there is: taken, or only counted.

use std::alloc;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock};

use memmap2::MmapMut;

use super::ALIGNMENT;
use super::arena::{Arena, PAGE, Pages, Place};
use crate::dtype::Element;

/// A block of the pool, of which `len` bytes are used. Given back when dropped.
pub(crate) struct Heap {
    block: Option<Block<Small>>,
    start: NonNull<u8>,
    pub(super) len: usize,
}

// SAFETY: a Heap owns its block; access follows Rust's borrowing of the Heap itself.
unsafe impl Send for Heap {}
// SAFETY: as above; shared access only reads.
unsafe impl Sync for Heap {}

impl Heap {
    pub(crate) fn new(len: usize) -> Self {
        let size = size_class(len);
        taken(size as isize);
        if size == 0 {
            return Self { block: None, start: NonNull::dangling(), len };
        }
        let (block, start) = pool().take(size, Small::new);
        let start = match &block {
            Block::Small(small) => small.start,
            Block::Large(_) => start.expect("a block of the arena has memory"),
        };
        Self { block: Some(block), start, len }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        if self.len == 0 {
            return &[];
        }
        // SAFETY: the block is allocated, at least `len` long, and initialised (zeroed when first allocated).
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    pub(crate) fn get_mut<T: Element>(&mut self) -> &mut [T] {
        if self.len == 0 {
            return &mut [];
        }
        // SAFETY: as in `bytes`; ALIGNMENT is enough for any Element, and `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr().cast(), self.len / size_of::<T>()) }
    }
}

impl Drop for Heap {
    fn drop(&mut self) {
        if let Some(block) = self.block.take() {
            let size = size_class(self.len);
            taken(-(size as isize));
            pool().give(block, size);
        }
    }
}

/// What the pool gives.
enum Block<S> {
    /// Memory of its own.
    Small(S),
    /// A part of the arena.
    Large(Place),
}

/// Memory of its own, aligned to [`ALIGNMENT`].
struct Small {
    start: NonNull<u8>,
    size: usize,
}

// SAFETY: a Small owns its memory, which is plain bytes.
unsafe impl Send for Small {}

impl Small {
    /// Zeroed, so that bytes are initialised from the start.
    fn new(size: usize) -> Self {
        let layout = Self::layout(size);
        // SAFETY: the size is not zero.
        let start = unsafe { alloc::alloc_zeroed(layout) };
        Self { start: NonNull::new(start).unwrap_or_else(|| alloc::handle_alloc_error(layout)), size }
    }

    fn layout(size: usize) -> alloc::Layout {
        alloc::Layout::from_size_align(size, ALIGNMENT).expect("a small block fits the address space")
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // SAFETY: allocated by `new` with the same layout, and owned.
        unsafe { alloc::dealloc(self.start.as_ptr(), Self::layout(self.size)) }
    }
}

/// Beyond so many bytes a block is large.
const LARGE: usize = 1 << 20;
/// Bytes that may always be kept beyond what was in use at once: blocks of a few sizes do not fit each other's places, and giving pages back to
/// take them again costs more than they are worth.
const SLACK: usize = 16 << 20;

/// Block sizes: eighths of a power of two, so that at most a fifth is wasted and freed blocks fit again; of large blocks, which need not fit, whole
/// pages.
fn size_class(len: usize) -> usize {
    if len > LARGE {
        return len.next_multiple_of(PAGE);
    }
    if len <= ALIGNMENT {
        return if len == 0 { 0 } else { ALIGNMENT };
    }
    len.next_multiple_of((len.next_power_of_two() / 8).max(ALIGNMENT))
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
    /// Where it is only counted, what is no tensor and stays: packed weights of plans, and what kernels work in.
    pub beside: usize,
}

/// Freed blocks, kept for the next: small ones for those of their class, large ones in the arena. What is in use and what is kept together exceed
/// the most that was ever in use at once by an eighth at most, or by [`SLACK`].
struct Pool<S, P> {
    small: BTreeMap<usize, Vec<S>>,
    /// Bytes of free small blocks.
    kept: usize,
    large: Arena<P>,
    memory: Memory,
}

static POOL: Mutex<Pool<Small, MmapMut>> = Mutex::new(Pool::new());

fn pool() -> MutexGuard<'static, Pool<Small, MmapMut>> {
    POOL.lock().unwrap_or_else(|e| e.into_inner())
}

/// Tensor memory of this process.
pub fn memory() -> Memory {
    pool().memory
}

/// Gives the system back what is kept for the next tensors, and measures from here on: before work that the last says nothing about.
pub fn release() {
    let mut pool = pool();
    pool.small.clear();
    pool.kept = 0;
    pool.large.trim(usize::MAX);
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

impl<S, P: Pages> Pool<S, P> {
    const fn new() -> Self {
        let memory = Memory { now: 0, peak: 0, held: 0, beside: 0 };
        Self { small: BTreeMap::new(), kept: 0, large: Arena::new(), memory }
    }

    /// A block of a size of [`size_class`], and where it begins if it is a large one; `new` makes a small one where none is kept.
    fn take(&mut self, size: usize, new: impl FnOnce(usize) -> S) -> (Block<S>, Option<NonNull<u8>>) {
        self.memory.now += size;
        self.memory.peak = self.memory.peak.max(self.memory.now);
        let taken = if size > LARGE {
            let (place, start) = self.large.take(size);
            (Block::Large(place), start)
        } else {
            let kept = self.small.get_mut(&size).and_then(Vec::pop);
            self.kept -= if kept.is_some() { size } else { 0 };
            (Block::Small(kept.unwrap_or_else(|| new(size))), None)
        };
        self.shrink();
        self.memory.held = self.memory.held.max(self.memory.now + self.kept + self.large.idle());
        taken
    }

    fn give(&mut self, block: Block<S>, size: usize) {
        self.memory.now -= size;
        match block {
            Block::Large(place) => self.large.give(place, size),
            Block::Small(small) => {
                self.kept += size;
                self.small.entry(size).or_default().push(small);
            }
        }
        self.shrink();
    }

    /// Frees what is kept, largest first, until use and kept together are within an eighth, or [`SLACK`], above the peak.
    fn shrink(&mut self) {
        let Memory { now, peak, .. } = self.memory;
        let most = peak + (peak / 8).max(SLACK);
        let excess = (now + self.kept + self.large.idle()).saturating_sub(most);
        if excess > 0 {
            self.large.trim(excess);
        }
        while now + self.kept + self.large.idle() > most {
            let Some(mut largest) = self.small.last_entry() else { return };
            let size = *largest.key();
            match largest.get_mut().pop() {
                Some(block) => drop(block),
                None => {
                    largest.remove();
                    continue;
                }
            }
            self.kept -= size;
        }
    }
}

thread_local! {
    /// Stands in for the pool while this thread counts.
    static COUNT: RefCell<Option<Count>> = const { RefCell::new(None) };
}

struct Count {
    id: u64,
    /// Bytes that one op takes for itself, at most.
    scratch: usize,
    pool: Pool<(), ()>,
}

/// Runs `f` for the memory that its tensors take and nothing else: none is allocated and nothing is computed, on this thread. Values
/// read as zeros, so `f` must take the same course whatever they are.
///
/// What [`Tensor::write`](crate::Tensor::write) would fill is not filled; everything that ops, backward passes and optimisers do
/// with tensors' memory happens as it would.
pub fn counted<R>(f: impl FnOnce() -> R) -> (R, Memory) {
    assert!(!is_counting(), "counted inside of counted");
    let end = Counting::begin();
    let result = f();
    let all = |count: &Count| Memory { beside: count.pool.memory.beside + count.scratch, ..count.pool.memory };
    let memory = COUNT.with_borrow(|count| count.as_ref().map_or_else(Memory::default, all));
    drop(end);
    (result, memory)
}

/// Runs `f` for the dims of its results alone: they take no memory until somebody looks, and nothing is counted of them.
pub(crate) fn uncomputed<R>(f: impl FnOnce() -> R) -> R {
    let _until_then = Counting::begin();
    f()
}

/// As long as it lives, this thread counts anew; afterwards as before.
struct Counting(Option<Count>);

impl Counting {
    fn begin() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        Self(COUNT.replace(Some(Count { id, scratch: 0, pool: Pool::new() })))
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        COUNT.set(self.0.take());
    }
}

/// Whether this thread counts memory, and computes nothing.
pub(crate) fn is_counting() -> bool {
    COUNT.with_borrow(Option::is_some)
}

/// Counts bytes that are no tensor's, where this thread counts; tells whether it does.
pub(crate) fn count_beside(bytes: usize) -> bool {
    COUNT.with_borrow_mut(|count| count.as_mut().map(|count| count.pool.memory.beside += bytes).is_some())
}

/// Counts bytes that an op takes for itself while it runs, where this thread counts: one op's at a time.
pub(crate) fn count_scratch(bytes: impl FnOnce() -> usize) {
    COUNT.with_borrow_mut(|count| {
        if let Some(count) = count {
            count.scratch = count.scratch.max(bytes());
        }
    });
}

/// Bytes that are counted, and made, all zero, where somebody looks at them after all.
pub(super) struct Counted {
    /// In which counting.
    count: u64,
    block: Option<Block<()>>,
    pub(super) len: usize,
    zeros: OnceLock<MmapMut>,
}

impl Counted {
    pub(super) fn new(len: usize) -> Self {
        let size = size_class(len);
        let take = |count: &mut Count| (count.id, (size > 0).then(|| count.pool.take(size, |_| ()).0));
        let (count, block) = COUNT.with_borrow_mut(|count| count.as_mut().map(take)).unwrap_or((u64::MAX, None));
        Self { count, block, len, zeros: OnceLock::new() }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.zeros.get_or_init(|| MmapMut::map(self.len))[..self.len]
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
            let count = count.as_mut().filter(|count| count.id == self.count);
            if let (Some(count), Some(block)) = (count, self.block.take()) {
                count.pool.give(block, size_class(self.len));
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
    fn what_is_not_computed_is_not_counted() {
        let ((seen, left), memory) = counted(|| {
            let kept = Buffer::heap::<u8>(1 << 30);
            let seen = uncomputed(|| Buffer::heap::<u8>(1 << 50));
            assert!(is_counting() && seen.size() == 1 << 50);
            (seen, kept)
        });
        assert_eq!([memory.now, memory.peak], [1 << 30; 2]);
        drop((seen, left));
        assert!(uncomputed(is_counting) && !is_counting());
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

    /// Nor by what an op tells its gradient beside its value.
    #[test]
    fn places_of_maxima_are_counted_without_being_found() {
        use crate::{DType, Tensor, ops::pool::Window};
        let side = 1 << 22;
        let (_, memory) = counted(|| {
            Tensor::zeros([1, side, side, 1], DType::F32).trainable().max_pool2d(Window::square(2, 2, 0)).dims()[1]
        });
        assert!(memory.peak >= 6 * side * side);
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
