//! Scaled dot-product attention (Vaswani et al. 2017).

use kernels_cpu::attention as kernel;
#[cfg(feature = "vulkan")]
use kernels_gpu::{
    Memory, View,
    ops::{Attention as Fused, Gemm, Softmax},
};

#[cfg(feature = "vulkan")]
use crate::device::{Gpu, Operand};
use crate::dtype::DType;
use crate::for_float;
use crate::gradcheck::{Case, Gen};
#[cfg(feature = "vulkan")]
use crate::layout::Layout;
use crate::op::{Meta, Op, Output, Saved, Saves, apply};
use crate::tensor::Tensor;

use super::matmul::sums;

/// softmax(q k^T / sqrt(d)) v for q [b, h, tq, d], k and v [b, h, tk, d] in any layout, and optionally a key mask u8 [b, tk] (1 where
/// a key may be seen). Output [b, tq, h, d], ready for the output projection. A query that sees no key gives zeros. With q, k and v in bf16 products are of
/// bf16, so weights and gradients are rounded where they are multiplied; output and gradients are f32.
#[derive(Clone, Copy)]
pub struct Attention {
    /// Query i sees keys up to i + tk - tq.
    pub causal: bool,
    /// Probability of dropout on the attention weights, and the key of the draw.
    pub dropout: Option<(f64, u64)>,
}

impl Attention {
    fn kernel<'a>(&self, q: &[usize], keys: usize, mask: Option<&'a [u8]>) -> kernel::Attention<'a> {
        let [batch, heads, queries, width] = [q[0], q[1], q[2], q[3]];
        let scale = 1.0 / (width.max(1) as f64).sqrt();
        kernel::Attention {
            batch,
            heads,
            queries,
            keys,
            width,
            scale,
            causal: self.causal,
            key_mask: mask,
            dropout: self.dropout,
        }
    }
}

/// Runs `$body` with `$T` standing for the type of q, k and v and `$F` for that of sums.
macro_rules! for_operand {
    ($dtype:expr, $T:ident, $F:ident => $body:expr) => {
        match $dtype {
            DType::BF16 => {
                type $T = half::bf16;
                type $F = f32;
                $body
            }
            dtype => for_float!("attention", dtype, $F => {
                type $T = $F;
                $body
            }),
        }
    };
}

#[cfg(feature = "vulkan")]
impl Attention {
    fn scale(&self, q: &Operand) -> f32 {
        1.0 / (q.layout().dims()[3].max(1) as f32).sqrt()
    }

    fn fused<'a>(&self, [q, k, v]: [&'a Operand; 3], mask: Option<&'a Memory>) -> Fused<'a> {
        let (scale, causal, dropout) = (self.scale(q), self.causal, self.dropout);
        Fused { q: q.view(), k: k.view(), v: v.view(), scale, causal, mask, dropout }
    }

    fn fused_gradients(
        &self,
        on: &Gpu,
        x: [&Operand; 3],
        mask: Option<&Memory>,
        saved: &Saved,
        dy: &Tensor,
    ) -> Option<[Tensor; 3]> {
        let (fused, kernels) = (self.fused(x, mask), on.kernels());
        let (y, lse, dy) = (on.operand(saved.output())?, on.operand(saved.aux(0))?, on.operand(dy)?);
        // [b, n, h, d], as the projections before it take their gradients.
        let rows = |x: &Operand| Meta::new([0, 2, 1, 3].map(|k| x.layout().dims()[k]), DType::F32);
        let mut sums = None;
        let dq = on.write(rows(x[0]), |dq| {
            let sums = sums.insert(kernels.attention_sums(&fused, y.view(), lse.view(), dy.view())?);
            kernels.attention_dq(&fused, dy.view(), sums, dq)
        })?;
        let (each, sums) = (rows(x[1]), sums?);
        let both = on.write(Meta::new([&[2], &each.dims[..]].concat().as_slice(), DType::F32), |both| {
            let of = |i| View {
                offset: both.offset + i * each.dims.numel(),
                dims: &both.dims[1..],
                strides: &both.strides[1..],
                ..both
            };
            kernels.attention_dkv(&fused, dy.view(), &sums, [of(0), of(1)])
        })?;
        Some([dq, both.at(0, 0), both.at(0, 1)].map(|x| x.permute(&[0, 2, 1, 3])))
    }

    /// Weights and the means of values by them, one after the other.
    fn composed(
        &self,
        on: &Gpu,
        [q, k, v]: [&Operand; 3],
        mask: Option<&Memory>,
        lse: &Memory,
        out: Meta,
    ) -> Option<Tensor> {
        let p = on.operand(&self.dropped(on, self.weights(on, q, k, mask, Some(lse))?)?)?;
        on.write(out, |y| {
            // [b, tq, h, d] seen as [b, h, tq, d].
            let seen = Layout::contiguous(out.dims, 0).permute(&[0, 2, 1, 3]);
            let y = View { dims: seen.dims(), strides: seen.strides(), ..y };
            on.kernels().gemm(&Gemm::new(p.view(), v.view(), y))
        })
    }

    /// The weights are computed once more; each product is a kernel.
    fn composed_gradients(
        &self,
        on: &Gpu,
        [q, k, v]: [&Operand; 3],
        mask: Option<&Memory>,
        dy: &Tensor,
    ) -> Option<[Tensor; 3]> {
        let dy = on.operand(&dy.permute(&[0, 2, 1, 3]))?;
        let weights = self.weights(on, q, k, mask, None)?;
        let p = on.operand(&self.dropped(on, weights.clone())?)?;
        let dv = product(on, &transposed(&p), &dy)?;
        let dp = on.operand(&self.dropped(on, product(on, &dy, &transposed(v))?)?)?;
        let (p, scale) = (on.operand(&weights)?, self.scale(q));
        let ds = on.write(weights.meta(), |ds| on.kernels().softmax_backward(false, scale, p.view(), dp.view(), ds))?;
        let ds = on.operand(&ds)?;
        Some([product(on, &ds, k)?, product(on, &transposed(&ds), q)?, dv])
    }

    /// softmax(q k^T / sqrt(d)), [b, h, tq, tk], before dropout.
    fn weights(
        &self,
        on: &Gpu,
        q: &Operand,
        k: &Operand,
        mask: Option<&Memory>,
        lse: Option<&Memory>,
    ) -> Option<Tensor> {
        let [b, h, tq, tk] = [q.layout().dims()[0], q.layout().dims()[1], q.layout().dims()[2], k.layout().dims()[2]];
        let mask = mask.map(|mask| (mask, h * tq));
        let options = Softmax { mask, causal: self.causal.then_some(tq), lse, ..Softmax::default() };
        on.write(Meta::new([b, h, tq, tk], DType::F32), |p| {
            let k = transposed(k);
            on.kernels().gemm(&Gemm { alpha: self.scale(q), ..Gemm::new(q.view(), k.view(), p) })?;
            on.kernels().softmax(p, p, options)
        })
    }

    fn dropped(&self, on: &Gpu, p: Tensor) -> Option<Tensor> {
        let Some((share, key)) = self.dropout else { return Some(p) };
        let from = on.operand(&p)?;
        on.write(p.meta(), |y| on.kernels().dropout(share, key, from.view(), y))
    }
}

/// Matrices [b, h, m, n] as [b, h, n, m].
#[cfg(feature = "vulkan")]
fn transposed(x: &Operand) -> Operand {
    x.seen(x.layout().permute(&[0, 1, 3, 2]))
}

/// Products of matrices [b, h, m, k] and [b, h, k, n].
#[cfg(feature = "vulkan")]
fn product(on: &Gpu, x: &Operand, y: &Operand) -> Option<Tensor> {
    let (dims, n) = (x.layout().dims(), y.layout().dims()[3]);
    on.write(Meta::new(dims.with(3, n), DType::F32), |z| on.kernels().gemm(&Gemm::new(x.view(), y.view(), z)))
}

impl Op for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn shape(&self, x: &[Meta]) -> Meta {
        let [q, k, v] = [x[0].dims, x[1].dims, x[2].dims];
        let same = q.len() == 4
            && k.len() == 4
            && k == v
            && q[..2] == k[..2]
            && q[3] == k[3]
            && x[..3].iter().all(|m| m.dtype == x[0].dtype);
        assert!(same, "attention: q {:?}, k {:?}, v {:?}", x[0], x[1], x[2]);
        assert!(
            x.get(3).is_none_or(|m| m.dtype == DType::U8 && m.dims[..] == [k[0], k[2]]),
            "attention: key mask {:?} for keys {k:?}",
            x.get(3)
        );
        Meta { dims: [q[0], q[2], q[1], q[3]].into(), dtype: sums(x[0].dtype) }
    }

    fn cpu(&self, x: &[&Tensor], out: Meta) -> Output {
        let (q, mask) = (x[0].dims(), x.get(3).map(|m| m.packed()));
        let kernel = self.kernel(q, x[1].dims()[2], mask.as_ref().map(|m| m.as_slice()));
        for_operand!(x[0].dtype(), T, F => {
            let mut lse = vec![0.0 as F; q[0] * q[1] * q[2]];
            let value = Tensor::write(out.dims, |y: &mut [F]| kernel.forward::<T>(x[0].strided(), x[1].strided(), x[2].strided(), y, &mut lse));
            Output { value, aux: vec![Tensor::from_slice(&lse, [lse.len()])] }
        })
    }

    /// Without weights in memory where a head's width allows. Numbers in half are multiplied so where the device
    /// has matrices for it that are trusted, else widened, with weights in f32.
    #[cfg(feature = "vulkan")]
    fn gpu(&self, on: &Gpu, x: &[&Tensor], out: Meta) -> Option<Output> {
        let (q, k, v) = (on.stored(x[0])?, on.stored(x[1])?, on.stored(x[2])?);
        let mask = x.get(3).map(|mask| on.bytes(mask));
        let rows = x[0].dims()[..3].iter().product();
        let lse = on.memory(4 * rows);
        let fused = self.fused([&q, &k, &v], mask.as_ref());
        let value = on
            .write(out, |y| on.kernels().attention(&fused, y, &lse))
            .or_else(|| self.composed(on, [&q, &k, &v], mask.as_ref(), &lse, out))?;
        Some(Output { value, aux: vec![on.aux(lse, rows)] })
    }

    fn flops(&self, x: &[Meta], out: Meta) -> u64 {
        4 * (out.dims.numel() * x[1].dims[2]) as u64
    }

    /// The output, which the projection behind keeps anyway, for the device alone.
    fn saves(&self, _: &[bool]) -> Saves {
        Saves::INPUTS.and(Saves::OUTPUT)
    }

    fn vjp(&self, saved: &Saved, dy: &Tensor) -> Vec<Option<Tensor>> {
        let [q, k, v] = [0, 1, 2].map(|i| saved.input(i));
        let mask = (saved.count() == 4).then(|| saved.input(3).packed());
        let kernel = self.kernel(q.dims(), k.dims()[2], mask.as_ref().map(|m| m.as_slice()));
        let dy = dy.packed();
        // [b, n, h, d], as the projections before it take their gradients.
        let rows = |x: &Tensor| [0, 2, 1, 3].map(|k| x.dims()[k]);
        let mut gradients = for_operand!(q.dtype(), T, F => {
            let [mut dk, mut dv] = [k, v].map(|x| Tensor::write(rows(x), |_: &mut [F]| ()));
            let dq = Tensor::write(rows(q), |dq: &mut [F]| {
                let [dk, dv] = [&mut dk, &mut dv].map(|x| x.as_mut_slice().expect("a new tensor is unshared"));
                kernel.backward::<T>(q.strided(), k.strided(), v.strided(), saved.aux(0).as_slice(), dy.as_slice(), dq, dk, dv)
            });
            [dq, dk, dv].map(|x| Some(x.permute(&[0, 2, 1, 3]))).to_vec()
        });
        gradients.resize(saved.count(), None);
        gradients
    }

    #[cfg(feature = "vulkan")]
    fn gpu_vjp(&self, on: &Gpu, saved: &Saved, dy: &Tensor) -> Option<Vec<Option<Tensor>>> {
        let [q, k, v] = [0, 1, 2].map(|i| on.stored(saved.input(i)));
        let (q, k, v) = (q?, k?, v?);
        let mask = (saved.count() == 4).then(|| on.bytes(saved.input(3)));
        let mut gradients = self
            .fused_gradients(on, [&q, &k, &v], mask.as_ref(), saved, dy)
            .or_else(|| self.composed_gradients(on, [&q, &k, &v], mask.as_ref(), dy))?
            .map(Some)
            .to_vec();
        gradients.resize(saved.count(), None);
        Some(gradients)
    }

    fn cases(g: &mut Gen) -> Case {
        let [b, h, d] = [g.size().min(3), g.size().min(3), g.size()];
        let (causal, tk) = (g.rng.chance(0.4), g.size());
        let tq = if causal { tk } else { g.size() };
        let mut inputs = vec![g.tensor([b, h, tq, d]), g.tensor([b, h, tk, d]), g.tensor([b, h, tk, d])];
        let masked = g.rng.chance(0.5);
        if masked {
            inputs.push(g.mask([b, tk], 0.7));
        }
        let key = g.rng.next_u64();
        let dropout = g.rng.chance(0.3).then_some((0.3, key));
        Case::new(inputs, move |x| apply(Attention { causal, dropout }, &x.iter().collect::<Vec<_>>())).equals(
            move |x| {
                let scores = x[0].matmul(&x[1].transpose(-2, -1)).affine(1.0 / (d.max(1) as f64).sqrt(), 0.0);
                let seen: Vec<u8> = (0..b * tq * tk)
                    .map(|at| {
                        let (item, i, j) = (at / (tq * tk), at / tk % tq, at % tk);
                        u8::from((!causal || j <= i) && (!masked || x[3].to_vec::<u8>()[item * tk + j] != 0))
                    })
                    .collect();
                let seen =
                    Tensor::from_slice(&seen, [b, 1, tq, tk]).broadcast_to([b, h, tq, tk]).reshape([b * h * tq, tk]);
                let p = scores.reshape([b * h * tq, tk]).masked_softmax(&seen).reshape([b, h, tq, tk]);
                let p = dropout.map_or(p.clone(), |(share, key)| p.dropout(share, key));
                p.matmul(&x[2]).permute(&[0, 2, 1, 3])
            },
        )
    }
}

/// Attention of q [b, h, tq, d] over k, v [b, h, tk, d]; see [`Attention`].
#[track_caller]
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, key_mask: Option<&Tensor>, options: Attention) -> Tensor {
    let mut inputs = vec![q, k, v];
    inputs.extend(key_mask);
    apply(options, &inputs)
}

crate::check_ops!(Attention);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::distance;

    /// Off by some roundings of 2^-8, whose bound the kernel's test has: of weights and gradients, where they are multiplied.
    #[test]
    fn queries_in_bf16_are_multiplied_as_such() {
        let mut g = Gen::new(8, 9);
        for causal in [false, true] {
            let x = [0; 3].map(|_| g.tensor([2, 3, 40, 16]).to_dtype(DType::BF16));
            let dy = g.tensor([2, 40, 3, 16]).to_dtype(DType::F32);
            let run = |dtype: DType| {
                let x = x.each_ref().map(|x| x.to_dtype(dtype).trainable());
                let y = attention(&x[0], &x[1], &x[2], None, Attention { causal, dropout: None });
                let value = y.detach();
                let grads = crate::backward_with(vec![(y, dy.clone())]);
                let grads = x.each_ref().map(|x| grads.get(x).unwrap().clone());
                [vec![value], grads.to_vec()].concat()
            };
            for (half, wide) in run(DType::BF16).iter().zip(run(DType::F32)) {
                assert_eq!(half.meta(), wide.meta());
                let off = distance::relative(&half.to_f64_vec(), &wide.to_f64_vec(), f64::MIN_POSITIVE);
                assert!(off > 0.0 && off <= 4.0 / 256.0, "{off:e} apart");
            }
        }
    }
}
