//! One token of each row of a batch: what stands for the whole image or text.

use crate::dtype::DType;
use crate::tensor::Tensor;

/// Of tokens [n, t, d] those at positions i64 `[n]`: [n, 1, d].
pub fn token_at(tokens: &Tensor, at: &Tensor) -> Tensor {
    let [n, d] = [0, 2].map(|k| tokens.dims()[k]);
    tokens.gather(1, &at.reshape([n, 1, 1]).broadcast_to([n, 1, d]))
}

/// The keys that positions i64 `[n]` see of t where none sees what comes later, but for those that `key_mask` u8 [n, t] hides: u8 [n, t].
pub(super) fn seen_from(at: &Tensor, t: usize, key_mask: Option<&Tensor>) -> Tensor {
    let positions: Vec<f32> = (0..t).map(|i| i as f32).collect();
    // Positions are exact in f32: at - i + 1 is at least 1 for keys up to `at`, and at most 0 for those behind.
    let ahead = at.to_dtype(DType::F32).unsqueeze(1).sub(&Tensor::from_slice(&positions, [t]));
    let seen = ahead.affine(1.0, 1.0).clamp(0.0, 1.0);
    match key_mask {
        Some(mask) => seen.mul(&mask.to_dtype(DType::F32)),
        None => seen,
    }
    .to_dtype(DType::U8)
}
