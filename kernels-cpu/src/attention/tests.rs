use super::*;
use crate::gemm::gemm_serial;
use crate::isa::Isa;
use crate::simd::eval_on;
use proptest::prelude::*;

/// Without scale, order, mask and dropout.
fn plain([batch, heads, queries, keys, width]: [usize; 5]) -> Attention<'static> {
    Attention { batch, heads, queries, keys, width, scale: 1.0, causal: false, key_mask: None, dropout: None }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn every_tier_is_the_definition(queries in 1usize..20, keys in 1usize..40, width in 1usize..9, causal in any::<bool>(), masked in any::<bool>(), seed in any::<u64>()) {
        let (batch, heads, mut rng) = (2, 2, crate::rng::Rng::new(seed, 0));
        let mut draw = |n: usize| (0..batch * heads * n * width).map(|_| rng.normal() as f32).collect::<Vec<f32>>();
        let (q, k, v) = (draw(queries), draw(keys), draw(keys));
        let mask: Vec<u8> = (0..batch * keys).map(|_| u8::from(rng.chance(0.6))).collect();
        let a = Attention { batch, heads, queries, keys, width, scale: 0.7, causal, key_mask: masked.then_some(&mask[..]), dropout: None };
        let stride = |n: usize| [heads * n * width, n * width, width, 1].map(|s| s as isize);
        let (sq, sk) = (stride(queries), stride(keys));
        let view = |data, strides| Strided { data, offset: 0, strides };
        let wide = |x: &[f32]| x.iter().map(|&x| f64::from(x)).collect::<Vec<f64>>();
        let (wq, wk, wv) = (wide(&q), wide(&k), wide(&v));
        let wide_view = |data, strides| Strided { data, offset: 0, strides };
        let exact = attention_def(&a, wide_view(&wq, &sq), wide_view(&wk, &sk), wide_view(&wv, &sk));
        let (mut out, mut lse) = (vec![7.0; q.len()], vec![7.0; batch * heads * queries]);
        a.forward(view(&q, &sq), view(&k, &sk), view(&v, &sk), &mut out, &mut lse);
        for (o, e) in out.iter().zip(&exact) {
            // The definition divides nothing by nothing where nothing is seen.
            prop_assert!((f64::from(*o) - if e.is_nan() { 0.0 } else { *e }).abs() < 1e-5, "{o} instead of {e}");
        }
        // The weights of the first head on every tier, with the log-sum-exp found and then given.
        // What lies between rows is of no matter.
        let (mut scores, mut add) = (vec![f32::NAN; queries * a.apart()], vec![f32::NAN; a.apart()]);
        gemm_serial(Mat::new(&q, queries, width), Mat::new(&k, keys, width).t(), false, &mut scores, a.apart(), None);
        a.mask(0, &mut add[..keys]);
        for isa in Isa::available() {
            let (mut p, mut found, mut factors) = (scores.clone(), vec![0.0; queries], vec![0.0; queries]);
            eval_on(isa, Weigh { attention: &a, mask: &add, scores: &mut p, lse: &mut found, factors: Some(&mut factors) });
            let mut again = scores.clone();
            eval_on(isa, Weigh { attention: &a, mask: &add, scores: &mut again, lse: &mut found, factors: None });
            for i in 0..queries {
                prop_assert!(found[i] == lse[i] || (found[i] - lse[i]).abs() < 1e-5);
                for at in i * a.apart()..i * a.apart() + keys {
                    prop_assert!((p[at] * factors[i] - again[at]).abs() < 2e-6, "{isa}: {} and {}", p[at] * factors[i], again[at]);
                }
                let total: f32 = again[i * a.apart()..][..keys].iter().sum();
                prop_assert!((total - if found[i].is_finite() { 1.0 } else { 0.0 }).abs() < 1e-5, "{isa}: weights sum to {total}");
            }
        }
    }
}

/// Drawn sizes, layouts, masks and dropout: values and gradients in f64 against the definition and its central differences, those
/// of every tier against f64.
#[cfg(feature = "rayon")]
#[test]
fn any_layout_gives_the_definition_and_its_gradients() {
    use crate::testing::{Drawn, apart, indices, narrow, normals, on_every_tier, wide};
    let mut rng = crate::rng::Rng::new(4, 0);
    for round in 0..40 {
        let [batch, heads, width] = [1 + rng.below(2), 1 + rng.below(3), 1 + rng.below(5)];
        let [queries, keys] = [1 + rng.below(6), 1 + rng.below(20)];
        let mask: Vec<u8> = (0..batch * keys).map(|_| u8::from(rng.chance(0.6))).collect();
        let dropout = rng.chance(0.5).then_some((0.3, 17 + round));
        let key_mask = rng.chance(0.5).then_some(&mask[..]);
        let (causal, scale) = (rng.chance(0.5), 0.7);
        let a = Attention { batch, heads, queries, keys, width, scale, causal, key_mask, dropout };
        let (dq, dk) = ([batch, heads, queries, width], [batch, heads, keys, width]);
        let [q, k, v] = [&dq, &dk, &dk].map(|dims| Drawn::normal(&mut rng, dims));
        let weights = wide(&narrow(&normals(&mut rng, batch * queries * heads * width)));
        let rows = batch * heads * queries;

        let (mut out, mut lse) = (vec![7.0; weights.len()], vec![7.0; rows]);
        a.forward(q.view(), k.view(), v.view(), &mut out, &mut lse);
        assert!(apart(&out, &attention_def(&a, q.view(), k.view(), v.view())) < 1e-12, "{a:?}");
        let mut grads = [&dq, &dk, &dk].map(|dims| vec![7.0; dims.iter().product()]);
        let [gq, gk, gv] = &mut grads;
        a.backward(q.view(), k.view(), v.view(), &lse, &weights, gq, gk, gv);
        let loss = |x: [&Drawn<f64>; 3]| {
            let out = attention_def(&a, x[0].view(), x[1].view(), x[2].view());
            out.iter().zip(&weights).map(|(o, w)| o * w).sum::<f64>()
        };
        for (which, dims) in [dq, dk, dk].iter().enumerate() {
            for index in indices(dims).step_by(3) {
                let at_shift = |h: f64| {
                    let moved = [&q, &k, &v][which].shifted(&index, h);
                    let mut x = [&q, &k, &v];
                    x[which] = &moved;
                    loss(x)
                };
                let numeric = (at_shift(1e-5) - at_shift(-1e-5)) / 2e-5;
                let analytic = grads[which][a.row(index[0] * heads + index[1], dims[2], index[2]) + index[3]];
                assert!((numeric - analytic).abs() < 1e-8, "input {which} {index:?}: {analytic}, not {numeric}");
            }
        }
        let [sq, sk, sv] = [&q, &k, &v].map(Drawn::single);
        on_every_tier(|isa| {
            let (mut y, mut sums) = (vec![7.0f32; out.len()], vec![7.0; rows]);
            a.forward(sq.view(), sk.view(), sv.view(), &mut y, &mut sums);
            assert!(apart(&wide(&y), &out) < 1e-5 && apart(&wide(&sums), &lse) < 1e-5, "{isa} {a:?}");
            let mut single = [&dq, &dk, &dk].map(|dims| vec![7.0f32; dims.iter().product()]);
            let [gq, gk, gv] = &mut single;
            a.backward(sq.view(), sk.view(), sv.view(), &sums, &narrow(&weights), gq, gk, gv);
            let off = single.iter().zip(&grads).map(|(a, b)| apart(&wide(a), b)).fold(0.0, f64::max);
            assert!(off < 3e-5, "gradients are {off} apart on {isa}: {a:?}");
        });
    }
}

/// What rounding weights, score gradients and the output's gradient to bf16, by at most 2^-8 each, can change of the output and the gradients of q, k and v: the
/// sums of what it changes of their terms. All in row-major order of [batch, n, heads, width].
#[cfg(feature = "rayon")]
fn off_at_most(a: &Attention<'_>, q: &[f64], k: &[f64], v: &[f64], dout: &[f64]) -> [Vec<f64>; 4] {
    let (tq, tk, d, u) = (a.queries, a.keys, a.width, 1.0 / 256.0);
    let mut off = [tq, tq, tk, tk].map(|n| vec![0.0; a.batch * n * a.heads * d]);
    for item in 0..a.batch * a.heads {
        let of = |x: &[f64], n: usize, i: usize| x[(item * n + i) * d..][..d].to_vec();
        let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
        let sizes = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| (x * y).abs()).sum::<f64>();
        let mut mask = vec![0.0; tk];
        a.mask(item, &mut mask);
        for i in 0..tq {
            let (row, at) = (of(q, tq, i), a.row(item, tq, i));
            let (slope, factors) = (&dout[at..at + d], (0..tk).map(|j| a.drop(item, i, j)).collect::<Vec<f64>>());
            let mut p: Vec<f64> = (0..tk).map(|j| a.scale * dot(&row, &of(k, tk, j)) + mask[j]).collect();
            p[a.reach(i)..].fill(f64::NEG_INFINITY);
            if softmax_row_def(&mut p) == f64::NEG_INFINITY {
                continue;
            }
            let dp: Vec<f64> = (0..tk).map(|j| factors[j] * dot(slope, &of(v, tk, j))).collect();
            let of_dp: Vec<f64> = (0..tk).map(|j| u * factors[j] * sizes(slope, &of(v, tk, j))).collect();
            let (mean, of_mean) = (dot(&p, &dp), dot(&p, &of_dp));
            for j in 0..tk {
                let ds = a.scale * p[j] * (dp[j] - mean);
                let of_ds = a.scale * p[j] * (of_dp[j] + of_mean) * (1.0 + u) + u * ds.abs();
                let (there, weight) = (a.row(item, tk, j), p[j] * factors[j]);
                for c in 0..d {
                    off[0][at + c] += u * weight * of(v, tk, j)[c].abs();
                    off[1][at + c] += of_ds * of(k, tk, j)[c].abs();
                    off[2][there + c] += of_ds * row[c].abs();
                    off[3][there + c] += (2.0 * u + u * u) * weight * slope[c].abs();
                }
            }
        }
    }
    off
}

#[cfg(feature = "rayon")]
#[test]
fn products_of_bf16_are_off_by_their_roundings() {
    use crate::testing::{Drawn, narrow, normals, on_every_tier, wide};
    use half::bf16;
    let mut rng = crate::rng::Rng::new(5, 0);
    let nearest = std::sync::Mutex::new(f64::INFINITY);
    for round in 0..20 {
        let [batch, heads, width] = [1 + rng.below(2), 1 + rng.below(3), 1 + rng.below(40)];
        let [queries, keys] = [1 + rng.below(40), 1 + rng.below(70)];
        let mask: Vec<u8> = (0..batch * keys).map(|_| u8::from(rng.chance(0.6))).collect();
        let dropout = rng.chance(0.5).then_some((0.3, 17 + round));
        let key_mask = rng.chance(0.5).then_some(&mask[..]);
        let (causal, scale) = (rng.chance(0.5), 1.0 / (width as f64).sqrt());
        let a = Attention { batch, heads, queries, keys, width, scale, causal, key_mask, dropout };
        let (dq, dk) = ([batch, heads, queries, width], [batch, heads, keys, width]);
        let halves = [&dq, &dk, &dk].map(|dims| Drawn::new(&mut rng, dims, false, |rng| bf16::from_f64(rng.normal())));
        let wides = halves.each_ref().map(|x| {
            let Strided { data, offset, strides } = x.view();
            let data: Vec<f64> = data.iter().map(|&x| f64::from(x)).collect();
            Drawn::of(&data, Strided { data: &data, offset, strides })
        });
        let weights = wide(&narrow(&normals(&mut rng, batch * queries * heads * width)));
        let (mut out, mut lse) = (vec![7.0; weights.len()], vec![7.0; batch * heads * queries]);
        let [q, k, v] = wides.each_ref().map(Drawn::view);
        a.forward(q, k, v, &mut out, &mut lse);
        let [mut gq, mut gk, mut gv] = [&dq, &dk, &dk].map(|dims| vec![7.0; dims.iter().product()]);
        a.backward(q, k, v, &lse, &weights, &mut gq, &mut gk, &mut gv);
        let exact = [out, gq, gk, gv];
        let most = off_at_most(&a, &wides[0].elements(&dq), &wides[1].elements(&dk), &wides[2].elements(&dk), &weights);
        on_every_tier(|isa| {
            let [q, k, v] = halves.each_ref().map(Drawn::view);
            let [mut y, mut gq, mut gk, mut gv] = exact.each_ref().map(|x| vec![7.0f32; x.len()]);
            let mut sums = vec![7.0; lse.len()];
            a.forward(q, k, v, &mut y, &mut sums);
            a.backward(q, k, v, &sums, &narrow(&weights), &mut gq, &mut gk, &mut gv);
            for (which, ours) in [y, gq, gk, gv].iter().enumerate() {
                for ((&x, exact), most) in ours.iter().zip(&exact[which]).zip(&most[which]) {
                    // What f32 leaves, as in the test before.
                    let off = (f64::from(x) - exact).abs() - 3e-5;
                    assert!(off <= *most, "{which} on {isa}: {off} beyond {most}, {a:?}");
                    let mut nearest = nearest.lock().unwrap();
                    *nearest = if off > 1e-4 { nearest.min(most / off) } else { *nearest };
                }
            }
        });
    }
    // The bound is no idle one.
    assert!(*nearest.lock().unwrap() < 4.0, "{nearest:?}");
}

/// Values that are all alike: whatever the weights, queries and keys have no gradient. Large scores leave the weights of a row with another sum than 1 (of
/// a log-sum-exp near 40 alone 2^-19 are lost), which must not show.
#[cfg(feature = "rayon")]
#[test]
fn large_scores_leave_no_gradient_where_there_is_none() {
    use crate::testing::{Drawn, narrow, normals, on_every_tier};
    let (queries, keys, width, mut rng) = (7, 19, 8, crate::rng::Rng::new(6, 0));
    let a = plain([1, 1, queries, keys, width]);
    let (dq, dk) = ([1, 1, queries, width], [1, 1, keys, width]);
    let q = Drawn::new(&mut rng, &dq, false, |rng| (6.0 * rng.normal()) as f32);
    let k = Drawn::new(&mut rng, &dk, false, |rng| rng.normal() as f32);
    let v = Drawn::new(&mut rng, &dk, false, |_| 3.0f32);
    let dout = narrow(&normals(&mut rng, queries * width));
    on_every_tier(|isa| {
        let (mut y, mut lse) = (vec![7.0f32; queries * width], vec![7.0; queries]);
        a.forward(q.view(), k.view(), v.view(), &mut y, &mut lse);
        assert!(lse.iter().any(|&l| l > 30.0), "{lse:?}");
        let [mut gq, mut gk, mut gv] = [&dq, &dk, &dk].map(|dims| vec![7.0f32; dims.iter().product()]);
        a.backward(q.view(), k.view(), v.view(), &lse, &dout, &mut gq, &mut gk, &mut gv);
        // A rounding of a mean of up to 20, times keys of up to 3 or queries of up to 20; weights that were off by 2^-19 gave four times as much.
        let of = |x: &[f32]| x.iter().fold(0.0f32, |most, x| most.max(x.abs()));
        assert!(of(&gq) < 1e-6 * 3.0 && of(&gk) < 1e-6 * 20.0, "{isa}: {} and {}", of(&gq), of(&gk));
    });
}

#[test]
fn dropout_keeps_as_many_as_it_says() {
    let kept = (0..40_000).filter(|&i| keeps(3, i, 0.3)).count();
    assert!((27_400..28_600).contains(&kept), "{kept}");
    assert!((0..1000).all(|i| keeps(3, i, 0.0)) && !(0..1000).any(|i| keeps(3, i, 1.0)));
    // What is kept makes up for the rest, and no two probabilities have a fate in common.
    let a = Attention { dropout: Some((0.25, 3)), ..plain([1, 4, 30, 40, 1]) };
    let factors: Vec<f64> = (0..4800).map(|at| a.drop(at / 1200, at / 40 % 30, at % 40)).collect();
    assert!((0..4800).all(|at| factors[at] == if keeps(3, at as u64, 0.25) { 4.0 / 3.0 } else { 0.0 }));
    assert!((factors.iter().sum::<f64>() / 4800.0 - 1.0).abs() < 0.05);
    // The upper half of the index counts.
    assert!((0..64).any(|i| keeps(3, i, 0.5) != keeps(3, i + (1 << 32), 0.5)));
}

#[test]
fn nothing_to_look_at_gives_zeros() {
    for (batch, queries, keys, width) in [(1, 3, 0, 4), (0, 3, 2, 4), (2, 0, 2, 4), (1, 3, 2, 0)] {
        let a = plain([batch, 2, queries, keys, width]);
        let strides = |n: usize| [2 * n * width, n * width, width, 1].map(|s| s as isize);
        let (sq, sk, ones) = (strides(queries), strides(keys), vec![1.0f32; 64]);
        let q = Strided { data: &ones, offset: 0, strides: &sq };
        let k = Strided { data: &ones, offset: 0, strides: &sk };
        let (mut out, mut lse) = (vec![7.0; batch * queries * 2 * width], vec![7.0; batch * queries * 2]);
        a.forward(q, k, k, &mut out, &mut lse);
        assert!(out.iter().all(|&o| o == 0.0) && lse.iter().all(|&l| l == f32::NEG_INFINITY));
        let mut dq = vec![7.0; out.len()];
        let [mut dk, mut dv] = [0; 2].map(|_| vec![7.0; batch * keys * 2 * width]);
        a.backward(q, k, k, &lse, &ones[..out.len()], &mut dq, &mut dk, &mut dv);
        assert!(dq.iter().chain(&dk).chain(&dv).all(|&d| d == 0.0));
    }
}
