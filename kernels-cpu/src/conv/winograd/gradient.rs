//! The gradient of a 3 x 3 weight by the same transforms: Gᵀ [sum over tiles of (Bᵀ d B) ∘ (A dy Aᵀ)] G, for the 4 x 4 inputs d and the 2 x 2
//! outputs' gradients dy of a tile, is the adjoint of what the forward pass computes of g. Each of the 16 elements of the sum is a matrix product
//! [outputs, tiles] x [tiles, channels].

use alloc::vec;
use core::ops::Range;

use super::{Along, FEWEST, OfInput, Tiles, VECTOR, each, twice};
use crate::conv::Conv2d;
use crate::gemm::scratch::{self, Use};
use crate::gemm::{Mat, gemm_serial, numbers};
use crate::par::{self, Shared};
use crate::simd::{Simd, SimdOp, array, dispatch};

/// Most tiles of a block: a line of their elements and its sums stay near. Fixed, as the order of the sums follows from it.
const BLOCK: usize = 128;
/// With fewer tiles, the sums, which are 16/9 of the weight, take longer to pass over than is saved.
const FEWEST_TILES: usize = 2 * BLOCK;

/// Whether the gradient of the weight is computed so. It is a sum over all maps, so it goes by their number too.
pub(in crate::conv) fn serves(conv: &Conv2d) -> bool {
    super::serves(conv) && Tiles::<f32>::new(conv, &[]).count() >= FEWEST_TILES
}

/// Bytes of the sums, and of the elements that threads keep, at most.
pub(in crate::conv) fn bytes(conv: &Conv2d) -> usize {
    let (c, o) = (conv.input, conv.output);
    size_of::<f32>() * (16 * c * o + par::threads() * (Elements::room(BLOCK, c) + Elements::room(BLOCK, o)))
}

/// dweight [output, channel, 3, 3], from x and dy.
pub(in crate::conv) fn of_weight(conv: &Conv2d, x: &[f32], dy: &[f32], dweight: &mut [f32]) {
    let (c, o, tiles) = (conv.input, conv.output, Tiles::new(conv, x));
    let count = tiles.count();
    if count == 0 {
        return dweight.fill(0.0);
    }
    let block = count.div_ceil(count.div_ceil(BLOCK));
    // A line of elements is a job. For more than two threads outputs are shared out too, and inputs transformed by each.
    let part = o.div_ceil(par::threads().div_ceil(2)).max(FEWEST).next_multiple_of(VECTOR);
    let mut sums = vec![0.0; 16 * c * o];
    let out = Shared::new(&mut sums);
    par::for_each(4 * o.div_ceil(part), count * c * part / 4, |jobs| {
        for job in jobs {
            let first = job / 4 * part;
            Job { tiles: &tiles, dy, block, line: job % 4, outputs: first..o.min(first + part), sums: out }.run();
        }
    });
    par::chunks_mut(dweight, 9 * c, 25 * c, |o, dweight| {
        dispatch(Kernels { sums: &sums[o * c..], apart: sums.len() / 16, dweight });
    });
}

/// A line of the 4 x 4 elements, for some outputs, summed over all tiles: block by block, in order.
struct Job<'a> {
    tiles: &'a Tiles<'a>,
    dy: &'a [f32],
    /// Tiles of a block.
    block: usize,
    line: usize,
    outputs: Range<usize>,
    /// [element][output][channel]
    sums: Shared<f32>,
}

impl Job<'_> {
    fn run(self) {
        let Conv2d { input: c, output: o, size, window, .. } = *self.tiles.conv;
        let (count, width) = (self.tiles.count(), self.outputs.len());
        let x = Map { pixels: self.tiles.x, size, padding: window.padding, all: c, channels: 0..c };
        let dy =
            Map { pixels: self.dy, size: self.tiles.grid, padding: [0; 2], all: o, channels: self.outputs.clone() };
        let [mut inputs, mut slopes] = [(Use::Operand, c), (Use::Result, width)]
            .map(|(which, channels)| scratch::take(which, Elements::room(self.block, channels)));
        let mut inputs_of = Elements::new(numbers(&mut inputs), self.block, c);
        let mut slopes_of = Elements::new(numbers(&mut slopes), self.block, width);
        for start in (0..count).step_by(self.block) {
            let (tiles, range) = (self.tiles, start..count.min(start + self.block));
            let (input, slope) = (INPUT[self.line], SLOPE[self.line]);
            dispatch(Line {
                tiles,
                range: range.clone(),
                map: &x,
                terms: input,
                out: &mut inputs_of,
                transform: OfInput,
            });
            dispatch(Line {
                tiles,
                range: range.clone(),
                map: &dy,
                terms: slope,
                out: &mut slopes_of,
                transform: OfSlope,
            });
            for element in 0..4 {
                let (a, b) = (slopes_of.matrix(element, range.len(), width), inputs_of.matrix(element, range.len(), c));
                let at = ((4 * self.line + element) * o + self.outputs.start) * c;
                // SAFETY: sums of the job's line and outputs alone.
                let sums = unsafe { self.sums.slice(at..at + width * c) };
                gemm_serial(a.t(), b, start > 0, sums, c, None);
            }
        }
        scratch::give(Use::Operand, inputs);
        scratch::give(Use::Result, slopes);
    }
}

/// A line of elements of a block's tiles: element i of tile t at `i * apart + t * row`. Neither lie a power of two apart, as in the forward pass.
struct Elements<'a> {
    numbers: &'a mut [f32],
    row: usize,
    apart: usize,
}

impl<'a> Elements<'a> {
    fn room(block: usize, channels: usize) -> usize {
        4 * (block * (channels + VECTOR) + VECTOR)
    }

    fn new(numbers: &'a mut [f32], block: usize, channels: usize) -> Self {
        Self { numbers, row: channels + VECTOR, apart: block * (channels + VECTOR) + VECTOR }
    }

    /// An element as [tiles, channels].
    fn matrix(&self, element: usize, tiles: usize, channels: usize) -> Mat<'_, f32> {
        let row_stride = self.row as isize;
        Mat { data: self.numbers, offset: element * self.apart, rows: tiles, cols: channels, row_stride, col_stride: 1 }
    }
}

/// Some channels of maps that have `all`.
struct Map<'a> {
    pixels: &'a [f32],
    size: [usize; 2],
    padding: [usize; 2],
    all: usize,
    channels: Range<usize>,
}

/// Of Bᵀ: a line has two terms, each a row of d and a factor.
const INPUT: [[(usize, f32); 2]; 4] =
    [[(0, 1.0), (2, -1.0)], [(1, 1.0), (2, 1.0)], [(2, 1.0), (1, -1.0)], [(1, 1.0), (3, -1.0)]];
/// Of A.
const SLOPE: [[(usize, f32); 2]; 4] =
    [[(0, 1.0), (1, 0.0)], [(0, 1.0), (1, 1.0)], [(0, 1.0), (1, -1.0)], [(0, 0.0), (1, -1.0)]];

/// A y.
#[derive(Clone, Copy)]
struct OfSlope;

impl Along<2, 4> for OfSlope {
    #[inline(always)]
    fn along<S: Simd>(self, s: S, [a, b]: [S::F; 2]) -> [S::F; 4] {
        [a, s.add(a, b), s.sub(a, b), s.sub(s.splat(0.0), b)]
    }
}

/// Gᵀ u.
#[derive(Clone, Copy)]
struct OfSum;

impl Along<4, 3> for OfSum {
    #[inline(always)]
    fn along<S: Simd>(self, s: S, [a, b, c, d]: [S::F; 4]) -> [S::F; 3] {
        let half = s.splat(0.5);
        let (sum, difference) = (s.mul(s.add(b, c), half), s.mul(s.sub(b, c), half));
        [s.add(a, sum), difference, s.add(sum, d)]
    }
}

/// A line of the transform of tiles of N x N pixels.
struct Line<'a, 'b, T, const N: usize> {
    tiles: &'a Tiles<'a>,
    range: Range<usize>,
    map: &'a Map<'a>,
    terms: [(usize, f32); 2],
    out: &'a mut Elements<'b>,
    transform: T,
}

impl<T: Along<N, 4>, const N: usize> SimdOp for Line<'_, '_, T, N> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) {
        let Self { tiles, range, terms, .. } = self;
        let (Map { pixels, size: [h, w], padding, all, channels }, out) = (self.map, self.out);
        assert!(channels.len().is_multiple_of(VECTOR) && channels.end <= *all && out.row >= channels.len());
        assert!(out.numbers.len() >= 3 * out.apart + range.len() * out.row);
        assert!(pixels.len() >= tiles.conv.n * h * w * all);
        let (zeros, factors) = ([0.0; VECTOR], terms.map(|(_, factor)| s.splat(factor)));
        for (t, tile) in range.enumerate() {
            let [n, row, col] = tiles.position(tile);
            // Where both terms of a column start, and how far a vector further is: nowhere outside of the map.
            let mut places = [[(zeros.as_ptr(), 0); 2]; N];
            for (i, (line, _)) in terms.iter().enumerate() {
                let Some(y) = (row + line).checked_sub(padding[0]).filter(|y| y < h) else { continue };
                for (j, places) in places.iter_mut().enumerate() {
                    if let Some(x) = (col + j).checked_sub(padding[1]).filter(|x| x < w) {
                        places[i] = (pixels[((n * h + y) * w + x) * all + channels.start..].as_ptr(), usize::MAX);
                    }
                }
            }
            for k in (0..channels.len()).step_by(S::LANES) {
                // SAFETY: a pixel has all channels, zeros are as many as in a vector; places of the output were checked above.
                unsafe {
                    let d = array(|j| {
                        let [first, second] = places[j];
                        let [first, second] = [first.0.add(k & first.1), second.0.add(k & second.1)];
                        s.add(s.mul(s.load_ptr(first), factors[0]), s.mul(s.load_ptr(second), factors[1]))
                    });
                    let line = self.transform.along(s, d);
                    let place = out.numbers.as_mut_ptr().add(t * out.row + k);
                    for i in 0..4 {
                        s.store_ptr(line[i], place.add(i * out.apart));
                    }
                }
            }
        }
    }
}

/// Gᵀ u G of an output's channels, whose elements lie so far apart, as [channel][tap].
struct Kernels<'a> {
    sums: &'a [f32],
    apart: usize,
    dweight: &'a mut [f32],
}

impl SimdOp for Kernels<'_> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) {
        for (k, dweight) in self.dweight.chunks_exact_mut(9 * S::LANES).enumerate() {
            let u: [[S::F; 4]; 4] = array(|i| array(|j| s.load(&self.sums[(4 * i + j) * self.apart + k * S::LANES..])));
            let mut taps = [[0.0; VECTOR]; 9];
            each(twice(OfSum, s, u), |i, x| s.store(x, &mut taps[i]));
            for (k, channel) in dweight.chunks_exact_mut(9).enumerate() {
                channel.iter_mut().zip(&taps).for_each(|(d, tap)| *d = tap[k]);
            }
        }
    }
}

#[cfg(all(test, feature = "rayon"))]
mod tests {
    use super::*;
    use crate::conv::Window;
    use crate::rng::Rng;
    use crate::testing::{narrow, normals, on_every_tier, wide};
    use alloc::vec::Vec;
    use proptest::prelude::*;

    /// x and dy.
    fn drawn(conv: &Conv2d, seed: u64) -> [Vec<f32>; 2] {
        let (mut rng, [rows, cols], [h, w]) = (Rng::new(seed, 3), conv.grid(), conv.size);
        [h * w * conv.input, rows * cols * conv.output].map(|n| narrow(&normals(&mut rng, conv.n * n)))
    }

    /// Also for few tiles.
    fn ours(conv: &Conv2d, x: &[f32], dy: &[f32]) -> Vec<f32> {
        let mut dw = vec![f32::NAN; 9 * conv.input * conv.output];
        of_weight(conv, x, dy, &mut dw);
        dw
    }

    /// The definition: every product of an output's slope with a pixel that it saw.
    fn expected(conv: &Conv2d, x: &[f32], dy: &[f32]) -> Vec<f64> {
        let ([h, w], [rows, cols], c, o) = (conv.size, conv.grid(), conv.input, conv.output);
        let (x, dy, mut dw) = (wide(x), wide(dy), vec![0.0; 9 * c * o]);
        for (at, dy) in dy.chunks_exact(o).enumerate() {
            for tap in 0..9 {
                let [y, x_at] = [(0, at / cols % rows, tap / 3), (1, at % cols, tap % 3)]
                    .map(|(axis, i, t)| conv.window.place(axis, i, t));
                if (0..h as isize).contains(&y) && (0..w as isize).contains(&x_at) {
                    let pixel = &x[((at / (rows * cols) * h + y as usize) * w + x_at as usize) * c..][..c];
                    for (dw, dy) in dw.chunks_exact_mut(9 * c).zip(dy) {
                        dw[tap..].iter_mut().step_by(9).zip(pixel).for_each(|(dw, x)| *dw += x * dy);
                    }
                }
            }
        }
        dw
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(12))]
        #[test]
        fn every_tier_is_the_definition(n in 0usize..4, size in [1usize..12, 1usize..12], padding in [0usize..3, 0usize..3],
                                        c in 2usize..4, o in 2usize..6, seed in any::<u64>()) {
            let size = [0, 1].map(|k| size[k].max(3usize.saturating_sub(2 * padding[k])));
            let window = Window { padding, ..Window::square(3, 1, 0) };
            let conv = Conv2d { n, size, input: 16 * c, output: 16 * o, groups: 1, window };
            let [x, dy] = drawn(&conv, seed);
            let expected = expected(&conv, &x, &dy);
            on_every_tier(|isa| {
                let dw = ours(&conv, &x, &dy);
                assert!(dw.iter().zip(&expected).all(|(d, e)| (f64::from(*d) - e).abs() < 2e-4), "{isa}: {conv:?}");
            });
        }
    }

    /// Jobs of one line or of parts of the outputs, with several blocks, the last one shorter.
    #[test]
    fn thread_counts_do_not_change_bits() {
        let conv = Conv2d { n: 3, size: [23, 31], input: 48, output: 144, groups: 1, window: Window::square(3, 1, 1) };
        let [x, dy] = drawn(&conv, 1);
        let run = |threads: usize| {
            par::Pool::new(threads).install(|| {
                let mut dw = vec![f32::NAN; 9 * conv.input * conv.output];
                conv.backward_weight(&x, &dy, &mut dw);
                dw
            })
        };
        let one = run(1);
        assert!(one == ours(&conv, &x, &dy), "another way was taken");
        assert!([2, 3, 4, 7].iter().all(|&threads| run(threads) == one));
        let expected = expected(&conv, &x, &dy);
        assert!(one.iter().zip(&expected).all(|(d, e)| (f64::from(*d) - e).abs() < 1e-3));
    }

    #[test]
    fn only_many_tiles_are_served() {
        let conv = |n: usize, side: usize, input: usize| {
            let window = Window::square(3, 1, 1);
            Conv2d { n, size: [side; 2], input, output: 64, groups: 1, window }
        };
        for (conv, served) in [
            (conv(8, 14, 64), true),
            (conv(6, 14, 64), true),
            (conv(5, 14, 64), false),
            (conv(2, 28, 64), true),
            (conv(1, 28, 64), false),
            (conv(100, 7, 64), true),
            (conv(100, 6, 64), false),
            (conv(8, 14, 16), false),
        ] {
            assert_eq!(serves(&conv), served, "{conv:?}");
            assert!(!served || conv.backward_bytes() >= bytes(&conv), "{conv:?}");
        }
    }

    /// As of the forward pass: within twice the error of the direct sums.
    #[test]
    fn little_is_lost_to_rounding() {
        for (n, input, output, side) in [(4, 32, 64, 28), (2, 64, 32, 56), (8, 256, 64, 14)] {
            let conv = Conv2d { n, size: [side; 2], input, output, groups: 1, window: Window::square(3, 1, 1) };
            let [x, dy] = drawn(&conv, 2);
            let expected = expected(&conv, &x, &dy);
            let mut direct = vec![0.0; expected.len()];
            conv.backward_weight_direct(&x, &dy, &mut direct);
            let error = |dw: &[f32]| {
                let squares = dw.iter().zip(&expected).map(|(d, e)| (f64::from(*d) - e).powi(2));
                (squares.clone().sum::<f64>().sqrt(), squares.fold(0.0, f64::max).sqrt())
            };
            let (ours, theirs) = (error(&ours(&conv, &x, &dy)), error(&direct));
            std::println!("{n} x {side} x {side}, {input} channels: error {ours:?}, of the direct sums {theirs:?}");
            assert!(ours.0 < 2.0 * theirs.0 && ours.1 < 2.0 * theirs.1, "{conv:?}: {ours:?} against {theirs:?}");
        }
    }
}
