//! Matrix products.

use kernels_cpu::gemm::{self, Mat};
use kernels_cpu::map::{self, Saved as Needs, Unary};

use crate::dtype::Element;
use crate::for_float;
use crate::gradcheck::{Case, Gen};
use crate::layout::Dims;
use crate::op::{Meta, Op, Output, Saved, Saves, apply};
use crate::tensor::Tensor;

/// C = A B for matrices [.., m, k] and [.., k, n] in any layout; batch dimensions broadcast.
pub struct Matmul;

/// Matrix `i` of the batch of a tensor that was broadcast to its batch dimensions.
fn matrix<T: Element>(x: &Tensor, mut i: usize) -> Mat<'_, T> {
    let (view, rank) = (x.strided::<T>(), x.rank());
    let mut offset = view.offset as isize;
    for k in (0..rank - 2).rev() {
        offset += (i % x.dims()[k]) as isize * view.strides[k];
        i /= x.dims()[k];
    }
    let [rows, cols] = [x.dims()[rank - 2], x.dims()[rank - 1]];
    Mat {
        data: view.data,
        offset: offset as usize,
        rows,
        cols,
        row_stride: view.strides[rank - 2],
        col_stride: view.strides[rank - 1],
    }
}

impl Op for Matmul {
    fn name(&self) -> &'static str {
        "matmul"
    }

    fn shape(&self, x: &[Meta]) -> Meta {
        let (a, b) = (x[0].dims, x[1].dims);
        let fits = x[0].dtype == x[1].dtype && a.len() >= 2 && b.len() >= 2 && a[a.len() - 1] == b[b.len() - 2];
        assert!(fits, "matmul: {:?} times {:?}", x[0], x[1]);
        let batch = Dims::new(&a[..a.len() - 2]).broadcast(&Dims::new(&b[..b.len() - 2]));
        let batch = batch.unwrap_or_else(|| panic!("matmul: batches of {a:?} and {b:?} do not broadcast"));
        Meta { dims: batch.followed_by(&[a[a.len() - 2], b[b.len() - 1]]), ..x[0] }
    }

    fn cpu(&self, x: &[&Tensor], out: Meta) -> Output {
        let batch = &out.dims[..out.dims.len() - 2];
        let [a, b] = [0, 1].map(|i| {
            let dims = x[i].dims();
            x[i].with_layout(x[i].layout().broadcast_to(Dims::new(batch).followed_by(&dims[dims.len() - 2..])))
        });
        for_float!("matmul", out.dtype, F => Tensor::write(out.dims, |c: &mut [F]| {
            if c.is_empty() { return; }
            gemm::gemm_batched(batch.iter().product(), |i| matrix::<F>(&a, i), |i| matrix::<F>(&b, i), c)
        }))
        .into()
    }

    fn saves(&self, needs: &[bool]) -> Saves {
        Saves::input_if(0, needs[1]).and(Saves::input_if(1, needs[0]))
    }

    fn vjp(&self, saved: &Saved, dy: &Tensor) -> Vec<Option<Tensor>> {
        vec![
            saved.want(0, || dy.matmul(&saved.input(1).transpose(-2, -1))),
            saved.want(1, || saved.input(0).transpose(-2, -1).matmul(dy)),
        ]
    }

    fn cases(g: &mut Gen) -> Case {
        let batch = g.dims(0, 2);
        let [ba, bb] =
            if g.rng.chance(0.5) { [batch, g.broadcastable(&batch)] } else { [g.broadcastable(&batch), batch] };
        let [m, k, n] = [g.size(), g.size(), g.size()];
        let inputs = vec![g.tensor(ba.followed_by(&[m, k])), g.tensor(bb.followed_by(&[k, n]))];
        Case::new(inputs, |x| x[0].matmul(&x[1]))
            .equals(|x| x[0].unsqueeze(x[0].rank()).mul(&x[1].unsqueeze(x[1].rank() - 2)).sum_of_inner(2))
    }
}

/// y = act(x W^T + b) for x [.., in], W [out, in] and b `[out]`: one matrix product, the activation on its rows.
pub struct Linear {
    /// Applied last.
    pub act: Option<Unary>,
}

impl Op for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn shape(&self, x: &[Meta]) -> Meta {
        let (d, w) = (x[0].dims, x[1].dims);
        let fits = !d.is_empty() && w.len() == 2 && d[d.len() - 1] == w[1] && x.iter().all(|m| m.dtype == x[0].dtype);
        assert!(fits && x.get(2).is_none_or(|b| b.dims[..] == w[..1]), "linear: {x:?}");
        Meta { dims: d.with(d.len() - 1, w[0]), ..x[0] }
    }

    fn cpu(&self, x: &[&Tensor], out: Meta) -> Output {
        let (w, bias) = (x[1], x.get(2).map(|b| b.packed()));
        let rows = rows_of(x[0]);
        let keeps_input = self.act.is_some_and(|act| act.saves() == Needs::Input);
        for_float!("linear", out.dtype, F => {
            let mut before = Tensor::write(out.dims, |z: &mut [F]| {
                let bias = bias.as_ref().map(|b| b.as_slice::<F>());
                gemm::gemm(matrix(&rows, 0), matrix::<F>(w, 0).t(), false, z, w.dims()[0].max(1), bias);
            });
            match self.act {
                None => before.into(),
                // The derivative needs the value before the activation.
                Some(act) if keeps_input => {
                    let value = Tensor::write(out.dims, |y: &mut [F]| map::map(act, before.as_slice(), y));
                    Output { value, aux: vec![before] }
                }
                Some(act) => {
                    map::map_in_place(act, before.as_mut_slice::<F>().expect("just made"));
                    before.into()
                }
            }
        })
    }

    fn saves(&self, needs: &[bool]) -> Saves {
        let inputs = Saves::input_if(0, needs[1]).and(Saves::input_if(1, needs[0]));
        if self.act.is_some_and(|act| act.saves() == Needs::Output) { inputs.and(Saves::OUTPUT) } else { inputs }
    }

    fn vjp(&self, saved: &Saved, dy: &Tensor) -> Vec<Option<Tensor>> {
        let dy = dy.packed();
        let dz = match self.act {
            None => dy,
            Some(act) => {
                let kept = match act.saves() {
                    Needs::Input => saved.aux(0).clone(),
                    Needs::Output => saved.output().clone(),
                    Needs::Nothing => dy.clone(),
                };
                for_float!("linear", dy.dtype(), F => Tensor::write(*dy.dims(), |dz: &mut [F]| {
                    map::map_backward(act, kept.as_slice(), dy.as_slice(), dz)
                }))
            }
        };
        let rows = rows_of(&dz);
        let mut gradients = vec![
            saved.want(0, || rows.matmul(saved.input(1)).reshape(saved.dims(0))),
            saved.want(1, || rows.transpose(0, 1).matmul(&rows_of(saved.input(0)))),
        ];
        if saved.count() == 3 {
            gradients.push(saved.want(2, || rows.sum(&[0], false)));
        }
        gradients
    }

    fn cases(g: &mut Gen) -> Case {
        let front = g.dims(0, 2);
        let [input, output] = [g.size(), g.size()];
        let act = g.choose(&[None, None, Some(Unary::Gelu), Some(Unary::Tanh), Some(Unary::QuickGelu)]);
        let mut inputs = vec![g.tensor(front.followed_by(&[input])), g.tensor([output, input])];
        if g.rng.chance(0.7) {
            inputs.push(g.tensor([output]));
        }
        Case::new(inputs, move |x| apply(Linear { act }, &x.iter().collect::<Vec<_>>())).equals(move |x| {
            let flat = x[0].reshape([x[0].numel() / input.max(1), input]);
            let flat = if input == 0 {
                Tensor::zeros([front.numel(), 0], x[0].dtype()) + flat.reshape([front.numel(), 0])
            } else {
                flat
            };
            let z = flat.matmul(&x[1].transpose(0, 1)).reshape(front.followed_by(&[output]));
            let z = if let Some(bias) = x.get(2) { z.add(bias) } else { z };
            if let Some(act) = act { apply(super::unary::Map(act), &[&z]) } else { z }
        })
    }
}

/// [rows, last] without a copy where strides allow.
fn rows_of(x: &Tensor) -> Tensor {
    let last = x.dim(-1);
    let rows: usize = x.dims()[..x.rank() - 1].iter().product();
    x.detach().reshape([rows, last])
}

impl Tensor {
    /// Product of matrices [.., m, k] and [.., k, n]; batch dimensions broadcast.
    #[track_caller]
    pub fn matmul(&self, other: &Tensor) -> Tensor {
        apply(Matmul, &[self, other])
    }

    /// act(x W^T + b) for `weight` [out, in] and `bias` `[out]`.
    #[track_caller]
    pub fn linear(&self, weight: &Tensor, bias: Option<&Tensor>, act: Option<Unary>) -> Tensor {
        let mut inputs = vec![self, weight];
        inputs.extend(bias);
        apply(Linear { act }, &inputs)
    }

    /// Sum over the dimension before the last `after` - 1.
    fn sum_of_inner(&self, after: usize) -> Tensor {
        self.sum(&[self.rank() - after], false)
    }
}

crate::check_ops!(Matmul, Linear);
