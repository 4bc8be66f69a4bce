//! How good the model of an epoch is, on rows that it does not learn from.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::run::pairs;
use super::step::{self, Parts};
use super::tables::Tables;
use super::{Config, Objective};
use crate::data::{Loader, Row};
use crate::error::Result;
use crate::eval::measure::{self, measure};
use crate::eval::metrics::{auroc, mean};
use crate::pipeline::{Network, Pipeline};

/// Validation of an epoch.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Validation {
    /// The objective on validation pairs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub val_loss: Option<f64>,
    /// Its contrastive part.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub val_loss_clip: Option<f64>,
    /// In nats.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub val_patch_entropy: Option<f64>,
    /// In nats.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub val_token_entropy: Option<f64>,
    /// Mean zero-shot AUC (of a supervised run, AUC) of the labels that have one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub val_auc: Option<f64>,
    /// Label by label.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub val_auc_by_label: BTreeMap<String, f64>,
}

impl Validation {
    /// What checkpoints are judged by: the AUC, or the loss where there is none; higher is better. None if neither is there or it is not finite.
    pub fn score(&self) -> Option<f64> {
        self.val_auc.or(self.val_loss.map(|x| -x)).filter(|x| x.is_finite())
    }
}

impl fmt::Display for Validation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("validation")?;
        if let Some(loss) = self.val_loss {
            write!(f, " loss {loss:.3}")?;
        }
        if let Some(auc) = self.val_auc {
            write!(f, " AUC {auc:.3}")?;
        }
        Ok(())
    }
}

/// Validation rows that are scored.
pub(super) fn labelled<'t>(tables: &'t Tables, config: &Config) -> impl Iterator<Item = &'t Row> {
    let scored = tables.prompts.is_some() || config.objective == Objective::Supervised;
    let labels = tables.labels.as_ref().filter(|_| scored);
    tables.val.iter().filter(move |row| labels.is_some_and(|l| l.of.contains_key(&row.image)))
}

/// The validation rows, their pictures kept between epochs.
pub(super) struct Validator {
    /// Rows that have a text, for the loss.
    written: Vec<Row>,
    /// Rows that have labels, for the AUC.
    labelled: Vec<Row>,
    loaders: [Loader; 2],
}

impl Validator {
    pub fn new(pipeline: &Pipeline, tables: &Tables, config: &Config, workers: usize) -> Result<Self> {
        let has_text = |row: &&Row| config.objective == Objective::Clip && !row.text.trim().is_empty();
        let written: Vec<Row> = tables.val.iter().filter(has_text).cloned().collect();
        let labelled: Vec<Row> = labelled(tables, config).cloned().collect();
        let loader = |rows: &[Row]| {
            let rows: Vec<&Row> = rows.iter().collect();
            measure::loader(pipeline, &rows, config.train.batch, workers, config.image.cache_mib)
        };
        let loaders = [loader(&written)?, loader(&labelled)?];
        Ok(Self { written, labelled, loaders })
    }

    /// Measures the model; nothing where there is nothing to measure by.
    pub fn validate(&self, pipeline: &Pipeline, tables: &Tables, config: &Config) -> Result<Option<Validation>> {
        let mut out = Validation::default();
        if let Some(parts) = self.loss(pipeline, tables, config)? {
            out.val_loss = Some(parts.total);
            out.val_loss_clip = Some(parts.clip);
            out.val_patch_entropy = Some(parts.patch_entropy);
            out.val_token_entropy = Some(parts.token_entropy);
        }
        if let Some(labels) = tables.labels.as_ref().filter(|_| !self.labelled.is_empty()) {
            let rows: Vec<&Row> = self.labelled.iter().collect();
            let (prompts, tier) = (tables.prompts.as_ref(), config.tier);
            let options = measure::Options { prompts, boxes: None, softmax: false, tier };
            let measured = measure(pipeline, &rows, &self.loaders[1], &options, &|_| ())?;
            for (name, scores) in measured.labels.iter().zip(&measured.scores) {
                let Some(k) = labels.names.iter().position(|n| n == name) else { continue };
                let truth: Vec<Option<bool>> = rows.iter().map(|row| labels.of[&row.image][k]).collect();
                if let Some(auc) = auroc(scores, &truth) {
                    out.val_auc_by_label.insert(name.clone(), auc);
                }
            }
            out.val_auc = mean(out.val_auc_by_label.values().map(|&x| Some(x)));
        }
        Ok((out != Validation::default()).then_some(out))
    }

    /// The objective's mean over rows that have a text, in batches as large as in training.
    fn loss(&self, pipeline: &Pipeline, tables: &Tables, config: &Config) -> Result<Option<Parts>> {
        let Network::Dual(_) = &pipeline.network else { return Ok(None) };
        let (model, tokenizer) = pipeline.dual()?;
        let (mut sum, mut count) = (Parts::default(), 0);
        for batch in self.loaders[0].epoch(0, 0) {
            let batch = batch?;
            let rows: Vec<&Row> = batch.rows.iter().map(|&i| &self.written[i]).collect();
            let pairs = pairs(tokenizer, tables, &rows, &batch.rows, batch.views)?;
            sum = sum.plus(&step::value(model, &pairs, &config.tier).times(rows.len() as f64));
            count += rows.len();
        }
        Ok((count > 0).then(|| sum.times(1.0 / count as f64)))
    }
}
