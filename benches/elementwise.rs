//! What surrounds the matrix products of a step: GELU, layer norm, softmax, TIER's entropies, residual sums, AdamW.

mod common;

use criterion::{Criterion, Throughput};
use kernels_cpu::optim::{Adam, adam};
use tiergrad::Tensor;
use tiergrad::loss::similarities;

fn main() {
    let mut c = common::short();
    elementwise(&mut c);
    norms(&mut c);
    tier(&mut c);
    adamw(&mut c);
    c.final_summary();
}

fn elementwise(c: &mut Criterion) {
    let mut group = c.benchmark_group("elementwise");
    let x = common::normal(&[2048, 768]);
    group.throughput(Throughput::Elements(x.numel() as u64));
    group.bench_function("add", |bencher| bencher.iter(|| x.add(&x)));
    group.bench_function("gelu", |bencher| bencher.iter(|| x.gelu()));
    group.bench_function("exp", |bencher| bencher.iter(|| x.exp()));
    let leaf = x.trainable();
    group.bench_function("gelu_forward_backward", |bencher| bencher.iter(|| leaf.gelu().sum_all().backward()));
}

fn norms(c: &mut Criterion) {
    let mut group = c.benchmark_group("norm");
    let (x, weight, bias) = (common::normal(&[2048, 192]), common::normal(&[192]), common::normal(&[192]));
    group.throughput(Throughput::Elements(x.numel() as u64));
    group.bench_function("softmax", |bencher| bencher.iter(|| x.softmax()));
    group.bench_function("layer_norm", |bencher| bencher.iter(|| x.layer_norm(&weight, &bias, 1e-5)));
    let [x, weight, bias] = [x, weight, bias].map(|x| x.trainable());
    group.bench_function("layer_norm_forward_backward", |bencher| {
        bencher.iter(|| x.layer_norm(&weight, &bias, 1e-5).sum_all().backward())
    });
}

fn tier(c: &mut Criterion) {
    let mut group = c.benchmark_group("tier");
    let (n, tokens, patches, joint) = (64, 40, 196, 128);
    let [texts, images] = [common::normal(&[n, tokens, joint]), common::normal(&[n, patches, joint])];
    let mask = Tensor::from_slice(&vec![1u8; n * tokens], [n, tokens]);
    let s = similarities(&texts, &images).trainable();
    group.throughput(Throughput::Elements(s.numel() as u64));
    group.bench_function("forward", |bencher| bencher.iter(|| s.detach().tier(&mask, 1e-7, 1.0)));
    group.bench_function("forward_backward", |bencher| bencher.iter(|| s.tier(&mask, 1e-7, 1.0).sum_all().backward()));
}

fn adamw(c: &mut Criterion) {
    let n = 1 << 20;
    let gradient = common::normal(&[n]).to_vec::<f32>();
    let [mut p, mut m, mut v] = [0; 3].map(|_| vec![0.1f32; n]);
    let options = Adam { lr: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01, decoupled: true, step: 10 };
    let mut group = c.benchmark_group("optimiser");
    group.throughput(Throughput::Elements(n as u64));
    group.bench_function("adamw", |bencher| bencher.iter(|| adam(&mut p, &gradient, &mut m, &mut v, options)));
}
