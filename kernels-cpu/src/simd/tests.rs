use super::*;
use alloc::vec::Vec;

/// The bits of every operation of a tier on the same lanes, for comparison with the scalar tier.
struct Everything<'a>(&'a [f32], &'a [f32]);

impl SimdOp for Everything<'_> {
    type Output = Vec<[u32; RESULTS]>;
    fn eval<S: Simd>(self, s: S) -> Self::Output {
        let mut out = Vec::new();
        for (a, b) in self.0.chunks(S::LANES).zip(self.1.chunks(S::LANES)) {
            let (x, y) = (s.load_at(a, 0, 1.0), s.load_at(b, 0, 1.0));
            // Integers, whose products and sums are exact, rounded once or twice.
            let (m, n) = (s.round(x), s.round(y));
            let (i, k, three) = (s.to_i32(m), s.to_i32(n), s.splat_i(3));
            let (nan, truth) = (s.splat(f32::NAN), |m: S::M| s.select(m, s.splat(1.0), s.splat(2.0)));
            let results: [S::F; RESULTS] = [
                s.add(x, y),
                s.sub(x, y),
                s.mul(x, y),
                s.div(x, y),
                s.min(x, y),
                s.max(x, y),
                s.min(nan, y),
                s.max(nan, y),
                truth(s.eq(s.min(x, nan), x)),
                truth(s.eq(s.max(x, nan), x)),
                s.fma(m, n, s.sub(m, s.splat(7.0))),
                s.abs(x),
                s.sqrt(s.abs(x)),
                // The sign of a zero is the tier's own.
                s.add(m, s.splat(0.0)),
                s.scale(x, s.min(s.max(s.mul(n, s.splat(5.0)), s.splat(-150.0)), s.splat(150.0))),
                s.select(s.lt(x, y), x, y),
                s.select(s.le(x, y), x, y),
                truth(s.lt(x, y)),
                truth(s.le(x, y)),
                truth(s.eq(x, y)),
                truth(s.eq(nan, nan)),
                truth(s.lt(x, nan)),
                truth(s.le(nan, x)),
                s.to_f32(i),
                s.to_f32(s.bits(x)),
                s.as_float(s.bits(x)),
                s.as_float(s.add_i(s.bits(x), k)),
                s.as_float(s.sub_i(i, s.bits(y))),
                s.as_float(s.and_i(s.bits(x), s.bits(y))),
                s.to_f32(s.and_i(i, three)),
                s.as_float(s.shl_i::<2>(s.bits(x))),
                s.as_float(s.shr_i::<1>(s.bits(x))),
                s.as_float(s.dot_i16(i, s.bits(x), s.bits(y))),
            ];
            let mut lanes = [[0.0; 16]; RESULTS];
            results.iter().zip(&mut lanes).for_each(|(&r, l)| s.store_at(r, &mut l[..S::LANES], 0));
            out.extend((0..a.len()).map(|k| lanes.map(|l| l[k].to_bits())));
        }
        out
    }
}

const RESULTS: usize = 33;

#[test]
fn every_tier_computes_what_scalar_computes() {
    let mut rng = crate::rng::Rng::new(1, 0);
    let mut draw = || {
        (0..67)
            .map(|k| if k % 9 == 0 { (k / 9) as f32 - 2.5 } else { 20.0 * rng.normal() as f32 })
            .collect::<Vec<f32>>()
    };
    let (a, mut b) = (draw(), draw());
    b[3] = a[3];
    let expected = eval_on(Isa::Scalar, Everything(&a, &b));
    for isa in Isa::available() {
        for (k, (ours, scalar)) in eval_on(isa, Everything(&a, &b)).iter().zip(&expected).enumerate() {
            assert_eq!(ours, scalar, "{isa}: {} and {}", a[k], b[k]);
        }
    }
}

#[test]
fn a_product_and_a_sum_are_rounded_once() {
    struct Fused;
    impl SimdOp for Fused {
        type Output = f32;
        fn eval<S: Simd>(self, s: S) -> f32 {
            let x = s.splat(1.0 + 1.0 / 4096.0);
            s.max_lane(s.fma(x, x, s.splat(-1.0 - 1.0 / 2048.0)))
        }
    }
    for isa in Isa::available().filter(|&isa| isa != Isa::Portable) {
        assert_eq!(eval_on(isa, Fused), 1.0 / (4096.0 * 4096.0), "{isa}");
    }
}

/// Words of several numbers times such, added to sums.
struct Dots<'a> {
    words: &'a [[u32; 3]],
    bf16: bool,
}

impl SimdOp for Dots<'_> {
    type Output = Vec<u32>;
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) -> Vec<u32> {
        let mut out = Vec::new();
        for words in self.words.chunks_exact(S::LANES) {
            let [sum, a, b]: [S::F; 3] = array(|k| {
                let words: Vec<f32> = words.iter().map(|w| f32::from_bits(w[k])).collect();
                s.load(&words)
            });
            // SAFETY: run by `eval_bf16` or `eval_bytes`.
            let sum = unsafe {
                if self.bf16 {
                    s.dot_bf16(sum, a, b)
                } else {
                    s.as_float(s.dot_bytes(s.bits(sum), s.bits(a), s.bits(b)))
                }
            };
            let mut lanes = [0.0; 16];
            s.store(sum, &mut lanes);
            out.extend(lanes[..S::LANES].iter().map(|x| x.to_bits()));
        }
        out
    }
}

#[test]
fn products_of_bytes_are_added_exactly() {
    let mut rng = crate::rng::Rng::new(2, 0);
    // The largest too, whose products of pairs i16 does not hold, and the ends of i32.
    let mut words: Vec<[u32; 3]> = (0..64).map(|_| [0; 3].map(|_| rng.next_u64() as u32)).collect();
    words[..2].copy_from_slice(&[[0x7fff_fff0, u32::MAX, 0x7f7f_7f7f], [0x8000_0000, u32::MAX, 0x8080_8080]]);
    let dot = |[sum, a, b]: &[u32; 3]| {
        let products = a.to_le_bytes().into_iter().zip(b.to_le_bytes());
        products.fold(*sum, |sum, (a, b)| sum.wrapping_add_signed(i32::from(a) * i32::from(b as i8)))
    };
    let expected: Vec<u32> = words.iter().map(dot).collect();
    for isa in Isa::available().filter(|&isa| Extra::Bytes.is_available(isa)) {
        assert_eq!(eval_bytes(isa, Dots { words: &words, bf16: false }), expected, "{isa}");
    }
}

/// Of small integers, which are exact; a subnormal number is none, on either side, however large the other.
#[test]
fn products_of_bf16_are_added() {
    let mut rng = crate::rng::Rng::new(3, 0);
    let mut integer = || rng.below(41) as f32 - 20.0;
    let pair = |[first, second]: [f32; 2]| (first.to_bits() >> 16) | (second.to_bits() & 0xffff_0000);
    let mut words = Vec::new();
    let mut expected = Vec::new();
    for _ in 0..64 {
        let (sum, a, b) = (integer(), [integer(), integer()], [integer(), integer()]);
        words.push([sum.to_bits(), pair(a), pair(b)]);
        expected.push((sum + a[0] * b[0] + a[1] * b[1]) + 0.0);
    }
    let (subnormal, large) = (f32::from_bits(0x7f_0000), f32::from_bits(0x7f00_0000));
    words[0] = [3f32.to_bits(), pair([subnormal, 2.0]), pair([large, 5.0])];
    words[1] = [3f32.to_bits(), pair([2.0, large]), pair([5.0, subnormal])];
    expected[..2].fill(13.0);
    for isa in Isa::available().filter(|&isa| Extra::Bf16.is_available(isa)) {
        let sums = eval_bf16(isa, Dots { words: &words, bf16: true });
        let sums: Vec<f32> = sums.into_iter().map(f32::from_bits).collect();
        assert_eq!(sums, expected, "{isa}");
    }
}

struct Lanes(Vec<f32>);
impl SimdOp for Lanes {
    type Output = (f32, f32, usize);
    fn eval<S: Simd>(self, s: S) -> Self::Output {
        let x = s.load(&self.0);
        (s.sum(x), s.max_lane(x), S::LANES)
    }
}

#[test]
fn upper_halves_go_side_by_side() {
    struct Halves;
    impl SimdOp for Halves {
        type Output = ();
        fn eval<S: Simd>(self, s: S) {
            let words: Vec<f32> = (0..2 * S::LANES as u32).map(|k| f32::from_bits((k << 16) | 0x7777)).collect();
            let [a, b] = [&words[..S::LANES], &words[S::LANES..]].map(|x| s.load(x));
            let mut halves = alloc::vec![0.0; S::LANES];
            s.store(s.upper_halves(a, b), &mut halves);
            for (k, word) in (0..).zip(&halves) {
                assert_eq!(word.to_bits(), (2 * k) | ((2 * k + 1) << 16));
            }
        }
    }
    for isa in Isa::available() {
        eval_on(isa, Halves);
    }
}

#[test]
fn lanes_are_summed_and_compared() {
    for isa in Isa::available() {
        let (sum, max, lanes) = eval_on(isa, Lanes((0..16).map(|k| k as f32 - 3.0).collect()));
        assert_eq!(sum, (0..lanes).map(|k| k as f32 - 3.0).sum::<f32>());
        assert_eq!(max, lanes as f32 - 4.0);
    }
}

struct Transposed<'a> {
    x: &'a [f32],
    stride: usize,
    rows: usize,
    step: usize,
}

impl SimdOp for Transposed<'_> {
    type Output = (Vec<f32>, usize);
    fn eval<S: Simd>(self, s: S) -> Self::Output {
        let Self { x, stride, rows, step } = self;
        assert!(x.len() >= (rows - 1) * stride + S::LANES && step >= S::LANES);
        let mut out = alloc::vec![7.0; S::LANES * step];
        // SAFETY: every row and every place is inside, as asserted.
        unsafe { s.transpose(x.as_ptr(), stride as isize, rows, out.as_mut_ptr(), step) };
        (out, S::LANES)
    }
}

/// Beyond the rows the last one is repeated, and no other memory is read.
#[test]
fn columns_become_vectors() {
    for isa in Isa::available() {
        for rows in 1..=16 {
            for (stride, step) in [(16, 16), (19, 18)] {
                // What lies beyond the last row is NaN.
                let x: Vec<f32> =
                    (0..40 * stride).map(|k| if k < (rows - 1) * stride + 16 { k as f32 } else { f32::NAN }).collect();
                let lanes = eval_on(isa, Lanes(alloc::vec![0.0; 16])).2;
                let rows = rows.min(lanes);
                let (out, lanes) = eval_on(isa, Transposed { x: &x, stride, rows, step });
                for (column, r) in (0..lanes).flat_map(|column| (0..lanes).map(move |r| (column, r))) {
                    let expected = x[r.min(rows - 1) * stride + column];
                    assert_eq!(out[column * step + r], expected, "{isa}: {rows} rows {stride} apart");
                }
            }
        }
    }
}

/// Lanes beyond a short slice are the filling, and what lies beyond it is left alone.
#[test]
fn short_slices_are_filled_and_nothing_beyond_is_written() {
    struct Partly(usize);
    impl SimdOp for Partly {
        type Output = ();
        fn eval<S: Simd>(self, s: S) {
            for n in self.0..S::LANES {
                let x: Vec<f32> = (0..n).map(|k| k as f32).collect();
                let (mut all, mut part) = ([7.0f32; 16], [7.0f32; 16]);
                s.store(s.load_partial(&x, -1.0), &mut all);
                assert!((0..S::LANES).all(|k| all[k] == if k < n { k as f32 } else { -1.0 }), "{} {n}", S::ISA);
                s.store_partial(s.splat(3.0), &mut part[..n]);
                assert!((0..16).all(|k| part[k] == if k < n { 3.0 } else { 7.0 }), "{} {n}", S::ISA);
                s.store(s.load_at(&x, n / 2, -1.0), &mut all);
                assert!((0..S::LANES).all(|k| all[k] == x.get(n / 2 + k).copied().unwrap_or(-1.0)), "{}", S::ISA);
            }
        }
    }
    Isa::available().for_each(|isa| eval_on(isa, Partly(0)));
}
