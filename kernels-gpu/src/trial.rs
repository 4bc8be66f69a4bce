//! Cooperative matrices are not trusted for being there: drivers have had some that are wrong, and some that are slower than products
//! without. Before they are first used they are tried against those, and what came of it is kept on disk for this driver and shader.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Instant;

use crate::device::{Device, locked};
use crate::error::{Error, Result};
use crate::matrices::{Shape, shader};
use crate::memory::Memory;
use crate::ops::{Gemm, MATRICES, Way};
use crate::pipeline::{cache_file, hash, keep, whole};
use crate::select::Info;
use crate::view::{Stored, View};

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub trusted: bool,
    /// For people.
    pub why: String,
}

/// The verdicts of a device.
pub(crate) struct Verdicts {
    /// Told to trust them.
    pub forced: bool,
    known: HashMap<Stored, Verdict>,
}

impl Verdicts {
    pub fn new(forced: bool) -> Self {
        Self { forced, known: HashMap::new() }
    }
}

/// The verdict on disk, where it was passed on the same shader by the same driver.
fn kept(file: &std::path::Path, stored: Stored) -> Option<Verdict> {
    let text = String::from_utf8(whole(std::fs::read(file).ok()?)?).ok()?;
    let (module, rest) = text.split_once(' ')?;
    let (trusted, why) = rest.split_once(' ')?;
    let same = module == format!("{:x}", hash(shader(stored).code()));
    same.then(|| Verdict { trusted: trusted == "trusted", why: why.to_owned() })
}

fn file(info: &Info, stored: Stored) -> Option<PathBuf> {
    cache_file(info, &format!("matrices-{stored:?}").to_lowercase())
}

/// Sides of the products that are timed: doubled until one without matrices takes so long.
const SIDES: [usize; 2] = [256, 2048];
const LONG: f64 = 2e-3;

impl Device {
    /// How products with what is stored so are computed.
    pub(crate) fn way(&self, stored: Stored) -> Result<Way> {
        let Some(shape) = self.0.matrices.shape(stored) else { return Ok(Way::Words) };
        let all = Way::Matrices { shape, from: self.first_tile() };
        let mut verdicts = locked(&self.0.verdicts);
        if verdicts.forced {
            return Ok(all);
        }
        let verdict = match verdicts.known.get(&stored) {
            Some(verdict) => verdict.clone(),
            None => {
                let verdict = self.judge(stored, shape)?;
                verdicts.known.insert(stored, verdict.clone());
                verdict
            }
        };
        Ok(if verdict.trusted { all } else { Way::Words })
    }

    /// The largest tile of matrices that is used.
    fn first_tile(&self) -> usize {
        if self.limits().large_tiles { 0 } else { 2 }
    }

    /// What is known of this device's cooperative matrices, a line for each type that it has any of.
    ///
    /// # Errors
    /// As all kernels, where they are tried now.
    pub fn matrices(&self) -> Result<Vec<String>> {
        let mut lines = Vec::new();
        for stored in [Stored::F16, Stored::Bf16] {
            if self.0.matrices.shape(stored).is_none() {
                continue;
            }
            let used = if self.way(stored)? == Way::Words { "not used" } else { "used" };
            let verdicts = locked(&self.0.verdicts);
            let why = match verdicts.known.get(&stored) {
                Some(verdict) => &verdict.why[..],
                None if used == "used" => "untried, as told",
                None => "no room for a tile",
            };
            lines.push(format!("matrices of {stored:?}: {used}: {why}").to_lowercase());
        }
        Ok(lines)
    }

    fn judge(&self, stored: Stored, shape: Shape) -> Result<Verdict> {
        let file = file(&self.0.info, stored);
        if let Some(verdict) = file.as_deref().and_then(|file| kept(file, stored)) {
            return Ok(verdict);
        }
        let verdict = match self.tried(stored, shape) {
            Ok(verdict) => verdict,
            // What the driver does not compile, or the device has no room for, is not used this time.
            Err(error @ (Error::Call(..) | Error::Limit(_) | Error::OutOfMemory { .. })) => {
                return Ok(Verdict { trusted: false, why: error.to_string() });
            }
            Err(error) => return Err(error),
        };
        if let Some(file) = file {
            let trusted = if verdict.trusted { "trusted" } else { "refused" };
            let text = format!("{:x} {trusted} {}", hash(shader(stored).code()), verdict.why);
            // What cannot be kept is tried again.
            let _ = keep(&file, text.as_bytes());
        }
        Ok(verdict)
    }

    fn tried(&self, stored: Stored, shape: Shape) -> Result<Verdict> {
        let sizes = format!("{}x{}x{}", shape.m, shape.n, shape.k);
        for from in self.first_tile()..MATRICES.len() {
            // Beyond the edges of tiles of all sizes, by eights and one by one; where the depth is odd, rows do not begin with a word.
            for [m, k, n] in [[208, 88, 168], [203, 78, 150], [131, 75, 260]] {
                let trial = Trial::new(self, stored, [m, k, n])?;
                let ways = [Way::Words, Way::Matrices { shape, from }].map(|way| trial.product(way));
                let [words, matrices] = [ways[0].clone()?, ways[1].clone()?];
                let wrong = words.iter().zip(&matrices).filter(|(a, b)| a != b).count();
                if wrong > 0 {
                    let why = format!("{sizes}: {wrong} of {} elements of a product are wrong", words.len());
                    return Ok(Verdict { trusted: false, why });
                }
            }
        }
        let mut side = SIDES[0];
        loop {
            let trial = Trial::new(self, stored, [side; 3])?;
            let words = trial.seconds(Way::Words)?;
            if words < LONG && side < SIDES[1] {
                side *= 2;
                continue;
            }
            let times = words / trial.seconds(Way::Matrices { shape, from: self.first_tile() })?;
            let why = format!("{sizes}: exact, {times:.2} times as fast as products in f32 (of {side})");
            return Ok(Verdict { trusted: times > 1.0, why });
        }
    }
}

/// A product of whole numbers of 6 bits, which every type holds. Their sums are below 2^24, and most of them beyond the 2^11 to which f16
/// counts: in f32 they are exact in any order, in anything less they are not.
struct Trial<'a> {
    device: &'a Device,
    stored: Stored,
    sizes: [usize; 3],
    memory: [Memory; 3],
}

impl<'a> Trial<'a> {
    fn new(device: &'a Device, stored: Stored, sizes: [usize; 3]) -> Result<Self> {
        let [m, k, n] = sizes;
        // The larger half of them has one sign, so that sums grow.
        let number = |i: usize| (i.wrapping_mul(2_654_435_761) >> 7 & 63) as f32 - 15.0;
        let half = |i: usize| {
            let bits = number(i + 77).to_bits();
            // Whole numbers of 6 bits lose nothing where the fraction is cut.
            let f16 =
                if bits << 1 == 0 { 0 } else { bits >> 16 & 0x8000 | ((bits >> 13 & 0x3_ffff) - (112 << 10)) & 0x7fff };
            if stored == Stored::Bf16 { (bits >> 16) as u16 } else { f16 as u16 }
        };
        let a: Vec<u8> = (0..m * k).flat_map(|i| number(i).to_le_bytes()).collect();
        let b: Vec<u8> = (0..k * n).flat_map(|i| half(i).to_le_bytes()).collect();
        let memory = [device.upload(&a)?, device.upload(&b)?, device.memory(4 * m * n)?];
        Ok(Self { device, stored, sizes, memory })
    }

    fn run(&self, way: Way) -> Result<()> {
        let [m, k, n] = self.sizes;
        let dims = [[1, 1, m, k], [1, 1, k, n], [1, 1, m, n]];
        let [a, b, c] = &self.memory;
        let along = |n: usize| [0, 0, n as isize, 1];
        // A weight is [n, k].
        let (sa, sb, sc) = (along(k), [0, 0, 1, k as isize], along(n));
        let b = View { stored: self.stored, ..View::new(b, 0, &dims[1], &sb) };
        self.device.product(&Gemm::new(View::new(a, 0, &dims[0], &sa), b, View::new(c, 0, &dims[2], &sc)), way)
    }

    fn product(&self, way: Way) -> Result<Vec<u32>> {
        self.run(way)?;
        let mut bytes = vec![0; self.memory[2].len()];
        self.memory[2].download(&mut bytes)?;
        Ok(bytes.chunks_exact(4).map(|w| u32::from_le_bytes([w[0], w[1], w[2], w[3]])).collect())
    }

    /// Of one product: the median of three, after one that is not counted.
    fn seconds(&self, way: Way) -> Result<f64> {
        let once = || -> Result<f64> {
            self.device.wait()?;
            let start = Instant::now();
            self.run(way)?;
            self.device.wait()?;
            Ok(start.elapsed().as_secs_f64())
        };
        once()?;
        let mut times = [once()?, once()?, once()?];
        times.sort_by(f64::total_cmp);
        Ok(times[1])
    }
}
