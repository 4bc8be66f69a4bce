//! `tier convert`: a model of any layout, written in ours or in Hugging Face's.

use std::path::PathBuf;

use super::Global;
use super::model::{Sides, Ways};
use crate::check::{Case, Inputs, deviations};
use crate::checkpoints::{Checkpoint, Precision};
use crate::error::{At, Error, Result};
use crate::pipeline::{Conversion, Target, Unused};

/// Writes a model of any layout as a folder of this program: config.json, model.safetensors, and where the model has them
/// preprocessor_config.json and tokenizer.json. It computes the same bits as the original, unless --dtype takes fewer of the weights:
/// then the difference is told, in embeddings of --case, or of noise.
#[derive(clap::Args)]
pub struct Args {
    /// The model: a folder with config.json and weights, or a file of weights (.safetensors, .pt, .bin).
    #[arg(value_name = "SRC", required_unless_present = "image_model", conflicts_with_all = ["image_model", "text_model"])]
    source: Option<PathBuf>,
    #[command(flatten)]
    sides: Sides,
    /// The folder to write.
    #[arg(short, long, value_name = "DIR")]
    out: PathBuf,
    /// What to keep matrices in, all else being f32 (default: as they are).
    #[arg(long, value_enum)]
    dtype: Option<Precision>,
    /// The layout to write.
    #[arg(long, value_enum, default_value = "tier")]
    to: Target,
    /// Tell the difference from the source in f32 on the inputs of a case (see `tier verify`).
    #[arg(long, value_name = "FILE")]
    case: Option<PathBuf>,
    /// Replace the model that is in the folder already.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    ways: Ways,
}

pub(super) fn run(args: &Args, global: &Global) -> Result<()> {
    let map = !global.no_mmap;
    let checkpoint = args.sides.checkpoint(args.source.as_deref(), global)?;
    let source = args.sides.name(args.source.as_deref());
    let case = args.case.as_ref().map(|path| Case::open(path, map)).transpose()?;
    let inputs = match &case {
        Some(case) => {
            case.fits(&checkpoint.config).at(&case.path)?;
            Some(case.inputs.clone())
        }
        None if args.dtype.is_some_and(|dtype| dtype != Precision::F32) => {
            Some(Inputs::drawn(&checkpoint.config, SEED))
        }
        None => None,
    };
    refuse_source(&checkpoint, &args.out)?;
    let mut pipeline = args.ways.open(&checkpoint, Unused::default(), global)?;
    // What has int8 keeps it, its values included.
    let int8 = args.to == Target::Tier && checkpoint.precision() == Precision::Int8;
    let precision = args.dtype.or(int8.then_some(Precision::Int8));
    let conversion = Conversion { to: args.to, precision, source, force: args.force };
    for note in pipeline.convert(&args.out, &conversion)? {
        global.say(note);
    }
    drop(pipeline);
    let written = Checkpoint::open(&args.out, map)?;
    let size = |checkpoint: &Checkpoint| -> usize {
        checkpoint.weights().flat_map(|w| w.metas()).map(|(_, meta)| meta.bytes()).sum()
    };
    let (was, is) = (size(&checkpoint), size(&written));
    let mib = |bytes: usize| bytes as f64 / f64::from(1 << 20);
    global.say(format_args!(
        "{}: {}, weights of {:.1} MiB (before: {:.1})",
        args.out.display(),
        written.layout_name(),
        mib(is),
        mib(was)
    ));
    let mut told = serde_json::json!({ "out": args.out, "source": conversion.source, "layout": written.layout_name(), "bytes": is });
    if let Some(inputs) = &inputs {
        let deviations = deviations(&checkpoint.network_in_f32()?, &written.network()?, inputs)?;
        let on = case.as_ref().map_or_else(|| format!("noise (seed {SEED})"), |case| case.path.display().to_string());
        let each: Vec<String> = deviations.iter().map(|(name, error)| format!("{name} {error:.1e}")).collect();
        let dtype = args.dtype.map_or("as it was", Precision::name);
        global.say(format_args!("{dtype} against the source in f32, relative L2 on {on}: {}", each.join(", ")));
        told["on"] = on.into();
        told["rel_l2"] = deviations.iter().map(|(name, error)| ((*name).to_owned(), *error)).collect();
    }
    if global.json {
        global.print(told)?;
    }
    Ok(())
}

/// Of the noise.
const SEED: u64 = 0;

/// The folder that is written must not be one that is read.
fn refuse_source(checkpoint: &Checkpoint, out: &std::path::Path) -> Result<()> {
    let Ok(out_folder) = out.canonicalize() else { return Ok(()) };
    let parent = |weights: &crate::formats::Weights| weights.path().canonicalize().ok()?.parent().map(PathBuf::from);
    if checkpoint.weights().any(|weights| parent(weights).is_some_and(|folder| folder == out_folder)) {
        return Err(Error::usage("the folder that the model is read from; name another with -o").at(out));
    }
    Ok(())
}
