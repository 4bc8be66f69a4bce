//! Random graphs of ops through the engine's public calls, each op compared with a naive interpreter in f64, in value for f64 and f32,
//! and all together in their gradient.
//!
//! The bytes are read as a program: some leaves, then ops that take what was computed before, in the layout that it has (permuted,
//! sliced, flipped, broadcast). The interpreter computes from the engine's own inputs, so that an error does not grow from op to op, and
//! carries a derivative along one direction of the leaves, which backward's gradient must agree with. Last, the program is traced as a
//! plan, which must give the same bits.

mod layers;
mod losses;
mod naive;
mod num;
mod ops;

use tiergrad::plan::Plan;
use tiergrad::rng::Rng;
use tiergrad::{DType, Tensor, backward_with};

use crate::bounds::bounded;
use naive::Naive;
use num::Num;
pub use ops::COUNT as OPS_OF_GRAPHS;

/// Most elements of a tensor, ops of a graph, and memory for both sides.
const ELEMENTS: usize = 2048;
const OPS: usize = 24;
const ROOM: usize = 64 << 20;
/// Values and derivatives beyond these are compared but not computed with further: no overflow in f32, no loss of all digits in f64.
const VALUES: std::ops::RangeInclusive<f64> = 1e-20..=1e3;
const SLOPES: f64 = 1e5;
/// Roundings of the engine's order and approximations against the interpreter's bound of its own.
const MARGIN: f64 = 16.0;

pub(super) fn run(data: &[u8]) {
    for dtype in [DType::F64, DType::F32] {
        bounded(ROOM, || {
            let graph = Graph::new(data, dtype, None);
            if dtype == DType::F64 {
                graph.check_gradient();
            }
            graph.check_plan(data);
        });
    }
}

/// A number of a leaf that moves so.
fn leaf_number(v: f64, d: f64) -> Num {
    Num { v, d, s: d.abs(), e: 0.0 }
}

/// What was computed, on both sides.
#[derive(Clone)]
struct Value {
    tensor: Tensor,
    naive: Naive,
}

/// What the same program is built from once more, for a plan, when no tensor may be read: its leaves, and the other side of each result
/// that it computed with further.
struct Again {
    leaves: std::vec::IntoIter<Tensor>,
    kept: std::vec::IntoIter<Option<Naive>>,
}

struct Graph<'a> {
    bytes: &'a [u8],
    again: Option<Again>,
    dtype: DType,
    leaves: Vec<Value>,
    values: Vec<Value>,
    /// Of each result, the other side where it is among the values.
    kept: Vec<Option<Naive>>,
    /// Whether some derivative may have jumped.
    tie: bool,
    /// What was computed so far, for messages.
    trail: Vec<String>,
}

impl<'a> Graph<'a> {
    fn new(data: &'a [u8], dtype: DType, again: Option<Again>) -> Self {
        let (leaves, values, kept, trail) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut graph = Self { bytes: data, again, dtype, leaves, values, kept, tie: false, trail };
        for _ in 0..graph.below(3) + 1 {
            let rank = graph.below(5);
            let dims: Vec<usize> = (0..rank).map(|_| graph.size()).collect();
            let leaf = graph.leaf(&dims);
            graph.values.push(leaf);
        }
        for _ in 0..OPS {
            if graph.bytes.is_empty() {
                break;
            }
            graph.step();
        }
        graph
    }

    fn byte(&mut self) -> usize {
        let Some((&first, rest)) = self.bytes.split_first() else { return 0 };
        self.bytes = rest;
        first.into()
    }

    fn below(&mut self, n: usize) -> usize {
        self.byte() % n
    }

    fn flag(&mut self) -> bool {
        self.below(2) == 1
    }

    /// A size: mostly small, sometimes none, sometimes beyond a vector's lanes.
    fn size(&mut self) -> usize {
        match self.byte() {
            b @ 0..240 => [1, 2, 3, 4, 5, 7, 0, 1, 2, 3][b % 10],
            b => 9 + 5 * (b - 240),
        }
    }

    /// A trainable tensor of drawn values.
    fn leaf(&mut self, dims: &[usize]) -> Value {
        let mut left = ELEMENTS;
        let dims: Vec<usize> = dims.iter().map(|&d| if d <= left { (left /= d.max(1), d).1 } else { 1 }).collect();
        let (style, seed) = (self.below(5), self.byte());
        let mut rng = Rng::new(seed as u64, self.leaves.len() as u64);
        let mut draw = || match style {
            0 => rng.normal(),
            1 => rng.range(0.2, 3.0),
            2 => rng.below(4) as f64,
            3 => 20.0 * rng.normal(),
            _ => 0.01 * rng.normal(),
        };
        let n = dims.iter().product();
        let values: Vec<f64> = (0..n).map(|_| draw()).collect();
        let tensor = Tensor::from_slice(&values, &dims[..]).to_dtype(self.dtype);
        let at = tensor.to_f64_vec().iter().map(|&v| leaf_number(v, rng.normal())).collect();
        let tensor = match &mut self.again {
            Some(again) => again.leaves.next().expect("as many leaves as before"),
            None => tensor.trainable(),
        };
        let leaf = Value { tensor, naive: Naive { dims, at } };
        self.leaves.push(leaf.clone());
        leaf
    }

    /// Something computed before, the latest for a byte of 0.
    fn pick(&mut self) -> Value {
        let n = self.values.len();
        let back = self.below(n);
        self.values[n - 1 - back].clone()
    }

    /// Something of these dims: computed before, cut from it, or new.
    fn of_dims(&mut self, dims: &[usize]) -> Value {
        let x = self.pick();
        let n: usize = dims.iter().product();
        if x.naive.dims == dims {
            return x;
        }
        let flat = [x.naive.at.len()];
        if x.naive.at.len() < n || n == 0 {
            return self.leaf(dims);
        }
        let tensor = x.tensor.reshape(flat).narrow(0, 0, n).reshape(dims);
        Value { tensor, naive: x.naive.reshape(&flat).along(0, n, Some).reshape(dims) }
    }

    /// Something with as many dimensions as `low` to `high`.
    fn of_rank(&mut self, low: usize, high: usize) -> Value {
        let x = self.pick();
        if (low..=high).contains(&x.naive.dims.len()) {
            return x;
        }
        let dims: Vec<usize> = (0..low).map(|_| self.size()).collect();
        self.of_dims(&dims)
    }

    /// Compares both sides.
    #[track_caller]
    fn compare(&self, what: &str, tensor: &Tensor, naive: &Naive) {
        let (dtype, trail) = (self.dtype, || self.trail.join(", "));
        assert_eq!(tensor.dims()[..], naive.dims[..], "{what}: dims");
        assert_eq!(tensor.dtype(), dtype, "{what}: type");
        let (epsilon, least, largest) = match dtype {
            DType::F32 => (f64::from(f32::EPSILON), f64::from(f32::MIN_POSITIVE), f64::from(f32::MAX)),
            _ => (f64::EPSILON, f64::MIN_POSITIVE, f64::MAX),
        };
        for (k, (&y, x)) in tensor.to_f64_vec().iter().zip(&naive.at).enumerate() {
            let close = y == x.v || (y - x.v).abs() <= MARGIN * epsilon * x.e + least;
            let both_nan = y.is_nan() && x.v.is_nan();
            // What overflows f32 somewhere on the way has no value to compare.
            let beyond = x.v.abs().max(x.e) > 0.01 * largest;
            assert!(close || both_nan || beyond, "{what} in {dtype}: element {k} is {y:e}, not {x:?}; {}", trail());
        }
    }

    /// Compares both sides and keeps the result, where it can be computed with.
    #[track_caller]
    fn keep(&mut self, op: &str, tensor: Tensor, mut naive: Naive) {
        if let Some(again) = &mut self.again {
            if let Some(naive) = again.kept.next().expect("as many results as before") {
                self.values.push(Value { tensor, naive });
            }
            return;
        }
        self.trail.push(format!("{op} {:?}", tensor.dims()));
        self.compare(op, &tensor, &naive);
        naive.at.iter_mut().zip(tensor.to_f64_vec()).for_each(|(x, v)| *x = Num { v, e: 0.0, ..*x });
        let fits = |x: &Num| (x.v == 0.0 || VALUES.contains(&x.v.abs())) && x.s <= SLOPES;
        let kept = naive.at.len() <= ELEMENTS && naive.at.iter().all(fits);
        self.kept.push(kept.then(|| naive.clone()));
        if kept {
            self.values.push(Value { tensor, naive });
        }
    }

    /// Some results by a plan, some leaves parameters of it, bit by bit; on the leaves that it was traced with, and on others.
    fn check_plan(&self, data: &[u8]) {
        // What a plan may join hangs on what is constant and what else is asked for.
        let mut rng = Rng::new(data.iter().map(|&byte| u64::from(byte)).sum(), 1);
        let given: Vec<bool> = (0..self.leaves.len()).map(|i| i == 0 || rng.chance(0.3)).collect();
        let wanted: Vec<usize> = (0..self.values.len().min(8)).filter(|&k| k == 0 || rng.chance(0.2)).collect();
        let leaves: Vec<Tensor> = self.leaves.iter().map(|leaf| leaf.tensor.detach()).collect();
        let run = |x: &[Tensor]| -> Vec<Tensor> {
            let mut x = x.iter();
            let leaf = |(leaf, given): (&Tensor, &bool)| if *given { x.next() } else { Some(leaf) }.cloned();
            let leaves: Vec<Tensor> = leaves.iter().zip(&given).filter_map(leaf).collect();
            let again = Again { leaves: leaves.into_iter(), kept: self.kept.clone().into_iter() };
            let values = Graph::new(data, self.dtype, Some(again)).values;
            wanted.iter().map(|k| values[values.len() - 1 - k].tensor.clone()).collect()
        };
        let own: Vec<Tensor> = leaves.iter().zip(&given).filter(|(_, given)| **given).map(|(x, _)| x.clone()).collect();
        let others: Vec<Tensor> = own.iter().map(|x| x.affine(0.75, 0.0)).collect();
        let (plan, traced) = Plan::new(&own, run);
        let bits = |x: &Tensor| -> Vec<u64> {
            x.to_f64_vec().iter().map(|x| if x.is_nan() { u64::MAX } else { x.to_bits() }).collect()
        };
        let eager: Vec<Tensor> =
            wanted.iter().map(|k| self.values[self.values.len() - 1 - k].tensor.detach()).collect();
        for (planned, eager) in [(traced, &eager), (plan.run(&own), &eager), (plan.run(&others), &run(&others))] {
            for (planned, eager) in planned.iter().zip(eager) {
                let (dtype, trail) = (self.dtype, self.trail.join(", "));
                assert!(
                    planned.dims() == eager.dims() && bits(planned) == bits(eager),
                    "plan in {dtype}: {planned:?}, not {eager:?}; {trail}"
                );
            }
        }
    }

    /// Backward from the last results, weighted, against the derivative that the interpreter carried along.
    fn check_gradient(&self) {
        if self.tie {
            return;
        }
        let (mut expected, mut scale, mut roots) = (0.0, 1.0, Vec::new());
        for value in self.values.iter().rev().take(3) {
            let weights: Vec<f64> = (0..value.naive.at.len()).map(|k| ((7 * k + 3) % 11) as f64 / 5.0 - 1.0).collect();
            for (w, y) in weights.iter().zip(&value.naive.at) {
                expected += w * y.d;
                scale += w.abs() * y.s;
            }
            roots.push((value.tensor.clone(), Tensor::from_slice(&weights, &value.naive.dims[..])));
        }
        let grads = backward_with(roots);
        let mut found = 0.0;
        for leaf in &self.leaves {
            let Some(gradient) = grads.get(&leaf.tensor) else { continue };
            assert_eq!(gradient.dims(), leaf.tensor.dims(), "dims of a gradient");
            for (g, x) in gradient.to_f64_vec().iter().zip(&leaf.naive.at) {
                found += g * x.d;
            }
        }
        let trail = self.trail.join(", ");
        assert!(
            (found - expected).abs() <= 1e-9 * scale,
            "backward: {found:e} along the direction, not {expected:e}; {trail}"
        );
    }
}
