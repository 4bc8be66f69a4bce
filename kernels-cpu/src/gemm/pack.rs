//! Packing: panels of a few rows with k running slowest, as the register tile reads them.

use super::Mat;

/// Rows `first..first + width` of `x` (zeros beyond its end), columns from `start` on, as `[depth]``[width]`. Columns of
/// B are rows of its transpose.
pub(super) fn rows(x: Mat<'_, f32>, first: usize, width: usize, start: usize, out: &mut [f32]) {
    let real = width.min(x.rows - first);
    if real < width {
        out.fill(0.0);
    }
    let origin = x.offset as isize + first as isize * x.row_stride + start as isize * x.col_stride;
    if x.row_stride == 1 {
        for (p, out) in out.chunks_exact_mut(width).enumerate() {
            let at = (origin + p as isize * x.col_stride) as usize;
            out[..real].copy_from_slice(&x.data[at..at + real]);
        }
    } else if x.col_stride == 1 {
        // Sixteen steps of k at a time: the written lines stay in the first-level cache.
        for (block, out) in out.chunks_mut(width * 16).enumerate() {
            for r in 0..real {
                let at = (origin + r as isize * x.row_stride) as usize + block * 16;
                let line = &x.data[at..at + out.len() / width];
                for (p, &v) in line.iter().enumerate() {
                    out[p * width + r] = v;
                }
            }
        }
    } else {
        for (p, out) in out.chunks_exact_mut(width).enumerate() {
            for (r, o) in out[..real].iter_mut().enumerate() {
                *o = x.data[(origin + r as isize * x.row_stride + p as isize * x.col_stride) as usize];
            }
        }
    }
}
