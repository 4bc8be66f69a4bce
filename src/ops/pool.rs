//! Pooling of channels-last maps [n, h, w, c].

use kernels_cpu::pool::{self, adaptive_average, average};
use kernels_cpu::resize::Table;

use super::resize::{composed, resample};
use crate::buffer::is_counting;
#[cfg(feature = "vulkan")]
use crate::device::Gpu;
use crate::dtype::DType;
use crate::for_float;
use crate::gradcheck::{Case, Gen};
use crate::op::{Meta, Op, Output, Saved, Saves, apply};
use crate::plan::{Joined, Packs, Prepared};
use crate::tensor::Tensor;

pub use kernels_cpu::conv::Window;

#[track_caller]
fn sizes(x: Meta, op: &str) -> [usize; 4] {
    assert_eq!(x.dims.len(), 4, "{op}: needs [n, h, w, c], got {:?}", x.dims);
    [x.dims[0], x.dims[1], x.dims[2], x.dims[3]]
}

/// Largest element of each window, which must be at most half padding, of floats or bf16. Ties go to the first; its place (i32, row * w + column)
/// is the by-product.
pub struct MaxPool2d(pub Window);

impl Op for MaxPool2d {
    fn name(&self) -> &'static str {
        "max_pool2d"
    }

    fn shape(&self, x: &[Meta]) -> Meta {
        let [n, h, w, c] = sizes(x[0], "max_pool2d");
        let halves = (0..2).all(|k| self.0.padding[k] <= self.0.kernel[k] / 2);
        let grid = self.0.output([h, w]).filter(|_| halves);
        let [rows, cols] = grid.unwrap_or_else(|| panic!("max_pool2d: {:?} does not fit {:?}", self.0, x[0]));
        Meta { dims: [n, rows, cols, c].into(), ..x[0] }
    }

    fn cpu(&self, x: &[&Tensor], out: Meta) -> Output {
        if out.dtype == DType::BF16 {
            let wide = self.cpu(&[&x[0].converted(DType::F32)], Meta { dtype: DType::F32, ..out });
            return Output { value: wide.value.converted(DType::BF16), ..wide };
        }
        let (x, dims) = (x[0].packed(), sizes(x[0].meta(), "max_pool2d"));
        let mut index = vec![0i32; if is_counting() { 0 } else { out.dims.numel() }];
        let value = for_float!("max_pool2d", out.dtype, F => Tensor::write(out.dims, |y: &mut [F]| {
            pool::max_pool2d(x.as_slice(), dims, &self.0, y, Some(&mut index))
        }));
        Output { value, aux: vec![Tensor::write(out.dims, |places: &mut [i32]| places.copy_from_slice(&index))] }
    }

    #[cfg(feature = "vulkan")]
    fn gpu(&self, on: &Gpu, x: &[&Tensor], out: Meta) -> Option<Output> {
        let (x, found) = (on.packed(x[0])?, on.memory(4 * out.dims.numel()));
        let value = on.write(out, |y| on.kernels().max_pool2d(&self.0, x.view(), y, &found))?;
        Some(Output { value, aux: vec![on.places(found, out.dims)] })
    }

    fn prepare(&self, x: &[Meta], _: &[Option<&Tensor>], _: &mut Packs) -> Option<Box<dyn Prepared>> {
        matches!(x[0].dtype, DType::F32 | DType::BF16).then(|| Box::new(Largest(self.0)) as Box<dyn Prepared>)
    }

    fn saves(&self, _: &[bool]) -> Saves {
        Saves::NOTHING
    }

    fn vjp(&self, saved: &Saved, dy: &Tensor) -> Vec<Option<Tensor>> {
        let (dy, dims) = (dy.packed(), sizes(saved.meta(0), "max_pool2d"));
        vec![Some(for_float!("max_pool2d", dy.dtype(), F => Tensor::write(dims, |dx: &mut [F]| {
            pool::max_pool2d_backward(dy.as_slice(), saved.aux(0).as_slice(), dims, dx)
        })))]
    }

    #[cfg(feature = "vulkan")]
    fn gpu_vjp(&self, on: &Gpu, saved: &Saved, dy: &Tensor) -> Option<Vec<Option<Tensor>>> {
        let (dy, found) = (on.packed(dy)?, saved.aux(0).buffer().mirrored()?.memory());
        let dx = on.write(saved.meta(0), |dx| on.kernels().max_pool2d_backward(&self.0, dy.view(), &found, dx))?;
        Some(vec![Some(dx)])
    }

    fn cases(g: &mut Gen) -> Case {
        let [kernel, stride] = [0; 2].map(|_| [1 + g.rng.below(3), 1 + g.rng.below(3)]);
        let mut window = Window { kernel, stride, padding: [0; 2], dilation: [1; 2] };
        if g.rng.chance(0.5) {
            window.padding = kernel.map(|k| g.rng.below(k / 2 + 1));
        } else {
            window.dilation = [1 + g.rng.below(2), 1 + g.rng.below(2)];
        }
        let mut size = [g.size_from(1), g.size_from(1)];
        while window.output(size).is_none() {
            size = size.map(|s| s + 1);
        }
        let (n, c) = (g.rng.below(3), g.rng.below(4));
        let x = g.distinct([n, size[0], size[1], c]);
        Case::new(vec![x], move |x| x[0].max_pool2d(window)).equals(move |x| {
            // Lifted above zero, the padding is the smallest of all.
            let lifted = x[0].affine(1.0, 1000.0);
            let padded =
                lifted.pad(1, window.padding[0], window.padding[0]).pad(2, window.padding[1], window.padding[1]);
            let grid = window.output(size).expect("fits");
            let along = |x: &Tensor, k: usize, tap: usize| {
                x.narrow(k + 1, tap * window.dilation[k], (grid[k] - 1) * window.stride[k] + 1)
                    .step(k + 1, window.stride[k])
            };
            let taps = (0..kernel[0]).flat_map(|a| (0..kernel[1]).map(move |b| (a, b)));
            let seen = taps.map(|(a, b)| along(&along(&padded, 0, a), 1, b));
            seen.reduce(|best, next| best.maximum(&next)).expect("a window has elements").affine(1.0, -1000.0)
        })
    }
}

/// Largest elements without their places, which only a derivative needs.
struct Largest(Window);

impl Prepared for Largest {
    fn joins(&self) -> bool {
        false
    }

    fn run(&self, x: &[&Tensor], _: Joined<'_>, out: Meta) -> Tensor {
        if x[0].device().is_some() {
            return x[0].detach().max_pool2d(self.0);
        }
        let (x, dims) = (x[0].packed(), sizes(x[0].meta(), "max_pool2d"));
        match out.dtype {
            DType::BF16 => Tensor::write(out.dims, |y| pool::max_pool2d_halves(x.as_slice(), dims, &self.0, y)),
            _ => Tensor::write(out.dims, |y: &mut [f32]| pool::max_pool2d(x.as_slice(), dims, &self.0, y, None)),
        }
    }
}

/// Mean of each window, which must be at most half padding.
#[derive(Clone, Copy, Debug)]
pub struct AvgPool2d {
    /// Elements of the window.
    pub kernel: [usize; 2],
    /// From a window to the next.
    pub stride: [usize; 2],
    /// Places around the map, on both sides.
    pub padding: [usize; 2],
    /// Padding counts as zeros (PyTorch's default), else not at all.
    pub count_include_pad: bool,
}

impl AvgPool2d {
    fn tables(&self, x: Meta) -> [Table; 2] {
        let average =
            |k: usize| average(x.dims[k + 1], self.kernel[k], self.stride[k], self.padding[k], self.count_include_pad);
        [average(0), average(1)]
    }
}

impl Op for AvgPool2d {
    fn name(&self) -> &'static str {
        "avg_pool2d"
    }

    fn shape(&self, x: &[Meta]) -> Meta {
        let [n, h, w, c] = sizes(x[0], "avg_pool2d");
        let halves = (0..2).all(|k| self.padding[k] <= self.kernel[k] / 2);
        let window = Window { kernel: self.kernel, stride: self.stride, padding: self.padding, dilation: [1; 2] };
        let grid = window.output([h, w]).filter(|_| halves);
        let [rows, cols] = grid.unwrap_or_else(|| panic!("avg_pool2d: {self:?} does not fit {:?}", x[0]));
        Meta { dims: [n, rows, cols, c].into(), ..x[0] }
    }

    fn cpu(&self, x: &[&Tensor], _: Meta) -> Output {
        resample("avg_pool2d", x[0], &self.tables(x[0].meta())).into()
    }

    fn saves(&self, _: &[bool]) -> Saves {
        Saves::NOTHING
    }

    fn vjp(&self, saved: &Saved, dy: &Tensor) -> Vec<Option<Tensor>> {
        vec![Some(resample("avg_pool2d", dy, &self.tables(saved.meta(0)).map(|table| table.transposed())))]
    }

    fn cases(g: &mut Gen) -> Case {
        let [kernel, stride] = [0; 2].map(|_| [1 + g.rng.below(3), 1 + g.rng.below(3)]);
        let padding = kernel.map(|k| g.rng.below(k / 2 + 1));
        let op = AvgPool2d { kernel, stride, padding, count_include_pad: g.rng.chance(0.5) };
        let size = [0, 1].map(|k| kernel[k] + g.rng.below(5));
        let (n, c) = (g.size().min(3), g.size().min(4));
        let x = g.tensor([n, size[0], size[1], c]);
        Case::new(vec![x], move |x| x[0].avg_pool2d(op)).equals(move |x| {
            // Sums by a depthwise kernel of ones, over a number or over the same sum of ones.
            let c = x[0].dim(-1);
            let dtype = x[0].dtype();
            let sum = |x: &Tensor, c: usize| {
                let ones = Tensor::full([c, 1, kernel[0], kernel[1]], 1.0, dtype);
                x.conv2d(&ones, None, super::conv::Conv2d { stride, padding, groups: c.max(1), ..Default::default() })
            };
            if c == 0 {
                return composed(&x[0], &op.tables(x[0].meta()));
            }
            let total = sum(&x[0], c);
            if op.count_include_pad {
                total.affine(1.0 / (kernel[0] * kernel[1]) as f64, 0.0)
            } else {
                total.div(&sum(&Tensor::full([1, size[0], size[1], 1], 1.0, dtype), 1))
            }
        })
    }
}

/// Means of windows that divide the map into `0` rows and columns as evenly as PyTorch's `adaptive_avg_pool2d` does: window i is
/// elements floor(i h / rows) to ceil((i + 1) h / rows).
pub struct AdaptiveAvgPool2d(pub [usize; 2]);

impl AdaptiveAvgPool2d {
    fn tables(&self, x: Meta) -> [Table; 2] {
        [0, 1].map(|k| adaptive_average(x.dims[k + 1], self.0[k]))
    }
}

impl Op for AdaptiveAvgPool2d {
    fn name(&self) -> &'static str {
        "adaptive_avg_pool2d"
    }

    fn shape(&self, x: &[Meta]) -> Meta {
        let [n, h, w, c] = sizes(x[0], "adaptive_avg_pool2d");
        assert!(h > 0 && w > 0 || self.0.contains(&0), "adaptive_avg_pool2d: {:?} to {:?}", x[0], self.0);
        Meta { dims: [n, self.0[0], self.0[1], c].into(), ..x[0] }
    }

    fn cpu(&self, x: &[&Tensor], _: Meta) -> Output {
        resample("adaptive_avg_pool2d", x[0], &self.tables(x[0].meta())).into()
    }

    fn saves(&self, _: &[bool]) -> Saves {
        Saves::NOTHING
    }

    fn vjp(&self, saved: &Saved, dy: &Tensor) -> Vec<Option<Tensor>> {
        vec![Some(resample("adaptive_avg_pool2d", dy, &self.tables(saved.meta(0)).map(|table| table.transposed())))]
    }

    fn cases(g: &mut Gen) -> Case {
        let dims = [g.size().min(3), g.size_from(1), g.size_from(1), g.size().min(4)];
        let size = [g.size_from(1), g.size_from(1)];
        Case::new(vec![g.tensor(dims)], move |x| x[0].adaptive_avg_pool2d(size)).equals(move |x| {
            let mean = |x: &Tensor, axis: usize, output: usize| {
                let input = x.dims()[axis];
                let windows: Vec<Tensor> = (0..output)
                    .map(|i| {
                        let (first, end) = (i * input / output, ((i + 1) * input).div_ceil(output));
                        x.narrow(axis, first, end - first).mean(&[axis], true)
                    })
                    .collect();
                Tensor::concat(&windows.iter().collect::<Vec<_>>(), axis as isize)
            };
            mean(&mean(&x[0], 1, size[0]), 2, size[1])
        })
    }
}

impl Tensor {
    /// Largest element of each window of this map [n, h, w, c].
    #[track_caller]
    pub fn max_pool2d(&self, window: Window) -> Tensor {
        apply(MaxPool2d(window), &[self])
    }

    /// Mean of each window of this map [n, h, w, c].
    #[track_caller]
    pub fn avg_pool2d(&self, options: AvgPool2d) -> Tensor {
        apply(options, &[self])
    }

    /// This map [n, h, w, c] as means of `size` rows and columns of windows.
    #[track_caller]
    pub fn adaptive_avg_pool2d(&self, size: [usize; 2]) -> Tensor {
        apply(AdaptiveAvgPool2d(size), &[self])
    }
}

crate::check_ops!(MaxPool2d, AvgPool2d, AdaptiveAvgPool2d);
