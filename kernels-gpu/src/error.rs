//! What can go wrong with a device.

use std::fmt;

use ash::vk;

/// Result with [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong with a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// No loader, or no driver behind it.
    NoVulkan(String),
    /// No device that was asked for, or none that will do.
    NoDevice(String),
    /// Beyond what this device can do; the caller may compute elsewhere.
    Limit(String),
    /// No memory left on the device; in bytes.
    OutOfMemory {
        /// Asked for.
        request: u64,
        /// Held by this process.
        held: u64,
        /// What the device has.
        budget: u64,
    },
    /// The device is gone, or does not answer.
    Lost {
        /// The kernels that were under way, in order.
        kernels: Vec<&'static str>,
    },
    /// A call of Vulkan's that should not fail.
    Call(&'static str, vk::Result),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: &u64| bytes.div_ceil(1 << 20);
        match self {
            Self::NoVulkan(why) => write!(f, "no Vulkan: {why}"),
            Self::NoDevice(why) | Self::Limit(why) => f.write_str(why),
            Self::OutOfMemory { request, held, budget } => write!(
                f,
                "the device has no {} MiB left: {} MiB are held, it has {} MiB; take smaller batches",
                mib(request),
                mib(held),
                mib(budget)
            ),
            Self::Lost { kernels } => {
                let last = kernels.len().saturating_sub(8);
                write!(f, "the device is lost; under way were {} kernels", kernels.len())?;
                if kernels.is_empty() { Ok(()) } else { write!(f, ", the last: {}", kernels[last..].join(", ")) }
            }
            Self::Call(call, result) => write!(f, "Vulkan: {call}: {result:?}"),
        }
    }
}

impl std::error::Error for Error {}

/// Names the call that failed.
pub(crate) trait Named<T> {
    fn named(self, call: &'static str) -> Result<T>;
}

impl<T> Named<T> for std::result::Result<T, vk::Result> {
    fn named(self, call: &'static str) -> Result<T> {
        self.map_err(|result| match result {
            vk::Result::ERROR_DEVICE_LOST => Error::Lost { kernels: Vec::new() },
            other => Error::Call(call, other),
        })
    }
}
