//! The loop: epochs of steps, validation, checkpoints, and the way back into them.

mod finish;
mod steps;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use super::average::Average;
use super::checkpoint::{self, Kept, State};
use super::finite;
use super::folder::{Folder, alone};
use super::log::{Log, Record};
use super::memory::{self, Peak};
use super::setup::{Source, adopt, network, tokenizer};
use super::step::Values;
use super::tables::Tables;
use super::validate::Validator;
use super::{Config, Objective};
use crate::data::{Loader, LoaderOptions};
use crate::device::Gpu;
use crate::error::{At, Error, Result};
use crate::files;
use crate::formats::safetensors;
use crate::memory::Estimate;
use crate::nn::Module;
use crate::optim::{Norm, Optimiser};
use crate::pipeline::{Holding, Network, Origin, Pipeline};
use crate::tape::Grads;
use crate::text::Tokenizer;

pub(super) use steps::pairs;

/// Who looks on: told what happens, and asked whether to stop.
pub trait Watch {
    /// A line for a person.
    fn say(&self, line: &str);
    /// A step is done, of `total`.
    fn step(&self, record: &Record, total: u64);
    /// Finish the step, save, and return.
    fn stop(&self) -> bool;
}

/// How a run ended.
pub struct Outcome {
    /// Whether it took all its steps, or was stopped and can be resumed.
    pub finished: bool,
    /// Every line of its log.
    pub records: Vec<Record>,
    /// The kept checkpoints, best first.
    pub kept: Vec<Kept>,
    /// Memory, predicted and measured.
    pub memory: Peak,
}

/// Starts a run in a new directory, on a device where one is given.
///
/// # Errors
/// If the directory holds a run, another process trains in it, the configuration or a table is wrong, or a file cannot be read or written.
pub fn start(mut config: Config, out: &Path, workers: usize, gpu: Option<&Gpu>, watch: &dyn Watch) -> Result<Outcome> {
    let folder = Folder(out.to_path_buf());
    folder.is_free()?;
    for path in [
        Some(&mut config.data.pairs),
        config.data.labels.as_mut(),
        config.data.prompts.as_mut(),
        config.data.boxes.as_mut(),
        config.data.init.as_mut(),
        config.data.init_image.as_mut(),
        config.data.init_text.as_mut(),
        config.tokenizer.path.as_mut(),
    ]
    .into_iter()
    .flatten()
    {
        *path = std::fs::canonicalize(&*path).at(&*path)?;
    }
    let sources = Source::all(&config)?;
    adopt(&mut config, &sources)?;
    config.check()?;
    let tables = Tables::open(&config)?;
    let tokenizer = tokenizer(&mut config, &tables)?;
    config.model = config.model.in_full();
    let estimate = fitting(&config, &tables, tokenizer.as_ref(), workers, gpu, out, watch)?;
    let network = network(&config, &tables, &sources)?;
    drop(sources);
    let _alone = alone(out)?;
    // Nor did another process begin meanwhile.
    folder.is_free()?;
    std::fs::create_dir_all(folder.checkpoints()).at(folder.checkpoints())?;
    let mut pipeline = pipeline(&config, &folder, network, tokenizer);
    pipeline.save(&folder.model(), None)?;
    tables.write_splits(&folder.splits())?;
    files::write_atomic(folder.config(), config.to_toml()?.as_bytes())?;
    let (written, log) = (folder.config(), folder.log());
    let run = Run::new(config, folder, tables, pipeline, estimate, gpu, watch);
    run.and_then(|run| run.go(State::default(), workers)).inspect_err(|_| {
        // Of a run that took no step nothing is to be continued: the command begins anew once it is corrected.
        if std::fs::metadata(log).is_ok_and(|log| log.len() == 0) {
            let _ = std::fs::remove_file(written);
        }
    })
}

/// Continues the run of a directory from its last checkpoint, to the same bits as if it had never stopped, on the device that it began on.
///
/// # Errors
/// If there is no run, another process trains it, or its tables have changed since.
pub fn resume(out: &Path, workers: usize, gpu: Option<&Gpu>, watch: &dyn Watch) -> Result<Outcome> {
    let folder = Folder(out.to_path_buf());
    if !folder.config().exists() {
        return Err(Error::new("no run to resume here (no config.toml): start one without --resume").at(out));
    }
    let _alone = alone(out)?;
    let mut config = Config::read(Some(&folder.config()), &[])?;
    config.check()?;
    let tables = Tables::open(&config)?;
    let tokenizer = match config.objective {
        Objective::Clip => {
            Some(Tokenizer::open(&folder.model().join("tokenizer.json"), Some(config.model.text.max_length()))?)
        }
        Objective::Supervised => tokenizer(&mut config, &tables)?,
    };
    // A checkpoint has all weights.
    let sources = if folder.last().exists() { Vec::new() } else { Source::all(&config)? };
    let estimate = fitting(&config, &tables, tokenizer.as_ref(), workers, gpu, out, watch)?;
    let network = network(&config, &tables, &sources)?;
    drop(sources);
    for part in [folder.0.clone(), folder.checkpoints(), folder.model()].iter().filter(|part| part.is_dir()) {
        files::remove_parts(part)?;
    }
    let pipeline = pipeline(&config, &folder, network, tokenizer);
    let mut run = Run::new(config, folder, tables, pipeline, estimate, gpu, watch)?;
    let state = if run.folder.last().exists() {
        let path = run.folder.last();
        let state = checkpoint::load(&path, &mut run.pipeline.network, &mut run.optimiser, run.average.as_mut())?;
        if state.tables != run.tables.fingerprint {
            return Err(Error::new(
                "the tables have changed since this run began: restore them, or start a new run with --init on its model",
            )
            .at(out));
        }
        watch.say(&format!("resuming after step {}", state.step));
        state
    } else {
        watch.say("no checkpoint yet: starting again from the first step");
        State::default()
    };
    run.go(state, workers)
}

/// What the run takes, which is said, and fits.
fn fitting(
    config: &Config,
    tables: &Tables,
    tokenizer: Option<&Tokenizer>,
    workers: usize,
    gpu: Option<&Gpu>,
    out: &Path,
    watch: &dyn Watch,
) -> Result<Estimate> {
    // A run before in this process may have left blocks that the estimate does not know.
    crate::buffer::release();
    let estimate = memory::estimate(config, tables, tokenizer, workers)?;
    watch.say(&estimate.describe(gpu));
    memory::check(config, &estimate, gpu).at(out)?;
    Ok(estimate)
}

fn pipeline(config: &Config, folder: &Folder, network: Network, tokenizer: Option<Tokenizer>) -> Pipeline {
    Pipeline {
        path: folder.model(),
        network,
        tokenizer,
        preprocess: config.preprocess(),
        sixteen_bit: config.image.sixteen_bit,
        origin: Origin::default(),
        holding: Holding::default(),
    }
}

struct Run<'a> {
    config: Config,
    folder: Folder,
    tables: Tables,
    pipeline: Pipeline,
    optimiser: Optimiser,
    /// Moving average of the parameters.
    average: Option<Average>,
    /// Of its memory.
    estimate: Estimate,
    /// Where the network lives, if not here.
    gpu: Option<Gpu>,
    watch: &'a dyn Watch,
    log: Log,
    records: Vec<Record>,
}

impl<'a> Run<'a> {
    fn new(
        config: Config,
        folder: Folder,
        tables: Tables,
        mut pipeline: Pipeline,
        estimate: Estimate,
        gpu: Option<&Gpu>,
        watch: &'a dyn Watch,
    ) -> Result<Self> {
        if let Some(gpu) = gpu {
            pipeline.network.visit_all("", &mut |_, p| {
                let there = p.to_device(gpu);
                *p = if p.is_tracked() { there.trainable() } else { there };
            });
        }
        let average = (config.train.ema > 0.0).then(|| Average::new(&mut pipeline.network));
        let log = Log::open(folder.log())?;
        let optimiser = Optimiser::new(config.optimiser.clone());
        let gpu = gpu.cloned();
        Ok(Self {
            config,
            folder,
            tables,
            pipeline,
            optimiser,
            average,
            estimate,
            gpu,
            watch,
            log,
            records: Vec::new(),
        })
    }

    fn go(mut self, mut state: State, workers: usize) -> Result<Outcome> {
        state.tables = self.tables.fingerprint;
        // One line a step.
        self.records = self.log.cut(state.step)?;
        let notes = std::mem::take(&mut self.tables.notes);
        notes.iter().for_each(|note| self.watch.say(note));
        let (config, t) = (self.config.clone(), self.config.train.clone());
        let options = LoaderOptions {
            batch: t.batch,
            seed: config.seed,
            shuffle: true,
            drop_last: true,
            augment: Some(config.augment.clone()),
            views: if config.objective == Objective::Clip { t.views } else { 1 },
            preprocess: self.pipeline.preprocess.clone(),
            sixteen_bit: config.image.sixteen_bit,
            workers,
            cache_mib: config.image.cache_mib,
            doubts: false,
            skip_broken: false,
        };
        let loader = Loader::new(self.tables.train.iter().map(|row| row.path()).collect(), options)?;
        let validator = Validator::new(&self.pipeline, &self.tables, &config, workers)?;
        let batches = loader.batches();
        let steps_per_epoch = batches.div_ceil(t.accumulate) as u64;
        let total = t.epochs * steps_per_epoch;
        let mut parameters = 0;
        self.pipeline.network.visit("", &mut |_, p| parameters += p.numel());
        self.watch.say(&format!(
            "{} training pairs, {} to validate; {} parameters; {} epochs of {steps_per_epoch} steps",
            self.tables.train.len(),
            self.tables.val.len(),
            parameters,
            t.epochs
        ));
        while state.epoch < t.epochs {
            let mut began = Instant::now();
            let mut sum: Option<(Grads, Vec<Values>)> = None;
            let (mut coming, mut ahead) = (loader.epoch(state.epoch, state.batch), None);
            while let Some(batch) = ahead.take().or_else(|| self.batch(&mut coming, state.step)) {
                let (rows, examples) = batch?;
                let items = rows.len();
                let lr = config.schedule.at(state.step, total);
                state.batch += 1;
                let (parts, count, [grad_norm, logit_scale]) = if t.step_in_backward {
                    let (parts, norm) = self.step_in_backward(&rows, &examples, lr, state.step)?;
                    (parts, 1, self.values(&norm, &[]))
                } else {
                    let one = self.gradients(&examples)?;
                    let check = |run: &mut Self, values: [f64; 2], step: u64| run.check(&rows, &examples, values, step);
                    let alone = sum.is_none() && (t.accumulate == 1 || state.batch >= batches);
                    // A device is asked for a step that nothing is added to before its loss and norm are looked at: where one of them is not finite, it
                    // changes nothing.
                    let norm = (alone || t.check_finite).then(|| Norm::beside(&one.grads, one.values.total()));
                    let late = alone && one.values.may_be_finite() && norm.as_ref().is_some_and(Norm::is_there);
                    if let Some(norm) = norm.as_ref().filter(|_| !late) {
                        check(&mut self, [one.values.parts().total, norm.value()], state.step)?;
                    }
                    let (grads, values) = match sum.take() {
                        None => (one.grads, vec![one.values]),
                        Some((mut grads, mut values)) => {
                            grads.merge(one.grads);
                            values.push(one.values);
                            (grads, values)
                        }
                    };
                    let count = values.len();
                    if count < t.accumulate && state.batch < batches {
                        sum = Some((grads, values));
                        continue;
                    }
                    let norm = self.apply(grads, count, norm.filter(|_| alone), lr)?;
                    if late {
                        // The device has something to do until its values are there.
                        ahead = self.batch(&mut coming, state.step + 1);
                    }
                    let numbers = self.values(&norm, &values);
                    let parts = values.iter().map(Values::parts).reduce(|sum, one| sum.plus(&one)).unwrap_or_default();
                    if late {
                        check(&mut self, [parts.total, numbers[0]], state.step)?;
                    }
                    (parts, count, numbers)
                };
                state.step += 1;
                let parts = parts.times(1.0 / count as f64);
                let mut record = Record {
                    step: state.step,
                    epoch: state.epoch + 1,
                    loss: parts.total,
                    loss_clip: parts.clip,
                    patch_entropy: parts.patch_entropy,
                    token_entropy: parts.token_entropy,
                    lr,
                    grad_norm,
                    logit_scale,
                    validation: None,
                    items_per_s: (items * count) as f64 / began.elapsed().as_secs_f64(),
                };
                let epoch_done = state.batch >= batches;
                if epoch_done {
                    let (finite, validation) = self.as_saved(|pipeline, tables, config| {
                        let finite = finite::parameters(&mut pipeline.network).is_empty();
                        let validation = if finite { validator.validate(pipeline, tables, config) } else { Ok(None) };
                        (finite, validation)
                    });
                    record.validation = validation.map_err(|e| self.tables.told(&self.config.data.pairs, e))?;
                    self.keep(&mut state, &record, finite)?;
                    state.epoch += 1;
                    state.batch = 0;
                }
                self.log.write(&record)?;
                self.watch.step(&record, total);
                self.records.push(record);
                let due = t.checkpoint_steps > 0 && state.step.is_multiple_of(t.checkpoint_steps);
                let stop = self.watch.stop();
                if epoch_done || due || stop {
                    self.save(&state)?;
                    self.forget(&state)?;
                }
                if stop && state.epoch < t.epochs {
                    return self.end(false, state);
                }
                began = Instant::now();
            }
        }
        // The model folder holds the best checkpoint.
        let best = state.kept.first();
        if let Some(best) = best {
            self.publish(best)?;
        }
        let judged = if best.is_some_and(|best| best.score.is_some()) { self.judge(workers)? } else { None };
        self.report(&state, &notes, judged)?;
        self.end(true, state)
    }

    /// Says and writes down what memory it took.
    fn end(self, finished: bool, state: State) -> Result<Outcome> {
        let memory = Peak::now(self.estimate);
        memory.describe().iter().for_each(|line| self.watch.say(line));
        let text = serde_json::to_string(&memory).map_err(|e| Error::new(e.to_string()))?;
        files::write_atomic(self.folder.0.join("memory.json"), format!("{text}\n").as_bytes())?;
        Ok(Outcome { finished, records: self.records, kept: state.kept, memory })
    }

    /// Runs `f` on the model as it would be saved: the averaged parameters where there are some, and no graph.
    fn as_saved<R>(&mut self, f: impl FnOnce(&mut Pipeline, &Tables, &Config) -> R) -> R {
        let mut own = Vec::new();
        let average = self.average.as_ref();
        self.pipeline.network.visit("", &mut |name, p| {
            let saved = average.and_then(|a| a.0.get(name).cloned()).unwrap_or_else(|| p.detach());
            own.push(std::mem::replace(p, saved));
        });
        let result = f(&mut self.pipeline, &self.tables, &self.config);
        let mut own = own.into_iter();
        self.pipeline.network.visit("", &mut |_, p| *p = own.next().expect("as many as before"));
        result
    }

    /// Keeps the model of this epoch, which may not be `finite`, if it is among the best.
    fn keep(&mut self, state: &mut State, record: &Record, finite: bool) -> Result<()> {
        // Without validation the last epoch is the best.
        let score = match &record.validation {
            None => finite.then_some(record.epoch as f64),
            Some(validation) => validation.score(),
        };
        if score.is_none() {
            let epoch = record.epoch;
            self.watch.say(&format!(
                "the model of epoch {epoch}, or what judges it, is not finite: every epoch that is counts as better"
            ));
        }
        let checkpoint = Kept { epoch: record.epoch, score };
        let path = self.folder.checkpoints().join(checkpoint.file());
        if !state.keep(checkpoint, self.config.train.keep) {
            return Ok(());
        }
        let tensors = crate::pipeline::tensors_with(&mut self.pipeline.network, self.average.as_ref().map(|a| &a.0));
        safetensors::save(&path, tensors.iter().map(|(name, t)| (name.clone(), t)), &BTreeMap::new())?;
        Ok(())
    }

    /// Removes epochs that are no longer kept; after the checkpoint that says so is written.
    fn forget(&self, state: &State) -> Result<()> {
        let folder = self.folder.checkpoints();
        let kept: Vec<String> = state.kept.iter().map(Kept::file).collect();
        for entry in std::fs::read_dir(&folder).at(&folder)? {
            let entry = entry.at(&folder)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with("epoch-") && !kept.contains(&name) {
                std::fs::remove_file(entry.path()).at(entry.path())?;
            }
        }
        Ok(())
    }

    fn save(&mut self, state: &State) -> Result<()> {
        if self.config.train.check_finite {
            let broken = finite::parameters(&mut self.pipeline.network);
            if let Some(name) = broken.first() {
                return Err(Error::new(format!(
                    "after step {} {name} and {} other tensors of the model are not finite: the checkpoint before is kept. Lower schedule.lr",
                    state.step,
                    broken.len() - 1
                ))
                .at(&self.folder.0));
            }
        }
        self.log.sync()?;
        checkpoint::save(&self.folder.last(), &mut self.pipeline.network, &self.optimiser, self.average.as_ref(), state)
    }
}
