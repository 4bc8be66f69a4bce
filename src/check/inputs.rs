//! What a model is asked about, read from a file or drawn: pixels that are prepared already, and texts as ids.

use std::path::Path;

use crate::dtype::DType;
use crate::error::{At, Error, Result};
use crate::formats::Weights;
use crate::models::{ImageTowerConfig, NetworkConfig};
use crate::rng::Rng;
use crate::tensor::Tensor;

/// Inputs of a model: either or both.
#[derive(Clone, Debug, Default)]
pub struct Inputs {
    /// Pixels f32 [n, c, h, w], preprocessed and finite.
    pub pixels: Option<Tensor>,
    /// Ids i64 and mask u8, [n, T] both; the mask is 1 where a token is real.
    pub texts: Option<[Tensor; 2]>,
}

/// The names that the inputs have in a file.
pub(super) const NAMES: [&str; 3] = ["pixel_values", "input_ids", "attention_mask"];

/// Images and texts that are drawn, and the longest of these texts.
const DRAWN: usize = 4;
const TOKENS: usize = 32;

impl Inputs {
    /// Those of a file: `pixel_values`, or `input_ids` with or without `attention_mask`, or both.
    ///
    /// # Errors
    /// If there are none, or they are not what a model can be asked about: named by tensor.
    pub fn open(path: &Path, map: bool) -> Result<Self> {
        Self::read(&Weights::open(path, map)?).at(path)
    }

    pub(super) fn read(file: &Weights) -> Result<Self> {
        let inputs = Self { pixels: pixels(file)?, texts: texts(file)? };
        match (&inputs.pixels, &inputs.texts) {
            (None, None) => Err(Error::new("neither pixel_values nor input_ids")),
            _ => Ok(inputs),
        }
    }

    /// Standard normal pixels and uniform ids, for whatever sides a model has.
    pub fn drawn(config: &NetworkConfig, seed: u64) -> Self {
        let mut rng = Rng::new(seed, 0);
        let pixels = config.vision().map(|vision| {
            let side = vision.image_size();
            Tensor::randn([DRAWN, vision.channels(), side, side], DType::F32, &mut rng)
        });
        let texts =
            config.text().map(|text| drawn_texts(text.vocabulary(), DRAWN, text.max_length().min(TOKENS), &mut rng));
        Self { pixels, texts }
    }

    /// Checks the inputs against a model's sizes. In training mode batch norms need something to vary.
    ///
    /// # Errors
    /// Saying what does not fit.
    pub fn fits(&self, config: &NetworkConfig, train: bool) -> Result<()> {
        if let Some(pixels) = &self.pixels {
            let [n, channels, height, width] = [0, 1, 2, 3].map(|k| pixels.dims()[k]);
            config.check_pixels(channels, [height, width])?;
            if let (Some(ImageTowerConfig::Resnet(resnet)), true) = (config.vision(), train) {
                let places = n * resnet.grid([height, width]).iter().product::<usize>();
                if places < 2 {
                    return Err(Error::new("one image whose last map has one place: no variance for a batch norm"));
                }
            }
        }
        if let Some([ids, mask]) = &self.texts {
            let text = config.text().ok_or_else(|| Error::new("input_ids, but this model knows no texts"))?;
            let (t, most) = (ids.dims()[1], text.max_length());
            if t > most {
                return Err(Error::new(format!("input_ids has {t} tokens, this model takes at most {most}")));
            }
            let known = 0..i64::try_from(text.vocabulary()).unwrap_or(i64::MAX);
            if let Some((at, id)) = ids.to_vec::<i64>().iter().enumerate().find(|(_, id)| !known.contains(id)) {
                let (row, column) = (at / t, at % t);
                return Err(Error::new(format!("input_ids[{row}, {column}] is {id}, this model has {known:?}")));
            }
            if let Some(row) = mask.to_vec::<u8>().chunks(t).position(|row| !row.contains(&1)) {
                return Err(Error::new(format!("attention_mask has no real token in row {row}")));
            }
        }
        Ok(())
    }
}

/// Uniform ids [n, t] below `vocabulary`, all of them real.
pub fn drawn_texts(vocabulary: usize, n: usize, t: usize, rng: &mut Rng) -> [Tensor; 2] {
    let ids: Vec<i64> = (0..n * t).map(|_| rng.below(vocabulary) as i64).collect();
    [Tensor::from_slice(&ids, [n, t]), Tensor::full([n, t], 1.0, DType::U8)]
}

fn pixels(file: &Weights) -> Result<Option<Tensor>> {
    let name = NAMES[0];
    let Some(meta) = file.meta(name) else { return Ok(None) };
    if meta.dims.len() != 4 || meta.dims.contains(&0) {
        return Err(Error::new(format!(
            "{name} must have dims [n, channels, height, width], none of them 0; it has {:?}",
            meta.dims
        )));
    }
    let pixels = float(file, name)?;
    match pixels.to_vec::<f32>().iter().position(|x| !x.is_finite()) {
        Some(at) => Err(Error::new(format!("{name} is not finite at element {at}"))),
        None => Ok(Some(pixels)),
    }
}

/// A tensor of floats as f32.
pub(super) fn float(file: &Weights, name: &str) -> Result<Tensor> {
    let tensor = file.get(name).ok_or_else(|| Error::new(format!("no tensor {name}")))?;
    if !tensor.dtype().is_float() {
        return Err(Error::new(format!("tensor {name} is {}, not a floating type", tensor.dtype())));
    }
    Ok(tensor.to_dtype(DType::F32).packed())
}

/// Ids and mask; a text without a mask is real throughout.
fn texts(file: &Weights) -> Result<Option<[Tensor; 2]>> {
    let integers = |name: &str| -> Result<Option<Tensor>> {
        let Some(meta) = file.meta(name) else { return Ok(None) };
        if meta.dtype.is_float() || meta.dims.len() != 2 || meta.dims.contains(&0) {
            let found = format!("{} {:?}", meta.dtype, meta.dims);
            return Err(Error::new(format!("{name} must be integers of dims [n, T], none of them 0; it is {found}")));
        }
        Ok(file.get(name).map(|tensor| tensor.to_dtype(DType::I64).packed()))
    };
    let (ids, mask) = (integers(NAMES[1])?, integers(NAMES[2])?);
    let Some(ids) = ids else {
        return if mask.is_some() { Err(Error::new("attention_mask without input_ids")) } else { Ok(None) };
    };
    let mask = mask.unwrap_or_else(|| Tensor::full(*ids.dims(), 1.0, DType::I64));
    if mask.dims() != ids.dims() {
        return Err(Error::new(format!("input_ids is {:?}, attention_mask {:?}", ids.dims(), mask.dims())));
    }
    if let Some(value) = mask.to_vec::<i64>().into_iter().find(|m| !(0..=1).contains(m)) {
        return Err(Error::new(format!("attention_mask has {value}: 1 is a real token, 0 padding")));
    }
    Ok(Some([ids, mask.to_dtype(DType::U8).packed()]))
}
