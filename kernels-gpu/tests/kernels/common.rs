//! Devices, and memory that shows where a kernel reads or writes beside its view.

use std::sync::OnceLock;

use kernels_cpu::rng::Rng;
use kernels_gpu::{Choice, Device, Memory, Options, View, validation_messages};

/// Opens the device that `TIER_DEVICE` names, or the first, as it is and as weaker ones would be. None without Vulkan, said aloud; where
/// `TIER_GPU_REQUIRED` is set that is a failure.
pub fn devices() -> &'static [Device] {
    static DEVICES: OnceLock<Vec<Device>> = OnceLock::new();
    DEVICES.get_or_init(|| {
        let all: [fn(&mut Options); 3] = [|_| (), |o| o.staging = true, |o| o.threads = Some(128)];
        match all.into_iter().map(open).collect::<kernels_gpu::Result<Vec<_>>>() {
            Ok(devices) => devices,
            Err(error) => {
                eprintln!("SKIPPED: {error}");
                assert!(std::env::var_os("TIER_GPU_REQUIRED").is_none(), "a device is required: {error}");
                Vec::new()
            }
        }
    })
}

/// The device that `TIER_DEVICE` names, or the first, changed.
pub fn open(change: fn(&mut Options)) -> kernels_gpu::Result<Device> {
    let named = std::env::var("TIER_DEVICE").unwrap_or_default();
    let choice = named.strip_prefix("vulkan:").map_or(Choice::Index(0), Choice::of);
    let mut options = Options::of(choice)?;
    change(&mut options);
    Device::open(&options)
}

/// One of the devices, drawn.
pub fn device(rng: &mut Rng) -> &'static Device {
    &devices()[rng.below(devices().len())]
}

/// Runs `check` on drawn cases; and nothing may be said by the validation layer. Where that looks into shaders, which it makes several
/// times as long, a sixth of the cases.
pub fn check(cases: u64, check: impl Fn(&mut Rng)) {
    if devices().is_empty() {
        return;
    }
    let shaders = std::env::var("TIER_VULKAN_VALIDATION").is_ok_and(|checks| checks == "shaders");
    for seed in 0..if shaders { cases.div_ceil(6) } else { cases } {
        check(&mut Rng::new(seed, 0x0067_7075));
    }
    assert_eq!(validation_messages(), 0, "the validation layer has something to say");
}

/// A size: 0, 1, small, prime, a multiple of four, or around a multiple of a tile.
pub fn size(rng: &mut Rng) -> usize {
    match rng.below(8) {
        0 => rng.below(2),
        1 => [31, 32, 33, 61, 63, 64, 65, 127][rng.below(8)],
        2 | 3 => 4 * (1 + rng.below(5)),
        _ => 1 + rng.below(12),
    }
}

/// An offset: kernels take fours of elements at once where they lie at multiples of four.
fn offset(rng: &mut Rng) -> usize {
    4 * rng.below(50) + if rng.chance(0.3) { 1 + rng.below(3) } else { 0 }
}

/// Rows and their length: now and then long ones, that fill a workgroup's registers nearly, precisely, or do not fit.
pub fn rows(rng: &mut Rng) -> [usize; 2] {
    if rng.chance(0.12) {
        let n = [260, 2047, 2048, 8192, 12_000, 12_001][rng.below(6)];
        return [1 + rng.below(3), n];
    }
    [size(rng), size(rng).max(1)]
}

/// Elements in memory in any layout: sizes permuted, gaps, flips, an offset. Between them is NaN.
pub struct Drawn {
    pub memory: Memory,
    pub dims: Vec<usize>,
    pub strides: Vec<isize>,
    pub offset: usize,
    /// In row-major order.
    pub values: Vec<f32>,
    words: Vec<u32>,
}

/// What lies beside the elements.
const SENTINEL: u32 = 0x7fc1_2345;

/// Places of all elements in row-major order.
fn places(dims: &[usize], strides: &[isize], offset: usize) -> Vec<usize> {
    let mut out = vec![offset as isize];
    for (&d, &s) in dims.iter().zip(strides) {
        out = out.iter().flat_map(|&base| (0..d as isize).map(move |i| base + i * s)).collect();
    }
    if dims.contains(&0) { Vec::new() } else { out.into_iter().map(|at| at as usize).collect() }
}

impl Drawn {
    /// With `stretched`, some dimensions stay on one element.
    pub fn strided(
        device: &Device,
        rng: &mut Rng,
        dims: &[usize],
        stretched: bool,
        value: impl FnMut(&mut Rng) -> f32,
    ) -> Self {
        let mut order: Vec<usize> = (0..dims.len()).collect();
        if rng.chance(0.5) {
            rng.shuffle(&mut order);
        }
        let (mut strides, mut offset, mut step) = (vec![0isize; dims.len()], offset(rng), 1 + rng.below(2));
        for &k in order.iter().rev() {
            if stretched && rng.chance(0.3) {
                continue;
            }
            let reach = step * (dims[k].max(1) - 1);
            strides[k] = step as isize;
            if rng.chance(0.2) {
                strides[k] = -strides[k];
                offset += reach;
            }
            step = reach + step + [0, 1, 4][rng.below(3)];
        }
        Self::of(device, rng, dims, strides, offset, value)
    }

    /// Row-major without gaps, from an offset on.
    pub fn contiguous(device: &Device, rng: &mut Rng, dims: &[usize], value: impl FnMut(&mut Rng) -> f32) -> Self {
        let mut strides = vec![0; dims.len()];
        let mut step = 1;
        for k in (0..dims.len()).rev() {
            strides[k] = step as isize;
            step *= dims[k];
        }
        let offset = offset(rng);
        Self::of(device, rng, dims, strides, offset, value)
    }

    fn of(
        device: &Device,
        rng: &mut Rng,
        dims: &[usize],
        strides: Vec<isize>,
        offset: usize,
        mut value: impl FnMut(&mut Rng) -> f32,
    ) -> Self {
        let places = places(dims, &strides, offset);
        let len = places.iter().max().map_or(offset, |m| m + 1) + rng.below(70);
        let mut words = vec![SENTINEL; len];
        for &at in &places {
            words[at] = value(rng).to_bits();
        }
        let values = places.iter().map(|&at| f32::from_bits(words[at])).collect();
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        Self { memory: device.upload(&bytes).unwrap(), dims: dims.to_vec(), strides, offset, values, words }
    }

    pub fn view(&self) -> View<'_> {
        View::new(&self.memory, self.offset, &self.dims, &self.strides)
    }

    /// All words, as they were made.
    pub fn words(&self) -> &[u32] {
        &self.words
    }

    /// The elements as they are now, after a look at everything beside them.
    pub fn read(&self) -> Vec<f32> {
        let now = words(&self.memory);
        let places = places(&self.dims, &self.strides, self.offset);
        let inside: std::collections::HashSet<usize> = places.iter().copied().collect();
        for (at, (now, before)) in now.iter().zip(&self.words).enumerate() {
            assert!(
                inside.contains(&at) || now == before,
                "word {at}, beside {:?} from {}, is written",
                self.dims,
                self.offset
            );
        }
        places.iter().map(|&at| f32::from_bits(now[at])).collect()
    }
}

/// Words of memory.
pub fn words(memory: &Memory) -> Vec<u32> {
    let mut bytes = vec![0; memory.len()];
    memory.download(&mut bytes).unwrap();
    bytes.chunks_exact(4).map(|w| u32::from_le_bytes([w[0], w[1], w[2], w[3]])).collect()
}

/// |a - b| within `tolerance` of the larger of 1 and the largest |b|; NaN and infinities where they belong.
#[track_caller]
pub fn close(what: &str, ours: &[f32], exact: &[f64], tolerance: f64) {
    assert_eq!(ours.len(), exact.len(), "{what}: lengths");
    let scale = exact.iter().filter(|x| x.is_finite()).fold(1.0f64, |m, x| m.max(x.abs()));
    for (i, (&a, &b)) in ours.iter().zip(exact).enumerate() {
        let a = f64::from(a);
        let fits = a == b || a.is_nan() && b.is_nan() || (a - b).abs() <= tolerance * scale;
        assert!(fits, "{what}: element {i} of {} is {a:e}, should be {b:e}", ours.len());
    }
}

/// f64 of each.
pub fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| f64::from(x)).collect()
}

/// A normal number.
pub fn normal(rng: &mut Rng) -> f32 {
    rng.normal() as f32
}
