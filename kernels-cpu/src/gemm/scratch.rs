//! Buffers that kernels work in, kept per thread between calls. Taken out while in use, so that a thread that steals another kernel's work
//! while it waits has buffers of its own.

use alloc::vec;
use alloc::vec::Vec;

use super::pack::Line;

/// What a buffer is for.
#[derive(Clone, Copy)]
pub(crate) enum Use {
    /// Packed rows of a job.
    Rows,
    /// Packed rows of all jobs of a product.
    CommonRows,
    /// Packed columns.
    Panels,
    /// Rows of A in fewer bits.
    Words,
    /// Sums of tiles that wait for the rest of their slab.
    Sums,
    /// What is multiplied by a kernel that calls products.
    Operand,
    /// What it makes of them.
    Result,
    /// Maps with the columns or in the type that windows are read in.
    Maps,
    /// Sums of a product that is rounded at its end.
    Unrounded,
}

/// What a buffer's content is known by.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Name(u64);

impl Name {
    /// Of no content.
    pub const NONE: Self = Self(0);

    /// One that no content has had, where buffers are kept.
    pub fn new() -> Self {
        #[cfg(feature = "std")]
        {
            use core::sync::atomic::{AtomicU64, Ordering};
            static NAMES: AtomicU64 = AtomicU64::new(1);
            Self(NAMES.fetch_add(1, Ordering::Relaxed))
        }
        #[cfg(not(feature = "std"))]
        Self::NONE
    }
}

#[cfg(feature = "std")]
std::thread_local! {
    static KEPT: core::cell::RefCell<[(Name, Vec<Line>); 9]> =
        const { core::cell::RefCell::new([const { (Name::NONE, Vec::new()) }; 9]) };
}

/// Room for `len` numbers.
pub(crate) fn take(which: Use, len: usize) -> Vec<Line> {
    take_named(which, Name::NONE, len).0
}

/// Room for `len` numbers, and whether it has the content of a name still: the thread gave it back under this name, and nobody took it since.
pub(crate) fn take_named(which: Use, name: Name, len: usize) -> (Vec<Line>, bool) {
    #[cfg(feature = "std")]
    let (held, mut buffer) = KEPT.with(|kept| core::mem::take(&mut kept.borrow_mut()[which as usize]));
    #[cfg(not(feature = "std"))]
    let (held, mut buffer) = (Name::NONE, Vec::new());
    let _ = which;
    if buffer.len() * 16 < len {
        buffer = vec![Line::ZERO; len.div_ceil(16)];
        return (buffer, false);
    }
    (buffer, name != Name::NONE && held == name)
}

/// Keeps a buffer for the next who takes one.
pub(crate) fn give(which: Use, buffer: Vec<Line>) {
    give_named(which, Name::NONE, buffer);
}

/// As [`give`], for one who may take it for its content.
pub(crate) fn give_named(which: Use, name: Name, buffer: Vec<Line>) {
    #[cfg(feature = "std")]
    KEPT.with(|kept| {
        let slot = &mut kept.borrow_mut()[which as usize];
        if slot.1.len() < buffer.len() {
            *slot = (name, buffer);
        }
    });
    #[cfg(not(feature = "std"))]
    let _ = (which, name, buffer);
}

#[cfg(all(test, feature = "std"))]
mod tests {
    use super::*;

    #[test]
    fn content_is_known_by_its_name_until_somebody_takes_the_buffer() {
        let known = |name: Name, len: usize| {
            let (buffer, known) = take_named(Use::Rows, name, len);
            give_named(Use::Rows, name, buffer);
            known
        };
        let run = move || {
            let (one, other) = (Name::new(), Name::new());
            assert!(!known(one, 100) && known(one, 100));
            assert!(!known(one, 200), "a larger buffer is another");
            assert!(!known(other, 100) && !known(one, 100));
            give(Use::Rows, take(Use::Rows, 100));
            assert!(!known(one, 100) && !known(Name::NONE, 100) && !known(Name::NONE, 100));
            // Taken twice at a time: the second has a buffer of its own, and may be the one that is kept.
            let (first, _) = take_named(Use::Rows, one, 100);
            assert!(!known(other, 300));
            give_named(Use::Rows, one, first);
            assert!(!known(one, 100));
        };
        std::thread::spawn(run).join().unwrap();
    }
}
