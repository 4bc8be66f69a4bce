//! What surrounds the matrix products of a step: GELU, layer norm, softmax, residual sums, AdamW.

mod common;

use criterion::{Criterion, Throughput};
use kernels_cpu::optim::{Adam, adam};

fn main() {
    let mut c = common::short();
    elementwise(&mut c);
    norms(&mut c);
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

fn adamw(c: &mut Criterion) {
    let n = 1 << 20;
    let gradient = common::normal(&[n]).to_vec::<f32>();
    let [mut p, mut m, mut v] = [0; 3].map(|_| vec![0.1f32; n]);
    let options = Adam { lr: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01, decoupled: true, step: 10 };
    let mut group = c.benchmark_group("optimiser");
    group.throughput(Throughput::Elements(n as u64));
    group.bench_function("adamw", |bencher| bencher.iter(|| adam(&mut p, &gradient, &mut m, &mut v, options)));
}
