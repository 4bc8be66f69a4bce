//! Convolution of channels-last maps.

use std::sync::Arc;

use half::bf16;
use kernels_cpu::conv::{self, PackedWeight, Window};
use kernels_cpu::gemm::Finish;

use crate::buffer::count_scratch;
#[cfg(feature = "vulkan")]
use crate::device::{Gpu, Operand};
use crate::dtype::DType;
use crate::for_float;
use crate::gradcheck::{Case, Gen};
use crate::op::{Meta, Op, Output, Saved, Saves, apply};
use crate::plan::{Packs, Prepared};
use crate::tensor::Tensor;

use super::matmul::{check_trains, is_half, sums, weight_fits, widened};
use super::product::{Multiplies, MultiplyRounded, Product};

/// y = x * weight + bias for x [n, h, w, in], a weight [out, in / groups, kh, kw] and a bias `[out]`: y [n, oh, ow, out].
/// Pairs are (along rows, along columns). Beside an x of f32 the weight and bias may be stored in half; they are then not trained. With the weight in
/// bf16, in one group, the numbers of x are rounded to bf16 for the product, whose sums are f32, where the tier has products of bf16 that are quicker
/// ([`conv::Conv2d::rounds`]); else it is widened, as one in f16 is. With x in bf16, in one group, products are of bf16, so the weight and dy are
/// rounded; y and all gradients are f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv2d {
    /// From a window to the next.
    pub stride: [usize; 2],
    /// Zeros around the map, on both sides.
    pub padding: [usize; 2],
    /// From an element of the window to the next.
    pub dilation: [usize; 2],
    /// Groups of channels that do not mix; divides both numbers of channels.
    pub groups: usize,
}

impl Default for Conv2d {
    fn default() -> Self {
        Self { stride: [1, 1], padding: [0, 0], dilation: [1, 1], groups: 1 }
    }
}

impl Conv2d {
    /// The same stride and padding along rows and columns.
    pub fn new(stride: usize, padding: usize) -> Self {
        Self { stride: [stride; 2], padding: [padding; 2], ..Self::default() }
    }

    fn kernel(&self, x: Meta, weight: Meta) -> conv::Conv2d {
        let (x, weight) = (x.dims, weight.dims);
        let window = Window {
            kernel: [weight[2], weight[3]],
            stride: self.stride,
            padding: self.padding,
            dilation: self.dilation,
        };
        conv::Conv2d { n: x[0], size: [x[1], x[2]], input: x[3], output: weight[0], groups: self.groups, window }
    }
}

impl Op for Conv2d {
    fn name(&self) -> &'static str {
        "conv2d"
    }

    fn shape(&self, x: &[Meta]) -> Meta {
        let fits = x[0].dims.len() == 4
            && x[1].dims.len() == 4
            && x[0].dims[3] == x[1].dims[1] * self.groups
            && x.get(2).is_none_or(|bias| bias.dims[..] == x[1].dims[..1])
            && match x[0].dtype {
                // Rounded, in one group.
                DType::BF16 => x[1..].iter().all(|m| weight_fits(m.dtype, DType::F32)) && self.groups == 1,
                dtype => x[1..].iter().all(|m| weight_fits(m.dtype, dtype)),
            };
        assert!(fits, "conv2d: {x:?} with {self:?}");
        let kernel = self.kernel(x[0], x[1]);
        let [rows, cols] = kernel.grid();
        Meta::new([kernel.n, rows, cols, kernel.output], sums(x[0].dtype))
    }

    fn cpu(&self, x: &[&Tensor], out: Meta) -> Output {
        let kernel = self.kernel(x[0].meta(), x[1].meta());
        let (map, bias) = (x[0].packed(), x.get(2).map(|b| widened(b).packed()));
        if is_rounded(&kernel, x[1].dtype(), map.dtype()) {
            count_scratch(|| kernel.bf16_bytes());
            let finish = || Finish { bias: bias.as_ref().map(|b| b.as_slice()), ..Finish::default() };
            return Tensor::write(out.dims, |y| {
                multiply_rounded(&kernel, &map, &kernel.pack_bf16(x[1].packed().as_slice()), finish(), y)
            })
            .into();
        }
        let weight = widened(x[1]).packed();
        if map.dtype() == DType::BF16 {
            count_scratch(|| kernel.bf16_bytes());
            let bias = bias.as_ref().map(|b| b.as_slice());
            return Tensor::write(out.dims, |y| kernel.forward_bf16(map.as_slice(), weight.as_slice(), bias, y)).into();
        }
        count_scratch(|| kernel.forward_bytes());
        for_float!("conv2d", out.dtype, F => Tensor::write(out.dims, |y: &mut [F]| {
            kernel.forward(map.as_slice(), weight.as_slice(), bias.as_ref().map(|b| b.as_slice()), y)
        }))
        .into()
    }

    #[cfg(feature = "vulkan")]
    fn gpu(&self, on: &Gpu, x: &[&Tensor], out: Meta) -> Option<Output> {
        let kernel = self.kernel(x[0].meta(), x[1].meta());
        let map = on.stored(&x[0].to_device(on).packed())?;
        let weight = by_tap(on, x[1], x[0].dtype() == DType::BF16)?;
        let bias = match x.get(2) {
            Some(bias) => Some(on.packed(&widened(bias))?),
            None => None,
        };
        on.output(out, |y| on.kernels().conv2d(&kernel, map.view(), weight.view(), bias.as_ref().map(Operand::view), y))
    }

    fn prepare(&self, x: &[Meta], constants: &[Option<&Tensor>], _: &mut Packs) -> Option<Box<dyn Prepared>> {
        let kernel = self.kernel(x[0], x[1]);
        let rounded = is_rounded(&kernel, x[1].dtype, x[0].dtype);
        let bytes = if rounded { kernel.packed_bf16_bytes() } else { kernel.packed_bytes() };
        if !rounded && x[0].dtype != DType::F32 {
            return None;
        }
        Product::prepare(constants, None, Tensor::packed, (bytes, rounded), |weight| {
            if !rounded {
                let weight = kernel.pack(widened(weight).packed().as_slice())?;
                return Some(Multiplies::new(move |map, finish, y| {
                    kernel.forward_packed(map.as_slice(), &weight, finish, y);
                }));
            }
            let weight = Arc::new(kernel.pack_bf16(weight.packed().as_slice()));
            let same = weight.clone();
            let multiply = move |map: &Tensor, finish: Finish<'_, f32>, y: &mut [f32]| {
                multiply_rounded(&kernel, map, &weight, finish, y);
            };
            let rounded: Box<MultiplyRounded> = Box::new(move |map, finish, y| match map.dtype() {
                DType::BF16 => kernel.forward_rounded::<bf16>(map.as_slice(), &same, finish, y),
                _ => kernel.forward_rounded::<f32>(map.as_slice(), &same, finish, y),
            });
            Some(Multiplies { rounded: Some(rounded), ..Multiplies::new(multiply) })
        })
    }

    fn flops(&self, x: &[Meta], out: Meta) -> u64 {
        2 * (out.dims.numel() * x[1].dims[1..].iter().product::<usize>()) as u64
    }

    fn saves(&self, needs: &[bool]) -> Saves {
        Saves::input_if(0, needs[1]).and(Saves::input_if(1, needs[0]))
    }

    fn vjp(&self, saved: &Saved, dy: &Tensor) -> Vec<Option<Tensor>> {
        (1..saved.count()).filter(|&i| saved.needs(i)).for_each(|i| check_trains("conv2d", saved.meta(i).dtype));
        let (kernel, dy) = (self.kernel(saved.meta(0), saved.meta(1)), dy.packed());
        if saved.meta(0).dtype == DType::BF16 {
            count_scratch(|| kernel.bf16_bytes());
            let from = dy.converted(DType::BF16);
            let mut gradients = vec![
                saved.want(0, || {
                    Tensor::write(saved.dims(0), |dx| {
                        kernel.backward_input_bf16(from.as_slice(), widened(saved.input(1)).packed().as_slice(), dx)
                    })
                }),
                saved.want(1, || {
                    Tensor::write(saved.dims(1), |dw| {
                        kernel.backward_weight_bf16(saved.input(0).packed().as_slice(), from.as_slice(), dw)
                    })
                }),
            ];
            if saved.count() == 3 {
                gradients.push(saved.want(2, || dy.sum(&[0, 1, 2], false)));
            }
            return gradients;
        }
        count_scratch(|| kernel.backward_bytes());
        for_float!("conv2d", dy.dtype(), F => {
            let mut gradients = vec![
                saved.want(0, || Tensor::write(saved.dims(0), |dx: &mut [F]| {
                    kernel.backward_input(dy.as_slice(), widened(saved.input(1)).packed().as_slice(), dx)
                })),
                saved.want(1, || Tensor::write(saved.dims(1), |dw: &mut [F]| {
                    kernel.backward_weight(saved.input(0).packed().as_slice(), dy.as_slice(), dw)
                })),
            ];
            if saved.count() == 3 {
                gradients.push(saved.want(2, || dy.sum(&[0, 1, 2], false)));
            }
            gradients
        })
    }

    #[cfg(feature = "vulkan")]
    fn gpu_vjp(&self, on: &Gpu, saved: &Saved, dy: &Tensor) -> Option<Vec<Option<Tensor>>> {
        (1..saved.count()).filter(|&i| saved.needs(i)).for_each(|i| check_trains("conv2d", saved.meta(i).dtype));
        let (kernel, rounded) = (self.kernel(saved.meta(0), saved.meta(1)), saved.meta(0).dtype == DType::BF16);
        let from = on.stored(&if rounded { dy.converted(DType::BF16) } else { dy.packed() })?;
        let input = || {
            let weight = by_tap(on, saved.input(1), rounded)?;
            on.write(Meta::new(saved.dims(0), dy.dtype()), |dx| {
                on.kernels().conv2d_backward_input(&kernel, from.view(), weight.view(), dx)
            })
        };
        let weight = || {
            let (dims, map) = (saved.dims(1), on.stored(&saved.input(0).to_device(on).packed())?);
            let ordered = [dims[0], dims[2], dims[3], dims[1]];
            let dw = match kernel.n {
                0 => on.filled(ordered, 0.0),
                _ => on.write(Meta::new(ordered, dy.dtype()), |dw| {
                    on.kernels().conv2d_backward_weight(&kernel, map.view(), from.view(), dw)
                }),
            };
            Some(dw?.permute(&[0, 3, 1, 2]))
        };
        // What is asked for, or nothing where the device cannot.
        let asked = |i: usize, gradient: &dyn Fn() -> Option<Tensor>| match saved.needs(i) {
            true => gradient().map(Some),
            false => Some(None),
        };
        let mut gradients = vec![asked(0, &input)?, asked(1, &weight)?];
        if saved.count() == 3 {
            gradients.push(saved.want(2, || dy.sum(&[0, 1, 2], false)));
        }
        Some(gradients)
    }

    fn cases(g: &mut Gen) -> Case {
        let mut pair = |low: usize, n: usize| [low + g.rng.below(n), low + g.rng.below(n)];
        let (kernel, stride, padding, dilation) = (pair(1, 3), pair(1, 3), pair(0, 3), pair(1, 2));
        let window = Window { kernel, stride, padding, dilation };
        let mut size = [g.size(), g.size()];
        while window.output(size).is_none() {
            size = size.map(|s| s + 1);
        }
        // One channel to a group is a path of its own.
        let groups = g.choose(&[1, 1, 2, 3]);
        let [input, output] = if g.rng.chance(0.3) { [1, 1] } else { [g.size().min(4), g.size().min(4)] };
        let n = g.size().min(3);
        let mut inputs = vec![
            g.tensor([n, size[0], size[1], input * groups]),
            g.tensor([output * groups, input, kernel[0], kernel[1]]),
        ];
        if g.rng.chance(0.6) {
            inputs.push(g.tensor([output * groups]));
        }
        let op = Conv2d { stride, padding, dilation, groups };
        Case::new(inputs, move |x| x[0].conv2d(&x[1], x.get(2), op)).equals(move |x| composed(x, op))
    }
}

/// Whether the numbers of a map are rounded to those of its weight.
fn is_rounded(kernel: &conv::Conv2d, weight: DType, map: DType) -> bool {
    weight == DType::BF16 && matches!(map, DType::F32 | DType::BF16) && kernel.rounds()
}

/// By a weight packed from bf16, of a map that is rounded or to be.
fn multiply_rounded(
    kernel: &conv::Conv2d,
    map: &Tensor,
    weight: &PackedWeight,
    finish: Finish<'_, f32>,
    y: &mut [f32],
) {
    match map.dtype() {
        DType::BF16 => kernel.forward_halves(map.as_slice(), weight, finish, y),
        _ => kernel.forward_packed(map.as_slice(), weight, finish, y),
    }
}

/// A weight [out, in, kh, kw] as [out, kh, kw, in], which is the order of its device's kernels; rounded to bf16 beside a map that is.
#[cfg(feature = "vulkan")]
fn by_tap(on: &Gpu, weight: &Tensor, rounded: bool) -> Option<Operand> {
    let (weight, stored) = (weight.to_device(on), if rounded { DType::BF16 } else { weight.dtype() });
    let order = |weight: &Tensor| weight.permute(&[0, 2, 3, 1]);
    // A device turns numbers of f32 alone, so half goes there and back.
    let turned = is_half(weight.dtype()) && !order(&weight).layout().is_contiguous();
    let ordered = order(&if turned { weight.converted(DType::F32) } else { weight });
    on.stored(&ordered.converted(stored).packed())
}

/// Pixels under each element of the kernel, times its matrix.
fn composed(x: &[Tensor], op: Conv2d) -> Tensor {
    let [kh, kw] = [x[1].dims()[2], x[1].dims()[3]];
    let [n, rows, cols, out] = [0, 1, 2, 3].map(|k| op.shape(&[x[0].meta(), x[1].meta()]).dims[k]);
    let [i, o] = [x[1].dims()[1], out / op.groups];
    let padded = x[0].pad(1, op.padding[0], op.padding[0]).pad(2, op.padding[1], op.padding[1]);
    let along = |x: &Tensor, axis: usize, tap: usize, count: usize| {
        x.narrow(axis + 1, tap * op.dilation[axis], (count - 1) * op.stride[axis] + 1).step(axis + 1, op.stride[axis])
    };
    let mut groups = Vec::new();
    for group in 0..op.groups {
        let mut sum = Tensor::zeros([n * rows * cols, o], x[0].dtype());
        for (a, b) in (0..kh).flat_map(|a| (0..kw).map(move |b| (a, b))) {
            let seen = along(&along(&padded, 0, a, rows), 1, b, cols).narrow(3, group * i, i);
            let matrix = x[1].narrow(0, group * o, o).narrow(2, a, 1).narrow(3, b, 1).reshape([o, i]);
            sum = sum + seen.reshape([n * rows * cols, i]).matmul(&matrix.transpose(0, 1));
        }
        groups.push(sum.reshape([n, rows, cols, o]));
    }
    let y = Tensor::concat(&groups.iter().collect::<Vec<_>>(), 3);
    if let Some(bias) = x.get(2) { y.add(bias) } else { y }
}

impl Tensor {
    /// Convolution of this map [n, h, w, in] with `weight` [out, in / groups, kh, kw] and `bias` `[out]`.
    #[track_caller]
    pub fn conv2d(&self, weight: &Tensor, bias: Option<&Tensor>, options: Conv2d) -> Tensor {
        let mut inputs = vec![self, weight];
        inputs.extend(bias);
        apply(options, &inputs)
    }
}

crate::check_ops!(Conv2d);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::distance;
    use crate::rng::Rng;

    /// Value and gradients are those, in f64, of numbers that were rounded.
    #[test]
    fn maps_in_bf16_are_multiplied_as_such() {
        let mut g = Gen::new(9, 9);
        for (input, output, kernel, stride) in
            [(3, 8, 7, 2), (32, 40, 1, 1), (32, 40, 1, 2), (33, 16, 3, 1), (32, 33, 3, 2), (256, 64, 3, 1)]
        {
            let op = Conv2d::new(stride, kernel / 2);
            let single = |g: &mut Gen, dims: [usize; 4]| g.tensor(dims).to_dtype(DType::F32);
            let x = single(&mut g, [2, 9, 11, input]).to_dtype(DType::BF16).trainable();
            let w = single(&mut g, [output, input, kernel, kernel]).trainable();
            let bias = g.tensor([output]).to_dtype(DType::F32).trainable();
            let y = x.conv2d(&w, Some(&bias), op);
            let (value, dy) = (y.detach(), Tensor::randn(*y.dims(), DType::F32, &mut Rng::new(1, 1)));
            let grads = crate::backward_with(vec![(y, dy.clone())]);
            let exact = |t: &Tensor| t.detach().to_dtype(DType::BF16).to_dtype(DType::F64).trainable();
            let (x64, w64, b64) = (exact(&x), exact(&w), bias.detach().to_dtype(DType::F64));
            let y64 = x64.conv2d(&w64, Some(&b64), op);
            let exact_value = y64.detach();
            let exact_grads = crate::backward_with(vec![(y64, exact(&dy).detach())]);
            for (ours, exact) in [
                (&value, &exact_value),
                (grads.get(&x).unwrap(), exact_grads.get(&x64).unwrap()),
                (grads.get(&w).unwrap(), exact_grads.get(&w64).unwrap()),
            ] {
                assert_eq!((ours.dtype(), ours.dims()), (DType::F32, exact.dims()));
                let off = distance::relative(&ours.to_f64_vec(), &exact.to_f64_vec(), f64::MIN_POSITIVE);
                assert!(off <= 2e-6, "{input} to {output}, {kernel} by {kernel}: {off:e} apart");
            }
        }
    }

    /// Stored in f16, the bits of its values in f32; in bf16, beside an x that is rounded to it too, those but for the order of sums. A plan has the
    /// eager bits.
    #[test]
    fn a_weight_stored_in_half_computes_as_its_f32_values() {
        use crate::plan::Plan;
        let mut g = Gen::new(12, 9);
        for (input, output, kernel, stride, groups) in [
            (3, 8, 7, 2, 1),
            (32, 40, 1, 1, 1),
            (32, 40, 1, 2, 1),
            (66, 32, 3, 1, 2),
            (6, 6, 3, 1, 6),
            (33, 17, 3, 2, 1),
        ] {
            for dtype in [DType::BF16, DType::F16] {
                let op = Conv2d { groups, ..Conv2d::new(stride, kernel / 2) };
                let x = g.tensor([2, 9, 11, input]).to_dtype(dtype).to_dtype(DType::F32).trainable();
                let w = g.tensor([output, input / groups, kernel, kernel]).to_dtype(dtype);
                let bias = g.tensor([output]).to_dtype(dtype);
                let run = |w: &Tensor, bias: &Tensor| {
                    let y = x.conv2d(w, Some(bias), op);
                    let value = y.to_vec::<f32>();
                    (value, y.sum_all().backward().get(&x).unwrap().to_vec::<f32>())
                };
                let (ours, wide) = (run(&w, &bias), run(&w.to_dtype(DType::F32), &bias.to_dtype(DType::F32)));
                let bound = if dtype == DType::F16 { 0.0 } else { 2e-6 };
                let off = distance::relative(&ours.0, &wide.0, 1.0);
                assert!(off <= bound, "{dtype}, {input} to {output}: {off:e} apart");
                assert_eq!(ours.1, wide.1);
                // Numbers that are not of that type before.
                let (x, residual) = (g.tensor([2, 9, 11, input]).to_dtype(DType::F32), x.conv2d(&w, None, op).detach());
                let f = |x: &[Tensor]| vec![x[0].conv2d(&w, Some(&bias), op).add(&residual).relu()];
                let (plan, _) = Plan::new(std::slice::from_ref(&x), f);
                let [planned, eager] = [plan.run(std::slice::from_ref(&x)), f(std::slice::from_ref(&x))];
                assert_eq!(planned[0].to_vec::<f32>(), eager[0].to_vec::<f32>(), "{dtype}, {input} to {output}");
            }
        }
    }

    #[test]
    #[should_panic(expected = "conv2d: a weight stored as bf16 has no gradient")]
    fn a_weight_stored_in_half_refuses_its_gradient() {
        let weight = Tensor::full([2, 3, 1, 1], 1.0, DType::BF16).trainable();
        Tensor::zeros([1, 4, 4, 3], DType::F32).conv2d(&weight, None, Conv2d::default()).sum_all().backward();
    }
}
