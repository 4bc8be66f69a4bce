//! Elementwise functions of two tensors, with broadcasting.

use kernels_cpu::zip::{self, Binary, Compare as Comparison};

#[cfg(feature = "vulkan")]
use crate::device::Gpu;
use crate::dtype::DType;
use crate::for_float;
use crate::gradcheck::{Case, Gen};
use crate::layout::Dims;
use crate::op::{Meta, Op, Output, Saved, Saves, apply, no_derivative};
use crate::plan::Role;
use crate::tensor::Tensor;

/// y = f(a, b) for the functions of [`Binary`].
pub struct Zip(pub Binary);

#[track_caller]
fn broadcast(op: &str, a: Meta, b: Meta) -> Dims {
    assert_eq!(a.dtype, b.dtype, "{op}: element types differ, dims {:?} and {:?}", a.dims, b.dims);
    a.dims.broadcast(&b.dims).unwrap_or_else(|| panic!("{op}: dims {:?} and {:?} do not broadcast", a.dims, b.dims))
}

impl Op for Zip {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn shape(&self, x: &[Meta]) -> Meta {
        Meta { dims: broadcast(self.name(), x[0], x[1]), dtype: x[0].dtype }
    }

    fn cpu(&self, x: &[&Tensor], out: Meta) -> Output {
        let [a, b] = [0, 1].map(|i| x[i].with_layout(x[i].layout().broadcast_to(out.dims)));
        for_float!(self.name(), out.dtype, F => Tensor::write(out.dims, |y: &mut [F]| {
            zip::zip(self.0, &out.dims, a.strided(), b.strided(), y)
        }))
        .into()
    }

    #[cfg(feature = "vulkan")]
    fn gpu(&self, on: &Gpu, x: &[&Tensor], out: Meta) -> Option<Output> {
        let [a, b] = [0, 1].map(|i| on.operand(&x[i].with_layout(x[i].layout().broadcast_to(out.dims))));
        let (a, b) = (a?, b?);
        on.output(out, |y| on.kernels().zip(self.0, a.view(), b.view(), y))
    }

    fn role(&self) -> Role {
        if self.0 == Binary::Add { Role::Add } else { Role::Other }
    }

    fn saves(&self, needs: &[bool]) -> Saves {
        match self.0 {
            Binary::Add | Binary::Sub => Saves::NOTHING,
            Binary::Mul => Saves::input_if(0, needs[1]).and(Saves::input_if(1, needs[0])),
            Binary::Div => Saves::input_if(0, needs[1]).and(Saves::input(1)),
            Binary::Min | Binary::Max => Saves::INPUTS,
            Binary::Pow => Saves::INPUTS.and(Saves::OUTPUT),
        }
    }

    fn vjp(&self, saved: &Saved, dy: &Tensor) -> Vec<Option<Tensor>> {
        let (a, b) = (|| saved.input(0), || saved.input(1));
        match self.0 {
            Binary::Add => vec![Some(dy.clone()), Some(dy.clone())],
            Binary::Sub => vec![Some(dy.clone()), saved.want(1, || dy.neg())],
            Binary::Mul => vec![saved.want(0, || dy.mul(b())), saved.want(1, || dy.mul(a()))],
            // d(a/b) = da / b - a / b^2 db
            Binary::Div => vec![saved.want(0, || dy.div(b())), saved.want(1, || dy.mul(a()).div(&b().square()).neg())],
            // Ties go to the first input, so that the gradients sum to dy.
            Binary::Min => self.choose(saved, dy, &a().le(b())),
            Binary::Max => self.choose(saved, dy, &a().ge(b())),
            // d(a^b) = b a^(b-1) da + a^b ln a db
            Binary::Pow => vec![
                saved.want(0, || dy.mul(b()).mul(&a().pow(&b().affine(1.0, -1.0)))),
                saved.want(1, || dy.mul(saved.output()).mul(&a().log())),
            ],
        }
    }

    fn cases(g: &mut Gen) -> Case {
        let f = g.choose(Binary::ALL);
        let dims = g.dims(0, 3);
        let [da, db] = if g.rng.chance(0.5) { [dims, g.broadcastable(&dims)] } else { [g.broadcastable(&dims), dims] };
        let (a, b) = match f {
            Binary::Pow => (g.uniform(da, 0.3, 2.0), g.uniform(db, -2.0, 2.0)),
            Binary::Div => {
                (g.tensor(da), g.tensor_of(db, |rng| rng.range(0.4, 3.0) * if rng.chance(0.5) { 1.0 } else { -1.0 }))
            }
            // No two values of a and b are closer than 0.01.
            Binary::Min | Binary::Max => {
                let grid = |offset: f64| move |rng: &mut crate::rng::Rng| 0.04 * (rng.below(60) as f64 - 30.0) + offset;
                (g.tensor_of(da, grid(0.0)), g.tensor_of(db, grid(0.02)))
            }
            Binary::Add | Binary::Sub | Binary::Mul => (g.tensor(da), g.tensor(db)),
        };
        Case::new(vec![a, b], move |x| apply(Zip(f), &[&x[0], &x[1]]))
    }
}

impl Zip {
    fn choose(&self, saved: &Saved, dy: &Tensor, first: &Tensor) -> Vec<Option<Tensor>> {
        let zero = Tensor::full([], 0.0, dy.dtype());
        vec![saved.want(0, || first.select(dy, &zero)), saved.want(1, || first.select(&zero, dy))]
    }
}

/// y = 1 where the comparison holds, else 0, as u8.
pub struct Compare(pub Comparison);

impl Op for Compare {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn shape(&self, x: &[Meta]) -> Meta {
        Meta { dims: broadcast(self.name(), x[0], x[1]), dtype: DType::U8 }
    }

    fn cpu(&self, x: &[&Tensor], out: Meta) -> Output {
        let [a, b] = [0, 1].map(|i| x[i].with_layout(x[i].layout().broadcast_to(out.dims)));
        Tensor::write(out.dims, |y: &mut [u8]| match a.dtype() {
            DType::I64 => zip::compare(self.0, &out.dims, a.strided::<i64>(), b.strided::<i64>(), y),
            dtype => for_float!(self.name(), dtype, F => zip::compare(self.0, &out.dims, a.strided::<F>(), b.strided::<F>(), y)),
        })
        .into()
    }

    fn saves(&self, _: &[bool]) -> Saves {
        Saves::NOTHING
    }

    fn vjp(&self, _: &Saved, _: &Tensor) -> Vec<Option<Tensor>> {
        no_derivative(self.name())
    }

    fn cases(g: &mut Gen) -> Case {
        let f = g.choose(Comparison::ALL);
        let dims = g.dims(0, 3);
        let other = g.broadcastable(&dims);
        // Small integers, so that equality happens.
        let draw = |rng: &mut crate::rng::Rng| rng.below(3) as f64;
        let (a, b) = (g.tensor_of(dims, draw), g.tensor_of(other, draw));
        Case::new(vec![a, b], move |x| apply(Compare(f), &[&x[0], &x[1]])).without_derivative().equals(move |x| {
            let [a, b] = [0, 1].map(|i| x[i].broadcast_to(*x[0].dims()).to_f64_vec());
            let holds = |(a, b): (&f64, &f64)| match f {
                Comparison::Eq => a == b,
                Comparison::Ne => a != b,
                Comparison::Lt => a < b,
                Comparison::Le => a <= b,
                Comparison::Gt => a > b,
                Comparison::Ge => a >= b,
            };
            let y: Vec<u8> = a.iter().zip(&b).map(|pair| u8::from(holds(pair))).collect();
            Tensor::from_slice(&y, *x[0].dims())
        })
    }
}

/// y = a where the mask is not 0, else b. Inputs: mask u8, a, b.
pub struct Where;

impl Op for Where {
    fn name(&self) -> &'static str {
        "where"
    }

    fn shape(&self, x: &[Meta]) -> Meta {
        assert_eq!(x[0].dtype, DType::U8, "where: the mask");
        let dims = broadcast("where", x[1], x[2]);
        let dims =
            dims.broadcast(&x[0].dims).unwrap_or_else(|| panic!("where: a mask of {:?} for {dims:?}", x[0].dims));
        Meta { dims, dtype: x[1].dtype }
    }

    fn cpu(&self, x: &[&Tensor], out: Meta) -> Output {
        let [mask, a, b] = [0, 1, 2].map(|i| x[i].with_layout(x[i].layout().broadcast_to(out.dims)));
        for_float!("where", out.dtype, F => Tensor::write(out.dims, |y: &mut [F]| {
            zip::select(&out.dims, mask.strided(), a.strided(), b.strided(), y)
        }))
        .into()
    }

    fn saves(&self, _: &[bool]) -> Saves {
        Saves::input(0)
    }

    fn vjp(&self, saved: &Saved, dy: &Tensor) -> Vec<Option<Tensor>> {
        let (mask, zero) = (saved.input(0), Tensor::full([], 0.0, dy.dtype()));
        vec![None, saved.want(1, || mask.select(dy, &zero)), saved.want(2, || mask.select(&zero, dy))]
    }

    fn cases(g: &mut Gen) -> Case {
        let dims = g.dims(0, 3);
        let [dm, da, db] = [0, 1, 2].map(|_| g.broadcastable(&dims));
        let inputs = vec![g.mask(dm, 0.5), g.tensor(da), g.tensor(db)];
        // Where as arithmetic: m a + (1 - m) b.
        Case::new(inputs, |x| x[0].select(&x[1], &x[2])).equals(|x| {
            let m = x[0].to_dtype(x[1].dtype());
            m.mul(&x[1]).add(&m.affine(-1.0, 1.0).mul(&x[2]))
        })
    }
}

macro_rules! binary_methods {
    ($($(#[$doc:meta])* $name:ident $op:ident($kind:ident::$variant:ident);)*) => {
        /// Elementwise functions of two tensors; dims broadcast.
        impl Tensor {
            $($(#[$doc])* #[track_caller] pub fn $name(&self, other: &Tensor) -> Tensor { apply($op($kind::$variant), &[self, other]) })*
        }
    };
}

binary_methods! {
    /// a + b
    add Zip(Binary::Add);
    /// a - b
    sub Zip(Binary::Sub);
    /// a b
    mul Zip(Binary::Mul);
    /// a / b
    div Zip(Binary::Div);
    /// The smaller of a and b.
    minimum Zip(Binary::Min);
    /// The larger of a and b.
    maximum Zip(Binary::Max);
    /// a^b
    pow Zip(Binary::Pow);
    /// a == b, as u8
    eq Compare(Comparison::Eq);
    /// a != b, as u8
    ne Compare(Comparison::Ne);
    /// a < b, as u8
    lt Compare(Comparison::Lt);
    /// a <= b, as u8
    le Compare(Comparison::Le);
    /// a > b, as u8
    gt Compare(Comparison::Gt);
    /// a >= b, as u8
    ge Compare(Comparison::Ge);
}

impl Tensor {
    /// `a` where this u8 mask is not 0, else `b` (torch.where).
    #[track_caller]
    pub fn select(&self, a: &Tensor, b: &Tensor) -> Tensor {
        apply(Where, &[self, a, b])
    }

    /// The sum of two gradients, in place where nobody else holds this one.
    pub(crate) fn accumulated(mut self, other: &Tensor) -> Tensor {
        assert_eq!(self.dims(), other.dims(), "gradients of one tensor");
        if self.device().is_some() {
            return self.add(other);
        }
        let other = other.packed();
        let added = for_float!("accumulate", self.dtype(), F => {
            Tensor::update([&mut self], |[sum]: [&mut [F]; 1]| zip::add_assign(sum, other.as_slice()))
        });
        if added { self } else { self.add(&other) }
    }
}

macro_rules! operators {
    ($($trait:ident $method:ident;)*) => {$(
        impl std::ops::$trait<&Tensor> for &Tensor {
            type Output = Tensor;
            #[track_caller]
            fn $method(self, other: &Tensor) -> Tensor { Tensor::$method(self, other) }
        }
        impl std::ops::$trait<Tensor> for Tensor {
            type Output = Tensor;
            #[track_caller]
            fn $method(self, other: Tensor) -> Tensor { Tensor::$method(&self, &other) }
        }
        impl std::ops::$trait<&Tensor> for Tensor {
            type Output = Tensor;
            #[track_caller]
            fn $method(self, other: &Tensor) -> Tensor { Tensor::$method(&self, other) }
        }
    )*};
}

operators! {
    Add add;
    Sub sub;
    Mul mul;
    Div div;
}

impl std::ops::Mul<f64> for &Tensor {
    type Output = Tensor;
    fn mul(self, factor: f64) -> Tensor {
        self.affine(factor, 0.0)
    }
}

impl std::ops::Mul<f64> for Tensor {
    type Output = Tensor;
    fn mul(self, factor: f64) -> Tensor {
        self.affine(factor, 0.0)
    }
}

crate::check_ops!(Zip, Compare, Where);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accumulation_is_in_place_only_when_unshared() {
        let a = Tensor::from_slice(&[1.0, 2.0], [2]);
        let kept = a.clone();
        let sum = a.accumulated(&Tensor::from_slice(&[10.0, 20.0], [2]));
        assert_eq!((kept.to_vec::<f64>(), sum.to_vec::<f64>()), (vec![1.0, 2.0], vec![11.0, 22.0]));
        let before = sum.buffer().bytes().as_ptr();
        let sum = sum.accumulated(&kept);
        assert_eq!((sum.buffer().bytes().as_ptr(), sum.to_vec::<f64>()), (before, vec![12.0, 24.0]));
    }

    #[test]
    #[should_panic(expected = "add: dims [2, 3] and [4] do not broadcast")]
    fn dims_that_do_not_fit_are_told() {
        let _ = Tensor::zeros([2, 3], DType::F32) + Tensor::zeros([4], DType::F32);
    }
}
