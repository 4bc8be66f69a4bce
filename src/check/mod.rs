//! Proof of the numbers: models against cases that PyTorch computed.

pub mod case;
pub mod deviation;
pub mod verify;

pub use case::Case;
pub use deviation::{Inputs, deviations, outputs};
pub use verify::{Check, verify};
