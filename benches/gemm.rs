//! Matrix products in a transformer's shapes: forward (x W^T), gradient of the input (dy W), gradient of the weight (dy^T x).

mod common;

use criterion::{BenchmarkId, Criterion, Throughput};

fn main() {
    let mut c = common::short();
    products(&mut c);
    c.final_summary();
}

fn products(c: &mut Criterion) {
    let mut group = c.benchmark_group("gemm");
    // Rows, inputs and outputs of a linear layer.
    for [rows, input, output] in
        [[1024, 192, 192], [1024, 192, 768], [1024, 768, 192], [197, 768, 3072], [50, 512, 2048]]
    {
        let [x, w, dy] = [[rows, input], [output, input], [rows, output]].map(|dims| common::normal(&dims));
        group.throughput(Throughput::Elements((rows * input * output) as u64));
        let mut bench = |name, a, b: &tiergrad::Tensor| {
            let id = BenchmarkId::new(name, format!("{rows}x{input}x{output}"));
            group.bench_function(id, |bencher| bencher.iter(|| tiergrad::Tensor::matmul(a, b)));
        };
        bench("forward", &x, &w.transpose(0, 1));
        bench("input_gradient", &dy, &w);
        bench("weight_gradient", &dy.transpose(0, 1), &x);
    }
    let [q, k] = [[32, 3, 64, 64], [32, 3, 64, 64]].map(|dims| common::normal(&dims));
    group.throughput(Throughput::Elements(32 * 3 * 64 * 64 * 64));
    group.bench_function("batched/96x64x64x64", |bencher| bencher.iter(|| q.matmul(&k.transpose(-2, -1))));
}
