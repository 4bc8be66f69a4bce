//! Checks of gradients against finite differences in f64, and the drawing of inputs for them.

mod case;
mod draw;

use std::fmt;

use half::{bf16, f16};

use crate::distance;
use crate::dtype::DType;
use crate::rng::Rng;
use crate::tape::backward_with;
use crate::tensor::Tensor;

pub use case::{COMPOSED, Case, GRADIENT, ON_DEVICE, SINGLE, Tolerance};
pub use draw::Gen;

/// A function of tensors, run as often as a check needs and on any thread.
pub type Function = Box<dyn Fn(&[Tensor]) -> Tensor + Send + Sync>;

/// How the gradient of an input failed its check.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Mismatch {
    /// Projections of the two gradients are not the same.
    Apart {
        /// Which input.
        input: usize,
        /// Projected gradient that backward gives.
        analytic: f64,
        /// The same by central differences.
        numeric: f64,
    },
    /// What backward gives is not finite.
    Analytic {
        /// Which input.
        input: usize,
        /// Which element of it, in order.
        element: usize,
        /// Its gradient.
        value: f64,
    },
    /// A central difference is not finite.
    Numeric {
        /// Which input.
        input: usize,
        /// Which element of the function's value, in order.
        element: usize,
        /// Its difference.
        value: f64,
    },
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Apart { input, analytic, numeric } => {
                write!(f, "gradient of input {input}: backward gives {analytic:e}, central differences {numeric:e}")
            }
            Self::Analytic { input, element, value } => {
                write!(f, "gradient of input {input}: backward gives {value} for element {element}")
            }
            Self::Numeric { input, element, value } => {
                write!(
                    f,
                    "gradient of input {input}: the central difference of element {element} of the value is {value}"
                )
            }
        }
    }
}

impl std::error::Error for Mismatch {}

/// Checks the gradient of `f` at `x` for each f64 input: for random directions u and weights w,
/// `<w, f(x + h u) - f(x - h u)> / 2h` must equal `<grad of <w, f>, u>` to `tolerance`, relative to the sum of the
/// absolute terms. One projection costs two evaluations whatever the size, and a single wrong element shows in it. Returns the largest
/// difference, relative to the same.
///
/// Kinks (relu at 0, ties of max) must be further than about 1e-4 from `x`.
///
/// # Errors
/// If the two differ by more, or an element of either is not finite.
pub fn gradcheck(
    f: impl Fn(&[Tensor]) -> Tensor,
    x: &[Tensor],
    tolerance: f64,
    rng: &mut Rng,
) -> Result<f64, Mismatch> {
    Differences::USUAL.check(f, x, tolerance, rng)
}

/// How central differences are taken.
#[derive(Clone, Copy)]
struct Differences {
    /// Half of the distance between the two places.
    step: f64,
    /// What roundings may change a value by, relative to it.
    unit: f64,
}

impl Differences {
    const USUAL: Self = Self { step: 1e-5, unit: f64::EPSILON };

    /// Of a linear function, of which any step is right, that rounds to `dtype` on its way, and its gradient on the way back.
    fn rounded_to(dtype: DType) -> Self {
        let spacing = match dtype {
            DType::F64 => f64::EPSILON,
            DType::F32 => f32::EPSILON.into(),
            DType::BF16 => bf16::EPSILON.into(),
            DType::F16 => f16::EPSILON.into(),
            _ => panic!("{dtype} has no gradient"),
        };
        Self { step: 1.0, unit: spacing / 2.0 }
    }

    /// As [`gradcheck`].
    fn check(
        self,
        f: impl Fn(&[Tensor]) -> Tensor,
        x: &[Tensor],
        tolerance: f64,
        rng: &mut Rng,
    ) -> Result<f64, Mismatch> {
        let Self { step, unit } = self;
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
            if let Some((element, value)) = not_finite(&gradient) {
                return Err(Mismatch::Analytic { input: i, element, value });
            }
            let (up, down) = (shifted(step), shifted(-step));
            let slopes: Vec<f64> = up.iter().zip(&down).map(|(up, down)| (up - down) / (2.0 * step)).collect();
            if let Some((element, value)) = not_finite(&slopes) {
                return Err(Mismatch::Numeric { input: i, element, value });
            }
            // The least that any number is rounded by: half types have their smallest ones within reach.
            let (mut numeric, mut scale, mut rounding) = (0.0, 1e-6, unit * unit);
            for (k, w) in weights.to_f64_vec().into_iter().enumerate() {
                numeric += w * slopes[k];
                scale += (w * slopes[k]).abs();
                // Where the values are large beside their difference, its last bits are all that is left of it.
                rounding += (w * up[k].abs().max(down[k].abs())).abs() * unit / step;
            }
            let mut analytic = 0.0;
            for (g, u) in gradient.iter().zip(direction.to_f64_vec()) {
                analytic += g * u;
                scale += (g * u).abs();
                rounding += (g * u).abs() * unit;
            }
            let error = (analytic - numeric).abs();
            // Sums of finite terms may overflow.
            let passes = (scale + rounding).is_finite() && error <= tolerance * scale + 2.0 * rounding;
            if !passes {
                return Err(Mismatch::Apart { input: i, analytic, numeric });
            }
            largest = largest.max((error - 2.0 * rounding) / scale);
        }
        Ok(largest)
    }
}

/// The first element that is not finite, and where it is.
fn not_finite(x: &[f64]) -> Option<(usize, f64)> {
    x.iter().copied().enumerate().find(|(_, x)| !x.is_finite())
}

/// A trainable leaf that keeps the strides of `x`, so that backward is checked on odd layouts too.
fn tracked_view(x: &Tensor) -> Tensor {
    x.detach().with_node(Some(crate::tape::Node::leaf()))
}

/// The largest |a - b| over the larger of 1 and the largest |b|; infinite where dims or infinities differ, or one is NaN.
pub fn deviation(a: &Tensor, b: &Tensor) -> f64 {
    if a.dims() != b.dims() {
        return f64::INFINITY;
    }
    distance::relative(&a.to_f64_vec(), &b.to_f64_vec(), 1.0)
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
        for dims in [&[3, 4][..], &[1]].repeat(20) {
            let x = [g.tensor(dims)];
            gradcheck(|x| apply(Triple(3.0), &[&x[0]]), &x, 1e-6, &mut g.rng).unwrap();
            for wrong in [-3.0, 2.999, 0.0, f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
                assert!(gradcheck(|x| apply(Triple(wrong), &[&x[0]]), &x, 1e-6, &mut g.rng).is_err(), "{wrong}");
            }
        }
    }

    /// Also where the other gradient is the same, or sums alone overflow.
    #[test]
    fn what_is_not_finite_is_told_with_its_element() {
        let mut rng = Rng::new(6, 0);
        let x = [Tensor::from_slice(&[1.0, 2.0, 3.0], [3])];
        let mut failed = |f: &dyn Fn(&Tensor) -> Tensor| gradcheck(|x| f(&x[0]), &x, 1e-6, &mut rng).unwrap_err();
        let factors = |middle: f64| Tensor::from_slice(&[1.0, middle, 1.0], [3]);
        // The square root of zero, which does not change.
        let analytic = failed(&|x| x.mul(&factors(0.0)).sqrt());
        assert!(
            matches!(analytic, Mismatch::Analytic { input: 0, element: 1, value } if !value.is_finite()),
            "{analytic}"
        );
        let numeric = failed(&|x| x.detach().mul(&factors(f64::INFINITY)));
        assert!(matches!(numeric, Mismatch::Numeric { input: 0, element: 1, value } if value.is_nan()), "{numeric}");
        let both = failed(&|x| x.mul(&factors(f64::INFINITY)));
        assert!(matches!(both, Mismatch::Analytic { input: 0, element: 1, .. }), "{both}");
        let (large, x) = (|x: &[Tensor]| apply(Triple(f64::MAX / 8.0), &[&x[0]]), [Tensor::zeros([100], DType::F64)]);
        let overflow = gradcheck(large, &x, 1e-6, &mut rng).unwrap_err();
        assert!(matches!(overflow, Mismatch::Apart { input: 0, .. }), "{overflow}");
    }
}
