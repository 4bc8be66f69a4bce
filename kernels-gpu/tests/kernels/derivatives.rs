//! The kernels of backward and of optimisers against their definitions in f64.

use kernels_cpu::attention::keeps;
use kernels_cpu::map::{Saved, Unary};
use kernels_cpu::optim::{self, Adam};
use kernels_cpu::rng::Rng;
use kernels_gpu::ops::{Clip, Function, by_row};

use super::common::{Drawn, check, close, device, normal, rows, size, wide};
use super::{CASES, out};

#[test]
fn slopes_are_the_derivatives() {
    check(CASES, |rng| {
        let (d, dims) = (device(rng), [size(rng), 1 + rng.below(4)]);
        let f = Unary::ALL[rng.below(Unary::ALL.len())];
        let kept = Drawn::contiguous(d, rng, &dims, |rng| match (f, rng.below(12)) {
            (Unary::Log | Unary::Sqrt | Unary::Rsqrt, _) => rng.range(0.2, 3.0) as f32,
            (_, 0) if f.saves() == Saved::Input => rng.range(-30.0, 30.0) as f32,
            _ => rng.range(0.1, 3.0) as f32 * if rng.chance(0.5) { 1.0 } else { -1.0 },
        });
        let dy = Drawn::contiguous(d, rng, &dims, normal);
        let dx = out(d, rng, &dims);
        let exact = |slope: &dyn Fn(f64) -> f64| -> Vec<f64> {
            kept.values.iter().zip(&dy.values).map(|(&x, &d)| slope(f64::from(x)) * f64::from(d)).collect()
        };
        d.map_backward(Function::Unary(f), kept.view(), dy.view(), dx.view()).unwrap();
        close(f.name(), &dx.read(), &exact(&|x| f.df(x)), 2e-6);
        let a = rng.normal() as f32;
        d.map_backward(Function::Affine(a, 3.0), kept.view(), dy.view(), dx.view()).unwrap();
        close("affine", &dx.read(), &exact(&|_| f64::from(a)), 1e-6);
        d.map_backward(Function::Clamp(-0.5, 0.75), kept.view(), dy.view(), dx.view()).unwrap();
        close("clamp", &dx.read(), &exact(&|x| f64::from(u8::from((-0.5..=0.75).contains(&x)))), 0.0);
    });
}

#[test]
fn dropout_draws_as_the_cpu_does() {
    check(CASES, |rng| {
        let (d, n, p, key) = (device(rng), size(rng) * 5, rng.uniform(), rng.next_u64());
        let x = Drawn::contiguous(d, rng, &[n], normal);
        let y = out(d, rng, &[n]);
        let in_place = rng.chance(0.3);
        d.dropout(p, key, x.view(), if in_place { x.view() } else { y.view() }).unwrap();
        let scale = (1.0 / (1.0 - p)) as f32;
        let of = |(i, &x): (usize, &f32)| if keeps(key, i as u64, p) { f64::from(scale) * f64::from(x) } else { 0.0 };
        let exact: Vec<f64> = x.values.iter().enumerate().map(of).collect();
        close("dropout", &if in_place { x.read() } else { y.read() }, &exact, 1e-6);
    });
}

/// Many sums of blocks, of views of no elements, few and many.
#[test]
fn long_sums_are_sums() {
    check(12, |rng| {
        let (d, [outer, inner]) = (device(rng), [1 + rng.below(2), [1, 2, 3, 4, 20][rng.below(5)]]);
        let n = [4095, 4096, 4097, 9000, 20_000][rng.below(5)];
        let x = Drawn::contiguous(d, rng, &[outer, n, inner], normal);
        let (y, squares) = (out(d, rng, &[outer, inner]), out(d, rng, &[1]));
        d.sum(x.view(), [outer, n, inner], y.view()).unwrap();
        let at = |o, j, i| f64::from(x.values[(o * n + j) * inner + i]);
        let exact: Vec<f64> = (0..outer * inner).map(|e| (0..n).map(|j| at(e / inner, j, e % inner)).sum()).collect();
        close("sum", &y.read(), &exact, 2e-6);
        let few = [0, 1, 4100].map(|n| Drawn::contiguous(d, rng, &[n], normal));
        let all = [&few[0], &x, &few[1], &few[2], &x];
        for all in [&all[..0], &all[..1], &all[..3], &all] {
            let views: Vec<_> = all.iter().map(|x| x.view()).collect();
            d.sum_of_squares(&views, squares.view()).unwrap();
            let exact = all.iter().flat_map(|x| wide(&x.values)).map(|x| x * x).sum();
            close("squares", &squares.read(), &[exact], 1e-6);
        }
    });
}

#[test]
fn softmax_backward_is_its_formula() {
    check(CASES, |rng| {
        let (d, [rows, n], log) = (device(rng), rows(rng), rng.chance(0.4));
        let y = Drawn::contiguous(d, rng, &[rows, n], |rng| {
            let p = rng.uniform() as f32 / 4.0;
            if log { p.max(1e-3).ln() } else { p }
        });
        let dy = Drawn::contiguous(d, rng, &[rows, n], normal);
        let (dx, in_place, scale) = (out(d, rng, &[rows, n]), rng.chance(0.3), rng.range(0.1, 2.0) as f32);
        let to = if in_place { &dy } else { &dx };
        d.softmax_backward(log, scale, y.view(), dy.view(), to.view()).unwrap();
        let mut exact = Vec::new();
        for (y, dy) in wide(&y.values).chunks(n).zip(wide(&dy.values).chunks(n)) {
            let sum: f64 = y.iter().zip(dy).map(|(y, d)| if log { *d } else { y * d }).sum();
            let slope = |(y, d): (&f64, &f64)| if log { d - y.exp() * sum } else { y * (d - sum) };
            exact.extend(y.iter().zip(dy).map(|pair| f64::from(scale) * slope(pair)));
        }
        close("softmax_backward", &to.read(), &exact, 2e-6);
    });
}

#[test]
fn norms_backward_are_their_formulas() {
    check(CASES, |rng| {
        let (d, columns) = (device(rng), rng.chance(0.3));
        let [rows, n] = rows(rng);
        let rows = rows.max(1) * if rng.chance(0.1) { 9 } else { 1 };
        let [x, dy] = [0, 1].map(|_| Drawn::contiguous(d, rng, &[rows, n], normal));
        let w = Drawn::contiguous(d, rng, &[n], normal);
        let of = if columns { n } else { rows };
        let mean = Drawn::contiguous(d, rng, &[of], |rng| 0.1 * normal(rng));
        let rstd = Drawn::contiguous(d, rng, &[of], |rng| rng.range(0.5, 1.5) as f32);
        let sums = out(d, rng, &[2, n]);
        let statistics = [mean.view(), rstd.view()];
        d.norm_sums(columns, x.view(), dy.view(), statistics, [rows, n], sums.view()).unwrap();
        let at = |v: &Drawn, i: usize| f64::from(v.values[i]);
        let z = |row: usize, j: usize| {
            let of = if columns { j } else { row };
            (at(&x, row * n + j) - at(&mean, of)) * at(&rstd, of)
        };
        let products = (0..n).map(|j| (0..rows).map(|row| at(&dy, row * n + j) * z(row, j)).sum());
        let plain = (0..n).map(|j| (0..rows).map(|row| at(&dy, row * n + j)).sum());
        close("norm_sums", &sums.read(), &products.chain(plain).collect::<Vec<f64>>(), 3e-6);
        if columns {
            return;
        }
        let dx = out(d, rng, &[rows, n]);
        d.layer_norm_backward(x.view(), w.view(), statistics, dy.view(), dx.view()).unwrap();
        let mut exact = Vec::new();
        for row in 0..rows {
            let g = |j: usize| at(&w, j) * at(&dy, row * n + j);
            let [mean, dot] =
                [0, 1].map(|k| (0..n).map(|j| if k == 0 { g(j) } else { g(j) * z(row, j) }).sum::<f64>() / n as f64);
            exact.extend((0..n).map(|j| at(&rstd, row) * (g(j) - mean - z(row, j) * dot)));
        }
        close("layer_norm_backward", &dx.read(), &exact, 3e-6);
    });
}

#[test]
fn scattering_adds_in_order() {
    check(CASES, |rng| {
        let (d, [outer, n, k, inner]) = (device(rng), [size(rng), size(rng).max(1), size(rng), size(rng)]);
        let x = Drawn::contiguous(d, rng, &[outer, k, inner], normal);
        let base = Drawn::contiguous(d, rng, &[outer, n, inner], normal);
        let (y, based) = (out(d, rng, &base.dims), rng.chance(0.5));
        let index: Vec<u32> = (0..k).map(|_| rng.below(n) as u32).collect();
        let rows: Vec<u8> = by_row(&index, n).iter().flat_map(|w| w.to_le_bytes()).collect();
        let rows = d.upload(&rows).unwrap();
        d.scatter_add(x.view(), &rows, based.then(|| base.view()), [outer, n, inner], y.view()).unwrap();
        // In f32, in the order of j: the same bits.
        let mut exact = if based { base.values.clone() } else { vec![0.0; base.values.len()] };
        for (e, x) in x.values.iter().enumerate() {
            let (o, j, i) = (e / inner / k, e / inner % k, e % inner);
            exact[(o * n + index[j] as usize) * inner + i] += x;
        }
        assert_eq!(y.read(), exact);
    });
}

/// Every rule, with gradients that are shorter than the norm they are clipped to, as long, longer, or have no finite norm.
#[test]
fn steps_are_those_of_the_cpu() {
    check(2 * CASES, |rng| {
        let (d, n, rule) = (device(rng), size(rng) * 3, rng.below(4));
        let [g, p, m] = [0; 3].map(|_| Drawn::contiguous(d, rng, &[n], normal));
        let v = Drawn::contiguous(d, rng, &[n], |rng| if rng.chance(0.1) { 0.0 } else { normal(rng).powi(2) });
        let [mut gs, mut ps, mut ms, mut vs] = [&g, &p, &m, &v].map(|x| wide(&x.values));
        let gradient = gs.clone();
        let (lr, momentum, weight_decay) = (0.1, 0.9, rng.uniform() * 0.2);
        // Of a whole gradient, of which g is a part: a square, so that its root is exact.
        let norm = [3.0f32, 0.0, f32::INFINITY, f32::NAN][[0, 0, 0, 0, 0, 1, 2, 3][rng.below(8)]];
        let most = [0.0, 0.5, 2.75, 3.0, 4.0][rng.below(5)];
        let squares = Drawn::contiguous(d, rng, &[1], |_| norm * norm);
        let clip = Clip { squares: squares.view(), most };
        if most > 0.0 && norm > most {
            gs.iter_mut().for_each(|g| *g *= f64::from(most) / f64::from(norm));
        }
        let numbers = |rng: &mut Rng, all: &[f64]| {
            let mut all = all.iter().map(|&c| c as f32);
            Drawn::contiguous(d, rng, &[all.len()], |_| all.next().unwrap())
        };
        match rule {
            0 | 1 => {
                let (eps, step, decoupled) = (1e-8, 1 + rng.next_u64() % 50, rule == 1);
                let adam = Adam { lr, beta1: momentum, beta2: 0.99, eps, weight_decay, decoupled, step };
                let constants = numbers(rng, &adam.constants());
                d.adam(g.view(), [p.view(), m.view(), v.view()], constants.view(), clip).unwrap();
                if norm.is_finite() {
                    optim::adam(&mut ps, &gs, &mut ms, &mut vs, adam);
                }
            }
            2 => {
                let constants = numbers(rng, &[lr, momentum, weight_decay]);
                d.sgd(g.view(), [p.view(), m.view()], constants.view(), clip).unwrap();
                if norm.is_finite() {
                    optim::sgd(&mut ps, &gs, &mut ms, lr, momentum, weight_decay);
                }
            }
            _ => {
                d.follow(g.view(), p.view(), numbers(rng, &[0.25]).view()).unwrap();
                ps.iter_mut().zip(&gradient).for_each(|(p, g)| *p += 0.25 * (g - *p));
            }
        }
        let all = [("parameters", &p, ps), ("first", &m, ms), ("second", &v, vs), ("gradient", &g, gradient)];
        for (what, ours, exact) in all {
            // What is not changed has its bits.
            let tolerance = if rule < 3 && !norm.is_finite() { 0.0 } else { 2e-6 };
            close(what, &ours.read(), &exact, tolerance);
        }
    });
}
