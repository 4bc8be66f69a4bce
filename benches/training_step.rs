//! One training step: a vision transformer and a causal text transformer, contrastive loss with TIER, AdamW.

mod common;

use criterion::{BenchmarkId, Criterion, Throughput};
use tiergrad::loss::{TierOptions, tier_loss};
use tiergrad::models::clip_text::TextConfig;
use tiergrad::models::vit::VitConfig;
use tiergrad::models::{DualEncoder, DualEncoderConfig};
use tiergrad::nn::Module;
use tiergrad::optim::{Optimiser, OptimiserConfig};
use tiergrad::{DType, Tensor};

fn main() {
    let mut c = common::short();
    steps(&mut c);
    c.final_summary();
}

fn steps(c: &mut Criterion) {
    let mut group = c.benchmark_group("training_step");
    group.sample_size(10);
    let (batch, tokens) = (32, 40);
    for patch_size in [16, 8] {
        let config = DualEncoderConfig {
            vision: VitConfig { image_size: 128, patch_size, width: 192, depth: 6, heads: 3, ..VitConfig::default() }
                .into(),
            text: TextConfig {
                vocabulary: 1000,
                max_length: tokens,
                width: 128,
                depth: 3,
                heads: 2,
                ..TextConfig::default()
            }
            .into(),
            joint: 128,
            ..DualEncoderConfig::default()
        };
        let mut model = DualEncoder::init(&config, 1, DType::F32).expect("the sizes divide");
        model.visit("", &mut |_, p| *p = p.trainable());
        let pixels = common::normal(&[batch, 1, 128, 128]);
        let ids: Vec<i64> = (0..batch * tokens).map(|at| (at * 37 % 1000) as i64).collect();
        let mask: Vec<u8> = (0..batch * tokens).map(|at| u8::from(at % tokens < 20 + at / tokens % 20)).collect();
        let ids = Tensor::from_slice(&ids, [batch, tokens]);
        let mask = Tensor::from_slice(&mask, [batch, tokens]);
        let groups = Tensor::from_slice(&(0..batch as i64).collect::<Vec<_>>(), [batch]);
        let mut optimiser = Optimiser::new(OptimiserConfig::default());
        group.throughput(Throughput::Elements(batch as u64));
        group.bench_function(BenchmarkId::new("patch", patch_size), |bencher| {
            bencher.iter(|| {
                let images = model.encode_image(&pixels);
                let texts = model.encode_text(&ids, &mask);
                let options = TierOptions::default();
                let loss = tier_loss(&[images], &texts, &mask, &groups, &model.logit_scale, &options).total;
                drop(texts);
                optimiser.step(&mut model, loss.backward(), 1e-4).expect("every parameter has a gradient");
            })
        });
    }
}
