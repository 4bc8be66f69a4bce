//! Where there is no AMX.

use super::ahead::Asks;
use super::rows::Rows;
use super::tile::{Columns, Part, Target};
use super::words::Dot;
use crate::simd::Simd;

pub(super) const SIZE: (usize, usize) = (32, 32);
pub(super) const DEEP: usize = 256;
pub(super) const TOGETHER: usize = 1;

/// There is none.
pub(super) enum Configured {}

impl Configured {
    pub unsafe fn new(_: usize) -> Self {
        unreachable!("no tier has it")
    }
}

pub(super) unsafe fn run<S: Simd, A: Rows, D: Dot>(
    _: S,
    _: &Configured,
    _: A,
    _: Columns,
    _: &mut Asks,
    _: Part,
    _: [usize; 3],
    _: Target,
) {
    unreachable!("no tier has it")
}
