//! Files of weights: safetensors and torch.save's, opened lazily and without executing anything.

mod folder;
pub mod safetensors;
mod torch;
mod weights;

pub use weights::{MAX_TENSORS, Weights};
