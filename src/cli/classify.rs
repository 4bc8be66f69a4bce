//! `tier classify`: zero-shot scores of images.

use std::path::PathBuf;

use super::{Global, model};
use crate::data::Prompts;
use crate::error::{Error, Result};
use crate::eval::measure::queries;
use crate::eval::zero_shot::{Rule, scores};
use crate::pipeline::Network;

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

pub(super) fn run(args: &Args, global: &Global) -> Result<()> {
    let pipeline = args.model.open(global)?;
    let (labels, queries, scale) = match &pipeline.network {
        Network::Classifier(model) => (model.config().labels.clone(), Vec::new(), 1.0),
        Network::Dual(model) => {
            let path = args.prompts.as_deref().ok_or_else(|| Error::usage("which labels? Give --prompts TABLE.csv"))?;
            let prompts = Prompts::open(path)?;
            let labels = prompts.0.iter().map(|p| p.label.clone()).collect();
            (labels, queries(&pipeline, &prompts)?, model.logit_scale.item().exp())
        }
    };
    let progress = global.progress(args.images.len() as u64, "images");
    if !global.json {
        println!("image,{}", labels.join(","));
    }
    for batch in model::batches(&pipeline, &args.images, global.worker_count())?.epoch(0, 0) {
        let batch = batch?;
        let pixels = &batch.views[0];
        let scored = match &pipeline.network {
            Network::Classifier(model) => {
                let logits = model.forward(pixels);
                let columns = |x: &crate::Tensor| {
                    let rows = crate::pipeline::rows(x);
                    (0..labels.len()).map(|k| rows.iter().map(|r| f64::from(r[k])).collect()).collect()
                };
                Scored { labels: labels.clone(), z: columns(&logits), probabilities: columns(&logits.sigmoid()) }
            }
            Network::Dual(model) => {
                let whole = model.encode_image(pixels).whole.to_vec::<f32>();
                let probabilities = scores(&whole, &queries, Rule::Softmax { scale });
                Scored { labels: labels.clone(), z: scores(&whole, &queries, Rule::Difference), probabilities }
            }
        };
        progress.suspend(|| {
            for (i, &row) in batch.rows.iter().enumerate() {
                let image = args.images[row].display().to_string();
                batch.notes[i].iter().for_each(|note| global.say(format_args!("{image}: {note}")));
                print(&scored, i, &image, &batch.notes[i], global.json);
            }
        });
        progress.inc(batch.rows.len() as u64);
    }
    progress.finish_and_clear();
    Ok(())
}

fn print(scored: &Scored, row: usize, image: &str, warnings: &[String], json: bool) {
    let of = |columns: &[Vec<f64>]| -> serde_json::Map<String, serde_json::Value> {
        scored.labels.iter().cloned().zip(columns.iter().map(|c| c[row].into())).collect()
    };
    if json {
        let line = serde_json::json!({ "image": image, "scores": of(&scored.z), "probabilities": of(&scored.probabilities), "warnings": warnings });
        println!("{line}");
    } else {
        let scores: Vec<String> = scored.z.iter().map(|c| format!("{:.4}", c[row])).collect();
        println!("{image},{}", scores.join(","));
    }
}
