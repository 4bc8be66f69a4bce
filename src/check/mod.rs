//! Proof of the numbers: models against cases that PyTorch computed, the program on this machine against its definitions.

pub mod case;
pub mod deviation;
pub mod golden;
pub mod inputs;
pub mod kernels;
pub mod machine;
pub mod selftest;
pub mod verify;

pub use case::Case;
pub use deviation::{deviations, outputs};
pub use inputs::Inputs;
pub use verify::{Check, verify, verify_on};
