//! `tier preprocess`: what a model gets to see of an image.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::model::Sides;
use super::{Global, outputs};
use crate::error::{Error, Result};
use crate::formats::safetensors;
use crate::image::{self, Filter, Preprocess, Preset, SixteenBit};
use crate::pipeline;
use crate::tensor::Tensor;

/// Writes the values that a model gets of an image (`pixel_values`, f32 [1, channels, height, width]).
#[derive(clap::Args)]
pub struct Args {
    /// PNG, JPEG or DICOM.
    image: PathBuf,
    /// The safetensors file to write.
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Also write what is seen, before normalisation, as a PNG.
    #[arg(long, value_name = "FILE")]
    png: Option<PathBuf>,
    /// The model whose preprocessing it is; flags say what differs.
    #[arg(long, value_name = "PATH", conflicts_with_all = ["image_model", "text_model"])]
    model: Option<PathBuf>,
    #[command(flatten)]
    sides: Sides,
    #[command(flatten)]
    pixels: Pixels,
}

/// Flags that say how an image becomes values, for every command that reads images.
#[derive(clap::Args, Clone, Debug, Default, PartialEq)]
pub struct Pixels {
    /// The preprocessing of a known model; the flags below say what differs.
    #[arg(long, value_enum)]
    pub preset: Option<Preset>,
    /// What the shorter side becomes.
    #[arg(long, value_name = "N")]
    pub resize: Option<usize>,
    /// Side of the centre crop (default: as --resize).
    #[arg(long, value_name = "N")]
    pub crop: Option<usize>,
    /// Kernel of the resize.
    #[arg(long, value_enum)]
    pub filter: Option<Filter>,
    /// Mean per channel, of values 0 to 1: a,b,c or one number for grey.
    #[arg(long, value_delimiter = ',', value_name = "A,B,C", allow_negative_numbers = true)]
    pub mean: Option<Vec<f64>>,
    /// Standard deviation per channel, of values 0 to 1.
    #[arg(long, value_delimiter = ',', value_name = "A,B,C")]
    pub std: Option<Vec<f64>>,
    /// How 16-bit levels become 8-bit ones; a DICOM file says so itself.
    #[arg(long, value_enum)]
    pub sixteen_bit: Option<SixteenBit>,
}

impl Pixels {
    /// The preset, or `model`'s own preprocessing with what the flags say instead.
    ///
    /// # Errors
    /// A usage error if nothing says how, or the flags do not fit together.
    pub fn preprocess(&self, model: Option<Preprocess>) -> Result<Preprocess> {
        let mut chosen = match (self.preset, model, self.resize) {
            (Some(preset), ..) => preset.preprocess(),
            (None, Some(model), _) => model,
            (None, None, Some(_)) => Preset::Tier.preprocess(),
            (None, None, None) => {
                return Err(Error::usage("say how: --model PATH, --preset NAME, or --resize N and what else differs"));
            }
        };
        if let Some(resize) = self.resize {
            chosen.resize = resize;
            chosen.crop = resize;
        }
        chosen.crop = self.crop.unwrap_or(chosen.crop);
        chosen.filter = self.filter.unwrap_or(chosen.filter);
        if let Some(mean) = &self.mean {
            chosen.channels = mean.len();
            chosen.mean.clone_from(mean);
        }
        if let Some(std) = &self.std {
            chosen.std.clone_from(std);
        }
        chosen.validate().map_err(|e| Error::usage(format!("--resize, --crop, --mean, --std: {e}")))?;
        Ok(chosen)
    }
}

pub(super) fn run(args: &Args, global: &Global) -> Result<()> {
    super::heatmap::only_png(args.png.as_deref())?;
    let written = [&args.output].into_iter().chain(&args.png).map(PathBuf::as_path);
    let read = args.model.as_deref().into_iter().chain(args.sides.paths()).chain([args.image.as_path()]);
    outputs::apart(written, read)?;
    let own = if args.model.is_some() || args.sides.is_some() {
        let checkpoint = args.sides.checkpoint(args.model.as_deref(), global)?;
        if checkpoint.config.vision().is_none() {
            return Err(Error::usage("this model knows no images").at(&checkpoint.path));
        }
        Some(pipeline::preprocessing(&checkpoint)?)
    } else {
        None
    };
    let sixteen_bit = args.pixels.sixteen_bit.or(own.as_ref().map(|own| own.1)).unwrap_or_default();
    let preprocess = args.pixels.preprocess(own.map(|own| own.0))?;
    let (picture, mut notes) = image::open_with_notes(&args.image, sixteen_bit)?;
    notes.extend(image::doubts(&picture));
    notes.iter().for_each(|note| global.say(format_args!("{}: {note}", args.image.display())));
    let seen = preprocess.seen(&picture);
    let values = preprocess.normalise(&seen);
    let dims = [1, preprocess.channels, preprocess.crop, preprocess.crop];
    let description = serde_json::json!({
        "image": args.image.display().to_string(),
        "width": picture.width,
        "height": picture.height,
        "channels": picture.channels,
        "sixteen_bit": sixteen_bit,
        "preprocess": preprocess,
        "warnings": notes,
    });
    let metadata = BTreeMap::from([("tiergrad".to_owned(), description.to_string())]);
    let pixels = Tensor::from_slice(&values, dims);
    safetensors::save(&args.output, [("pixel_values".to_owned(), &pixels)], &metadata)?;
    if let Some(path) = &args.png {
        seen.save_png(path)?;
    }
    global.say(format_args!(
        "{} x {} x {}: {}, 16-bit grey by {sixteen_bit}",
        picture.width,
        picture.height,
        picture.channels,
        preprocess.describe()
    ));
    if global.json {
        global.print(description)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_change_what_the_model_says() {
        let clip = Preset::Clip.preprocess();
        let flags = Pixels { resize: Some(300), filter: Some(Filter::Bilinear), ..Pixels::default() };
        let chosen = flags.preprocess(Some(clip.clone())).unwrap();
        assert_eq!((chosen.resize, chosen.crop, chosen.filter, &chosen.mean), (300, 300, Filter::Bilinear, &clip.mean));
        assert_eq!(Pixels::default().preprocess(Some(clip.clone())).unwrap(), clip);
        let grey = Pixels { resize: Some(9), mean: Some(vec![0.5]), std: Some(vec![0.5]), ..Pixels::default() };
        assert_eq!(grey.preprocess(None).unwrap().channels, 1);
        let usage = |flags: Pixels| flags.preprocess(None).unwrap_err();
        assert_eq!(usage(Pixels::default()).kind(), crate::error::Kind::Usage);
        let smaller = Pixels { preset: Some(Preset::Chexzero), resize: Some(32), ..Pixels::default() };
        let chosen = smaller.preprocess(Some(clip)).unwrap();
        assert_eq!((chosen.square, chosen.resize, chosen.crop), (Some(320), 32, 32));
        let half = usage(Pixels { mean: Some(vec![0.5]), ..flags });
        assert!(half.kind() == crate::error::Kind::Usage && half.to_string().contains("image_std has 3 values"));
    }
}
