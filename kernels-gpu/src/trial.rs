//! Cooperative matrices are not trusted for being there: drivers have had some that are wrong, and some that are slower than products
//! without. Before they are first used they are tried against those, and what came of it is kept on disk for this driver and shader.

mod attention;

use std::collections::HashMap;
use std::ops::Range;
use std::time::Instant;

use kernels_cpu::conv::{Conv2d, Window};
use kernels_cpu::hash::fnv;

use crate::cache::Cache;
use crate::device::{Device, locked};
use crate::error::{Error, Result};
use crate::matrices::{self, By, Shape};
use crate::memory::Memory;
use crate::ops::{BLOCKS, CONV_MATRICES, Gemm, MATRICES, Of, Way};
use crate::shaders::Shader;
use crate::view::{Stored, View};

use attention::{Attended, Gradients};

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
    known: HashMap<Use, Verdict>,
}

/// What is tried: the matrices of a shader, in one of the things that it computes.
type Use = (Shader, &'static str);

fn products(stored: Stored) -> Use {
    (matrices::shader(stored), "products")
}

fn convolutions(of: Of, stored: Stored) -> Use {
    (
        matrices::conv_shader(stored),
        ["convolutions", "gradients of their maps", "gradients of their weights"][of as usize],
    )
}

fn attention(stored: Stored) -> Use {
    (matrices::attention_shader(stored), "attention")
}

fn attention_backward(stored: Stored) -> Use {
    (matrices::attention_backward_shader(stored), "gradients of attention")
}

impl Verdicts {
    pub fn new(forced: bool) -> Self {
        Self { forced, known: HashMap::new() }
    }
}

/// The verdict that is kept, where it was passed on the same shader by the same driver.
fn kept(cache: &Cache, name: &str, shader: Shader) -> Option<Verdict> {
    let text = String::from_utf8(cache.read(name)?).ok()?;
    let (module, rest) = text.split_once(' ')?;
    let (trusted, why) = rest.split_once(' ')?;
    let same = module == format!("{:x}", fnv(shader.code()));
    same.then(|| Verdict { trusted: trusted == "trusted", why: why.to_owned() })
}

/// Its name in the cache.
fn name((shader, what): Use) -> String {
    format!("matrices-{}-{}", shader.name(), what.replace(' ', "-"))
}

/// What is timed: sides of products, numbers of maps of convolutions, queries and keys of attention; doubled until one without matrices takes so long.
const SIDES: [usize; 2] = [256, 2048];
const MAPS: [usize; 2] = [1, 64];
const TOKENS: [usize; 2] = [128, 1024];
const LONG: f64 = 2e-3;
/// Items, queries, keys and widths of heads that are compared: beyond the edges of blocks, which are small but for the last.
const ATTENDED: [[usize; 4]; 3] = [[3, 77, 131, 64], [2, 130, 50, 23], [300, 70, 70, 64]];

/// Something that is computed of numbers that lie on the device, without matrices or by them.
trait Trial {
    fn run(&self, by: Option<By>) -> Result<()>;

    /// The words of what the last run made.
    fn result(&self) -> Result<Vec<u32>>;

    /// How many words of what matrices `made` are wrong.
    fn wrong(&self, words: &[u32], made: &[u32]) -> usize {
        words.iter().zip(made).filter(|(a, b)| a != b).count()
    }
}

impl Device {
    /// How products with what is stored so are computed.
    pub(crate) fn way(&self, stored: Stored) -> Result<Way> {
        // Beyond the edges of tiles of all sizes, by eights and one by one; where the depth is odd, rows do not begin with a word.
        let small = [[208, 88, 168], [203, 78, 150], [131, 75, 260]];
        let tiles = self.first_tile()..MATRICES.len();
        let trial = |sizes| Product::new(self, stored, sizes);
        let by = self.by(products(stored), stored, tiles, (small, SIDES), trial, |side| [side; 3])?;
        Ok(by.map_or(Way::Words, |(shape, from)| Way::Matrices { shape, from }))
    }

    /// The largest tile of matrices that is used.
    fn first_tile(&self) -> usize {
        if self.limits().large_tiles { 0 } else { 2 }
    }

    /// And convolutions, or gradients of them, with what is stored so.
    pub(crate) fn conv_way(&self, of: Of, stored: Stored) -> Result<Option<By>> {
        // Beyond the edges of tiles of all sizes, by eights and one by one.
        let small = [[2, 11, 40, 150], [2, 11, 13, 75]];
        let tiles = self.first_tile()..CONV_MATRICES.len();
        let trial = |sizes| Convolution::new(self, of, stored, sizes);
        self.by(convolutions(of, stored), stored, tiles, (small, MAPS), trial, |n| [n, 28, 128, 128])
    }

    /// And attention over what is stored so.
    pub(crate) fn attention_way(&self, stored: Stored) -> Result<Option<By>> {
        let trial = |sizes| Attended::new(self, stored, sizes);
        self.by(attention(stored), stored, 0..BLOCKS, (ATTENDED, TOKENS), trial, |n| [16, n, n, 64])
    }

    /// And its gradients.
    pub(crate) fn attention_backward_way(&self, stored: Stored) -> Result<Option<By>> {
        let trial = |sizes| Gradients::new(self, stored, sizes);
        self.by(attention_backward(stored), stored, 0..BLOCKS, (ATTENDED, TOKENS), trial, |n| [16, n, n, 64])
    }

    /// The matrices of what is stored so, in these tiles, where they are used: tried by what `trial` makes of sizes that are `small`, and of those that
    /// `timed` makes of a number between two.
    fn by<T: Trial, S, const N: usize>(
        &self,
        of: Use,
        stored: Stored,
        tiles: Range<usize>,
        (small, numbers): ([S; N], [usize; 2]),
        trial: impl Fn(S) -> Result<T>,
        timed: impl Fn(usize) -> S,
    ) -> Result<Option<By>> {
        let Some(shape) = self.0.matrices.shape(stored) else { return Ok(None) };
        let from = tiles.start;
        let trusted =
            self.trusted(of, || self.tried((of.1, shape, tiles), small.map(&trial), numbers, |n| trial(timed(n))))?;
        Ok(trusted.then_some((shape, from)))
    }

    /// Whether a shader's matrices are used, which `try_it` finds out where it is not known.
    fn trusted(&self, of: Use, try_it: impl FnOnce() -> Result<Verdict>) -> Result<bool> {
        let mut verdicts = locked(&self.0.verdicts);
        if verdicts.forced {
            return Ok(true);
        }
        if let Some(verdict) = verdicts.known.get(&of) {
            return Ok(verdict.trusted);
        }
        let verdict = self.judge(of, try_it)?;
        let trusted = verdict.trusted;
        verdicts.known.insert(of, verdict);
        Ok(trusted)
    }

    /// What is known of this device's cooperative matrices: for each type that it has any of, a line for everything that they are used in.
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
            self.attention_way(stored)?;
            self.attention_backward_way(stored)?;
            let verdicts = locked(&self.0.verdicts);
            let convolutions = [Of::Y, Of::Input, Of::Weight].map(|of| convolutions(of, stored));
            for of in [products(stored)]
                .into_iter()
                .chain(convolutions)
                .chain([attention(stored), attention_backward(stored)])
            {
                let verdict = verdicts.known.get(&of);
                let said = verdict.map(|v| (if v.trusted { "used" } else { "not used" }, &v.why[..]));
                let (used, why) = said.unwrap_or(("used", "untried, as told"));
                lines.push(format!("matrices of {stored:?} in {}: {used}: {why}", of.1).to_lowercase());
            }
        }
        Ok(lines)
    }

    fn judge(&self, of: Use, try_it: impl FnOnce() -> Result<Verdict>) -> Result<Verdict> {
        let (name, (shader, _)) = (name(of), of);
        if let Some(verdict) = kept(&self.0.cache, &name, shader) {
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
        let trusted = if verdict.trusted { "trusted" } else { "refused" };
        let text = format!("{:x} {trusted} {}", fnv(shader.code()), verdict.why);
        self.0.cache.write(&name, text.as_bytes());
        Ok(verdict)
    }

    /// Compares what each of `small` makes by matrices, in tiles from each number on, with what it makes without; then times what `timed` makes of a
    /// number, which doubles.
    fn tried<T: Trial, const N: usize>(
        &self,
        (what, shape, tiles): (&str, Shape, Range<usize>),
        small: [Result<T>; N],
        [mut n, most]: [usize; 2],
        timed: impl Fn(usize) -> Result<T>,
    ) -> Result<Verdict> {
        let sizes = format!("{}x{}x{}", shape.m, shape.n, shape.k);
        for trial in small {
            let trial = trial?;
            trial.run(None)?;
            let words = trial.result()?;
            for from in tiles.clone() {
                trial.run(Some((shape, from)))?;
                let wrong = trial.wrong(&words, &trial.result()?);
                if wrong > 0 {
                    let why = format!("{sizes}: {wrong} of {} elements of {what} are wrong", words.len());
                    return Ok(Verdict { trusted: false, why });
                }
            }
        }
        loop {
            let trial = timed(n)?;
            let words = self.seconds(|| trial.run(None))?;
            if words < LONG && n < most {
                n *= 2;
                continue;
            }
            let times = words / self.seconds(|| trial.run(Some((shape, tiles.start))))?;
            let why = format!("{sizes}: right, {times:.2} times as fast as {what} in f32 (of {n})");
            return Ok(Verdict { trusted: times > 1.0, why });
        }
    }

    /// Of one run: the median of three, after one that is not counted.
    fn seconds(&self, run: impl Fn() -> Result<()>) -> Result<f64> {
        let once = || -> Result<f64> {
            self.wait()?;
            let start = Instant::now();
            run()?;
            self.wait()?;
            Ok(start.elapsed().as_secs_f64())
        };
        once()?;
        let mut times = [once()?, once()?, once()?];
        times.sort_by(f64::total_cmp);
        Ok(times[1])
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
    let half = |i: usize| narrowed(stored, number(i + 77)).to_le_bytes();
    device.upload(&(0..n).flat_map(half).collect::<Vec<u8>>())
}

/// A whole number of up to 6 bits in half: it loses nothing where its fraction is cut.
fn narrowed(stored: Stored, whole: f32) -> u16 {
    let bits = whole.to_bits();
    let f16 = if bits << 1 == 0 { 0 } else { bits >> 16 & 0x8000 | ((bits >> 13 & 0x3_ffff) - (112 << 10)) & 0x7fff };
    if stored == Stored::Bf16 { (bits >> 16) as u16 } else { f16 as u16 }
}

/// All words of memory.
fn downloaded(memory: &Memory) -> Result<Vec<u32>> {
    let mut bytes = vec![0; memory.len()];
    memory.download(&mut bytes)?;
    Ok(bytes.chunks_exact(4).map(|w| u32::from_le_bytes([w[0], w[1], w[2], w[3]])).collect())
}

/// A product of such numbers.
struct Product<'a> {
    device: &'a Device,
    stored: Stored,
    sizes: [usize; 3],
    memory: [Memory; 3],
}

impl<'a> Product<'a> {
    fn new(device: &'a Device, stored: Stored, sizes: [usize; 3]) -> Result<Self> {
        let [m, k, n] = sizes;
        let memory = [words(device, m * k)?, halves(device, stored, k * n)?, device.memory(4 * m * n)?];
        Ok(Self { device, stored, sizes, memory })
    }
}

impl Trial for Product<'_> {
    fn run(&self, by: Option<By>) -> Result<()> {
        let [m, k, n] = self.sizes;
        let dims = [[1, 1, m, k], [1, 1, k, n], [1, 1, m, n]];
        let [a, b, c] = &self.memory;
        let along = |n: usize| [0, 0, n as isize, 1];
        // A weight is [n, k].
        let (sa, sb, sc) = (along(k), [0, 0, 1, k as isize], along(n));
        let b = View { stored: self.stored, ..View::new(b, 0, &dims[1], &sb) };
        let way = by.map_or(Way::Words, |(shape, from)| Way::Matrices { shape, from });
        self.device.product(&Gemm::new(View::new(a, 0, &dims[0], &sa), b, View::new(c, 0, &dims[2], &sc)), way)
    }

    fn result(&self) -> Result<Vec<u32>> {
        downloaded(&self.memory[2])
    }
}

/// A convolution of such numbers, or a gradient, with windows of 3 x 3 that reach beyond the maps.
struct Convolution<'a> {
    device: &'a Device,
    of: Of,
    stored: Stored,
    conv: Conv2d,
    /// Elements of what is multiplied and of what is made, all contiguous.
    sizes: [usize; 3],
    memory: [Memory; 3],
}

impl<'a> Convolution<'a> {
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
}

impl Trial for Convolution<'_> {
    fn run(&self, by: Option<By>) -> Result<()> {
        let dims = self.sizes.map(|n| [n]);
        let [a, b, c] = [0, 1, 2].map(|i| View::new(&self.memory[i], 0, &dims[i], &[1]));
        let [a, b] = [a, b].map(|view| View { stored: self.stored, ..view });
        self.device.convolution(self.of, &self.conv, [a, b], None, c, by)
    }

    fn result(&self) -> Result<Vec<u32>> {
        downloaded(&self.memory[2])
    }
}
