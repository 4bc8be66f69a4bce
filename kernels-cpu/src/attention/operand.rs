//! In what attention multiplies.

use half::bf16;

use crate::float::Float;
use crate::gemm::{Finish, Mat, Rounds, gemm_serial, multiply_bf16};

/// What queries, keys and values are: f32 or f64, or numbers rounded to bf16, of which products are those of bf16 and all else is f32: weights and gradients
/// are rounded where they are multiplied.
pub trait Operand: Copy + Send + Sync {
    /// What sums of products are.
    type Sum: Float;
    /// C = A B, rows of C so far apart, on the calling thread.
    fn both(a: Mat<'_, Self>, b: Mat<'_, Self>, c: &mut [Self::Sum], ldc: usize);
    /// The same with sums on the left ...
    fn right(a: Mat<'_, Self::Sum>, b: Mat<'_, Self>, c: &mut [Self::Sum], ldc: usize);
    /// ... or on both sides.
    fn sums(a: Mat<'_, Self::Sum>, b: Mat<'_, Self::Sum>, c: &mut [Self::Sum], ldc: usize);
}

impl<F: Float> Operand for F {
    type Sum = F;
    fn both(a: Mat<'_, F>, b: Mat<'_, F>, c: &mut [F], ldc: usize) {
        gemm_serial(a, b, false, c, ldc, None);
    }
    fn right(a: Mat<'_, F>, b: Mat<'_, F>, c: &mut [F], ldc: usize) {
        Self::both(a, b, c, ldc);
    }
    fn sums(a: Mat<'_, F>, b: Mat<'_, F>, c: &mut [F], ldc: usize) {
        Self::both(a, b, c, ldc);
    }
}

impl Operand for bf16 {
    type Sum = f32;
    fn both(a: Mat<'_, bf16>, b: Mat<'_, bf16>, c: &mut [f32], ldc: usize) {
        rounded(a, b, c, ldc);
    }
    fn right(a: Mat<'_, f32>, b: Mat<'_, bf16>, c: &mut [f32], ldc: usize) {
        rounded(a, b, c, ldc);
    }
    fn sums(a: Mat<'_, f32>, b: Mat<'_, f32>, c: &mut [f32], ldc: usize) {
        rounded(a, b, c, ldc);
    }
}

fn rounded<A: Rounds, B: Rounds>(a: Mat<'_, A>, b: Mat<'_, B>, c: &mut [f32], ldc: usize) {
    multiply_bf16(a, b, c, ldc.max(1), Finish::default(), false);
}
