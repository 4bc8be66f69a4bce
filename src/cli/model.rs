//! The flags with which a command names a model, and the way pictures take into it.

use std::path::{Path, PathBuf};

use super::Global;
use super::preprocess::Pixels;
use crate::checkpoints::{Checkpoint, Precision};
use crate::data::{Loader, LoaderOptions};
use crate::error::{At, Error, Result};
use crate::models::ImageTowerConfig;
use crate::pipeline::{Asked, Given, Pipeline, Unused};
use crate::tensor::Tensor;

/// Which model, and how it sees pictures.
#[derive(clap::Args)]
pub struct ModelArgs {
    /// A model: a folder with config.json and weights, or a file of weights (.safetensors, .pt, .bin).
    #[arg(long, value_name = "PATH", conflicts_with_all = ["image_model", "text_model"])]
    model: Option<PathBuf>,
    #[command(flatten)]
    sides: Sides,
    #[command(flatten)]
    ways: Ways,
}

/// A model in two parts, where it is not named as a whole.
#[derive(clap::Args)]
pub struct Sides {
    /// A model of images, joined with --text-model.
    #[arg(long, value_name = "PATH", requires = "text_model")]
    image_model: Option<PathBuf>,
    /// A model of texts, joined with --image-model.
    #[arg(long, value_name = "PATH", requires = "image_model")]
    text_model: Option<PathBuf>,
}

/// How texts and pictures get into a model, where its own files do not say or others are wanted.
#[derive(clap::Args)]
pub struct Ways {
    /// Its tokenizer, where none lies beside the model: a folder, tokenizer.json, vocab.json, vocab.txt or bpe_simple_vocab_16e6.txt.gz.
    #[arg(long, value_name = "PATH")]
    tokenizer: Option<PathBuf>,
    /// Longest text in tokens (default: what the model's files say).
    #[arg(long, value_name = "N")]
    max_length: Option<usize>,
    #[command(flatten)]
    pixels: Pixels,
}

impl Sides {
    /// The files and folders that are named.
    pub(super) fn paths(&self) -> impl Iterator<Item = &Path> {
        [&self.image_model, &self.text_model].into_iter().flatten().map(PathBuf::as_path)
    }
}

impl ModelArgs {
    /// The files and folders that are named.
    pub(super) fn paths(&self) -> impl Iterator<Item = &Path> {
        [&self.model, &self.ways.tokenizer].into_iter().flatten().map(PathBuf::as_path).chain(self.sides.paths())
    }

    /// Opens the model's files.
    pub(super) fn checkpoint(&self, global: &Global) -> Result<Checkpoint> {
        self.sides.checkpoint(self.model.as_deref(), global)
    }

    /// Opens the model and says what was loaded.
    pub(super) fn open(&self, global: &Global) -> Result<Pipeline> {
        self.open_for(Unused::default(), global)
    }

    /// As [`Self::open`], where some of a model's ways in are not used.
    pub(super) fn open_for(&self, unused: Unused, global: &Global) -> Result<Pipeline> {
        self.ways.open(&self.checkpoint(global)?, unused, global)
    }

    /// The ways of texts and pictures into it.
    pub(super) fn ways(&self) -> &Ways {
        &self.ways
    }

    /// The model's files, as they were named.
    pub(super) fn name(&self) -> String {
        self.sides.name(self.model.as_deref())
    }
}

impl Sides {
    /// Opens the files of a model that is named as a whole, or of these.
    pub(super) fn checkpoint(&self, whole: Option<&Path>, global: &Global) -> Result<Checkpoint> {
        match (whole, &self.image_model, &self.text_model) {
            (Some(model), ..) => Checkpoint::open(model, !global.no_mmap),
            (None, Some(image), Some(text)) => Checkpoint::join(image, text, !global.no_mmap),
            _ => Err(Error::usage("which model? Give --model PATH, or --image-model A and --text-model B")),
        }
    }

    /// Whether a model is named by these.
    pub(super) fn is_some(&self) -> bool {
        self.image_model.is_some()
    }

    /// The files of the one or the others, as they were named.
    pub(super) fn name(&self, whole: Option<&Path>) -> String {
        let paths = [whole, self.image_model.as_deref(), self.text_model.as_deref()].into_iter().flatten();
        paths.map(|path| path.display().to_string()).collect::<Vec<_>>().join(" + ")
    }
}

impl Ways {
    /// Whether any flag says something.
    pub(super) fn is_some(&self) -> bool {
        self.tokenizer.is_some() || self.max_length.is_some() || self.pixels != Pixels::default()
    }

    /// Makes a model of a checkpoint, these ways before those beside it, and says what was loaded.
    pub(super) fn open(&self, checkpoint: &Checkpoint, unused: Unused, global: &Global) -> Result<Pipeline> {
        self.open_in(None, checkpoint, unused, global)
    }

    /// As [`Self::open`], where matrices may be multiplied in another precision than the file's.
    pub(super) fn open_in(
        &self,
        precision: Option<Precision>,
        checkpoint: &Checkpoint,
        unused: Unused,
        global: &Global,
    ) -> Result<Pipeline> {
        let flags = self.pixels != Pixels::default();
        // Devices have no kernels for levels.
        let levels = precision.unwrap_or_else(|| checkpoint.precision()) == Precision::Int8;
        let precision = if levels && global.gpu()?.is_some() { Some(Precision::F32) } else { precision };
        let given = Given {
            tokenizer: self.tokenizer.clone(),
            max_length: self.max_length,
            preprocess: self.pixels.preset.map(|preset| preset.preprocess()),
            unused,
            precision,
        };
        let mut pipeline = Pipeline::load(checkpoint, given)?;
        if flags {
            let own = pipeline.preprocess.clone();
            pipeline.preprocess = self.pixels.preprocess(Some(own.clone()))?;
            if pipeline.preprocess != own {
                pipeline.origin.preprocessing = "as the flags say".to_owned();
            }
            pipeline.sixteen_bit = self.pixels.sixteen_bit.unwrap_or(pipeline.sixteen_bit);
        }
        let p = &pipeline.preprocess;
        if let Some(vision) = checkpoint.config.vision().filter(|_| flags || !unused.pictures) {
            let fits = checkpoint.config.check_pixels(p.channels, [p.crop; 2]);
            fits.map_err(|e| Error::usage(format!("{e}; see --crop, --mean and --std")))?;
            if let (ImageTowerConfig::Vit(vit), true) = (vision, vision.image_size() != p.crop) {
                pipeline.origin.notes.push(format!(
                    "pictures of {} for a model of {}: its position embeddings are interpolated",
                    p.crop, vit.image_size
                ));
            }
        }
        match global.gpu()? {
            Some(gpu) => pipeline.to_device(&gpu)?,
            // What a device multiplies is not packed.
            None => {
                let said = pipeline.hold(global.weights);
                pipeline.origin.notes.extend(said);
            }
        }
        global.say(describe(&pipeline));
        if global.verbose {
            pipeline.origin.details.iter().for_each(|line| global.say(format_args!("  {line}")));
        }
        Ok(pipeline)
    }
}

/// What a pipeline is, in a few lines.
pub(super) fn describe(pipeline: &Pipeline) -> String {
    pipeline.describe().join("\n  ")
}

/// Images in a batch.
pub(super) const AT_ONCE: usize = 16;

/// Says what memory the answers take, and refuses what this machine or its device cannot hold; `remedy` takes less.
pub(super) fn fitting(pipeline: &mut Pipeline, asked: &Asked, remedy: &str, global: &Global) -> Result<()> {
    let (estimate, gpu) = (pipeline.memory(asked), global.gpu()?);
    global.say(format_args!("  {}", estimate.describe(gpu.as_ref())));
    estimate.fits(gpu.as_ref(), "this", remedy).at(&pipeline.path)
}

/// What takes less memory where nothing of the answers is kept.
pub(super) const LESS: &str =
    "Smaller pictures (--resize, --crop), fewer --workers, or a model in fewer bits (tier convert --dtype) take less";

/// Pixels of image files, a batch at a time, with their positions in `paths`; with what is doubtful about the pictures. Files that
/// cannot be read are left out, for [`left_out`] to tell of.
pub(super) fn batches(pipeline: &Pipeline, paths: &[PathBuf], workers: usize) -> Result<Loader> {
    let options = LoaderOptions::evaluation(pipeline.preprocess.clone(), AT_ONCE, workers.min(paths.len()));
    Loader::new(
        paths.to_vec(),
        LoaderOptions { sixteen_bit: pipeline.sixteen_bit, doubts: true, skip_broken: true, ..options },
    )
}

/// The error at the end of a command that has done what could be done with `all` images.
///
/// # Errors
/// If any was left out, with the reason for each.
pub(super) fn left_out(broken: &[String], all: usize) -> Result<()> {
    match broken {
        [] => Ok(()),
        [only] if all == 1 => Err(Error::new(only)),
        several => {
            let (n, lines) = (several.len(), several.join("\n  "));
            Err(Error::new(format!("{n} of {all} images could not be read and are left out:\n  {lines}")))
        }
    }
}

/// One image file, its pixels [1, c, h, w], and what a user should know of it and of how it was read, which is also said.
pub(super) fn pixels(
    pipeline: &Pipeline,
    path: &Path,
    global: &Global,
) -> Result<(crate::image::Picture, Tensor, Vec<String>)> {
    let (picture, mut notes) = crate::image::open_with_notes(path, pipeline.sixteen_bit)?;
    notes.extend(crate::image::doubts(&picture));
    notes.iter().for_each(|note| global.say(format_args!("{}: {note}", path.display())));
    let p = &pipeline.preprocess;
    let values = p.apply(&picture);
    Ok((picture, Tensor::from_slice(&values, [1, p.channels, p.crop, p.crop]), notes))
}
