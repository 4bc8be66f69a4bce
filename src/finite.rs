//! Where a computation stops being finite: the first op, forward or backward, that makes NaN or an infinity of finite numbers.

use std::cell::{Cell, RefCell};

use kernels_cpu::reduce;

use crate::for_float;
use crate::layout::Dims;
use crate::scoped;
use crate::tensor::Tensor;

thread_local! {
    static WATCHING: Cell<bool> = const { Cell::new(false) };
    static SEEN: RefCell<Seen> = const { RefCell::new(Seen { addresses: Vec::new(), origin: None }) };
}

/// What has been computed since the watch began.
struct Seen {
    /// Where the inputs of ops lie, in the order of the ops.
    addresses: Vec<usize>,
    origin: Option<Origin>,
}

/// The op in which it began.
#[derive(Clone, Debug)]
pub struct Origin {
    /// Its name.
    pub op: &'static str,
    /// Whether in its derivative.
    pub backward: bool,
    /// Dims of what is not finite.
    pub dims: Dims,
    own: Vec<usize>,
    earlier: Vec<usize>,
}

impl Origin {
    /// How near the op is to a tensor that is still where it was: 0 for one of its inputs, more for an input of an earlier op.
    pub fn distance(&self, tensor: &Tensor) -> Option<usize> {
        let at = address(tensor);
        if self.own.contains(&at) {
            return Some(0);
        }
        self.earlier.iter().rposition(|&a| a == at).map(|k| self.earlier.len() - k)
    }
}

fn address(tensor: &Tensor) -> usize {
    tensor.buffer().bytes().as_ptr() as usize + tensor.layout().offset() * tensor.dtype().size()
}

/// Whether every element is a finite number; true of integers.
pub fn is_finite(tensor: &Tensor) -> bool {
    if !tensor.dtype().is_float() {
        return true;
    }
    if !tensor.dtype().is_arithmetic() {
        return tensor.to_f64_vec().iter().all(|x| x.is_finite());
    }
    // Squares of f32 do not overflow f64; of f64 they may, so then every element is looked at.
    let packed = tensor.packed();
    for_float!("is_finite", packed.dtype(), F => {
        let values = packed.as_slice::<F>();
        reduce::sum_squares(values).is_finite() || values.iter().all(|x| x.is_finite())
    })
}

/// Runs `f` and tells where on this thread an op's result was the first that is not finite. Slow: every result is read once more.
pub fn watch<R>(f: impl FnOnce() -> R) -> (R, Option<Origin>) {
    SEEN.set(Seen { addresses: Vec::new(), origin: None });
    let result = scoped::with(&WATCHING, true, f);
    (result, SEEN.with_borrow_mut(|seen| seen.origin.take()))
}

/// An op's result and inputs; of a derivative the gradients, and what they were made of. Costs nothing but a look unless watched.
#[inline]
pub(crate) fn saw<'a>(op: &'static str, backward: bool, results: &[&Tensor], inputs: impl Iterator<Item = &'a Tensor>) {
    if WATCHING.get() {
        note(op, backward, results, inputs);
    }
}

#[cold]
fn note<'a>(op: &'static str, backward: bool, results: &[&Tensor], inputs: impl Iterator<Item = &'a Tensor>) {
    SEEN.with_borrow_mut(|seen| {
        if seen.origin.is_some() {
            return;
        }
        let (mut own, mut sound) = (Vec::new(), true);
        for x in inputs {
            own.push(address(x));
            sound &= is_finite(x);
        }
        match results.iter().find(|y| !is_finite(y)) {
            Some(y) if sound => {
                let earlier = std::mem::take(&mut seen.addresses);
                seen.origin = Some(Origin { op, backward, dims: *y.dims(), own, earlier });
            }
            _ => seen.addresses.append(&mut own),
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::DType;

    fn tensor(values: &[f32]) -> Tensor {
        Tensor::from_slice(values, [values.len()])
    }

    #[test]
    fn the_op_that_began_it_is_told_with_what_it_read() {
        let (x, w) = (tensor(&[0.0, 1.0]), tensor(&[2.0, 200.0]));
        let (_, origin) = watch(|| x.mul(&w).tanh());
        assert!(origin.is_none());
        let (_, origin) = watch(|| x.mul(&w).exp().log().tanh().sum_all());
        let origin = origin.unwrap();
        assert_eq!((origin.op, origin.backward, origin.dims[0]), ("exp", false, 2));
        // w was read by the op before.
        let far = origin.distance(&w).unwrap();
        assert!(far > 0 && origin.distance(&x).is_some() && origin.distance(&tensor(&[1.0])).is_none());
        let (_, origin) = watch(|| w.exp());
        assert_eq!(origin.unwrap().distance(&w), Some(0));
        assert!(std::panic::catch_unwind(|| watch(|| panic!("in the middle"))).is_err() && !WATCHING.get());
        // What was not finite from the start began in no op.
        assert!(watch(|| tensor(&[f32::NAN]).exp()).1.is_none());
    }

    #[test]
    fn derivatives_are_watched_too() {
        let x = tensor(&[0.0, 4.0]).trainable();
        let (_, origin) = watch(|| x.sqrt().sum_all().backward());
        let origin = origin.unwrap();
        assert!(origin.backward && origin.op == "sqrt", "{origin:?}");
    }

    #[test]
    fn finite_is_what_has_neither_nan_nor_infinity() {
        for dtype in [DType::F32, DType::F64, DType::BF16, DType::F16] {
            for (value, finite) in [(1e4, true), (f64::NAN, false), (f64::INFINITY, false), (f64::NEG_INFINITY, false)]
            {
                let mut values = vec![0.5; 5000];
                values[4321] = value;
                let t = Tensor::from_slice(&values, [5000]).to_dtype(dtype);
                assert_eq!(is_finite(&t), finite, "{value} in {dtype}");
            }
        }
        assert!(is_finite(&Tensor::from_slice(&[f64::MAX, -f64::MAX], [2])) && is_finite(&Tensor::scalar(3i64)));
    }
}
