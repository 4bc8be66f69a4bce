//! `tier embed`: images and texts to vectors in the joint space.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::{Global, model};
use crate::error::{Error, Result};
use crate::formats::{Weights, safetensors};
use crate::models::dual_encoder::Embeddings;
use crate::tensor::Tensor;

/// Writes embeddings of images and texts, whole and by patch and token: projected, not normalised.
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

pub(super) fn run(args: &Args, global: &Global) -> Result<()> {
    if args.images.is_empty() && args.texts.is_empty() && args.inputs.is_none() {
        return Err(Error::usage("nothing to embed: give --images, --texts or --inputs"));
    }
    let pipeline = args.model.open(global)?;
    let (dual, tokenizer) = pipeline.dual()?;
    let (mut images, mut texts): (Vec<Embeddings>, Vec<Embeddings>) = (Vec::new(), Vec::new());
    let mut mask = None;
    let progress = global.progress(args.images.len() as u64, "images");
    for batch in model::batches(&pipeline, &args.images, global.worker_count())?.epoch(0, 0) {
        let batch = batch?;
        images.push(dual.encode_image(&batch.views[0]));
        progress.inc(batch.rows.len() as u64);
    }
    progress.finish_and_clear();
    if !args.texts.is_empty() {
        let all: Vec<&str> = args.texts.iter().map(String::as_str).collect();
        let tokens = tokenizer.encode(&all)?;
        for &i in &tokens.cut {
            global.say(format!("text {} has more than {} tokens and is cut", i + 1, tokenizer.max_length()));
        }
        texts.push(dual.encode_text(&tokens.ids, &tokens.mask));
        mask = Some(tokens.mask);
    }
    if let Some(path) = &args.inputs {
        let inputs = Weights::open(path, !global.no_mmap)?;
        let checked = |name: &str, rank: usize| match inputs.get(name) {
            Some(t) if t.rank() != rank => {
                Err(Error::new(format!("{name} has dims {:?}, it needs {rank} of them", t.dims())).at(path))
            }
            t => Ok(t.cloned()),
        };
        let (pixels, ids) = (checked("pixel_values", 4)?, checked("input_ids", 2)?);
        let given_mask = checked("attention_mask", 2)?;
        if pixels.is_none() && ids.is_none() {
            return Err(Error::new("neither pixel_values nor input_ids: nothing to embed").at(path));
        }
        if let Some(pixels) = pixels {
            let p = &pipeline.preprocess;
            if pixels.dims()[1..] != [p.channels, p.crop, p.crop] {
                let wanted = [p.channels, p.crop, p.crop];
                return Err(
                    Error::new(format!("pixel_values {:?}: this model needs [n, {wanted:?}]", pixels.dims())).at(path)
                );
            }
            images.push(dual.encode_image(&pixels.to_dtype(crate::DType::F32)));
        }
        if let Some(ids) = ids {
            let ids = ids.to_dtype(crate::DType::I64);
            let known = dual.config().text.vocabulary();
            if let Some(bad) = ids.to_vec::<i64>().into_iter().find(|&id| id < 0 || id as usize >= known) {
                return Err(Error::new(format!("input_ids has {bad}: the vocabulary ends at {}", known - 1)).at(path));
            }
            if ids.dims()[1] > dual.config().text.max_length() {
                let most = dual.config().text.max_length();
                return Err(
                    Error::new(format!("input_ids has {} tokens a text: at most {most}", ids.dims()[1])).at(path)
                );
            }
            let given = given_mask
                .map_or_else(|| Tensor::full(*ids.dims(), 1.0, crate::DType::U8), |m| m.to_dtype(crate::DType::U8));
            if given.dims() != ids.dims() {
                return Err(
                    Error::new(format!("attention_mask {:?} for input_ids {:?}", given.dims(), ids.dims())).at(path)
                );
            }
            if mask.is_some() {
                return Err(Error::usage("texts come from --texts or from --inputs, not from both"));
            }
            texts.push(dual.encode_text(&ids, &given));
            mask = Some(given);
        }
    }
    let mut out: Vec<(String, Tensor)> = Vec::new();
    for (all, whole, parts) in [(&images, "image_embeds", "patch_embeds"), (&texts, "text_embeds", "token_embeds")] {
        if !all.is_empty() {
            let join = |f: fn(&Embeddings) -> &Tensor| Tensor::concat(&all.iter().map(f).collect::<Vec<_>>(), 0);
            out.push((whole.to_owned(), join(|e| &e.whole)));
            out.push((parts.to_owned(), join(|e| &e.parts)));
        }
    }
    out.extend(mask.map(|mask| ("token_mask".to_owned(), mask)));
    let metadata = BTreeMap::from([
        ("layout".to_owned(), "tiergrad dual encoder".to_owned()),
        ("model".to_owned(), args.model.model.display().to_string()),
        ("preprocessing".to_owned(), pipeline.preprocess.describe()),
        (
            "tokenizer".to_owned(),
            format!("{} entries, at most {} tokens", tokenizer.vocabulary(), tokenizer.max_length()),
        ),
        ("version".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
    ]);
    safetensors::save(&args.out, out.iter().map(|(name, t)| (name.clone(), t)), &metadata)?;
    for (name, t) in &out {
        global.say(format!("{name} {:?}", t.dims()));
    }
    Ok(())
}
