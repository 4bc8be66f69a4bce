//! The run directory.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};

use super::Config;
use crate::error::{At, Error, Result};

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

    /// # Errors
    /// If there is a run here.
    pub fn is_free(&self) -> Result<()> {
        if self.last().exists() || self.config().exists() {
            let why = "there is a run already: continue it with --resume, or choose another --out";
            return Err(Error::new(why).at(&self.0));
        }
        Ok(())
    }
}

/// Keeps other processes from training in a folder for as long as it lives. The system takes it back from a process that is killed.
pub struct Alone {
    _lock: File,
}

/// Makes the folder where there is none, and keeps others from training in it; where its file system knows no locks, nobody.
///
/// # Errors
/// If another process trains there, or the folder cannot be written.
pub fn alone(folder: &Path) -> Result<Alone> {
    std::fs::create_dir_all(folder).at(folder)?;
    let path = folder.join("lock");
    let lock = OpenOptions::new().write(true).create(true).truncate(false).open(&path).at(&path)?;
    match lock.try_lock() {
        Err(TryLockError::WouldBlock) => {
            Err(Error::new("another process trains here: wait until it has ended, or choose another --out").at(folder))
        }
        Ok(()) | Err(TryLockError::Error(_)) => Ok(Alone { _lock: lock }),
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
