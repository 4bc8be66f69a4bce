//! What a run starts with: sizes and weights of a given model, the tokenizer, the network.

use std::path::{Path, PathBuf};

use super::tables::Tables;
use super::{Config, Objective};
use crate::checkpoints::Checkpoint;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::models::single::{ImageOutput, TextOutput};
use crate::models::{Classifier, ClassifierConfig, DualEncoder, GlobalText, TextTowerConfig};
use crate::nn::Module;
use crate::pipeline::{Given, Network, NetworkConfig, Pipeline, Unused};
use crate::text::Tokenizer;

/// A model that a run starts from, or one side of it.
pub(super) struct Source {
    checkpoint: Checkpoint,
    image: bool,
    text: bool,
}

impl Source {
    /// The models that a configuration names.
    ///
    /// # Errors
    /// If they cannot be opened, or one is named for both sides and others for each.
    pub(super) fn all(config: &Config) -> Result<Vec<Self>> {
        let (whole, image, text) = (&config.data.init, &config.data.init_image, &config.data.init_text);
        if whole.is_some() && (image.is_some() || text.is_some()) {
            return Err(Error::usage("--init gives both sides: leave --init-image and --init-text out"));
        }
        let named = [(whole, true, true), (image, true, false), (text, false, true)];
        let open = |(path, image, text): (&Option<PathBuf>, bool, bool)| {
            let path = path.as_ref()?;
            Some(Checkpoint::open(path, true).map(|checkpoint| Self { checkpoint, image, text }))
        };
        named.into_iter().filter_map(open).collect()
    }

    /// Whether a parameter of that name comes from here.
    fn has(&self, name: &str) -> bool {
        let begins = |starts: [&str; 2]| starts.iter().any(|start| name.starts_with(start));
        match (self.image, self.text) {
            (true, true) => true,
            (true, false) => begins(["vision_model.", "visual_projection."]),
            (false, _) => self.text && begins(["text_model.", "text_projection."]),
        }
    }
}

/// Takes over what given models fix: sizes, and the pictures' way in.
pub(super) fn adopt(config: &mut Config, sources: &[Source]) -> Result<()> {
    for Source { checkpoint, image, text } in sources {
        let (path, image, text) = (&checkpoint.path, *image, *text);
        let unused = Unused { pictures: !image, texts: !text || config.tokenizer.path.is_some() };
        let model = Pipeline::load(checkpoint, Given { unused, ..Given::default() })?;
        let sizes = NetworkConfig::of(&model.network);
        let none = |side: &str| Error::usage(format!("no {side} side to start from")).at(path);
        let (mut joints, adopted) = ([None, None], &mut config.model);
        if image {
            adopted.vision = sizes.vision().ok_or_else(|| none("image"))?.clone();
            (config.image.resize, config.image.filter) = (model.preprocess.resize, model.preprocess.filter);
            (config.image.mean, config.image.std) = (model.preprocess.mean, model.preprocess.std);
            config.image.sixteen_bit = model.sixteen_bit;
        }
        if text {
            adopted.text = sizes.text().ok_or_else(|| none("text"))?.clone();
            if let TextTowerConfig::Bert(bert) = &mut adopted.text {
                bert.pooler = false;
            }
            let own = config.tokenizer.path.take().or(model.origin.tokenizer);
            config.tokenizer.path =
                Some(own.ok_or_else(|| {
                    Error::new("no tokenizer beside the model: give --set tokenizer.path=PATH").at(path)
                })?);
        }
        match sizes {
            NetworkConfig::TiergradDualEncoder(sizes) => {
                if image {
                    (adopted.visual_projection, adopted.global_image) = (sizes.visual_projection, sizes.global_image);
                }
                if text {
                    (adopted.text_projection, adopted.global_text) = (sizes.text_projection, sizes.global_text);
                }
                joints = [image.then_some(sizes.joint), text.then_some(sizes.joint)];
            }
            NetworkConfig::TiergradImageModel(sizes) => {
                adopted.global_image = sizes.global_image;
                if let ImageOutput::Joint { joint, projection } = sizes.output {
                    (adopted.visual_projection, joints[0]) = (projection, Some(joint));
                }
            }
            NetworkConfig::TiergradTextModel(sizes) => {
                adopted.global_text = Some(GlobalText::Token);
                if let TextOutput::Joint { joint, projection } = sizes.output {
                    (adopted.text_projection, joints[1]) = (projection, Some(joint));
                }
            }
            NetworkConfig::TiergradClassifier(_) => {}
        }
        // A text side that was made for another joint space gets a new projection into that of the images.
        let kept = config.data.init_image.is_some() && text;
        if let Some(joint) = joints[0].or(joints[1].filter(|_| !kept)) {
            adopted.joint = joint;
        }
    }
    Ok(())
}

/// The given tokenizer, or one trained on the training texts; the model's vocabulary follows it.
pub(super) fn tokenizer(config: &mut Config, tables: &Tables) -> Result<Option<Tokenizer>> {
    if config.objective == Objective::Supervised {
        return Ok(None);
    }
    let length = config.model.text.max_length();
    let tokenizer = match &config.tokenizer.path {
        Some(path) => Tokenizer::open(path, Some(length))?,
        None => {
            let texts: Vec<&str> = tables.train.iter().map(|row| row.text.as_str()).collect();
            Tokenizer::train(&texts, config.tokenizer.vocabulary, length)?
        }
    };
    if config.data.init.is_none() && config.data.init_text.is_none() {
        config.model.text.set_vocabulary(tokenizer.vocabulary());
    }
    let (has, knows) = (tokenizer.vocabulary(), config.model.text.vocabulary());
    if has > knows {
        let why =
            format!("a tokenizer of {has} entries for a model of {knows}: give the model's own, tokenizer.path=PATH");
        return Err(Error::new(why).at(config.tokenizer.path.as_deref().unwrap_or(Path::new("tokenizer"))));
    }
    Ok(Some(tokenizer))
}

/// A network with weights drawn or taken from given models, all trainable but the frozen ones.
pub(super) fn network(config: &Config, tables: &Tables, sources: &[Source]) -> Result<Network> {
    let mut network = match config.objective {
        Objective::Clip => Network::Dual(DualEncoder::init(&config.model, config.seed, DType::F32)?),
        Objective::Supervised => {
            let labels = tables.labels.as_ref().map(|l| l.names.clone()).unwrap_or_default();
            let sizes = ClassifierConfig { vision: config.model.vision.clone(), hidden: 128, labels };
            Network::Classifier(Classifier::init(&sizes, config.seed, DType::F32)?)
        }
    };
    for source in sources {
        let (tensors, mut wrong) = (source.checkpoint.tensors()?, None);
        network.visit_all("", &mut |name, p| {
            if source.has(name) {
                match tensors.get(name) {
                    Some(t) if t.dims() == p.dims() => *p = t.to_dtype(p.dtype()),
                    // A new joint width or head starts fresh.
                    _ if name.contains("projection") || name.starts_with("head.") => {}
                    _ => wrong = Some(name.to_owned()),
                }
            }
        });
        if let Some(name) = wrong {
            return Err(Error::new(format!("tensor {name} is missing or of another size")).at(&source.checkpoint.path));
        }
    }
    let (freeze, mut unused) = (&config.train.freeze, config.train.freeze.clone());
    network.visit("", &mut |name, p| {
        let frozen = freeze.iter().any(|prefix| name.starts_with(prefix.as_str()));
        unused.retain(|prefix| !name.starts_with(prefix.as_str()));
        // What is not trained is copied too: a run outlives a mapped file too often.
        *p = match frozen {
            true if p.buffer().is_unshared() => p.detach(),
            true => p.copied(),
            false => p.trainable(),
        };
    });
    if let Some(prefix) = unused.first() {
        return Err(Error::usage(format!("train.freeze: no parameter's name begins with {prefix:?}")));
    }
    Ok(network)
}
