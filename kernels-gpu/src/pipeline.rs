//! Compiled kernels: made when a submission first needs them, all that it needs at once, and kept on disk between runs by the driver's own cache.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use ash::vk;

use crate::cache::Cache;
use crate::error::{Named, Result};
use crate::shaders::Shader;

/// Buffers that a kernel can bind.
pub(crate) const BINDINGS: u32 = 8;
/// Bytes of push constants that every device has.
pub(crate) const PUSH: u32 = 128;

/// Their name in the cache.
const KERNELS: &str = "kernels";

/// What every kernel has in common.
#[derive(Clone, Copy)]
pub(crate) struct Layouts {
    pub set: vk::DescriptorSetLayout,
    pub pipeline: vk::PipelineLayout,
}

/// A kernel in one of its forms, by the order in which they were asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Id(pub u32);

/// A shader with its specialisation constants, from number 0 on.
struct Form {
    shader: Shader,
    spec: Vec<u32>,
    pipeline: Option<vk::Pipeline>,
}

pub(crate) struct Pipelines {
    layouts: Layouts,
    modules: HashMap<Shader, vk::ShaderModule>,
    ids: HashMap<Shader, HashMap<Vec<u32>, Id>>,
    forms: Vec<Form>,
    /// The driver's, where it is kept, and how long it was when it was read.
    cache: vk::PipelineCache,
    kept: Cache,
    read: usize,
}

impl Pipelines {
    pub fn new(raw: &ash::Device, kept: Cache) -> Result<Self> {
        let binding = |number| {
            vk::DescriptorSetLayoutBinding::default()
                .binding(number)
                .descriptor_type(vk::DescriptorType::STORAGE_BUFFER)
                .descriptor_count(1)
                .stage_flags(vk::ShaderStageFlags::COMPUTE)
        };
        let bindings: Vec<_> = (0..BINDINGS).map(binding).collect();
        let data = kept.read(KERNELS).unwrap_or_default();
        // SAFETY: plain objects of the device, whose arguments live until each call returns. The cache's bytes are as they were written;
        // the driver looks at their header itself.
        unsafe {
            let create = vk::DescriptorSetLayoutCreateInfo::default().bindings(&bindings);
            let sets = [raw.create_descriptor_set_layout(&create, None).named("make a descriptor layout")?];
            let push = [vk::PushConstantRange { stage_flags: vk::ShaderStageFlags::COMPUTE, offset: 0, size: PUSH }];
            let create = vk::PipelineLayoutCreateInfo::default().set_layouts(&sets).push_constant_ranges(&push);
            let pipeline = raw.create_pipeline_layout(&create, None).named("make a pipeline layout")?;
            let create = vk::PipelineCacheCreateInfo::default().initial_data(&data);
            let cache = raw.create_pipeline_cache(&create, None).named("make a pipeline cache")?;
            let layouts = Layouts { set: sets[0], pipeline };
            let (modules, ids, forms) = Default::default();
            Ok(Self { layouts, modules, ids, forms, cache, kept, read: data.len() })
        }
    }

    pub fn layouts(&self) -> Layouts {
        self.layouts
    }

    /// The kernel of these specialisation constants. It is compiled when [`Self::compile`] is asked to.
    pub fn id(&mut self, shader: Shader, spec: &[u32]) -> Id {
        if let Some(&id) = self.ids.get(&shader).and_then(|ids| ids.get(spec)) {
            return id;
        }
        let id = Id(self.forms.len() as u32);
        self.ids.entry(shader).or_default().insert(spec.to_vec(), id);
        self.forms.push(Form { shader, spec: spec.to_vec(), pipeline: None });
        id
    }

    /// Compiles those of these kernels that are not yet, beside each other where there are several, and gives all.
    ///
    /// # Errors
    /// If the driver does not compile one.
    pub fn compile(&mut self, raw: &ash::Device, ids: &[Id]) -> Result<Vec<vk::Pipeline>> {
        let mut missing: Vec<u32> = ids.iter().map(|id| id.0).collect();
        missing.sort_unstable();
        missing.dedup();
        missing.retain(|&id| self.forms[id as usize].pipeline.is_none());
        for &id in &missing {
            self.load(raw, self.forms[id as usize].shader)?;
        }
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(missing.len());
        let (next, this) = (AtomicUsize::new(0), &*self);
        let work = || {
            let each = || missing.get(next.fetch_add(1, Ordering::Relaxed)).copied();
            std::iter::from_fn(each).map(|id| (id, this.made(raw, &this.forms[id as usize]))).collect::<Vec<_>>()
        };
        let made = std::thread::scope(|scope| {
            let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
            let mut made = work();
            made.extend(others.into_iter().flat_map(|other| other.join().expect("a driver does not panic")));
            made
        });
        for (id, pipeline) in made {
            self.forms[id as usize].pipeline = Some(pipeline?);
        }
        Ok(ids.iter().filter_map(|id| self.forms[id.0 as usize].pipeline).collect())
    }

    fn load(&mut self, raw: &ash::Device, shader: Shader) -> Result<()> {
        if self.modules.contains_key(&shader) {
            return Ok(());
        }
        let code: Vec<u32> =
            shader.code().chunks_exact(4).map(|w| u32::from_le_bytes([w[0], w[1], w[2], w[3]])).collect();
        let create = vk::ShaderModuleCreateInfo::default().code(&code);
        // SAFETY: SPIR-V that was compiled for this crate; it asks for no feature that is not on.
        let module = unsafe { raw.create_shader_module(&create, None) }.named("load a shader")?;
        self.modules.insert(shader, module);
        Ok(())
    }

    fn made(&self, raw: &ash::Device, form: &Form) -> Result<vk::Pipeline> {
        let entry = |id| vk::SpecializationMapEntry { constant_id: id, offset: 4 * id, size: 4 };
        let entries: Vec<_> = (0..form.spec.len() as u32).map(entry).collect();
        let data: Vec<u8> = form.spec.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let info = vk::SpecializationInfo::default().map_entries(&entries).data(&data);
        let full = vk::PipelineShaderStageCreateFlags::REQUIRE_FULL_SUBGROUPS;
        let flags = if form.shader.has_matrices() { full } else { vk::PipelineShaderStageCreateFlags::empty() };
        let stage = vk::PipelineShaderStageCreateInfo::default()
            .flags(flags)
            .stage(vk::ShaderStageFlags::COMPUTE)
            .module(self.modules[&form.shader])
            .name(c"main")
            .specialization_info(&info);
        let create = [vk::ComputePipelineCreateInfo::default().stage(stage).layout(self.layouts.pipeline)];
        // SAFETY: module, layout and constants are those of the shader, and live until the call returns; the cache locks itself.
        let made = unsafe { raw.create_compute_pipelines(self.cache, &create, None) };
        Ok(made.map_err(|(_, error)| error).named("compile a kernel")?[0])
    }

    /// # Safety
    /// Nothing may be under way.
    pub unsafe fn destroy(&mut self, raw: &ash::Device) {
        // SAFETY: made with this device, and not in use.
        unsafe {
            if let Ok(data) = raw.get_pipeline_cache_data(self.cache)
                && data.len() > self.read
            {
                self.kept.write(KERNELS, &data);
            }
            self.forms
                .iter()
                .filter_map(|form| form.pipeline)
                .for_each(|pipeline| raw.destroy_pipeline(pipeline, None));
            self.modules.values().for_each(|&module| raw.destroy_shader_module(module, None));
            raw.destroy_pipeline_cache(self.cache, None);
            raw.destroy_pipeline_layout(self.layouts.pipeline, None);
            raw.destroy_descriptor_set_layout(self.layouts.set, None);
        }
    }
}
