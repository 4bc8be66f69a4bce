//! Windows over channels-last maps, and the largest elements of them.

use kernels_cpu::conv::{Conv2d, Window};

use crate::device::Device;
use crate::error::Result;
use crate::memory::Memory;
use crate::shaders::Shader;
use crate::view::{Binding, View};

/// Maps, and the windows over them.
#[derive(Clone, Copy)]
pub(super) struct Maps {
    pub n: usize,
    pub size: [usize; 2],
    pub channels: usize,
    pub window: Window,
    pub grid: [usize; 2],
}

impl Maps {
    pub fn of(conv: &Conv2d) -> Self {
        let Conv2d { n, size, input: channels, window, .. } = *conv;
        Self { n, size, channels, window, grid: conv.grid() }
    }

    /// Maps [n, h, w, channels] whose channels are pooled one by one.
    fn pooled(window: &Window, dims: &[usize]) -> Self {
        let (size, window) = ([dims[1], dims[2]], *window);
        let grid = window.output(size).unwrap_or_else(|| panic!("pooling: {window:?} does not fit {dims:?}"));
        Self { n: dims[0], size, channels: dims[3], window, grid }
    }

    /// As `inc/window.glsl` has them.
    pub fn words(&self) -> Vec<u32> {
        let Window { kernel, stride, padding, dilation } = self.window;
        let head = [self.n, self.size[0], self.size[1], self.channels];
        let pairs = [self.grid, kernel, stride, padding, dilation].concat();
        head.iter().chain(&pairs).map(|&n| n as u32).collect()
    }
}

impl Device {
    /// y = the largest element of each window of x [n, h, w, channels], and in `found` where it is, as kernels-cpu's `max_pool2d`; both
    /// contiguous.
    ///
    /// # Errors
    /// As [`Self::copy`].
    pub fn max_pool2d(&self, window: &Window, x: View<'_>, y: View<'_>, found: &Memory) -> Result<()> {
        self.pool(Shader::MaxPool, Maps::pooled(window, x.dims), x, y, found)
    }

    /// dx of [`Self::max_pool2d`], from dy and what was found.
    ///
    /// # Errors
    /// As [`Self::copy`].
    pub fn max_pool2d_backward(&self, window: &Window, dy: View<'_>, found: &Memory, dx: View<'_>) -> Result<()> {
        self.pool(Shader::MaxPoolBackward, Maps::pooled(window, dx.dims), dy, dx, found)
    }

    fn pool(&self, shader: Shader, maps: Maps, x: View<'_>, y: View<'_>, found: &Memory) -> Result<()> {
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
        if !found.is_empty() {
            let (places, _) = Binding::words(2, found, 0, found.len() / 4)?;
            bindings.push(if shader == Shader::MaxPool { places.writing() } else { places });
        }
        let push = [&[y.numel() as u32, x_at, y_at], &maps.words()[..]].concat();
        self.each(shader, &[], &bindings, &push, y.numel())
    }
}
