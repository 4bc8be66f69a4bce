//! CPU kernels on plain slices: a scalar definition of each, and SIMD variants chosen at run time.
#![cfg_attr(not(feature = "std"), no_std)]

extern crate alloc;

pub mod float;
pub mod isa;
pub mod par;
pub mod rng;
pub mod simd;
pub mod view;

pub use float::Float;
pub use isa::Isa;
pub use view::Strided;
