//! Windows over channels-last maps: convolution as products over gathered windows, and the largest elements.

use kernels_cpu::conv::{Conv2d, Window};

use super::Gemm;
use crate::device::Device;
use crate::error::Result;
use crate::memory::Memory;
use crate::shaders::Shader;
use crate::view::{Binding, View};

/// Elements of gathered windows, and of gradients of weights, that are held at once, unless one map alone has more.
const HELD: usize = 1 << 24;

/// Maps, and the windows over them.
#[derive(Clone, Copy)]
struct Maps {
    n: usize,
    size: [usize; 2],
    channels: usize,
    groups: usize,
    window: Window,
    grid: [usize; 2],
}

impl Maps {
    fn of(conv: &Conv2d) -> Self {
        let Conv2d { n, size, input: channels, groups, window, .. } = *conv;
        Self { n, size, channels, groups, window, grid: conv.grid() }
    }

    fn taps(&self) -> usize {
        self.window.kernel[0] * self.window.kernel[1]
    }

    /// Windows of a map.
    fn each(&self) -> usize {
        self.grid[0] * self.grid[1]
    }

    /// Whether every window is a place of the map.
    fn are_places(&self) -> bool {
        self.window == Window { dilation: self.window.dilation, ..Window::square(1, 1, 0) }
    }

    fn push(&self, all: usize, x_at: u32, y_at: u32) -> Vec<u32> {
        let Window { kernel, stride, padding, dilation } = self.window;
        let pairs = [self.grid, kernel, stride, padding, dilation].concat();
        let head = [self.n, self.size[0], self.size[1], self.channels];
        let words = head.iter().chain(&pairs).map(|&n| n as u32);
        [all as u32, self.groups as u32, x_at, y_at].into_iter().chain(words).collect()
    }
}

/// Contiguous elements from `start` on.
fn part<'a>(x: View<'a>, start: usize, dims: &'a [usize; 1]) -> View<'a> {
    View { offset: x.offset + start, dims, strides: &[1], ..x }
}

/// Matrices [maps, groups, rows, cols] in memory.
struct Matrices<'a> {
    memory: &'a Memory,
    offset: usize,
    dims: [usize; 4],
    strides: [isize; 4],
}

impl<'a> Matrices<'a> {
    fn new(memory: &'a Memory, offset: usize, dims: [usize; 4], strides: [usize; 4]) -> Self {
        Self { memory, offset, dims, strides: strides.map(|s| s as isize) }
    }

    /// Each of them transposed.
    fn t(mut self) -> Self {
        self.dims.swap(2, 3);
        self.strides.swap(2, 3);
        self
    }

    /// Those of a group.
    fn group(&self, group: usize) -> Self {
        let [n, _, rows, cols] = self.dims;
        let offset = self.offset + group * self.strides[1] as usize;
        Self { memory: self.memory, offset, dims: [n, 1, rows, cols], strides: self.strides }
    }

    /// All maps' rows below each other.
    fn merged(mut self) -> Self {
        assert!(self.dims[0] < 2 || self.strides[0] == self.dims[2] as isize * self.strides[2], "rows of all maps");
        (self.dims[0], self.dims[2]) = (1, self.dims[0] * self.dims[2]);
        self
    }

    fn view(&self) -> View<'_> {
        View::new(self.memory, self.offset, &self.dims, &self.strides)
    }
}

/// A convolution whose weight is ordered [output, kernel rows, kernel cols, input / groups], in parts of as many maps as are held at once.
struct Parts<'a> {
    device: &'a Device,
    conv: &'a Conv2d,
    maps: Maps,
    /// Maps of a part.
    count: usize,
}

impl<'a> Parts<'a> {
    fn new(device: &'a Device, conv: &'a Conv2d, more: usize) -> Self {
        let maps = Maps::of(conv);
        let of_map = (maps.each() * maps.taps() * maps.channels).max(more).max(1);
        let count = if maps.are_places() && more == 0 { conv.n } else { (HELD / of_map).max(1).min(conv.n) };
        Self { device, conv, maps, count }
    }

    /// First map and number of maps of each part.
    fn all(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let (n, count) = (self.conv.n, self.count);
        (0..n).step_by(count.max(1)).map(move |first| (first, count.min(n - first)))
    }

    /// Elements of a map of x, and of y.
    fn lengths(&self) -> [usize; 2] {
        let maps = &self.maps;
        [maps.size[0] * maps.size[1] * maps.channels, maps.each() * self.conv.output]
    }

    /// Channels of x and y in a group.
    fn channels(&self) -> [usize; 2] {
        [self.conv.input / self.conv.groups, self.conv.output / self.conv.groups]
    }

    /// The windows' matrices [maps, groups, windows of a map, taps c], in `held` or where x lies.
    fn windows<'m>(&self, memory: &'m Memory, offset: usize, count: usize) -> Matrices<'m> {
        let (maps, [c, _]) = (&self.maps, self.channels());
        let (each, depth) = (maps.each(), maps.taps() * c);
        let strides = if maps.are_places() {
            [each * maps.channels, c, maps.channels, 1]
        } else {
            [each * depth, count * each * depth, depth, 1]
        };
        Matrices::new(memory, offset, [count, maps.groups, each, depth], strides)
    }

    /// y's matrices [maps, groups, windows of a map, o].
    fn outputs<'m>(&self, y: &View<'m>, first: usize, count: usize) -> Matrices<'m> {
        let ([_, o], output, each) = (self.channels(), self.conv.output, self.maps.each());
        let dims = [count, self.maps.groups, each, o];
        Matrices::new(y.memory, y.offset + first * each * output, dims, [each * output, o, output, 1])
    }

    /// The weight's matrices [1, groups, o, taps c].
    fn weights<'m>(&self, weight: &View<'m>) -> Matrices<'m> {
        let ([c, o], groups) = (self.channels(), self.maps.groups);
        let depth = self.maps.taps() * c;
        Matrices::new(weight.memory, weight.offset, [1, groups, o, depth], [0, o * depth, depth, 1])
    }

    /// Calls `f` with the windows of each part of x.
    fn gathered(&self, x: View<'_>, mut f: impl FnMut(usize, usize, Matrices<'_>) -> Result<()>) -> Result<()> {
        let ([of_x, _], maps) = (self.lengths(), &self.maps);
        let held = self.device.memory(if maps.are_places() { 0 } else { 4 * self.held() })?;
        for (first, count) in self.all() {
            if maps.are_places() {
                f(first, count, self.windows(x.memory, x.offset + first * of_x, count))?;
                continue;
            }
            let all = count * maps.each() * maps.taps() * maps.channels;
            if all > 0 {
                let [of_part, dims] = [[count * of_x], [all]];
                let from = part(x, first * of_x, &of_part);
                let to = View::new(&held, 0, &dims, &[1]);
                self.device.over_windows(Shader::Unfold, &[], Maps { n: count, ..*maps }, from, to, None)?;
            }
            f(first, count, self.windows(&held, 0, count))?;
        }
        Ok(())
    }

    /// Elements of the windows of a part.
    fn held(&self) -> usize {
        self.count * self.maps.each() * self.maps.taps() * self.maps.channels
    }
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
        // A bias is a row of all outputs; groups are products of their own, each with its part.
        let parts = Parts::new(self, conv, 0);
        let [_, o] = parts.channels();
        let own = [o];
        parts.gathered(x, |first, count, windows| {
            let (windows, outputs) = (windows.merged(), parts.outputs(&y, first, count).merged());
            let weights = parts.weights(&weight).t();
            let Some(bias) = bias.filter(|_| conv.groups > 1) else {
                return self.gemm(&Gemm { bias, ..Gemm::new(windows.view(), weights.view(), outputs.view()) });
            };
            (0..conv.groups).try_for_each(|group| {
                let [a, b, c] = [&windows, &weights, &outputs].map(|m| m.group(group));
                let bias = Some(part(bias, group * o, &own));
                self.gemm(&Gemm { bias, ..Gemm::new(a.view(), b.view(), c.view()) })
            })
        })
    }

    /// dx of [`Self::conv2d`], from dy and the weight.
    ///
    /// # Errors
    /// As [`Self::copy`].
    pub fn conv2d_backward_input(&self, conv: &Conv2d, dy: View<'_>, weight: View<'_>, dx: View<'_>) -> Result<()> {
        assert!([dy, weight, dx].iter().all(View::is_contiguous), "conv2d_backward_input: layouts");
        let parts = Parts::new(self, conv, 0);
        let ([of_x, _], maps) = (parts.lengths(), parts.maps);
        let held = self.memory(if maps.are_places() { 0 } else { 4 * parts.held() })?;
        for (first, count) in parts.all().filter(|_| of_x > 0) {
            let (outputs, weights) = (parts.outputs(&dy, first, count).merged(), parts.weights(&weight));
            if maps.are_places() {
                let windows = parts.windows(dx.memory, dx.offset + first * of_x, count).merged();
                self.gemm(&Gemm::new(outputs.view(), weights.view(), windows.view()))?;
                continue;
            }
            let windows = parts.windows(&held, 0, count).merged();
            self.gemm(&Gemm::new(outputs.view(), weights.view(), windows.view()))?;
            let [of_part, all] = [[count * of_x], [count * maps.each() * maps.taps() * maps.channels]];
            let from = View::new(&held, 0, &all, &[1]);
            let to = part(dx, first * of_x, &of_part);
            self.over_windows(Shader::Fold, &[0], Maps { n: count, ..maps }, from, to, None)?;
        }
        Ok(())
    }

    /// dweight of [`Self::conv2d`], in its order, from x and dy: the sum of those of each map.
    ///
    /// # Errors
    /// As [`Self::copy`].
    pub fn conv2d_backward_weight(&self, conv: &Conv2d, x: View<'_>, dy: View<'_>, dweight: View<'_>) -> Result<()> {
        assert!([x, dy, dweight].iter().all(View::is_contiguous), "conv2d_backward_weight: layouts");
        let weights = dweight.numel();
        if weights == 0 {
            return Ok(());
        }
        assert!(conv.n > 0, "conv2d_backward_weight: no maps");
        let parts = Parts::new(self, conv, weights);
        let ([c, o], depth) = (parts.channels(), parts.maps.taps());
        let number = parts.all().count();
        let (of_maps, of_parts) = (self.memory(4 * parts.count * weights)?, self.memory(4 * number * weights)?);
        let (dims, flat) = ([weights], [number * weights]);
        let sums = View::new(&of_parts, 0, &flat, &[1]);
        let mut done = 0;
        parts.gathered(x, |first, count, windows| {
            let outputs = parts.outputs(&dy, first, count).t();
            let all = [count, conv.groups, o, depth * c];
            let each = Matrices::new(&of_maps, 0, all, [weights, o * depth * c, depth * c, 1]);
            self.gemm(&Gemm::new(outputs.view(), windows.view(), each.view()))?;
            let to = if number == 1 { part(dweight, 0, &dims) } else { part(sums, done * weights, &dims) };
            done += 1;
            let from = [count * weights];
            self.sum(View::new(&of_maps, 0, &from, &[1]), [1, count, weights], to)
        })?;
        if number > 1 { self.sum(sums, [1, number, weights], part(dweight, 0, &dims)) } else { Ok(()) }
    }

    /// y = the largest element of each window of x [n, h, w, channels], and in `found` where it is, as kernels-cpu's `max_pool2d`; both
    /// contiguous.
    ///
    /// # Errors
    /// As [`Self::copy`].
    pub fn max_pool2d(&self, window: &Window, x: View<'_>, y: View<'_>, found: &Memory) -> Result<()> {
        self.over_windows(Shader::MaxPool, &[], pooled(window, x.dims), x, y, Some(found))
    }

    /// dx of [`Self::max_pool2d`], from dy and what was found.
    ///
    /// # Errors
    /// As [`Self::copy`].
    pub fn max_pool2d_backward(&self, window: &Window, dy: View<'_>, found: &Memory, dx: View<'_>) -> Result<()> {
        self.over_windows(Shader::Fold, &[1], pooled(window, dx.dims), dy, dx, Some(found))
    }

    fn over_windows(
        &self,
        shader: Shader,
        spec: &[u32],
        maps: Maps,
        x: View<'_>,
        y: View<'_>,
        found: Option<&Memory>,
    ) -> Result<()> {
        assert!(x.is_contiguous() && y.is_contiguous(), "windows: layouts");
        if y.numel() == 0 {
            return Ok(());
        }
        let (to, y_at) = y.bind(1)?;
        let mut bindings = vec![to.writing()];
        let mut x_at = 0;
        if x.numel() > 0 {
            let (from, at) = x.bind(0)?;
            bindings.push(from);
            x_at = at;
        }
        if let Some(found) = found.filter(|found| !found.is_empty()) {
            let (places, _) = Binding::words(2, found, 0, found.len() / 4)?;
            bindings.push(if shader == Shader::MaxPool { places.writing() } else { places });
        }
        self.each(shader, spec, &bindings, &maps.push(y.numel(), x_at, y_at), y.numel())
    }
}

/// Maps [n, h, w, channels] whose channels are pooled one by one.
fn pooled(window: &Window, dims: &[usize]) -> Maps {
    let (size, window) = ([dims[1], dims[2]], *window);
    let grid = window.output(size).unwrap_or_else(|| panic!("pooling: {window:?} does not fit {dims:?}"));
    Maps { n: dims[0], size, channels: dims[3], groups: 1, window, grid }
}
