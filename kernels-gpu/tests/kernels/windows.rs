//! Convolution, pooling and norms by column against their definitions in f64.

use kernels_cpu::conv::{Conv2d, Window, conv2d_def};
use kernels_cpu::pool;
use kernels_cpu::rng::Rng;
use kernels_gpu::{Device, Options, Stored, View};

use super::common::{Drawn, check, close, device, normal, open, size, wide};
use super::half_stored::{self, Half, KINDS, with_matrices};
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

/// A convolution, its bias now and then, and both its gradients; each twice, with the same bits. Of numbers that the weight's type holds.
fn convolution(d: &Device, rng: &mut Rng, conv: &Conv2d, stored: Stored) {
    convolution_by(d, rng, conv, stored, false);
}

/// And with `matrices` by those of the device alone, wherever something is written and what asks for them is stored in half.
fn convolution_by(d: &Device, rng: &mut Rng, conv: &Conv2d, stored: Stored, matrices: bool) {
    let normal = |rng: &mut Rng| match stored {
        Stored::F32 => normal(rng),
        half => half_stored::wide(half, half_stored::narrow(half, normal(rng))),
    };
    let ([oh, ow], [kh, kw], c) = (conv.grid(), conv.window.kernel, conv.input / conv.groups);
    let [h, w] = conv.size;
    let x = Drawn::contiguous(d, rng, &[conv.n, h, w, conv.input], normal);
    let weight = Drawn::contiguous(d, rng, &[conv.output, kh, kw, c], normal);
    let halved = |x: &Drawn, it: bool| (stored != Stored::F32 && it).then(|| Half::of(d, x, stored));
    fn there<'a>(half: &'a Option<Half>, x: &'a Drawn, stored: Stored) -> View<'a> {
        half.as_ref().map_or_else(|| x.view(), |half| half.view(x, stored))
    }
    let half = halved(&weight, true);
    let weight_there = || there(&half, &weight, stored);
    let bias = Drawn::contiguous(d, rng, &[conv.output], normal);
    let dy = Drawn::contiguous(d, rng, &[conv.n, oh, ow, conv.output], normal);
    // Maps too, at times.
    let maps = rng.chance(0.5);
    let (half_x, half_dy) = (halved(&x, maps), halved(&dy, maps));
    let (x_there, dy_there) = (|| there(&half_x, &x, stored), || there(&half_dy, &dy, stored));
    // As the definition has it: [output, c, kh, kw].
    let ordered = |weight: &[f64]| -> Vec<f64> {
        let at = |e: usize| (e / (c * kh * kw) * kh * kw + e % (kh * kw)) * c + e / (kh * kw) % c;
        (0..weight.len()).map(|e| weight[at(e)]).collect()
    };
    let (xs, ws, bs, dys) = (wide(&x.values), ordered(&wide(&weight.values)), wide(&bias.values), wide(&dy.values));
    let (y, biased) = (out(d, rng, &dy.dims), rng.chance(0.6));
    let twice = |to: &Drawn, half: bool, f: &dyn Fn()| {
        let before = d.by_matrices();
        f();
        let first = to.read();
        let kernels = d.by_matrices() - before;
        assert!(!matrices || (kernels > 0) == (half && !first.is_empty()), "{kernels} kernels by matrices: {conv:?}");
        f();
        assert!(to.read() == first, "other bits");
        first
    };
    let (weight_half, maps_half) = (half.is_some(), half_x.is_some());
    let bias_there = || biased.then(|| bias.view());
    let got = twice(&y, weight_half, &|| d.conv2d(conv, x_there(), weight_there(), bias_there(), y.view()).unwrap());
    close("conv2d", &got, &conv2d_def(conv, &xs, &ws, biased.then_some(&bs[..])), 3e-6);
    let (dx, mut exact) = (out(d, rng, &x.dims), vec![0.0; xs.len()]);
    let input = || d.conv2d_backward_input(conv, dy_there(), weight_there(), dx.view()).unwrap();
    let got = twice(&dx, weight_half, &input);
    conv.backward_input(&dys, &ws, &mut exact);
    close("conv2d_backward_input", &got, &exact, 3e-6);
    if conv.n == 0 {
        return;
    }
    let (dw, mut exact) = (out(d, rng, &weight.dims), vec![0.0; ws.len()]);
    let got = twice(&dw, maps_half, &|| d.conv2d_backward_weight(conv, x_there(), dy_there(), dw.view()).unwrap());
    conv.backward_weight(&xs, &dys, &mut exact);
    let got: Vec<f32> = ordered(&wide(&got)).into_iter().map(|w| w as f32).collect();
    close("conv2d_backward_weight", &got, &exact, 5e-6);
}

#[test]
fn convolutions_are_their_definition() {
    check(CASES, |rng| {
        let (d, conv, stored) = (device(rng), drawn(rng), [Stored::F32, KINDS[0], KINDS[1]][rng.below(3)]);
        convolution(d, rng, &conv, stored);
    });
}

/// Devices that choose tiles of all sizes, and parts of the depth: of one core, where large tiles are the quickest, with less and less room
/// for them; and of so many that what there is to do is split.
#[test]
fn convolutions_are_their_definition_in_tiles_of_all_sizes() {
    let changes: [fn(&mut Options); 4] = [
        |o| (o.large_tiles, o.cores) = (true, Some(1)),
        |o| (o.large_tiles, o.cores, o.threads) = (true, Some(1), Some(128)),
        |o| (o.large_tiles, o.cores, o.threads) = (true, Some(1), Some(64)),
        |o| (o.large_tiles, o.cores, o.shared) = (true, Some(1000), Some(16384)),
    ];
    let devices = std::cell::OnceCell::new();
    check(12, |rng| {
        let devices: &Vec<Device> = devices.get_or_init(|| changes.into_iter().map(|c| open(c).unwrap()).collect());
        let stored = [Stored::F32, Stored::F32, KINDS[0], KINDS[1]][rng.below(4)];
        let conv = many_channels(rng);
        convolution(&devices[rng.below(devices.len())], rng, &conv, stored);
    });
}

/// Sizes about those of tiles, and windows of all sorts.
fn many_channels(rng: &mut Rng) -> Conv2d {
    let groups = 1 + usize::from(rng.chance(0.2));
    let [input, output] = [0, 1].map(|_| [4, 8, 12, 31, 64, 65, 72, 127, 128][rng.below(9)] * groups);
    let window = match rng.below(6) {
        0 => Window { kernel: [2, 4], stride: [1, 4], padding: [1, 0], dilation: [1, 1] },
        1 => Window::square(1, 2, 0),
        2 => Window::square(3, 2, 1),
        3 => Window { kernel: [3, 2], stride: [2, 3], padding: [2, 1], dilation: [2, 1] },
        _ => Window::square(3, 1, 1),
    };
    let size = [4 + rng.below(10), [4, 8, 12, 5, 11][rng.below(5)]];
    Conv2d { n: 1 + rng.below(3), size, input, output, groups, window }
}

#[test]
fn cooperative_matrices_make_the_same_convolutions() {
    // Large tiles, small ones, and parts of the depth. Few of the large, which software takes seconds to compile.
    let changes: [fn(&mut Options); 3] = [
        |o| (o.matrices, o.large_tiles, o.cores) = (Some(true), true, Some(1)),
        |o| (o.matrices, o.shared) = (Some(true), Some(6000)),
        |o| (o.matrices, o.cores) = (Some(true), Some(1000)),
    ];
    for (change, seeds) in changes.into_iter().zip([4, 16, 16]) {
        check(1, |_| {
            let Some((d, kinds)) = with_matrices(change) else { return };
            for seed in 0..seeds {
                let mut rng = Rng::new(seed, 0x6d_6174);
                let conv = if seed % 2 == 0 { many_channels(&mut rng) } else { drawn(&mut rng) };
                convolution_by(&d, &mut rng, &conv, kinds[seed as usize % kinds.len()], true);
            }
        });
    }
}

/// So deep, of so few tiles for so many cores, that each of the three falls into parts.
#[test]
fn cooperative_matrices_sum_parts() {
    check(1, |_| {
        let Some((d, kinds)) = with_matrices(|o| (o.matrices, o.cores) = (Some(true), Some(1000))) else { return };
        for ([n, side, input, output], stride) in
            [([1, 6, 512, 24], 1), ([1, 6, 21, 512], 1), ([4, 40, 16, 12], 1), ([4, 81, 9, 20], 2)]
        {
            let window = Window::square(3, stride, 1);
            let conv = Conv2d { n, size: [side, side - 1], input, output, groups: 1, window };
            // With maps in half and without.
            for seed in 0..3 {
                convolution_by(&d, &mut Rng::new(seed, 1), &conv, kinds[seed as usize % kinds.len()], true);
            }
        }
    });
}

/// More maps than are bound at once.
#[test]
fn convolutions_go_in_turns() {
    check(1, |rng| {
        let d = open(|o| (o.range, o.matrices) = (Some(1 << 17), Some(true))).unwrap();
        for window in [Window::square(3, 1, 1), Window::square(2, 2, 0)] {
            let conv = Conv2d { n: 5, size: [20, 20], input: 32, output: 8, groups: 1, window };
            [Stored::F32, KINDS[0], KINDS[1]].into_iter().for_each(|stored| convolution(&d, rng, &conv, stored));
        }
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
