//! Cooperative matrices are not trusted for being there: drivers have had some that are wrong, and some that are slower than products
//! without. Before they are first used they are tried against those, and what came of it is kept on disk for this driver and shader.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Instant;

use kernels_cpu::conv::{Conv2d, Window};

use crate::device::{Device, locked};
use crate::error::{Error, Result};
use crate::matrices::{self, Shape};
use crate::memory::Memory;
use crate::ops::{CONV_MATRICES, ConvWay, Gemm, MATRICES, Of, Way};
use crate::pipeline::{cache_file, hash, keep, whole};
use crate::select::Info;
use crate::shaders::Shader;
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
    known: HashMap<(Shader, Of), Verdict>,
}

impl Verdicts {
    pub fn new(forced: bool) -> Self {
        Self { forced, known: HashMap::new() }
    }
}

/// The verdict on disk, where it was passed on the same shader by the same driver.
fn kept(file: &std::path::Path, shader: Shader) -> Option<Verdict> {
    let text = String::from_utf8(whole(std::fs::read(file).ok()?)?).ok()?;
    let (module, rest) = text.split_once(' ')?;
    let (trusted, why) = rest.split_once(' ')?;
    let same = module == format!("{:x}", hash(shader.code()));
    same.then(|| Verdict { trusted: trusted == "trusted", why: why.to_owned() })
}

fn file(info: &Info, (shader, of): (Shader, Of)) -> Option<PathBuf> {
    let gradient = ["", "-input", "-weight"][of as usize];
    cache_file(info, &format!("matrices-{}{gradient}", shader.name()))
}

/// Sides of the products, and numbers of maps of the convolutions, that are timed: doubled until one without matrices takes so long.
const SIDES: [usize; 2] = [256, 2048];
const MAPS: [usize; 2] = [1, 64];
const LONG: f64 = 2e-3;

impl Device {
    /// How products with what is stored so are computed.
    pub(crate) fn way(&self, stored: Stored) -> Result<Way> {
        let Some(shape) = self.0.matrices.shape(stored) else { return Ok(Way::Words) };
        let trusted = self.trusted((matrices::shader(stored), Of::Y), || self.tried(stored, shape))?;
        Ok(if trusted { Way::Matrices { shape, from: self.first_tile() } } else { Way::Words })
    }

    /// The largest tile of matrices that is used.
    fn first_tile(&self) -> usize {
        if self.limits().large_tiles { 0 } else { 2 }
    }

    /// And convolutions, or gradients of them, with what is stored so.
    pub(crate) fn conv_way(&self, of: Of, stored: Stored) -> Result<ConvWay> {
        let Some(shape) = self.0.matrices.shape(stored) else { return Ok(None) };
        let trusted = self.trusted((matrices::conv_shader(stored), of), || self.conv_tried(of, stored, shape))?;
        Ok(trusted.then(|| (shape, self.first_tile())))
    }

    /// Whether a shader's matrices are used for this, which `try_it` finds out where it is not known.
    fn trusted(&self, what: (Shader, Of), try_it: impl FnOnce() -> Result<Verdict>) -> Result<bool> {
        let mut verdicts = locked(&self.0.verdicts);
        if verdicts.forced {
            return Ok(true);
        }
        if let Some(verdict) = verdicts.known.get(&what) {
            return Ok(verdict.trusted);
        }
        let verdict = self.judge(what, try_it)?;
        let trusted = verdict.trusted;
        verdicts.known.insert(what, verdict);
        Ok(trusted)
    }

    /// What is known of this device's cooperative matrices, a line for each type that it has any of, and one for its convolutions and either gradient.
    ///
    /// # Errors
    /// As all kernels, where they are tried now.
    pub fn matrices(&self) -> Result<Vec<String>> {
        let mut lines = Vec::new();
        for stored in [Stored::F16, Stored::Bf16] {
            if self.0.matrices.shape(stored).is_none() {
                continue;
            }
            self.way(stored)?;
            for of in [Of::Y, Of::Input, Of::Weight] {
                self.conv_way(of, stored)?;
            }
            let (verdicts, conv) = (locked(&self.0.verdicts), matrices::conv_shader(stored));
            for (place, what) in [
                ("", (matrices::shader(stored), Of::Y)),
                (" in convolutions", (conv, Of::Y)),
                (" in their inputs' gradients", (conv, Of::Input)),
                (" in their weights' gradients", (conv, Of::Weight)),
            ] {
                let verdict = verdicts.known.get(&what);
                let said = verdict.map(|v| (if v.trusted { "used" } else { "not used" }, &v.why[..]));
                let (used, why) = said.unwrap_or(("used", "untried, as told"));
                lines.push(format!("matrices of {stored:?}{place}: {used}: {why}").to_lowercase());
            }
        }
        Ok(lines)
    }

    fn judge(&self, what: (Shader, Of), try_it: impl FnOnce() -> Result<Verdict>) -> Result<Verdict> {
        let (file, (shader, _)) = (file(&self.0.info, what), what);
        if let Some(verdict) = file.as_deref().and_then(|file| kept(file, shader)) {
            return Ok(verdict);
        }
        // What does not compile takes what is submitted with it along.
        self.wait()?;
        let verdict = match try_it() {
            Ok(verdict) => verdict,
            // What the driver does not compile, or the device has no room for, is not used this time.
            Err(error @ (Error::Call(..) | Error::Limit(_) | Error::OutOfMemory { .. })) => {
                return Ok(Verdict { trusted: false, why: error.to_string() });
            }
            Err(error) => return Err(error),
        };
        if let Some(file) = file {
            let trusted = if verdict.trusted { "trusted" } else { "refused" };
            let text = format!("{:x} {trusted} {}", hash(shader.code()), verdict.why);
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

    fn conv_tried(&self, of: Of, stored: Stored, shape: Shape) -> Result<Verdict> {
        let sizes = format!("{}x{}x{}", shape.m, shape.n, shape.k);
        for from in self.first_tile()..CONV_MATRICES.len() {
            // Beyond the edges of tiles of all sizes, by eights and one by one.
            for [input, output] in [[40, 150], [13, 75]] {
                let trial = ConvTrial::new(self, of, stored, [2, 11, input, output])?;
                let [words, matrices] = [trial.result(None)?, trial.result(Some((shape, from)))?];
                let wrong = words.iter().zip(&matrices).filter(|(a, b)| a != b).count();
                if wrong > 0 {
                    let why = format!("{sizes}: {wrong} of {} elements of a convolution are wrong", words.len());
                    return Ok(Verdict { trusted: false, why });
                }
            }
        }
        let mut n = MAPS[0];
        loop {
            let trial = ConvTrial::new(self, of, stored, [n, 28, 128, 128])?;
            let words = trial.seconds(None)?;
            if words < LONG && n < MAPS[1] {
                n *= 2;
                continue;
            }
            let times = words / trial.seconds(Some((shape, self.first_tile())))?;
            let why = format!("{sizes}: exact, {times:.2} times as fast as convolutions in f32 (of {n} maps)");
            return Ok(Verdict { trusted: times > 1.0, why });
        }
    }
}

/// Whole numbers of 6 bits, which every type holds. Their sums are below 2^24, and most of them beyond the 2^11 to which f16 counts: in f32
/// they are exact in any order, in anything less they are not. The larger half of them has one sign, so that sums grow.
fn number(i: usize) -> f32 {
    (i.wrapping_mul(2_654_435_761) >> 7 & 63) as f32 - 15.0
}

/// As many of them in f32.
fn words(device: &Device, n: usize) -> Result<Memory> {
    device.upload(&(0..n).flat_map(|i| number(i).to_le_bytes()).collect::<Vec<u8>>())
}

/// And others in half.
fn halves(device: &Device, stored: Stored, n: usize) -> Result<Memory> {
    let half = |i: usize| {
        let bits = number(i + 77).to_bits();
        // Whole numbers of 6 bits lose nothing where the fraction is cut.
        let f16 =
            if bits << 1 == 0 { 0 } else { bits >> 16 & 0x8000 | ((bits >> 13 & 0x3_ffff) - (112 << 10)) & 0x7fff };
        if stored == Stored::Bf16 { (bits >> 16) as u16 } else { f16 as u16 }
    };
    device.upload(&(0..n).flat_map(|i| half(i).to_le_bytes()).collect::<Vec<u8>>())
}

/// All words of memory.
fn downloaded(memory: &Memory) -> Result<Vec<u32>> {
    let mut bytes = vec![0; memory.len()];
    memory.download(&mut bytes)?;
    Ok(bytes.chunks_exact(4).map(|w| u32::from_le_bytes([w[0], w[1], w[2], w[3]])).collect())
}

/// Of one run: the median of three, after one that is not counted.
fn seconds(device: &Device, run: impl Fn() -> Result<()>) -> Result<f64> {
    let once = || -> Result<f64> {
        device.wait()?;
        let start = Instant::now();
        run()?;
        device.wait()?;
        Ok(start.elapsed().as_secs_f64())
    };
    once()?;
    let mut times = [once()?, once()?, once()?];
    times.sort_by(f64::total_cmp);
    Ok(times[1])
}

/// A product of such numbers.
struct Trial<'a> {
    device: &'a Device,
    stored: Stored,
    sizes: [usize; 3],
    memory: [Memory; 3],
}

impl<'a> Trial<'a> {
    fn new(device: &'a Device, stored: Stored, sizes: [usize; 3]) -> Result<Self> {
        let [m, k, n] = sizes;
        let memory = [words(device, m * k)?, halves(device, stored, k * n)?, device.memory(4 * m * n)?];
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
        downloaded(&self.memory[2])
    }

    fn seconds(&self, way: Way) -> Result<f64> {
        seconds(self.device, || self.run(way))
    }
}

/// A convolution of such numbers, or a gradient, with windows of 3 x 3 that reach beyond the maps.
struct ConvTrial<'a> {
    device: &'a Device,
    of: Of,
    stored: Stored,
    conv: Conv2d,
    /// Elements of what is multiplied and of what is made, all contiguous.
    sizes: [usize; 3],
    memory: [Memory; 3],
}

impl<'a> ConvTrial<'a> {
    fn new(device: &'a Device, of: Of, stored: Stored, [n, side, input, output]: [usize; 4]) -> Result<Self> {
        let conv = Conv2d { n, size: [side; 2], input, output, groups: 1, window: Window::square(3, 1, 1) };
        let (x, weight, y) = (n * side * side * input, output * 9 * input, n * side * side * output);
        let sizes = match of {
            Of::Y => [x, weight, y],
            Of::Input => [y, weight, x],
            Of::Weight => [y, x, weight],
        };
        let [a, b, c] = sizes;
        let memory = [halves(device, stored, a)?, halves(device, stored, b)?, device.memory(4 * c)?];
        Ok(Self { device, of, stored, conv, sizes, memory })
    }

    fn run(&self, way: ConvWay) -> Result<()> {
        let dims = self.sizes.map(|n| [n]);
        let [a, b, c] = [0, 1, 2].map(|i| View::new(&self.memory[i], 0, &dims[i], &[1]));
        let [a, b] = [a, b].map(|view| View { stored: self.stored, ..view });
        self.device.convolution(self.of, &self.conv, [a, b], None, c, way)
    }

    fn result(&self, way: ConvWay) -> Result<Vec<u32>> {
        self.run(way)?;
        downloaded(&self.memory[2])
    }

    fn seconds(&self, way: ConvWay) -> Result<f64> {
        seconds(self.device, || self.run(way))
    }
}
