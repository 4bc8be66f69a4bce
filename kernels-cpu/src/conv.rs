//! Convolution of channels-last maps, forward and both gradients, as matrix products over windows: read where they lie, or gathered block by
//! block (implicit im2col). Windows of 3 x 3 over many channels take fewer multiplications, by Winograd's transforms.
//!
//! The gradient of the input is a convolution too, of the turned weight. Of a strided one, the elements whose coordinates leave the same rest
//! are reached by the same kernel elements, so each such phase is a convolution of stride 1 over the output's gradient.
//! The bits of an output element depend on the sizes of a map and the tier alone. The gradient of the weight
//! sums over positions, in fixed parts that are added in order, or at once where there are many weights.

mod even;
mod gather;
mod rounded;
mod winograd;

use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;

use crate::float::{Float, as_f32, as_f32_mut};
use crate::gemm::{Finish, MOST_PACKED_BYTES, Mat, Packed, Right, gemm, gemm_serial};
use crate::par::{self, Shared};
use crate::simd::dispatch;
use crate::zip::add_assign;
use gather::{DepthwiseWeight, Gather, Target};

/// The gradient of more weights than these is not summed up in parts: zeroing and adding those would take longer than the products.
const MANY_WEIGHTS: usize = 1 << 17;
/// Else positions are shared out into so many parts: fixed, so that bits do not depend on threads, and few enough that the parts' gradients
/// stay small beside the maps.
const PARTS: usize = 16;

/// A window that slides over the rows and columns of a map; each pair is (along rows, along columns).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Elements of the window.
    pub kernel: [usize; 2],
    /// From a window to the next.
    pub stride: [usize; 2],
    /// Places around the map, on both sides.
    pub padding: [usize; 2],
    /// From an element of the window to the next.
    pub dilation: [usize; 2],
}

impl Window {
    /// A square window without dilation.
    pub fn square(kernel: usize, stride: usize, padding: usize) -> Self {
        Self { kernel: [kernel; 2], stride: [stride; 2], padding: [padding; 2], dilation: [1; 2] }
    }

    /// Windows along (rows, columns) of a map of `size`. `None`: not even one fits, or a part of the window is 0.
    pub fn output(&self, size: [usize; 2]) -> Option<[usize; 2]> {
        let along = |k: usize| {
            let reach = self.kernel[k].checked_sub(1)? * self.dilation[k] + 1;
            let room = (size[k] + 2 * self.padding[k]).checked_sub(reach)?;
            Some(room.checked_div(self.stride[k])? + 1).filter(|_| self.dilation[k] > 0)
        };
        Some([along(0)?, along(1)?])
    }

    /// Where element `t` of window `i` along `axis` lies; outside the map it is padding.
    pub(crate) fn place(&self, axis: usize, i: usize, t: usize) -> isize {
        (i * self.stride[axis] + t * self.dilation[axis]) as isize - self.padding[axis] as isize
    }
}

/// Sizes of a convolution of `x` [n, h, w, input] with a weight [output, input / groups, kh, kw].
#[derive(Clone, Copy, Debug)]
pub struct Conv2d {
    /// Maps.
    pub n: usize,
    /// Rows and columns of the input.
    pub size: [usize; 2],
    /// Channels of the input.
    pub input: usize,
    /// Channels of the output.
    pub output: usize,
    /// Groups of channels that do not mix; divides both.
    pub groups: usize,
    /// The window.
    pub window: Window,
}

/// A weight packed by [`Conv2d::pack`] or [`Conv2d::pack_bf16`].
pub struct PackedWeight(Order);

enum Order {
    /// An operand for each group.
    Windows(Vec<Packed>),
    Winograd(winograd::Weight),
    /// Of bf16, for maps that are rounded to it.
    Rounded(Packed),
    /// The same by transforms.
    RoundedWinograd(winograd::Weight),
}

/// The definition, for tests: y [n, oh, ow, output].
pub fn conv2d_def<F: Float>(conv: &Conv2d, x: &[F], weight: &[F], bias: Option<&[F]>) -> Vec<F> {
    let ([h, w], [kh, kw], [oh, ow]) = (conv.size, conv.window.kernel, conv.grid());
    let (c, o) = (conv.input / conv.groups, conv.output / conv.groups);
    let mut y = Vec::with_capacity(conv.n * oh * ow * conv.output);
    for (n, i, j) in positions(conv.n, oh, ow) {
        for out in 0..conv.output {
            let mut sum = bias.map_or(F::ZERO, |bias| bias[out]);
            for (a, b) in (0..kh).flat_map(|a| (0..kw).map(move |b| (a, b))) {
                let (row, col) = (conv.window.place(0, i, a), conv.window.place(1, j, b));
                if (0..h as isize).contains(&row) && (0..w as isize).contains(&col) {
                    let at = ((n * h + row as usize) * w + col as usize) * conv.input + out / o * c;
                    for k in 0..c {
                        sum += x[at + k] * weight[((out * c + k) * kh + a) * kw + b];
                    }
                }
            }
            y.push(sum);
        }
    }
    y
}

fn positions(n: usize, rows: usize, cols: usize) -> impl Iterator<Item = (usize, usize, usize)> {
    (0..n).flat_map(move |n| (0..rows).flat_map(move |i| (0..cols).map(move |j| (n, i, j))))
}

impl Conv2d {
    /// Rows and columns of the output.
    ///
    /// # Panics
    /// If the window does not fit, or the groups do not divide the channels.
    #[track_caller]
    pub fn grid(&self) -> [usize; 2] {
        let divides =
            self.groups > 0 && self.input.is_multiple_of(self.groups) && self.output.is_multiple_of(self.groups);
        assert!(divides, "conv2d: groups must divide the channels: {self:?}");
        self.window.output(self.size).unwrap_or_else(|| panic!("conv2d: the window does not fit: {self:?}"))
    }

    /// Elements of x, the weight and y.
    #[track_caller]
    fn lengths(&self) -> [usize; 3] {
        let ([oh, ow], [h, w], [kh, kw]) = (self.grid(), self.size, self.window.kernel);
        [
            self.n * h * w * self.input,
            self.output * (self.input / self.groups) * kh * kw,
            self.n * oh * ow * self.output,
        ]
    }

    /// One depth of channel that never mixes with another: products of vectors instead of matrices.
    fn is_depthwise(&self) -> bool {
        self.groups == self.input && self.input == self.output
    }

    fn windows<'a, T>(&self, x: &'a [T]) -> Gather<'a, T> {
        let offsets = [0, 1].map(|k| (0..self.window.kernel[k]).map(|t| self.window.place(k, 0, t)).collect());
        Gather {
            source: x,
            n: self.n,
            size: self.size,
            channels: self.input,
            grid: self.grid(),
            step: self.window.stride,
            offsets,
        }
    }

    /// y = x * weight + bias.
    ///
    /// # Panics
    /// If lengths do not fit the sizes.
    pub fn forward<F: Float>(&self, x: &[F], weight: &[F], bias: Option<&[F]>, y: &mut [F]) {
        assert!(
            self.lengths() == [x.len(), weight.len(), y.len()] && bias.is_none_or(|b| b.len() == self.output),
            "conv2d: lengths for {self:?}"
        );
        let target = Target { size: self.grid(), step: [1, 1], start: [0, 0] };
        let windows = self.windows(x);
        if self.is_depthwise() {
            return windows.multiply_depthwise(&self.by_tap(weight, &self.taps()), bias, y, target);
        }
        let (packed, finish) = (self.reordered(weight), Finish { bias, ..Finish::default() });
        if let (true, Some(x), Some(ordered)) = (winograd::serves(self), as_f32(x), as_f32(&packed)) {
            let (finish, y) = (finish.single().expect("same type as the map"), as_f32_mut(y).expect("same type"));
            return winograd::Weight::new(self, ordered, Packed::new).multiply(self, x, finish, y);
        }
        windows.multiply(
            self.groups,
            &|group| Right::Loose(self.matrix(&packed, group)),
            self.output,
            finish,
            y,
            target,
        );
    }

    /// The weight in the order in which the kernels read it: worth its memory where it serves many maps. `None`: depthwise, or with a group
    /// without channels, where nothing is gained.
    ///
    /// # Panics
    /// If its length does not fit the sizes.
    pub fn pack(&self, weight: &[f32]) -> Option<PackedWeight> {
        assert_eq!(self.lengths()[1], weight.len(), "conv2d: length of the weight for {self:?}");
        if self.is_depthwise() || weight.is_empty() {
            return None;
        }
        let ordered = self.reordered(weight);
        if winograd::serves(self) {
            return Some(PackedWeight(Order::Winograd(winograd::Weight::new(self, &ordered, Packed::new))));
        }
        let packed = (0..self.groups).map(|group| Packed::new(self.matrix(&ordered, group)));
        Some(PackedWeight(Order::Windows(packed.collect())))
    }

    /// Bytes that [`Conv2d::pack`] makes of the weight.
    pub fn packed_bytes(&self) -> usize {
        let weight = size_of::<f32>() * self.lengths()[1];
        if winograd::serves(self) { weight * 16 / 9 } else { weight }
    }

    /// Bytes that [`Conv2d::forward`] takes in f32 beside its operands, about: the weight in the kernels' order and packed, and what threads keep.
    pub fn forward_bytes(&self) -> usize {
        let ordered = size_of::<f32>() * self.lengths()[1];
        ordered
            + if winograd::serves(self) {
                self.packed_bytes() + par::threads() * winograd::bytes_of_a_job::<f32>(self)
            } else {
                ordered.min(MOST_PACKED_BYTES)
            }
    }

    /// y = act(x * weight + bias + residual) for a packed weight: of f32, the bits are those of [`Conv2d::forward`] and what follows; beside one
    /// of bf16 the numbers of x are rounded to it.
    ///
    /// # Panics
    /// If lengths do not fit the sizes.
    pub fn forward_packed(&self, x: &[f32], weight: &PackedWeight, finish: Finish<'_, f32>, y: &mut [f32]) {
        self.check_finish(x.len(), y.len(), &finish);
        match &weight.0 {
            Order::Winograd(weight) => weight.multiply(self, x, finish, y),
            Order::Rounded(_) | Order::RoundedWinograd(_) => self.multiply_rounded(x, weight, finish, y),
            Order::Windows(weight) => {
                assert_eq!(weight.len(), self.groups, "conv2d: groups of the weight for {self:?}");
                let target = Target { size: self.grid(), step: [1, 1], start: [0, 0] };
                let matrix = |group: usize| Right::Packed(&weight[group]);
                self.windows(x).multiply(self.groups, &matrix, self.output, finish, y, target);
            }
        }
    }

    #[track_caller]
    fn check_finish<F, C>(&self, x: usize, y: usize, finish: &Finish<'_, F, C>) {
        let [x_len, _, y_len] = self.lengths();
        assert!(
            [x_len, y_len] == [x, y]
                && finish.bias.is_none_or(|b| b.len() == self.output)
                && finish.residual.is_none_or(|r| r.len() == y_len),
            "conv2d: lengths for {self:?}"
        );
    }

    fn taps(&self) -> [Vec<usize>; 2] {
        self.window.kernel.map(|k| (0..k).collect())
    }

    /// Numbers of a group's window.
    fn depth(&self) -> usize {
        self.window.kernel[0] * self.window.kernel[1] * (self.input / self.groups)
    }

    /// Of a weight [output][tap][channel], a group's matrix [taps * channels, outputs].
    fn matrix<'a, T>(&self, ordered: &'a [T], group: usize) -> Mat<'a, T> {
        let depth = self.depth();
        let width = self.output / self.groups;
        Mat::new(&ordered[group * width * depth..][..width * depth], width, depth).t()
    }

    /// dx, from dy and the weight.
    ///
    /// # Panics
    /// If lengths do not fit the sizes.
    pub fn backward_input<F: Float>(&self, dy: &[F], weight: &[F], dx: &mut [F]) {
        assert!(self.lengths() == [dx.len(), weight.len(), dy.len()], "conv2d: lengths for {self:?}");
        let [rows, cols] = [0, 1].map(|axis| phases(&self.window, axis, self.size[axis]));
        if let (Some(turned), Some(dy)) = (self.turned(), as_f32(dy)) {
            let taps = self.by_tap(weight, &[&rows, &cols].map(|phases| phases[0].taps.clone()));
            let (taps, dx) = (as_f32(&taps).expect("same type as dy"), as_f32_mut(dx).expect("same type"));
            return winograd::Weight::by_tap(&turned, taps).multiply(&turned, dy, Finish::default(), dx);
        }
        let (c, o) = (self.input / self.groups, self.output / self.groups);
        for (row, col) in rows.iter().flat_map(|row| cols.iter().map(move |col| (row, col))) {
            let (windows, target, taps) = self.phase(dy, row, col);
            let packed = self.by_tap(weight, &taps);
            if self.is_depthwise() {
                windows.multiply_depthwise(&packed, None, dx, target);
                continue;
            }
            let depth = taps[0].len() * taps[1].len() * o;
            let matrix = |group: usize| Right::Loose(Mat::new(&packed[group * depth * c..][..depth * c], depth, c));
            windows.multiply(self.groups, &matrix, self.input, Finish::default(), dx, target);
        }
    }

    /// The convolution over dy that gives dx, by the weight turned by half a turn, where Winograd's transforms serve it.
    fn turned(&self) -> Option<Self> {
        let [rows, cols] = [0, 1].map(|k| (self.window.kernel[k] - 1).checked_sub(self.window.padding[k]));
        let window = Window { padding: [rows?, cols?], ..self.window };
        let turned = Self { size: self.grid(), input: self.output, output: self.input, window, ..*self };
        (self.size.iter().all(|&size| size > 0) && winograd::serves(&turned)).then_some(turned)
    }

    /// Bytes that each of the gradients takes at most in f32 beside its operands, as [`Conv2d::forward_bytes`], where it goes by Winograd's transforms.
    pub fn backward_bytes(&self) -> usize {
        let of_weight = if winograd::gradient::serves(self) { winograd::gradient::bytes(self) } else { 0 };
        self.turned().map_or(0, |turned| turned.forward_bytes()).max(of_weight)
    }

    /// Of a phase: the windows over dy, where their products go, and its taps.
    fn phase<'a, T>(&self, dy: &'a [T], row: &Phase, col: &Phase) -> (Gather<'a, T>, Target, [Vec<usize>; 2]) {
        let windows = Gather {
            source: dy,
            n: self.n,
            size: self.grid(),
            channels: self.output,
            grid: [row.count, col.count],
            step: [1, 1],
            offsets: [row.offsets.clone(), col.offsets.clone()],
        };
        let target = Target { size: self.size, step: self.window.stride, start: [row.start, col.start] };
        (windows, target, [row.taps.clone(), col.taps.clone()])
    }

    /// dweight, from x and dy.
    ///
    /// # Panics
    /// If lengths do not fit the sizes.
    pub fn backward_weight<F: Float>(&self, x: &[F], dy: &[F], dweight: &mut [F]) {
        assert!(self.lengths() == [x.len(), dweight.len(), dy.len()], "conv2d: lengths for {self:?}");
        if let (true, Some(x), Some(dy)) = (winograd::gradient::serves(self), as_f32(x), as_f32(dy)) {
            return winograd::gradient::of_weight(self, x, dy, as_f32_mut(dweight).expect("same type as the maps"));
        }
        self.backward_weight_direct(x, dy, dweight);
    }

    fn backward_weight_direct<F: Float>(&self, x: &[F], dy: &[F], dweight: &mut [F]) {
        let total = if dweight.len() > MANY_WEIGHTS && !self.is_depthwise() {
            self.weight_by_rows(x, dy)
        } else {
            self.weight_by_parts(x, dy)
        };
        self.by_channel(&total, dweight);
    }

    /// A gradient [output][tap][channel], depthwise [tap][channel], in the order of the weight.
    fn by_channel<F: Float>(&self, total: &[F], dweight: &mut [F]) {
        let (c, taps) = (self.input / self.groups, self.window.kernel[0] * self.window.kernel[1]);
        par::chunks_mut(dweight, (c * taps).max(1), c * taps, |out, dweight| {
            for tap in 0..taps {
                let at = if self.is_depthwise() { tap * self.output + out } else { (out * taps + tap) * c };
                dweight[tap..].iter_mut().step_by(taps).zip(&total[at..][..c]).for_each(|(d, &t)| *d = t);
            }
        });
    }

    fn weight_by_rows<F: Float>(&self, x: &[F], dy: &[F]) -> Vec<F> {
        self.by_rows(x, dy, |a, b, c, ldc| gemm(a, b, false, c, ldc, None))
    }

    fn weight_by_parts<F: Float>(&self, x: &[F], dy: &[F]) -> Vec<F> {
        let windows = self.windows(x);
        if self.is_depthwise() {
            return self
                .by_parts(&windows, |range, sum| dispatch(DepthwiseWeight { windows: &windows, range, dy, sum }));
        }
        self.by_parts(&windows, |range, sum| {
            self.add_block(&windows, dy, range, sum, |a, b, sum| gemm_serial(a, b, true, sum, b.cols, None));
        })
    }

    /// dweight as [output][tap][channel], a row of the kernel at a time: a product over all positions, split by outputs.
    fn by_rows<T: Copy + Default + Send + Sync, F: Float>(
        &self,
        x: &[T],
        dy: &[T],
        multiply: impl Fn(Mat<'_, T>, Mat<'_, T>, &mut [F], usize),
    ) -> Vec<F> {
        let (c, o, [kh, kw]) = (self.input / self.groups, self.output / self.groups, self.window.kernel);
        let (ldc, mut total, mut scratch) = (kh * kw * c, vec![F::ZERO; self.output * kh * kw * c], Vec::new());
        if total.is_empty() {
            return total;
        }
        for row in 0..kh {
            let mut windows = self.windows(x);
            windows.offsets[0] = vec![windows.offsets[0][row]];
            for group in 0..self.groups {
                let rows = 0..windows.items();
                let a = self.gradients(dy, rows.clone(), group);
                let b = windows.matrix(rows, group * c..(group + 1) * c, &mut scratch, true);
                multiply(a.t(), b, &mut total[group * o * ldc + row * kw * c..], ldc);
            }
        }
        total
    }

    /// dweight as [output][tap][channel], depthwise [tap][channel]: those of parts of the positions, which `add` adds to, added.
    fn by_parts<T: Copy + Default + Send + Sync, F: Float>(
        &self,
        windows: &Gather<'_, T>,
        add: impl Fn(Range<usize>, &mut [F]) + Sync,
    ) -> Vec<F> {
        let weights = self.lengths()[1];
        let (c, taps) = (self.input / self.groups, self.window.kernel[0] * self.window.kernel[1]);
        let (items, block) = (windows.items(), windows.block(taps * c));
        let part = items.div_ceil(PARTS).next_multiple_of(block).max(1);
        let sums: Vec<Vec<F>> =
            par::map_chunks(items, part, taps * c * self.output / 16 + taps * self.input, |range| {
                let mut sum = vec![F::ZERO; weights];
                add(range, &mut sum);
                sum
            });
        let mut total = vec![F::ZERO; weights];
        sums.iter().for_each(|sum| add_assign(&mut total, sum));
        total
    }

    /// Adds to a gradient [output][tap][channel] that of some positions, a block at a time.
    fn add_block<T: Copy + Default + Send + Sync, F: Float>(
        &self,
        windows: &Gather<'_, T>,
        dy: &[T],
        range: Range<usize>,
        sum: &mut [F],
        multiply: impl Fn(Mat<'_, T>, Mat<'_, T>, &mut [F]),
    ) {
        let (c, o) = (self.input / self.groups, self.output / self.groups);
        let taps = self.window.kernel[0] * self.window.kernel[1];
        let (block, mut scratch) = (windows.block(taps * c), Vec::new());
        for start in range.clone().step_by(block) {
            let rows = start..range.end.min(start + block);
            for group in 0..self.groups {
                let a = self.gradients(dy, rows.clone(), group);
                let b = windows.matrix(rows.clone(), group * c..(group + 1) * c, &mut scratch, false);
                let sum = &mut sum[group * o * taps * c..][..o * taps * c];
                if !sum.is_empty() {
                    multiply(a.t(), b, sum);
                }
            }
        }
    }

    /// Rows of dy at some positions, a group's outputs alone.
    fn gradients<'a, T>(&self, dy: &'a [T], rows: Range<usize>, group: usize) -> Mat<'a, T> {
        let o = self.output / self.groups;
        let offset = rows.start * self.output + group * o;
        Mat { data: dy, offset, rows: rows.len(), cols: o, row_stride: self.output as isize, col_stride: 1 }
    }

    /// The weight as [output][tap][channel].
    fn reordered<T: Copy + Default + Send + Sync>(&self, weight: &[T]) -> Vec<T> {
        let (c, taps) = (self.input / self.groups, self.window.kernel[0] * self.window.kernel[1]);
        let mut packed = vec![T::default(); weight.len()];
        par::chunks_mut(&mut packed, (c * taps).max(1), c * taps, |out, packed| {
            let block = &weight[out * c * taps..][..c * taps];
            for (tap, packed) in packed.chunks_exact_mut(c).enumerate() {
                packed.iter_mut().zip(block[tap..].iter().step_by(taps)).for_each(|(p, &w)| *p = w);
            }
        });
        packed
    }

    /// The weight's elements at some taps (along rows, along columns) as [group][tap][output of the group][channel];
    /// depthwise as [tap][channel].
    fn by_tap<F: Float>(&self, weight: &[F], [rows, cols]: &[Vec<usize>; 2]) -> Vec<F> {
        let ([kh, kw], c) = (self.window.kernel, self.input / self.groups);
        // Of one group, where depthwise is one.
        let outputs = if self.is_depthwise() { self.output } else { self.output / self.groups };
        let count = rows.len() * cols.len();
        let mut packed = vec![F::ZERO; self.output * c * count];
        let places = Shared::new(&mut packed);
        par::for_each(self.output, c * count, |range| {
            for o in range {
                let block = &weight[o * c * kh * kw..][..c * kh * kw];
                let taps = rows.iter().flat_map(|a| cols.iter().map(move |b| a * kw + b));
                for (t, tap) in taps.enumerate() {
                    let place = ((o / outputs * count + t) * outputs + o % outputs) * c;
                    // SAFETY: an output's channels at a tap, which no other output has.
                    let place = unsafe { places.slice(place..place + c) };
                    place.iter_mut().zip(block.iter().skip(tap).step_by(kh * kw)).for_each(|(p, &w)| *p = w);
                }
            }
        });
        packed
    }
}

/// Elements `start`, `start + stride`, .. of one axis of the input, and the taps that reach them.
struct Phase {
    start: usize,
    count: usize,
    taps: Vec<usize>,
    /// Element `i` of the phase was read through tap `t` by window `i + offsets[t]`.
    offsets: Vec<isize>,
}

fn phases(window: &Window, axis: usize, size: usize) -> Vec<Phase> {
    let [stride, padding, dilation] = [window.stride, window.padding, window.dilation].map(|pair| pair[axis] as isize);
    let phase = |start: usize| {
        let back = |t: usize| start as isize + padding - t as isize * dilation;
        // From the last tap on, so that windows come in ascending order.
        let taps: Vec<usize> = (0..window.kernel[axis]).rev().filter(|&t| back(t) % stride == 0).collect();
        let offsets = taps.iter().map(|&t| back(t) / stride).collect();
        Phase { start, count: (size - start).div_ceil(stride as usize), taps, offsets }
    };
    (0..window.stride[axis].min(size)).map(phase).collect()
}

#[cfg(test)]
mod tests;
