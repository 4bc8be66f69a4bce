//! From what evaluation and training found to what the reports show.

use super::heat::Grid;
use super::results::{
    Course, Differences, Estimate, Example, FindingSimilarity, LabelResult, Localisation, LoggedStep, ModelResult,
    Ranked, Retrieval, Sparsity, Validation,
};
use crate::error::Result;
use crate::eval::compare::{Evaluated, Side};
use crate::eval::localisation as found;
use crate::eval::metrics::roc_curve;
use crate::eval::scores::{Difference, Scores};
use crate::eval::sparsity::SparsityDifference;
use crate::image;
use crate::pipeline::Pipeline;
use crate::train::Record;

fn within(value: Option<f64>, ci95: Option<[f64; 2]>) -> Option<Estimate> {
    value.map(|value| Estimate { value, ci95 })
}

fn difference(d: &Difference) -> Estimate {
    Estimate { value: d.observed, ci95: Some(d.ci95) }
}

fn localisation(l: &found::Localisation) -> Localisation {
    Localisation {
        inside_minus_outside: within(Some(l.inside_minus_outside), Some(l.inside_minus_outside_ci95)),
        pointing_game: within(Some(l.pointing_game), Some(l.pointing_game_ci95)),
        pointing_chance: Some(l.chance),
        centre_prior: Some(l.centre_prior),
        contrast_to_noise: l.contrast_to_noise.map(Estimate::new),
        iou: l
            .iou
            .iter()
            .filter_map(|o| match o.threshold {
                found::Threshold::Value(at) => Some((at, o.iou)),
                found::Threshold::Quantile(_) => None,
            })
            .collect(),
        findings: l
            .labels
            .iter()
            .map(|(label, f)| FindingSimilarity { label: label.clone(), n: f.n, inside: f.inside, outside: f.outside })
            .collect(),
        n: l.n,
    }
}

fn model(name: &str, all: &Evaluated, side: &Side, scores: &Scores, l: Option<&found::Localisation>) -> ModelResult {
    let label = |(k, name): (usize, &String)| {
        let s = scores.labels.get(name).cloned().unwrap_or_default();
        let curve = roc_curve(&side.scores[k], &all.truth[k]).unwrap_or_default();
        LabelResult {
            label: name.clone(),
            positives: s.n_pos as usize,
            negatives: s.n_neg as usize,
            auroc: within(s.auroc, s.ci95),
            ap: s.ap,
            mcc: s.mcc,
            f1: s.f1,
            threshold: s.threshold,
            roc: curve.iter().map(|p| (p.fpr, p.tpr)).collect(),
        }
    };
    ModelResult {
        name: name.to_owned(),
        labels: all.labels.iter().enumerate().map(label).collect(),
        auc_mean: within(scores.auc_mean, scores.auc_mean_ci95),
        retrieval: side.measured.retrieval.map(|r| Retrieval {
            recall_at_1: r.recall_at_1,
            recall_at_5: r.recall_at_5,
            chance_at_1: r.chance_at_1,
            chance_at_5: r.chance_at_5,
            n: r.n,
        }),
        localisation: l.map(localisation),
        sparsity: side.measured.sparsity.map(|s| Sparsity { patches: s.patches, tokens: s.tokens }),
        ranked: side.measured.rank_ordered.as_ref().map(|r| Ranked {
            raw: r.raw.clone(),
            normalised: r.normalised.clone(),
            pairs: r.pairs,
        }),
    }
}

/// Paired differences, those of labels aside.
pub fn differences(
    auc_mean: Option<&Difference>,
    localisation: Option<&found::LocalisationDifference>,
    sparsity: Option<&SparsityDifference>,
) -> Differences {
    Differences {
        labels: Vec::new(),
        auc_mean: auc_mean.map(difference),
        inside_minus_outside: localisation.map(|l| difference(&l.inside_minus_outside)),
        pointing_game: localisation.map(|l| difference(&l.pointing_game)),
        sparsity_patches: sparsity.map(|s| difference(&s.patches)),
        sparsity_tokens: sparsity.map(|s| difference(&s.tokens)),
    }
}

/// Both sides of an evaluation under these names, and their differences.
pub fn sides(all: &Evaluated, name: &str, against: &str) -> (ModelResult, Option<ModelResult>, Option<Differences>) {
    let e = &all.evaluation;
    let ours = model(name, all, &all.model, &e.scores, e.localisation.as_ref());
    let scores = e.against.clone().unwrap_or_default();
    let theirs = all.against.as_ref().map(|side| model(against, all, side, &scores, e.localisation_against.as_ref()));
    let compared = |sparsity| differences(e.auc_mean_difference.as_ref(), e.localisation_difference.as_ref(), sparsity);
    let differences = all.against.is_some().then(|| Differences {
        labels: e.differences.iter().flatten().map(|(label, d)| (label.clone(), difference(d))).collect(),
        ..match e.sparsity.zip(e.sparsity_against) {
            // Of an ensemble, whose pairs are not told apart: without an interval.
            Some((a, b)) if e.sparsity_difference.is_none() => Differences {
                sparsity_patches: Some(Estimate::new(a.patches - b.patches)),
                sparsity_tokens: Some(Estimate::new(a.tokens - b.tokens)),
                ..compared(None)
            },
            _ => compared(e.sparsity_difference.as_ref()),
        }
    });
    (ours, theirs, differences)
}

/// Up to `count` boxed findings with the heat maps of both sides, label after label in turn.
pub fn examples(all: &Evaluated, pipeline: &Pipeline, names: [&str; 2], count: usize) -> Result<Vec<Example>> {
    let cases = &all.model.measured.cases;
    let mut order: Vec<usize> = Vec::new();
    for turn in 0..cases.len() {
        for label in &all.model.measured.labels {
            order.extend((0..cases.len()).filter(|&i| cases[i].label == *label).nth(turn));
        }
        if order.len() >= count {
            break;
        }
    }
    order.truncate(count);
    let mut out = Vec::new();
    for i in order {
        let case = &cases[i];
        let Some(row) = all.rows.iter().find(|row| row.image == case.image) else { continue };
        let picture = image::open(row.path(), pipeline.sixteen_bit)?;
        let mut maps = Vec::new();
        let theirs = all.against.as_ref().and_then(|side| side.measured.cases.get(i));
        for (name, case) in [(names[1], theirs), (names[0], Some(case))] {
            if let Some(case) = case {
                maps.push((name.to_owned(), Grid::new(case.map.height, case.map.width, case.map.scores.clone())?));
            }
        }
        out.push(Example {
            caption: case.label.clone(),
            picture: pipeline.preprocess.seen(&picture),
            boxes: case.boxes.clone(),
            maps,
        });
    }
    Ok(out)
}

/// Some of the judged pictures, plain: boxed findings with their boxes.
pub fn phantoms(all: &Evaluated, pipeline: &Pipeline, count: usize) -> Result<Vec<Example>> {
    let mut out = Vec::new();
    for row in all.rows.iter().take(count) {
        let cases: Vec<&found::Case> = all.model.measured.cases.iter().filter(|c| c.image == row.image).collect();
        out.push(Example {
            caption: row.text.clone(),
            picture: pipeline.preprocess.seen(&image::open(row.path(), pipeline.sixteen_bit)?),
            boxes: cases.iter().flat_map(|c| c.boxes.clone()).collect(),
            maps: Vec::new(),
        });
    }
    Ok(out)
}

/// A run's log as a course with this name.
pub fn course(name: &str, records: &[Record]) -> Course {
    Course {
        name: name.to_owned(),
        steps: records
            .iter()
            .map(|r| LoggedStep {
                step: r.step as usize,
                loss: r.loss,
                loss_clip: Some(r.loss_clip),
                patch_entropy: Some(r.patch_entropy),
                token_entropy: Some(r.token_entropy),
                lr: Some(r.lr),
            })
            .collect(),
        validations: records
            .iter()
            .filter_map(|r| {
                let v = r.validation.as_ref()?;
                Some(Validation { step: r.step as usize, auc: v.val_auc, loss: v.val_loss })
            })
            .collect(),
    }
}
