//! Convolution as products whose windows are read where they lie on channels-last maps.

use kernels_cpu::conv::{Conv2d, Window};

use super::Gemm;
use super::windows::Maps;
use crate::device::{Device, Kernel};
use crate::error::{Error, Result};
use crate::shaders::Shader;
use crate::view::View;

/// What a workgroup makes of a product, as `inc/product.glsl` has it.
#[derive(Clone, Copy, Debug)]
struct Tile {
    /// Threads across and down, and columns and rows of each, that is its constants.
    across: u32,
    down: u32,
    rows: u32,
    cols: u32,
    /// Of the products of a core full of the largest tiles, how many a core full of these makes.
    rate: f64,
}

/// The largest first.
const TILES: [Tile; 5] = [
    Tile { across: 16, down: 16, rows: 8, cols: 8, rate: 1.0 },
    Tile { across: 8, down: 16, rows: 8, cols: 8, rate: 0.95 },
    Tile { across: 16, down: 8, rows: 8, cols: 8, rate: 0.95 },
    Tile { across: 8, down: 8, rows: 8, cols: 8, rate: 0.85 },
    Tile { across: 8, down: 8, rows: 4, cols: 4, rate: 0.5 },
];
/// Of a slice in shared memory; a multiple of 8.
const DEPTH: usize = 8;
/// Most parts of the depth.
const PARTS: usize = 64;

impl Tile {
    fn threads(&self) -> u32 {
        self.across * self.down
    }

    /// Rows and columns.
    fn sides(&self) -> [usize; 2] {
        [(self.down * self.rows) as usize, (self.across * self.cols) as usize]
    }

    /// Bytes of shared memory.
    fn shared(&self) -> usize {
        let [m, n] = self.sides();
        2 * DEPTH * (m / 4 + 1 + n / 4 + 1) * 16
    }

    fn count(&self, [m, n]: [usize; 2]) -> usize {
        let [rows, cols] = self.sides();
        m.div_ceil(rows) * n.div_ceil(cols)
    }

    /// Clocks that products of [m, n] sums of `depth` terms take, roughly, each in parts. What a core does in a clock is a GPU's of today.
    fn clocks(&self, [m, n, depth]: [usize; 3], times: usize, parts: usize, cores: u32) -> f64 {
        /// Multiplications, threads that halve what is lost by waiting, bytes of memory, and clocks before a kernel begins.
        const EACH: (f64, f64, f64, f64) = (128.0, 80.0, 11.0, 8000.0);
        let most = (self.count([m, n]) * times * parts).div_ceil(cores as usize);
        let [rows, cols] = self.sides();
        // Filling the first slices and writing sums take a while as well.
        let own = (rows * cols * (depth.div_ceil(parts) + 48)) as f64 / EACH.0 / self.rate;
        let waiting = 1.0 + EACH.1 / (most * self.threads() as usize).min(512) as f64;
        let bytes = (4 * m * n * times * (2 * parts + 1)) as f64;
        let adding = if parts > 1 { EACH.3 + bytes / EACH.2 / f64::from(cores) } else { 0.0 };
        most as f64 * own * waiting + adding
    }
}

/// Whether a row of `channels` of which groups take `of_group` each is read by fours, where it begins at element `at`.
fn by_fours(channels: usize, of_group: usize, at: u32) -> bool {
    channels.is_multiple_of(4) && of_group.is_multiple_of(4) && at.is_multiple_of(4)
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

/// Elements of a map of x, and of y.
fn of_maps(conv: &Conv2d) -> [usize; 2] {
    let [oh, ow] = conv.grid();
    [conv.size[0] * conv.size[1] * conv.input, oh * ow * conv.output]
}

/// Maps `first..first + n` of [maps, each].
fn maps<'a>(x: View<'a>, first: usize, each: usize, dims: &'a [usize; 1]) -> View<'a> {
    View { offset: x.offset + first * each, dims, strides: &[1], ..x }
}

/// What is multiplied: products of [m, n] sums of `depth` terms, `times` of them.
struct Products<'a> {
    shader: Shader,
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
    /// contiguous.
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
            let [rows, k, n] = [conv.n * conv.size[0] * conv.size[1], conv.input, conv.output];
            let [a, b, c] = [[1, 1, rows, k], [1, 1, k, n], [1, 1, rows, n]];
            let [along_k, along_n] = [k, n].map(|n| [0, 0, n as isize, 1]);
            let c = View { dims: &c, strides: &along_n, ..y };
            let b = View { dims: &b, strides: &[0, 0, 1, k as isize], ..weight };
            return self.gemm(&Gemm { bias, ..Gemm::new(View { dims: &a, strides: &along_k, ..x }, b, c) });
        }
        let conv = patches(conv);
        let ([of_x, of_y], [oh, ow]) = (of_maps(&conv), conv.grid());
        let [inputs, outputs] = [conv.input, conv.output].map(|n| n / conv.groups);
        let depth = conv.window.kernel.iter().product::<usize>() * inputs;
        self.in_turns(&conv, |first, part| {
            let ([x_dims, y_dims], rows) = ([[part.n * of_x], [part.n * of_y]], part.n * oh * ow);
            let channels = [[conv.input, inputs], [depth, inputs], [conv.output, outputs]];
            let products = Products {
                shader: Shader::Conv,
                conv: part,
                sizes: [rows, outputs, depth],
                times: conv.groups,
                a: maps(x, first, of_x, &x_dims),
                b: weight,
                bias,
                channels,
            };
            self.multiply(&products, &[0, u32::from(bias.is_some())], maps(y, first, of_y, &y_dims))
        })
    }

    /// dx of [`Self::conv2d`], from dy and the weight.
    ///
    /// # Errors
    /// As [`Self::copy`].
    pub fn conv2d_backward_input(&self, conv: &Conv2d, dy: View<'_>, weight: View<'_>, dx: View<'_>) -> Result<()> {
        assert!([dy, weight, dx].iter().all(View::is_contiguous), "conv2d_backward_input: layouts");
        if is_product(conv) {
            let [rows, k, n] = [conv.n * conv.size[0] * conv.size[1], conv.output, conv.input];
            let [a, b, c] = [[1, 1, rows, k], [1, 1, k, n], [1, 1, rows, n]];
            let [along_k, along_n] = [k, n].map(|n| [0, 0, n as isize, 1]);
            let [b, c] = [(b, weight), (c, dx)];
            let (b, c) = (View { dims: &b.0, strides: &along_n, ..b.1 }, View { dims: &c.0, strides: &along_n, ..c.1 });
            return self.gemm(&Gemm::new(View { dims: &a, strides: &along_k, ..dy }, b, c));
        }
        let conv = patches(conv);
        let ([of_x, of_y], Window { kernel, stride, dilation, .. }) = (of_maps(&conv), conv.window);
        let [inputs, outputs] = [conv.input, conv.output].map(|n| n / conv.groups);
        // Of each phase, the most places and elements of the kernel that there may be.
        let along = |k: usize| {
            let every = (1..=stride[k]).find(|every| (every * dilation[k]).is_multiple_of(stride[k]));
            (conv.size[k].div_ceil(stride[k]), kernel[k].div_ceil(every.unwrap_or(1)))
        };
        let (rows, cols) = (along(0), along(1));
        self.in_turns(&conv, |first, part| {
            let [y_dims, x_dims] = [[part.n * of_y], [part.n * of_x]];
            let products = Products {
                shader: Shader::Conv,
                conv: part,
                sizes: [part.n * rows.0 * cols.0, inputs, rows.1 * cols.1 * outputs],
                times: conv.groups * stride[0] * stride[1],
                a: maps(dy, first, of_y, &y_dims),
                b: weight,
                bias: None,
                channels: [[conv.output, outputs], [inputs, inputs], [conv.input, inputs]],
            };
            self.multiply(&products, &[1, 0], maps(dx, first, of_x, &x_dims))
        })
    }

    /// dweight of [`Self::conv2d`], in its order, from x and dy: the sum over all windows.
    ///
    /// # Errors
    /// As [`Self::copy`].
    pub fn conv2d_backward_weight(&self, conv: &Conv2d, x: View<'_>, dy: View<'_>, dweight: View<'_>) -> Result<()> {
        assert!([x, dy, dweight].iter().all(View::is_contiguous), "conv2d_backward_weight: layouts");
        assert!(conv.n > 0 || dweight.numel() == 0, "conv2d_backward_weight: no maps");
        let conv = patches(conv);
        let ([of_x, of_y], [oh, ow], weights) = (of_maps(&conv), conv.grid(), dweight.numel());
        let [inputs, outputs] = [conv.input, conv.output].map(|n| n / conv.groups);
        let row = conv.window.kernel.iter().product::<usize>() * inputs;
        let turns = conv.n.div_ceil(self.maps_at_once(&conv));
        let held = self.memory(if turns > 1 { 4 * turns * weights } else { 0 })?;
        let (all, dims) = ([turns * weights], [weights]);
        let (of_turns, mut turn) = (View::new(&held, 0, &all, &[1]), 0);
        self.in_turns(&conv, |first, part| {
            let ([y_dims, x_dims], windows) = ([[part.n * of_y], [part.n * of_x]], part.n * oh * ow);
            let products = Products {
                shader: Shader::ConvWeight,
                conv: part,
                sizes: [outputs, row, windows],
                times: conv.groups,
                a: maps(dy, first, of_y, &y_dims),
                b: maps(x, first, of_x, &x_dims),
                bias: None,
                channels: [[conv.output, outputs], [conv.input, inputs], [row, row]],
            };
            turn += 1;
            let to = if turns > 1 { maps(of_turns, turn - 1, weights, &dims) } else { maps(dweight, 0, 0, &dims) };
            self.multiply(&products, &[], to)
        })?;
        if turns > 1 { self.sum(of_turns, [1, turns, weights], maps(dweight, 0, 0, &dims)) } else { Ok(()) }
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
    fn conv_tile(&self, sizes: [usize; 3], times: usize) -> Option<(Tile, usize)> {
        let (limits, [_, _, depth]) = (self.limits(), sizes);
        let fits = |tile: &&Tile| tile.threads() <= limits.threads && tile.shared() <= limits.shared as usize;
        let parts = || (1..=PARTS).take_while(|&parts| parts == 1 || depth / parts >= 8 * DEPTH);
        let all = TILES.iter().filter(fits).flat_map(|tile| parts().map(move |parts| (*tile, parts)));
        let clocks = |(tile, parts): &(Tile, usize)| tile.clocks(sizes, times, *parts, limits.cores);
        all.min_by(|a, b| clocks(a).total_cmp(&clocks(b)))
    }

    fn multiply(&self, p: &Products<'_>, form: &[u32], c: View<'_>) -> Result<()> {
        let ([m, n, depth], written) = (p.sizes, c.numel());
        if written == 0 {
            return Ok(());
        }
        let (tile, most) =
            self.conv_tile(p.sizes, p.times).ok_or_else(|| Error::Limit("no room for a tile".to_owned()))?;
        // Parts begin with a slice.
        let of_part = depth.div_ceil(most).next_multiple_of(DEPTH).max(DEPTH);
        let parts = depth.div_ceil(of_part).max(1);
        let (held, all) = (self.memory(if parts > 1 { 4 * parts * written } else { 0 })?, [parts * written]);
        let to = if parts > 1 { View::new(&held, 0, &all, &[1]) } else { c };
        let (bound, c_at) = to.bind(2)?;
        let mut bindings = vec![bound.writing()];
        // What has no elements is not read.
        let [mut a_at, mut b_at, mut bias_at] = [0; 3];
        for (number, view, at) in [(0, Some(p.a), &mut a_at), (1, Some(p.b), &mut b_at), (3, p.bias, &mut bias_at)] {
            if let Some(view) = view.filter(|view| view.numel() > 0) {
                let (binding, place) = view.bind(number)?;
                bindings.push(binding);
                *at = place;
            }
        }
        let fours = [0, 1, 2].map(|i| by_fours(p.channels[i][0], p.channels[i][1], [a_at, b_at, c_at][i]));
        let spec = [
            &[tile.threads(), tile.across, tile.down, tile.rows, tile.cols, DEPTH as u32][..],
            form,
            &fours.map(u32::from),
        ]
        .concat();
        let [rows, cols] = tile.sides();
        let [across, down] = [n.div_ceil(cols), m.div_ceil(rows)];
        let jobs = across * down * parts * p.times;
        let count = u32::try_from(jobs).map_err(|_| Error::Limit(format!("{:?} has too many tiles", p.conv)))?;
        let places = if p.shader == Shader::Conv { vec![a_at, b_at, c_at, bias_at] } else { vec![a_at, b_at, c_at] };
        let push = [
            &[count][..],
            &[across, down, parts, of_part, p.conv.groups, p.conv.output].map(|n| n as u32),
            &places,
            &Maps::of(p.conv).words(),
        ]
        .concat();
        let work = 2 * (m * n * p.times * depth.max(1)) as u64;
        let groups = [jobs as u64, 1, 1];
        self.dispatch(Kernel { shader: p.shader, spec: &spec, bindings: &bindings, push: &push, groups, work })?;
        if parts > 1 { self.sum(to, [1, parts, written], maps(c, 0, 0, &[written])) } else { Ok(()) }
    }
}
