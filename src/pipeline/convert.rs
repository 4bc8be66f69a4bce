//! A model of any layout written in another: as a folder of our own, or as Hugging Face's CLIPModel.

use std::path::Path;

use super::{NetworkConfig, Pipeline, tensors, to_json};
use crate::checkpoints::{self, Ends, Precision};
use crate::error::{At, Error, Result};
use crate::files::{self, Staging};

/// The layout that a conversion writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum Target {
    /// A model folder of this program.
    #[default]
    Tier,
    /// Hugging Face's CLIPModel.
    HfClip,
}

/// How a model is written.
#[derive(Clone, Debug, Default)]
pub struct Conversion {
    /// In which layout.
    pub to: Target,
    /// What matrices are kept in; default: as they are (for Hugging Face's CLIPModel int8 in f32).
    pub precision: Option<Precision>,
    /// What the model was read from, for the record in the weights' metadata.
    pub source: String,
    /// Whether files that are there may be replaced.
    pub force: bool,
}

/// The files of a folder that a conversion writes, the weights first.
const FILES: [&str; 4] = ["model.safetensors", "config.json", "preprocessor_config.json", "tokenizer.json"];

impl Pipeline {
    /// Writes the model to a folder, the weights last; says what is not the same there, one line each. Without a precision, or with f32,
    /// the written model computes the same bits.
    ///
    /// # Errors
    /// If the layout cannot say what the model is, the precision cannot hold its weights, the folder has files already, or it cannot be
    /// written. What was there stays then.
    pub fn convert(&mut self, folder: &Path, conversion: &Conversion) -> Result<Vec<String>> {
        let config = NetworkConfig::of(&self.network);
        let (json, format, notes) = match conversion.to {
            Target::Tier => (to_json(&config)?, format!("tiergrad {}", env!("CARGO_PKG_VERSION")), Vec::new()),
            Target::HfClip => {
                if conversion.precision == Some(Precision::Int8) {
                    return Err(Error::usage(
                        "--dtype int8: Hugging Face's CLIPModel does not read it; take bf16 or f16",
                    ));
                }
                let (json, mut notes) = checkpoints::hf_clip_config(&config, self.ends()?).at(&conversion.source)?;
                if self.preprocess.square.is_some() {
                    notes
                        .push("Hugging Face's processor does not pad pictures to a square: do so before it".to_owned());
                }
                // Its reader asks for this format.
                (to_json(&json)?, "pt".to_owned(), notes)
            }
        };
        let parameters = tensors(&mut self.network);
        let parameters = match conversion.precision {
            Some(precision) => precision.stored(parameters).at(&conversion.source)?,
            // Others do not know int8.
            None if conversion.to == Target::HfClip => checkpoints::without_levels(parameters),
            None => parameters,
        };
        let mut metadata = self.provenance();
        metadata.insert("format".to_owned(), format);
        metadata.insert("source".to_owned(), conversion.source.clone());
        may_be_written(folder, conversion.force)?;
        let staging = Staging::new(folder)?;
        self.write(&staging.path, &json, &parameters, &metadata)?;
        staging.replace(&FILES)?;
        Ok(notes)
    }

    /// The special ids of the tokenizer, where there is one.
    fn ends(&self) -> Result<Option<Ends>> {
        let Some(tokenizer) = &self.tokenizer else { return Ok(None) };
        let ids = tokenizer.encode(&[""])?.ids.to_vec::<i64>();
        let (Some(&start), Some(&end)) = (ids.first(), ids.last()) else { return Ok(None) };
        let largest = i64::try_from(tokenizer.vocabulary()).unwrap_or(i64::MAX) - 1;
        Ok(Some(Ends { start, end, pad: tokenizer.pad(), largest }))
    }
}

/// Refuses a folder that has files, unless they may be replaced. What a killed conversion left is nothing.
fn may_be_written(folder: &Path, force: bool) -> Result<()> {
    if !folder.exists() {
        return Ok(());
    }
    if !folder.is_dir() {
        return Err(Error::usage("a file, where a folder is to be written; name another with -o").at(folder));
    }
    files::remove_parts(folder)?;
    if !force && std::fs::read_dir(folder).at(folder)?.next().is_some() {
        return Err(
            Error::usage("there already, and not empty; name another folder with -o, or give --force").at(folder)
        );
    }
    Ok(())
}
