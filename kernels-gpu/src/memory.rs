//! Memory of a device: parts of large blocks.

use std::sync::atomic::Ordering;

use ash::vk;

use crate::device::{Device, Options, locked};
use crate::error::{Error, Named, Result};
use crate::ranges::Ranges;

/// Every part starts at a multiple: no device asks for more where a part is bound.
const ALIGNMENT: u64 = 256;
/// Bytes of a block, unless more is asked for at once.
const BLOCK: u64 = 64 << 20;

/// A part of a device's memory, given back when dropped. What is recorded already may still use it: whoever gets it next comes later in
/// the same order.
pub struct Memory {
    pub(crate) device: Device,
    pub(crate) buffer: vk::Buffer,
    block: usize,
    /// Where it begins in the buffer.
    pub(crate) start: u64,
    len: u64,
    /// Submission after which no earlier owner uses it.
    pub(crate) busy: u64,
    /// Where the CPU sees it.
    pub(crate) seen: Option<Seen>,
}

/// An address of mapped memory.
#[derive(Clone, Copy)]
pub(crate) struct Seen(pub *mut u8);

// SAFETY: an address; whoever reads or writes there says why they may.
unsafe impl Send for Seen {}
// SAFETY: as above.
unsafe impl Sync for Seen {}

/// The blocks of a device.
pub(crate) struct Heap {
    blocks: Vec<Option<Block>>,
    held: u64,
    budget: u64,
    kind: u32,
    host_kind: u32,
    pub unified: bool,
}

struct Block {
    memory: vk::DeviceMemory,
    buffer: vk::Buffer,
    size: u64,
    ranges: Ranges,
    seen: Option<Seen>,
}

/// A buffer with memory of its own, of one of the device's kinds.
pub(crate) fn bound_buffer(
    raw: &ash::Device,
    size: u64,
    kind: u32,
    mapped: bool,
) -> Result<(vk::Buffer, vk::DeviceMemory, Option<Seen>), vk::Result> {
    let usage =
        vk::BufferUsageFlags::STORAGE_BUFFER | vk::BufferUsageFlags::TRANSFER_SRC | vk::BufferUsageFlags::TRANSFER_DST;
    // SAFETY: a plain buffer, bound once to memory that is as large as it asks for; what was made is freed where a later call fails.
    unsafe {
        let buffer = raw.create_buffer(&vk::BufferCreateInfo::default().size(size).usage(usage), None)?;
        let needs = raw.get_buffer_memory_requirements(buffer);
        let create = vk::MemoryAllocateInfo::default().allocation_size(needs.size).memory_type_index(kind);
        let fits = needs.memory_type_bits >> kind & 1 == 1;
        let memory = if fits { raw.allocate_memory(&create, None) } else { Err(vk::Result::ERROR_FEATURE_NOT_PRESENT) };
        let memory = memory.inspect_err(|_| raw.destroy_buffer(buffer, None))?;
        let made = raw.bind_buffer_memory(buffer, memory, 0).and_then(|()| match mapped {
            true => {
                raw.map_memory(memory, 0, vk::WHOLE_SIZE, vk::MemoryMapFlags::empty()).map(|at| Some(Seen(at.cast())))
            }
            false => Ok(None),
        });
        match made {
            Ok(seen) => Ok((buffer, memory, seen)),
            Err(error) => {
                raw.destroy_buffer(buffer, None);
                raw.free_memory(memory, None);
                Err(error)
            }
        }
    }
}

/// What of a heap this process may take now, beside others, where the driver tells (`VK_EXT_memory_budget`).
fn free(instance: &ash::Instance, physical: vk::PhysicalDevice, heap: usize) -> Option<u64> {
    // SAFETY: the device is the instance's.
    let extensions = unsafe { instance.enumerate_device_extension_properties(physical) }.ok()?;
    extensions.iter().find(|e| e.extension_name_as_c_str() == Ok(ash::ext::memory_budget::NAME))?;
    let mut budget = vk::PhysicalDeviceMemoryBudgetPropertiesEXT::default();
    let mut properties = vk::PhysicalDeviceMemoryProperties2::default().push_next(&mut budget);
    // SAFETY: as above; the device has the extension that is asked.
    unsafe { instance.get_physical_device_memory_properties2(physical, &mut properties) };
    Some(budget.heap_budget[heap]).filter(|&budget| budget > 0)
}

impl Heap {
    pub fn new(instance: &ash::Instance, physical: vk::PhysicalDevice, options: &Options) -> Self {
        use vk::MemoryPropertyFlags as Flags;
        // SAFETY: the device is the instance's.
        let properties = unsafe { instance.get_physical_device_memory_properties(physical) };
        let kinds = properties.memory_types_as_slice();
        let find = |flags: Flags| kinds.iter().position(|k| k.property_flags.contains(flags)).map(|at| at as u32);
        // Memory that the CPU can write to but has no cache for is slow to read: it is not taken for its own.
        let host = Flags::HOST_VISIBLE | Flags::HOST_COHERENT;
        let shared = find(Flags::DEVICE_LOCAL | host | Flags::HOST_CACHED);
        // On a discrete device the part of its memory that the CPU sees may be small.
        let whole = |kind: u32| {
            let heaps = properties.memory_heaps_as_slice();
            let of = |kind: u32| heaps[kinds[kind as usize].heap_index as usize].size;
            find(Flags::DEVICE_LOCAL).is_none_or(|local| of(kind) >= of(local))
        };
        let unified = shared.filter(|&kind| whole(kind) && !options.staging);
        // Every device has a kind that the CPU sees, and one that is its own.
        let kind = unified.or_else(|| find(Flags::DEVICE_LOCAL)).unwrap_or(0);
        let heap = kinds[kind as usize].heap_index as usize;
        let size = properties.memory_heaps_as_slice()[heap].size;
        let budget = free(instance, physical, heap).unwrap_or(size);
        Self {
            blocks: Vec::new(),
            held: 0,
            budget: options.memory.unwrap_or(u64::MAX).min(size).min(budget),
            kind,
            host_kind: find(host | Flags::HOST_CACHED).or_else(|| find(host)).unwrap_or(0),
            unified: unified.is_some(),
        }
    }

    pub fn held(&self) -> u64 {
        self.held
    }

    pub fn budget(&self) -> u64 {
        self.budget
    }

    pub fn host_kind(&self) -> u32 {
        self.host_kind
    }

    fn take(&mut self, raw: &ash::Device, len: u64) -> Option<(usize, u64, u64)> {
        let taken = self.blocks.iter_mut().enumerate().find_map(|(at, block)| {
            let (start, busy) = block.as_mut()?.ranges.take(len)?;
            Some((at, start, busy))
        });
        if taken.is_some() {
            return taken;
        }
        // A block of the usual size, or where there is no room for one, of this.
        let at = [BLOCK.max(len), len].into_iter().find_map(|size| self.grow(raw, size))?;
        let (start, busy) = self.blocks[at].as_mut()?.ranges.take(len)?;
        Some((at, start, busy))
    }

    fn grow(&mut self, raw: &ash::Device, size: u64) -> Option<usize> {
        if size > self.budget.saturating_sub(self.held) {
            return None;
        }
        let (buffer, memory, seen) = bound_buffer(raw, size, self.kind, self.unified).ok()?;
        self.held += size;
        let block = Block { memory, buffer, size, ranges: Ranges::new(size), seen };
        let at = self.blocks.iter().position(Option::is_none).unwrap_or(self.blocks.len());
        self.blocks.resize_with(self.blocks.len().max(at + 1), || None);
        self.blocks[at] = Some(block);
        Some(at)
    }

    /// Frees the blocks of which nothing is taken, and tells their buffers. Nothing may be under way.
    pub fn trim(&mut self, raw: &ash::Device) -> Vec<vk::Buffer> {
        let empty = self.blocks.iter_mut().filter_map(|block| block.take_if(|b| b.ranges.is_empty()));
        let freed = |block: Block| {
            self.held -= block.size;
            let buffer = block.buffer;
            block.destroy(raw);
            buffer
        };
        empty.map(freed).collect()
    }

    pub fn destroy(&mut self, raw: &ash::Device) {
        self.blocks.drain(..).flatten().for_each(|block| block.destroy(raw));
    }
}

impl Block {
    fn destroy(self, raw: &ash::Device) {
        // SAFETY: made with this device; the callers see to it that nothing under way uses it.
        unsafe {
            raw.destroy_buffer(self.buffer, None);
            raw.free_memory(self.memory, None);
        }
    }
}

impl Device {
    /// Memory of `len` bytes with unspecified contents.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn memory(&self, len: usize) -> Result<Memory> {
        let room = (len as u64).next_multiple_of(ALIGNMENT).max(ALIGNMENT);
        let take = || locked(&self.0.heap).take(&self.0.raw, room);
        let taken = match take() {
            Some(taken) => taken,
            None => {
                // What is free but lies in blocks of other sizes is given back to the device.
                self.0.stream(|stream| stream.trim(&self.0))?;
                take().ok_or_else(|| {
                    let heap = locked(&self.0.heap);
                    Error::OutOfMemory { request: room, held: heap.held, budget: heap.budget }
                })?
            }
        };
        let (block, start, busy) = taken;
        let heap = locked(&self.0.heap);
        let of = heap.blocks[block].as_ref().ok_or(Error::Call("take memory", vk::Result::ERROR_UNKNOWN))?;
        let seen = of.seen.map(|seen| Seen(seen.0.wrapping_add(start as usize)));
        Ok(Memory { device: self.clone(), buffer: of.buffer, block, start, len: len as u64, busy, seen })
    }

    /// Memory that holds `bytes`.
    ///
    /// # Errors
    /// As [`Self::memory`]; if the device is lost.
    pub fn upload(&self, bytes: &[u8]) -> Result<Memory> {
        let memory = self.memory(bytes.len())?;
        self.0.stream(|stream| stream.upload(&self.0, &memory, bytes))?;
        Ok(memory)
    }

    /// As [`Memory::download`], of several, with one wait where they are small together.
    ///
    /// # Errors
    /// If the device is lost.
    ///
    /// # Panics
    /// If bytes have another length than their memory.
    pub fn download(&self, all: &mut [(&Memory, &mut [u8])]) -> Result<()> {
        assert!(all.iter().all(|(memory, bytes)| memory.len() == bytes.len()), "download: bytes of memory");
        self.0.stream(|stream| stream.download(&self.0, all))
    }
}

impl Memory {
    /// Number of bytes.
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The device that it is of.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Bytes that may be bound: the last word as a whole.
    pub(crate) fn words_end(&self) -> u64 {
        self.start + self.len.next_multiple_of(4)
    }

    /// Reads all of it, after everything that was asked for before.
    ///
    /// # Errors
    /// If the device is lost.
    ///
    /// # Panics
    /// If `bytes` has another length.
    pub fn download(&self, bytes: &mut [u8]) -> Result<()> {
        self.device.download(&mut [(self, bytes)])
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let busy = self.device.0.sequence.load(Ordering::SeqCst);
        let room = self.len.next_multiple_of(ALIGNMENT).max(ALIGNMENT);
        let mut heap = locked(&self.device.0.heap);
        if let Some(Some(block)) = heap.blocks.get_mut(self.block) {
            block.ranges.give(self.start, room, busy);
        }
    }
}

/// The ring through which bytes go where the CPU does not see the device's memory: two halves, each free again when the submission that
/// used it last is done.
pub(crate) struct Staging {
    memory: vk::DeviceMemory,
    pub buffer: vk::Buffer,
    seen: Seen,
    half: usize,
    at: u64,
    busy: [u64; 2],
}

/// Bytes of a half: a batch of pictures as a whole, so that it comes behind what is under way and none of that is waited for.
pub(crate) const HALF: u64 = 32 << 20;

impl Staging {
    pub fn new(raw: &ash::Device, kind: u32) -> Result<Self> {
        let (buffer, memory, seen) = bound_buffer(raw, 2 * HALF, kind, true).named("make a staging buffer")?;
        let seen = seen.ok_or(Error::Call("map a staging buffer", vk::Result::ERROR_MEMORY_MAP_FAILED))?;
        Ok(Self { memory, buffer, seen, half: 0, at: 0, busy: [0; 2] })
    }

    /// Room for `len` bytes, at most [`HALF`]: where it begins, and the submission to wait for before it is used. Where all submissions that
    /// used it are `completed` it begins anew, so that copies which are made again and again are the same.
    pub fn room(&mut self, len: u64, completed: u64) -> (u64, u64) {
        let mut wait = 0;
        if self.busy.iter().all(|&busy| busy <= completed) {
            (self.half, self.at) = (0, 0);
        }
        if self.at + len > HALF {
            self.half ^= 1;
            self.at = 0;
            wait = self.busy[self.half];
        }
        let start = self.half as u64 * HALF + self.at;
        self.at += len.next_multiple_of(16);
        (start, wait)
    }

    /// The current half is used by this submission.
    pub fn used(&mut self, sequence: u64) {
        self.busy[self.half] = sequence;
    }

    /// Where the CPU sees byte `start`.
    pub fn seen(&self, start: u64) -> *mut u8 {
        self.seen.0.wrapping_add(start as usize)
    }

    pub fn destroy(&mut self, raw: &ash::Device) {
        // SAFETY: made with this device, and nothing is under way where the stream goes.
        unsafe {
            raw.destroy_buffer(self.buffer, None);
            raw.free_memory(self.memory, None);
        }
    }
}
