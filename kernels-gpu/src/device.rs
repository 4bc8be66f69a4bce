//! An opened device.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use ash::vk;

use crate::cache::{Cache, Keep};
use crate::error::{Error, Named, Result};
use crate::instance::{Instance, Validation};
use crate::matrices::{BFLOAT16, Bfloat16Features, EXTENSIONS, Matrices};
use crate::memory::Heap;
use crate::pipeline::Pipelines;
use crate::select::{self, Choice, Info};
use crate::shaders::Shader;
use crate::stream::{Command, Stream};
use crate::trial::Verdicts;
use crate::view::{Binding, Stored};

/// How a device is opened. The limits below those of the device are for tests, so that what weak devices need is run on any.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Which device.
    pub choice: Choice,
    /// What is looked at.
    pub validation: Validation,
    /// Treat memory as if the CPU could not see it.
    pub staging: bool,
    /// Most bytes that are bound at once.
    pub range: Option<u64>,
    /// Bytes of memory that may be held.
    pub memory: Option<u64>,
    /// Most threads of a workgroup.
    pub threads: Option<u32>,
    /// Bytes of shared memory of a workgroup.
    pub shared: Option<u32>,
    /// As if it had so many processors.
    pub cores: Option<u32>,
    /// Without arithmetic in f16.
    pub no_f16: bool,
    /// Without subgroups, and so without cooperative matrices.
    pub no_subgroups: bool,
    /// Cooperative matrices never, or wherever the device has them; else where they were tried and found right and quicker.
    pub matrices: Option<bool>,
    /// Tiles of all sizes on a device that is software too.
    pub large_tiles: bool,
    /// Pretend that the device is lost at this submission.
    pub lost_at: Option<u64>,
    /// Where compiled kernels are kept between runs.
    pub cache: Option<Arc<dyn Keep>>,
}

impl Options {
    /// A device with what the environment asks for: `TIER_VULKAN_VALIDATION`, and `TIER_VULKAN_LIMITS` as [`Self::limited`].
    ///
    /// # Errors
    /// If it asks for something that is not known.
    pub fn of(choice: Choice) -> Result<Self> {
        let options = Self { choice, validation: Validation::requested()?, ..Self::default() };
        options.limited(&std::env::var("TIER_VULKAN_LIMITS").unwrap_or_default())
    }

    /// With any of `staging,range=BYTES,memory=BYTES,threads=N,shared=BYTES,cores=N,large-tiles,no-f16,no-subgroups,matrices=0|1,lost=N`.
    ///
    /// # Errors
    /// If there is another.
    pub fn limited(mut self, limits: &str) -> Result<Self> {
        for limit in limits.split(',').filter(|l| !l.is_empty()) {
            let (name, value) = limit.split_once('=').unwrap_or((limit, ""));
            let number = value.parse::<u64>().ok();
            match (name, number) {
                ("staging", None) => self.staging = true,
                ("range", Some(n)) => self.range = Some(n),
                ("memory", Some(n)) => self.memory = Some(n),
                ("threads", Some(n)) => self.threads = Some(n.min(1024) as u32),
                ("shared", Some(n)) => self.shared = u32::try_from(n).ok(),
                ("large-tiles", None) => self.large_tiles = true,
                ("cores", Some(n @ 1..)) => self.cores = u32::try_from(n).ok(),
                ("no-f16", None) => self.no_f16 = true,
                ("no-subgroups", None) => self.no_subgroups = true,
                ("matrices", Some(n @ 0..=1)) => self.matrices = Some(n == 1),
                ("lost", Some(n)) => self.lost_at = Some(n),
                _ => return Err(Error::NoDevice(format!("TIER_VULKAN_LIMITS: {limit} is not known"))),
            }
        }
        Ok(self)
    }
}

/// What a device can do at most.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes that are bound at once.
    pub range: u64,
    /// Bytes of which a bound part's start is a multiple.
    pub alignment: u64,
    /// Threads of a workgroup.
    pub threads: u32,
    /// Bytes of shared memory of a workgroup.
    pub shared: u32,
    /// Workgroups along each dimension.
    pub groups: [u32; 3],
    /// Processors that run workgroups independently of each other; a guess where the driver does not tell.
    pub cores: u32,
    /// Whether the CPU sees the device's memory as it sees its own.
    pub unified: bool,
    /// Whether products have tiles of any size. A driver that compiles for the CPU takes seconds for the large ones.
    pub large_tiles: bool,
    pub(crate) lost_at: Option<u64>,
}

/// What was asked of a device.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counters {
    /// Kernels.
    pub kernels: u64,
    /// Submissions, short sequences of kernels and copies.
    pub submitted: u64,
    /// Those of them that were known, and were not recorded anew.
    pub replayed: u64,
    /// How long the device had work, up to what was last waited for; where it has timestamps.
    pub busy: Option<Duration>,
}

/// An opened device. Clones share it.
#[derive(Clone)]
pub struct Device(pub(crate) Arc<Shared>);

pub(crate) struct Shared {
    pub info: Info,
    pub limits: Limits,
    pub matrices: Matrices,
    pub verdicts: Mutex<Verdicts>,
    pub cache: Cache,
    pub raw: ash::Device,
    pub heap: Mutex<Heap>,
    stream: Mutex<Stream>,
    pub pipelines: Mutex<Pipelines>,
    /// Kernels that multiplied by cooperative matrices.
    by_matrices: AtomicU64,
    /// Number of the submission that is being recorded, or will be next.
    pub sequence: AtomicU64,
    /// Dropped last.
    _instance: Instance,
}

pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

impl Device {
    /// Opens a device.
    ///
    /// # Errors
    /// If there is no Vulkan here, no such device, or it refuses.
    pub fn open(options: &Options) -> Result<Self> {
        let instance = Instance::new(options.validation)?;
        let (physical, info) = select::chosen(&instance, &options.choice)?;
        let family = select::queue_family(&instance, physical)
            .ok_or_else(|| Error::NoDevice(format!("{}: no queue that computes", info.name)))?;
        let queues = [vk::DeviceQueueCreateInfo::default().queue_family_index(family).queue_priorities(&[1.0])];
        let matrices = Matrices::of(&instance, physical, options);
        let mut f12 = vk::PhysicalDeviceVulkan12Features::default()
            .timeline_semaphore(true)
            .shader_float16(matrices.any())
            .vulkan_memory_model(matrices.any());
        let mut cooperative = vk::PhysicalDeviceCooperativeMatrixFeaturesKHR::default().cooperative_matrix(true);
        let mut full = vk::PhysicalDeviceSubgroupSizeControlFeatures::default().compute_full_subgroups(true);
        let mut bfloat = Bfloat16Features::new(true);
        let mut extensions = Vec::new();
        let mut create = vk::DeviceCreateInfo::default().queue_create_infos(&queues).push_next(&mut f12);
        if matrices.any() {
            extensions.extend(EXTENSIONS.map(|name| name.as_ptr()));
            create = create.push_next(&mut cooperative).push_next(&mut full);
        }
        if matrices.shape(Stored::Bf16).is_some() {
            extensions.push(BFLOAT16.as_ptr());
            create = create.push_next(&mut bfloat);
        }
        let create = create.enabled_extension_names(&extensions);
        // SAFETY: the device is the instance's, and what `create` points to lives until the call returns.
        let raw = unsafe { instance.raw.create_device(physical, &create, None) }.named("open the device")?;
        // SAFETY: as above.
        let limits = unsafe { instance.raw.get_physical_device_properties(physical) }.limits;
        let (heap, period) = (Heap::new(&instance.raw, physical, options), limits.timestamp_period);
        let limits = Limits {
            range: options.range.unwrap_or(u64::MAX).min(u64::from(limits.max_storage_buffer_range)),
            // Kernels read and write up to 16 bytes at once.
            alignment: limits.min_storage_buffer_offset_alignment.max(16),
            threads: options.threads.unwrap_or(256).min(limits.max_compute_work_group_invocations),
            shared: options.shared.unwrap_or(u32::MAX).min(limits.max_compute_shared_memory_size),
            groups: limits.max_compute_work_group_count,
            cores: options.cores.or_else(|| select::cores(&instance, physical)).unwrap_or(32),
            unified: heap.unified,
            large_tiles: options.large_tiles || info.kind != select::Kind::Software,
            lost_at: options.lost_at,
        };
        // SAFETY: the device was made with one queue of this family.
        let queue = unsafe { raw.get_device_queue(family, 0) };
        // SAFETY: the device is the instance's.
        let families = unsafe { instance.raw.get_physical_device_queue_family_properties(physical) };
        let timestamps = (families[family as usize].timestamp_valid_bits, period);
        let cache = Cache::new(options.cache.clone(), &info);
        let made = Pipelines::new(&raw, cache.clone()).and_then(|pipelines| {
            Ok((Stream::new(&raw, (queue, family), pipelines.layouts(), timestamps)?, pipelines))
        });
        // SAFETY: nothing was submitted. What one of the two may have made goes with the process.
        let (stream, pipelines) = made.inspect_err(|_| unsafe { raw.destroy_device(None) })?;
        Ok(Self(Arc::new(Shared {
            info,
            limits,
            matrices,
            verdicts: Mutex::new(Verdicts::new(options.matrices == Some(true))),
            cache,
            raw,
            heap: Mutex::new(heap),
            stream: Mutex::new(stream),
            pipelines: Mutex::new(pipelines),
            by_matrices: AtomicU64::new(0),
            sequence: AtomicU64::new(1),
            _instance: instance,
        })))
    }

    /// Which device it is.
    pub fn info(&self) -> &Info {
        &self.0.info
    }

    /// What it can do at most.
    pub fn limits(&self) -> &Limits {
        &self.0.limits
    }

    /// Bytes of memory that are held on it, in use or not.
    pub fn held(&self) -> u64 {
        locked(&self.0.heap).held()
    }

    /// Bytes of memory that may be held on it.
    pub fn budget(&self) -> u64 {
        locked(&self.0.heap).budget()
    }

    /// Whether two handles are of one device.
    pub fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Waits for everything that was asked for.
    ///
    /// # Errors
    /// If the device is lost.
    pub fn wait(&self) -> Result<()> {
        self.0.stream(|stream| stream.finish(&self.0))
    }

    /// What was asked of it so far.
    pub fn counters(&self) -> Counters {
        locked(&self.0.stream).counters()
    }

    /// How many of the kernels so far multiply by cooperative matrices.
    pub fn by_matrices(&self) -> u64 {
        self.0.by_matrices.load(Ordering::Relaxed)
    }

    /// Asks for a kernel.
    pub(crate) fn dispatch(&self, kernel: Kernel<'_>) -> Result<()> {
        let limits = &self.0.limits;
        self.0.by_matrices.fetch_add(u64::from(kernel.shader.has_matrices()), Ordering::Relaxed);
        let groups = kernel.groups.map(|n| n.max(1));
        let groups = [0, 1, 2].map(|i| groups[i].min(u64::from(limits.groups[i])) as u32);
        let id = locked(&self.0.pipelines).id(kernel.shader, kernel.spec);
        let command = Command { name: kernel.shader.name(), kernel: id, push: kernel.push, groups, work: kernel.work };
        self.0.stream(|stream| stream.dispatch(&self.0, command, kernel.bindings))
    }
}

/// A kernel with what it works on.
pub(crate) struct Kernel<'a> {
    pub shader: Shader,
    /// Specialisation constants from number 0 on; the first is the number of threads.
    pub spec: &'a [u32],
    pub bindings: &'a [Binding],
    /// Push constants.
    pub push: &'a [u32],
    /// Workgroups; fewer run where the device has a limit, and each kernel then goes round.
    pub groups: [u64; 3],
    /// Operations, roughly: what the length of submissions goes by.
    pub work: u64,
}

impl Shared {
    pub fn stream<R>(&self, f: impl FnOnce(&mut Stream) -> Result<R>) -> Result<R> {
        let mut stream = locked(&self.stream);
        let result = f(&mut stream);
        self.sequence.store(stream.sequence(), Ordering::SeqCst);
        result.map_err(|error| stream.blamed(error))
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: no handle is left, so nothing is recorded any more; what was submitted is waited for (a lost device answers at
        // once); then everything goes that was made with the device, then the device.
        unsafe {
            let _ = self.raw.device_wait_idle();
            let stream = self.stream.get_mut().unwrap_or_else(|e| e.into_inner());
            stream.destroy(&self.raw);
            let pipelines = self.pipelines.get_mut().unwrap_or_else(|e| e.into_inner());
            pipelines.destroy(&self.raw);
            let heap = self.heap.get_mut().unwrap_or_else(|e| e.into_inner());
            heap.destroy(&self.raw);
            self.raw.destroy_device(None);
        }
    }
}
