//! The whole of an evaluation, as metrics.json has it.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::decisions::DecisionSet;
use super::localisation::{Localisation, LocalisationDifference};
use super::retrieval::Retrieval;
use super::scores::{Difference, ScoreTable, Scores};
use super::sparsity::{RankOrdered, Sparsity, SparsityDifference};
use crate::error::{At, Error, Result};
use crate::files::write_atomic;

/// Version of metrics.json.
pub const SCHEMA: u32 = 1;

/// What `tier eval` and `tier metrics` find; parts that were not asked for are absent from the file.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Rows evaluated.
    pub n: usize,
    /// Per label and on the mean.
    #[serde(flatten)]
    pub scores: Scores,
    /// The other side's scores, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub against: Option<Scores>,
    /// Paired differences of AUROC per label.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub differences: Option<BTreeMap<String, Difference>>,
    /// Paired difference of the mean AUROC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auc_mean_difference: Option<Difference>,
    /// Text for image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retrieval: Option<Retrieval>,
    /// Heat maps against boxes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub localisation: Option<Localisation>,
    /// The other side's localisation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub localisation_against: Option<Localisation>,
    /// Paired differences of localisation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub localisation_difference: Option<LocalisationDifference>,
    /// How concentrated similarities are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sparsity: Option<Sparsity>,
    /// The other side's sparsity.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sparsity_against: Option<Sparsity>,
    /// Paired differences of sparsity.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sparsity_difference: Option<SparsityDifference>,
    /// Patch similarities by rank.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rank_ordered: Option<RankOrdered>,
    /// The other side's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rank_ordered_against: Option<RankOrdered>,
    /// Decisions of models.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decisions: Option<DecisionSet>,
    /// Decisions of readers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub readers: Option<DecisionSet>,
    /// Per label, how many readers lie under the scores' ROC curve.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub readers_under_curve: Option<BTreeMap<String, usize>>,
    /// Its mean over labels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub readers_under_curve_mean: Option<f64>,
    /// What a reader must know, one line each.
    pub notes: Vec<String>,
}

impl Evaluation {
    /// Of `n` rows, with nothing in it yet but their scores.
    pub fn new(n: usize, table: ScoreTable) -> Self {
        Self {
            schema: SCHEMA,
            n,
            scores: table.scores,
            against: table.against,
            differences: table.differences,
            auc_mean_difference: table.auc_mean_difference,
            notes: table.notes,
            ..Self::default()
        }
    }

    /// Writes it as metrics.json.
    ///
    /// # Errors
    /// What the file system refuses.
    pub fn write(&self, path: &Path) -> Result<()> {
        let mut json = serde_json::to_vec_pretty(self).map_err(|error| Error::new(error.to_string())).at(path)?;
        json.push(b'\n');
        write_atomic(path, &json)
    }

    /// The tables for a person to read: scores by label, differences, readers, localisation, and the notes.
    pub fn text(&self) -> String {
        let mut blocks = Vec::new();
        if !self.scores.labels.is_empty() {
            blocks.push(self.score_lines());
        }
        for (title, set) in [("decisions", &self.decisions), ("readers", &self.readers)] {
            blocks.extend(set.as_ref().map(|set| decision_lines(title, set)));
        }
        let mut rest = Vec::new();
        if let Some(r) = &self.retrieval {
            rest.push(format!(
                "retrieval, text for image: recall@1 {:.3} (chance {:.3}), recall@5 {:.3} (chance {:.3}), {} pairs",
                r.recall_at_1, r.chance_at_1, r.recall_at_5, r.chance_at_5, r.n
            ));
        }
        for (whose, part) in [("", &self.localisation), (" (against)", &self.localisation_against)] {
            rest.extend(part.as_ref().map(|l| {
                format!(
                    "localisation{whose}: inside - outside {:.4} {}, pointing game {:.3} {} (chance {:.3}, centre {:.3}), \
                     {} cases, {} left out",
                    l.inside_minus_outside,
                    interval(Some(l.inside_minus_outside_ci95), 4),
                    l.pointing_game,
                    interval(Some(l.pointing_game_ci95), 3),
                    l.chance,
                    l.centre_prior,
                    l.n,
                    l.left_out
                )
            }));
        }
        for (whose, part) in [("", &self.sparsity), (" (against)", &self.sparsity_against)] {
            rest.extend(
                part.as_ref()
                    .map(|s| format!("sparsity{whose}: patches {:.4}, tokens {:.4} nats", s.patches, s.tokens)),
            );
        }
        rest.extend(self.notes.iter().map(|note| format!("note: {note}")));
        if !rest.is_empty() {
            blocks.push(rest.join("\n"));
        }
        blocks.join("\n\n")
    }

    fn score_lines(&self) -> String {
        let scores = &self.scores;
        let thresholds = scores.labels.values().any(|label| label.threshold.is_some());
        let mut header = vec!["label", "pos", "neg", "AUROC", "95 % interval", "AP"];
        header.extend(thresholds.then_some(["MCC", "F1", "sens", "spec", "threshold"]).into_iter().flatten());
        header.extend(self.readers_under_curve.as_ref().map(|_| "readers under"));
        header.extend(self.against.as_ref().map(|_| "against"));
        header.extend(self.differences.as_ref().map(|_| "difference"));
        let mut rows = vec![header.iter().map(ToString::to_string).collect::<Vec<_>>()];
        for (name, l) in &scores.labels {
            let mut row = vec![name.clone(), l.n_pos.to_string(), l.n_neg.to_string()];
            row.extend([number(l.auroc, 4), interval(l.ci95, 4), number(l.ap, 4)]);
            if thresholds {
                row.extend([l.mcc, l.f1, l.sensitivity, l.specificity, l.threshold].map(|x| number(x, 4)));
            }
            row.extend(
                self.readers_under_curve.as_ref().map(|under| under.get(name).map_or("-".into(), usize::to_string)),
            );
            row.extend(self.against.as_ref().map(|other| number(other.labels.get(name).and_then(|l| l.auroc), 4)));
            row.extend(self.differences.as_ref().map(|all| difference(all.get(name))));
            rows.push(row);
        }
        let mut row = vec!["mean".into(), String::new(), String::new()];
        row.extend([number(scores.auc_mean, 4), interval(scores.auc_mean_ci95, 4), String::new()]);
        row.extend(std::iter::repeat_n(String::new(), if thresholds { 5 } else { 0 }));
        row.extend(self.readers_under_curve.as_ref().map(|_| number(self.readers_under_curve_mean, 2)));
        row.extend(self.against.as_ref().map(|other| number(other.auc_mean, 4)));
        row.extend(self.differences.as_ref().map(|_| difference(self.auc_mean_difference.as_ref())));
        rows.push(row);
        aligned(&rows)
    }
}

fn decision_lines(title: &str, set: &DecisionSet) -> String {
    let mut rows = vec![
        [title, "label", "sens", "spec", "MCC", "95 % interval", "F1", "95 % interval"].map(String::from).to_vec(),
    ];
    for (name, table) in &set.tables {
        for (label, l) in &table.labels {
            let [sens, spec, mcc, f1] = [l.sensitivity, l.specificity, l.mcc, l.f1].map(|x| number(x, 4));
            let row =
                [name.clone(), label.clone(), sens, spec, mcc, interval(l.mcc_ci95, 4), f1, interval(l.f1_ci95, 4)];
            rows.push(row.to_vec());
        }
    }
    let means = set.tables.iter().map(|(name, table)| (name.as_str(), &table.mean)).chain([("all", &set.mean)]);
    for (name, m) in means {
        let [mcc, f1] = [m.mcc, m.f1].map(|x| number(x, 4));
        let (none, mcc_ci, f1_ci) = (String::new(), interval(m.mcc_ci95, 4), interval(m.f1_ci95, 4));
        rows.push(vec![name.into(), "mean".into(), none.clone(), none, mcc, mcc_ci, f1, f1_ci]);
    }
    aligned(&rows)
}

fn number(x: Option<f64>, digits: usize) -> String {
    x.map_or("undefined".into(), |x| format!("{x:.digits$}"))
}

fn interval(x: Option<[f64; 2]>, digits: usize) -> String {
    x.map_or("-".into(), |[low, high]| format!("[{low:.digits$}, {high:.digits$}]"))
}

fn difference(d: Option<&Difference>) -> String {
    d.map_or("-".into(), |d| format!("{:+.4} {}", d.observed, interval(Some(d.ci95), 4)))
}

/// Columns two spaces apart.
fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |k: usize| rows.iter().filter_map(|row| row.get(k)).map(|cell| cell.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_string()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::{ScoreInput, ScoreOptions, score_table};

    #[test]
    fn the_file_has_the_keys_that_scripts_rely_on_and_comes_back() {
        let names = ["a", "none"].map(String::from);
        let truth = [vec![Some(true), Some(false), Some(true), None], vec![Some(false); 4]];
        let scores = [vec![0.9, 0.1, 0.8, 0.5], vec![0.0; 4]];
        let input = ScoreInput {
            names: &names,
            truth: &truth,
            scores: &scores,
            against: Some(&scores),
            validation: None,
            groups: None,
        };
        let mut evaluation = Evaluation::new(4, score_table(&input, &ScoreOptions::default()).unwrap());
        evaluation.sparsity = Some(Sparsity { patches: 0.25, tokens: 0.5 });
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.json");
        evaluation.write(&path).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!((json["schema"].as_u64(), json["n"].as_u64()), (Some(1), Some(4)));
        let label = &json["labels"]["a"];
        for key in ["n_pos", "n_neg", "auroc", "ci95", "ap", "mcc", "f1", "threshold"] {
            assert!(label.get(key).is_some(), "{key}: {label}");
        }
        assert_eq!((label["auroc"].as_f64(), label["ci95"].as_array().map(Vec::len)), (Some(1.0), Some(2)));
        assert_eq!((json["auc_mean"].as_f64(), &json["undefined"][0]), (Some(1.0), &"none".into()));
        assert!(json["labels"]["none"]["auroc"].is_null() && json["auc_mean_ci95"].is_array());
        assert_eq!(json["differences"]["a"]["mean"].as_f64(), Some(0.0));
        assert!(json["differences"].get("none").is_none() && json.get("retrieval").is_none());
        assert_eq!(json["sparsity"]["tokens"].as_f64(), Some(0.5));
        let back: Evaluation = serde_json::from_value(json).unwrap();
        assert_eq!(back, evaluation);
        let text = evaluation.text();
        assert!(text.contains("undefined") && text.contains("sparsity: patches 0.2500"), "{text}");
    }
}
