//! The flags with which a command names a model, and the way pictures take into it.

use std::path::{Path, PathBuf};

use super::Global;
use crate::data::{Loader, LoaderOptions};
use crate::error::{Error, Result};
use crate::pipeline::Pipeline;
use crate::tensor::Tensor;

/// Which model, and how it sees pictures.
#[derive(clap::Args)]
pub struct ModelArgs {
    /// Folder of a model (config.json, model.safetensors, tokenizer.json, preprocessor_config.json).
    #[arg(long, value_name = "PATH")]
    pub model: PathBuf,
    #[command(flatten)]
    pixels: super::preprocess::Pixels,
}

impl ModelArgs {
    /// Opens the model and says what was loaded.
    pub(super) fn open(&self, global: &Global) -> Result<Pipeline> {
        let mut pipeline = Pipeline::open(&self.model, !global.no_mmap)?;
        let own = pipeline.preprocess.clone();
        pipeline.preprocess = self.pixels.preprocess(Some(own.clone()))?;
        pipeline.sixteen_bit = self.pixels.sixteen_bit.unwrap_or(pipeline.sixteen_bit);
        let p = &pipeline.preprocess;
        if (p.channels, p.crop) != (own.channels, own.crop) {
            return Err(Error::usage(format!(
                "this model takes {} channels of {} x {} pixels, the flags give {} of {} x {}: say --crop {}",
                own.channels, own.crop, own.crop, p.channels, p.crop, p.crop, own.crop
            )));
        }
        global.say(describe(&pipeline));
        Ok(pipeline)
    }
}

/// One line on what a pipeline is.
pub(super) fn describe(pipeline: &Pipeline) -> String {
    let text = match &pipeline.tokenizer {
        Some(tokenizer) => {
            format!("; tokenizer of {} entries, at most {} tokens", tokenizer.vocabulary(), tokenizer.max_length())
        }
        None => String::new(),
    };
    format!("{}: pictures {}{text}", pipeline.path.display(), pipeline.preprocess.describe())
}

/// Pixels of image files, a batch at a time, with their positions in `paths`.
pub(super) fn batches(pipeline: &Pipeline, paths: &[PathBuf], workers: usize) -> Result<Loader> {
    let options = LoaderOptions::evaluation(pipeline.preprocess.clone(), 16, workers.min(paths.len()));
    Loader::new(paths.to_vec(), LoaderOptions { sixteen_bit: pipeline.sixteen_bit, ..options })
}

/// Pixels of one image file, [1, c, h, w]; says what a user should know of how it was read.
pub(super) fn pixels(pipeline: &Pipeline, path: &Path, global: &Global) -> Result<(crate::image::Picture, Tensor)> {
    let (picture, notes) = crate::image::open_with_notes(path, pipeline.sixteen_bit)?;
    notes.iter().for_each(|note| global.say(format_args!("{}: {note}", path.display())));
    let p = &pipeline.preprocess;
    let values = p.apply(&picture);
    Ok((picture, Tensor::from_slice(&values, [1, p.channels, p.crop, p.crop])))
}
