//! `tier bench --ops`: single ops and models of usual sizes, on the CPU or a device, for a table beside others
//! (benches/peers/gpu.py). Weights and inputs are drawn.

use std::time::{Duration, Instant};

use super::Global;
use super::bench::watched;
use crate::device::{Gpu, Watch};
use crate::error::Result;
use crate::models::resnet::ResnetConfig;
use crate::models::vit::VitConfig;
use crate::models::{Classifier, ClassifierConfig, ImageTowerConfig};
use crate::nn::{Activation, Module, Noted};
use crate::ops::attention::{Attention, attention};
use crate::ops::conv::Conv2d;
use crate::optim::{Norm, Optimiser, OptimiserConfig};
use crate::products::Products;
use crate::rng::Rng;
use crate::tape::backward_with;
use crate::tensor::Tensor;
use crate::{DType, Dims};

/// Sizes of everything that is timed.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum OpSizes {
    /// Those of large models.
    Full,
    /// A look at whether it runs.
    Small,
}

/// What one run does, for rates.
enum Work {
    /// Bytes read and written.
    Bytes(usize),
    /// Multiplications and additions.
    Flops(usize),
    /// Pictures.
    Pictures(usize),
    /// Kernels that take no time themselves.
    Kernels(usize),
}

struct Bench<'a> {
    gpu: Option<Gpu>,
    rng: Rng,
    seconds: f64,
    global: &'a Global,
}

/// Runs are timed in groups that take at least so long, as a device is waited for at the end of each.
const GROUP: Duration = Duration::from_millis(20);
/// How long a device works before it is timed.
const WARM: Duration = Duration::from_millis(300);

impl Bench<'_> {
    fn drawn(&mut self, dims: impl Into<Dims>) -> Tensor {
        Tensor::randn(dims, DType::F32, &mut self.rng).placed(self.gpu.as_ref())
    }

    /// Seconds of `runs` runs.
    fn group<R>(&self, runs: u32, run: &mut impl FnMut() -> Result<R>) -> Result<Duration> {
        let start = Instant::now();
        (0..runs).try_for_each(|_| run().map(drop))?;
        self.gpu.iter().for_each(Gpu::wait);
        Ok(start.elapsed())
    }

    fn row<R>(&self, op: &str, dims: &[usize], work: Work, mut run: impl FnMut() -> Result<R>) -> Result<()> {
        // Kernels are compiled and tried at first, plans made at the second.
        self.group(2, &mut run)?;
        let (mut runs, start) = (1, Instant::now());
        while runs < 1 << 12 && self.group(runs, &mut run)? < GROUP {
            runs *= 2;
        }
        // A device that had nothing to do takes a while to its full clock.
        while self.gpu.is_some() && start.elapsed() < WARM {
            self.group(runs, &mut run)?;
        }
        let watch = self.gpu.as_ref().map(Watch::new);
        let (start, mut times) = (Instant::now(), Vec::new());
        while times.len() < 3 || start.elapsed().as_secs_f64() < self.seconds {
            times.push(self.group(runs, &mut run)?.as_secs_f64() / f64::from(runs));
        }
        let device = watched(watch.as_ref());
        times.sort_by(f64::total_cmp);
        let median = times[times.len() / 2];
        let (unit, rate) = match work {
            Work::Bytes(n) => ("gb_per_s", n as f64 * 1e-9 / median),
            Work::Flops(n) => ("gflop_per_s", n as f64 * 1e-9 / median),
            Work::Pictures(n) => ("pictures_per_s", n as f64 / median),
            Work::Kernels(n) => ("us_per_kernel", median * 1e6 / n as f64),
        };
        let ms = median * 1e3;
        let shape = dims.iter().map(usize::to_string).collect::<Vec<_>>().join(" ");
        if self.global.json {
            let mut line =
                serde_json::json!({ "bench": "ops", "op": op, "shape": shape, "ms": ms, "groups": times.len() });
            line[unit] = rate.into();
            line["device"] = device;
            return self.global.print(line);
        }
        let unit = unit.replace("_per_", "/");
        let idle = device["idle"].as_f64().map(|idle| format!("   idle {:.1} %", 100.0 * idle)).unwrap_or_default();
        self.global.print(format_args!("{op:24} {shape:20} {ms:>12.4} ms {rate:>12.1} {unit}{idle}"))
    }

    fn memory_bound(&mut self, small: bool) -> Result<()> {
        let [rows, n] = if small { [64, 256] } else { [16384, 2048] };
        let (x, [w, b]) = (self.drawn([rows, n]), [0, 1].map(|_| self.drawn([n])));
        let bytes = |maps: usize| Work::Bytes(maps * 4 * rows * n);
        let work = || bytes(2);
        self.row("copy", &[rows, n], work(), || Ok(x.copied()))?;
        self.row("transposed", &[rows, n], work(), || Ok(x.transpose(0, 1).packed()))?;
        let y = self.drawn([rows, n]);
        self.row("add", &[rows, n], bytes(3), || Ok(&x + &y))?;
        self.row("sum_columns", &[rows, n], bytes(1), || Ok(x.sum(&[0], false)))?;
        // Two maps forward, three for the gradient of x, and two for those of weight and bias.
        let (dy, [tracked, w_tracked, b_tracked]) = (self.drawn([rows, n]), [&x, &w, &b].map(Tensor::trainable));
        self.row("layer_norm_and_gradient", &[rows, n], bytes(7), || {
            Ok(backward_with(vec![(tracked.layer_norm(&w_tracked, &b_tracked, 1e-6), dy.clone())]))
        })?;
        self.row("layer_norm", &[rows, n], work(), || Ok(x.layer_norm(&w, &b, 1e-6)))?;
        self.row("softmax", &[rows, n], work(), || Ok(x.softmax()))?;
        self.row("gelu", &[rows, n], work(), || Ok(x.gelu()))
    }

    /// A long chain of tiny kernels, each of which needs the one before.
    fn launches(&mut self) -> Result<()> {
        let (n, x) = (1024, self.drawn([8]));
        self.row("launch", &[n, 8], Work::Kernels(n), || Ok((0..n).fold(x.clone(), |x, _| x.affine(1.0, 1.0))))
    }

    fn products(&mut self, small: bool) -> Result<()> {
        let n = if small { 128 } else { 4096 };
        let [x, w] = [0, 1].map(|_| Tensor::randn([n, n], DType::F32, &mut self.rng));
        // Both in it, and weights alone.
        for (op, of_x, of_w) in [
            ("gemm_f32", DType::F32, DType::F32),
            ("gemm_bf16", DType::BF16, DType::BF16),
            ("gemm_f32_bf16", DType::F32, DType::BF16),
            ("gemm_f32_f16", DType::F32, DType::F16),
        ] {
            let [x, w] = [(&x, of_x), (&w, of_w)].map(|(x, dtype)| x.to_dtype(dtype).placed(self.gpu.as_ref()));
            self.row(op, &[n, n, n], Work::Flops(2 * n * n * n), || Ok(x.linear(&w, None, None)))?;
        }
        Ok(())
    }

    fn attentions(&mut self, small: bool) -> Result<()> {
        let dims = if small { [1, 2, 33, 16] } else { [16, 12, 197, 64] };
        let qkv = [0, 1, 2].map(|_| self.drawn(dims));
        let flops = 4 * dims.iter().product::<usize>() * dims[2];
        let options = Attention { causal: false, dropout: None };
        let forward = |[q, k, v]: &[Tensor; 3]| attention(q, k, v, None, options);
        self.row("attention", &dims, Work::Flops(flops), || Ok(forward(&qkv)))?;
        let (dy, tracked) = (self.drawn([dims[0], dims[2], dims[1], dims[3]]), qkv.each_ref().map(Tensor::trainable));
        // Five products backward, two forward.
        self.row("attention_and_gradient", &dims, Work::Flops(flops * 7 / 2), || {
            Ok(backward_with(vec![(forward(&tracked), dy.clone())]))
        })
    }

    fn convolutions(&mut self, small: bool) -> Result<()> {
        let all = if small {
            [[1, 14, 16, 16, 3]; 1].to_vec()
        } else {
            vec![[32, 56, 64, 64, 3], [32, 56, 256, 64, 1], [32, 14, 256, 256, 3]]
        };
        for [n, side, input, output, kernel] in all {
            let (x, w) = (self.drawn([n, side, side, input]), self.drawn([output, input, kernel, kernel]));
            let options = Conv2d::new(1, kernel / 2);
            let flops = 2 * n * side * side * input * output * kernel * kernel;
            let dims = [n, side, input, output, kernel];
            self.row("conv2d", &dims, Work::Flops(flops), || Ok(x.conv2d(&w, None, options)))?;
        }
        Ok(())
    }

    /// Inference in f32 and with matrices and convolutions in bf16, and training steps with AdamW in f32 and mixed precision, of a classifier of 14 labels.
    fn model(&mut self, name: &str, vision: ImageTowerConfig, batch: usize) -> Result<()> {
        let (channels, side) = (vision.channels(), vision.image_size());
        let config = ClassifierConfig { vision, hidden: 512, labels: (0..14).map(|i| i.to_string()).collect() };
        let pixels = self.drawn([batch, channels, side, side]);
        let dims = [batch, channels, side, side];
        let gpu = self.gpu.clone();
        let made = |dtype: DType| -> Result<Classifier> {
            let mut model = Classifier::init(&config, 0, DType::F32)?;
            model.visit_all("", &mut |name, p| {
                let matrix = matches!(p.rank(), 2 | 4) && name.ends_with(".weight") && !name.contains("position");
                *p = if matrix { p.to_dtype(dtype) } else { p.detach() }.placed(gpu.as_ref());
            });
            Ok(model)
        };
        for dtype in [DType::F32, DType::BF16] {
            let model = made(dtype)?;
            let op = format!("{name}_{dtype}");
            self.row(&op, &dims, Work::Pictures(batch), || Ok(model.forward(&pixels)))?;
        }
        for (op, products) in [("step", Products::F32), ("step_bf16", Products::Bf16)] {
            let mut model = made(DType::F32)?;
            model.visit("", &mut |_, p| *p = p.trainable());
            let mut optimiser = Optimiser::new(OptimiserConfig::default());
            self.row(&format!("{name}_{op}"), &dims, Work::Pictures(batch), || {
                // Nothing of the pass may hold the parameters when they are changed.
                let loss = |(logits, _): (Tensor, Noted)| logits.mul(&logits).sum_all();
                let grads = loss(products.within(|| model.forward_train(&pixels))).backward();
                // Whose norm nobody looks at, so that nothing is waited for.
                let norm = Norm::of(&grads);
                optimiser.step_of_norm(&mut model, grads, &norm, 1e-6)
            })?;
        }
        Ok(())
    }
}

pub(super) fn run(sizes: OpSizes, seconds: f64, batch: Option<usize>, global: &Global) -> Result<()> {
    let (small, gpu) = (sizes == OpSizes::Small, global.gpu()?);
    gpu.iter().flat_map(Gpu::matrices).for_each(|line| global.say(line));
    let mut bench = Bench { gpu, rng: Rng::new(1, 0), seconds, global };
    bench.launches()?;
    bench.memory_bound(small)?;
    bench.products(small)?;
    bench.attentions(small)?;
    bench.convolutions(small)?;
    let vit = VitConfig {
        image_size: 224,
        patch_size: 16,
        width: 768,
        depth: 12,
        heads: 12,
        channels: 3,
        class_token: true,
        activation: Activation::Gelu,
        ..VitConfig::default()
    };
    let [vit, resnet] = if small {
        let vit = VitConfig { image_size: 32, patch_size: 8, width: 32, depth: 2, heads: 2, ..vit };
        let resnet = ResnetConfig { image_size: 32, depths: vec![1, 1, 1, 1], base: 4, ..ResnetConfig::default() };
        [vit.into(), resnet.into()]
    } else {
        [vit.into(), ResnetConfig::default().into()]
    };
    let batch = batch.unwrap_or(if small { 2 } else { 32 });
    bench.model("vit_b16", vit, batch)?;
    bench.model("resnet50", resnet, batch)
}
