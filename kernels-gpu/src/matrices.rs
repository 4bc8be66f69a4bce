//! Cooperative matrices (`VK_KHR_cooperative_matrix`, and for bf16 `VK_KHR_shader_bfloat16`): which of them a device has.

use std::ffi::{CStr, c_void};

use ash::vk;

use crate::device::Options;
use crate::instance::Instance;
use crate::shaders::Shader;
use crate::view::Stored;

/// Sizes of [m, k] times [k, n], multiplied in half with sums of f32 by a subgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub m: u32,
    pub n: u32,
    pub k: u32,
}

/// What a device has.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Matrices {
    /// Threads of a subgroup.
    pub subgroup: u32,
    f16: Option<Shape>,
    bf16: Option<Shape>,
}

/// Depths of tiles are multiples of this, which matrices have to divide.
pub(crate) const DEPTH: u32 = 32;

/// Subgroups have to be full where matrices are, which the second lets a pipeline ask for.
pub(crate) const EXTENSIONS: [&CStr; 2] = [ash::khr::cooperative_matrix::NAME, ash::ext::subgroup_size_control::NAME];
pub(crate) const BFLOAT16: &CStr = c"VK_KHR_shader_bfloat16";
/// `VK_COMPONENT_TYPE_BFLOAT16_KHR`.
const COMPONENT_BF16: vk::ComponentTypeKHR = vk::ComponentTypeKHR::from_raw(1_000_141_000);

/// `VkPhysicalDeviceShaderBfloat16FeaturesKHR`, which ash 0.38 does not have.
#[repr(C)]
pub(crate) struct Bfloat16Features {
    kind: vk::StructureType,
    next: *mut c_void,
    pub has_type: vk::Bool32,
    dot_product: vk::Bool32,
    pub matrices: vk::Bool32,
}

// SAFETY: laid out as the extension says, and its specification lets it extend both.
unsafe impl vk::ExtendsPhysicalDeviceFeatures2 for Bfloat16Features {}
// SAFETY: as above.
unsafe impl vk::ExtendsDeviceCreateInfo for Bfloat16Features {}

impl Bfloat16Features {
    pub fn new(on: bool) -> Self {
        let on = vk::Bool32::from(on);
        let kind = vk::StructureType::from_raw(1_000_141_000);
        Self { kind, next: std::ptr::null_mut(), has_type: on, dot_product: vk::FALSE, matrices: on }
    }
}

impl Matrices {
    /// Those that `options` allow.
    pub fn of(instance: &Instance, physical: vk::PhysicalDevice, options: &Options) -> Self {
        let raw = &instance.raw;
        // SAFETY: the device is the instance's.
        let extensions = unsafe { raw.enumerate_device_extension_properties(physical) }.unwrap_or_default();
        let has = |name| extensions.iter().any(|e| e.extension_name_as_c_str() == Ok(name));
        let there = EXTENSIONS.iter().all(|&name| has(name));
        if options.no_subgroups || options.matrices == Some(false) || !there {
            return Self::default();
        }
        let mut subgroups = vk::PhysicalDeviceSubgroupProperties::default();
        let mut properties = vk::PhysicalDeviceProperties2::default().push_next(&mut subgroups);
        // SAFETY: what is asked for is chained above; devices with the extension have Vulkan 1.1.
        unsafe { raw.get_physical_device_properties2(physical, &mut properties) };
        let (mut f12, mut bfloat) = (vk::PhysicalDeviceVulkan12Features::default(), Bfloat16Features::new(false));
        let mut matrices = vk::PhysicalDeviceCooperativeMatrixFeaturesKHR::default();
        let mut sizes = vk::PhysicalDeviceSubgroupSizeControlFeatures::default();
        let mut features =
            vk::PhysicalDeviceFeatures2::default().push_next(&mut f12).push_next(&mut matrices).push_next(&mut sizes);
        if has(BFLOAT16) {
            features = features.push_next(&mut bfloat);
        }
        // SAFETY: as above, and the device has the extensions.
        unsafe { raw.get_physical_device_features2(physical, &mut features) };
        let on = |feature: vk::Bool32| feature == vk::TRUE;
        let computes = subgroups.supported_stages.contains(vk::ShaderStageFlags::COMPUTE)
            && subgroups.supported_operations.contains(vk::SubgroupFeatureFlags::VOTE);
        let needed =
            [matrices.cooperative_matrix, sizes.compute_full_subgroups, f12.vulkan_memory_model, f12.shader_float16];
        if !computes || !needed.into_iter().all(on) {
            return Self::default();
        }
        let functions = ash::khr::cooperative_matrix::Instance::new(instance.entry(), raw);
        // SAFETY: the device has the extension.
        let all = unsafe { functions.get_physical_device_cooperative_matrix_properties(physical) }.unwrap_or_default();
        let of = |kind: vk::ComponentTypeKHR| {
            let sums = vk::ComponentTypeKHR::FLOAT32;
            let fits = all.iter().filter(|p| {
                (p.a_type, p.b_type, p.c_type, p.result_type) == (kind, kind, sums, sums)
                    && p.scope == vk::ScopeKHR::SUBGROUP
                    && p.saturating_accumulation == vk::FALSE
                    && p.m_size.max(p.n_size) <= 32
                    && DEPTH.is_multiple_of(p.k_size)
            });
            let shapes = fits.map(|p| Shape { m: p.m_size, n: p.n_size, k: p.k_size });
            shapes.max_by_key(|s| (s.m * s.n * s.k, s.k))
        };
        let f16 = if options.no_f16 { None } else { of(vk::ComponentTypeKHR::FLOAT16) };
        let bf16 = if on(bfloat.has_type) && on(bfloat.matrices) { of(COMPONENT_BF16) } else { None };
        Self { subgroup: subgroups.subgroup_size, f16, bf16 }
    }

    /// Those that multiply what is stored so.
    pub fn shape(&self, stored: Stored) -> Option<Shape> {
        match stored {
            Stored::F32 => None,
            Stored::Bf16 => self.bf16,
            Stored::F16 => self.f16,
        }
    }

    pub fn any(&self) -> bool {
        self.f16.is_some() || self.bf16.is_some()
    }
}

/// Cooperative matrices of this shape, in tiles from this number on.
pub(crate) type By = (Shape, usize);

/// How products fall to workgroups, each of which makes a tile.
pub(crate) struct Tile {
    /// Rows and columns.
    pub sides: [u32; 2],
    /// The constants of `inc/matrices.glsl`.
    pub spec: Vec<u32>,
    /// Bytes of shared memory.
    pub shared: u32,
}

impl Tile {
    /// Of subgroups down and across, of rows and columns of matrices each, in slices of this depth.
    pub fn new([down, across, rows, cols]: [u32; 4], depth: u32, subgroup: u32, shape: Shape) -> Self {
        let (m, n) = (down * rows * shape.m, across * cols * shape.n);
        let spec = vec![down * across * subgroup, down, across, rows, cols, shape.m, shape.n, shape.k, depth];
        // Slices of both operands in half, whichever way they lie; after them the sums.
        let slice = |side: u32| 2 * (side * (depth + 8)).max(depth * (side + 8));
        let sums = 4 * down * across * shape.m * (cols * shape.n + 4);
        Self { sides: [m, n], spec, shared: (slice(m) + slice(n)).max(sums) }
    }
}

/// The shader that multiplies in it.
pub(crate) fn shader(stored: Stored) -> Shader {
    match stored {
        Stored::F32 => Shader::Gemm,
        Stored::Bf16 => Shader::GemmBf16,
        Stored::F16 => Shader::GemmF16,
    }
}

/// The shader that convolves in it.
pub(crate) fn conv_shader(stored: Stored) -> Shader {
    match stored {
        Stored::F32 => Shader::Conv,
        Stored::Bf16 => Shader::ConvBf16,
        Stored::F16 => Shader::ConvF16,
    }
}

/// The shader that attends in it.
pub(crate) fn attention_shader(stored: Stored) -> Shader {
    match stored {
        Stored::F32 => Shader::Attention,
        Stored::Bf16 => Shader::AttentionBf16,
        Stored::F16 => Shader::AttentionF16,
    }
}

/// The shader of its gradients.
pub(crate) fn attention_backward_shader(stored: Stored) -> Shader {
    match stored {
        Stored::F32 => Shader::AttentionBackward,
        Stored::Bf16 => Shader::AttentionBackwardBf16,
        Stored::F16 => Shader::AttentionBackwardF16,
    }
}
