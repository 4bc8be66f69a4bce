//! Files of weights.

pub mod safetensors;

pub use safetensors::Weights;
