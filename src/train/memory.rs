//! How much memory a run takes: counted before it starts, compared with what there is, measured at its end.

use std::collections::BTreeSet;

use kernels_cpu::par;
use serde::Serialize;

use super::average::Average;
use super::setup::network;
use super::step::{self, Examples, Pairs};
use super::tables::Tables;
use super::{Config, Objective, validate};
use crate::buffer::counted;
use crate::data::{Row, loader};
use crate::device::Gpu;
use crate::dtype::DType;
use crate::error::Result;
use crate::memory::{Estimate, mib};
use crate::models::Planned;
use crate::models::dual_encoder::Embeddings;
use crate::nn::Module;
use crate::optim::{Norm, Optimiser};
use crate::pipeline::{self, Network, Pictures, TEXTS_AT_ONCE, tensors};
use crate::process;
use crate::tape::Grads;
use crate::tensor::Tensor;
use crate::text::Tokenizer;

/// Of the program's own file and its threads, what comes to memory while it trains, validates and draws.
const PROGRAM: u64 = 6 << 20;
/// What drawing the charts of the report takes: a sheet of fine pixels, and two pictures of it.
const CHARTS: [u64; 2] = [35 << 20, 17 << 20];
/// What the heat maps take that are painted for it, where boxes judge them.
const PAINTED: u64 = 4 << 20;

/// What is written: checkpoints, or in the end the charts. Glibc's allocator keeps freed blocks of up to 32 MiB, for others that are not larger.
fn written(checkpoint: u64) -> u64 {
    let [fine, pictures] = CHARTS;
    let kept = if checkpoint < 32 << 20 { checkpoint } else { 0 };
    let beside = if kept < pictures / 2 { pictures + kept } else { pictures.max(kept) };
    checkpoint.max(fine + beside)
}

/// What was predicted, and what it came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Peak {
    /// In bytes.
    pub predicted: u64,
    /// Most that the process had, where the system tells.
    pub measured: Option<u64>,
    /// The prediction's parts.
    pub parts: Estimate,
    /// Of `parts.tensors`, what it came to; with the batches that were loaded ahead.
    pub tensors_measured: u64,
}

impl Peak {
    /// Measured now.
    pub(super) fn now(parts: Estimate) -> Self {
        let tensors_measured = crate::buffer::memory().held as u64;
        Self { predicted: parts.total(), measured: process::most_resident(), parts, tensors_measured }
    }

    /// In words.
    pub(super) fn describe(&self) -> Option<String> {
        let measured = self.measured?;
        Some(format!("memory: {} at most, {} were predicted", mib(measured), mib(self.predicted)))
    }
}

/// What a run of this configuration takes. To be asked before its network is made.
pub(super) fn estimate(
    config: &Config,
    tables: &Tables,
    tokenizer: Option<&Tokenizer>,
    workers: usize,
) -> Result<Estimate> {
    let [checkpoint, tensors, beside] = tensor_memory(config, tables, tokenizer)?;
    let t = &config.train;
    let p = config.preprocess();
    let views = if config.objective == Objective::Clip { t.views } else { 1 };
    let batch = (4 * t.batch * views * p.numel()) as u64;
    let loader = batch * loader::held(usize::MAX, workers) as u64;
    let kept = |rows: &[Row], size: u64| {
        let files: BTreeSet<&str> = rows.iter().map(|row| row.image.as_str()).collect();
        (files.len() as u64 * size).min((config.image.cache_mib as u64) << 20)
    };
    let Pictures { decoding, long, largest, unread } = Pictures::look(tables.train.iter().map(Row::path), p.resize);
    if let Some(error) = unread {
        return Err(tables.told(&config.data.pairs, error));
    }
    let seen = (p.channels * p.crop * p.crop) as u64;
    let resized = (p.channels * p.resize * long) as u64;
    let pictures = kept(&tables.train, resized) + kept(&tables.val, seen) + workers.max(1) as u64 * decoding;
    let process = process::resident().unwrap_or(64 << 20) + PROGRAM;
    // The finished model is opened to be judged; a checkpoint has two moments beside it.
    let [weights, painted] = if tables.boxes.is_some() { [checkpoint / 3, PAINTED] } else { [0; 2] };
    let aside = written(checkpoint) + beside + painted;
    Ok(Estimate { process, weights, tensors, loader, pictures, aside, largest })
}

/// Refuses a run that this machine, or the device that it is on, cannot hold.
///
/// # Errors
/// With the numbers, and what takes less.
pub(super) fn check(config: &Config, estimate: &Estimate, gpu: Option<&Gpu>) -> Result<()> {
    let t = &config.train;
    if !t.check_memory {
        return Ok(());
    }
    let part = if t.micro_batch == 0 { t.batch } else { t.micro_batch };
    let remedy = format!(
        "Compute fewer pairs at once with train.micro_batch (now {part} of {}; the same gradient), or lower train.batch and raise \
         train.accumulate; fewer --workers, a smaller image.cache_mib, model or picture take less too. train.check_memory = false would \
         start all the same",
        t.batch
    );
    estimate.fits(gpu, "this run", &remedy)
}

/// Gives the size of a checkpoint, the most that the pool holds, and what is packed and worked in beside it, in bytes.
fn tensor_memory(config: &Config, tables: &Tables, tokenizer: Option<&Tokenizer>) -> Result<[u64; 3]> {
    let t = &config.train;
    let texts = |rows: &[Row], n: usize| -> Result<Option<[Tensor; 2]>> {
        let Some(tokenizer) = tokenizer else { return Ok(None) };
        let dims = [n, pipeline::longest(tokenizer, rows.iter().map(|row| row.text.as_str()))?.ids.dims()[1]];
        Ok(Some([Tensor::zeros(dims, DType::I64), Tensor::full(dims, 1.0, DType::U8)]))
    };
    let batches = tables.train.len() / t.batch;
    let rehearsal = Rehearsal {
        steps: t.epochs.saturating_mul(batches.div_ceil(t.accumulate) as u64),
        accumulate: t.accumulate.min(batches),
        judged: t.batch.min(tables.val.len()),
        texts: [texts(&tables.train, t.batch)?, texts(&tables.val, t.batch.min(tables.val.len()))?],
        scored: validate::labelled(tables, config).count(),
        prompts: match (tokenizer, &tables.prompts) {
            (Some(tokenizer), Some(prompts)) => {
                let texts = prompts.texts();
                let tokens = texts.chunks(TEXTS_AT_ONCE).map(|texts| tokenizer.encode(texts));
                tokens.map(|tokens| tokens.map(|tokens| [tokens.ids, tokens.mask])).collect::<Result<_>>()?
            }
            _ => Vec::new(),
        },
    };
    let (checkpoint, memory) = par::enter(|| counted(|| rehearsal.run(config, &mut network(config, tables, &[])?)));
    Ok([checkpoint?, memory.held, memory.beside].map(|bytes| bytes as u64))
}

/// A run in short.
struct Rehearsal {
    /// Optimiser steps; two are as good as many, since from the second on there are moments.
    steps: u64,
    /// Batches for each, of which two are as good as many.
    accumulate: usize,
    /// Rows in a batch of validation.
    judged: usize,
    /// Ids and mask of training and of validation.
    texts: [Option<[Tensor; 2]>; 2],
    /// Rows of validation that are scored.
    scored: usize,
    /// Ids and mask of the prompts that they are scored by, batch by batch.
    prompts: Vec<[Tensor; 2]>,
}

impl Rehearsal {
    /// What a run does to its network, as far as memory is concerned: steps, and a batch of validation. Gives the size of a checkpoint.
    fn run(&self, config: &Config, network: &mut Network) -> Result<usize> {
        let t = &config.train;
        let mut average = (t.ema > 0.0).then(|| Average::new(network));
        let mut optimiser = Optimiser::new(config.optimiser.clone());
        for _ in 0..self.steps.min(2) {
            if t.step_in_backward {
                let examples = examples(config, network, self.texts[0].as_ref());
                t.within(|| examples.step_in_backward(network, &config.tier, &mut optimiser, 0.0))?;
            } else {
                self.step(config, network, &mut optimiser)?;
            }
            if let Some(average) = &mut average {
                average.follow(network, t.ema, optimiser.steps);
            }
        }
        let bytes = |x: &Tensor| x.meta().bytes();
        let averages: usize = average.iter().flat_map(|a| a.0.values()).map(bytes).sum();
        let moments: usize = optimiser.state.values().flatten().map(bytes).sum();
        let checkpoint = tensors(network).iter().map(|(_, x)| bytes(x)).sum::<usize>() + averages + moments;
        network.visit("", &mut |_, p| *p = p.detach());
        judge(config, network, self.texts[1].as_ref(), self.judged);
        self.score(config, network);
        Ok(checkpoint)
    }

    /// As [`measure`](crate::eval::measure::measure) does, whose third batch is as all after it.
    fn score(&self, config: &Config, network: &Network) {
        let n = config.train.batch.min(self.scored);
        let batches = 0..self.scored.checked_div(n).unwrap_or(0).min(3);
        let planned = Planned::new(network);
        let Network::Dual(model) = network else {
            batches.for_each(|_| drop(planned.whole_images(&pixels(config, n))));
            return;
        };
        let of_prompts = Planned::new(network);
        self.prompts.iter().for_each(|[ids, mask]| drop(of_prompts.whole_texts(ids, mask)));
        // Whole images and texts, all joined, and normalised.
        let _kept = Tensor::zeros([3, 2, self.scored, model.config().joint], DType::F32);
        for _ in batches {
            let _images = planned.encode_image(&pixels(config, n));
            let Some([ids, mask]) = &self.texts[1] else { continue };
            let (of_texts, rows) = (Planned::new(network), ids.dims()[0].min(n));
            let at_once = |x: &Tensor, first: usize| x.narrow(0, first, TEXTS_AT_ONCE.min(rows - first)).copied();
            let said = |first| of_texts.encode_text(&at_once(ids, first), &at_once(mask, first));
            let _texts: Vec<Embeddings> = (0..rows).step_by(TEXTS_AT_ONCE).map(said).collect();
        }
    }

    /// A step after the backward passes of its batches.
    fn step(&self, config: &Config, network: &mut Network, optimiser: &mut Optimiser) -> Result<()> {
        let (t, mut grads) = (&config.train, Grads::default());
        for _ in 0..self.accumulate.min(2) {
            let examples = examples(config, network, self.texts[0].as_ref());
            let step = || examples.step(network, &config.tier, t.micro_batch);
            grads.merge(t.within(step)?.grads);
        }
        if self.accumulate > 1 {
            grads.values_mut().for_each(|g| *g = g.affine(1.0, 0.0));
        }
        // As where the gradient is clipped.
        optimiser.step_of_norm(network, grads, &Norm::Here(f64::INFINITY), 0.0)
    }
}

/// A batch to train on.
fn examples(config: &Config, network: &Network, texts: Option<&[Tensor; 2]>) -> Examples {
    let n = config.train.batch;
    if let (Network::Dual(_), Some([ids, mask])) = (network, texts) {
        let views = (0..config.train.views).map(|_| pixels(config, n)).collect();
        let groups = Tensor::zeros([n], DType::I64);
        return Examples::Paired(Pairs { views, ids: ids.clone(), mask: mask.clone(), groups });
    }
    let labels = if let Network::Classifier(model) = network { model.config().labels.len() } else { 0 };
    let [targets, known] = [DType::F32, DType::U8].map(|dtype| Tensor::zeros([n, labels], dtype));
    Examples::Labelled { pixels: pixels(config, n), targets, known }
}

/// A batch of validation.
fn judge(config: &Config, network: &Network, texts: Option<&[Tensor; 2]>, n: usize) {
    match (network, texts) {
        _ if n == 0 => {}
        (Network::Dual(model), Some([ids, mask])) => {
            let groups = Tensor::zeros([n], DType::I64);
            let pairs = Pairs { views: vec![pixels(config, n)], ids: ids.clone(), mask: mask.clone(), groups };
            step::value(model, &pairs, &config.tier);
        }
        _ => drop(network.say_images(&pixels(config, n))),
    }
}

fn pixels(config: &Config, n: usize) -> Tensor {
    let p = config.preprocess();
    Tensor::zeros([n, p.channels, p.crop, p.crop], DType::F32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffer::watched;
    use crate::models::bert::BertConfig;
    use crate::models::clip_text::TextConfig;
    use crate::models::resnet::{BlockKind, ResnetConfig};
    use crate::models::vit::VitConfig;
    use crate::models::{DualEncoder, DualEncoderConfig, GlobalText, ImageProjectionKind};
    use crate::nn::ProjectionKind;

    fn models() -> [DualEncoderConfig; 2] {
        let vit = VitConfig { image_size: 16, patch_size: 4, width: 12, depth: 2, heads: 2, ..VitConfig::default() };
        let text = TextConfig { vocabulary: 9, max_length: 6, width: 8, depth: 2, heads: 2, ..TextConfig::default() };
        let resnet = ResnetConfig {
            image_size: 32,
            channels: 1,
            block: BlockKind::Basic,
            depths: vec![1, 1],
            base: 4,
            ..ResnetConfig::default()
        };
        let bert = r#"{"vocabulary": 9, "max_length": 6, "width": 8, "depth": 2, "heads": 2, "mlp": 16}"#;
        let bert: BertConfig = serde_json::from_str(bert).unwrap();
        let joint = DualEncoderConfig { joint: 6, ..DualEncoderConfig::default() };
        [
            DualEncoderConfig { vision: vit.into(), text: text.into(), ..joint.clone() },
            DualEncoderConfig {
                vision: resnet.into(),
                text: bert.into(),
                visual_projection: ImageProjectionKind::Projector,
                text_projection: ProjectionKind::Head,
                global_text: Some(GlobalText::Token),
                ..joint
            },
        ]
    }

    /// Byte by byte: at once and in parts, in one view and two, with gradients summed, moments, an average and validation.
    #[test]
    fn a_run_takes_what_is_counted() {
        for model in models() {
            for (micro_batch, views, accumulate, recompute, in_backward) in
                [(0, 1, 1, false, false), (2, 2, 2, false, false), (0, 1, 1, true, false), (0, 1, 1, true, true)]
            {
                let mut config = Config { model: model.clone(), ..Config::default() };
                (config.train.batch, config.train.micro_batch, config.train.views) = (6, micro_batch, views);
                (config.train.ema, config.train.recompute) = (0.5, recompute);
                config.train.step_in_backward = in_backward;
                config.optimiser.clip_norm = if in_backward { 0.0 } else { 1.0 };
                let texts = |n: usize| Some([Tensor::zeros([n, 5], DType::I64), Tensor::full([n, 5], 1.0, DType::U8)]);
                let texts = [texts(6), texts(4)];
                let rehearsal = Rehearsal { steps: 5, accumulate, judged: 4, texts, scored: 0, prompts: Vec::new() };
                let run = || {
                    let mut network = Network::Dual(DualEncoder::init(&config.model, 1, DType::F32).unwrap());
                    network.visit("", &mut |_, p| *p = p.trainable());
                    rehearsal.run(&config, &mut network).unwrap()
                };
                let ((size, memory), (as_large, taken)) = (counted(run), watched(run));
                assert_eq!(
                    ([memory.now, memory.peak], size),
                    (taken, as_large),
                    "{micro_batch} of {}",
                    config.model.joint
                );
                assert!(memory.peak > 2 * size && memory.held >= memory.peak);
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_refused_unless_it_is_told_otherwise() {
        let mut config = Config::default();
        let parts = Estimate { tensors: 1 << 60, ..Estimate::default() };
        if process::limit().is_some() {
            let error = check(&config, &parts, None).unwrap_err().to_string();
            assert!(
                error.contains("this run would take 1073741824.0 GiB") && error.contains("(now 32 of 32"),
                "{error}"
            );
            config.train.micro_batch = 8;
            assert!(check(&config, &parts, None).unwrap_err().to_string().contains("(now 8 of 32"));
            check(&config, &Estimate { tensors: 1, ..parts.clone() }, None).unwrap();
        }
        config.train.check_memory = false;
        check(&config, &parts, None).unwrap();
    }
}
