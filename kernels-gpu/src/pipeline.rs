//! Compiled kernels: made when first used, and kept on disk between runs by the driver's own cache.

use std::collections::HashMap;
use std::path::PathBuf;

use ash::vk;

use crate::error::{Named, Result};
use crate::select::Info;
use crate::shaders::Shader;

/// Buffers that a kernel can bind.
pub(crate) const BINDINGS: u32 = 8;
/// Bytes of push constants that every device has.
pub(crate) const PUSH: u32 = 128;

/// What every kernel has in common.
#[derive(Clone, Copy)]
pub(crate) struct Layouts {
    pub set: vk::DescriptorSetLayout,
    pub pipeline: vk::PipelineLayout,
}

pub(crate) struct Pipelines {
    layouts: Layouts,
    modules: HashMap<Shader, vk::ShaderModule>,
    made: HashMap<Shader, HashMap<Vec<u32>, vk::Pipeline>>,
    cache: vk::PipelineCache,
    /// Where the cache is kept, and how long it was when it was read.
    file: Option<PathBuf>,
    read: usize,
}

impl Pipelines {
    pub fn new(raw: &ash::Device, info: &Info) -> Result<Self> {
        let binding = |number| {
            vk::DescriptorSetLayoutBinding::default()
                .binding(number)
                .descriptor_type(vk::DescriptorType::STORAGE_BUFFER)
                .descriptor_count(1)
                .stage_flags(vk::ShaderStageFlags::COMPUTE)
        };
        let bindings: Vec<_> = (0..BINDINGS).map(binding).collect();
        let file = cache_file(info, "kernels");
        let kept = file.as_ref().and_then(|path| whole(std::fs::read(path).ok()?)).unwrap_or_default();
        // SAFETY: plain objects of the device, whose arguments live until each call returns. The cache's bytes are as they were written;
        // the driver looks at their header itself.
        unsafe {
            let create = vk::DescriptorSetLayoutCreateInfo::default().bindings(&bindings);
            let sets = [raw.create_descriptor_set_layout(&create, None).named("make a descriptor layout")?];
            let push = [vk::PushConstantRange { stage_flags: vk::ShaderStageFlags::COMPUTE, offset: 0, size: PUSH }];
            let create = vk::PipelineLayoutCreateInfo::default().set_layouts(&sets).push_constant_ranges(&push);
            let pipeline = raw.create_pipeline_layout(&create, None).named("make a pipeline layout")?;
            let create = vk::PipelineCacheCreateInfo::default().initial_data(&kept);
            let cache = raw.create_pipeline_cache(&create, None).named("make a pipeline cache")?;
            let layouts = Layouts { set: sets[0], pipeline };
            Ok(Self { layouts, modules: HashMap::new(), made: HashMap::new(), cache, file, read: kept.len() })
        }
    }

    pub fn layouts(&self) -> Layouts {
        self.layouts
    }

    /// A shader with its specialisation constants, from number 0 on.
    pub fn get(&mut self, raw: &ash::Device, shader: Shader, spec: &[u32]) -> Result<vk::Pipeline> {
        if let Some(&pipeline) = self.made.get(&shader).and_then(|made| made.get(spec)) {
            return Ok(pipeline);
        }
        let module = match self.modules.get(&shader) {
            Some(&module) => module,
            None => {
                let code: Vec<u32> =
                    shader.code().chunks_exact(4).map(|w| u32::from_le_bytes([w[0], w[1], w[2], w[3]])).collect();
                let create = vk::ShaderModuleCreateInfo::default().code(&code);
                // SAFETY: SPIR-V that was compiled for this crate; it asks for no feature that is not on.
                let module = unsafe { raw.create_shader_module(&create, None) }.named("load a shader")?;
                self.modules.insert(shader, module);
                module
            }
        };
        let entry = |id| vk::SpecializationMapEntry { constant_id: id, offset: 4 * id, size: 4 };
        let entries: Vec<_> = (0..spec.len() as u32).map(entry).collect();
        let data: Vec<u8> = spec.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let info = vk::SpecializationInfo::default().map_entries(&entries).data(&data);
        let full = vk::PipelineShaderStageCreateFlags::REQUIRE_FULL_SUBGROUPS;
        let flags = if shader.has_matrices() { full } else { vk::PipelineShaderStageCreateFlags::empty() };
        let stage = vk::PipelineShaderStageCreateInfo::default()
            .flags(flags)
            .stage(vk::ShaderStageFlags::COMPUTE)
            .module(module)
            .name(c"main")
            .specialization_info(&info);
        let create = [vk::ComputePipelineCreateInfo::default().stage(stage).layout(self.layouts.pipeline)];
        // SAFETY: module, layout and constants are those of the shader, and live until the call returns.
        let made = unsafe { raw.create_compute_pipelines(self.cache, &create, None) };
        let pipeline = made.map_err(|(_, error)| error).named("compile a kernel")?[0];
        self.made.entry(shader).or_default().insert(spec.to_vec(), pipeline);
        Ok(pipeline)
    }

    /// # Safety
    /// Nothing may be under way.
    pub unsafe fn destroy(&mut self, raw: &ash::Device) {
        // SAFETY: made with this device, and not in use.
        unsafe {
            if let (Some(file), Ok(data)) = (&self.file, raw.get_pipeline_cache_data(self.cache))
                && data.len() > self.read
            {
                // A cache that cannot be kept is made again.
                let _ = keep(file, &data);
            }
            self.made.values().flat_map(HashMap::values).for_each(|&pipeline| raw.destroy_pipeline(pipeline, None));
            self.modules.values().for_each(|&module| raw.destroy_shader_module(module, None));
            raw.destroy_pipeline_cache(self.cache, None);
            raw.destroy_pipeline_layout(self.layouts.pipeline, None);
            raw.destroy_descriptor_set_layout(self.layouts.set, None);
        }
    }
}

/// The file of this device and driver, of the sort `what`, in `$XDG_CACHE_HOME/tiergrad` or `~/.cache/tiergrad`; none where neither is set,
/// or `TIER_NO_CACHE` is.
pub(crate) fn cache_file(info: &Info, what: &str) -> Option<PathBuf> {
    if std::env::var_os("TIER_NO_CACHE").is_some() {
        return None;
    }
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let folder = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))?;
    let driver = hash(format!("{} {}", info.driver, info.build).as_bytes());
    Some(folder.join("tiergrad").join(format!("{what}-{}-{driver:016x}", info.uuid)))
}

/// FNV-1a.
pub(crate) fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |h, &byte| (h ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

/// What is in a file, if it is as it was written: not every driver survives a cache that is not.
pub(crate) fn whole(mut file: Vec<u8>) -> Option<Vec<u8>> {
    let sum = file.split_off(file.len().checked_sub(8)?);
    (hash(&file).to_le_bytes()[..] == sum[..]).then_some(file)
}

/// Writes a file for [`whole`].
pub(crate) fn keep(path: &std::path::Path, data: &[u8]) -> std::io::Result<()> {
    let beside = path.with_extension(std::process::id().to_string());
    std::fs::create_dir_all(path.parent().unwrap_or(path))?;
    std::fs::write(&beside, [data, &hash(data).to_le_bytes()].concat())?;
    std::fs::rename(&beside, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_cache_is_none() {
        let folder = std::env::temp_dir().join(format!("kernels-gpu-{}", std::process::id()));
        let path = folder.join("cache");
        keep(&path, b"compiled").unwrap();
        let written = std::fs::read(&path).unwrap();
        std::fs::remove_dir_all(&folder).unwrap();
        assert_eq!(whole(written.clone()).as_deref(), Some(&b"compiled"[..]));
        for at in 0..written.len() {
            let mut damaged = written.clone();
            damaged[at] ^= 4;
            assert_eq!(whole(damaged), None);
            assert_eq!(whole(written[..at].to_vec()), None);
        }
    }
}
