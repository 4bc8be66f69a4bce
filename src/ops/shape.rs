//! Ops that move elements and compute nothing: views where strides can express them, copies where not.

use kernels_cpu::strided;

#[cfg(feature = "vulkan")]
use crate::device::Gpu;
use crate::for_dtype;
use crate::gradcheck::{Case, Gen};
use crate::layout::{Dims, Layout};
use crate::op::{Meta, Op, Output, Saved, Saves, apply};
use crate::tensor::Tensor;

/// The same elements in the same order under other dims. A view where strides allow it.
pub struct Reshape(pub Dims);

impl Op for Reshape {
    fn name(&self) -> &'static str {
        "reshape"
    }

    fn shape(&self, x: &[Meta]) -> Meta {
        assert_eq!(x[0].dims.numel(), self.0.numel(), "reshape: {:?} to {:?}", x[0].dims, self.0);
        Meta { dims: self.0, ..x[0] }
    }

    fn cpu(&self, x: &[&Tensor], out: Meta) -> Output {
        match x[0].layout().reshape(out.dims) {
            Some(layout) => x[0].with_layout(layout),
            None => {
                let packed = x[0].packed();
                packed.with_layout(Layout::contiguous(out.dims, packed.layout().offset()))
            }
        }
        .into()
    }

    fn saves(&self, _: &[bool]) -> Saves {
        Saves::NOTHING
    }

    fn vjp(&self, saved: &Saved, dy: &Tensor) -> Vec<Option<Tensor>> {
        vec![Some(dy.reshape(saved.dims(0)))]
    }

    fn cases(g: &mut Gen) -> Case {
        let dims = g.dims(0, 4);
        let flat = Dims::from([1, dims.numel()]);
        Case::new(vec![g.tensor(dims)], move |x| x[0].reshape(flat))
    }
}

/// Dimension `order[k]` of the input becomes dimension `k`. A view.
pub struct Permute(pub Vec<usize>);

impl Op for Permute {
    fn name(&self) -> &'static str {
        "permute"
    }

    fn shape(&self, x: &[Meta]) -> Meta {
        Meta { dims: *Layout::contiguous(x[0].dims, 0).permute(&self.0).dims(), ..x[0] }
    }

    fn cpu(&self, x: &[&Tensor], _: Meta) -> Output {
        x[0].with_layout(x[0].layout().permute(&self.0)).into()
    }

    fn saves(&self, _: &[bool]) -> Saves {
        Saves::NOTHING
    }

    fn vjp(&self, _: &Saved, dy: &Tensor) -> Vec<Option<Tensor>> {
        let mut inverse = vec![0; self.0.len()];
        self.0.iter().enumerate().for_each(|(k, &from)| inverse[from] = k);
        vec![Some(dy.permute(&inverse))]
    }

    fn cases(g: &mut Gen) -> Case {
        let dims = g.dims(0, 5);
        let mut order: Vec<usize> = (0..dims.len()).collect();
        g.rng.shuffle(&mut order);
        Case::new(vec![g.tensor(dims)], move |x| x[0].permute(&order))
    }
}

/// Elements `start..start + len` of dimension `dim`. A view.
pub struct Narrow {
    /// Dimension.
    pub dim: usize,
    /// First element.
    pub start: usize,
    /// Number of elements.
    pub len: usize,
}

impl Op for Narrow {
    fn name(&self) -> &'static str {
        "narrow"
    }

    fn shape(&self, x: &[Meta]) -> Meta {
        Meta { dims: *Layout::contiguous(x[0].dims, 0).narrow(self.dim, self.start, self.len).dims(), ..x[0] }
    }

    fn cpu(&self, x: &[&Tensor], _: Meta) -> Output {
        x[0].with_layout(x[0].layout().narrow(self.dim, self.start, self.len)).into()
    }

    fn saves(&self, _: &[bool]) -> Saves {
        Saves::NOTHING
    }

    fn vjp(&self, saved: &Saved, dy: &Tensor) -> Vec<Option<Tensor>> {
        let after = saved.dims(0)[self.dim] - self.start - self.len;
        vec![Some(dy.pad(self.dim, self.start, after))]
    }

    fn cases(g: &mut Gen) -> Case {
        let dims = g.dims(1, 4);
        let dim = g.rng.below(dims.len());
        let start = g.rng.below(dims[dim] + 1);
        let len = g.rng.below(dims[dim] - start + 1);
        Case::new(vec![g.tensor(dims)], move |x| x[0].narrow(dim, start, len)).equals(move |x| {
            let ids: Vec<usize> = (start..start + len).collect();
            pick(&x[0], dim, &ids)
        })
    }
}

/// Every `step`-th element of dimension `dim`, from the first. A view.
pub struct Step {
    /// Dimension.
    pub dim: usize,
    /// Distance.
    pub step: usize,
}

impl Op for Step {
    fn name(&self) -> &'static str {
        "step"
    }

    fn shape(&self, x: &[Meta]) -> Meta {
        Meta { dims: *Layout::contiguous(x[0].dims, 0).step(self.dim, self.step).dims(), ..x[0] }
    }

    fn cpu(&self, x: &[&Tensor], _: Meta) -> Output {
        x[0].with_layout(x[0].layout().step(self.dim, self.step)).into()
    }

    fn saves(&self, _: &[bool]) -> Saves {
        Saves::NOTHING
    }

    fn vjp(&self, saved: &Saved, dy: &Tensor) -> Vec<Option<Tensor>> {
        let dims = saved.dims(0);
        let dy = dy.detach();
        let dx = for_dtype!(dy.dtype(), T => Tensor::write(dims, |dx: &mut [T]| {
            dx.fill(T::default());
            let layout = Layout::contiguous(dims, 0).step(self.dim, self.step);
            strided::write(dy.dims(), dy.packed().as_slice::<T>(), dx, layout.offset(), layout.strides());
        }));
        vec![Some(dx)]
    }

    #[cfg(feature = "vulkan")]
    fn gpu_vjp(&self, on: &Gpu, saved: &Saved, dy: &Tensor) -> Option<Vec<Option<Tensor>>> {
        let layout = Layout::contiguous(saved.dims(0), 0).step(self.dim, self.step);
        Some(vec![Some(on.among_zeros(dy, saved.dims(0), layout)?)])
    }

    fn cases(g: &mut Gen) -> Case {
        let dims = g.dims(1, 4);
        let dim = g.rng.below(dims.len());
        let step = g.size_from(1);
        let size = dims[dim];
        Case::new(vec![g.tensor(dims)], move |x| x[0].step(dim, step))
            .equals(move |x| pick(&x[0], dim, &(0..size).step_by(step).collect::<Vec<_>>()))
    }
}

/// Dimension `dim` in reverse order. A view.
pub struct Flip(pub usize);

impl Op for Flip {
    fn name(&self) -> &'static str {
        "flip"
    }

    fn shape(&self, x: &[Meta]) -> Meta {
        assert!(self.0 < x[0].dims.len(), "flip: no dimension {} in {:?}", self.0, x[0].dims);
        x[0]
    }

    fn cpu(&self, x: &[&Tensor], _: Meta) -> Output {
        x[0].with_layout(x[0].layout().flip(self.0)).into()
    }

    fn saves(&self, _: &[bool]) -> Saves {
        Saves::NOTHING
    }

    fn vjp(&self, _: &Saved, dy: &Tensor) -> Vec<Option<Tensor>> {
        vec![Some(dy.flip(self.0 as isize))]
    }

    fn cases(g: &mut Gen) -> Case {
        let dims = g.dims(1, 4);
        let dim = g.rng.below(dims.len());
        let size = dims[dim];
        Case::new(vec![g.tensor(dims)], move |x| x[0].flip(dim as isize))
            .equals(move |x| pick(&x[0], dim, &(0..size).rev().collect::<Vec<_>>()))
    }
}

/// Sizes of 1 stretched and dimensions added in front. A view; the tape sums the gradient back.
pub struct BroadcastTo(pub Dims);

impl Op for BroadcastTo {
    fn name(&self) -> &'static str {
        "broadcast_to"
    }

    fn shape(&self, x: &[Meta]) -> Meta {
        Meta { dims: *Layout::contiguous(x[0].dims, 0).broadcast_to(self.0).dims(), ..x[0] }
    }

    fn cpu(&self, x: &[&Tensor], _: Meta) -> Output {
        x[0].with_layout(x[0].layout().broadcast_to(self.0)).into()
    }

    fn saves(&self, _: &[bool]) -> Saves {
        Saves::NOTHING
    }

    fn vjp(&self, _: &Saved, dy: &Tensor) -> Vec<Option<Tensor>> {
        vec![Some(dy.clone())]
    }

    fn cases(g: &mut Gen) -> Case {
        let dims = g.dims(0, 4);
        let from = g.broadcastable(&dims);
        Case::new(vec![g.tensor(from)], move |x| x[0].broadcast_to(dims))
            .equals(move |x| x[0].add(&Tensor::zeros(dims, x[0].dtype())))
    }
}

/// Tensors one after the other along `dim`.
pub struct Concat(pub usize);

impl Op for Concat {
    fn name(&self) -> &'static str {
        "concat"
    }

    fn shape(&self, x: &[Meta]) -> Meta {
        assert!(!x.is_empty(), "concat: no tensors");
        for other in x {
            let same = other.dtype == x[0].dtype && other.dims.len() == x[0].dims.len() && self.0 < x[0].dims.len();
            assert!(
                same && other.dims.with(self.0, 0) == x[0].dims.with(self.0, 0),
                "concat along {}: {:?} and {:?}",
                self.0,
                x[0],
                other
            );
        }
        Meta { dims: x[0].dims.with(self.0, x.iter().map(|m| m.dims[self.0]).sum()), ..x[0] }
    }

    fn cpu(&self, x: &[&Tensor], out: Meta) -> Output {
        let whole = Layout::contiguous(out.dims, 0);
        for_dtype!(out.dtype, T => Tensor::write(out.dims, |y: &mut [T]| {
            let mut start = 0;
            for part in x {
                let len = part.dims()[self.0];
                let place = whole.narrow(self.0, start, len);
                strided::write(part.dims(), part.packed().as_slice::<T>(), y, place.offset(), place.strides());
                start += len;
            }
        }))
        .into()
    }

    #[cfg(feature = "vulkan")]
    fn gpu(&self, on: &Gpu, x: &[&Tensor], out: Meta) -> Option<Output> {
        let parts = x.iter().map(|x| on.operand(x)).collect::<Option<Vec<_>>>()?;
        on.output(out, |y| {
            let mut start = 0;
            parts.iter().try_for_each(|part| {
                let part = part.view();
                let offset = y.offset + start * y.strides[self.0] as usize;
                start += part.dims[self.0];
                on.kernels().copy(part, kernels_gpu::View { offset, dims: part.dims, ..y })
            })
        })
    }

    fn saves(&self, _: &[bool]) -> Saves {
        Saves::NOTHING
    }

    fn vjp(&self, saved: &Saved, dy: &Tensor) -> Vec<Option<Tensor>> {
        let mut start = 0;
        (0..saved.count())
            .map(|i| {
                let len = saved.dims(i)[self.0];
                start += len;
                saved.want(i, || dy.narrow(self.0, start - len, len))
            })
            .collect()
    }

    fn cases(g: &mut Gen) -> Case {
        let dims = g.dims(1, 4);
        let dim = g.rng.below(dims.len());
        let parts: Vec<Tensor> = (0..g.size_from(1))
            .map(|_| {
                let size = g.size();
                g.tensor(dims.with(dim, size))
            })
            .collect();
        Case::new(parts, move |x| Tensor::concat(&x.iter().collect::<Vec<_>>(), dim as isize)).equals(move |x| {
            // Each part padded with zeros to the whole length, and summed.
            let total: usize = x.iter().map(|p| p.dims()[dim]).sum();
            let mut start = 0;
            let mut sum = Tensor::zeros(dims.with(dim, total), x[0].dtype());
            for part in x {
                let len = part.dims()[dim];
                sum = sum + part.pad(dim, start, total - start - len);
                start += len;
            }
            sum
        })
    }
}

/// Zeros before and after along `dim`.
pub struct Pad {
    /// Dimension.
    pub dim: usize,
    /// Zeros in front.
    pub before: usize,
    /// Zeros behind.
    pub after: usize,
}

impl Op for Pad {
    fn name(&self) -> &'static str {
        "pad"
    }

    fn shape(&self, x: &[Meta]) -> Meta {
        assert!(self.dim < x[0].dims.len(), "pad: no dimension {} in {:?}", self.dim, x[0].dims);
        Meta { dims: x[0].dims.with(self.dim, self.before + x[0].dims[self.dim] + self.after), ..x[0] }
    }

    fn cpu(&self, x: &[&Tensor], out: Meta) -> Output {
        let place = Layout::contiguous(out.dims, 0).narrow(self.dim, self.before, x[0].dims()[self.dim]);
        for_dtype!(out.dtype, T => Tensor::write(out.dims, |y: &mut [T]| {
            y.fill(T::default());
            strided::write(x[0].dims(), x[0].packed().as_slice::<T>(), y, place.offset(), place.strides());
        }))
        .into()
    }

    #[cfg(feature = "vulkan")]
    fn gpu(&self, on: &Gpu, x: &[&Tensor], out: Meta) -> Option<Output> {
        let place = Layout::contiguous(out.dims, 0).narrow(self.dim, self.before, x[0].dims()[self.dim]);
        on.among_zeros(x[0], out.dims, place).map(Output::from)
    }

    fn saves(&self, _: &[bool]) -> Saves {
        Saves::NOTHING
    }

    fn vjp(&self, saved: &Saved, dy: &Tensor) -> Vec<Option<Tensor>> {
        vec![Some(dy.narrow(self.dim, self.before, saved.dims(0)[self.dim]))]
    }

    fn cases(g: &mut Gen) -> Case {
        let dims = g.dims(1, 4);
        let dim = g.rng.below(dims.len());
        let (before, after) = (g.size(), g.size());
        Case::new(vec![g.tensor(dims)], move |x| x[0].pad(dim, before, after)).equals(move |x| {
            let zeros = |n| Tensor::zeros(dims.with(dim, n), x[0].dtype());
            Tensor::concat(&[&zeros(before), &x[0], &zeros(after)], dim as isize)
        })
    }
}

/// The given positions along `dim`, one by one: the slow way that views are checked against.
fn pick(x: &Tensor, dim: usize, ids: &[usize]) -> Tensor {
    let size = x.dims()[dim];
    let parts: Vec<Tensor> = ids
        .iter()
        .map(|&i| {
            let mut mask = vec![0.0; size];
            mask[i] = 1.0;
            let mut dims = vec![1; x.rank()];
            dims[dim] = size;
            let mask = Tensor::from_slice(&mask, Dims::new(&dims)).to_dtype(x.dtype());
            x.mul(&mask).sum(&[dim], true)
        })
        .collect();
    if parts.is_empty() {
        Tensor::zeros(x.dims().with(dim, 0), x.dtype())
    } else {
        Tensor::concat(&parts.iter().collect::<Vec<_>>(), dim as isize)
    }
}

/// Moving elements.
impl Tensor {
    /// The same elements in the same order under other dims.
    #[track_caller]
    pub fn reshape(&self, dims: impl Into<Dims>) -> Tensor {
        let dims = dims.into();
        if *self.dims() == dims { self.clone() } else { apply(Reshape(dims), &[self]) }
    }

    /// Dimension `order[k]` becomes dimension `k`.
    #[track_caller]
    pub fn permute(&self, order: &[usize]) -> Tensor {
        apply(Permute(order.to_vec()), &[self])
    }

    /// Two dimensions swapped; negative counts from the end.
    #[track_caller]
    pub fn transpose(&self, a: isize, b: isize) -> Tensor {
        let mut order: Vec<usize> = (0..self.rank()).collect();
        order.swap(self.axis(a), self.axis(b));
        self.permute(&order)
    }

    /// Elements `start..start + len` of dimension `dim`.
    #[track_caller]
    pub fn narrow(&self, dim: usize, start: usize, len: usize) -> Tensor {
        apply(Narrow { dim, start, len }, &[self])
    }

    /// Element `at` of dimension `dim`, which goes away.
    #[track_caller]
    pub fn at(&self, dim: usize, at: usize) -> Tensor {
        let mut dims = self.dims().to_vec();
        dims.remove(dim);
        self.narrow(dim, at, 1).reshape(&dims[..])
    }

    /// Every `step`-th element of dimension `dim`.
    #[track_caller]
    pub fn step(&self, dim: usize, step: usize) -> Tensor {
        apply(Step { dim, step }, &[self])
    }

    /// Dimension `dim` reversed; negative counts from the end.
    #[track_caller]
    pub fn flip(&self, dim: isize) -> Tensor {
        apply(Flip(self.axis(dim)), &[self])
    }

    /// Stretches sizes of 1 and adds dimensions in front.
    #[track_caller]
    pub fn broadcast_to(&self, dims: impl Into<Dims>) -> Tensor {
        apply(BroadcastTo(dims.into()), &[self])
    }

    /// A dimension of size 1 at `dim`.
    #[track_caller]
    pub fn unsqueeze(&self, dim: usize) -> Tensor {
        let mut dims = self.dims().to_vec();
        dims.insert(dim, 1);
        self.reshape(&dims[..])
    }

    /// Tensors one after the other along `dim`; negative counts from the end.
    #[track_caller]
    pub fn concat(parts: &[&Tensor], dim: isize) -> Tensor {
        assert!(!parts.is_empty(), "concat: no tensors");
        apply(Concat(parts[0].axis(dim)), parts)
    }

    /// Tensors of equal dims along a new dimension `dim`.
    #[track_caller]
    pub fn stack(parts: &[&Tensor], dim: usize) -> Tensor {
        let parts: Vec<Tensor> = parts.iter().map(|p| p.unsqueeze(dim)).collect();
        Tensor::concat(&parts.iter().collect::<Vec<_>>(), dim as isize)
    }

    /// Zeros before and after along `dim`.
    #[track_caller]
    pub fn pad(&self, dim: usize, before: usize, after: usize) -> Tensor {
        apply(Pad { dim, before, after }, &[self])
    }
}

crate::check_ops!(Reshape, Permute, Narrow, Step, Flip, BroadcastTo, Concat, Pad);
