//! What the reports show, as plain values: evaluation and training fill these in. What may be missing is an `Option` or
//! may be empty; its part of the report is then left out or says so.

use super::heat::Grid;
use crate::image::Picture;

/// A number, with its 95% interval where one was computed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// The number itself.
    pub value: f64,
    /// Lower and upper end of the interval.
    pub ci95: Option<[f64; 2]>,
}

impl Estimate {
    /// A number without an interval.
    pub fn new(value: f64) -> Self {
        Self { value, ci95: None }
    }

    /// A number with its interval.
    pub fn within(value: f64, low: f64, high: f64) -> Self {
        Self { value, ci95: Some([low, high]) }
    }

    /// The sign, if the interval excludes zero; `None` where it does not or there is none.
    pub fn sign(&self) -> Option<f64> {
        self.ci95.filter(|[low, high]| *low > 0.0 || *high < 0.0).map(|[low, _]| if low > 0.0 { 1.0 } else { -1.0 })
    }
}

/// Where a report comes from; no date, so that the same results give the same bytes.
#[derive(Clone, Debug, Default)]
pub struct Provenance {
    /// Version of the program, `env!("CARGO_PKG_VERSION")`.
    pub version: String,
    /// The command line as typed.
    pub command: String,
    /// The seed of everything random.
    pub seed: Option<u64>,
    /// More pairs of name and value: data, split, number of images, instruction set.
    pub more: Vec<(String, String)>,
}

/// One label of one model.
#[derive(Clone, Debug, Default)]
pub struct LabelResult {
    /// Its name.
    pub label: String,
    /// Images with the finding.
    pub positives: usize,
    /// Images without it.
    pub negatives: usize,
    /// Area under the ROC curve; `None` where only one class is present.
    pub auroc: Option<Estimate>,
    /// Average precision.
    pub ap: Option<f64>,
    /// Matthews correlation at `threshold`.
    pub mcc: Option<f64>,
    /// F1 at `threshold`.
    pub f1: Option<f64>,
    /// The score from which a finding is called, chosen on the validation split.
    pub threshold: Option<f64>,
    /// Points (false positive rate, true positive rate) from (0, 0) to (1, 1); may be empty.
    pub roc: Vec<(f64, f64)>,
}

/// Finding the right report of an image among all.
#[derive(Clone, Copy, Debug)]
pub struct Retrieval {
    /// Share of images whose report comes first.
    pub recall_at_1: f64,
    /// Share of images whose report is among the first five.
    pub recall_at_5: f64,
    /// What guessing gives for the first.
    pub chance_at_1: f64,
    /// What guessing gives for five.
    pub chance_at_5: f64,
    /// Images searched for.
    pub n: usize,
}

/// Patch scores against boxes, at patch level.
#[derive(Clone, Debug, Default)]
pub struct Localisation {
    /// Mean over (image, label) of the mean score inside minus the mean score outside the boxes.
    pub inside_minus_outside: Option<Estimate>,
    /// Share of (image, label) whose best patch lies in a box.
    pub pointing_game: Option<Estimate>,
    /// The same if a patch is drawn at random.
    pub pointing_chance: Option<f64>,
    /// The same if the patch nearest the mean box centre is always chosen.
    pub centre_prior: Option<f64>,
    /// Contrast to noise ratio between inside and outside.
    pub contrast_to_noise: Option<Estimate>,
    /// (threshold, mean intersection over union) pairs.
    pub iou: Vec<(f64, f64)>,
    /// Each finding's means.
    pub findings: Vec<FindingSimilarity>,
    /// (image, label) pairs judged.
    pub n: usize,
}

/// Mean similarity inside and outside the boxes of one finding.
#[derive(Clone, Debug, Default)]
pub struct FindingSimilarity {
    /// The finding.
    pub label: String,
    /// (image, label) pairs.
    pub n: usize,
    /// Mean over patches inside.
    pub inside: f64,
    /// Mean over patches outside.
    pub outside: f64,
}

/// Sparsity of the similarities, in nats: ln P - H over patches, ln T - H over tokens.
#[derive(Clone, Copy, Debug)]
pub struct Sparsity {
    /// ln P - H; larger means that fewer patches take part.
    pub patches: f64,
    /// ln T - H.
    pub tokens: f64,
}

/// Patch similarities to the global text embedding, sorted within each pair and averaged per rank; highest first.
#[derive(Clone, Debug, Default)]
pub struct Ranked {
    /// Mean similarity of each rank.
    pub raw: Vec<f64>,
    /// The same with each pair's similarities divided by their sum.
    pub normalised: Vec<f64>,
    /// Pairs averaged over.
    pub pairs: usize,
}

/// One model (or ensemble) as evaluated.
#[derive(Clone, Debug, Default)]
pub struct ModelResult {
    /// Its name in tables and legends.
    pub name: String,
    /// Its labels, in the table's order.
    pub labels: Vec<LabelResult>,
    /// Mean area under the curve over the labels that are defined.
    pub auc_mean: Option<Estimate>,
    /// Retrieval of reports, where texts exist.
    pub retrieval: Option<Retrieval>,
    /// Localisation, where boxes exist.
    pub localisation: Option<Localisation>,
    /// Sparsity of the similarities.
    pub sparsity: Option<Sparsity>,
    /// Rank-ordered similarities.
    pub ranked: Option<Ranked>,
}

/// Paired differences: the model that a report is about minus what it is compared with.
#[derive(Clone, Debug, Default)]
pub struct Differences {
    /// Of each label's area under the curve.
    pub labels: Vec<(String, Estimate)>,
    /// Of the mean area under the curve.
    pub auc_mean: Option<Estimate>,
    /// Of inside minus outside.
    pub inside_minus_outside: Option<Estimate>,
    /// Of the pointing game.
    pub pointing_game: Option<Estimate>,
    /// Of the sparsity over patches, nats.
    pub sparsity_patches: Option<Estimate>,
    /// Of the sparsity over tokens, nats.
    pub sparsity_tokens: Option<Estimate>,
}

/// One x-ray of the gallery.
#[derive(Clone, Debug)]
pub struct Example {
    /// What it shows, "pleural effusion, left".
    pub caption: String,
    /// What the model saw: boxes and grids refer to it.
    pub picture: Picture,
    /// `[x, y, width, height]` in the picture's pixels.
    pub boxes: Vec<[f64; 4]>,
    /// One heat map per model, with the model's name.
    pub maps: Vec<(String, Grid)>,
}

/// One logged step of a training run; log.jsonl holds the same.
#[derive(Clone, Debug, Default)]
pub struct LoggedStep {
    /// Optimiser steps so far.
    pub step: usize,
    /// The whole objective, nats.
    pub loss: f64,
    /// Its contrastive part, nats.
    pub loss_clip: Option<f64>,
    /// Entropy over patches, nats.
    pub patch_entropy: Option<f64>,
    /// Entropy over tokens, nats.
    pub token_entropy: Option<f64>,
    /// Learning rate.
    pub lr: Option<f64>,
}

/// One validation of a training run.
#[derive(Clone, Debug, Default)]
pub struct Validation {
    /// Optimiser steps so far.
    pub step: usize,
    /// Mean zero-shot area under the curve.
    pub auc: Option<f64>,
    /// Validation loss, nats.
    pub loss: Option<f64>,
}

/// The course of one training run.
#[derive(Clone, Debug, Default)]
pub struct Course {
    /// The run's name in legends; empty where there is only one.
    pub name: String,
    /// What log.jsonl holds.
    pub steps: Vec<LoggedStep>,
    /// Validations, in order.
    pub validations: Vec<Validation>,
}
