use super::super::{Window, conv2d_def};
use super::*;
use crate::gemm::Right;
use crate::rng::Rng;
use crate::testing::{narrow, normals, on_every_tier, wide};
use half::bf16;
use proptest::prelude::*;

/// Also for maps of few tiles.
fn forward(conv: &Conv2d, x: &[f32], weight: &[f32], finish: Finish<'_, f32>) -> Vec<f32> {
    let [rows, cols] = conv.grid();
    let mut y = vec![f32::NAN; conv.n * rows * cols * conv.output];
    Weight::new(conv, &conv.reordered(weight), Packed::new).multiply(conv, x, finish, &mut y);
    y
}

fn drawn(conv: &Conv2d, seed: u64) -> [Vec<f32>; 4] {
    let (mut rng, [rows, cols]) = (Rng::new(seed, 3), conv.grid());
    let (c, o) = (conv.input, conv.output);
    [conv.n * conv.size[0] * conv.size[1] * c, o * c * 9, o, conv.n * rows * cols * o]
        .map(|n| narrow(&normals(&mut rng, n)))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    #[test]
    fn every_tier_is_the_definition(n in 0usize..3, size in [1usize..8, 1usize..8], padding in [0usize..3, 0usize..3],
                                    c in 2usize..4, o in 2usize..6, biased in any::<bool>(), seed in any::<u64>()) {
        let size = [0, 1].map(|k| size[k].max(3usize.saturating_sub(2 * padding[k])));
        let window = Window { padding, ..Window::square(3, 1, 0) };
        let conv = Conv2d { n, size, input: 16 * c, output: 16 * o, groups: 1, window };
        let [x, w, b, residual] = drawn(&conv, seed);
        let bias = biased.then_some(&b[..]);
        let expected = conv2d_def(&conv, &wide(&x), &wide(&w), bias.map(wide).as_deref());
        on_every_tier(|isa| {
            let y = forward(&conv, &x, &w, Finish { bias, ..Finish::default() });
            assert!(y.iter().zip(&expected).all(|(y, e)| (f64::from(*y) - e).abs() < 1e-4), "{isa}: {conv:?}");
            for act in [None, Some(Unary::Relu), Some(Unary::Gelu)] {
                let mut parts: Vec<f32> = y.iter().zip(&residual).map(|(y, r)| y + r).collect();
                if let Some(act) = act { map::map_in_place(act, &mut parts); }
                assert_eq!(forward(&conv, &x, &w, Finish { bias, residual: Some(&residual), act }), parts, "{isa}: {conv:?}");
            }
        });
    }
}

/// Aᵀ [sum over channels of bf16(G g Gᵀ) bf16(Bᵀ d B)] A, element by element.
fn rounded_def(conv: &Conv2d, x: &[f64], weight: &[f64]) -> Vec<f64> {
    const G: [[f64; 3]; 4] = [[1.0, 0.0, 0.0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0.0, 0.0, 1.0]];
    const B: [[f64; 4]; 4] =
        [[1.0, 0.0, -1.0, 0.0], [0.0, 1.0, 1.0, 0.0], [0.0, -1.0, 1.0, 0.0], [0.0, 1.0, 0.0, -1.0]];
    const A: [[f64; 4]; 2] = [[1.0, 1.0, 1.0, 0.0], [0.0, 1.0, -1.0, -1.0]];
    fn between<const N: usize, const M: usize>(l: &[[f64; N]; M], x: impl Fn(usize, usize) -> f64) -> [[f64; M]; M] {
        array(|i| array(|j| (0..N * N).map(|at| l[i][at / N] * x(at / N, at % N) * l[j][at % N]).sum()))
    }
    let near = |x: f64| f64::from(bf16::from_f64(x));
    let (c, o, [rows, cols], [h, w], [top, left]) =
        (conv.input, conv.output, conv.grid(), conv.size, conv.window.padding);
    let mut y = vec![0.0; conv.n * rows * cols * o];
    for (n, row, col) in super::super::positions(conv.n, rows.div_ceil(2), cols.div_ceil(2)) {
        for out in 0..o {
            let mut sums = [[0.0; 4]; 4];
            for k in 0..c {
                let pixel = |i: usize, j: usize| match ((2 * row + i).checked_sub(top), (2 * col + j).checked_sub(left))
                {
                    (Some(i), Some(j)) if i < h && j < w => x[((n * h + i) * w + j) * c + k],
                    _ => 0.0,
                };
                let (u, v) = (between(&G, |i, j| weight[(out * c + k) * 9 + 3 * i + j]), between(&B, pixel));
                (0..16).for_each(|at| sums[at / 4][at % 4] += near(u[at / 4][at % 4]) * near(v[at / 4][at % 4]));
            }
            let tile = between(&A, |i, j| sums[i][j]);
            for (i, j) in (0..4).map(|at| (at / 2, at % 2)).filter(|(i, j)| 2 * row + i < rows && 2 * col + j < cols) {
                y[((n * rows + 2 * row + i) * cols + 2 * col + j) * o + out] = tile[i][j];
            }
        }
    }
    y
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    #[test]
    fn maps_of_bf16_are_transformed_and_rounded(n in 0usize..3, size in [1usize..8, 1usize..8], padding in [0usize..3, 0usize..3],
                                                c in 1usize..3, o in 1usize..4, seed in any::<u64>()) {
        let size = [0, 1].map(|k| size[k].max(3usize.saturating_sub(2 * padding[k])));
        let window = Window { padding, ..Window::square(3, 1, 0) };
        let conv = Conv2d { n, size, input: 32 * c, output: 32 * o, groups: 1, window };
        // Numbers of 8 bits, whose sums f32 holds and bf16 does not.
        let [x, w, ..] = drawn(&conv, seed).map(|x| x.iter().map(|x| (x * 64.0).round().clamp(-128.0, 128.0) / 64.0).collect::<Vec<f32>>());
        let half: Vec<bf16> = x.iter().map(|&x| bf16::from_f32(x)).collect();
        prop_assert!(half.iter().zip(&x).all(|(half, &x)| half.to_f32() == x));
        let expected = rounded_def(&conv, &wide(&x), &wide(&w));
        on_every_tier(|isa| {
            let mut y = vec![f32::NAN; expected.len()];
            Weight::new(&conv, &conv.reordered(&w), Packed::rounded).multiply(&conv, &half, Finish::default(), &mut y);
            assert!(y.iter().zip(&expected).all(|(y, e)| (f64::from(*y) - e).abs() < 1e-4), "{isa}: {conv:?}");
        });
    }
}

/// Bits depend neither on threads, nor on what other maps there are, nor on whether the weight was packed before.
#[test]
fn many_blocks_have_the_bits_of_one_map() {
    let conv = Conv2d { n: 5, size: [23, 31], input: 96, output: 144, groups: 1, window: Window::square(3, 1, 1) };
    let [x, w, b, residual] = drawn(&conv, 1);
    let run = |conv: &Conv2d, x: &[f32], threads: usize| {
        par::Pool::new(threads).install(|| {
            let [rows, cols] = conv.grid();
            let mut y = vec![f32::NAN; conv.n * rows * cols * conv.output];
            conv.forward(x, &w, Some(&b), &mut y);
            y
        })
    };
    let all = run(&conv, &x, 1);
    assert!(all == forward(&conv, &x, &w, Finish { bias: Some(&b), ..Finish::default() }), "another way was taken");
    assert!([2, 3, 7].iter().all(|&threads| run(&conv, &x, threads) == all));
    let one = Conv2d { n: 1, ..conv };
    for (x, y) in x.chunks(x.len() / 5).zip(all.chunks(all.len() / 5)) {
        assert!(run(&one, x, 2) == y);
    }
    let (finish, mut whole) = (Finish { bias: Some(&b), residual: Some(&residual), act: None }, vec![0.0; all.len()]);
    conv.forward_packed(&x, &conv.pack(&w).expect("a weight with groups that mix"), finish, &mut whole);
    assert!(whole.iter().zip(all.iter().zip(&residual)).all(|(whole, (y, r))| *whole == y + r));
}

#[test]
fn only_many_tiles_and_channels_are_served() {
    let conv = |side: usize, input: usize, output: usize, window| Conv2d {
        n: 1,
        size: [side; 2],
        input,
        output,
        groups: 1,
        window,
    };
    let plain = Window::square(3, 1, 1);
    for (conv, served) in [
        (conv(14, 64, 32, plain), true),
        (conv(7, 64, 32, plain), true),
        (conv(6, 64, 32, plain), false),
        (conv(14, 64, 16, plain), false),
        (conv(14, 40, 32, plain), false),
        (conv(14, 64, 64, Window::square(3, 2, 1)), false),
        (conv(14, 64, 64, Window::square(5, 1, 2)), false),
        (conv(14, 64, 64, Window { dilation: [1, 2], ..plain }), false),
        (Conv2d { groups: 2, ..conv(14, 64, 64, plain) }, false),
    ] {
        assert_eq!(serves(&conv), served, "{conv:?}");
    }
}

/// The error stays within twice that of the sum over all taps, as the sum over channels alone is shorter.
#[test]
fn little_is_lost_to_rounding() {
    for (input, output, side) in [(32, 64, 28), (64, 64, 28), (256, 64, 14), (512, 32, 7)] {
        let conv = Conv2d { n: 1, size: [side; 2], input, output, groups: 1, window: Window::square(3, 1, 1) };
        let [x, w, ..] = drawn(&conv, 2);
        let expected = conv2d_def(&conv, &wide(&x), &wide(&w), None);
        let y = forward(&conv, &x, &w, Finish::default());
        let mut direct = vec![0.0; y.len()];
        let ordered = conv.reordered(&w);
        let target = super::super::Target { size: conv.grid(), step: [1, 1], start: [0, 0] };
        let matrix = |_: usize| Right::Loose(conv.matrix(&ordered, 0));
        conv.windows(&x).multiply(1, &matrix, output, Finish::default(), &mut direct, target);
        within(&conv, &expected, [&y, &direct], [2.0, 2.0]);
    }
}

/// The same of maps and weights that are bf16: transforms are rounded once more.
#[test]
fn little_more_is_lost_to_rounding_to_bf16() {
    for (input, output, side) in [(32, 64, 28), (64, 64, 28), (256, 64, 14), (512, 32, 7)] {
        let conv = Conv2d { n: 1, size: [side; 2], input, output, groups: 1, window: Window::square(3, 1, 1) };
        let [mut x, w, ..] = drawn(&conv, 2);
        // As behind a ReLU.
        x.iter_mut().for_each(|x| *x = x.max(0.0));
        let half = |x: &[f32]| x.iter().map(|&x| bf16::from_f32(x)).collect::<Vec<_>>();
        let weight: Vec<f32> = half(&w).iter().map(|w| w.to_f32()).collect();
        let (mut y, mut direct) = (vec![0.0; conv.lengths()[2]], vec![0.0; conv.lengths()[2]]);
        Weight::new(&conv, &conv.reordered(&weight), Packed::rounded).multiply(
            &conv,
            &half(&x),
            Finish::default(),
            &mut y,
        );
        conv.forward_bf16(&half(&x), &weight, None, &mut direct);
        // The largest of so many errors is less certain than their size.
        within(&conv, &conv2d_def(&conv, &wide(&x), &wide(&w), None), [&y, &direct], [2.0, 2.5]);
    }
}

/// The errors' size, and the largest, are at most so many times those of the direct sum.
fn within(conv: &Conv2d, expected: &[f64], y: [&[f32]; 2], most: [f64; 2]) {
    let [ours, theirs] = y.map(|y| {
        let squares = y.iter().zip(expected).map(|(y, e)| (f64::from(*y) - e).powi(2));
        [squares.clone().sum::<f64>().sqrt(), squares.fold(0.0, f64::max).sqrt()]
    });
    std::println!("error {ours:?}, of the direct sum {theirs:?}: {conv:?}");
    assert!((0..2).all(|i| ours[i] < most[i] * theirs[i]), "{ours:?} against {theirs:?}: {conv:?}");
}
