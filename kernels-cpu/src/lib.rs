//! CPU kernels on plain slices: a scalar definition of each, and SIMD variants chosen at run time.
#![cfg_attr(not(feature = "std"), no_std)]

extern crate alloc;

pub mod attention;
pub mod batch_norm;
pub mod conv;
pub mod entropy;
pub mod float;
pub mod gather;
pub mod gemm;
pub mod hash;
pub mod isa;
pub mod map;
pub mod math;
pub mod norm;
pub mod optim;
pub mod par;
pub mod pool;
pub mod reduce;
pub mod resize;
pub mod rng;
pub mod simd;
pub mod softmax;
pub mod strided;
#[cfg(all(test, feature = "rayon"))]
mod testing;
pub mod view;
pub mod zip;

pub use float::Float;
pub use isa::Isa;
pub use view::Strided;
