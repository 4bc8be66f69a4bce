//! Attention and its gradients against their definition in f64.

use std::sync::OnceLock;

use kernels_cpu::attention::keeps;
use kernels_cpu::rng::Rng;
use kernels_gpu::ops::Attention;
use kernels_gpu::{Device, Error, Memory, Options, Stored, View};

use super::common::{Drawn, check, close, device, devices, normal, open, size, wide, words};
use super::half_stored::{Half, KINDS, with_matrices};
use super::{CASES, out};

/// Numbers of [b, h, t, d]: in any layout, or as projections make them, [b, t, h, d] without gaps, there at times from a multiple of four on.
struct Heads {
    drawn: Drawn,
    /// The same in half.
    half: Option<(Half, Stored)>,
    dims: [usize; 4],
    strides: [isize; 4],
    /// In the order of `dims`.
    values: Vec<f64>,
}

impl Heads {
    fn drawn(d: &Device, rng: &mut Rng, dims: [usize; 4], strided: bool, stored: Stored) -> Self {
        let [b, h, t, w] = dims;
        let halved = |drawn: &Drawn| (stored != Stored::F32).then(|| (Half::of(d, drawn, stored), stored));
        let values = |drawn: &Drawn, half: &Option<(Half, Stored)>| {
            half.as_ref().map_or_else(|| drawn.values.clone(), |(half, _)| half.values.clone())
        };
        if strided {
            let drawn = Drawn::strided(d, rng, &dims, false, normal);
            let strides = [0, 1, 2, 3].map(|k| drawn.strides[k]);
            let half = halved(&drawn);
            return Self { values: wide(&values(&drawn, &half)), drawn, half, dims, strides };
        }
        let multiple = rng.chance(0.8);
        let drawn = loop {
            let drawn = Drawn::contiguous(d, rng, &[b, t, h, w], normal);
            if !multiple || drawn.offset.is_multiple_of(4) {
                break drawn;
            }
        };
        let strides = [0, 2, 1, 3].map(|k| drawn.strides[k]);
        let half = halved(&drawn);
        Self { values: by_head(&values(&drawn, &half), [b, t, h, w]), drawn, half, dims, strides }
    }

    fn view(&self) -> View<'_> {
        let view = View::new(&self.drawn.memory, self.drawn.offset, &self.dims, &self.strides);
        let half = self.half.as_ref();
        half.map_or(view, |(half, stored)| View { memory: &half.memory, stored: *stored, ..view })
    }
}

/// [b, t, h, d] as [b, h, t, d].
fn by_head(x: &[f32], [b, t, h, d]: [usize; 4]) -> Vec<f64> {
    let at = |e: usize| ((e / d / t / h * t + e / d % t) * h + e / d / t % h) * d + e % d;
    (0..b * t * h * d).map(|e| f64::from(x[at(e)])).collect()
}

/// Numbers, and by how much more than sums of f32 each may be off.
struct Bounded {
    exact: Vec<f64>,
    off: Vec<f64>,
}

impl Bounded {
    fn zeros(n: usize) -> Self {
        Self { exact: vec![0.0; n], off: vec![0.0; n] }
    }

    fn add(&mut self, at: usize, x: f64, off: f64) {
        self.exact[at] += x;
        self.off[at] += off;
    }

    #[track_caller]
    fn check(&self, what: &str, ours: &[f64], tolerance: f64) {
        assert_eq!(ours.len(), self.exact.len(), "{what}: lengths");
        let scale = self.exact.iter().fold(1.0f64, |m, x| m.max(x.abs()));
        for (i, (a, (b, off))) in ours.iter().zip(self.exact.iter().zip(&self.off)).enumerate() {
            let most = tolerance * scale + off;
            assert!(
                (a - b).abs() <= most,
                "{what}: element {i} of {} is {a:e}, should be {b:e} +- {most:e}",
                ours.len()
            );
        }
    }
}

struct Exact {
    y: Bounded,
    lse: Vec<f64>,
    dq: Bounded,
    dk: Bounded,
    dv: Bounded,
}

/// What is asked for, beside the operands.
#[derive(Clone, Copy, Debug)]
struct Asked {
    scale: f32,
    causal: bool,
    dropout: Option<(f64, u64)>,
    /// q, k and v.
    stored: Stored,
}

/// softmax(scale q k^T) v and its gradients, all [b, h, t, d], by their formulas. Weights, and for gradients dy and slopes too, are rounded by up to a share of
/// themselves where they are multiplied, forward and backward.
fn definition(asked: Asked, [forward, backward]: [f64; 2], mask: Option<&[u8]>, [q, k, v, dy]: [&Heads; 4]) -> Exact {
    let ([b, h, tq, d], tk, scale) = (q.dims, k.dims[2], f64::from(asked.scale));
    let (rows, cols) = (b * h * tq * d, b * h * tk * d);
    let [y, dq, dk, dv] = [rows, rows, cols, cols].map(Bounded::zeros);
    let mut e = Exact { y, lse: vec![], dq, dk, dv };
    for row in 0..b * h * tq {
        let (item, i) = (row / tq, row % tq);
        let sees = |j: usize| (!asked.causal || j + tq <= i + tk) && mask.is_none_or(|m| m[item / h * tk + j] != 0);
        let of =
            |x: &[f64], at: usize, y: &[f64], to: usize| (0..d).map(|c| x[at * d + c] * y[to * d + c]).sum::<f64>();
        let keys: Vec<usize> = (0..tk).filter(|&j| sees(j)).collect();
        let s: Vec<f64> = keys.iter().map(|&j| scale * of(&q.values, row, &k.values, item * tk + j)).collect();
        let most = s.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let lse = if keys.is_empty() { most } else { most + s.iter().map(|s| (s - most).exp()).sum::<f64>().ln() };
        e.lse.push(lse);
        let p: Vec<f64> = s.iter().map(|s| (s - lse).exp()).collect();
        let kept = |&j: &usize| match asked.dropout {
            Some((share, key)) if !keeps(key, (row * tk + j) as u64, share) => 0.0,
            Some((share, _)) => 1.0 / (1.0 - share),
            None => 1.0,
        };
        let kept: Vec<f64> = keys.iter().map(kept).collect();
        let dp: Vec<f64> =
            keys.iter().zip(&kept).map(|(&j, kept)| kept * of(&dy.values, row, &v.values, item * tk + j)).collect();
        let sum: f64 = p.iter().zip(&dp).map(|(p, dp)| p * dp).sum();
        for (n, &j) in keys.iter().enumerate() {
            for c in 0..d {
                let term = p[n] * kept[n] * v.values[(item * tk + j) * d + c];
                e.y.add(row * d + c, term, forward * term.abs());
            }
        }
        let sum_off: f64 = (row * d..row * d + d).map(|at| (dy.values[at] * e.y.off[at]).abs()).sum();
        for (n, &j) in keys.iter().enumerate() {
            let (w, at) = (p[n] * kept[n], item * tk + j);
            let dp_off: f64 = (0..d).map(|c| (dy.values[row * d + c] * v.values[at * d + c]).abs()).sum();
            let ds = scale * p[n] * (dp[n] - sum);
            let off = scale * p[n] * (sum_off + backward * kept[n] * dp_off) + backward * ds.abs();
            for c in 0..d {
                let (to, from) = (row * d + c, at * d + c);
                let dv = w * dy.values[to];
                e.dv.add(from, dv, 2.0 * backward * dv.abs());
                e.dq.add(to, ds * k.values[from], off * k.values[from].abs());
                e.dk.add(from, ds * q.values[to], off * q.values[to].abs());
            }
        }
    }
    e
}

/// A drawn attention of these sizes, forward and backward, with what lies beside; and the same bits again. By
/// matrices, forward and backward, where they are expected, and not where they are not.
fn compare(device: &Device, rng: &mut Rng, sizes: [usize; 5], asked: Asked, masked: bool, by_matrices: [bool; 2]) {
    let [b, h, tq, tk, d] = sizes;
    let strided = rng.chance(0.3);
    let [q, dy] = [asked.stored, Stored::F32].map(|stored| Heads::drawn(device, rng, [b, h, tq, d], strided, stored));
    let [k, v] = [0; 2].map(|_| Heads::drawn(device, rng, [b, h, tk, d], strided, asked.stored));
    let bytes: Vec<u8> = (0..b * tk).map(|_| u8::from(rng.chance(0.6)) * 3).collect();
    let mask = device.upload(&bytes).unwrap();
    let a = Attention {
        q: q.view(),
        k: k.view(),
        v: v.view(),
        scale: asked.scale,
        causal: asked.causal,
        mask: masked.then_some(&mask),
        dropout: asked.dropout,
    };
    // From a multiple of four on where the operands are.
    let result = |rng: &mut Rng, t: usize| loop {
        let x = out(device, rng, &[b, t, h, d]);
        if strided || x.offset.is_multiple_of(4) {
            return x;
        }
    };
    let [y, dq] = [0; 2].map(|_| result(rng, tq));
    let [dk, dv] = [0; 2].map(|_| result(rng, tk));
    let lse = device.memory(4 * b * h * tq).unwrap();
    let order = [0, 2, 1, 3];
    let (dims, strides) = (order.map(|k| dy.dims[k]), order.map(|k| dy.strides[k]));
    let gradient = View::new(&dy.drawn.memory, dy.drawn.offset, &dims, &strides);
    let forward = || device.attention(&a, y.view(), &lse).unwrap();
    let backward = || -> Result<(), Error> {
        let sums: Memory = device.attention_sums(&a, y.view(), View::new(&lse, 0, &[b * h * tq], &[1]), gradient)?;
        device.attention_dq(&a, gradient, &sums, dq.view())?;
        device.attention_dkv(&a, gradient, &sums, [dk.view(), dv.view()])
    };
    let counted = |run: &dyn Fn()| {
        let before = device.by_matrices();
        run();
        device.by_matrices() - before
    };
    let used = [counted(&forward), counted(&|| backward().unwrap())];
    let expected = by_matrices.map(|it| if it && tq * tk > 0 { 1 } else { 0 });
    assert_eq!(used, [expected[0], 2 * expected[1]], "kernels by matrices");
    // To the nearest, and roundings of what is rounded.
    let rounding = 1.01 * if asked.stored == Stored::F16 { 2.0f64.powi(-11) } else { 2.0f64.powi(-8) };
    let rounding = used.map(|used| if used > 0 { rounding } else { 0.0 });
    let exact = definition(asked, rounding, masked.then_some(&bytes[..]), [&q, &k, &v, &dy]);
    let run = || -> Result<Vec<Vec<f32>>, Error> {
        forward();
        backward()?;
        let lse = words(&lse).into_iter().map(f32::from_bits).collect();
        Ok(vec![y.read(), lse, dq.read(), dk.read(), dv.read()])
    };
    let first = run().unwrap();
    let what = format!("attention of [{b}, {h}, {tq} of {tk}, {d}], {asked:?}, masked {masked}, strided {strided}");
    close(&format!("{what}: lse"), &first[1], &exact.lse, 2e-6);
    // Weights are off by as much of themselves as scores are off.
    let tolerance = 4e-6 * (f64::from(asked.scale) * (d as f64).sqrt()).max(1.0);
    let parts = [("y", 0, tq, exact.y), ("dq", 2, tq, exact.dq), ("dk", 3, tk, exact.dk), ("dv", 4, tk, exact.dv)];
    for (name, at, t, exact) in parts {
        exact.check(&format!("{what}: {name}"), &by_head(&first[at], [b, t, h, d]), tolerance);
    }
    assert!(run().unwrap() == first, "{what}: other bits");
}

fn asked(rng: &mut Rng, d: usize) -> Asked {
    let dropout = rng.chance(0.25).then(|| (0.3, rng.next_u64()));
    let stored = [Stored::F32, Stored::F32, KINDS[0], KINDS[1]][rng.below(4)];
    Asked { scale: 1.0 / (d.max(1) as f32).sqrt(), causal: rng.chance(0.4), dropout, stored }
}

/// A device that has, or uses, no matrices for this.
fn without(rng: &mut Rng, asked: Asked) -> &'static Device {
    static WITHOUT: OnceLock<Device> = OnceLock::new();
    let drawn = device(rng);
    let plain = || WITHOUT.get_or_init(|| open(|o| o.matrices = Some(false)).unwrap());
    if asked.stored == Stored::F32 { drawn } else { plain() }
}

#[test]
fn attention_and_its_gradients_are_their_definition() {
    check(CASES / 5, |rng| {
        let [b, h, tq, tk] = [1 + rng.below(2), 1 + rng.below(3), size(rng), size(rng)];
        let d = [1, 3, 8, 16, 17, 20, 32, 33][rng.below(8)];
        let (asked, masked) = (asked(rng, d), rng.chance(0.4));
        compare(without(rng, asked), rng, [b, h, tq, tk, d], asked, masked, [false; 2]);
    });
}

/// Around the tiles' edges, with heads as models have them.
#[test]
fn attention_over_many_tiles_is_its_definition() {
    check(6, |rng| {
        let [tq, tk] = [[197, 197], [77, 77], [50, 50], [129, 1], [1, 130], [64, 100]][rng.below(6)];
        let (asked, masked) = (asked(rng, 64), rng.chance(0.3));
        // In tiles as on a GPU, and in small ones.
        let large = open(|o| (o.large_tiles, o.matrices) = (true, Some(false))).unwrap();
        let device = if rng.chance(0.5) { &large } else { without(rng, asked) };
        compare(device, rng, [1, 2, tq, tk, 64], asked, masked, [false; 2]);
    });
}

#[test]
fn wide_heads_and_little_shared_memory_have_small_tiles_or_a_limit() {
    check(1, |rng| {
        let plain = Asked { scale: 0.1, causal: false, dropout: None, stored: Stored::F32 };
        compare(&devices()[0], rng, [1, 1, 40, 33, 128], plain, false, [false; 2]);
        let weak = open(|o| o.shared = Some(16384)).unwrap();
        compare(&weak, rng, [1, 2, 40, 33, 64], plain, true, [false; 2]);
        let (x, y) = (Heads::drawn(&weak, rng, [1, 1, 3, 999], false, Stored::F32), out(&weak, rng, &[1, 3, 1, 999]));
        let (q, lse) = (x.view(), weak.memory(12).unwrap());
        let a = Attention { q, k: q, v: q, scale: 1.0, causal: false, mask: None, dropout: None };
        assert!(matches!(weak.attention(&a, y.view(), &lse), Err(Error::Limit(_))));
    });
}

/// Blocks of both sizes; widths that are no multiple of a matrix's side; and where a head is too wide, without.
#[test]
fn attention_by_cooperative_matrices_is_its_definition() {
    let changes: [fn(&mut Options); 2] =
        [|o| (o.matrices, o.cores) = (Some(true), Some(1)), |o| (o.matrices, o.cores) = (Some(true), Some(1000))];
    for change in changes {
        check(1, |_| {
            let Some((device, kinds)) = with_matrices(change) else { return };
            for seed in 0..4 {
                let rng = &mut Rng::new(seed, 0x6174_746e);
                let (d, stored) = ([1, 8, 16, 17, 24, 33, 65, 100][rng.below(8)], kinds[seed as usize % kinds.len()]);
                let sizes = [1 + rng.below(2), 1 + rng.below(2), size(rng), size(rng), d];
                let (mut asked, masked) = (Asked { stored, ..asked(rng, d) }, rng.chance(0.3));
                // Scores that are far apart, so that what was summed is multiplied.
                asked.scale *= if rng.chance(0.5) { 12.0 } else { 1.0 };
                compare(&device, rng, sizes, asked, masked, [d <= 96, d <= 64]);
            }
            // Rows of whole eights, over many blocks.
            let plain = Asked { scale: 2.0, causal: true, dropout: None, stored: kinds[0] };
            compare(&device, &mut Rng::new(9, 9), [1, 2, 70, 77, 32], plain, true, [true; 2]);
        });
    }
}
