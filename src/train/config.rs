//! The configuration of a run: a TOML file, any value of which can be set on the command line.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::data::loader::{MAX_EPOCHS, MAX_VIEWS};
use crate::error::{At, Error, Result};
use crate::formats::MAX_TENSORS;
use crate::image::{Augment, Filter, MAX_SIDE, Preprocess, SixteenBit};
use crate::loss::TierOptions;
use crate::models::image_tower::ImageTower;
use crate::models::{DualEncoder, DualEncoderConfig, ImageTowerConfig};
use crate::nn::Source;
use crate::optim::{OptimiserConfig, Schedule};
use crate::products::Products;
use crate::tape::recomputing;

/// Most MiB that can be counted in bytes with what else a run takes.
const MAX_CACHE: u64 = 1 << 32;

/// Everything that decides a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Seed of parameters, order, augmentation and splits.
    pub seed: u64,
    /// What is learned.
    pub objective: Objective,
    /// Tables.
    pub data: DataConfig,
    /// How pictures become pixels.
    pub image: ImageConfig,
    /// Random changes of training pictures.
    pub augment: Augment,
    /// The tokenizer that is trained where none is given.
    pub tokenizer: TokenizerConfig,
    /// Sizes of the model. `text.vocabulary` follows the tokenizer.
    pub model: DualEncoderConfig,
    /// The TIER penalty.
    pub tier: TierOptions,
    /// Length, batches, checkpoints.
    pub train: TrainConfig,
    /// The optimiser.
    pub optimiser: OptimiserConfig,
    /// The learning rate over time, in optimiser steps.
    pub schedule: Schedule,
}

/// What is learned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Objective {
    /// Images and texts that belong together (with TIER's penalty).
    #[default]
    Clip,
    /// The labels of a table, from images alone: the baseline.
    Supervised,
}

/// Tables of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DataConfig {
    /// pairs.csv
    pub pairs: PathBuf,
    /// labels.csv: validation by zero-shot AUC, or what a supervised run learns.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labels: Option<PathBuf>,
    /// A column of pairs.csv that serves as labels, one per value; with `labels`, that is a table of these values' labels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labels_from: Option<String>,
    /// prompts.csv
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompts: Option<PathBuf>,
    /// boxes.json: the finished model's heat maps are judged by those of validation rows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub boxes: Option<PathBuf>,
    /// A model directory whose weights, sizes and tokenizer the run starts from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init: Option<PathBuf>,
    /// A model directory whose image side the run starts from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init_image: Option<PathBuf>,
    /// A model directory whose text side and tokenizer the run starts from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init_text: Option<PathBuf>,
}

/// How pictures become pixels. Side and channels are the model's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ImageConfig {
    /// Shorter side before the crop; 0: 8/7 of the model's image size, as 256 is of 224.
    pub resize: usize,
    /// Interpolation.
    pub filter: Filter,
    /// Subtracted from values in 0..1, one for all channels or one per channel.
    pub mean: Vec<f64>,
    /// Divides after that.
    pub std: Vec<f64>,
    /// How 16-bit grey becomes 8 bits.
    pub sixteen_bit: SixteenBit,
    /// Most memory for decoded training pictures, in MiB.
    pub cache_mib: usize,
}

impl Default for ImageConfig {
    fn default() -> Self {
        Self {
            resize: 0,
            filter: Filter::Bilinear,
            mean: vec![0.5],
            std: vec![0.25],
            sixteen_bit: SixteenBit::HighByte,
            cache_mib: 2048,
        }
    }
}

/// The tokenizer that is trained on the training texts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TokenizerConfig {
    /// A tokenizer's file or folder instead of a trained one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// Most entries of the vocabulary.
    pub vocabulary: usize,
}

impl Default for TokenizerConfig {
    fn default() -> Self {
        Self { path: None, vocabulary: 2000 }
    }
}

/// Length, batches and checkpoints.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainConfig {
    /// Passes over the training rows.
    pub epochs: u64,
    /// Pairs that are contrasted with each other.
    pub batch: usize,
    /// Pairs that are computed at once; 0: the whole batch. Smaller values trade one more forward pass for memory and give the same
    /// gradient (GradCache; Gao et al. 2021), except that batch norms then normalise by the statistics of the part they see.
    pub micro_batch: usize,
    /// What the products of layers are computed in, forward and backward: with bf16 their numbers are rounded to it and sums are f32, as are parameters,
    /// moments and all else. Validation and the saved model are f32.
    pub precision: Products,
    /// Keep only the inputs of transformer blocks and of stages of a residual network, and compute these again for the gradient: the same bits for less
    /// memory and one more forward.
    pub recompute: bool,
    /// Move each parameter during backward, as soon as its gradient is whole: the same bits, and the gradients of all parameters are never there
    /// together. The CPU's, without clipping, micro batches and accumulation.
    pub step_in_backward: bool,
    /// Batches whose gradients are averaged for one optimiser step.
    pub accumulate: usize,
    /// Augmented views per image.
    pub views: usize,
    /// Which texts count as an image's own.
    pub targets: Targets,
    /// Parameters whose name begins with one of these stay as they are.
    pub freeze: Vec<String>,
    /// Decay of the moving average of parameters that is validated and saved; 0: none.
    pub ema: f64,
    /// Checkpoints kept, best by validation.
    pub keep: usize,
    /// Steps between checkpoints to resume from; 0: one at the end of every epoch.
    pub checkpoint_steps: u64,
    /// Stop where pixels, loss or gradient are not finite, naming the step, the samples and where it began; and write no checkpoint of
    /// weights that are not finite.
    pub check_finite: bool,
    /// Refuse to start a run that this machine's memory cannot hold.
    pub check_memory: bool,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            epochs: 30,
            batch: 32,
            micro_batch: 0,
            precision: Products::F32,
            recompute: false,
            step_in_backward: false,
            accumulate: 1,
            views: 1,
            targets: Targets::Pairs,
            freeze: Vec::new(),
            ema: 0.0,
            keep: 5,
            checkpoint_steps: 0,
            check_finite: true,
            check_memory: true,
        }
    }
}

impl TrainConfig {
    /// Runs `f`, a step, in which layers compute as is said here.
    pub(super) fn within<R>(&self, f: impl FnOnce() -> R) -> R {
        recomputing(self.recompute, || self.precision.within(f))
    }
}

/// Which texts count as an image's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Targets {
    /// Its own row's.
    Pairs,
    /// Every equal text; needed where a table has few distinct texts.
    SameText,
}

impl Config {
    /// Reads a TOML file (nothing: all defaults) and applies `key=value` settings with dotted keys.
    ///
    /// # Errors
    /// If the file is not TOML, a key is unknown (naming the nearest), or a value has the wrong type or contradicts another.
    pub fn read(path: Option<&Path>, settings: &[String]) -> Result<Self> {
        let text = path.map_or_else(|| Ok(String::new()), |path| std::fs::read_to_string(path).at(path))?;
        Self::of(&text, path, settings)
    }

    /// As [`Config::read`], of a TOML text.
    ///
    /// # Errors
    /// As [`Config::read`].
    pub fn parse(text: &str, settings: &[String]) -> Result<Self> {
        Self::of(text, None, settings)
    }

    fn of(text: &str, path: Option<&Path>, settings: &[String]) -> Result<Self> {
        let of_file = |why: String| path.into_iter().fold(Error::usage(why), Error::at);
        // The file's, then with each setting over what is before it.
        let mut tables = vec![text.parse::<toml::Table>().map_err(|e| of_file(one_line(&e.to_string())))?];
        for setting in settings {
            let mut table = tables[tables.len() - 1].clone();
            set(&mut table, setting)?;
            tables.push(table);
        }
        let read = |table: &toml::Table| Self::deserialize(table.clone()).map_err(|e| with_nearest(&e.to_string()));
        read(&tables[settings.len()]).map_err(|why| {
            // Whoever brought the mistake in.
            match tables.iter().position(|table| read(table).is_err_and(|first| first == why)) {
                Some(k @ 1..) => Error::usage(format!("--set {}: {why}", settings[k - 1])),
                _ => of_file(why),
            }
        })
    }

    /// The configuration as TOML.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(self).map_err(|e| Error::new(format!("the configuration cannot be written as TOML: {e}")))
    }

    /// How pictures become pixels for this model.
    pub fn preprocess(&self) -> Preprocess {
        let (size, channels) = (self.model.vision.image_size(), self.model.vision.channels());
        let per_channel = |x: &[f64]| if x.len() == 1 { vec![x[0]; channels] } else { x.to_vec() };
        Preprocess {
            square: None,
            stretch: false,
            resize: if self.image.resize == 0 { (size * 8).div_ceil(7) } else { self.image.resize },
            crop: size,
            filter: self.image.filter,
            channels,
            mean: per_channel(&self.image.mean),
            std: per_channel(&self.image.std),
        }
    }

    /// # Errors
    /// Naming the key and what it may be, where values contradict each other.
    pub fn check(&self) -> Result<()> {
        let (t, i) = (&self.train, &self.image);
        let channels = self.model.vision.channels();
        let wrong = |key: &str, why: String| Err(Error::usage(format!("{key}: {why}")));
        self.check_model()?;
        if t.batch < 2 && self.objective == Objective::Clip {
            return wrong("train.batch", format!("{} pairs have nothing to contrast with; at least 2", t.batch));
        }
        for (key, zero) in [
            ("train.batch", t.batch == 0),
            ("train.epochs", t.epochs == 0),
            ("train.accumulate", t.accumulate == 0),
            ("train.views", t.views == 0),
            ("train.keep", t.keep == 0),
        ] {
            if zero {
                return wrong(key, "0; at least 1".into());
            }
        }
        for (key, size, most) in [
            ("train.views", t.views as u64, MAX_VIEWS as u64),
            ("train.epochs", t.epochs, MAX_EPOCHS),
            ("image.cache_mib", i.cache_mib as u64, MAX_CACHE),
            ("image.resize", i.resize as u64, MAX_SIDE as u64),
            ("model.vision.image_size", self.model.vision.image_size() as u64, MAX_SIDE as u64),
        ] {
            if size > most {
                return wrong(key, format!("{size} is more than {most}"));
            }
        }
        if t.micro_batch > t.batch {
            return wrong("train.micro_batch", format!("{} is more than train.batch = {}", t.micro_batch, t.batch));
        }
        let whole = t.micro_batch == 0 && t.accumulate == 1 && self.optimiser.clip_norm == 0.0;
        if t.step_in_backward && !whole {
            let why = "needs the gradient of the whole batch at once, unclipped: train.micro_batch = 0, train.accumulate = 1, optimiser.clip_norm = 0";
            return wrong("train.step_in_backward", why.into());
        }
        let part = if t.micro_batch == 0 { t.batch } else { (t.batch - 1) % t.micro_batch + 1 };
        let places: usize = self.model.vision.grid().iter().product();
        if matches!(self.model.vision, ImageTowerConfig::Resnet(_)) && part.saturating_mul(places) < 2 {
            let why = "leaves parts of one pair whose last map has one place: no variance for a batch norm";
            return wrong("train.micro_batch", why.into());
        }
        self.check_numbers()?;
        self.augment.validate()?;
        if self.model.joint == 0 {
            return wrong("model.joint", "0: the space of images and texts needs dimensions".into());
        }
        if channels != 1 && channels != 3 {
            return wrong("model.vision.channels", format!("{channels}; pictures have 1 or 3"));
        }
        for (key, values) in [("image.mean", &i.mean), ("image.std", &i.std)] {
            if values.len() != 1 && values.len() != channels {
                return wrong(key, format!("{} values for {channels} channels", values.len()));
            }
        }
        if i.std.iter().any(|s| !s.is_finite() || *s <= 0.0) || i.mean.iter().any(|m| !m.is_finite()) {
            return wrong("image.mean, image.std", "must be finite, and image.std above 0".into());
        }
        if i.resize != 0 && i.resize < self.model.vision.image_size() {
            return wrong(
                "image.resize",
                format!("{} is less than model.vision.image_size = {}", i.resize, self.model.vision.image_size()),
            );
        }
        let resize = self.preprocess().resize;
        if resize > MAX_SIDE {
            return wrong(
                "image.resize",
                format!(
                    "8/7 of model.vision.image_size are {resize}, more than {MAX_SIDE}: give one from the image size on"
                ),
            );
        }
        if self.objective == Objective::Supervised && self.data.labels.is_none() && self.data.labels_from.is_none() {
            return wrong("objective", "supervised training needs --labels (or --labels-from COLUMN)".into());
        }
        if self.data.boxes.is_some() && (self.objective == Objective::Supervised || self.data.prompts.is_none()) {
            return wrong(
                "data.boxes",
                "boxes judge the heat maps of prompts: give --prompts, or leave --boxes out".into(),
            );
        }
        Ok(())
    }

    /// A model that a checkpoint of this run can hold.
    fn check_model(&self) -> Result<()> {
        let (source, vision) = (Source::shapes(), &self.model.vision);
        let model = match self.objective {
            Objective::Clip => DualEncoder::new(&source.params(), &self.model).map(drop),
            Objective::Supervised => ImageTower::new(&source.params(), vision).map(drop),
        };
        model.map_err(|e| Error::usage(e.to_string()))?;
        // Beside each its moments, and its average.
        let (own, each) = (source.asked().len(), 3 + usize::from(self.train.ema > 0.0));
        if own * each > MAX_TENSORS {
            return Err(Error::usage(format!(
                "model: {own} tensors, and {each} of each in a checkpoint, which has room for {MAX_TENSORS}: lower depth (of a residual network, depths)"
            )));
        }
        Ok(())
    }

    /// Each number where it can be computed with.
    fn check_numbers(&self) -> Result<()> {
        let (o, tier) = (&self.optimiser, &self.tier);
        let wrong = |key: &str, value: f64, range: &str| Err(Error::usage(format!("{key}: {value} is not {range}")));
        for (key, share) in [("train.ema", self.train.ema), ("optimiser.beta1", o.beta1), ("optimiser.beta2", o.beta2)]
        {
            if !(0.0..1.0).contains(&share) {
                return wrong(key, share, "in 0..1");
            }
        }
        for (key, positive) in
            [("schedule.lr", self.schedule.lr), ("tier.temperature", tier.temperature), ("optimiser.eps", o.eps)]
        {
            if !positive.is_finite() || positive <= 0.0 {
                return wrong(key, positive, "above 0");
            }
        }
        for (key, amount) in [
            ("schedule.floor", self.schedule.floor),
            ("tier.lambda_p", tier.lambda_p),
            ("tier.lambda_t", tier.lambda_t),
            ("tier.eps", tier.eps),
            ("optimiser.weight_decay", o.weight_decay),
            ("optimiser.clip_norm", o.clip_norm),
        ] {
            if !amount.is_finite() || amount < 0.0 {
                return wrong(key, amount, "a number from 0 on");
            }
        }
        Ok(())
    }
}

/// Applies one `a.b.c=value`; the value is TOML, or a string where it is not.
fn set(table: &mut toml::Table, setting: &str) -> Result<()> {
    let (key, value) = setting
        .split_once('=')
        .ok_or_else(|| Error::usage(format!("--set {setting}: write key=value, as in train.batch=64")))?;
    let value = format!("x = {value}")
        .parse::<toml::Table>()
        .ok()
        .and_then(|mut parsed| parsed.remove("x"))
        .unwrap_or_else(|| toml::Value::String(value.to_owned()));
    let (front, last) = match key.rsplit_once('.') {
        Some((front, last)) => (Some(front), last),
        None => (None, key),
    };
    let mut at = table;
    for part in front.into_iter().flat_map(|front| front.split('.')) {
        at = at
            .entry(part)
            .or_insert_with(|| toml::Value::Table(toml::Table::new()))
            .as_table_mut()
            .ok_or_else(|| Error::usage(format!("--set {setting}: {part} is a value, not a table of values")))?;
    }
    at.insert(last.to_owned(), value);
    Ok(())
}

/// TOML's error on one line.
fn one_line(message: &str) -> String {
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Adds "did you mean" to serde's list of expected keys.
fn with_nearest(message: &str) -> String {
    let message = one_line(message);
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    match quoted.split_first() {
        Some((unknown, expected)) if message.contains("unknown field") || message.contains("unknown variant") => {
            match crate::spelling::nearest(unknown, expected.iter().copied()) {
                Some(best) => format!("{message}; did you mean {best}?"),
                None => message,
            }
        }
        _ => message,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_override_the_file_and_the_effective_config_reads_back_as_itself() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c.toml");
        std::fs::write(&path, "seed = 3\n[train]\nbatch = 16\nepochs = 7\n[schedule]\nshape = \"warm-restarts\"\n")
            .unwrap();
        let settings = ["train.batch=64", "tier.lambda_p=0.5", "train.freeze=[\"text_model\"]", "data.pairs=a b.csv"];
        let config = Config::read(Some(&path), &settings.map(String::from)).unwrap();
        assert_eq!((config.seed, config.train.batch, config.train.epochs, config.tier.lambda_p), (3, 64, 7, 0.5));
        assert_eq!((config.train.freeze[0].as_str(), config.data.pairs.to_str()), ("text_model", Some("a b.csv")));
        std::fs::write(&path, config.to_toml().unwrap()).unwrap();
        assert_eq!(Config::read(Some(&path), &[]).unwrap(), config);
    }

    #[test]
    fn mistakes_are_usage_errors_that_name_the_key() {
        let error = |setting: &str| {
            let e = Config::read(None, &[setting.to_owned()]).and_then(|c| c.check()).unwrap_err();
            assert_eq!(e.kind(), crate::error::Kind::Usage, "{e}");
            e.to_string()
        };
        assert!(error("train.bacth=3").contains("did you mean batch?"), "{}", error("train.bacth=3"));
        assert!(error("train.batch=\"many\"").contains("batch"));
        assert!(error("train.batch").contains("key=value"));
        assert!(error("train.micro_batch=64").contains("train.batch = 32"));
        assert!(error("train.step_in_backward=true").contains("optimiser.clip_norm = 0"));
        assert!(error("seed.x=1").contains("seed"));
        // Unknown keys wherever they are, wrong types, and numbers that cannot be computed with.
        assert!(error("model.vision.patch_sise=8").contains("did you mean patch_size?"));
        assert!(error("optimiser.bta1=0.9").contains("did you mean beta1?"));
        assert!(error("schedule.shape=\"cosin\"").contains("did you mean cosine?"));
        assert!(error("train.precision=\"bf17\"").contains("did you mean bf16?"));
        for (setting, named) in [
            ("train.batch=1.5", "train.batch"),
            ("seed=-1", "seed"),
            ("data.pairs=3", "data.pairs"),
            ("tier=3", "tier"),
            ("model.joint=0", "model.joint"),
            ("model.vision.kind=\"resnt\"", "\"resnet\""),
            ("tier.lambda_p=nan", "tier.lambda_p: NaN"),
            ("tier.eps=-1.0", "tier.eps"),
            ("image.mean=[inf]", "image.mean"),
            ("optimiser.beta2=1.0", "optimiser.beta2"),
            ("optimiser.weight_decay=-0.1", "optimiser.weight_decay"),
            ("schedule.lr=inf", "schedule.lr"),
            ("schedule.floor=nan", "schedule.floor"),
            ("augment.crop_scale=[0.9, 0.2]", "augment.crop_scale"),
            ("augment.degrees=nan", "augment.degrees"),
        ] {
            assert!(error(setting).contains(named), "{setting}: {}", error(setting));
        }
        assert!(error("model.vision.patch_size=7").contains("patch_size"));
        assert!(error("data.boxes=\"boxes.json\"").contains("--prompts"));
        assert!(error("image.std=0").contains("image.std"));
        // Values that contradict others, and what would have nothing to learn from.
        assert!(error("image.resize=8").contains("image.resize: 8 is less than model.vision.image_size = "));
        assert!(error("image.mean=[0.5, 0.5]").contains("image.mean: 2 values for 1 channels"));
        assert!(error("train.batch=1").contains("train.batch: 1 pairs have nothing to contrast with"));
        assert!(error("train.accumulate=0").contains("accumulate"));
        assert!(error("objective=\"supervised\"").contains("objective: supervised training needs --labels"));
        assert!(error("train.batch.size=3").contains("batch"));
        // More than can be held, counted or drawn.
        for (setting, words) in [
            ("model.vision.depth=1000000", "vision: depth = 1000000 is more than 1024"),
            ("model.vision.depth=1000", "lower depth"),
            ("model.vision={width=1048576, heads=4}", "vision: width = 1048576 is more than 262144"),
            ("model.vision.mlp=1000000000", "vision: mlp = 1000000000"),
            ("model.vision.heads=1000000000", "vision: heads = 1000000000"),
            ("model.vision.channels=1000000000", "vision: channels = 1000000000"),
            ("model.vision.stem=[8, 1000000000]", "vision: stem = 1000000000"),
            ("model.vision.stem_residuals=1000000000", "vision: stem_residuals = 1000000000"),
            ("model.vision.image_size=1000000000", "vision: image_size = 1000000000"),
            ("model.vision={image_size=4096, patch_size=1}", "vision: (image_size / patch_size)^2 = 16777216"),
            ("model.text.depth=1000000", "text: depth = 1000000 is more than 1024"),
            ("model.text.width=1000000000", "text: width = 1000000000"),
            ("model.text.mlp=1000000000", "text: mlp = 1000000000"),
            ("model.text.vocabulary=1000000000", "text: vocabulary = 1000000000"),
            ("model.text.max_length=1000000000", "text: max_length = 1000000000"),
            ("model.joint=1000000000", "model: joint = 1000000000"),
            ("model.text_projection={mlp={hidden=1000000000}}", "hidden = 1000000000"),
            ("model.vision={kind=\"resnet\", base=1000000000}", "resnet: base = 1000000000"),
            ("model.vision={kind=\"resnet\", base=1000000}", "the width of the last stage"),
            ("model.vision={kind=\"resnet\", width_per_group=1000000000}", "width_per_group = 1000000000"),
            ("model.vision={kind=\"resnet\", depths=[1000, 1000, 1000, 1000]}", "16384"),
            ("image.resize=4097", "image.resize: 4097 is more than 4096"),
            ("model.vision.image_size=8192", "model.vision.image_size: 8192 is more than 4096"),
            ("model.vision.image_size=3840", "image.resize: 8/7 of model.vision.image_size are 4389"),
            ("image.cache_mib=100000000000", "image.cache_mib"),
            ("train.views=257", "train.views: 257 is more than 256"),
            ("train.epochs=100000000", "train.epochs"),
        ] {
            assert!(error(setting).contains(words), "{setting}: {}", error(setting));
        }
    }

    #[test]
    fn mistakes_in_a_file_name_it_and_their_place() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.toml");
        for (text, words) in [
            ("[train]\nepoch = 3\n", "unknown field `epoch`"),
            ("[train]\nepoch = 3\n", "did you mean epochs?"),
            ("[trian]\nepochs = 3\n", "did you mean train?"),
            ("[train]\nepochs = \"three\"\n", "epochs"),
            ("[train]\nepochs = 3\nepochs = 4\n", "line 3"),
            ("[train\nepochs = 3\n", "line 1"),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = Config::read(Some(&path), &[]).unwrap_err();
            assert_eq!(error.kind(), crate::error::Kind::Usage);
            let error = error.to_string();
            assert!(error.contains("run.toml: ") && error.contains(words), "{text:?}: {error}");
        }
        // Those of a setting name it instead.
        for (text, setting) in [
            ("", "train.bacth=3"),
            ("", "train.batch=\"many\""),
            ("", "train.batch"),
            ("", "train.batch.size=3"),
            ("[train]\nbatch = 4\n", "train.batch.size=3"),
            ("[model.text]\nkind = \"bert\"\n", "model.text.widht=8"),
        ] {
            std::fs::write(&path, text).unwrap();
            let settings = ["train.epochs=2", setting, "train.keep=1"].map(String::from);
            let error = Config::read(Some(&path), &settings).unwrap_err();
            assert_eq!(error.kind(), crate::error::Kind::Usage);
            assert!(error.to_string().starts_with(&format!("--set {setting}: ")), "{error}");
        }
    }
}
