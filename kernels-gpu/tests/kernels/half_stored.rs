//! What is stored in half: widened exactly wherever it is read, and multiplied in f32.

use half::{bf16, f16};
use kernels_cpu::map::Unary;
use kernels_cpu::rng::Rng;
use kernels_gpu::ops::Gemm;
use kernels_gpu::{Device, Memory, Options, Stored, View};

use super::common::{Drawn, check, close, device, devices, normal, open, size, words};
use super::{CASES, out};

pub const KINDS: [Stored; 2] = [Stored::Bf16, Stored::F16];

pub fn narrow(kind: Stored, x: f32) -> u16 {
    if kind == Stored::Bf16 { bf16::from_f32(x).to_bits() } else { f16::from_f32(x).to_bits() }
}

pub fn wide(kind: Stored, bits: u16) -> f32 {
    if kind == Stored::Bf16 { bf16::from_bits(bits).to_f32() } else { f16::from_bits(bits).to_f32() }
}

fn upload(d: &Device, halves: &[u16]) -> Memory {
    d.upload(&halves.iter().flat_map(|h| h.to_le_bytes()).collect::<Vec<_>>()).unwrap()
}

/// Drawn elements rounded to half, at the same places of other memory.
pub struct Half {
    pub memory: Memory,
    pub values: Vec<f32>,
}

impl Half {
    pub fn of(d: &Device, x: &Drawn, kind: Stored) -> Self {
        let halves: Vec<u16> = x.words().iter().map(|&w| narrow(kind, f32::from_bits(w))).collect();
        Self { memory: upload(d, &halves), values: x.values.iter().map(|&x| wide(kind, narrow(kind, x))).collect() }
    }

    pub fn view<'a>(&'a self, x: &'a Drawn, stored: Stored) -> View<'a> {
        View { memory: &self.memory, stored, ..x.view() }
    }
}

#[test]
fn every_number_in_half_is_widened_exactly() {
    check(1, |_| {
        for d in devices() {
            for kind in KINDS {
                let all: Vec<u16> = (0..=u16::MAX).collect();
                let (memory, index) = (upload(d, &all), d.upload(&0u32.to_le_bytes()).unwrap());
                let (y, dims) = (d.memory(4 << 16).unwrap(), [1 << 16]);
                let x = View { stored: kind, ..View::new(&memory, 0, &dims, &[1]) };
                d.gather(x, [1, 1, 1 << 16], &index, 1, View::new(&y, 0, &dims, &[1])).unwrap();
                for (&bits, got) in all.iter().zip(words(&y)) {
                    let (got, exact) = (f32::from_bits(got), wide(kind, bits));
                    // A device may take denormal numbers for 0.
                    let denormal = got == 0.0 && exact.abs() < if kind == Stored::F16 { 6.2e-5 } else { 1.2e-38 };
                    assert!(got == exact || got.is_nan() && exact.is_nan() || denormal, "{kind:?} {bits:x}: {got}");
                }
            }
        }
    });
}

/// A number to round: any bits, or about where halves end, begin, and lie half way from each other.
fn any_bits(rng: &mut Rng) -> f32 {
    let edge =
        [0, 0x3300_0000, 0x3880_0000, 0x477f_f000, 0x477f_e000, 0x7f7f_8000, 0x7f80_0000, 0x3f80_8000][rng.below(8)];
    let near = (edge + rng.below(3) as u32).wrapping_sub(1) | (rng.next_u64() as u32 & 0x8000_0000);
    let half_way = (rng.next_u64() as u32 & !0x1fff) | [0x1000, 0x1001, 0xfff, 0x8000][rng.below(4)];
    f32::from_bits([rng.next_u64() as u32, near, half_way][rng.below(3)])
}

#[test]
fn casts_round_as_the_cpu_does_and_widen_again() {
    check(CASES, |rng| {
        let (d, kind) = (device(rng), KINDS[rng.below(2)]);
        let n = if rng.chance(0.2) { 2000 + rng.below(3000) } else { size(rng) };
        let x = Drawn::contiguous(d, rng, &[n], any_bits);
        // From a word on; what lies beside it, but for the other half of the last word, stays.
        let (before, behind) = (2 * rng.below(5), rng.below(9));
        let beside = 0x1234;
        let memory = upload(d, &vec![beside; before + n + behind]);
        let y = View { stored: kind, ..View::new(&memory, before, &x.dims, &[1]) };
        d.cast(x.view(), y).unwrap();
        let mut bytes = vec![0; memory.len()];
        memory.download(&mut bytes).unwrap();
        let halves: Vec<u16> = bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]])).collect();
        for (i, (&ours, &x)) in halves[before..].iter().zip(&x.values).enumerate() {
            assert_eq!(ours, narrow(kind, x), "{kind:?}: {x:e}, element {i} of {n}");
        }
        let end = (before + n).next_multiple_of(2).min(halves.len());
        assert!(halves[..before].iter().chain(&halves[end..]).all(|&h| h == beside), "{kind:?}: {before}, {n}");
        // From any element on.
        let (from, back) = (rng.below(n.min(3) + 1), Drawn::contiguous(d, rng, &[n], |_| 777.0));
        let dims = [n - from];
        let to = View { dims: &dims, ..back.view() };
        d.cast(View { offset: before + from, dims: &dims, ..y }, to).unwrap();
        for (ours, &bits) in back.read().into_iter().zip(&halves[before + from..before + n]) {
            let exact = wide(kind, bits);
            let denormal = ours == 0.0 && exact.abs() < if kind == Stored::F16 { 6.2e-5 } else { 1.2e-38 };
            assert!(ours == exact || ours.is_nan() && exact.is_nan() || denormal, "{kind:?} {bits:x}: {ours}");
        }
    });
}

#[test]
fn rows_of_a_table_in_half_are_gathered() {
    check(CASES / 2, |rng| {
        let (d, [n, k, inner], kind) = (device(rng), [size(rng).max(1), size(rng), size(rng)], KINDS[rng.below(2)]);
        let x = Drawn::contiguous(d, rng, &[1, n, inner], normal);
        let (half, y) = (Half::of(d, &x, kind), out(d, rng, &[1, k, inner]));
        let index: Vec<u32> = (0..k).map(|_| rng.below(n) as u32).collect();
        let bytes: Vec<u8> = index.iter().flat_map(|i| i.to_le_bytes()).collect();
        d.gather(half.view(&x, kind), [1, n, inner], &d.upload(&bytes).unwrap(), k, y.view()).unwrap();
        let row = |&i: &u32| half.values[i as usize * inner..][..inner].to_vec();
        assert_eq!(y.read(), index.iter().flat_map(row).collect::<Vec<_>>());
    });
}

/// A product with a weight in half: C = act(A B + bias), against f64.
pub fn product(d: &Device, rng: &mut Rng, kind: Stored, [m, k, n]: [usize; 3], tolerance: f64) {
    // As a file has a weight, and in any layout; what is multiplied in half itself has to be one.
    let rounded = |rng: &mut Rng| wide(kind, narrow(kind, normal(rng)));
    let a = Drawn::strided(d, rng, &[1, 1, m, k], false, rounded);
    let b = Drawn::strided(d, rng, &[1, 1, k, n], false, normal);
    let (half, bias) = (Half::of(d, &b, kind), Drawn::contiguous(d, rng, &[n], normal));
    let c = out(d, rng, &[1, 1, m, n]);
    let residual = Drawn::contiguous(d, rng, &[1, 1, m, n], normal);
    let residual = (c.strides == residual.strides && rng.chance(0.3)).then_some(residual);
    let (bias, act) = (rng.chance(0.6).then_some(bias), [None, Some(Unary::Gelu), Some(Unary::Relu)][rng.below(3)]);
    let alpha = if rng.chance(0.3) { 0.37 } else { 1.0 };
    let gemm = Gemm {
        alpha,
        act,
        bias: bias.as_ref().map(Drawn::view),
        residual: residual.as_ref().map(Drawn::view),
        ..Gemm::new(a.view(), half.view(&b, kind), c.view())
    };
    d.gemm(&gemm).unwrap();
    let term = |e: usize, l: usize| f64::from(a.values[e / n * k + l]) * f64::from(half.values[l * n + e % n]);
    let element = |e: usize| {
        let mut v = f64::from(alpha) * (0..k).map(|l| term(e, l)).sum::<f64>();
        v += bias.as_ref().map_or(0.0, |bias| f64::from(bias.values[e % n]));
        v += residual.as_ref().map_or(0.0, |residual| f64::from(residual.values[e]));
        act.map_or(v, |f| f.f(v))
    };
    let first = c.read();
    close("gemm", &first, &(0..m * n).map(element).collect::<Vec<_>>(), tolerance);
    d.gemm(&gemm).unwrap();
    assert!(c.read() == first, "other bits");
}

#[test]
fn products_with_a_weight_in_half_are_their_sums() {
    check(CASES / 3, |rng| {
        let (d, sizes, kind) = (device(rng), [size(rng), size(rng), size(rng)], KINDS[rng.below(2)]);
        product(d, rng, kind, sizes, 2e-6);
    });
}

/// Those of the device that has them, whatever came of trying: the types that it multiplies with matrices.
pub fn with_matrices(change: fn(&mut Options)) -> Option<(Device, Vec<Stored>)> {
    let device = open(change).ok()?;
    let said = device.matrices().unwrap();
    let has = |kind: &Stored| {
        said.iter().any(|line| line.starts_with(&format!("matrices of {kind:?} in products:").to_lowercase()))
    };
    let kinds: Vec<Stored> = KINDS.into_iter().filter(has).collect();
    eprintln!("{}: {said:?}", device.info().name);
    if kinds.is_empty() {
        eprintln!("SKIPPED: {} has no cooperative matrices", device.info().name);
    }
    (!kinds.is_empty()).then_some((device, kinds))
}

#[test]
fn cooperative_matrices_make_the_same_sums() {
    // As they are; with so little shared memory that tiles are small; and so little that larger matrices have no room, for which the product
    // goes without.
    let all: [fn(&mut Options); 3] = [
        |o| o.matrices = Some(true),
        |o| (o.matrices, o.shared) = (Some(true), Some(10_000)),
        |o| (o.matrices, o.shared) = (Some(true), Some(6000)),
    ];
    for change in all {
        check(1, |_| {
            let Some((d, kinds)) = with_matrices(change) else { return };
            for seed in 0..16 {
                let mut rng = Rng::new(seed, 0x006d_6174);
                let (sizes, kind) =
                    ([size(&mut rng), size(&mut rng), size(&mut rng)], kinds[seed as usize % kinds.len()]);
                product(&d, &mut rng, kind, sizes, 2e-6);
            }
            // Enough tiles for the largest.
            kinds.iter().for_each(|&kind| product(&d, &mut Rng::new(9, 9), kind, [517, 70, 524], 2e-6));
        });
    }
}

/// A device is only given to matrices that were found right; what came of it is said, and the product is right either way.
#[test]
fn cooperative_matrices_are_tried_before_they_are_used() {
    check(1, |rng| {
        let Some((d, kinds)) = with_matrices(|o| o.matrices = None) else { return };
        for line in d.matrices().unwrap() {
            assert!(line.contains("right,") && line.contains("times as fast"), "{line}");
        }
        kinds.iter().for_each(|&kind| product(&d, rng, kind, [40, 40, 40], 2e-6));
    });
}

#[test]
fn what_is_forbidden_is_not_used() {
    check(1, |_| {
        for change in [|o: &mut Options| o.matrices = Some(false), |o: &mut Options| o.no_subgroups = true] {
            assert_eq!(open(change).unwrap().matrices().unwrap(), [""; 0]);
        }
        let half = |line: &String| line.contains("bf16");
        assert!(open(|o| (o.no_f16, o.matrices) = (true, Some(true))).unwrap().matrices().unwrap().iter().all(half));
    });
}
