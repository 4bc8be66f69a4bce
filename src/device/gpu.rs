//! A Vulkan device as the engine sees it: tensors as operands of kernels, and bytes that are there, here, or both.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock};

use kernels_gpu::ops::Function;
use kernels_gpu::{Choice, Device, Keep, Memory, Options, Stored, View};

use super::Activity;
use crate::buffer::{Buffer, Heap};
use crate::dtype::{DType, Element};
use crate::error::{Error, Result};
use crate::files;
use crate::layout::{Dims, Layout};
use crate::memory::mib;
use crate::op::{Meta, Output};
use crate::plan::trace;
use crate::tensor::Tensor;

/// An opened device. Clones share it.
#[derive(Clone)]
pub struct Gpu(Arc<Opened>);

struct Opened {
    device: Device,
    /// What ran on the CPU instead, and how often.
    fallbacks: Mutex<BTreeMap<String, u64>>,
}

/// The folder of caches.
#[derive(Debug)]
struct Caches(PathBuf);

impl Caches {
    fn found() -> Option<Arc<dyn Keep>> {
        files::caches().filter(|_| files::may_cache()).map(|folder| Arc::new(Self(folder)) as Arc<dyn Keep>)
    }
}

impl Keep for Caches {
    fn read(&self, name: &str) -> Option<Vec<u8>> {
        std::fs::read(self.0.join(name)).ok()
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        let _ = std::fs::create_dir_all(&self.0).map(|()| files::write_atomic(self.0.join(name), bytes));
    }
}

/// What unwinds where a device fails in the middle of an op: ops return no errors.
struct Failed(kernels_gpu::Error);

/// Ends the computation with a failure of the device, for [`caught`] to make an error of.
fn raise(error: kernels_gpu::Error) -> ! {
    resume_unwind(Box::new(Failed(error)))
}

/// Runs `f`; a failure of a device inside of it (out of memory, lost) is an error.
///
/// # Errors
/// That, and those of `f`.
pub fn caught<R>(f: impl FnOnce() -> Result<R>) -> Result<R> {
    catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|payload: Box<dyn Any + Send>| {
        match payload.downcast::<Failed>() {
            Ok(failed) => Err(Error::new(failed.0.to_string())),
            Err(other) => resume_unwind(other),
        }
    })
}

/// The devices of this machine, those that cannot be used too: a line each, and the same for programs.
///
/// # Errors
/// If there is no Vulkan here.
pub fn found() -> Result<Vec<(String, serde_json::Value)>> {
    let all = kernels_gpu::list().map_err(|e| Error::new(e.to_string()))?;
    let line = |d: &kernels_gpu::Info| {
        let json = serde_json::json!({ "device": format!("vulkan:{}", d.index), "name": d.name, "kind": d.kind.to_string(),
            "driver": d.driver, "api": format!("{}.{}", d.api[0], d.api[1]), "memory_mib": d.memory >> 20, "uuid": d.uuid,
            "features": d.features, "refused": d.refused });
        (d.line(), json)
    };
    Ok(all.iter().map(line).collect())
}

impl Gpu {
    /// Opens a device: an index, the first digits of a UUID, or nothing for the best.
    ///
    /// # Errors
    /// If there is none; true beside it where none was named and the CPU will do.
    pub fn open(which: &str) -> Result<Self, (bool, Error)> {
        Self::weakened(which, "")
    }

    /// As [`Self::open`], as if the device could do no more than this, written as in `TIER_VULKAN_LIMITS`.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn weakened(which: &str, limits: &str) -> Result<Self, (bool, Error)> {
        let options = Options::of(Choice::of(which)).and_then(|options| options.limited(limits));
        let opened = options.and_then(|options| Device::open(&Options { cache: Caches::found(), ..options }));
        opened.map(|device| Self(Arc::new(Opened { device, fallbacks: Mutex::default() }))).map_err(|error| {
            let absent = matches!(error, kernels_gpu::Error::NoVulkan(_) | kernels_gpu::Error::NoDevice(_));
            (absent && which.is_empty(), Error::new(error.to_string()))
        })
    }

    /// What `--device` opens it by.
    pub fn name(&self) -> String {
        format!("vulkan:{}", self.0.device.info().index)
    }

    /// In one line.
    pub fn describe(&self) -> String {
        self.0.device.info().line()
    }

    /// Refuses tensors of so many bytes, where it does not have them.
    ///
    /// # Errors
    /// With the numbers, and `remedy`: what takes less than `what` would.
    pub fn fits(&self, bytes: u64, what: &str, remedy: &str) -> Result<()> {
        let budget = self.0.device.budget();
        if bytes <= budget {
            return Ok(());
        }
        let (bytes, budget) = (mib(bytes), mib(budget));
        Err(Error::new(format!(
            "{what} would take at least {bytes} on {}, which has {budget}. {remedy}. The CPU has its own memory (--device cpu)",
            self.name()
        )))
    }

    /// What is known of its cooperative matrices, a line for each half type that it multiplies by them: whether they are used, and why.
    pub fn matrices(&self) -> Vec<String> {
        self.0.device.matrices().unwrap_or_else(|error| raise(error))
    }

    /// What ran on the CPU instead, and how often.
    pub fn fallbacks(&self) -> Vec<(String, u64)> {
        let fallbacks = self.0.fallbacks.lock().unwrap_or_else(|e| e.into_inner());
        fallbacks.iter().map(|(name, n)| (name.clone(), *n)).collect()
    }

    /// What it was asked so far.
    pub fn activity(&self) -> Activity {
        let kernels_gpu::Counters { kernels, submitted, replayed, busy } = self.0.device.counters();
        Activity { kernels, submitted, replayed, busy }
    }

    /// Waits for everything that was asked for.
    pub fn wait(&self) {
        self.0.device.wait().unwrap_or_else(|error| raise(error));
    }

    /// Notes that `name` ran on the CPU; its result on the device.
    pub(crate) fn fallen_back(&self, name: String, result: Tensor) -> Tensor {
        *self.0.fallbacks.lock().unwrap_or_else(|e| e.into_inner()).entry(name).or_default() += 1;
        result.to_device(self)
    }

    pub(crate) fn kernels(&self) -> &Device {
        &self.0.device
    }

    fn upload(&self, bytes: &[u8]) -> Memory {
        self.0.device.upload(bytes).unwrap_or_else(|error| raise(error))
    }

    pub(crate) fn memory(&self, len: usize) -> Memory {
        self.0.device.memory(len).unwrap_or_else(|error| raise(error))
    }

    /// A tensor of the CPU's here, in its layout; of contiguous elements no others come with them.
    pub(crate) fn take(&self, x: &Tensor) -> Tensor {
        trace::check_read(x.buffer().id());
        let (size, bytes) = (x.dtype().size(), x.buffer().bytes());
        let (bytes, layout) = if x.is_contiguous() {
            let start = x.layout().offset() * size;
            (&bytes[start..][..x.numel() * size], Layout::contiguous(*x.dims(), 0))
        } else {
            (bytes, *x.layout())
        };
        self.tensor(self.upload(bytes), layout, x.dtype())
    }

    fn tensor(&self, memory: Memory, layout: Layout, dtype: DType) -> Tensor {
        Tensor::from_buffer(Buffer::on_device(Mirrored::new(self, memory)), layout, dtype)
    }

    /// A tensor as an operand, wherever it lives; of other types than f32 none.
    pub(crate) fn operand(&self, x: &Tensor) -> Option<Operand> {
        if x.dtype() != DType::F32 {
            return None;
        }
        self.stored(x)
    }

    /// As [`Self::operand`], for kernels that widen half types as they read them.
    pub(crate) fn stored(&self, x: &Tensor) -> Option<Operand> {
        let stored = stored_as(x.dtype())?;
        let x = x.to_device(self);
        Some(Operand { memory: x.buffer().mirrored()?.memory(), layout: *x.layout(), stored })
    }

    /// As [`Self::operand`], contiguous.
    pub(crate) fn packed(&self, x: &Tensor) -> Option<Operand> {
        self.operand(&x.to_device(self).packed())
    }

    /// The bytes of a mask here.
    pub(crate) fn bytes(&self, x: &Tensor) -> Memory {
        self.upload(x.packed().as_slice::<u8>())
    }

    /// Numbers of 32 bits here.
    pub(crate) fn words(&self, words: &[u32]) -> Memory {
        self.upload(&words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>())
    }

    /// Indices below `n` here; `None` where one is not, which the CPU complains of.
    pub(crate) fn indices(&self, x: &Tensor, n: usize) -> Option<Memory> {
        Some(self.words(&indices(x, n)?))
    }

    /// A new contiguous tensor of f32 that `kernels` write; `None` where the device cannot.
    pub(crate) fn write(&self, out: Meta, kernels: impl FnOnce(View<'_>) -> kernels_gpu::Result<()>) -> Option<Tensor> {
        if out.dtype != DType::F32 {
            return None;
        }
        self.write_stored(out, kernels)
    }

    /// As [`Self::write`], of a half type too.
    fn write_stored(&self, out: Meta, kernels: impl FnOnce(View<'_>) -> kernels_gpu::Result<()>) -> Option<Tensor> {
        let y = Operand {
            memory: Arc::new(self.memory(out.bytes())),
            layout: Layout::contiguous(out.dims, 0),
            stored: stored_as(out.dtype)?,
        };
        match kernels(y.view()) {
            Ok(()) => {
                Some(Tensor::from_buffer(Buffer::on_device(Mirrored::sharing(self, y.memory)), y.layout, out.dtype))
            }
            Err(kernels_gpu::Error::Limit(_)) => None,
            Err(error) => raise(error),
        }
    }

    /// As [`Self::write`], as an op's output.
    pub(crate) fn output(
        &self,
        out: Meta,
        kernels: impl FnOnce(View<'_>) -> kernels_gpu::Result<()>,
    ) -> Option<Output> {
        self.write(out, kernels).map(Output::from)
    }

    /// A new contiguous tensor of one value.
    pub(crate) fn filled(&self, dims: impl Into<Dims>, value: f32) -> Option<Tensor> {
        self.write(Meta::new(dims, DType::F32), |y| self.kernels().fill(value, y))
    }

    /// Zeros of `dims` but for x at the places of `layout`.
    pub(crate) fn among_zeros(&self, x: &Tensor, dims: Dims, layout: Layout) -> Option<Tensor> {
        let x = self.operand(x)?;
        self.write(Meta::new(dims, DType::F32), |y| {
            self.kernels().fill(0.0, y)?;
            let at = View { offset: y.offset + layout.offset(), dims: layout.dims(), strides: layout.strides(), ..y };
            self.kernels().copy(x.view(), at)
        })
    }

    /// Changes tensors in place by `kernels`, where all are contiguous, of f32, live here, and nobody shares their bytes; tells whether.
    pub(crate) fn update<const N: usize>(
        &self,
        tensors: [&mut Tensor; N],
        kernels: impl FnOnce([View<'_>; N]) -> kernels_gpu::Result<()>,
    ) -> bool {
        if !tensors.iter().all(|x| x.is_contiguous() && x.buffer().is_unshared() && x.dtype() == DType::F32) {
            return false;
        }
        let changing = |x: &mut Tensor| {
            let layout = *x.layout();
            x.mirrored_mut().map(|bytes| Operand { memory: bytes.changing(), layout, stored: Stored::F32 })
        };
        let operands: Option<Vec<Operand>> = tensors.into_iter().map(changing).collect();
        let Some(Ok(operands)) = operands.map(<[Operand; N]>::try_from) else { return false };
        match kernels(operands.each_ref().map(Operand::view)) {
            Ok(()) => true,
            Err(kernels_gpu::Error::Limit(_)) => false,
            Err(error) => raise(error),
        }
    }

    /// Holds a tensor's elements between two bounds, in place and without waiting for it; tells whether, as [`Self::update`].
    pub(crate) fn clamp(&self, x: &mut Tensor, low: f32, high: f32) -> bool {
        self.update([x], |[x]| self.kernels().map(Function::Clamp(low, high), x, x))
    }

    /// x += share (to - x) in place, for a share, `[1]`, that may change though what the device is told does not; tells whether, as
    /// [`Self::update`].
    pub(crate) fn follow(&self, x: &mut Tensor, to: &Tensor, share: &Tensor) -> bool {
        let (Some(to), Some(share)) = (self.packed(to), self.operand(share)) else { return false };
        self.update([x], |[x]| self.kernels().follow(to.view(), x, share.view()))
    }

    /// The sum of the squares of all elements of tensors; `None` where the device cannot.
    pub(crate) fn sum_of_squares(&self, tensors: &[&Tensor]) -> Option<Tensor> {
        let tensors: Vec<Operand> = tensors.iter().map(|x| self.packed(x)).collect::<Option<_>>()?;
        let views: Vec<View<'_>> = tensors.iter().map(Operand::view).collect();
        self.write(Meta::new([1], DType::F32), |y| self.kernels().sum_of_squares(&views, y))
    }

    /// By-products of `n` numbers, which kernels have written.
    pub(crate) fn aux(&self, memory: Memory, n: usize) -> Tensor {
        self.tensor(memory, Layout::contiguous([n].into(), 0), DType::F32)
    }

    /// As [`Self::aux`], numbers of places (i32).
    pub(crate) fn places(&self, memory: Memory, dims: Dims) -> Tensor {
        self.tensor(memory, Layout::contiguous(dims, 0), DType::I32)
    }

    /// A contiguous copy of a tensor that lives here.
    pub(crate) fn copied(&self, x: &Tensor) -> Option<Tensor> {
        let from = self.operand(x)?;
        self.write(x.meta(), |y| self.kernels().copy(from.view(), y))
    }

    /// A contiguous tensor that lives here, from f32 to a half type or from one to f32; `None` between others.
    pub(crate) fn cast(&self, x: &Tensor, dtype: DType) -> Option<Tensor> {
        if (x.dtype() == DType::F32) == (dtype == DType::F32) {
            return None;
        }
        let from = self.stored(x)?;
        self.write_stored(Meta { dtype, ..x.meta() }, |y| self.kernels().cast(from.view(), y))
    }
}

/// What kernels know a type as.
fn stored_as(dtype: DType) -> Option<Stored> {
    match dtype {
        DType::F32 => Some(Stored::F32),
        DType::BF16 => Some(Stored::Bf16),
        DType::F16 => Some(Stored::F16),
        _ => None,
    }
}

/// Has the bytes of tensors that live on a device here too, after one wait for all of them.
pub(crate) fn bring(tensors: &[&Tensor]) {
    let missing: Vec<&Mirrored> =
        tensors.iter().filter_map(|x| x.buffer().mirrored()).filter(|bytes| bytes.here.get().is_none()).collect();
    let Some(gpu) = missing.first().map(|bytes| &bytes.gpu) else { return };
    let all: Vec<Arc<Memory>> = missing.iter().map(|bytes| bytes.memory()).collect();
    let mut heaps: Vec<Heap> = missing.iter().map(|bytes| Heap::new(bytes.len)).collect();
    let parts = all.iter().zip(&mut heaps).map(|(memory, heap)| (&**memory, heap.get_mut::<u8>()));
    gpu.kernels().download(&mut parts.collect::<Vec<_>>()).unwrap_or_else(|error| raise(error));
    missing.iter().zip(heaps).for_each(|(bytes, heap)| drop(bytes.here.set(heap)));
}

/// Indices as the device has them; `None` where one is not below `n`.
pub(crate) fn indices(x: &Tensor, n: usize) -> Option<Vec<u32>> {
    let index = |&i: &i64| u32::try_from(i).ok().filter(|&i| (i as usize) < n);
    x.packed().as_slice::<i64>().iter().map(index).collect()
}

impl fmt::Debug for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.describe())
    }
}

/// A tensor's elements on the device.
pub(crate) struct Operand {
    memory: Arc<Memory>,
    layout: Layout,
    stored: Stored,
}

impl Operand {
    /// As kernels take it.
    pub fn view(&self) -> View<'_> {
        View {
            memory: &self.memory,
            offset: self.layout.offset(),
            dims: self.layout.dims(),
            strides: self.layout.strides(),
            stored: self.stored,
        }
    }

    /// The same elements seen otherwise.
    pub fn seen(&self, layout: Layout) -> Self {
        Self { memory: self.memory.clone(), layout, stored: self.stored }
    }

    /// Where the elements are.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }
}

/// Bytes that live on a device and may be here too: whichever is missing is made of the other when it is asked for.
pub(crate) struct Mirrored {
    gpu: Gpu,
    len: usize,
    there: OnceLock<Arc<Memory>>,
    here: OnceLock<Heap>,
}

impl Mirrored {
    fn new(gpu: &Gpu, memory: Memory) -> Self {
        Self::sharing(gpu, Arc::new(memory))
    }

    fn sharing(gpu: &Gpu, memory: Arc<Memory>) -> Self {
        Self { gpu: gpu.clone(), len: memory.len(), there: OnceLock::from(memory), here: OnceLock::new() }
    }

    pub fn device(&self) -> &Gpu {
        &self.gpu
    }

    /// The bytes on the device, for writing there; those here are made of them when they are next asked for.
    pub fn changing(&mut self) -> Arc<Memory> {
        let memory = self.memory();
        self.here.take();
        memory
    }

    pub fn len(&self) -> usize {
        self.len
    }

    fn heap(&self) -> &Heap {
        self.here.get_or_init(|| {
            let mut heap = Heap::new(self.len);
            if let Some(memory) = self.there.get() {
                memory.download(heap.get_mut::<u8>()).unwrap_or_else(|error| raise(error));
            }
            heap
        })
    }

    /// The bytes here, after everything that was asked for before.
    pub fn bytes(&self) -> &[u8] {
        self.heap().bytes()
    }

    /// The bytes here, for writing; those on the device are made of them when they are next asked for.
    pub fn get_mut<T: Element>(&mut self) -> &mut [T] {
        self.heap();
        self.there.take();
        self.here.get_mut().expect("made just now").get_mut()
    }

    /// The bytes on the device.
    pub fn memory(&self) -> Arc<Memory> {
        self.there.get_or_init(|| Arc::new(self.gpu.upload(self.bytes()))).clone()
    }
}
