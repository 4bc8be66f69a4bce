//! Maps of another size: interpolation along rows and columns, each by a table of weights.

use kernels_cpu::resize::{Table, interpolation};

use crate::for_float;
use crate::gradcheck::{Case, Gen};
use crate::op::{Meta, Op, Output, Saved, Saves, apply};
use crate::tensor::Tensor;

pub use kernels_cpu::resize::Filter;

/// x [n, h, w, c] interpolated to [n, rows, cols, c], with the semantics of PyTorch's `interpolate` and
/// `align_corners=False`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resize {
    /// Rows and columns of the output.
    pub size: [usize; 2],
    /// What is between the pixels.
    pub filter: Filter,
    /// Reduce by averaging over the reduction instead of sampling a few pixels.
    pub antialias: bool,
}

impl Resize {
    fn tables(&self, x: Meta) -> [Table; 2] {
        [0, 1].map(|k| interpolation(x.dims[k + 1], self.size[k], self.filter, self.antialias))
    }
}

/// x [n, h, w, c] times a table for its rows and one for its columns, where x lives: on a device by products of matrices.
pub(super) fn resample(op: &str, x: &Tensor, [rows, cols]: &[Table; 2]) -> Tensor {
    if x.device().is_some() {
        return composed(&x.detach(), &[rows.clone(), cols.clone()]);
    }
    let x = x.packed();
    let [n, _, w, c] = [0, 1, 2, 3].map(|k| x.dims()[k]);
    let [oh, ow] = [rows.output(), cols.output()];
    for_float!(op, x.dtype(), F => {
        let tall = Tensor::write([n, oh, w, c], |y: &mut [F]| rows.apply(x.as_slice(), n, w * c, y));
        Tensor::write([n, oh, ow, c], |y: &mut [F]| cols.apply(tall.as_slice(), n * oh, c, y))
    })
}

/// The same as two products of dense matrices: what [`resample`] is checked against, and how it is done on a device.
pub(super) fn composed(x: &Tensor, [rows, cols]: &[Table; 2]) -> Tensor {
    let [n, h, w, c] = [0, 1, 2, 3].map(|k| x.dims()[k]);
    let dense = |table: &Table| {
        let mut matrix = vec![0.0; table.output() * table.input()];
        for i in 0..table.output() {
            table.row(i).iter().for_each(|&(k, weight)| matrix[i * table.input() + k] += weight);
        }
        Tensor::from_slice(&matrix, [table.output(), table.input()]).to_dtype(x.dtype())
    };
    let tall = dense(rows).matmul(&x.reshape([n, h, w * c])).reshape([n, rows.output(), w, c]);
    dense(cols).matmul(&tall)
}

impl Op for Resize {
    fn name(&self) -> &'static str {
        "resize"
    }

    fn shape(&self, x: &[Meta]) -> Meta {
        let d = x[0].dims;
        let fits = d.len() == 4 && (0..2).all(|k| d[k + 1] > 0 || self.size[k] == 0);
        assert!(fits, "resize: {:?} to {:?}", x[0], self.size);
        Meta { dims: d.with(1, self.size[0]).with(2, self.size[1]), ..x[0] }
    }

    fn cpu(&self, x: &[&Tensor], _: Meta) -> Output {
        resample("resize", x[0], &self.tables(x[0].meta())).into()
    }

    fn saves(&self, _: &[bool]) -> Saves {
        Saves::NOTHING
    }

    fn vjp(&self, saved: &Saved, dy: &Tensor) -> Vec<Option<Tensor>> {
        vec![Some(resample("resize", dy, &self.tables(saved.meta(0)).map(|table| table.transposed())))]
    }

    fn cases(g: &mut Gen) -> Case {
        let dims = [g.size().min(3), g.size_from(1), g.size_from(1), g.size().min(4)];
        let op = Resize {
            size: [g.size(), g.size()],
            filter: g.choose(&[Filter::Bilinear, Filter::Bicubic]),
            antialias: g.rng.chance(0.3),
        };
        Case::new(vec![g.tensor(dims)], move |x| x[0].resize(op.size, op.filter, op.antialias))
            .equals(move |x| composed(&x[0], &op.tables(x[0].meta())))
    }
}

impl Tensor {
    /// This map [n, h, w, c] interpolated to `size` rows and columns.
    #[track_caller]
    pub fn resize(&self, size: [usize; 2], filter: Filter, antialias: bool) -> Tensor {
        apply(Resize { size, filter, antialias }, &[self])
    }
}

crate::check_ops!(Resize);
