//! Batch norm over the last dimension.

use kernels_cpu::batch_norm as kernel;
#[cfg(feature = "vulkan")]
use kernels_cpu::map::Unary;

#[cfg(feature = "vulkan")]
use super::norm::norm_sums;
#[cfg(feature = "vulkan")]
use super::unary;
#[cfg(feature = "vulkan")]
use crate::device::Gpu;
use crate::dtype::DType;
use crate::for_float;
use crate::gradcheck::{Case, Gen};
use crate::op::{Meta, Op, Output, Saved, Saves, apply, apply_aux};
use crate::tensor::Tensor;

/// y = (x - mean) / sqrt(var + eps) weight + bias for each channel, the last dimension (Ioffe and Szegedy 2015).
///
/// Inputs are x, weight and bias: mean and biased variance are those of the batch, and the mean and the unbiased variance are
/// by-products 1 and 2. With the inputs mean and var beside them, those are used, and get no gradient. With a ReLU instead, and a residual that is
/// added before it where there is a fourth input: the same numbers, in fewer passes over memory.
pub struct BatchNorm {
    /// Added to the variance.
    pub eps: f64,
    /// Whether a ReLU follows.
    pub relu: bool,
}

impl BatchNorm {
    /// Whether mean and variance are given, of so many inputs.
    fn is_given(inputs: usize) -> bool {
        inputs == 5
    }
}

impl Op for BatchNorm {
    fn name(&self) -> &'static str {
        "batch_norm"
    }

    fn shape(&self, x: &[Meta]) -> Meta {
        let channels = x[0].dims.last().copied();
        let (of_channels, residual) = if self.relu && x.len() == 4 { (&x[1..3], Some(x[3])) } else { (&x[1..], None) };
        let fits = (of_channels.len() == 2 || Self::is_given(x.len()) && !self.relu)
            && residual.is_none_or(|residual| residual == x[0])
            && channels.is_some_and(|c| of_channels.iter().all(|m| m.dims[..] == [c] && m.dtype == x[0].dtype));
        assert!(fits, "batch_norm: {x:?}");
        let rows: usize = x[0].dims[..x[0].dims.len() - 1].iter().product();
        assert!(
            Self::is_given(x.len()) || rows > 1,
            "batch_norm: the variance of a batch needs more than one value, got {x:?}"
        );
        x[0]
    }

    fn cpu(&self, x: &[&Tensor], out: Meta) -> Output {
        let packed: Vec<Tensor> = x.iter().map(|x| x.packed()).collect();
        let [x, weight, bias] = [0, 1, 2].map(|i| &packed[i]);
        let (channels, rows) = (weight.numel(), x.numel() / weight.numel().max(1));
        for_float!("batch_norm", out.dtype, F => {
            let statistics = Tensor::write([2, channels], |both: &mut [F]| {
                let (mean, var) = both.split_at_mut(channels);
                if let [_, _, _, running_mean, running_var] = &packed[..] {
                    mean.copy_from_slice(running_mean.as_slice());
                    var.copy_from_slice(running_var.as_slice());
                } else {
                    kernel::statistics::<F>(x.as_slice(), mean, var);
                }
            });
            let (mean, var) = statistics.as_slice::<F>().split_at(channels);
            let rstd: Vec<F> = var.iter().map(|var| 1.0 / (var + self.eps as F).sqrt()).collect();
            let residual = if self.relu { packed.get(3).map(Tensor::as_slice) } else { None };
            let then = kernel::Then { residual, relu: self.relu };
            let value = Tensor::write(out.dims, |y: &mut [F]| {
                kernel::batch_norm(x.as_slice(), mean, &rstd, weight.as_slice(), bias.as_slice(), then, y)
            });
            let mut aux = vec![Tensor::from_slice(&rstd, [channels]), Tensor::from_slice(mean, [channels])];
            if !Self::is_given(packed.len()) {
                let unbiased: Vec<F> = var.iter().map(|var| var * (rows as f64 / (rows as f64 - 1.0)) as F).collect();
                aux.push(Tensor::from_slice(&unbiased, [channels]));
            }
            Output { value, aux }
        })
    }

    #[cfg(feature = "vulkan")]
    fn gpu(&self, on: &Gpu, x: &[&Tensor], out: Meta) -> Option<Output> {
        let there: Vec<Tensor> = x.iter().map(|x| x.to_device(on).packed()).collect();
        let (weight, bias, channels) = (&there[1], &there[2], there[1].numel());
        let (of, map) = (Meta { dims: [channels].into(), ..out }, on.operand(&there[0])?);
        let rows = map.view().numel() / channels.max(1);
        let [mean, var] = if let [_, _, _, mean, var] = &there[..] {
            [mean.clone(), var.clone()]
        } else {
            let share = 1.0 / rows.max(1) as f64;
            let axes: Vec<usize> = (0..out.dims.len() - 1).collect();
            let mean = there[0].sum(&axes, false).affine(share, 0.0);
            let about = on.operand(&mean)?;
            let squares = match channels {
                0 => on.filled(of.dims, 0.0),
                _ => on.write(of, |y| on.kernels().squares_about(map.view(), about.view(), [rows, channels], y)),
            }?;
            [mean, squares.affine(share, 0.0)]
        };
        let rstd = var.affine(1.0, self.eps).rsqrt();
        let [m, s, t] = [&mean, &rstd.mul(weight), bias].map(|v| on.operand(v));
        let (m, s, t) = (m?, s?, t?);
        let mut value = on.write(out, |y| on.kernels().columns(map.view(), [m.view(), s.view(), t.view()], None, y))?;
        if self.relu {
            value = there.get(3).map_or(value.clone(), |residual| value.add(residual)).relu();
        }
        let mut aux = vec![rstd, mean];
        if !Self::is_given(x.len()) {
            aux.push(var.affine(rows as f64 / (rows as f64 - 1.0), 0.0));
        }
        Some(Output { value, aux })
    }

    fn saves(&self, _: &[bool]) -> Saves {
        let of_norm = Saves::input(0).and(Saves::input(1));
        if self.relu { of_norm.and(Saves::input(2)).and(Saves::OUTPUT) } else { of_norm }
    }

    fn vjp(&self, saved: &Saved, dy: &Tensor) -> Vec<Option<Tensor>> {
        let [x, weight, dy] = [saved.input(0).packed(), saved.input(1).packed(), dy.packed()];
        let (channels, of_batch) = (weight.numel(), !Self::is_given(saved.count()));
        for_float!("batch_norm", dy.dtype(), F => {
            let (mut dw, mut db) = (vec![0.0 as F; channels], vec![0.0 as F; channels]);
            let bias = self.relu.then(|| saved.input(2).packed());
            let through = (saved.count() == 4).then(|| saved.output().packed());
            let mut dresidual = through.as_ref().map(|y| Tensor::write(*y.dims(), |_: &mut [F]| ()));
            let dx = Tensor::write(*x.dims(), |dx: &mut [F]| {
                let (rstd, mean) = (saved.aux(0).as_slice(), saved.aux(1).as_slice());
                let (x, dy, weight) = (x.as_slice(), dy.as_slice(), weight.as_slice());
                let gate = match (&bias, &through, &mut dresidual) {
                    (_, Some(y), Some(dz)) => {
                        kernel::Gate::Output(y.as_slice(), dz.as_mut_slice().expect("a new tensor is unshared"))
                    }
                    (Some(bias), ..) => kernel::Gate::Relu(bias.as_slice()),
                    _ => kernel::Gate::Open,
                };
                kernel::batch_norm_backward(x, dy, mean, rstd, weight, of_batch, gate, dx, &mut dw, &mut db)
            });
            let mut gradients = vec![
                Some(dx),
                Some(Tensor::from_slice(&dw, [channels])),
                Some(Tensor::from_slice(&db, [channels])),
                dresidual,
            ];
            gradients.resize(saved.count(), None);
            gradients
        })
    }

    /// dx = w rstd (dy - db / rows - z dw / rows), with z = (x - mean) rstd; by given statistics w rstd dy.
    #[cfg(feature = "vulkan")]
    fn gpu_vjp(&self, on: &Gpu, saved: &Saved, dy: &Tensor) -> Option<Vec<Option<Tensor>>> {
        let (weight, rstd, mean) = (saved.input(1).to_device(on).packed(), saved.aux(0), saved.aux(1));
        let gated = self.relu.then(|| unary::backward(Unary::Relu, saved.output(), dy));
        let dz = gated.as_ref().unwrap_or(dy);
        let (x, dy, m, r) = (on.packed(saved.input(0))?, on.packed(dz)?, on.packed(mean)?, on.packed(rstd)?);
        let (channels, statistics) = (weight.numel(), [m.view(), r.view()]);
        let rows = x.view().numel() / channels.max(1);
        let [dw, db] = norm_sums(on, true, x.view(), dy.view(), statistics, [rows, channels])?;
        let a = rstd.mul(&weight);
        let share = if Self::is_given(saved.count()) { 0.0 } else { -1.0 / rows.max(1) as f64 };
        let (b, c) = (a.mul(rstd).mul(&dw).affine(share, 0.0), a.mul(&db).affine(share, 0.0));
        let (a, b, c) = (on.operand(&a)?, on.operand(&b)?, on.operand(&c)?);
        let dx = on.write(saved.meta(0), |dx| {
            on.kernels().columns(x.view(), [m.view(), b.view(), c.view()], Some([a.view(), dy.view()]), dx)
        })?;
        let mut gradients = vec![Some(dx), Some(dw), Some(db), gated];
        gradients.resize(saved.count(), None);
        Some(gradients)
    }

    fn cases(g: &mut Gen) -> Case {
        // Statistics of a batch need two rows; given ones do not.
        let given = g.rng.chance(0.5);
        let (channels, eps) = (g.size(), 0.1);
        let front = if given {
            g.dims(0, 3)
        } else {
            let front = g.full_dims(1, 3);
            if front.numel() < 2 { front.with(0, 2) } else { front }
        };
        let (relu, added) =
            if given { (false, false) } else { g.choose(&[(false, false), (true, false), (true, true)]) };
        let (mean, var) = (g.tensor([channels]), g.uniform([channels], 0.2, 2.0));
        let stats = move |x: &Tensor| {
            if given {
                return (mean.to_dtype(x.dtype()), var.to_dtype(x.dtype()));
            }
            let axes: Vec<usize> = (0..x.rank() - 1).collect();
            let mean = x.mean(&axes, true);
            let var = x.sub(&mean).square().mean(&axes, true);
            (mean, var)
        };
        let given_stats = stats.clone();
        let before_relu = move |x: &[Tensor]| {
            let (mean, var) = stats(&x[0]);
            let z = x[0].sub(&mean).mul(&var.affine(1.0, eps).rsqrt()).mul(&x[1]).add(&x[2]);
            x.get(3).map_or(z.clone(), |residual| z.add(residual))
        };
        let mut draw = || {
            let dims = front.followed_by(&[channels]);
            let mut inputs = vec![g.tensor(dims), g.tensor([channels]), g.tensor([channels])];
            inputs.extend(added.then(|| g.tensor(dims)));
            inputs
        };
        // Away from where the ReLU has no derivative.
        let is_smooth = |x: &Vec<Tensor>| !relu || before_relu(x).to_f64_vec().iter().all(|z| z.abs() > 3e-3);
        let drawn = (0..100).map(|_| draw()).find(is_smooth);
        let inputs = drawn.unwrap_or_else(|| {
            let mut inputs = draw();
            inputs[2] = Tensor::full([channels], 100.0, DType::F64);
            inputs
        });
        Case::new(inputs, move |x| {
            if given {
                let (mean, var) = given_stats(&x[0]);
                x[0].batch_norm(&x[1], &x[2], &mean, &var, eps)
            } else if relu {
                x[0].batch_norm_relu_train(&x[1], &x[2], x.get(3), eps).0
            } else {
                x[0].batch_norm_train(&x[1], &x[2], eps).0
            }
        })
        .equals(move |x| if relu { before_relu(x).relu() } else { before_relu(x) })
    }
}

impl Tensor {
    /// Batch norm with the statistics of this batch [.., channels]. Also returns them, without a graph: the mean and the
    /// unbiased variance of each channel.
    ///
    /// # Panics
    /// If a channel has fewer than two values.
    #[track_caller]
    pub fn batch_norm_train(&self, weight: &Tensor, bias: &Tensor, eps: f64) -> (Tensor, [Tensor; 2]) {
        let (y, aux) = apply_aux(BatchNorm { eps, relu: false }, &[self, weight, bias]);
        (y, [aux[1].clone(), aux[2].clone()])
    }

    /// relu([`Tensor::batch_norm_train`] + residual) to the bit, in fewer passes over memory.
    ///
    /// # Panics
    /// As [`Tensor::batch_norm_train`], and if the residual has other dims.
    #[track_caller]
    pub fn batch_norm_relu_train(
        &self,
        weight: &Tensor,
        bias: &Tensor,
        residual: Option<&Tensor>,
        eps: f64,
    ) -> (Tensor, [Tensor; 2]) {
        let mut inputs = vec![self, weight, bias];
        inputs.extend(residual);
        let (y, aux) = apply_aux(BatchNorm { eps, relu: true }, &inputs);
        (y, [aux[1].clone(), aux[2].clone()])
    }

    /// Batch norm of [.., channels] with given statistics, as after training.
    #[track_caller]
    pub fn batch_norm(&self, weight: &Tensor, bias: &Tensor, mean: &Tensor, var: &Tensor, eps: f64) -> Tensor {
        apply(BatchNorm { eps, relu: false }, &[self, weight, bias, mean, var])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_by_products_are_the_mean_and_the_unbiased_variance() {
        let x = Tensor::from_slice(&[1.0, 10.0, 3.0, 10.0, 8.0, 16.0], [3, 2]);
        let ones = Tensor::from_slice(&[1.0, 1.0], [2]);
        let (_, [mean, var]) = x.batch_norm_train(&ones, &ones, 1e-5);
        assert_eq!(mean.to_vec::<f64>(), [4.0, 12.0]);
        assert_eq!(var.to_vec::<f64>(), [13.0, 12.0]);
        // One channel alone.
        let one = ones.narrow(0, 0, 1);
        let (_, [mean, var]) = x.narrow(1, 0, 1).batch_norm_train(&one, &one, 1e-5);
        assert_eq!((mean.to_vec::<f64>(), var.to_vec::<f64>()), (vec![4.0], vec![13.0]));
    }
}

crate::check_ops!(BatchNorm);
