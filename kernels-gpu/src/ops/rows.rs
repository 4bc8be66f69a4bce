//! Along rows: softmax and layer norm, with their derivatives. A workgroup takes a row, in a fixed tree: same device, same bits.

use crate::device::Device;
use crate::error::Result;
use crate::memory::Memory;
use crate::shaders::Shader;
use crate::view::{Binding, View, in_fours};

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
        let by = in_fours(n, &[x_at, y_at]);
        self.rows(Shader::Softmax, by, &flags, &bindings, &push, [rows, n])
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
        let by = in_fours(n, &[x_at, w_at, b_at, y_at]);
        self.rows(Shader::LayerNorm, by, &[], &bindings, &push, [rows, n])
    }

    /// dx = scale y (dy - sum y dy) along the last dimension, for y = softmax(scale x); with `log` dx = scale (dy - e^y sum dy), for its
    /// logarithm. All contiguous; dy and dx may be the same.
    ///
    /// # Errors
    /// As [`Self::copy`].
    pub fn softmax_backward(&self, log: bool, scale: f32, y: View<'_>, dy: View<'_>, dx: View<'_>) -> Result<()> {
        let fits = [y, dy, dx].iter().all(|v| v.is_contiguous() && v.dims == y.dims);
        assert!(fits, "softmax_backward: {:?} and {:?}", y.dims, dy.dims);
        let n = y.dims.last().copied().unwrap_or(1);
        if y.numel() == 0 {
            return Ok(());
        }
        let rows = y.numel() / n;
        let [(yb, y_at), (from, dy_at), (to, dx_at)] = [y.bind(0)?, dy.bind(1)?, dx.bind(2)?];
        let push = [rows as u32, n as u32, y_at, dy_at, dx_at, scale.to_bits()];
        let by = in_fours(n, &[y_at, dy_at, dx_at]);
        self.rows(Shader::SoftmaxBackward, by, &[u32::from(log)], &[yb, from, to.writing()], &push, [rows, n])
    }

    /// Gradient of x of [`Self::layer_norm`]; `statistics` are mean and 1 / sqrt of each row. All contiguous.
    ///
    /// # Errors
    /// As [`Self::copy`].
    pub fn layer_norm_backward(
        &self,
        x: View<'_>,
        w: View<'_>,
        [mean, rstd]: [View<'_>; 2],
        dy: View<'_>,
        dx: View<'_>,
    ) -> Result<()> {
        let n = w.numel();
        assert!([x, w, mean, rstd, dy, dx].iter().all(View::is_contiguous), "layer_norm_backward: layouts");
        assert!(x.dims == dy.dims && x.dims == dx.dims, "layer_norm_backward: {:?} and {:?}", x.dims, dy.dims);
        if x.numel() == 0 {
            return Ok(());
        }
        let rows = x.numel() / n;
        assert!(mean.numel() == rows && rstd.numel() == rows, "layer_norm_backward: statistics");
        let bound = [x.bind(0)?, w.bind(1)?, mean.bind(2)?, rstd.bind(3)?, dy.bind(4)?, dx.bind(5)?];
        let [x, w, mean, rstd, dy, dx] = bound;
        let bindings = [x.0, w.0, mean.0, rstd.0, dy.0, dx.0.writing()];
        let push = [rows as u32, n as u32, x.1, w.1, mean.1, rstd.1, dy.1, dx.1];
        let by = in_fours(n, &[x.1, w.1, dy.1, dx.1]);
        self.rows(Shader::LayerNormBackward, by, &[], &bindings, &push, [rows, n])
    }
}
