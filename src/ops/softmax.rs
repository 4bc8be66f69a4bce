//! Softmax along the last dimension.

use kernels_cpu::softmax;
#[cfg(feature = "vulkan")]
use kernels_gpu::ops::Softmax as Options;

#[cfg(feature = "vulkan")]
use crate::device::Gpu;
use crate::dtype::DType;
use crate::for_float;
use crate::gradcheck::{Case, Gen};
use crate::op::{Meta, Op, Output, Saved, Saves, apply};
use crate::tensor::Tensor;

/// y = e^x / sum e^x along the last dimension.
pub struct Softmax;

#[cfg(feature = "vulkan")]
fn on_device(on: &Gpu, x: &Tensor, options: Options<'_>, out: Meta) -> Option<Output> {
    let x = on.packed(x)?;
    on.output(out, |y| on.kernels().softmax(x.view(), y, options))
}

fn backward(name: &str, y: &Tensor, dy: &Tensor) -> Vec<Option<Tensor>> {
    let (dy, cols) = (dy.packed(), y.dim(-1));
    vec![Some(for_float!(name, dy.dtype(), F => Tensor::write(*dy.dims(), |dx: &mut [F]| {
        softmax::softmax_backward(y.as_slice(), dy.as_slice(), cols, dx)
    })))]
}

#[cfg(feature = "vulkan")]
fn backward_on(on: &Gpu, log: bool, y: &Tensor, dy: &Tensor) -> Option<Tensor> {
    let (y, from) = (on.packed(y)?, on.packed(dy)?);
    on.write(dy.meta(), |dx| on.kernels().softmax_backward(log, 1.0, y.view(), from.view(), dx))
}

impl Op for Softmax {
    fn name(&self) -> &'static str {
        "softmax"
    }

    fn shape(&self, x: &[Meta]) -> Meta {
        assert!(!x[0].dims.is_empty(), "softmax of a scalar");
        x[0]
    }

    fn cpu(&self, x: &[&Tensor], out: Meta) -> Output {
        let x = x[0].packed();
        for_float!("softmax", out.dtype, F => Tensor::write(out.dims, |y: &mut [F]| softmax::softmax(x.as_slice(), x.dim(-1), None, y))).into()
    }

    #[cfg(feature = "vulkan")]
    fn gpu(&self, on: &Gpu, x: &[&Tensor], out: Meta) -> Option<Output> {
        on_device(on, x[0], Options::default(), out)
    }

    fn saves(&self, _: &[bool]) -> Saves {
        Saves::OUTPUT
    }

    fn vjp(&self, saved: &Saved, dy: &Tensor) -> Vec<Option<Tensor>> {
        backward("softmax", saved.output(), dy)
    }

    #[cfg(feature = "vulkan")]
    fn gpu_vjp(&self, on: &Gpu, saved: &Saved, dy: &Tensor) -> Option<Vec<Option<Tensor>>> {
        Some(vec![Some(backward_on(on, false, saved.output(), dy)?)])
    }

    fn cases(g: &mut Gen) -> Case {
        let dims = g.dims(1, 3);
        Case::new(vec![g.tensor(dims)], |x| x[0].softmax()).equals(|x| {
            let e = x[0].exp();
            e.div(&e.sum(&[e.rank() - 1], true))
        })
    }
}

/// Softmax over the places where a u8 mask [m, cols] is not 0, for x [rows, cols] with rows / m rows to each row of the mask.
/// Elsewhere y is 0; a row without any place is 0 throughout.
pub struct MaskedSoftmax;

impl Op for MaskedSoftmax {
    fn name(&self) -> &'static str {
        "masked_softmax"
    }

    fn shape(&self, x: &[Meta]) -> Meta {
        let (d, m) = (x[0].dims, x[1].dims);
        let fits = x[1].dtype == DType::U8
            && d.len() == 2
            && m.len() == 2
            && d[1] == m[1]
            && (d[0] == 0 || m[0] > 0 && d[0] % m[0] == 0);
        assert!(fits, "masked_softmax: {:?} with a mask {:?}", x[0], x[1]);
        x[0]
    }

    fn cpu(&self, x: &[&Tensor], out: Meta) -> Output {
        let (mask, x) = (x[1].packed(), x[0].packed());
        for_float!("masked_softmax", out.dtype, F => Tensor::write(out.dims, |y: &mut [F]| {
            if y.is_empty() { return; }
            softmax::softmax(x.as_slice(), x.dim(-1), Some((mask.as_slice(), x.dims()[0] / mask.dims()[0])), y)
        }))
        .into()
    }

    #[cfg(feature = "vulkan")]
    fn gpu(&self, on: &Gpu, x: &[&Tensor], out: Meta) -> Option<Output> {
        let (mask, each) = (on.bytes(x[1]), x[0].dims()[0] / x[1].dims()[0].max(1));
        on_device(on, x[0], Options { mask: Some((&mask, each)), ..Options::default() }, out)
    }

    fn saves(&self, _: &[bool]) -> Saves {
        Saves::OUTPUT
    }

    fn vjp(&self, saved: &Saved, dy: &Tensor) -> Vec<Option<Tensor>> {
        let mut gradients = backward("masked_softmax", saved.output(), dy);
        gradients.push(None);
        gradients
    }

    #[cfg(feature = "vulkan")]
    fn gpu_vjp(&self, on: &Gpu, saved: &Saved, dy: &Tensor) -> Option<Vec<Option<Tensor>>> {
        Some(vec![Some(backward_on(on, false, saved.output(), dy)?), None])
    }

    fn cases(g: &mut Gen) -> Case {
        let [m, each, cols] = [g.size(), g.size(), g.size()];
        let inputs = vec![g.tensor([m * each, cols]), g.mask([m, cols], 0.7)];
        Case::new(inputs, |x| x[0].masked_softmax(&x[1])).equals(move |x| {
            let seen = x[1].to_dtype(x[0].dtype()).reshape([m, 1, cols]);
            let e = x[0].exp().reshape([m, each, cols]).mul(&seen);
            // Rows without any place divide by one instead of zero.
            let sum = e.sum(&[2], true);
            let empty = sum.detach().eq(&Tensor::zeros([], sum.dtype())).to_dtype(sum.dtype());
            e.div(&sum.add(&empty)).reshape([m * each, cols])
        })
    }
}

/// y = x - ln sum e^x along the last dimension.
pub struct LogSoftmax;

impl Op for LogSoftmax {
    fn name(&self) -> &'static str {
        "log_softmax"
    }

    fn shape(&self, x: &[Meta]) -> Meta {
        assert!(!x[0].dims.is_empty(), "log_softmax of a scalar");
        x[0]
    }

    fn cpu(&self, x: &[&Tensor], out: Meta) -> Output {
        let x = x[0].packed();
        for_float!("log_softmax", out.dtype, F => Tensor::write(out.dims, |y: &mut [F]| softmax::log_softmax(x.as_slice(), x.dim(-1), y))).into()
    }

    #[cfg(feature = "vulkan")]
    fn gpu(&self, on: &Gpu, x: &[&Tensor], out: Meta) -> Option<Output> {
        on_device(on, x[0], Options { log: true, ..Options::default() }, out)
    }

    fn saves(&self, _: &[bool]) -> Saves {
        Saves::OUTPUT
    }

    fn vjp(&self, saved: &Saved, dy: &Tensor) -> Vec<Option<Tensor>> {
        let (y, dy) = (saved.output(), dy.packed());
        vec![Some(for_float!("log_softmax", dy.dtype(), F => Tensor::write(*dy.dims(), |dx: &mut [F]| {
            softmax::log_softmax_backward(y.as_slice(), dy.as_slice(), y.dim(-1), dx)
        })))]
    }

    #[cfg(feature = "vulkan")]
    fn gpu_vjp(&self, on: &Gpu, saved: &Saved, dy: &Tensor) -> Option<Vec<Option<Tensor>>> {
        Some(vec![Some(backward_on(on, true, saved.output(), dy)?)])
    }

    fn cases(g: &mut Gen) -> Case {
        let dims = g.dims(1, 3);
        Case::new(vec![g.tensor(dims)], |x| x[0].log_softmax()).equals(|x| x[0].sub(&x[0].logsumexp(-1)))
    }
}

impl Tensor {
    /// Softmax along the last dimension.
    #[track_caller]
    pub fn softmax(&self) -> Tensor {
        apply(Softmax, &[self])
    }

    /// Softmax of rows [rows, cols] over the places where `mask` (u8 [m, cols], rows / m rows to each of its rows) is not 0.
    #[track_caller]
    pub fn masked_softmax(&self, mask: &Tensor) -> Tensor {
        apply(MaskedSoftmax, &[self, mask])
    }

    /// Logarithm of the softmax along the last dimension.
    #[track_caller]
    pub fn log_softmax(&self) -> Tensor {
        apply(LogSoftmax, &[self])
    }
}

crate::check_ops!(Softmax, MaskedSoftmax, LogSoftmax);
