//! Pooling of channels-last maps: the largest element of each window, and the tables of weights that average.

use alloc::vec::Vec;
use core::ops::Range;

use half::bf16;

use crate::conv::Window;
use crate::float::{Float, as_f32, as_f32_mut};
use crate::gemm::Rounds;
use crate::par::{self, Shared};
use crate::resize::Table;
use crate::simd::{Simd, SimdOp, dispatch};

/// Vectors of channels that are gone through a window with at a time.
const TOGETHER: usize = 4;

/// The first of equals stays, NaN wins over numbers.
#[inline(always)]
fn wins<F: Float>(x: F, y: F) -> bool {
    x > y || (x.is_nan() && !y.is_nan())
}

/// Numbers that vectors of f32 are made of, and made into.
trait Lanes: Copy + Send + Sync {
    /// A vector of the first numbers, the smallest where there are no more.
    fn read<S: Simd>(s: S, x: &[Self]) -> S::F;
    /// Writes as many as there is room for, which are such numbers.
    fn write<S: Simd>(s: S, x: S::F, y: &mut [Self]);
}

impl Lanes for f32 {
    #[inline(always)]
    fn read<S: Simd>(s: S, x: &[f32]) -> S::F {
        s.load_at(x, 0, f32::NEG_INFINITY)
    }
    #[inline(always)]
    fn write<S: Simd>(s: S, x: S::F, y: &mut [f32]) {
        s.store_at(x, y, 0);
    }
}

impl Lanes for bf16 {
    #[inline(always)]
    fn read<S: Simd>(s: S, x: &[bf16]) -> S::F {
        if let Some(x) = x.get(..S::LANES) {
            return bf16::upper(s, x);
        }
        let mut lanes = [bf16::NEG_INFINITY; 16];
        lanes[..x.len()].copy_from_slice(x);
        bf16::upper(s, &lanes)
    }
    #[inline(always)]
    fn write<S: Simd>(s: S, x: S::F, y: &mut [bf16]) {
        let mut lanes = [0.0; 16];
        s.store(x, &mut lanes);
        y.iter_mut().zip(&lanes[..S::LANES]).for_each(|(y, x)| *y = bf16::from_bits((x.to_bits() >> 16) as u16));
    }
}

/// The largest of a channel's numbers at some places of a map, for `N` vectors of channels, or a part of a vector.
#[inline(always)]
fn largest<S: Simd, T: Lanes, const N: usize>(s: S, map: &[T], places: &[usize], channels: Range<usize>, y: &mut [T]) {
    let mut most = [s.splat(f32::NEG_INFINITY); N];
    for place in places {
        let x = &map[place + channels.start..place + channels.end];
        for v in 0..N {
            let x = T::read(s, &x[v * S::LANES..]);
            // As `wins` has it: a sum with NaN is one.
            most[v] = s.select(s.eq(x, x), s.max(x, most[v]), s.add(most[v], x));
        }
    }
    for v in 0..N {
        T::write(s, most[v], &mut y[channels.clone()][v * S::LANES..]);
    }
}

/// As [`largest`], of a vector of channels of a map in f32, with where they were found: the pixel, or -1.
#[inline(always)]
fn largest_and_where<S: Simd>(
    s: S,
    map: &[f32],
    places: &[usize],
    channels: Range<usize>,
    y: &mut [f32],
    index: &mut [i32],
    c: usize,
) {
    let (mut most, mut found) = (s.splat(f32::NEG_INFINITY), s.as_float(s.splat_i(-1)));
    for (k, place) in places.iter().enumerate() {
        let x = s.load_at(&map[place + channels.start..place + channels.end], 0, f32::NEG_INFINITY);
        let at = s.as_float(s.splat_i((place / c) as i32));
        // The first wins over nothing at all; NaN, which is not below and not above, over numbers.
        let (wins, is_number, had_none) = (s.lt(most, x), s.eq(x, x), s.eq(most, most));
        let nan_wins = |new: S::F, old: S::F| s.select(is_number, old, s.select(had_none, new, old));
        (found, most) = match k {
            0 => (at, x),
            _ => (nan_wins(at, s.select(wins, at, found)), nan_wins(x, s.select(wins, x, most))),
        };
    }
    s.store_at(most, &mut y[channels.clone()], 0);
    let mut lanes = [0.0; 16];
    s.store(found, &mut lanes);
    index[channels].iter_mut().zip(lanes).for_each(|(index, at)| *index = at.to_bits().cast_signed());
}

/// As [`largest`], of all channels.
#[inline(always)]
fn all_largest<S: Simd, T: Lanes>(s: S, map: &[T], places: &[usize], y: &mut [T]) {
    let (c, step) = (y.len(), TOGETHER * S::LANES);
    let whole = c / step * step;
    for first in (0..whole).step_by(step) {
        largest::<S, T, TOGETHER>(s, map, places, first..first + step, y);
    }
    for first in (whole..c).step_by(S::LANES) {
        largest::<S, T, 1>(s, map, places, first..c.min(first + S::LANES), y);
    }
}

/// Windows of maps of c channels, one after the other.
#[derive(Clone, Copy)]
struct Windows {
    size: [usize; 2],
    c: usize,
    window: Window,
    grid: [usize; 2],
}

impl Windows {
    /// Which map the window in a row of all grids reads, and where the pixels are that it sees there.
    #[inline(always)]
    fn places(&self, row: usize, col: usize, places: &mut Vec<usize>) -> usize {
        let ([h, w], oh) = (self.size, self.grid[0]);
        places.clear();
        for a in 0..self.window.kernel[0] {
            let y = self.window.place(0, row % oh, a);
            for b in 0..self.window.kernel[1] {
                let x = self.window.place(1, col, b);
                if (0..h as isize).contains(&y) && (0..w as isize).contains(&x) {
                    places.push((y as usize * w + x as usize) * self.c);
                }
            }
        }
        row / oh
    }

    fn map<'a, T>(&self, x: &'a [T], n: usize) -> &'a [T] {
        let len = self.size[0] * self.size[1] * self.c;
        &x[n * len..][..len]
    }
}

struct Max<'a, F> {
    x: &'a [F],
    windows: Windows,
    rows: Range<usize>,
    y: &'a mut [F],
    /// Where they were found, if that is asked for.
    index: Option<&'a mut [i32]>,
}

impl<F: Float> SimdOp for Max<'_, F> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd>(mut self, s: S) {
        let (c, cols, mut places) = (self.windows.c, self.windows.grid[1], Vec::new());
        for (k, y) in self.y.chunks_exact_mut(c).enumerate() {
            let n = self.windows.places(self.rows.start + k / cols, k % cols, &mut places);
            let map = self.windows.map(self.x, n);
            if let (None, Some(map)) = (&self.index, as_f32(map)) {
                all_largest(s, map, &places, as_f32_mut(y).expect("same type as the map"));
                continue;
            }
            let mut index = self.index.as_mut().map(|index| &mut index[k * c..(k + 1) * c]);
            if let (Some(index), Some(map)) = (&mut index, as_f32(map)) {
                let y = as_f32_mut(y).expect("same type as the map");
                for first in (0..c).step_by(S::LANES) {
                    largest_and_where(s, map, &places, first..c.min(first + S::LANES), y, index, c);
                }
                continue;
            }
            y.fill(F::NEG_INFINITY);
            index.iter_mut().for_each(|index| index.fill(-1));
            for &place in &places {
                let x = &map[place..place + c];
                let Some(index) = &mut index else {
                    y.iter_mut().zip(x).for_each(|(y, &x)| *y = if wins(x, *y) { x } else { *y });
                    continue;
                };
                for ((y, index), &x) in y.iter_mut().zip(index.iter_mut()).zip(x) {
                    // The first element wins over nothing at all.
                    let wins = wins(x, *y) || *index < 0;
                    *y = if wins { x } else { *y };
                    *index = if wins { (place / c) as i32 } else { *index };
                }
            }
        }
    }
}

struct MaxOfHalves<'a> {
    x: &'a [bf16],
    windows: Windows,
    rows: Range<usize>,
    y: &'a mut [bf16],
}

impl SimdOp for MaxOfHalves<'_> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) {
        let (cols, mut places) = (self.windows.grid[1], Vec::new());
        for (k, y) in self.y.chunks_exact_mut(self.windows.c).enumerate() {
            let n = self.windows.places(self.rows.start + k / cols, k % cols, &mut places);
            all_largest(s, self.windows.map(self.x, n), &places, y);
        }
    }
}

/// Largest element of each window of x [n, h, w, c], and, where asked for, where it is: row * w + column, -1 (and -infinity) for a window
/// that lies in padding alone. Ties go to the first; NaN if there is one.
///
/// # Panics
/// If the window does not fit or lengths differ.
pub fn max_pool2d<F: Float>(
    x: &[F],
    [n, h, w, c]: [usize; 4],
    window: &Window,
    y: &mut [F],
    index: Option<&mut [i32]>,
) {
    assert!(
        index.as_ref().is_none_or(|index| index.len() == y.len()) && h * w <= i32::MAX as usize,
        "max_pool2d: lengths"
    );
    let index = index.map(Shared::new);
    each_part(x, [n, h, w, c], window, y, |windows, rows, place, y| {
        // SAFETY: the places of these rows, each handed out once.
        let index = index.as_ref().map(|index| unsafe { index.slice(place) });
        dispatch(Max { x, windows, rows, y, index });
    });
}

/// As [`max_pool2d`], of numbers in bf16.
///
/// # Panics
/// As [`max_pool2d`].
pub fn max_pool2d_halves(x: &[bf16], size: [usize; 4], window: &Window, y: &mut [bf16]) {
    each_part(x, size, window, y, |windows, rows, _, y| dispatch(MaxOfHalves { x, windows, rows, y }));
}

/// Calls `f` with some rows of the grid, where they are in `y`, and that part of it, on several threads.
fn each_part<T: Send>(
    x: &[T],
    [n, h, w, c]: [usize; 4],
    window: &Window,
    y: &mut [T],
    f: impl Fn(Windows, Range<usize>, Range<usize>, &mut [T]) + Sync,
) {
    let grid = window.output([h, w]).unwrap_or_else(|| panic!("max_pool2d: {window:?} does not fit [{h}, {w}]"));
    let row = grid[1] * c;
    assert!(x.len() == n * h * w * c && y.len() == n * grid[0] * row, "max_pool2d: lengths");
    if y.is_empty() {
        return;
    }
    let (y, windows) = (Shared::new(y), Windows { size: [h, w], c, window: *window, grid });
    par::for_each(n * grid[0], row * window.kernel[0] * window.kernel[1] * 2, |rows| {
        let place = rows.start * row..rows.end * row;
        // SAFETY: rows of the output, each handed out once.
        f(windows, rows, place.clone(), unsafe { y.slice(place) });
    });
}

/// Gradient of [`max_pool2d`]: each dy goes to the element that it came from.
pub fn max_pool2d_backward<F: Float>(dy: &[F], index: &[i32], [n, h, w, c]: [usize; 4], dx: &mut [F]) {
    assert!(dy.len() == index.len() && dx.len() == n * h * w * c, "max_pool2d_backward: lengths");
    if dx.is_empty() {
        return;
    }
    let each = dy.len() / n;
    par::chunks_mut(dx, h * w * c, each * 2 + h * w * c, |n, dx| {
        dx.fill(F::ZERO);
        let place = n * each..(n + 1) * each;
        for (k, (&d, &at)) in dy[place.clone()].iter().zip(&index[place]).enumerate() {
            if at >= 0 {
                dx[at as usize * c + k % c] += d;
            }
        }
    });
}

/// Means of windows along one axis. Padding counts as zeros, or not at all where `count_padding` is false.
///
/// # Panics
/// If the window does not fit, or could lie in padding alone.
pub fn average(input: usize, kernel: usize, stride: usize, padding: usize, count_padding: bool) -> Table {
    let window = Window::square(kernel, stride, padding);
    let output = window.output([input; 2]).filter(|_| padding <= kernel / 2);
    let [output, _] = output.unwrap_or_else(|| {
        panic!("average: kernel {kernel}, stride {stride} and padding {padding} do not fit a size of {input}")
    });
    Table::new(input, output, |i| {
        let first = (i * stride).saturating_sub(padding);
        let end = (i * stride + kernel - padding).min(input);
        let count = if count_padding { kernel } else { end.saturating_sub(first) };
        (first..end).map(|k| (k, 1.0 / count as f64)).collect()
    })
}

/// Means of `output` windows that cover one axis: window i is elements floor(i input / output) to
/// ceil((i + 1) input / output), as PyTorch has it.
///
/// # Panics
/// If there is nothing to average.
pub fn adaptive_average(input: usize, output: usize) -> Table {
    assert!(input > 0 || output == 0, "adaptive_average: {output} means of nothing");
    Table::new(input, output, |i| {
        let (first, end) = (i * input / output, ((i + 1) * input).div_ceil(output));
        (first..end).map(|k| (k, 1.0 / (end - first) as f64)).collect::<Vec<_>>()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    #[test]
    fn ties_go_to_the_first_nan_wins_and_padding_never_does() {
        let pool = |x: &[f32], window: Window, size: [usize; 2]| {
            let [oh, ow] = window.output(size).unwrap();
            let (mut y, mut index, mut alone) = (vec![0.0; oh * ow], vec![7; oh * ow], vec![0.0; oh * ow]);
            max_pool2d(x, [1, size[0], size[1], 1], &window, &mut y, Some(&mut index));
            max_pool2d(x, [1, size[0], size[1], 1], &window, &mut alone, None);
            assert!(alone.iter().zip(&y).all(|(a, y)| a.to_bits() == y.to_bits()));
            (y, index)
        };
        assert_eq!(pool(&[2.0, 2.0, 1.0, 2.0], Window::square(2, 1, 0), [2, 2]), (vec![2.0], vec![0]));
        let (y, index) = pool(&[2.0, f32::NAN, 5.0, f32::NAN], Window::square(2, 1, 0), [2, 2]);
        assert!(y[0].is_nan() && index == [1]);
        // Every corner of a padded 3 x 3 window over 2 x 2 negative numbers sees the whole map.
        assert_eq!(pool(&[-4.0, -3.0, -2.0, -1.0], Window::square(3, 1, 1), [2, 2]), (vec![-1.0; 4], vec![3; 4]));
        // Minus infinity is a value like others.
        assert_eq!(pool(&[f32::NEG_INFINITY], Window::square(1, 1, 0), [1, 1]).1, [0]);
    }

    /// Worked out by hand from the rules of PyTorch.
    #[test]
    fn averages_have_the_divisors_of_the_field() {
        let check = |table: &Table, expected: &[f64]| {
            let x: Vec<f64> = (1..=table.input()).map(|i| (i * i) as f64).collect();
            let mut y = vec![0.0; table.output()];
            table.apply(&x, 1, 1, &mut y);
            assert!(y.len() == expected.len() && y.iter().zip(expected).all(|(y, e)| (y - e).abs() < 1e-12), "{y:?}");
        };
        check(&average(5, 3, 2, 1, true), &[5.0 / 3.0, 29.0 / 3.0, 41.0 / 3.0]);
        check(&average(5, 3, 2, 1, false), &[2.5, 29.0 / 3.0, 20.5]);
        check(&adaptive_average(5, 3), &[2.5, 29.0 / 3.0, 20.5]);
        check(&adaptive_average(2, 3), &[1.0, 2.5, 4.0]);
    }

    #[cfg(feature = "rayon")]
    #[test]
    fn largest_elements_are_found_and_sent_their_gradients_on_every_tier() {
        use crate::testing::{normals, on_every_tier};
        on_every_tier(|isa| {
            let mut rng = crate::rng::Rng::new(12, 0);
            for round in 0..60 {
                let pair = |rng: &mut crate::rng::Rng, low: usize, n: usize| [low + rng.below(n), low + rng.below(n)];
                let (kernel, stride) = (pair(&mut rng, 1, 3), pair(&mut rng, 1, 3));
                let (padding, dilation) = (pair(&mut rng, 0, 2), pair(&mut rng, 1, 2));
                let window = Window { kernel, stride, padding, dilation };
                let grow = if round % 20 == 0 { 60 } else { 5 };
                // Also more channels than stay in registers.
                let channels = if round % 4 == 0 { 3 * 16 * TOGETHER } else { 20 };
                let (n, c, [h, w]) = (1 + rng.below(3), 1 + rng.below(channels), pair(&mut rng, 5, grow));
                let [oh, ow] = window.output([h, w]).unwrap();
                let x = normals(&mut rng, n * h * w * c);
                let dy = normals(&mut rng, n * oh * ow * c);
                let (mut y, mut index, mut dx) = (vec![7.0; dy.len()], vec![7; dy.len()], vec![7.0; x.len()]);
                max_pool2d(&x, [n, h, w, c], &window, &mut y, Some(&mut index));
                let mut alone = vec![7.0; y.len()];
                max_pool2d(&x, [n, h, w, c], &window, &mut alone, None);
                assert_eq!(alone, y, "{isa} {window:?}");
                let single = |x: &[f64]| x.iter().map(|&x| x as f32).collect::<vec::Vec<_>>();
                let (mut singles, mut found) = (vec![7.0; y.len()], vec![7; y.len()]);
                max_pool2d(&single(&x), [n, h, w, c], &window, &mut singles, None);
                assert_eq!(singles, single(&y), "{isa} {window:?}");
                max_pool2d(&single(&x), [n, h, w, c], &window, &mut singles, Some(&mut found));
                assert!(singles == single(&y) && found == index, "{isa} {window:?}");
                let half = |x: &[f64]| x.iter().map(|&x| bf16::from_f64(x)).collect::<vec::Vec<_>>();
                let mut halves = vec![bf16::ZERO; y.len()];
                max_pool2d_halves(&half(&x), [n, h, w, c], &window, &mut halves);
                // Rounding keeps the order.
                assert_eq!(halves, half(&y), "{isa} {window:?}");
                max_pool2d_backward(&dy, &index, [n, h, w, c], &mut dx);
                let mut slope = vec![0.0; x.len()];
                for at in 0..y.len() {
                    let (map, i, j, k) = (at / (oh * ow * c), at / (ow * c) % oh, at / c % ow, at % c);
                    let (mut best, mut place) = (f64::NEG_INFINITY, None);
                    for (a, b) in (0..kernel[0]).flat_map(|a| (0..kernel[1]).map(move |b| (a, b))) {
                        let row = (i * stride[0] + a * dilation[0]).checked_sub(padding[0]).filter(|&row| row < h);
                        let col = (j * stride[1] + b * dilation[1]).checked_sub(padding[1]).filter(|&col| col < w);
                        if let (Some(row), Some(col)) = (row, col) {
                            let value = x[((map * h + row) * w + col) * c + k];
                            if value > best {
                                (best, place) = (value, Some(row * w + col));
                            }
                        }
                    }
                    assert!(y[at] == best && index[at] == place.map_or(-1, |p| p as i32), "{isa} {window:?}");
                    if let Some(place) = place {
                        slope[(map * h * w + place) * c + k] += dy[at];
                    }
                }
                assert_eq!(dx, slope, "{isa} {window:?}");
            }
        });
    }
}
