//! Dims, strides and offset: where in a buffer each element of a tensor is.

use std::fmt;
use std::ops::Deref;

/// Most dimensions a tensor can have.
pub const MAX_RANK: usize = 6;

/// Sizes of the dimensions, outermost first.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Dims {
    sizes: [usize; MAX_RANK],
    rank: usize,
}

impl Dims {
    /// # Panics
    /// If there are more than [`MAX_RANK`] sizes.
    #[track_caller]
    pub fn new(sizes: &[usize]) -> Self {
        assert!(sizes.len() <= MAX_RANK, "{sizes:?} has more than {MAX_RANK} dimensions");
        let mut dims = Self { sizes: [0; MAX_RANK], rank: sizes.len() };
        dims.sizes[..sizes.len()].copy_from_slice(sizes);
        dims
    }

    /// Number of elements.
    pub fn numel(&self) -> usize {
        self.iter().product()
    }

    /// These dims followed by others.
    #[track_caller]
    pub fn followed_by(&self, others: &[usize]) -> Self {
        Self::new(&[&self[..], others].concat())
    }

    /// The same dims with dimension `dim` replaced by `size`.
    #[track_caller]
    pub fn with(mut self, dim: usize, size: usize) -> Self {
        assert!(dim < self.rank, "no dimension {dim} in {self:?}");
        self.sizes[dim] = size;
        self
    }

    /// The dims that both broadcast to (NumPy's rule), if they do.
    pub fn broadcast(&self, other: &Dims) -> Option<Dims> {
        let rank = self.rank.max(other.rank);
        let mut out = Dims::new(&[1; MAX_RANK][..rank]);
        for (i, size) in out.sizes[..rank].iter_mut().enumerate() {
            let at = |d: &Dims| (i + d.rank).checked_sub(rank).map_or(1, |k| d[k]);
            *size = match (at(self), at(other)) {
                (a, b) if a == b => a,
                (1, b) => b,
                (a, 1) => a,
                _ => return None,
            };
        }
        Some(out)
    }
}

impl Deref for Dims {
    type Target = [usize];
    fn deref(&self) -> &[usize] {
        &self.sizes[..self.rank]
    }
}

impl fmt::Debug for Dims {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self[..], f)
    }
}

impl<const N: usize> From<[usize; N]> for Dims {
    fn from(sizes: [usize; N]) -> Self {
        Self::new(&sizes)
    }
}

impl From<&[usize]> for Dims {
    fn from(sizes: &[usize]) -> Self {
        Self::new(sizes)
    }
}

/// Where each element is: element `[i0, i1, ..]` of a tensor is at `offset + sum(i_k * stride_k)`, in elements.
/// A stride of 0 broadcasts, a negative one flips.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Layout {
    dims: Dims,
    strides: [isize; MAX_RANK],
    offset: usize,
}

impl Layout {
    /// Row-major from element `offset` on.
    pub fn contiguous(dims: Dims, offset: usize) -> Self {
        let mut strides = [0; MAX_RANK];
        let mut step = 1;
        for k in (0..dims.len()).rev() {
            strides[k] = step;
            step *= dims[k] as isize;
        }
        Self { dims, strides, offset }
    }

    /// Any strides, one per dimension.
    #[track_caller]
    pub fn strided(dims: Dims, strides: &[isize], offset: usize) -> Self {
        assert_eq!(dims.len(), strides.len(), "strides {strides:?} for {dims:?}");
        let mut out = Self { dims, strides: [0; MAX_RANK], offset };
        out.strides[..strides.len()].copy_from_slice(strides);
        out
    }

    /// Sizes.
    pub fn dims(&self) -> &Dims {
        &self.dims
    }

    /// Strides in elements, one per dimension.
    pub fn strides(&self) -> &[isize] {
        &self.strides[..self.dims.rank]
    }

    /// Position of element [0, 0, ..].
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// Row-major without gaps. Dimensions of size 1 may have any stride; an empty tensor is contiguous.
    pub fn is_contiguous(&self) -> bool {
        let mut step = 1;
        for k in (0..self.dims.rank).rev() {
            if self.dims[k] != 1 && self.strides[k] != step {
                return self.dims.numel() == 0;
            }
            step *= self.dims[k] as isize;
        }
        true
    }

    /// One past the last element used, from the start of the buffer.
    pub fn end(&self) -> usize {
        if self.dims.numel() == 0 {
            return self.offset;
        }
        let reach: isize = self.dims.iter().zip(self.strides()).map(|(&d, &s)| (d as isize - 1) * s.max(0)).sum();
        self.offset + reach as usize + 1
    }

    /// Dimension `order[k]` becomes dimension `k`.
    #[track_caller]
    pub fn permute(&self, order: &[usize]) -> Self {
        let mut seen = [false; MAX_RANK];
        assert!(
            order.len() == self.dims.rank
                && order.iter().all(|&k| k < order.len() && !std::mem::replace(&mut seen[k], true)),
            "permute: {order:?} is not an order of the dimensions of {:?}",
            self.dims
        );
        let mut out = *self;
        for (k, &from) in order.iter().enumerate() {
            out.dims.sizes[k] = self.dims[from];
            out.strides[k] = self.strides[from];
        }
        out
    }

    /// Elements `start..start + len` of dimension `dim`.
    #[track_caller]
    pub fn narrow(&self, dim: usize, start: usize, len: usize) -> Self {
        let size = *self.dims.get(dim).unwrap_or_else(|| panic!("narrow: no dimension {dim} in {:?}", self.dims));
        assert!(
            start.checked_add(len).is_some_and(|end| end <= size),
            "narrow: {start}..{start}+{len} of {:?} along {dim}",
            self.dims
        );
        let mut out = *self;
        out.dims.sizes[dim] = len;
        if out.dims.numel() > 0 {
            out.offset = self.offset.wrapping_add_signed(start as isize * self.strides[dim]);
        }
        out
    }

    /// Every `step`-th element of dimension `dim`, from the first.
    #[track_caller]
    pub fn step(&self, dim: usize, step: usize) -> Self {
        assert!(dim < self.dims.rank && step > 0, "step: every {step}th along {dim} of {:?}", self.dims);
        let mut out = *self;
        out.dims.sizes[dim] = self.dims[dim].div_ceil(step);
        out.strides[dim] *= step as isize;
        out
    }

    /// Dimension `dim` in reverse order.
    #[track_caller]
    pub fn flip(&self, dim: usize) -> Self {
        assert!(dim < self.dims.rank, "flip: no dimension {dim} in {:?}", self.dims);
        let mut out = *self;
        if self.dims.numel() > 0 {
            out.offset = self.offset.wrapping_add_signed((self.dims[dim] as isize - 1) * self.strides[dim]);
        }
        out.strides[dim] = -self.strides[dim];
        out
    }

    /// Stretches dimensions of size 1 and adds dimensions in front (NumPy's rule).
    #[track_caller]
    pub fn broadcast_to(&self, dims: Dims) -> Self {
        assert!(self.dims.broadcast(&dims) == Some(dims), "cannot broadcast {:?} to {dims:?}", self.dims);
        let mut out = Self { dims, strides: [0; MAX_RANK], offset: self.offset };
        let added = dims.rank - self.dims.rank;
        for k in 0..self.dims.rank {
            if self.dims[k] == dims[k + added] {
                out.strides[k + added] = self.strides[k];
            }
        }
        out
    }

    /// The same elements in the same order under other dims, if strides can express it.
    pub fn reshape(&self, dims: Dims) -> Option<Self> {
        if self.is_contiguous() {
            return Some(Self::contiguous(dims, self.offset));
        }
        // Walk both shapes outermost first, matching groups of dimensions with equal products; a group of old
        // dimensions can be regrouped only where it is contiguous in itself.
        let mut out = Self::contiguous(dims, self.offset);
        let old: Vec<(usize, isize)> =
            self.dims.iter().copied().zip(self.strides().iter().copied()).filter(|&(d, _)| d != 1).collect();
        let (mut i, mut j) = (0, 0);
        while i < old.len() {
            let (mut size, mut taken, first) = (old[i].0, dims.get(j).copied()?, j);
            let start = i;
            while size != taken {
                if size < taken {
                    i += 1;
                    size *= old.get(i)?.0;
                } else {
                    j += 1;
                    taken *= dims.get(j).copied()?;
                }
            }
            if (start..i).any(|k| old[k].1 != old[k + 1].1 * old[k + 1].0 as isize) {
                return None;
            }
            let mut stride = old[i].1;
            for k in (first..=j).rev() {
                out.strides[k] = stride;
                stride *= dims[k] as isize;
            }
            i += 1;
            j += 1;
        }
        Some(out)
    }
}

impl fmt::Debug for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} strides {:?} offset {}", self.dims, self.strides(), self.offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Offsets of all elements in row-major order: what a layout means.
    fn offsets(layout: &Layout) -> Vec<usize> {
        let mut out = vec![layout.offset as isize];
        for (&d, &s) in layout.dims.iter().zip(layout.strides()) {
            out = out.iter().flat_map(|&base| (0..d as isize).map(move |i| base + i * s)).collect();
        }
        if layout.dims.numel() == 0 { vec![] } else { out.into_iter().map(|o| o as usize).collect() }
    }

    prop_compose! {
        fn layout()(sizes in prop::collection::vec(0usize..5, 0..5), order in any::<u32>(), flips in any::<u8>(), cut in any::<bool>()) -> Layout {
            let dims = Dims::new(&sizes);
            let mut layout = Layout::contiguous(dims, 3);
            let mut axes: Vec<usize> = (0..sizes.len()).collect();
            kernels_cpu::rng::Rng::new(order as u64, 0).shuffle(&mut axes);
            layout = layout.permute(&axes);
            for k in 0..sizes.len() {
                if flips >> k & 1 == 1 { layout = layout.flip(k); }
                if cut && layout.dims()[k] > 2 { layout = layout.narrow(k, 1, layout.dims()[k] - 1); }
            }
            layout
        }
    }

    proptest! {
        #[test]
        fn reshape_keeps_the_order_of_elements(l in layout(), split in 1usize..4) {
            let numel = l.dims().numel();
            let mut targets = vec![Dims::new(&[numel]), Dims::new(&[1, numel, 1])];
            if numel % split == 0 { targets.push(Dims::new(&[split, numel / split])); targets.push(Dims::new(&[numel / split, split])); }
            if let Some((&last, front)) = l.dims().split_last() && front.len() < 5 && last % split == 0 {
                let mut d = front.to_vec(); d.extend([last / split, split]); targets.push(Dims::new(&d));
            }
            for dims in targets {
                if let Some(view) = l.reshape(dims) { prop_assert_eq!(offsets(&view), offsets(&l)); }
                else { prop_assert!(!l.is_contiguous()); }
            }
        }

        #[test]
        fn contiguous_means_consecutive(l in layout()) {
            let o = offsets(&l);
            prop_assert_eq!(l.is_contiguous(), o.iter().enumerate().all(|(i, &x)| x == l.offset() + i));
            prop_assert_eq!(l.end(), o.iter().max().map_or(l.offset(), |m| m + 1));
        }

        #[test]
        fn flip_twice_and_step(l in layout(), step in 1usize..4) {
            for k in 0..l.dims().len() {
                prop_assert_eq!(offsets(&l.flip(k).flip(k)), offsets(&l));
                prop_assert_eq!(l.step(k, step).dims()[k], (0..l.dims()[k]).step_by(step).count());
            }
        }
    }

    #[test]
    fn splitting_the_last_dimension_of_a_permuted_view_needs_no_copy() {
        // [b, t, h*d] seen as [b, h, t, d]: what attention does.
        let l = Layout::contiguous([2, 5, 6].into(), 0).permute(&[1, 0, 2]);
        assert!(l.reshape([5, 2, 3, 2].into()).is_some());
        assert!(l.reshape([10, 6].into()).is_none());
    }

    #[test]
    fn broadcast_rule() {
        let d = |x: &[usize]| Dims::new(x);
        assert_eq!(d(&[3, 1]).broadcast(&d(&[4])), Some(d(&[3, 4])));
        assert_eq!(d(&[0]).broadcast(&d(&[1])), Some(d(&[0])));
        assert_eq!(d(&[3]).broadcast(&d(&[4])), None);
        assert_eq!(
            offsets(&Layout::contiguous(d(&[2, 1]), 0).broadcast_to(d(&[2, 2, 3]))),
            [0, 0, 0, 1, 1, 1, 0, 0, 0, 1, 1, 1]
        );
    }
}
