//! What a run resumes from: parameters, moments, average, and where it stood, in one file.

use std::collections::BTreeMap;
use std::io::BufRead;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{At, Error, Result};
use crate::formats::{Weights, safetensors};
use crate::nn::Module;
use crate::optim::Optimiser;
use crate::pipeline::parameters;
use crate::tensor::Tensor;

/// Where a run stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Optimiser steps taken.
    pub step: u64,
    /// The epoch it is in.
    pub epoch: u64,
    /// Batches of that epoch that are done.
    pub batch: usize,
    /// The checkpoints that are kept, best first.
    pub kept: Vec<Kept>,
    /// Fingerprint of the tables.
    pub tables: u64,
}

/// A kept checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Kept {
    /// Its epoch, from 1.
    pub epoch: u64,
    /// What it is judged by; higher is better.
    pub score: f64,
}

impl Kept {
    /// Its file beside the last checkpoint.
    pub fn file(&self) -> String {
        format!("epoch-{:04}.safetensors", self.epoch)
    }
}

const STATE: &str = "state";

/// Writes everything to `path`, whole or not at all.
pub fn save(
    path: &Path,
    model: &mut dyn Module,
    optimiser: &Optimiser,
    average: Option<&BTreeMap<String, Tensor>>,
    state: &State,
) -> Result<()> {
    let mut tensors: Vec<(String, Tensor)> =
        parameters(model).into_iter().map(|(name, t)| (format!("model.{name}"), t)).collect();
    for (name, [m, v]) in &optimiser.state {
        tensors.push((format!("moment1.{name}"), m.clone()));
        tensors.push((format!("moment2.{name}"), v.clone()));
    }
    for (name, t) in average.into_iter().flatten() {
        tensors.push((format!("average.{name}"), t.clone()));
    }
    let text = serde_json::to_string(state).map_err(|e| Error::new(e.to_string()))?;
    let metadata = BTreeMap::from([(STATE.to_owned(), text)]);
    safetensors::save(path, tensors.iter().map(|(name, t)| (name.clone(), t)), &metadata)
}

/// Reads what [`save`] wrote into a model of the same sizes (trainable parameters stay trainable), its optimiser and average.
///
/// # Errors
/// If the file is damaged or of another model.
pub fn load(
    path: &Path,
    model: &mut dyn Module,
    optimiser: &mut Optimiser,
    mut average: Option<&mut BTreeMap<String, Tensor>>,
) -> Result<State> {
    let weights = Weights::open(path, false)?;
    let damaged = |what: String| Error::new(format!("{what}; this is not a checkpoint of this run")).at(path);
    let state: State = weights
        .metadata()
        .get(STATE)
        .and_then(|text| serde_json::from_str(text).ok())
        .ok_or_else(|| damaged("it does not say where the run stood".into()))?;
    let mut wrong = None;
    model.visit("", &mut |name, p| match weights.get(&format!("model.{name}")) {
        Some(t) if t.meta() == p.meta() => *p = if p.is_tracked() { t.trainable() } else { t.copied() },
        _ => wrong = Some(name.to_owned()),
    });
    if let Some(name) = wrong {
        return Err(damaged(format!("parameter {name} is missing or of another size")));
    }
    optimiser.steps = state.step;
    optimiser.state.clear();
    for (name, t) in weights.iter() {
        if let Some(name) = name.strip_prefix("moment1.") {
            let second = weights.get(&format!("moment2.{name}"));
            let second = second.ok_or_else(|| damaged(format!("moment2.{name} is missing")))?;
            optimiser.state.insert(name.to_owned(), [t.copied(), second.copied()]);
        } else if let Some((name, average)) = name.strip_prefix("average.").zip(average.as_deref_mut()) {
            average.insert(name.to_owned(), t.copied());
        }
    }
    Ok(state)
}

/// Cuts a log to its first `lines` lines: what a killed run wrote after its checkpoint is written again.
pub fn cut_log(path: &Path, lines: u64) -> Result<()> {
    let file = std::fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).at(path)?;
    let (mut reader, mut line) = (std::io::BufReader::new(&file), Vec::new());
    let mut bytes = 0;
    for number in 0..lines {
        line.clear();
        bytes += reader.read_until(b'\n', &mut line).at(path)? as u64;
        if line.last() != Some(&b'\n') {
            return Err(Error::new(format!(
                "{number} whole lines, but the checkpoint stands after {lines}: the log was cut"
            ))
            .at(path));
        }
    }
    file.set_len(bytes).at(path)
}
