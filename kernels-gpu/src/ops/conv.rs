//! Convolution as products whose windows are read where they lie on channels-last maps.

use kernels_cpu::conv::{Conv2d, Window};

use super::Gemm;
use super::windows::Maps;
use crate::device::{Device, Kernel};
use crate::error::{Error, Result};
use crate::matrices::{self, By, Shape};
use crate::memory::Memory;
use crate::shaders::Shader;
use crate::view::{Stored, View};

/// What a workgroup makes of a product: rows and columns, and the constants of its shader that say so.
#[derive(Clone, Debug)]
struct Tile {
    rows: usize,
    cols: usize,
    spec: Vec<u32>,
    /// Depth of a slice.
    depth: usize,
    /// Bytes of shared memory.
    shared: u32,
    /// Of the products of a core full of the largest tiles, how many a core full of these makes.
    rate: f64,
}

/// Tiles of f32, the largest first: threads across and down, and rows and columns of each.
const WORDS: [([u32; 4], f64); 5] =
    [([16, 16, 8, 8], 1.0), ([8, 16, 8, 8], 0.95), ([16, 8, 8, 8], 0.95), ([8, 8, 8, 8], 0.85), ([8, 8, 4, 4], 0.5)];
/// Tiles of cooperative matrices, which are so many times as quick: subgroups down and across, and matrices of each.
pub(crate) const MATRICES: [([u32; 4], f64); 4] =
    [([2, 2, 4, 4], 8.0), ([2, 2, 4, 2], 6.0), ([2, 2, 2, 2], 4.0), ([2, 2, 1, 1], 1.5)];
/// Of a slice of f32 in shared memory; a multiple of 8.
const DEPTH: u32 = 8;
/// Most parts of the depth, and the least depth of one.
const PARTS: usize = 256;
const SHORTEST: usize = 64;
/// What a core of a large GPU does in a clock: multiplications in f32, and bytes of memory.
const PER_CLOCK: f64 = 128.0;
const BYTES_PER_CLOCK: f64 = 11.0;
/// Clocks until a kernel runs after the one that it needs.
const LAUNCH: f64 = 8000.0;
/// Threads of a core of whose time half is lost by waiting.
const HALF_BUSY: f64 = 80.0;
/// Depth in whose time a workgroup fills its first slices and writes its sums.
const BESIDE: usize = 48;

impl Tile {
    fn words([across, down, rows, cols]: [u32; 4], rate: f64) -> Self {
        let (m, n) = (down * rows, across * cols);
        // Two slices of each operand, with a four more for each element of the depth.
        let (shared, spec) = (2 * DEPTH * (m + n + 8) * 4, vec![across * down, across, down, rows, cols, DEPTH]);
        Self { rows: m as usize, cols: n as usize, spec, depth: DEPTH as usize, shared, rate }
    }

    fn matrices(tile: [u32; 4], subgroup: u32, shape: Shape, rate: f64) -> Self {
        let depth = matrices::DEPTH;
        let matrices::Tile { sides: [m, n], spec, shared } = matrices::Tile::new(tile, depth, subgroup, shape);
        Self { rows: m as usize, cols: n as usize, spec, depth: depth as usize, shared, rate }
    }

    /// Whether each thread stays at one eight of a slice's rows, whichever way it lies.
    fn has_whole_rows(&self) -> bool {
        let threads = self.spec[0] as usize;
        [self.rows, self.cols].iter().all(|side| side.is_multiple_of(8) && threads.is_multiple_of(side / 8))
    }

    fn count(&self, [m, n]: [usize; 2]) -> usize {
        m.div_ceil(self.rows) * n.div_ceil(self.cols)
    }

    /// Clocks that products of [m, n] sums of `depth` terms take, roughly, `times` of them, each in parts.
    fn clocks(&self, [m, n, depth]: [usize; 3], times: usize, parts: usize, cores: u32) -> f64 {
        let most = (self.count([m, n]) * times * parts).div_ceil(cores as usize);
        let own = (self.rows * self.cols * (depth.div_ceil(parts) + BESIDE)) as f64 / PER_CLOCK / self.rate;
        let waiting = 1.0 + HALF_BUSY / (most * self.spec[0] as usize).min(512) as f64;
        let bytes = (4 * m * n * times * (2 * parts + 1)) as f64;
        let adding = if parts > 1 { LAUNCH + bytes / BYTES_PER_CLOCK / f64::from(cores) } else { 0.0 };
        most as f64 * own * waiting + adding
    }
}

/// Windows beside each other without padding are one window of a column, over maps with so many columns less and more channels.
fn patches(conv: &Conv2d) -> Conv2d {
    let (mut out, Window { kernel, stride, padding, dilation }) = (*conv, conv.window);
    let cols = kernel[1];
    let beside = stride[1] == cols && padding[1] == 0 && dilation[1] == 1 && conv.groups == 1;
    if beside && cols > 1 && conv.size[1].is_multiple_of(cols) {
        (out.size[1], out.input) = (conv.size[1] / cols, conv.input * cols);
        (out.window.kernel[1], out.window.stride[1]) = (1, 1);
    }
    out
}

/// Whether every window is a place of the map.
fn is_product(conv: &Conv2d) -> bool {
    conv.groups == 1 && conv.window == Window { dilation: conv.window.dilation, ..Window::square(1, 1, 0) }
}

/// Places of all maps of x.
fn places(conv: &Conv2d) -> usize {
    conv.n * conv.size[0] * conv.size[1]
}

/// Elements of a map of x, and of y.
fn of_maps(conv: &Conv2d) -> [usize; 2] {
    let [oh, ow] = conv.grid();
    [conv.size[0] * conv.size[1] * conv.input, oh * ow * conv.output]
}

/// Maps `first..first + n` of [maps, each].
fn maps<'a>(x: View<'a>, first: usize, each: usize, dims: &'a [usize; 1]) -> View<'a> {
    View { offset: x.offset + first * each, dims, strides: &[1], ..x }
}

/// What [`Device::widened`] made of x, or x.
fn wide<'a>(x: View<'a>, held: &'a Option<Memory>) -> View<'a> {
    held.as_ref().map_or(x, |memory| View::new(memory, 0, x.dims, x.strides))
}

/// What is computed, as `inc/conv_matrices.glsl` numbers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Of {
    /// From x and the weight.
    Y,
    /// dx, from dy and the weight.
    Input,
    /// dweight, from dy and x.
    Weight,
}

/// What is multiplied: products of [m, n] sums of `depth` terms, `times` of them.
struct Products<'a> {
    of: Of,
    conv: &'a Conv2d,
    sizes: [usize; 3],
    times: usize,
    a: View<'a>,
    b: View<'a>,
    bias: Option<View<'a>>,
    /// Channels of A's, B's and C's rows, and of a group of each.
    channels: [[usize; 2]; 3],
}

impl Device {
    /// y = x * weight + bias as kernels-cpu's `Conv2d`, but for the weight's order: [output, kernel rows, kernel cols, input / groups]. All
    /// contiguous. The weight is f32 or stored in half; then products are in half, with sums of f32, where the device has cooperative matrices for
    /// it that are right and quicker. So may maps be, here and of the gradients: they are rounded to what the weight is stored as, or widened.
    ///
    /// # Errors
    /// As [`Self::copy`].
    pub fn conv2d(
        &self,
        conv: &Conv2d,
        x: View<'_>,
        weight: View<'_>,
        bias: Option<View<'_>>,
        y: View<'_>,
    ) -> Result<()> {
        assert!([x, weight, y].iter().all(View::is_contiguous), "conv2d: layouts");
        if is_product(conv) {
            return self.matrix_product([places(conv), conv.input, conv.output], (x, false), (weight, true), bias, y);
        }
        self.convolution(Of::Y, conv, [x, weight], bias, y, self.conv_way(Of::Y, weight.stored)?)
    }

    /// dx of [`Self::conv2d`], from dy and the weight.
    ///
    /// # Errors
    /// As [`Self::copy`].
    pub fn conv2d_backward_input(&self, conv: &Conv2d, dy: View<'_>, weight: View<'_>, dx: View<'_>) -> Result<()> {
        assert!([dy, weight, dx].iter().all(View::is_contiguous), "conv2d_backward_input: layouts");
        if is_product(conv) {
            let sizes = [places(conv), conv.output, conv.input];
            return self.matrix_product(sizes, (dy, false), (weight, false), None, dx);
        }
        self.convolution(Of::Input, conv, [dy, weight], None, dx, self.conv_way(Of::Input, weight.stored)?)
    }

    /// dweight of [`Self::conv2d`], in its order, from x and dy: the sum over all windows. Products are in half where both are stored so.
    ///
    /// # Errors
    /// As [`Self::copy`].
    pub fn conv2d_backward_weight(&self, conv: &Conv2d, x: View<'_>, dy: View<'_>, dweight: View<'_>) -> Result<()> {
        assert!([x, dy, dweight].iter().all(View::is_contiguous), "conv2d_backward_weight: layouts");
        assert!(conv.n > 0 || dweight.numel() == 0, "conv2d_backward_weight: no maps");
        let stored = if x.stored == dy.stored { x.stored } else { Stored::F32 };
        if is_product(conv) && stored != Stored::F32 {
            return self.matrix_product([conv.output, places(conv), conv.input], (dy, true), (x, false), None, dweight);
        }
        self.convolution(Of::Weight, conv, [dy, x], None, dweight, self.conv_way(Of::Weight, stored)?)
    }

    /// C [m, n] = A [m, k] B [k, n] + bias, contiguous, of operands that lie so or, with true beside them, turned.
    fn matrix_product(
        &self,
        [m, k, n]: [usize; 3],
        (a, a_turned): (View<'_>, bool),
        (b, b_turned): (View<'_>, bool),
        bias: Option<View<'_>>,
        c: View<'_>,
    ) -> Result<()> {
        let dims = [[1, 1, m, k], [1, 1, k, n], [1, 1, m, n]];
        let lies = |[_, _, rows, cols]: [usize; 4], turned| {
            if turned { [0, 0, 1, rows as isize] } else { [0, 0, cols as isize, 1] }
        };
        let strides = [lies(dims[0], a_turned), lies(dims[1], b_turned), lies(dims[2], false)];
        let [a, b, c] = [(0, a), (1, b), (2, c)].map(|(i, x)| View { dims: &dims[i], strides: &strides[i], ..x });
        self.gemm(&Gemm { bias, ..Gemm::new(a, b, c) })
    }

    /// A copy in f32 of what is stored in half, contiguous.
    fn widened(&self, x: View<'_>) -> Result<Option<Memory>> {
        if x.stored == Stored::F32 {
            return Ok(None);
        }
        let memory = self.memory(4 * x.numel())?;
        self.cast(x, View::new(&memory, 0, x.dims, x.strides))?;
        Ok(Some(memory))
    }

    /// What is asked for, of what it is made from, in this way: turn by turn, so that a turn's maps are bound at once. Each turn's gradient of the
    /// weight is added last.
    pub(crate) fn convolution(
        &self,
        of: Of,
        conv: &Conv2d,
        [a, b]: [View<'_>; 2],
        bias: Option<View<'_>>,
        c: View<'_>,
        by: Option<By>,
    ) -> Result<()> {
        let conv = patches(conv);
        let ([of_x, of_y], [oh, ow]) = (of_maps(&conv), conv.grid());
        let Window { kernel, stride, dilation, .. } = conv.window;
        let [inputs, outputs] = [conv.input, conv.output].map(|n| n / conv.groups);
        let row = kernel.iter().product::<usize>() * inputs;
        // Of each phase of x, the most places and elements of the kernel that there may be.
        let along = |k: usize| {
            let every = (1..=stride[k]).find(|every| (every * dilation[k]).is_multiple_of(stride[k]));
            (conv.size[k].div_ceil(stride[k]), kernel[k].div_ceil(every.unwrap_or(1)))
        };
        let (rows, cols, phases) = (along(0), along(1), stride[0] * stride[1]);
        let weights = c.numel();
        let turns = if of == Of::Weight { conv.n.div_ceil(self.maps_at_once(&conv)) } else { 1 };
        let held = self.memory(if turns > 1 { 4 * turns * weights } else { 0 })?;
        let (all, own) = ([turns * weights], [weights]);
        let (of_turns, mut turn) = (View::new(&held, 0, &all, &[1]), 0);
        self.in_turns(&conv, |first, part| {
            let windows = part.n * oh * ow;
            let ([x_dims, y_dims], b_dims) = ([[part.n * of_x], [part.n * of_y]], [b.numel()]);
            let (x_of, y_of) = (|v| maps(v, first, of_x, &x_dims), |v| maps(v, first, of_y, &y_dims));
            let whole = maps(b, 0, 0, &b_dims);
            let (sizes, times, [a, b, c], channels) = match of {
                Of::Y => {
                    let channels = [[conv.input, inputs], [row, inputs], [conv.output, outputs]];
                    ([windows, outputs, row], 1, [x_of(a), whole, y_of(c)], channels)
                }
                Of::Input => {
                    let sizes = [part.n * rows.0 * cols.0, inputs, rows.1 * cols.1 * outputs];
                    let channels = [[conv.output, outputs], [inputs, inputs], [conv.input, inputs]];
                    (sizes, phases, [y_of(a), whole, x_of(c)], channels)
                }
                Of::Weight => {
                    let to = if turns > 1 { maps(of_turns, turn, weights, &own) } else { maps(c, 0, 0, &own) };
                    turn += 1;
                    let channels = [[conv.output, outputs], [conv.input, inputs], [row, row]];
                    ([outputs, row, windows], 1, [y_of(a), x_of(b), to], channels)
                }
            };
            let products = Products { of, conv: part, sizes, times: conv.groups * times, a, b, bias, channels };
            self.multiply(&products, by, c)
        })?;
        if turns > 1 { self.sum(of_turns, [1, turns, weights], maps(c, 0, 0, &own)) } else { Ok(()) }
    }

    /// As many maps as the device binds, and kernels count.
    fn maps_at_once(&self, conv: &Conv2d) -> usize {
        let most = of_maps(conv).into_iter().max().unwrap_or(0).max(1);
        // A part may begin a little before the maps.
        let bytes = self.limits().range.saturating_sub(self.limits().alignment).min(4 * (i32::MAX as u64 - 64));
        (bytes / 4 / most as u64).clamp(1, conv.n.max(1) as u64) as usize
    }

    /// Calls `f` with the first of so many maps, and their convolution, until it was all of them.
    fn in_turns(&self, conv: &Conv2d, mut f: impl FnMut(usize, &Conv2d) -> Result<()>) -> Result<()> {
        let most = self.maps_at_once(conv);
        (0..conv.n).step_by(most).try_for_each(|first| f(first, &Conv2d { n: most.min(conv.n - first), ..*conv }))
    }

    /// The tile, and into how many parts the depth falls, that are likely the quickest.
    fn conv_tile(&self, by: Option<By>, sizes: [usize; 3], times: usize) -> Option<(Tile, usize)> {
        let (limits, [_, _, depth]) = (self.limits(), sizes);
        let tiles: Vec<Tile> = match by {
            None => {
                let from = if limits.large_tiles { 0 } else { WORDS.len() - 1 };
                WORDS[from..].iter().map(|&(tile, rate)| Tile::words(tile, rate)).collect()
            }
            Some((shape, from)) => {
                let made = |&(tile, rate): &_| Tile::matrices(tile, self.0.matrices.subgroup, shape, rate);
                MATRICES[from..].iter().map(made).filter(Tile::has_whole_rows).collect()
            }
        };
        let fitting = tiles.into_iter().filter(|t| t.spec[0] <= limits.threads && t.shared <= limits.shared);
        let some = |parts: &usize| *parts == 1 || *parts <= PARTS && depth / parts >= SHORTEST;
        let parts: Vec<usize> = std::iter::successors(Some(1), |p| Some(p + (p / 4).max(1))).take_while(some).collect();
        let all = fitting.filter_map(|tile| {
            let clocks = parts.iter().map(|&p| (tile.clocks(sizes, times, p, limits.cores), p));
            clocks.min_by(|a, b| a.0.total_cmp(&b.0)).map(|(clocks, parts)| (clocks, tile, parts))
        });
        all.min_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, tile, parts)| (tile, parts))
    }

    fn multiply(&self, p: &Products<'_>, by: Option<By>, c: View<'_>) -> Result<()> {
        let ([m, n, depth], written) = (p.sizes, c.numel());
        if written == 0 {
            return Ok(());
        }
        let chosen = |by| self.conv_tile(by, p.sizes, p.times).map(|(tile, parts)| (by, tile, parts));
        let (by, tile, most) =
            chosen(by).or_else(|| chosen(None)).ok_or_else(|| Error::Limit("no room for a tile".to_owned()))?;
        // Matrices take maps as they are stored, where that is what they multiply.
        let number = if by.is_some() { p.b.stored } else { Stored::F32 };
        let widened = |x: View<'_>| if x.stored == number { Ok(None) } else { self.widened(x) };
        let held = [widened(p.a)?, if p.of == Of::Weight { widened(p.b)? } else { None }];
        let (a, b) = (wide(p.a, &held[0]), wide(p.b, &held[1]));
        // Parts begin with a slice.
        let of_part = depth.div_ceil(most).next_multiple_of(tile.depth).max(1);
        let parts = depth.div_ceil(of_part).max(1);
        let (held, all) = (self.memory(if parts > 1 { 4 * parts * written } else { 0 })?, [parts * written]);
        let to = if parts > 1 { View::new(&held, 0, &all, &[1]) } else { c };
        let (bound, c_at) = to.bind(2)?;
        let mut bindings = vec![bound.writing()];
        // What has no elements is not read.
        let [mut a_at, mut b_at, mut bias_at] = [0; 3];
        for (number, view, at) in [(0, Some(a), &mut a_at), (1, Some(b), &mut b_at), (3, p.bias, &mut bias_at)] {
            if let Some(view) = view.filter(|view| view.numel() > 0) {
                let (binding, place) = view.bind_stored(number)?;
                bindings.push(binding);
                *at = place;
            }
        }
        // Whether rows of channels, of which groups take some each, are read by so many at once.
        let at_once = |[channels, of_group]: [usize; 2], at: u32, unit: usize| {
            u32::from([channels, of_group, at as usize].iter().all(|n| n.is_multiple_of(unit)))
        };
        let unit = if by.is_some() { 8 } else { 4 };
        // Of f32 an eight is read as two fours.
        let once = |i: usize, stored, at: u32| {
            at_once(p.channels[i], 0, unit) & at_once([0; 2], at, if stored == Stored::F32 { 4 } else { unit })
        };
        let together = [once(0, a.stored, a_at), once(1, b.stored, b_at), at_once(p.channels[2], c_at, 4)];
        let (bias, kinds) = (u32::from(p.bias.is_some()), [a.stored as u32, b.stored as u32]);
        let (shader, form) = match (p.of, by) {
            (of, Some(_)) => (matrices::conv_shader(number), [&[of as u32, bias][..], &kinds, &together].concat()),
            (Of::Weight, None) => (Shader::ConvWeight, together.to_vec()),
            (of, None) => (Shader::Conv, [&[u32::from(of == Of::Input), bias][..], &together, &kinds[1..]].concat()),
        };
        let spec = [tile.spec.clone(), form].concat();
        let [across, down] = [n.div_ceil(tile.cols), m.div_ceil(tile.rows)];
        let jobs = across * down * parts * p.times;
        let count = u32::try_from(jobs).map_err(|_| Error::Limit(format!("{:?} has too many tiles", p.conv)))?;
        let push = [
            &[count][..],
            &[across, down, parts, of_part, p.conv.groups, p.conv.output].map(|n| n as u32),
            &[a_at, b_at, c_at, bias_at],
            &Maps::of(p.conv).words(),
        ]
        .concat();
        let (work, groups) = (2 * (m * n * p.times * depth.max(1)) as u64, [jobs as u64, 1, 1]);
        self.dispatch(Kernel { shader, spec: &spec, bindings: &bindings, push: &push, groups, work })?;
        if parts > 1 { self.sum(to, [1, parts, written], maps(c, 0, 0, &[written])) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Options;
    use crate::select::Choice;

    #[test]
    fn tiles_are_as_large_as_the_device_has_them() {
        for large_tiles in [false, true] {
            let options = Options { choice: Choice::Index(0), large_tiles, cores: Some(1), ..Options::default() };
            let Ok(d) = Device::open(&options) else { return };
            let rows = d.conv_tile(None, [4096; 3], 1).map(|(tile, _)| tile.rows);
            assert_eq!(rows, Some(if d.limits().large_tiles { 128 } else { 32 }));
        }
    }
}
