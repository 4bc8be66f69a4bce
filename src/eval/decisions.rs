//! Yes-or-no decisions (of readers, of models at a threshold) against labels.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::bootstrap::{Bootstrap, Spread};
use super::metrics::{Confusion, Outcomes, mean, mean_of_all};

/// Decisions of one reader or model.
#[derive(Clone, Debug)]
pub struct DecisionTable {
    /// Who decided.
    pub name: String,
    /// Per label, per row; `None` is no decision, and left out.
    pub of: Vec<Vec<Option<bool>>>,
}

/// Metrics of decisions about one label.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LabelDecisions {
    /// The counts.
    #[serde(flatten)]
    pub counts: Confusion,
    /// Share of the positives that are found.
    pub sensitivity: Option<f64>,
    /// Share of the negatives that are left alone.
    pub specificity: Option<f64>,
    /// Matthews' correlation coefficient.
    pub mcc: Option<f64>,
    /// 95 % interval of the MCC.
    pub mcc_ci95: Option<[f64; 2]>,
    /// F1.
    pub f1: Option<f64>,
    /// 95 % interval of F1.
    pub f1_ci95: Option<[f64; 2]>,
}

/// Means of MCC and F1 with 95 % intervals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Means {
    /// Mean MCC.
    pub mcc: Option<f64>,
    /// Its interval.
    pub mcc_ci95: Option<[f64; 2]>,
    /// Mean F1.
    pub f1: Option<f64>,
    /// Its interval.
    pub f1_ci95: Option<[f64; 2]>,
}

/// One table's metrics.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Decisions {
    /// Per label.
    pub labels: BTreeMap<String, LabelDecisions>,
    /// Over the labels of both classes.
    pub mean: Means,
}

/// Metrics of several tables.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DecisionSet {
    /// By name.
    pub tables: BTreeMap<String, Decisions>,
    /// Per label, the mean over tables.
    pub label_means: BTreeMap<String, Means>,
    /// Over tables and labels.
    pub mean: Means,
}

/// Metrics of decisions with bootstrap intervals; `names` are the labels, `truth` their columns.
///
/// # Panics
/// If a table has not the labels' columns and rows.
#[track_caller]
pub fn decide(
    names: &[String],
    truth: &[Vec<Option<bool>>],
    tables: &[DecisionTable],
    bootstrap: &Bootstrap,
) -> DecisionSet {
    tables.iter().for_each(|table| assert_eq!(table.of.len(), truth.len(), "columns of {}", table.name));
    let (labels, cells) = (names.len(), tables.len() * names.len());
    let outcomes =
        |cell: usize| Outcomes::new(tables[cell / labels].of[cell % labels].iter().copied(), &truth[cell % labels]);
    let outcomes: Vec<Outcomes> = (0..cells).map(outcomes).collect();
    // Per cell (table, label): MCC, then per cell F1.
    fn measure(outcomes: &[Outcomes], weight: impl Fn(usize) -> u64) -> Vec<Option<f64>> {
        let counts: Vec<_> = outcomes.iter().map(|outcomes| outcomes.counts(&weight)).collect();
        counts.iter().map(Confusion::mcc).chain(counts.iter().map(Confusion::f1)).collect()
    }
    let whole = measure(&outcomes, |_| 1);
    let draws = bootstrap.measure(2 * cells, |weights| measure(&outcomes, |row| u64::from(weights[row])));
    let interval = |at: usize| Spread::of(&draws[at]).map(|spread| spread.ci95);
    // Means over the cells that are defined on the whole; a draw that lacks one of them is left out.
    let mean_of = |cells_in: &dyn Fn(usize) -> bool, offset: usize| {
        let which: Vec<usize> =
            (0..cells).filter(|&c| cells_in(c) && whole[offset + c].is_some()).map(|c| offset + c).collect();
        let by_draw: Vec<_> = (0..bootstrap.draws).map(|d| mean_of_all(which.iter().map(|&at| draws[at][d]))).collect();
        (mean(which.iter().map(|&at| whole[at])), Spread::of(&by_draw).map(|spread| spread.ci95))
    };
    let means = |cells_in: &dyn Fn(usize) -> bool| {
        let ((mcc, mcc_ci95), (f1, f1_ci95)) = (mean_of(cells_in, 0), mean_of(cells_in, cells));
        Means { mcc, mcc_ci95, f1, f1_ci95 }
    };
    let label = |cell: usize| {
        let counts = outcomes[cell].counts(|_| 1);
        LabelDecisions {
            counts,
            sensitivity: counts.sensitivity(),
            specificity: counts.specificity(),
            mcc: whole[cell],
            mcc_ci95: interval(cell),
            f1: whole[cells + cell],
            f1_ci95: interval(cells + cell),
        }
    };
    let table = |(t, table): (usize, &DecisionTable)| {
        let of = names.iter().enumerate().map(|(k, name)| (name.clone(), label(t * labels + k)));
        (table.name.clone(), Decisions { labels: of.collect(), mean: means(&|cell| cell / labels == t) })
    };
    DecisionSet {
        tables: tables.iter().enumerate().map(table).collect(),
        label_means: names.iter().enumerate().map(|(k, n)| (n.clone(), means(&|cell| cell % labels == k))).collect(),
        mean: means(&|_| true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_run_over_what_is_defined() {
        let names = ["a", "b", "all positive"].map(String::from);
        let of = |bits: &[u8]| bits.iter().map(|&b| Some(b == 1)).collect::<Vec<_>>();
        let truth = [of(&[1, 1, 0, 0, 0]), of(&[1, 0, 1, 0, 1]), of(&[1, 1, 1, 1, 1])];
        let perfect = DecisionTable { name: "perfect".into(), of: truth.to_vec() };
        let wrong: Vec<Vec<_>> = truth.iter().map(|column| column.iter().map(|d| d.map(|d| !d)).collect()).collect();
        let tables = [perfect, DecisionTable { name: "wrong".into(), of: wrong }];
        let set = decide(&names, &truth, &tables, &Bootstrap::rows(5, 200, 1));
        let perfect = &set.tables["perfect"];
        assert_eq!((perfect.mean.mcc, perfect.mean.f1), (Some(1.0), Some(1.0)));
        assert_eq!(perfect.mean.mcc_ci95, Some([1.0, 1.0]));
        let undefined = perfect.labels["all positive"];
        assert_eq!((undefined.mcc, undefined.sensitivity, undefined.specificity), (None, Some(1.0), None));
        assert_eq!(set.tables["wrong"].labels["a"].mcc, Some(-1.0));
        assert_eq!((set.mean.mcc, set.mean.f1), (Some(0.0), Some(0.5)));
        assert_eq!(set.label_means["all positive"], Means::default());
        assert_eq!(set.label_means["b"].mcc, Some(0.0));
    }
}
