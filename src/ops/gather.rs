//! Elements chosen by index along a dimension, and added back along it.

use kernels_cpu::gather as kernel;
#[cfg(feature = "vulkan")]
use kernels_gpu::{Memory, ops::by_row};

#[cfg(feature = "vulkan")]
use crate::device::{Gpu, Operand, indices};
use crate::dtype::DType;
use crate::for_float;
use crate::gradcheck::{Case, Gen};
use crate::layout::Dims;
use crate::op::{Meta, Op, Output, Saved, Saves, apply};
use crate::tensor::Tensor;

/// Sizes [outer, n, inner] around a dimension.
pub(super) fn around(dims: &[usize], dim: usize) -> [usize; 3] {
    [dims[..dim].iter().product(), dims[dim], dims[dim + 1..].iter().product()]
}

/// Whether two shapes differ along `dim` at most.
fn fits_beside(a: &Dims, b: &Dims, dim: usize) -> bool {
    a.len() == b.len() && dim < a.len() && a.with(dim, 1) == b.with(dim, 1)
}

/// Along one dimension element `index` of the input: y[.., j, ..] = x[.., index[.., j, ..], ..], for an i64 index whose other sizes are
/// those of x.
pub struct Gather(pub usize);

impl Op for Gather {
    fn name(&self) -> &'static str {
        "gather"
    }

    fn shape(&self, x: &[Meta]) -> Meta {
        let fits = x[1].dtype == DType::I64 && fits_beside(&x[0].dims, &x[1].dims, self.0);
        assert!(fits, "gather along {}: input {:?} and index {:?}", self.0, x[0], x[1]);
        Meta { dims: x[1].dims, ..x[0] }
    }

    fn cpu(&self, x: &[&Tensor], out: Meta) -> Output {
        let (sizes, index, x) = (around(x[0].dims(), self.0), x[1].packed(), x[0].packed());
        for_float!("gather", out.dtype, F => Tensor::write(out.dims, |y: &mut [F]| {
            kernel::gather(x.as_slice(), sizes, index.as_slice(), y)
        }))
        .into()
    }

    #[cfg(feature = "vulkan")]
    fn gpu(&self, on: &Gpu, x: &[&Tensor], out: Meta) -> Option<Output> {
        gathered(on, x, self.0, out)
    }

    fn saves(&self, _: &[bool]) -> Saves {
        Saves::input(1)
    }

    fn vjp(&self, saved: &Saved, dy: &Tensor) -> Vec<Option<Tensor>> {
        vec![Some(scattered(dy, saved.input(1), saved.dims(0), self.0)), None]
    }

    #[cfg(feature = "vulkan")]
    fn gpu_vjp(&self, on: &Gpu, saved: &Saved, dy: &Tensor) -> Option<Vec<Option<Tensor>>> {
        Some(vec![Some(scattered_on(on, None, saved.input(1), dy, saved.dims(0), self.0)?), None])
    }

    fn cases(g: &mut Gen) -> Case {
        let ((dims, dim), k) = (g.dims_along(1, 4), g.size());
        let inputs = vec![g.tensor(dims), g.ids(dims.with(dim, k), dims[dim])];
        Case::new(inputs, move |x| apply(Gather(dim), &[&x[0], &x[1]])).equals(move |x| {
            let hot = one_hot(&x[1], dim, dims[dim], x[0].dtype());
            let last = x[0].rank() - 1;
            let rows = x[0].transpose(dim as isize, -1).unsqueeze(last);
            rows.mul(&hot).sum(&[last + 1], false).transpose(dim as isize, -1)
        })
    }
}

/// By either way of indexing: the kernel sees which by the number of indices.
#[cfg(feature = "vulkan")]
fn gathered(on: &Gpu, x: &[&Tensor], dim: usize, out: Meta) -> Option<Output> {
    let sizes = around(x[0].dims(), dim);
    let (from, index) = (on.packed(x[0])?, on.indices(x[1], sizes[1])?);
    on.output(out, |y| on.kernels().gather(from.view(), sizes, &index, out.dims[dim], y))
}

/// `base`, or zeros, with `src` added where an index of its dims says.
#[cfg(feature = "vulkan")]
fn scattered_on(
    on: &Gpu,
    base: Option<&Tensor>,
    index: &Tensor,
    src: &Tensor,
    dims: Dims,
    dim: usize,
) -> Option<Tensor> {
    let ([_, n, inner], k) = (around(&dims, dim), index.dims()[dim]);
    let mut index = indices(index, n)?;
    // Every element is a row of its own.
    for (e, place) in index.iter_mut().enumerate() {
        let row = e / inner / k * n + *place as usize;
        *place = u32::try_from(row * inner + e % inner).ok()?;
    }
    let rows = on.words(&by_row(&index, dims.numel()));
    added(on, base, &rows, src, [1, dims.numel(), 1], dims)
}

/// `base`, or zeros, with rows of `src` added where `rows` says.
#[cfg(feature = "vulkan")]
pub(super) fn added(
    on: &Gpu,
    base: Option<&Tensor>,
    rows: &Memory,
    src: &Tensor,
    around: [usize; 3],
    dims: Dims,
) -> Option<Tensor> {
    let src = on.packed(src)?;
    let base = match base {
        Some(base) => Some(on.packed(base)?),
        None => None,
    };
    on.write(Meta::new(dims, DType::F32), |y| {
        on.kernels().scatter_add(src.view(), rows, base.as_ref().map(Operand::view), around, y)
    })
}

/// Zeros of `dims` with `src` added where `index` says.
fn scattered(src: &Tensor, index: &Tensor, dims: Dims, dim: usize) -> Tensor {
    apply(ScatterAdd(dim), &[&Tensor::zeros(dims, src.dtype()), index, &src.detach()])
}

/// Along one dimension the elements at the places of a list, i64 `[k]`: y[.., j, ..] = x[.., `index[j]`, ..].
pub struct IndexSelect(pub usize);

impl Op for IndexSelect {
    fn name(&self) -> &'static str {
        "index_select"
    }

    fn shape(&self, x: &[Meta]) -> Meta {
        let fits = x[1].dtype == DType::I64 && x[1].dims.len() == 1 && self.0 < x[0].dims.len();
        assert!(fits, "index_select along {}: input {:?} and index {:?}", self.0, x[0], x[1]);
        let (n, k) = (x[0].dims[self.0], x[1].dims[0]);
        assert!(n > 0 || k == 0, "index_select along {}: {k} places of the empty {:?}", self.0, x[0]);
        Meta { dims: x[0].dims.with(self.0, k), ..x[0] }
    }

    fn cpu(&self, x: &[&Tensor], out: Meta) -> Output {
        let ([_, n, inner], index, x) = (around(x[0].dims(), self.0), x[1].packed(), x[0].packed());
        let picked = index.numel() * inner;
        for_float!("index_select", out.dtype, F => Tensor::write(out.dims, |y: &mut [F]| {
            // Without elements in a part there is nothing to write.
            let parts = x.as_slice::<F>().chunks((n * inner).max(1));
            for (y, x) in y.chunks_mut(picked.max(1)).zip(parts) {
                kernel::gather_rows(x, inner, index.as_slice(), y);
            }
        }))
        .into()
    }

    #[cfg(feature = "vulkan")]
    fn gpu(&self, on: &Gpu, x: &[&Tensor], out: Meta) -> Option<Output> {
        gathered(on, x, self.0, out)
    }

    fn saves(&self, _: &[bool]) -> Saves {
        Saves::input(1)
    }

    fn vjp(&self, saved: &Saved, dy: &Tensor) -> Vec<Option<Tensor>> {
        let (dims, index, dy) = (saved.dims(0), saved.input(1).packed(), dy.packed());
        let [_, n, inner] = around(&dims, self.0);
        let picked = index.numel() * inner;
        let dx = for_float!("index_select", dy.dtype(), F => Tensor::write(dims, |dx: &mut [F]| {
            dx.fill(0.0);
            let parts = dy.as_slice::<F>().chunks(picked.max(1));
            for (dx, dy) in dx.chunks_mut((n * inner).max(1)).zip(parts) {
                kernel::scatter_add_rows(dy, inner, index.as_slice(), dx);
            }
        }));
        vec![Some(dx), None]
    }

    #[cfg(feature = "vulkan")]
    fn gpu_vjp(&self, on: &Gpu, saved: &Saved, dy: &Tensor) -> Option<Vec<Option<Tensor>>> {
        let (dims, around) = (saved.dims(0), around(&saved.dims(0), self.0));
        let rows = on.words(&by_row(&indices(saved.input(1), around[1])?, around[1]));
        Some(vec![Some(added(on, None, &rows, dy, around, dims)?), None])
    }

    fn cases(g: &mut Gen) -> Case {
        let ((dims, dim), k) = (g.dims_along(1, 4), g.size());
        let inputs = vec![g.tensor(dims), g.ids([k], dims[dim])];
        Case::new(inputs, move |x| x[0].index_select(dim as isize, &x[1])).equals(move |x| {
            let picked: Vec<Tensor> = x[1].to_vec::<i64>().iter().map(|&i| x[0].narrow(dim, i as usize, 1)).collect();
            if picked.is_empty() {
                return x[0].narrow(dim, 0, 0);
            }
            Tensor::concat(&picked.iter().collect::<Vec<_>>(), dim as isize)
        })
    }
}

/// x with `src` added along one dimension: y[.., index[.., j, ..], ..] += src[.., j, ..], in the order of j, for an i64 index of the
/// dims of `src`, whose other sizes are those of x.
pub struct ScatterAdd(pub usize);

impl Op for ScatterAdd {
    fn name(&self) -> &'static str {
        "scatter_add"
    }

    fn shape(&self, x: &[Meta]) -> Meta {
        let fits = x[1].dtype == DType::I64
            && x[1].dims == x[2].dims
            && x[0].dtype == x[2].dtype
            && fits_beside(&x[0].dims, &x[1].dims, self.0);
        assert!(fits, "scatter_add along {}: input {:?}, index {:?}, source {:?}", self.0, x[0], x[1], x[2]);
        x[0]
    }

    fn cpu(&self, x: &[&Tensor], out: Meta) -> Output {
        let (sizes, x, index, src) = (around(&out.dims, self.0), x[0].packed(), x[1].packed(), x[2].packed());
        for_float!("scatter_add", out.dtype, F => Tensor::write(out.dims, |y: &mut [F]| {
            y.copy_from_slice(x.as_slice());
            kernel::scatter_add(src.as_slice::<F>(), index.as_slice(), y, sizes)
        }))
        .into()
    }

    #[cfg(feature = "vulkan")]
    fn gpu(&self, on: &Gpu, x: &[&Tensor], out: Meta) -> Option<Output> {
        scattered_on(on, Some(x[0]), x[1], x[2], out.dims, self.0).map(Output::from)
    }

    fn saves(&self, needs: &[bool]) -> Saves {
        Saves::input_if(1, needs[2])
    }

    fn vjp(&self, saved: &Saved, dy: &Tensor) -> Vec<Option<Tensor>> {
        let src = || apply(Gather(self.0), &[&dy.detach(), saved.input(1)]);
        vec![saved.want(0, || dy.clone()), None, saved.want(2, src)]
    }

    fn cases(g: &mut Gen) -> Case {
        let ((dims, dim), k) = (g.dims_along(1, 4), g.size());
        let picked = dims.with(dim, k);
        let inputs = vec![g.tensor(dims), g.ids(picked, dims[dim]), g.tensor(picked)];
        Case::new(inputs, move |x| x[0].scatter_add(dim as isize, &x[1], &x[2])).equals(move |x| {
            let hot = one_hot(&x[1], dim, dims[dim], x[0].dtype());
            let last = x[0].rank() - 1;
            let rows = x[2].transpose(dim as isize, -1).unsqueeze(last + 1);
            x[0].add(&rows.mul(&hot).sum(&[last], false).transpose(dim as isize, -1))
        })
    }
}

/// Constant [.., k, n] for an index with dimension `dim`, of size k, moved to the end: 1 at each index.
fn one_hot(index: &Tensor, dim: usize, n: usize, dtype: DType) -> Tensor {
    let moved = index.transpose(dim as isize, -1).packed();
    let hot = moved.as_slice::<i64>().iter().flat_map(|&at| (0..n as i64).map(move |i| f64::from(u8::from(i == at))));
    Tensor::from_slice(&hot.collect::<Vec<f64>>(), moved.dims().followed_by(&[n])).to_dtype(dtype)
}

impl Tensor {
    /// y[.., j, ..] = x[.., index[.., j, ..], ..] along `dim`, for an i64 index of the same rank whose other sizes are at most those of
    /// x: torch's gather.
    #[track_caller]
    pub fn gather(&self, dim: isize, index: &Tensor) -> Tensor {
        let dim = self.axis(dim);
        assert_eq!(self.rank(), index.rank(), "gather: input {:?} and index {:?}", self.dims(), index.dims());
        let narrowed = (0..self.rank())
            .filter(|&k| k != dim)
            .fold(self.clone(), |x, k| if x.dims()[k] > index.dims()[k] { x.narrow(k, 0, index.dims()[k]) } else { x });
        apply(Gather(dim), &[&narrowed, index])
    }

    /// Along `dim` the elements at the places of `index`, i64 `[k]`.
    #[track_caller]
    pub fn index_select(&self, dim: isize, index: &Tensor) -> Tensor {
        apply(IndexSelect(self.axis(dim)), &[self, index])
    }

    /// This with `src` added along `dim` at the places of `index`, both of the same dims; see [`ScatterAdd`].
    #[track_caller]
    pub fn scatter_add(&self, dim: isize, index: &Tensor, src: &Tensor) -> Tensor {
        apply(ScatterAdd(self.axis(dim)), &[self, index, src])
    }
}

crate::check_ops!(Gather, IndexSelect, ScatterAdd);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gather_takes_an_index_that_is_smaller_beside() {
        let x = Tensor::from_slice(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [3, 2]).trainable();
        let index = Tensor::from_slice(&[1i64, 0, 1, 1], [2, 2]);
        let y = x.gather(1, &index);
        assert_eq!(y.to_vec::<f64>(), [2.0, 1.0, 4.0, 4.0]);
        let grads = y.sum_all().backward();
        assert_eq!(grads.get(&x).unwrap().to_vec::<f64>(), [1.0, 1.0, 0.0, 2.0, 0.0, 0.0]);
    }

    #[test]
    #[should_panic(expected = "id 3 at position 1")]
    fn an_index_outside_is_named() {
        Tensor::zeros([3], DType::F32).gather(0, &Tensor::from_slice(&[2i64, 3], [2]));
    }

    #[test]
    fn sums_have_the_same_bits_for_any_thread_count() {
        let mut rng = crate::rng::Rng::new(2, 0);
        let src = Tensor::randn([8, 3000, 4], DType::F32, &mut rng);
        let index: Vec<i64> = (0..src.numel()).map(|_| rng.below(5) as i64).collect();
        let index = Tensor::from_slice(&index, [8, 3000, 4]);
        let run = |threads| {
            kernels_cpu::par::Pool::new(threads)
                .install(|| Tensor::zeros([8, 5, 4], DType::F32).scatter_add(1, &index, &src).to_vec::<f32>())
        };
        let one = run(1);
        assert!([2, 3].iter().all(|&threads| run(threads) == one));
    }
}
