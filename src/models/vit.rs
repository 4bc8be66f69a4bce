//! Vision transformer (Dosovitskiy et al. 2021): pre-norm blocks, with the parameter names of Hugging Face's CLIP. CLIP's has a norm
//! before the first block too, timm's and Hugging Face's ViT have a bias in the patch embedding instead.

use serde::{Deserialize, Serialize};

use super::{MAX_DEPTH, MAX_SIZE, check_most, check_sizes};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::nn::{Activation, Conv2d, Encoder, EncoderConfig, GroupNorm, Init, LayerNorm, Module, Params, normed};
use crate::ops::conv;
use crate::ops::resize::Filter;
use crate::tensor::Tensor;

/// Sizes of a vision transformer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VitConfig {
    /// Side of the square input in pixels.
    pub image_size: usize,
    /// Side of a patch; divides the image size.
    pub patch_size: usize,
    /// Channels of the input.
    pub channels: usize,
    /// Width of the stream.
    pub width: usize,
    /// Blocks.
    pub depth: usize,
    /// Heads; divides the width.
    pub heads: usize,
    /// CLIP's class token; without it the image is the mean of its patches.
    pub class_token: bool,
    /// Inside the blocks' perceptrons.
    #[serde(alias = "quick_gelu")]
    pub activation: Activation,
    /// Width between the two layers of a perceptron; default: four times the width.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mlp: Option<usize>,
    /// Added to the variance in layer norms.
    pub eps: f64,
    /// A norm before the first block, as CLIP has it.
    pub pre_norm: bool,
    /// A norm after the last block.
    pub post_norm: bool,
    /// A bias in the patch embedding.
    pub patch_bias: bool,
    /// Channels of the stages of a convolutional stem, each a 3 x 3 convolution of stride 2, a norm and GELU (Xiao et al. 2021).
    /// Patches are then cut from its output, which 2^stages must divide the patch size for. Empty: none.
    pub stem: Vec<usize>,
    /// Residual 3 x 3 convolutions after each stage of the stem but the first.
    pub stem_residuals: usize,
}

impl Default for VitConfig {
    /// A small one that a CPU trains from scratch.
    fn default() -> Self {
        Self {
            image_size: 128,
            patch_size: 16,
            channels: 1,
            width: 192,
            depth: 4,
            heads: 3,
            class_token: false,
            activation: Activation::Gelu,
            mlp: None,
            eps: 1e-5,
            pre_norm: true,
            post_norm: true,
            patch_bias: false,
            stem: Vec::new(),
            stem_residuals: 0,
        }
    }
}

impl VitConfig {
    /// Width of a block's perceptron: four times the tokens' where it is not said.
    pub fn mlp_width(&self) -> usize {
        self.mlp.unwrap_or(4 * self.width)
    }

    /// Patches along a side of an image of `image_size`.
    pub fn grid(&self) -> usize {
        self.image_size / self.patch_size
    }

    /// # Errors
    /// If the sizes do not divide, or are more than any model has.
    pub fn check(&self) -> Result<()> {
        let sizes = [("channels", self.channels), ("mlp", self.mlp.unwrap_or(1))];
        let patches = [("patch_size", self.patch_size), ("image_size", self.image_size)];
        check_sizes("vision", self.depth, &sizes, &[patches, [("heads", self.heads), ("width", self.width)]])?;
        check_most("vision", [("(image_size / patch_size)^2", self.grid().pow(2))], MAX_SIZE)?;
        check_most("vision", self.stem.iter().map(|&channels| ("stem", channels)), MAX_SIZE)?;
        check_most("vision", [("stem_residuals", self.stem_residuals)], MAX_DEPTH)?;
        if !(0.0..1.0).contains(&self.eps) {
            return Err(Error::usage(format!("vision: eps {} is not in 0..1", self.eps)));
        }
        if self.stem.contains(&0) || self.cell().is_none() {
            return Err(Error::usage(format!(
                "vision: stem needs positive channels, and at most so many stages that each halves patch_size {}: {:?}",
                self.patch_size, self.stem
            )));
        }
        Ok(())
    }

    /// Side of a patch in pixels of the stem's output, which is the image where there is no stem.
    fn cell(&self) -> Option<usize> {
        let shrinks = 1usize.checked_shl(self.stem.len().try_into().ok()?)?;
        self.patch_size.is_multiple_of(shrinks).then(|| self.patch_size / shrinks)
    }
}

/// gelu(norm(conv(x))); the norm is over all of an image's map (Wu and He 2018, one group), so that what is bright stays so.
struct Convolved {
    conv: Conv2d,
    norm: GroupNorm,
}

/// One stage of a convolutional stem: half the sides, then residuals.
struct Stage {
    first: Convolved,
    residuals: Vec<Convolved>,
}

impl Convolved {
    fn new(params: &Params, [input, output]: [usize; 2], stride: usize) -> Result<Self> {
        Ok(Self {
            conv: Conv2d::new(params, "conv", [input, output], 3, false, conv::Conv2d::new(stride, 1))?,
            norm: GroupNorm::new(params, "norm", output, 1e-5)?,
        })
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        self.norm.forward(&self.conv.forward(x)).gelu()
    }
}

impl Module for Convolved {
    fn visit(&mut self, at: &str, f: &mut dyn FnMut(&str, &mut Tensor)) {
        self.conv.visit(&format!("{at}.conv"), f);
        self.norm.visit(&format!("{at}.norm"), f);
    }
}

impl Stage {
    fn new(params: &Params, [input, output]: [usize; 2], residuals: usize) -> Result<Self> {
        let residual = |i| Convolved::new(&params.at(&format!("residuals.{i}")), [output, output], 1);
        Ok(Self {
            first: Convolved::new(params, [input, output], 2)?,
            residuals: (0..residuals).map(residual).collect::<Result<_>>()?,
        })
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        self.residuals.iter().fold(self.first.forward(x), |x, residual| &x + &residual.forward(&x))
    }
}

impl Module for Stage {
    fn visit(&mut self, at: &str, f: &mut dyn FnMut(&str, &mut Tensor)) {
        self.first.visit(at, f);
        for (i, residual) in self.residuals.iter_mut().enumerate() {
            residual.visit(&format!("{at}.residuals.{i}"), f);
        }
    }
}

/// A vision transformer.
pub struct Vit {
    config: VitConfig,
    class_embedding: Option<Tensor>,
    stem: Vec<Stage>,
    patch_embedding: Tensor,
    patch_bias: Option<Tensor>,
    position_embedding: Tensor,
    pre_norm: Option<LayerNorm>,
    encoder: Encoder,
    post_norm: Option<LayerNorm>,
}

impl Vit {
    /// Asks for `embeddings.*`, `pre_layrnorm.*` (as CLIP spells it, where there is one), `encoder.*` and `post_layernorm.*` (where
    /// there is one).
    pub fn new(params: &Params, config: &VitConfig) -> Result<Self> {
        config.check()?;
        let (d, embeddings) = (config.width, params.at("embeddings"));
        let tokens = config.grid().pow(2) + usize::from(config.class_token);
        // What the patches are cut from: the image, or the stem's output.
        let (channels, cell) =
            (*config.stem.last().unwrap_or(&config.channels), config.cell().unwrap_or(config.patch_size));
        let inputs = std::iter::once(&config.channels).chain(&config.stem);
        let stem = inputs.zip(&config.stem).enumerate();
        let scale = (d as f64).powf(-0.5);
        Ok(Self {
            class_embedding: config
                .class_token
                .then(|| embeddings.get("class_embedding", &[d], Init::Normal(scale)))
                .transpose()?,
            stem: stem
                .map(|(i, (&input, &output))| {
                    let residuals = if i == 0 { 0 } else { config.stem_residuals };
                    Stage::new(&embeddings.at(&format!("stem.{i}")), [input, output], residuals)
                })
                .collect::<Result<_>>()?,
            patch_embedding: embeddings.at("patch_embedding").get(
                "weight",
                &[d, channels, cell, cell],
                Init::Normal(((channels * cell * cell) as f64).powf(-0.5)),
            )?,
            patch_bias: config
                .patch_bias
                .then(|| embeddings.at("patch_embedding").get("bias", &[d], Init::Constant(0.0)))
                .transpose()?,
            position_embedding: embeddings.at("position_embedding").get("weight", &[tokens, d], Init::Normal(scale))?,
            pre_norm: config.pre_norm.then(|| LayerNorm::new(params, "pre_layrnorm", d, config.eps)).transpose()?,
            encoder: Encoder::new(
                &params.at("encoder"),
                &EncoderConfig {
                    width: d,
                    depth: config.depth,
                    heads: config.heads,
                    mlp: config.mlp_width(),
                    act: config.activation.unary(),
                    eps: config.eps,
                },
            )?,
            post_norm: config.post_norm.then(|| LayerNorm::new(params, "post_layernorm", d, config.eps)).transpose()?,
            config: config.clone(),
        })
    }

    /// Pixels [n, c, h, w] to tokens [n, T, width] after the last norm: the class token first where there is one, then the patches
    /// in row-major order. Sides are multiples of the patch size; for others than `image_size` the position embeddings are
    /// interpolated.
    pub fn forward(&self, pixels: &Tensor) -> Tensor {
        self.end(self.encoder.forward(self.start(pixels), false, None))
    }

    /// The class token of [`Self::forward`] alone, [n, 1, width], without what the other tokens alone need.
    ///
    /// # Panics
    /// If the model has none.
    pub fn forward_class(&self, pixels: &Tensor) -> Tensor {
        assert!(self.config.class_token, "vit: no class token");
        let x = self.start(pixels);
        let first = Tensor::zeros([x.dims()[0]], DType::I64);
        self.end(self.encoder.forward_at(&first, x, false, None))
    }

    /// Whether tokens begin with a class token.
    pub fn has_class_token(&self) -> bool {
        self.config.class_token
    }

    /// Pixels to what goes into the first block.
    fn start(&self, pixels: &Tensor) -> Tensor {
        let (p, d, dims) = (self.config.patch_size, self.config.width, *pixels.dims());
        let fits = dims.len() == 4
            && dims[1] == self.config.channels
            && dims[2..].iter().all(|&side| side > 0 && side.is_multiple_of(p));
        assert!(fits, "vit: pixels {dims:?} for {} channels and patches of {p}", self.config.channels);
        let (n, grid) = (dims[0], [dims[2] / p, dims[3] / p]);
        let mut x = if self.stem.is_empty() { self.patches(pixels, grid) } else { self.stem(pixels, grid) };
        if let Some(class) = &self.class_embedding {
            let class = class.reshape([1, 1, d]).broadcast_to([n, 1, d]);
            x = Tensor::concat(&[&class, &x], 1);
        }
        let x = x + &self.positions(grid);
        normed(self.pre_norm.as_ref(), x)
    }

    fn end(&self, x: Tensor) -> Tensor {
        normed(self.post_norm.as_ref(), x)
    }

    /// Patches of the pixels, projected: [n, patches, width].
    fn patches(&self, pixels: &Tensor, [rows, cols]: [usize; 2]) -> Tensor {
        let (n, c, p, d) = (pixels.dims()[0], self.config.channels, self.config.patch_size, self.config.width);
        let patch = c * p * p;
        // [n, c, rows, p, cols, p] to [n, rows cols, c p p]
        let patches =
            pixels.reshape([n, c, rows, p, cols, p]).permute(&[0, 2, 4, 1, 3, 5]).reshape([n, rows * cols, patch]);
        patches.operand().linear(&self.patch_embedding.reshape([d, patch]), self.patch_bias.as_ref(), None)
    }

    /// Patches of the stem's output, projected: [n, patches, width].
    fn stem(&self, pixels: &Tensor, [rows, cols]: [usize; 2]) -> Tensor {
        let map = self.stem.iter().fold(pixels.permute(&[0, 2, 3, 1]), |x, stage| stage.forward(&x));
        let cell = self.patch_embedding.dims()[2];
        let projected = map.conv2d(&self.patch_embedding, self.patch_bias.as_ref(), conv::Conv2d::new(cell, 0));
        projected.reshape([pixels.dims()[0], rows * cols, self.config.width])
    }

    /// Position embeddings of a grid [tokens, width]: those of the patches interpolated (bicubic) where it is another than that of
    /// `image_size`.
    fn positions(&self, grid: [usize; 2]) -> Tensor {
        let (side, d, all) = (self.config.grid(), self.config.width, &self.position_embedding);
        if grid == [side; 2] {
            return all.clone();
        }
        let first = usize::from(self.config.class_token);
        let patches = all.narrow(0, first, side * side).reshape([1, side, side, d]);
        let patches = patches.resize(grid, Filter::Bicubic, false).reshape([grid[0] * grid[1], d]);
        Tensor::concat(&[&all.narrow(0, 0, first), &patches], 0)
    }
}

impl Module for Vit {
    fn visit(&mut self, at: &str, f: &mut dyn FnMut(&str, &mut Tensor)) {
        if let Some(class) = &mut self.class_embedding {
            f(&format!("{at}.embeddings.class_embedding"), class);
        }
        for (i, stage) in self.stem.iter_mut().enumerate() {
            stage.visit(&format!("{at}.embeddings.stem.{i}"), f);
        }
        f(&format!("{at}.embeddings.patch_embedding.weight"), &mut self.patch_embedding);
        if let Some(bias) = &mut self.patch_bias {
            f(&format!("{at}.embeddings.patch_embedding.bias"), bias);
        }
        f(&format!("{at}.embeddings.position_embedding.weight"), &mut self.position_embedding);
        if let Some(norm) = &mut self.pre_norm {
            norm.visit(&format!("{at}.pre_layrnorm"), f);
        }
        self.encoder.visit(&format!("{at}.encoder"), f);
        if let Some(norm) = &mut self.post_norm {
            norm.visit(&format!("{at}.post_layernorm"), f);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;
    use crate::gradcheck::gradcheck;
    use crate::nn::Source;
    use crate::rng::Rng;

    fn config(stem: &[usize], class_token: bool) -> VitConfig {
        VitConfig {
            image_size: 16,
            patch_size: 4,
            channels: 2,
            width: 8,
            depth: 1,
            heads: 2,
            class_token,
            stem: stem.to_vec(),
            stem_residuals: stem.len(),
            ..VitConfig::default()
        }
    }

    fn vit(config: &VitConfig) -> Vit {
        Vit::new(&Source::drawn(3, DType::F64).params(), config).unwrap()
    }

    fn pixels(dims: [usize; 4]) -> Tensor {
        Tensor::randn(dims, DType::F64, &mut Rng::new(5, 0))
    }

    fn names(vit: &mut Vit) -> Vec<String> {
        let mut names = Vec::new();
        vit.visit("v", &mut |name, p| names.push(format!("{name} {:?}", p.dims())));
        names
    }

    #[test]
    fn a_stem_is_named_differentiable_and_as_fine_as_patches() {
        for (stem, cell) in [(&[3][..], 2), (&[3, 5][..], 1)] {
            let config = config(stem, true);
            let mut vit = vit(&config);
            let names = names(&mut vit);
            assert!(names.contains(&"v.embeddings.stem.0.conv.weight [3, 2, 3, 3]".to_owned()), "{names:?}");
            let last = stem[stem.len() - 1];
            assert!(
                names.contains(&format!("v.embeddings.patch_embedding.weight [8, {last}, {cell}, {cell}]")),
                "{names:?}"
            );
            let x = pixels([2, 2, 16, 16]);
            assert_eq!(vit.forward(&x).dims()[..], [2, 17, 8]);
            gradcheck(|x| vit.forward(&x[0]), &[x], 1e-5, &mut Rng::new(1, 1)).unwrap();
        }
    }

    #[test]
    fn a_patch_of_a_stem_sees_its_neighbourhood() {
        let vit = vit(&config(&[3, 5], false));
        let map = |x: &Tensor| vit.stem(x, [4, 4]).to_f64_vec();
        let x = pixels([1, 2, 16, 16]);
        let mut values = x.to_f64_vec();
        values[16 * 16 - 1] += 1.0;
        let moved = map(&Tensor::from_slice(&values, [1, 2, 16, 16]));
        let change = |(a, b): (&[f64], &[f64])| a.iter().zip(b).map(|(a, b)| (a - b).abs()).sum::<f64>();
        let changes: Vec<f64> = map(&x).chunks(8).zip(moved.chunks(8)).map(change).collect();
        // The norm carries a little of it everywhere.
        let most = (0..16).max_by(|&a, &b| changes[a].total_cmp(&changes[b]));
        assert_eq!(most, Some(15), "the last pixel is in the last patch: {changes:?}");
    }

    #[test]
    fn images_of_other_sizes_interpolate_the_positions() {
        for class_token in [true, false] {
            let mut vit = vit(&config(&[], class_token));
            assert_eq!(vit.forward(&pixels([1, 2, 24, 12])).dims()[..], [1, 18 + usize::from(class_token), 8]);
            // Equal positions stay equal, whatever the grid; the class token keeps its own.
            let first = usize::from(class_token);
            let all = Tensor::concat(
                &[&Tensor::full([first, 8], 7.0, DType::F64), &Tensor::full([16, 8], 2.0, DType::F64)],
                0,
            );
            vit.position_embedding = all.trainable();
            let positions = vit.positions([6, 3]);
            assert!(positions.to_f64_vec()[first * 8..].iter().all(|x| (x - 2.0).abs() < 1e-12));
            assert!(positions.to_f64_vec()[..first * 8].iter().all(|&x| x == 7.0));
            let grads = positions.sum_all().backward();
            let total: f64 = grads.get(&vit.position_embedding).unwrap().to_f64_vec().iter().sum();
            assert!((total - ((18 + first) * 8) as f64).abs() < 1e-9, "{total}");
        }
    }

    #[test]
    fn a_config_without_a_stem_is_read_too() {
        let mut json = serde_json::to_value(config(&[], true)).unwrap();
        let keys = json.as_object_mut().unwrap();
        let left_out = ["pre_norm", "post_norm", "patch_bias", "stem", "stem_residuals"];
        assert!(left_out.iter().all(|key| keys.remove(*key).is_some()), "{keys:?}");
        assert_eq!(serde_json::from_value::<VitConfig>(json).unwrap(), config(&[], true));
        let with = serde_json::to_string(&config(&[24, 48], true)).unwrap();
        assert_eq!(serde_json::from_str::<VitConfig>(&with).unwrap().stem, [24, 48]);
        for stem in [&[1, 2, 3][..], &[0][..], &[1; 64][..]] {
            assert!(config(stem, true).check().is_err(), "{stem:?}");
        }
    }
}
