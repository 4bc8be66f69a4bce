//! Every kernel against its definition in f64, on drawn sizes and layouts, with a look at what lies beside its output.

mod attention;
mod common;
mod derivatives;
mod half_stored;
mod replay;
mod windows;

use common::{Drawn, check, close, device, devices, normal, open, size, wide};
use kernels_cpu::map::Unary;
use kernels_cpu::rng::Rng;
use kernels_cpu::zip::Binary;
use kernels_gpu::ops::{Function, Gemm, Softmax};
use kernels_gpu::{Device, Error, Kind};

const CASES: u64 = 120;

fn dims(rng: &mut Rng, low: usize, high: usize) -> Vec<usize> {
    let rank = low + rng.below(high - low + 1);
    (0..rank).map(|_| if rank > 3 { 1 + rng.below(4) } else { size(rng) }).collect()
}

/// An output, of which every element has to be written.
fn out(device: &Device, rng: &mut Rng, dims: &[usize]) -> Drawn {
    Drawn::contiguous(device, rng, dims, |_| 777.0)
}

#[test]
fn copies_keep_every_bit_and_touch_nothing_else() {
    check(CASES, |rng| {
        let (d, mut dims) = (device(rng), dims(rng, 0, 6));
        // Long enough to be transposed in squares.
        if rng.chance(0.3) {
            dims = vec![1 + rng.below(2), 16 + rng.below(60), 1 + rng.below(3), 16 + rng.below(60)];
        }
        let x = Drawn::strided(d, rng, &dims, true, |rng| f32::from_bits(rng.next_u64() as u32));
        let y = Drawn::strided(d, rng, &dims, false, |_| 0.0);
        d.copy(x.view(), y.view()).unwrap();
        let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&y.read()), bits(&x.values));
        let value = f32::from_bits(rng.next_u64() as u32);
        d.fill(value, y.view()).unwrap();
        assert!(y.read().iter().all(|y| y.to_bits() == value.to_bits()));
    });
}

#[test]
fn functions_are_their_definitions() {
    check(CASES, |rng| {
        let (d, dims) = (device(rng), dims(rng, 0, 4));
        let f = Unary::ALL[rng.below(Unary::ALL.len())];
        let x = Drawn::strided(d, rng, &dims, true, |rng| match (f, rng.below(12)) {
            (Unary::Log | Unary::Sqrt | Unary::Rsqrt, _) => rng.range(0.2, 3.0) as f32,
            (_, 0) => f32::NAN,
            (_, 1) => rng.range(-30.0, 30.0) as f32,
            _ => rng.range(0.1, 3.0) as f32 * if rng.chance(0.5) { 1.0 } else { -1.0 },
        });
        let y = out(d, rng, &dims);
        d.map(Function::Unary(f), x.view(), y.view()).unwrap();
        let exact: Vec<f64> = x.values.iter().map(|&x| f.f(f64::from(x))).collect();
        close(f.name(), &y.read(), &exact, 1e-6);
        let (a, b) = (rng.normal() as f32, rng.normal() as f32);
        d.map(Function::Affine(a, b), x.view(), y.view()).unwrap();
        let exact: Vec<f64> = x.values.iter().map(|&x| f64::from(a) * f64::from(x) + f64::from(b)).collect();
        close("affine", &y.read(), &exact, 1e-6);
        d.map(Function::Clamp(-0.5, 0.75), x.view(), y.view()).unwrap();
        let exact: Vec<f64> = x.values.iter().map(|&x| f64::from(x.clamp(-0.5, 0.75))).collect();
        close("clamp", &y.read(), &exact, 0.0);
    });
}

/// Over all magnitudes and at the edges: what does not fit becomes what it should.
#[test]
fn functions_hold_at_the_edges_of_f32() {
    check(1, |rng| {
        let d = device(rng);
        let software = d.info().kind == Kind::Software;
        let edges = [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, f32::MAX, f32::MIN, 88.8, -88.8, 3e-39];
        let x: Vec<f32> = (0..=u32::MAX).step_by(1 << 20).map(f32::from_bits).chain(edges).collect();
        let mut values = x.iter().copied();
        let x = Drawn::contiguous(d, rng, &[x.len()], |_| values.next().unwrap());
        for &f in Unary::ALL {
            let y = out(d, rng, &x.dims);
            d.map(Function::Unary(f), x.view(), y.view()).unwrap();
            // A device may take denormal numbers for 0.
            for (&x, y) in x.values.iter().zip(y.read()).filter(|(x, _)| !x.is_subnormal()) {
                let (e, y) = (f.f(f64::from(x)), f64::from(y));
                // What is beyond f32 is infinite. Vulkan promises nothing of infinities, nor of formulas that pass through them: real devices are not held to it.
                let single = f64::from(e as f32);
                let exempt = !software && (x.is_infinite() || e.abs() > 1e38 || x.abs() > 1e12);
                let fits = match single.is_finite() {
                    true => e.abs() < 1.2e-38 || (y - e).abs() <= 1e-6 * e.abs().max(1.0),
                    false => y == single || y.is_nan() && single.is_nan(),
                };
                assert!(fits || exempt, "{}({x:e}) is {y:e}, should be {e:e}", f.name());
            }
        }
    });
}

#[test]
fn functions_of_two_are_their_definitions() {
    check(CASES, |rng| {
        let (d, dims) = (device(rng), dims(rng, 0, 5));
        let f = [Binary::Add, Binary::Sub, Binary::Mul, Binary::Div, Binary::Min, Binary::Max][rng.below(6)];
        let draw = |rng: &mut Rng| if rng.chance(0.03) { f32::NAN } else { 0.3 + normal(rng).abs() };
        let a = Drawn::strided(d, rng, &dims, true, draw);
        let b = Drawn::strided(d, rng, &dims, true, draw);
        let y = out(d, rng, &dims);
        d.zip(f, a.view(), b.view(), y.view()).unwrap();
        let (a, b) = (wide(&a.values), wide(&b.values));
        let mut exact = vec![0.0; a.len()];
        let flat = |data| kernels_cpu::Strided { data, offset: 0, strides: &[1] };
        kernels_cpu::zip::zip(f, &[a.len()], flat(&a[..]), flat(&b[..]), &mut exact);
        close(f.name(), &y.read(), &exact, 1e-6);
    });
}

#[test]
fn sums_are_sums() {
    check(CASES, |rng| {
        let (d, [outer, n, inner]) =
            (device(rng), [size(rng), size(rng).max(1), if rng.chance(0.4) { 1 } else { size(rng) }]);
        let x = Drawn::contiguous(d, rng, &[outer, n, inner], normal);
        let y = out(d, rng, &[outer, inner]);
        d.sum(x.view(), [outer, n, inner], y.view()).unwrap();
        let at = |o, j, i| f64::from(x.values[(o * n + j) * inner + i]);
        let exact: Vec<f64> = (0..outer * inner).map(|e| (0..n).map(|j| at(e / inner, j, e % inner)).sum()).collect();
        close("sum", &y.read(), &exact, 2e-6);
    });
}

#[test]
fn softmax_sees_what_it_may() {
    check(CASES, |rng| {
        let d = device(rng);
        let ([items, heads], [queries, n]) = ([0; 2].map(|_| 1 + rng.below(3)), common::rows(rng));
        let (causal, masked, log) = (rng.chance(0.4), rng.chance(0.4), rng.chance(0.2));
        let (causal, masked) = (causal && !log, masked && !log);
        let rows = items * heads * queries;
        let spread = if rng.chance(0.2) { 60.0 } else { 1.0 };
        // A row with NaN at a place that is seen is NaN there.
        let nan = if rng.chance(0.2) { 0.01 } else { 0.0 };
        let x = Drawn::contiguous(d, rng, &[items, heads, queries, n], |rng| {
            if rng.chance(nan) { f32::NAN } else { spread * normal(rng) }
        });
        let in_place = rng.chance(0.3);
        let y = out(d, rng, &x.dims);
        let mask: Vec<u8> = (0..items * n).map(|_| u8::from(rng.chance(0.7)) * 3).collect();
        let held = d.upload(&mask).unwrap();
        let lse = Drawn::contiguous(d, rng, &[rows], |_| 0.0);
        let lse_memory = d.memory(4 * rows).unwrap();
        let scale = rng.range(0.1, 1.5) as f32;
        let options = Softmax {
            log,
            scale: Some(scale),
            mask: masked.then_some((&held, heads * queries)),
            causal: causal.then_some(queries.max(1)),
            lse: Some(&lse_memory),
        };
        let y = if in_place { x.view() } else { y.view() };
        d.softmax(x.view(), y, options).unwrap();
        let seen = |row: usize, j: usize| {
            let (q, item) = (row % queries, row / (heads * queries));
            (!causal || j + queries <= q + n) && (!masked || mask[item * n + j] != 0)
        };
        let v = |row: usize, j: usize| f64::from(scale) * f64::from(x.values[row * n + j]);
        let (mut exact, mut sums) = (Vec::new(), Vec::new());
        for row in 0..rows {
            let most = (0..n).filter(|&j| seen(row, j)).map(|j| v(row, j)).fold(f64::NEG_INFINITY, f64::max);
            let base = if most.is_finite() { most } else { 0.0 };
            let sum: f64 = (0..n).filter(|&j| seen(row, j)).map(|j| (v(row, j) - base).exp()).sum();
            sums.push(base + sum.ln());
            exact.extend((0..n).map(|j| match (log, seen(row, j)) {
                (true, _) => v(row, j) - base - sum.ln(),
                (false, true) => (v(row, j) - base).exp() / sum,
                (false, false) => 0.0,
            }));
        }
        let got = words_of(y, &x);
        // Scores are rounded before their difference is taken.
        close("softmax", &got, &exact, if spread > 1.0 { 2e-5 } else { 2e-6 });
        if rows > 0 {
            let lse: Vec<f32> = common::words(&lse_memory).into_iter().map(f32::from_bits).collect();
            close("lse", &lse, &sums, 2e-6);
        }
        lse.read();
    });
}

/// A contiguous view's elements; of `x` itself with a look at what lies beside.
fn words_of(y: kernels_gpu::View<'_>, x: &Drawn) -> Vec<f32> {
    if std::ptr::eq(y.memory, &x.memory) {
        return x.read();
    }
    let all = common::words(y.memory);
    all[y.offset..][..y.numel()].iter().map(|&w| f32::from_bits(w)).collect()
}

#[test]
fn layer_norm_is_its_formula() {
    check(CASES, |rng| {
        let (d, [rows, n]) = (device(rng), common::rows(rng));
        let shift = if rng.chance(0.3) { 10.0 } else { 0.0 };
        let x = Drawn::contiguous(d, rng, &[rows, n], |rng| normal(rng) + shift);
        let [w, b] = [0, 1].map(|_| Drawn::contiguous(d, rng, &[n], normal));
        let y = out(d, rng, &x.dims);
        let statistics = [0, 1].map(|_| d.memory(4 * rows).unwrap());
        let eps = 0.1f32;
        d.layer_norm(x.view(), [w.view(), b.view()], eps, y.view(), [&statistics[0], &statistics[1]]).unwrap();
        let (values, mut exact, mut means, mut rstds) = (wide(&x.values), Vec::new(), Vec::new(), Vec::new());
        for row in values.chunks(n) {
            let mean = row.iter().sum::<f64>() / n as f64;
            let var = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n as f64;
            let rstd = (var + f64::from(eps)).powf(-0.5);
            exact.extend((0..n).map(|j| (row[j] - mean) * rstd * f64::from(w.values[j]) + f64::from(b.values[j])));
            means.push(mean);
            rstds.push(rstd);
        }
        close("layer_norm", &y.read(), &exact, 1e-5);
        if rows > 0 {
            let [mean, rstd] =
                statistics.map(|m| common::words(&m).into_iter().map(f32::from_bits).collect::<Vec<_>>());
            close("mean", &mean, &means, 1e-6);
            close("rstd", &rstd, &rstds, 1e-5);
        }
    });
}

#[test]
fn gathering_takes_what_the_index_says() {
    check(CASES, |rng| {
        let (d, [outer, n, k, inner]) = (device(rng), [size(rng), size(rng).max(1), size(rng), size(rng)]);
        let full = rng.chance(0.5) && outer * inner != 1;
        let x = Drawn::contiguous(d, rng, &[outer, n, inner], normal);
        let y = out(d, rng, &[outer, k, inner]);
        let index: Vec<u32> = (0..if full { outer * k * inner } else { k }).map(|_| rng.below(n) as u32).collect();
        let bytes: Vec<u8> = index.iter().flat_map(|i| i.to_le_bytes()).collect();
        d.gather(x.view(), [outer, n, inner], &d.upload(&bytes).unwrap(), k, y.view()).unwrap();
        let from = |e: usize| index[if full { e } else { e / inner % k }] as usize;
        let expected: Vec<f32> =
            (0..outer * k * inner).map(|e| x.values[(e / inner / k * n + from(e)) * inner + e % inner]).collect();
        assert_eq!(y.read(), expected);
    });
}

#[test]
fn products_are_their_sums() {
    check(CASES / 2, |rng| {
        let d = device(rng);
        let [b0, b1] = [1 + rng.below(2), 1 + rng.below(3)];
        let [m, n, k] = [0, 1, 2].map(|_| size(rng));
        let a = Drawn::strided(d, rng, &[b0, b1, m, k], false, normal);
        let b = Drawn::strided(d, rng, &[b0, b1, k, n], false, normal);
        // Rows of C without gaps, batches in either order.
        let swapped = rng.chance(0.5);
        let dims = if swapped { [b0, m, b1, n] } else { [b0, b1, m, n] };
        let c = out(d, rng, &dims);
        let residual = Drawn::contiguous(d, rng, &dims, normal);
        let swap = |x: &[isize]| if swapped { vec![x[0], x[2], x[1], x[3]] } else { x.to_vec() };
        let c_dims = [b0, b1, m, n];
        let (c_strides, r_strides) = (swap(&c.strides), swap(&residual.strides));
        fn over<'a>(x: &'a Drawn, dims: &'a [usize], strides: &'a [isize]) -> kernels_gpu::View<'a> {
            kernels_gpu::View::new(&x.memory, x.offset, dims, strides)
        }
        let bias = Drawn::contiguous(d, rng, &[n], normal);
        let act = [None, None, Some(Unary::Gelu), Some(Unary::Relu), Some(Unary::QuickGelu)][rng.below(5)];
        let (biased, added, alpha) = (rng.chance(0.5), rng.chance(0.4), if rng.chance(0.3) { 0.37 } else { 1.0 });
        let gemm = Gemm {
            a: a.view(),
            b: b.view(),
            c: over(&c, &c_dims, &c_strides),
            alpha,
            bias: biased.then(|| bias.view()),
            residual: added.then(|| over(&residual, &c_dims, &r_strides)),
            act,
        };
        d.gemm(&gemm).unwrap();
        let mut exact = vec![0.0; b0 * b1 * m * n];
        for z in 0..b0 * b1 {
            for i in 0..m {
                for j in 0..n {
                    let at = if swapped { ((z / b1 * m + i) * b1 + z % b1) * n + j } else { (z * m + i) * n + j };
                    let term = |l| f64::from(a.values[(z * m + i) * k + l]) * f64::from(b.values[(z * k + l) * n + j]);
                    let mut v = f64::from(alpha) * (0..k).map(term).sum::<f64>();
                    v += if biased { f64::from(bias.values[j]) } else { 0.0 };
                    v += if added { f64::from(residual.values[at]) } else { 0.0 };
                    exact[at] = act.map_or(v, |f| f.f(v));
                }
            }
        }
        close("gemm", &c.read(), &exact, 2e-6);
    });
}

/// Large enough for the large tile, and with more of them than run at once.
#[test]
fn a_large_product_is_its_sums_and_the_same_bits_again() {
    check(1, |rng| {
        for d in devices() {
            let [m, n, k] = [517, 524, 70];
            let (a, b) = (
                Drawn::strided(d, rng, &[1, 1, m, k], false, normal),
                Drawn::strided(d, rng, &[1, 1, k, n], false, normal),
            );
            let c = out(d, rng, &[1, 1, m, n]);
            let gemm = Gemm::new(a.view(), b.view(), c.view());
            d.gemm(&gemm).unwrap();
            let term = |i: usize, j: usize, l: usize| f64::from(a.values[i * k + l]) * f64::from(b.values[l * n + j]);
            let exact: Vec<f64> = (0..m * n).map(|e| (0..k).map(|l| term(e / n, e % n, l)).sum()).collect();
            let first = c.read();
            close("gemm", &first, &exact, 2e-6);
            d.gemm(&gemm).unwrap();
            assert!(c.read() == first);
        }
    });
}

/// The forms that sizes choose: every tile, rows that begin at multiples of four and not, operands along k and along rows, and sums over a
/// long k in parts. Few, as drivers that compile for the CPU take seconds for each.
#[test]
fn large_products_are_their_sums_in_every_form() {
    check(1, |rng| {
        let Ok(d) = open(|o| o.large_tiles = true) else { return };
        for ([m, n, k], turned) in [
            ([516, 264, 20], [false, false]),
            ([516, 264, 20], [true, true]),
            ([301, 133, 19], [false, true]),
            ([301, 133, 19], [true, false]),
            ([72, 68, 1220], [true, false]),
            ([71, 35, 1033], [false, true]),
        ] {
            let drawn =
                |rng: &mut Rng, [rows, cols]: [usize; 2]| Drawn::contiguous(&d, rng, &[1, 1, rows, cols], normal);
            let sides = |turned: bool, [rows, cols]: [usize; 2]| if turned { [cols, rows] } else { [rows, cols] };
            let (a, b) = (drawn(rng, sides(turned[0], [m, k])), drawn(rng, sides(turned[1], [k, n])));
            let strides = |turned: bool, [rows, cols]: [usize; 2]| {
                if turned { [0, 0, 1, rows as isize] } else { [0, 0, cols as isize, 1] }
            };
            let (a_strides, b_strides) = (strides(turned[0], [m, k]), strides(turned[1], [k, n]));
            let (a_dims, b_dims) = ([1, 1, m, k], [1, 1, k, n]);
            let seen = |x: &Drawn, offset: usize| f64::from(x.values[offset]);
            let c = Drawn::contiguous(&d, rng, &[1, 1, m, n], normal);
            d.gemm(&Gemm::new(
                kernels_gpu::View::new(&a.memory, a.offset, &a_dims, &a_strides),
                kernels_gpu::View::new(&b.memory, b.offset, &b_dims, &b_strides),
                c.view(),
            ))
            .unwrap();
            let place = |s: [isize; 4], row: usize, col: usize| row * s[2] as usize + col * s[3] as usize;
            let term =
                |i: usize, j: usize, l: usize| seen(&a, place(a_strides, i, l)) * seen(&b, place(b_strides, l, j));
            let exact: Vec<f64> = (0..m * n).map(|e| (0..k).map(|l| term(e / n, e % n, l)).sum()).collect();
            close("gemm", &c.read(), &exact, 2e-6);
        }
    });
}

/// Every step needs the one before, over many submissions and the same memory again and again.
#[test]
fn a_long_chain_keeps_its_order() {
    check(1, |rng| {
        for d in devices() {
            let x = Drawn::contiguous(d, rng, &[1000], |_| 0.0);
            let mut held: Option<kernels_gpu::Memory> = None;
            for _ in 0..1000 {
                let next = d.memory(4000).unwrap();
                let dims = [1000];
                let view = |memory| kernels_gpu::View::new(memory, 0, &dims, &[1]);
                let from = held.as_ref().map_or_else(|| x.view(), view);
                d.map(Function::Affine(1.0, 1.0), from, view(&next)).unwrap();
                held = Some(next);
            }
            let last: Vec<f32> = common::words(held.as_ref().unwrap()).into_iter().map(f32::from_bits).collect();
            assert!(last.iter().all(|&x| x == 1000.0), "{:?}", &last[..4]);
        }
    });
}

#[test]
fn bytes_come_back_as_they_went() {
    check(20, |rng| {
        let d = device(rng);
        // Beyond a half of the staging ring now and then.
        let len = if rng.chance(0.1) { (34 << 20) + rng.below(99) } else { rng.below(5000) };
        let bytes: Vec<u8> =
            (0..len).map(|i| (i as u64).wrapping_mul(0x9e37_79b9_97f4_a7c5).to_le_bytes()[3]).collect();
        let memory = d.upload(&bytes).unwrap();
        let mut back = vec![0; len];
        memory.download(&mut back).unwrap();
        assert!(back == bytes, "{len} bytes");
    });
}

#[test]
fn what_a_device_cannot_do_is_an_error() {
    use kernels_gpu::{Choice, Options};
    check(1, |rng| {
        let open = |change: &dyn Fn(&mut Options)| {
            let mut options = Options::of(Choice::Index(devices()[0].info().index)).unwrap();
            change(&mut options);
            Device::open(&options).unwrap()
        };
        let small = open(&|o| o.range = Some(4096));
        let (x, y) = (Drawn::contiguous(&small, rng, &[4000], normal), Drawn::contiguous(&small, rng, &[4000], normal));
        assert!(matches!(small.copy(x.view(), y.view()), Err(Error::Limit(_))));
        let full = open(&|o| o.memory = Some(80 << 20));
        let held = full.memory(60 << 20).unwrap();
        assert!(
            matches!(full.memory(30 << 20), Err(Error::OutOfMemory { request, budget, .. }) if request == 30 << 20 && budget == 80 << 20)
        );
        drop(held);
        full.memory(75 << 20).unwrap();
        for staging in [false, true] {
            // Where the CPU does not see the memory, what goes there and comes back is a submission.
            let at = if devices()[usize::from(staging)].limits().unified { 2 } else { 3 };
            let lost = open(&|o| (o.staging, o.lost_at) = (o.staging || staging, Some(at)));
            let x = Drawn::contiguous(&lost, rng, &[40], normal);
            x.read();
            lost.copy(x.view(), x.view()).unwrap();
            lost.wait().unwrap();
            lost.copy(x.view(), x.view()).unwrap();
            assert!(matches!(lost.wait(), Err(Error::Lost { kernels }) if kernels == ["copy"]));
            assert!(lost.wait().is_ok() || lost.copy(x.view(), x.view()).is_err());
        }
    });
}
