//! The device that tests of a GPU run on.

use tiergrad::device::Gpu;

/// The device that `TIER_DEVICE` names, or the first; `None` without Vulkan, said aloud, which `TIER_GPU_REQUIRED` makes a failure.
pub fn gpu() -> Option<Gpu> {
    let named = std::env::var("TIER_DEVICE").unwrap_or_default();
    match Gpu::open(named.strip_prefix("vulkan:").unwrap_or("0")) {
        Ok(gpu) => Some(gpu),
        Err((_, error)) => {
            eprintln!("SKIPPED: {error}");
            assert!(std::env::var_os("TIER_GPU_REQUIRED").is_none(), "a device is required: {error}");
            None
        }
    }
}
