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
    /// What is multiplied by a kernel that calls products.
    Operand,
    /// What it makes of them.
    Result,
}

#[cfg(feature = "std")]
std::thread_local! {
    static KEPT: core::cell::RefCell<[Vec<Line>; 6]> = const { core::cell::RefCell::new([const { Vec::new() }; 6]) };
}

/// Room for `len` numbers.
pub(crate) fn take(which: Use, len: usize) -> Vec<Line> {
    #[cfg(feature = "std")]
    let mut buffer = KEPT.with(|kept| core::mem::take(&mut kept.borrow_mut()[which as usize]));
    #[cfg(not(feature = "std"))]
    let mut buffer = {
        let _ = which;
        Vec::new()
    };
    if buffer.len() * 16 < len {
        buffer = vec![Line::ZERO; len.div_ceil(16)];
    }
    buffer
}

/// Keeps a buffer for the next who takes one.
pub(crate) fn give(which: Use, buffer: Vec<Line>) {
    #[cfg(feature = "std")]
    KEPT.with(|kept| {
        let slot = &mut kept.borrow_mut()[which as usize];
        if slot.len() < buffer.len() {
            *slot = buffer;
        }
    });
    #[cfg(not(feature = "std"))]
    let _ = (which, buffer);
}
