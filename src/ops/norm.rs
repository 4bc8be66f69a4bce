//! Normalisation along the last dimension.

use kernels_cpu::norm;
#[cfg(feature = "vulkan")]
use kernels_gpu::View;

#[cfg(feature = "vulkan")]
use crate::device::Gpu;
#[cfg(feature = "vulkan")]
use crate::dtype::DType;
use crate::for_float;
use crate::gradcheck::{Case, Gen};
use crate::op::{Meta, Op, Output, Saved, Saves, apply};
use crate::tensor::Tensor;

/// y = (x - mean) / sqrt(var + eps) weight + bias along the last dimension (Ba, Kiros and Hinton 2016); var is biased.
pub struct LayerNorm {
    /// Added to the variance.
    pub eps: f64,
}

impl Op for LayerNorm {
    fn name(&self) -> &'static str {
        "layer_norm"
    }

    fn shape(&self, x: &[Meta]) -> Meta {
        let last = x[0].dims.last().copied().unwrap_or_default();
        let fits = last > 0 && x[1..].iter().all(|m| m.dims[..] == [last] && m.dtype == x[0].dtype);
        assert!(fits && x.len() == 3, "layer_norm: {x:?}");
        x[0]
    }

    fn cpu(&self, x: &[&Tensor], out: Meta) -> Output {
        let [x, w, b] = [0, 1, 2].map(|i| x[i].packed());
        let rows = x.numel() / x.dim(-1);
        for_float!("layer_norm", out.dtype, F => {
            let (mut mean, mut rstd) = (vec![0.0 as F; rows], vec![0.0 as F; rows]);
            let value = Tensor::write(out.dims, |y: &mut [F]| {
                norm::layer_norm(x.as_slice(), w.as_slice(), b.as_slice(), self.eps as F, y, &mut mean, &mut rstd)
            });
            Output { value, aux: vec![Tensor::from_slice(&mean, [rows]), Tensor::from_slice(&rstd, [rows])] }
        })
    }

    #[cfg(feature = "vulkan")]
    fn gpu(&self, on: &Gpu, x: &[&Tensor], out: Meta) -> Option<Output> {
        let rows = x[0].numel() / x[0].dim(-1);
        let statistics = [0, 1].map(|_| on.memory(4 * rows));
        let (x, w, b) = (on.packed(x[0])?, on.packed(x[1])?, on.packed(x[2])?);
        let value = on.write(out, |y| {
            let [mean, rstd] = &statistics;
            on.kernels().layer_norm(x.view(), [w.view(), b.view()], self.eps as f32, y, [mean, rstd])
        })?;
        Some(Output { value, aux: statistics.map(|m| on.aux(m, rows)).into() })
    }

    fn saves(&self, _: &[bool]) -> Saves {
        Saves::input(0).and(Saves::input(1))
    }

    fn vjp(&self, saved: &Saved, dy: &Tensor) -> Vec<Option<Tensor>> {
        let [x, w, dy] = [saved.input(0).packed(), saved.input(1).packed(), dy.packed()];
        for_float!("layer_norm", dy.dtype(), F => {
            let (mut dw, mut db) = (vec![0.0 as F; w.numel()], vec![0.0 as F; w.numel()]);
            let dx = Tensor::write(*x.dims(), |dx: &mut [F]| {
                let (mean, rstd) = (saved.aux(0).as_slice(), saved.aux(1).as_slice());
                norm::layer_norm_backward(x.as_slice(), w.as_slice(), mean, rstd, dy.as_slice(), dx, &mut dw, &mut db)
            });
            vec![Some(dx), Some(Tensor::from_slice(&dw, *w.dims())), Some(Tensor::from_slice(&db, *w.dims()))]
        })
    }

    #[cfg(feature = "vulkan")]
    fn gpu_vjp(&self, on: &Gpu, saved: &Saved, dy: &Tensor) -> Option<Vec<Option<Tensor>>> {
        let (x, w, dy) = (on.packed(saved.input(0))?, on.packed(saved.input(1))?, on.packed(dy)?);
        let (mean, rstd) = (on.operand(saved.aux(0))?, on.operand(saved.aux(1))?);
        let (x, w, dy, statistics) = (x.view(), w.view(), dy.view(), [mean.view(), rstd.view()]);
        let dx = on.write(saved.meta(0), |dx| on.kernels().layer_norm_backward(x, w, statistics, dy, dx))?;
        let (rows, n) = (statistics[0].numel(), w.numel());
        let [dw, db] = norm_sums(on, false, x, dy, statistics, [rows, n])?;
        Some(vec![Some(dx), Some(dw), Some(db)])
    }

    fn cases(g: &mut Gen) -> Case {
        let (front, last) = (g.dims(0, 2), g.size_from(1));
        let inputs = vec![g.tensor(front.followed_by(&[last])), g.tensor([last]), g.tensor([last])];
        // A generous eps keeps rows of nearly equal elements from magnifying the error of central differences.
        Case::new(inputs, |x| x[0].layer_norm(&x[1], &x[2], 0.1)).equals(|x| {
            let axes = [x[0].rank() - 1];
            let centred = x[0].sub(&x[0].mean(&axes, true));
            let var = centred.square().mean(&axes, true);
            centred.mul(&var.affine(1.0, 0.1).rsqrt()).mul(&x[1]).add(&x[2])
        })
    }
}

/// Gradients of a norm's weight and bias: see the kernel.
#[cfg(feature = "vulkan")]
pub(super) fn norm_sums(
    on: &Gpu,
    columns: bool,
    x: View<'_>,
    dy: View<'_>,
    statistics: [View<'_>; 2],
    size: [usize; 2],
) -> Option<[Tensor; 2]> {
    let dims = [2, size[1]];
    let both = match size[0] {
        0 => on.filled(dims, 0.0),
        _ => on.write(Meta::new(dims, DType::F32), |y| on.kernels().norm_sums(columns, x, dy, statistics, size, y)),
    }?;
    Some([0, 1].map(|i| both.at(0, i)))
}

/// y = x / max(|x|, 1e-12) along the last dimension, as torch's normalize.
pub struct L2Normalise;

impl Op for L2Normalise {
    fn name(&self) -> &'static str {
        "l2_normalise"
    }

    fn shape(&self, x: &[Meta]) -> Meta {
        assert!(x[0].dims.last().is_some_and(|&n| n > 0), "l2_normalise: {:?}", x[0]);
        x[0]
    }

    fn cpu(&self, x: &[&Tensor], out: Meta) -> Output {
        let (x, rows) = (x[0].packed(), x[0].numel() / x[0].dim(-1));
        for_float!("l2_normalise", out.dtype, F => {
            let mut norms = vec![0.0 as F; rows];
            let value = Tensor::write(out.dims, |y: &mut [F]| norm::l2_normalise(x.as_slice(), x.dim(-1), y, &mut norms));
            Output { value, aux: vec![Tensor::from_slice(&norms, [rows])] }
        })
    }

    #[cfg(feature = "vulkan")]
    fn gpu(&self, _: &Gpu, x: &[&Tensor], _: Meta) -> Option<Output> {
        let x = x[0].detach();
        let norms = x.square().sum(&[x.rank() - 1], true).sqrt().clamp(1e-12, f64::INFINITY);
        let value = x.div(&norms);
        Some(Output { value, aux: vec![norms.reshape([norms.numel()])] })
    }

    fn saves(&self, _: &[bool]) -> Saves {
        Saves::OUTPUT
    }

    fn vjp(&self, saved: &Saved, dy: &Tensor) -> Vec<Option<Tensor>> {
        let (y, dy) = (saved.output(), dy.packed());
        vec![Some(for_float!("l2_normalise", dy.dtype(), F => Tensor::write(*dy.dims(), |dx: &mut [F]| {
            norm::l2_normalise_backward(y.as_slice(), saved.aux(0).as_slice(), dy.as_slice(), y.dim(-1), dx)
        })))]
    }

    #[cfg(feature = "vulkan")]
    fn gpu_vjp(&self, _: &Gpu, saved: &Saved, dy: &Tensor) -> Option<Vec<Option<Tensor>>> {
        let (y, dy, last) = (saved.output(), dy.detach(), dy.rank() - 1);
        let norms = saved.aux(0).reshape(dy.dims().with(last, 1));
        Some(vec![Some(dy.sub(&y.mul(&y.mul(&dy).sum(&[last], true))).div(&norms))])
    }

    fn cases(g: &mut Gen) -> Case {
        let (front, last) = (g.dims(0, 2), g.size_from(1));
        let x = g.tensor_of(front.followed_by(&[last]), |rng| {
            rng.range(0.3, 2.0) * if rng.chance(0.5) { 1.0 } else { -1.0 }
        });
        Case::new(vec![x], |x| x[0].l2_normalise())
            .equals(|x| x[0].div(&x[0].square().sum(&[x[0].rank() - 1], true).sqrt()))
    }
}

impl Tensor {
    /// Layer norm along the last dimension, with `weight` and `bias` of its size.
    #[track_caller]
    pub fn layer_norm(&self, weight: &Tensor, bias: &Tensor, eps: f64) -> Tensor {
        apply(LayerNorm { eps }, &[self, weight, bias])
    }

    /// Rows of the last dimension divided by their length.
    #[track_caller]
    pub fn l2_normalise(&self) -> Tensor {
        apply(L2Normalise, &[self])
    }
}

crate::check_ops!(LayerNorm, L2Normalise);
