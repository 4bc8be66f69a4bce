//! A model with everything that it needs to be used: its network, tokenizer and preprocessing; a folder on disk.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{At, Error, Result};
use crate::files;
use crate::formats::{Weights, safetensors};
use crate::image::{Preprocess, SixteenBit};
use crate::models::dual_encoder::Embeddings;
use crate::models::{Classifier, ClassifierConfig, DualEncoder, DualEncoderConfig};
use crate::nn::Module;
use crate::tensor::Tensor;
use crate::text::{Tokenizer, Tokens};

/// What computes.
#[expect(clippy::large_enum_variant, reason = "there is one in a pipeline")]
pub enum Network {
    /// Images and texts in one space.
    Dual(DualEncoder),
    /// Labels from images.
    Classifier(Classifier),
}

impl Module for Network {
    fn visit(&mut self, at: &str, f: &mut dyn FnMut(&str, &mut Tensor)) {
        match self {
            Self::Dual(model) => model.visit(at, f),
            Self::Classifier(model) => model.visit(at, f),
        }
    }

    fn visit_buffers(&mut self, at: &str, f: &mut dyn FnMut(&str, &mut Tensor)) {
        match self {
            Self::Dual(model) => model.visit_buffers(at, f),
            Self::Classifier(model) => model.visit_buffers(at, f),
        }
    }
}

/// config.json of a model folder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "model_type")]
pub enum NetworkConfig {
    /// See [`Network::Dual`].
    TiergradDualEncoder(DualEncoderConfig),
    /// See [`Network::Classifier`].
    TiergradClassifier(ClassifierConfig),
}

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
}

/// preprocessor_config.json: the pictures' way into the model.
#[derive(Serialize, Deserialize)]
struct Preprocessing {
    #[serde(flatten)]
    preprocess: Preprocess,
    #[serde(default)]
    sixteen_bit: SixteenBit,
}

impl NetworkConfig {
    /// The sizes of a network.
    pub fn of(network: &Network) -> Self {
        match network {
            Network::Dual(model) => Self::TiergradDualEncoder(model.config().clone()),
            Network::Classifier(model) => Self::TiergradClassifier(model.config().clone()),
        }
    }

    /// Reads `config.json` of a model folder.
    pub fn open(folder: &Path) -> Result<Self> {
        read_json(&folder.join("config.json"))
    }
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let bytes = std::fs::read(path).at(path)?;
    serde_json::from_slice(&bytes).map_err(|e| Error::new(format!("not what a model folder has there: {e}"))).at(path)
}

fn to_json(value: &impl Serialize) -> Result<Vec<u8>> {
    let mut text = serde_json::to_vec_pretty(value).map_err(|e| Error::new(e.to_string()))?;
    text.push(b'\n');
    Ok(text)
}

impl Pipeline {
    /// Opens a model folder: config.json, model.safetensors, preprocessor_config.json and, for a dual encoder, tokenizer.json.
    /// With `map` weights are views of the mapped file.
    ///
    /// # Errors
    /// Naming the file that is missing or damaged, or the tensors that do not fit.
    pub fn open(folder: &Path, map: bool) -> Result<Self> {
        if !folder.is_dir() {
            return Err(Error::new("not a model folder (one with config.json and model.safetensors)").at(folder));
        }
        let config = NetworkConfig::open(folder)?;
        let weights = Weights::open(folder.join("model.safetensors"), map)?;
        let network = match &config {
            NetworkConfig::TiergradDualEncoder(config) => Network::Dual(DualEncoder::load(config, &weights)?),
            NetworkConfig::TiergradClassifier(config) => Network::Classifier(Classifier::load(config, &weights)?),
        };
        let tokenizer = match &config {
            NetworkConfig::TiergradDualEncoder(config) => {
                let path = folder.join("tokenizer.json");
                let tokenizer = Tokenizer::open(&path, Some(config.text.max_length()))?;
                if tokenizer.vocabulary() > config.text.vocabulary() {
                    return Err(Error::new(format!(
                        "{} tokens, but the model has {}: this tokenizer belongs to another model",
                        tokenizer.vocabulary(),
                        config.text.vocabulary()
                    ))
                    .at(path));
                }
                Some(tokenizer)
            }
            NetworkConfig::TiergradClassifier(_) => None,
        };
        let Preprocessing { preprocess, sixteen_bit } = read_json(&folder.join("preprocessor_config.json"))?;
        Ok(Self { path: folder.to_path_buf(), network, tokenizer, preprocess, sixteen_bit })
    }

    /// Writes the folder's files, each whole or not at all, the weights last. `replaced` are weights that stand in for the network's own.
    pub fn save(&mut self, folder: &Path, replaced: Option<&BTreeMap<String, Tensor>>) -> Result<()> {
        std::fs::create_dir_all(folder).at(folder)?;
        files::write_atomic(folder.join("config.json"), &to_json(&NetworkConfig::of(&self.network))?)?;
        let preprocessing = Preprocessing { preprocess: self.preprocess.clone(), sixteen_bit: self.sixteen_bit };
        files::write_atomic(folder.join("preprocessor_config.json"), &to_json(&preprocessing)?)?;
        if let Some(tokenizer) = &self.tokenizer {
            tokenizer.save(&folder.join("tokenizer.json"))?;
        }
        let tensors = tensors_with(&mut self.network, replaced);
        let metadata = BTreeMap::from([("format".to_owned(), format!("tiergrad {}", env!("CARGO_PKG_VERSION")))]);
        safetensors::save(folder.join("model.safetensors"), tensors.iter().map(|(n, t)| (n.clone(), t)), &metadata)
    }

    /// The dual encoder and its tokenizer.
    ///
    /// # Errors
    /// If the model is a classifier, which knows no texts.
    pub fn dual(&self) -> Result<(&DualEncoder, &Tokenizer)> {
        match (&self.network, &self.tokenizer) {
            (Network::Dual(model), Some(tokenizer)) => Ok((model, tokenizer)),
            _ => Err(Error::new("a classifier, which knows no texts: give a dual encoder").at(&self.path)),
        }
    }

    /// Embeddings of texts, a batch at a time, with the tokens they were read as.
    pub fn embed_texts(&self, texts: &[&str]) -> Result<Vec<(Tokens, Embeddings)>> {
        let (model, tokenizer) = self.dual()?;
        texts
            .chunks(TEXTS_AT_ONCE)
            .map(|chunk| {
                let tokens = tokenizer.encode(chunk)?;
                let embeddings = model.encode_text(&tokens.ids, &tokens.mask);
                Ok((tokens, embeddings))
            })
            .collect()
    }

    /// Embeddings of whole texts, row by row: n rows of the joint width.
    pub fn embed_whole_texts(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>> {
        Ok(self.embed_texts(texts)?.iter().flat_map(|(_, e)| rows(&e.whole)).collect())
    }
}

const TEXTS_AT_ONCE: usize = 64;

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
