//! Proof of the numbers: models against cases that PyTorch computed.

pub mod case;
pub mod deviation;
pub mod inputs;
pub mod verify;

pub use case::Case;
pub use deviation::{deviations, outputs};
pub use inputs::Inputs;
pub use verify::{Check, verify};
