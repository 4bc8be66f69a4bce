//! tiergrad: a tensor engine written from scratch, and CLIP-style models with the TIER regulariser on top.
//!
//! Shape and type mistakes in engine calls panic and tell both shapes; everything from outside returns [`error::Error`].
#![doc = include_str!("../README.md")]

pub mod buffer;
pub mod dtype;
pub mod error;
pub mod files;
pub mod formats;
pub mod gradcheck;
pub mod layout;
pub mod loss;
pub mod models;
pub mod nn;
pub mod op;
pub mod ops;
pub mod optim;
pub mod tape;
pub mod tensor;

pub use dtype::{DType, Element};
pub use kernels_cpu::rng;
pub use layout::Dims;
pub use tape::{Grads, backward_with, checkpoint};
pub use tensor::Tensor;
