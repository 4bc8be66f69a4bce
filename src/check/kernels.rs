//! Kernels that no op of the registry reaches: each in f32, or of numbers of bf16, against the same in f64, which is its definition.

use half::bf16;
use kernels_cpu::conv::{Conv2d, Window, conv2d_def};
use kernels_cpu::gemm::{Finish, Mat, Numbers, Packed, Right, gemm_def, multiply, multiply_bf16, round, widen};
use kernels_cpu::map::Unary;
use kernels_cpu::optim::{Adam, adam, sgd};
use kernels_cpu::{Float, batch_norm, reduce, rng};

use crate::distance;
use crate::rng::Rng;

/// A kernel and its check.
pub struct Kernel {
    /// What it is called in the record.
    pub name: &'static str,
    /// How far its f32 path is from f64, on the tier that the calling thread's kernels run on, relative to the largest value.
    pub deviation: fn(&mut Rng) -> f64,
}

/// All of them.
pub const KERNELS: &[Kernel] = &[
    Kernel { name: "adam", deviation: |rng| by_type(rng, 1003, steps::<f32>, steps::<f64>) },
    Kernel { name: "sgd", deviation: |rng| by_type(rng, 1003, momentum::<f32>, momentum::<f64>) },
    Kernel { name: "batch statistics", deviation: |rng| by_type(rng, 130 * 19, statistics::<f32>, statistics::<f64>) },
    Kernel { name: "sum of squares", deviation: |rng| by_type(rng, 9001, squares::<f32>, squares::<f64>) },
    Kernel { name: "packed product", deviation: |rng| packed_product(rng, Numbers::F32) },
    Kernel { name: "packed product of bf16", deviation: |rng| packed_product(rng, Numbers::Bf16) },
    Kernel { name: "packed product of int8", deviation: |rng| packed_product(rng, Numbers::Int8) },
    Kernel { name: "packed convolution", deviation: packed_convolution },
    Kernel { name: "numbers of bf16", deviation: rounded_numbers },
    Kernel { name: "product of bf16", deviation: product_of_bf16 },
    Kernel { name: "convolution of bf16 and its gradients", deviation: convolution_of_bf16 },
    Kernel { name: "random numbers", deviation: |_| known_answers() },
];

fn normals(rng: &mut Rng, n: usize) -> Vec<f32> {
    (0..n).map(|_| rng.normal() as f32).collect()
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| f64::from(x)).collect()
}

/// The same of `n` numbers in both types.
fn by_type(rng: &mut Rng, n: usize, single: fn(&[f32]) -> Vec<f32>, double: fn(&[f64]) -> Vec<f64>) -> f64 {
    let x = normals(rng, n);
    distance::relative(&single(&x), &double(&wide(&x)), 1.0)
}

/// Three steps of Adam and three of AdamW whose gradients are the parameters' halves.
fn steps<F: Float>(start: &[F]) -> Vec<F> {
    let mut p = start.to_vec();
    for decoupled in [false, true] {
        let (mut m, mut v) = (vec![F::ZERO; p.len()], vec![F::ZERO; p.len()]);
        for step in 1..=3 {
            let g: Vec<F> = start.iter().map(|&x| x * F::from_f64(0.5)).collect();
            let a = Adam { lr: 0.01, beta1: 0.9, beta2: 0.99, eps: 1e-3, weight_decay: 0.1, decoupled, step };
            adam(&mut p, &g, &mut m, &mut v, a);
        }
    }
    p
}

fn momentum<F: Float>(start: &[F]) -> Vec<F> {
    let (mut p, mut buffer) = (start.to_vec(), vec![F::ZERO; start.len()]);
    (0..3).for_each(|_| sgd(&mut p, start, &mut buffer, 0.05, 0.9, 0.1));
    p
}

fn statistics<F: Float>(x: &[F]) -> Vec<F> {
    let (mut mean, mut var) = (vec![F::ZERO; 19], vec![F::ZERO; 19]);
    batch_norm::statistics(x, &mut mean, &mut var);
    [mean, var].concat()
}

fn squares<F: Float>(x: &[F]) -> Vec<F> {
    vec![F::from_f64(reduce::sum_squares(x) / x.len() as f64)]
}

/// Act(x + residual), by the definition.
fn finished(x: &[f64], residual: &[f32], act: Unary) -> Vec<f64> {
    x.iter().zip(residual).map(|(x, &r)| act.f(x + f64::from(r))).collect()
}

/// What plans run: a right operand packed before; bias, residual and activation on the way out. Both operands are numbers that the type has,
/// so that nothing is lost where they are narrowed.
fn packed_product(rng: &mut Rng, numbers: Numbers) -> f64 {
    let mut most = 0.0f64;
    for (m, k, n, act) in [(3, 40, 35, Unary::Gelu), (29, 17, 70, Unary::Relu)] {
        let [mut a, mut b, bias, residual] = [m * k, k * n, n, m * n].map(|n| normals(rng, n));
        let each = |x: &mut [f32], f: fn(f32) -> f32| x.iter_mut().for_each(|x| *x = f(*x));
        let packed = match numbers {
            Numbers::F32 => Packed::new(Mat::new(&b, k, n)),
            Numbers::Bf16 => {
                [&mut a, &mut b].into_iter().for_each(|x| each(x, |x| bf16::from_f32(x).to_f32()));
                Packed::bf16(Mat::new(&b.iter().map(|&x| bf16::from_f32(x)).collect::<Vec<_>>(), k, n))
            }
            Numbers::Int8 => {
                [&mut a, &mut b].into_iter().for_each(|x| each(x, |x| (40.0 * x).round().clamp(-127.0, 127.0)));
                // The largest level of each row.
                a.iter_mut().step_by(k).for_each(|x| *x = 127.0);
                Packed::int8(Mat::new(&b.iter().map(|&x| x as i8).collect::<Vec<_>>(), k, n), &vec![1.0; n])
            }
        };
        let mut c = vec![f32::NAN; m * n];
        let finish = Finish { bias: Some(&bias[..]), residual: Some(&residual[..]), act: Some(act) };
        multiply(Mat::new(&a, m, k), Right::Packed(&packed), &mut c, n, finish, true);
        let mut exact = vec![f64::NAN; m * n];
        gemm_def(Mat::new(&wide(&a), m, k), Mat::new(&wide(&b), k, n), false, &mut exact, n, Some(&wide(&bias)));
        most = most.max(distance::relative(&c, &finished(&exact, &residual, act), 1.0));
    }
    most
}

fn packed_convolution(rng: &mut Rng) -> f64 {
    let mut most = 0.0f64;
    for (input, output, groups) in [(3, 20, 1), (18, 12, 1), (8, 6, 2)] {
        let conv = Conv2d { n: 2, size: [9, 7], input, output, groups, window: Window::square(3, 2, 1) };
        let [oh, ow] = conv.grid();
        let lengths = [2 * 9 * 7 * input, output * (input / groups) * 9, output, 2 * oh * ow * output];
        let [x, weight, bias, residual] = lengths.map(|n| normals(rng, n));
        let Some(packed) = conv.pack(&weight) else { return f64::INFINITY };
        let finish = Finish { bias: Some(&bias[..]), residual: Some(&residual[..]), act: Some(Unary::Relu) };
        let mut y = vec![f32::NAN; residual.len()];
        conv.forward_packed(&x, &packed, finish, &mut y);
        let exact = conv2d_def(&conv, &wide(&x), &wide(&weight), Some(&wide(&bias)));
        most = most.max(distance::relative(&y, &finished(&exact, &residual, Unary::Relu), 1.0));
    }
    most
}

/// Rounding and widening, against the crate half's.
fn rounded_numbers(rng: &mut Rng) -> f64 {
    let x = normals(rng, 1003);
    let (mut half, mut single) = (vec![bf16::NAN; x.len()], vec![f32::NAN; x.len()]);
    round(&x, &mut half);
    widen(&half, &mut single);
    let exact: Vec<f64> = x.iter().map(|&x| bf16::from_f32(x).to_f64()).collect();
    distance::relative(&single, &exact, 1.0)
}

/// So many numbers that bf16 has, in both types.
fn halves(rng: &mut Rng, n: usize) -> (Vec<bf16>, Vec<f64>) {
    let halves: Vec<bf16> = normals(rng, n).into_iter().map(bf16::from_f32).collect();
    let wide = halves.iter().map(|x| x.to_f64()).collect();
    (halves, wide)
}

/// What training multiplies: both operands rounded as they are packed.
fn product_of_bf16(rng: &mut Rng) -> f64 {
    let (m, k, n) = (29, 43, 70);
    let [(a, a64), (b, b64)] = [m * k, k * n].map(|n| halves(rng, n));
    let (mut c, mut exact) = (vec![f32::NAN; m * n], vec![f64::NAN; m * n]);
    multiply_bf16(Mat::new(&a, m, k), Mat::new(&b, k, n), &mut c, n, Finish::default(), true);
    gemm_def(Mat::new(&a64, m, k), Mat::new(&b64, k, n), false, &mut exact, n, None);
    distance::relative(&c, &exact, 1.0)
}

fn convolution_of_bf16(rng: &mut Rng) -> f64 {
    let mut most = 0.0f64;
    for (input, output, stride) in [(3, 20, 2), (18, 12, 1)] {
        let conv = Conv2d { n: 2, size: [9, 7], input, output, groups: 1, window: Window::square(3, stride, 1) };
        let [oh, ow] = conv.grid();
        let lengths = [2 * 9 * 7 * input, output * input * 9, 2 * oh * ow * output];
        let [(x, x64), (w, w64), (dy, dy64)] = lengths.map(|n| halves(rng, n));
        let w: Vec<f32> = w.iter().map(|w| w.to_f32()).collect();
        let [mut dx, mut dw, mut y] = lengths.map(|n| vec![f32::NAN; n]);
        conv.forward_bf16(&x, &w, None, &mut y);
        conv.backward_input_bf16(&dy, &w, &mut dx);
        conv.backward_weight_bf16(&x, &dy, &mut dw);
        let [mut dx64, mut dw64] = [&dx, &dw].map(|d| vec![f64::NAN; d.len()]);
        conv.backward_input(&dy64, &w64, &mut dx64);
        conv.backward_weight(&x64, &dy64, &mut dw64);
        for (ours, exact) in [(y, conv2d_def(&conv, &x64, &w64, None)), (dx, dx64), (dw, dw64)] {
            most = most.max(distance::relative(&ours, &exact, 1.0));
        }
    }
    most
}

/// Philox's own test vectors (Random123, kat_vectors), and a number of a stream: nothing drawn may ever change.
fn known_answers() -> f64 {
    let first = rng::philox(0, [0; 4]) == [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8];
    let last = rng::philox(u64::MAX, [u32::MAX; 4]) == [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd];
    let stream = Rng::new(0, 0).next_u64() == 0xe169_c58d_6627_e8d5;
    if first && last && stream { 0.0 } else { f64::INFINITY }
}
