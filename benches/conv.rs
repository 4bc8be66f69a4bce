//! Convolutions, pooling and batch norm of a residual network, forward and with their gradients.

mod common;

use criterion::{BenchmarkId, Criterion, Throughput};
use kernels_cpu::conv::Window;
use tiergrad::Tensor;
use tiergrad::ops::conv::Conv2d;

fn main() {
    let mut c = common::short();
    convolutions(&mut c);
    maps(&mut c);
    c.final_summary();
}

fn convolutions(c: &mut Criterion) {
    let mut group = c.benchmark_group("conv2d");
    // Side of the map, inputs, outputs, side of the window, stride and groups.
    for [side, input, output, kernel, stride, groups] in [
        [224, 3, 64, 7, 2, 1],
        [56, 64, 64, 3, 1, 1],
        [28, 256, 128, 1, 1, 1],
        [28, 128, 256, 3, 2, 1],
        [28, 128, 128, 3, 1, 128],
    ] {
        let (x, weight) =
            (common::normal(&[2, side, side, input]), common::normal(&[output, input / groups, kernel, kernel]));
        let options = Conv2d { groups, ..Conv2d::new(stride, kernel / 2) };
        let places = 2 * (side / stride).pow(2);
        group.throughput(Throughput::Elements((places * output * input / groups * kernel * kernel) as u64));
        let name = format!("{side}x{side}x{input} to {output} by {kernel}/{stride}, {groups} groups");
        group.bench_function(BenchmarkId::new("forward", &name), |bencher| {
            bencher.iter(|| x.conv2d(&weight, None, options))
        });
        let [x, weight] = [x, weight].map(|x| x.trainable());
        group.bench_function(BenchmarkId::new("forward_backward", &name), |bencher| {
            bencher.iter(|| x.conv2d(&weight, None, options).sum_all().backward())
        });
    }
}

fn maps(c: &mut Criterion) {
    let mut group = c.benchmark_group("map");
    let [x, weight, bias] = [&[2, 112, 112, 64][..], &[64], &[64]].map(common::normal).map(|x: Tensor| x.trainable());
    let window = Window { kernel: [3; 2], stride: [2; 2], padding: [1; 2], dilation: [1; 2] };
    group.throughput(Throughput::Elements(x.numel() as u64));
    group.bench_function("max_pool2d_forward_backward", |bencher| {
        bencher.iter(|| x.max_pool2d(window).sum_all().backward())
    });
    group.bench_function("batch_norm_forward_backward", |bencher| {
        bencher.iter(|| x.batch_norm_train(&weight, &bias, 1e-5).0.sum_all().backward())
    });
}
