//! What the benches share.

use std::time::Duration;

use criterion::Criterion;
use tiergrad::rng::Rng;
use tiergrad::{DType, Tensor};

/// Short runs: a bench is for comparing two states of the code within minutes.
pub fn short() -> Criterion {
    let criterion = Criterion::default().sample_size(20).without_plots();
    criterion.warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_secs(1)).configure_from_args()
}

/// Standard normal f32.
pub fn normal(dims: &[usize]) -> Tensor {
    Tensor::randn(dims, DType::F32, &mut Rng::new(1, 0))
}
