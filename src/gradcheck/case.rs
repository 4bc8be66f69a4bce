//! An instance of an op with everything that is checked of it, and what each check allows.

use super::draw::retyped;
use super::{Differences, Function, Mismatch, assert_close, deviation, tracked_view};
use crate::device::Gpu;
use crate::dtype::DType;
use crate::finite::is_finite;
use crate::rng::Rng;
use crate::tape::backward_with;
use crate::tensor::Tensor;

/// What a check allows, and why.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Tolerance {
    /// The largest error that passes.
    pub most: f64,
    /// Why so much, and why no more.
    pub why: &'static str,
}

/// Of a gradient in f64 against central differences, relative.
pub const GRADIENT: Tolerance = Tolerance {
    most: 1e-6,
    why: "differences of step 1e-5 leave about 1e-10 of the third derivative and 1e-11 of rounding, and cases whose values or curvature are \
          large some ten thousand times that",
};

/// Of the f32 path against f64, relative to the largest value. Where an element is a sum of many (a broadcast input's gradient), what
/// cancels leaves its roundings behind: a fifth more for the square root of each term.
pub const SINGLE: Tolerance = Tolerance {
    most: 2e-6,
    why: "17 roundings of f32 (1.2e-7): sums of some dozens of terms, and polynomials of exp, log, tanh and erf that are off by 2 to 4; a \
          fifth more for the square root of each further term of a sum",
};

/// Of the f32 path on a device, as [`SINGLE`].
pub const ON_DEVICE: Tolerance =
    Tolerance { most: 2.0 * SINGLE.most, why: "a device's quotients and roots may be off by some roundings more" };

/// Of a fused op in f64 against its composition.
pub const COMPOSED: Tolerance = Tolerance { most: 1e-8, why: "in f64 the same sums in another order" };

/// An instance of an op to check.
pub struct Case {
    inputs: Vec<Tensor>,
    run: Function,
    reference: Option<Function>,
    differentiable: bool,
    differences: Differences,
}

/// Two computations of the same thing.
struct Pair {
    what: &'static str,
    /// Of gradients, which have to be finite; a value may be infinite where it is expected to be.
    gradient: bool,
    ours: Tensor,
    expected: Tensor,
    /// How many times the tolerance is allowed, for sums of many terms.
    growth: f64,
}

impl Case {
    /// `run` at `inputs`. Inputs in f64 are those whose gradient is checked.
    pub fn new(inputs: Vec<Tensor>, run: impl Fn(&[Tensor]) -> Tensor + Send + Sync + 'static) -> Self {
        let (reference, differences) = (None, Differences::USUAL);
        Self { inputs, run: Box::new(run), reference, differentiable: true, differences }
    }

    /// What it is drawn for.
    #[cfg(test)]
    pub(crate) fn inputs(&self) -> &[Tensor] {
        &self.inputs
    }

    /// Whether it has a gradient.
    #[cfg(test)]
    pub(crate) fn is_differentiable(&self) -> bool {
        self.differentiable
    }

    /// The case's computation on other inputs.
    #[cfg(test)]
    pub(crate) fn run(&self, x: &[Tensor]) -> Tensor {
        (self.run)(x)
    }

    /// The same by a slower way (the composition of a fused op, or a plain loop): value, and gradient where it has one, must agree.
    pub fn equals(mut self, reference: impl Fn(&[Tensor]) -> Tensor + Send + Sync + 'static) -> Self {
        self.reference = Some(Box::new(reference));
        self
    }

    /// An op that has no derivative, and has to say so.
    pub fn without_derivative(mut self) -> Self {
        self.differentiable = false;
        self
    }

    /// A linear op that rounds to `dtype`, and its gradient on the way back: central differences may be off by as much as that has bits.
    pub fn rounding_to(mut self, dtype: DType) -> Self {
        self.differences = Differences::rounded_to(dtype);
        self
    }

    /// Runs every check.
    ///
    /// # Panics
    /// If one fails, with what differs.
    pub fn check(&self, rng: &mut Rng) {
        let plain = (self.run)(&self.inputs);
        let weights = Tensor::randn(*plain.dims(), DType::F64, rng);
        let packed: Vec<Tensor> = self.inputs.iter().map(Tensor::packed).collect();
        assert_close("value of contiguous inputs", &plain, &(self.run)(&packed), COMPOSED.most);
        self.composed(&weights).iter().for_each(|p| p.assert(COMPOSED.most));
        self.single(&weights).iter().for_each(|p| p.assert(SINGLE.most));
        if !self.differentiable {
            return self.check_refusal();
        }
        if let Err(mismatch) = self.gradient(rng) {
            panic!("{mismatch}\ninputs: {:?}", self.inputs);
        }
        let tracked = gradients(&self.run, &self.inputs, &weights);
        assert_eq!(tracked.value.to_f64_vec(), plain.to_f64_vec(), "recording changes the value");
    }

    /// Checks the f32 path, value and gradient, on the tier that the calling thread's kernels run on.
    ///
    /// # Panics
    /// If it differs from f64 by more than [`SINGLE`].
    pub fn check_single(&self, rng: &mut Rng) {
        let weights = Tensor::randn(*(self.run)(&self.inputs).dims(), DType::F64, rng);
        self.single(&weights).iter().for_each(|p| p.assert(SINGLE.most));
    }

    /// Checks the f32 path, value and gradient, on a device.
    ///
    /// # Panics
    /// As [`Self::check_single`], by [`ON_DEVICE`].
    #[cfg(all(test, feature = "vulkan"))]
    pub(crate) fn check_on(&self, gpu: &Gpu, rng: &mut Rng) {
        let weights = Tensor::randn(*(self.run)(&self.inputs).dims(), DType::F64, rng);
        self.single_on(Some(gpu), &weights).iter().for_each(|p| p.assert(ON_DEVICE.most));
    }

    /// The largest relative error of the gradient against central differences; 0 without a derivative.
    ///
    /// # Errors
    /// If it is above [`GRADIENT`].
    pub fn gradient(&self, rng: &mut Rng) -> Result<f64, Mismatch> {
        if !self.differentiable {
            return Ok(0.0);
        }
        self.differences.check(&self.run, &self.inputs, GRADIENT.most, rng)
    }

    /// How far the f32 path, value and gradient, is from f64 on the tier that the calling thread's kernels run on, to be compared with
    /// [`SINGLE`]; infinite where it is not comparable.
    pub fn single_deviation(&self, rng: &mut Rng) -> f64 {
        self.deviation_on(None, rng)
    }

    /// As [`Self::single_deviation`], of inputs that live on a device, to be compared with [`ON_DEVICE`].
    pub fn deviation_on(&self, gpu: Option<&Gpu>, rng: &mut Rng) -> f64 {
        let weights = Tensor::randn(*(self.run)(&self.inputs).dims(), DType::F64, rng);
        self.single_on(gpu, &weights).iter().map(Pair::deviation).fold(0.0, f64::max)
    }

    /// How far the op, value and gradient in f64, is from its slower way; 0 where it has none.
    pub fn composed_deviation(&self, rng: &mut Rng) -> f64 {
        let weights = Tensor::randn(*(self.run)(&self.inputs).dims(), DType::F64, rng);
        self.composed(&weights).iter().map(Pair::deviation).fold(0.0, f64::max)
    }

    /// Value and gradients of the f32 path and of the definitions in f64, at the same inputs.
    fn single(&self, weights: &Tensor) -> Vec<Pair> {
        self.single_on(None, weights)
    }

    /// As [`Self::single`], the f32 path on a device.
    fn single_on(&self, gpu: Option<&Gpu>, weights: &Tensor) -> Vec<Pair> {
        let single: Vec<Tensor> = self.inputs.iter().map(to_f32).collect();
        let double: Vec<Tensor> = single.iter().map(to_f64).collect();
        let single: Vec<Tensor> = single.iter().map(|x| x.placed(gpu)).collect();
        let (ours, expected) = ((self.run)(&single), (self.run)(&double));
        let most = self.inputs.iter().chain([&ours]).map(Tensor::numel).max().unwrap_or(1);
        let growth = move |sum: &Tensor| 1.0 + 0.2 * (most as f64 / sum.numel().max(1) as f64).sqrt();
        let mut pairs =
            vec![Pair { what: "f32 value against f64", gradient: false, growth: growth(&ours), ours, expected }];
        if self.differentiable {
            let fast = gradients(&self.run, &single, &to_f32(weights)).grads;
            let exact = gradients(&self.run, &double, &to_f64(&to_f32(weights))).grads;
            let pair = |(ours, expected)| Pair {
                what: "f32 gradient against f64",
                gradient: true,
                growth: growth(&ours),
                ours,
                expected,
            };
            pairs.extend(fast.into_iter().zip(exact).map(pair));
        }
        pairs
    }

    /// Value and gradients of the op and of its slower way, in f64.
    fn composed(&self, weights: &Tensor) -> Vec<Pair> {
        let Some(reference) = &self.reference else { return Vec::new() };
        let (ours, expected) = ((self.run)(&self.inputs), reference(&self.inputs));
        let mut pairs =
            vec![Pair { what: "value against the reference", gradient: false, ours, expected, growth: 1.0 }];
        if self.differentiable {
            let ours = gradients(&self.run, &self.inputs, weights).grads;
            let theirs = gradients(reference, &self.inputs, weights).grads;
            let pair = |(ours, expected)| Pair {
                what: "gradient against the reference",
                gradient: true,
                ours,
                expected,
                growth: 1.0,
            };
            pairs.extend(ours.into_iter().zip(theirs).map(pair));
        }
        pairs
    }

    fn check_refusal(&self) {
        let inputs: Vec<Tensor> =
            self.inputs.iter().map(|x| if x.dtype() == DType::F64 { tracked_view(x) } else { x.clone() }).collect();
        let y = (self.run)(&inputs);
        let refused = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let gradient = Tensor::full(*y.dims(), 1.0, y.dtype());
            backward_with(vec![(y, gradient)]);
        }));
        let message = refused.err().and_then(|e| e.downcast::<String>().ok()).unwrap_or_default();
        assert!(message.contains("has no derivative"), "an op without derivative has to say so, got: {message:?}");
    }
}

struct Gradients {
    value: Tensor,
    grads: Vec<Tensor>,
}

/// Value and gradients (zeros where there is none) of all float inputs, for `dy = weights`.
fn gradients(f: &Function, x: &[Tensor], weights: &Tensor) -> Gradients {
    let leaves: Vec<Tensor> =
        x.iter().map(|x| if x.dtype().is_arithmetic() { tracked_view(x) } else { x.clone() }).collect();
    let y = f(&leaves);
    let value = y.detach();
    let mut grads = backward_with(vec![(y, weights.clone())]);
    let of = |leaf: &Tensor| grads.take(leaf).unwrap_or_else(|| Tensor::zeros(*leaf.dims(), leaf.dtype()));
    Gradients { value, grads: leaves.iter().filter(|l| l.is_tracked()).map(of).collect() }
}

fn to_f32(x: &Tensor) -> Tensor {
    if x.dtype() == DType::F64 { retyped(x, DType::F32) } else { x.clone() }
}

fn to_f64(x: &Tensor) -> Tensor {
    if x.dtype() == DType::F32 { x.converted(DType::F64) } else { x.clone() }
}

impl Pair {
    fn is_sound(&self) -> bool {
        !self.gradient || is_finite(&self.ours)
    }

    /// In multiples of what is allowed for its growth; never NaN.
    fn deviation(&self) -> f64 {
        if self.is_sound() { deviation(&self.ours, &self.expected) / self.growth } else { f64::INFINITY }
    }

    #[track_caller]
    fn assert(&self, tolerance: f64) {
        assert!(self.is_sound(), "{}: not finite: {:?}", self.what, self.ours.to_f64_vec());
        assert_close(self.what, &self.ours, &self.expected, tolerance * self.growth);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of zero in f32 too, where the gradient of both is infinite.
    #[test]
    fn gradients_that_are_infinite_alike_are_not_alike() {
        let mut rng = Rng::new(2, 0);
        let case = |x: f64| Case::new(vec![Tensor::from_slice(&[1.0, x], [2])], |x| x[0].sqrt());
        assert!(case(2.0).single_deviation(&mut rng) < SINGLE.most);
        assert_eq!(case(1e-60).single_deviation(&mut rng), f64::INFINITY);
        let check = |x: f64, rng: &mut Rng| {
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| case(x).check_single(rng))).is_ok()
        };
        assert!(check(2.0, &mut rng) && !check(1e-60, &mut rng));
    }
}
