//! What all targets share: an allocator that counts, the bound on what a file may make us allocate, and files to open.

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicIsize, Ordering::Relaxed};

/// Counts what the system allocates.
struct Counting;

static NOW: AtomicIsize = AtomicIsize::new(0);
static PEAK: AtomicIsize = AtomicIsize::new(0);

fn grown(by: usize) {
    PEAK.fetch_max(NOW.fetch_add(by as isize, Relaxed) + by as isize, Relaxed);
}

// SAFETY: every call is passed on to the system's allocator unchanged; the counters do not touch memory it hands out.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grown(layout.size());
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        grown(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size() as isize, Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }
    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // The old block may live beside the new one while it is copied.
        grown(size);
        NOW.fetch_sub(layout.size() as isize, Relaxed);
        // SAFETY: as above.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What may be allocated for a file: four times its size and 16 MiB.
pub fn of_file(data: &[u8]) -> usize {
    4 * data.len() + (16 << 20)
}

/// Runs `run`, which may not allocate more than `limit` bytes at once.
///
/// # Panics
/// If it does.
pub fn bounded(limit: usize, run: impl FnOnce()) {
    let before = NOW.load(Relaxed);
    PEAK.store(before, Relaxed);
    run();
    let used = usize::try_from(PEAK.load(Relaxed) - before).unwrap_or_default();
    if std::env::var_os("TIER_FUZZ_MEMORY").is_some() {
        println!("{used} bytes of {limit}");
    }
    assert!(used <= limit, "allocated {used} bytes where {limit} are allowed");
}

/// A folder of this process's own, for inputs that are opened by path; put TMPDIR on a file system in memory.
pub fn folder() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = std::env::temp_dir().join(format!("tier-fuzz-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a temporary folder");
        folder
    })
}

/// Writes one file of the folder.
pub fn file(name: &str, data: &[u8]) -> PathBuf {
    let path = folder().join(name);
    std::fs::write(&path, data).expect("a temporary file");
    path
}

/// Splits the first byte off: which kind of input it is.
pub fn kind(data: &[u8]) -> (u8, &[u8]) {
    data.split_first().map_or((0, data), |(&first, rest)| (first, rest))
}
