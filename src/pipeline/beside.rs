//! What lies beside a checkpoint: how its pictures are prepared, and its tokenizer.

use std::path::{Path, PathBuf};

use serde_json::json;

use super::Preprocessing;
use crate::checkpoints::layouts::Pixels;
use crate::checkpoints::{Checkpoint, Keys};
use crate::error::{At, Error, Result};
use crate::image::{Filter, Preprocess, Preset, SixteenBit};
use crate::models::clip_text::WholeText;
use crate::models::text_tower::TextTowerConfig;
use crate::text::Tokenizer;

/// How pictures are prepared, the rule for 16-bit grey, and who says so: the checkpoint's own files, else what is usual for its layout.
///
/// # Errors
/// If such a file is missing from a folder of our own, or damaged.
pub fn preprocessing(checkpoint: &Checkpoint) -> Result<(Preprocess, SixteenBit, String)> {
    let folder = checkpoint.image_folder().filter(|_| checkpoint.config.vision().is_some());
    let file = folder.map(|folder| folder.join("preprocessor_config.json"));
    let own = matches!(checkpoint.layout.pixels, Pixels::Own);
    if let Some(file) = file.filter(|file| own || file.is_file()) {
        let bytes = std::fs::read(&file).at(&file)?;
        let read = serde_json::from_slice(&bytes).map_err(|e| Error::new(e.to_string())).at(&file)?;
        let Preprocessing { preprocess, sixteen_bit } = read;
        return Ok((preprocess, sixteen_bit, "preprocessor_config.json".to_owned()));
    }
    let side = checkpoint.config.vision().map(|vision| vision.image_size());
    let at_side = |preset: Preset| {
        let preset = preset.preprocess();
        let side = side.unwrap_or(preset.crop);
        Preprocess { resize: side, crop: side, ..preset }
    };
    let usual = |preprocess, name: &str| Ok((preprocess, SixteenBit::default(), format!("usual for {name}")));
    match checkpoint.layout.pixels {
        Pixels::Own | Pixels::Nothing | Pixels::Clip => usual(at_side(Preset::Clip), "CLIP"),
        Pixels::OpenAi => usual(at_side(Preset::Clip), "CLIP; if the weights are CheXzero's, give --preset chexzero"),
        Pixels::Tier => usual(Preset::Tier.preprocess(), "TIER"),
        Pixels::Biovil => usual(Preset::Biovil.preprocess(), "BioViL"),
        Pixels::HfVit => {
            let (mean, std) = (vec![0.5; 3], vec![0.5; 3]);
            let filter = Filter::Bilinear;
            usual(Preprocess { stretch: true, filter, mean, std, ..at_side(Preset::Clip) }, "Hugging Face's ViT")
        }
        Pixels::Imagenet => match timm(&checkpoint.evidence.config.part("pretrained_cfg"))? {
            Some(preprocess) => Ok((preprocess, SixteenBit::default(), "config.json".to_owned())),
            None => {
                let preprocess = Preset::Tier.preprocess();
                let side = side.unwrap_or(preprocess.crop);
                let resize = side * preprocess.resize / preprocess.crop;
                usual(Preprocess { resize, crop: side, ..preprocess }, "ImageNet's classifiers")
            }
        },
        Pixels::OpenClip => {
            let keys = checkpoint.evidence.open_clip.part("preprocess_cfg");
            if !keys.is_some() {
                return usual(at_side(Preset::Clip), "CLIP");
            }
            Ok((open_clip(&keys, at_side(Preset::Clip))?, SixteenBit::default(), "open_clip_config.json".to_owned()))
        }
    }
}

/// Pictures of the model's own size, where none will come.
pub(super) fn stand_in(checkpoint: &Checkpoint) -> Preprocess {
    let usual = Preset::Clip.preprocess();
    let Some(vision) = checkpoint.config.vision() else { return usual };
    let (side, channels) = (vision.image_size(), vision.channels());
    Preprocess { resize: side, crop: side, channels, mean: vec![0.0; channels], std: vec![1.0; channels], ..usual }
}

/// What timm's pretrained_cfg says: resize by the share that the crop keeps, rounded down, then cut the centre.
fn timm(keys: &Keys) -> Result<Option<Preprocess>> {
    if !keys.is_some() {
        return Ok(None);
    }
    let usual = Preset::Tier.preprocess();
    let crop = match keys.numbers("input_size")? {
        Some(size) if size.len() == 3 && size[1] == size[2] && size[1] >= 1.0 => size[1] as usize,
        Some(_) => return Err(keys.wrong("input_size", "not [channels, side, side]")),
        None => usual.crop,
    };
    keys.only("crop_mode", &[json!("center")])?;
    let share = keys.number("crop_pct")?.unwrap_or(0.875);
    if !(0.1..=1.0).contains(&share) {
        return Err(keys.wrong("crop_pct", "not a share of the picture"));
    }
    let preprocess = Preprocess {
        resize: (crop as f64 / share) as usize,
        crop,
        filter: filter(keys)?.unwrap_or(Filter::Bilinear),
        mean: keys.numbers("mean")?.unwrap_or(usual.mean.clone()),
        std: keys.numbers("std")?.unwrap_or(usual.std.clone()),
        ..usual
    };
    preprocess.validate().at(keys.path())?;
    Ok(Some(preprocess))
}

fn filter(keys: &Keys) -> Result<Option<Filter>> {
    match keys.text("interpolation")? {
        None => Ok(None),
        Some("bicubic" | "random") => Ok(Some(Filter::Bicubic)),
        Some("bilinear") => Ok(Some(Filter::Bilinear)),
        Some(_) => Err(keys.wrong("interpolation", "bicubic and bilinear are supported")),
    }
}

fn open_clip(keys: &Keys, usual: Preprocess) -> Result<Preprocess> {
    keys.only("mode", &[json!("RGB")])?;
    keys.only("resize_mode", &[json!("shortest")])?;
    let preprocess = Preprocess {
        filter: filter(keys)?.unwrap_or(Filter::Bicubic),
        mean: keys.numbers("mean")?.unwrap_or(usual.mean.clone()),
        std: keys.numbers("std")?.unwrap_or(usual.std.clone()),
        ..usual
    };
    preprocess.validate().at(keys.path())?;
    Ok(preprocess)
}

/// A tokenizer with its path, where there is one; and what a user should know of it, or why it is not used.
#[derive(Default)]
pub(super) struct Found {
    pub tokenizer: Option<(Tokenizer, PathBuf)>,
    pub note: Option<String>,
}

/// The tokenizer that is given, else the one beside the texts' weights; nothing if there is none, or no text side.
pub(super) fn tokenizer(checkpoint: &Checkpoint, given: Option<&Path>, max_length: Option<usize>) -> Result<Found> {
    let Some(text) = checkpoint.config.text() else {
        return match given {
            Some(path) => Err(Error::usage("--tokenizer: this model knows no texts").at(path)),
            None => Ok(Found::default()),
        };
    };
    let positions = text.max_length();
    if let Some(length) = max_length.filter(|&length| length > positions) {
        return Err(Error::usage(format!("--max-length {length}: the model has {positions} positions")));
    }
    let own = matches!(checkpoint.layout.pixels, Pixels::Own);
    let beside = checkpoint.text_folder().filter(|folder| Tokenizer::is_in(folder));
    let path = match (given, beside) {
        (Some(path), _) => path.to_path_buf(),
        (None, Some(folder)) => folder,
        (None, None) => return Ok(Found::default()),
    };
    // BERT's tokenizers may stop before the positions do, and ours say where they stop; CLIP's do not say.
    let says = own && given.is_none() || matches!(text, TextTowerConfig::Bert(_));
    let length = max_length.or_else(|| checkpoint.context_length());
    let length = length.or_else(|| (!says).then_some(positions));
    let mut tokenizer = Tokenizer::open(&path, length)?;
    if tokenizer.max_length() > positions {
        tokenizer = Tokenizer::open(&path, Some(positions))?;
    }
    let (has, knows) = (tokenizer.vocabulary(), text.vocabulary());
    let misfit = if has > knows { Some(format!("{has} tokens, but the model has {knows}")) } else { None };
    let misfit = misfit.or(if own { None } else { ends(&tokenizer, text)? });
    if let Some(misfit) = misfit {
        let why = format!("{misfit}: this tokenizer belongs to another model");
        if given.is_some() || own {
            return Err(Error::new(why).at(path));
        }
        let note = format!("{}: {why}; not used: give --tokenizer PATH", path.display());
        return Ok(Found { tokenizer: None, note: Some(note) });
    }
    let note = (has < knows && !own).then(|| format!("{}: {has} tokens of the model's {knows}", path.display()));
    Ok(Found { tokenizer: Some((tokenizer, path)), note })
}

/// What is wrong with how a tokenizer begins and ends texts for a text side, if anything.
fn ends(tokenizer: &Tokenizer, text: &TextTowerConfig) -> Result<Option<String>> {
    let ends_in = |wanted: i64| -> Result<Option<String>> {
        let last = tokenizer.encode(&[""])?.ids.to_vec::<i64>().last().copied();
        Ok((last != Some(wanted)).then(|| {
            let last = last.map_or("no token".to_owned(), |id| format!("token {id}"));
            format!("texts end in {last}, but the model looks for {wanted}")
        }))
    };
    match text {
        TextTowerConfig::Clip(c) => match c.whole {
            WholeText::First(id) => ends_in(id),
            WholeText::LargestId => ends_in(c.vocabulary as i64 - 1),
            WholeText::LastReal => Ok(None),
        },
        TextTowerConfig::Bert(_) => {
            let pieces = tokenizer.pieces("")?;
            let fits = pieces.first().is_some_and(|p| p == "[CLS]") && pieces.last().is_some_and(|p| p == "[SEP]");
            Ok((!fits).then(|| format!("texts become {pieces:?}, but BERT's begin with [CLS] and end in [SEP]")))
        }
    }
}
