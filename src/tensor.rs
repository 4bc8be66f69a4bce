//! A tensor: shared bytes, a strided layout, an element type and, where a trainable input reaches it, a graph node.

use std::fmt;
use std::sync::Arc;

use kernels_cpu::{Strided, par, strided};

use crate::buffer::{Buffer, is_counting};
#[cfg(feature = "vulkan")]
use crate::device::Mirrored;
use crate::dtype::{DType, Element};
use crate::for_dtype;
use crate::layout::{Dims, Layout};
use crate::op::Meta;
use crate::plan::trace;
use crate::rng::Rng;
use crate::tape::Node;

/// An n-dimensional array. Cloning shares the bytes.
#[derive(Clone)]
pub struct Tensor {
    buffer: Buffer,
    layout: Layout,
    dtype: DType,
    node: Option<Arc<Node>>,
}

/// Making tensors.
impl Tensor {
    /// A tensor of the given values in row-major order.
    ///
    /// # Panics
    /// If the number of values is not the product of `dims`.
    #[track_caller]
    pub fn from_slice<T: Element>(values: &[T], dims: impl Into<Dims>) -> Self {
        let dims = dims.into();
        assert_eq!(values.len(), dims.numel(), "{} values for dims {dims:?}", values.len());
        Self::from_buffer(Buffer::copied(values), Layout::contiguous(dims, 0), T::DTYPE)
    }

    /// A tensor without dimensions.
    pub fn scalar<T: Element>(value: T) -> Self {
        Self::from_slice(&[value], [])
    }

    /// All elements zero.
    pub fn zeros(dims: impl Into<Dims>, dtype: DType) -> Self {
        let dims = dims.into();
        for_dtype!(dtype, T => Self::from_buffer(Buffer::zeros::<T>(dims.numel()), Layout::contiguous(dims, 0), dtype))
    }

    /// All elements `value`.
    pub fn full(dims: impl Into<Dims>, value: f64, dtype: DType) -> Self {
        for_dtype!(dtype, T => Self::write(dims, |out: &mut [T]| out.fill(T::from_f64(value))))
    }

    /// Standard normal values from `rng`, the same ones by any number of threads.
    pub fn randn(dims: impl Into<Dims>, dtype: DType, rng: &mut Rng) -> Self {
        /// Values that a thread draws at a time.
        const CHUNK: usize = 1 << 12;
        /// Draws of 32 bits that a value takes.
        const DRAWS: usize = 4;
        /// Elementary operations that it takes.
        const COST: usize = 100;
        let dims = dims.into();
        let first = std::mem::replace(rng, rng.after((dims.numel() * DRAWS) as u64));
        for_dtype!(dtype, T => Self::write(dims, |out: &mut [T]| par::chunks_mut(out, CHUNK, CHUNK * COST, |i, out| {
            let mut rng = first.after((i * CHUNK * DRAWS) as u64);
            out.iter_mut().for_each(|x| *x = T::from_f64(rng.normal()));
        })))
    }

    /// A new contiguous tensor whose elements `fill` writes. What it does not write is unspecified. Where memory is only
    /// [`counted`](crate::buffer::counted) `fill` is not called, so it must not make tensors.
    pub fn write<T: Element>(dims: impl Into<Dims>, fill: impl FnOnce(&mut [T])) -> Self {
        let dims = dims.into();
        Self::from_buffer(Buffer::written(dims.numel(), fill), Layout::contiguous(dims, 0), T::DTYPE)
    }

    /// Writes tensors in place by `f` where all are contiguous and nobody shares their bytes, and tells whether they are. Where memory is only
    /// [`counted`](crate::buffer::counted) `f` is not called, so it must not make tensors.
    #[track_caller]
    pub fn update<T: Element, const N: usize>(tensors: [&mut Self; N], f: impl FnOnce([&mut [T]; N])) -> bool {
        if !tensors.iter().all(|x| x.is_contiguous() && x.buffer.is_unshared()) {
            return false;
        }
        if !is_counting() {
            f(tensors.map(|x| x.as_mut_slice().expect("looked at above")));
        }
        true
    }

    /// A view of a buffer.
    ///
    /// # Panics
    /// If the layout reaches beyond the buffer.
    #[track_caller]
    pub fn from_buffer(buffer: Buffer, layout: Layout, dtype: DType) -> Self {
        assert!(
            layout.end() * dtype.size() <= buffer.size(),
            "{layout:?} of {dtype} reaches beyond {} bytes",
            buffer.size()
        );
        Self { buffer, layout, dtype, node: None }
    }
}

/// Looking at tensors.
impl Tensor {
    /// Sizes, outermost first.
    pub fn dims(&self) -> &Dims {
        self.layout.dims()
    }

    /// Number of dimensions.
    pub fn rank(&self) -> usize {
        self.dims().len()
    }

    /// Size of dimension `k`; negative counts from the end.
    #[track_caller]
    pub fn dim(&self, k: isize) -> usize {
        self.dims()[self.axis(k)]
    }

    /// `k` as a dimension index, counting from the end where negative.
    #[track_caller]
    pub fn axis(&self, k: isize) -> usize {
        let axis = if k < 0 { k + self.rank() as isize } else { k };
        assert!((0..self.rank() as isize).contains(&axis), "no dimension {k} in {:?}", self.dims());
        axis as usize
    }

    /// Number of elements.
    pub fn numel(&self) -> usize {
        self.dims().numel()
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Dims and element type.
    pub fn meta(&self) -> Meta {
        Meta { dims: *self.dims(), dtype: self.dtype }
    }

    /// Where the elements are in the buffer.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The bytes.
    pub fn buffer(&self) -> &Buffer {
        &self.buffer
    }

    /// Row-major without gaps.
    pub fn is_contiguous(&self) -> bool {
        self.layout.is_contiguous()
    }

    /// The elements as a strided view.
    ///
    /// # Panics
    /// If `T` is not the element type.
    #[track_caller]
    pub fn strided<T: Element>(&self) -> Strided<'_, T> {
        self.expect_dtype(T::DTYPE);
        Strided { data: self.buffer.get(), offset: self.layout.offset(), strides: self.layout.strides() }
    }

    /// The elements in row-major order, where they lie so.
    ///
    /// # Panics
    /// If `T` is not the element type or the tensor is not contiguous (see [`Tensor::packed`]).
    #[track_caller]
    pub fn as_slice<T: Element>(&self) -> &[T] {
        self.expect_dtype(T::DTYPE);
        assert!(self.is_contiguous(), "as_slice needs a contiguous tensor, got {:?}", self.layout);
        &self.buffer.get::<T>()[self.layout.offset()..][..self.numel()]
    }

    /// The elements for writing, where they are contiguous and nobody shares the bytes.
    #[track_caller]
    pub fn as_mut_slice<T: Element>(&mut self) -> Option<&mut [T]> {
        self.expect_dtype(T::DTYPE);
        let (offset, numel) = (self.layout.offset(), self.numel());
        if !self.is_contiguous() {
            return None;
        }
        Some(&mut self.buffer.get_mut::<T>()?[offset..][..numel])
    }

    /// The bytes on a device, for writing, where nobody shares them.
    #[cfg(feature = "vulkan")]
    pub(crate) fn mirrored_mut(&mut self) -> Option<&mut Mirrored> {
        self.buffer.mirrored_mut()
    }

    /// A copy of the elements in row-major order.
    #[track_caller]
    pub fn to_vec<T: Element>(&self) -> Vec<T> {
        self.packed().as_slice::<T>().to_vec()
    }

    /// The elements in row-major order as f64, whatever their type.
    pub fn to_f64_vec(&self) -> Vec<f64> {
        for_dtype!(self.dtype, T => self.packed().as_slice::<T>().iter().map(|x| x.to_f64()).collect())
    }

    /// The only element, as f64.
    ///
    /// # Panics
    /// If there is not exactly one.
    #[track_caller]
    pub fn item(&self) -> f64 {
        assert_eq!(self.numel(), 1, "item() of a tensor with dims {:?}", self.dims());
        self.to_f64_vec()[0]
    }

    #[track_caller]
    fn expect_dtype(&self, dtype: DType) {
        assert_eq!(self.dtype, dtype, "expected elements of {dtype}, got {}", self.dtype);
    }
}

/// The graph.
impl Tensor {
    /// The same values as a trainable leaf: gradients with respect to it are collected by [`Tensor::backward`].
    /// Shared or mapped bytes are copied, so that an optimiser can step in place.
    pub fn trainable(&self) -> Self {
        let own = if self.buffer.is_unshared() && self.is_contiguous() { self.detach() } else { self.copied() };
        Self { node: Some(Node::leaf()), ..own }
    }

    /// The same values without a graph: gradients stop here.
    pub fn detach(&self) -> Self {
        Self { node: None, ..self.clone() }
    }

    /// Whether a trainable tensor reaches this one.
    pub fn is_tracked(&self) -> bool {
        self.node.is_some()
    }

    pub(crate) fn node(&self) -> Option<&Arc<Node>> {
        self.node.as_ref()
    }

    pub(crate) fn with_node(self, node: Option<Arc<Node>>) -> Self {
        Self { node, ..self }
    }
}

/// Layout without the graph: what the CPU arms of ops use.
impl Tensor {
    /// Another view of the same bytes, without a graph node.
    pub(crate) fn with_layout(&self, layout: Layout) -> Self {
        Self::from_buffer(self.buffer.clone(), layout, self.dtype)
    }

    /// The same elements, contiguous; copied only where they are not. No graph node.
    pub fn packed(&self) -> Self {
        if self.is_contiguous() { self.detach() } else { self.copied() }
    }

    /// A contiguous copy with bytes of its own, where the tensor lives. No graph node.
    #[track_caller]
    pub fn copied(&self) -> Self {
        trace::check_read(self.buffer.id());
        if let Some(copy) = self.device().and_then(|gpu| gpu.copied(self)) {
            return copy;
        }
        for_dtype!(self.dtype, T => Self::write(*self.dims(), |out: &mut [T]| strided::copy(self.dims(), self.strided::<T>(), out)))
    }

    /// Converted elements (floats round to nearest, integers truncate and saturate); between f32 and half types where the tensor lives. No graph
    /// node; see [`Tensor::to_dtype`].
    pub(crate) fn converted(&self, dtype: DType) -> Self {
        if dtype == self.dtype {
            return self.detach();
        }
        let from = self.packed();
        if let Some(cast) = from.device().and_then(|gpu| gpu.cast(&from, dtype)) {
            return cast;
        }
        if let (DType::F32, DType::BF16) = (self.dtype, dtype) {
            return Self::write(*self.dims(), |out| kernels_cpu::gemm::round(from.as_slice::<f32>(), out));
        }
        if let (DType::BF16, DType::F32) = (self.dtype, dtype) {
            return Self::write(*self.dims(), |out| kernels_cpu::gemm::widen(from.as_slice(), out));
        }
        for_dtype!(self.dtype, A => for_dtype!(dtype, B => Self::write(*self.dims(), |out: &mut [B]| {
            for (o, x) in out.iter_mut().zip(from.as_slice::<A>()) {
                *o = B::from_f64(x.to_f64());
            }
        })))
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let values = self.to_f64_vec();
        write!(f, "Tensor {} {:?} {:?}", self.dtype, self.dims(), &values[..values.len().min(16)])?;
        if values.len() > 16 { f.write_str("..") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_drawn_one_after_the_other_whoever_draws_them() {
        for threads in 1..4 {
            let (mut rng, mut one) = (Rng::new(5, 0), Rng::new(5, 0));
            let drawn = par::Pool::new(threads).install(|| Tensor::randn([3, 9001], DType::F64, &mut rng));
            assert_eq!(
                drawn.to_f64_vec(),
                (0..3 * 9001).map(|_| one.normal()).collect::<Vec<_>>(),
                "{threads} threads"
            );
            assert_eq!(rng.next_u64(), one.next_u64());
        }
    }
}
