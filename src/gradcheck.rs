//! Checks of gradients against finite differences in f64, and the drawing of inputs for them.

use std::fmt;

use crate::device::Gpu;
use crate::dtype::DType;
use crate::layout::{Dims, Layout};
use crate::rng::Rng;
use crate::tape::backward_with;
use crate::tensor::Tensor;

/// A function of tensors, run as often as a check needs and on any thread.
pub type Function = Box<dyn Fn(&[Tensor]) -> Tensor + Send + Sync>;

/// How a gradient failed its check.
#[derive(Debug)]
pub struct Mismatch {
    /// Which input.
    pub input: usize,
    /// Projected gradient that backward gives.
    pub analytic: f64,
    /// The same by central differences.
    pub numeric: f64,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "gradient of input {}: backward gives {:e}, central differences {:e}",
            self.input, self.analytic, self.numeric
        )
    }
}

impl std::error::Error for Mismatch {}

/// Checks the gradient of `f` at `x` for each f64 input: for random directions u and weights w,
/// `<w, f(x + h u) - f(x - h u)> / 2h` must equal `<grad of <w, f>, u>` to `tolerance`, relative to the sum of the
/// absolute terms. One projection costs two evaluations whatever the size, and a single wrong element shows in it. Returns the largest
/// difference, relative to the same.
///
/// Kinks (relu at 0, ties of max) must be further than about 1e-4 from `x`.
pub fn gradcheck(
    f: impl Fn(&[Tensor]) -> Tensor,
    x: &[Tensor],
    tolerance: f64,
    rng: &mut Rng,
) -> Result<f64, Mismatch> {
    const H: f64 = 1e-5;
    let mut largest = 0.0f64;
    for i in (0..x.len()).filter(|&i| x[i].dtype() == DType::F64) {
        let mut at: Vec<Tensor> = x.iter().map(Tensor::detach).collect();
        at[i] = tracked_view(&x[i]);
        let y = f(&at);
        let weights = Tensor::randn(*y.dims(), DType::F64, rng);
        let direction = Tensor::randn(*x[i].dims(), DType::F64, rng);
        let gradient = backward_with(vec![(y, weights.clone())]).take(&at[i]);
        let gradient = gradient.map_or_else(
            || vec![0.0; x[i].numel()],
            |g| {
                assert_eq!(g.dims(), x[i].dims(), "dims of the gradient of input {i}");
                g.to_f64_vec()
            },
        );

        let shifted = |h: f64| {
            let mut at: Vec<Tensor> = x.iter().map(Tensor::detach).collect();
            let values: Vec<f64> =
                x[i].to_f64_vec().iter().zip(direction.to_f64_vec()).map(|(x, u)| x + h * u).collect();
            at[i] = Tensor::from_slice(&values, *x[i].dims());
            f(&at).to_f64_vec()
        };
        let (mut numeric, mut scale, mut rounding) = (0.0, 1e-6, 0.0);
        for ((up, down), w) in shifted(H).iter().zip(shifted(-H)).zip(weights.to_f64_vec()) {
            numeric += w * (up - down) / (2.0 * H);
            scale += (w * (up - down) / (2.0 * H)).abs();
            // Where the values are large beside their difference, its last bits are all that is left of it.
            rounding += (w * up.abs().max(down.abs())).abs() * f64::EPSILON / H;
        }
        let mut analytic = 0.0;
        for (g, u) in gradient.iter().zip(direction.to_f64_vec()) {
            analytic += g * u;
            scale += (g * u).abs();
        }
        let error = (analytic - numeric).abs();
        if error.is_nan() || error > tolerance * scale + 2.0 * rounding {
            return Err(Mismatch { input: i, analytic, numeric });
        }
        largest = largest.max((error - 2.0 * rounding) / scale);
    }
    Ok(largest)
}

/// A trainable leaf that keeps the strides of `x`, so that backward is checked on odd layouts too.
fn tracked_view(x: &Tensor) -> Tensor {
    x.detach().with_node(Some(crate::tape::Node::leaf()))
}

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
}

/// Two computations of the same thing.
struct Pair {
    what: &'static str,
    ours: Tensor,
    expected: Tensor,
    /// How many times the tolerance is allowed, for sums of many terms.
    growth: f64,
}

impl Case {
    /// `run` at `inputs`. Inputs in f64 are those whose gradient is checked.
    pub fn new(inputs: Vec<Tensor>, run: impl Fn(&[Tensor]) -> Tensor + Send + Sync + 'static) -> Self {
        Self { inputs, run: Box::new(run), reference: None, differentiable: true }
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
        if self.differentiable { gradcheck(&self.run, &self.inputs, GRADIENT.most, rng) } else { Ok(0.0) }
    }

    /// How far the f32 path, value and gradient, is from f64 on the tier that the calling thread's kernels run on, to be compared with
    /// [`SINGLE`]; infinite where it is not comparable.
    pub fn single_deviation(&self, rng: &mut Rng) -> f64 {
        self.deviation_on(None, rng)
    }

    /// As [`Self::single_deviation`], of inputs that live on a device, to be compared with [`ON_DEVICE`].
    pub fn deviation_on(&self, gpu: Option<&Gpu>, rng: &mut Rng) -> f64 {
        let weights = Tensor::randn(*(self.run)(&self.inputs).dims(), DType::F64, rng);
        self.single_on(gpu, &weights).iter().fold(0.0, |m, p| m.max(deviation(&p.ours, &p.expected) / p.growth))
    }

    /// How far the op, value and gradient in f64, is from its slower way; 0 where it has none.
    pub fn composed_deviation(&self, rng: &mut Rng) -> f64 {
        let weights = Tensor::randn(*(self.run)(&self.inputs).dims(), DType::F64, rng);
        self.composed(&weights).iter().fold(0.0, |m, p| m.max(deviation(&p.ours, &p.expected)))
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
        let mut pairs = vec![Pair { what: "f32 value against f64", growth: growth(&ours), ours, expected }];
        if self.differentiable {
            let fast = gradients(&self.run, &single, &to_f32(weights)).grads;
            let exact = gradients(&self.run, &double, &to_f64(&to_f32(weights))).grads;
            let pair =
                |(ours, expected)| Pair { what: "f32 gradient against f64", growth: growth(&ours), ours, expected };
            pairs.extend(fast.into_iter().zip(exact).map(pair));
        }
        pairs
    }

    /// Value and gradients of the op and of its slower way, in f64.
    fn composed(&self, weights: &Tensor) -> Vec<Pair> {
        let Some(reference) = &self.reference else { return Vec::new() };
        let (ours, expected) = ((self.run)(&self.inputs), reference(&self.inputs));
        let mut pairs = vec![Pair { what: "value against the reference", ours, expected, growth: 1.0 }];
        if self.differentiable {
            let ours = gradients(&self.run, &self.inputs, weights).grads;
            let theirs = gradients(reference, &self.inputs, weights).grads;
            let pair = |(ours, expected)| Pair { what: "gradient against the reference", ours, expected, growth: 1.0 };
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

/// The same elements in another type and in the same layout, gaps included.
fn retyped(x: &Tensor, dtype: DType) -> Tensor {
    let stored = x.with_layout(Layout::contiguous(Dims::from([x.layout().end()]), 0));
    stored.converted(dtype).with_layout(*x.layout())
}

impl Pair {
    #[track_caller]
    fn assert(&self, tolerance: f64) {
        assert_close(self.what, &self.ours, &self.expected, tolerance * self.growth);
    }
}

/// The largest |a - b| over the larger of 1 and the largest |b|; infinite where dims, infinities or NaN do not match.
pub fn deviation(a: &Tensor, b: &Tensor) -> f64 {
    if a.dims() != b.dims() {
        return f64::INFINITY;
    }
    let (a, b) = (a.to_f64_vec(), b.to_f64_vec());
    let scale = b.iter().filter(|x| x.is_finite()).fold(1.0, |m: f64, x| m.max(x.abs()));
    let of = |(x, y): (&f64, &f64)| match (x - y).abs() / scale {
        _ if x == y || x.is_nan() && y.is_nan() => 0.0,
        off if off.is_finite() => off,
        _ => f64::INFINITY,
    };
    a.iter().zip(&b).map(of).fold(0.0, f64::max)
}

/// Same dims, and [`deviation`] within `tolerance`.
#[track_caller]
pub fn assert_close(what: &str, a: &Tensor, b: &Tensor, tolerance: f64) {
    assert_eq!(a.dims(), b.dims(), "{what}: dims");
    let off = deviation(a, b);
    assert!(
        off <= tolerance,
        "{what}: {off:e} apart, tolerance {tolerance:e}\n{:?}\n{:?}",
        a.to_f64_vec(),
        b.to_f64_vec()
    );
}

/// Draws inputs for [`Case`]s: dims up to a size with 0, 1 and primes among them, values, and layouts (permuted, sliced, flipped).
pub struct Gen {
    /// Random numbers for anything else that a case draws.
    pub rng: Rng,
    size: usize,
}

impl Gen {
    /// Dims go up to about `size`.
    pub fn new(seed: u64, size: usize) -> Self {
        Self { rng: Rng::new(seed, 0x67_656e), size: size.max(1) }
    }

    /// A size from 0 on, mostly small; 0 in about one of twelve.
    pub fn size(&mut self) -> usize {
        if self.rng.chance(0.08) { 0 } else { self.size_from(1) }
    }

    /// A size from `low` on.
    pub fn size_from(&mut self, low: usize) -> usize {
        low + self.rng.below(self.size)
    }

    /// One of `choices`.
    pub fn choose<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.rng.below(choices.len())]
    }

    /// Dims of a rank in `low..=high`, zero sizes among them.
    pub fn dims(&mut self, low: usize, high: usize) -> Dims {
        let rank = low + self.rng.below(high - low + 1);
        let sizes: Vec<usize> = (0..rank).map(|_| self.size()).collect();
        Dims::new(&sizes)
    }

    /// Dims of a rank in `low..=high` and one of the dimensions, which is not empty; the others may be.
    pub fn dims_along(&mut self, low: usize, high: usize) -> (Dims, usize) {
        let dims = self.dims(low, high);
        let dim = self.rng.below(dims.len());
        let size = self.size_from(1);
        (dims.with(dim, size), dim)
    }

    /// Dims without zero sizes.
    pub fn full_dims(&mut self, low: usize, high: usize) -> Dims {
        let rank = low + self.rng.below(high - low + 1);
        let sizes: Vec<usize> = (0..rank).map(|_| self.size_from(1)).collect();
        Dims::new(&sizes)
    }

    /// Dims that broadcast to `dims`: some leading ones left off, some sizes 1.
    pub fn broadcastable(&mut self, dims: &[usize]) -> Dims {
        let skip = if self.rng.chance(0.3) { self.rng.below(dims.len() + 1) } else { 0 };
        let sizes: Vec<usize> = dims[skip..].iter().map(|&d| if self.rng.chance(0.3) { 1 } else { d }).collect();
        Dims::new(&sizes)
    }

    /// Standard normal f64 values in some layout.
    pub fn tensor(&mut self, dims: impl Into<Dims>) -> Tensor {
        self.tensor_of(dims, |rng| rng.normal())
    }

    /// Values uniform in [low, high).
    pub fn uniform(&mut self, dims: impl Into<Dims>, low: f64, high: f64) -> Tensor {
        self.tensor_of(dims, |rng| rng.range(low, high))
    }

    /// Normal values at least 0.01 away from each of `kinks`, where a derivative jumps.
    pub fn away_from(&mut self, dims: impl Into<Dims>, kinks: &[f64]) -> Tensor {
        self.tensor_of(dims, |rng| {
            loop {
                let x = 1.5 * rng.normal();
                if kinks.iter().all(|k| (x - k).abs() > 0.01) {
                    return x;
                }
            }
        })
    }

    /// Values no two of which are nearer than 0.01: no ties for max and sorting.
    pub fn distinct(&mut self, dims: impl Into<Dims>) -> Tensor {
        let dims = dims.into();
        let mut values: Vec<f64> = (0..dims.numel())
            .map(|i| 0.02 * i as f64 - 0.01 * dims.numel() as f64 + self.rng.range(0.0, 0.01))
            .collect();
        self.rng.shuffle(&mut values);
        let mut values = values.into_iter();
        self.laid_out(dims, |_| values.next().expect("one value per element"))
    }

    /// Values from `draw` in some layout.
    pub fn tensor_of(&mut self, dims: impl Into<Dims>, mut draw: impl FnMut(&mut Rng) -> f64) -> Tensor {
        self.laid_out(dims.into(), &mut draw)
    }

    /// i64 values in 0..below, in some layout.
    pub fn ids(&mut self, dims: impl Into<Dims>, below: usize) -> Tensor {
        retyped(&self.tensor_of(dims, |rng| rng.below(below) as f64), DType::I64)
    }

    /// u8 values, 1 with probability `p`, in some layout.
    pub fn mask(&mut self, dims: impl Into<Dims>, p: f64) -> Tensor {
        retyped(&self.tensor_of(dims, |rng| f64::from(u8::from(rng.chance(p)))), DType::U8)
    }

    /// Half of the time contiguous, else stored in another order of dimensions, with gaps and flips.
    fn laid_out(&mut self, dims: Dims, mut draw: impl FnMut(&mut Rng) -> f64) -> Tensor {
        let values: Vec<f64> = (0..dims.numel()).map(|_| draw(&mut self.rng)).collect();
        let plain = Tensor::from_slice(&values, dims);
        if dims.is_empty() || self.rng.chance(0.5) {
            return plain;
        }
        let mut order: Vec<usize> = (0..dims.len()).collect();
        self.rng.shuffle(&mut order);
        let mut stored = plain.layout().permute(&order);
        let flips: Vec<usize> = (0..dims.len()).filter(|_| self.rng.chance(0.2)).collect();
        flips.iter().for_each(|&k| stored = stored.flip(k));
        let stored = plain.with_layout(stored).packed();
        // Gaps: the values lie in a larger buffer whose other elements are NaN and must never be read.
        let room: Vec<usize> = stored.dims().iter().map(|&d| d + self.rng.below(3)).collect();
        let start: Vec<usize> =
            room.iter().zip(stored.dims().iter()).map(|(&r, &d)| self.rng.below(r - d + 1)).collect();
        let mut cells = vec![f64::NAN; room.iter().product()];
        let packed = stored.to_f64_vec();
        for (k, &value) in packed.iter().enumerate() {
            let (mut rest, mut at, mut step) = (k, 0, 1);
            for axis in (0..room.len()).rev() {
                at += (start[axis] + rest % stored.dims()[axis]) * step;
                rest /= stored.dims()[axis];
                step *= room[axis];
            }
            cells[at] = value;
        }
        let room = Tensor::from_slice(&cells, Dims::new(&room));
        let mut layout = *room.layout();
        for axis in 0..dims.len() {
            layout = layout.narrow(axis, start[axis], stored.dims()[axis]);
        }
        flips.iter().for_each(|&k| layout = layout.flip(k));
        let mut inverse = vec![0; order.len()];
        order.iter().enumerate().for_each(|(k, &o)| inverse[o] = k);
        room.with_layout(layout.permute(&inverse))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::{Meta, Op, Output, Saved, Saves, apply};

    /// y = 3x with a derivative of the given factor: a planted bug where it is not 3.
    struct Triple(f64);

    impl Op for Triple {
        fn name(&self) -> &'static str {
            "triple"
        }
        fn shape(&self, x: &[Meta]) -> Meta {
            x[0]
        }
        fn cpu(&self, x: &[&Tensor], _: Meta) -> Output {
            Tensor::from_slice(&x[0].to_f64_vec().iter().map(|x| 3.0 * x).collect::<Vec<_>>(), *x[0].dims()).into()
        }
        fn saves(&self, _: &[bool]) -> Saves {
            Saves::NOTHING
        }
        fn vjp(&self, _: &Saved, dy: &Tensor) -> Vec<Option<Tensor>> {
            let scaled: Vec<f64> = dy.to_f64_vec().iter().map(|d| self.0 * d).collect();
            vec![Some(Tensor::from_slice(&scaled, *dy.dims()))]
        }
        fn cases(_: &mut Gen) -> Case {
            unreachable!("only used here")
        }
    }

    #[test]
    fn a_wrong_derivative_is_caught() {
        let mut g = Gen::new(5, 7);
        for _ in 0..20 {
            let x = [g.tensor([3, 4])];
            gradcheck(|x| apply(Triple(3.0), &[&x[0]]), &x, 1e-6, &mut g.rng).unwrap();
            for wrong in [-3.0, 2.999, 0.0, f64::NAN] {
                assert!(gradcheck(|x| apply(Triple(wrong), &[&x[0]]), &x, 1e-6, &mut g.rng).is_err(), "{wrong}");
            }
        }
    }

    #[test]
    fn drawn_layouts_hold_the_drawn_values() {
        let mut g = Gen::new(1, 5);
        let mut odd = 0;
        for k in 0..200 {
            let dims = g.dims(0, 4);
            let mut next = k as f64;
            let x = g.tensor_of(dims, |_| {
                next += 1.0;
                next
            });
            assert_eq!(*x.dims(), dims);
            assert_eq!(x.to_f64_vec(), (1..=dims.numel()).map(|i| (k + i) as f64).collect::<Vec<_>>());
            odd += usize::from(!x.is_contiguous());
        }
        assert!(odd > 40, "only {odd} of 200 drawn layouts are not contiguous");
    }
}
