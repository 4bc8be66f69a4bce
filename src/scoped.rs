//! What holds on this thread for a while.

use std::cell::Cell;
use std::thread::LocalKey;

/// Runs `f` while a cell of this thread is `value`; afterwards it is as before, also where `f` panics.
pub(crate) fn with<T: Copy, R>(cell: &'static LocalKey<Cell<T>>, value: T, f: impl FnOnce() -> R) -> R {
    struct Before<T: Copy + 'static>(&'static LocalKey<Cell<T>>, T);
    impl<T: Copy> Drop for Before<T> {
        fn drop(&mut self) {
            self.0.set(self.1);
        }
    }
    let _before = Before(cell, cell.replace(value));
    f()
}
