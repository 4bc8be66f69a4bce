//! How many bits of its weights a file keeps: f32, half, or 8-bit integers with a scale per output channel.
//!
//! Weights of linear layers and tables of embeddings, which are matrices, are kept in fewer bits, and those of convolutions in half: in bf16
//! beside int8, whose products gain nothing there. In int8 a matrix W [out, in] is the
//! tensor `NAME` of i8 [out, in] and the tensor `NAME.scale` of f32 `[out]`: W[i, j] = scale[i] q[i, j], where scale[i] is the largest
//! |W[i, j]| of the row over 127 and q is rounded to the nearest, -127 to 127.

use std::collections::{BTreeMap, BTreeSet};

use super::names::{Read, View};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::layout::Dims;
use crate::nn::SCALE;
use crate::op::Meta;
use crate::tensor::Tensor;

/// The type in which a file keeps matrices, and weights of convolutions ([`DType::BF16`] beside int8); all else is f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum Precision {
    /// 32-bit floats.
    F32,
    /// bfloat16: the range of f32, 8 bits of precision.
    Bf16,
    /// IEEE half: up to 65504, 11 bits of precision.
    F16,
    /// 8-bit integers with a scale for every output channel.
    Int8,
}

/// Largest level.
const LEVELS: f32 = 127.0;
/// The least f32 that f16 rounds to infinity.
const BEYOND_F16: f32 = 65520.0;

/// Whether a parameter is used by matrix products and look-ups alone, which read half types as they are.
pub(super) fn is_matrix(name: &str, meta: Meta) -> bool {
    meta.dims.len() == 2
        && name.ends_with(".weight")
        && !name.contains("position_embedding")
        && !name.contains("token_type_embeddings")
}

/// Whether it is the weight of a convolution, or of patches, which half types are read of as they are too.
pub(super) fn is_convolution(name: &str, meta: Meta) -> bool {
    meta.dims.len() == 4 && name.ends_with(".weight")
}

/// Whether it is a table of embeddings, of which rows are read.
pub(super) fn is_table(name: &str) -> bool {
    name.contains("embedding")
}

impl Precision {
    /// The type in which a file of this precision keeps a parameter.
    fn kept(self, name: &str, meta: Meta) -> DType {
        let (matrix, convolution) = (is_matrix(name, meta), is_convolution(name, meta));
        match self {
            Self::Bf16 if matrix || convolution => DType::BF16,
            Self::F16 if matrix || convolution => DType::F16,
            Self::Int8 if matrix => DType::I8,
            Self::Int8 if convolution => DType::BF16,
            _ => DType::F32,
        }
    }

    /// The type in which a network of this precision has a parameter.
    pub(super) fn of_parameter(self, name: &str, meta: Meta) -> DType {
        match self.kept(name, meta) {
            DType::I8 if is_table(name) => DType::F32,
            dtype => dtype,
        }
    }

    /// What matrices of this type are kept in.
    pub(super) fn of_type(dtype: DType) -> Self {
        match dtype {
            DType::BF16 => Self::Bf16,
            DType::F16 => Self::F16,
            DType::I8 => Self::Int8,
            _ => Self::F32,
        }
    }

    /// Its short name, as on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::Int8 => "int8",
        }
    }

    /// Parameters, whatever they are kept in, as a file of this precision has them.
    ///
    /// # Errors
    /// If a value does not fit.
    pub fn stored(self, parameters: Vec<(String, Tensor)>) -> Result<Vec<(String, Tensor)>> {
        let mut out = Vec::with_capacity(parameters.len());
        for (name, tensor) in without_levels(parameters) {
            let wide = tensor.to_dtype(DType::F32).packed();
            match self.kept(&name, tensor.meta()) {
                DType::I8 => {
                    let (levels, scale) = narrowed(&name, &wide)?;
                    out.extend([(format!("{name}{SCALE}"), scale), (name, levels)]);
                }
                DType::F16 if wide.as_slice::<f32>().iter().any(|x| x.is_finite() && x.abs() >= BEYOND_F16) => {
                    return Err(Error::new(format!("{name} has values that f16 cannot hold; take bf16")));
                }
                dtype => out.push((name, wide.to_dtype(dtype))),
            }
        }
        Ok(out)
    }
}

/// A contiguous f32 matrix as levels and the scales of its rows.
///
/// # Errors
/// If a value is not finite.
pub(super) fn narrowed(name: &str, matrix: &Tensor) -> Result<(Tensor, Tensor)> {
    let [rows, columns] = [0, 1].map(|k| matrix.dims()[k]);
    let values = matrix.as_slice::<f32>();
    if !values.iter().all(|x| x.is_finite()) {
        return Err(Error::new(format!("{name} has values that are not finite: no int8 for them")));
    }
    let (mut scales, mut levels) = (Vec::with_capacity(rows), Vec::with_capacity(values.len()));
    for row in values.chunks(columns.max(1)) {
        let scale = row.iter().fold(0.0f32, |most, x| most.max(x.abs())) / LEVELS;
        // A row of zeros, or of what is nothing beside the smallest number, has no scale.
        let level = |scale: f32, x: f32| if scale > 0.0 { (x / scale).round().clamp(-LEVELS, LEVELS) } else { 0.0 };
        // Rounding may have moved the scale of what was int8 before: the neighbour that gives the same values is its own.
        let near =
            [scale, scale.next_up(), scale.next_down(), scale.next_up().next_up(), scale.next_down().next_down()];
        let own = near.into_iter().find(|&s| row.iter().all(|&x| s * level(s, x) == x)).unwrap_or(scale);
        levels.extend(row.iter().map(|&x| level(own, x) as i8));
        scales.push(own);
    }
    scales.resize(rows, 0.0);
    Ok((Tensor::from_slice(&levels, [rows, columns]), Tensor::from_slice(&scales, [rows])))
}

/// Parameters of a model, those in int8 widened.
pub fn without_levels(parameters: Vec<(String, Tensor)>) -> Vec<(String, Tensor)> {
    let scales: BTreeMap<String, Tensor> =
        parameters.iter().filter(|(name, _)| name.ends_with(SCALE)).cloned().collect();
    let of =
        |name: &str, tensor: &Tensor| scales.get(&format!("{name}{SCALE}")).filter(|_| tensor.dtype() == DType::I8);
    let levels: BTreeSet<String> = parameters
        .iter()
        .filter(|(name, tensor)| of(name, tensor).is_some())
        .map(|(name, _)| format!("{name}{SCALE}"))
        .collect();
    let wide = parameters.into_iter().filter(|(name, _)| !levels.contains(name)).map(|(name, tensor)| {
        let wide = of(&name, &tensor).map(|scale| widened(&tensor, scale));
        (name, wide.unwrap_or(tensor))
    });
    wide.collect()
}

/// The matrix of these levels [out, in] and scales `[out]`, in f32.
pub(super) fn widened(levels: &Tensor, scale: &Tensor) -> Tensor {
    let (levels, scale) = (levels.packed(), scale.packed());
    let columns = levels.dims()[1].max(1);
    Tensor::write(*levels.dims(), |out: &mut [f32]| {
        let rows = out.chunks_mut(columns).zip(levels.as_slice::<i8>().chunks(columns));
        for ((out, row), scale) in rows.zip(scale.as_slice::<f32>()) {
            out.iter_mut().zip(row).for_each(|(o, &level)| *o = scale * f32::from(level));
        }
    })
}

/// Takes the scales out of what was read, so that the int8 matrices stand for themselves: matrix to what the file calls its scales.
///
/// # Errors
/// If an int8 matrix has no scales, or not one for each row.
pub(super) fn take_scales(read: &mut Read) -> Result<BTreeMap<String, String>> {
    let whole = |read: &Read, name: &str| {
        read.names.0.iter().find(|entry| entry.canonical == name && entry.view == View::Whole).cloned()
    };
    let narrow: Vec<(String, Meta)> = read.metas.iter().map(|(name, meta)| (name.clone(), *meta)).collect();
    let mut scales = BTreeMap::new();
    for (name, meta) in narrow.into_iter().filter(|(_, meta)| meta.dtype == DType::I8) {
        let scale = format!("{name}{SCALE}");
        let entry = whole(read, &scale);
        let fits = meta.dims.len() == 2
            && whole(read, &name).is_some()
            && read.metas.get(&scale) == Some(&Meta { dims: Dims::new(&meta.dims[..1]), dtype: DType::F32 });
        let Some(entry) = entry.filter(|_| fits) else {
            let dims = meta.dims;
            return Err(Error::new(format!("{name} is i8 {dims:?}: it needs a matrix and {scale} of f32, one a row")));
        };
        read.metas.remove(&scale);
        read.names.0.retain(|entry| entry.canonical != scale);
        scales.insert(name, entry.foreign);
    }
    Ok(scales)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    #[test]
    fn int8_is_within_half_a_step_of_each_row_and_keeps_zeros_and_extremes() {
        let mut rng = Rng::new(3, 0);
        let sizes = Tensor::from_slice(&[1e-3f32, 1.0, 300.0, 0.0], [4, 1]);
        let matrix = Tensor::randn([4, 50], DType::F32, &mut rng).mul(&sizes);
        let (levels, scale) = narrowed("w", &matrix).unwrap();
        let back = widened(&levels, &scale);
        for (i, (row, back)) in matrix.to_vec::<f32>().chunks(50).zip(back.to_vec::<f32>().chunks(50)).enumerate() {
            let largest = row.iter().fold(0.0f32, |most, x| most.max(x.abs()));
            for (x, y) in row.iter().zip(back) {
                assert!((x - y).abs() <= largest / 253.9, "row {i}: {x} {y}");
                assert!(x.abs() < largest || (x - y).abs() <= 1e-6 * largest);
            }
        }
        assert!(levels.to_vec::<i8>().iter().any(|&q| q.abs() == 127));
        // Once narrowed, narrowing again changes no value: those of many scales.
        let scales: Vec<f32> = (0..500).map(|i| 1e-3 + i as f32 * 3.7e-5).collect();
        let many = Tensor::randn([500, 40], DType::F32, &mut rng).mul(&Tensor::from_slice(&scales, [500, 1]));
        for matrix in [back, many] {
            let widen = |(levels, scale): (Tensor, Tensor)| widened(&levels, &scale);
            let once = widen(narrowed("w", &matrix).unwrap());
            assert_eq!(widen(narrowed("w", &once).unwrap()).to_vec::<f32>(), once.to_vec::<f32>());
        }
        assert!(narrowed("w", &Tensor::from_slice(&[1.0, f32::NAN], [1, 2])).is_err());
    }

    #[test]
    fn what_half_cannot_hold_is_refused_and_vectors_stay_f32() {
        let parameters = |value: f32| {
            vec![
                ("a.weight".to_owned(), Tensor::full([2, 2], f64::from(value), DType::F32)),
                ("c.weight".to_owned(), Tensor::full([2, 2, 1, 1], 3.0, DType::F32)),
                ("a.bias".to_owned(), Tensor::zeros([2], DType::F32)),
                ("x.position_embedding.weight".to_owned(), Tensor::zeros([2, 2], DType::F32)),
            ]
        };
        let types = |precision: Precision| {
            let stored = precision.stored(parameters(3.0)).unwrap();
            stored.into_iter().map(|(name, t)| format!("{name} {}", t.dtype())).collect::<Vec<_>>()
        };
        let rest = ["a.bias f32", "x.position_embedding.weight f32"];
        assert_eq!(types(Precision::F16), [&["a.weight f16", "c.weight f16"], &rest[..]].concat());
        assert_eq!(
            types(Precision::Int8),
            [&["a.weight.scale f32", "a.weight i8", "c.weight bf16"], &rest[..]].concat()
        );
        assert!(Precision::F16.stored(parameters(65519.0)).is_ok());
        let error = Precision::F16.stored(parameters(65520.0)).unwrap_err().to_string();
        assert!(error.contains("a.weight") && error.contains("bf16"), "{error}");
        assert!(Precision::Bf16.stored(parameters(65520.0)).is_ok());
    }
}
