//! `tier bench`: how fast a model runs, or a training step is, here.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::ValueEnum;

use super::Global;
use super::bench_ops::OpSizes;
use super::model::ModelArgs;
use crate::check::Inputs;
use crate::check::inputs::drawn_texts;
use crate::checkpoints::Precision;
use crate::device::{Activity, Gpu, Watch};
use crate::distance;
use crate::error::{Error, Result};
use crate::formats::Weights;
use crate::loss::TierOptions;
use crate::models::bert::BertConfig;
use crate::models::clip_text::TextConfig;
use crate::models::resnet::ResnetConfig;
use crate::models::vit::VitConfig;
use crate::models::{DualEncoder, DualEncoderConfig, GlobalText, ImageProjectionKind, Network, TextTowerConfig};
use crate::nn::{Activation, Module, ProjectionKind};
use crate::optim::{Norm, Optimiser, OptimiserConfig, Rule};
use crate::pipeline::{Asked, Batches, NetworkConfig, Pipeline, Unused};
use crate::process;
use crate::products::Products;
use crate::profile::{self, Cost};
use crate::rng::Rng;
use crate::tape::recomputing;
use crate::tensor::Tensor;
use crate::text::Tokenizer;
use crate::train::step::{self, Examples};
use crate::{DType, Dims};

/// Times inference of a model, or training steps of a configuration; one JSON line with --json.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// File with `input_b<N>` and `output_b<N>` to run on and compare with.
    #[arg(long, value_name = "FILE")]
    golden: Option<PathBuf>,
    /// Items at once (default: 1; of a training step 8 or, of --config small, 16).
    #[arg(long, value_name = "N")]
    batch: Option<usize>,
    /// At least this long.
    #[arg(long, default_value_t = 3.0, value_name = "S")]
    seconds: f64,
    /// What is timed (default: with --config a training step, else the image side, or the text side of a model of texts alone).
    #[arg(long)]
    what: Option<What>,
    /// Sizes of the training step (default: small).
    #[arg(long)]
    config: Option<Sizes>,
    /// A training step that computes blocks again for the gradient, for less memory.
    #[arg(long)]
    recompute: bool,
    /// A training step whose optimiser moves each parameter during backward, for less memory
    #[arg(long)]
    step_in_backward: bool,
    /// One run only: `cold_ms` is the time from the program's start to its end.
    #[arg(long)]
    once: bool,
    /// What the steps of inference or the ops of a training step take, by kind, the longest first.
    #[arg(long, conflicts_with = "once")]
    profile: bool,
    /// Single ops, ViT-B/16 and ResNet-50 with random weights instead of a model, in inference and training.
    #[arg(long, value_name = "SIZES", num_args = 0..=1, default_missing_value = "full", conflicts_with_all = ["golden", "what", "config", "once", "profile", "dtype"])]
    ops: Option<OpSizes>,
    /// What matrices are multiplied in (default: what the file has them in; of a training step f32, else bf16 beside parameters in f32).
    #[arg(long, value_enum)]
    dtype: Option<Precision>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    /// The image side.
    Image,
    /// The text side.
    Text,
    /// A training step with random weights.
    Train,
}

#[derive(Clone, Copy, ValueEnum)]
enum Sizes {
    /// The TIER paper's: ResNet-50 with BioViL's projector and BERT-base with its embeddings and first 8 layers frozen, 64 tokens.
    Paper,
    /// ViT-B/32 and a text transformer of width 512, 12 layers, 77 tokens.
    Clip,
    /// ViT-S/16 and a text transformer of width 384, 6 layers, 64 tokens.
    Small,
}

impl Sizes {
    fn model(self) -> DualEncoderConfig {
        let vit = |patch_size, width, heads, activation| VitConfig {
            image_size: 224,
            channels: 3,
            class_token: true,
            depth: 12,
            patch_size,
            width,
            heads,
            activation,
            ..VitConfig::default()
        };
        let text = |vocabulary, width, depth, heads, activation| TextConfig {
            vocabulary,
            max_length: self.tokens(),
            width,
            depth,
            heads,
            activation,
            ..TextConfig::default()
        };
        let (quick, exact) = (Activation::QuickGelu, Activation::Gelu);
        let whole = DualEncoderConfig::default();
        match self {
            Self::Paper => DualEncoderConfig {
                vision: ResnetConfig::default().into(),
                text: BertConfig {
                    vocabulary: 30522,
                    max_length: 512,
                    width: 768,
                    depth: 12,
                    heads: 12,
                    mlp: 3072,
                    token_types: 2,
                    pooler: false,
                    eps: 1e-12,
                    activation: Activation::Gelu,
                    padding: 0,
                }
                .into(),
                joint: 128,
                global_text: Some(GlobalText::Token),
                visual_projection: ImageProjectionKind::Projector,
                text_projection: ProjectionKind::Head,
                ..whole
            },
            Self::Clip => DualEncoderConfig {
                vision: vit(32, 768, 12, quick).into(),
                text: text(49408, 512, 12, 8, quick).into(),
                joint: 512,
                ..whole
            },
            Self::Small => DualEncoderConfig {
                vision: vit(16, 384, 6, exact).into(),
                text: text(30522, 384, 6, 6, exact).into(),
                joint: 256,
                ..whole
            },
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Paper => "paper",
            Self::Clip => "clip",
            Self::Small => "small",
        }
    }

    /// Tokens of each text.
    fn tokens(self) -> usize {
        match self {
            Self::Clip => 77,
            Self::Paper | Self::Small => 64,
        }
    }

    /// Pairs at once where the command does not say.
    fn batch(self) -> usize {
        match self {
            Self::Paper | Self::Clip => 8,
            Self::Small => 16,
        }
    }

    /// Whether a parameter stays as it is.
    fn frozen(self, name: &str) -> bool {
        let layers = (0..8).map(|i| format!("text_model.encoder.layer.{i}."));
        matches!(self, Self::Paper)
            && (name.starts_with("text_model.embeddings.") || layers.into_iter().any(|l| name.starts_with(&l)))
    }
}

pub(super) fn run(args: &Args, global: &Global) -> Result<()> {
    if !args.seconds.is_finite() || args.seconds < 0.0 || args.batch == Some(0) {
        return Err(Error::usage("--seconds must not be negative, --batch must not be 0"));
    }
    if let Some(sizes) = args.ops {
        return super::bench_ops::run(sizes, args.seconds, args.batch, global);
    }
    let train = args.what == Some(What::Train) || args.what.is_none() && args.config.is_some();
    if let Some(path) = args.model.paths().next().or(args.golden.as_deref()).filter(|_| train) {
        return Err(Error::usage(
            "a training step is timed with random weights, by --config: leave --model and --golden out",
        )
        .at(path));
    }
    let flags = [("recompute", args.recompute), ("step-in-backward", args.step_in_backward)];
    if let Some((flag, _)) = flags.iter().find(|(_, given)| *given && !train) {
        return Err(Error::usage(format!("--{flag} is for a training step: give --config or --what train")));
    }
    let line = if train { self::train(args, global)? } else { infer(args, global)? };
    if global.json {
        global.print(line)?;
    } else {
        let fields = line
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(key, _)| *key != "profile")
            .map(|(k, v)| format!("{k} {v}"));
        global.print(fields.collect::<Vec<_>>().join("  "))?;
    }
    Ok(())
}

/// What a device did, beside what was timed: `idle`, the share of the time in which it had nothing to do, and what it was asked.
pub(super) fn watched(watch: Option<&Watch<'_>>) -> serde_json::Value {
    let Some((activity, idle)) = watch.map(Watch::activity) else { return serde_json::Value::Null };
    let Activity { kernels, submitted, replayed, .. } = activity;
    serde_json::json!({ "idle": idle.map(round), "kernels": kernels, "submitted": submitted, "replayed": replayed })
}

/// Times of the first run, and of more until `seconds` have passed, sorted; and what a device did in these.
fn times(
    args: &Args,
    gpu: Option<&Gpu>,
    mut run: impl FnMut() -> Result<()>,
) -> Result<(f64, Vec<f64>, serde_json::Value)> {
    let mut once = || -> Result<f64> {
        let start = Instant::now();
        run()?;
        Ok(start.elapsed().as_secs_f64())
    };
    let first = once()?;
    let watch = gpu.map(Watch::new);
    let (start, limit) = (Instant::now(), Duration::from_secs_f64(args.seconds));
    let mut more = Vec::new();
    while !args.once && (more.len() < 3 || start.elapsed() < limit) {
        more.push(once()?);
    }
    if more.is_empty() {
        more.push(first);
    }
    more.sort_by(f64::total_cmp);
    Ok((first, more, watched(watch.as_ref())))
}

fn infer(args: &Args, global: &Global) -> Result<serde_json::Value> {
    let checkpoint = args.model.checkpoint(global)?;
    let usual = if checkpoint.config.vision().is_some() { What::Image } else { What::Text };
    let what = args.what.unwrap_or(usual);
    // Pixels and ids are drawn: nothing beside the model is needed.
    let mut pipeline =
        args.model.ways().open_in(args.dtype, &checkpoint, Unused { pictures: true, texts: true }, global)?;
    let batch = args.batch.unwrap_or(1);
    let golden = args.golden.as_ref().map(|path| Weights::open(path, !global.no_mmap)).transpose()?;
    let of = |what: &str| -> Result<Option<Tensor>> {
        let Some(golden) = &golden else { return Ok(None) };
        let name = format!("{what}_b{batch}");
        let tensor = golden.get(&name).ok_or_else(|| Error::new(format!("no {name}")).at(golden.path()))?;
        Ok(Some(tensor.clone()))
    };
    let golden = of("input")?;
    if golden.is_none() {
        fitting(what, &mut pipeline, batch, args.once, global)?;
    }
    let inputs = inputs(what, &pipeline, batch, golden)?;
    inputs.fits(&checkpoint.config, false)?;
    let planned = pipeline.planned();
    let forward = || {
        let (images, texts) = (&inputs.pixels, &inputs.texts);
        let whole = images.as_ref().and_then(|pixels| planned.whole_images(pixels));
        whole.or_else(|| texts.as_ref().and_then(|[ids, mask]| planned.whole_texts(ids, mask)))
    };
    let (mut output, mut cold) = (None, None);
    let (first, times, device) = times(args, global.gpu()?.as_ref(), || {
        output = forward();
        output.as_ref().and_then(Tensor::device).inspect(|gpu| gpu.wait());
        cold = cold.or_else(process::since_start);
        Ok(())
    })?;
    let relerr = match (of("output")?, output) {
        (Some(expected), Some(got)) => Some(error(&got, &expected)?),
        _ => None,
    };
    let x: Vec<Tensor> = inputs.pixels.iter().chain(inputs.texts.iter().flatten()).cloned().collect();
    let costs = || planned.profile(&x).ok_or_else(|| Error::new("--profile needs more runs: no plan was made"));
    let profile = args.profile.then(|| profile(global, costs)).transpose()?;
    let median = times[times.len() / 2];
    let what = if what == What::Text { "text" } else { "image" };
    Ok(
        serde_json::json!({ "bench": "infer", "profile": profile, "what": what, "model": args.model.name(), "dtype": args.dtype.unwrap_or_else(|| checkpoint.precision()).name(), "batch": batch, "threads": global.thread_count(),
        "ms": round(median * 1e3), "best_ms": round(times[0] * 1e3), "per_s": round(batch as f64 / median), "runs": times.len(),
        "first_ms": round(first * 1e3), "cold_ms": cold.map(|cold| round(cold.as_secs_f64() * 1e3)), "rss_mib": peak_mib(), "relerr": relerr, "device": device }),
    )
}

/// How far an output is from the golden one, relative to the largest number of that.
fn error(got: &Tensor, golden: &Tensor) -> Result<f64> {
    if got.dims() != golden.dims() {
        let (golden, got) = (golden.dims(), got.dims());
        return Err(Error::new(format!("the golden output is {golden:?}, this model gives {got:?}")));
    }
    match distance::relative(&got.to_f64_vec(), &golden.to_f64_vec(), f64::MIN_POSITIVE) {
        f64::INFINITY => Err(Error::new("this model's output is infinitely far from the golden one")),
        off => Ok(off),
    }
}

/// Runs of a profile; what a step takes is the mean.
const PROFILED: u32 = 10;

/// Prints what the steps of one run take, by kind; the same as JSON. `run` gives them in order.
fn profile(global: &Global, mut run: impl FnMut() -> Result<Vec<Cost>>) -> Result<serde_json::Value> {
    let mut kinds: BTreeMap<String, (usize, Cost)> = BTreeMap::new();
    for _ in 0..PROFILED {
        for cost in run()? {
            let kind = kinds.entry(cost.name.clone());
            let (count, sum) =
                kind.or_insert_with(|| (0, Cost { time: Duration::ZERO, flops: 0, bytes: 0, name: cost.name.clone() }));
            *count += 1;
            sum.time += cost.time;
            sum.flops += cost.flops;
            sum.bytes += cost.bytes;
        }
    }
    let mut kinds: Vec<(usize, Cost)> = kinds.into_values().collect();
    kinds.sort_by_key(|(_, cost)| std::cmp::Reverse(cost.time));
    let all: f64 = kinds.iter().map(|(_, cost)| cost.time.as_secs_f64()).sum();
    global.say(format_args!("{:28} {:>5} {:>10} {:>9} {:>8} {:>7}", "step", "count", "ms", "GFLOP/s", "GB/s", "share"));
    let mut rows = Vec::new();
    for (count, cost) in &kinds {
        let (runs, seconds) = (f64::from(PROFILED), cost.time.as_secs_f64());
        let (count, ms, share) = (count / PROFILED as usize, 1e3 * seconds / runs, seconds / all);
        let [gflops, gbytes] = [cost.flops, cost.bytes].map(|n| n as f64 / seconds * 1e-9);
        let name = &cost.name;
        global.say(format_args!("{name:28} {count:>5} {ms:>10.3} {gflops:>9.1} {gbytes:>8.1} {:>6.1}%", 100.0 * share));
        rows.push(serde_json::json!({ "step": name, "count": count, "ms": round(ms), "gflops": round(gflops), "gb_per_s": round(gbytes), "share": round(share) }));
    }
    Ok(rows.into())
}

/// Says what memory the runs take, and refuses what this machine cannot hold.
fn fitting(what: What, pipeline: &mut Pipeline, batch: usize, once: bool, global: &Global) -> Result<()> {
    // From the second run on there is a plan.
    let rows = if once { batch } else { 3 * batch };
    let config = NetworkConfig::of(&pipeline.network);
    let asked = match (what, config.text()) {
        (What::Text, Some(text)) => {
            let dims = Dims::new(&[batch, longest(pipeline, text)]);
            Asked { texts: Some(Batches { dims, rows }), ids: dims.numel(), ..Asked::default() }
        }
        _ => {
            let p = &pipeline.preprocess;
            let dims = Dims::new(&[batch, p.channels, p.crop, p.crop]);
            Asked { images: Some(Batches { dims, rows }), ..Asked::default() }
        }
    };
    let remedy = format!("Lower --batch (now {batch})");
    super::model::fitting(pipeline, &asked, &remedy, global)
}

/// Tokens of the texts that are drawn.
fn longest(pipeline: &Pipeline, text: &TextTowerConfig) -> usize {
    pipeline.tokenizer.as_ref().map_or(text.max_length(), Tokenizer::max_length)
}

/// What a model is timed on: the golden input, or noise.
fn inputs(what: What, pipeline: &Pipeline, batch: usize, golden: Option<Tensor>) -> Result<Inputs> {
    let config = NetworkConfig::of(&pipeline.network);
    let mut rng = Rng::new(1, 0);
    if let What::Text = what {
        let text = config.text().ok_or_else(|| Error::usage("--what text: this model knows no texts"))?;
        let texts = match golden {
            Some(ids) if ids.rank() != 2 || ids.numel() == 0 || ids.dtype().is_float() => {
                return Err(Error::new(format!("the golden input is {:?}, not ids [n, T]", ids.dims())));
            }
            Some(ids) => {
                let mask = Tensor::full(*ids.dims(), 1.0, DType::U8);
                [ids.to_dtype(DType::I64).packed(), mask]
            }
            None => drawn_texts(text.vocabulary(), batch, longest(pipeline, text), &mut rng),
        };
        return Ok(Inputs { pixels: None, texts: Some(texts) });
    }
    config.vision().ok_or_else(|| Error::usage("--what image: this model knows no images"))?;
    let p = &pipeline.preprocess;
    let pixels = match golden {
        Some(pixels) if pixels.rank() != 4 || pixels.numel() == 0 || !pixels.dtype().is_float() => {
            return Err(Error::new(format!("the golden input is {:?}, not pixels [n, c, h, w]", pixels.dims())));
        }
        Some(pixels) => pixels.to_dtype(DType::F32).packed(),
        None => Tensor::randn([batch, p.channels, p.crop, p.crop], DType::F32, &mut rng),
    };
    Ok(Inputs { pixels: Some(pixels), texts: None })
}

fn train(args: &Args, global: &Global) -> Result<serde_json::Value> {
    let sizes = args.config.unwrap_or(Sizes::Small);
    let products = match args.dtype {
        None | Some(Precision::F32) => Products::F32,
        Some(Precision::Bf16) => Products::Bf16,
        Some(other) => {
            return Err(Error::usage(format!("--dtype {}: a training step is in f32 or bf16", other.name())));
        }
    };
    let config = sizes.model();
    let (n, t) = (args.batch.unwrap_or(sizes.batch()), sizes.tokens());
    let mut model = DualEncoder::init(&config, 0, DType::F32)?;
    let (mut trainable, gpu) = (0, global.gpu()?);
    model.visit("", &mut |name, p| {
        if let Some(gpu) = &gpu {
            *p = p.to_device(gpu);
        }
        if !sizes.frozen(name) {
            *p = p.trainable();
            trainable += p.numel();
        }
    });
    let mut rng = Rng::new(1, 0);
    let side = config.vision.image_size();
    let view = Tensor::randn([n, config.vision.channels(), side, side], DType::F32, &mut rng);
    let ids: Vec<i64> = (0..n * t).map(|_| 1 + rng.below(config.text.vocabulary() - 1) as i64).collect();
    let mut network = Network::Dual(model);
    let examples = Examples::Paired(step::Pairs {
        views: vec![view.placed(gpu.as_ref())],
        ids: Tensor::from_slice(&ids, [n, t]),
        mask: Tensor::full([n, t], 1.0, DType::U8),
        groups: Tensor::from_slice(&(0..n as i64).collect::<Vec<_>>(), [n]),
    });
    let rule = OptimiserConfig { rule: Rule::Adam, weight_decay: 0.0, clip_norm: 0.0, ..OptimiserConfig::default() };
    let mut optimiser = Optimiser::new(rule);
    let options = TierOptions { lambda_p: 0.1, lambda_t: 0.1, ..TierOptions::default() };
    let mut losses = Vec::new();
    let mut step = || {
        if args.step_in_backward {
            let compute = || examples.step_in_backward(&mut network, &options, &mut optimiser, 1e-4);
            let (parts, _) = recomputing(args.recompute, || products.within(compute))?;
            losses.push(parts.total);
            return Ok(Duration::ZERO);
        }
        let compute = || examples.step(&mut network, &options, 0);
        let one = recomputing(args.recompute, || products.within(compute))?;
        let start = Instant::now();
        let norm = Norm::beside(&one.grads, one.values.total());
        optimiser.step_of_norm(&mut network, one.grads, &norm, 1e-4)?;
        // A device is waited for once, as in training.
        norm.value_beside(&one.values.asked().collect::<Vec<_>>());
        losses.push(one.values.parts().total);
        Ok(start.elapsed())
    };
    let (first, times, device) = times(args, gpu.as_ref(), || step().map(|_: Duration| ()))?;
    let costs = || {
        let start = Instant::now();
        let (optimiser, mut costs) = profile::collect(&mut step);
        let (whole, optimiser) = (start.elapsed(), optimiser?);
        let rest = whole - optimiser - costs.iter().map(|cost| cost.time).sum::<Duration>();
        let others = [("optimiser", optimiser), ("between ops", rest)];
        costs.extend(others.map(|(name, time)| Cost { name: name.to_owned(), time, flops: 0, bytes: 0 }));
        Ok(costs)
    };
    let profile = args.profile.then(|| profile(global, costs)).transpose()?;
    Ok(
        serde_json::json!({ "bench": "train", "profile": profile, "config": sizes.name(), "dtype": products.name(), "recompute": args.recompute, "step_in_backward": args.step_in_backward, "batch": n, "threads": global.thread_count(),
        "s_per_step": round(times[times.len() / 2]), "best": round(times[0]), "steps": times.len(), "first_step_s": round(first),
        "rss_mib": peak_mib(), "device": device, "loss_first": losses.first(), "loss_last": losses.last(),
        "trainable_m": round(trainable as f64 / 1e6) }),
    )
}

fn round(x: f64) -> f64 {
    (x * 1e4).round() / 1e4
}

/// Most memory that the process ever had, where the system tells.
fn peak_mib() -> Option<u64> {
    crate::process::most_resident().map(|bytes| bytes >> 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_output_is_compared_with_the_golden_one_where_that_can_be() {
        let golden = Tensor::from_slice(&[1.0f32, -4.0], [1, 2]);
        let of = |values: [f32; 2]| error(&Tensor::from_slice(&values, [1, 2]), &golden).map_err(|e| e.to_string());
        assert_eq!((of([1.0, -4.0]), of([1.0, -3.0])), (Ok(0.0), Ok(0.25)));
        for values in [[f32::NAN; 2], [1.0, f32::NAN], [f32::INFINITY, -4.0]] {
            assert!(of(values).unwrap_err().contains("infinitely far"), "{values:?}");
        }
        let other = error(&golden.reshape([2, 1]), &golden).unwrap_err().to_string();
        assert!(other.contains("is [1, 2], this model gives [2, 1]"), "{other}");
    }
}
