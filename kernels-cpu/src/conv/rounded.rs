//! Convolution of maps in bf16 with weights rounded to it, in one group: products of bf16 over gathered windows, whose sums are f32.

use alloc::vec::Vec;

use half::bf16;

use super::gather::{Gather, Target};
use super::{Conv2d, MANY_WEIGHTS, phases};
use crate::gemm::{Finish, Mat, Packed, accumulate_bf16, multiply_bf16, multiply_halves};

impl Conv2d {
    /// Bytes that the products in bf16 take beside their operands, about: the weight in the kernels' order and packed.
    pub fn bf16_bytes(&self) -> usize {
        8 * self.lengths()[1]
    }

    /// y = x * weight + bias, as [`Conv2d::forward`].
    ///
    /// # Panics
    /// If lengths do not fit the sizes, or there are several groups.
    pub fn forward_bf16(&self, x: &[bf16], weight: &[f32], bias: Option<&[f32]>, y: &mut [f32]) {
        assert!(
            self.lengths() == [x.len(), weight.len(), y.len()]
                && self.groups == 1
                && bias.is_none_or(|b| b.len() == self.output),
            "conv2d: lengths for {self:?}"
        );
        let packed = Packed::rounded(self.matrix(&self.reordered(weight), 0));
        let target = Target { size: self.grid(), step: [1, 1], start: [0, 0] };
        multiply(&self.windows(x), &packed, Finish { bias, ..Finish::default() }, y, target);
    }

    /// dx, from dy and the weight.
    ///
    /// # Panics
    /// As [`Conv2d::forward_bf16`].
    pub fn backward_input_bf16(&self, dy: &[bf16], weight: &[f32], dx: &mut [f32]) {
        assert!(
            self.lengths() == [dx.len(), weight.len(), dy.len()] && self.groups == 1,
            "conv2d: lengths for {self:?}"
        );
        let [rows, cols] = [0, 1].map(|axis| phases(&self.window, axis, self.size[axis]));
        for (row, col) in rows.iter().flat_map(|row| cols.iter().map(move |col| (row, col))) {
            let (windows, target, taps) = self.phase(dy, row, col);
            let depth = taps[0].len() * taps[1].len() * self.output;
            let packed = Packed::rounded(Mat::new(&self.by_tap(weight, &taps), depth, self.input));
            multiply(&windows, &packed, Finish::default(), dx, target);
        }
    }

    /// dweight, from x and dy.
    ///
    /// # Panics
    /// As [`Conv2d::forward_bf16`].
    pub fn backward_weight_bf16(&self, x: &[bf16], dy: &[bf16], dweight: &mut [f32]) {
        assert!(
            self.lengths() == [x.len(), dweight.len(), dy.len()] && self.groups == 1,
            "conv2d: lengths for {self:?}"
        );
        let windows = self.windows(x);
        let total: Vec<f32> = if dweight.len() > MANY_WEIGHTS {
            self.by_rows(x, dy, |a, b, c, ldc| multiply_bf16(a, b, c, ldc, Finish::default(), true))
        } else {
            self.by_parts(&windows, |range, sum| self.add_block(&windows, dy, range, sum, accumulate_bf16))
        };
        self.by_channel(&total, dweight);
    }
}

/// Windows times a matrix [taps * channels, outputs], finished.
fn multiply(windows: &Gather<'_, bf16>, matrix: &Packed, finish: Finish<'_, f32>, y: &mut [f32], target: Target) {
    let [depth, outputs] = matrix.size();
    if outputs == 0 || windows.items() == 0 {
        return;
    }
    windows.blocks(depth, depth * outputs / 32 + depth, outputs, y, target, |rows, scratch, into, shared| {
        let a = windows.matrix(rows, 0..windows.channels, scratch, false);
        multiply_halves(a, matrix, into, outputs, finish, shared);
    });
}
