//! From what was traced to the steps of a plan: what no output depends on is left out, constants are worked in, and ops are joined to the one that
//! makes their input.

use std::collections::HashMap;

use super::trace::{Origin, Slot, Traced};
use super::{Packs, Role, Step, Work};
use crate::dtype::DType;
use crate::op::Meta;
use crate::tensor::Tensor;

/// The steps that make the outputs, in order.
pub(super) fn steps(
    packs: &mut Packs,
    traced: Vec<Traced>,
    origins: &[Origin],
    metas: &[Meta],
    outputs: &[Slot],
) -> Vec<Step> {
    let traced = needed(traced, outputs, metas.len());
    let mut uses = vec![0; metas.len()];
    traced.iter().flat_map(|step| &step.inputs).chain(outputs).for_each(|&slot| uses[slot] += 1);
    let (steps, maker, waiting) = (Vec::new(), vec![None; metas.len()], HashMap::new());
    let mut builder = Builder { origins, metas, packs, uses, steps, maker, waiting };
    traced.into_iter().for_each(|step| builder.add(step));
    outputs.iter().for_each(|&slot| builder.needs(slot));
    builder.steps
}

/// The steps that the outputs depend on.
fn needed(steps: Vec<Traced>, outputs: &[Slot], slots: usize) -> Vec<Traced> {
    let mut wanted = vec![false; slots];
    outputs.iter().for_each(|&slot| wanted[slot] = true);
    let mut kept = Vec::new();
    for step in steps.into_iter().rev() {
        if step.outputs.iter().any(|&slot| wanted[slot]) {
            step.inputs.iter().for_each(|&slot| wanted[slot] = true);
            kept.push(step);
        }
    }
    kept.reverse();
    kept
}

struct Builder<'a> {
    origins: &'a [Origin],
    metas: &'a [Meta],
    packs: &'a mut Packs,
    /// By steps and as outputs.
    uses: Vec<usize>,
    steps: Vec<Step>,
    /// The step that makes a value.
    maker: Vec<Option<usize>>,
    /// Values that are widened from bf16, which is done once a step needs them so.
    waiting: HashMap<Slot, Traced>,
}

impl<'a> Builder<'a> {
    fn constant(&self, slot: Slot) -> Option<&'a Tensor> {
        match &self.origins[slot] {
            Origin::Constant(x) => Some(x),
            _ => None,
        }
    }

    fn add(&mut self, traced: Traced) {
        if self.join(&traced) {
            return;
        }
        let from = |i: usize| self.metas[traced.inputs[i]].dtype;
        if traced.op.role() == Role::Cast(DType::F32) && from(0) == DType::BF16 {
            self.waiting.insert(traced.outputs[0], traced);
            return;
        }
        traced.inputs.iter().for_each(|&slot| self.needs(slot));
        self.step(traced);
    }

    /// Sees to it that a value is made.
    fn needs(&mut self, slot: Slot) {
        if let Some(traced) = self.waiting.remove(&slot) {
            self.step(traced);
        }
    }

    fn step(&mut self, traced: Traced) {
        let Traced { op, inputs, out, outputs } = traced;
        let metas: Vec<Meta> = inputs.iter().map(|&slot| self.metas[slot]).collect();
        let constants: Vec<Option<&Tensor>> = inputs.iter().map(|&slot| self.constant(slot)).collect();
        let (name, flops) = (op.name(), op.flops(&metas, out));
        // What is prepared is read by the CPU's kernels.
        let there = constants.iter().flatten().any(|x| x.device().is_some());
        let prepared = if there { None } else { op.prepare(&metas, &constants, self.packs) };
        let (work, inputs) = match prepared {
            Some(op) => {
                let changing = inputs.into_iter().filter(|&slot| self.constant(slot).is_none()).collect();
                (Work::Prepared { op, residual: false, act: None }, changing)
            }
            None => (Work::Op(op), inputs),
        };
        outputs.iter().for_each(|&slot| self.maker[slot] = Some(self.steps.len()));
        self.steps.push(Step { name, work, inputs, out, outputs, last: Vec::new(), flops });
    }

    /// Adds a sum, an activation or a rounding to the prepared step that makes its input, if nothing else needs that.
    fn join(&mut self, traced: &Traced) -> bool {
        let (role, slots) = (traced.op.role(), &traced.inputs);
        let candidates: &[(usize, Option<usize>)] = match role {
            Role::Add => &[(1, Some(0)), (0, Some(1))],
            Role::Activation(_) | Role::Cast(DType::BF16) => &[(0, None)],
            Role::Cast(_) | Role::Other => &[],
        };
        for &(i, other) in candidates {
            let (made, other) = (slots[i], other.map(|other| slots[other]));
            let Some(at) = self.maker[made].filter(|_| self.uses[made] == 1) else { continue };
            // What waits to be widened is added as it is.
            let narrow = other.and_then(|other| self.waiting.get(&other)).map(|traced| traced.inputs[0]);
            let added = narrow.or(other);
            // What is added has the sum's dims, and is there before.
            let fits = self.metas[made].dims == traced.out.dims
                && other.is_none_or(|other| self.metas[other] == traced.out && other != made)
                && added.is_none_or(|added| self.maker[added].is_none_or(|maker| maker < at));
            let Step { work: Work::Prepared { op, residual, act }, inputs, outputs, out, .. } = &mut self.steps[at]
            else {
                continue;
            };
            let may = if narrow.is_some() || matches!(role, Role::Cast(_)) { op.rounds() } else { op.joins() };
            // The step's own result, which nothing has rounded yet.
            let open = *out == self.metas[made] && out.dtype != DType::BF16;
            let full = match role {
                Role::Add => act.is_some() || *residual,
                Role::Activation(_) => act.is_some(),
                _ => false,
            };
            if !fits || !may || !open || full {
                continue;
            }
            match role {
                Role::Activation(f) => *act = Some(f),
                Role::Add => *residual = true,
                _ => *out = traced.out,
            }
            inputs.extend(added);
            outputs.clone_from(&traced.outputs);
            self.maker[traced.outputs[0]] = Some(at);
            return true;
        }
        false
    }
}
