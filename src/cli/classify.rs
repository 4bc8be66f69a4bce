//! `tier classify`: zero-shot scores of images.

use std::collections::BTreeSet;
use std::path::PathBuf;

use super::{Global, model};
use crate::data::{Prompts, csv_row};
use crate::error::{Error, Result};
use crate::eval::measure::queries;
use crate::eval::zero_shot::{Rule, scores};
use crate::pipeline::{Asked, Network, Pipeline};

/// Scores images for the labels of a table of prompts: Z, and the softmax over positive and negative prompts.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: model::ModelArgs,
    /// Table of prompts: label, polarity, text.
    #[arg(long)]
    prompts: Option<PathBuf>,
    /// Image files.
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<PathBuf>,
}

/// Labels with score and probability of each image.
pub(super) struct Scored {
    pub labels: Vec<String>,
    pub z: Vec<Vec<f64>>,
    pub probabilities: Vec<Vec<f64>>,
}

/// Prompts that are longer than the model reads, one line each.
pub(super) fn cut(pipeline: &Pipeline, prompts: &Prompts) -> Result<Vec<String>> {
    let (_, tokenizer) = pipeline.dual()?;
    let texts = prompts.texts();
    let tokens = tokenizer.encode(&texts)?;
    let longest = tokenizer.max_length();
    let lines: BTreeSet<String> =
        tokens.cut.iter().map(|&at| format!("prompt cut after {longest} tokens: {:?}", texts[at])).collect();
    Ok(lines.into_iter().collect())
}

pub(super) fn run(args: &Args, global: &Global) -> Result<()> {
    let mut pipeline = args.model.open(global)?;
    let prompts = match &pipeline.network {
        Network::Dual(_) => {
            let path = args.prompts.as_deref().ok_or_else(|| Error::usage("which labels? Give --prompts TABLE.csv"))?;
            Some(Prompts::open(path)?)
        }
        _ => None,
    };
    let mut asked = Asked::default();
    asked = asked.files(&pipeline.preprocess, args.images.iter(), model::AT_ONCE, global.worker_count());
    if let Some(prompts) = &prompts {
        asked = asked.texts(pipeline.dual()?.1, &prompts.texts())?;
    }
    model::fitting(&mut pipeline, &asked, model::LESS, global)?;
    let (labels, queries, scale, cut) = match (&pipeline.network, &prompts) {
        (Network::Classifier(model), _) => (model.config().labels.clone(), Vec::new(), 1.0, Vec::new()),
        (Network::Dual(model), Some(prompts)) => {
            let labels = prompts.0.iter().map(|p| p.label.clone()).collect();
            (labels, queries(&pipeline, prompts)?, model.logit_scale.item().exp(), cut(&pipeline, prompts)?)
        }
        _ => return pipeline.dual().map(drop),
    };
    cut.iter().for_each(|line| global.say(line));
    let progress = global.progress(args.images.len() as u64, "images");
    if !global.json {
        global.print(csv_row(std::iter::once("image").chain(labels.iter().map(String::as_str)))?)?;
    }
    let loader = model::batches(&pipeline, &args.images, global.worker_count())?;
    let planned = pipeline.planned();
    let mut broken = Vec::new();
    for batch in loader.epoch(0, 0) {
        let batch = batch?;
        pipeline.intact()?;
        progress.inc((batch.rows.len() + batch.broken.len()) as u64);
        broken.extend(batch.broken);
        if batch.rows.is_empty() {
            continue;
        }
        let whole = || planned.whole_images(&batch.views[0]).ok_or_else(|| Error::new("this model knows no images"));
        let scored = match &pipeline.network {
            Network::Classifier(_) => {
                let logits = whole()?;
                let columns = |x: &crate::Tensor| {
                    let rows = crate::pipeline::rows(x);
                    (0..labels.len()).map(|k| rows.iter().map(|r| f64::from(r[k])).collect()).collect()
                };
                Scored { labels: labels.clone(), z: columns(&logits), probabilities: columns(&logits.sigmoid()) }
            }
            Network::Dual(_) => {
                let whole = whole()?.to_vec::<f32>();
                let probabilities = scores(&whole, &queries, Rule::Softmax { scale });
                Scored { labels: labels.clone(), z: scores(&whole, &queries, Rule::Difference), probabilities }
            }
            Network::Image(_) | Network::Text(_) => return pipeline.dual().map(drop),
        };
        if scored.z.iter().flatten().any(|z| !z.is_finite()) {
            return Err(Error::new("scores that are not finite: the weights are damaged").at(args.model.name()));
        }
        progress.suspend(|| {
            let mut rows = batch.rows.iter().enumerate();
            rows.try_for_each(|(i, &row)| {
                let (image, notes) = (args.images[row].display().to_string(), &batch.notes[i]);
                notes.iter().for_each(|line| global.say(format_args!("{image}: {line}")));
                print(&scored, i, &image, &[&notes[..], &cut].concat(), global)
            })
        })?;
    }
    progress.finish_and_clear();
    model::left_out(&broken, args.images.len())
}

fn print(scored: &Scored, row: usize, image: &str, warnings: &[String], global: &Global) -> Result<()> {
    let of = |columns: &[Vec<f64>]| -> serde_json::Map<String, serde_json::Value> {
        scored.labels.iter().cloned().zip(columns.iter().map(|c| c[row].into())).collect()
    };
    if global.json {
        let line = serde_json::json!({ "image": image, "scores": of(&scored.z), "probabilities": of(&scored.probabilities), "warnings": warnings });
        global.print(line)
    } else {
        let scores = scored.z.iter().map(|c| format!("{:.4}", c[row]));
        global.print(csv_row(std::iter::once(image.to_owned()).chain(scores))?)
    }
}
