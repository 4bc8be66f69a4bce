//! How long the device had work: a timestamp before and after each submission.

use std::time::Duration;

use ash::vk;

use crate::error::{Named, Result};

pub(crate) struct Timer {
    queries: vk::QueryPool,
    /// Of each slot the commands before and after a submission.
    around: Vec<[vk::CommandBuffer; 2]>,
    /// Nanoseconds of a tick.
    period: f64,
    /// The bits of a timestamp that count.
    valid: u64,
    /// Ticks with work, and when the last submission ended.
    busy: u64,
    ended: Option<u64>,
}

impl Timer {
    /// For `slots` submissions under way at once, of a queue whose timestamps have so many bits: `None` where it has none.
    pub fn new(
        raw: &ash::Device,
        pool: vk::CommandPool,
        slots: u32,
        (bits, period): (u32, f32),
    ) -> Result<Option<Self>> {
        if bits == 0 {
            return Ok(None);
        }
        let queries = vk::QueryPoolCreateInfo::default().query_type(vk::QueryType::TIMESTAMP).query_count(2 * slots);
        let buffers = vk::CommandBufferAllocateInfo::default().command_pool(pool).command_buffer_count(2 * slots);
        let begin = vk::CommandBufferBeginInfo::default();
        // SAFETY: plain objects of the device, whose arguments live until each call returns; commands are recorded once, whole.
        unsafe {
            let queries = raw.create_query_pool(&queries, None).named("make timestamps")?;
            let buffers = raw.allocate_command_buffers(&buffers).named("make command buffers")?;
            for (&commands, query) in buffers.iter().zip(0..) {
                raw.begin_command_buffer(commands, &begin).named("begin commands")?;
                let stage = if query % 2 == 0 {
                    raw.cmd_reset_query_pool(commands, queries, query, 2);
                    vk::PipelineStageFlags::TOP_OF_PIPE
                } else {
                    vk::PipelineStageFlags::BOTTOM_OF_PIPE
                };
                raw.cmd_write_timestamp(commands, stage, queries, query);
                raw.end_command_buffer(commands).named("end commands")?;
            }
            let around = buffers.chunks_exact(2).map(|pair| [pair[0], pair[1]]).collect();
            let valid = u64::MAX >> 64u32.saturating_sub(bits);
            Ok(Some(Self { queries, around, period: f64::from(period), valid, busy: 0, ended: None }))
        }
    }

    /// What is submitted before and after the commands of a slot, whose last submission is done.
    pub fn around(&self, slot: usize) -> [vk::CommandBuffer; 2] {
        self.around[slot]
    }

    /// Counts a slot's submission, which is done; in the order in which they were made.
    pub fn count(&mut self, raw: &ash::Device, slot: usize) -> Result<()> {
        let mut ticks = [0u64; 2];
        // SAFETY: both queries were written by commands that are done.
        let read = unsafe {
            raw.get_query_pool_results(self.queries, 2 * slot as u32, &mut ticks, vk::QueryResultFlags::TYPE_64)
        };
        match read {
            // Those of a driver that is late are not counted.
            Err(vk::Result::NOT_READY) => return Ok(()),
            read => read.named("read timestamps")?,
        }
        let [begun, ended] = ticks;
        let since = |then: u64| ended.wrapping_sub(then) & self.valid;
        // A submission may begin while the one before still runs.
        self.busy += since(begun).min(self.ended.map_or(u64::MAX, since));
        self.ended = Some(ended);
        Ok(())
    }

    /// How long the device had work, of the submissions that were counted.
    pub fn busy(&self) -> Duration {
        Duration::from_secs_f64(self.busy as f64 * self.period * 1e-9)
    }

    /// # Safety
    /// Nothing may be under way.
    pub unsafe fn destroy(&self, raw: &ash::Device) {
        // SAFETY: made with this device, and not in use. The commands go with their pool.
        unsafe { raw.destroy_query_pool(self.queries, None) };
    }
}
