//! CPU kernels on plain slices: a scalar definition of each, and SIMD variants chosen at run time.
#![cfg_attr(not(feature = "std"), no_std)]

extern crate alloc;

pub mod float;
pub mod rng;
pub mod view;

pub use float::Float;
pub use view::Strided;
