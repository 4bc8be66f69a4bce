//! Ops that choose elements: embedding and dropout.

use kernels_cpu::{attention::keeps, gather};
#[cfg(feature = "vulkan")]
use kernels_gpu::ops::by_row;

use super::matmul::{check_trains, weight_fits, widened};
#[cfg(feature = "vulkan")]
use crate::device::{Gpu, indices};
use crate::dtype::DType;
use crate::gradcheck::{Case, Gen};
use crate::op::{Meta, Op, Output, Saved, Saves, apply};
use crate::tensor::Tensor;
use crate::{for_dtype, for_float};

/// Rows of a table [v, d] by i64 ids [..]: output [.., d]. Also torch's index_select along the first dimension. A table stored in half
/// gives f32; it is then not trained.
pub struct Embedding;

impl Op for Embedding {
    fn name(&self) -> &'static str {
        "embedding"
    }

    fn shape(&self, x: &[Meta]) -> Meta {
        assert!(x[0].dims.len() == 2 && x[1].dtype == DType::I64, "embedding: a table {:?} and ids {:?}", x[0], x[1]);
        let dtype = if weight_fits(x[0].dtype, DType::F32) { DType::F32 } else { x[0].dtype };
        assert!(dtype.is_arithmetic(), "embedding: a table of {dtype}");
        Meta { dims: x[1].dims.followed_by(&x[0].dims[1..]), dtype }
    }

    fn cpu(&self, x: &[&Tensor], out: Meta) -> Output {
        let (table, ids) = (x[0].packed(), x[1].packed());
        let rows = for_dtype!(table.dtype(), T => Tensor::write(out.dims, |y: &mut [T]| {
            gather::gather_rows(table.as_slice::<T>(), table.dims()[1], ids.as_slice(), y)
        }));
        widened(&rows).into()
    }

    #[cfg(feature = "vulkan")]
    fn gpu(&self, on: &Gpu, x: &[&Tensor], out: Meta) -> Option<Output> {
        let ([rows, cols], k) = ([0, 1].map(|i| x[0].dims()[i]), x[1].numel());
        let (table, ids) = (on.stored(&x[0].packed())?, on.indices(x[1], rows)?);
        on.output(out, |y| on.kernels().gather(table.view(), [1, rows, cols], &ids, k, y))
    }

    fn saves(&self, _: &[bool]) -> Saves {
        Saves::input(1)
    }

    fn vjp(&self, saved: &Saved, dy: &Tensor) -> Vec<Option<Tensor>> {
        check_trains("embedding", saved.meta(0).dtype);
        let (dims, ids, dy) = (saved.dims(0), saved.input(1).packed(), dy.packed());
        let table = for_float!("embedding", dy.dtype(), F => Tensor::write(dims, |table: &mut [F]| {
            table.fill(0.0);
            gather::scatter_add_rows(dy.as_slice(), dims[1], ids.as_slice(), table)
        }));
        vec![Some(table), None]
    }

    #[cfg(feature = "vulkan")]
    fn gpu_vjp(&self, on: &Gpu, saved: &Saved, dy: &Tensor) -> Option<Vec<Option<Tensor>>> {
        check_trains("embedding", saved.meta(0).dtype);
        let (dims, n) = (saved.dims(0), saved.dims(0)[0]);
        let rows = on.words(&by_row(&indices(saved.input(1), n)?, n));
        Some(vec![Some(super::gather::added(on, None, &rows, dy, [1, n, dims[1]], dims)?), None])
    }

    fn cases(g: &mut Gen) -> Case {
        let [rows, cols] = [g.size_from(1), g.size()];
        let dims = g.dims(0, 2);
        let inputs = vec![g.tensor([rows, cols]), g.ids(dims, rows)];
        Case::new(inputs, |x| x[0].embedding(&x[1])).equals(move |x| {
            // One-hot rows times the table.
            let ids = x[1].to_vec::<i64>();
            let hot: Vec<f64> =
                ids.iter().flat_map(|&id| (0..rows).map(move |r| f64::from(u8::from(r as i64 == id)))).collect();
            Tensor::from_slice(&hot, [ids.len(), rows])
                .to_dtype(x[0].dtype())
                .matmul(&x[0])
                .reshape(dims.followed_by(&[cols]))
        })
    }
}

/// Each element is 0 with probability `p`, else x / (1 - p). Which ones is a pure function of the key and the position.
pub struct Dropout {
    /// Probability of 0.
    pub p: f64,
    /// Names the draw: a step, a layer.
    pub key: u64,
}

impl Op for Dropout {
    fn name(&self) -> &'static str {
        "dropout"
    }

    fn shape(&self, x: &[Meta]) -> Meta {
        assert!((0.0..1.0).contains(&self.p), "dropout: probability {}", self.p);
        x[0]
    }

    fn cpu(&self, x: &[&Tensor], out: Meta) -> Output {
        let x = x[0].packed();
        for_float!("dropout", out.dtype, F => Tensor::write(out.dims, |y: &mut [F]| {
            let scale = (1.0 / (1.0 - self.p)) as F;
            for (i, (y, &x)) in y.iter_mut().zip(x.as_slice::<F>()).enumerate() {
                *y = if keeps(self.key, i as u64, self.p) { x * scale } else { 0.0 };
            }
        }))
        .into()
    }

    #[cfg(feature = "vulkan")]
    fn gpu(&self, on: &Gpu, x: &[&Tensor], out: Meta) -> Option<Output> {
        let x = on.packed(x[0])?;
        on.output(out, |y| on.kernels().dropout(self.p, self.key, x.view(), y))
    }

    fn saves(&self, _: &[bool]) -> Saves {
        Saves::NOTHING
    }

    fn vjp(&self, _: &Saved, dy: &Tensor) -> Vec<Option<Tensor>> {
        vec![Some(dy.dropout(self.p, self.key))]
    }

    fn cases(g: &mut Gen) -> Case {
        let dims = g.dims(0, 3);
        let key = g.rng.next_u64();
        Case::new(vec![g.tensor(dims)], move |x| x[0].dropout(0.3, key)).equals(move |x| {
            let kept = Tensor::full(dims, 1.0, x[0].dtype()).dropout(0.3, key);
            x[0].mul(&kept)
        })
    }
}

impl Tensor {
    /// Rows of this table [v, d] by i64 ids.
    #[track_caller]
    pub fn embedding(&self, ids: &Tensor) -> Tensor {
        apply(Embedding, &[self, ids])
    }

    /// Dropout with probability `p`, drawn by `key`.
    #[track_caller]
    pub fn dropout(&self, p: f64, key: u64) -> Tensor {
        if p == 0.0 { self.clone() } else { apply(Dropout { p, key }, &[self]) }
    }
}

crate::check_ops!(Embedding, Dropout);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_stored_in_half_gives_its_f32_values() {
        let mut g = Gen::new(8, 6);
        for dtype in [DType::BF16, DType::F16] {
            let (table, ids) = (g.tensor([5, 3]).to_dtype(dtype), g.ids([2, 4], 5));
            let rows = table.embedding(&ids);
            assert_eq!(rows.to_vec::<f32>(), table.to_dtype(DType::F32).embedding(&ids).to_vec::<f32>());
        }
    }

    #[test]
    #[should_panic(expected = "embedding: a weight stored as f16 has no gradient")]
    fn a_table_stored_in_half_refuses_its_gradient() {
        let table = Tensor::full([2, 3], 1.0, DType::F16).trainable();
        table.embedding(&Tensor::from_slice(&[1i64], [1])).sum_all().backward();
    }

    #[test]
    fn dropout_keeps_the_share_and_the_mean() {
        let y = Tensor::full([20_000], 1.0, DType::F32).dropout(0.25, 9);
        let zeros = y.to_vec::<f32>().iter().filter(|&&v| v == 0.0).count();
        assert!((4600..5400).contains(&zeros), "{zeros}");
        assert!((y.mean_all().item() - 1.0).abs() < 0.02);
        assert_ne!(y.to_vec::<f32>(), Tensor::full([20_000], 1.0, DType::F32).dropout(0.25, 10).to_vec::<f32>());
    }
}
