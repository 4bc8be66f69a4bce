//! A forward pass traced once for its shapes, then run again and again: constants folded, weights packed as the kernels read them,
//! additions and activations done where products are written. Every run has the bits of the eager computation.

mod build;
pub mod packed_files;
pub(crate) mod trace;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use kernels_cpu::gemm::Packed;
use kernels_cpu::map::Unary;
use kernels_cpu::par;

use crate::device;
use crate::dtype::DType;
use crate::layout::Layout;
use crate::op::{Meta, Op};
use crate::profile::{self, Cost};
use crate::tensor::Tensor;
pub use packed_files::PackedFiles;
use trace::{Origin, Slot, Trace};

/// An op with its constant inputs worked in.
pub trait Prepared: Send + Sync {
    /// Whether more can be joined to it.
    fn joins(&self) -> bool;

    /// Whether its result may be rounded to bf16 besides, as `out` then says, and what is added to it be so.
    fn rounds(&self) -> bool {
        false
    }

    /// y = act(f(x) + residual) with x the inputs that are not constant: the bits of the steps one by one.
    fn run(&self, x: &[&Tensor], joined: Joined<'_>, out: Meta) -> Tensor;
}

/// Matrices that were packed, by what they were packed from.
#[derive(Default)]
pub struct Packs {
    made: HashMap<(u64, Layout), Arc<Packed>>,
    files: Option<Arc<PackedFiles>>,
    wanted: Vec<Tensor>,
}

impl Packs {
    /// None yet, but for those that are kept in files.
    pub fn with(files: Arc<PackedFiles>) -> Self {
        Self { files: Some(files), ..Self::default() }
    }

    /// `matrix` packed by `pack`, or as it was packed before.
    pub fn get(&mut self, matrix: &Tensor, pack: impl FnOnce() -> Packed) -> Arc<Packed> {
        let kept = || self.files.as_ref().and_then(|files| files.get(matrix));
        let made = self.made.entry((matrix.buffer().id(), *matrix.layout()));
        made.or_insert_with(|| Arc::new(kept().unwrap_or_else(pack))).clone()
    }

    /// Notes that a matrix will be asked for; tells whether it is kept in a file.
    pub fn want(&mut self, matrix: &Tensor) -> bool {
        self.wanted.push(matrix.clone());
        self.files.as_ref().is_some_and(|files| files.holds(matrix))
    }

    /// The matrices that plans asked for, in the order of their steps.
    pub fn wanted(&self) -> &[Tensor] {
        &self.wanted
    }
}

/// What a prepared op does with its result besides.
#[derive(Clone, Copy, Default)]
pub struct Joined<'a> {
    /// Added; of the result's dims.
    pub residual: Option<&'a Tensor>,
    /// Applied last.
    pub act: Option<Unary>,
}

/// How a plan may join an op to the one that makes its input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A sum of two tensors.
    Add,
    /// A function of one tensor, element by element.
    Activation(Unary),
    /// Numbers of f32 to bf16, or to f32 again.
    Cast(DType),
    /// Not at all.
    Other,
}

/// A computation of fixed shapes.
pub struct Plan {
    inputs: Vec<(Slot, Meta)>,
    steps: Vec<Step>,
    outputs: Vec<Slot>,
    /// Values that are the same in every run.
    constants: Vec<(Slot, Tensor)>,
    slots: usize,
}

struct Step {
    name: &'static str,
    work: Work,
    inputs: Vec<Slot>,
    out: Meta,
    outputs: Vec<Slot>,
    /// Values that nothing needs after this step.
    last: Vec<Slot>,
    flops: u64,
}

enum Work {
    Op(Box<dyn Op>),
    /// With `residual`, the last input is added.
    Prepared {
        op: Box<dyn Prepared>,
        residual: bool,
        act: Option<Unary>,
    },
}

impl Plan {
    /// Traces `f` for inputs of these shapes; its results for them come too. `f` must compute by ops alone.
    ///
    /// # Panics
    /// If `f` reads a value that depends on its inputs outside of an op: the plan would keep what it saw.
    pub fn new(x: &[Tensor], f: impl FnOnce(&[Tensor]) -> Vec<Tensor>) -> (Self, Vec<Tensor>) {
        let plan = Self::sharing(&mut Packs::default(), x, f);
        let results = plan.run(x);
        (plan, results)
    }

    /// As [`Plan::new`], without results and with packed parameters that plans of other shapes may have too. Nothing is computed but what
    /// depends on parameters alone.
    ///
    /// # Panics
    /// As [`Plan::new`].
    pub fn sharing(packs: &mut Packs, x: &[Tensor], f: impl FnOnce(&[Tensor]) -> Vec<Tensor>) -> Self {
        let (mut trace, inputs, results) = trace::trace(x, f);
        let outputs: Vec<Slot> = results.iter().map(|y| trace.slot(y)).collect();
        let inputs = inputs.into_iter().map(|slot| (slot, trace.metas[slot])).collect();
        Self::build(packs, trace, inputs, outputs)
    }

    fn build(packs: &mut Packs, trace: Trace, inputs: Vec<(Slot, Meta)>, outputs: Vec<Slot>) -> Self {
        let Trace { steps, origins, metas, .. } = trace;
        let mut steps = build::steps(packs, steps, &origins, &metas, &outputs);
        let mut seen: Vec<bool> = vec![false; metas.len()];
        outputs.iter().for_each(|&slot| seen[slot] = true);
        for step in steps.iter_mut().rev() {
            for &slot in step.inputs.iter().chain(&step.outputs) {
                if !std::mem::replace(&mut seen[slot], true) {
                    step.last.push(slot);
                }
            }
        }
        let constant = |(slot, origin)| match origin {
            Origin::Constant(x) if seen[slot] => Some((slot, x)),
            _ => None,
        };
        let constants = origins.into_iter().enumerate().filter_map(constant).collect();
        Self { inputs, steps, outputs, constants, slots: metas.len() }
    }

    /// The results for other inputs of the same shapes.
    ///
    /// # Panics
    /// If the shapes are others.
    #[track_caller]
    pub fn run(&self, x: &[Tensor]) -> Vec<Tensor> {
        self.check(x);
        par::enter(|| self.steps_on(x, |step, x| step.run(x)))
    }

    /// As [`Plan::run`], with what each step took.
    ///
    /// # Panics
    /// If the shapes are others.
    #[track_caller]
    pub fn profile(&self, x: &[Tensor]) -> (Vec<Tensor>, Vec<Cost>) {
        self.check(x);
        let mut costs = Vec::with_capacity(self.steps.len());
        let results = par::enter(|| {
            self.steps_on(x, |step, x| {
                let start = Instant::now();
                let output = step.run(x);
                output.iter().find_map(Tensor::device).inspect(|gpu| gpu.wait());
                costs.push(Cost {
                    name: step.title(),
                    time: start.elapsed(),
                    flops: step.flops,
                    bytes: profile::bytes(x.iter().map(|x| x.meta()).chain([step.out])),
                });
                output
            })
        });
        (results, costs)
    }

    #[track_caller]
    fn check(&self, x: &[Tensor]) {
        let [made_for, given]: [Vec<Meta>; 2] =
            [self.inputs.iter().map(|(_, meta)| *meta).collect(), x.iter().map(Tensor::meta).collect()];
        assert!(given == made_for, "a plan for {made_for:?} is run on {given:?}");
    }

    fn steps_on(&self, x: &[Tensor], mut run: impl FnMut(&Step, &[&Tensor]) -> Vec<Tensor>) -> Vec<Tensor> {
        let mut values: Vec<Option<Tensor>> = vec![None; self.slots];
        for ((slot, _), x) in self.inputs.iter().zip(x) {
            values[*slot] = Some(x.detach());
        }
        for (slot, x) in &self.constants {
            values[*slot] = Some(x.clone());
        }
        fn get(values: &[Option<Tensor>], slot: Slot) -> &Tensor {
            values[slot].as_ref().expect("made by an earlier step")
        }
        for step in &self.steps {
            let x: Vec<&Tensor> = step.inputs.iter().map(|&slot| get(&values, slot)).collect();
            let made = run(step, &x);
            step.outputs.iter().zip(made).for_each(|(&slot, y)| values[slot] = Some(y));
            step.last.iter().for_each(|&slot| values[slot] = None);
        }
        self.outputs.iter().map(|&slot| get(&values, slot).clone()).collect()
    }
}

impl Step {
    fn run(&self, x: &[&Tensor]) -> Vec<Tensor> {
        match &self.work {
            Work::Op(op) => {
                let output = device::run(op.as_ref(), x, self.out);
                std::iter::once(output.value).chain(output.aux).collect()
            }
            Work::Prepared { op, residual, act } => {
                let (x, residual) = x.split_at(x.len() - usize::from(*residual));
                vec![op.run(x, Joined { residual: residual.first().copied(), act: *act }, self.out)]
            }
        }
    }

    fn title(&self) -> String {
        match &self.work {
            Work::Op(_) => self.name.to_owned(),
            Work::Prepared { residual, act, .. } => {
                let (residual, act) = (if *residual { "+add" } else { "" }, act.map(|act| format!("+{}", act.name())));
                format!("{}{residual}{}", self.name, act.unwrap_or_default())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;
    use crate::gradcheck::Gen;
    use crate::ops::REGISTRY;
    use crate::rng::Rng;

    /// Every op, with each of its inputs constant or not: a plan has the bits of the eager run, also on other inputs than the traced.
    #[test]
    fn a_plan_of_any_op_has_the_bits_of_the_op() {
        for entry in REGISTRY {
            for seed in 0..40 {
                let mut g = Gen::new(seed, 1 + seed as usize % 7);
                let case = (entry.cases)(&mut g);
                let x: Vec<Tensor> = case
                    .inputs()
                    .iter()
                    .map(|x| if x.dtype() == DType::F64 { x.to_dtype(DType::F32).detach() } else { x.detach() })
                    .collect();
                let fixed: Vec<bool> = x.iter().map(|_| g.rng.chance(0.5)).collect();
                let other: Vec<Tensor> = x
                    .iter()
                    .zip(&fixed)
                    .map(|(x, &fixed)| if fixed || x.dtype() != DType::F32 { x.clone() } else { x.affine(1.25, 0.0) })
                    .collect();
                let changing = |x: &[Tensor]| -> Vec<Tensor> {
                    x.iter().zip(&fixed).filter(|(_, fixed)| !**fixed).map(|(x, _)| x.clone()).collect()
                };
                let run = |given: &[Tensor]| {
                    let mut given = given.iter();
                    let all: Vec<Tensor> = x
                        .iter()
                        .zip(&fixed)
                        .map(|(x, &fixed)| if fixed { x.clone() } else { given.next().unwrap().clone() })
                        .collect();
                    let y = case.run(&all);
                    // Joined where the op allows it.
                    vec![if y.dtype() == DType::F32 { (&y + &drawn(*y.dims(), 9)).relu() } else { y }]
                };
                let (plan, first) = Plan::new(&changing(&x), run);
                for (inputs, name) in [(&x, "traced"), (&other, "other")] {
                    let expected = run(&changing(inputs))[0].to_f64_vec();
                    let same = |y: &Tensor| {
                        y.to_f64_vec()
                            .iter()
                            .zip(&expected)
                            .all(|(a, b)| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan())
                    };
                    let got = plan.run(&changing(inputs));
                    assert!(
                        same(&got[0]),
                        "{} on {name} inputs, seed {seed}: {got:?} instead of {expected:?}",
                        entry.name
                    );
                    assert!(name == "other" || same(&first[0]));
                }
            }
        }
    }

    fn drawn(dims: impl Into<crate::Dims>, seed: u64) -> Tensor {
        Tensor::randn(dims, DType::F32, &mut Rng::new(seed, 0))
    }

    #[test]
    fn constants_fold_and_sums_and_activations_join() {
        let (w, b, v) = (drawn([6, 4], 1), drawn([6], 2), drawn([6, 6], 3));
        let f = |x: &[Tensor]| {
            // The product of the parameters does not depend on x.
            let hidden = x[0].linear(&v.matmul(&w), Some(&b), None);
            let y = &hidden + &hidden.linear(&v, None, None);
            vec![y.relu()]
        };
        let (plan, _) = Plan::new(&[drawn([3, 4], 4)], f);
        let titles: Vec<String> = plan.steps.iter().map(Step::title).collect();
        assert_eq!(titles, ["linear", "linear+add+relu"]);
        let x = [drawn([3, 4], 5)];
        assert_eq!(plan.run(&x)[0].to_vec::<f32>(), f(&x)[0].to_vec::<f32>());
        assert_eq!(plan.profile(&x).0[0].to_vec::<f32>(), f(&x)[0].to_vec::<f32>());
    }

    #[test]
    fn a_convolution_is_joined_by_what_follows_and_products_count_their_operations() {
        use crate::ops::conv::Conv2d;
        let (kernel, bias, w) = (drawn([4, 3, 3, 3], 1), drawn([4], 2), drawn([6, 4], 3));
        let op = Conv2d { stride: [1, 1], padding: [1, 1], dilation: [1, 1], groups: 1 };
        let f = |x: &[Tensor]| {
            let maps = (&x[0].conv2d(&kernel, Some(&bias), op) + &x[1]).relu();
            let rows = maps.reshape([2, 25, 4]).linear(&w, None, None);
            vec![rows.matmul(&rows.transpose(1, 2))]
        };
        let x = [drawn([2, 5, 5, 3], 4), drawn([2, 5, 5, 4], 5)];
        let (plan, first) = Plan::new(&x, f);
        let (results, costs) = plan.profile(&x);
        assert_eq!(results[0].to_vec::<f32>(), first[0].to_vec::<f32>());
        let counted: Vec<(&str, u64)> = costs.iter().filter(|c| c.flops > 0).map(|c| (&c.name[..], c.flops)).collect();
        // Two for each term of each element.
        assert_eq!(counted, [("conv2d+add+relu", 2 * 200 * 27), ("linear", 2 * 300 * 4), ("matmul", 2 * 1250 * 6)]);
    }

    /// As a residual network in bf16 has it: maps are kept rounded, and what is added is widened where it is added.
    #[test]
    fn roundings_join_convolutions_and_what_is_rounded_is_added_as_it_is() {
        use crate::ops::conv::Conv2d;
        let half = |x: &Tensor| x.to_dtype(DType::BF16);
        let wide = |x: &Tensor| x.to_dtype(DType::F32);
        let (narrow, again) = (half(&drawn([40, 32, 1, 1], 1)), half(&drawn([32, 40, 3, 3], 2)));
        let f = |x: &[Tensor]| {
            let x = half(&x[0]);
            let y = half(&x.conv2d(&narrow, None, Conv2d::default()).relu());
            let y = half(&(&y.conv2d(&again, Some(&drawn([32], 3)), Conv2d::new(1, 1)) + &wide(&x)).relu());
            // Without an activation, in the other order, and of another map than the one that is read.
            let z = half(&(&wide(&y) + &x.conv2d(&half(&drawn([32, 32, 1, 1], 4)), None, Conv2d::default())));
            // Not to be joined: what is added is needed in f32 besides, and the sum is not rounded.
            let added = wide(&z);
            let u = &z.conv2d(&again.narrow(1, 0, 32), None, Conv2d::new(1, 1)) + &added;
            vec![wide(&y), u, added]
        };
        let x = [drawn([2, 5, 6, 32], 5)];
        let (plan, first) = Plan::new(&x, f);
        for (got, expected) in plan.run(&x).iter().zip(f(&x)).chain(first.iter().zip(f(&x))) {
            assert_eq!(got.to_vec::<f32>(), expected.to_vec::<f32>());
        }
        let titles: Vec<String> = plan.steps.iter().map(Step::title).collect();
        let prepared = ["cast", "conv2d+relu", "conv2d+add+relu", "conv2d+add", "conv2d+add", "cast", "cast"];
        if kernels_cpu::gemm::bf16_is_quick() {
            assert_eq!(titles, prepared);
            let halves = plan.steps.iter().filter(|step| step.out.dtype == DType::BF16).count();
            assert_eq!(halves, 4);
        }
    }

    #[test]
    fn a_value_used_twice_is_kept() {
        let w = drawn([4, 4], 1);
        let f = |x: &[Tensor]| {
            let y = x[0].linear(&w, None, None);
            vec![y.relu(), &y + &y, y]
        };
        let (plan, _) = Plan::new(&[drawn([3, 4], 4)], f);
        let x = [drawn([3, 4], 5)];
        for (a, b) in plan.run(&x).iter().zip(f(&x)) {
            assert_eq!(a.to_vec::<f32>(), b.to_vec::<f32>());
        }
    }

    #[test]
    #[should_panic(expected = "read outside of an op")]
    fn what_is_read_outside_of_ops_is_refused() {
        Plan::new(&[drawn([3], 1)], |x| vec![Tensor::from_slice(&x[0].affine(2.0, 0.0).to_vec::<f32>(), [3])]);
    }

    #[test]
    #[should_panic(expected = "a plan for")]
    fn other_shapes_are_refused() {
        Plan::new(&[drawn([3], 1)], |x| vec![x[0].relu()]).0.run(&[drawn([4], 1)]);
    }
}
