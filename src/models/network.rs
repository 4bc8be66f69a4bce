//! Any of the models, and what its config.json says.

use serde::{Deserialize, Serialize};

use super::dual_encoder::Embeddings;
use super::image_tower::ImageTowerConfig;
use super::text_tower::TextTowerConfig;
use super::{
    Classifier, ClassifierConfig, DualEncoder, DualEncoderConfig, ImageModel, ImageModelConfig, TextModel,
    TextModelConfig,
};
use crate::error::{Error, Result};
use crate::nn::{Module, Params};
use crate::tensor::Tensor;

/// What computes.
#[expect(clippy::large_enum_variant, reason = "there is one in a pipeline")]
pub enum Network {
    /// Images and texts in one space.
    Dual(DualEncoder),
    /// Labels from images.
    Classifier(Classifier),
    /// An image encoder alone.
    Image(ImageModel),
    /// A text encoder alone.
    Text(TextModel),
}

/// config.json of a model folder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "model_type")]
pub enum NetworkConfig {
    /// See [`Network::Dual`].
    TiergradDualEncoder(DualEncoderConfig),
    /// See [`Network::Classifier`].
    TiergradClassifier(ClassifierConfig),
    /// See [`Network::Image`].
    TiergradImageModel(ImageModelConfig),
    /// See [`Network::Text`].
    TiergradTextModel(TextModelConfig),
}

impl NetworkConfig {
    /// The sizes of a network.
    pub fn of(network: &Network) -> Self {
        match network {
            Network::Dual(model) => Self::TiergradDualEncoder(model.config().clone()),
            Network::Classifier(model) => Self::TiergradClassifier(model.config().clone()),
            Network::Image(model) => Self::TiergradImageModel(model.config().clone()),
            Network::Text(model) => Self::TiergradTextModel(model.config().clone()),
        }
    }

    /// The image side, where there is one.
    pub fn vision(&self) -> Option<&ImageTowerConfig> {
        match self {
            Self::TiergradDualEncoder(c) => Some(&c.vision),
            Self::TiergradClassifier(c) => Some(&c.vision),
            Self::TiergradImageModel(c) => Some(&c.vision),
            Self::TiergradTextModel(_) => None,
        }
    }

    /// The text side, where there is one.
    pub fn text(&self) -> Option<&TextTowerConfig> {
        match self {
            Self::TiergradDualEncoder(c) => Some(&c.text),
            Self::TiergradTextModel(c) => Some(&c.text),
            Self::TiergradClassifier(_) | Self::TiergradImageModel(_) => None,
        }
    }

    /// Whether the image side takes pixels of so many channels and this height and width; position embeddings are interpolated where
    /// they are other than the model's own.
    ///
    /// # Errors
    /// If not, saying what it takes.
    pub fn check_pixels(&self, channels: usize, [height, width]: [usize; 2]) -> Result<()> {
        let vision = self.vision().ok_or_else(|| Error::new("this model knows no images"))?;
        let (fits, sides) = match vision {
            ImageTowerConfig::Vit(c) => {
                let fits = |side: usize| side > 0 && side.is_multiple_of(c.patch_size);
                (fits(height) && fits(width), format!("sides that are multiples of {}", c.patch_size))
            }
            ImageTowerConfig::Resnet(c) => (!c.grid([height, width]).contains(&0), "sides above 0".to_owned()),
        };
        if channels == vision.channels() && fits {
            return Ok(());
        }
        Err(Error::new(format!(
            "{channels} channels of {height} x {width} pixels: this model takes {} channels and {sides}, best {}",
            vision.channels(),
            vision.image_size()
        )))
    }

    /// In words.
    pub fn describe(&self) -> String {
        let vision = |c: &ImageTowerConfig| match c {
            ImageTowerConfig::Vit(c) => format!(
                "ViT ({} wide, {} blocks, {} heads, patches of {}, images of {})",
                c.width, c.depth, c.heads, c.patch_size, c.image_size
            ),
            ImageTowerConfig::Resnet(c) => {
                let layers = c.depths.iter().sum::<usize>() * c.block.convolutions() + 2;
                format!("ResNet-{layers} (stages of {:?} blocks, {} wide)", c.depths, c.width())
            }
        };
        let text = |c: &TextTowerConfig| match c {
            TextTowerConfig::Clip(c) => {
                format!("CLIP text transformer ({} wide, {} blocks, {} heads)", c.width, c.depth, c.heads)
            }
            TextTowerConfig::Bert(c) => format!("BERT ({} wide, {} layers, {} heads)", c.width, c.depth, c.heads),
        };
        match self {
            Self::TiergradDualEncoder(c) => {
                format!("{} and {} in a joint space of {}", vision(&c.vision), text(&c.text), c.joint)
            }
            Self::TiergradClassifier(c) => format!("{} with a head for {} labels", vision(&c.vision), c.labels.len()),
            Self::TiergradImageModel(c) => format!("{}, {}", vision(&c.vision), c.output.describe()),
            Self::TiergradTextModel(c) => format!("{}, {}", text(&c.text), c.output.describe()),
        }
    }
}

impl Network {
    /// Asks for every parameter.
    ///
    /// # Errors
    /// If the parts of the config do not fit each other, or a parameter is missing or has other dims.
    pub fn new(params: &Params, config: &NetworkConfig) -> Result<Self> {
        Ok(match config {
            NetworkConfig::TiergradDualEncoder(config) => Self::Dual(DualEncoder::new(params, config)?),
            NetworkConfig::TiergradClassifier(config) => Self::Classifier(Classifier::new(params, config)?),
            NetworkConfig::TiergradImageModel(config) => Self::Image(ImageModel::new(params, config)?),
            NetworkConfig::TiergradTextModel(config) => Self::Text(TextModel::new(params, config)?),
        })
    }
}

/// What one side of a model says: its output, where it stands alone, and embeddings, where it is projected into a joint space.
pub type Said = (Option<Tensor>, Option<Embeddings>);

impl Network {
    /// What pixels [n, c, h, w] become; nothing of a model that knows no images.
    pub fn say_images(&self, pixels: &Tensor) -> Option<Said> {
        match self {
            Self::Dual(model) => Some((None, Some(model.encode_image(pixels)))),
            Self::Classifier(model) => Some((Some(model.forward(pixels)), None)),
            Self::Image(model) => {
                let (output, embeddings) = model.forward(pixels);
                Some((Some(output), embeddings))
            }
            Self::Text(_) => None,
        }
    }

    /// One vector for each image, [n, k], without what patches alone need: the output of a model that has one, else the embedding of the whole.
    pub fn whole_images(&self, pixels: &Tensor) -> Option<Tensor> {
        match self {
            Self::Dual(model) => Some(model.whole_image(pixels)),
            Self::Classifier(model) => Some(model.forward(pixels)),
            Self::Image(model) => Some(model.whole(pixels)),
            Self::Text(_) => None,
        }
    }

    /// One vector for each text, [n, k], as [`Self::whole_images`] gives them of images.
    pub fn whole_texts(&self, ids: &Tensor, mask: &Tensor) -> Option<Tensor> {
        match self {
            Self::Dual(model) => Some(model.whole_text(ids, mask)),
            Self::Text(model) => Some(model.whole(ids, mask)),
            Self::Classifier(_) | Self::Image(_) => None,
        }
    }

    /// What texts (ids i64 [n, T], mask u8 [n, T]) become; nothing of a model that knows no texts.
    pub fn say_texts(&self, ids: &Tensor, mask: &Tensor) -> Option<Said> {
        match self {
            Self::Dual(model) => Some((None, Some(model.encode_text(ids, mask)))),
            Self::Text(model) => {
                let (output, embeddings) = model.forward(ids, mask);
                Some((Some(output), embeddings))
            }
            Self::Classifier(_) | Self::Image(_) => None,
        }
    }
}

impl Module for Network {
    fn visit(&mut self, at: &str, f: &mut dyn FnMut(&str, &mut Tensor)) {
        match self {
            Self::Dual(model) => model.visit(at, f),
            Self::Classifier(model) => model.visit(at, f),
            Self::Image(model) => model.visit(at, f),
            Self::Text(model) => model.visit(at, f),
        }
    }

    fn visit_buffers(&mut self, at: &str, f: &mut dyn FnMut(&str, &mut Tensor)) {
        match self {
            Self::Dual(model) => model.visit_buffers(at, f),
            Self::Classifier(model) => model.visit_buffers(at, f),
            Self::Image(model) => model.visit_buffers(at, f),
            Self::Text(model) => model.visit_buffers(at, f),
        }
    }
}
