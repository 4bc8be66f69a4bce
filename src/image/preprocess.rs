//! From a picture to what a model sees: resize the shorter side, cut the centre, normalise.

use std::borrow::Cow;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::resize::window;
use super::{Filter, Picture, resize};
use crate::error::{At, Error, Result};

/// Largest side of anything that a picture is resized to.
pub const MAX_SIDE: usize = 4096;

/// A model's own preprocessing; equal to torchvision's Resize, CenterCrop, ToTensor and Normalize on Pillow's pictures.
///
/// As JSON it is a `preprocessor_config.json` with Hugging Face's keys, and `channels` and `square` besides.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Config", into = "Config")]
pub struct Preprocess {
    /// CheXzero's first step: the longer side becomes this long (Lanczos), and black bars make a square of it.
    pub square: Option<usize>,
    /// What the shorter side becomes; both sides where `stretch`.
    pub resize: usize,
    /// Both sides are resized, whatever the picture's shape: Hugging Face's ViT.
    pub stretch: bool,
    /// Side of the square that is cut from the centre; black is added where the picture is smaller.
    pub crop: usize,
    /// Kernel of the resize.
    pub filter: Filter,
    /// Channels that the model takes: 1 (grey) or 3 (grey is repeated).
    pub channels: usize,
    /// Per channel, of values 0 to 1.
    pub mean: Vec<f64>,
    /// Per channel, of values 0 to 1.
    pub std: Vec<f64>,
}

/// Preprocessings that are known by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum Preset {
    /// TIER's test transform: 256 bilinear, crop 224, ImageNet's statistics.
    Tier,
    /// CLIP's: 224 bicubic, crop 224, its own statistics.
    Clip,
    /// CheXzero's: a black square of 320, its own statistics, 224 bicubic.
    Chexzero,
    /// BioViL's: 512 bilinear, crop 480, values 0 to 1.
    Biovil,
}

impl Preset {
    /// The preprocessing of that name.
    pub fn preprocess(self) -> Preprocess {
        let three = |resize, crop, filter, mean: [f64; 3], std: [f64; 3]| Preprocess {
            square: None,
            stretch: false,
            resize,
            crop,
            filter,
            channels: 3,
            mean: mean.to_vec(),
            std: std.to_vec(),
        };
        match self {
            Self::Tier => three(256, 224, Filter::Bilinear, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
            Self::Clip => three(
                224,
                224,
                Filter::Bicubic,
                [0.48145466, 0.4578275, 0.40821073],
                [0.26862954, 0.26130258, 0.27577711],
            ),
            Self::Chexzero => Preprocess {
                square: Some(320),
                ..three(224, 224, Filter::Bicubic, [101.48761 / 255.0; 3], [83.43944 / 255.0; 3])
            },
            Self::Biovil => three(512, 480, Filter::Bilinear, [0.0; 3], [1.0; 3]),
        }
    }
}

impl Preprocess {
    /// Reads a `preprocessor_config.json`.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let bytes = std::fs::read(path).at(path)?;
        serde_json::from_slice(&bytes).map_err(|e| Error::new(e.to_string())).at(path)
    }

    /// Writes a `preprocessor_config.json`.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let json = serde_json::to_string_pretty(self).map_err(|e| Error::new(e.to_string())).at(&path)?;
        crate::files::write_atomic(path, format!("{json}\n").as_bytes())
    }

    /// Whether the sizes, channels and statistics can be used together.
    ///
    /// # Errors
    /// If they cannot; the message names the key.
    pub fn validate(&self) -> Result<()> {
        for (key, side) in [("size", self.resize), ("crop_size", self.crop), ("square", self.square.unwrap_or(1))] {
            if !(1..=MAX_SIDE).contains(&side) {
                return Err(Error::new(format!("{key} is {side}; give a side of 1 to {MAX_SIDE} pixels")));
            }
        }
        if ![1, 3].contains(&self.channels) {
            return Err(Error::new(format!("channels is {}; give 1 (grey) or 3", self.channels)));
        }
        for (key, values) in [("image_mean", &self.mean), ("image_std", &self.std)] {
            if values.len() != self.channels {
                return Err(Error::new(format!(
                    "{key} has {} values for {} channels; give one per channel",
                    values.len(),
                    self.channels
                )));
            }
            if values.iter().any(|&x| !x.is_finite() || (key == "image_std" && x <= 0.0)) {
                return Err(Error::new(format!("{key} is {values:?}; give finite numbers, above 0 for image_std")));
            }
        }
        Ok(())
    }

    /// One line for people.
    pub fn describe(&self) -> String {
        let square = self.square.map_or(String::new(), |s| format!("black square {s}, "));
        // As many digits as an f32 tells apart.
        let list = |values: &[f64]| values.iter().map(|&x| (x as f32).to_string()).collect::<Vec<_>>().join(", ");
        format!(
            "{square}{} {} {}, centre crop {}, {}, mean {}, std {}",
            if self.stretch { "stretch to" } else { "resize" },
            self.resize,
            self.filter,
            self.crop,
            if self.channels == 1 { "grey" } else { "3 channels" },
            list(&self.mean),
            list(&self.std)
        )
    }

    /// Values of one preprocessed picture.
    pub fn numel(&self) -> usize {
        self.channels * self.crop * self.crop
    }

    /// Resized and cropped: what the model sees, `crop` by `crop`. Grey stays one channel.
    pub fn seen(&self, picture: &Picture) -> Picture {
        let picture = self.prepared(picture);
        let whole = self.whole(picture.width, picture.height);
        let (x, y) = (Cut::centre(whole.0, self.crop), Cut::centre(whole.1, self.crop));
        let part = window(&picture, whole, (x.from, y.from), (x.size, y.size), self.filter);
        pasted(part, (self.crop, self.crop), (x.to, y.to))
    }

    /// The whole picture with its shorter side at `resize`, before anything is cut: what augmentation starts from, and small enough to
    /// be kept. Doing it again changes nothing, unless there is a `square`.
    pub fn resized<'a>(&self, picture: &'a Picture) -> Cow<'a, Picture> {
        let (width, height) = match self.square {
            Some(_) => (self.resize, self.resize),
            None => self.whole(picture.width, picture.height),
        };
        match self.prepared(picture) {
            Cow::Borrowed(same) => resize(same, width, height, self.filter),
            Cow::Owned(other) => Cow::Owned(resize(&other, width, height, self.filter).into_owned()),
        }
    }

    /// Width and height of the resized picture.
    fn whole(&self, width: usize, height: usize) -> (usize, usize) {
        if self.stretch { (self.resize, self.resize) } else { shorter_to(width, height, self.resize) }
    }

    /// Grey where the model takes one channel, and on a square where it wants one.
    fn prepared<'a>(&self, picture: &'a Picture) -> Cow<'a, Picture> {
        let picture = if self.channels == 1 { picture.grey() } else { Cow::Borrowed(picture) };
        let Some(square) = self.square else { return picture };
        let (width, height) = longer_to(picture.width, picture.height, square);
        let small = resize(&picture, width, height, Filter::Lanczos).into_owned();
        Cow::Owned(pasted(small, (square, square), ((square - width) / 2, (square - height) / 2)))
    }

    /// Levels to values, `(level / 255 - mean) / std`, as `[channels, height, width]` in row-major order.
    pub fn normalise(&self, picture: &Picture) -> Vec<f32> {
        let picture = if self.channels == 1 { picture.grey() } else { Cow::Borrowed(picture) };
        let mut values = Vec::with_capacity(self.channels * picture.width * picture.height);
        for channel in 0..self.channels {
            let (mean, std) = self.statistics(channel);
            let table: [f32; 256] = std::array::from_fn(|level| (level as f32 / 255.0 - mean) / std);
            let from = channel % picture.channels;
            let levels = picture.pixels.iter().skip(from).step_by(picture.channels);
            values.extend(levels.map(|&level| table[usize::from(level)]));
        }
        values
    }

    /// Mean and standard deviation of a channel.
    pub(super) fn statistics(&self, channel: usize) -> (f32, f32) {
        (self.mean[channel] as f32, self.std[channel] as f32)
    }

    /// [`Preprocess::seen`], normalised: `[channels, crop, crop]`.
    pub fn apply(&self, picture: &Picture) -> Vec<f32> {
        self.normalise(&self.seen(picture))
    }

    /// A box `[x, y, width, height]` of a source picture (width, height) in pixels of the crop; it may reach outside.
    pub fn map_box(&self, source: (usize, usize), bbox: [f64; 4]) -> [f64; 4] {
        let mut size = source;
        let mut mapped = bbox;
        if let Some(square) = self.square {
            let (width, height) = longer_to(size.0, size.1, square);
            scale_box(&mut mapped, size, (width, height));
            mapped[0] += ((square - width) / 2) as f64;
            mapped[1] += ((square - height) / 2) as f64;
            size = (square, square);
        }
        let whole = self.whole(size.0, size.1);
        scale_box(&mut mapped, size, whole);
        let (x, y) = (Cut::centre(whole.0, self.crop), Cut::centre(whole.1, self.crop));
        mapped[0] += x.to as f64 - x.from as f64;
        mapped[1] += y.to as f64 - y.from as f64;
        mapped
    }

    /// The part of a source picture (width, height) that the crop shows, as `[x, y, width, height]`; it may reach outside.
    pub fn seen_part(&self, source: (usize, usize)) -> [f64; 4] {
        let (width, height) = (source.0 as f64, source.1 as f64);
        // Where the whole of it lies in the crop's pixels.
        let whole = self.map_box(source, [0.0, 0.0, width, height]);
        let (across, down) = (width / whole[2], height / whole[3]);
        let side = self.crop as f64;
        [-whole[0] * across, -whole[1] * down, side * across, side * down]
    }
}

fn scale_box(bbox: &mut [f64; 4], from: (usize, usize), to: (usize, usize)) {
    let (x, y) = (to.0 as f64 / from.0 as f64, to.1 as f64 / from.1 as f64);
    *bbox = [bbox[0] * x, bbox[1] * y, bbox[2] * x, bbox[3] * y];
}

/// torchvision's Resize of an integer: the longer side is rounded down.
fn shorter_to(width: usize, height: usize, side: usize) -> (usize, usize) {
    if width <= height { (side, side * height / width) } else { (side * width / height, side) }
}

/// CheXzero's: the longer side to `side`, each side `int(x * (side / longer))` in floating point.
fn longer_to(width: usize, height: usize, side: usize) -> (usize, usize) {
    let ratio = side as f64 / width.max(height) as f64;
    let scaled = |x: usize| ((x as f64 * ratio) as usize).clamp(1, side);
    (scaled(width), scaled(height))
}

/// One axis of a centre crop: `size` pixels of the picture, from `from`, land at `to` of the crop.
#[derive(Clone, Copy)]
pub(super) struct Cut {
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) size: usize,
}

impl Cut {
    /// torchvision's CenterCrop: black on both sides of what is too small, half more after it; else the corner is
    /// `round(difference / 2)`, halves to even.
    pub(super) fn centre(side: usize, crop: usize) -> Self {
        if side < crop {
            return Self { from: 0, to: (crop - side) / 2, size: side };
        }
        let spare = side - crop;
        let half_to_even = spare / 2 + usize::from(spare % 4 == 3);
        Self { from: half_to_even, to: 0, size: crop }
    }
}

/// The picture on black.
fn pasted(picture: Picture, size: (usize, usize), at: (usize, usize)) -> Picture {
    if (picture.width, picture.height) == size {
        return picture;
    }
    let mut out = Picture::black(size.0, size.1, picture.channels);
    let row = picture.width * picture.channels;
    for (y, levels) in picture.pixels.chunks_exact(row).enumerate() {
        out.pixels[((at.1 + y) * size.0 + at.0) * picture.channels..][..row].copy_from_slice(levels);
    }
    out
}

/// `preprocessor_config.json`: Hugging Face's keys, of which older files write numbers where newer ones write objects.
#[derive(Serialize, Deserialize)]
struct Config {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    square: Option<usize>,
    size: Value,
    #[serde(default)]
    crop_size: Value,
    #[serde(default = "yes")]
    do_resize: bool,
    #[serde(default = "yes")]
    do_center_crop: bool,
    #[serde(default = "yes")]
    do_rescale: bool,
    #[serde(default = "yes")]
    do_normalize: bool,
    #[serde(default = "bicubic")]
    resample: u8,
    #[serde(default = "three")]
    channels: usize,
    #[serde(default = "per_level")]
    rescale_factor: f64,
    #[serde(default)]
    image_mean: Vec<f64>,
    #[serde(default)]
    image_std: Vec<f64>,
}

fn yes() -> bool {
    true
}

/// What Hugging Face's CLIP takes where a file does not say.
fn bicubic() -> u8 {
    3
}

fn three() -> usize {
    3
}

fn per_level() -> f64 {
    1.0 / 255.0
}

impl From<Preprocess> for Config {
    fn from(p: Preprocess) -> Self {
        Self {
            square: p.square,
            size: match p.stretch {
                true => serde_json::json!({ "height": p.resize, "width": p.resize }),
                false => serde_json::json!({ "shortest_edge": p.resize }),
            },
            crop_size: serde_json::json!({ "height": p.crop, "width": p.crop }),
            do_resize: true,
            do_center_crop: true,
            do_rescale: true,
            do_normalize: true,
            resample: match p.filter {
                Filter::Lanczos => 1,
                Filter::Bilinear => 2,
                Filter::Bicubic => 3,
            },
            channels: p.channels,
            rescale_factor: per_level(),
            image_mean: p.mean,
            image_std: p.std,
        }
    }
}

impl TryFrom<Config> for Preprocess {
    type Error = Error;

    fn try_from(config: Config) -> Result<Self> {
        let stretch = config.size.get("height").is_some() && config.size.get("shortest_edge").is_none();
        let resize = side("size", &config.size, if stretch { "height" } else { "shortest_edge" })?;
        let crop = match (config.do_center_crop, &config.crop_size) {
            (true, Value::Null) => resize,
            (true, value) => side("crop_size", value, "height")?,
            (false, _) => return Err(unsupported("do_center_crop", "false", "true")),
        };
        for (key, on) in [("do_resize", config.do_resize), ("do_rescale", config.do_rescale)] {
            if !on {
                return Err(unsupported(key, "false", "true"));
            }
        }
        if (config.rescale_factor * 255.0 - 1.0).abs() > 1e-4 {
            return Err(unsupported("rescale_factor", &config.rescale_factor.to_string(), "1/255"));
        }
        let filter = match config.resample {
            1 => Filter::Lanczos,
            2 => Filter::Bilinear,
            3 => Filter::Bicubic,
            other => {
                return Err(unsupported("resample", &other.to_string(), "2 (bilinear), 3 (bicubic) or 1 (Lanczos)"));
            }
        };
        let (mean, std) = match config.do_normalize {
            true => (config.image_mean, config.image_std),
            false => (vec![0.0; config.channels.min(3)], vec![1.0; config.channels.min(3)]),
        };
        let p = Self { square: config.square, stretch, resize, crop, filter, channels: config.channels, mean, std };
        p.validate()?;
        Ok(p)
    }
}

fn unsupported(key: &str, value: &str, remedy: &str) -> Error {
    Error::new(format!("{key} is {value}, which is not supported; use {remedy}"))
}

/// A number or an object with it as `name`; a crop must be square.
fn side(key: &str, value: &Value, name: &str) -> Result<usize> {
    let square = value.get("height") == value.get("width");
    let number = value.get(name).filter(|_| square).unwrap_or(value).as_u64();
    number.and_then(|n| usize::try_from(n).ok()).ok_or_else(|| {
        let remedy = if name == "height" { "{\"height\": n, \"width\": n}" } else { "{\"shortest_edge\": n}" };
        Error::new(format!("{key} is {value}, which is not supported; give a number n or {remedy}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::SixteenBit;

    fn gradient(width: usize, height: usize) -> Picture {
        let pixels = (0..width * height).map(|i| (i % width * 200 / width + i / width * 55 / height) as u8).collect();
        Picture::new(width, height, 1, pixels)
    }

    fn small() -> Preprocess {
        Preprocess { resize: 20, crop: 16, channels: 1, mean: vec![0.5], std: vec![0.25], ..Preset::Tier.preprocess() }
    }

    #[test]
    fn sizes_and_corners_are_torchvisions() {
        // int(side * long / short), and int(round((side - crop) / 2)) with Python's halves to even.
        assert_eq!(shorter_to(301, 420, 256), (256, 357));
        assert_eq!(shorter_to(420, 301, 73), (101, 73));
        assert_eq!(shorter_to(50, 50, 60), (60, 60));
        let corner = |spare: usize| Cut::centre(10 + spare, 10).from;
        assert_eq!((0..8).map(corner).collect::<Vec<_>>(), [0, 0, 1, 2, 2, 2, 3, 4]);
        let padded = Cut::centre(7, 10);
        assert_eq!((padded.from, padded.to, padded.size), (0, 1, 7));
    }

    #[test]
    fn seen_is_the_centre_of_the_resized() {
        for (width, height) in [(37, 61), (61, 37), (20, 20), (9, 12)] {
            let picture = gradient(width, height);
            let (p, whole) = (small(), small().resized(&picture).into_owned());
            assert_eq!(whole.width.min(whole.height), 20);
            assert_eq!(p.resized(&whole).as_ref(), &whole);
            assert_eq!(p.seen(&picture), p.seen(&whole), "{width} x {height}");
        }
    }

    #[test]
    fn a_crop_beyond_the_picture_is_black() {
        let p = Preprocess { resize: 4, crop: 7, ..small() };
        let seen = p.seen(&Picture::new(4, 4, 1, vec![9; 16]));
        let row = |y: usize| &seen.pixels[y * 7..][..7];
        assert_eq!((row(0), row(1), row(4), row(6)), (&[0; 7][..], &[0, 9, 9, 9, 9, 0, 0][..], row(1), row(0)));
    }

    #[test]
    fn grey_is_repeated_and_normalised_per_channel() {
        let p = Preprocess {
            channels: 3,
            mean: vec![0.0, 0.5, 1.0],
            std: vec![1.0, 0.5, 2.0],
            resize: 2,
            crop: 2,
            ..small()
        };
        let values = p.apply(&Picture::new(2, 2, 1, vec![0, 255, 255, 0]));
        assert_eq!(values, [0.0, 1.0, 1.0, 0.0, -1.0, 1.0, 1.0, -1.0, -0.5, 0.0, 0.0, -0.5]);
        let colour = p.normalise(&Picture::new(1, 1, 3, vec![255, 0, 255]));
        assert_eq!(colour, [1.0, -1.0, 0.0]);
    }

    #[test]
    fn boxes_follow_the_pixels() {
        // A white block, found again in what the model sees.
        for p in [small(), Preprocess { square: Some(40), ..small() }, Preprocess { resize: 12, ..small() }] {
            let (width, height, block) = (60, 100, [24.0, 36.0, 18.0, 21.0]);
            let inside = |x: usize, y: usize| (24..42).contains(&x) && (36..57).contains(&y);
            let levels = (0..width * height).map(|i| if inside(i % width, i / width) { 255 } else { 0 }).collect();
            let seen = p.seen(&Picture::new(width, height, 1, levels));
            let [x, y, w, h] = p.map_box((width, height), block);
            let mass: f64 = seen.pixels.iter().map(|&v| f64::from(v) / 255.0).sum();
            assert!((mass - w * h).abs() < 0.03 * w * h + 0.3, "{p:?}: {mass} for {w} x {h}");
            let mean = |k: fn(usize) -> usize| {
                seen.pixels.iter().enumerate().map(|(i, &v)| (k(i) as f64 + 0.5) * f64::from(v) / 255.0).sum::<f64>()
                    / mass
            };
            assert!((mean(|i| i % 16) - (x + w / 2.0)).abs() < 0.1, "{p:?}");
            assert!((mean(|i| i / 16) - (y + h / 2.0)).abs() < 0.1, "{p:?}");
            let crop = p.map_box((width, height), p.seen_part((width, height)));
            assert!(crop.iter().zip([0.0, 0.0, 16.0, 16.0]).all(|(a, b)| (a - b).abs() < 1e-9), "{p:?}: {crop:?}");
        }
    }

    #[test]
    fn the_file_keeps_it_and_hugging_faces_files_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("preprocessor_config.json");
        for preset in [Preset::Tier, Preset::Clip, Preset::Chexzero, Preset::Biovil] {
            preset.preprocess().save(&path).unwrap();
            assert_eq!(Preprocess::open(&path).unwrap(), preset.preprocess());
        }
        let read = |json: &str| serde_json::from_str::<Preprocess>(json).map_err(|e| e.to_string());
        let statistics =
            r#""image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]"#;
        let old = format!(r#"{{"size": 224, "crop_size": 224, "resample": 3, "do_convert_rgb": true, {statistics}}}"#);
        assert_eq!(read(&old).unwrap(), Preset::Clip.preprocess());
        for (wrong, told) in [
            (r#""size": {"longest_edge": 3}"#, "size is"),
            (r#""size": 0"#, "size is 0"),
            (r#""size": 9, "resample": 0"#, "resample is 0"),
            (r#""size": 9, "channels": 2"#, "channels is 2"),
            (r#""size": 9, "channels": 1"#, "image_mean has 3 values for 1 channels"),
            (r#""size": 9, "rescale_factor": 1"#, "rescale_factor is 1"),
        ] {
            let error = read(&format!("{{{wrong}, {statistics}}}")).unwrap_err();
            assert!(error.contains(told), "{error}");
        }
    }

    /// Everything that torchvision and Pillow computed for the pictures of `parity/`, where `TIER_SHARED` names the folder above it.
    #[test]
    fn parity_with_torchvision() {
        let Some(folder) = crate::shared::shared("parity") else { return };
        let file = crate::formats::Weights::open(folder.join("preprocess.safetensors"), false).unwrap();
        let json = |key: &str| serde_json::from_str::<Value>(&file.metadata()[key]).unwrap();
        let (pipelines, statistics) = (json("pipelines"), json("stats"));
        let limits = |jpeg: bool| {
            let keys = if jpeg { ["jpeg_atol_levels", "jpeg_mean_levels"] } else { ["atol_levels", "mean_levels"] };
            keys.map(|key| file.metadata()[key].parse::<f64>().unwrap())
        };
        let compare = |name: &str, differences: Vec<f64>| {
            let worst = differences.iter().copied().fold(0.0, f64::max);
            let mean = differences.iter().sum::<f64>() / differences.len() as f64;
            let [most, average] = limits(name.ends_with(".jpg"));
            eprintln!("{name}: worst {worst:.3}, mean {mean:.4} levels");
            assert!(worst <= most && mean <= average, "{name}: {worst} levels at worst, {mean} on average");
        };
        let levels = |pixels: &[u8], expected: &crate::Tensor| {
            let expected = expected.to_vec::<u8>();
            let repeat = expected.len() / pixels.len();
            expected.iter().enumerate().map(|(i, &e)| f64::from(pixels[i / repeat].abs_diff(e))).collect::<Vec<_>>()
        };
        let mut checked = 0;
        for (name, expected) in file.iter() {
            let (kind, image) = name.rsplit_once('/').unwrap();
            let open = |sixteen| super::super::open(folder.join("images").join(image), sixteen).unwrap();
            let picture = open(SixteenBit::HighByte);
            let pipeline = kind.strip_prefix("levels/").unwrap_or(kind);
            if let Some(p) = pipelines.as_array().unwrap().iter().find(|p| p["name"] == pipeline) {
                let values =
                    |i: usize| serde_json::from_value(statistics[p["stats"].as_str().unwrap()][i].clone()).unwrap();
                let p = Preprocess {
                    square: None,
                    stretch: false,
                    resize: p["resize"].as_u64().unwrap() as usize,
                    crop: p["crop"].as_u64().unwrap() as usize,
                    filter: if p["filter"] == "bilinear" { Filter::Bilinear } else { Filter::Bicubic },
                    channels: 3,
                    mean: values(0),
                    std: values(1),
                };
                if kind != pipeline {
                    compare(name, levels(&p.seen(&picture).pixels, expected));
                } else {
                    let (values, plane) = (p.apply(&picture), p.crop * p.crop);
                    let difference =
                        |(i, (a, b)): (usize, (&f32, f32))| f64::from((a - b).abs()) * p.std[i / plane] * 255.0;
                    compare(name, values.iter().zip(expected.to_vec::<f32>()).enumerate().map(difference).collect());
                }
            } else if kind == "decoded16/padchest" {
                compare(name, levels(&open(SixteenBit::Padchest).pixels, expected));
            } else {
                compare(name, levels(&picture.pixels, expected));
            }
            checked += 1;
        }
        assert!(checked > 0);
    }
}
