//! Sums and other reductions over dimensions.

#[cfg(feature = "vulkan")]
use kernels_cpu::conv::Window;
use kernels_cpu::reduce;
#[cfg(feature = "vulkan")]
use kernels_gpu::ops::Softmax;

#[cfg(feature = "vulkan")]
use crate::device::Gpu;
use crate::dtype::DType;
use crate::for_float;
use crate::gradcheck::{Case, Gen};
use crate::layout::Dims;
use crate::op::{Meta, Op, Output, Saved, Saves, apply, apply_aux, no_derivative};
use crate::tensor::Tensor;

/// `x` as contiguous [outer, n, inner] around dimension `dim`.
fn around(x: &Tensor, dim: usize) -> (Tensor, [usize; 3]) {
    let dims = x.dims();
    (x.packed(), [dims[..dim].iter().product(), dims[dim], dims[dim + 1..].iter().product()])
}

/// Sum over some dimensions, which stay with size 1.
pub struct Sum(pub Vec<usize>);

impl Sum {
    /// Sums one dimension after the other by `sum`, which gets a contiguous tensor, the sum's dims and sizes around what is summed.
    /// Innermost first; neighbouring dimensions that are both summed are one.
    fn fold(&self, mut value: Tensor, sum: impl Fn(&Tensor, Dims, [usize; 3]) -> Option<Tensor>) -> Option<Tensor> {
        let mut summed = self.0.clone();
        summed.sort_unstable();
        while let Some(last) = summed.pop() {
            let mut first = last;
            while first > 0 && summed.last() == Some(&(first - 1)) {
                first = summed.pop().expect("just seen");
            }
            let dims = *value.dims();
            let around = [&dims[..first], &dims[first..=last], &dims[last + 1..]].map(|d| d.iter().product::<usize>());
            value = sum(&value, (first..=last).fold(dims, |dims, k| dims.with(k, 1)), around)?;
        }
        Some(value)
    }
}

impl Op for Sum {
    fn name(&self) -> &'static str {
        "sum"
    }

    fn shape(&self, x: &[Meta]) -> Meta {
        Meta { dims: self.0.iter().fold(x[0].dims, |dims, &k| dims.with(k, 1)), ..x[0] }
    }

    fn cpu(&self, x: &[&Tensor], out: Meta) -> Output {
        let sum = |x: &Tensor, kept, around| {
            Some(
                for_float!("sum", out.dtype, F => Tensor::write(kept, |y: &mut [F]| reduce::sum(x.as_slice(), around, y))),
            )
        };
        self.fold(x[0].packed(), sum).expect("every step has a sum").into()
    }

    #[cfg(feature = "vulkan")]
    fn gpu(&self, on: &Gpu, x: &[&Tensor], out: Meta) -> Option<Output> {
        let sum = |x: &Tensor, dims, around: [usize; 3]| {
            if around[1] == 0 {
                return on.filled(dims, 0.0);
            }
            let x = on.operand(x)?;
            on.write(Meta { dims, ..out }, |y| on.kernels().sum(x.view(), around, y))
        };
        self.fold(x[0].to_device(on).packed(), sum).map(Output::from)
    }

    fn saves(&self, _: &[bool]) -> Saves {
        Saves::NOTHING
    }

    fn vjp(&self, saved: &Saved, dy: &Tensor) -> Vec<Option<Tensor>> {
        vec![Some(dy.broadcast_to(saved.dims(0)))]
    }

    fn cases(g: &mut Gen) -> Case {
        let dims = g.dims(0, 4);
        let axes: Vec<usize> = (0..dims.len()).filter(|_| g.rng.chance(0.6)).collect();
        let spare = axes.clone();
        Case::new(vec![g.tensor(dims)], move |x| x[0].sum(&axes, true)).equals(move |x| {
            spare.iter().fold(x[0].clone(), |sum, &k| {
                let zero = Tensor::zeros(sum.dims().with(k, 1), x[0].dtype());
                (0..dims[k]).fold(zero, |total, i| total + sum.narrow(k, i, 1))
            })
        })
    }
}

/// Largest or smallest element along one dimension, which stays with size 1. Ties go to the first; its index is the by-product (i64, on a
/// device i32).
pub struct Extreme {
    /// Dimension.
    pub dim: usize,
    /// Largest, else smallest.
    pub largest: bool,
}

#[cfg(feature = "vulkan")]
impl Extreme {
    /// As pooling of maps [outer, n, 1, inner] by one window: their dims, those of the result, and those of x.
    fn pooled(&self, x: &Dims) -> ([Dims; 3], Window) {
        let [outer, n, inner] =
            [&x[..self.dim], &x[self.dim..=self.dim], &x[self.dim + 1..]].map(|d| d.iter().product::<usize>());
        let window = Window { kernel: [n, 1], ..Window::square(1, 1, 0) };
        ([[outer, n, 1, inner].into(), [outer, 1, 1, inner].into(), *x], window)
    }
}

impl Op for Extreme {
    fn name(&self) -> &'static str {
        if self.largest { "max" } else { "min" }
    }

    fn shape(&self, x: &[Meta]) -> Meta {
        assert!(x[0].dims[self.dim] > 0, "{}: dimension {} of {:?} is empty", self.name(), self.dim, x[0].dims);
        Meta { dims: x[0].dims.with(self.dim, 1), ..x[0] }
    }

    fn cpu(&self, x: &[&Tensor], out: Meta) -> Output {
        let (x, around) = around(x[0], self.dim);
        let mut index = vec![0i64; out.dims.numel()];
        let value = for_float!(self.name(), out.dtype, F => Tensor::write(out.dims, |y: &mut [F]| {
            if self.largest { reduce::max(x.as_slice(), around, y, &mut index) } else { reduce::min(x.as_slice(), around, y, &mut index) }
        }));
        Output { value, aux: vec![Tensor::from_slice(&index, out.dims)] }
    }

    #[cfg(feature = "vulkan")]
    fn gpu(&self, on: &Gpu, x: &[&Tensor], out: Meta) -> Option<Output> {
        let ([map, grid, _], window) = self.pooled(x[0].dims());
        let x = x[0].to_device(on).packed().reshape(map);
        let x = on.operand(&if self.largest { x } else { x.neg() })?;
        let found = on.memory(4 * out.dims.numel());
        let y = on.write(Meta { dims: grid, ..out }, |y| on.kernels().max_pool2d(&window, x.view(), y, &found))?;
        let value = if self.largest { y } else { y.neg() }.reshape(out.dims);
        Some(Output { value, aux: vec![on.places(found, out.dims)] })
    }

    fn saves(&self, _: &[bool]) -> Saves {
        Saves::NOTHING
    }

    fn vjp(&self, saved: &Saved, dy: &Tensor) -> Vec<Option<Tensor>> {
        let dims = saved.dims(0);
        let (n, inner) = (dims[self.dim], dims[self.dim + 1..].iter().product::<usize>());
        let (dy, index) = (dy.packed(), saved.aux(0).converted(DType::I64));
        let index = index.as_slice::<i64>();
        vec![Some(for_float!(self.name(), dy.dtype(), F => Tensor::write(dims, |dx: &mut [F]| {
            dx.fill(0.0);
            for (k, (&d, &i)) in dy.as_slice::<F>().iter().zip(index).enumerate() {
                dx[(k / inner * n + i as usize) * inner + k % inner] = d;
            }
        })))]
    }

    #[cfg(feature = "vulkan")]
    fn gpu_vjp(&self, on: &Gpu, saved: &Saved, dy: &Tensor) -> Option<Vec<Option<Tensor>>> {
        let ([map, grid, dims], window) = self.pooled(&saved.dims(0));
        let (dy, found) = (on.packed(&dy.packed().reshape(grid))?, saved.aux(0).buffer().mirrored()?.memory());
        let of = Meta::new(map, DType::F32);
        let dx = on.write(of, |dx| on.kernels().max_pool2d_backward(&window, dy.view(), &found, dx))?;
        Some(vec![Some(dx.reshape(dims))])
    }

    fn cases(g: &mut Gen) -> Case {
        let (dims, dim) = g.dims_along(1, 4);
        let largest = g.rng.chance(0.5);
        Case::new(vec![g.distinct(dims)], move |x| apply(Extreme { dim, largest }, &[&x[0]])).equals(move |x| {
            let first = x[0].narrow(dim, 0, 1);
            (1..dims[dim]).fold(first, |best, i| {
                let next = x[0].narrow(dim, i, 1);
                if largest { best.maximum(&next) } else { best.minimum(&next) }
            })
        })
    }
}

/// Index (i64) of the first largest element along one dimension, which stays with size 1.
pub struct Argmax(pub usize);

impl Op for Argmax {
    fn name(&self) -> &'static str {
        "argmax"
    }

    fn shape(&self, x: &[Meta]) -> Meta {
        assert!(x[0].dims[self.0] > 0, "argmax: dimension {} of {:?} is empty", self.0, x[0].dims);
        Meta::new(x[0].dims.with(self.0, 1), DType::I64)
    }

    fn cpu(&self, x: &[&Tensor], _: Meta) -> Output {
        apply_aux(Extreme { dim: self.0, largest: true }, &[&x[0].detach()]).1[0].converted(DType::I64).into()
    }

    fn saves(&self, _: &[bool]) -> Saves {
        Saves::NOTHING
    }

    fn vjp(&self, _: &Saved, _: &Tensor) -> Vec<Option<Tensor>> {
        no_derivative("argmax")
    }

    fn cases(g: &mut Gen) -> Case {
        let (dims, dim) = g.dims_along(1, 4);
        // Few distinct values, so that ties happen.
        let x = g.tensor_of(dims, |rng| rng.below(4) as f64);
        Case::new(vec![x], move |x| apply(Argmax(dim), &[&x[0]])).without_derivative().equals(move |x| {
            let x = x[0].transpose(dim as isize, -1).to_f64_vec();
            let best = |row: &[f64]| row.iter().enumerate().fold(0, |b, (i, v)| if *v > row[b] { i } else { b }) as i64;
            let index: Vec<i64> = x.chunks(dims[dim]).map(best).collect();
            let mut moved = dims.to_vec();
            moved.swap(dim, dims.len() - 1);
            *moved.last_mut().expect("rank is at least 1") = 1;
            Tensor::from_slice(&index, Dims::new(&moved)).transpose(dim as isize, -1)
        })
    }
}

/// ln sum e^x along one dimension, which stays with size 1, without overflow. Empty: -infinity.
pub struct LogSumExp(pub usize);

impl Op for LogSumExp {
    fn name(&self) -> &'static str {
        "logsumexp"
    }

    fn shape(&self, x: &[Meta]) -> Meta {
        Meta { dims: x[0].dims.with(self.0, 1), ..x[0] }
    }

    fn cpu(&self, x: &[&Tensor], out: Meta) -> Output {
        let (x, around) = around(x[0], self.0);
        for_float!("logsumexp", out.dtype, F => Tensor::write(out.dims, |y: &mut [F]| reduce::logsumexp(x.as_slice(), around, y))).into()
    }

    /// Along the last dimension it comes with the softmax.
    #[cfg(feature = "vulkan")]
    fn gpu(&self, on: &Gpu, x: &[&Tensor], out: Meta) -> Option<Output> {
        let moved = x[0].to_device(on).transpose(self.0 as isize, -1);
        if moved.dim(-1) == 0 {
            return on.filled(out.dims, f32::NEG_INFINITY).map(Output::from);
        }
        let (x, lse) = (on.packed(&moved)?, on.memory(4 * out.dims.numel()));
        let options = Softmax { lse: Some(&lse), ..Softmax::default() };
        on.write(moved.meta(), |y| on.kernels().softmax(x.view(), y, options))?;
        let sums = on.aux(lse, out.dims.numel()).reshape(moved.dims().with(moved.rank() - 1, 1));
        Some(sums.transpose(self.0 as isize, -1).into())
    }

    fn saves(&self, _: &[bool]) -> Saves {
        Saves::input(0).and(Saves::OUTPUT)
    }

    fn vjp(&self, saved: &Saved, dy: &Tensor) -> Vec<Option<Tensor>> {
        // The derivative is the softmax.
        vec![Some(saved.input(0).sub(saved.output()).exp().mul(dy))]
    }

    fn cases(g: &mut Gen) -> Case {
        let (dims, dim) = g.dims_along(1, 4);
        Case::new(vec![g.tensor(dims)], move |x| x[0].logsumexp(dim as isize))
            .equals(move |x| x[0].exp().sum(&[dim], true).log())
    }
}

/// Variance along the last dimension, which stays with size 1: mean squared distance from the mean, divided by n - `correction`.
pub struct Var {
    /// 0: biased, 1: unbiased.
    pub correction: usize,
}

impl Op for Var {
    fn name(&self) -> &'static str {
        "var"
    }

    fn shape(&self, x: &[Meta]) -> Meta {
        let n = x[0].dims.last().copied().unwrap_or_default();
        assert!(n > self.correction, "var: {n} elements with correction {}", self.correction);
        Meta { dims: x[0].dims.with(x[0].dims.len() - 1, 1), ..x[0] }
    }

    fn cpu(&self, x: &[&Tensor], out: Meta) -> Output {
        let (x, around) = around(x[0], x[0].rank() - 1);
        for_float!("var", out.dtype, F => Tensor::write(out.dims, |y: &mut [F]| reduce::var(x.as_slice(), around, self.correction, y))).into()
    }

    #[cfg(feature = "vulkan")]
    fn gpu(&self, on: &Gpu, x: &[&Tensor], _: Meta) -> Option<Output> {
        let (x, axes) = (x[0].to_device(on), [x[0].rank() - 1]);
        let squares = x.sub(&x.mean(&axes, true)).square().sum(&axes, true);
        Some(squares.affine(1.0 / (x.dim(-1) - self.correction) as f64, 0.0).into())
    }

    fn saves(&self, _: &[bool]) -> Saves {
        Saves::input(0)
    }

    fn vjp(&self, saved: &Saved, dy: &Tensor) -> Vec<Option<Tensor>> {
        // d var / d x_i = 2 (x_i - mean) / (n - correction)
        let x = saved.input(0);
        let n = x.dim(-1);
        vec![Some(x.sub(&x.mean(&[x.rank() - 1], true)).mul(dy).affine(2.0 / (n - self.correction) as f64, 0.0))]
    }

    fn cases(g: &mut Gen) -> Case {
        let correction = g.rng.below(2);
        let n = g.size_from(1) + correction;
        let dims = g.dims(0, 2).followed_by(&[n]);
        Case::new(vec![g.tensor(dims)], move |x| apply(Var { correction }, &[&x[0]])).equals(move |x| {
            let axes = [x[0].rank() - 1];
            x[0].sub(&x[0].mean(&axes, true)).square().sum(&axes, true).affine(1.0 / (n - correction) as f64, 0.0)
        })
    }
}

/// Reductions.
impl Tensor {
    fn without(&self, axes: &[usize], keep: bool) -> Tensor {
        if keep {
            return self.clone();
        }
        let dims: Vec<usize> = (0..self.rank()).filter(|k| !axes.contains(k)).map(|k| self.dims()[k]).collect();
        self.reshape(&dims[..])
    }

    /// Sum over the dimensions `axes`; `keep` leaves them with size 1.
    #[track_caller]
    pub fn sum(&self, axes: &[usize], keep: bool) -> Tensor {
        apply(Sum(axes.to_vec()), &[self]).without(axes, keep)
    }

    /// Sum of all elements, without dimensions.
    #[track_caller]
    pub fn sum_all(&self) -> Tensor {
        self.sum(&(0..self.rank()).collect::<Vec<_>>(), false)
    }

    /// Mean over the dimensions `axes`; `keep` leaves them with size 1. Over no elements it is NaN.
    #[track_caller]
    pub fn mean(&self, axes: &[usize], keep: bool) -> Tensor {
        let n: usize = axes.iter().map(|&k| self.dims()[k]).product();
        self.sum(axes, keep).affine(1.0 / n as f64, 0.0)
    }

    /// Mean of all elements, without dimensions.
    #[track_caller]
    pub fn mean_all(&self) -> Tensor {
        self.mean(&(0..self.rank()).collect::<Vec<_>>(), false)
    }

    /// Largest elements along `dim` (which goes away) and their indices.
    #[track_caller]
    pub fn max(&self, dim: isize) -> (Tensor, Tensor) {
        self.extreme(dim, true)
    }

    /// Smallest elements along `dim` (which goes away) and their indices.
    #[track_caller]
    pub fn min(&self, dim: isize) -> (Tensor, Tensor) {
        self.extreme(dim, false)
    }

    #[track_caller]
    fn extreme(&self, dim: isize, largest: bool) -> (Tensor, Tensor) {
        let dim = self.axis(dim);
        let (value, index) = apply_aux(Extreme { dim, largest }, &[self]);
        (value.without(&[dim], false), index[0].to_dtype(DType::I64).without(&[dim], false))
    }

    /// Largest elements along `dim`, which goes away.
    #[track_caller]
    pub fn amax(&self, dim: isize) -> Tensor {
        let dim = self.axis(dim);
        apply(Extreme { dim, largest: true }, &[self]).without(&[dim], false)
    }

    /// Indices (i64) of the first largest elements along `dim`, which goes away.
    #[track_caller]
    pub fn argmax(&self, dim: isize) -> Tensor {
        let dim = self.axis(dim);
        apply(Argmax(dim), &[self]).without(&[dim], false)
    }

    /// ln sum e^x along `dim`, which stays with size 1.
    #[track_caller]
    pub fn logsumexp(&self, dim: isize) -> Tensor {
        apply(LogSumExp(self.axis(dim)), &[self])
    }

    /// Variance along the last dimension, which stays with size 1; `correction` 1 is unbiased.
    #[track_caller]
    pub fn var(&self, correction: usize) -> Tensor {
        apply(Var { correction }, &[self])
    }
}

crate::check_ops!(Sum, Extreme, Argmax, LogSumExp, Var);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    #[test]
    fn neighbouring_dimensions_are_summed_as_one() {
        let x = Tensor::randn([3, 7, 50, 5], DType::F32, &mut Rng::new(1, 0));
        let merged = |dims: [usize; 3]| x.reshape(dims).sum(&[1], false).to_vec::<f32>();
        assert_eq!(x.sum(&[2, 1], false).to_vec::<f32>(), merged([3, 350, 5]));
        assert_eq!(x.sum(&[1, 2, 3], false).to_vec::<f32>(), merged([3, 1750, 1]));
    }
}
