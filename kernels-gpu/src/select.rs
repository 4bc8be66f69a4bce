//! The devices of this machine, which of them will do, and which is taken.

use std::fmt;

use ash::vk;

use crate::error::{Error, Named, Result};
use crate::instance::{Instance, Validation};

/// What sort of device; those before are preferred.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// With memory of its own.
    Discrete,
    /// Shares the CPU's memory.
    Integrated,
    /// Of a virtual machine.
    Virtual,
    /// Something else.
    Other,
    /// A CPU that stands in for one; taken only where it is named.
    Software,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Discrete => "discrete",
            Self::Integrated => "integrated",
            Self::Virtual => "virtual",
            Self::Other => "other",
            Self::Software => "software",
        })
    }
}

/// A device of this machine.
#[derive(Clone, Debug)]
pub struct Info {
    /// Position in the loader's list.
    pub index: usize,
    /// As its driver calls it.
    pub name: String,
    /// The driver's name and version.
    pub driver: String,
    /// Version of Vulkan.
    pub api: [u32; 2],
    /// What sort.
    pub kind: Kind,
    /// Bytes of its own memory, or of what it shares.
    pub memory: u64,
    /// Tells it from others, in hexadecimal digits.
    pub uuid: String,
    /// Tells this build of its driver from others: its version and the UUID of its caches.
    pub build: String,
    /// What of the newer features it has, for people.
    pub features: Vec<&'static str>,
    /// Why it cannot be used, where it cannot.
    pub refused: Option<String>,
}

/// Which device is wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// The best that is no software.
    #[default]
    Best,
    /// By its index.
    Index(usize),
    /// By the first digits of its UUID.
    Uuid(String),
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Best => Ok(()),
            Self::Index(index) => write!(f, "{index}"),
            Self::Uuid(digits) => f.write_str(digits),
        }
    }
}

impl Choice {
    /// What stands behind `vulkan:`.
    pub fn of(text: &str) -> Self {
        match text.parse() {
            _ if text.is_empty() => Self::Best,
            Ok(index) if text.len() < 4 => Self::Index(index),
            _ => Self::Uuid(text.to_ascii_lowercase().replace('-', "")),
        }
    }

    /// The one of `all` that is meant.
    fn pick<'a>(&self, all: &'a [Info]) -> Result<&'a Info> {
        let named = || all.iter().map(|d| format!("{}: {}", d.index, d.name)).collect::<Vec<_>>().join("; ");
        let found = match self {
            Self::Best => {
                let fit = all.iter().filter(|d| d.refused.is_none() && d.kind != Kind::Software);
                let best = fit.min_by_key(|d| (d.kind, std::cmp::Reverse(d.memory)));
                return best.ok_or_else(|| {
                    let soft = all.iter().find(|d| d.kind == Kind::Software && d.refused.is_none());
                    Error::NoDevice(match soft {
                        Some(d) => {
                            format!("no GPU, only {} (software; name it, vulkan:{}, to use it)", d.name, d.index)
                        }
                        None => format!(
                            "no GPU that will do: {}",
                            all.iter().map(Info::line).collect::<Vec<_>>().join("; ")
                        ),
                    })
                });
            }
            Self::Index(index) => all.get(*index),
            Self::Uuid(digits) => all.iter().find(|d| d.uuid.starts_with(digits)),
        };
        let device = found.ok_or_else(|| Error::NoDevice(format!("no device vulkan:{self} among {}", named())))?;
        match &device.refused {
            None => Ok(device),
            Some(why) => Err(Error::NoDevice(format!("{} cannot be used: {why}", device.name))),
        }
    }
}

impl Info {
    /// In one line.
    pub fn line(&self) -> String {
        let Self { index, name, driver, kind, memory, uuid, .. } = self;
        let [major, minor] = self.api;
        let refused = self.refused.as_ref().map_or_else(String::new, |why| format!("; cannot be used: {why}"));
        let features = if self.features.is_empty() { String::new() } else { format!("; {}", self.features.join(", ")) };
        format!(
            "vulkan:{index}: {name} ({kind}, {} MiB, {driver}, Vulkan {major}.{minor}, UUID {uuid}{features}){refused}",
            memory >> 20
        )
    }
}

/// Every device that the loader knows, also those that cannot be used.
///
/// # Errors
/// [`Error::NoVulkan`] if there is no loader, or nothing behind it.
pub fn list() -> Result<Vec<Info>> {
    let instance = Instance::new(Validation::Off)?;
    Ok(found(&instance)?.into_iter().map(|(_, info)| info).collect())
}

/// The device that is meant.
pub(crate) fn chosen(instance: &Instance, choice: &Choice) -> Result<(vk::PhysicalDevice, Info)> {
    let all = found(instance)?;
    let infos: Vec<Info> = all.iter().map(|(_, info)| info.clone()).collect();
    let info = choice.pick(&infos)?;
    Ok((all[info.index].0, info.clone()))
}

fn found(instance: &Instance) -> Result<Vec<(vk::PhysicalDevice, Info)>> {
    // SAFETY: the instance lives.
    let all = unsafe { instance.raw.enumerate_physical_devices() }.named("list devices")?;
    if all.is_empty() {
        return Err(Error::NoVulkan("no driver shows a device".to_owned()));
    }
    Ok(all.into_iter().enumerate().map(|(index, device)| (device, info(instance, index, device))).collect())
}

/// The queue family that computes, rather one that does not draw.
pub(crate) fn queue_family(instance: &Instance, device: vk::PhysicalDevice) -> Option<u32> {
    // SAFETY: the device is the instance's.
    let families = unsafe { instance.raw.get_physical_device_queue_family_properties(device) };
    let computes = |f: &vk::QueueFamilyProperties| f.queue_count > 0 && f.queue_flags.contains(vk::QueueFlags::COMPUTE);
    let draws = |f: &vk::QueueFamilyProperties| f.queue_flags.contains(vk::QueueFlags::GRAPHICS);
    let found = families.iter().position(|f| computes(f) && draws(f));
    found.or_else(|| families.iter().position(computes)).map(|at| at as u32)
}

/// How many processors run workgroups independently of each other, where the driver tells.
pub(crate) fn cores(instance: &Instance, device: vk::PhysicalDevice) -> Option<u32> {
    // SAFETY: the device is the instance's.
    let extensions = unsafe { instance.raw.enumerate_device_extension_properties(device) }.ok()?;
    let has = |name| extensions.iter().any(|e| e.extension_name_as_c_str() == Ok(name));
    let mut nv = vk::PhysicalDeviceShaderSMBuiltinsPropertiesNV::default();
    let mut amd = vk::PhysicalDeviceShaderCorePropertiesAMD::default();
    let mut properties = vk::PhysicalDeviceProperties2::default();
    if has(ash::nv::shader_sm_builtins::NAME) {
        properties = properties.push_next(&mut nv);
    } else if has(ash::amd::shader_core_properties::NAME) {
        properties = properties.push_next(&mut amd);
    }
    // SAFETY: what is asked for is chained where the device has the extension.
    unsafe { instance.raw.get_physical_device_properties2(device, &mut properties) };
    let units = amd.shader_engine_count * amd.shader_arrays_per_engine_count * amd.compute_units_per_shader_array;
    [nv.shader_sm_count, units].into_iter().find(|&n| n > 0)
}

fn info(instance: &Instance, index: usize, device: vk::PhysicalDevice) -> Info {
    let raw = &instance.raw;
    let (mut id, mut driver) =
        (vk::PhysicalDeviceIDProperties::default(), vk::PhysicalDeviceDriverProperties::default());
    let mut properties = vk::PhysicalDeviceProperties2::default().push_next(&mut id).push_next(&mut driver);
    // SAFETY: the device is the instance's, and what is asked for is chained above.
    unsafe { raw.get_physical_device_properties2(device, &mut properties) };
    let base = properties.properties;
    let (major, minor) = (vk::api_version_major(base.api_version), vk::api_version_minor(base.api_version));
    let recent = (major, minor) >= (1, 2);
    let mut f12 = vk::PhysicalDeviceVulkan12Features::default();
    let mut features = vk::PhysicalDeviceFeatures2::default();
    if recent {
        features = features.push_next(&mut f12);
    }
    // SAFETY: as above; the features of Vulkan 1.2 are asked of devices that have it.
    unsafe { raw.get_physical_device_features2(device, &mut features) };
    // SAFETY: the device is the instance's.
    let heaps = unsafe { raw.get_physical_device_memory_properties(device) };
    let local = heaps.memory_heaps_as_slice().iter().filter(|h| h.flags.contains(vk::MemoryHeapFlags::DEVICE_LOCAL));
    // SAFETY: the device is the instance's.
    let extensions = unsafe { raw.enumerate_device_extension_properties(device) }.unwrap_or_default();
    let has = |name| extensions.iter().any(|e| e.extension_name_as_c_str() == Ok(name));
    let known = [
        (f12.shader_float16 == vk::TRUE, "f16"),
        (has(ash::khr::cooperative_matrix::NAME), "cooperative matrices"),
        (has(ash::ext::memory_budget::NAME), "memory budget"),
    ];
    let refused = if !recent {
        Some(format!("it has Vulkan {major}.{minor}, 1.2 is needed"))
    } else if f12.timeline_semaphore != vk::TRUE {
        Some("it has no timeline semaphores".to_owned())
    } else if queue_family(instance, device).is_none() {
        Some("it has no queue that computes".to_owned())
    } else {
        None
    };
    let digits = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let text = |name: Result<&std::ffi::CStr, _>| {
        name.map_or_else(|_: std::ffi::FromBytesUntilNulError| String::new(), |n| n.to_string_lossy().into_owned())
    };
    Info {
        index,
        name: text(base.device_name_as_c_str()),
        driver: format!("{} {}", text(driver.driver_name_as_c_str()), text(driver.driver_info_as_c_str()))
            .trim()
            .to_owned(),
        api: [major, minor],
        kind: match base.device_type {
            vk::PhysicalDeviceType::DISCRETE_GPU => Kind::Discrete,
            vk::PhysicalDeviceType::INTEGRATED_GPU => Kind::Integrated,
            vk::PhysicalDeviceType::VIRTUAL_GPU => Kind::Virtual,
            vk::PhysicalDeviceType::CPU => Kind::Software,
            _ => Kind::Other,
        },
        memory: local.map(|h| h.size).sum(),
        uuid: digits(&id.device_uuid),
        build: format!("{:x}-{}", base.driver_version, digits(&base.pipeline_cache_uuid)),
        features: known.into_iter().filter(|(has, _)| *has).map(|(_, name)| name).collect(),
        refused,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(index: usize, kind: Kind, memory: u64, refused: Option<&str>) -> Info {
        Info {
            index,
            name: format!("{kind} {index}"),
            driver: String::new(),
            api: [1, 3],
            kind,
            memory,
            uuid: format!("{index:032x}"),
            build: String::new(),
            features: Vec::new(),
            refused: refused.map(str::to_owned),
        }
    }

    #[test]
    fn the_best_is_the_largest_of_the_first_kind_that_will_do_and_never_software() {
        let all = [
            device(0, Kind::Software, 64, None),
            device(1, Kind::Integrated, 32, None),
            device(2, Kind::Discrete, 8, Some("old")),
            device(3, Kind::Discrete, 4, None),
            device(4, Kind::Discrete, 6, None),
        ];
        let pick = |text: &str, all: &[Info]| Choice::of(text).pick(all).map(|d| d.index).map_err(|e| e.to_string());
        assert_eq!(pick("", &all), Ok(4));
        assert_eq!(pick("", &all[..2]), Ok(1));
        assert_eq!(pick("0", &all), Ok(0));
        assert_eq!(pick("00000000-0000-0000-0000-000000000003", &all), Ok(3));
        assert!(pick("2", &all).unwrap_err().contains("old"));
        assert!(pick("7", &all).unwrap_err().contains("software 0"));
        assert!(pick("", &all[..1]).unwrap_err().contains("vulkan:0"));
    }
}
