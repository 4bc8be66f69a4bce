//! Strided raw views: how tensors of any layout reach a kernel.

/// Read-only strided view of elements: element `[i0, i1, ..]` is `data[offset + sum(i_k * strides[k])]`.
/// A stride of 0 broadcasts, a negative one flips. The kernel gets the dims beside it.
#[derive(Clone, Copy, Debug)]
pub struct Strided<'a, T> {
    /// The whole buffer.
    pub data: &'a [T],
    /// Where element [0, 0, ..] is.
    pub offset: usize,
    /// In elements, one per dimension.
    pub strides: &'a [isize],
}
