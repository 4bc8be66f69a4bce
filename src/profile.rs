//! Where time goes: what each op took, forward and backward.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use crate::op::Meta;

/// What one op, or one step of a plan, took.
#[derive(Clone, Debug)]
pub struct Cost {
    /// The op's name, and what was joined to it.
    pub name: String,
    /// Time.
    pub time: Duration,
    /// Operations of matrix products, two for a multiplication and an addition.
    pub flops: u64,
    /// Bytes of inputs and outputs that are not packed parameters.
    pub bytes: u64,
}

/// Bytes of tensors.
pub(crate) fn bytes(metas: impl IntoIterator<Item = Meta>) -> u64 {
    metas.into_iter().map(|meta| meta.bytes() as u64).sum()
}

thread_local! {
    /// What has been collected, and whether an op is running: those that it runs itself are in its own time.
    static COSTS: RefCell<Option<(Vec<Cost>, bool)>> = const { RefCell::new(None) };
}

/// Runs `f` and tells what each op on this thread took, in order. Derivatives are named `NAME backward`.
pub fn collect<R>(f: impl FnOnce() -> R) -> (R, Vec<Cost>) {
    let before = COSTS.replace(Some((Vec::new(), false)));
    let result = f();
    let (costs, _) = COSTS.replace(before).expect("set above");
    (result, costs)
}

/// Runs an op's work; `describe` gives its name, flops and bytes. Costs nothing but a look unless collected.
#[inline]
pub(crate) fn timed<R>(run: impl FnOnce() -> R, describe: impl FnOnce(&R) -> (String, u64, u64)) -> R {
    let outermost =
        COSTS.with_borrow_mut(|costs| costs.as_mut().is_some_and(|(_, inside)| !std::mem::replace(inside, true)));
    if !outermost {
        return run();
    }
    let start = Instant::now();
    let result = run();
    let time = start.elapsed();
    let (name, flops, bytes) = describe(&result);
    COSTS.with_borrow_mut(|costs| {
        if let Some((all, inside)) = costs {
            all.push(Cost { name, time, flops, bytes });
            *inside = false;
        }
    });
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::DType;
    use crate::tensor::Tensor;

    #[test]
    fn ops_and_their_derivatives_are_told_once_each() {
        let (x, w) = (Tensor::full([3, 4], 1.0, DType::F32), Tensor::full([5, 4], 1.0, DType::F32).trainable());
        let (_, costs) = collect(|| x.linear(&w, None, None).square().sum_all().backward());
        let told: Vec<(&str, u64)> = costs.iter().map(|c| (c.name.as_str(), c.flops)).collect();
        // Of the product's derivatives only the weight's is asked for.
        let expected = [
            ("linear", 120),
            ("square", 0),
            ("sum", 0),
            ("reshape", 0),
            ("reshape backward", 0),
            ("sum backward", 0),
            ("square backward", 0),
            ("linear backward", 120),
        ];
        assert_eq!(told, expected);
        assert_eq!(costs[0].bytes, 4 * (12 + 20 + 15));
        assert!(collect(|| ()).1.is_empty());
    }
}
