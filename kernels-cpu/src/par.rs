//! Threads. The only file that names rayon.
//!
//! Work is split by output: every output element is computed by one thread in an order that does not depend on how many
//! there are, so the bits are the same for any thread count.

use alloc::vec::Vec;
use core::ops::Range;

/// Below this many elementary operations (about 20 microseconds) work stays on one thread.
pub const SERIAL_BELOW: usize = 60_000;

#[cfg(feature = "rayon")]
mod pool {
    use core::cell::Cell;
    use core::ops::Range;
    use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};
    use core::time::Duration;
    use std::sync::{Arc, RwLock};
    use std::time::Instant;

    use super::Work;
    use crate::isa::Isa;

    /// Threads that kernels run on, exactly as many as asked for.
    #[derive(Clone)]
    pub struct Pool(Arc<rayon::ThreadPool>);

    impl Pool {
        /// A pool of `threads` threads.
        ///
        /// # Panics
        /// If the system refuses to start them.
        pub fn new(threads: usize) -> Self {
            Self::with(threads, None)
        }

        /// A pool of `threads` threads whose kernels are of a given tier, whatever the process's: for comparing tiers.
        ///
        /// # Panics
        /// If the machine does not have it; also as [`Pool::new`].
        pub fn on(isa: Isa, threads: usize) -> Self {
            assert!(isa.is_available(), "this machine does not have {isa}");
            Self::with(threads, Some(isa))
        }

        fn with(threads: usize, isa: Option<Isa>) -> Self {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads.max(1))
                .thread_name(|i| std::format!("kernel-{i}"))
                .start_handler(move |_| {
                    if let Some(isa) = isa {
                        isa.hold();
                    }
                });
            Self(Arc::new(pool.build().expect("the system starts threads for kernels")))
        }

        /// Runs `f` with its kernels on this pool. Entering once around much work is cheaper than once per kernel.
        pub fn install<R: Send>(&self, f: impl FnOnce() -> R + Send) -> R {
            self.0.install(f)
        }

        /// Number of threads.
        pub fn threads(&self) -> usize {
            self.0.current_num_threads()
        }
    }

    static DEFAULT: RwLock<Option<Pool>> = RwLock::new(None);

    fn default() -> Pool {
        if let Some(pool) = DEFAULT.read().unwrap_or_else(|e| e.into_inner()).as_ref() {
            return pool.clone();
        }
        let mut slot = DEFAULT.write().unwrap_or_else(|e| e.into_inner());
        slot.get_or_insert_with(|| Pool::new(std::thread::available_parallelism().map_or(1, |n| n.get()))).clone()
    }

    /// Threads for kernels that are called outside any [`Pool::install`]. Default: one per core.
    pub fn set_threads(threads: usize) {
        *DEFAULT.write().unwrap_or_else(|e| e.into_inner()) = Some(Pool::new(threads));
    }

    /// Threads that a kernel called here would use.
    pub fn threads() -> usize {
        if rayon::current_thread_index().is_some() { rayon::current_num_threads() } else { default().threads() }
    }

    /// Runs `f`, many kernels one after the other, where they need not be sent to their threads one by one.
    pub fn enter<R: Send>(f: impl FnOnce() -> R + Send) -> R {
        if rayon::current_thread_index().is_some() { f() } else { default().install(f) }
    }

    /// Leaves `f` to the threads for kernels, one of which runs it when it has nothing else to do.
    pub fn background(f: impl FnOnce() + Send + 'static) {
        if rayon::current_thread_index().is_some() { rayon::spawn(f) } else { default().0.spawn(f) }
    }

    /// How long a thread without work looks for some before it sleeps, from which it takes 25 to 60 us to wake.
    const LINGER: Duration = Duration::from_micros(100);
    /// Threads that look for work.
    static AWAKE: AtomicUsize = AtomicUsize::new(0);

    std::thread_local! {
        /// Kernels that this thread has a share of, one inside the other.
        static SHARES: Cell<usize> = const { Cell::new(0) };
    }

    struct Share;

    impl Drop for Share {
        fn drop(&mut self) {
            SHARES.set(SHARES.get() - 1);
        }
    }

    /// Runs a thread's share of a kernel.
    fn share<R>(f: impl FnOnce() -> R) -> R {
        SHARES.set(SHARES.get() + 1);
        let _ends = Share;
        f()
    }

    /// Sees to it that the other threads stay awake for the next kernel: those of AMX are as short as it takes to wake one.
    fn keep_others_awake() {
        let others = rayon::current_num_threads() - 1;
        while Isa::current() == Isa::Amx && AWAKE.load(Relaxed) < others {
            AWAKE.fetch_add(1, Relaxed);
            rayon::spawn(|| {
                let mut last = Instant::now();
                // One that waits for others to end their shares of its own has no time to linger.
                while SHARES.get() == 0 && last.elapsed() < LINGER {
                    match rayon::yield_now() {
                        Some(rayon::Yield::Executed) => last = Instant::now(),
                        _ => core::hint::spin_loop(),
                    }
                }
                AWAKE.fetch_sub(1, Relaxed);
            });
        }
    }

    /// Shares `items` out as so many pieces, of which none has more than one more than another, by halving.
    pub(super) fn split(items: usize, pieces: usize, f: Work<'_>) {
        fn halves(items: usize, pieces: usize, part: Range<usize>, f: Work<'_>) {
            if part.len() == 1 {
                return f(items * part.start / pieces..items * part.end / pieces);
            }
            let middle = part.start.midpoint(part.end);
            let [left, right] = [part.start..middle, middle..part.end];
            rayon::join(|| halves(items, pieces, left, f), || share(|| halves(items, pieces, right, f)));
        }
        enter(|| {
            keep_others_awake();
            share(|| halves(items, pieces, 0..pieces, f));
        })
    }
}

#[cfg(feature = "rayon")]
pub use pool::{Pool, background, enter, set_threads, threads};

/// Runs `f` where its kernels need not be sent to their threads one by one.
#[cfg(not(feature = "rayon"))]
pub fn enter<R>(f: impl FnOnce() -> R) -> R {
    f()
}

/// There is no thread that could run `f` later: it is dropped, so only what may be left undone can be given.
#[cfg(not(feature = "rayon"))]
pub fn background(_f: impl FnOnce() + Send + 'static) {}

/// Threads that a kernel called here would use.
#[cfg(not(feature = "rayon"))]
pub fn threads() -> usize {
    1
}

/// What is done on a range of items. Behind a pointer, so that a kernel's work is compiled once, not for every place that calls it.
type Work<'a> = &'a (dyn Fn(Range<usize>) + Sync);

/// Runs `f` on disjoint ranges that cover `0..items`; `cost` is an item's number of elementary operations.
pub fn for_each(items: usize, cost: usize, f: impl Fn(Range<usize>) + Sync) {
    spread(items, cost, &f);
}

fn spread(items: usize, cost: usize, f: Work<'_>) {
    if items == 0 {
        return;
    }
    #[cfg(feature = "rayon")]
    {
        let threads = threads();
        if threads > 1 && items > 1 && items.saturating_mul(cost) >= SERIAL_BELOW {
            // A few pieces per thread, so that a disturbed one does not hold up the rest, and none too small.
            let pieces = (items.saturating_mul(cost) / (SERIAL_BELOW / 4)).clamp(1, items.min(threads * 4));
            return pool::split(items, pieces, f);
        }
    }
    let _ = cost;
    f(0..items);
}

/// Pointer to a slice whose disjoint parts are written by different threads.
#[derive(Clone, Copy)]
pub struct Shared<T> {
    start: *mut T,
    len: usize,
}

// SAFETY: parts handed to different threads do not overlap, by the contract of `slice`.
unsafe impl<T: Send> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    /// Borrows `slice` for the life of the kernel call.
    pub fn new(slice: &mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len() }
    }

    /// The elements of `range`.
    ///
    /// # Safety
    /// No two live parts may overlap, and the slice must still be borrowed.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn slice(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len);
        // SAFETY: inside the slice (checked); disjoint by the caller's promise.
        unsafe { core::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }

    /// Pointer to element `i`, for kernels that write single elements of disjoint strided places.
    ///
    /// # Safety
    /// `i` must be inside the slice.
    pub unsafe fn at(&self, i: usize) -> *mut T {
        debug_assert!(i <= self.len);
        // SAFETY: the caller's promise.
        unsafe { self.start.add(i) }
    }
}

/// Runs `f(index, chunk)` on every chunk of `out`; `cost` is a chunk's number of elementary operations. The last chunk may be shorter.
pub fn chunks_mut<T: Send>(out: &mut [T], chunk: usize, cost: usize, f: impl Fn(usize, &mut [T]) + Sync) {
    let (len, shared) = (out.len(), Shared::new(out));
    for_each(len.div_ceil(chunk.max(1)), cost, |range| {
        for i in range {
            // SAFETY: chunks do not overlap, and each is handed out once.
            f(i, unsafe { shared.slice(i * chunk..((i + 1) * chunk).min(len)) });
        }
    });
}

/// Results of `f` on fixed chunks of `0..items`, in order: what a reduction combines, whatever the number of threads.
pub fn map_chunks<R: Send + Default + Clone>(
    items: usize,
    chunk: usize,
    cost: usize,
    f: impl Fn(Range<usize>) -> R + Sync,
) -> Vec<R> {
    let mut results = alloc::vec![R::default(); items.div_ceil(chunk)];
    chunks_mut(&mut results, 1, chunk.saturating_mul(cost), |i, slot| {
        slot[0] = f(i * chunk..((i + 1) * chunk).min(items))
    });
    results
}

#[cfg(all(test, feature = "rayon"))]
mod tests {
    use super::*;
    use crate::isa::Isa;

    #[test]
    fn a_pool_keeps_to_its_tier_and_leaves_others_theirs() {
        let own = Isa::current();
        for isa in Isa::available() {
            let seen = Pool::on(isa, 3).install(|| {
                let all = map_chunks(64, 1, SERIAL_BELOW, |_| Some(Isa::current()));
                assert!(Pool::new(2).install(Isa::current) == own, "a pool inside {isa}");
                all
            });
            assert!(seen.iter().all(|&seen| seen == Some(isa)), "{isa}: {seen:?}");
        }
        assert_eq!(Isa::current(), own);
    }

    #[test]
    fn one_thread_gets_all_items_at_once() {
        Pool::new(1).install(|| for_each(1000, SERIAL_BELOW, |range| assert_eq!(range, 0..1000)));
    }

    #[test]
    fn pieces_are_as_equal_as_can_be() {
        for (items, threads) in [(10, 2), (14, 2), (1001, 3), (3, 7)] {
            let sizes = std::sync::Mutex::new(Vec::new());
            Pool::new(threads)
                .install(|| for_each(items, SERIAL_BELOW, |range| sizes.lock().unwrap().push(range.len())));
            let sizes = sizes.into_inner().unwrap();
            let (least, most) = (sizes.iter().min().unwrap(), sizes.iter().max().unwrap());
            assert!(
                sizes.len() == items.min(4 * threads) && most - least <= 1,
                "{items} items on {threads}: {sizes:?}"
            );
        }
    }

    #[test]
    fn every_item_once_for_any_thread_count() {
        for threads in [1, 2, 3, 7] {
            Pool::new(threads).install(|| {
                assert_eq!(super::threads(), threads);
                for items in [0, 1, 2, 7, 100, 1001] {
                    let mut seen = alloc::vec![0u32; items];
                    let shared = Shared::new(&mut seen);
                    for_each(items, SERIAL_BELOW, |range| {
                        // SAFETY: the ranges are disjoint, which is what is tested.
                        let part = unsafe { shared.slice(range) };
                        part.iter_mut().for_each(|s| *s += 1);
                    });
                    let sums = map_chunks(items, 3, SERIAL_BELOW, |range| range.sum::<usize>());
                    assert_eq!(
                        sums,
                        (0..items).collect::<Vec<_>>().chunks(3).map(|c| c.iter().sum()).collect::<Vec<usize>>()
                    );
                }
            });
        }
    }
}
