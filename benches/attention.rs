//! Attention forward and backward: images of 64 and 256 patches, causal texts of 40 tokens with padding.

mod common;

use criterion::{BenchmarkId, Criterion};
use tiergrad::Tensor;
use tiergrad::ops::attention::{Attention, attention};

fn main() {
    let mut c = common::short();
    both_ways(&mut c);
    c.final_summary();
}

fn both_ways(c: &mut Criterion) {
    let mut group = c.benchmark_group("attention");
    // Batch, heads, tokens and width of a head.
    for (causal, dims) in [(false, [32, 3, 64, 64]), (false, [32, 3, 256, 64]), (true, [32, 2, 40, 64])] {
        let [b, h, t, d] = dims;
        let mask: Vec<u8> = (0..b * t).map(|at| u8::from(!causal || at % t < t / 2 + at / t % (t / 2))).collect();
        let mask = Tensor::from_slice(&mask, [b, t]);
        let [q, k, v] = [0; 3].map(|_| common::normal(&dims));
        let options = Attention { causal, dropout: None };
        let name = format!("{b}x{h}x{t}x{d}{}", if causal { " causal" } else { "" });
        group.bench_function(BenchmarkId::new("forward", &name), |bencher| {
            bencher.iter(|| attention(&q, &k, &v, Some(&mask), options))
        });
        let [q, k, v] = [q, k, v].map(|x| x.trainable());
        group.bench_function(BenchmarkId::new("forward_backward", &name), |bencher| {
            bencher.iter(|| attention(&q, &k, &v, Some(&mask), options).sum_all().backward())
        });
    }
}
