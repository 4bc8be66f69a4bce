//! Checkpoints of other programs: recognised by their tensors' names, read as the models here, and written back.
//!
//! A family of checkpoints is one file in `layouts`: how it is recognised, its name table (see [`names`]), and what its config says.
//! Sizes come from the tensors; configs say what tensors do not show, and must agree with them.

mod keys;
pub mod layouts;
pub mod names;
mod precision;
mod sizes;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::buffer::FileBytes;
use crate::dtype::DType;
use crate::error::{At, Error, Result};
use crate::formats::Weights;
use crate::memory;
use crate::models::single::{ImageOutput, TextOutput};
use crate::models::{DualEncoderConfig, GlobalText, ImageModelConfig, Network, NetworkConfig, TextModelConfig};
use crate::nn::{SCALE, Source};
use crate::op::Meta;
use crate::spelling::nearest;
use crate::tensor::Tensor;

pub use keys::Keys;
pub use layouts::hf_clip::{Ends, written as hf_clip_config};
use layouts::{Evidence, LAYOUTS, Layout};
use names::{Names, Read, Table};
pub use precision::{Precision, without_levels};
use sizes::Shapes;

/// An opened checkpoint: what it is, and its tensors as the parameters of a model here, none of them read yet.
pub struct Checkpoint {
    /// The file or folder that was named.
    pub path: PathBuf,
    /// Which family it belongs to.
    pub layout: &'static Layout,
    /// What model it is.
    pub config: NetworkConfig,
    /// What was passed over or assumed, one line each.
    pub notes: Vec<String>,
    /// Everything that was passed over, name by name: one line for each reason.
    pub details: Vec<String>,
    /// The configs beside the weights.
    pub evidence: Evidence,
    /// The files of weights, with what their tensors are.
    parts: Vec<Part>,
}

/// A file of weights, and what its tensors are.
struct Part {
    path: PathBuf,
    layout: &'static Layout,
    weights: Weights,
    /// Before every name, and left off.
    prefix: String,
    read: Read,
    /// What the file calls the scales of its int8 matrices, by the matrices' canonical names.
    scales: BTreeMap<String, String>,
}

/// What training on several devices, and Lightning, put before every name.
const WRAPPERS: [&str; 2] = ["module.", "model."];

/// How many names that were passed over a note lists.
const LISTED: usize = 3;

/// Parameters that files may have and a model may not want, and why.
const SPARE: [(&str, &str); 1] = [("text_model.pooler.", "the pooler, which the projection does not use")];

impl Part {
    /// Forgets every parameter whose name begins otherwise.
    fn keep(&mut self, starts: &[&str]) {
        let kept = |name: &str| starts.iter().any(|start| name.starts_with(start));
        self.read.metas.retain(|name, _| kept(name));
        self.read.names.0.retain(|entry| kept(&entry.canonical));
        self.read.aliases.retain(|entry| kept(&entry.canonical));
    }

    fn foreign(&self, name: &str) -> Option<&Tensor> {
        self.weights.get(&format!("{}{name}", self.prefix))
    }

    /// What an entry names, in the type that is wanted; of levels with their scales.
    fn tensor(
        &self,
        entry: &names::Entry,
        wanted: &dyn Fn(&str, Meta) -> DType,
    ) -> Result<Option<(Tensor, Option<Tensor>)>> {
        let name = &entry.canonical;
        let Some(meta) = self.read.metas.get(name).copied() else {
            return Ok(self
                .foreign(&entry.foreign)
                .and_then(|tensor| entry.view.of(tensor))
                .map(|tensor| (tensor, None)));
        };
        let (dtype, scale) = (wanted(name, meta), self.scales.get(name).and_then(|scale| self.foreign(scale)));
        if dtype == meta.dtype {
            let tensor = self.foreign(&entry.foreign).and_then(|tensor| entry.view.of(tensor));
            return Ok(tensor.map(|tensor| (tensor, scale.cloned())));
        }
        // What becomes another tensor is read once, so that the file's pages do not stay in memory beside it.
        let kept = self.weights.read(&format!("{}{}", self.prefix, entry.foreign))?;
        let wide = match (kept, scale) {
            (Some(levels), Some(scale)) => Some(precision::widened(&levels, scale)),
            (kept, _) => kept.and_then(|kept| entry.view.of(&kept)),
        };
        let Some(wide) = wide else { return Ok(None) };
        if dtype == DType::I8 {
            let (levels, scale) =
                precision::narrowed(name, &wide.to_dtype(DType::F32).packed()).at(self.weights.path())?;
            return Ok(Some((levels, Some(scale))));
        }
        Ok(Some((wide.to_dtype(dtype), None)))
    }
}

/// How many wrong names a file may have for which a layout is still told.
const MISSPELT: usize = 3;

/// What to say of a file that would be of a layout if a few of its names were what they are most like.
fn nearly(metas: &[(&str, Meta)], evidence: &Evidence) -> Option<String> {
    for layout in LAYOUTS {
        let table = Table::new(&(layout.names)());
        let Ok(read) = table.read(metas.to_vec()) else { continue };
        let likely = |name: &String| Some((name.clone(), nearest(name, &table.like(name))?.to_owned()));
        let meant: Option<Vec<_>> = read.unknown.iter().map(likely).collect();
        let Some(meant) = meant.filter(|meant| (1..=MISSPELT).contains(&meant.len())) else { continue };
        let names = metas.iter().map(|(name, _)| *name).filter(|name| !read.unknown.iter().any(|u| u == name));
        let names = names.map(str::to_owned).chain(meant.iter().map(|(_, near)| near.clone())).collect();
        let (config, open_clip) = (evidence.config.clone(), evidence.open_clip.clone());
        if (layout.fits)(&Evidence { names, config, open_clip }) {
            let told: Vec<String> = meant.iter().map(|(name, near)| format!("{name} (nearest: {near})")).collect();
            return Some(format!("tensors of no known model, but nearly {}: {}", layout.name, told.join(", ")));
        }
    }
    None
}

impl Checkpoint {
    /// Opens a folder (config.json and weights) or a file of weights (.safetensors, .pt, .bin). With `map` tensors are views of the mapped
    /// file. Reads names and configs only.
    ///
    /// # Errors
    /// If no layout fits, config and tensors contradict each other, or tensors are missing, have other dims or are not part of the model:
    /// the message lists them.
    pub fn open(path: &Path, map: bool) -> Result<Self> {
        Self::of(path, Self::weights_of(path, map)?)
    }

    /// The weights of a folder or file, whatever they are.
    ///
    /// # Errors
    /// If there are none, or the file is damaged.
    pub fn weights_of(path: &Path, map: bool) -> Result<Weights> {
        if path.is_dir() { Weights::open_folder(path, map) } else { Weights::open(path, map) }
    }

    /// What [`Checkpoint::open`] makes of the weights that lie at `path`.
    ///
    /// # Errors
    /// As there.
    pub fn of(path: &Path, weights: Weights) -> Result<Self> {
        let file = weights.path().to_path_buf();
        Self::recognised(path, weights).at(file)
    }

    /// How many parameters the model has; running statistics are none.
    pub fn parameter_count(&self) -> usize {
        let running = |name: &str| name.ends_with(".running_mean") || name.ends_with(".running_var");
        let metas = self.parts.iter().flat_map(|part| &part.read.metas);
        metas.filter(|(name, _)| !running(name)).map(|(_, meta)| meta.dims.numel()).sum()
    }

    /// The family, or families, it belongs to.
    pub fn layout_name(&self) -> String {
        let names: Vec<&str> = self.parts.iter().map(|part| part.layout.name).collect();
        names.join(" + ")
    }

    /// How the matrices are kept: as most of their numbers are.
    pub fn precision(&self) -> Precision {
        let metas = || self.parts.iter().flat_map(|part| &part.read.metas);
        let numbers = |dtype: DType, counts: &dyn Fn(&str, Meta) -> bool| -> usize {
            let of_type = metas().filter(|(name, meta)| meta.dtype == dtype && counts(name, **meta));
            of_type.map(|(_, meta)| meta.dims.numel()).sum()
        };
        let matrices = |dtype| numbers(dtype, &precision::is_matrix);
        let convolutions = |dtype| numbers(dtype, &precision::is_convolution);
        // Convolutions are kept in f32 beside other types as well, and say nothing then; in bf16 they lie beside int8 too.
        let int8 = match matrices(DType::I8) {
            0 => 0,
            levels => levels + convolutions(DType::BF16),
        };
        let kept = [
            (Precision::Int8, int8),
            (Precision::F16, matrices(DType::F16) + convolutions(DType::F16)),
            (Precision::Bf16, matrices(DType::BF16) + convolutions(DType::BF16)),
            (Precision::F32, matrices(DType::F32)),
        ];
        // Where there are none it is f32, the last.
        kept.into_iter().max_by_key(|(_, numbers)| *numbers).map_or(Precision::F32, |(precision, _)| precision)
    }

    fn recognised(path: &Path, weights: Weights) -> Result<Self> {
        let mut prefix = String::new();
        let (metas, layout, evidence) = loop {
            let metas: Vec<(&str, Meta)> = weights.metas().map(|(name, meta)| (&name[prefix.len()..], meta)).collect();
            let names: BTreeSet<String> = metas.iter().map(|(name, _)| (*name).to_owned()).collect();
            let evidence = Evidence::new(names, configs_of(path, weights.path()).as_deref())?;
            layouts::none_other(&evidence)?;
            if let Some(layout) = LAYOUTS.into_iter().find(|layout| (layout.fits)(&evidence)) {
                break (metas, layout, evidence);
            }
            let before_all = |wrapper: &&&str| metas.iter().all(|(name, _)| name.starts_with(**wrapper));
            match WRAPPERS.iter().find(before_all).filter(|_| !metas.is_empty()) {
                Some(wrapper) => prefix.push_str(wrapper),
                None => {
                    let known: Vec<&str> = LAYOUTS.iter().map(|layout| layout.name).collect();
                    let first: Vec<&str> = metas.iter().take(3).map(|(name, _)| *name).collect();
                    if let Some(nearly) = nearly(&metas, &evidence) {
                        return Err(Error::new(nearly));
                    }
                    return Err(Error::new(format!(
                        "tensors of no known model ({}, ...); known are {}. Of a model that is a part of another, save \
                         its own state_dict()",
                        first.join(", "),
                        known.join(", ")
                    )));
                }
            }
        };
        let table = Table::new(&(layout.names)());
        let mut read = table.read(metas)?;
        let scales = precision::take_scales(&mut read)?;
        let config = (layout.config)(&Shapes { read: &read, table: &table }, &evidence)?;
        let mut notes = weights.notes().to_vec();
        if !prefix.is_empty() {
            notes.push(format!("{prefix} left off every name"));
        }
        notes.extend((layout.assumed)(&evidence).map(str::to_owned));
        let expected = expected(&config)?;
        for (start, why) in SPARE {
            if !expected.keys().any(|name| name.starts_with(start)) {
                let spare: Vec<String> = read.metas.keys().filter(|name| name.starts_with(start)).cloned().collect();
                for name in spare {
                    read.ignored.push((names::own_name(&name, &read, &table), why.to_owned()));
                    read.metas.remove(&name);
                    read.names.0.retain(|entry| entry.canonical != name);
                }
            }
        }
        names::check(&expected, &read, &table)?;
        let mut by_reason: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (name, why) in &read.ignored {
            by_reason.entry(why).or_default().push(name);
        }
        let aliases: Vec<&str> = read.aliases.iter().map(|entry| entry.foreign.as_str()).collect();
        let mut passed: Vec<(String, Vec<&str>)> =
            by_reason.into_iter().map(|(why, names)| (format!("not used: {why}"), names)).collect();
        if !aliases.is_empty() {
            passed.push(("second names of tensors".to_owned(), aliases));
        }
        notes.extend(passed.iter().map(|(what, names)| match names[..] {
            [first, ..] if names.len() > LISTED => format!("{what}: {} tensors, the first {first}", names.len()),
            _ => format!("{what}: {}", names.join(", ")),
        }));
        let details = passed.iter().map(|(what, names)| format!("{what}: {}", names.join(", "))).collect();
        let tables: Vec<usize> =
            scales.keys().filter(|name| precision::is_table(name)).map(|name| read.metas[name].dims.numel()).collect();
        if !scales.is_empty() {
            let mib = (4 * tables.iter().sum::<usize>()) as f64 / f64::from(1 << 20);
            let rest = match tables.len() {
                0 => String::new(),
                n => format!("; of them {n} tables of embeddings, widened to f32 in memory: {mib:.1} MiB"),
            };
            notes.push(format!("{} int8 matrices{rest}", scales.len()));
        }
        let parts = vec![Part { path: path.to_path_buf(), layout, weights, prefix, read, scales }];
        Ok(Self { path: path.to_path_buf(), layout, config, notes, details, evidence, parts })
    }

    /// Joins the image side of one checkpoint and the text side of another, with a fresh logit scale of ln(1 / 0.07).
    ///
    /// # Errors
    /// If a side is missing or has no projection, their joint spaces differ, or either cannot be opened.
    pub fn join(image: &Path, text: &Path, map: bool) -> Result<Self> {
        let (mut images, mut texts) = (Self::open(image, map)?, Self::open(text, map)?);
        let side = |of: &Self, path: &Path, found: bool, what: &str| match found {
            true => Ok(()),
            false => {
                Err(Error::new(format!("{}: no {what} with a projection into a joint space", of.layout.name)).at(path))
            }
        };
        let (mut config, mut joints) = (DualEncoderConfig::default(), [0, 0]);
        match &images.config {
            NetworkConfig::TiergradDualEncoder(c) => {
                (config.vision, config.global_image) = (c.vision.clone(), c.global_image);
                (config.visual_projection, joints[0]) = (c.visual_projection, c.joint);
            }
            NetworkConfig::TiergradImageModel(ImageModelConfig {
                vision,
                global_image,
                output: ImageOutput::Joint { joint, projection },
                pooled_norm: None,
            }) => {
                (config.vision, config.global_image) = (vision.clone(), *global_image);
                (config.visual_projection, joints[0]) = (*projection, *joint);
            }
            _ => side(&images, image, false, "image side")?,
        }
        match &texts.config {
            NetworkConfig::TiergradDualEncoder(c) => {
                (config.text, config.global_text) = (c.text.clone(), c.global_text);
                (config.text_projection, joints[1]) = (c.text_projection, c.joint);
            }
            NetworkConfig::TiergradTextModel(TextModelConfig {
                text: tower,
                output: TextOutput::Joint { joint, projection },
            }) => {
                (config.text, config.global_text) = (tower.clone(), Some(GlobalText::Token));
                (config.text_projection, joints[1]) = (*projection, *joint);
            }
            _ => side(&texts, text, false, "text side")?,
        }
        if joints[0] != joints[1] {
            return Err(Error::new(format!(
                "a joint space of {}, but that of the images has {}",
                joints[1], joints[0]
            ))
            .at(text));
        }
        config.joint = joints[0];
        for (of, starts) in
            [(&mut images, ["vision_model.", "visual_projection."]), (&mut texts, ["text_model.", "text_projection."])]
        {
            for part in &mut of.parts {
                part.keep(&starts);
            }
        }
        let of_both = |images: Vec<String>, texts: Vec<String>| -> Vec<String> {
            let named = |path: &Path, lines: Vec<String>| {
                let path = path.display().to_string();
                lines.into_iter().map(move |line| format!("{path}: {line}"))
            };
            named(image, images).chain(named(text, texts)).collect()
        };
        let mut notes = of_both(images.notes, texts.notes);
        notes.push("logit_scale is ln(1 / 0.07): the parts have none in common".to_owned());
        Ok(Self {
            path: PathBuf::from(format!("{} + {}", image.display(), text.display())),
            layout: images.layout,
            config: NetworkConfig::TiergradDualEncoder(config),
            notes,
            details: of_both(images.details, texts.details),
            evidence: images.evidence,
            parts: images.parts.into_iter().chain(texts.parts).collect(),
        })
    }

    /// The folder where the files that say how pictures are prepared may lie; none beside a lone file.
    pub fn image_folder(&self) -> Option<PathBuf> {
        let first = self.parts.first()?;
        configs_of(&first.path, first.weights.path())
    }

    /// The folder where a tokenizer may lie.
    pub fn text_folder(&self) -> Option<PathBuf> {
        Some(beside(self.parts.last()?.weights.path()))
    }

    /// What was named for the texts.
    pub fn text_path(&self) -> &Path {
        self.parts.last().map_or(&self.path, |part| &part.path)
    }

    /// Longest text that the config has, where it says.
    pub fn context_length(&self) -> Option<usize> {
        self.evidence.open_clip.part("model_cfg").part("text_cfg").count("context_length").ok()?
    }

    /// The files of weights, as they are held.
    pub fn files(&self) -> Vec<Arc<FileBytes>> {
        self.weights().flat_map(|weights| weights.files().iter().cloned()).collect()
    }

    /// The weights, file by file.
    pub fn weights(&self) -> impl Iterator<Item = &Weights> {
        self.parts.iter().map(|part| &part.weights)
    }

    /// What the checkpoint calls each parameter, for naming gradients and for writing it back: see [`Names::foreign`].
    pub fn names(&self) -> Names {
        Names(self.parts.iter().flat_map(|part| part.read.names.0.iter().cloned()).collect())
    }

    /// The parameters, by canonical name, as views of the checkpoint's tensors in their own types; int8 matrices in f32.
    ///
    /// # Errors
    /// If two names of one parameter have different values, or a file's bytes are not what its checksums say.
    pub fn tensors(&self) -> Result<BTreeMap<String, Tensor>> {
        self.tensors_in(&|_, meta| if meta.dtype == DType::I8 { DType::F32 } else { meta.dtype })
    }

    /// As [`Checkpoint::tensors`], in the types that are wanted by name; what is to be i8 are levels, and their scales come too.
    fn tensors_in(&self, wanted: &dyn Fn(&str, Meta) -> DType) -> Result<BTreeMap<String, Tensor>> {
        let mut out = BTreeMap::new();
        let made = |(name, meta): (&String, &Meta)| match wanted(name, *meta) {
            dtype if dtype == meta.dtype => 0,
            dtype => dtype.size() * meta.dims.numel(),
        };
        let of_part = |part: &Part| part.read.metas.iter().map(made).sum::<usize>();
        memory::room(self.parts.iter().map(of_part).sum::<usize>() as u64, "these weights, converted,")?;
        for part in &self.parts {
            part.weights.check()?;
            let of = |entry: &names::Entry| part.tensor(entry, wanted);
            for entry in &part.read.names.0 {
                if let Some((tensor, scale)) = of(entry)? {
                    out.extend(scale.map(|scale| (format!("{}{SCALE}", entry.canonical), scale)));
                    out.insert(entry.canonical.clone(), tensor);
                }
            }
            for alias in &part.read.aliases {
                if let (Some(kept), Some((second, _))) = (out.get(&alias.canonical), of(alias)?)
                    && !equal(kept, &second)
                {
                    let first = part.read.names.foreign_name(&alias.canonical).unwrap_or_default();
                    let differ = format!("{first} and {} should be the same, but differ", alias.foreign);
                    return Err(Error::new(differ).at(part.weights.path()));
                }
            }
        }
        if self.parts.len() > 1 {
            out.insert("logit_scale".to_owned(), Tensor::scalar((1.0f64 / 0.07).ln() as f32));
        }
        Ok(out)
    }

    /// The model, which multiplies matrices as its file keeps them: f32 and half types stay views of the file, and so do int8 matrices,
    /// but for tables of embeddings; all else is f32.
    ///
    /// # Errors
    /// If a tensor is not of a floating type, or see [`Checkpoint::tensors`].
    pub fn network(&self) -> Result<Network> {
        self.network_in(None)
    }

    /// The model, all of it in f32.
    ///
    /// # Errors
    /// As [`Checkpoint::network`].
    pub fn network_in_f32(&self) -> Result<Network> {
        self.network_in(Some(Precision::F32))
    }

    /// The model with its matrices in a precision, whatever the file has them in.
    ///
    /// # Errors
    /// As [`Checkpoint::network`]; also if int8 is wanted of what is not finite.
    pub fn network_in(&self, precision: Option<Precision>) -> Result<Network> {
        let integers = [DType::I64, DType::I32, DType::U8];
        let tensors = self.tensors_in(&|name, meta| match meta.dtype {
            dtype if integers.contains(&dtype) => dtype,
            dtype => precision.unwrap_or(Precision::of_type(dtype)).of_parameter(name, meta),
        })?;
        // What was read to become something else would stay beside it.
        crate::buffer::release();
        if let Some((name, tensor)) = tensors.iter().find(|(_, tensor)| integers.contains(&tensor.dtype())) {
            return Err(Error::new(format!("{name} is {}, not a floating type", tensor.dtype())).at(&self.path));
        }
        Network::new(&Source::tensors(&tensors).params(), &self.config).at(&self.path)
    }
}

/// Where the configs of a file lie: beside it, if its name is one that folders have, so that a file among others is not taken for theirs.
fn configs_of(path: &Path, file: &Path) -> Option<PathBuf> {
    const IN_FOLDERS: [&str; 3] = ["model.", "pytorch_model.", "open_clip_"];
    let named = path.is_dir() || is_kept_epoch(file) || IN_FOLDERS.iter().any(|start| begins(file, start));
    named.then(|| beside(file))
}

/// The folder whose other files belong to this one of weights: its own, or of an epoch that a run has kept that of the run's model.
fn beside(file: &Path) -> PathBuf {
    let folder = file.parent().unwrap_or(Path::new(""));
    if is_kept_epoch(file) { folder.with_file_name("model") } else { folder.to_path_buf() }
}

/// RUN/checkpoints/epoch-NNNN.safetensors, beside RUN/model.
fn is_kept_epoch(file: &Path) -> bool {
    let folder = file.parent().filter(|folder| folder.ends_with("checkpoints"));
    begins(file, "epoch-") && folder.is_some_and(|folder| folder.with_file_name("model").is_dir())
}

fn begins(file: &Path, start: &str) -> bool {
    file.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(start))
}

/// What a model asks for.
fn expected(config: &NetworkConfig) -> Result<BTreeMap<String, crate::layout::Dims>> {
    let source = Source::shapes();
    Network::new(&source.params(), config)?;
    Ok(source.asked())
}

/// Whether two tensors have the same bits.
fn equal(a: &Tensor, b: &Tensor) -> bool {
    let bytes = |t: &Tensor| {
        let t = t.packed();
        let size = t.dtype().size();
        t.buffer().bytes()[t.layout().offset() * size..][..t.numel() * size].to_vec()
    };
    let same_view = a.buffer().same(b.buffer()) && a.layout() == b.layout();
    a.meta() == b.meta() && (same_view || bytes(a) == bytes(b))
}

#[cfg(test)]
mod tests;
