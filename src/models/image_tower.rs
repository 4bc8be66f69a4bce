//! The image side of a model: a vision transformer or a residual network, and the way from it into a joint space.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use super::dual_encoder::GlobalImage;
use super::resnet::{Resnet, ResnetConfig};
use super::vit::{Vit, VitConfig};
use crate::error::Result;
use crate::nn::{Conv2d, ConvNorm, Linear, Module, Params, Statistics, join};
use crate::ops::conv::Conv2d as Options;
use crate::tensor::Tensor;

/// Which image encoder, and its sizes. In a file the key `kind` says which: `vit` (also where it is absent) or `resnet`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum ImageTowerConfig {
    /// Vision transformer.
    Vit(VitConfig),
    /// Residual network; its patches are the places of its last map.
    Resnet(ResnetConfig),
}

impl Default for ImageTowerConfig {
    fn default() -> Self {
        Self::Vit(VitConfig::default())
    }
}

impl<'de> Deserialize<'de> for ImageTowerConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut keys = serde_json::Map::deserialize(deserializer)?;
        let kind = keys.remove("kind");
        let sizes = serde_json::Value::Object(keys);
        match kind.as_ref().map(|k| k.as_str()) {
            None | Some(Some("vit")) => serde_json::from_value(sizes).map(Self::Vit),
            Some(Some("resnet")) => serde_json::from_value(sizes).map(Self::Resnet),
            Some(_) => return Err(D::Error::custom("vision: kind must be \"vit\" or \"resnet\"")),
        }
        .map_err(|e| D::Error::custom(format!("vision: {e}")))
    }
}

impl From<VitConfig> for ImageTowerConfig {
    fn from(config: VitConfig) -> Self {
        Self::Vit(config)
    }
}

impl From<ResnetConfig> for ImageTowerConfig {
    fn from(config: ResnetConfig) -> Self {
        Self::Resnet(config)
    }
}

impl ImageTowerConfig {
    /// Side in pixels of the square input that pictures are made into.
    pub fn image_size(&self) -> usize {
        match self {
            Self::Vit(c) => c.image_size,
            Self::Resnet(c) => c.image_size,
        }
    }

    /// Channels of the input.
    pub fn channels(&self) -> usize {
        match self {
            Self::Vit(c) => c.channels,
            Self::Resnet(c) => c.channels,
        }
    }

    /// Width of the patches.
    pub fn width(&self) -> usize {
        match self {
            Self::Vit(c) => c.width,
            Self::Resnet(c) => c.width(),
        }
    }

    /// Whether a class token stands before the patches.
    pub fn class_token(&self) -> bool {
        match self {
            Self::Vit(c) => c.class_token,
            Self::Resnet(_) => false,
        }
    }

    /// Rows and columns of patches of an image of `image_size`.
    pub fn grid(&self) -> [usize; 2] {
        match self {
            Self::Vit(c) => [c.grid(); 2],
            Self::Resnet(c) => c.grid([c.image_size; 2]),
        }
    }

    /// # Errors
    /// If the sizes do not fit each other.
    pub fn check(&self) -> Result<()> {
        match self {
            Self::Vit(c) => c.check(),
            Self::Resnet(c) => c.check(),
        }
    }
}

/// An image encoder of either kind.
pub enum ImageTower {
    /// Vision transformer.
    Vit(Vit),
    /// Residual network.
    Resnet(Resnet),
}

impl ImageTower {
    /// Asks for the parameters of its kind.
    pub fn new(params: &Params, config: &ImageTowerConfig) -> Result<Self> {
        Ok(match config {
            ImageTowerConfig::Vit(c) => Self::Vit(Vit::new(params, c)?),
            ImageTowerConfig::Resnet(c) => Self::Resnet(Resnet::new(params, c)?),
        })
    }

    fn has_class_token(&self) -> bool {
        matches!(self, Self::Vit(vit) if vit.has_class_token())
    }

    /// What stands for the whole image, [n, width], of tokens as they are. A class token comes without what the others alone need.
    pub fn whole(&self, global: GlobalImage, pixels: &Tensor, statistics: &mut Statistics) -> Tensor {
        match self {
            Self::Vit(vit) if global == GlobalImage::Cls => vit.forward_class(pixels).at(1, 0),
            _ => global.split(&self.forward(pixels, statistics), self.has_class_token()).whole,
        }
    }

    /// Pixels [n, c, h, w] to tokens [n, T, width]: the class token first where there is one, then the patches in row-major order.
    pub fn forward(&self, pixels: &Tensor, statistics: &mut Statistics) -> Tensor {
        match self {
            Self::Vit(vit) => vit.forward(pixels),
            Self::Resnet(resnet) => {
                let map = resnet.forward(pixels, statistics);
                let [n, rows, cols, width] = [0, 1, 2, 3].map(|k| map.dims()[k]);
                map.reshape([n, rows * cols, width])
            }
        }
    }
}

impl Module for ImageTower {
    fn visit(&mut self, at: &str, f: &mut dyn FnMut(&str, &mut Tensor)) {
        match self {
            Self::Vit(vit) => vit.visit(at, f),
            Self::Resnet(resnet) => resnet.visit(at, f),
        }
    }

    fn visit_buffers(&mut self, at: &str, f: &mut dyn FnMut(&str, &mut Tensor)) {
        match self {
            Self::Vit(vit) => vit.visit_buffers(at, f),
            Self::Resnet(resnet) => resnet.visit_buffers(at, f),
        }
    }
}

/// Which projection of patches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImageProjectionKind {
    /// CLIP's matrix without bias.
    #[default]
    Linear,
    /// BioViL's two layers: see [`Projector`].
    Projector,
}

/// 1 x 1 convolution, batch norm, ReLU, 1 x 1 convolution with bias: the projector of BioViL (Boecking et al. 2022) and of the TIER paper.
pub struct Projector {
    first: ConvNorm,
    last: Conv2d,
}

impl Projector {
    /// Asks for `0.weight`, `1.*` and `3.*` below `name`.`model`.
    ///
    /// # Errors
    /// If a parameter is missing or has other dims.
    pub fn new(params: &Params, name: &str, [width, joint]: [usize; 2]) -> Result<Self> {
        let p = params.at(name).at("model");
        Ok(Self {
            first: ConvNorm::new(&p, ["0", "1"], [width, joint], 1, Options::default())?,
            last: Conv2d::new(&p, "3", [joint, joint], 1, true, Options::default())?,
        })
    }

    /// Patches [n, P, width] to [n, P, joint].
    pub fn forward(&self, patches: &Tensor, statistics: &mut Statistics) -> Tensor {
        let [n, p, width] = [0, 1, 2].map(|k| patches.dims()[k]);
        let hidden = self.first.forward_relu(&patches.reshape([n, p, 1, width]), None, statistics);
        let y = self.last.forward(&hidden);
        y.reshape([n, p, y.dims()[3]])
    }
}

impl Module for Projector {
    fn visit(&mut self, at: &str, f: &mut dyn FnMut(&str, &mut Tensor)) {
        let at = join(at, "model");
        self.first.visit(&at, f);
        self.last.visit(&join(&at, "3"), f);
    }

    fn visit_buffers(&mut self, at: &str, f: &mut dyn FnMut(&str, &mut Tensor)) {
        self.first.visit_buffers(&join(at, "model"), f);
    }
}

/// A projection of patches of either kind.
#[expect(clippy::large_enum_variant, reason = "there is one in a model")]
pub enum ImageProjection {
    /// A matrix.
    Linear(Linear),
    /// Two layers.
    Projector(Projector),
}

impl ImageProjection {
    /// Asks for the parameters of `kind` below `name`.
    pub fn new(params: &Params, name: &str, [width, joint]: [usize; 2], kind: ImageProjectionKind) -> Result<Self> {
        Ok(match kind {
            ImageProjectionKind::Linear => {
                Self::Linear(Linear::new(params, name, [width, joint], false, (width as f64).powf(-0.5))?)
            }
            ImageProjectionKind::Projector => Self::Projector(Projector::new(params, name, [width, joint])?),
        })
    }

    /// The projected class token of images, [n, joint].
    pub fn whole(&self, vision: &ImageTower, pixels: &Tensor) -> Tensor {
        let class = vision.whole(GlobalImage::Cls, pixels, &mut Statistics::Running);
        self.forward(&class.unsqueeze(1), &mut Statistics::Running).at(1, 0)
    }

    /// Tokens [n, T, width] to [n, T, joint].
    pub fn forward(&self, tokens: &Tensor, statistics: &mut Statistics) -> Tensor {
        match self {
            Self::Linear(linear) => linear.forward(tokens, None),
            Self::Projector(projector) => projector.forward(tokens, statistics),
        }
    }
}

impl Module for ImageProjection {
    fn visit(&mut self, at: &str, f: &mut dyn FnMut(&str, &mut Tensor)) {
        match self {
            Self::Linear(linear) => linear.visit(at, f),
            Self::Projector(projector) => projector.visit(at, f),
        }
    }

    fn visit_buffers(&mut self, at: &str, f: &mut dyn FnMut(&str, &mut Tensor)) {
        if let Self::Projector(projector) = self {
            projector.visit_buffers(at, f);
        }
    }
}
