//! `tier embed`: images and texts to vectors in the joint space.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::{Global, model};
use crate::DType;
use crate::error::{Error, Result};
use crate::formats::{Weights, safetensors};
use crate::models::Said;
use crate::pipeline::{NO_TOKENIZER, NetworkConfig, Pipeline};
use crate::tensor::Tensor;

/// Writes embeddings of images and texts, whole and by patch and token: projected, not normalised. A model of images alone or of texts
/// alone also writes `output`, which is its features or logits where it has no projection.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: model::ModelArgs,
    /// Image files.
    #[arg(long, num_args = 1.., value_name = "FILE")]
    images: Vec<PathBuf>,
    /// Texts.
    #[arg(long, num_args = 1.., value_name = "TEXT")]
    texts: Vec<String>,
    /// A file with `pixel_values` [n,c,h,w], or `input_ids` and `attention_mask` [n,T], or both.
    #[arg(long, value_name = "FILE")]
    inputs: Option<PathBuf>,
    /// The file to write (.safetensors).
    #[arg(short, long)]
    out: PathBuf,
}

/// Pixels and texts (ids i64 and mask u8) of a file.
struct Inputs {
    pixels: Option<Tensor>,
    texts: Option<(Tensor, Tensor)>,
}

impl Inputs {
    fn open(path: &Path, config: &NetworkConfig, map: bool) -> Result<Self> {
        let inputs = Weights::open(path, map)?;
        let checked = |name: &str, rank: usize| match inputs.get(name) {
            Some(t) if t.rank() != rank => {
                Err(Error::new(format!("{name} has dims {:?}, it needs {rank} of them", t.dims())))
            }
            Some(t) if t.dims()[1..].contains(&0) => {
                Err(Error::new(format!("{name} has dims {:?}: nothing in it", t.dims())))
            }
            t => Ok(t.cloned()),
        };
        let read = || -> Result<Self> {
            let (pixels, ids) = (checked("pixel_values", 4)?, checked("input_ids", 2)?);
            if let Some(pixels) = &pixels {
                let [_, channels, height, width] = [0, 1, 2, 3].map(|k| pixels.dims()[k]);
                config.check_pixels(channels, [height, width])?;
            }
            let texts = match ids {
                None => None,
                Some(ids) => Some(texts(&ids.to_dtype(DType::I64), checked("attention_mask", 2)?, config)?),
            };
            match (pixels, texts) {
                (None, None) => Err(Error::new("neither pixel_values nor input_ids: nothing to embed")),
                (pixels, texts) => Ok(Self { pixels: pixels.map(|p| p.to_dtype(DType::F32)), texts }),
            }
        };
        read().map_err(|e| e.at(path))
    }
}

/// Ids that the model knows, and their mask.
fn texts(ids: &Tensor, mask: Option<Tensor>, config: &NetworkConfig) -> Result<(Tensor, Tensor)> {
    let text = config.text().ok_or_else(|| Error::new("input_ids: this model knows no texts"))?;
    let (known, most, dims) = (text.vocabulary(), text.max_length(), *ids.dims());
    if let Some(bad) = ids.to_vec::<i64>().into_iter().find(|&id| id < 0 || id as usize >= known) {
        return Err(Error::new(format!("input_ids has {bad}: the vocabulary ends at {}", known - 1)));
    }
    if dims[1] > most {
        return Err(Error::new(format!("input_ids has {} tokens a text: at most {most}", dims[1])));
    }
    let mask = mask.map_or_else(|| Tensor::full(dims, 1.0, DType::U8), |mask| mask.to_dtype(DType::U8));
    if *mask.dims() != dims {
        return Err(Error::new(format!("attention_mask {:?} for input_ids {dims:?}", mask.dims())));
    }
    Ok((ids.clone(), mask))
}

pub(super) fn run(args: &Args, global: &Global) -> Result<()> {
    if args.images.is_empty() && args.texts.is_empty() && args.inputs.is_none() {
        return Err(Error::usage("nothing to embed: give --images, --texts or --inputs"));
    }
    let pipeline = args.model.open(global)?;
    let network = &pipeline.network;
    let say_images =
        |pixels: &Tensor| network.say_images(pixels).ok_or_else(|| Error::new("this model knows no images"));
    let say_texts = |ids: &Tensor, mask: &Tensor| {
        network.say_texts(ids, mask).ok_or_else(|| Error::new("this model knows no texts"))
    };
    let config = NetworkConfig::of(network);
    let (mut images, mut said, mut mask): (Vec<Said>, Vec<Said>, _) = (Vec::new(), Vec::new(), None);
    if !args.images.is_empty() {
        config.vision().ok_or_else(|| Error::usage("--images: this model knows no images"))?;
        let progress = global.progress(args.images.len() as u64, "images");
        for batch in model::batches(&pipeline, &args.images, global.worker_count())?.epoch(0, 0) {
            let batch = batch?;
            images.push(say_images(&batch.views[0])?);
            progress.inc(batch.rows.len() as u64);
        }
        progress.finish_and_clear();
    }
    if !args.texts.is_empty() {
        config.text().ok_or_else(|| Error::usage("--texts: this model knows no texts"))?;
        let tokenizer = pipeline.tokenizer.as_ref().ok_or_else(|| Error::new(NO_TOKENIZER).at(&pipeline.path))?;
        let all: Vec<&str> = args.texts.iter().map(String::as_str).collect();
        let tokens = tokenizer.encode(&all)?;
        for &i in &tokens.cut {
            global.say(format!("text {} has more than {} tokens and is cut", i + 1, tokenizer.max_length()));
        }
        said.push(say_texts(&tokens.ids, &tokens.mask)?);
        mask = Some(tokens.mask);
    }
    if let Some(path) = &args.inputs {
        let inputs = Inputs::open(path, &config, !global.no_mmap)?;
        if let Some(pixels) = &inputs.pixels {
            images.push(say_images(pixels)?);
        }
        if let Some((ids, given)) = inputs.texts {
            if mask.is_some() {
                return Err(Error::usage("texts come from --texts or from --inputs, not from both"));
            }
            said.push(say_texts(&ids, &given)?);
            mask = Some(given);
        }
    }
    let mut out: Vec<(String, Tensor)> = Vec::new();
    for (all, whole, parts) in [(&images, "image_embeds", "patch_embeds"), (&said, "text_embeds", "token_embeds")] {
        add(&mut out, "output", all.iter().filter_map(|(output, _)| output.as_ref()))?;
        add(&mut out, whole, all.iter().filter_map(|(_, e)| Some(&e.as_ref()?.whole)))?;
        add(&mut out, parts, all.iter().filter_map(|(_, e)| Some(&e.as_ref()?.parts)))?;
    }
    out.extend(mask.map(|mask| ("token_mask".to_owned(), mask)));
    safetensors::save(&args.out, out.iter().map(|(name, t)| (name.clone(), t)), &metadata(args, &pipeline))?;
    for (name, t) in &out {
        global.say(format!("{name} {:?}", t.dims()));
    }
    Ok(())
}

/// Adds tensors one below the other.
fn add<'t>(out: &mut Vec<(String, Tensor)>, name: &str, all: impl Iterator<Item = &'t Tensor>) -> Result<()> {
    let all: Vec<&Tensor> = all.collect();
    if all.windows(2).any(|pair| pair[0].dims()[1..] != pair[1].dims()[1..]) {
        return Err(Error::usage(format!(
            "--images and --inputs give {name} of other sizes: embed them one after the other"
        )));
    }
    if !all.is_empty() {
        out.push((name.to_owned(), Tensor::concat(&all, 0)));
    }
    Ok(())
}

/// What was loaded, in which layout, with which preprocessing and tokenizer.
fn metadata(args: &Args, pipeline: &Pipeline) -> BTreeMap<String, String> {
    let mut out = pipeline.provenance();
    out.insert("model".to_owned(), args.model.name());
    out.insert("architecture".to_owned(), NetworkConfig::of(&pipeline.network).describe());
    out
}
