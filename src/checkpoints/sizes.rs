//! Sizes of a model from the dims of its tensors; what they do not show (heads, epsilons, activations) is for configs to say.

use crate::error::{Error, Result};
use crate::layout::Dims;
use crate::models::bert::BertConfig;
use crate::models::clip_text::TextConfig;
use crate::models::resnet::ResnetConfig;
use crate::models::vit::VitConfig;
use crate::nn::{Activation, ProjectionKind};
use crate::spelling::nearest;

use super::names::{Read, Table, own_name};

/// The canonical parameters of a file.
pub struct Shapes<'a> {
    pub(super) read: &'a Read,
    pub(super) table: &'a Table,
}

/// Width of a head where nothing else is said.
const HEAD: usize = 64;

impl Shapes<'_> {
    /// Whether there is a parameter of that name.
    pub fn has(&self, name: &str) -> bool {
        self.read.metas.contains_key(name)
    }

    /// Whether any parameter's name begins so.
    pub fn has_any(&self, start: &str) -> bool {
        self.read.metas.range(start.to_owned()..).next().is_some_and(|(name, _)| name.starts_with(start))
    }

    /// For a complaint that the file has no tensor of this name: the name most like it that nothing is known by, if there is one.
    pub fn near(&self, own: &str) -> String {
        nearest(own, &self.read.unknown).map_or(String::new(), |near| format!(" (nearest: {near})"))
    }

    /// Sizes of a parameter of `N` dimensions.
    ///
    /// # Errors
    /// If it is missing or has another number of dimensions.
    pub fn of<const N: usize>(&self, name: &str) -> Result<[usize; N]> {
        let own = || own_name(name, self.read, self.table);
        let missing = || Error::new(format!("tensor {} is missing{}", own(), self.near(&own())));
        let meta = self.read.metas.get(name).ok_or_else(missing)?;
        let dims: Dims = meta.dims;
        let wrong = || Error::new(format!("tensor {} has dims {dims:?}; {N} are needed, none of them 0", own()));
        dims[..].try_into().ok().filter(|sizes: &[usize; N]| !sizes.contains(&0)).ok_or_else(wrong)
    }

    /// One more than the largest number that follows `start` in a name.
    fn layers(&self, start: &str) -> usize {
        let number = |name: &str| name.strip_prefix(start)?.split('.').next()?.parse::<usize>().ok();
        let found = self.read.metas.keys().filter_map(|name| number(name)).max().map_or(0, |largest| largest + 1);
        // A name can hold any number; a model has no more layers than tensors.
        found.min(self.read.metas.len())
    }

    /// A vision transformer below `vision_model`, of `heads` heads, else of one for every 64 of its width.
    pub fn vit(&self, heads: Option<usize>) -> Result<VitConfig> {
        let at = |name: &str| format!("vision_model.{name}");
        let [width, channels, patch_size, other] = self.of(&at("embeddings.patch_embedding.weight"))?;
        let [tokens, _] = self.of(&at("embeddings.position_embedding.weight"))?;
        let class_token = self.has(&at("embeddings.class_embedding"));
        let grid = (tokens - usize::from(class_token)).isqrt();
        if patch_size != other || grid * grid + usize::from(class_token) != tokens {
            return Err(Error::new(format!(
                "patches of {patch_size} x {other} and {tokens} positions: only square patches on a square grid can be used here"
            )));
        }
        let depth = self.layers(&at("encoder.layers."));
        let mlp = if depth == 0 { 4 * width } else { self.of::<2>(&at("encoder.layers.0.mlp.fc1.weight"))?[0] };
        Ok(VitConfig {
            image_size: grid * patch_size,
            patch_size,
            channels,
            width,
            depth,
            heads: self.heads(width, heads)?,
            class_token,
            mlp: (mlp != 4 * width).then_some(mlp),
            pre_norm: self.has(&at("pre_layrnorm.weight")),
            patch_bias: self.has(&at("embeddings.patch_embedding.bias")),
            ..VitConfig::default()
        })
    }

    /// A residual network below `vision_model`.
    pub fn resnet(&self) -> Result<ResnetConfig> {
        let dims = |name: &str| self.read.metas.get(&format!("vision_model.{name}")).map(|meta| meta.dims);
        let unknown = || Error::new("the tensors are not those of a residual network that is known here");
        Ok(ResnetConfig { classes: 0, ..ResnetConfig::infer(dims).ok_or_else(unknown)? })
    }

    /// CLIP's text transformer below `text_model`, heads as for [`Shapes::vit`].
    pub fn clip_text(&self, heads: Option<usize>) -> Result<TextConfig> {
        let [vocabulary, width] = self.of("text_model.embeddings.token_embedding.weight")?;
        let [max_length, _] = self.of("text_model.embeddings.position_embedding.weight")?;
        let depth = self.layers("text_model.encoder.layers.");
        let fc1 = "text_model.encoder.layers.0.mlp.fc1.weight";
        let mlp = if depth == 0 { 4 * width } else { self.of::<2>(fc1)?[0] };
        Ok(TextConfig {
            vocabulary,
            max_length,
            width,
            depth,
            heads: self.heads(width, heads)?,
            mlp: (mlp != 4 * width).then_some(mlp),
            ..TextConfig::default()
        })
    }

    /// BERT below `text_model`, heads as for [`Shapes::vit`].
    pub fn bert(&self, heads: Option<usize>) -> Result<BertConfig> {
        let [vocabulary, width] = self.of("text_model.embeddings.word_embeddings.weight")?;
        let [max_length, _] = self.of("text_model.embeddings.position_embeddings.weight")?;
        let [token_types, _] = self.of("text_model.embeddings.token_type_embeddings.weight")?;
        let depth = self.layers("text_model.encoder.layer.");
        let intermediate = "text_model.encoder.layer.0.intermediate.dense.weight";
        Ok(BertConfig {
            vocabulary,
            max_length,
            width,
            depth,
            heads: self.heads(width, heads)?,
            mlp: if depth == 0 { 4 * width } else { self.of::<2>(intermediate)?[0] },
            token_types,
            pooler: self.has_any("text_model.pooler."),
            eps: 1e-12,
            activation: Activation::Gelu,
            padding: 0,
        })
    }

    /// The text projection and the width of the joint space, where there is one.
    pub fn text_projection(&self) -> Result<Option<(usize, ProjectionKind)>> {
        let (matrix, fc1) = ("text_projection.weight", "text_projection.fc1.weight");
        Ok(if self.has(matrix) {
            Some((self.of::<2>(matrix)?[0], ProjectionKind::Linear))
        } else if self.has(fc1) {
            let [joint, hidden] = self.of("text_projection.fc2.weight")?;
            Some((joint, ProjectionKind::Mlp { hidden, bias: self.has("text_projection.fc1.bias") }))
        } else if self.has_any("text_projection.dense_to_hidden.") {
            Some((self.of::<2>("text_projection.dense_to_output.weight")?[0], ProjectionKind::Head))
        } else {
            None
        })
    }

    fn heads(&self, width: usize, given: Option<usize>) -> Result<usize> {
        match given {
            Some(heads) if heads > 0 && width.is_multiple_of(heads) => Ok(heads),
            Some(heads) => {
                Err(Error::new(format!("{heads} heads for a width of {width}: it must be a multiple of them")))
            }
            None if width.is_multiple_of(HEAD) => Ok(width / HEAD),
            None => Err(Error::new(format!(
                "a width of {width} is not heads of {HEAD}, and there is no config that says how many heads it has"
            ))),
        }
    }
}
