//! What a finished run leaves: the best model, judged on validation rows, its curves and its report.

use std::collections::BTreeMap;

use super::Run;
use crate::data::{Pairs, Row, Split};
use crate::error::Result;
use crate::eval::compare;
use crate::eval::scores::ScoreOptions;
use crate::files;
use crate::formats::Weights;
use crate::pipeline::Pipeline;
use crate::report::run::{self, Checkpoint, Judged, RunReport, curves_png};
use crate::report::{Provenance, found};
use crate::tensor::Tensor;
use crate::train::checkpoint::{Kept, State};

impl Run<'_> {
    /// Makes the model folder that of a kept epoch.
    pub(super) fn publish(&mut self, kept: &Kept) -> Result<()> {
        let weights = Weights::open(self.folder.checkpoints().join(kept.file()), true)?;
        weights.check()?;
        let tensors: BTreeMap<String, Tensor> = weights.iter().map(|(n, t)| (n.to_owned(), t.clone())).collect();
        self.pipeline.save(&self.folder.model(), Some(&tensors))
    }

    /// The finished model on validation rows, as `tier eval` does it, where boxes are given.
    pub(super) fn judge(&self, workers: usize) -> Result<Option<Judged>> {
        let Some(boxes) = &self.tables.boxes else { return Ok(None) };
        let boxed = |row: &Row| boxes.found(&row.image).is_some();
        if !self.tables.val.iter().any(boxed) {
            self.watch.say("no validation row has a box in data.boxes: heat maps are not judged");
            return Ok(None);
        }
        let mut pipeline = Pipeline::open(&self.folder.model(), true)?;
        if let Some(gpu) = &self.gpu {
            pipeline.to_device(gpu)?;
        }
        let tables = compare::Tables {
            pairs: Pairs::open(&self.config.data.pairs, self.config.seed)?,
            split: Some(Split::Val),
            val_split: Split::Val,
            labels: self.tables.labels.clone(),
            prompts: self.tables.prompts.clone(),
            boxes: Some(boxes.clone()),
        };
        let scores = ScoreOptions { seed: self.config.seed, ..ScoreOptions::default() };
        let how = compare::How { scores, softmax: false, tier: self.config.tier, workers };
        let pipelines = [pipeline];
        let all = compare::evaluate(&pipelines, &[], &tables, &how, &|_, _| ())?;
        let (of, sparsity) = (&all.evaluation.localisation, all.evaluation.sparsity);
        if let Some(l) = of {
            let concentrated = sparsity.map_or_else(String::new, |s| {
                format!("; sparsity {:.3} over patches, {:.3} over tokens", s.patches, s.tokens)
            });
            self.watch.say(&format!(
                "on val, {} boxed findings: inside minus outside {:.3}; the best patch is in a box in {:.3} of cases \
                 (any patch {:.3}, the middle one {:.3}){concentrated}",
                l.n, l.inside_minus_outside, l.pointing_game, l.chance, l.centre_prior
            ));
        }
        Ok(Some(Judged {
            images: all.rows.len(),
            notes: all.evaluation.notes.clone(),
            model: found::sides(&all, "model", "").0,
            examples: found::examples(&all, &pipelines[0], ["model", ""], 8)?,
        }))
    }

    /// Writes curves.png and report.html.
    pub(super) fn report(&self, state: &State, notes: &[String], judged: Option<Judged>) -> Result<()> {
        let name = self.folder.0.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
        let course = found::course("", &self.records);
        files::write_atomic(self.folder.0.join("curves.png"), &curves_png(std::slice::from_ref(&course))?)?;
        let by_auc = self.records.iter().any(|r| r.validation.as_ref().is_some_and(|v| v.val_auc.is_some()));
        let steps = |epoch: u64| self.records.iter().filter(|r| r.epoch <= epoch).map(|r| r.step as usize).max();
        let best = |k: &Kept| Checkpoint { name: k.file(), step: steps(k.epoch).unwrap_or(0), value: k.score };
        let report = RunReport {
            provenance: Provenance {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                command: "tier train".to_owned(),
                seed: Some(self.config.seed),
                more: Vec::new(),
            },
            name,
            course,
            best: state.kept.iter().map(best).collect(),
            judged_by: if by_auc { "mean AUROC on val" } else { "minus validation loss" }.to_owned(),
            config: self.config.to_toml()?,
            notes: notes.to_vec(),
            judged,
        };
        files::write_atomic(self.folder.0.join("report.html"), run::html(&report)?.as_bytes())
    }
}
