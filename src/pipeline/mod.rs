//! A model with everything that it needs to be used: its network, tokenizer and preprocessing; a folder on disk.

mod beside;
mod convert;
mod held;
mod memory;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::buffer::FileBytes;
use crate::checkpoints::{Checkpoint, Precision};
use crate::device::Gpu;
use crate::error::{At, Error, Result};
use crate::files;
use crate::formats::safetensors;
use crate::image::{Preprocess, SixteenBit};
use crate::models::dual_encoder::Embeddings;
use crate::models::{DualEncoder, Planned};
pub use crate::models::{Network, NetworkConfig};
use crate::nn::Module;
use crate::tensor::Tensor;
use crate::text::{Tokenizer, Tokens};
pub use beside::preprocessing;
pub use convert::{Conversion, Target};
pub use held::Holding;
pub use memory::{Asked, Batches, Kept, Pictures, longest};

/// A network with its tokenizer and preprocessing.
pub struct Pipeline {
    /// The folder it came from.
    pub path: PathBuf,
    /// What computes.
    pub network: Network,
    /// For a dual encoder.
    pub tokenizer: Option<Tokenizer>,
    /// How pictures become pixels.
    pub preprocess: Preprocess,
    /// How 16-bit grey becomes 8 bits.
    pub sixteen_bit: SixteenBit,
    /// Where all this was found.
    pub origin: Origin,
    /// How its weights are held.
    pub holding: Holding,
}

/// Where the parts of a pipeline come from.
#[derive(Clone, Debug, Default)]
pub struct Origin {
    /// The layout of the checkpoint.
    pub layout: String,
    /// Who says how pictures are prepared.
    pub preprocessing: String,
    /// The tokenizer's file or folder.
    pub tokenizer: Option<PathBuf>,
    /// What was passed over or assumed, one line each.
    pub notes: Vec<String>,
    /// Everything that was passed over, name by name.
    pub details: Vec<String>,
    /// Why the tokenizer beside the weights is not used, where one is there.
    pub refused: Option<String>,
    /// What was not looked for.
    pub unused: Unused,
    /// The files whose bytes the network's tensors may be.
    pub files: Vec<Arc<FileBytes>>,
}

/// What will not come, so that nothing needs to say how it gets into the model.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unused {
    /// No picture will.
    pub pictures: bool,
    /// No text will.
    pub texts: bool,
}

/// What is given instead of what lies beside a checkpoint.
#[derive(Clone, Debug, Default)]
pub struct Given {
    /// A tokenizer's file or folder.
    pub tokenizer: Option<PathBuf>,
    /// Longest text in tokens.
    pub max_length: Option<usize>,
    /// How pictures become pixels.
    pub preprocess: Option<Preprocess>,
    /// What need not be looked for beside the checkpoint.
    pub unused: Unused,
    /// What matrices are multiplied in, where not in what the file has them in.
    pub precision: Option<Precision>,
}

/// What is said where a text comes and there is no tokenizer.
pub const NO_TOKENIZER: &str = "no tokenizer beside the model (tokenizer.json, vocab.json with merges.txt, vocab.txt or \
    bpe_simple_vocab_16e6.txt.gz): give --tokenizer PATH";

/// preprocessor_config.json: the pictures' way into the model.
#[derive(Serialize, Deserialize)]
struct Preprocessing {
    #[serde(flatten)]
    preprocess: Preprocess,
    #[serde(default)]
    sixteen_bit: SixteenBit,
}

fn to_json(value: &impl Serialize) -> Result<Vec<u8>> {
    let mut text = serde_json::to_vec_pretty(value).map_err(|e| Error::new(e.to_string()))?;
    text.push(b'\n');
    Ok(text)
}

/// The tokenizer of a checkpoint without its network: what lies beside it, or what is given, and its file or folder; `say` is told what is
/// doubtful about it.
///
/// # Errors
/// As [`Pipeline::load`]; also if there is none.
pub fn tokenizer(checkpoint: &Checkpoint, given: &Given, say: impl Fn(&str)) -> Result<(Tokenizer, PathBuf)> {
    let found = beside::tokenizer(checkpoint, given.tokenizer.as_deref(), given.max_length)?;
    match found.tokenizer {
        Some(tokenizer) => {
            found.note.iter().for_each(|note| say(note));
            Ok(tokenizer)
        }
        None => Err(Error::new(found.note.unwrap_or_else(|| NO_TOKENIZER.to_owned())).at(checkpoint.text_path())),
    }
}

impl Pipeline {
    /// Opens a model of any layout (see [`Checkpoint::open`]) with the tokenizer and preprocessing that lie beside it.
    /// With `map` weights are views of the mapped file.
    ///
    /// # Errors
    /// Naming the file that is missing or damaged, or the tensors that do not fit.
    pub fn open(path: &Path, map: bool) -> Result<Self> {
        Self::load(&Checkpoint::open(path, map)?, Given::default())
    }

    /// The model of a checkpoint, with what is given instead of what lies beside it.
    ///
    /// # Errors
    /// If tokenizer or preprocessing are damaged or do not fit the model. A tokenizer that is nowhere is none until a text comes.
    pub fn load(checkpoint: &Checkpoint, given: Given) -> Result<Self> {
        let network = checkpoint.network_in(given.precision)?;
        let unused = given.unused;
        let (preprocess, sixteen_bit, preprocessing) = match given.preprocess {
            Some(preprocess) => (preprocess, SixteenBit::default(), "as the flags say".to_owned()),
            None if unused.pictures => (beside::stand_in(checkpoint), SixteenBit::default(), String::new()),
            None => beside::preprocessing(checkpoint)?,
        };
        let found = match given.tokenizer {
            None if unused.texts => beside::Found::default(),
            given_tokenizer => beside::tokenizer(checkpoint, given_tokenizer.as_deref(), given.max_length)?,
        };
        let (tokenizer, path, refused) = match found.tokenizer {
            Some((tokenizer, path)) => (Some(tokenizer), Some(path), None),
            None => (None, None, found.note.clone()),
        };
        let origin = Origin {
            layout: checkpoint.layout_name(),
            preprocessing,
            tokenizer: path,
            notes: checkpoint.notes.iter().cloned().chain(found.note).collect(),
            details: checkpoint.details.clone(),
            refused,
            unused,
            files: checkpoint.files(),
        };
        let path = checkpoint.path.clone();
        Ok(Self { path, network, tokenizer, preprocess, sixteen_bit, origin, holding: Holding::default() })
    }

    /// Moves every parameter to a device, where the network then computes.
    ///
    /// # Errors
    /// If the device does not have so much memory; nothing is moved then.
    pub fn to_device(&mut self, gpu: &Gpu) -> Result<()> {
        let mut bytes = 0;
        self.network.visit_all("", &mut |_, p| bytes += p.meta().bytes());
        gpu.fits(bytes as u64, "this model", "One in fewer bits takes less (tier convert --dtype)").at(&self.path)?;
        self.network.visit_all("", &mut |_, p| *p = p.to_device(gpu));
        self.holding.on_device = true;
        Ok(())
    }

    /// What it is, in a few lines: layout, pictures, tokenizer, and what was passed over.
    pub fn describe(&self) -> Vec<String> {
        let config = NetworkConfig::of(&self.network);
        let mut lines = vec![format!("{}: {}; {}", self.path.display(), self.origin.layout, config.describe())];
        if config.vision().is_some() && !self.origin.unused.pictures {
            lines.push(format!("pictures: {}", self.pictures_line()));
        }
        if config.text().is_some() && !self.origin.unused.texts {
            lines.push(format!("texts: {}", self.tokenizer_line()));
        }
        if !self.origin.files.is_empty() {
            lines.push(format!("weights: {}", self.weights_line()));
        }
        lines.extend(self.origin.notes.iter().cloned());
        lines
    }

    /// One line on how the files of weights are held, and why so.
    pub fn weights_line(&self) -> String {
        let mut ways: Vec<String> = self.origin.files.iter().map(|file| file.describe()).collect();
        ways.dedup();
        ways.join(", ")
    }

    /// Whether mapped files of weights are still as they were opened: asked before every batch, since a page that is gone ends the
    /// process (see [`FileBytes`]).
    ///
    /// # Errors
    /// Naming the file that was cut or written to.
    pub fn intact(&self) -> Result<()> {
        self.origin.files.iter().chain(self.holding.files()).try_for_each(|file| file.intact())
    }

    /// For the metadata of what is made with it: layout, preprocessing, tokenizer, what was passed over, and this program's version.
    pub fn provenance(&self) -> BTreeMap<String, String> {
        let config = NetworkConfig::of(&self.network);
        let mut out = BTreeMap::from([
            ("layout".to_owned(), self.origin.layout.clone()),
            ("notes".to_owned(), self.origin.notes.join("\n")),
            ("version".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
        ]);
        if !self.origin.details.is_empty() {
            out.insert("passed_over".to_owned(), self.origin.details.join("\n"));
        }
        if config.vision().is_some() && !self.origin.unused.pictures {
            out.insert("preprocessing".to_owned(), self.pictures_line());
        }
        if config.text().is_some() && !self.origin.unused.texts {
            out.insert("tokenizer".to_owned(), self.tokenizer_line());
        }
        out
    }

    /// One line on how pictures become pixels, and who says so.
    pub fn pictures_line(&self) -> String {
        format!("{}, 16-bit grey by {} ({})", self.preprocess.describe(), self.sixteen_bit, self.origin.preprocessing)
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// If there is none.
    pub fn tokenizer(&self) -> Result<&Tokenizer> {
        let why = || self.origin.refused.clone().unwrap_or_else(|| NO_TOKENIZER.to_owned());
        self.tokenizer.as_ref().ok_or_else(|| Error::new(why()).at(&self.path))
    }

    /// One line on the tokenizer.
    pub fn tokenizer_line(&self) -> String {
        match (&self.tokenizer, &self.origin.tokenizer) {
            (Some(t), path) => {
                let from = path.as_ref().map(|p| format!(" ({})", p.display())).unwrap_or_default();
                format!("{} entries, at most {} tokens{from}", t.vocabulary(), t.max_length())
            }
            (None, _) => "no tokenizer".to_owned(),
        }
    }

    /// Writes the folder's files, each whole or not at all, the weights last. `replaced` are weights that stand in for the network's own.
    pub fn save(&mut self, folder: &Path, replaced: Option<&BTreeMap<String, Tensor>>) -> Result<()> {
        let tensors = tensors_with(&mut self.network, replaced);
        let metadata = BTreeMap::from([("format".to_owned(), format!("tiergrad {}", env!("CARGO_PKG_VERSION")))]);
        self.write(folder, &to_json(&NetworkConfig::of(&self.network))?, &tensors, &metadata)
    }

    /// Writes a folder of this config.json and these weights, with what the pipeline has of pictures and texts.
    fn write(
        &self,
        folder: &Path,
        config: &[u8],
        tensors: &[(String, Tensor)],
        metadata: &BTreeMap<String, String>,
    ) -> Result<()> {
        std::fs::create_dir_all(folder).at(folder)?;
        files::write_atomic(folder.join("config.json"), config)?;
        if NetworkConfig::of(&self.network).vision().is_some() {
            let preprocessing = Preprocessing { preprocess: self.preprocess.clone(), sixteen_bit: self.sixteen_bit };
            files::write_atomic(folder.join("preprocessor_config.json"), &to_json(&preprocessing)?)?;
        }
        if let Some(tokenizer) = &self.tokenizer {
            tokenizer.save(&folder.join("tokenizer.json"))?;
        }
        safetensors::save(folder.join("model.safetensors"), tensors.iter().map(|(n, t)| (n.clone(), t)), metadata)
    }

    /// The dual encoder and its tokenizer.
    ///
    /// # Errors
    /// If the model is none, or no tokenizer was found.
    pub fn dual(&self) -> Result<(&DualEncoder, &Tokenizer)> {
        match &self.network {
            Network::Dual(model) => Ok((model, self.tokenizer()?)),
            _ => Err(Error::new("not a model of images and texts: give one, or --image-model and --text-model")
                .at(&self.path)),
        }
    }

    /// Embeddings of texts, a batch at a time, with the tokens they were read as.
    pub fn embed_texts(&self, texts: &[&str]) -> Result<Vec<(Tokens, Embeddings)>> {
        self.of_texts(texts, |planned, tokens| planned.encode_text(&tokens.ids, &tokens.mask))
    }

    /// Embeddings of whole texts, row by row: n rows of the joint width.
    pub fn embed_whole_texts(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>> {
        let whole = |planned: &Planned<'_>, tokens: &Tokens| planned.whole_texts(&tokens.ids, &tokens.mask);
        Ok(self.of_texts(texts, whole)?.iter().flat_map(|(_, whole)| whole.iter().flat_map(rows)).collect())
    }

    /// What is computed of texts, a batch at a time, with the tokens they were read as.
    fn of_texts<T>(&self, texts: &[&str], compute: impl Fn(&Planned<'_>, &Tokens) -> T) -> Result<Vec<(Tokens, T)>> {
        let ((_, tokenizer), planned) = (self.dual()?, self.planned());
        texts
            .chunks(TEXTS_AT_ONCE)
            .map(|chunk| {
                let tokens = tokenizer.encode(chunk)?;
                self.intact()?;
                let computed = compute(&planned, &tokens);
                Ok((tokens, computed))
            })
            .collect()
    }
}

/// Texts in a batch.
pub const TEXTS_AT_ONCE: usize = 64;

/// The rows of an f32 tensor [n, ..].
pub fn rows(x: &Tensor) -> Vec<Vec<f32>> {
    let width: usize = x.dims()[1..].iter().product();
    x.to_vec::<f32>().chunks(width.max(1)).map(<[f32]>::to_vec).collect()
}

/// As [`tensors`], with those of `replaced` in the place of the module's own of that name.
pub fn tensors_with(module: &mut dyn Module, replaced: Option<&BTreeMap<String, Tensor>>) -> Vec<(String, Tensor)> {
    let mut out = tensors(module);
    for (name, tensor) in &mut out {
        if let Some(other) = replaced.and_then(|r| r.get(name)) {
            *tensor = other.clone();
        }
    }
    out
}

/// What a file of a module holds: names and tensors of its parameters and buffers, sharing their bytes.
pub fn tensors(module: &mut dyn Module) -> Vec<(String, Tensor)> {
    let mut out = Vec::new();
    module.visit_all("", &mut |name, t| out.push((name.to_owned(), t.detach())));
    out
}
