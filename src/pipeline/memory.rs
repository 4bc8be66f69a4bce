//! How much memory a model's answers take: counted before they are computed.

use std::collections::BTreeSet;
use std::path::Path;

use super::{Pipeline, TEXTS_AT_ONCE};
use crate::buffer::{Memory, counted};
use crate::data::loader;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::image::{self, Preprocess};
use crate::layout::Dims;
use crate::memory::Estimate;
use crate::models::Said;
use crate::nn::Module;
use crate::process;
use crate::tensor::Tensor;
use crate::text::{Tokenizer, Tokens};

/// What a model is asked.
#[derive(Default)]
pub struct Asked {
    /// Pixels.
    pub images: Option<Batches>,
    /// Token ids.
    pub texts: Option<Batches>,
    /// Different ids among those; of a table of embeddings no more rows than so many are read.
    pub ids: usize,
    /// What is kept of the answers until all are there.
    pub kept: Kept,
    /// Bytes of batches that are loaded ahead and of pictures that are decoded meanwhile.
    pub loading: [u64; 2],
    /// The largest of those pictures.
    pub largest: Option<String>,
    /// Bytes of anything else.
    pub aside: u64,
}

/// Inputs of one kind.
#[derive(Clone, Copy)]
pub struct Batches {
    /// The dims of a whole batch, rows first.
    pub dims: Dims,
    /// All rows.
    pub rows: usize,
}

/// What is kept of answers.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub enum Kept {
    /// Nothing once they are told.
    #[default]
    Nothing,
    /// Whole embeddings, and a number for each of the parts.
    Whole,
    /// All of them, one below the other, and as the bytes of a file.
    All,
}

impl Kept {
    fn bytes(self, said: &Said) -> usize {
        let (output, embeddings) = said;
        let bytes = |x: &Tensor| x.meta().bytes();
        match (self, embeddings) {
            (Self::Nothing, _) | (Self::Whole, None) => 0,
            // Beside those that are gathered, all joined and normalised.
            (Self::Whole, Some(e)) => 3 * bytes(&e.whole) + bytes(&e.parts) / e.parts.dim(-1).max(1),
            (Self::All, e) => {
                3 * (output.iter().chain(e.iter().flat_map(|e| [&e.whole, &e.parts])).map(bytes).sum::<usize>())
            }
        }
    }
}

impl Asked {
    /// Adds pictures of files, `at_once` in a batch, which so many workers load.
    pub fn files<P: AsRef<Path>>(
        mut self,
        preprocess: &Preprocess,
        files: impl ExactSizeIterator<Item = P>,
        at_once: usize,
        workers: usize,
    ) -> Self {
        let p = preprocess;
        let rows = files.len();
        if rows > 0 {
            let (n, workers) = (at_once.min(rows), workers.min(rows));
            self.images = Some(Batches { dims: Dims::new(&[n, p.channels, p.crop, p.crop]), rows });
            let batches = loader::held(rows.div_ceil(n), workers);
            let pictures = Pictures::look(files, p.resize);
            self.loading = [(4 * batches * n * p.numel()) as u64, workers.max(1) as u64 * pictures.decoding];
            self.largest = pictures.largest;
        }
        self
    }

    /// Adds pixels [n, c, h, w], `at_once` in a batch.
    pub fn pixels(mut self, dims: Dims, at_once: usize) -> Self {
        let rows = dims[0] + self.images.map_or(0, |files| files.rows);
        self.images = Some(Batches { dims: dims.with(0, at_once.min(rows)), rows });
        self
    }

    /// Adds token ids [n, T], `at_once` in a batch.
    pub fn tokens(mut self, ids: &Tensor, at_once: usize) -> Self {
        let rows = ids.dims()[0];
        self.ids = ids.to_vec::<i64>().into_iter().collect::<BTreeSet<_>>().len();
        self.texts = Some(Batches { dims: ids.dims().with(0, at_once.min(rows)), rows });
        self
    }

    /// Adds texts, [`TEXTS_AT_ONCE`] in a batch.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn texts(mut self, tokenizer: &Tokenizer, texts: &[&str]) -> Result<Self> {
        if texts.is_empty() {
            return Ok(self);
        }
        let tokens = longest(tokenizer, texts.iter().copied())?;
        let (rows, seen) = (texts.len(), tokens.ids.dims()[0]);
        self = self.tokens(&tokens.ids, TEXTS_AT_ONCE);
        // Those that were not looked at have other ids.
        self.ids *= rows.div_ceil(seen);
        self.texts = Some(Batches { dims: tokens.ids.dims().with(0, TEXTS_AT_ONCE.min(rows)), rows });
        Ok(self)
    }
}

impl Pipeline {
    /// What answers to this take, in bytes. Of a network on a device weights and tensors are there, and nothing is computed there for this.
    pub fn memory(&mut self, asked: &Asked) -> Estimate {
        let (there, mut kept) = (self.taken_from_device(), 0);
        let planned = self.planned();
        let ((), Memory { held, beside, .. }) = kernels_cpu::par::enter(|| {
            counted(|| {
                let mut ask = |batches: Option<Batches>, answer: &dyn Fn(Dims) -> Option<Said>| {
                    let Some(Batches { dims, rows }) = batches else { return };
                    // The second whole batch is computed otherwise than the first, and all after it are as the third.
                    for batch in 0..(rows / dims[0].max(1)).min(3) {
                        let bytes = answer(dims).map_or(0, |said| asked.kept.bytes(&said));
                        if batch == 0 {
                            kept += (bytes as f64 * rows as f64 / dims[0].max(1) as f64) as u64;
                        }
                    }
                };
                ask(asked.images, &|dims| planned.say_images(&Tensor::zeros(dims, DType::F32)));
                ask(asked.texts, &|dims| {
                    planned.say_texts(&Tensor::zeros(dims, DType::I64), &Tensor::full(dims, 1.0, DType::U8))
                });
            })
        });
        let [loader, pictures] = asked.loading;
        let process = process::resident().unwrap_or(64 << 20) + PROGRAM;
        drop(planned);
        // What a device multiplies is not packed.
        let (weights, tensors) = match self.put_back(there) {
            0 => (self.weights_read(asked), held + beside),
            weights => (weights, held),
        };
        let (tensors, aside, largest) = (tensors as u64, kept + asked.aside, asked.largest.clone());
        Estimate { process, weights, tensors, loader, pictures, aside, largest }
    }

    /// The parameters that live on a device, each `Some`, in the network's order. In their places are tensors whose bytes nobody made.
    fn taken_from_device(&mut self) -> Vec<Option<Tensor>> {
        let mut taken = Vec::new();
        self.network.visit_all("", &mut |_, p| {
            let stand_in = p.device().map(|_| counted(|| Tensor::zeros(*p.dims(), p.dtype())).0);
            taken.push(stand_in.map(|stand_in| std::mem::replace(p, stand_in)));
        });
        taken
    }

    /// Puts them back, and gives their bytes.
    fn put_back(&mut self, taken: Vec<Option<Tensor>>) -> u64 {
        let (mut taken, mut bytes) = (taken.into_iter(), 0);
        self.network.visit_all("", &mut |_, p| {
            if let Some(there) = taken.next().flatten() {
                bytes += there.meta().bytes();
                *p = there;
            }
        });
        bytes as u64
    }

    /// Bytes of mapped weights that come to memory.
    fn weights_read(&mut self, asked: &Asked) -> u64 {
        /// As much of a file comes to memory where one byte of it is wanted.
        const AROUND: usize = 64 << 10;
        let (mut bytes, packed) = (0, self.holding.packed.clone());
        self.network.visit_all("", &mut |name, weight| {
            let of = |start: &[&str]| start.iter().any(|start| name.starts_with(start));
            let unused = asked.images.is_none() && of(&["vision_model.", "visual_projection"])
                || asked.texts.is_none() && of(&["text_model.", "text_projection"]);
            let table = ["token_embedding.weight", "word_embeddings.weight"].iter().any(|end| name.ends_with(end));
            if weight.buffer().is_mapped() && !unused {
                let all = packed.instead_of(weight.buffer()).unwrap_or_else(|| weight.meta().bytes());
                bytes += if table { all.min(asked.ids * AROUND) } else { all };
            }
        });
        bytes as u64
    }
}

/// Of the program's own file and its threads, what comes to memory while a model computes.
const PROGRAM: u64 = 4 << 20;

/// The longest of some texts, as well as can be told from those with most letters.
///
/// # Errors
/// As [`Tokenizer::encode`].
pub fn longest<'t>(tokenizer: &Tokenizer, texts: impl Iterator<Item = &'t str>) -> Result<Tokens> {
    const LOOKED_AT: usize = 256;
    let mut texts: Vec<&str> = texts.map(str::trim).collect();
    texts.sort_by_key(|text| std::cmp::Reverse(text.len()));
    texts.dedup();
    texts.truncate(LOOKED_AT);
    tokenizer.encode(&texts)
}

/// What the headers of some pictures tell: of a few of the files.
#[derive(Default)]
pub struct Pictures {
    /// Bytes that decoding the largest takes.
    pub decoding: u64,
    /// The longer side of one whose shorter side is that of resized ones.
    pub long: usize,
    /// The largest, and its size.
    pub largest: Option<String>,
    /// Why the first of those that cannot be read cannot.
    pub unread: Option<Error>,
}

impl Pictures {
    /// Looks at files whose pictures' shorter side becomes `resize`. One that cannot be read takes nothing: it is told of when its batch
    /// comes.
    pub fn look<P: AsRef<Path>>(files: impl ExactSizeIterator<Item = P>, resize: usize) -> Self {
        const LOOKED_AT: usize = 16;
        /// The file, its 16-bit samples, the picture of up to three channels.
        const BYTES: u64 = 8;
        let mut found = Self { long: resize, ..Self::default() };
        let step = files.len().div_ceil(LOOKED_AT).max(1);
        // A pipe can be read once only.
        for file in files.step_by(step).filter(|file| file.as_ref().is_file()) {
            match image::size(file.as_ref()) {
                Ok((width, height)) => {
                    let decoding = BYTES * width as u64 * height as u64;
                    if decoding > found.decoding {
                        found.decoding = decoding;
                        found.largest = Some(format!("{}, {width} x {height} pixels", file.as_ref().display()));
                    }
                    found.long = found.long.max((resize * width.max(height)).div_ceil(width.min(height).max(1)));
                }
                Err(error) => {
                    found.unread.get_or_insert(error);
                }
            }
        }
        found
    }
}
