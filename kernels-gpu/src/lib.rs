//! Vulkan compute kernels on strided views of device memory. Knows nothing of tensors or autodiff.
//!
//! The loader is opened at run time: a machine without Vulkan, or without a device that will do, is an [`Error`] that says so. Work is
//! recorded as it is asked for and runs behind the caller, in order; reading memory waits for what was recorded.

mod cache;
mod device;
mod error;
mod hazards;
mod instance;
mod kept;
mod matrices;
mod memory;
pub mod ops;
mod pipeline;
#[cfg(test)]
mod planted;
mod ranges;
mod select;
mod sequence;
mod shaders;
mod stream;
mod timer;
mod trial;
mod view;

pub use cache::Keep;
pub use device::{Counters, Device, Limits, Options};
pub use error::{Error, Result};
pub use instance::{Validation, validation_messages};
pub use memory::Memory;
pub use select::{Choice, Info, Kind, list};
pub use view::{Stored, View};
