//! The run directory.

use std::path::{Path, PathBuf};

use super::Config;
use crate::error::Result;

/// Files of a run directory.
pub(super) struct Folder(pub PathBuf);

impl Folder {
    pub fn config(&self) -> PathBuf {
        self.0.join("config.toml")
    }
    pub fn splits(&self) -> PathBuf {
        self.0.join("splits.csv")
    }
    pub fn log(&self) -> PathBuf {
        self.0.join("log.jsonl")
    }
    pub fn model(&self) -> PathBuf {
        self.0.join("model")
    }
    pub fn checkpoints(&self) -> PathBuf {
        self.0.join("checkpoints")
    }
    pub fn last(&self) -> PathBuf {
        self.checkpoints().join("last.safetensors")
    }
}

/// The seed of the run that this model, or file of weights, is of; [`None`] if it lies in no run directory.
///
/// # Errors
/// If the run's config.toml cannot be read.
pub fn seed_of(model: &Path) -> Result<Option<u64>> {
    // RUN/model, RUN/model/model.safetensors, RUN/checkpoints/epoch-NNNN.safetensors.
    let runs = model.ancestors().take(3).map(|place| Folder(place.to_path_buf()));
    let run = runs.into_iter().find(|run| run.config().is_file() && run.splits().is_file());
    run.map(|run| Ok(Config::read(Some(&run.config()), &[])?.seed)).transpose()
}
