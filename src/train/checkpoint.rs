//! What a run resumes from: parameters and buffers, moments, average, and where it stood, in one file.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::average::Average;
use crate::device::Gpu;
use crate::error::{At, Error, Result};
use crate::formats::{Weights, safetensors};
use crate::nn::Module;
use crate::optim::Optimiser;
use crate::pipeline::tensors;
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
    /// What it is judged by; higher is better. None where that was not finite, or nothing to judge by.
    pub score: Option<f64>,
}

impl State {
    /// Whether a checkpoint is among the best `most`, where it then stands: those without a score last, of these the latest first.
    pub(super) fn keep(&mut self, checkpoint: Kept, most: usize) -> bool {
        let better = |k: &Kept| checkpoint.score > k.score || checkpoint.score.is_none() && k.score.is_none();
        let place = self.kept.iter().position(better).unwrap_or(self.kept.len());
        self.kept.insert(place, checkpoint);
        self.kept.truncate(most);
        place < most
    }
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
    average: Option<&Average>,
    state: &State,
) -> Result<()> {
    let mut tensors: Vec<(String, Tensor)> =
        tensors(model).into_iter().map(|(name, t)| (format!("model.{name}"), t)).collect();
    for (name, [m, v]) in &optimiser.state {
        tensors.push((format!("moment1.{name}"), m.clone()));
        tensors.push((format!("moment2.{name}"), v.clone()));
    }
    for (name, t) in average.iter().flat_map(|a| &a.0) {
        tensors.push((format!("average.{name}"), t.clone()));
    }
    let text = serde_json::to_string(state).map_err(|e| Error::new(e.to_string()))?;
    let metadata = BTreeMap::from([(STATE.to_owned(), text)]);
    safetensors::save(path, tensors.iter().map(|(name, t)| (name.clone(), t)), &metadata)
}

/// Reads what [`save`] wrote into a model of the same sizes (trainable parameters stay trainable, and where they live), its optimiser and
/// average.
///
/// # Errors
/// If the file is damaged or of another model.
pub fn load(
    path: &Path,
    model: &mut dyn Module,
    optimiser: &mut Optimiser,
    mut average: Option<&mut Average>,
) -> Result<State> {
    // Read tensor by tensor past the mapping, so that nothing is in memory twice.
    let weights = Weights::open(path, true)?;
    let damaged = |what: String| Error::new(format!("{what}; this is not a checkpoint of this run")).at(path);
    let state: State = weights
        .metadata()
        .get(STATE)
        .and_then(|text| serde_json::from_str(text).ok())
        .ok_or_else(|| damaged("it does not say where the run stood".into()))?;
    let (mut wrong, mut gpu) = (None, None);
    let there = |t: Tensor, gpu: Option<&Gpu>| match gpu {
        Some(gpu) => t.to_device(gpu),
        None => t,
    };
    model.visit_all("", &mut |name, p| match weights.read(&format!("model.{name}")) {
        Ok(Some(t)) if t.meta() == p.meta() => {
            gpu = gpu.take().or_else(|| p.device().cloned());
            let t = there(t, p.device());
            *p = if p.is_tracked() { t.trainable() } else { t };
        }
        Ok(_) => wrong = Some(damaged(format!("tensor {name} is missing or of another size"))),
        Err(e) => wrong = Some(e.at(path)),
    });
    if let Some(error) = wrong {
        return Err(error);
    }
    optimiser.steps = state.step;
    optimiser.state.clear();
    let read = |name: &str| -> Result<Tensor> {
        let read = weights.read(name).at(path)?;
        Ok(there(read.ok_or_else(|| damaged(format!("tensor {name} is missing")))?, gpu.as_ref()))
    };
    for (full, _) in weights.metas() {
        if let Some(name) = full.strip_prefix("moment1.") {
            let moments = [read(full)?, read(&format!("moment2.{name}"))?];
            optimiser.state.insert(name.to_owned(), moments);
        } else if let Some((name, average)) = full.strip_prefix("average.").zip(average.as_deref_mut()) {
            average.0.insert(name.to_owned(), read(full)?);
        }
    }
    Ok(state)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;
    use crate::nn::{BatchNorm, Linear, Source};
    use crate::optim::OptimiserConfig;
    use crate::pipeline::tensors_with;
    use crate::rng::Rng;

    /// The least that has a buffer.
    struct Net {
        linear: Linear,
        norm: BatchNorm,
    }

    impl Module for Net {
        fn visit(&mut self, at: &str, f: &mut dyn FnMut(&str, &mut Tensor)) {
            self.linear.visit(&format!("{at}linear"), f);
            self.norm.visit(&format!("{at}norm"), f);
        }

        fn visit_buffers(&mut self, at: &str, f: &mut dyn FnMut(&str, &mut Tensor)) {
            self.norm.visit_buffers(&format!("{at}norm"), f);
        }
    }

    struct Run {
        net: Net,
        optimiser: Optimiser,
        average: Average,
    }

    impl Run {
        fn new(seed: u64) -> Self {
            let source = Source::drawn(seed, DType::F32);
            let linear = Linear::new(&source.params(), "linear", [4, 3], true, 0.5).unwrap();
            let norm = BatchNorm::new(&source.params(), "norm", 3, 1e-5).unwrap();
            let mut net = Net { linear, norm };
            net.visit("", &mut |_, p| *p = p.trainable());
            let average = Average::new(&mut net);
            Self { net, optimiser: Optimiser::new(OptimiserConfig::default()), average }
        }

        fn step(&mut self) {
            let mut rng = Rng::new(9, self.optimiser.steps);
            let x = Tensor::randn([6, 4], DType::F32, &mut rng).affine(2.0, 1.0);
            let y = self.net.norm.forward_train(&self.net.linear.forward(&x, None));
            let loss = (y - Tensor::randn([6, 3], DType::F32, &mut rng)).square().mean_all();
            self.optimiser.step(&mut self.net, loss.backward(), 0.1).unwrap();
            self.average.follow(&mut self.net, 0.9, self.optimiser.steps);
        }

        fn values(&mut self) -> BTreeMap<String, Vec<f64>> {
            let own = tensors(&mut self.net).into_iter().map(|(name, t)| (name, t.to_f64_vec()));
            let average = self.average.0.iter().map(|(name, t)| (format!("average {name}"), t.to_f64_vec()));
            own.chain(average).collect()
        }
    }

    #[test]
    fn an_epoch_without_a_finite_score_is_behind_every_other() {
        let mut state = State::default();
        let scores = [None, Some(-3.0), None, Some(-2.0), Some(-2.0), Some(-9.0)];
        let kept: Vec<bool> = (1..).zip(scores).map(|(epoch, score)| state.keep(Kept { epoch, score }, 4)).collect();
        assert_eq!(kept, [true; 6]);
        assert!(!state.keep(Kept { epoch: 7, score: None }, 4));
        // Of equal scores the earlier.
        assert_eq!(state.kept.iter().map(|k| k.epoch).collect::<Vec<_>>(), [4, 5, 2, 6]);
        let text = serde_json::to_string(&state).unwrap();
        assert_eq!(serde_json::from_str::<State>(&text).unwrap(), state);
    }

    #[test]
    fn running_statistics_are_kept_and_the_average_goes_with_the_latest() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("last.safetensors");
        let mut whole = Run::new(1);
        (0..3).for_each(|_| whole.step());
        let state = State { step: 3, ..State::default() };
        save(&path, &mut whole.net, &whole.optimiser, Some(&whole.average), &state).unwrap();

        let mut resumed = Run::new(2);
        let r = &mut resumed;
        assert_eq!(load(&path, &mut r.net, &mut r.optimiser, Some(&mut r.average)).unwrap(), state);
        assert_eq!(resumed.values(), whole.values());
        assert!(resumed.net.norm.running_mean.to_f64_vec().iter().all(|&mean| mean != 0.0));
        (0..3).for_each(|_| (resumed.step(), whole.step()).1);
        assert_eq!(resumed.values(), whole.values());

        // What a kept epoch holds.
        let kept: BTreeMap<_, _> = tensors_with(&mut whole.net, Some(&whole.average.0)).into_iter().collect();
        assert_eq!(kept.len(), 6);
        for (name, t) in &kept {
            let buffer = name.starts_with("norm.running");
            assert_eq!(whole.average.0.contains_key(name), !buffer, "{name}");
            assert_eq!(whole.optimiser.state.contains_key(name), !buffer, "{name}");
            let latest = whole.values()[name] == t.to_f64_vec();
            assert_eq!(latest, buffer, "{name}");
        }

        // A file without them is of another model.
        let left: Vec<_> = tensors(&mut whole.net).into_iter().filter(|(name, _)| name != "norm.running_var").collect();
        let metadata = BTreeMap::from([(STATE.to_owned(), serde_json::to_string(&state).unwrap())]);
        safetensors::save(&path, left.iter().map(|(n, t)| (format!("model.{n}"), t)), &metadata).unwrap();
        let error = load(&path, &mut resumed.net, &mut resumed.optimiser, None).unwrap_err().to_string();
        assert!(error.contains("tensor norm.running_var is missing"), "{error}");
    }
}
