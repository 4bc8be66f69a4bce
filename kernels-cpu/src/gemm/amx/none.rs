//! Where there is no AMX.

use super::tile::{Columns, Rows, Target};
use super::words::Dot;
use crate::simd::Simd;

pub(super) const SIZE: (usize, usize) = (32, 32);

/// There is none.
pub(super) enum Configured {}

impl Configured {
    pub unsafe fn new() -> Self {
        unreachable!("no tier has it")
    }
}

#[allow(clippy::too_many_arguments)]
pub(super) unsafe fn run<S: Simd, A: Rows, D: Dot>(
    _: S,
    _: &mut Configured,
    _: A,
    _: Columns,
    _: usize,
    _: usize,
    _: usize,
    _: Target,
) {
    unreachable!("no tier has it")
}
