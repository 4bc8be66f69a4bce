//! The loader, opened at run time, and the validation layer, whose messages are counted.

use std::ffi::{CStr, c_void};
use std::sync::atomic::{AtomicUsize, Ordering};

use ash::{Entry, vk};

use crate::error::{Error, Named, Result};

/// How much the validation layer looks at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Validation {
    /// Not at all.
    #[default]
    Off,
    /// Calls and their arguments.
    Calls,
    /// Also hazards between what is submitted.
    Synchronisation,
    /// Also accesses of shaders beyond what is bound.
    Shaders,
}

impl Validation {
    /// What `TIER_VULKAN_VALIDATION` asks for: `calls`, `sync` or `shaders`.
    ///
    /// # Errors
    /// If it says something else.
    pub fn requested() -> Result<Self> {
        Ok(match std::env::var("TIER_VULKAN_VALIDATION").as_deref() {
            Err(_) | Ok("" | "off") => Self::Off,
            Ok("calls") => Self::Calls,
            Ok("sync") => Self::Synchronisation,
            Ok("shaders") => Self::Shaders,
            Ok(other) => {
                return Err(Error::NoVulkan(format!("TIER_VULKAN_VALIDATION={other}: off, calls, sync or shaders")));
            }
        })
    }

    /// Calls are not looked at where shaders are, which would be very slow.
    fn without(self) -> &'static [vk::ValidationFeatureDisableEXT] {
        if self == Self::Shaders { &[vk::ValidationFeatureDisableEXT::CORE_CHECKS] } else { &[] }
    }

    fn features(self) -> &'static [vk::ValidationFeatureEnableEXT] {
        match self {
            Self::Off | Self::Calls => &[],
            Self::Synchronisation => &[vk::ValidationFeatureEnableEXT::SYNCHRONIZATION_VALIDATION],
            Self::Shaders => &[vk::ValidationFeatureEnableEXT::GPU_ASSISTED],
        }
    }
}

static MESSAGES: AtomicUsize = AtomicUsize::new(0);

/// Errors and warnings that the validation layer told in this process; each is on stderr too.
pub fn validation_messages() -> usize {
    MESSAGES.load(Ordering::SeqCst)
}

/// Counts and prints.
///
/// # Safety
/// Called by the layer alone, with a valid `data`.
unsafe extern "system" fn told(
    _: vk::DebugUtilsMessageSeverityFlagsEXT,
    _: vk::DebugUtilsMessageTypeFlagsEXT,
    data: *const vk::DebugUtilsMessengerCallbackDataEXT<'_>,
    _: *mut c_void,
) -> vk::Bool32 {
    // SAFETY: the layer passes valid data with a message that ends in zero, or null.
    let message = unsafe { data.as_ref().filter(|d| !d.p_message.is_null()).map(|d| CStr::from_ptr(d.p_message)) };
    let message = message.unwrap_or_default().to_string_lossy();
    // What the layer says of its own settings (features that it needs itself, combinations that are slow) is not about us.
    if !["adjusting settings", "layer settings provided"].iter().any(|own| message.contains(own)) {
        MESSAGES.fetch_add(1, Ordering::SeqCst);
        eprintln!("Vulkan validation: {message}");
    }
    vk::FALSE
}

/// The loader and an instance of it.
pub(crate) struct Instance {
    pub raw: ash::Instance,
    messenger: Option<(ash::ext::debug_utils::Instance, vk::DebugUtilsMessengerEXT)>,
    /// Keeps the library open; dropped last.
    entry: Entry,
}

const LAYER: &CStr = c"VK_LAYER_KHRONOS_validation";

impl Instance {
    pub fn new(validation: Validation) -> Result<Self> {
        // SAFETY: the loader is the system's own; nothing else is asked of it here than to be a Vulkan loader.
        let entry = unsafe { Entry::load() }.map_err(|e| Error::NoVulkan(format!("no loader ({e})")))?;
        let app = vk::ApplicationInfo::default().application_name(c"tiergrad").api_version(vk::API_VERSION_1_2);
        let (mut layers, mut extensions) = (Vec::new(), Vec::new());
        let checked = validation != Validation::Off;
        if checked {
            // SAFETY: no arguments.
            let known = unsafe { entry.enumerate_instance_layer_properties() }.named("list layers")?;
            if !known.iter().any(|l| l.layer_name_as_c_str() == Ok(LAYER)) {
                return Err(Error::NoVulkan("validation is asked for and there is no validation layer".to_owned()));
            }
            layers.push(LAYER.as_ptr());
            extensions.push(ash::ext::debug_utils::NAME.as_ptr());
        }
        let mut features = vk::ValidationFeaturesEXT::default()
            .enabled_validation_features(validation.features())
            .disabled_validation_features(validation.without());
        let heard = || {
            vk::DebugUtilsMessengerCreateInfoEXT::default()
                .message_severity(
                    vk::DebugUtilsMessageSeverityFlagsEXT::WARNING | vk::DebugUtilsMessageSeverityFlagsEXT::ERROR,
                )
                .message_type(vk::DebugUtilsMessageTypeFlagsEXT::VALIDATION)
                .pfn_user_callback(Some(told))
        };
        let mut create = vk::InstanceCreateInfo::default()
            .application_info(&app)
            .enabled_layer_names(&layers)
            .enabled_extension_names(&extensions);
        if checked {
            create = create.push_next(&mut features);
        }
        // SAFETY: what `create` points to lives until the call returns.
        let raw = unsafe { entry.create_instance(&create, None) }
            .map_err(|e| Error::NoVulkan(format!("the loader makes no instance ({e:?})")))?;
        let messenger = checked.then(|| {
            let utils = ash::ext::debug_utils::Instance::new(&entry, &raw);
            // SAFETY: the extension was enabled above.
            unsafe { utils.create_debug_utils_messenger(&heard(), None) }.map(|messenger| (utils, messenger))
        });
        let mut instance = Self { raw, messenger: None, entry };
        instance.messenger = messenger.transpose().named("hear the validation layer")?;
        Ok(instance)
    }

    /// What functions of extensions are asked of.
    pub fn entry(&self) -> &Entry {
        &self.entry
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        // SAFETY: both were made here, and devices hold the instance for as long as they live.
        unsafe {
            if let Some((utils, messenger)) = &self.messenger {
                utils.destroy_debug_utils_messenger(*messenger, None);
            }
            self.raw.destroy_instance(None);
        }
    }
}
