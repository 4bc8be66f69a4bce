//! Matrix products.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use kernels_cpu::float::as_f32_mut;
use kernels_cpu::gemm::{self, Finish, Mat, Numbers, Packed, Right};
use kernels_cpu::map::{self, Saved as Needs, Unary};
#[cfg(feature = "vulkan")]
use kernels_gpu::ops::Gemm;

use crate::buffer::count_scratch;
#[cfg(feature = "vulkan")]
use crate::device::{Gpu, Operand};
use crate::dtype::{DType, Element};
use crate::for_float;
use crate::gradcheck::{Case, Gen};
use crate::layout::Dims;
use crate::op::{Meta, Op, Output, Saved, Saves, apply};
use crate::plan::{Packs, Prepared};
use crate::tensor::Tensor;

use super::product::{Multiplies, MultiplyRounded, Product};

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

/// Matrices [.., rows, cols] of a tensor as [b0, b1, rows, cols], stretched to the batch; `None` where there are more dimensions.
#[cfg(feature = "vulkan")]
pub(super) fn matrices(on: &Gpu, x: &Tensor, batch: &[usize]) -> Option<Operand> {
    as_matrices(on.operand(x)?, batch)
}

#[cfg(feature = "vulkan")]
fn as_matrices(x: Operand, batch: &[usize]) -> Option<Operand> {
    let (ones, dims) = (Dims::new(&[1; 2][..2usize.checked_sub(batch.len())?]), x.layout().dims());
    let dims = ones.followed_by(batch).followed_by(&dims[dims.len() - 2..]);
    Some(x.seen(x.layout().broadcast_to(dims)))
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

    #[cfg(feature = "vulkan")]
    fn gpu(&self, on: &Gpu, x: &[&Tensor], out: Meta) -> Option<Output> {
        let batch = &out.dims[..out.dims.len() - 2];
        let (a, b) = (matrices(on, x[0], batch)?, matrices(on, x[1], batch)?);
        on.output(out, |c| {
            let (a, b) = (a.view(), b.view());
            let c = Flat::new(c, [a.dims[0], a.dims[1], a.dims[2], b.dims[3]]);
            on.kernels().gemm(&Gemm::new(a, b, c.view()))
        })
    }

    fn flops(&self, x: &[Meta], out: Meta) -> u64 {
        2 * (out.dims.numel() * x[0].dims[x[0].dims.len() - 1]) as u64
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

/// A contiguous output as matrices [b0, b1, m, n].
#[cfg(feature = "vulkan")]
struct Flat<'a> {
    view: kernels_gpu::View<'a>,
    dims: [usize; 4],
    strides: [isize; 4],
}

#[cfg(feature = "vulkan")]
impl<'a> Flat<'a> {
    fn new(view: kernels_gpu::View<'a>, dims: [usize; 4]) -> Self {
        let strides = [dims[1] * dims[2] * dims[3], dims[2] * dims[3], dims[3], 1].map(|s| s as isize);
        Self { view, dims, strides }
    }

    fn view(&self) -> kernels_gpu::View<'_> {
        kernels_gpu::View { dims: &self.dims, strides: &self.strides, ..self.view }
    }
}

/// Whether a weight of one type serves activations of another: the same type, half stored beside f32, or f32 beside what was rounded to bf16.
pub(super) fn weight_fits(weight: DType, activations: DType) -> bool {
    match activations {
        DType::F32 => weight == DType::F32 || is_half(weight),
        DType::BF16 => matches!(weight, DType::F32 | DType::BF16),
        _ => weight == activations,
    }
}

/// The type of sums of products with activations of a type.
pub(crate) fn sums(activations: DType) -> DType {
    if activations == DType::BF16 { DType::F32 } else { activations }
}

/// C = act(A B + bias) for matrices of f32 and bf16, all rounded to bf16.
fn multiply_rounded(a: &Tensor, b: &Tensor, finish: Finish<'_, f32>, c: &mut [f32]) {
    let n = b.dims()[1].max(1);
    match [a.dtype(), b.dtype()] {
        [DType::BF16, DType::BF16] => {
            gemm::multiply_bf16(matrix::<bf16>(a, 0), matrix::<bf16>(b, 0), c, n, finish, true)
        }
        [DType::BF16, _] => gemm::multiply_bf16(matrix::<bf16>(a, 0), matrix::<f32>(b, 0), c, n, finish, true),
        [_, DType::BF16] => gemm::multiply_bf16(matrix::<f32>(a, 0), matrix::<bf16>(b, 0), c, n, finish, true),
        _ => gemm::multiply_bf16(matrix::<f32>(a, 0), matrix::<f32>(b, 0), c, n, finish, true),
    }
}

/// A B for matrices of f32 and bf16, all rounded to bf16.
fn product_rounded(a: &Tensor, b: &Tensor) -> Tensor {
    let [m, k, n] = [a.dims()[0], a.dims()[1], b.dims()[1]];
    #[cfg(feature = "vulkan")]
    if let Some(c) = a.device().and_then(|on| rounded_on(on, a, b)) {
        return c;
    }
    count_scratch(|| gemm::bf16_bytes([m, k, n]));
    Tensor::write([m, n], |c| multiply_rounded(a, b, Finish::default(), c))
}

#[cfg(feature = "vulkan")]
fn rounded_on(on: &Gpu, a: &Tensor, b: &Tensor) -> Option<Tensor> {
    let [m, n] = [a.dims()[0], b.dims()[1]];
    let (a, b) = (a.converted(DType::BF16), b.converted(DType::BF16));
    let (a, b) = (as_matrices(on.stored(&a)?, &[])?, as_matrices(on.stored(&b)?, &[])?);
    on.write(Meta::new([m, n], DType::F32), |c| {
        let c = Flat::new(c, [1, 1, m, n]);
        on.kernels().gemm(&Gemm::new(a.view(), b.view(), c.view()))
    })
}

/// Whether numbers are stored in 16 bits.
pub(crate) fn is_half(dtype: DType) -> bool {
    matches!(dtype, DType::BF16 | DType::F16)
}

/// A weight stored in half as f32, which is what arithmetic is done in; any other as it is.
pub(super) fn widened(weight: &Tensor) -> Tensor {
    if !is_half(weight.dtype()) {
        return weight.detach();
    }
    let packed = weight.packed();
    Tensor::write(*weight.dims(), |w| match packed.dtype() {
        DType::BF16 => gemm::widen(packed.as_slice(), w),
        _ => packed.as_slice::<f16>().convert_to_f32_slice(w),
    })
}

/// Refuses the gradient of a weight that is stored in half.
pub(super) fn check_trains(op: &str, weight: DType) {
    assert!(!is_half(weight), "{op}: a weight stored as {weight} has no gradient; convert it to f32 to train it");
}

/// What a weight is multiplied as.
fn numbers(weight: DType) -> Numbers {
    match weight {
        DType::BF16 => Numbers::Bf16,
        DType::I8 => Numbers::Int8,
        _ => Numbers::F32,
    }
}

/// How a weight [out, in] of f32 or half is packed, by which it can be kept in a file. `None`: levels, whose scales are beside them.
pub(crate) fn keeps(weight: &Tensor) -> Option<Numbers> {
    Some(numbers(weight.dtype())).filter(|&numbers| numbers != Numbers::Int8 && weight.rank() == 2)
}

/// A weight [out, in] beside an x of f32, as the kernels read it.
pub(crate) fn packed(weight: &Tensor, scale: Option<&Tensor>) -> Packed {
    match numbers(weight.dtype()) {
        Numbers::F32 => Packed::new(matrix(&widened(weight), 0).t()),
        Numbers::Bf16 => Packed::bf16(matrix(weight, 0).t()),
        Numbers::Int8 => Packed::int8(matrix(weight, 0).t(), scale.expect("beside levels").packed().as_slice()),
    }
}

/// y = act(x W^T + b) for x [.., in], W [out, in] and b `[out]`: one matrix product, the activation on its rows. Beside an x of f32, W and b may be
/// stored in half; they are then not trained. With W in bf16 the numbers of x are rounded to bf16 for the product, whose sums are f32. With x in bf16 W
/// is rounded so, and y and all gradients are f32, those of products of what is rounded: of dy too. With W in i8
/// its scales `[out]` come after it: they are levels, `W[i, j] = scale[i] level`, the rows of x become levels too, and there is no derivative.
pub struct Linear {
    /// Applied last.
    pub act: Option<Unary>,
}

impl Linear {
    /// Of inputs x, W, the scales of levels, b: the scales and b, where they are.
    fn rest<T>(x: &[T], weight: DType) -> [Option<&T>; 2] {
        if weight == DType::I8 { [x.get(2), x.get(3)] } else { [None, x.get(2)] }
    }
}

impl Op for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn shape(&self, x: &[Meta]) -> Meta {
        let (d, w) = (x[0].dims, x[1].dims);
        let levels = x[1].dtype == DType::I8 && x[0].dtype == DType::F32;
        let [scale, bias] = Self::rest(x, x[1].dtype);
        let fits = !d.is_empty() && w.len() == 2 && d[d.len() - 1] == w[1];
        let types = (levels || weight_fits(x[1].dtype, x[0].dtype)) && x.len() <= 3 + usize::from(levels);
        let scaled = !levels || scale.is_some_and(|s| s.dims[..] == w[..1] && s.dtype == DType::F32);
        let biased = bias.is_none_or(|b| b.dims[..] == w[..1] && weight_fits(b.dtype, x[0].dtype));
        assert!(fits && types && scaled && biased, "linear: {x:?}");
        Meta { dims: d.with(d.len() - 1, w[0]), dtype: sums(x[0].dtype) }
    }

    fn cpu(&self, x: &[&Tensor], out: Meta) -> Output {
        let [scale, bias] = Self::rest(x, x[1].dtype());
        let bias = bias.map(|b| widened(b).packed());
        let rounded = x[0].dtype() == DType::BF16;
        let (rows, narrow) = (rows_of(x[0]), !rounded && numbers(x[1].dtype()) != Numbers::F32);
        let w = &if narrow || rounded { x[1].detach() } else { widened(x[1]) };
        if rounded {
            count_scratch(|| gemm::bf16_bytes([rows.dims()[0], rows.dims()[1], w.dims()[0]]));
        }
        // The derivative needs the value before the activation.
        let apart = self.act.filter(|act| act.saves() == Needs::Input && x.iter().any(|x| x.is_tracked()));
        let act = self.act.filter(|_| apart.is_none());
        for_float!("linear", out.dtype, F => {
            let product = Tensor::write(out.dims, |z: &mut [F]| {
                if rounded {
                    let bias = bias.as_ref().map(|b| b.as_slice());
                    return multiply_rounded(&rows, &w.transpose(0, 1), Finish { bias, residual: None, act }, as_f32_mut(z).expect("sums of bf16"));
                }
                let finish = Finish { bias: bias.as_ref().map(|b| b.as_slice::<F>()), residual: None, act };
                let packed = narrow.then(|| packed(w, scale.copied()));
                let right = packed.as_ref().map_or_else(|| Right::Loose(matrix::<F>(w, 0).t()), Right::Packed);
                gemm::multiply(matrix(&rows, 0), right, z, w.dims()[0].max(1), finish, true);
            });
            match apart {
                None => product.into(),
                Some(act) => {
                    let value = Tensor::write(out.dims, |y: &mut [F]| map::map(act, product.as_slice(), y));
                    Output { value, aux: vec![product] }
                }
            }
        })
    }

    #[cfg(feature = "vulkan")]
    fn gpu(&self, on: &Gpu, x: &[&Tensor], out: Meta) -> Option<Output> {
        if x[1].dtype() == DType::I8 {
            return None;
        }
        let rows = as_matrices(on.stored(&rows_of(&x[0].to_device(on)))?, &[])?;
        // The same numbers on every device.
        let weight = if x[0].dtype() == DType::BF16 { x[1].converted(DType::BF16) } else { x[1].detach() };
        let weight = as_matrices(on.stored(&weight.transpose(0, 1))?, &[])?;
        let bias = match x.get(2) {
            Some(bias) => Some(on.packed(&widened(bias))?),
            None => None,
        };
        let apart = self.act.filter(|act| act.saves() == Needs::Input && x.iter().any(|x| x.is_tracked()));
        let product = on.write(out, |c| {
            let (c, bias) =
                (Flat::new(c, [1, 1, rows.layout().dims()[2], x[1].dims()[0]]), bias.as_ref().map(Operand::view));
            let act = self.act.filter(|_| apart.is_none());
            on.kernels().gemm(&Gemm { bias, act, ..Gemm::new(rows.view(), weight.view(), c.view()) })
        })?;
        match apart {
            None => Some(product.into()),
            Some(act) => {
                let value = super::unary::Map(act).gpu(on, &[&product], out)?.value;
                Some(Output { value, aux: vec![product] })
            }
        }
    }

    fn prepare(&self, x: &[Meta], constants: &[Option<&Tensor>], packs: &mut Packs) -> Option<Box<dyn Prepared>> {
        // Numbers that were rounded are multiplied by such.
        let halves = x[1].dtype == DType::BF16;
        if x[0].dtype != DType::F32 && (x[0].dtype != DType::BF16 || !halves) {
            return None;
        }
        let (mut constants, mut scale) = (constants.to_vec(), None);
        if x[1].dtype == DType::I8 {
            scale = Some(constants.remove(2)?);
        }
        let kept = constants[1].is_some_and(|weight| packs.want(weight));
        let bytes = if kept { 0 } else { numbers(x[1].dtype).packed_bytes([x[1].dims[1], x[1].dims[0]]) };
        Product::prepare(&constants, self.act, rows_of, (bytes, halves), |weight| {
            let weight = packs.get(weight, || packed(weight, scale));
            let (same, n) = (weight.clone(), weight.size()[1].max(1));
            let multiply = move |rows: &Tensor, finish: Finish<'_, f32>, y: &mut [f32]| match rows.dtype() {
                DType::BF16 => gemm::multiply_packed(matrix::<bf16>(rows, 0), &same, y, n, finish),
                _ => gemm::multiply(matrix(rows, 0), Right::Packed(&same), y, n, finish, true),
            };
            let rounded: Box<MultiplyRounded> = Box::new(move |rows, finish, y| match rows.dtype() {
                DType::BF16 => gemm::multiply_to_bf16(matrix::<bf16>(rows, 0), &weight, y, n, finish),
                _ => gemm::multiply_to_bf16(matrix::<f32>(rows, 0), &weight, y, n, finish),
            });
            Some(Multiplies { rounded: halves.then_some(rounded), ..Multiplies::new(multiply) })
        })
    }

    fn flops(&self, x: &[Meta], out: Meta) -> u64 {
        2 * (out.dims.numel() * x[1].dims[1]) as u64
    }

    fn saves(&self, needs: &[bool]) -> Saves {
        let inputs = Saves::input_if(0, needs[1]).and(Saves::input_if(1, needs[0]));
        if self.act.is_some_and(|act| act.saves() == Needs::Output) { inputs.and(Saves::OUTPUT) } else { inputs }
    }

    fn vjp(&self, saved: &Saved, dy: &Tensor) -> Vec<Option<Tensor>> {
        assert!(saved.meta(1).dtype != DType::I8, "linear: a weight of levels has no derivative; convert it to f32");
        (1..saved.count()).filter(|&i| saved.needs(i)).for_each(|i| check_trains("linear", saved.meta(i).dtype));
        let dy = dy.packed();
        let dz = match self.act {
            None => dy,
            Some(act) => {
                let kept = match act.saves() {
                    Needs::Input => saved.aux(0),
                    Needs::Output => saved.output(),
                    Needs::Nothing => &dy,
                };
                super::unary::backward(act, kept, &dy)
            }
        };
        let rows = rows_of(&dz);
        let rounded = saved.meta(0).dtype == DType::BF16;
        // Two products have it.
        let operand = if rounded { rows.converted(DType::BF16) } else { rows.clone() };
        let multiply = |a: &Tensor, b: &Tensor| if rounded { product_rounded(a, b) } else { a.matmul(&widened(b)) };
        let mut gradients = vec![
            saved.want(0, || multiply(&operand, saved.input(1)).reshape(saved.dims(0))),
            saved.want(1, || multiply(&operand.transpose(0, 1), &rows_of(saved.input(0)))),
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

    /// act(x W^T + b) for a weight of int8: `levels` [out, in], their `scale` `[out]`, and `bias` `[out]`.
    #[track_caller]
    pub fn linear_int8(&self, levels: &Tensor, scale: &Tensor, bias: Option<&Tensor>, act: Option<Unary>) -> Tensor {
        let mut inputs = vec![self, levels, scale];
        inputs.extend(bias);
        apply(Linear { act }, &inputs)
    }

    /// Sum over the dimension before the last `after` - 1.
    fn sum_of_inner(&self, after: usize) -> Tensor {
        self.sum(&[self.rank() - after], false)
    }
}

crate::check_ops!(Matmul, Linear);

#[cfg(test)]
mod tests;
