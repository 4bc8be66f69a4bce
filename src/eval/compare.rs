//! A model (or an ensemble) evaluated on a split, alone or against another.

use super::evaluation::Evaluation;
use super::localisation::{self, Case, Measure};
use super::measure::{self, Measured, measure};
use super::scores::{ScoreInput, ScoreOptions, ScoreTable, Validation, score_table};
use super::sparsity::{self, Sparsity};
use super::zero_shot::ensemble;
use crate::data::{Boxes, Labels, Pairs, Prompts, Row, Split};
use crate::error::{Error, Result};
use crate::loss::TierOptions;
use crate::pipeline::Pipeline;

/// Images in a batch.
pub const AT_ONCE: usize = 32;

/// The tables of an evaluation.
pub struct Tables {
    /// Images and texts.
    pub pairs: Pairs,
    /// What is judged; `None`: every row.
    pub split: Option<Split>,
    /// What thresholds are chosen on.
    pub val_split: Split,
    /// The truth.
    pub labels: Option<Labels>,
    /// Queries.
    pub prompts: Option<Prompts>,
    /// Boxes of findings.
    pub boxes: Option<Boxes>,
}

/// How to evaluate.
#[derive(Clone, Copy)]
pub struct How {
    /// Bootstrap and thresholds.
    pub scores: ScoreOptions,
    /// Scores are probabilities, see [`measure::Options`].
    pub softmax: bool,
    /// Mask, eps and temperature of the entropies.
    pub tier: TierOptions,
    /// Loader threads.
    pub workers: usize,
}

/// One side of a comparison.
pub struct Side {
    /// Means over the models of an ensemble.
    pub measured: Measured,
    /// Per label of the evaluation, per row.
    pub scores: Vec<Vec<f64>>,
    /// What each case of localisation measures.
    pub measures: Vec<Option<Measure>>,
}

/// What an evaluation found.
pub struct Evaluated {
    /// As metrics.json has it.
    pub evaluation: Evaluation,
    /// Labels, in the order of the scores.
    pub labels: Vec<String>,
    /// Truth per label, per row.
    pub truth: Vec<Vec<Option<bool>>>,
    /// The judged rows.
    pub rows: Vec<Row>,
    /// What is judged.
    pub model: Side,
    /// What it is compared with.
    pub against: Option<Side>,
}

impl Tables {
    /// The judged rows: those of the split.
    pub fn rows(&self) -> Vec<Row> {
        self.pairs.rows.iter().filter(|row| self.split.is_none_or(|split| row.split == split)).cloned().collect()
    }

    /// The rows that thresholds are chosen on, where others are judged: those of the validation split with labels.
    pub fn known(&self) -> Vec<Row> {
        let Some(labels) = self.labels.as_ref().filter(|_| self.split != Some(self.val_split)) else {
            return Vec::new();
        };
        self.pairs.split(self.val_split).filter(|row| labels.of.contains_key(&row.image)).cloned().collect()
    }
}

/// Evaluates `models` (their ensemble), and compares with `against` where it names some. `progress` hears (done, of all) images.
///
/// # Errors
/// If there is nothing to judge, models differ in their labels, or an image or text cannot be read.
pub fn evaluate(
    models: &[Pipeline],
    against: &[Pipeline],
    tables: &Tables,
    how: &How,
    progress: &dyn Fn(u64, u64),
) -> Result<Evaluated> {
    let rows = tables.rows();
    if rows.is_empty() {
        return Err(Error::new("no row is in this split: see the column split").at(&tables.pairs.path));
    }
    let known = tables.known();
    let all = ((rows.len() + known.len()) * (models.len() + against.len())) as u64;
    let done = std::cell::Cell::new(0);
    let side = |pipelines: &[Pipeline], rows: &[Row], whole: bool| -> Result<Measured> {
        let rows: Vec<&Row> = rows.iter().collect();
        let options = measure::Options {
            prompts: tables.prompts.as_ref(),
            boxes: tables.boxes.as_ref().filter(|_| whole),
            softmax: how.softmax,
            tier: how.tier,
        };
        let mut measured = Vec::new();
        for pipeline in pipelines {
            let loader = measure::loader(pipeline, &rows, AT_ONCE, how.workers, 0)?;
            let before = done.get();
            measured.push(measure(pipeline, &rows, &loader, &options, &|n| {
                done.set(before + n);
                progress(done.get(), all);
            })?);
        }
        combine(measured)
    };
    let ours = side(models, &rows, true)?;
    let theirs = if against.is_empty() { None } else { Some(side(against, &rows, true)?) };

    let mut notes: Vec<String> =
        [Some(&ours), theirs.as_ref()].into_iter().flatten().flat_map(|m| m.notes.clone()).collect();
    let labels = judged(&ours, theirs.as_ref(), tables.labels.as_ref(), &mut notes);
    let truth = |rows: &[Row]| -> Vec<Vec<Option<bool>>> {
        let table = tables.labels.as_ref();
        let place = |name: &String| table.and_then(|l| l.names.iter().position(|n| n == name));
        let value = |row: &Row, k: Option<usize>| table.and_then(|l| l.of.get(&row.image)).and_then(|v| v[k?]);
        labels.iter().map(|name| rows.iter().map(|row| value(row, place(name))).collect()).collect()
    };
    let columns = |measured: &Measured| -> Vec<Vec<f64>> {
        let column = |name: &String| measured.labels.iter().position(|n| n == name).map(|k| measured.scores[k].clone());
        labels.iter().filter_map(column).collect()
    };
    let side_of = |measured: Measured| {
        let scores = columns(&measured);
        Side { measures: localisation::measure_all(&measured.cases), measured, scores }
    };
    let (ours, theirs) = (side_of(ours), theirs.map(side_of));
    let chosen_on = if known.is_empty() || labels.is_empty() {
        None
    } else {
        let theirs = if against.is_empty() { None } else { Some(columns(&side(against, &known, false)?)) };
        Some((truth(&known), columns(&side(models, &known, false)?), theirs))
    };
    let truth = truth(&rows);
    let groups: Vec<String> = rows.iter().map(|row| row.group().to_owned()).collect();
    let input = ScoreInput {
        names: &labels,
        truth: &truth,
        scores: &ours.scores,
        against: theirs.as_ref().map(|side| side.scores.as_slice()),
        validation: chosen_on.as_ref().map(|(truth, scores, against)| Validation {
            truth,
            scores,
            against: against.as_deref(),
        }),
        groups: Some(&groups),
    };
    let table = if labels.is_empty() { ScoreTable::default() } else { score_table(&input, &how.scores)? };
    let mut evaluation = Evaluation::new(rows.len(), table);
    evaluation.retrieval = ours.measured.retrieval;
    evaluation.sparsity = ours.measured.sparsity;
    evaluation.rank_ordered.clone_from(&ours.measured.rank_ordered);
    let (draws, seed) = (how.scores.draws, how.scores.seed);
    evaluation.localisation = localisation::summarise(&ours.measured.cases, &ours.measures, draws, seed);
    if let Some(theirs) = &theirs {
        evaluation.sparsity_against = theirs.measured.sparsity;
        evaluation.rank_ordered_against.clone_from(&theirs.measured.rank_ordered);
        if ours.measured.sparsity_pairs.len() == theirs.measured.sparsity_pairs.len() {
            let [ours, theirs] = [&ours, theirs].map(|side| &side.measured.sparsity_pairs[..]);
            evaluation.sparsity_difference = sparsity::compare(ours, theirs, draws, seed);
        }
        evaluation.localisation_against =
            localisation::summarise(&theirs.measured.cases, &theirs.measures, draws, seed);
        if ours.measured.cases.len() == theirs.measured.cases.len() {
            evaluation.localisation_difference =
                localisation::compare(&ours.measured.cases, &ours.measures, &theirs.measures, draws, seed);
        }
    }
    notes.extend(tables.labels.as_ref().and_then(|labels| labels.unmatched(&tables.pairs, rows.iter())));
    notes.extend(unused_boxes(tables));
    notes.extend(verbatim(tables));
    notes.append(&mut evaluation.notes);
    evaluation.notes = notes;
    Ok(Evaluated { evaluation, labels, truth, rows, model: ours, against: theirs })
}

/// The labels that every side scores and the truth knows.
fn judged(ours: &Measured, theirs: Option<&Measured>, truth: Option<&Labels>, notes: &mut Vec<String>) -> Vec<String> {
    let Some(truth) = truth else { return Vec::new() };
    let scored = |name: &&String| theirs.is_none_or(|side| side.labels.contains(name));
    let (kept, left): (Vec<&String>, Vec<&String>) =
        ours.labels.iter().filter(scored).partition(|name| truth.names.contains(name));
    let unscored: Vec<&String> = truth.names.iter().filter(|name| !ours.labels.contains(name)).collect();
    for (names, why) in [(left, "have prompts but no column of labels"), (unscored, "have labels but no prompts")] {
        if !names.is_empty() {
            let names: Vec<&str> = names.iter().map(|n| n.as_str()).collect();
            notes.push(format!("not judged: {} {why}", names.join(", ")));
        }
    }
    kept.into_iter().cloned().collect()
}

/// Boxes that judge nothing.
fn unused_boxes(tables: &Tables) -> Option<String> {
    let boxes = tables.boxes.as_ref()?;
    let Some(prompts) = &tables.prompts else {
        return Some(format!("{}: boxes judge the heat maps of prompts; give --prompts", boxes.path.display()));
    };
    boxes.strangers(&tables.pairs, tables.labels.as_ref(), prompts)
}

/// Prompts that stand verbatim among the training texts: what they score is not zero-shot.
fn verbatim(tables: &Tables) -> Option<String> {
    let fold = |text: &str| text.trim().trim_end_matches('.').to_lowercase();
    let texts: Vec<String> = tables.pairs.split(Split::Train).map(|row| fold(&row.text)).collect();
    let prompts = tables.prompts.iter().flat_map(|p| &p.0).flat_map(|p| p.positive.iter().chain(&p.negative));
    let stands = |prompt: &&String| {
        let folded = fold(prompt);
        texts.iter().any(|text| text.contains(&folded))
    };
    let found: std::collections::BTreeSet<&String> = prompts.filter(stands).collect();
    let first = found.first()?;
    Some(format!("{} prompts stand verbatim in training texts, such as {first:?}: this is not zero-shot", found.len()))
}

/// The mean of several models' measurements.
fn combine(mut all: Vec<Measured>) -> Result<Measured> {
    if all.len() == 1 {
        return Ok(all.remove(0));
    }
    let first = all.first().ok_or_else(|| Error::usage("which model? Give --model PATH"))?;
    if let Some(other) = all.iter().find(|m| m.labels != first.labels) {
        return Err(Error::new(format!(
            "an ensemble scores the same labels: {} is not {}",
            other.labels.join(", "),
            first.labels.join(", ")
        )));
    }
    let scores = ensemble(&all.iter().map(|m| m.scores.clone()).collect::<Vec<_>>());
    let same_grid = all.iter().all(|m| {
        m.cases.len() == first.cases.len()
            && m.cases
                .iter()
                .zip(&first.cases)
                .all(|(a, b)| a.map.scores.len() == b.map.scores.len() && a.crop == b.crop)
    });
    let share = 1.0 / all.len() as f32;
    let mean_case = |k: usize| -> Case {
        let mut case = first.cases[k].clone();
        for (i, score) in case.map.scores.iter_mut().enumerate() {
            *score = all.iter().map(|m| m.cases[k].map.scores[i]).sum::<f32>() * share;
        }
        case
    };
    let sparsity = all.iter().map(|m| m.sparsity).collect::<Option<Vec<Sparsity>>>().map(|s| Sparsity {
        patches: s.iter().map(|s| s.patches).sum::<f64>() / s.len() as f64,
        tokens: s.iter().map(|s| s.tokens).sum::<f64>() / s.len() as f64,
    });
    Ok(Measured {
        labels: first.labels.clone(),
        scores,
        // Their texts live in different spaces: an ensemble has no one order of nearness.
        retrieval: None,
        sparsity,
        sparsity_pairs: Vec::new(),
        rank_ordered: None,
        cases: if same_grid { (0..first.cases.len()).map(mean_case).collect() } else { Vec::new() },
        notes: (!same_grid)
            .then(|| "heat maps are not judged: the models of an ensemble differ in their patches or crop".to_owned())
            .into_iter()
            .collect(),
    })
}
