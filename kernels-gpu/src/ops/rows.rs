//! Along rows: sums, softmax, layer norm. A workgroup takes a row, in a fixed tree: same device, same bits.

use crate::device::Device;
use crate::error::Result;
use crate::memory::Memory;
use crate::shaders::Shader;
use crate::view::{Binding, View};

/// Options of [`Device::softmax`].
#[derive(Clone, Copy, Default)]
pub struct Softmax<'a> {
    /// Its logarithm instead.
    pub log: bool,
    /// Factor of x; None: 1.
    pub scale: Option<f32>,
    /// Bytes [rows / group, n], not 0 where a place may be seen; `group` rows have one of its rows.
    pub mask: Option<(&'a Memory, usize)>,
    /// Number of queries t: row r is of query r % t, which sees places up to r % t + n - t.
    pub causal: Option<usize>,
    /// Gets ln sum e^x of each row: `[rows]` numbers.
    pub lse: Option<&'a Memory>,
}

impl Device {
    /// y[o, i] = sum over j of x[o, j, i] for x of [outer, n, inner] elements, both contiguous.
    ///
    /// # Errors
    /// As [`Self::copy`].
    pub fn sum(&self, x: View<'_>, [outer, n, inner]: [usize; 3], y: View<'_>) -> Result<()> {
        assert!(x.is_contiguous() && y.is_contiguous(), "sum: layouts");
        assert!(
            x.numel() == outer * n * inner && y.numel() == outer * inner && n > 0,
            "sum: {:?} to {:?}",
            x.dims,
            y.dims
        );
        if y.numel() == 0 {
            return Ok(());
        }
        let [(from, x_at), (to, y_at)] = [x.bind(0)?, y.bind(1)?];
        let bindings = [from, to.writing()];
        let [outer_, n_, inner_] = [outer, n, inner].map(|n| n as u32);
        if inner == 1 {
            return self.rows(Shader::SumRows, &[], &bindings, &[outer_, n_, x_at, y_at], [outer, n]);
        }
        let threads = self.threads();
        let groups = [(outer * inner) as u64, 1, 1].map(|n| n.div_ceil(u64::from(threads)));
        self.dispatch(crate::device::Kernel {
            shader: Shader::SumCols,
            spec: &[threads],
            bindings: &bindings,
            push: &[outer_, n_, inner_, x_at, y_at],
            groups,
            work: 4 * x.numel() as u64,
        })
    }

    /// y = softmax of the last dimension of x, both contiguous; they may be the same. Places that may not be seen are 0, as is a row
    /// without any.
    ///
    /// # Errors
    /// As [`Self::copy`].
    pub fn softmax(&self, x: View<'_>, y: View<'_>, options: Softmax<'_>) -> Result<()> {
        assert!(x.dims == y.dims && x.is_contiguous() && y.is_contiguous(), "softmax: {:?} to {:?}", x.dims, y.dims);
        let n = x.dims.last().copied().unwrap_or(1);
        if x.numel() == 0 {
            return Ok(());
        }
        let rows = x.numel() / n;
        let [(from, x_at), (to, y_at)] = [x.bind(0)?, y.bind(1)?];
        let mut bindings = vec![from, to.writing()];
        let mut group = 1;
        if let Some((mask, each)) = options.mask {
            assert_eq!(mask.len() * each, rows * n, "softmax: bytes of the mask");
            group = each;
            bindings.push(Binding::words(2, mask, 0, mask.len().div_ceil(4))?.0);
        }
        if let Some(lse) = options.lse {
            assert_eq!(lse.len(), 4 * rows, "softmax: bytes of the log-sum-exp");
            bindings.push(Binding::words(3, lse, 0, rows)?.0.writing());
        }
        let flags =
            [options.log, options.mask.is_some(), options.causal.is_some(), options.lse.is_some()].map(u32::from);
        let scale = options.scale.unwrap_or(1.0).to_bits();
        let queries = options.causal.unwrap_or(1) as u32;
        let push = [rows as u32, n as u32, x_at, y_at, scale, queries, group as u32, 0, 0];
        self.rows(Shader::Softmax, &flags, &bindings, &push, [rows, n])
    }

    /// y = (x - mean) / sqrt(var + eps) w + b along the last dimension of x; all contiguous. `statistics` get mean and 1 / sqrt of each row.
    ///
    /// # Errors
    /// As [`Self::copy`].
    pub fn layer_norm(
        &self,
        x: View<'_>,
        [w, b]: [View<'_>; 2],
        eps: f32,
        y: View<'_>,
        statistics: [&Memory; 2],
    ) -> Result<()> {
        assert!([x, w, b, y].iter().all(View::is_contiguous) && x.dims == y.dims, "layer_norm: layouts");
        let n = x.dims.last().copied().unwrap_or(1);
        assert!(w.numel() == n && b.numel() == n, "layer_norm: {:?} and {:?} for rows of {n}", w.dims, b.dims);
        if x.numel() == 0 {
            return Ok(());
        }
        let rows = x.numel() / n;
        let [(xb, x_at), (wb, w_at), (bb, b_at), (yb, y_at)] = [x.bind(0)?, w.bind(1)?, b.bind(2)?, y.bind(3)?];
        let [mean, rstd] =
            [(4, statistics[0]), (5, statistics[1])].map(|(number, m)| Binding::words(number, m, 0, rows));
        let bindings = [xb, wb, bb, yb.writing(), mean?.0.writing(), rstd?.0.writing()];
        let push = [rows as u32, n as u32, x_at, w_at, b_at, y_at, eps.to_bits()];
        self.rows(Shader::LayerNorm, &[], &bindings, &push, [rows, n])
    }
}
