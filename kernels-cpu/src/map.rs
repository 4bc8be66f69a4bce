//! Elementwise functions of one slice, with their derivatives.

use crate::float::{Float, as_f32, as_f32_mut};
use crate::math;
use crate::par::{self, Shared};
use crate::simd::{Simd, SimdOp, dispatch};

/// What a derivative is computed from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Saved {
    /// x
    Input,
    /// f(x)
    Output,
    /// Neither.
    Nothing,
}

/// A function of one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unary {
    /// -x
    Neg,
    /// |x|; derivative 0 at 0
    Abs,
    /// e^x
    Exp,
    /// ln x
    Log,
    /// sqrt x
    Sqrt,
    /// 1 / sqrt x
    Rsqrt,
    /// 1 / x
    Recip,
    /// x^2
    Square,
    /// tanh x
    Tanh,
    /// erf x
    Erf,
    /// x (1 + erf(x / sqrt 2)) / 2 (Hendrycks and Gimpel 2016)
    Gelu,
    /// x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2
    GeluTanh,
    /// x sigmoid(1.702 x), as CLIP has it
    QuickGelu,
    /// max(x, 0)
    Relu,
    /// 1 / (1 + e^-x)
    Sigmoid,
    /// x sigmoid(x)
    Silu,
    /// ln(1 + e^x), without overflow
    Softplus,
}

const SQRT_HALF: f64 = core::f64::consts::FRAC_1_SQRT_2;
const SQRT_2_OVER_PI: f64 = 0.797_884_560_802_865_4;
const INV_SQRT_2PI: f64 = 0.398_942_280_401_432_7;
const TWO_OVER_SQRT_PI: f64 = core::f64::consts::FRAC_2_SQRT_PI;

fn sigmoid<F: Float>(x: F) -> F {
    F::ONE / (F::ONE + (-x).exp())
}

impl Unary {
    /// Every function.
    pub const ALL: &'static [Self] = &[
        Self::Neg,
        Self::Abs,
        Self::Exp,
        Self::Log,
        Self::Sqrt,
        Self::Rsqrt,
        Self::Recip,
        Self::Square,
        Self::Tanh,
        Self::Erf,
        Self::Gelu,
        Self::GeluTanh,
        Self::QuickGelu,
        Self::Relu,
        Self::Sigmoid,
        Self::Silu,
        Self::Softplus,
    ];

    /// The field's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Neg => "neg",
            Self::Abs => "abs",
            Self::Exp => "exp",
            Self::Log => "log",
            Self::Sqrt => "sqrt",
            Self::Rsqrt => "rsqrt",
            Self::Recip => "recip",
            Self::Square => "square",
            Self::Tanh => "tanh",
            Self::Erf => "erf",
            Self::Gelu => "gelu",
            Self::GeluTanh => "gelu_tanh",
            Self::QuickGelu => "quick_gelu",
            Self::Relu => "relu",
            Self::Sigmoid => "sigmoid",
            Self::Silu => "silu",
            Self::Softplus => "softplus",
        }
    }

    /// What [`Unary::df`] is computed from.
    pub fn saves(self) -> Saved {
        match self {
            Self::Neg => Saved::Nothing,
            Self::Exp | Self::Sqrt | Self::Rsqrt | Self::Recip | Self::Tanh | Self::Sigmoid | Self::Relu => {
                Saved::Output
            }
            _ => Saved::Input,
        }
    }

    /// The definition.
    #[inline(always)]
    pub fn f<F: Float>(self, x: F) -> F {
        let c = F::from_f64;
        match self {
            Self::Neg => -x,
            Self::Abs => x.abs(),
            Self::Exp => x.exp(),
            Self::Log => x.ln(),
            Self::Sqrt => x.sqrt(),
            Self::Rsqrt => F::ONE / x.sqrt(),
            Self::Recip => F::ONE / x,
            Self::Square => x * x,
            Self::Tanh => x.tanh(),
            Self::Erf => x.erf(),
            Self::Gelu => c(0.5) * x * (-x * c(SQRT_HALF)).erfc(),
            Self::GeluTanh => c(0.5) * x * (F::ONE + (c(SQRT_2_OVER_PI) * (x + c(0.044715) * x * x * x)).tanh()),
            Self::QuickGelu => x * sigmoid(c(1.702) * x),
            Self::Relu => {
                // NaN stays.
                if F::ZERO > x { F::ZERO } else { x }
            }
            Self::Sigmoid => sigmoid(x),
            Self::Silu => x * sigmoid(x),
            Self::Softplus => x.max(F::ZERO) + (F::ONE + (-x.abs()).exp()).ln(),
        }
    }

    /// The derivative, from x or f(x) as [`Unary::saves`] says.
    #[inline(always)]
    pub fn df<F: Float>(self, saved: F) -> F {
        let (c, x, y) = (F::from_f64, saved, saved);
        match self {
            Self::Neg => -F::ONE,
            Self::Abs => {
                if x > F::ZERO {
                    F::ONE
                } else if x < F::ZERO {
                    -F::ONE
                } else {
                    F::ZERO
                }
            }
            Self::Exp => y,
            Self::Log => F::ONE / x,
            Self::Sqrt => c(0.5) / y,
            Self::Rsqrt => c(-0.5) * y * y * y,
            Self::Recip => -y * y,
            Self::Square => x + x,
            Self::Tanh => F::ONE - y * y,
            Self::Erf => c(TWO_OVER_SQRT_PI) * (-x * x).exp(),
            Self::Gelu => c(0.5) * (-x * c(SQRT_HALF)).erfc() + x * c(INV_SQRT_2PI) * (c(-0.5) * x * x).exp(),
            Self::GeluTanh => {
                let t = (c(SQRT_2_OVER_PI) * (x + c(0.044715) * x * x * x)).tanh();
                let inner = c(SQRT_2_OVER_PI) * (F::ONE + c(3.0 * 0.044715) * x * x);
                c(0.5) * (F::ONE + t) + c(0.5) * x * (F::ONE - t * t) * inner
            }
            Self::QuickGelu => {
                let s = sigmoid(c(1.702) * x);
                s + c(1.702) * x * s * (F::ONE - s)
            }
            Self::Relu => {
                if y > F::ZERO {
                    F::ONE
                } else {
                    F::ZERO
                }
            }
            Self::Sigmoid => y * (F::ONE - y),
            Self::Silu => {
                let s = sigmoid(x);
                s + x * s * (F::ONE - s)
            }
            Self::Softplus => sigmoid(x),
        }
    }

    /// Elementary operations per element, for splitting work.
    fn cost(self) -> usize {
        match self {
            Self::Neg | Self::Abs | Self::Square | Self::Relu => 1,
            Self::Sqrt | Self::Rsqrt | Self::Recip => 4,
            _ => 16,
        }
    }
}

/// f on a vector; the same formulas as [`Unary::f`].
#[inline(always)]
pub(crate) fn vector<S: Simd>(s: S, op: Unary, x: S::F) -> S::F {
    let one = s.splat(1.0);
    match op {
        Unary::Neg => s.sub(s.splat(0.0), x),
        Unary::Abs => s.abs(x),
        Unary::Exp => math::exp(s, x),
        Unary::Log => math::log(s, x),
        Unary::Sqrt => s.sqrt(x),
        Unary::Rsqrt => s.div(one, s.sqrt(x)),
        Unary::Recip => s.div(one, x),
        Unary::Square => s.mul(x, x),
        Unary::Tanh => math::tanh(s, x),
        Unary::Erf => math::erf(s, x),
        Unary::Gelu => math::gelu(s, x),
        Unary::GeluTanh => s.mul(s.mul(s.splat(0.5), x), s.add(one, math::tanh(s, gelu_inner(s, x)))),
        Unary::QuickGelu => s.mul(x, math::sigmoid(s, s.mul(s.splat(1.702), x))),
        Unary::Relu => s.max(s.splat(0.0), x),
        Unary::Sigmoid => math::sigmoid(s, x),
        Unary::Silu => s.mul(x, math::sigmoid(s, x)),
        Unary::Softplus => {
            let tail = math::log(s, s.add(one, math::exp_of_negative(s, s.sub(s.splat(0.0), s.abs(x)))));
            s.add(s.max(x, s.splat(0.0)), tail)
        }
    }
}

#[inline(always)]
fn gelu_inner<S: Simd>(s: S, x: S::F) -> S::F {
    let cubic = s.mul(s.mul(x, x), s.mul(x, s.splat(0.044715)));
    s.mul(s.splat(SQRT_2_OVER_PI as f32), s.add(x, cubic))
}

/// df on a vector; the same formulas as [`Unary::df`].
#[inline(always)]
fn derivative<S: Simd>(s: S, op: Unary, v: S::F) -> S::F {
    let (zero, half, one) = (s.splat(0.0), s.splat(0.5), s.splat(1.0));
    match op {
        Unary::Neg => s.splat(-1.0),
        Unary::Abs => s.select(s.lt(zero, v), one, s.select(s.lt(v, zero), s.splat(-1.0), zero)),
        Unary::Exp => v,
        Unary::Log => s.div(one, v),
        Unary::Sqrt => s.div(half, v),
        Unary::Rsqrt => s.mul(s.splat(-0.5), s.mul(v, s.mul(v, v))),
        Unary::Recip => s.sub(zero, s.mul(v, v)),
        Unary::Square => s.add(v, v),
        Unary::Tanh => s.sub(one, s.mul(v, v)),
        Unary::Erf => s.mul(s.splat(TWO_OVER_SQRT_PI as f32), math::exp_of_negative(s, s.sub(zero, s.mul(v, v)))),
        Unary::Gelu => {
            let (cdf, e) = math::normal_cdf(s, v);
            s.fma(v, s.mul(s.splat(INV_SQRT_2PI as f32), e), cdf)
        }
        Unary::GeluTanh => {
            let t = math::tanh(s, gelu_inner(s, v));
            let inner = s.mul(s.splat(SQRT_2_OVER_PI as f32), s.fma(s.splat(3.0 * 0.044715), s.mul(v, v), one));
            s.fma(s.mul(s.mul(half, v), s.sub(one, s.mul(t, t))), inner, s.mul(half, s.add(one, t)))
        }
        Unary::QuickGelu => logistic(s, v, 1.702),
        Unary::Relu => s.select(s.lt(zero, v), one, zero),
        Unary::Sigmoid => s.mul(v, s.sub(one, v)),
        Unary::Silu => logistic(s, v, 1.0),
        Unary::Softplus => math::sigmoid(s, v),
    }
}

/// Derivative of v sigmoid(scale v). A function, as a closure would not be compiled for the tier.
#[inline(always)]
fn logistic<S: Simd>(s: S, v: S::F, scale: f32) -> S::F {
    let x = s.mul(s.splat(scale), v);
    let g = math::sigmoid(s, x);
    s.add(g, s.mul(x, s.mul(g, s.sub(s.splat(1.0), g))))
}

/// x becomes f(x), inside a kernel.
#[inline(always)]
pub(crate) fn activate<S: Simd>(s: S, op: Unary, x: &mut [f32]) {
    let whole = x.len() / S::LANES * S::LANES;
    let (body, tail) = x.split_at_mut(whole);
    for x in body.chunks_exact_mut(S::LANES) {
        s.store(vector(s, op, s.load(x)), x);
    }
    if !tail.is_empty() {
        s.store_partial(vector(s, op, s.load_partial(tail, 1.0)), tail);
    }
}

struct MapOp<'a>(Unary, &'a [f32], &'a mut [f32]);

impl SimdOp for MapOp<'_> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) {
        let Self(op, x, y) = self;
        let whole = x.len() / S::LANES * S::LANES;
        for i in (0..whole).step_by(S::LANES) {
            s.store(vector(s, op, s.load(&x[i..])), &mut y[i..]);
        }
        if whole < x.len() {
            s.store_partial(vector(s, op, s.load_partial(&x[whole..], 1.0)), &mut y[whole..]);
        }
    }
}

struct BackwardOp<'a>(Unary, &'a [f32], &'a [f32], &'a mut [f32]);

impl SimdOp for BackwardOp<'_> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) {
        let Self(op, saved, dy, dx) = self;
        let whole = dy.len() / S::LANES * S::LANES;
        for i in (0..whole).step_by(S::LANES) {
            s.store(s.mul(s.load(&dy[i..]), derivative(s, op, s.load(&saved[i..]))), &mut dx[i..]);
        }
        if whole < dy.len() {
            let d = derivative(s, op, s.load_partial(&saved[whole..], 1.0));
            s.store_partial(s.mul(s.load_partial(&dy[whole..], 0.0), d), &mut dx[whole..]);
        }
    }
}

/// y = f(x).
///
/// # Panics
/// If the lengths differ.
pub fn map<F: Float>(op: Unary, x: &[F], y: &mut [F]) {
    assert_eq!(x.len(), y.len(), "map: lengths");
    let out = Shared::new(y);
    par::for_each(x.len(), op.cost(), |range| {
        // SAFETY: the ranges are disjoint.
        let (x, y) = (&x[range.clone()], unsafe { out.slice(range) });
        match (as_f32(x), as_f32_mut(y)) {
            (Some(x), Some(y)) => dispatch(MapOp(op, x, y)),
            _ => x.iter().zip(y).for_each(|(&x, y)| *y = op.f(x)),
        }
    });
}

/// x becomes f(x).
pub fn map_in_place<F: Float>(op: Unary, x: &mut [F]) {
    let shared = Shared::new(x);
    par::for_each(x.len(), op.cost(), |range| {
        // SAFETY: the ranges are disjoint.
        let x = unsafe { shared.slice(range) };
        let mut block = [F::ZERO; 256];
        for x in x.chunks_mut(256) {
            let block = &mut block[..x.len()];
            block.copy_from_slice(x);
            map(op, block, x);
        }
    });
}

/// dx = dy f'(x), from x or f(x) as [`Unary::saves`] says (anything of that length where it needs neither).
///
/// # Panics
/// If the lengths differ.
pub fn map_backward<F: Float>(op: Unary, saved: &[F], dy: &[F], dx: &mut [F]) {
    assert!(saved.len() == dy.len() && dy.len() == dx.len(), "map_backward: lengths");
    let out = Shared::new(dx);
    par::for_each(dy.len(), op.cost() + 1, |range| {
        // SAFETY: the ranges are disjoint.
        let (saved, dy, dx) = (&saved[range.clone()], &dy[range.clone()], unsafe { out.slice(range) });
        match (as_f32(saved), as_f32(dy), as_f32_mut(dx)) {
            (Some(saved), Some(dy), Some(dx)) => dispatch(BackwardOp(op, saved, dy, dx)),
            _ => saved.iter().zip(dy).zip(dx).for_each(|((&v, &g), d)| *d = g * op.df(v)),
        }
    });
}

/// y = a x + b.
pub fn scale_add<F: Float>(x: &[F], a: F, b: F, y: &mut [F]) {
    each(x, y, 1, move |x| a * x + b);
}

/// y = min(max(x, low), high); NaN stays.
pub fn clamp<F: Float>(x: &[F], low: F, high: F, y: &mut [F]) {
    each(x, y, 1, move |x| {
        if x < low {
            low
        } else if x > high {
            high
        } else {
            x
        }
    });
}

/// dx = dy where low <= x <= high, else 0.
pub fn clamp_backward<F: Float>(x: &[F], low: F, high: F, dy: &[F], dx: &mut [F]) {
    assert!(x.len() == dy.len() && dy.len() == dx.len(), "clamp_backward: lengths");
    for ((&x, &g), d) in x.iter().zip(dy).zip(dx) {
        *d = if x >= low && x <= high { g } else { F::ZERO };
    }
}

/// y = x^p.
pub fn powf_scalar<F: Float>(x: &[F], p: F, y: &mut [F]) {
    each(x, y, 16, move |x| x.powf(p));
}

/// A plain loop, compiled for the tier in use.
struct Loop<'a, F, G>(&'a [F], &'a mut [F], G);

impl<F: Float, G: Fn(F) -> F> SimdOp for Loop<'_, F, G> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd>(self, _: S) {
        for (y, &x) in self.1.iter_mut().zip(self.0) {
            *y = (self.2)(x);
        }
    }
}

fn each<F: Float>(x: &[F], y: &mut [F], cost: usize, f: impl Fn(F) -> F + Sync + Copy) {
    assert_eq!(x.len(), y.len(), "elementwise: lengths");
    let out = Shared::new(y);
    // SAFETY: the ranges are disjoint.
    par::for_each(x.len(), cost, |range| dispatch(Loop(&x[range.clone()], unsafe { out.slice(range) }, f)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::Isa;
    use crate::simd::eval_on;
    use alloc::vec;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_tier_is_the_definition(x in prop::collection::vec(-6f32..6.0, 0..70), skip in 0usize..3) {
            let x = &x[skip.min(x.len())..];
            for &op in Unary::ALL {
                let x: Vec<f32> = if matches!(op, Unary::Log | Unary::Sqrt | Unary::Rsqrt) { x.iter().map(|x| x.abs() + 0.01).collect() } else { x.iter().map(|x| if x.abs() < 1e-3 { 0.5 } else { *x }).collect() };
                for isa in Isa::available() {
                    let mut y = vec![7.0; x.len()];
                    eval_on(isa, MapOp(op, &x, &mut y));
                    let saved = if op.saves() == Saved::Output { y.clone() } else { x.clone() };
                    let mut dx = vec![7.0; x.len()];
                    eval_on(isa, BackwardOp(op, &saved, &vec![2.0; x.len()], &mut dx));
                    for k in 0..x.len() {
                        let (exact, slope) = (op.f(f64::from(x[k])), 2.0 * op.df(f64::from(saved[k])));
                        let close = |a: f32, b: f64| f64::from(a) == b || (f64::from(a) - b).abs() <= 3e-6 * (1.0 + b.abs()) || b.is_nan() && a.is_nan();
                        prop_assert!(close(y[k], exact), "{op:?}({}) = {} on {isa}, definition {exact}", x[k], y[k]);
                        prop_assert!(close(dx[k], slope), "{op:?}'({}) = {} on {isa}, definition {slope}", saved[k], dx[k]);
                    }
                }
            }
        }
    }

    #[test]
    fn derivatives_are_derivatives() {
        for &op in Unary::ALL {
            for x in [0.3f64, 0.9, 2.2] {
                for x in if matches!(op, Unary::Log | Unary::Sqrt | Unary::Rsqrt) { vec![x] } else { vec![x, -x] } {
                    let h = 1e-6;
                    let numeric = (op.f(x + h) - op.f(x - h)) / (2.0 * h);
                    let saved = if op.saves() == Saved::Output { op.f(x) } else { x };
                    assert!((op.df(saved) - numeric).abs() < 1e-8 * (1.0 + numeric.abs()), "{op:?} at {x}");
                }
            }
        }
        // Between its two slopes.
        assert_eq!(Unary::Abs.df(0.0f64), 0.0);
    }

    #[test]
    fn any_thread_count_gives_the_same_bits() {
        let x: Vec<f32> = (0..50_000).map(|k| (k as f32 * 0.37).sin() * 4.0).collect();
        let run = |threads| {
            crate::par::Pool::new(threads).install(|| {
                let mut y = vec![0.0; x.len()];
                map(Unary::Gelu, &x, &mut y);
                y
            })
        };
        let one = run(1);
        assert!([2, 3, 7].iter().all(|&t| run(t) == one));
    }

    #[cfg(feature = "rayon")]
    #[test]
    fn simple_functions_are_what_they_say_on_every_tier_and_thread() {
        use crate::testing::on_every_tier;
        on_every_tier(|isa| {
            for n in [0, 1, 19, 70_001] {
                let x: Vec<f32> = (0..n).map(|k| ((k * 7) % 41) as f32 * 0.25 - 5.0).collect();
                let mut y = vec![7.0; n];
                let all = |y: &[f32], f: &dyn Fn(f32) -> f32| y.iter().zip(&x).all(|(&y, &x)| y == f(x));
                scale_add(&x, -2.0, 0.5, &mut y);
                assert!(all(&y, &|x| -2.0 * x + 0.5), "{isa} {n}");
                clamp(&x, -1.5, 2.0, &mut y);
                assert!(all(&y, &|x| x.clamp(-1.5, 2.0)), "{isa} {n}");
                clamp_backward(&x, -1.5, 2.0, &x, &mut y);
                assert!(all(&y, &|x| if (-1.5..=2.0).contains(&x) { x } else { 0.0 }), "{isa} {n}");
                powf_scalar(&x, 3.0, &mut y);
                assert!(all(&y, &|x| libm::powf(x, 3.0)), "{isa} {n}");
                for op in [Unary::Gelu, Unary::Relu, Unary::Neg] {
                    let (mut whole, mut here) = (vec![7.0; n], x.clone());
                    map(op, &x, &mut whole);
                    map_in_place(op, &mut here);
                    assert!(whole == here, "{op:?} {isa} {n}");
                    let mut dx = vec![7.0; n];
                    let saved = if op.saves() == Saved::Output { &whole } else { &x };
                    map_backward(op, saved, &x, &mut dx);
                    let close = |(d, (s, g)): (&f32, (&f32, &f32))| {
                        (f64::from(*d) - f64::from(*g) * op.df(f64::from(*s))).abs() < 1e-5
                    };
                    assert!(dx.iter().zip(saved.iter().zip(&x)).all(close), "{op:?}' {isa} {n}");
                }
            }
            let mut y = [7.0f32; 1];
            clamp(&[f32::NAN], 0.0, 1.0, &mut y);
            assert!(y[0].is_nan());
            clamp_backward(&[f32::NAN], 0.0, 1.0, &[1.0], &mut y);
            assert_eq!(y, [0.0]);
        });
    }

    /// Where a function bends, where it is flat and where it would overflow.
    #[test]
    fn functions_at_their_edges() {
        for isa in Isa::available() {
            let at = |op: Unary, x: f32| {
                let (mut y, mut dx) = ([7.0], [7.0]);
                eval_on(isa, MapOp(op, &[x], &mut y));
                let saved = if op.saves() == Saved::Output { y } else { [x] };
                eval_on(isa, BackwardOp(op, &saved, &[1.0], &mut dx));
                (y[0], dx[0])
            };
            assert_eq!(at(Unary::Abs, 0.0), (0.0, 0.0), "{isa}");
            assert_eq!(at(Unary::Relu, 0.0), (0.0, 0.0), "{isa}");
            assert_eq!(at(Unary::Softplus, 200.0), (200.0, 1.0), "{isa}");
            assert_eq!(at(Unary::Softplus, -200.0), (0.0, 0.0), "{isa}");
            assert_eq!(at(Unary::Sigmoid, -200.0), (0.0, 0.0), "{isa}");
            assert_eq!(at(Unary::Gelu, -200.0), (0.0, 0.0), "{isa}");
            for x in [-1.0f32, f32::NEG_INFINITY] {
                assert_eq!(at(Unary::Relu, x).0.to_bits(), 0, "{isa}: ReLU of {x}");
            }
            assert!(at(Unary::Relu, f32::NAN).0.is_nan() && at(Unary::Abs, f32::NAN).0.is_nan(), "{isa}");
        }
    }
}
