//! `tier eval`: a model judged on a table.

use std::path::{Path, PathBuf};

use super::Global;
use super::model::{LESS, Sides, Ways};
use crate::data::{Boxes, Labels, Pairs, Prompts, Split};
use crate::error::{At, Result};
use crate::eval::compare::{AT_ONCE, How, Tables, evaluate};
use crate::eval::scores::ScoreOptions;
use crate::eval::tables::write_scores;
use crate::files;
use crate::loss::TierOptions;
use crate::memory::Estimate;
use crate::pipeline::{Asked, Kept, Network, Pipeline, Unused};
use crate::report::{self, Provenance, found};
use crate::train::seed_of;

/// Judges a model (several: their ensemble) on a split: zero-shot scores, retrieval, localisation and sparsity.
#[derive(clap::Args)]
pub struct Args {
    /// A model: a folder, or a file of weights; several are one ensemble.
    #[arg(long, value_name = "PATH", required_unless_present = "image_model")]
    model: Vec<PathBuf>,
    #[command(flatten)]
    sides: Sides,
    #[command(flatten)]
    ways: Ways,
    /// The other side of paired differences.
    #[arg(long, value_name = "PATH")]
    against: Vec<PathBuf>,
    /// Table of pairs.
    #[arg(long)]
    pairs: PathBuf,
    /// What is judged.
    #[arg(long, default_value = "test", conflicts_with = "all")]
    split: Split,
    /// Judge every row.
    #[arg(long)]
    all: bool,
    /// Table of labels.
    #[arg(long)]
    labels: Option<PathBuf>,
    /// A column of the pairs that serves as labels, one per value; with --labels, a table of these values' labels.
    #[arg(long, value_name = "COLUMN")]
    labels_from: Option<String>,
    /// Table of prompts.
    #[arg(long)]
    prompts: Option<PathBuf>,
    /// Boxes of findings (COCO).
    #[arg(long)]
    boxes: Option<PathBuf>,
    /// What thresholds are chosen on.
    #[arg(long, default_value = "val")]
    val_split: Split,
    /// Score by the softmax over a label's positive and negative prompts, as `classify` has it for probabilities, instead of by Z.
    #[arg(long)]
    softmax: bool,
    /// Temperature of the softmaxes whose sparsity is measured.
    #[arg(long, default_value = "1", value_name = "X", value_parser = positive)]
    temperature: f64,
    /// Bootstrap draws.
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    draws: u64,
    /// Seed of the draws, and of the validation rows where the table names none (default: that of the run that the model is of, so that they are
    /// the rows it did not train on; 0 for other models).
    #[arg(long)]
    seed: Option<u64>,
    /// Folder to write metrics.json, scores.csv and report.html into.
    #[arg(long)]
    out: PathBuf,
}

pub(super) fn run(args: &Args, global: &Global) -> Result<()> {
    // The ways that flags say are those of every model.
    let open = |path: Option<&Path>| -> Result<Pipeline> {
        args.ways.open(&args.sides.checkpoint(path, global)?, Unused::default(), global)
    };
    let all = |paths: &[PathBuf]| paths.iter().map(|path| open(Some(path))).collect::<Result<Vec<_>>>();
    let (mut models, mut against) = (all(&args.model)?, all(&args.against)?);
    if args.sides.is_some() {
        models.push(open(None)?);
    }
    let seed = match (args.seed, models.first()) {
        (Some(seed), _) => seed,
        (None, Some(model)) => seed_of(&model.path)?.unwrap_or(0),
        (None, None) => 0,
    };
    let pairs = Pairs::open(&args.pairs, seed)?;
    pairs.notes.iter().for_each(|note| global.say(note));
    let labels = Labels::choose(&pairs, args.labels.as_deref(), args.labels_from.as_deref())?;
    let tables = Tables {
        pairs,
        split: (!args.all).then_some(args.split),
        val_split: args.val_split,
        labels,
        prompts: args.prompts.as_deref().map(Prompts::open).transpose()?,
        boxes: args.boxes.as_deref().map(Boxes::open).transpose()?,
    };
    let rows = [tables.rows(), tables.known()].concat();
    let texts: Vec<&str> =
        rows.iter().map(|row| row.text.as_str()).chain(tables.prompts.iter().flat_map(Prompts::texts)).collect();
    let mut estimate = Estimate::default();
    for pipeline in models.iter_mut().chain(&mut against) {
        let paths = rows.iter().map(|row| row.path());
        let asked = Asked { kept: Kept::Whole, ..Asked::default() };
        let mut asked = asked.files(&pipeline.preprocess, paths, AT_ONCE, global.worker_count());
        if let Network::Dual(_) = &pipeline.network {
            asked = asked.texts(pipeline.dual()?.1, &texts)?;
        }
        estimate = estimate.then(&pipeline.memory(&asked));
    }
    let gpu = global.gpu()?;
    global.say(estimate.describe(gpu.as_ref()));
    estimate.fits(gpu.as_ref(), "this", LESS)?;
    let how = How {
        scores: ScoreOptions { draws: args.draws as usize, seed, ..ScoreOptions::default() },
        softmax: args.softmax,
        tier: TierOptions { temperature: args.temperature, ..TierOptions::default() },
        workers: global.worker_count(),
    };
    let bar = global.progress(0, "images");
    let all = evaluate(&models, &against, &tables, &how, &|done, of| {
        bar.set_length(of);
        bar.set_position(done);
    })?;
    bar.finish_and_clear();

    std::fs::create_dir_all(&args.out).at(&args.out)?;
    all.evaluation.write(&args.out.join("metrics.json"))?;
    let images: Vec<&str> = all.rows.iter().map(|row| row.image.as_str()).collect();
    write_scores(&args.out.join("scores.csv"), &images, &all.labels, &all.model.scores)?;
    let joined = args.sides.is_some().then(|| PathBuf::from(args.sides.name(None)));
    let of: Vec<PathBuf> = args.model.iter().cloned().chain(joined).collect();
    let names = [name(&of), name(&args.against)];
    let (model, other, differences) = found::sides(&all, &names[0], &names[1]);
    let report = report::eval::EvalReport {
        provenance: Provenance {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            command: super::command_line(),
            seed: Some(seed),
            more: vec![("Pairs".to_owned(), args.pairs.display().to_string())],
        },
        images: all.rows.len(),
        split: if args.all { "all".to_owned() } else { args.split.to_string() },
        notes: all.evaluation.notes.clone(),
        model,
        against: other,
        differences,
        examples: found::examples(&all, &models[0], [&names[0], &names[1]], 12)?,
    };
    files::write_atomic(args.out.join("report.html"), report::eval::html(&report)?.as_bytes())?;
    global.say(all.evaluation.text());
    if global.json {
        global.print(serde_json::to_string(&all.evaluation).unwrap_or_default())?;
    }
    global.say(format!("{} written", args.out.join("report.html").display()));
    Ok(())
}

fn positive(text: &str) -> std::result::Result<f64, &'static str> {
    text.parse().ok().filter(|x: &f64| x.is_finite() && *x > 0.0).ok_or("not a number above 0")
}

/// What tables and legends call a model: the run it is of.
fn name(paths: &[PathBuf]) -> String {
    let one = |path: &PathBuf| {
        let own = path.file_name().map_or_else(|| path.display().to_string(), |n| n.to_string_lossy().into_owned());
        match path.parent().and_then(|p| p.file_name()) {
            Some(run) if own == "model" => run.to_string_lossy().into_owned(),
            _ => own,
        }
    };
    paths.iter().map(one).collect::<Vec<_>>().join(" + ")
}
