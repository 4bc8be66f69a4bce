//! Convolution, pooling and norms by column against their definitions in f64.

use kernels_cpu::conv::{Conv2d, Window, conv2d_def};
use kernels_cpu::pool;
use kernels_cpu::rng::Rng;

use super::common::{Drawn, check, close, device, normal, size, wide};
use super::{CASES, out};

fn pair(rng: &mut Rng, low: usize, n: usize) -> [usize; 2] {
    [low + rng.below(n), low + rng.below(n)]
}

/// Sizes of a convolution; every fourth is a product of matrices alone.
fn drawn(rng: &mut Rng) -> Conv2d {
    let window = if rng.chance(0.25) {
        Window::square(1, 1, 0)
    } else {
        Window { kernel: pair(rng, 1, 3), stride: pair(rng, 1, 3), padding: pair(rng, 0, 3), dilation: pair(rng, 1, 2) }
    };
    let mut size = pair(rng, 0, 9);
    while window.output(size).is_none() {
        size = size.map(|s| s + 1);
    }
    let groups = [1, 1, 2, 3][rng.below(4)];
    let [input, output] = [0, 1].map(|_| [0, 1, 3, 7, 17][rng.below(5)] * groups);
    Conv2d { n: rng.below(4), size, input, output, groups, window }
}

#[test]
fn convolutions_are_their_definition() {
    check(CASES, |rng| {
        let (d, conv) = (device(rng), drawn(rng));
        let ([oh, ow], [kh, kw], c) = (conv.grid(), conv.window.kernel, conv.input / conv.groups);
        let [h, w] = conv.size;
        let x = Drawn::contiguous(d, rng, &[conv.n, h, w, conv.input], normal);
        let weight = Drawn::contiguous(d, rng, &[conv.output, kh, kw, c], normal);
        let bias = Drawn::contiguous(d, rng, &[conv.output], normal);
        let dy = Drawn::contiguous(d, rng, &[conv.n, oh, ow, conv.output], normal);
        // As the definition has it: [output, c, kh, kw].
        let ordered = |weight: &[f64]| -> Vec<f64> {
            let at = |e: usize| (e / (c * kh * kw) * kh * kw + e % (kh * kw)) * c + e / (kh * kw) % c;
            (0..weight.len()).map(|e| weight[at(e)]).collect()
        };
        let (xs, ws, bs, dys) = (wide(&x.values), ordered(&wide(&weight.values)), wide(&bias.values), wide(&dy.values));
        let (y, biased) = (out(d, rng, &dy.dims), rng.chance(0.6));
        d.conv2d(&conv, x.view(), weight.view(), biased.then(|| bias.view()), y.view()).unwrap();
        close("conv2d", &y.read(), &conv2d_def(&conv, &xs, &ws, biased.then_some(&bs[..])), 3e-6);
        let (dx, mut exact) = (out(d, rng, &x.dims), vec![0.0; xs.len()]);
        d.conv2d_backward_input(&conv, dy.view(), weight.view(), dx.view()).unwrap();
        conv.backward_input(&dys, &ws, &mut exact);
        close("conv2d_backward_input", &dx.read(), &exact, 3e-6);
        if conv.n == 0 {
            return;
        }
        let (dw, mut exact) = (out(d, rng, &weight.dims), vec![0.0; ws.len()]);
        d.conv2d_backward_weight(&conv, x.view(), dy.view(), dw.view()).unwrap();
        conv.backward_weight(&xs, &dys, &mut exact);
        close("conv2d_backward_weight", &wide_ordered(&dw.read(), ordered), &exact, 5e-6);
    });
}

fn wide_ordered(weight: &[f32], ordered: impl Fn(&[f64]) -> Vec<f64>) -> Vec<f32> {
    ordered(&wide(weight)).into_iter().map(|w| w as f32).collect()
}

/// More windows than are held at once.
#[test]
fn large_convolutions_go_in_parts() {
    check(1, |rng| {
        let d = device(rng);
        let window = Window::square(3, 1, 1);
        let conv = Conv2d { n: 3, size: [96, 96], input: 100, output: 2, groups: 1, window };
        let x = Drawn::contiguous(d, rng, &[3, 96, 96, 100], normal);
        let weight = Drawn::contiguous(d, rng, &[2, 3, 3, 100], normal);
        let dy = Drawn::contiguous(d, rng, &[3, 96, 96, 2], normal);
        let alone = Conv2d { n: 1, ..conv };
        let one = |v: &Drawn, i: usize| {
            let n = v.values.len() / 3;
            let mut values = v.values[i * n..][..n].iter();
            let dims = [&[1], &v.dims[1..]].concat();
            Drawn::contiguous(d, &mut Rng::new(1, 0), &dims, |_| *values.next().unwrap())
        };
        let (y, dx, dw) = (out(d, rng, &dy.dims), out(d, rng, &x.dims), out(d, rng, &weight.dims));
        d.conv2d(&conv, x.view(), weight.view(), None, y.view()).unwrap();
        d.conv2d_backward_input(&conv, dy.view(), weight.view(), dx.view()).unwrap();
        d.conv2d_backward_weight(&conv, x.view(), dy.view(), dw.view()).unwrap();
        let (mut all, mut slopes, mut sum) = (Vec::new(), Vec::new(), vec![0.0f64; dw.values.len()]);
        for i in 0..3 {
            let (x, dy) = (one(&x, i), one(&dy, i));
            let (y, dx, dw) = (out(d, rng, &dy.dims), out(d, rng, &x.dims), out(d, rng, &weight.dims));
            d.conv2d(&alone, x.view(), weight.view(), None, y.view()).unwrap();
            d.conv2d_backward_input(&alone, dy.view(), weight.view(), dx.view()).unwrap();
            d.conv2d_backward_weight(&alone, x.view(), dy.view(), dw.view()).unwrap();
            all.extend(y.read());
            slopes.extend(dx.read());
            sum.iter_mut().zip(dw.read()).for_each(|(sum, d)| *sum += f64::from(d));
        }
        assert!(y.read() == all && dx.read() == slopes);
        close("weights", &dw.read(), &sum, 1e-6);
    });
}

#[test]
fn largest_elements_are_found_and_sent_their_gradients() {
    check(CASES, |rng| {
        let d = device(rng);
        let window = Window {
            kernel: pair(rng, 1, 3),
            stride: pair(rng, 1, 3),
            padding: pair(rng, 0, 2),
            dilation: pair(rng, 1, 2),
        };
        let mut size = pair(rng, 1, 9);
        while window.output(size).is_none() {
            size = size.map(|s| s + 1);
        }
        let ([oh, ow], [h, w]) = (window.output(size).unwrap(), size);
        let dims = [rng.below(3), h, w, [0, 1, 5, 33][rng.below(4)]];
        // Few values, so that there are ties.
        let x = Drawn::contiguous(d, rng, &dims, |rng| if rng.chance(0.02) { f32::NAN } else { rng.below(5) as f32 });
        let dy = Drawn::contiguous(d, rng, &[dims[0], oh, ow, dims[3]], |rng| rng.below(9) as f32);
        let (y, dx) = (out(d, rng, &dy.dims), out(d, rng, &dims));
        let found = d.memory(4 * dy.values.len()).unwrap();
        d.max_pool2d(&window, x.view(), y.view(), &found).unwrap();
        d.max_pool2d_backward(&window, dy.view(), &found, dx.view()).unwrap();
        let (mut exact, mut places) = (vec![0.0; dy.values.len()], vec![0; dy.values.len()]);
        pool::max_pool2d(&wide(&x.values), dims, &window, &mut exact, Some(&mut places));
        close("max_pool2d", &y.read(), &exact, 0.0);
        if !places.is_empty() {
            let found: Vec<i32> = super::common::words(&found).into_iter().map(|word| word as i32).collect();
            assert_eq!(found, places);
        }
        let mut slopes = vec![0.0; x.values.len()];
        pool::max_pool2d_backward(&wide(&dy.values), &places, dims, &mut slopes);
        close("max_pool2d_backward", &dx.read(), &slopes, 0.0);
    });
}

#[test]
fn columns_have_their_numbers() {
    check(CASES, |rng| {
        let (d, rows, n) = (device(rng), size(rng).max(1) * if rng.chance(0.1) { 9 } else { 1 }, size(rng));
        let [x, u] = [0; 2].map(|_| Drawn::contiguous(d, rng, &[rows, n], normal));
        let [m, s, t, r] = [0; 4].map(|_| Drawn::contiguous(d, rng, &[n], normal));
        let (y, squares, more) = (out(d, rng, &[rows, n]), out(d, rng, &[n]), rng.chance(0.5));
        d.columns(x.view(), [m.view(), s.view(), t.view()], more.then(|| [r.view(), u.view()]), y.view()).unwrap();
        let at = |v: &Drawn, i: usize| f64::from(v.values[i]);
        let of = |i: usize| {
            let j = i % n;
            at(&s, j) * (at(&x, i) - at(&m, j)) + at(&t, j) + if more { at(&r, j) * at(&u, i) } else { 0.0 }
        };
        close("columns", &y.read(), &(0..rows * n).map(of).collect::<Vec<_>>(), 2e-6);
        d.squares_about(x.view(), m.view(), [rows, n], squares.view()).unwrap();
        let sum = |j: usize| (0..rows).map(|row| (at(&x, row * n + j) - at(&m, j)).powi(2)).sum();
        close("squares_about", &squares.read(), &(0..n).map(sum).collect::<Vec<f64>>(), 3e-6);
    });
}
