//! tiergrad: a tensor engine written from scratch, and CLIP-style models with the TIER regulariser on top.

pub mod error;
pub mod files;

pub use kernels_cpu::rng;
