//! Commands in the order in which they are asked for, with barriers where they touch the same bytes, submitted in short pieces.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use ash::vk;
use ash::vk::Handle;

use crate::device::{Counters, Shared, locked};
use crate::error::{Error, Named, Result};
use crate::hazards::{Access, Hazards};
use crate::kept::Kept;
use crate::memory::{HALF, Memory, Staging};
use crate::pipeline::{Id, Layouts};
use crate::sequence::Sequence;
use crate::timer::Timer;
use crate::view::Binding;

/// Most submissions under way at once.
const SLOTS: u64 = 4;
/// Most commands of a submission: of the first after the device had nothing to do, which soon gets something so, and of later ones. Each may
/// have twice as many as the one before. Between two a device rests for some microseconds, and all that are under way are what it has to do while
/// the CPU takes longer to ask for kernels than they take, as an optimiser's do.
const COMMANDS: [usize; 2] = [4, 256];
/// How long a submission should take: below what any driver's watchdog allows by far.
const PACE: [Duration; 2] = [Duration::from_millis(5), Duration::from_millis(50)];
/// Operations of a submission, at first and at least and most: doubled and halved by the pace.
const WORK: [u64; 3] = [1 << 30, 1 << 27, 1 << 44];
/// How often it is doubled in all: then it is settled, and submissions end where they ended before.
const DOUBLED: u32 = 32;
/// A submission that takes longer is taken for a device that hangs.
const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) struct Stream {
    queue: vk::Queue,
    pool: vk::CommandPool,
    /// Counts submissions that are done.
    done: vk::Semaphore,
    kept: Kept,
    timer: Option<Timer>,
    /// What is to be submitted next.
    next: Sequence,
    kernels: Vec<&'static str>,
    commands: usize,
    work: u64,
    hazards: Hazards,
    /// The kernels of what was submitted and not waited for.
    under_way: VecDeque<Vec<&'static str>>,
    submitted: u64,
    completed: u64,
    /// The last submission when the device was last seen to have nothing to do.
    idle: u64,
    most_work: u64,
    doubled: u32,
    /// When a submission was last seen to end, having been waited for.
    ended: Option<Instant>,
    replayed: u64,
    dispatched: u64,
    staging: Option<Staging>,
}

/// A kernel as it is asked for.
pub(crate) struct Command<'a> {
    pub name: &'static str,
    pub kernel: Id,
    pub push: &'a [u32],
    pub groups: [u32; 3],
    pub work: u64,
}

impl Stream {
    /// `timestamps`: the bits that the queue's have, and the nanoseconds of a tick.
    pub fn new(
        raw: &ash::Device,
        (queue, family): (vk::Queue, u32),
        layouts: Layouts,
        timestamps: (u32, f32),
    ) -> Result<Self> {
        let flags = vk::CommandPoolCreateFlags::RESET_COMMAND_BUFFER;
        // SAFETY: plain objects of the device, whose arguments live until each call returns.
        let (pool, done) = unsafe {
            let create = vk::CommandPoolCreateInfo::default().queue_family_index(family).flags(flags);
            let pool = raw.create_command_pool(&create, None).named("make a command pool")?;
            let mut kind = vk::SemaphoreTypeCreateInfo::default().semaphore_type(vk::SemaphoreType::TIMELINE);
            let done = raw.create_semaphore(&vk::SemaphoreCreateInfo::default().push_next(&mut kind), None);
            (pool, done.named("make a semaphore")?)
        };
        Ok(Self {
            queue,
            pool,
            done,
            kept: Kept::new(pool, layouts),
            timer: Timer::new(raw, pool, SLOTS as u32, timestamps)?,
            next: Sequence::default(),
            kernels: Vec::new(),
            commands: 0,
            work: 0,
            hazards: Hazards::default(),
            under_way: VecDeque::new(),
            submitted: 0,
            completed: 0,
            idle: 0,
            most_work: WORK[0],
            doubled: 0,
            ended: None,
            replayed: 0,
            dispatched: 0,
            staging: None,
        })
    }

    /// Number of the submission that is asked for, or will be next.
    pub fn sequence(&self) -> u64 {
        self.submitted + 1
    }

    pub fn counters(&self) -> Counters {
        let (submitted, replayed, kernels) = (self.submitted, self.replayed, self.dispatched);
        Counters { kernels, submitted, replayed, busy: self.timer.as_ref().map(Timer::busy) }
    }

    /// A loss with the kernels that were under way.
    pub fn blamed(&self, error: Error) -> Error {
        match error {
            Error::Lost { kernels } if kernels.is_empty() => {
                Error::Lost { kernels: self.under_way.iter().flatten().copied().collect() }
            }
            other => other,
        }
    }

    /// A barrier where the accesses ask for one.
    fn order(&mut self, accesses: impl Iterator<Item = Access> + Clone) {
        #[cfg(test)]
        if crate::planted::without_barriers() {
            return;
        }
        if self.hazards.note(accesses) {
            self.next.barrier();
        }
    }

    pub fn dispatch(&mut self, device: &Shared, command: Command<'_>, bindings: &[Binding]) -> Result<()> {
        self.order(bindings.iter().map(Binding::access));
        let ends = self.next.dispatch(command.kernel, command.push, command.groups, bindings);
        self.kernels.push(command.name);
        self.dispatched += 1;
        self.work += command.work;
        self.added(device, ends)
    }

    /// Submits where there is enough.
    fn added(&mut self, device: &Shared, ends: bool) -> Result<()> {
        self.commands += 1;
        let since = (self.submitted - self.idle).min(8);
        let most = (COMMANDS[0] << since).min(COMMANDS[1]);
        let full = self.commands >= most || ends && self.commands >= most / 2;
        if full || self.work >= self.most_work { self.submit(device) } else { Ok(()) }
    }

    fn submit(&mut self, device: &Shared) -> Result<()> {
        if self.next.is_empty() {
            return Ok(());
        }
        let (raw, number) = (&device.raw, self.submitted + 1);
        let worked = self.work >= self.most_work;
        self.hazards.clear();
        (self.commands, self.work) = (0, 0);
        self.under_way.push_back(std::mem::take(&mut self.kernels));
        if device.limits.lost_at.is_some_and(|lost| number >= lost) {
            self.next.clear();
            return Err(Error::Lost { kernels: Vec::new() });
        }
        self.make_room(raw, number, worked)?;
        // SAFETY: fewer submissions are under way than sequences are kept; bindings are inside of buffers, which live until nothing is
        // under way and are forgotten then, push constants within the layout's range, and a submission has at most so many kernels.
        let found = unsafe { self.kept.commands(raw, &device.pipelines, &mut self.next, number, COMMANDS[1] as u32) };
        let (commands, replayed) = found.inspect_err(|_| self.next.clear())?;
        let mut all = vec![commands];
        if let Some(timer) = &self.timer {
            let [before, after] = timer.around((number % SLOTS) as usize);
            all = vec![before, commands, after];
        }
        let (semaphores, value) = ([self.done], [number]);
        let mut values = vk::TimelineSemaphoreSubmitInfo::default().signal_semaphore_values(&value);
        let submit =
            vk::SubmitInfo::default().command_buffers(&all).signal_semaphores(&semaphores).push_next(&mut values);
        // SAFETY: the commands are recorded whole; everything they use lives until the submission is done.
        unsafe { raw.queue_submit(self.queue, &[submit], vk::Fence::null()) }.named("submit")?;
        self.submitted = number;
        self.replayed += u64::from(replayed);
        Ok(())
    }

    /// Waits for the submission whose slot the next one takes. Where the device is always so far behind, the time between two ends is what
    /// a submission takes.
    fn make_room(&mut self, raw: &ash::Device, number: u64, worked: bool) -> Result<()> {
        let last = number.saturating_sub(SLOTS);
        let waited = last > self.completed;
        self.wait_for(raw, last)?;
        let now = Instant::now();
        if let Some(took) = self.ended.filter(|_| waited).map(|before| now - before) {
            if took < PACE[0] && worked && self.doubled < DOUBLED {
                self.most_work = (self.most_work * 2).min(WORK[2]);
                self.doubled += 1;
            } else if took > PACE[1] {
                self.most_work = (self.most_work / 2).max(WORK[1]);
            }
        }
        self.ended = waited.then_some(now);
        Ok(())
    }

    /// Waits for a submission, which is submitted where it is not yet.
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
            Err(vk::Result::TIMEOUT) => return Err(Error::Lost { kernels: Vec::new() }),
            other => other.named("wait")?,
        }
        while self.completed < sequence {
            self.completed += 1;
            self.under_way.pop_front();
            if let Some(timer) = &mut self.timer {
                timer.count(raw, (self.completed % SLOTS) as usize)?;
            }
        }
        if self.completed == self.submitted {
            self.idle = self.submitted;
        }
        Ok(())
    }

    /// Waits for everything.
    pub fn finish(&mut self, device: &Shared) -> Result<()> {
        self.submit(device)?;
        self.wait(device, self.submitted)
    }

    /// Waits for everything, and gives memory of which nothing is used back to the device.
    pub fn trim(&mut self, device: &Shared) -> Result<()> {
        self.finish(device)?;
        let freed = locked(&device.heap).trim(&device.raw);
        self.kept.forget(&freed);
        Ok(())
    }

    pub fn upload(&mut self, device: &Shared, memory: &Memory, bytes: &[u8]) -> Result<()> {
        // While an earlier owner's kernels are under way, bytes come behind them, as where the CPU does not see the memory.
        if let Some(seen) = memory.seen.filter(|_| memory.busy <= self.completed) {
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

    /// All of each memory, after one wait where they are small together.
    pub fn download(&mut self, device: &Shared, all: &mut [(&Memory, &mut [u8])]) -> Result<()> {
        if all.iter().all(|(memory, _)| memory.seen.is_some()) {
            self.finish(device)?;
            for (seen, bytes) in all.iter_mut().filter_map(|(memory, bytes)| Some((memory.seen?, bytes))) {
                // SAFETY: the memory is mapped and as long as `bytes`; everything that could write there is done.
                unsafe { std::ptr::copy_nonoverlapping(seen.0, bytes.as_mut_ptr(), bytes.len()) };
            }
            return Ok(());
        }
        let (mut parts, mut room): (Vec<(vk::Buffer, u64, &mut [u8])>, _) = (Vec::new(), 0);
        for (memory, bytes) in all {
            for (i, chunk) in bytes.chunks_mut(HALF as usize).enumerate() {
                let len = chunk.len().next_multiple_of(16);
                if room + len > HALF as usize {
                    self.read(device, &mut parts, std::mem::take(&mut room))?;
                }
                room += len;
                parts.push((memory.buffer, memory.start + i as u64 * HALF, chunk));
            }
        }
        self.read(device, &mut parts, room)
    }

    /// Reads parts of buffers, each from a place on, through `room` bytes of the ring.
    fn read(&mut self, device: &Shared, parts: &mut Vec<(vk::Buffer, u64, &mut [u8])>, room: usize) -> Result<()> {
        let (start, to) = self.staged(device, room)?;
        let ends = parts
            .iter()
            .scan(start, |end, part| Some(std::mem::replace(end, *end + part.2.len().next_multiple_of(16) as u64)));
        let places: Vec<u64> = ends.collect();
        for ((buffer, from, bytes), &place) in parts.iter().zip(&places) {
            self.copy(device, [*buffer, to], [*from, place], bytes.len() as u64)?;
        }
        self.finish(device)?;
        for ((.., bytes), place) in parts.drain(..).zip(places) {
            // SAFETY: as for uploads; the copy into it is done.
            unsafe {
                std::ptr::copy_nonoverlapping(self.staging(device)?.seen(place), bytes.as_mut_ptr(), bytes.len())
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

    /// Room in the staging buffer that nothing uses, for a copy in the submission that is asked for.
    fn staged(&mut self, device: &Shared, len: usize) -> Result<(u64, vk::Buffer)> {
        let completed = self.completed;
        let (start, busy) = self.staging(device)?.room(len as u64, completed);
        self.wait(device, busy)?;
        let sequence = self.sequence();
        let staging = self.staging(device)?;
        staging.used(sequence);
        Ok((start, staging.buffer))
    }

    fn copy(&mut self, device: &Shared, buffers: [vk::Buffer; 2], [read, write]: [u64; 2], len: u64) -> Result<()> {
        let access =
            |buffer: vk::Buffer, start, writes| Access { buffer: buffer.as_raw(), start, end: start + len, writes };
        self.order([access(buffers[0], read, false), access(buffers[1], write, true)].into_iter());
        self.next.copy(buffers, [read, write, len]);
        self.added(device, false)
    }

    /// # Safety
    /// Nothing may be under way.
    pub unsafe fn destroy(&mut self, raw: &ash::Device) {
        if let Some(staging) = &mut self.staging {
            staging.destroy(raw);
        }
        // SAFETY: made with this device, and not in use.
        unsafe {
            self.kept.destroy(raw);
            self.timer.iter().for_each(|timer| timer.destroy(raw));
            raw.destroy_command_pool(self.pool, None);
            raw.destroy_semaphore(self.done, None);
        }
    }
}
