//! Reductions of contiguous [outer, n, inner] data over n.
//!
//! The order of summation depends on the sizes and the tier alone: fixed chunks, combined in order.

use alloc::vec;
use alloc::vec::Vec;

use crate::float::Float;
use crate::par;
use crate::simd::{Simd, SimdOp, dispatch};

/// Numbers summed in one go before partial sums are combined.
const CHUNK: usize = 4096;

/// Sum of a slice in 16 running sums, combined as a tree. Errors grow with n / 16, not n.
struct SumSlice<'a, F>(&'a [F]);

impl<F: Float> SimdOp for SumSlice<'_, F> {
    type Output = F;
    #[inline(always)]
    fn eval<S: Simd>(self, _: S) -> F {
        let mut sums = [F::ZERO; 16];
        let chunks = self.0.chunks_exact(16);
        let rest = chunks.remainder();
        for chunk in chunks {
            for k in 0..16 {
                sums[k] += chunk[k];
            }
        }
        for (s, &x) in sums.iter_mut().zip(rest) {
            *s += x;
        }
        tree(sums)
    }
}

#[inline(always)]
fn tree<F: Float>(mut sums: [F; 16]) -> F {
    let mut n = 16;
    while n > 1 {
        n /= 2;
        for k in 0..n {
            sums[k] += sums[k + n];
        }
    }
    sums[0]
}

fn sum_slice<F: Float>(x: &[F]) -> F {
    if x.len() <= CHUNK {
        return dispatch(SumSlice(x));
    }
    let parts = par::map_chunks(x.len(), CHUNK, 1, |range| dispatch(SumSlice(&x[range])));
    sum_slice(&parts)
}

/// Adds rows of `inner` to `acc`.
struct AddRows<'a, F>(&'a [F], &'a mut [F]);

impl<F: Float> SimdOp for AddRows<'_, F> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd>(self, _: S) {
        for row in self.0.chunks_exact(self.1.len()) {
            self.1.iter_mut().zip(row).for_each(|(a, &x)| *a += x);
        }
    }
}

#[track_caller]
fn check<F>(x: &[F], [outer, n, inner]: [usize; 3], out: usize) {
    assert!(
        x.len() == outer * n * inner && out == outer * inner,
        "reduce: {} elements as {:?} into {out}",
        x.len(),
        [outer, n, inner]
    );
}

/// out = sum over n.
pub fn sum<F: Float>(x: &[F], [outer, n, inner]: [usize; 3], out: &mut [F]) {
    check(x, [outer, n, inner], out.len());
    if out.is_empty() {
        return;
    }
    if inner == 1 {
        return par::chunks_mut(out, 1, n, |i, out| out[0] = sum_slice(&x[i * n..][..n]));
    }
    // Rows in fixed groups, whose sums are combined in order: errors grow with the number of groups plus their length.
    const GROUP: usize = 64;
    par::chunks_mut(out, inner, n * inner, |i, out| {
        let rows = &x[i * n * inner..][..n * inner];
        out.fill(F::ZERO);
        if n <= GROUP {
            return dispatch(AddRows(rows, out));
        }
        let parts: Vec<Vec<F>> = par::map_chunks(n, GROUP, inner, |range| {
            let mut part = vec![F::ZERO; inner];
            dispatch(AddRows(&rows[range.start * inner..range.end * inner], &mut part));
            part
        });
        parts.iter().for_each(|part| dispatch(AddRows(part, out)));
    });
}

fn extreme<F: Float>(
    x: &[F],
    [outer, n, inner]: [usize; 3],
    out: &mut [F],
    index: &mut [i64],
    better: fn(F, F) -> bool,
) {
    check(x, [outer, n, inner], out.len());
    assert!(n > 0 && index.len() == out.len(), "extreme of {n} elements with {} indices", index.len());
    for i in 0..outer {
        for k in 0..inner {
            let at = |j: usize| x[(i * n + j) * inner + k];
            let (mut best, mut value) = (0, at(0));
            for j in 1..n {
                // NaN wins over numbers and stays.
                if better(at(j), value) || (at(j).is_nan() && !value.is_nan()) {
                    (best, value) = (j, at(j));
                }
            }
            out[i * inner + k] = value;
            index[i * inner + k] = best as i64;
        }
    }
}

/// Largest over n and its first index; NaN if there is one.
pub fn max<F: Float>(x: &[F], dims: [usize; 3], out: &mut [F], index: &mut [i64]) {
    extreme(x, dims, out, index, |a, b| a > b);
}

/// Smallest over n and its first index; NaN if there is one.
pub fn min<F: Float>(x: &[F], dims: [usize; 3], out: &mut [F], index: &mut [i64]) {
    extreme(x, dims, out, index, |a, b| a < b);
}

/// ln sum e^x over n, from the largest down so that nothing overflows. Over nothing it is -infinity.
pub fn logsumexp<F: Float>(x: &[F], [outer, n, inner]: [usize; 3], out: &mut [F]) {
    check(x, [outer, n, inner], out.len());
    par::chunks_mut(out, 1, n * 16, |o, out| {
        let (i, k) = (o / inner, o % inner);
        let at = |j: usize| x[(i * n + j) * inner + k];
        let top = (0..n).map(at).fold(F::NEG_INFINITY, |a, b| if b > a || b.is_nan() { b } else { a });
        out[0] = if top.is_finite() { top + (0..n).map(|j| (at(j) - top).exp()).sum::<F>().ln() } else { top };
    });
}

/// Mean squared distance from the mean over n, divided by n - `correction`; in two passes.
pub fn var<F: Float>(x: &[F], [outer, n, inner]: [usize; 3], correction: usize, out: &mut [F]) {
    check(x, [outer, n, inner], out.len());
    par::chunks_mut(out, 1, n * 4, |o, out| {
        let (i, k) = (o / inner, o % inner);
        let at = |j: usize| x[(i * n + j) * inner + k];
        let mean = (0..n).map(at).sum::<F>() / F::from_f64(n as f64);
        let squares = (0..n).map(|j| (at(j) - mean) * (at(j) - mean)).sum::<F>();
        out[0] = squares / F::from_f64((n - correction) as f64);
    });
}

/// Sum of squares in f64.
pub fn sum_squares<F: Float>(x: &[F]) -> f64 {
    let parts = par::map_chunks(x.len(), CHUNK, 1, |range| dispatch(Squares(&x[range])));
    parts.iter().sum()
}

struct Squares<'a, F>(&'a [F]);

impl<F: Float> SimdOp for Squares<'_, F> {
    type Output = f64;
    #[inline(always)]
    fn eval<S: Simd>(self, _: S) -> f64 {
        // As many sums as hide the time of an addition; the same on every tier.
        let mut sums = [0.0; 32];
        let mut blocks = self.0.chunks_exact(32);
        for block in &mut blocks {
            for (sum, x) in sums.iter_mut().zip(block) {
                let x = x.to_f64();
                *sum += x * x;
            }
        }
        let rest: f64 = blocks.remainder().iter().map(|x| x.to_f64() * x.to_f64()).sum();
        sums.iter().sum::<f64>() + rest
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn sums_are_sums(outer in 0usize..4, n in 0usize..200, inner in 1usize..40, seed in any::<u64>()) {
            let mut rng = crate::rng::Rng::new(seed, 0);
            let x: Vec<f64> = (0..outer * n * inner).map(|_| rng.normal()).collect();
            let single: Vec<f32> = x.iter().map(|&x| x as f32).collect();
            let (mut out, mut fast) = (vec![0.0; outer * inner], vec![0f32; outer * inner]);
            sum(&x, [outer, n, inner], &mut out);
            sum(&single, [outer, n, inner], &mut fast);
            for i in 0..outer { for k in 0..inner {
                let exact: f64 = (0..n).map(|j| x[(i * n + j) * inner + k]).sum();
                prop_assert!((out[i * inner + k] - exact).abs() < 1e-12 * (n + 1) as f64);
                prop_assert!((f64::from(fast[i * inner + k]) - exact).abs() < 1e-6 * (n + 1) as f64);
            }}
        }
    }

    #[test]
    fn thread_counts_do_not_change_bits() {
        let x: Vec<f32> = (0..300_000).map(|k| (k as f32).sin()).collect();
        let run = |threads, dims: [usize; 3]| {
            par::Pool::new(threads).install(|| {
                let mut out = vec![0f32; dims[0] * dims[2]];
                sum(&x, dims, &mut out);
                out
            })
        };
        for dims in [[1, 300_000, 1], [300, 1000, 1], [1, 1000, 300], [3, 1000, 100]] {
            assert!([2, 3, 7].iter().all(|&t| run(t, dims) == run(1, dims)), "{dims:?}");
        }
    }

    #[cfg(feature = "rayon")]
    #[test]
    fn reductions_are_their_formulas_on_every_tier_and_thread() {
        use crate::testing::{apart, narrow, normals, on_every_tier, wide};
        on_every_tier(|isa| {
            let mut rng = crate::rng::Rng::new(8, 0);
            for dims in
                [[1, 1, 1], [2, 5, 3], [3, 2, 1], [4, 65, 7], [2, 130, 40], [1, 9000, 1], [300, 40, 9], [0, 3, 2]]
            {
                let [outer, n, inner] = dims;
                let x = narrow(&normals(&mut rng, outer * n * inner));
                let double = wide(&x);
                let of = |f: &dyn Fn(Vec<f64>) -> f64| -> Vec<f64> {
                    let line = |o: usize| (0..n).map(|j| double[(o / inner * n + j) * inner + o % inner]).collect();
                    (0..outer * inner).map(|o| f(line(o))).collect()
                };
                let (mut out, mut index) = (vec![7.0f32; outer * inner], vec![7; outer * inner]);
                sum(&x, dims, &mut out);
                assert!(apart(&wide(&out), &of(&|l| l.iter().sum())) < 1e-6 * (n + 1) as f64, "sum {isa} {dims:?}");
                let place = |f: fn(f64, f64) -> bool| {
                    of(&|l| (0..n).fold(0, |best, j| if f(l[j], l[best]) { j } else { best }) as f64)
                };
                max(&x, dims, &mut out, &mut index);
                let index_of = |index: &[i64]| index.iter().map(|&i| i as f64).collect::<Vec<f64>>();
                assert_eq!(wide(&out), of(&|l| l.into_iter().fold(f64::NEG_INFINITY, f64::max)), "max {isa} {dims:?}");
                assert_eq!(index_of(&index), place(|a, b| a > b), "{isa} {dims:?}");
                min(&x, dims, &mut out, &mut index);
                assert_eq!(wide(&out), of(&|l| l.into_iter().fold(f64::INFINITY, f64::min)), "min {isa} {dims:?}");
                assert_eq!(index_of(&index), place(|a, b| a < b), "{isa} {dims:?}");
                logsumexp(&x, dims, &mut out);
                let lse = of(&|l| l.iter().map(|x| x.exp()).sum::<f64>().ln());
                assert!(apart(&wide(&out), &lse) < 1e-5, "logsumexp {isa} {dims:?}");
                for correction in [0, 1] {
                    if n > correction {
                        let variance = |l: Vec<f64>| {
                            let mean = l.iter().sum::<f64>() / n as f64;
                            l.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / (n - correction) as f64
                        };
                        var(&x, dims, correction, &mut out);
                        assert!(apart(&wide(&out), &of(&variance)) < 1e-4, "var {isa} {dims:?}");
                    }
                }
                let squares: f64 = double.iter().map(|x| x * x).sum();
                assert!((sum_squares(&x) - squares).abs() <= 1e-12 * squares, "sum_squares {isa} {dims:?}");
            }
        });
    }

    #[test]
    fn extremes_are_the_first_and_nan_stays() {
        let of = |x: &[f64], largest: bool| {
            let (mut out, mut index) = ([7.0], [7]);
            (if largest { max } else { min })(x, [1, x.len(), 1], &mut out, &mut index);
            (out[0], index[0])
        };
        assert_eq!((of(&[1.0, 3.0, 3.0], true), of(&[2.0, 1.0, 1.0], false)), ((3.0, 1), (1.0, 1)));
        for largest in [false, true] {
            for x in [[f64::NAN, 1.0, f64::NAN], [1.0, f64::NAN, 9.0], [1.0, f64::NAN, f64::NAN]] {
                let (value, index) = of(&x, largest);
                assert!(value.is_nan() && index == x.iter().position(|x| x.is_nan()).unwrap() as i64, "{x:?}");
            }
        }
    }

    /// Of what overflows, of nothing, of NaN, of infinities.
    #[test]
    fn logsumexp_at_its_edges() {
        let of = |x: &[f64]| {
            let mut out = [7.0];
            logsumexp(x, [1, x.len(), 1], &mut out);
            out[0]
        };
        assert!((of(&[1000.0, 1000.0]) - (1000.0 + core::f64::consts::LN_2)).abs() < 1e-12);
        assert_eq!((of(&[]), of(&[f64::NEG_INFINITY; 2])), (f64::NEG_INFINITY, f64::NEG_INFINITY));
        assert_eq!(of(&[1.0, f64::INFINITY]), f64::INFINITY);
        assert!(of(&[f64::NAN, 1.0]).is_nan() && of(&[1.0, f64::NAN]).is_nan());
    }
}
