//! `tier embed`: images and texts to vectors in the joint space.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::{Global, model, outputs};
use crate::check::Inputs;
use crate::error::{At, Error, Result};
use crate::formats::safetensors;
use crate::models::Said;
use crate::models::dual_encoder::Embeddings;
use crate::pipeline::{Asked, Kept, NetworkConfig, Pipeline, TEXTS_AT_ONCE, Unused};
use crate::tensor::Tensor;

/// Writes embeddings of images and texts, whole and by patch and token: projected, not normalised. A model of images alone or of texts
/// alone also writes `output`, which is its features or logits where it has no projection. Files that cannot be read are left out
/// and named; the metadata says what each row is of.
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
    let read = args.images.iter().chain(&args.inputs).map(PathBuf::as_path);
    outputs::apart([args.out.as_path()], args.model.paths().chain(read))?;
    let unused = Unused { pictures: args.images.is_empty(), texts: args.texts.is_empty() };
    let mut pipeline = args.model.open_for(unused, global)?;
    let config = NetworkConfig::of(&pipeline.network);
    let inputs = args.inputs.as_ref().map(|path| Inputs::open(path, !global.no_mmap)).transpose()?;
    if let (Some(inputs), Some(path)) = (&inputs, &args.inputs) {
        inputs.fits(&config, false).at(path)?;
    }
    let texts = texts(args, &pipeline, inputs.as_ref(), global)?;
    let pixels = inputs.as_ref().and_then(|inputs| inputs.pixels.as_ref());
    if !args.images.is_empty() {
        config.vision().ok_or_else(|| Error::usage("--images: this model knows no images"))?;
    }
    let mut asked = Asked { kept: Kept::All, ..Asked::default() };
    asked = asked.files(&pipeline.preprocess, args.images.iter(), model::AT_ONCE, global.worker_count());
    if let Some(pixels) = pixels {
        asked = asked.pixels(*pixels.dims(), model::AT_ONCE);
    }
    if let Some([ids, _]) = &texts {
        asked = asked.tokens(ids, TEXTS_AT_ONCE);
    }
    model::fitting(
        &mut pipeline,
        &asked,
        "Embed fewer images or texts at once: what is written is held until all are there",
        global,
    )?;

    let planned = pipeline.planned();
    // What is held until all are there is held by the CPU.
    let here = |(output, embeddings): Said| -> Said {
        let of = |e: Embeddings| Embeddings { whole: e.whole.to_cpu(), parts: e.parts.to_cpu() };
        (output.map(|x| x.to_cpu()), embeddings.map(of))
    };
    let say_images =
        |pixels: &Tensor| planned.say_images(pixels).map(here).ok_or_else(|| Error::new("this model knows no images"));
    let (mut images, mut said): (Vec<Said>, Vec<Said>) = (Vec::new(), Vec::new());
    let (mut rows, mut broken) = (Rows::default(), Vec::new());
    if !args.images.is_empty() {
        let progress = global.progress(args.images.len() as u64, "images");
        for batch in model::batches(&pipeline, &args.images, global.worker_count())?.epoch(0, 0) {
            let batch = batch?;
            pipeline.intact()?;
            progress.inc((batch.rows.len() + batch.broken.len()) as u64);
            broken.extend(batch.broken);
            if !batch.rows.is_empty() {
                images.push(say_images(&batch.views[0])?);
                rows.images.extend(batch.rows.iter().map(|&row| args.images[row].display().to_string()));
            }
        }
        progress.finish_and_clear();
        if rows.images.is_empty() {
            return model::left_out(&broken, args.images.len());
        }
    }
    let named = |n: usize| (0..n).filter_map(|i| Some(format!("{}[{i}]", args.inputs.as_ref()?.display())));
    if let Some(pixels) = pixels {
        for (start, n) in parts(pixels.dims()[0], model::AT_ONCE) {
            pipeline.intact()?;
            images.push(say_images(&pixels.narrow(0, start, n))?);
        }
        rows.images.extend(named(pixels.dims()[0]));
    }
    if let Some([ids, mask]) = &texts {
        for (start, n) in parts(ids.dims()[0], TEXTS_AT_ONCE) {
            pipeline.intact()?;
            let [ids, mask] = [ids, mask].map(|x| x.narrow(0, start, n));
            let texts = planned.say_texts(&ids, &mask).map(here);
            said.push(texts.ok_or_else(|| Error::new("this model knows no texts"))?);
        }
        if args.texts.is_empty() { rows.texts.extend(named(ids.dims()[0])) } else { rows.texts.clone_from(&args.texts) }
    }
    let mut out: Vec<(String, Tensor)> = Vec::new();
    for (all, whole, parts) in [(&images, "image_embeds", "patch_embeds"), (&said, "text_embeds", "token_embeds")] {
        add(&mut out, "output", all.iter().filter_map(|(output, _)| output.as_ref()))?;
        add(&mut out, whole, all.iter().filter_map(|(_, e)| Some(&e.as_ref()?.whole)))?;
        add(&mut out, parts, all.iter().filter_map(|(_, e)| Some(&e.as_ref()?.parts)))?;
    }
    for (name, t) in &out {
        if let Some(x) = t.packed().as_slice::<f32>().iter().find(|x| !x.is_finite()) {
            return Err(Error::new(format!("{name} would have {x}: the weights are damaged")).at(args.model.name()));
        }
    }
    out.extend(texts.map(|[_, mask]| ("token_mask".to_owned(), mask)));
    let metadata = metadata(args, &pipeline, &rows)?;
    safetensors::save(&args.out, out.iter().map(|(name, t)| (name.clone(), t)), &metadata)?;
    for (name, t) in &out {
        global.say(format!("{name} {:?}", t.dims()));
    }
    model::left_out(&broken, args.images.len())
}

/// Ids and mask of --texts, or those of --inputs.
fn texts(args: &Args, pipeline: &Pipeline, inputs: Option<&Inputs>, global: &Global) -> Result<Option<[Tensor; 2]>> {
    let given = inputs.and_then(|inputs| inputs.texts.clone());
    if args.texts.is_empty() {
        return Ok(given);
    }
    if given.is_some() {
        return Err(Error::usage("texts come from --texts or from --inputs, not from both"));
    }
    NetworkConfig::of(&pipeline.network).text().ok_or_else(|| Error::usage("--texts: this model knows no texts"))?;
    let tokenizer = pipeline.tokenizer()?;
    let tokens = tokenizer.encode(&args.texts.iter().map(String::as_str).collect::<Vec<_>>())?;
    for &i in &tokens.cut {
        global.say(format!("text {} has more than {} tokens and is cut", i + 1, tokenizer.max_length()));
    }
    Ok(Some([tokens.ids, tokens.mask]))
}

/// Starts and lengths of the batches of so many rows.
fn parts(rows: usize, at_once: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..rows).step_by(at_once).map(move |start| (start, at_once.min(rows - start)))
}

/// What each row of the embeddings is of.
#[derive(Default)]
struct Rows {
    images: Vec<String>,
    texts: Vec<String>,
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

/// What was loaded, in which layout, with which preprocessing and tokenizer, and what the rows are of, in JSON.
fn metadata(args: &Args, pipeline: &Pipeline, rows: &Rows) -> Result<BTreeMap<String, String>> {
    let mut out = pipeline.provenance();
    out.insert("model".to_owned(), args.model.name());
    out.insert("architecture".to_owned(), NetworkConfig::of(&pipeline.network).describe());
    for (key, names) in [("images", &rows.images), ("texts", &rows.texts)] {
        if !names.is_empty() {
            out.insert(key.to_owned(), serde_json::to_string(names).map_err(|e| Error::new(e.to_string()))?);
        }
    }
    Ok(out)
}
