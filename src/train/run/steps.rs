//! Batches as the network learns from them, and the optimiser's steps.

use super::Run;
use crate::data::{Batch, Epoch, Row};
use crate::error::Result;
use crate::finite::watch;
use crate::optim::Norm;
use crate::pipeline::{Network, Pipeline};
use crate::tape::Grads;
use crate::tensor::Tensor;
use crate::text::Tokenizer;
use crate::train::finite::{self, Trouble};
use crate::train::step::{self, Examples, Parts, Values};
use crate::train::tables::Tables;

impl Run<'_> {
    /// The next batch: which rows, and as the network learns from them in the step after `step`.
    pub(super) fn batch(&self, batches: &mut Epoch, step: u64) -> Option<Result<(Vec<usize>, Examples)>> {
        let batch = batches.next()?.map_err(|e| self.tables.told(&self.config.data.pairs, e));
        Some(batch.and_then(|Batch { rows, views, .. }| {
            let examples = self.examples(&rows, views, step)?;
            Ok((rows, examples))
        }))
    }

    /// A batch as the network learns from it, in the step after `step`.
    pub(super) fn examples(&self, numbers: &[usize], views: Vec<Tensor>, step: u64) -> Result<Examples> {
        let rows = self.rows(numbers);
        if self.config.train.check_finite {
            let odd = finite::samples(&views);
            if !odd.is_empty() {
                let trouble = Trouble { step: step + 1, what: "the pixels are".to_owned(), rows: &rows };
                return Err(trouble.error("they came so from preprocessing", &odd).at(&self.folder.0));
            }
        }
        let views = views.iter().map(|view| view.placed(self.gpu.as_ref())).collect();
        examples(&self.pipeline, &self.tables, &rows, numbers, views)
    }

    pub(super) fn rows(&self, numbers: &[usize]) -> Vec<&Row> {
        numbers.iter().map(|&i| &self.tables.train[i]).collect()
    }

    /// Loss and gradient of a batch.
    pub(super) fn gradients(&mut self, examples: &Examples) -> Result<step::Step> {
        let (tier, train) = (&self.config.tier, &self.config.train);
        let network = &mut self.pipeline.network;
        train.within(|| examples.step(network, tier, train.micro_batch))
    }

    /// Refuses a loss or a gradient's norm that is not finite, where that is asked for. The parameters are those that they were computed with.
    pub(super) fn check(
        &mut self,
        numbers: &[usize],
        examples: &Examples,
        [loss, norm]: [f64; 2],
        step: u64,
    ) -> Result<()> {
        let what = match (loss.is_finite(), norm.is_finite()) {
            _ if !self.config.train.check_finite => return Ok(()),
            (true, true) => return Ok(()),
            (true, false) => "the gradient is",
            _ => "the loss is",
        };
        // Once more, watched: what it changes is not kept, as training stops.
        let (again, origin) = watch(|| self.gradients(examples));
        let network = &mut self.pipeline.network;
        let began = finite::began(network, origin.as_ref(), Some(&again?.grads));
        let samples = match examples {
            Examples::Paired(pairs) => finite::embedded(network, pairs),
            Examples::Labelled { .. } => Vec::new(),
        };
        let trouble = Trouble { step: step + 1, what: what.to_owned(), rows: &self.rows(numbers) };
        Err(trouble.error(&began, &samples).at(&self.folder.0))
    }

    /// The step after `step`, taken during backward: its loss and norm are looked at when parameters have moved.
    pub(super) fn step_in_backward(
        &mut self,
        numbers: &[usize],
        examples: &Examples,
        lr: f64,
        step: u64,
    ) -> Result<(Parts, Norm)> {
        let (tier, train) = (&self.config.tier, &self.config.train);
        let (network, optimiser) = (&mut self.pipeline.network, &mut self.optimiser);
        let (parts, norm) = train.within(|| examples.step_in_backward(network, tier, optimiser, lr))?;
        if train.check_finite && !(parts.total.is_finite() && norm.is_finite()) {
            let what = "the loss or the gradient is".to_owned();
            let began = "where it began is told without train.step_in_backward, which has changed the parameters since";
            return Err(Trouble { step: step + 1, what, rows: &self.rows(numbers) }
                .error(began, &[])
                .at(&self.folder.0));
        }
        self.moved()?;
        Ok((parts, Norm::Here(norm)))
    }

    /// One optimiser step with the mean of `count` gradients, of which `norm` is known where there is one; gives the mean's norm, before clipping.
    pub(super) fn apply(&mut self, mut grads: Grads, count: usize, norm: Option<Norm>, lr: f64) -> Result<Norm> {
        if count > 1 {
            grads.values_mut().for_each(|g| *g = g.affine(1.0 / count as f64, 0.0));
        }
        let norm = norm.unwrap_or_else(|| Norm::of(&grads));
        self.optimiser.step_of_norm(&mut self.pipeline.network, grads, &norm, lr)?;
        self.moved()?;
        Ok(norm)
    }

    /// What goes with parameters that have moved.
    pub(super) fn moved(&mut self) -> Result<()> {
        if let Network::Dual(model) = &mut self.pipeline.network {
            model.clamp_logit_scale()?;
        }
        if let Some(average) = &mut self.average {
            average.follow(&mut self.pipeline.network, self.config.train.ema, self.optimiser.steps);
        }
        Ok(())
    }

    /// A norm and exp(logit_scale), waited for together, and with the values of the objective.
    pub(super) fn values(&self, norm: &Norm, values: &[Values]) -> [f64; 2] {
        let scale = if let Network::Dual(model) = &self.pipeline.network { Some(&model.logit_scale) } else { None };
        let asked: Vec<&Tensor> = values.iter().flat_map(Values::asked).chain(scale).collect();
        [norm.value_beside(&asked), scale.map_or(1.0, |scale| scale.item().exp())]
    }
}

/// What a batch of rows teaches.
fn examples(
    pipeline: &Pipeline,
    tables: &Tables,
    rows: &[&Row],
    numbers: &[usize],
    mut views: Vec<Tensor>,
) -> Result<Examples> {
    if let (Network::Dual(_), Some(tokenizer)) = (&pipeline.network, &pipeline.tokenizer) {
        return Ok(Examples::Paired(pairs(tokenizer, tables, rows, numbers, views)?));
    }
    let [targets, known] = tables.targets(rows).expect("a supervised run has labels");
    Ok(Examples::Labelled { pixels: views.swap_remove(0), targets, known })
}

/// Texts and pictures of some rows, ready for the model.
pub(in crate::train) fn pairs(
    tokenizer: &Tokenizer,
    tables: &Tables,
    rows: &[&Row],
    numbers: &[usize],
    views: Vec<Tensor>,
) -> Result<step::Pairs> {
    let tokens = tokenizer.encode(&rows.iter().map(|row| row.text.as_str()).collect::<Vec<_>>())?;
    Ok(step::Pairs { views, ids: tokens.ids, mask: tokens.mask, groups: tables.groups(rows, numbers) })
}
