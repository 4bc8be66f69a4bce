//! `tier inspect`: what a model or a file of tensors holds.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::Global;
use crate::checkpoints::Checkpoint;
use crate::error::Result;
use crate::formats::Weights;

/// Shows layout, architecture, parameters, types and tensors of a model, or of any file of tensors. Reads no tensor's bytes.
#[derive(clap::Args)]
pub struct Args {
    /// A model's folder, or a file of tensors (.safetensors, .pt, .bin).
    path: PathBuf,
}

pub(super) fn run(args: &Args, global: &Global) -> Result<()> {
    let weights = Checkpoint::weights_of(&args.path, !global.no_mmap)?;
    let mut types: BTreeMap<String, usize> = BTreeMap::new();
    let (mut numbers, mut bytes) = (0, 0);
    for (_, t) in weights.metas() {
        *types.entry(t.dtype.to_string()).or_default() += t.dims.numel();
        numbers += t.dims.numel();
        bytes += t.bytes();
    }
    let file = weights.path().to_path_buf();
    // A file of tensors that is no model is shown all the same, with the reason.
    let (metadata, tensors) = (weights.metadata().clone(), described(&weights));
    let checkpoint = Checkpoint::of(&args.path, weights);
    if global.json {
        let tensors: BTreeMap<&str, _> = tensors
            .iter()
            .map(|(name, dtype, dims)| (name.as_str(), serde_json::json!({ "dtype": dtype, "shape": dims })))
            .collect();
        let mut out = serde_json::json!({ "path": args.path, "file": file, "numbers": numbers, "bytes": bytes, "dtypes": types,
            "metadata": metadata, "tensors": tensors });
        match &checkpoint {
            Ok(c) => {
                out["layout"] = c.layout_name().into();
                out["architecture"] = c.config.describe().into();
                out["config"] = serde_json::to_value(&c.config).unwrap_or_default();
                out["parameters"] = c.parameter_count().into();
                out["notes"] = c.notes.clone().into();
                out["passed_over"] = c.details.clone().into();
            }
            Err(e) => out["not_a_model"] = e.to_string().into(),
        }
        global.print(out)?;
        return Ok(());
    }
    global.print(file.display())?;
    match &checkpoint {
        Ok(c) => {
            global.print(format_args!("{}: {}", c.layout_name(), c.config.describe()))?;
            global.print(format_args!("{} parameters", c.parameter_count()))?;
            global.print(format_args!("{}", serde_json::to_string_pretty(&c.config).unwrap_or_default()))?;
            for note in c.notes.iter().chain(c.details.iter().filter(|_| global.verbose)) {
                global.print(note)?;
            }
        }
        Err(e) => global.print(format_args!("not a model: {e}"))?,
    }
    global.print(format_args!(
        "{numbers} numbers in {} tensors, {:.1} MiB",
        tensors.len(),
        bytes as f64 / f64::from(1 << 20)
    ))?;
    for (name, count) in &types {
        global.print(format_args!("  {name}: {count}"))?;
    }
    for (key, value) in &metadata {
        global.print(format_args!("{key}: {}", value.chars().take(200).collect::<String>()))?;
    }
    let width = tensors.iter().map(|(name, ..)| name.len()).max().unwrap_or(0);
    for (name, dtype, dims) in &tensors {
        global.print(format_args!("  {name:width$}  {dtype} {dims:?}"))?;
    }
    Ok(())
}

/// Names, types and dims.
fn described(weights: &Weights) -> Vec<(String, String, Vec<usize>)> {
    weights.metas().map(|(name, t)| (name.to_owned(), t.dtype.to_string(), t.dims.to_vec())).collect()
}
