//! Metrics of binary labels. Undefined is `None`: a metric that needs both classes where the labels have one.
//!
//! Definitions follow scikit-learn: a tie of scores counts half in the AUROC and is one step of every curve; a score at a
//! threshold is positive.

use serde::{Deserialize, Serialize};

/// Scores of one label in descending order with the label of each: sorted once, counted many times with different weights.
#[derive(Clone, Debug, Default)]
pub struct Ranking {
    /// Row, label and score, by descending score; rows of unknown label left out.
    order: Vec<(usize, bool, f64)>,
}

impl Ranking {
    /// Ranks `scores` whose label is known. Where one of them is not a number the ranking is empty, so that every metric is undefined.
    ///
    /// # Panics
    /// If there is not one label per score.
    #[track_caller]
    pub fn new(scores: &[f64], labels: &[Option<bool>]) -> Self {
        assert_eq!(scores.len(), labels.len(), "scores and labels");
        let known = scores.iter().zip(labels).enumerate();
        let mut order: Vec<_> = known.filter_map(|(row, (&score, label))| Some((row, (*label)?, score))).collect();
        if order.iter().any(|(_, _, score)| score.is_nan()) {
            order.clear();
        }
        order.sort_by(|a, b| b.2.total_cmp(&a.2));
        Self { order }
    }

    /// Calls `step(positives, negatives, score)` for every distinct score, the highest first; a row counts `weight(row)` times.
    fn walk(&self, weight: impl Fn(usize) -> u64, mut step: impl FnMut(u64, u64, f64)) {
        let (mut rows, mut positives) = (0, 0);
        for (i, &(row, positive, score)) in self.order.iter().enumerate() {
            let weight = weight(row);
            rows += weight;
            positives += weight * u64::from(positive);
            if self.order.get(i + 1).is_none_or(|next| next.2 != score) {
                step(positives, rows - positives, score);
                (rows, positives) = (0, 0);
            }
        }
    }

    /// Positives and negatives.
    pub fn counts(&self, weight: impl Fn(usize) -> u64) -> [u64; 2] {
        let mut counts = [0, 0];
        self.walk(weight, |p, n, _| counts = [counts[0] + p, counts[1] + n]);
        counts
    }

    /// AUROC and average precision, one walk for both; `None` where a class is missing.
    ///
    /// The area under the ROC curve is the share of (positive, negative) pairs in the right order, ties half: exact but for one division.
    /// Average precision is the sum over distinct scores of the step in recall times the precision there.
    pub fn areas(&self, weight: impl Fn(usize) -> u64) -> Option<Areas> {
        let (mut positives, mut negatives, mut twice_ordered, mut precision) = (0, 0, 0, 0.0);
        self.walk(weight, |p, n, _| {
            twice_ordered += n * (2 * positives + p);
            positives += p;
            negatives += n;
            if p > 0 {
                precision += p as f64 * (positives as f64 / (positives + negatives) as f64);
            }
        });
        (positives > 0 && negatives > 0).then(|| Areas {
            auroc: twice_ordered as f64 / (2 * positives * negatives) as f64,
            average_precision: precision / positives as f64,
        })
    }

    /// The confusion counts at every threshold, from the strictest (a row is positive if its score is at least the threshold).
    pub fn thresholds(&self) -> Vec<(f64, Confusion)> {
        let [positives, negatives] = self.counts(|_| 1);
        let (mut tp, mut fp, mut all) = (0, 0, Vec::new());
        self.walk(
            |_| 1,
            |p, n, score| {
                tp += p;
                fp += n;
                all.push((score, Confusion { tp, fp, r#fn: positives - tp, tn: negatives - fp }));
            },
        );
        all
    }
}

/// What [`Ranking::areas`] finds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Areas {
    /// Area under the ROC curve.
    pub auroc: f64,
    /// Average precision.
    pub average_precision: f64,
}

/// Area under the ROC curve, ties by midranks.
#[track_caller]
pub fn auroc(scores: &[f64], labels: &[Option<bool>]) -> Option<f64> {
    Ranking::new(scores, labels).areas(|_| 1).map(|areas| areas.auroc)
}

/// Average precision as scikit-learn defines it (no interpolation).
#[track_caller]
pub fn average_precision(scores: &[f64], labels: &[Option<bool>]) -> Option<f64> {
    Ranking::new(scores, labels).areas(|_| 1).map(|areas| areas.average_precision)
}

/// A point of the ROC curve.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct RocPoint {
    /// False positive rate, 1 - specificity.
    pub fpr: f64,
    /// True positive rate, the sensitivity.
    pub tpr: f64,
}

/// The ROC curve from (0, 0) to (1, 1), one point per distinct score.
#[track_caller]
pub fn roc_curve(scores: &[f64], labels: &[Option<bool>]) -> Option<Vec<RocPoint>> {
    let mut curve = vec![RocPoint { fpr: 0.0, tpr: 0.0 }];
    for (_, at) in Ranking::new(scores, labels).thresholds() {
        curve.push(at.roc_point()?);
    }
    (curve.len() > 1).then_some(curve)
}

/// Sensitivity of the curve at a false positive rate: linear between points; where the curve rises straight up, the foot of
/// the rise, but at rate 0, which nothing leads up to, its top. That is what the CheXpert leaderboard's counts of readers agree with.
pub fn sensitivity_at(curve: &[RocPoint], fpr: f64) -> f64 {
    let from = curve.partition_point(|p| if fpr > 0.0 { p.fpr < fpr } else { p.fpr <= fpr });
    match (from.checked_sub(1).map(|i| curve[i]), curve.get(from)) {
        (_, Some(b)) if b.fpr == fpr => b.tpr,
        (Some(a), Some(b)) => a.tpr + (b.tpr - a.tpr) * ((fpr - a.fpr) / (b.fpr - a.fpr)),
        (Some(a), None) => a.tpr,
        (None, _) => 0.0,
    }
}

/// How many of the readers' points lie under the ROC curve, or level with it.
pub fn readers_under_curve(curve: &[RocPoint], readers: &[RocPoint]) -> usize {
    readers.iter().filter(|reader| reader.tpr <= sensitivity_at(curve, reader.fpr)).count()
}

/// Counts of decisions against labels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confusion {
    /// True positives.
    pub tp: u64,
    /// False positives.
    pub fp: u64,
    /// False negatives.
    pub r#fn: u64,
    /// True negatives.
    pub tn: u64,
}

/// Rows by what a decision made of them; counted many times with different weights.
#[derive(Clone, Debug, Default)]
pub struct Outcomes {
    /// True positives, false positives, false negatives, true negatives.
    rows: [Vec<usize>; 4],
}

impl Outcomes {
    /// Sorts the rows where both the decision and the label are known.
    ///
    /// # Panics
    /// If there is not one label per decision.
    #[track_caller]
    pub fn new(decisions: impl ExactSizeIterator<Item = Option<bool>>, labels: &[Option<bool>]) -> Self {
        assert_eq!(decisions.len(), labels.len(), "decisions and labels");
        let mut outcomes = Self::default();
        for (row, (decision, label)) in decisions.zip(labels).enumerate() {
            if let (Some(decision), Some(label)) = (decision, *label) {
                outcomes.rows[2 * usize::from(!decision) + usize::from(decision != label)].push(row);
            }
        }
        // Of those left alone the wrong ones are the positives: they come third.
        outcomes.rows.swap(2, 3);
        outcomes
    }

    /// Sorts by the decision `score >= threshold`.
    #[track_caller]
    pub fn at_threshold(scores: &[f64], labels: &[Option<bool>], threshold: f64) -> Self {
        Self::new(scores.iter().map(|&score| Some(score >= threshold)), labels)
    }

    /// Counts each row `weight(row)` times.
    pub fn counts(&self, weight: impl Fn(usize) -> u64) -> Confusion {
        let [tp, fp, r#fn, tn] = self.rows.each_ref().map(|rows| rows.iter().map(|&row| weight(row)).sum());
        Confusion { tp, fp, r#fn, tn }
    }
}

impl Confusion {
    /// Counts the rows where both the decision and the label are known.
    ///
    /// # Panics
    /// If there is not one label per decision.
    #[track_caller]
    pub fn new(decisions: &[Option<bool>], labels: &[Option<bool>]) -> Self {
        Outcomes::new(decisions.iter().copied(), labels).counts(|_| 1)
    }

    /// As [`Confusion::new`] with the decision `score >= threshold`.
    #[track_caller]
    pub fn at_threshold(scores: &[f64], labels: &[Option<bool>], threshold: f64) -> Self {
        Outcomes::at_threshold(scores, labels, threshold).counts(|_| 1)
    }

    /// Share of the positives that are found.
    pub fn sensitivity(&self) -> Option<f64> {
        ratio(self.tp, self.tp + self.r#fn)
    }

    /// Share of the negatives that are left alone.
    pub fn specificity(&self) -> Option<f64> {
        ratio(self.tn, self.tn + self.fp)
    }

    /// Where the decisions stand in the ROC plane.
    pub fn roc_point(&self) -> Option<RocPoint> {
        Some(RocPoint { fpr: ratio(self.fp, self.tn + self.fp)?, tpr: self.sensitivity()? })
    }

    /// Harmonic mean of precision and sensitivity.
    pub fn f1(&self) -> Option<f64> {
        self.both_classes().then_some(())?;
        ratio(2 * self.tp, 2 * self.tp + self.fp + self.r#fn)
    }

    /// Matthews' correlation coefficient; 0 where all decisions are alike.
    pub fn mcc(&self) -> Option<f64> {
        self.both_classes().then_some(())?;
        let [tp, fp, r#fn, tn] = [self.tp, self.fp, self.r#fn, self.tn].map(|x| x as f64);
        let squared = (tp + fp) * (tp + r#fn) * (tn + fp) * (tn + r#fn);
        Some(if squared == 0.0 { 0.0 } else { (tp * tn - fp * r#fn) / squared.sqrt() })
    }

    fn both_classes(&self) -> bool {
        self.tp + self.r#fn > 0 && self.tn + self.fp > 0
    }
}

fn ratio(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

/// What a threshold is chosen by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum Criterion {
    /// Matthews' correlation coefficient.
    #[default]
    Mcc,
    /// F1.
    F1,
}

impl Criterion {
    /// The value that is made large.
    pub fn of(self, confusion: &Confusion) -> Option<f64> {
        match self {
            Self::Mcc => confusion.mcc(),
            Self::F1 => confusion.f1(),
        }
    }
}

/// The score at which `score >= threshold` decides best, the strictest of equals. Choose it on a validation set.
#[track_caller]
pub fn best_threshold(scores: &[f64], labels: &[Option<bool>], by: Criterion) -> Option<f64> {
    let mut best: Option<(f64, f64)> = None;
    for (threshold, confusion) in Ranking::new(scores, labels).thresholds() {
        let value = by.of(&confusion)?;
        if best.is_none_or(|(_, most)| value > most) {
            best = Some((threshold, value));
        }
    }
    best.map(|(threshold, _)| threshold)
}

/// Intersection over union of two sets; undefined where both are empty.
///
/// # Panics
/// If the two differ in length.
#[track_caller]
pub fn iou(a: &[bool], b: &[bool]) -> Option<f64> {
    assert_eq!(a.len(), b.len(), "iou of two masks");
    let both = a.iter().zip(b).filter(|(a, b)| **a && **b).count();
    let either = a.iter().zip(b).filter(|(a, b)| **a || **b).count();
    ratio(both as u64, either as u64)
}

/// Mean of the values that are defined; `None` where none is.
pub fn mean(values: impl IntoIterator<Item = Option<f64>>) -> Option<f64> {
    let (sum, count) = values.into_iter().flatten().fold((0.0, 0usize), |(sum, count), x| (sum + x, count + 1));
    (count > 0).then(|| sum / count as f64)
}

/// Mean, undefined where any of the values is: means over draws must be over the same things each time.
pub fn mean_of_all(values: impl IntoIterator<Item = Option<f64>>) -> Option<f64> {
    let (mut sum, mut count) = (0.0, 0usize);
    for value in values {
        sum += value?;
        count += 1;
    }
    (count > 0).then(|| sum / count as f64)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn known(labels: &[u8]) -> Vec<Option<bool>> {
        labels.iter().map(|&l| (l < 2).then_some(l == 1)).collect()
    }

    #[test]
    fn worked_values() {
        // scikit-learn's own example, and one with ties: pairs (0.5, 0.5) count half.
        let (scores, labels) = ([0.1, 0.4, 0.35, 0.8], known(&[0, 0, 1, 1]));
        assert_eq!(auroc(&scores, &labels), Some(0.75));
        assert_eq!(average_precision(&scores, &labels), Some((1.0 + 2.0 / 3.0) / 2.0));
        let (scores, labels) = ([0.5, 0.5, 0.5, 0.9, 0.1, 7.0], known(&[1, 0, 0, 1, 0, 2]));
        assert_eq!(auroc(&scores, &labels), Some(5.0 / 6.0), "the unknown label is left out");
        assert_eq!(average_precision(&scores, &labels), Some(0.5 * 1.0 + 0.5 * 0.5));
        let curve = roc_curve(&scores, &labels).unwrap();
        let points: Vec<_> = curve.iter().map(|p| (p.fpr, p.tpr)).collect();
        assert_eq!(points, [(0.0, 0.0), (0.0, 0.5), (2.0 / 3.0, 1.0), (1.0, 1.0)]);
        assert_eq!(auroc(&[-0.0, 0.0], &known(&[0, 1])), Some(0.5), "two zeros are one score");
    }

    #[test]
    fn one_class_is_undefined_and_so_is_a_score_that_is_no_number() {
        let scores = [0.1, 0.2];
        for labels in [known(&[1, 1]), known(&[0, 0]), known(&[2, 1]), known(&[2, 2])] {
            assert_eq!(auroc(&scores, &labels), None);
            assert_eq!(average_precision(&scores, &labels), None);
            assert_eq!(roc_curve(&scores, &labels), None);
            assert_eq!(best_threshold(&scores, &labels, Criterion::Mcc), None);
            let counts = Confusion::at_threshold(&scores, &labels, 0.15);
            assert_eq!((counts.mcc(), counts.f1()), (None, None));
        }
        assert_eq!(auroc(&[], &[]), None);
        assert_eq!(auroc(&[f64::NAN, 0.2], &known(&[0, 1])), None);
        assert_eq!(auroc(&[f64::NEG_INFINITY, f64::INFINITY], &known(&[0, 1])), Some(1.0));
    }

    #[test]
    fn decisions_by_hand() {
        let decisions = known(&[1, 1, 1, 0, 0, 0, 0, 2, 1]);
        let labels = known(&[1, 1, 0, 1, 0, 0, 0, 1, 2]);
        let counts = Confusion::new(&decisions, &labels);
        assert_eq!(counts, Confusion { tp: 2, fp: 1, r#fn: 1, tn: 3 });
        assert_eq!(counts.sensitivity(), Some(2.0 / 3.0));
        assert_eq!(counts.specificity(), Some(0.75));
        assert_eq!(counts.f1(), Some(4.0 / 6.0));
        assert!((counts.mcc().unwrap() - 5.0 / 12.0).abs() < 1e-15);
        let none_found = Confusion { tp: 0, fp: 0, r#fn: 2, tn: 3 };
        assert_eq!((none_found.mcc(), none_found.f1()), (Some(0.0), Some(0.0)));
    }

    #[test]
    fn the_best_threshold_is_a_score_and_is_applied_from_there_up() {
        let (scores, labels) = ([0.9, 0.8, 0.7, 0.6, 0.5, 0.4], known(&[1, 1, 0, 1, 0, 0]));
        // At 0.8: tp 2, fn 1, tn 3: MCC 2*3 / sqrt(2*3*3*4) = 0.707, F1 0.8. At 0.6: tp 3, fp 1, tn 2: MCC 0.707, F1 6/7.
        assert_eq!(best_threshold(&scores, &labels, Criterion::Mcc), Some(0.8));
        assert_eq!(best_threshold(&scores, &labels, Criterion::F1), Some(0.6));
        let counts = Confusion::at_threshold(&scores, &labels, 0.6);
        assert_eq!(counts, Confusion { tp: 3, fp: 1, r#fn: 0, tn: 2 });
    }

    #[test]
    fn readers_level_with_the_curve_count_and_those_on_a_rise_do_not() {
        let curve = [(0.0, 0.0), (0.0, 0.5), (0.5, 0.7), (0.5, 0.9), (1.0, 0.9), (1.0, 1.0)];
        let curve = curve.map(|(fpr, tpr)| RocPoint { fpr, tpr });
        let at = |fpr, tpr| readers_under_curve(&curve, &[RocPoint { fpr, tpr }]);
        assert_eq!([at(0.0, 0.5), at(0.0, 0.6), at(0.25, 0.59), at(0.25, 0.61)], [1, 0, 1, 0]);
        assert_eq!([at(0.5, 0.7), at(0.5, 0.8), at(0.75, 0.9), at(0.75, 0.91)], [1, 0, 1, 0]);
        assert_eq!([at(1.0, 0.9), at(1.0, 1.0)], [1, 0]);
        assert_eq!(readers_under_curve(&curve, &curve[..3]), 3);
    }

    #[test]
    fn iou_of_masks() {
        assert_eq!(iou(&[true, true, false, false], &[true, false, true, false]), Some(1.0 / 3.0));
        assert_eq!(iou(&[false; 2], &[false; 2]), None);
    }

    proptest! {
        /// Against the definition, pair by pair; weights count a row as many times as its copies would.
        #[test]
        fn auroc_is_the_share_of_ordered_pairs(rows in prop::collection::vec((0u8..6, 0u8..3, 0u64..4), 0..40)) {
            let mut copies = Vec::new();
            rows.iter().for_each(|&(s, l, w)| (0..w).for_each(|_| copies.push((f64::from(s), l))));
            let (mut ordered, mut pairs) = (0.0, 0.0);
            for a in copies.iter().filter(|a| a.1 == 1) {
                for b in copies.iter().filter(|b| b.1 == 0) {
                    ordered += if a.0 > b.0 { 1.0 } else if a.0 == b.0 { 0.5 } else { 0.0 };
                    pairs += 1.0;
                }
            }
            let scores: Vec<f64> = rows.iter().map(|r| f64::from(r.0)).collect();
            let labels = known(&rows.iter().map(|r| r.1).collect::<Vec<_>>());
            let ranking = Ranking::new(&scores, &labels);
            let areas = ranking.areas(|row| rows[row].2);
            prop_assert_eq!(areas.map(|a| a.auroc), (pairs > 0.0).then_some(ordered / pairs));
            let (scores, labels): (Vec<f64>, Vec<u8>) = copies.into_iter().unzip();
            let whole = average_precision(&scores, &known(&labels));
            let weighed = areas.map(|a| a.average_precision);
            prop_assert!(whole.is_some() == weighed.is_some());
            prop_assert!(whole.is_none_or(|w| (w - weighed.unwrap()).abs() < 1e-12));
        }
    }
}
