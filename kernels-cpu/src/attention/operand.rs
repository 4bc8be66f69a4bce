//! In what attention multiplies.

use half::bf16;

use crate::float::Float;
use crate::gemm::{Finish, Mat, Rounds, gemm_serial, multiply_bf16};

/// What queries, keys and values are: f32 or f64, or numbers rounded to bf16, of which products are those of bf16 and all else is f32: weights and gradients
/// are rounded where they are multiplied.
pub trait Operand: Copy + Send + Sync {
    /// What sums of products are.
    type Sum: Float;
    /// C = A B, on the calling thread.
    fn both(a: Mat<'_, Self>, b: Mat<'_, Self>, c: &mut [Self::Sum]);
    /// The same with sums on the left ...
    fn right(a: Mat<'_, Self::Sum>, b: Mat<'_, Self>, c: &mut [Self::Sum]);
    /// ... or on both sides.
    fn sums(a: Mat<'_, Self::Sum>, b: Mat<'_, Self::Sum>, c: &mut [Self::Sum]);
}

impl<F: Float> Operand for F {
    type Sum = F;
    fn both(a: Mat<'_, F>, b: Mat<'_, F>, c: &mut [F]) {
        gemm_serial(a, b, false, c, b.cols, None);
    }
    fn right(a: Mat<'_, F>, b: Mat<'_, F>, c: &mut [F]) {
        Self::both(a, b, c);
    }
    fn sums(a: Mat<'_, F>, b: Mat<'_, F>, c: &mut [F]) {
        Self::both(a, b, c);
    }
}

impl Operand for bf16 {
    type Sum = f32;
    fn both(a: Mat<'_, bf16>, b: Mat<'_, bf16>, c: &mut [f32]) {
        rounded(a, b, c);
    }
    fn right(a: Mat<'_, f32>, b: Mat<'_, bf16>, c: &mut [f32]) {
        rounded(a, b, c);
    }
    fn sums(a: Mat<'_, f32>, b: Mat<'_, f32>, c: &mut [f32]) {
        rounded(a, b, c);
    }
}

fn rounded<A: Rounds, B: Rounds>(a: Mat<'_, A>, b: Mat<'_, B>, c: &mut [f32]) {
    multiply_bf16(a, b, c, b.cols.max(1), Finish::default(), false);
}
