use super::*;
use crate::rng::Rng;
use crate::simd::eval_on;
use alloc::vec;
use alloc::vec::Vec;
use proptest::prelude::*;

fn values(n: usize, seed: u64) -> Vec<f32> {
    let mut rng = Rng::new(seed, 9);
    (0..n).map(|_| rng.normal() as f32).collect()
}

fn mat(data: &[f32], rows: usize, cols: usize, transposed: bool, pad: usize) -> Mat<'_, f32> {
    // Rows (or columns) `pad` further apart than needed, and an offset.
    let (outer, inner) = if transposed { (cols, rows) } else { (rows, cols) };
    assert!(data.len() >= pad + outer * (inner + pad));
    let x = Mat { data, offset: pad, rows: outer, cols: inner, row_stride: (inner + pad) as isize, col_stride: 1 };
    if transposed { x.t() } else { x }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn every_tier_is_the_definition(m in 0usize..40, n in 0usize..70, k in prop_oneof![0usize..20, 250usize..800], ta in any::<bool>(), tb in any::<bool>(),
                                    pad in 0usize..3, accumulate in any::<bool>(), biased in any::<bool>(), seed in any::<u64>()) {
        let a = values(pad + (m + pad) * (k + pad) + m.max(k) * 3, seed);
        let b = values(pad + (n + pad) * (k + pad) + n.max(k) * 3, seed ^ 1);
        let (a, b) = (mat(&a, m, k, ta, pad), mat(&b, k, n, tb, pad));
        let bias = values(n, seed ^ 2);
        let bias = biased.then_some(&bias[..]);
        let ldc = n + pad;
        let c = values(m * ldc + 1, seed ^ 3);
        let wide = |x: &[f32]| x.iter().map(|&x| f64::from(x)).collect::<Vec<f64>>();
        let (a64, b64, bias64) = (wide(a.data), wide(b.data), bias.map(wide));
        let widen = |x: Mat<'_, f32>, data| Mat { data, offset: x.offset, rows: x.rows, cols: x.cols, row_stride: x.row_stride, col_stride: x.col_stride };
        let mut expected = wide(&c);
        gemm_def(widen(a, &a64[..]), widen(b, &b64[..]), accumulate, &mut expected, ldc, bias64.as_deref());
        let mut double = wide(&c);
        gemm(widen(a, &a64[..]), widen(b, &b64[..]), accumulate, &mut double, ldc, bias64.as_deref());
        for (x, e) in double.iter().zip(&expected) { prop_assert!((x - e).abs() < 1e-11); }
        // What is lost goes by the sizes of the terms, and by the root of their number (Higham and Mary 2019).
        let size = |x: &[f64]| x.iter().map(|x| x.abs()).collect::<Vec<f64>>();
        let (a64, b64, bias64) = (size(&a64), size(&b64), bias64.as_deref().map(size));
        let mut terms = size(&wide(&c));
        gemm_def(widen(a, &a64[..]), widen(b, &b64[..]), accumulate, &mut terms, ldc, bias64.as_deref());
        let share = ((k as f64).sqrt() + 4.0) * f64::from(f32::EPSILON);
        for isa in Isa::available() {
            let mut ours = c.clone();
            if k > 0 && m > 0 && n > 0 { nest::product(isa, Left::Mat(a), Right::Loose(b), Out { c: &mut ours, ldc, accumulate, rounded: None, finish: Finish { bias, ..Finish::default() } }, true); } else { gemm(a, b, accumulate, &mut ours, ldc, bias); }
            for ((x, e), terms) in ours.iter().zip(&expected).zip(&terms) { prop_assert!((f64::from(*x) - e).abs() <= share * terms, "{isa}: {x} instead of {e}"); }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn packed_and_finished_products_have_the_bits_of_their_parts(m in 0usize..40, n in 0usize..70, k in prop_oneof![0usize..20, 250usize..800], tb in any::<bool>(),
                                                                 pad in 0usize..3, biased in any::<bool>(), added in any::<bool>(), act in prop_oneof![Just(None), Just(Some(Unary::Gelu)), Just(Some(Unary::Relu))], seed in any::<u64>()) {
        let (a, b) = (values(pad + (m + pad) * (k + pad) + m.max(k) * 3, seed), values(pad + (n + pad) * (k + pad) + n.max(k) * 3, seed ^ 1));
        let (a, b) = (mat(&a, m, k, false, pad), mat(&b, k, n, tb, pad));
        let (bias, ldc) = (values(n, seed ^ 2), n + pad);
        let (residual, start) = (values(m * ldc + 1, seed ^ 3), values(m * ldc + 1, seed ^ 4));
        let finish = Finish { bias: biased.then_some(&bias[..]), residual: added.then_some(&residual[..]), act };
        for isa in Isa::available() {
            // Step by step.
            let mut parts = start.clone();
            if m > 0 && n > 0 {
                if k > 0 {
                    nest::product(isa, Left::Mat(a), Right::Loose(b), Out { c: &mut parts, ldc, accumulate: false, rounded: None, finish: Finish { bias: finish.bias, ..Finish::default() } }, true);
                } else {
                    nothing(false, m, n, &mut parts, ldc, &Finish { bias: finish.bias, ..Finish::default() });
                }
            }
            for i in 0..m {
                for j in 0..n {
                    let x = &mut parts[i * ldc + j];
                    if added { *x += residual[i * ldc + j]; }
                }
                if let Some(act) = act { eval_on(isa, Activated(act, &mut parts[i * ldc..][..n])); }
            }
            let mut whole = start.clone();
            multiply(a, Right::Packed(&Packed::on(isa, b)), &mut whole, ldc, finish, seed % 2 == 0);
            if k > 0 { prop_assert_eq!(&whole, &parts, "{}", isa); } else { for (x, y) in whole.iter().zip(&parts) { prop_assert!((x - y).abs() < 1e-6); } }
            if isa == Isa::current() {
                let mut loose = start.clone();
                multiply(a, Right::Loose(b), &mut loose, ldc, finish, true);
                prop_assert_eq!(&loose, &whole);
            }
        }
    }
}

#[test]
fn packed_content_that_is_kept_elsewhere_multiplies_the_same() {
    use alloc::sync::Arc;
    struct Elsewhere(Vec<pack::Line>, usize);
    impl AsRef<[f32]> for Elsewhere {
        fn as_ref(&self) -> &[f32] {
            &pack::numbers_of(&self.0)[..self.1]
        }
    }
    for (k, n) in [(700, 70), (3, 1), (0, 5)] {
        let (a, b) = (values(20 * k, 1), values(k * n, 2));
        let half: Vec<half::bf16> = b.iter().map(|&x| half::bf16::from_f32(x)).collect();
        for (numbers, packed) in
            [(Numbers::F32, Packed::new(Mat::new(&b, k, n))), (Numbers::Bf16, Packed::bf16(Mat::new(&half, k, n)))]
        {
            let content = packed.content();
            let lend = |len: usize| {
                let mut lines = vec![pack::Line::ZERO; content.len() / 16];
                pack::numbers(&mut lines).copy_from_slice(content);
                Packed::kept(numbers, [k, n], Arc::new(Elsewhere(lines, len)))
            };
            assert!(lend(content.len() - 16).is_none() && lend(content.len() - 1).is_none());
            let run = |b: &Packed| {
                let mut c = vec![0.0; 20 * n];
                multiply(Mat::new(&a, 20, k), Right::Packed(b), &mut c, n, Finish::default(), true);
                c
            };
            assert_eq!(run(&lend(content.len()).unwrap()), run(&packed));
        }
    }
    assert_eq!(packing(), packing());
}

pub(super) struct Activated<'a>(pub Unary, pub &'a mut [f32]);

impl crate::simd::SimdOp for Activated<'_> {
    type Output = ();
    fn eval<S: crate::simd::Simd>(self, s: S) {
        map::activate(s, self.0, self.1);
    }
}

#[test]
fn bits_depend_on_k_alone() {
    let (k, n) = (800, 200);
    let (a, b) = (values(300 * k, 1), values(k * n, 2));
    let run = |m: usize, threads: usize| {
        par::Pool::new(threads).install(|| {
            let mut c = vec![0.0; m * n];
            gemm(Mat::new(&a[..m * k], m, k), Mat::new(&b, k, n), false, &mut c, n, None);
            c
        })
    };
    let whole = run(300, 1);
    for threads in [2, 3, 7] {
        assert!(run(300, threads) == whole, "{threads} threads");
    }
    for m in [1, 13, 14, 15, 16, 17, 50, 197] {
        assert!(run(m, 2)[..] == whole[..m * n], "{m} rows");
    }
    // One column alone, from the transposed matrix.
    let mut transposed = vec![0.0; n * k];
    for i in 0..k {
        for j in 0..n {
            transposed[j * k + i] = b[i * n + j];
        }
    }
    let mut c = vec![0.0; 300 * n];
    gemm(Mat::new(&a, 300, k), Mat::new(&transposed, n, k).t(), false, &mut c, n, None);
    assert!(c == whole);
    // Rows of A a power of two apart, which are packed, or read by lower tiles where columns are few; few rows, for which B is read in place.
    let mut apart = vec![f32::NAN; 300 * 1024];
    a.chunks(k).zip(apart.chunks_mut(1024)).for_each(|(row, place)| place[..k].copy_from_slice(row));
    for (m, cols) in [(9, n), (300, n), (9, 3), (300, 60), (295, 33)] {
        let spaced = Mat { data: &apart, offset: 0, rows: m, cols: k, row_stride: 1024, col_stride: 1 };
        let mut c = vec![0.0; m * n];
        let columns = Mat { cols, ..Mat::new(&b, k, n) };
        par::Pool::new(1).install(|| gemm(spaced, columns, false, &mut c, n, None));
        for (i, (c, whole)) in c.chunks(n).zip(whole.chunks(n)).enumerate() {
            assert!(
                c[..cols] == whole[..cols] && c[cols..].iter().all(|&x| x == 0.0),
                "row {i} of {m}, {cols} columns"
            );
        }
    }
}

/// Rows that crowd each other out, or meet many panels, are packed once by each thread: not once more, and not kept for the next product.
#[test]
fn rows_that_each_thread_packs_are_those_of_the_product() {
    let (m, k) = (20, 1024);
    for (n, apart) in [(1200, 1024), (1700, 1030)] {
        let b = values(k * n, 1);
        let products = |isa: Isa, threads: usize| -> Vec<Vec<f32>> {
            let packed = Packed::on(isa, Mat::new(&b, k, n));
            let product = |seed: u64| {
                let a = values(m * apart, seed);
                let a = Mat { row_stride: apart as isize, ..Mat::new(&a, m, k) };
                let mut c = vec![f32::NAN; m * n];
                multiply(a, Right::Packed(&packed), &mut c, n, Finish::default(), true);
                c
            };
            par::Pool::on(isa, threads).install(|| (2..5).map(product).collect())
        };
        for isa in Isa::available() {
            let alone = products(isa, 1);
            assert!(alone[0] != alone[1]);
            for threads in [2, 3, 8] {
                assert!(products(isa, threads) == alone, "{isa}, {threads} threads, {n} columns");
            }
        }
    }
}

/// A^T B over many slabs, as the gradient of a weight is: rows packed by each job or for all of them, B in two rounds.
#[test]
fn a_product_of_transposed_rows_has_the_bits_of_their_copies() {
    let k = 2500;
    for (m, n) in [(127, 850), (898, 850), (850, 33)] {
        let (a, b) = (values(k * m, 1), values(k * n, 2));
        let copied: Vec<f32> = (0..m * k).map(|i| a[i % k * m + i / k]).collect();
        let product = |a: Mat<'_, f32>, threads: usize| {
            par::Pool::new(threads).install(|| {
                let mut c = vec![f32::NAN; m * n];
                gemm(a, Mat::new(&b, k, n), false, &mut c, n, None);
                c
            })
        };
        let plain = product(Mat::new(&copied, m, k), 1);
        for threads in [1, 2, 3] {
            assert!(
                product(Mat::new(&a, k, m).t(), threads) == plain,
                "[{m}, {k}] times [{k}, {n}] on {threads} threads"
            );
        }
    }
}

/// A slab of B that is more than is packed at a time.
#[test]
fn a_wide_product_has_the_bits_of_its_columns() {
    let (m, k, n, part) = (2, 600, 4000, 500);
    let (a, b) = (values(m * k, 1), values(k * n, 2));
    let (a, mut whole) = (Mat::new(&a, m, k), vec![f32::NAN; m * n]);
    gemm(a, Mat::new(&b, k, n), false, &mut whole, n, None);
    for start in (0..n).step_by(part) {
        let columns = Mat { offset: start, cols: part, ..Mat::new(&b, k, n) };
        let mut c = vec![f32::NAN; m * part];
        gemm(a, columns, false, &mut c, part, None);
        assert!((0..m).all(|i| c[i * part..][..part] == whole[i * n + start..][..part]), "columns from {start}");
    }
}

/// B, read where it lies, packed by the job or before, that stays near as a whole, or by parts, while rows pass: the bits of its columns.
#[test]
fn rows_that_pass_by_what_stays_near_have_the_bits_of_every_column() {
    for isa in Isa::available() {
        for (m, k, n, threads) in
            [(280, 510, 500, 1), (300, 700, 300, 2), (260, 250, 260, 1), (500, 700, 400, 1), (420, 700, 400, 2)]
        {
            let (a, b) = (values(m * k, 1), values(k * n, 2));
            let (a, columns) = (Mat::new(&a, m, k), Mat::new(&b, n, k).t());
            let run = |b: Right<'_, f32>, n: usize| {
                par::Pool::on(isa, threads).install(|| {
                    let mut c = vec![f32::NAN; m * n];
                    multiply(a, b, &mut c, n, Finish::default(), true);
                    c
                })
            };
            let packed = par::Pool::on(isa, 1).install(|| Packed::new(columns));
            let whole = run(Right::Loose(columns), n);
            assert!(run(Right::Packed(&packed), n) == whole, "{isa}: packed, {m} {k} {n}");
            for start in (0..n).step_by(96) {
                let part = 96.min(n - start);
                let some = Mat { offset: start * k, rows: k, cols: part, ..columns };
                let c = run(Right::Loose(some), part);
                let same = (0..m).all(|i| c[i * part..][..part] == whole[i * n + start..][..part]);
                assert!(same, "{isa}: columns from {start} of {m} {k} {n}");
            }
        }
    }
}

#[test]
fn batches_are_products_one_by_one() {
    for (batch, m, k, n) in [(0, 2, 2, 2), (1, 3, 4, 5), (2, 3, 4, 5), (5, 17, 30, 33), (3, 2, 0, 2), (2, 0, 3, 4)] {
        let (a, b) = (values(batch * m * k, 1), values(batch * k * n, 2));
        let of_a = |i: usize| Mat::new(&a[i * m * k..][..m * k], m, k);
        let of_b = |i: usize| Mat::new(&b[i * k * n..][..k * n], k, n);
        let (mut c, mut one) = (vec![f32::NAN; batch * m * n], vec![f32::NAN; m * n]);
        gemm_batched(batch, of_a, of_b, &mut c);
        for i in 0..batch {
            gemm(of_a(i), of_b(i), false, &mut one, n, None);
            assert!(c[i * m * n..][..m * n] == one, "product {i} of {batch}");
        }
    }
}
