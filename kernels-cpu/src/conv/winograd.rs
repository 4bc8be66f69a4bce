//! Convolution by windows of 3 x 3 in 2.25 times fewer multiplications: F(2 x 2, 3 x 3) of Winograd, as Lavin and Gray (2016, section 4.1)
//! have it.
//!
//! A tile of 2 x 2 outputs is Aᵀ [(G g Gᵀ) ∘ (Bᵀ d B)] A for its 4 x 4 inputs d and a kernel g. Summed over channels, each of the 16 products
//! of elements is a matrix product [tiles, channels] x [channels, outputs]. All factors are 0, 1 and 1/2, so little is lost to rounding. Of bf16,
//! both transforms are rounded once more, which makes the error 1.7 times as large as that of the sum over all taps.

pub(super) mod gradient;
mod number;

use alloc::vec;
use alloc::vec::Vec;

use super::Conv2d;
use crate::gemm::scratch::{self, Use};
use crate::gemm::{Finish, Mat, Packed, bf16_is_in_words, numbers};
use crate::map::{self, Unary};
use crate::par::{self, Shared};
use crate::simd::{Simd, SimdOp, array, dispatch};
pub(super) use number::Number;

/// Channels come in whole vectors of every tier.
const VECTOR: usize = 16;
/// With fewer channels, transforms take longer than the multiplications that they save.
const FEWEST: usize = 32;
/// With fewer tiles, the products wait for a weight that is 16/9 of its size.
const FEWEST_TILES: usize = 16;
/// Outputs whose products a job keeps at a time.
const GROUP: usize = 64;
/// Bytes of a job's transformed inputs and products, which stay in a second-level cache of 2 MiB beside the weight.
const NEAR: usize = 1 << 20;
/// Tiles of a block come in so many: whole register tiles. Fewer than two such would pass over the weight too often.
const ROWS: usize = 28;

/// A weight as the products read it: of every group of outputs, the matrix [channels, outputs] of each of the 16 elements.
pub(super) struct Weight(Vec<Vec<Packed>>);

/// Whether a convolution is computed so. It depends on the sizes of one map alone, so that bits do not depend on how many there are.
pub(super) fn serves(conv: &Conv2d) -> bool {
    let plain = conv.groups == 1 && conv.window.kernel == [3, 3] && conv.window.stride == [1, 1];
    let wide = |channels: usize| channels >= FEWEST && channels.is_multiple_of(VECTOR);
    plain
        && conv.window.dilation == [1, 1]
        && wide(conv.input)
        && wide(conv.output)
        && Tiles::<f32>::new(conv, &[]).of_a_map() >= FEWEST_TILES
}

/// Whether one of maps and a weight of bf16 is: where products take two numbers to a word. Transformed inputs and weights are rounded to bf16 then.
pub(super) fn serves_bf16(conv: &Conv2d) -> bool {
    let pairs = |channels: usize| channels.is_multiple_of(2 * VECTOR);
    bf16_is_in_words() && pairs(conv.input) && pairs(conv.output) && serves(conv)
}

/// Bytes of the inputs and products of a tile, of maps of `T`.
fn bytes_of_a_tile<T>(conv: &Conv2d) -> usize {
    16 * (size_of::<T>() * conv.input + size_of::<f32>() * GROUP)
}

/// Tiles that a job has at most.
fn most_tiles<T>(conv: &Conv2d) -> usize {
    (NEAR / bytes_of_a_tile::<T>(conv)).max(2 * ROWS)
}

/// Bytes of the inputs and products of a job, at most, which its thread keeps.
pub(super) fn bytes_of_a_job<T>(conv: &Conv2d) -> usize {
    most_tiles::<T>(conv).min(Tiles::<f32>::new(conv, &[]).count()) * bytes_of_a_tile::<T>(conv)
}

impl Weight {
    /// G g Gᵀ of a weight [output][tap][channel], for maps of what its matrices are packed in.
    pub(super) fn new(conv: &Conv2d, ordered: &[f32], pack: fn(Mat<'_, f32>) -> Packed) -> Self {
        let c = conv.input;
        let transform = |first: usize, width: usize, out: Shared<f32>| {
            par::for_each(width, 16 * c, |outputs| {
                for o in outputs {
                    let g = &ordered[(first + o) * 9 * c..][..9 * c];
                    dispatch(Kernel { g, tap: c, len: c, out, at: o * c, apart: GROUP * c });
                }
            });
        };
        Self::of(conv, transform, |element, width| pack(Mat::new(element, width, c).t()))
    }

    /// The same of a weight [tap][channel][output].
    pub(super) fn by_tap(conv: &Conv2d, taps: &[f32]) -> Self {
        let (c, o) = (conv.input, conv.output);
        let transform = |first: usize, width: usize, out: Shared<f32>| {
            par::for_each(c, 16 * width, |channels| {
                for k in channels {
                    let g = &taps[k * o + first..];
                    dispatch(Kernel { g, tap: c * o, len: width, out, at: k * width, apart: GROUP * c });
                }
            });
        };
        Self::of(conv, transform, |element, width| Packed::new(Mat::new(element, c, width)))
    }

    /// Of a transform that writes the elements of so many outputs from one on, `GROUP * input` numbers apart, and of what packs the matrix that one is.
    fn of(
        conv: &Conv2d,
        transform: impl Fn(usize, usize, Shared<f32>),
        pack: impl Fn(&[f32], usize) -> Packed,
    ) -> Self {
        let mut elements = vec![0.0; 16 * GROUP * conv.input];
        let groups = (0..conv.output).step_by(GROUP).map(|first| {
            let width = GROUP.min(conv.output - first);
            transform(first, width, Shared::new(&mut elements));
            let element = |i: usize| &elements[i * GROUP * conv.input..][..width * conv.input];
            (0..16).map(|i| pack(element(i), width)).collect()
        });
        Self(groups.collect())
    }

    /// y = act(x * weight + bias + residual), for maps of what the weight was packed for.
    pub(super) fn multiply<X: Number, Y: Number>(
        &self,
        conv: &Conv2d,
        x: &[X],
        finish: Finish<'_, f32, Y>,
        y: &mut [Y],
    ) {
        let tiles = Tiles::new(conv, x);
        let count = tiles.count();
        if count == 0 {
            return;
        }
        // Equal blocks of tiles for all threads; where those are too few, groups of outputs are shared out too, whose inputs are transformed by
        // each. A single thread takes whole register tiles.
        let (threads, most) = (par::threads(), most_tiles::<X>(conv));
        let blocks = count.div_ceil(most).next_multiple_of(threads.min(count / ROWS).max(1));
        let block = count.div_ceil(blocks);
        let block = if threads == 1 { block.next_multiple_of(ROWS) } else { block };
        let blocks = count.div_ceil(block);
        let parts = threads.div_ceil(blocks).min(self.0.len());
        let part = self.0.len().div_ceil(parts);
        let parts = self.0.len().div_ceil(part);
        let out = Shared::new(y);
        par::for_each(blocks * parts, block * conv.input * conv.output / parts, |jobs| {
            for job in jobs {
                let (first, group) = (job / parts * block, job % parts * part);
                tiles.job(
                    first..count.min(first + block),
                    &self.0[group..self.0.len().min(group + part)],
                    group,
                    finish,
                    out,
                );
            }
        });
    }
}

struct Tiles<'a, X = f32> {
    conv: &'a Conv2d,
    x: &'a [X],
    grid: [usize; 2],
    /// Of tiles in a map.
    rows: usize,
    cols: usize,
}

impl<'a, X> Tiles<'a, X> {
    fn new(conv: &'a Conv2d, x: &'a [X]) -> Self {
        let grid = conv.grid();
        Self { conv, x, grid, rows: grid[0].div_ceil(2), cols: grid[1].div_ceil(2) }
    }

    #[inline(always)]
    fn of_a_map(&self) -> usize {
        self.rows * self.cols
    }

    /// Of all maps.
    fn count(&self) -> usize {
        self.conv.n * self.of_a_map()
    }

    /// Map, row and column of a tile's first output.
    #[inline(always)]
    fn position(&self, tile: usize) -> [usize; 3] {
        let [map, at] = [tile / self.of_a_map(), tile % self.of_a_map()];
        [map, 2 * (at / self.cols), 2 * (at % self.cols)]
    }
}

impl<X: Number> Tiles<'_, X> {
    /// Some tiles of some groups of outputs, of which `first_group` is the first.
    fn job<Y: Number>(
        &self,
        tiles: core::ops::Range<usize>,
        weights: &[Vec<Packed>],
        first_group: usize,
        finish: Finish<'_, f32, Y>,
        y: Shared<Y>,
    ) {
        let (c, count) = (self.conv.input, tiles.len());
        // Neither rows nor elements lie a power of two apart, which would crowd a few sets of the cache.
        let (row, wide) = (c + X::VECTORS * VECTOR, GROUP + VECTOR);
        let (apart, apart_out) = (count * row + X::VECTORS * VECTOR, count * wide + VECTOR);
        let (mut inputs, mut products) = (
            scratch::take(Use::Operand, (16 * apart).div_ceil(X::VECTORS)),
            scratch::take(Use::Result, 16 * apart_out),
        );
        let (inputs_of, products_of) = (&mut X::of(&mut inputs)[..16 * apart], numbers(&mut products));
        dispatch(Inputs { tiles: self, range: tiles.clone(), out: inputs_of, row, apart });
        for (i, weight) in weights.iter().enumerate() {
            for (element, weight) in weight.iter().enumerate() {
                let a = Mat {
                    data: inputs_of,
                    offset: element * apart,
                    rows: count,
                    cols: c,
                    row_stride: row as isize,
                    col_stride: 1,
                };
                X::multiply(a, weight, &mut products_of[element * apart_out..], wide);
            }
            let (first, outputs) = ((first_group + i) * GROUP, weight[0].size()[1]);
            let range = tiles.clone();
            dispatch(Outputs {
                tiles: self,
                range,
                products: products_of,
                row: wide,
                apart: apart_out,
                first,
                outputs,
                finish,
                y,
            });
        }
        scratch::give(Use::Operand, inputs);
        scratch::give(Use::Result, products);
    }
}

/// What is done to the vectors of a column, and then of a row.
trait Along<const N: usize, const M: usize>: Copy {
    fn along<S: Simd>(self, s: S, x: [S::F; N]) -> [S::F; M];
}

/// G g.
#[derive(Clone, Copy)]
struct OfKernel;

impl Along<3, 4> for OfKernel {
    #[inline(always)]
    fn along<S: Simd>(self, s: S, [a, b, c]: [S::F; 3]) -> [S::F; 4] {
        let (half, ends) = (s.splat(0.5), s.add(a, c));
        [a, s.mul(s.add(ends, b), half), s.mul(s.sub(ends, b), half), c]
    }
}

/// Bᵀ d.
#[derive(Clone, Copy)]
struct OfInput;

impl Along<4, 4> for OfInput {
    #[inline(always)]
    fn along<S: Simd>(self, s: S, [a, b, c, d]: [S::F; 4]) -> [S::F; 4] {
        [s.sub(a, c), s.add(b, c), s.sub(c, b), s.sub(b, d)]
    }
}

/// Aᵀ m.
#[derive(Clone, Copy)]
struct OfOutput;

impl Along<4, 2> for OfOutput {
    #[inline(always)]
    fn along<S: Simd>(self, s: S, [a, b, c, d]: [S::F; 4]) -> [S::F; 2] {
        [s.add(s.add(a, b), c), s.sub(s.sub(b, c), d)]
    }
}

/// Along columns, then along rows.
#[inline(always)]
fn twice<S: Simd, const N: usize, const M: usize>(of: impl Along<N, M>, s: S, x: [[S::F; N]; N]) -> [[S::F; M]; M] {
    let columns: [[S::F; M]; N] = array(|j| of.along(s, array(|i| x[i][j])));
    array(|i| of.along(s, array(|j| columns[j][i])))
}

/// Calls `f` with each element and its number. An iterator over them would put them into memory first.
#[inline(always)]
fn each<X: Copy, const N: usize>(elements: [[X; N]; N], mut f: impl FnMut(usize, X)) {
    for i in 0..N {
        for j in 0..N {
            f(N * i + j, elements[i][j]);
        }
    }
}

/// `len` kernels side by side, taps of which are so far apart; element i of their transforms goes to `at + i * apart`.
struct Kernel<'a> {
    g: &'a [f32],
    tap: usize,
    len: usize,
    out: Shared<f32>,
    at: usize,
    apart: usize,
}

impl SimdOp for Kernel<'_> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) {
        for k in (0..self.len).step_by(S::LANES) {
            let taps: [[S::F; 3]; 3] = array(|i| array(|j| s.load(&self.g[(3 * i + j) * self.tap + k..])));
            each(twice(OfKernel, s, taps), |i, x| {
                let at = self.at + i * self.apart + k;
                // SAFETY: places that nothing else writes.
                s.store(x, unsafe { self.out.slice(at..at + S::LANES) });
            });
        }
    }
}

/// Bᵀ d B of tiles: element i of tile t at `i * apart + t * row`.
struct Inputs<'a, X> {
    tiles: &'a Tiles<'a, X>,
    range: core::ops::Range<usize>,
    out: &'a mut [X],
    row: usize,
    apart: usize,
}

impl<X: Number> SimdOp for Inputs<'_, X> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) {
        let Tiles { conv, x, .. } = self.tiles;
        let (c, [h, w], padding) = (conv.input, conv.size, conv.window.padding);
        assert!(
            c.is_multiple_of(X::VECTORS * VECTOR)
                && self.out.len() >= 15 * self.apart + self.range.len() * self.row
                && self.row >= c
        );
        assert!(x.len() >= conv.n * h * w * c);
        let zeros = [X::default(); 2 * VECTOR];
        for (t, tile) in self.range.enumerate() {
            let [map, row, col] = self.tiles.position(tile);
            // Where pixels start, and how far a vector further is: nowhere outside of the map.
            let mut places = [[(zeros.as_ptr(), 0); 4]; 4];
            for (i, places) in places.iter_mut().enumerate() {
                let Some(y) = (row + i).checked_sub(padding[0]).filter(|&y| y < h) else { continue };
                for (j, place) in places.iter_mut().enumerate() {
                    if let Some(x_at) = (col + j).checked_sub(padding[1]).filter(|&x| x < w) {
                        *place = (x[((map * h + y) * w + x_at) * c..].as_ptr(), usize::MAX);
                    }
                }
            }
            for k in (0..c).step_by(X::VECTORS * S::LANES) {
                // SAFETY: a pixel has all channels, zeros are as many as are read at once; places of the output were checked above.
                unsafe {
                    let pixel = |i: usize, j: usize| {
                        let (start, inside) = places[i][j];
                        start.add(k & inside)
                    };
                    X::transform(s, pixel, self.out.as_mut_ptr().add(t * self.row + k), self.apart);
                }
            }
        }
    }
}

/// Aᵀ m A of tiles, finished, for outputs from `first` on.
struct Outputs<'a, X, Y> {
    tiles: &'a Tiles<'a, X>,
    range: core::ops::Range<usize>,
    products: &'a mut [f32],
    row: usize,
    apart: usize,
    first: usize,
    outputs: usize,
    finish: Finish<'a, f32, Y>,
    y: Shared<Y>,
}

impl<X: Number, Y: Number> SimdOp for Outputs<'_, X, Y> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) {
        let Tiles { conv, grid, .. } = self.tiles;
        let (o, outputs, finish) = (conv.output, self.outputs, self.finish);
        assert!(outputs.is_multiple_of(Y::VECTORS * VECTOR) && self.first + outputs <= o && outputs <= self.row);
        assert!(self.products.len() >= 15 * self.apart + self.range.len() * self.row);
        let products = self.products.as_mut_ptr();
        let bias = finish.bias.map(|bias| &bias[self.first..self.first + outputs]);
        let relu = finish.act == Some(Unary::Relu);
        let act = finish.act.filter(|_| !relu);
        for (t, tile) in self.range.enumerate() {
            let [map, row, col] = self.tiles.position(tile);
            let (rows, cols) = (2.min(grid[0] - row), 2.min(grid[1] - col));
            let place = |i: usize, j: usize| ((map * grid[0] + row + i) * grid[1] + col + j) * o + self.first;
            // SAFETY: places of the products were checked above.
            let product = |element: usize, k: usize| unsafe { products.add(element * self.apart + t * self.row + k) };
            for k in (0..outputs).step_by(Y::VECTORS * S::LANES) {
                // SAFETY: as above.
                let first = unsafe { outputs_of(s, product(0, k), self.apart) };
                let second = match Y::VECTORS {
                    // SAFETY: as above.
                    2 => unsafe { outputs_of(s, product(0, k + S::LANES), self.apart) },
                    _ => first,
                };
                let bias = bias.map(|bias| [s.load(&bias[k..]), s.load(&bias[k + (Y::VECTORS - 1) * S::LANES..])]);
                for element in 0..4 {
                    let [i, j] = [element / 2, element % 2];
                    if i >= rows || j >= cols {
                        continue;
                    }
                    let (mut x, at) = ([first[i][j], second[i][j]], place(i, j) + k);
                    if let Some(bias) = bias {
                        x = array(|v| s.add(x[v], bias[v]));
                    }
                    if let Some(residual) = finish.residual {
                        // SAFETY: as many as there are outputs, which the slice has.
                        let residual = unsafe { Y::read(s, residual[at..at + Y::VECTORS * S::LANES].as_ptr()) };
                        x = array(|v| s.add(x[v], residual[v]));
                    }
                    if relu {
                        x = array(|v| map::vector(s, Unary::Relu, x[v]));
                    }
                    // SAFETY: outputs of this job's tiles and group alone; products that were read above.
                    unsafe {
                        if act.is_none() {
                            Y::write(s, x, self.y.slice(at..at + Y::VECTORS * S::LANES).as_mut_ptr());
                        } else {
                            (0..Y::VECTORS).for_each(|v| s.store_ptr(x[v], product(element, k + v * S::LANES)));
                        }
                    }
                }
            }
            // Sums wait in the places of their products for functions that take longer.
            let Some(act) = act else { continue };
            for (i, j) in (0..rows).flat_map(|i| (0..cols).map(move |j| (i, j))) {
                // SAFETY: as above.
                let (sums, y) = unsafe {
                    let sums = core::slice::from_raw_parts_mut(product(2 * i + j, 0), outputs);
                    (sums, self.y.slice(place(i, j)..place(i, j) + outputs))
                };
                map::activate(s, act, sums);
                y.iter_mut().zip(sums).for_each(|(y, sum)| *y = Y::nearest_to(*sum));
            }
        }
    }
}

/// Aᵀ m A of elements that lie so far apart.
///
/// # Safety
/// A vector of each must be readable.
#[inline(always)]
unsafe fn outputs_of<S: Simd>(s: S, first: *const f32, apart: usize) -> [[S::F; 2]; 2] {
    // SAFETY: the caller's promise.
    twice(OfOutput, s, array(|i| array(|j| unsafe { s.load_ptr(first.add((4 * i + j) * apart)) })))
}

#[cfg(all(test, feature = "rayon"))]
mod tests;
