//! tiergrad: a tensor engine written from scratch, and CLIP-style models with the TIER regulariser on top.
//!
//! Shape and type mistakes in engine calls panic and tell both shapes; everything from outside returns [`error::Error`].
#![doc = include_str!("../README.md")]

// What tests share names the crate as those outside of it do.
#[cfg(test)]
extern crate self as tiergrad;

pub mod buffer;
pub mod check;
pub mod checkpoints;
#[cfg(feature = "cli")]
pub mod cli;
#[cfg(feature = "cli")]
pub mod data;
pub mod device;
pub mod distance;
pub mod dtype;
pub mod error;
#[cfg(feature = "cli")]
pub mod eval;
pub mod files;
pub mod finite;
pub mod formats;
pub mod gradcheck;
#[cfg(feature = "image")]
pub mod image;
pub mod layout;
pub mod loss;
pub mod memory;
pub mod models;
pub mod mount;
pub mod nn;
pub mod op;
pub mod ops;
pub mod optim;
#[cfg(feature = "cli")]
pub mod phantom;
#[cfg(all(feature = "text", feature = "image"))]
pub mod pipeline;
pub mod plan;
pub mod process;
pub mod products;
pub mod profile;
#[cfg(feature = "cli")]
pub mod report;
mod scoped;
#[cfg(test)]
mod shared;
pub mod spelling;
pub mod tape;
pub mod tensor;
#[cfg(feature = "text")]
pub mod text;
#[cfg(feature = "cli")]
pub mod train;

pub use dtype::{DType, Element};
pub use kernels_cpu::rng;
pub use layout::Dims;
pub use tape::{Grads, backward_with, checkpoint, recomputing};
pub use tensor::Tensor;
