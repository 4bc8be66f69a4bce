//! Commands in the order in which they are asked for: recorded with barriers where they touch the same bytes, submitted in short pieces.

use std::time::{Duration, Instant};

use ash::vk;
use ash::vk::Handle;

use crate::device::{Shared, locked};
use crate::error::{Error, Named, Result};
use crate::hazards::{Access, Hazards};
use crate::memory::{HALF, Memory, Staging};
use crate::pipeline::{BINDINGS, Layouts};
use crate::view::Binding;

/// Submissions under way at once, one of which is being recorded.
const SLOTS: u64 = 3;
/// Most kernels of a submission.
const KERNELS: usize = 96;
/// How long a submission should take: below what any driver's watchdog allows by far.
const PACE: [Duration; 2] = [Duration::from_millis(5), Duration::from_millis(50)];
/// Operations of a submission, at first and at least and most: doubled and halved by the pace.
const WORK: [u64; 3] = [1 << 30, 1 << 27, 1 << 44];
/// A submission that takes longer is taken for a device that hangs.
const PATIENCE: Duration = Duration::from_secs(120);

struct Slot {
    commands: vk::CommandBuffer,
    sets: vk::DescriptorPool,
    /// Its last submission.
    sequence: u64,
    kernels: Vec<&'static str>,
}

pub(crate) struct Stream {
    queue: vk::Queue,
    pool: vk::CommandPool,
    /// Counts submissions that are done.
    done: vk::Semaphore,
    slots: Vec<Slot>,
    /// Whether the next submission is being recorded.
    open: bool,
    submitted: u64,
    completed: u64,
    hazards: Hazards,
    work: u64,
    most_work: u64,
    /// When a submission was last seen to end, having been waited for.
    ended: Option<Instant>,
    staging: Option<Staging>,
}

/// A kernel as it is recorded.
pub(crate) struct Command<'a> {
    pub name: &'static str,
    pub pipeline: vk::Pipeline,
    pub layouts: Layouts,
    pub push: &'a [u32],
    pub groups: [u32; 3],
    pub work: u64,
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

impl Stream {
    pub fn new(raw: &ash::Device, queue: vk::Queue, family: u32) -> Result<Self> {
        let flags = vk::CommandPoolCreateFlags::RESET_COMMAND_BUFFER;
        // SAFETY: plain objects of the device, whose arguments live until each call returns.
        unsafe {
            let create = vk::CommandPoolCreateInfo::default().queue_family_index(family).flags(flags);
            let pool = raw.create_command_pool(&create, None).named("make a command pool")?;
            let mut kind = vk::SemaphoreTypeCreateInfo::default().semaphore_type(vk::SemaphoreType::TIMELINE);
            let done = raw.create_semaphore(&vk::SemaphoreCreateInfo::default().push_next(&mut kind), None);
            let done = done.named("make a semaphore")?;
            let create = vk::CommandBufferAllocateInfo::default().command_pool(pool).command_buffer_count(SLOTS as u32);
            let buffers = raw.allocate_command_buffers(&create).named("make command buffers")?;
            let sizes = [vk::DescriptorPoolSize {
                ty: vk::DescriptorType::STORAGE_BUFFER,
                descriptor_count: BINDINGS * KERNELS as u32,
            }];
            let create = vk::DescriptorPoolCreateInfo::default().max_sets(KERNELS as u32).pool_sizes(&sizes);
            let slot = |commands| {
                let sets = raw.create_descriptor_pool(&create, None).named("make a descriptor pool")?;
                Ok(Slot { commands, sets, sequence: 0, kernels: Vec::new() })
            };
            let slots = buffers.into_iter().map(slot).collect::<Result<_>>()?;
            Ok(Self {
                queue,
                pool,
                done,
                slots,
                open: false,
                submitted: 0,
                completed: 0,
                hazards: Hazards::default(),
                work: 0,
                most_work: WORK[0],
                ended: None,
                staging: None,
            })
        }
    }

    /// Number of the submission that is being recorded, or will be next.
    pub fn sequence(&self) -> u64 {
        self.submitted + 1
    }

    /// A loss with the kernels that were under way.
    pub fn blamed(&self, error: Error) -> Error {
        match error {
            Error::Lost { kernels } if kernels.is_empty() => {
                let mut slots: Vec<&Slot> = self.slots.iter().filter(|s| s.sequence > self.completed).collect();
                slots.sort_by_key(|s| s.sequence);
                Error::Lost { kernels: slots.iter().flat_map(|s| s.kernels.iter().copied()).collect() }
            }
            other => other,
        }
    }

    /// The slot that is being recorded, begun where it was not.
    fn slot(&mut self, raw: &ash::Device) -> Result<usize> {
        let at = (self.submitted % SLOTS) as usize;
        if self.open {
            return Ok(at);
        }
        let waited = self.slots[at].sequence > self.completed;
        self.wait_for(raw, self.slots[at].sequence)?;
        self.keep_pace(waited);
        let Slot { commands, sets, .. } = self.slots[at];
        // SAFETY: the slot's last submission is done, so its commands and sets are not in use.
        unsafe {
            raw.reset_descriptor_pool(sets, vk::DescriptorPoolResetFlags::empty()).named("reset descriptors")?;
            let once = vk::CommandBufferBeginInfo::default().flags(vk::CommandBufferUsageFlags::ONE_TIME_SUBMIT);
            raw.begin_command_buffer(commands, &once).named("begin commands")?;
        }
        // After everything that was submitted before.
        barrier(raw, commands, false);
        self.hazards.clear();
        self.slots[at].kernels.clear();
        self.slots[at].sequence = self.submitted + 1;
        (self.open, self.work) = (true, 0);
        Ok(at)
    }

    /// Where the device is always a submission behind, the time between two ends is what a submission takes.
    fn keep_pace(&mut self, waited: bool) {
        let now = Instant::now();
        if let Some(took) = self.ended.filter(|_| waited).map(|before| now - before) {
            if took < PACE[0] {
                self.most_work = (self.most_work * 2).min(WORK[2]);
            } else if took > PACE[1] {
                self.most_work = (self.most_work / 2).max(WORK[1]);
            }
        }
        self.ended = waited.then_some(now);
    }

    /// A barrier where the accesses ask for one.
    fn order(&mut self, raw: &ash::Device, at: usize, accesses: &[Access]) {
        #[cfg(test)]
        if crate::planted::without_barriers() {
            return;
        }
        if self.hazards.note(accesses) {
            barrier(raw, self.slots[at].commands, false);
        }
    }

    pub fn dispatch(&mut self, device: &Shared, command: Command<'_>, bindings: &[Binding]) -> Result<()> {
        let raw = &device.raw;
        let at = self.slot(raw)?;
        let Slot { commands, sets, .. } = self.slots[at];
        let accesses: Vec<Access> = bindings.iter().map(Binding::access).collect();
        self.order(raw, at, &accesses);
        // What a kernel does not use in this form of it is bound too: whether it would is not looked into.
        let bound = |number| bindings.iter().find(|b| b.number == number).unwrap_or(&bindings[0]);
        let info =
            |b: &Binding| [vk::DescriptorBufferInfo { buffer: b.buffer, offset: b.start, range: b.end - b.start }];
        let buffers: Vec<[vk::DescriptorBufferInfo; 1]> = (0..BINDINGS).map(|number| info(bound(number))).collect();
        let words: Vec<u8> = command.push.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let layout = command.layouts.pipeline;
        // SAFETY: the slot is being recorded and its pool has room for a set for each of its kernels; the bound parts are inside of
        // their buffers, which live until the submission is done; the push constants are within the layout's range.
        unsafe {
            let layouts = [command.layouts.set];
            let create = vk::DescriptorSetAllocateInfo::default().descriptor_pool(sets).set_layouts(&layouts);
            let set = raw.allocate_descriptor_sets(&create).named("make descriptors")?[0];
            let write = |(number, info)| {
                vk::WriteDescriptorSet::default()
                    .dst_set(set)
                    .dst_binding(number)
                    .descriptor_type(vk::DescriptorType::STORAGE_BUFFER)
                    .buffer_info(info)
            };
            let writes: Vec<_> = (0u32..).zip(&buffers).map(|(number, info)| write((number, &info[..]))).collect();
            raw.update_descriptor_sets(&writes, &[]);
            raw.cmd_bind_pipeline(commands, vk::PipelineBindPoint::COMPUTE, command.pipeline);
            raw.cmd_bind_descriptor_sets(commands, vk::PipelineBindPoint::COMPUTE, layout, 0, &[set], &[]);
            raw.cmd_push_constants(commands, layout, vk::ShaderStageFlags::COMPUTE, 0, &words);
            let [x, y, z] = command.groups;
            raw.cmd_dispatch(commands, x, y, z);
        }
        self.slots[at].kernels.push(command.name);
        self.work += command.work;
        if self.slots[at].kernels.len() == KERNELS || self.work >= self.most_work {
            self.submit(device)?;
        }
        Ok(())
    }

    fn submit(&mut self, device: &Shared) -> Result<()> {
        if !std::mem::replace(&mut self.open, false) {
            return Ok(());
        }
        let (raw, at) = (&device.raw, (self.submitted % SLOTS) as usize);
        let commands = [self.slots[at].commands];
        let value = [self.submitted + 1];
        if device.limits.lost_at.is_some_and(|lost| value[0] >= lost) {
            return Err(Error::Lost { kernels: Vec::new() });
        }
        barrier(raw, commands[0], true);
        let semaphores = [self.done];
        let mut values = vk::TimelineSemaphoreSubmitInfo::default().signal_semaphore_values(&value);
        let submit =
            vk::SubmitInfo::default().command_buffers(&commands).signal_semaphores(&semaphores).push_next(&mut values);
        // SAFETY: the commands are recorded whole; everything they use lives until the submission is done.
        unsafe {
            raw.end_command_buffer(commands[0]).named("end commands")?;
            raw.queue_submit(self.queue, &[submit], vk::Fence::null()).named("submit")?;
        }
        self.submitted += 1;
        Ok(())
    }

    /// Waits for a submission, which is submitted where it is being recorded.
    fn wait(&mut self, device: &Shared, sequence: u64) -> Result<()> {
        if sequence > self.submitted {
            self.submit(device)?;
        }
        self.wait_for(&device.raw, sequence.min(self.submitted))
    }

    fn wait_for(&mut self, raw: &ash::Device, sequence: u64) -> Result<()> {
        if sequence <= self.completed {
            return Ok(());
        }
        let (semaphores, values) = ([self.done], [sequence]);
        let wait = vk::SemaphoreWaitInfo::default().semaphores(&semaphores).values(&values);
        // SAFETY: the semaphore lives, and the submission that signals the value was made.
        match unsafe { raw.wait_semaphores(&wait, PATIENCE.as_nanos() as u64) } {
            Err(vk::Result::TIMEOUT) => Err(Error::Lost { kernels: Vec::new() }),
            other => {
                other.named("wait")?;
                self.completed = sequence;
                Ok(())
            }
        }
    }

    /// Waits for everything.
    pub fn finish(&mut self, device: &Shared) -> Result<()> {
        self.submit(device)?;
        self.wait(device, self.submitted)
    }

    pub fn upload(&mut self, device: &Shared, memory: &Memory, bytes: &[u8]) -> Result<()> {
        if let Some(seen) = memory.seen {
            // An earlier owner's kernels may still be under way.
            self.wait(device, memory.busy)?;
            // SAFETY: the memory is mapped and as long as `bytes`; it was just taken, so that nothing else uses it.
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), seen.0, bytes.len()) };
            return Ok(());
        }
        for (i, chunk) in bytes.chunks(HALF as usize).enumerate() {
            let (start, buffer) = self.staged(device, chunk.len())?;
            // SAFETY: the staging buffer is mapped, has room for the chunk at `start`, and whoever used that room is done.
            unsafe { std::ptr::copy_nonoverlapping(chunk.as_ptr(), self.staging(device)?.seen(start), chunk.len()) };
            let to = memory.start + i as u64 * HALF;
            self.copy(device, [buffer, memory.buffer], [start, to], chunk.len() as u64)?;
        }
        Ok(())
    }

    pub fn download(&mut self, device: &Shared, memory: &Memory, bytes: &mut [u8]) -> Result<()> {
        if let Some(seen) = memory.seen {
            self.finish(device)?;
            // SAFETY: the memory is mapped and as long as `bytes`; everything that could write there is done.
            unsafe { std::ptr::copy_nonoverlapping(seen.0, bytes.as_mut_ptr(), bytes.len()) };
            return Ok(());
        }
        for (i, chunk) in bytes.chunks_mut(HALF as usize).enumerate() {
            let (start, buffer) = self.staged(device, chunk.len())?;
            let from = memory.start + i as u64 * HALF;
            self.copy(device, [memory.buffer, buffer], [from, start], chunk.len() as u64)?;
            self.finish(device)?;
            // SAFETY: as for uploads; the copy into it is done.
            unsafe {
                std::ptr::copy_nonoverlapping(self.staging(device)?.seen(start), chunk.as_mut_ptr(), chunk.len())
            };
        }
        Ok(())
    }

    fn staging(&mut self, device: &Shared) -> Result<&mut Staging> {
        if self.staging.is_none() {
            let kind = locked(&device.heap).host_kind();
            self.staging = Some(Staging::new(&device.raw, kind)?);
        }
        self.staging.as_mut().ok_or(Error::Call("stage", vk::Result::ERROR_UNKNOWN))
    }

    /// Room in the staging buffer that nothing uses, for a copy in the submission that is being recorded.
    fn staged(&mut self, device: &Shared, len: usize) -> Result<(u64, vk::Buffer)> {
        let (start, busy) = self.staging(device)?.room(len as u64);
        self.wait(device, busy)?;
        self.slot(&device.raw)?;
        let sequence = self.sequence();
        let staging = self.staging(device)?;
        staging.used(sequence);
        Ok((start, staging.buffer))
    }

    fn copy(&mut self, device: &Shared, [from, to]: [vk::Buffer; 2], [read, write]: [u64; 2], len: u64) -> Result<()> {
        let at = self.slot(&device.raw)?;
        let access =
            |buffer: vk::Buffer, start, writes| Access { buffer: buffer.as_raw(), start, end: start + len, writes };
        self.order(&device.raw, at, &[access(from, read, false), access(to, write, true)]);
        let region = [vk::BufferCopy { src_offset: read, dst_offset: write, size: len }];
        // SAFETY: both parts are inside of their buffers, which live until the submission is done.
        unsafe { device.raw.cmd_copy_buffer(self.slots[at].commands, from, to, &region) };
        Ok(())
    }

    /// # Safety
    /// Nothing may be under way.
    pub unsafe fn destroy(&mut self, raw: &ash::Device) {
        if let Some(staging) = &mut self.staging {
            staging.destroy(raw);
        }
        // SAFETY: made with this device, and not in use.
        unsafe {
            self.slots.iter().for_each(|slot| raw.destroy_descriptor_pool(slot.sets, None));
            raw.destroy_command_pool(self.pool, None);
            raw.destroy_semaphore(self.done, None);
        }
    }
}
