//! Strided views of memory and the parts of buffers, whole words of 32 bits, that kernels bind for them.

use ash::vk;
use ash::vk::Handle;

use crate::error::{Error, Result};
use crate::hazards::Access;
use crate::memory::Memory;

/// Most dimensions of a view.
pub const MAX_RANK: usize = 6;

/// What an element is kept as. Whatever is not f32 is widened where it is read, and written by `cast` alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Stored {
    /// A word of 32 bits: f32, or whatever is only copied.
    #[default]
    F32,
    /// The upper half of an f32.
    Bf16,
    /// IEEE half.
    F16,
}

impl Stored {
    /// Elements of a word.
    pub(crate) fn per_word(self) -> usize {
        if self == Self::F32 { 1 } else { 2 }
    }
}

/// Elements: element `[i0, i1, ..]` is at `offset + sum(i_k * stride_k)`, in elements.
#[derive(Clone, Copy)]
pub struct View<'a> {
    /// Where they are.
    pub memory: &'a Memory,
    /// Place of element [0, 0, ..].
    pub offset: usize,
    /// Sizes, outermost first.
    pub dims: &'a [usize],
    /// One for each dimension; 0 where it is stretched.
    pub strides: &'a [isize],
    /// What they are kept as.
    pub stored: Stored,
}

/// A part of a buffer, bound to a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Binding {
    pub number: u32,
    pub buffer: vk::Buffer,
    pub start: u64,
    pub end: u64,
    pub writes: bool,
}

impl Binding {
    pub fn access(&self) -> Access {
        Access { buffer: self.buffer.as_raw(), start: self.start, end: self.end, writes: self.writes }
    }

    pub fn writing(self) -> Self {
        Self { writes: true, ..self }
    }

    /// Words from `from` to `to` of memory, and how many words behind the start of what is bound the first lies.
    pub fn words(number: u32, memory: &Memory, from: usize, to: usize) -> Result<(Self, usize)> {
        let limits = memory.device().limits();
        let first = memory.start + 4 * from as u64;
        let start = first / limits.alignment * limits.alignment;
        let end = memory.start + 4 * to as u64;
        assert!(from <= to && end <= memory.words_end(), "a view reaches beyond its memory of {} bytes", memory.len());
        if end - start > limits.range {
            return Err(Error::Limit(format!("{} bytes at once are more than the device binds", end - start)));
        }
        Ok((Self { number, buffer: memory.buffer, start, end, writes: false }, ((first - start) / 4) as usize))
    }
}

impl<'a> View<'a> {
    /// Of f32.
    pub fn new(memory: &'a Memory, offset: usize, dims: &'a [usize], strides: &'a [isize]) -> Self {
        Self { memory, offset, dims, strides, stored: Stored::F32 }
    }

    /// Number of elements.
    pub fn numel(&self) -> usize {
        self.dims.iter().product()
    }

    /// What a kernel of f32 binds to see every element and no more, and where element [0, 0, ..] then is.
    pub(crate) fn bind(&self, number: u32) -> Result<(Binding, u32)> {
        assert_eq!(self.stored, Stored::F32, "what this kernel reads");
        self.bind_stored(number)
    }

    /// As [`Self::bind`], for kernels that read what is stored in half: in elements, of the words that hold them.
    pub(crate) fn bind_stored(&self, number: u32) -> Result<(Binding, u32)> {
        let (mut low, mut high) = (self.offset as isize, self.offset as isize);
        for (&size, &stride) in self.dims.iter().zip(self.strides) {
            let reach = (size.max(1) as isize - 1) * stride;
            if reach < 0 { low += reach } else { high += reach }
        }
        assert!(low >= 0 && self.numel() > 0, "a view of {:?} before its memory, or empty", self.dims);
        let (per, first, end) = (self.stored.per_word(), low as usize, high as usize + 1);
        let (binding, before) = Binding::words(number, self.memory, first / per, end.div_ceil(per))?;
        let at = (before * per + first % per) as isize + self.offset as isize - low;
        // Kernels count in 32 bits.
        u32::try_from(at)
            .ok()
            .filter(|_| high - low < i32::MAX as isize && self.numel() < u32::MAX as usize)
            .map(|at| (binding, at))
            .ok_or_else(|| Error::Limit(format!("{:?} is more than a kernel counts", self.dims)))
    }

    /// Row-major without gaps, or empty.
    pub fn is_contiguous(&self) -> bool {
        let mut step = 1;
        self.numel() == 0
            || self.dims.iter().zip(self.strides).rev().all(|(&size, &stride)| {
                let fits = size == 1 || stride == step;
                step *= size as isize;
                fits
            })
    }
}

/// Sizes with the strides of several views, outermost first, as push constants have them.
pub(crate) struct Merged<const N: usize> {
    pub rank: u32,
    pub dims: [u32; MAX_RANK],
    pub strides: [[i32; MAX_RANK]; N],
}

/// The fewest dimensions in which all views of the same sizes are strided.
pub(crate) fn merged<const N: usize>(views: [&View<'_>; N]) -> Merged<N> {
    let mut all: Vec<(usize, [isize; N])> = Vec::new();
    for k in 0..views[0].dims.len() {
        let (size, strides) = (views[0].dims[k], views.map(|v| v.strides[k]));
        if size == 1 {
            continue;
        }
        match all.last_mut() {
            Some((outer, steps)) if (0..N).all(|i| steps[i] == strides[i] * size as isize) => {
                *outer *= size;
                *steps = strides;
            }
            _ => all.push((size, strides)),
        }
    }
    if all.is_empty() {
        all.push((1, [0; N]));
    }
    let mut out = Merged { rank: all.len() as u32, dims: [1; MAX_RANK], strides: [[0; MAX_RANK]; N] };
    for (k, (size, strides)) in all.into_iter().enumerate() {
        out.dims[k] = size as u32;
        (0..N).for_each(|i| out.strides[i][k] = strides[i] as i32);
    }
    out
}

impl<const N: usize> Merged<N> {
    /// Which views stay on one element along the innermost dimension.
    pub fn ones(&self) -> [bool; N] {
        self.strides.map(|strides| strides[self.rank as usize - 1] == 0)
    }

    /// Counts in fours if all views allow it: elements side by side along the innermost dimension, or one, and fours that begin at
    /// multiples of four. Sizes, strides and `at` of views that stay on one element are left in elements. 4, or 1 where it is not so.
    pub fn in_fours(&mut self, at: &mut [u32; N]) -> u32 {
        let last = self.rank as usize - 1;
        let lies = |(strides, at): (&[i32; MAX_RANK], &u32)| match strides[last] {
            0 => true,
            1 => at.is_multiple_of(4) && strides[..last].iter().all(|stride| stride % 4 == 0),
            _ => false,
        };
        if !self.dims[last].is_multiple_of(4) || !self.strides.iter().zip(at.iter()).all(lies) {
            return 1;
        }
        self.dims[last] /= 4;
        for (strides, at) in self.strides.iter_mut().zip(at).filter(|(strides, _)| strides[last] == 1) {
            strides[..last].iter_mut().for_each(|stride| *stride /= 4);
            *at /= 4;
        }
        4
    }
}

impl Merged<2> {
    /// The dimensions along which the first and the second view's elements lie side by side, where they are two that are long.
    pub fn sides(&self) -> Option<[usize; 2]> {
        let side = |strides: &[i32; MAX_RANK]| (0..self.rank as usize).find(|&k| strides[k] == 1 && self.dims[k] >= 16);
        let sides = [side(&self.strides[0])?, side(&self.strides[1])?];
        (sides[0] != sides[1]).then_some(sides)
    }
}

/// 4 where `n` elements from each of `at` on, or rows of so many, may be counted in fours; else 1.
pub(crate) fn in_fours(n: usize, at: &[u32]) -> u32 {
    if n.is_multiple_of(4) && at.iter().all(|at| at.is_multiple_of(4)) { 4 } else { 1 }
}
