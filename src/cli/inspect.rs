//! `tier inspect`: what a model folder or a file of weights holds.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::Global;
use crate::error::Result;
use crate::formats::Weights;
use crate::pipeline::NetworkConfig;

/// Shows architecture, parameters, types and tensors of a model folder or .safetensors file.
#[derive(clap::Args)]
pub struct Args {
    /// A model folder, or a .safetensors file.
    path: PathBuf,
}

pub(super) fn run(args: &Args, global: &Global) -> Result<()> {
    let folder = args.path.is_dir();
    let config = folder.then(|| NetworkConfig::open(&args.path)).transpose()?;
    let file = if folder { args.path.join("model.safetensors") } else { args.path.clone() };
    let weights = Weights::open(&file, !global.no_mmap)?;
    let mut types: BTreeMap<String, usize> = BTreeMap::new();
    let (mut numbers, mut bytes) = (0, 0);
    for (_, t) in weights.metas() {
        *types.entry(t.dtype.to_string()).or_default() += t.dims.numel();
        numbers += t.dims.numel();
        bytes += t.dims.numel() * t.dtype.size();
    }
    if global.json {
        let tensors: BTreeMap<&str, _> = weights
            .metas()
            .map(|(name, t)| (name, serde_json::json!({ "dtype": t.dtype.to_string(), "shape": &t.dims[..] })))
            .collect();
        let out = serde_json::json!({ "path": args.path, "config": config, "parameters": numbers, "bytes": bytes,
            "dtypes": types, "metadata": weights.metadata(), "tensors": tensors });
        global.print(out)?;
        return Ok(());
    }
    global.print(file.display())?;
    if let Some(config) = &config {
        global.print(serde_json::to_string_pretty(config).unwrap_or_default())?;
    }
    global.print(format_args!(
        "{numbers} numbers in {} tensors, {:.1} MiB",
        weights.metas().count(),
        bytes as f64 / f64::from(1 << 20)
    ))?;
    for (name, count) in &types {
        global.print(format_args!("  {name}: {count}"))?;
    }
    for (key, value) in weights.metadata() {
        global.print(format_args!("{key}: {}", value.chars().take(200).collect::<String>()))?;
    }
    for note in weights.notes() {
        global.print(format_args!("note: {note}"))?;
    }
    let width = weights.metas().map(|(name, _)| name.len()).max().unwrap_or(0);
    for (name, t) in weights.metas() {
        global.print(format_args!("  {name:width$}  {} {:?}", t.dtype, t.dims))?;
    }
    Ok(())
}
