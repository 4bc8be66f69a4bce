//! Proof of the numbers: models against cases that PyTorch computed.

pub mod case;
pub mod verify;

pub use case::Case;
pub use verify::{Check, verify};
