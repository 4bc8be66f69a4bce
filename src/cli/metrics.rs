//! `tier metrics`: scores, decisions and readers against labels.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::{Global, outputs};
use crate::error::{Error, Result};
use crate::eval::Evaluation;
use crate::eval::bootstrap::Bootstrap;
use crate::eval::decisions::{DecisionTable, decide};
use crate::eval::metrics::{Confusion, Criterion, RocPoint, mean, readers_under_curve, roc_curve};
use crate::eval::scores::{DRAWS, ScoreInput, ScoreOptions, ScoreTable, Validation, score_table};
use crate::eval::tables::{Table, join};

/// Judges scores, decisions and readers by a table of labels.
///
/// Tables are CSV, joined on their first column; the other columns that all of them have are the labels. A label is 1, 0, or
/// blank or -1 for unknown, which is left out. Intervals are 95 % bootstrap percentiles.
#[derive(clap::Args)]
pub struct Args {
    /// The truth.
    #[arg(long, value_name = "CSV")]
    labels: PathBuf,
    /// A model's scores, higher for more likely.
    #[arg(long, value_name = "CSV")]
    scores: Option<PathBuf>,
    /// A model's decisions, 1 or 0.
    #[arg(long, value_name = "CSV")]
    decisions: Vec<PathBuf>,
    /// A reader's decisions; counted against the scores' ROC curve.
    #[arg(long, value_name = "CSV")]
    readers: Vec<PathBuf>,
    /// Labels of other rows, to choose thresholds on.
    #[arg(long, value_name = "CSV", requires = "val_scores")]
    val_labels: Option<PathBuf>,
    /// Scores of those rows.
    #[arg(long, value_name = "CSV", requires_all = ["val_labels", "scores"])]
    val_scores: Option<PathBuf>,
    /// What a threshold is chosen by.
    #[arg(long, value_enum, default_value_t)]
    threshold_by: Criterion,
    /// Column of the labels whose rows of equal value are resampled together, such as patient_id.
    #[arg(long, value_name = "COLUMN")]
    group_by: Option<String>,
    /// Bootstrap draws.
    #[arg(long, value_name = "N", default_value_t = DRAWS as u64, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    bootstrap: u64,
    /// Seed of the draws.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Where to write metrics.json (default: stdout).
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

pub(super) fn run(args: &Args, global: &Global) -> Result<()> {
    if args.scores.is_none() && args.decisions.is_empty() && args.readers.is_empty() {
        return Err(Error::usage("nothing to judge: give --scores, --decisions or --readers"));
    }
    for paths in [&args.decisions, &args.readers] {
        if let Some(twice) = paths.iter().enumerate().find(|(i, path)| paths[..*i].contains(path)) {
            return Err(Error::usage(format!("{} is given twice", twice.1.display())));
        }
    }
    let tables = [&args.scores, &args.val_labels, &args.val_scores].into_iter().flatten();
    let read = tables.chain(&args.decisions).chain(&args.readers).chain([&args.labels]).map(PathBuf::as_path);
    outputs::apart(args.output.as_deref(), read)?;
    let evaluation = evaluate(args)?;
    global.say(evaluation.text());
    if let Some(path) = &args.output {
        evaluation.write(path)?;
    }
    let told = |error: serde_json::Error| Error::new(error.to_string());
    if global.json {
        global.print(serde_json::to_string(&evaluation).map_err(told)?)?;
    } else if args.output.is_none() {
        global.print(serde_json::to_string_pretty(&evaluation).map_err(told)?)?;
    }
    Ok(())
}

fn evaluate(args: &Args) -> Result<Evaluation> {
    let open = |paths: &[PathBuf]| paths.iter().map(|path| Table::open(path)).collect::<Result<Vec<_>>>();
    let labels = Table::open(&args.labels)?;
    let scores = args.scores.as_deref().map(Table::open).transpose()?;
    let (decisions, readers) = (open(&args.decisions)?, open(&args.readers)?);
    let validation = match (&args.val_labels, &args.val_scores) {
        (Some(labels), Some(scores)) => Some([Table::open(labels)?, Table::open(scores)?]),
        _ => None,
    };
    let all: Vec<&Table> = std::iter::once(&labels).chain(&scores).chain(&decisions).chain(&readers).collect();
    let group_by: Vec<&str> = args.group_by.as_deref().into_iter().collect();
    let join = join(&all, &group_by)?;
    let (ids, names) = (&join.ids, &join.labels);

    let truth = columns(names, |name| labels.labels(name, ids))?;
    let groups = args.group_by.as_deref().map(|column| labels.texts(column, ids)).transpose()?;
    let options = ScoreOptions { draws: args.bootstrap as usize, seed: args.seed, criterion: args.threshold_by };
    let bootstrap = match &groups {
        Some(groups) => Bootstrap::groups(groups, options.draws, options.seed),
        None => Bootstrap::rows(ids.len(), options.draws, options.seed),
    };
    let score_columns = scores.as_ref().map(|table| columns(names, |name| table.numbers(name, ids))).transpose()?;
    let (mut table, mut notes) = (ScoreTable::default(), join.notes.clone());
    if let Some(scores) = &score_columns {
        let validation =
            validation.as_ref().map(|[labels, scores]| validation_columns(names, labels, scores)).transpose()?;
        notes.extend(validation.iter().flat_map(|v| v.notes.clone()));
        let chosen_on = validation.as_ref().map(|v| Validation { truth: &v.truth, scores: &v.scores, against: None });
        let input = ScoreInput {
            names,
            truth: &truth,
            scores,
            against: None,
            validation: chosen_on,
            groups: groups.as_deref(),
        };
        table = score_table(&input, &options)?;
    }
    let mut evaluation = Evaluation::new(ids.len(), table);
    evaluation.notes.splice(0..0, notes);

    let decided = |tables: &[Table]| {
        let decision_table = |(name, table): (String, &Table)| {
            Ok(DecisionTable { name, of: columns(names, |name| table.labels(name, ids))? })
        };
        named(tables).into_iter().map(decision_table).collect::<Result<Vec<_>>>()
    };
    let (decisions, readers) = (decided(&decisions)?, decided(&readers)?);
    let set = |tables: &[DecisionTable]| (!tables.is_empty()).then(|| decide(names, &truth, tables, &bootstrap));
    evaluation.decisions = set(&decisions);
    evaluation.readers = set(&readers);
    if let (Some(scores), false) = (&score_columns, readers.is_empty()) {
        let under = |k: usize| {
            let curve = roc_curve(&scores[k], &truth[k])?;
            let point = |reader: &DecisionTable| Confusion::new(&reader.of[k], &truth[k]).roc_point();
            let points: Vec<RocPoint> = readers.iter().filter_map(point).collect();
            Some((names[k].clone(), readers_under_curve(&curve, &points)))
        };
        let counts: BTreeMap<String, usize> = (0..names.len()).filter_map(under).collect();
        evaluation.readers_under_curve_mean = mean(counts.values().map(|&n| Some(n as f64)));
        evaluation.readers_under_curve = Some(counts);
    }
    Ok(evaluation)
}

struct ValidationColumns {
    truth: Vec<Vec<Option<bool>>>,
    scores: Vec<Vec<f64>>,
    notes: Vec<String>,
}

fn validation_columns(names: &[String], labels: &Table, scores: &Table) -> Result<ValidationColumns> {
    let joined = join(&[labels, scores], &[])?;
    Ok(ValidationColumns {
        truth: columns(names, |name| labels.labels(name, &joined.ids))?,
        scores: columns(names, |name| scores.numbers(name, &joined.ids))?,
        notes: joined.notes,
    })
}

/// One column per label.
fn columns<T>(names: &[String], column: impl Fn(&str) -> Result<Vec<T>>) -> Result<Vec<Vec<T>>> {
    names.iter().map(|name| column(name)).collect()
}

/// Tables by the name of their file; by the whole path where two files have the same name.
fn named(tables: &[Table]) -> Vec<(String, &Table)> {
    let stem = |path: &Path| path.file_stem().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
    let stems: Vec<String> = tables.iter().map(|table| stem(table.path())).collect();
    let once = |name: &String| stems.iter().filter(|other| *other == name).count() == 1;
    let name = |(table, stem): (&Table, &String)| {
        if once(stem) { stem.clone() } else { table.path().display().to_string() }
    };
    tables.iter().zip(&stems).map(|pair| (name(pair), pair.0)).collect()
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use serde_json::Value;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn judged(flags: &[String]) -> Result<Evaluation> {
        let line = Line::try_parse_from(std::iter::once("metrics".to_string()).chain(flags.iter().cloned()));
        evaluate(&line.unwrap().args)
    }

    #[test]
    fn a_small_case_by_hand() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.display().to_string()
        };
        let labels = write("labels.csv", "image,patient_id,a,b\n1,p,1,0\n2,p,0,0\n3,q,1,\n4,q,0,0\n5,r,1,0\n");
        let scores = write("scores.csv", "id,b,a,more\n5,.1,.9,x\n4,.1,.3,x\n3,.1,.2,x\n2,.1,.1,x\n1,.1,.5,x\n");
        std::fs::create_dir(folder.path().join("other")).unwrap();
        let reader = write("reader.csv", "id,a,b\n1,1,0\n2,0,0\n3,0,0\n4,1,0\n5,1,0\n6,1,1\n");
        let other = write("other/reader.csv", "id,a,b\n1,1,0\n2,0,0\n3,1,0\n4,0,0\n5,1,0\n");
        let flags = ["--labels", &labels, "--scores", &scores, "--readers", &reader, "--readers", &other];
        let flags: Vec<String> = flags.into_iter().map(String::from).collect();
        let with = |more: &[&str]| {
            judged(&flags.iter().cloned().chain(more.iter().map(ToString::to_string)).collect::<Vec<_>>())
        };
        let found = with(&[]).unwrap();
        let a = &found.scores.labels["a"];
        assert_eq!((found.n, a.n_pos, a.n_neg, a.auroc), (5, 3, 2, Some(5.0 / 6.0)));
        assert_eq!((found.scores.undefined.clone(), found.scores.auc_mean), (vec!["b".to_string()], Some(5.0 / 6.0)));
        let readers = &found.readers.as_ref().unwrap().tables;
        assert_eq!(readers[&reader].labels["a"].sensitivity, Some(2.0 / 3.0));
        assert_eq!(readers[&other].labels["a"].mcc, Some(1.0));
        let under = found.readers_under_curve.clone().unwrap();
        assert_eq!((under["a"], under.get("b")), (1, None), "(0.5, 2/3) is under (0.5, 1), (0, 1) above the curve");
        assert!(found.notes.iter().any(|note| note.contains("reader.csv: 1 of 6 rows")), "{:?}", found.notes);
        assert_eq!(a.threshold, None);
        let own = with(&["--val-labels", &labels, "--val-scores", &scores, "--threshold-by", "f1"]).unwrap();
        assert_eq!(own.scores.labels["a"].threshold, Some(0.2));
        let grouped = with(&["--group-by", "patient_id"]).unwrap();
        assert_ne!(grouped.scores.labels["a"].ci95, a.ci95);
        assert!(with(&["--group-by", "age"]).unwrap_err().to_string().contains("no column \"age\""));
    }

    /// Every published and reference figure of the folder that TIER_SHARED names.
    #[test]
    fn published_and_reference_figures_are_reproduced() {
        let Some(folder) = crate::shared::shared("data/metrics") else { return };
        let path = |of: String| folder.join(of).display().to_string();
        let reference: Value = serde_json::from_slice(&std::fs::read(folder.join("reference.json")).unwrap()).unwrap();
        let readers = ["bc4", "bc6", "bc8"];
        let mut flags = vec!["--labels".to_string(), path("groundtruth.csv".into())];
        readers.iter().for_each(|r| {
            flags.extend(["--readers".to_string(), path(format!("radiologists/benchmark_radiologists/{r}.csv"))]);
        });
        let mut check = Check::default();

        // Decisions of models and readers, all in one call.
        let scored = |name: &str, more: &[String]| {
            let scores = path(format!("example_models/predictions/standard/{name}_predictions.csv"));
            judged(&[&flags[..], &["--scores".to_string(), scores], more].concat())
        };
        let decided: Vec<&String> = reference["models_decisions"].as_object().unwrap().keys().collect();
        let decision_flags = decided.iter().flat_map(|name| {
            ["--decisions".to_string(), path(format!("example_models/decisions/standard/{name}_decisions.csv"))]
        });
        // Intervals of these have no reference: few draws.
        let few = ["--bootstrap", "9"].map(String::from);
        let found =
            judged(&flags.iter().cloned().chain(decision_flags).chain(few.clone()).collect::<Vec<_>>()).unwrap();
        assert_eq!(found.n as u64, reference["n_studies"].as_u64().unwrap());
        let (decisions, read) = (found.decisions.unwrap(), found.readers.unwrap());
        let model = |name: &str| decisions.tables[&format!("{name}_decisions")].clone();
        let tables = decided.iter().map(|name| (&reference["models_decisions"][name.as_str()], model(name)));
        let radiologists = readers.iter().map(|name| (&reference["radiologists"][name], read.tables[*name].clone()));
        for (expected, table) in tables.chain(radiologists) {
            for (label, expected) in expected.as_object().unwrap() {
                if label == "mean5" {
                    check.exact(table.mean.mcc, &expected["mcc"]);
                    check.exact(table.mean.f1, &expected["f1"]);
                    continue;
                }
                let l = &table.labels[label];
                let counts = l.counts;
                for (key, count) in [("tp", counts.tp), ("fp", counts.fp), ("fn", counts.r#fn), ("tn", counts.tn)] {
                    check.exact(Some(count as f64), &expected[key]);
                }
                let values = [("mcc", l.mcc), ("f1", l.f1), ("sens", l.sensitivity), ("spec", l.specificity)];
                values.iter().for_each(|(key, value)| check.exact(*value, &expected[*key]));
            }
        }
        for (label, expected) in reference["radiologist_mean"].as_object().unwrap() {
            let found = if label == "mean5" { read.mean } else { read.label_means[label] };
            check.exact(found.mcc, &expected["mcc"]);
            check.exact(found.f1, &expected["f1"]);
        }
        for (label, points) in reference["published_radiologist_spec_sens"]["values"].as_object().unwrap() {
            for (reader, point) in readers.iter().zip(points.as_array().unwrap()) {
                let found = &read.tables[*reader].labels[label];
                check.exact(found.specificity, &point[0]);
                check.exact(found.sensitivity, &point[1]);
            }
        }
        let all = judged(&[&flags[..], &few].concat()).unwrap().readers.unwrap();
        for (label, positives) in reference["prevalence_all14"].as_object().unwrap() {
            let counts = all.tables["bc4"].labels[label].counts;
            check.exact(Some((counts.tp + counts.r#fn) as f64), positives);
        }
        let read = scored("drnet", &[]).unwrap().readers.unwrap();
        let drawn = &reference["bootstrap_radiologist_mean_1000"];
        for (key, found) in [("mcc", read.mean.mcc_ci95), ("f1", read.mean.f1_ci95)] {
            check.interval(found, &drawn[key]);
        }

        // Scores, model by model.
        let mut means = Vec::new();
        for (name, expected) in reference["models_auroc"].as_object().unwrap() {
            let published = &reference["published_leaderboard_match"][name];
            let found = scored(name, if published.is_object() { &[] } else { &few }).unwrap();
            let under = found.readers_under_curve.unwrap();
            assert_eq!(found.scores.labels.len(), 5);
            for (label, l) in &found.scores.labels {
                check.exact(Some(l.n_pos as f64), &reference["prevalence5"][label]);
                check.exact(l.auroc, &expected["auroc"][label]);
                check.exact(l.ap, &expected["ap"][label]);
                check.exact(Some(under[label] as f64), &reference["num_rads_under_roc"][name][label]);
                if published.is_object() {
                    check.exact(l.auroc, &published["published_auroc"][label]);
                    check.exact(Some(under[label] as f64), &published["published_num_rads_under_roc"][label]);
                    check.interval(l.ci95, &reference["bootstrap_auroc_1000"][name][label]);
                }
            }
            check.exact(found.scores.auc_mean, &expected["auroc"]["mean5"]);
            check.exact(found.readers_under_curve_mean, &reference["num_rads_under_roc"][name]["mean5"]);
            if published.is_object() {
                check.exact(found.scores.auc_mean, &published["published_auroc"]["mean5"]);
                check.exact(found.readers_under_curve_mean, &published["published_num_rads_under_roc"]["mean5"]);
            }
            means.push(found.scores.auc_mean);
        }
        check.exact(mean(means), &reference["mean_of_10_models_mean5"]);
        println!(
            "{} figures to 1e-12, {} interval ends; the widest is {:.5} off",
            check.exact, check.ends, check.worst
        );
        assert_eq!((check.exact, check.ends), (EXACT, ENDS), "figures that the reference has");
    }

    /// 11 tables of 5 x 8 + 2; 12 reader means; 30 reader points; 14 counts; 10 models of 5 x 4 + 2, six of them published with 5 x 2 + 2 more; one mean.
    const EXACT: usize = 11 * 42 + 12 + 30 + 14 + 10 * 22 + 6 * 12 + 1;
    /// Six models of five labels, and the readers' two means.
    const ENDS: usize = 2 * (6 * 5 + 2);

    #[derive(Default)]
    struct Check {
        exact: usize,
        ends: usize,
        worst: f64,
    }

    impl Check {
        #[track_caller]
        fn exact(&mut self, found: Option<f64>, expected: &Value) {
            let (found, expected) = (found.unwrap(), expected.as_f64().unwrap());
            assert!((found - expected).abs() <= 1e-12, "{found} is not {expected}");
            self.exact += 1;
        }

        #[track_caller]
        fn interval(&mut self, found: Option<[f64; 2]>, expected: &Value) {
            for (found, key) in found.unwrap().into_iter().zip(["lo", "hi"]) {
                let off = (found - expected[key].as_f64().unwrap()).abs();
                assert!(off <= 0.005, "{key} is {found}, {off} from {expected}");
                self.worst = self.worst.max(off);
                self.ends += 1;
            }
        }
    }
}
