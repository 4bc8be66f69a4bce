//! The table of scores: per label AUROC, average precision, and MCC and F1 at a threshold chosen elsewhere, with intervals.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::bootstrap::{Bootstrap, Spread};
pub use super::metrics::Criterion;
use super::metrics::{Outcomes, Ranking, best_threshold, mean, mean_of_all};
use crate::error::{Error, Result};

/// Columns of scores and of truth for the same rows, one of each per label.
#[derive(Clone, Copy, Debug)]
pub struct ScoreInput<'a> {
    /// Names of the labels.
    pub names: &'a [String],
    /// Per label, per row; `None` is unknown and left out for that label.
    pub truth: Truth<'a>,
    /// Per label, per row.
    pub scores: &'a [Vec<f64>],
    /// Scores of the other side of paired differences, same rows and labels.
    pub against: Option<&'a [Vec<f64>]>,
    /// Truth and scores that thresholds are chosen on, same labels, other rows. Without them there is no threshold, MCC or F1.
    pub validation: Option<Validation<'a>>,
    /// Per row: what is resampled as a whole (the patient). Default: each row alone.
    pub groups: Option<&'a [String]>,
}

/// What thresholds are chosen on.
#[derive(Clone, Copy, Debug)]
pub struct Validation<'a> {
    /// Per label, per validation row.
    pub truth: Truth<'a>,
    /// Per label, per validation row.
    pub scores: &'a [Vec<f64>],
    /// As `scores`, of the other side.
    pub against: Option<&'a [Vec<f64>]>,
}

/// Default number of bootstrap draws: it leaves the ends of an interval unsure by about a fortieth of the standard error; 1000 would by a twelfth.
pub const DRAWS: usize = 10_000;

/// How intervals and thresholds are made.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ScoreOptions {
    /// Bootstrap draws.
    pub draws: usize,
    /// Seed of the draws.
    pub seed: u64,
    /// What thresholds are chosen by.
    pub criterion: Criterion,
}

impl Default for ScoreOptions {
    fn default() -> Self {
        Self { draws: DRAWS, seed: 0, criterion: Criterion::Mcc }
    }
}

/// Metrics of one label.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LabelScores {
    /// Rows with the finding.
    pub n_pos: u64,
    /// Rows without it.
    pub n_neg: u64,
    /// Area under the ROC curve.
    pub auroc: Option<f64>,
    /// 95 % interval of the AUROC.
    pub ci95: Option<[f64; 2]>,
    /// Average precision.
    pub ap: Option<f64>,
    /// 95 % interval of the average precision.
    pub ap_ci95: Option<[f64; 2]>,
    /// Matthews' correlation coefficient at `threshold`.
    pub mcc: Option<f64>,
    /// 95 % interval of the MCC.
    pub mcc_ci95: Option<[f64; 2]>,
    /// F1 at `threshold`.
    pub f1: Option<f64>,
    /// 95 % interval of F1.
    pub f1_ci95: Option<[f64; 2]>,
    /// Sensitivity at `threshold`.
    pub sensitivity: Option<f64>,
    /// Specificity at `threshold`.
    pub specificity: Option<f64>,
    /// Chosen on the validation set; a score that reaches it is positive.
    pub threshold: Option<f64>,
}

/// Metrics of all labels.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// Per label.
    pub labels: BTreeMap<String, LabelScores>,
    /// Mean AUROC of the labels that have one.
    pub auc_mean: Option<f64>,
    /// 95 % interval of the mean.
    pub auc_mean_ci95: Option<[f64; 2]>,
    /// Labels whose known rows are all of one class, so that no AUROC is defined.
    pub undefined: Vec<String>,
}

/// A paired difference, first side minus second.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Difference {
    /// On the rows as they are.
    pub observed: f64,
    /// Mean over draws.
    pub mean: f64,
    /// 95 % interval.
    pub ci95: [f64; 2],
}

impl Difference {
    /// What was observed, with the spread of its draws.
    pub fn new(observed: f64, spread: Spread) -> Self {
        Self { observed, mean: spread.mean, ci95: spread.ci95 }
    }
}

/// What [`score_table`] finds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ScoreTable {
    /// The scores' metrics.
    pub scores: Scores,
    /// The other side's metrics.
    pub against: Option<Scores>,
    /// Differences of AUROC per label.
    pub differences: Option<BTreeMap<String, Difference>>,
    /// Difference of the mean AUROC.
    pub auc_mean_difference: Option<Difference>,
    /// What a reader must know, one line each.
    pub notes: Vec<String>,
}

/// Statistics of one label in each draw: AUROC, average precision, MCC, F1.
const PER_LABEL: usize = 4;

/// Labels, per label and row.
pub type Truth<'a> = &'a [Vec<Option<bool>>];

/// One side: its sorted columns, thresholds, and what they decide.
struct Side {
    rankings: Vec<Ranking>,
    thresholds: Vec<Option<f64>>,
    outcomes: Vec<Option<Outcomes>>,
}

impl Side {
    fn new(
        input: &ScoreInput,
        scores: &[Vec<f64>],
        validation: Option<(Truth, &[Vec<f64>])>,
        criterion: Criterion,
    ) -> Result<Self> {
        check(input.names, input.truth, scores, "")?;
        if let Some((truth, scores)) = validation {
            check(input.names, truth, scores, "validation ")?;
        }
        let columns = || scores.iter().zip(input.truth);
        let threshold = |k: usize| {
            let (truth, scores) = validation?;
            best_threshold(&scores[k], &truth[k], criterion)
        };
        let thresholds: Vec<_> = (0..input.names.len()).map(threshold).collect();
        let outcomes = columns().zip(&thresholds).map(|((s, l), t)| Some(Outcomes::at_threshold(s, l, (*t)?)));
        Ok(Self {
            rankings: columns().map(|(s, l)| Ranking::new(s, l)).collect(),
            outcomes: outcomes.collect(),
            thresholds,
        })
    }

    /// [`PER_LABEL`] statistics per label, then the mean AUROC of those labels that have one on the whole.
    fn measure(&self, defined: &[usize], weights: &[u32]) -> Vec<Option<f64>> {
        let weight = |row: usize| u64::from(weights[row]);
        let mut values = Vec::with_capacity(PER_LABEL * self.rankings.len() + 1);
        for (ranking, outcomes) in self.rankings.iter().zip(&self.outcomes) {
            let areas = ranking.areas(weight);
            let counts = outcomes.as_ref().map(|outcomes| outcomes.counts(weight));
            values.push(areas.map(|a| a.auroc));
            values.push(areas.map(|a| a.average_precision));
            values.push(counts.and_then(|c| c.mcc()));
            values.push(counts.and_then(|c| c.f1()));
        }
        values.push(mean_of_all(defined.iter().map(|&k| values[PER_LABEL * k])));
        values
    }

    /// Point values with the intervals of `draws`, which are as [`Side::measure`] orders them.
    fn scores(&self, input: &ScoreInput, draws: &[Vec<Option<f64>>]) -> Scores {
        let mut result = Scores::default();
        let interval = |at: usize| Spread::of(&draws[at]).map(|spread| spread.ci95);
        for (k, name) in input.names.iter().enumerate() {
            let (ranking, at) = (&self.rankings[k], PER_LABEL * k);
            let [n_pos, n_neg] = ranking.counts(|_| 1);
            let counts = self.outcomes[k].as_ref().map(|outcomes| outcomes.counts(|_| 1));
            let areas = ranking.areas(|_| 1);
            let auroc = areas.map(|a| a.auroc);
            let label = LabelScores {
                n_pos,
                n_neg,
                auroc,
                ci95: interval(at),
                ap: areas.map(|a| a.average_precision),
                ap_ci95: interval(at + 1),
                mcc: counts.and_then(|c| c.mcc()),
                mcc_ci95: interval(at + 2),
                f1: counts.and_then(|c| c.f1()),
                f1_ci95: interval(at + 3),
                sensitivity: counts.and_then(|c| c.sensitivity()),
                specificity: counts.and_then(|c| c.specificity()),
                threshold: self.thresholds[k],
            };
            result.labels.insert(name.clone(), label);
            if auroc.is_none() {
                result.undefined.push(name.clone());
            }
        }
        result.auc_mean = mean(result.labels.values().map(|label| label.auroc));
        result.auc_mean_ci95 = interval(PER_LABEL * input.names.len());
        result
    }
}

/// Metrics of every label with bootstrap intervals, and paired differences (same draws) where there is another side.
///
/// # Errors
/// Columns of different lengths, labels named twice, or a score that is not finite, by label and row.
pub fn score_table(input: &ScoreInput, options: &ScoreOptions) -> Result<ScoreTable> {
    let rows = input.truth.first().map_or(0, Vec::len);
    let validation = input.validation.as_ref();
    let side = Side::new(input, input.scores, validation.map(|v| (v.truth, v.scores)), options.criterion)?;
    let other = input.against.map(|scores| {
        let validation = validation.and_then(|v| Some((v.truth, v.against?)));
        Side::new(input, scores, validation, options.criterion)
    });
    let other = other.transpose()?;
    let bootstrap = match input.groups {
        Some(groups) if groups.len() != rows => {
            return Err(Error::new(format!("{} groups for {rows} rows of labels", groups.len())));
        }
        Some(groups) => Bootstrap::groups(groups, options.draws, options.seed),
        None => Bootstrap::rows(rows, options.draws, options.seed),
    };
    let classes: Vec<_> = side.rankings.iter().map(|ranking| ranking.counts(|_| 1)).collect();
    let defined: Vec<usize> = (0..classes.len()).filter(|&k| classes[k][0] > 0 && classes[k][1] > 0).collect();
    let width = PER_LABEL * input.names.len() + 1;
    let sides: Vec<&Side> = std::iter::once(&side).chain(&other).collect();
    let draws = bootstrap.measure(width * sides.len(), |weights| {
        sides.iter().flat_map(|side| side.measure(&defined, weights)).collect()
    });
    let mut table = ScoreTable { scores: side.scores(input, &draws[..width]), ..ScoreTable::default() };
    table.notes = notes(input, &table.scores, &classes, &draws, options.draws);
    if let Some(other) = &other {
        let theirs = other.scores(input, &draws[width..]);
        let difference = |at: usize, a: Option<f64>, b: Option<f64>| {
            let spread = Spread::of_difference(&draws[at], &draws[width + at])?;
            Some(Difference::new(a? - b?, spread))
        };
        let label = |(k, name): (usize, &String)| {
            let [ours, theirs] = [&table.scores, &theirs].map(|scores| scores.labels[name].auroc);
            Some((name.clone(), difference(PER_LABEL * k, ours, theirs)?))
        };
        table.differences = Some(input.names.iter().enumerate().filter_map(label).collect());
        table.auc_mean_difference = difference(width - 1, table.scores.auc_mean, theirs.auc_mean);
        table.against = Some(theirs);
    }
    Ok(table)
}

/// What is undefined, unknown, or left out of intervals.
fn notes(
    input: &ScoreInput,
    scores: &Scores,
    classes: &[[u64; 2]],
    draws: &[Vec<Option<f64>>],
    all: usize,
) -> Vec<String> {
    let mut notes = Vec::new();
    let rows = input.truth.first().map_or(0, Vec::len) as u64;
    for (k, name) in input.names.iter().enumerate() {
        let [positives, negatives] = classes[k];
        let unknown = rows - positives - negatives;
        if unknown > 0 {
            notes.push(format!("{name}: {unknown} of {rows} rows are of unknown label and left out"));
        }
        if scores.undefined.contains(name) {
            notes.push(format!("{name}: undefined, {positives} positive and {negatives} negative rows"));
        } else if scores.labels[name].threshold.is_none() && input.validation.is_some() {
            notes.push(format!("{name}: no threshold, its validation rows are all of one class"));
        }
    }
    let mut spoilt = |name: &str, at: usize| {
        let used = draws[at].iter().flatten().count();
        if used < all {
            notes.push(format!("{name}: interval from {used} of {all} draws, the others have one class only"));
        }
    };
    let defined = input.names.iter().enumerate().filter(|(_, name)| !scores.undefined.contains(name));
    defined.for_each(|(k, name)| spoilt(name, PER_LABEL * k));
    if scores.auc_mean.is_some() {
        spoilt("mean AUROC", PER_LABEL * input.names.len());
    }
    notes
}

/// One column of scores and of truth per label, all of one length, every score finite.
fn check(names: &[String], truth: Truth, scores: &[Vec<f64>], what: &str) -> Result<()> {
    if truth.len() != names.len() || scores.len() != names.len() {
        let (truth, scores, names) = (truth.len(), scores.len(), names.len());
        return Err(Error::new(format!(
            "{truth} {what}label columns and {scores} columns of scores for {names} labels"
        )));
    }
    let rows = truth.first().map_or(0, Vec::len);
    for (k, name) in names.iter().enumerate() {
        if names[..k].contains(name) {
            return Err(Error::new(format!("label {name:?} is there twice: labels need different names")));
        }
        if truth[k].len() != rows || scores[k].len() != rows {
            let (truth, scores) = (truth[k].len(), scores[k].len());
            return Err(Error::new(format!(
                "{what}label {name:?}: {truth} labels and {scores} scores for {rows} rows"
            )));
        }
        if let Some(row) = scores[k].iter().position(|score| !score.is_finite()) {
            let score = scores[k][row];
            return Err(Error::new(format!(
                "{what}label {name:?}, row {}: score {score}: scores must be finite",
                row + 1
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    /// Rows with labels drawn fairly and scores that are the label plus noise.
    fn drawn(rows: usize, noise: &[f64], seed: u64) -> (Vec<Vec<Option<bool>>>, Vec<Vec<f64>>) {
        let mut rng = Rng::new(seed, 0);
        let truth: Vec<Vec<_>> = noise.iter().map(|_| (0..rows).map(|_| Some(rng.chance(0.4))).collect()).collect();
        let mut score =
            |truth: &Option<bool>, noise: f64| f64::from(u8::from(*truth == Some(true))) + noise * rng.normal();
        let scores = truth.iter().zip(noise).map(|(t, &s)| t.iter().map(|t| score(t, s)).collect()).collect();
        (truth, scores)
    }

    fn names(n: usize) -> Vec<String> {
        (0..n).map(|k| format!("label {k}")).collect()
    }

    #[test]
    fn a_table_has_its_means_intervals_thresholds_and_undefined_labels() {
        let (names, noise) = (names(3), [0.5, 1.0, 1.0]);
        let (mut truth, scores) = drawn(300, &noise, 1);
        truth[2] = vec![Some(true); 300];
        truth[1][..50].fill(None);
        let (v_truth, v_scores) = drawn(200, &noise, 2);
        let validation = Validation { truth: &v_truth, scores: &v_scores, against: None };
        let input = ScoreInput {
            names: &names,
            truth: &truth,
            scores: &scores,
            against: None,
            validation: Some(validation),
            groups: None,
        };
        let table = score_table(&input, &ScoreOptions { draws: 200, ..ScoreOptions::default() }).unwrap();
        let label = |k: usize| &table.scores.labels[&names[k]];
        let aucs = [label(0).auroc.unwrap(), label(1).auroc.unwrap()];
        assert!(aucs[0] > 0.88 && aucs[1] < aucs[0]);
        assert_eq!(table.scores.auc_mean, Some((aucs[0] + aucs[1]) / 2.0));
        for (auc, [low, high]) in [(aucs[0], label(0).ci95.unwrap()), (aucs[1], label(1).ci95.unwrap())] {
            assert!(low < auc && auc < high && high - low < 0.2);
        }
        assert_eq!((label(1).n_pos + label(1).n_neg, label(0).n_pos + label(0).n_neg), (250, 300));
        assert!(label(0).mcc_ci95.unwrap()[0] < label(0).mcc.unwrap() && label(0).f1.unwrap() > 0.7);
        let own = best_threshold(&v_scores[0], &v_truth[0], Criterion::Mcc);
        assert_eq!(label(0).threshold, own, "chosen on the validation rows");
        assert_eq!(table.scores.undefined, [names[2].clone()]);
        assert_eq!((label(2).auroc, label(2).ci95, label(2).mcc), (None, None, None));
        assert_eq!(table.notes.len(), 2, "{:?}", table.notes);
        assert_eq!((&table.differences, &table.against), (&None, &None));
    }

    #[test]
    fn a_model_does_not_differ_from_itself_and_the_better_one_is_better() {
        let names = names(2);
        let (truth, good) = drawn(200, &[0.4, 0.4], 3);
        let poor: Vec<Vec<f64>> = {
            let mut rng = Rng::new(5, 0);
            good.iter().map(|column| column.iter().map(|s| s + rng.normal()).collect()).collect()
        };
        let input = |against| ScoreInput {
            names: &names,
            truth: &truth,
            scores: &good,
            against: Some(against),
            validation: None,
            groups: None,
        };
        let options = ScoreOptions { draws: 100, ..ScoreOptions::default() };
        let same = score_table(&input(&good), &options).unwrap();
        let zero = Difference { observed: 0.0, mean: 0.0, ci95: [0.0; 2] };
        assert_eq!(same.auc_mean_difference, Some(zero));
        assert!(same.differences.unwrap().values().all(|d| *d == zero));
        let better = score_table(&input(&poor), &options).unwrap();
        let d = better.auc_mean_difference.unwrap();
        assert!(d.ci95[0] > 0.0 && d.ci95[0] < d.observed && d.observed < d.ci95[1]);
        let theirs = better.against.unwrap().auc_mean.unwrap();
        assert_eq!(d.observed, better.scores.auc_mean.unwrap() - theirs);
        assert_eq!(better.scores.labels[&names[0]].threshold, None);
    }

    #[test]
    fn patients_with_many_rows_widen_the_interval() {
        let names = names(1);
        let (truth, scores) = drawn(60, &[1.0], 7);
        let repeat = |n: usize| (0..n).map(|row| row % 60);
        let truth = vec![repeat(600).map(|row| truth[0][row]).collect::<Vec<_>>()];
        let scores = vec![repeat(600).map(|row| scores[0][row]).collect::<Vec<_>>()];
        let patients: Vec<String> = repeat(600).map(|row| row.to_string()).collect();
        let width = |groups| {
            let input =
                ScoreInput { names: &names, truth: &truth, scores: &scores, against: None, validation: None, groups };
            let [low, high] = score_table(&input, &ScoreOptions { draws: 1000, ..ScoreOptions::default() })
                .unwrap()
                .scores
                .auc_mean_ci95
                .unwrap();
            high - low
        };
        let (by_row, by_patient) = (width(None), width(Some(&patients)));
        assert!(by_patient > 2.0 * by_row, "{by_row} by row, {by_patient} by patient");
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let error = |names: &[String], truth: Truth, scores: &[Vec<f64>]| {
            let input = ScoreInput { names, truth, scores, against: None, validation: None, groups: None };
            score_table(&input, &ScoreOptions::default()).unwrap_err().to_string()
        };
        let one = [Some(true), Some(false)].to_vec();
        let said = error(&names(1), std::slice::from_ref(&one), &[vec![0.5, f64::NAN]]);
        assert!(said.contains("label 0") && said.contains("row 2") && said.contains("NaN"), "{said}");
        assert!(error(&names(1), std::slice::from_ref(&one), &[vec![0.5]]).contains("1 scores for 2 rows"));
        assert!(error(&names(2), std::slice::from_ref(&one), &[vec![0.5, 1.0]]).contains("2 labels"));
        let twice = vec!["a".to_string(), "a".to_string()];
        assert!(error(&twice, &[one.clone(), one], &[vec![0.5; 2], vec![0.5; 2]]).contains("twice"));
    }

    #[test]
    fn no_rows_and_no_labels_are_an_empty_table() {
        let input =
            ScoreInput { names: &[], truth: &[], scores: &[], against: Some(&[]), validation: None, groups: None };
        let table = score_table(&input, &ScoreOptions::default()).unwrap();
        assert_eq!((table.scores.auc_mean, table.scores.labels.len()), (None, 0));
        let input = ScoreInput { names: &names(1), truth: &[vec![]], scores: &[vec![]], ..input };
        let input = ScoreInput { against: None, ..input };
        assert_eq!(score_table(&input, &ScoreOptions::default()).unwrap().scores.undefined.len(), 1);
    }
}
