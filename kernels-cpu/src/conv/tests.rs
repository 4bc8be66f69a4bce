use super::*;
use crate::map::Unary;
use crate::rng::Rng;
use proptest::prelude::*;

fn values(n: usize, seed: u64) -> Vec<f32> {
    let mut rng = Rng::new(seed, 3);
    (0..n).map(|_| rng.normal() as f32).collect()
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| f64::from(x)).collect()
}

prop_compose! {
    fn conv()(n in 0usize..3, size in any::<[u8; 2]>(), kernel in any::<[u8; 2]>(), stride in any::<[u8; 2]>(), padding in any::<[u8; 2]>(),
              dilation in any::<[u8; 2]>(), c in prop_oneof![0usize..4, 14usize..20], o in 0usize..4, groups in 1usize..4, depthwise in any::<bool>()) -> Conv2d {
        let pick = |pair: [u8; 2], low: usize, n: usize| pair.map(|x| low + usize::from(x) % n);
        let window = Window { kernel: pick(kernel, 1, 4), stride: pick(stride, 1, 3), padding: pick(padding, 0, 3), dilation: pick(dilation, 1, 3) };
        let reach = |k: usize| ((window.kernel[k] - 1) * window.dilation[k] + 1).saturating_sub(2 * window.padding[k]);
        let size = [reach(0) + usize::from(size[0]) % 6, reach(1) + usize::from(size[1]) % 6];
        let [c, o] = if depthwise { [1, 1] } else { [c, o] };
        Conv2d { n, size, input: c * groups, output: o * groups, groups, window }
    }
}

proptest! {
    #[test]
    fn forward_is_the_definition_and_both_gradients_are_its_adjoints(conv in conv(), biased in any::<bool>(), seed in any::<u64>()) {
        let [nx, nw, ny] = conv.lengths();
        let (x, w, dy, b) = (values(nx, seed), values(nw, seed ^ 1), values(ny, seed ^ 2), values(conv.output, seed ^ 3));
        let b64 = wide(&b);
        let expected = conv2d_def(&conv, &wide(&x), &wide(&w), biased.then_some(&b64[..]));
        let mut y = vec![f32::NAN; ny];
        conv.forward(&x, &w, biased.then_some(&b[..]), &mut y);
        for (y, e) in y.iter().zip(&expected) { prop_assert!((f64::from(*y) - e).abs() < 1e-4, "{y} instead of {e}"); }
        if let Some(packed) = conv.pack(&w) {
            let (residual, mut parts) = (values(ny, seed ^ 4), vec![0.0; ny]);
            let sums: Vec<f32> = y.iter().zip(&residual).map(|(y, r)| y + r).collect();
            crate::map::map(Unary::Relu, &sums, &mut parts);
            let mut whole = vec![f32::NAN; ny];
            let finish = Finish { bias: biased.then_some(&b[..]), residual: Some(&residual), act: Some(Unary::Relu) };
            conv.forward_packed(&x, &packed, finish, &mut whole);
            prop_assert_eq!(whole, parts);
        }
        // The output is linear in x and in w: gradients are what the definition gives for unit vectors.
        let (mut dx, mut dw) = (vec![f32::NAN; nx], vec![f32::NAN; nw]);
        conv.backward_input(&dy, &w, &mut dx);
        conv.backward_weight(&x, &dy, &mut dw);
        let dot = |y: Vec<f64>| y.iter().zip(&dy).map(|(y, &d)| y * f64::from(d)).sum::<f64>();
        let unit = |n: usize, at: usize| (0..n).map(|i| f64::from(u8::from(i == at))).collect::<Vec<f64>>();
        for at in (0..nx).step_by(nx / 7 + 1) {
            let e = dot(conv2d_def(&conv, &unit(nx, at), &wide(&w), None));
            prop_assert!((f64::from(dx[at]) - e).abs() < 1e-4, "dx {} instead of {e}", dx[at]);
        }
        for at in (0..nw).step_by(nw / 7 + 1) {
            let e = dot(conv2d_def(&conv, &wide(&x), &unit(nw, at), None));
            prop_assert!((f64::from(dw[at]) - e).abs() < 1e-3, "dw {} instead of {e}", dw[at]);
        }
        prop_assert!(dx.iter().chain(&dw).all(|v| v.is_finite()));
        if !conv.is_depthwise() {
            for (a, b) in conv.weight_by_rows(&x, &dy).iter().zip(conv.weight_by_parts(&x, &dy)) { prop_assert!((a - b).abs() < 1e-4 * (1.0 + b.abs()), "dw {a} by rows, {b} by parts"); }
        }
    }
}

#[test]
fn many_blocks_give_the_definition_and_the_same_bits_for_any_thread_count() {
    for (groups, input, output) in [(1, 8, 12), (2, 6, 4), (16, 16, 16), (1, 20, 12), (2, 40, 68)] {
        let window = Window { dilation: [1, 2], ..Window::square(3, 2, 1) };
        let conv = Conv2d { n: 3, size: [61, 43], input, output, groups, window };
        let [nx, nw, ny] = conv.lengths();
        let (x, w, dy) = (values(nx, 1), values(nw, 2), values(ny, 3));
        let run = |threads: usize| {
            par::Pool::new(threads).install(|| {
                let (mut y, mut dx, mut dw) = (vec![0.0; ny], vec![0.0; nx], vec![0.0; nw]);
                conv.forward(&x, &w, None, &mut y);
                conv.backward_input(&dy, &w, &mut dx);
                conv.backward_weight(&x, &dy, &mut dw);
                let by_rows = if conv.is_depthwise() { Vec::new() } else { conv.weight_by_rows(&x, &dy) };
                (y, dx, dw, by_rows)
            })
        };
        let one = run(1);
        assert!([2, 3, 7].iter().all(|&threads| run(threads) == one), "{groups} groups");
        let expected = conv2d_def(&conv, &wide(&x), &wide(&w), None);
        assert!(one.0.iter().zip(&expected).all(|(y, e)| (f64::from(*y) - e).abs() < 1e-4), "{groups} groups");
        // y is linear in x and in w, so all three products are the same number.
        let dot = |a: &[f32], b: &[f32]| wide(a).iter().zip(wide(b)).map(|(a, b)| a * b).sum::<f64>();
        let (of_y, of_x, of_w) = (dot(&one.0, &dy), dot(&x, &one.1), dot(&w, &one.2));
        assert!((of_x - of_y).abs() < 1e-2 && (of_w - of_y).abs() < 1e-2, "{of_y} {of_x} {of_w}");
    }
}

#[test]
fn a_window_that_does_not_fit_is_none() {
    assert_eq!(Window::square(3, 2, 1).output([128, 7]), Some([64, 4]));
    assert_eq!(Window::square(3, 1, 0).output([2, 9]), None);
    assert_eq!(Window::square(0, 1, 0).output([2, 9]), None);
    assert_eq!(Window::square(1, 0, 0).output([2, 9]), None);
    assert_eq!(Window { dilation: [0, 1], ..Window::square(1, 1, 0) }.output([2, 9]), None);
}

/// As drawn above, but on every tier.
#[cfg(feature = "rayon")]
#[test]
fn every_tier_gives_the_definition_and_its_adjoints() {
    use crate::testing::on_every_tier;
    let window = Window { dilation: [1, 2], ..Window::square(3, 2, 1) };
    for (groups, input, output, window) in [
        (1, 20, 40, Window::square(3, 1, 1)),
        (2, 34, 6, window),
        (1, 3, 33, window),
        (5, 5, 5, window),
        (1, 17, 9, Window::square(1, 1, 0)),
        (1, 32, 80, Window::square(3, 1, 1)),
        (1, 48, 32, Window { padding: [2, 0], ..Window::square(3, 1, 0) }),
        (3, 3, 6, Window::square(2, 1, 0)),
        (1, 3, 4, Window::square(3, 3, 0)),
        // Rows of taps that lie side by side, also where all of them lie outside.
        (1, 3, 33, Window::square(7, 2, 3)),
        (1, 1, 5, Window { kernel: [2, 16], stride: [2, 5], padding: [3, 19], dilation: [3, 1] }),
    ] {
        let conv = Conv2d { n: 2, size: [11, 11], input, output, groups, window };
        let [nx, nw, ny] = conv.lengths();
        let (x, w, dy, b) = (values(nx, 4), values(nw, 5), values(ny, 6), values(output, 7));
        let expected = conv2d_def(&conv, &wide(&x), &wide(&w), Some(&wide(&b)));
        let (mut dx64, mut dw64) = (vec![f64::NAN; nx], vec![f64::NAN; nw]);
        conv.backward_input(&wide(&dy), &wide(&w), &mut dx64);
        conv.backward_weight(&wide(&x), &wide(&dy), &mut dw64);
        on_every_tier(|isa| {
            let close = |a: &[f32], b: &[f64]| a.iter().zip(b).all(|(a, b)| (f64::from(*a) - b).abs() < 2e-4);
            let (mut y, mut dx, mut dw) = (vec![f32::NAN; ny], vec![f32::NAN; nx], vec![f32::NAN; nw]);
            conv.forward(&x, &w, Some(&b), &mut y);
            conv.backward_input(&dy, &w, &mut dx);
            conv.backward_weight(&x, &dy, &mut dw);
            assert!(close(&y, &expected) && close(&dx, &dx64) && close(&dw, &dw64), "{isa}: {conv:?}");
            if let Some(packed) = conv.pack(&w) {
                let mut whole = vec![f32::NAN; ny];
                let finish = Finish { bias: Some(&b[..]), residual: Some(&dy), act: Some(Unary::Gelu) };
                conv.forward_packed(&x, &packed, finish, &mut whole);
                let sums: Vec<f32> = y.iter().zip(&dy).map(|(y, d)| y + d).collect();
                let mut parts = vec![0.0; ny];
                crate::map::map(Unary::Gelu, &sums, &mut parts);
                assert_eq!(whole, parts, "{isa}: {conv:?}");
            }
        });
    }
}

/// Maps beside a weight of bf16, on a tier and on one to four threads: within the bound of a sum in f32 in any order, k 2^-24 of the sum of the
/// sizes of its k terms, the same bits for any threads, and finished as one step after the other. By Winograd's transforms, which are rounded, near it.
#[cfg(feature = "rayon")]
fn check_rounded(conv: &Conv2d, isa: crate::isa::Isa, seed: u64) -> Result<(), TestCaseError> {
    use half::bf16;
    let [nx, nw, ny] = conv.lengths();
    let (x, w, b, residual) = (values(nx, seed), values(nw, seed ^ 1), values(conv.output, 7), values(ny, seed ^ 2));
    let w: Vec<bf16> = w.iter().map(|&w| bf16::from_f32(w)).collect();
    let near = |x: f32| f64::from(bf16::from_f32(x));
    let (x64, w64): (Vec<f64>, Vec<f64>) =
        (x.iter().map(|&x| near(x)).collect(), w.iter().map(|&w| w.into()).collect());
    let expected = conv2d_def(conv, &x64, &w64, None);
    let [x64, w64] = [x64, w64].map(|x| x.iter().map(|x| x.abs()).collect::<Vec<f64>>());
    let sizes = conv2d_def(conv, &x64, &w64, None);
    let run = |threads: usize, finish: Finish<'_, f32>| {
        par::Pool::on(isa, threads).install(|| {
            let mut y = vec![f32::NAN; ny];
            conv.forward_packed(&x, &conv.pack_bf16(&w), finish, &mut y);
            y
        })
    };
    let sums = run(1, Finish::default());
    let transformed = par::Pool::on(isa, 1).install(|| winograd::serves_bf16(conv));
    let most = sizes.iter().copied().fold(0.0, f64::max);
    for ((y, e), size) in sums.iter().zip(&expected).zip(&sizes) {
        let bound = if transformed { most / 256.0 } else { conv.depth() as f64 * size / f64::from(1 << 24) };
        prop_assert!((f64::from(*y) - e).abs() <= bound, "{isa}, {conv:?}: {y} instead of {e}");
    }
    let (mut unfinished, mut parts) = (sums.clone(), vec![0.0; ny]);
    unfinished.chunks_mut(conv.output.max(1)).zip(residual.chunks(conv.output.max(1))).for_each(|(y, r)| {
        y.iter_mut().zip(&b).for_each(|(y, b)| *y += b);
        y.iter_mut().zip(r).for_each(|(y, r)| *y += r);
    });
    par::Pool::on(isa, 1).install(|| crate::map::map(Unary::Gelu, &unfinished, &mut parts));
    let finish = Finish { bias: Some(&b[..]), residual: Some(&residual), act: Some(Unary::Gelu) };
    for threads in 1..=4 {
        prop_assert!(run(threads, finish) == parts, "{isa} on {threads} threads, {conv:?}");
    }
    // Written rounded, what is added being so too, and from a map that is.
    let [half, added] = [&x, &residual].map(|x| x.iter().map(|&x| bf16::from_f32(x)).collect::<Vec<_>>());
    let widened: Vec<f32> = added.iter().map(|r| r.to_f32()).collect();
    for act in [None, Some(Unary::Relu), Some(Unary::Gelu)] {
        let whole = run(1, Finish { bias: Some(&b[..]), residual: Some(&widened), act });
        let rounded: Vec<bf16> = whole.iter().map(|&y| bf16::from_f32(y)).collect();
        for threads in 1..=3 {
            let (mut wide, mut y, mut of_half) = (vec![f32::NAN; ny], vec![bf16::NAN; ny], vec![bf16::NAN; ny]);
            let finish = Finish { bias: Some(&b[..]), residual: Some(&added[..]), act };
            par::Pool::on(isa, threads).install(|| {
                let w = conv.pack_bf16(&w);
                conv.forward_halves(&half, &w, Finish { bias: Some(&b[..]), residual: Some(&widened), act }, &mut wide);
                conv.forward_rounded(&x, &w, finish, &mut y);
                conv.forward_rounded(&half, &w, finish, &mut of_half);
            });
            let same = wide == whole && y == rounded && of_half == rounded;
            prop_assert!(same, "{isa} on {threads} threads, {act:?}, {conv:?}");
        }
    }
    Ok(())
}

/// Maps and gradients of bf16, beside a weight that is rounded to it, on a tier and on one to three threads: y and both gradients are those of the
/// rounded numbers in f64, within the bound of a sum in f32 in any order, as products of bf16 are exact there, and have the same bits for any threads.
#[cfg(feature = "rayon")]
fn check_trained_in_bf16(conv: &Conv2d, isa: crate::isa::Isa, seed: u64) -> Result<(), TestCaseError> {
    use half::bf16;
    let [nx, nw, ny] = conv.lengths();
    let [x, dy] = [(nx, seed), (ny, seed ^ 1)]
        .map(|(n, seed)| values(n, seed).iter().map(|&x| bf16::from_f32(x)).collect::<Vec<_>>());
    let (w, b) = (values(nw, seed ^ 2), values(conv.output, seed ^ 3));
    let exact = |of: fn(f64) -> f64| {
        let [x, dy] = [&x, &dy].map(|x| x.iter().map(|&x| of(x.into())).collect::<Vec<f64>>());
        let w: Vec<f64> = w.iter().map(|&w| of(bf16::from_f32(w).into())).collect();
        let b: Vec<f64> = b.iter().map(|&b| of(b.into())).collect();
        let (mut dx, mut dw) = (vec![f64::NAN; nx], vec![f64::NAN; nw]);
        conv.backward_input(&dy, &w, &mut dx);
        conv.backward_weight(&x, &dy, &mut dw);
        [conv2d_def(conv, &x, &w, Some(&b)), dx, dw]
    };
    let (sums, sizes) = (exact(|x| x), exact(f64::abs));
    let run = |threads: usize| {
        par::Pool::on(isa, threads).install(|| {
            let [mut y, mut dx, mut dw] = [ny, nx, nw].map(|n| vec![f32::NAN; n]);
            conv.forward_bf16(&x, &w, Some(&b), &mut y);
            conv.backward_input_bf16(&dy, &w, &mut dx);
            conv.backward_weight_bf16(&x, &dy, &mut dw);
            [y, dx, dw]
        })
    };
    let ours = run(1);
    let taps = conv.window.kernel[0] * conv.window.kernel[1];
    let terms = [conv.depth() + 1, taps * conv.output, conv.windows(&x).items()];
    for (k, of) in ["y", "dx", "dw"].into_iter().enumerate() {
        for ((ours, sum), size) in ours[k].iter().zip(&sums[k]).zip(&sizes[k]) {
            let bound = terms[k] as f64 * size / f64::from(1 << 24);
            prop_assert!((f64::from(*ours) - sum).abs() <= bound, "{isa}, {conv:?}: {of} {ours} instead of {sum}");
        }
    }
    for threads in [2, 3] {
        prop_assert!(run(threads) == ours, "{isa} on {threads} threads, {conv:?}");
    }
    Ok(())
}

#[cfg(feature = "rayon")]
proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn products_of_bf16_are_those_of_rounded_maps_and_weights(conv in conv(), seed in any::<u64>()) {
        let conv = Conv2d { input: conv.input / conv.groups, output: conv.output / conv.groups, groups: 1, ..conv };
        for isa in crate::isa::Isa::available() {
            check_rounded(&conv, isa, seed)?;
            check_trained_in_bf16(&conv, isa, seed)?;
        }
    }
}

/// Several blocks, one of which is not full, one that threads share, and a depth of several slabs.
#[cfg(feature = "rayon")]
#[test]
fn blocks_of_rounded_windows_have_the_same_bits_for_any_threads() {
    for (n, side, input, output, window) in [
        // Rows of taps that are whole words once they are filled up, that are so before, and that start between two.
        (1, 47, 3, 64, Window::square(7, 2, 3)),
        (2, 21, 4, 33, Window::square(5, 1, 2)),
        (1, 22, 3, 32, Window::square(7, 1, 3)),
        (2, 15, 70, 33, Window::square(3, 1, 1)),
        // By Winograd's transforms.
        (2, 15, 64, 96, Window::square(3, 1, 1)),
        (1, 9, 160, 192, Window { padding: [2, 0], ..Window::square(3, 1, 0) }),
        (1, 7, 260, 65, Window::square(3, 1, 1)),
        (3, 28, 64, 40, Window::square(1, 1, 0)),
        (1, 14, 33, 32, Window::square(1, 2, 0)),
        (1, 19, 32, 32, Window { dilation: [2, 3], ..Window::square(3, 1, 2) }),
        // Maps that are rounded one after the other.
        (3, 71, 64, 3, Window::square(3, 2, 1)),
        // Lines copied by their remainders, of which taps read some alone, and a depth of several parts.
        (3, 13, 96, 64, Window { stride: [2, 3], dilation: [2, 1], ..Window::square(3, 1, 2) }),
        (3, 11, 64, 70, Window { kernel: [2, 1], ..Window::square(1, 3, 0) }),
        (2, 9, 256, 64, Window::square(3, 2, 1)),
        (3, 33, 3, 64, Window { stride: [3, 2], padding: [9, 3], ..Window::square(7, 1, 0) }),
    ] {
        let conv = Conv2d { n, size: [side, side + 2], input, output, groups: 1, window };
        for isa in crate::isa::Isa::available() {
            check_rounded(&conv, isa, 5).unwrap();
            check_trained_in_bf16(&conv, isa, 5).unwrap();
        }
    }
}

/// Written in bf16, NaN stays NaN whatever its bits are and wherever it is from, and nothing else becomes it.
#[cfg(feature = "rayon")]
#[test]
fn what_is_not_a_number_is_not_lost_by_rounding() {
    use half::bf16;
    let conv = Conv2d { n: 1, size: [5, 6], input: 32, output: 64, groups: 1, window: Window::square(1, 1, 0) };
    let [nx, nw, ny] = conv.lengths();
    let (x, w) = (vec![bf16::ONE; nx], vec![bf16::ONE; nw]);
    for isa in crate::isa::Isa::available() {
        for bits in [0x7fff_ffff, 0xffff_ffff, 0x7f80_0001, 0xff80_0001, 0x7fc0_0000] {
            let (mut bias, mut residual, mut x) = (vec![0.0; 64], vec![bf16::ZERO; ny], x.clone());
            bias[5] = f32::from_bits(bits);
            residual[7 * 64 + 9] = bf16::from_bits((bits >> 16) as u16 | 1);
            x[11 * 32 + 3] = bf16::from_bits((bits >> 16) as u16 | 1);
            for act in [None, Some(Unary::Relu), Some(Unary::Gelu)] {
                let finish = Finish { bias: Some(&bias[..]), residual: Some(&residual[..]), act };
                let mut y = vec![bf16::ZERO; ny];
                par::Pool::on(isa, 1).install(|| conv.forward_rounded(&x, &conv.pack_bf16(&w), finish, &mut y));
                for (i, y) in y.iter().enumerate() {
                    let expected = i % 64 == 5 || i == 7 * 64 + 9 || i / 64 == 11;
                    assert_eq!(y.is_nan(), expected, "{isa}, {bits:x}, {act:?}: {y} at {i}");
                }
            }
        }
    }
}

#[test]
fn groups_must_divide_both_kinds_of_channels() {
    for (input, output, groups, fits) in
        [(4, 6, 2, true), (3, 4, 2, false), (4, 3, 2, false), (4, 4, 0, false), (0, 0, 0, false)]
    {
        let conv = Conv2d { n: 1, size: [3, 3], input, output, groups, window: Window::square(1, 1, 0) };
        assert_eq!(std::panic::catch_unwind(|| conv.grid()).is_ok(), fits, "{conv:?}");
    }
}

#[test]
fn the_gradient_of_many_weights_is_one_sum_over_positions() {
    for (output, in_parts) in [(MANY_WEIGHTS / 256, true), (MANY_WEIGHTS / 256 + 1, false)] {
        let conv = Conv2d { n: 1, size: [17, 17], input: 256, output, groups: 1, window: Window::square(1, 1, 0) };
        let [nx, nw, ny] = conv.lengths();
        let (x, dy, mut dw) = (values(nx, 1), values(ny, 2), vec![0.0; nw]);
        conv.backward_weight(&x, &dy, &mut dw);
        // A kernel of one tap has the order of the sums.
        assert_eq!((dw == conv.weight_by_parts(&x, &dy), dw == conv.weight_by_rows(&x, &dy)), (in_parts, !in_parts));
    }
}
