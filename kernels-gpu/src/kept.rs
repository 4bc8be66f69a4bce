//! Recorded commands, kept so that a sequence that is asked for again is submitted again and not recorded.

use std::sync::Mutex;

use ash::vk;

use crate::device::locked;
use crate::error::{Named, Result};
use crate::pipeline::{BINDINGS, Layouts, Pipelines};
use crate::sequence::Sequence;

/// Most sequences that are kept; more than are ever under way.
const MOST: usize = 128;

struct Entry {
    sequence: Sequence,
    commands: vk::CommandBuffer,
    sets: vk::DescriptorPool,
    /// Its last submission.
    used: u64,
}

pub(crate) struct Kept {
    pool: vk::CommandPool,
    layouts: Layouts,
    entries: Vec<Entry>,
}

impl Kept {
    pub fn new(pool: vk::CommandPool, layouts: Layouts) -> Self {
        Self { pool, layouts, entries: Vec::new() }
    }

    /// Commands that do what `sequence` says, which is cleared, for submission `number`; and whether they were there. A sequence has at most
    /// `kernels` kernels.
    ///
    /// # Safety
    /// As [`Sequence::record`]; of all submissions only the last few, less than [`MOST`], are under way.
    pub unsafe fn commands(
        &mut self,
        raw: &ash::Device,
        pipelines: &Mutex<Pipelines>,
        sequence: &mut Sequence,
        number: u64,
        kernels: u32,
    ) -> Result<(vk::CommandBuffer, bool)> {
        if let Some(entry) = self.entries.iter_mut().find(|entry| entry.sequence == *sequence) {
            sequence.clear();
            entry.used = number;
            return Ok((entry.commands, true));
        }
        let pipelines = locked(pipelines).compile(raw, &sequence.kernels())?;
        if self.entries.len() < MOST {
            let entry = self.room(raw, kernels)?;
            self.entries.push(entry);
        }
        // The one that was used last is the longest ago; a new one never was.
        let oldest = self.entries.iter_mut().min_by_key(|entry| entry.used).expect("one was pushed, or there are many");
        oldest.sequence.clear();
        // SAFETY: so many were used since that this one is not under way; the rest is as the caller promises.
        unsafe { sequence.record(raw, oldest.commands, oldest.sets, (&pipelines, self.layouts))? };
        std::mem::swap(&mut oldest.sequence, sequence);
        oldest.used = number;
        Ok((oldest.commands, false))
    }

    fn room(&self, raw: &ash::Device, kernels: u32) -> Result<Entry> {
        let sizes =
            [vk::DescriptorPoolSize { ty: vk::DescriptorType::STORAGE_BUFFER, descriptor_count: BINDINGS * kernels }];
        let pool = vk::DescriptorPoolCreateInfo::default().max_sets(kernels).pool_sizes(&sizes);
        let buffers = vk::CommandBufferAllocateInfo::default().command_pool(self.pool).command_buffer_count(1);
        // SAFETY: plain objects of the device, whose arguments live until each call returns.
        unsafe {
            let commands = raw.allocate_command_buffers(&buffers).named("make command buffers")?[0];
            let sets = raw.create_descriptor_pool(&pool, None).named("make a descriptor pool")?;
            Ok(Entry { sequence: Sequence::default(), commands, sets, used: 0 })
        }
    }

    /// Forgets the sequences that name a buffer which is no more: another may get its handle. Nothing may be under way.
    pub fn forget(&mut self, freed: &[vk::Buffer]) {
        for entry in &mut self.entries {
            if freed.iter().any(|&buffer| entry.sequence.names(buffer)) {
                entry.sequence.clear();
                entry.used = 0;
            }
        }
    }

    /// # Safety
    /// Nothing may be under way.
    pub unsafe fn destroy(&mut self, raw: &ash::Device) {
        // SAFETY: made with this device, and not in use. The commands go with their pool.
        self.entries.iter().for_each(|entry| unsafe { raw.destroy_descriptor_pool(entry.sets, None) });
    }
}
