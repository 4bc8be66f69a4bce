//! `tier demo`: phantoms, one small model trained without and with TIER, and a report of what the difference is.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::Serialize;

use super::Global;
use super::train::Screen;
use crate::data::{Boxes, Labels, Pairs, Prompts, Split};
use crate::error::{Error, Result};
use crate::eval::compare::{Evaluated, How, Tables, evaluate};
use crate::eval::localisation::{self, LocalisationDifference};
use crate::eval::scores::{Difference, ScoreInput, ScoreOptions, score_table};
use crate::eval::sparsity::{self, SparsityDifference};
use crate::files;
use crate::phantom;
use crate::pipeline::Pipeline;
use crate::report::demo::{self as page, DemoReport, SeedResult};
use crate::report::{Provenance, found};
use crate::train::{self, Alone, Config, Record, Watch};

/// Draws phantoms, trains one model with lambda 0 and with TIER from the same seed, evaluates both and writes report.html and summary.json.
#[derive(clap::Args)]
pub struct Args {
    /// Folder of everything that the demo makes.
    #[arg(long, default_value = "demo")]
    out: PathBuf,
    /// Seeds to train from: more seeds, one pair of models each.
    #[arg(long, default_value_t = 1, value_name = "N")]
    seeds: u64,
    /// Phantoms to draw.
    #[arg(long, default_value_t = PHANTOMS, value_name = "N")]
    count: usize,
    /// A value of the training configuration, as in --set train.epochs=10.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

/// Phantoms of the demo.
const PHANTOMS: usize = 8000;
/// Their side in pixels: twice what the model sees.
const SIZE: usize = 128;
/// Seed of the phantoms; training seeds count from 0.
const DRAWN: u64 = 0;
/// The recipe: see its comments.
const RECIPE: &str = include_str!("../../examples/demo.toml");

/// What one model does, as in summary.json.
#[derive(Clone, Debug, Default, Serialize)]
struct Summary {
    auc_mean: Option<f64>,
    auc: BTreeMap<String, Option<f64>>,
    sparsity_patches: Option<f64>,
    sparsity_tokens: Option<f64>,
    inside_minus_outside: Option<f64>,
    pointing_game: Option<f64>,
    centre_prior: Option<f64>,
    recall_at_5: Option<f64>,
}

pub(super) fn run(args: &Args, global: &Global) -> Result<()> {
    if args.seeds == 0 || args.count < 100 {
        return Err(Error::usage("--seeds must be at least 1, --count at least 100"));
    }
    let start = Instant::now();
    super::interrupt::catch()?;
    let (configured, _alone) = recipe(args)?;
    let drawn = phantoms(args, global)?;
    let mut found = Vec::new();
    for seed in 0..args.seeds {
        let mut records = Vec::new();
        for (name, weights) in [("unregularised", Some(0.0)), ("tier", None)] {
            let mut config = configured.clone();
            config.seed = seed;
            (config.data.pairs, config.data.labels) = (drawn.join("pairs.csv"), Some(drawn.join("labels.csv")));
            config.data.prompts = Some(drawn.join("prompts.csv"));
            if let Some(none) = weights {
                (config.tier.lambda_p, config.tier.lambda_t) = (none, none);
            }
            match train(config, &folder(args, name, seed), name, global)? {
                Some(of_run) => records.push(of_run),
                None => {
                    global.say(format!("stopped; the same command continues: {}", super::command_line()));
                    return Ok(());
                }
            }
        }
        let open = |name: &str| -> Result<Pipeline> {
            let mut pipeline = Pipeline::open(&folder(args, name, seed).join("model"), !global.no_mmap)?;
            if let Some(gpu) = global.gpu()? {
                pipeline.to_device(&gpu)?;
            }
            Ok(pipeline)
        };
        let (tier, plain) = (open("tier")?, open("unregularised")?);
        let tables = Tables {
            pairs: Pairs::open(drawn.join("pairs.csv"), seed)?,
            split: Some(Split::Test),
            val_split: Split::Val,
            labels: Some(Labels::open(drawn.join("labels.csv"))?),
            prompts: Some(Prompts::open(drawn.join("prompts.csv"))?),
            boxes: Some(Boxes::open(drawn.join("boxes.json"))?),
        };
        let how = How {
            scores: ScoreOptions { seed, ..ScoreOptions::default() },
            softmax: false,
            tier: configured.tier,
            workers: global.worker_count(),
        };
        let bar = global.progress(0, "evaluating");
        let all = evaluate(&[tier], &[plain], &tables, &how, &|done, of| {
            bar.set_length(of);
            bar.set_position(done);
        })?;
        bar.finish_and_clear();
        found.push((seed, all, records, tables.pairs));
    }
    write(args, global, &configured, &found, start)
}

/// The recipe with what `--set` says, and the phantoms that it is for. It is written down, and models that are there already must be of the same.
/// No other demo has the folder then.
fn recipe(args: &Args) -> Result<(Config, Alone)> {
    let (mut configured, path) = (Config::parse(RECIPE, &args.set)?, args.out.join("recipe.toml"));
    configured.data.pairs = Path::new(&phantoms_name(args)).join("pairs.csv");
    configured.check()?;
    let alone = train::alone(&args.out)?;
    let begun = folder(args, "unregularised", 0).exists() && path.exists();
    if begun && Config::read(Some(&path), &[])? != configured {
        let why = "a demo with another recipe or --count: give the same, remove this folder, or choose another --out";
        return Err(Error::new(why).at(&args.out));
    }
    files::write_atomic(&path, configured.to_toml()?.as_bytes())?;
    Ok((configured, alone))
}

fn folder(args: &Args, name: &str, seed: u64) -> PathBuf {
    args.out.join(format!("{name}-{seed}"))
}

fn phantoms_name(args: &Args) -> String {
    format!("phantoms-{}", args.count)
}

/// The phantoms' folder; drawn unless it is there already.
fn phantoms(args: &Args, global: &Global) -> Result<PathBuf> {
    let folder = args.out.join(phantoms_name(args));
    // The last file that is written.
    if !folder.join("boxes.json").exists() {
        global.say(format!("drawing {} phantoms", args.count));
        let bar = global.progress(args.count as u64, "phantoms");
        phantom::write(&folder, args.count, DRAWN, SIZE, phantom::Format::Png, |n| bar.set_position(n))?;
        bar.finish_and_clear();
    }
    Ok(folder)
}

/// Trains, continues, or takes what is there already; nothing if it was interrupted.
fn train(config: Config, out: &Path, name: &str, global: &Global) -> Result<Option<Vec<Record>>> {
    let screen = Screen::new(global);
    screen.say(&format!("training: {name}, seed {}", config.seed));
    let gpu = global.gpu()?;
    let outcome = if out.join("config.toml").exists() {
        train::resume(out, global.worker_count(), gpu.as_ref(), &screen)?
    } else {
        train::start(config, out, global.worker_count(), gpu.as_ref(), &screen)?
    };
    screen.finish();
    Ok(outcome.finished.then_some(outcome.records))
}

fn summary(all: &Evaluated, tier: bool) -> Summary {
    let e = &all.evaluation;
    let none = Default::default();
    let (scores, sparsity, place) = if tier {
        (&e.scores, e.sparsity, e.localisation.as_ref())
    } else {
        (e.against.as_ref().unwrap_or(&none), e.sparsity_against, e.localisation_against.as_ref())
    };
    let side = if tier { Some(&all.model) } else { all.against.as_ref() };
    Summary {
        auc_mean: scores.auc_mean,
        auc: scores.labels.iter().map(|(name, s)| (name.clone(), s.auroc)).collect(),
        sparsity_patches: sparsity.map(|s| s.patches),
        sparsity_tokens: sparsity.map(|s| s.tokens),
        inside_minus_outside: place.map(|l| l.inside_minus_outside),
        pointing_game: place.map(|l| l.pointing_game),
        centre_prior: place.map(|l| l.centre_prior),
        recall_at_5: side.and_then(|s| s.measured.retrieval).map(|r| r.recall_at_5),
    }
}

/// The mean over seeds of what both summaries have.
fn mean(all: &[Summary]) -> Summary {
    let of = |f: &dyn Fn(&Summary) -> Option<f64>| -> Option<f64> {
        let values: Vec<f64> = all.iter().filter_map(f).collect();
        (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
    };
    Summary {
        auc_mean: of(&|s| s.auc_mean),
        auc: all[0].auc.keys().map(|name| (name.clone(), of(&|s| s.auc.get(name).copied().flatten()))).collect(),
        sparsity_patches: of(&|s| s.sparsity_patches),
        sparsity_tokens: of(&|s| s.sparsity_tokens),
        inside_minus_outside: of(&|s| s.inside_minus_outside),
        pointing_game: of(&|s| s.pointing_game),
        centre_prior: of(&|s| s.centre_prior),
        recall_at_5: of(&|s| s.recall_at_5),
    }
}

type Found = (u64, Evaluated, Vec<Vec<Record>>, Pairs);

/// Differences over all seeds, which share their films: those are resampled together for all of them.
struct Pooled {
    auc: Option<Difference>,
    localisation: Option<LocalisationDifference>,
    sparsity: Option<SparsityDifference>,
}

impl Pooled {
    fn of(found: &[Found]) -> Result<Self> {
        let (mut cases, mut measures, mut pairs) = (Vec::new(), [Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
        for (_, all, ..) in found {
            let Some(other) = &all.against else { continue };
            cases.extend(all.model.measured.cases.iter().cloned());
            for (i, side) in [&all.model, other].into_iter().enumerate() {
                measures[i].extend(side.measures.iter().cloned());
                pairs[i].extend(side.measured.sparsity_pairs.iter().cloned());
            }
        }
        let ScoreOptions { draws, seed, .. } = ScoreOptions::default();
        Ok(Self {
            auc: auc_difference(found)?,
            localisation: localisation::compare(&cases, &measures[0], &measures[1], draws, seed),
            sparsity: sparsity::compare(&pairs[0], &pairs[1], draws, seed),
        })
    }
}

/// The difference of the mean AUC over labels and seeds.
fn auc_difference(found: &[Found]) -> Result<Option<Difference>> {
    let Some((_, first, ..)) = found.first() else { return Ok(None) };
    let (mut names, mut truth, mut scores, mut against) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (seed, all, ..) in found {
        let Some(other) = &all.against else { return Ok(None) };
        names.extend(all.labels.iter().map(|label| format!("{label}, seed {seed}")));
        truth.extend(all.truth.iter().cloned());
        scores.extend(all.model.scores.iter().cloned());
        against.extend(other.scores.iter().cloned());
    }
    let patients: Vec<String> = first.rows.iter().map(|row| row.group().to_owned()).collect();
    let input = ScoreInput {
        names: &names,
        truth: &truth,
        scores: &scores,
        against: Some(&against),
        validation: None,
        groups: Some(&patients),
    };
    Ok(score_table(&input, &ScoreOptions::default())?.auc_mean_difference)
}

fn write(args: &Args, global: &Global, config: &Config, found: &[Found], start: Instant) -> Result<()> {
    let [plain, tier] = [false, true].map(|t| found.iter().map(|(_, all, _, _)| summary(all, t)).collect::<Vec<_>>());
    let pooled = Pooled::of(found)?;
    let runs: Vec<_> = found
        .iter()
        .zip(plain.iter().zip(&tier))
        .map(|((seed, all, _, _), (plain, tier))| {
            serde_json::json!({ "seed": seed, "unregularised": plain, "tier": tier,
                "auc_difference": all.evaluation.auc_mean_difference,
                "localisation_difference": all.evaluation.localisation_difference,
                "sparsity_difference": all.evaluation.sparsity_difference })
        })
        .collect();
    let summary = serde_json::json!({
        "schema": 1, "seed": 0, "lambda_p": config.tier.lambda_p, "lambda_t": config.tier.lambda_t,
        "temperature": config.tier.temperature, "unregularised": mean(&plain), "tier": mean(&tier),
        "auc_difference": pooled.auc, "localisation_difference": pooled.localisation,
        "sparsity_difference": pooled.sparsity, "seconds": start.elapsed().as_secs_f64().round(), "runs": runs,
    });
    let text = serde_json::to_string_pretty(&summary).map_err(|e| Error::new(e.to_string()))? + "\n";
    files::write_atomic(args.out.join("summary.json"), text.as_bytes())?;

    let (_, all, records, pairs) = &found[0];
    let names = ["TIER", "unregularised"];
    let (ours, theirs, differences) = found::sides(all, names[0], names[1]);
    let pipeline = Pipeline::open(&folder(args, "tier", 0).join("model"), true)?;
    let seeds = found.iter().zip(plain.iter().zip(&tier)).map(|((seed, ..), (plain, tier))| SeedResult {
        seed: *seed,
        auc_mean: [plain.auc_mean, tier.auc_mean],
        sparsity_patches: [plain.sparsity_patches, tier.sparsity_patches],
        sparsity_tokens: [plain.sparsity_tokens, tier.sparsity_tokens],
        inside_minus_outside: [plain.inside_minus_outside, tier.inside_minus_outside],
        pointing_game: [plain.pointing_game, tier.pointing_game],
    });
    let report = DemoReport {
        provenance: Provenance {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            command: super::command_line(),
            seed: Some(0),
            more: Vec::new(),
        },
        training_images: pairs.split(Split::Train).count(),
        test_images: all.rows.len(),
        lambda_p: config.tier.lambda_p,
        lambda_t: config.tier.lambda_t,
        temperature: config.tier.temperature,
        notes: all.evaluation.notes.clone(),
        unregularised: theirs.unwrap_or_default(),
        tier: ours,
        differences: differences.unwrap_or_default(),
        courses: records.iter().zip(["unregularised", "TIER"]).map(|(r, name)| found::course(name, r)).collect(),
        phantoms: found::phantoms(all, &pipeline, 12)?,
        examples: found::examples(all, &pipeline, names, 12)?,
        seeds: if found.len() > 1 { seeds.collect() } else { Vec::new() },
        pooled: found::differences(pooled.auc.as_ref(), pooled.localisation.as_ref(), pooled.sparsity.as_ref()),
    };
    let page = args.out.join("report.html");
    files::write_atomic(&page, page::html(&report)?.as_bytes())?;
    let show = |x: Option<f64>| x.map_or("-".to_owned(), |x| format!("{x:.4}"));
    let (a, b) = (mean(&plain), mean(&tier));
    let line = |name: &str, a, b| format!("{name:24} {:>8} {:>8}", show(a), show(b));
    global.say(format!("{:24} {:>8} {:>8}", "on held-out phantoms", "plain", "TIER"));
    global.say(line("mean zero-shot AUC", a.auc_mean, b.auc_mean));
    global.say(line("sparsity over patches", a.sparsity_patches, b.sparsity_patches));
    global.say(line("sparsity over tokens", a.sparsity_tokens, b.sparsity_tokens));
    global.say(line("inside minus outside", a.inside_minus_outside, b.inside_minus_outside));
    global.say(line("pointing game", a.pointing_game, b.pointing_game));
    if global.json {
        global.print(summary)?;
    }
    global.say(format!("{:.0} s; open {}", start.elapsed().as_secs_f64(), page.display()));
    Ok(())
}
