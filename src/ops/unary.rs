//! Elementwise functions of one tensor.

use kernels_cpu::map::{self, Saved as Needs, Unary};
#[cfg(feature = "vulkan")]
use kernels_gpu::ops::Function;

#[cfg(feature = "vulkan")]
use crate::device::Gpu;
use crate::dtype::DType;
use crate::for_float;
use crate::gradcheck::{Case, Gen};
use crate::op::{Meta, Op, Output, Saved, Saves, apply};
use crate::plan::Role;
use crate::tensor::Tensor;

/// y = f(x) for the functions of [`Unary`], where formula and derivative are defined.
pub struct Map(pub Unary);

impl Op for Map {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn shape(&self, x: &[Meta]) -> Meta {
        x[0]
    }

    fn cpu(&self, x: &[&Tensor], out: Meta) -> Output {
        let x = x[0].packed();
        for_float!(self.name(), out.dtype, F => Tensor::write(out.dims, |y: &mut [F]| map::map(self.0, x.as_slice(), y))).into()
    }

    #[cfg(feature = "vulkan")]
    fn gpu(&self, on: &Gpu, x: &[&Tensor], out: Meta) -> Option<Output> {
        on_device(on, Function::Unary(self.0), x[0], out)
    }

    fn role(&self) -> Role {
        Role::Activation(self.0)
    }

    fn saves(&self, _: &[bool]) -> Saves {
        match self.0.saves() {
            Needs::Input => Saves::input(0),
            Needs::Output => Saves::OUTPUT,
            Needs::Nothing => Saves::NOTHING,
        }
    }

    fn vjp(&self, saved: &Saved, dy: &Tensor) -> Vec<Option<Tensor>> {
        let kept = match self.0.saves() {
            Needs::Input => saved.input(0),
            Needs::Output => saved.output(),
            Needs::Nothing => dy,
        };
        vec![Some(backward(self.0, kept, dy))]
    }

    fn cases(g: &mut Gen) -> Case {
        let f = g.choose(Unary::ALL);
        let dims = g.dims(0, 3);
        let x = match f {
            Unary::Log | Unary::Sqrt | Unary::Rsqrt => g.uniform(dims, 0.2, 3.0),
            Unary::Recip => g.tensor_of(dims, |rng| rng.range(0.3, 3.0) * if rng.chance(0.5) { 1.0 } else { -1.0 }),
            _ => g.away_from(dims, &[0.0]),
        };
        Case::new(vec![x], move |x| apply(Map(f), &[&x[0]]))
    }
}

/// f'(kept) dy, where dy lives.
pub(super) fn backward(f: Unary, kept: &Tensor, dy: &Tensor) -> Tensor {
    #[cfg(feature = "vulkan")]
    if let Some(dx) = dy.device().and_then(|on| backward_on(on, Function::Unary(f), kept, dy)) {
        return dx;
    }
    let (kept, dy) = (kept.packed(), dy.packed());
    for_float!(f.name(), dy.dtype(), F => Tensor::write(*dy.dims(), |dx: &mut [F]| {
        map::map_backward(f, kept.as_slice(), dy.as_slice(), dx)
    }))
}

#[cfg(feature = "vulkan")]
fn backward_on(on: &Gpu, f: Function, kept: &Tensor, dy: &Tensor) -> Option<Tensor> {
    let (kept, from) = (on.packed(kept)?, on.packed(dy)?);
    on.write(dy.meta(), |dx| on.kernels().map_backward(f, kept.view(), from.view(), dx))
}

#[cfg(feature = "vulkan")]
fn on_device(on: &Gpu, f: Function, x: &Tensor, out: Meta) -> Option<Output> {
    let x = on.operand(x)?;
    on.output(out, |y| on.kernels().map(f, x.view(), y))
}

/// y = a x + b with numbers a and b.
pub struct Affine {
    /// Factor.
    pub a: f64,
    /// Summand.
    pub b: f64,
}

impl Op for Affine {
    fn name(&self) -> &'static str {
        "affine"
    }

    fn shape(&self, x: &[Meta]) -> Meta {
        x[0]
    }

    fn cpu(&self, x: &[&Tensor], out: Meta) -> Output {
        let x = x[0].packed();
        for_float!("affine", out.dtype, F => Tensor::write(out.dims, |y: &mut [F]| map::scale_add(x.as_slice(), self.a as F, self.b as F, y))).into()
    }

    #[cfg(feature = "vulkan")]
    fn gpu(&self, on: &Gpu, x: &[&Tensor], out: Meta) -> Option<Output> {
        on_device(on, Function::Affine(self.a as f32, self.b as f32), x[0], out)
    }

    fn saves(&self, _: &[bool]) -> Saves {
        Saves::NOTHING
    }

    fn vjp(&self, _: &Saved, dy: &Tensor) -> Vec<Option<Tensor>> {
        vec![Some(dy.affine(self.a, 0.0))]
    }

    fn cases(g: &mut Gen) -> Case {
        let dims = g.dims(0, 3);
        let (a, b) = (g.rng.normal(), g.rng.normal());
        Case::new(vec![g.tensor(dims)], move |x| x[0].affine(a, b))
            .equals(move |x| x[0].mul(&Tensor::full([], a, x[0].dtype())).add(&Tensor::full([], b, x[0].dtype())))
    }
}

/// y = min(max(x, low), high). The derivative is 1 inside the bounds (ends included) and 0 outside, as torch has it.
pub struct Clamp {
    /// Lower bound.
    pub low: f64,
    /// Upper bound.
    pub high: f64,
}

impl Op for Clamp {
    fn name(&self) -> &'static str {
        "clamp"
    }

    fn shape(&self, x: &[Meta]) -> Meta {
        assert!(self.low <= self.high, "clamp: bounds {}..{}", self.low, self.high);
        x[0]
    }

    fn cpu(&self, x: &[&Tensor], out: Meta) -> Output {
        let x = x[0].packed();
        for_float!("clamp", out.dtype, F => Tensor::write(out.dims, |y: &mut [F]| map::clamp(x.as_slice(), self.low as F, self.high as F, y))).into()
    }

    #[cfg(feature = "vulkan")]
    fn gpu(&self, on: &Gpu, x: &[&Tensor], out: Meta) -> Option<Output> {
        on_device(on, Function::Clamp(self.low as f32, self.high as f32), x[0], out)
    }

    fn saves(&self, _: &[bool]) -> Saves {
        Saves::input(0)
    }

    fn vjp(&self, saved: &Saved, dy: &Tensor) -> Vec<Option<Tensor>> {
        let (x, dy) = (saved.input(0).packed(), dy.packed());
        vec![Some(for_float!("clamp", dy.dtype(), F => Tensor::write(*dy.dims(), |dx: &mut [F]| {
            map::clamp_backward(x.as_slice(), self.low as F, self.high as F, dy.as_slice(), dx)
        })))]
    }

    #[cfg(feature = "vulkan")]
    fn gpu_vjp(&self, on: &Gpu, saved: &Saved, dy: &Tensor) -> Option<Vec<Option<Tensor>>> {
        let clamp = Function::Clamp(self.low as f32, self.high as f32);
        Some(vec![Some(backward_on(on, clamp, saved.input(0), dy)?)])
    }

    fn cases(g: &mut Gen) -> Case {
        let dims = g.dims(0, 3);
        Case::new(vec![g.away_from(dims, &[-0.5, 0.75])], |x| x[0].clamp(-0.5, 0.75))
    }
}

/// y = x^p with a number p.
pub struct PowScalar(pub f64);

impl Op for PowScalar {
    fn name(&self) -> &'static str {
        "pow_scalar"
    }

    fn shape(&self, x: &[Meta]) -> Meta {
        x[0]
    }

    fn cpu(&self, x: &[&Tensor], out: Meta) -> Output {
        let x = x[0].packed();
        for_float!("pow_scalar", out.dtype, F => Tensor::write(out.dims, |y: &mut [F]| map::powf_scalar(x.as_slice(), self.0 as F, y))).into()
    }

    fn saves(&self, _: &[bool]) -> Saves {
        Saves::input(0)
    }

    fn vjp(&self, saved: &Saved, dy: &Tensor) -> Vec<Option<Tensor>> {
        // x^0 is constant, also where p x^(p-1) would be 0 * infinity.
        if self.0 == 0.0 {
            return vec![Some(dy.affine(0.0, 0.0))];
        }
        vec![Some(dy.mul(&saved.input(0).powf(self.0 - 1.0)).affine(self.0, 0.0))]
    }

    fn cases(g: &mut Gen) -> Case {
        let dims = g.dims(0, 3);
        let p = g.choose(&[-1.5, -1.0, 0.0, 0.5, 1.0, 2.0, 3.0, 2.5]);
        Case::new(vec![g.uniform(dims, 0.3, 2.0)], move |x| x[0].powf(p))
    }
}

/// Another element type. Gradients flow between float types only.
pub struct Cast(pub DType);

impl Op for Cast {
    fn name(&self) -> &'static str {
        "cast"
    }

    fn shape(&self, x: &[Meta]) -> Meta {
        Meta { dtype: self.0, ..x[0] }
    }

    fn cpu(&self, x: &[&Tensor], out: Meta) -> Output {
        x[0].converted(out.dtype).into()
    }

    fn role(&self) -> Role {
        Role::Cast(self.0)
    }

    fn saves(&self, _: &[bool]) -> Saves {
        Saves::NOTHING
    }

    fn vjp(&self, saved: &Saved, dy: &Tensor) -> Vec<Option<Tensor>> {
        assert!(self.0.is_float(), "cast to {} has no derivative", self.0);
        vec![Some(dy.converted(saved.meta(0).dtype))]
    }

    fn cases(g: &mut Gen) -> Case {
        let (dims, dtype) = (g.dims(0, 3), g.choose(&[DType::F32, DType::F64]));
        // Types of 16 bits have a test of their own: near the middle of two of their numbers, a gradient in f32 and one in f64 round apart.
        let x = g.tensor_of(dims, |rng| f64::from(rng.normal() as f32));
        // There and back, so that gradients of the inputs' type flow through both.
        Case::new(vec![x], move |x| x[0].to_dtype(dtype).to_dtype(x[0].dtype())).rounding_to(dtype)
    }
}

macro_rules! unary_methods {
    ($($(#[$doc:meta])* $name:ident $kind:ident;)*) => {
        /// Elementwise functions.
        impl Tensor {
            $($(#[$doc])* #[track_caller] pub fn $name(&self) -> Tensor { apply(Map(Unary::$kind), &[self]) })*
        }
    };
}

unary_methods! {
    /// -x
    neg Neg;
    /// |x|
    abs Abs;
    /// e^x
    exp Exp;
    /// Natural logarithm.
    log Log;
    /// Square root.
    sqrt Sqrt;
    /// 1 / sqrt(x)
    rsqrt Rsqrt;
    /// 1 / x
    recip Recip;
    /// x^2
    square Square;
    /// Hyperbolic tangent.
    tanh Tanh;
    /// Error function.
    erf Erf;
    /// x (1 + erf(x / sqrt 2)) / 2
    gelu Gelu;
    /// GELU's tanh approximation.
    gelu_tanh GeluTanh;
    /// x sigmoid(1.702 x), CLIP's GELU.
    quick_gelu QuickGelu;
    /// max(x, 0)
    relu Relu;
    /// 1 / (1 + e^-x)
    sigmoid Sigmoid;
    /// x sigmoid(x)
    silu Silu;
}

impl Tensor {
    /// a x + b
    #[track_caller]
    pub fn affine(&self, a: f64, b: f64) -> Tensor {
        apply(Affine { a, b }, &[self])
    }

    /// min(max(x, low), high)
    #[track_caller]
    pub fn clamp(&self, low: f64, high: f64) -> Tensor {
        apply(Clamp { low, high }, &[self])
    }

    /// x^p
    #[track_caller]
    pub fn powf(&self, p: f64) -> Tensor {
        apply(PowScalar(p), &[self])
    }

    /// The values in another element type: floats round to nearest, integers truncate and saturate.
    #[track_caller]
    pub fn to_dtype(&self, dtype: DType) -> Tensor {
        if dtype == self.dtype() { self.clone() } else { apply(Cast(dtype), &[self]) }
    }
}

crate::check_ops!(Map, Affine, Clamp, PowScalar, Cast);

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;
    use crate::dtype::Element;

    #[test]
    fn casts_round_and_carry_gradients() {
        let x = Tensor::from_slice(&[1.0 + 1e-9, -2.5, 300.7], [3]).trainable();
        let y = x.to_dtype(DType::F32);
        assert_eq!(y.to_vec::<f32>(), [1.0, -2.5, 300.7]);
        assert_eq!(x.detach().to_dtype(DType::U8).to_vec::<u8>(), [1, 0, 255]);
        assert_eq!(x.detach().to_dtype(DType::I64).to_vec::<i64>(), [1, -2, 300]);
        let grads = y.square().sum(&[0], false).backward();
        assert_eq!(grads.get(&x).unwrap().dtype(), DType::F64);
        assert_eq!(grads.get(&x).unwrap().to_vec::<f64>(), [2.0, -5.0, f64::from(2.0 * 300.7f32)]);
    }

    /// Of every half, and of the f32 on both sides of where rounding changes. Of f64 those alone that are halves: of others the crate drops the
    /// lower 32 bits before it rounds, or rounds twice.
    #[test]
    fn casts_of_halves_are_those_of_their_crate() {
        halves_are(bf16::from_bits, bf16::to_f32, bf16::from_f32);
        halves_are(f16::from_bits, f16::to_f32, f16::from_f32);
    }

    fn halves_are<H: Element>(of_bits: fn(u16) -> H, wide: fn(H) -> f32, nearest: fn(f32) -> H) {
        let halves: Vec<H> = (0..=u16::MAX).map(of_bits).collect();
        let exact: Vec<f32> = halves.iter().map(|&x| wide(x)).collect();
        let between = exact.windows(2).map(|x| 0.5 * x[0] + 0.5 * x[1]);
        // From where on they are infinite.
        let last = [f32::from_bits(0x7f7f_8000), 65520.0, -65520.0];
        let single: Vec<f32> = between.chain(last).flat_map(|x| [x, x.next_up(), x.next_down()]).collect();
        let rounded: Vec<f32> = single.iter().map(|&x| wide(nearest(x))).collect();
        let (halves, single) = (Tensor::from_slice(&halves, [1 << 16]), Tensor::from_slice(&single, [single.len()]));
        for (x, dtype, expected) in [
            (&halves, DType::F32, &exact),
            (&halves, DType::F64, &exact),
            (&halves.to_dtype(DType::F64), H::DTYPE, &exact),
            (&single, H::DTYPE, &rounded),
        ] {
            let y = x.to_dtype(dtype).to_f64_vec();
            let same = |(a, &b): (&f64, &f32)| a.to_bits() == f64::from(b).to_bits() || a.is_nan() && b.is_nan();
            let other = y.iter().zip(expected).position(|pair| !same(pair));
            assert_eq!((y.len(), other), (expected.len(), None), "{} to {dtype}", x.dtype());
        }
    }
}
