//! What a submission is made of, as data: one that is asked for again is known by it.

use ash::vk;
use ash::vk::Handle;

use crate::error::{Named, Result};
use crate::pipeline::{BINDINGS, Id, Layouts};
use crate::view::Binding;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Command {
    Barrier,
    /// Its push constants and bindings end at these places of the sequence's.
    Dispatch {
        kernel: Id,
        groups: [u32; 3],
        push_end: usize,
        bindings_end: usize,
    },
    Copy {
        buffers: [vk::Buffer; 2],
        region: [u64; 3],
    },
}

/// Commands in order. Everything that the device is told is in here, so equal sequences do the same.
#[derive(Default)]
pub(crate) struct Sequence {
    commands: Vec<Command>,
    push: Vec<u32>,
    bindings: Vec<Binding>,
    hash: u64,
}

/// Of words, as rustc's own hash tables do it: what it finds is compared whole.
fn mix(hash: u64, word: u64) -> u64 {
    (hash.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95)
}

impl PartialEq for Sequence {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash
            && self.commands == other.commands
            && self.push == other.push
            && self.bindings == other.bindings
    }
}

/// Between commands on the device, and before the CPU looks.
fn barrier(raw: &ash::Device, commands: vk::CommandBuffer, to_host: bool) {
    use vk::{AccessFlags as A, PipelineStageFlags as S};
    let stages = S::COMPUTE_SHADER | S::TRANSFER;
    let writes = A::SHADER_WRITE | A::TRANSFER_WRITE;
    let (after, reads) =
        if to_host { (S::HOST, A::HOST_READ) } else { (stages, writes | A::SHADER_READ | A::TRANSFER_READ) };
    let all = [vk::MemoryBarrier::default().src_access_mask(writes).dst_access_mask(reads)];
    // SAFETY: the caller is recording these commands.
    unsafe { raw.cmd_pipeline_barrier(commands, stages, after, vk::DependencyFlags::empty(), &all, &[], &[]) };
}

impl Sequence {
    pub fn barrier(&mut self) {
        self.commands.push(Command::Barrier);
    }

    /// Adds a kernel. Tells, by what it is alone, whether a sequence may well end with it: those that repeat the same kernels from another
    /// place on then end at the same ones, and are equal from there on.
    pub fn dispatch(&mut self, kernel: Id, push: &[u32], groups: [u32; 3], bindings: &[Binding]) -> bool {
        self.push.extend_from_slice(push);
        self.bindings.extend_from_slice(bindings);
        let (push_end, bindings_end) = (self.push.len(), self.bindings.len());
        self.commands.push(Command::Dispatch { kernel, groups, push_end, bindings_end });
        // Handles, and the order of kernels, differ from run to run: where sequences end shall not.
        let words = push.iter().chain(&groups).map(|&word| u64::from(word)).chain(bindings.iter().map(|b| b.start));
        let own = words.fold(0, mix);
        let handles = bindings.iter().map(|b| b.buffer.as_raw()).chain([u64::from(kernel.0)]);
        self.hash = handles.fold(mix(self.hash, own), mix);
        // One of 16.
        own >> 60 == 0
    }

    pub fn copy(&mut self, buffers: [vk::Buffer; 2], region: [u64; 3]) {
        self.commands.push(Command::Copy { buffers, region });
        self.hash = buffers.into_iter().map(Handle::as_raw).chain(region).fold(self.hash, mix);
    }

    pub fn is_empty(&self) -> bool {
        self.commands.is_empty()
    }

    pub fn clear(&mut self) {
        self.commands.clear();
        self.push.clear();
        self.bindings.clear();
        self.hash = 0;
    }

    /// The kernel of each dispatch.
    pub fn kernels(&self) -> Vec<Id> {
        let kernel = |c: &Command| if let Command::Dispatch { kernel, .. } = c { Some(*kernel) } else { None };
        self.commands.iter().filter_map(kernel).collect()
    }

    /// Whether a command works on a buffer.
    pub fn names(&self, buffer: vk::Buffer) -> bool {
        let copies = |c: &Command| matches!(c, Command::Copy { buffers, .. } if buffers.contains(&buffer));
        self.bindings.iter().any(|b| b.buffer == buffer) || self.commands.iter().any(copies)
    }

    /// Records it, after everything that was submitted before, with the pipeline of each dispatch.
    ///
    /// # Safety
    /// Neither the commands nor sets of this pool, which has room for one for each kernel, may be under way. What is bound and copied is
    /// inside of buffers that live as long as the commands are submitted; push constants are within the layout's range.
    pub unsafe fn record(
        &self,
        raw: &ash::Device,
        commands: vk::CommandBuffer,
        pool: vk::DescriptorPool,
        (pipelines, layouts): (&[vk::Pipeline], Layouts),
    ) -> Result<()> {
        let kernels = pipelines.len();
        // It may be submitted again before it has ended.
        let begin = vk::CommandBufferBeginInfo::default().flags(vk::CommandBufferUsageFlags::SIMULTANEOUS_USE);
        let set_layouts = vec![layouts.set; kernels];
        let create = vk::DescriptorSetAllocateInfo::default().descriptor_pool(pool).set_layouts(&set_layouts);
        // SAFETY: as the caller promises; each call's arguments live until it returns.
        unsafe {
            raw.reset_descriptor_pool(pool, vk::DescriptorPoolResetFlags::empty()).named("reset descriptors")?;
            let sets = match kernels {
                0 => Vec::new(),
                _ => raw.allocate_descriptor_sets(&create).named("make descriptors")?,
            };
            self.describe(raw, &sets);
            raw.begin_command_buffer(commands, &begin).named("begin commands")?;
            barrier(raw, commands, false);
            let (mut sets, mut pipelines, mut push_at) = (sets.iter(), pipelines.iter(), 0);
            for command in &self.commands {
                match *command {
                    Command::Barrier => barrier(raw, commands, false),
                    Command::Copy { buffers: [from, to], region: [src_offset, dst_offset, size] } => {
                        raw.cmd_copy_buffer(commands, from, to, &[vk::BufferCopy { src_offset, dst_offset, size }]);
                    }
                    Command::Dispatch { groups: [x, y, z], push_end, .. } => {
                        let (compute, layout) = (vk::PipelineBindPoint::COMPUTE, layouts.pipeline);
                        let set = sets.next().map(std::slice::from_ref).unwrap_or_default();
                        let words = &self.push[push_at..push_end];
                        push_at = push_end;
                        let bytes = std::slice::from_raw_parts(words.as_ptr().cast(), size_of_val(words));
                        pipelines
                            .next()
                            .iter()
                            .for_each(|&&pipeline| raw.cmd_bind_pipeline(commands, compute, pipeline));
                        raw.cmd_bind_descriptor_sets(commands, compute, layout, 0, set, &[]);
                        raw.cmd_push_constants(commands, layout, vk::ShaderStageFlags::COMPUTE, 0, bytes);
                        raw.cmd_dispatch(commands, x, y, z);
                    }
                }
            }
            barrier(raw, commands, true);
            raw.end_command_buffer(commands).named("end commands")
        }
    }

    /// Writes the set of each kernel. What a kernel does not use in this form of it is bound too: whether it would is not looked into.
    fn describe(&self, raw: &ash::Device, sets: &[vk::DescriptorSet]) {
        let mut from = 0;
        let mut buffers = Vec::with_capacity(sets.len());
        for command in &self.commands {
            if let Command::Dispatch { bindings_end, .. } = *command {
                let bindings = &self.bindings[from..bindings_end];
                from = bindings_end;
                let mut all = [&bindings[0]; BINDINGS as usize];
                bindings.iter().rev().for_each(|b| all[b.number as usize] = b);
                buffers.push(all.map(|b| vk::DescriptorBufferInfo {
                    buffer: b.buffer,
                    offset: b.start,
                    range: b.end - b.start,
                }));
            }
        }
        // All of a set's bindings, one after the other.
        let kind = vk::DescriptorType::STORAGE_BUFFER;
        let writes = sets.iter().zip(&buffers).map(|(&set, buffers)| {
            vk::WriteDescriptorSet::default().dst_set(set).descriptor_type(kind).buffer_info(buffers)
        });
        let writes: Vec<_> = writes.collect();
        // SAFETY: the sets are not in use, and have so many bindings of this kind.
        unsafe { raw.update_descriptor_sets(&writes, &[]) };
    }
}
