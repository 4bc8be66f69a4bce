//! Matrix products as ratios, in Markdown: to the peak of fused multiply-adds of one core, to `matrixmultiply`, and two threads to one.
//!
//! A number of seconds says little on a shared machine. Here all sides run in turn, many short times, and a ratio is that of
//! each side's least disturbed run. `TIER_ISA` forces a lower tier, whose peak is then measured.

use std::hint::black_box;
use std::time::Instant;

use half::bf16;
use kernels_cpu::Isa;
use kernels_cpu::conv::{Conv2d, Window};
use kernels_cpu::gemm::{Finish, Mat, Packed, Right, gemm, gemm_batched, multiply, multiply_bf16};
use kernels_cpu::map::Unary;
use kernels_cpu::par::Pool;
use kernels_cpu::simd::{Extra, Simd, SimdOp, dispatch, eval_bf16, eval_bytes};

/// The transformers' shapes of the peers' harness, and cubes.
const SHAPES: [[usize; 3]; 19] = [
    [197, 768, 768],
    [197, 768, 3072],
    [1576, 2304, 768],
    [1576, 768, 3072],
    [1024, 1024, 1024],
    [512, 512, 512],
    [50, 768, 3072],
    [392, 128, 2048],
    [64, 64, 64],
    [128, 128, 128],
    [256, 256, 256],
    [2048, 2048, 2048],
    [50, 768, 768],
    [50, 2304, 768],
    [50, 3072, 768],
    [197, 2304, 768],
    [197, 3072, 768],
    [1576, 768, 768],
    [1576, 3072, 768],
];

/// So many rounds of fused multiply-adds on more registers than their latency needs. Gives the number of multiply-adds.
struct Peak(usize);

impl SimdOp for Peak {
    type Output = usize;
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) -> usize {
        if S::LANES == 16 { self.rounds::<S, 24>(s) } else { self.rounds::<S, 12>(s) }
    }
}

impl Peak {
    #[inline(always)]
    fn rounds<S: Simd, const N: usize>(self, s: S) -> usize {
        let (x, y) = (s.splat(black_box(0.999_999)), s.splat(black_box(1e-7)));
        let mut sums = [s.splat(0.0); N];
        for _ in 0..self.0 {
            for sum in &mut sums {
                *sum = s.fma(*sum, x, y);
            }
        }
        black_box(sums.map(|sum| s.sum(sum)));
        self.0 * N * S::LANES
    }
}

/// As [`Peak`], of the instructions that multiply words of fewer bits.
struct NarrowPeak(usize, Extra);

impl SimdOp for NarrowPeak {
    type Output = usize;
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) -> usize {
        let (x, y) = (s.splat_i(black_box(0x3f80_3f80)), s.splat_i(black_box(0x0101_0101)));
        let mut sums = [s.splat_i(0); 12];
        for _ in 0..self.0 {
            for sum in &mut sums {
                // SAFETY: `narrow_peaks` runs this by what has these instructions.
                unsafe {
                    *sum = match self.1 {
                        Extra::Bf16 => s.bits(s.dot_bf16(s.as_float(*sum), s.as_float(x), s.as_float(y))),
                        _ => s.dot_bytes(*sum, x, y),
                    };
                }
            }
        }
        black_box(sums.map(|sum| s.sum(s.to_f32(sum))));
        self.0 * 12 * S::LANES * if self.1 == Extra::Bf16 { 2 } else { 4 }
    }
}

/// Multiply-adds per second of one core in bf16 and in int8: of AMX, whose registers no kernel outside reaches, 16 and 32 times those of f32,
/// else of what is quickest.
fn narrow_peaks() -> [f64; 2] {
    let isa = Isa::current();
    [(Extra::Bf16, 16.0), (Extra::Bytes, 32.0)].map(|(extra, in_tiles)| {
        if isa == Isa::Amx {
            return in_tiles * peak();
        }
        if !extra.is_available(isa) {
            return peak();
        }
        let mut count = 0;
        let op = || NarrowPeak(100_000, extra);
        let seconds = time(|| count = if extra == Extra::Bf16 { eval_bf16(isa, op()) } else { eval_bytes(isa, op()) });
        (count as f64 / seconds).max(peak())
    })
}

/// Products with a weight of bf16, and of int8: GFLOP/s on one thread, share of the peak, and two threads to one; f32 first.
fn narrow([m, n, k]: [usize; 3], pools: &[Pool; 2]) -> [[f64; 3]; 3] {
    let values = |len: usize, modulus: usize| (0..len).map(|i| (i % modulus) as f32 - 6.0).collect::<Vec<f32>>();
    let (a, b, mut c) = (values(m * k, 17), values(k * n, 13), vec![0.0f32; m * n]);
    let halves: Vec<bf16> = b.iter().map(|&x| bf16::from_f32(x)).collect();
    let levels: Vec<i8> = b.iter().map(|&x| x as i8).collect();
    let operands = [
        Packed::new(Mat::new(&b, n, k).t()),
        Packed::bf16(Mat::new(&halves, n, k).t()),
        Packed::int8(Mat::new(&levels, n, k).t(), &vec![1.0; n]),
    ];
    let work = (m * k * n) as f64;
    let repeats = (3e8 / work).ceil() as usize;
    let mut best = [[f64::INFINITY; 2]; 3];
    let mut peaks = [0.0f64; 3];
    for _ in 0..15 {
        for (best, b) in best.iter_mut().zip(&operands) {
            for (best, pool) in best.iter_mut().zip(pools) {
                let a = Mat::new(&a, m, k);
                let mut all =
                    || (0..repeats).for_each(|_| multiply(a, Right::Packed(b), &mut c, n, Finish::default(), true));
                *best = pool.install(|| time(&mut all)).min(*best);
            }
        }
        let [of_bf16, of_int8] = narrow_peaks();
        peaks.iter_mut().zip([peak(), of_bf16, of_int8]).for_each(|(most, peak)| *most = peak.max(*most));
    }
    let work = work * repeats as f64;
    core::array::from_fn(|i| [2e-9 * work / best[i][0], work / best[i][0] / peaks[i], best[i][0] / best[i][1]])
}

/// Multiply-adds per second of one core.
fn peak() -> f64 {
    let mut count = 0;
    let seconds = time(|| count = dispatch(Peak(100_000)));
    count as f64 / seconds
}

fn time(f: impl FnOnce()) -> f64 {
    let start = Instant::now();
    f();
    start.elapsed().as_secs_f64()
}

/// `batch` products of A [m, k] and B [k, n], either transposed in memory.
#[derive(Clone, Copy)]
struct Case {
    batch: usize,
    m: usize,
    k: usize,
    n: usize,
    transposed: [bool; 2],
}

fn compare(case: Case, pools: &[Pool; 2]) -> [f64; 3] {
    let Case { batch, m, k, n, transposed } = case;
    let values = |len: usize, modulus: usize| (0..len).map(|i| (i % modulus) as f32 - 6.0).collect::<Vec<f32>>();
    let (a, b) = (values(batch * m * k, 17), values(batch * k * n, 13));
    let view = |data, rows, cols, t: bool| if t { Mat::new(data, cols, rows).t() } else { Mat::new(data, rows, cols) };
    let a = |i: usize| view(&a[i * m * k..][..m * k], m, k, transposed[0]);
    let b = |i: usize| view(&b[i * k * n..][..k * n], k, n, transposed[1]);
    let [mut ours, mut theirs] = [0; 2].map(|_| vec![0.0f32; batch * m * n]);
    let work = (batch * m * k * n) as f64;
    let repeats = (1e8 / work).ceil() as usize;
    let [mut best, mut best_of_two, mut best_of_other, mut best_peak] =
        [f64::INFINITY, f64::INFINITY, f64::INFINITY, 0.0];
    for _ in 0..31 {
        let mut time_ours = || {
            time(|| {
                (0..repeats).for_each(|_| match batch {
                    1 => gemm(a(0), b(0), false, &mut ours, n, None),
                    _ => gemm_batched(batch, a, b, &mut ours),
                })
            })
        };
        let two = pools[1].install(&mut time_ours);
        // The others on one thread, so that all of them have the same core.
        let [peak, one, other] =
            pools[0].install(|| [peak(), time_ours(), time(|| sgemm(case, repeats, a, b, &mut theirs))]);
        best_peak = peak.max(best_peak);
        best = one.min(best);
        best_of_two = two.min(best_of_two);
        best_of_other = other.min(best_of_other);
    }
    assert!(ours.iter().zip(&theirs).all(|(x, y)| (x - y).abs() <= 1e-3 * (1.0 + y.abs())), "the products differ");
    [work * repeats as f64 / best / best_peak, best_of_other / best, best / best_of_two]
}

/// The same products by `matrixmultiply`.
fn sgemm<'a>(
    Case { batch, m, k, n, .. }: Case,
    repeats: usize,
    a: impl Fn(usize) -> Mat<'a, f32>,
    b: impl Fn(usize) -> Mat<'a, f32>,
    c: &mut [f32],
) {
    for i in (0..repeats).flat_map(|_| 0..batch) {
        let (a, b, c) = (a(i), b(i), &mut c[i * m * n..][..m * n]);
        let ([pa, pb], pc) = ([a, b].map(|x| x.data.as_ptr()), c.as_mut_ptr());
        let [sa, sb] = [a, b].map(|x| [x.row_stride, x.col_stride]);
        // SAFETY: both matrices fill their slices, and C its part.
        unsafe { matrixmultiply::sgemm(m, k, n, 1.0, pa, sa[0], sa[1], pb, sb[0], sb[1], 0.0, pc, n as isize, 1) };
    }
}

/// Products with the right operand packed before: share of the peak, and two threads to one.
fn packed([m, n, k]: [usize; 3], pools: &[Pool; 2]) -> [f64; 3] {
    let values = |len: usize, modulus: usize| (0..len).map(|i| (i % modulus) as f32 - 6.0).collect::<Vec<f32>>();
    let (a, b, mut c) = (values(m * k, 17), values(k * n, 13), vec![0.0f32; m * n]);
    let before = Packed::new(Mat::new(&b, n, k).t());
    let work = (m * k * n) as f64;
    let repeats = (1e8 / work).ceil() as usize;
    let [mut best, mut loose, mut best_of_two, mut best_peak] = [f64::INFINITY, f64::INFINITY, f64::INFINITY, 0.0];
    for _ in 0..31 {
        let mut ours = || {
            time(|| {
                (0..repeats).for_each(|_| {
                    multiply(Mat::new(&a, m, k), Right::Packed(&before), &mut c, n, Finish::default(), true)
                })
            })
        };
        best_of_two = pools[1].install(&mut ours).min(best_of_two);
        let [peak, one] = pools[0].install(|| [peak(), ours()]);
        loose = pools[0]
            .install(|| {
                time(|| {
                    (0..repeats).for_each(|_| gemm(Mat::new(&a, m, k), Mat::new(&b, n, k).t(), false, &mut c, n, None))
                })
            })
            .min(loose);
        best_peak = peak.max(best_peak);
        best = one.min(best);
    }
    let work = work * repeats as f64 / best_peak;
    [work / best, work / loose, best / best_of_two]
}

/// As the layers of a network follow each other: every product has another right operand, which comes from memory. Share of the peak.
fn streamed([m, n, k]: [usize; 3], pools: &[Pool; 2]) -> f64 {
    let a: Vec<f32> = (0..m * k).map(|i| (i % 17) as f32 - 6.0).collect();
    let b: Vec<f32> = (0..k * n).map(|i| (i % 13) as f32 - 6.0).collect();
    let layers: Vec<Packed> = (0..(300 << 20) / (4 * k * n)).map(|_| Packed::new(Mat::new(&b, n, k).t())).collect();
    let mut c = vec![0.0f32; m * n];
    let [mut best, mut best_peak] = [f64::INFINITY, 0.0];
    for _ in 0..11 {
        pools[0].install(|| {
            best_peak = peak().max(best_peak);
            let mut all = || {
                for b in &layers {
                    multiply(Mat::new(&a, m, k), Right::Packed(b), &mut c, n, Finish::default(), true);
                }
            };
            best = time(&mut all).min(best);
        });
    }
    (m * n * k * layers.len()) as f64 / best / best_peak
}

/// Products of a training step, whose operands come from memory and whose results go there, in f32 and rounded to bf16: GFLOP/s on one thread, share
/// of the peak of f32, and two threads to one.
fn trained(Case { m, k, n, transposed, .. }: Case, pools: &[Pool; 2]) -> [[f64; 3]; 2] {
    let layers = (200usize << 20).div_ceil(4 * (m * k + k * n + m * n));
    let values = |len: usize, modulus: usize| (0..len).map(|i| (i % modulus) as f32 - 6.0).collect::<Vec<f32>>();
    let (a, b) = (values(layers * m * k, 17), values(layers * k * n, 13));
    let mut c = vec![1.0f32; layers * m * n];
    let view = |data, rows, cols, t: bool| if t { Mat::new(data, cols, rows).t() } else { Mat::new(data, rows, cols) };
    let (mut best, mut best_peak) = ([[f64::INFINITY; 2]; 2], 0.0);
    for _ in 0..5 {
        for (half, best) in [false, true].into_iter().zip(&mut best) {
            let mut all = || {
                time(|| {
                    for (i, c) in c.chunks_mut(m * n).enumerate() {
                        let (a, b) = (&a[i * m * k..][..m * k], &b[i * k * n..][..k * n]);
                        let (a, b) = (view(a, m, k, transposed[0]), view(b, k, n, transposed[1]));
                        match half {
                            true => multiply_bf16(a, b, c, n, Finish::default(), true),
                            false => gemm(a, b, false, c, n, None),
                        }
                    }
                })
            };
            best[1] = pools[1].install(&mut all).min(best[1]);
            best[0] = pools[0].install(&mut all).min(best[0]);
        }
        best_peak = pools[0].install(peak).max(best_peak);
    }
    let work = (m * n * k * layers) as f64;
    best.map(|[one, two]| [2e-9 * work / one, work / one / best_peak, one / two])
}

/// The products of linear layers in a training step: forward, the gradient of the input, that of the weight.
fn print_trained(pools: &[Pool; 2]) {
    println!("\n| rows, in, out | | f32: GFLOP/s | of peak | 2 threads | bf16: GFLOP/s | to f32 | 2 threads |");
    println!("|---|---|---|---|---|---|---|---|");
    for [rows, input, output] in
        [[400, 768, 768], [400, 768, 3072], [400, 3072, 768], [616, 512, 2048], [1576, 384, 1536], [512, 384, 1536]]
    {
        for (what, m, k, n, transposed) in [
            ("forward", rows, input, output, [false, true]),
            ("input", rows, output, input, [false, false]),
            ("weight", output, rows, input, [true, false]),
        ] {
            let [[rate, share, two], [half, _, half_two]] = trained(Case { batch: 1, m, k, n, transposed }, pools);
            let share = 100.0 * share;
            println!(
                "| {rows} {input} {output} | {what} | {rate:.0} | {share:.0} % | {two:.2} | {half:.0} | {:.1} | {half_two:.2} |",
                half / rate
            );
        }
    }
}

/// Convolutions of ResNet-50: map, channels in and out, kernel, stride. Share of the peak on one thread.
fn convolution([side, input, output, kernel, stride]: [usize; 5], pools: &[Pool; 2]) -> f64 {
    let window = Window::square(kernel, stride, kernel / 2);
    let conv = Conv2d { n: 1, size: [side; 2], input, output, groups: 1, window };
    let values = |len: usize| (0..len).map(|i| (i % 17) as f32 - 6.0).collect::<Vec<f32>>();
    let [rows, cols] = conv.grid();
    let (x, w, mut y) =
        (values(side * side * input), values(output * input * kernel * kernel), vec![0.0; rows * cols * output]);
    let packed = conv.pack(&w).expect("it has channels");
    let [mut best, mut best_peak] = [f64::INFINITY, 0.0];
    for _ in 0..31 {
        pools[0].install(|| {
            best_peak = peak().max(best_peak);
            let finish = Finish { act: Some(Unary::Relu), ..Finish::default() };
            best = time(|| conv.forward_packed(&x, &packed, finish, &mut y)).min(best);
        });
    }
    (rows * cols * output * input * kernel * kernel) as f64 / best / best_peak
}

fn main() {
    // `cargo test --bench` and `cargo bench -- --test` or `-- --list` run this too; only a plain `cargo bench` measures.
    let given = |flag: &str| std::env::args().any(|arg| arg == flag);
    if !given("--bench") || given("--test") || given("--list") {
        return;
    }
    let pools = [Pool::new(1), Pool::new(2)];
    println!("Tier {}, {:.0} Gflop/s at the peak of one core just now.\n", Isa::current(), 2e-9 * peak());
    if given("--training") {
        return print_trained(&pools);
    }
    if given("--narrow") {
        println!("| product (m n k) | f32: GFLOP/s | bf16 | of peak | 2 threads | int8 | of peak | 2 threads |");
        println!("|---|---|---|---|---|---|---|---|");
        for [m, n, k] in SHAPES {
            let [single, half, int8] = narrow([m, n, k], &pools);
            let cell = |[rate, share, two]: [f64; 3]| format!("{rate:.0} | {:.0} % | {two:.2}", 100.0 * share);
            println!("| {m} {n} {k} | {:.0} | {} | {} |", single[0], cell(half), cell(int8));
        }
        return;
    }
    println!("| convolution (side, channels, kernel, stride) | of peak |\n|---|---|");
    for c in [
        [224, 3, 64, 7, 2],
        [56, 64, 64, 1, 1],
        [56, 64, 256, 1, 1],
        [56, 256, 64, 1, 1],
        [56, 64, 64, 3, 1],
        [28, 128, 128, 3, 1],
        [14, 256, 256, 3, 1],
        [7, 512, 512, 3, 1],
        [14, 1024, 256, 1, 1],
        [7, 2048, 512, 1, 1],
    ] {
        let share = 100.0 * convolution(c, &pools);
        println!("| {} {} to {} {}x{} /{} | {share:.0} % |", c[0], c[1], c[2], c[3], c[3], c[4]);
    }
    println!("\n| product (m n k) | another right operand each time: of peak |\n|---|---|");
    for case in [[50, 768, 3072], [50, 3072, 768], [77, 2048, 512], [197, 3072, 768]] {
        println!("| {} {} {} | {:.0} % |", case[0], case[1], case[2], 100.0 * streamed(case, &pools));
    }
    println!("\n| product (m n k) | packed before: of peak | packed in passing | 2 threads |\n|---|---|---|---|");
    // `--packed` ends after this table, `--packed 64` after its first lines.
    let first = std::env::args().skip_while(|arg| arg != "--packed").nth(1).and_then(|n| n.parse().ok());
    for case in SHAPES.into_iter().take(first.unwrap_or(SHAPES.len())) {
        let [one, loose, two] = packed(case, &pools);
        println!("| {} {} {} | {:.0} % | {:.0} % | {two:.2} |", case[0], case[1], case[2], 100.0 * one, 100.0 * loose);
    }
    if given("--packed") {
        return;
    }
    println!("\n| product (m k n) | layout | of peak | to matrixmultiply | 2 threads |\n|---|---|---|---|---|");
    for (layout, transposed) in [("A B", [false, false]), ("A Bᵀ", [false, true]), ("Aᵀ B", [true, false])] {
        for [m, k, n] in [
            [1024, 192, 192],
            [1024, 192, 768],
            [1024, 768, 192],
            [1024, 128, 512],
            [197, 768, 3072],
            [50, 512, 2048],
            [50, 384, 384],
            [8192, 192, 768],
            [192, 8192, 768],
            [64, 64, 64],
            [1024, 1024, 1024],
        ] {
            let [peak, other, threads] = compare(Case { batch: 1, m, k, n, transposed }, &pools);
            println!("| {m} {k} {n} | {layout} | {:.0} % | {other:.2} | {threads:.2} |", 100.0 * peak);
        }
    }
    for [batch, m, k, n] in [[96, 64, 64, 64], [96, 256, 64, 256], [64, 40, 64, 40], [32, 40, 128, 64]] {
        let [peak, other, threads] = compare(Case { batch, m, k, n, transposed: [false, true] }, &pools);
        println!("| {batch} of {m} {k} {n} | A Bᵀ | {:.0} % | {other:.2} | {threads:.2} |", 100.0 * peak);
    }
}
