//! Resizing of 8-bit levels to the levels that Pillow gives: a kernel that widens when the picture shrinks (antialias), one axis after
//! the other, in integers. Libraries that do the same in another precision or order differ by up to tens of levels at hard edges.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::Picture;

/// The kernel of a resize.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum Filter {
    /// Triangle.
    #[default]
    Bilinear,
    /// Catmull-Rom (a = -0.5).
    Bicubic,
    /// Windowed sinc of radius 3.
    Lanczos,
}

impl Filter {
    /// How far the kernel reaches, in pixels of the smaller picture.
    fn support(self) -> f64 {
        match self {
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
            Self::Lanczos => 3.0,
        }
    }

    /// The kernel's value at a distance.
    fn weight(self, distance: f64) -> f64 {
        const A: f64 = -0.5;
        let x = distance.abs();
        match self {
            Self::Bilinear => (1.0 - x).max(0.0),
            Self::Bicubic if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
            Self::Bicubic if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
            Self::Lanczos if x < 3.0 => sinc(x) * sinc(x / 3.0),
            Self::Bicubic | Self::Lanczos => 0.0,
        }
    }
}

fn sinc(x: f64) -> f64 {
    let x = x * std::f64::consts::PI;
    if x == 0.0 { 1.0 } else { libm::sin(x) / x }
}

impl std::fmt::Display for Filter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Bilinear => "bilinear",
            Self::Bicubic => "bicubic",
            Self::Lanczos => "lanczos",
        })
    }
}

/// The whole picture at another size.
///
/// # Panics
/// If a side is 0.
pub fn resize(picture: &Picture, width: usize, height: usize, filter: Filter) -> Cow<'_, Picture> {
    if (width, height) == (picture.width, picture.height) {
        return Cow::Borrowed(picture);
    }
    Cow::Owned(window(picture, (width, height), (0, 0), (width, height), filter))
}

/// The part of the picture resized to `whole` that begins at `corner` and has `size` (all width, height): only that part is computed.
///
/// # Panics
/// If it is empty or not inside.
pub(super) fn window(
    picture: &Picture,
    whole: (usize, usize),
    corner: (usize, usize),
    size: (usize, usize),
    filter: Filter,
) -> Picture {
    let inside = |corner: usize, size: usize, whole: usize| size > 0 && corner + size <= whole;
    let fits = inside(corner.0, size.0, whole.0) && inside(corner.1, size.1, whole.1);
    assert!(fits, "no {size:?} at {corner:?} in {whole:?}");
    let x = Taps::new(picture.width, whole.0, corner.0, size.0, filter);
    let y = Taps::new(picture.height, whole.1, corner.1, size.1, filter);
    // Between the two passes are 8-bit levels, so the order shows where a kernel overshoots black or white. It is Pillow's (found by
    // trying version 13): columns first where the height shrinks by more than twice what the width does. Older ones never do that.
    let shrinks = |from: usize, to: usize| from as i64 - to as i64;
    let (narrower, lower) = (shrinks(picture.width, whole.0), shrinks(picture.height, whole.1));
    if lower > 0 && lower > 2 * narrower {
        let columns = x.reach();
        across(&down(picture, &y, 0, columns.clone()), &x, columns.start)
    } else {
        let rows = y.reach();
        let between = across(&rows_of(picture, rows.clone()), &x, 0);
        let columns = 0..between.width;
        down(&between, &y, rows.start, columns)
    }
}

/// Fraction bits of the weights: what 32 bits leave beside 8-bit levels, a sign and room to overshoot.
const FRACTION: u32 = 22;

/// One axis of a resize: for each output pixel, the first source pixel that it takes from and the weights from there on.
struct Taps(Vec<(usize, Vec<i32>)>);

impl Taps {
    /// For `size` pixels from `corner` of an axis that is resized from `source` to `whole`.
    fn new(source: usize, whole: usize, corner: usize, size: usize, filter: Filter) -> Self {
        let scale = source as f64 / whole as f64;
        let wider = scale.max(1.0);
        let (support, narrow) = (filter.support() * wider, 1.0 / wider);
        let taps = |pixel: usize| {
            let center = (pixel as f64 + 0.5) * scale;
            // Casts to unsigned cut off below 0.
            let first = (center - support + 0.5) as usize;
            let last = ((center + support + 0.5) as usize).min(source);
            let weights: Vec<f64> =
                (first..last).map(|at| filter.weight((at as f64 - center + 0.5) * narrow)).collect();
            let sum: f64 = weights.iter().sum();
            let integer = |weight: &f64| (weight / sum * f64::from(1 << FRACTION)).round() as i32;
            (first, weights.iter().map(integer).collect())
        };
        Self((corner..corner + size).map(taps).collect())
    }

    /// The source pixels that are taken from.
    fn reach(&self) -> std::ops::Range<usize> {
        let first = self.0.first().map_or(0, |(first, _)| *first);
        first..self.0.last().map_or(0, |(first, weights)| first + weights.len())
    }
}

/// A sum of weighted levels, rounded to a level.
fn level(sum: i32) -> u8 {
    ((sum + (1 << (FRACTION - 1))) >> FRACTION).clamp(0, 255) as u8
}

/// Some rows of a picture.
fn rows_of(picture: &Picture, rows: std::ops::Range<usize>) -> Cow<'_, Picture> {
    if rows == (0..picture.height) {
        return Cow::Borrowed(picture);
    }
    let row = picture.width * picture.channels;
    let pixels = picture.pixels[rows.start * row..rows.end * row].to_vec();
    Cow::Owned(Picture::new(picture.width, rows.len(), picture.channels, pixels))
}

/// Every row through the taps, whose source pixel `first` is the picture's column 0.
fn across(picture: &Picture, taps: &Taps, first: usize) -> Picture {
    let channels = picture.channels;
    let mut pixels = Vec::with_capacity(taps.0.len() * picture.height * channels);
    for row in picture.pixels.chunks_exact(picture.width * channels) {
        for (start, weights) in &taps.0 {
            let from = &row[(start - first) * channels..];
            if channels == 1 {
                let sum: i32 = from.iter().zip(weights).map(|(&p, &w)| i32::from(p) * w).sum();
                pixels.push(level(sum));
            } else {
                let mut sums = [0; 3];
                for (pixel, &weight) in from.chunks_exact(3).zip(weights) {
                    sums.iter_mut().zip(pixel).for_each(|(sum, &p)| *sum += i32::from(p) * weight);
                }
                pixels.extend(sums.map(level));
            }
        }
    }
    Picture::new(taps.0.len(), picture.height, channels, pixels)
}

/// Some columns through the taps, whose source pixel `first` is the picture's row 0.
fn down(picture: &Picture, taps: &Taps, first: usize, columns: std::ops::Range<usize>) -> Picture {
    let (row, from) = (picture.width * picture.channels, columns.start * picture.channels);
    let mut sums = vec![0i32; columns.len() * picture.channels];
    let mut pixels = Vec::with_capacity(taps.0.len() * sums.len());
    for (start, weights) in &taps.0 {
        sums.fill(0);
        for (at, &weight) in (start - first..).zip(weights) {
            let levels = &picture.pixels[at * row + from..][..sums.len()];
            sums.iter_mut().zip(levels).for_each(|(sum, &p)| *sum += i32::from(p) * weight);
        }
        pixels.extend(sums.iter().map(|&sum| level(sum)));
    }
    Picture::new(columns.len(), taps.0.len(), picture.channels, pixels)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Saturated blocks over a busy pattern, so that overshoot and its clipping show.
    fn busy(width: usize, height: usize, channels: usize) -> Picture {
        let mut pixels = Vec::new();
        for (y, x, k) in
            (0..height * width * channels).map(|i| (i / channels / width, i / channels % width, i % channels))
        {
            let flat = (x / 4 + y / 5) % 3 == 0;
            pixels.push(if flat { 255 * (x / 4 % 2) } else { (x * x * 7 + y * 13 + x * y * 3 + k * 50) % 256 } as u8);
        }
        Picture::new(width, height, channels, pixels)
    }

    #[test]
    fn the_levels_are_pillows() {
        // Image.fromarray(busy).resize(size, filter) of Pillow 13, computed once; the last takes the columns first.
        let cases: [(_, _, Filter, &[u8]); 6] = [
            (
                busy(23, 17, 1),
                (7, 5),
                Filter::Bilinear,
                &[
                    7, 106, 127, 174, 224, 130, 125, 65, 111, 78, 102, 183, 146, 182, 139, 138, 72, 49, 124, 129, 203,
                    146, 201, 171, 113, 106, 23, 110, 72, 153, 162, 134, 162, 96, 130,
                ],
            ),
            (
                busy(23, 17, 1),
                (7, 5),
                Filter::Bicubic,
                &[
                    0, 109, 128, 184, 238, 123, 122, 61, 113, 71, 98, 191, 146, 186, 145, 141, 59, 33, 123, 128, 217,
                    144, 213, 182, 113, 104, 2, 111, 61, 155, 164, 134, 168, 92, 133,
                ],
            ),
            (
                busy(11, 9, 1),
                (13, 12),
                Filter::Bicubic,
                &[
                    0, 0, 0, 0, 28, 122, 174, 255, 128, 141, 143, 70, 191, 0, 0, 0, 0, 31, 140, 191, 119, 95, 185, 178,
                    97, 236, 0, 0, 0, 0, 36, 165, 225, 37, 95, 155, 138, 117, 161, 0, 0, 0, 0, 43, 181, 213, 73, 140,
                    70, 46, 123, 7, 0, 0, 0, 0, 55, 175, 21, 71, 171, 103, 82, 156, 50, 0, 0, 0, 0, 50, 192, 9, 89,
                    212, 144, 124, 204, 94, 22, 27, 36, 48, 113, 220, 42, 119, 153, 97, 85, 135, 69, 68, 85, 114, 154,
                    202, 202, 63, 152, 39, 0, 0, 0, 0, 76, 94, 123, 176, 150, 20, 84, 177, 74, 5, 0, 0, 0, 85, 105,
                    136, 193, 157, 9, 105, 200, 103, 17, 0, 0, 0, 96, 118, 151, 209, 179, 40, 127, 225, 132, 30, 0, 0,
                    0, 104, 127, 162, 221, 193, 55, 144, 244, 154, 39, 0, 0, 0,
                ],
            ),
            (
                busy(12, 10, 3),
                (4, 3),
                Filter::Bilinear,
                &[
                    0, 0, 0, 97, 105, 73, 127, 134, 139, 129, 125, 121, 56, 78, 85, 112, 99, 89, 92, 98, 111, 55, 52,
                    62, 136, 168, 160, 124, 120, 119, 81, 82, 100, 0, 0, 0,
                ],
            ),
            (
                busy(23, 17, 1),
                (6, 5),
                Filter::Lanczos,
                &[
                    0, 124, 139, 247, 150, 114, 69, 110, 54, 172, 160, 180, 147, 132, 13, 88, 129, 206, 146, 228, 147,
                    117, 13, 87, 62, 175, 135, 168, 112, 124,
                ],
            ),
            (
                busy(9, 20, 1),
                (5, 11),
                Filter::Bicubic,
                &[
                    0, 0, 116, 157, 155, 0, 0, 127, 110, 104, 17, 32, 133, 98, 107, 88, 160, 109, 124, 15, 113, 182,
                    95, 164, 45, 149, 144, 141, 187, 102, 170, 117, 205, 255, 172, 196, 69, 220, 255, 211, 51, 21, 137,
                    186, 163, 0, 0, 37, 116, 85, 0, 0, 79, 124, 149,
                ],
            ),
        ];
        for (picture, (width, height), filter, expected) in cases {
            let resized = resize(&picture, width, height, filter);
            assert_eq!((resized.width, resized.height), (width, height));
            assert_eq!(resized.pixels, expected, "{filter} to {width} x {height}");
        }
    }

    #[test]
    fn a_window_is_the_part_of_the_whole() {
        for (picture, whole, filter) in [
            (busy(61, 47, 1), (30, 23), Filter::Bicubic),
            (busy(40, 53, 3), (49, 65), Filter::Bilinear),
            (busy(33, 21, 1), (33, 14), Filter::Lanczos),
            (busy(7, 300, 1), (5, 214), Filter::Bilinear),
        ] {
            let all = resize(&picture, whole.0, whole.1, filter);
            for (corner, size) in [((0, 0), (5, 5)), ((whole.0 - 4, whole.1 - 9), (4, 9)), ((1, 7), (3, 6))] {
                let part = window(&picture, whole, corner, size, filter);
                for y in 0..size.1 {
                    let c = picture.channels;
                    let row = &all.pixels[((corner.1 + y) * whole.0 + corner.0) * c..][..size.0 * c];
                    assert_eq!(&part.pixels[y * size.0 * c..][..size.0 * c], row, "{whole:?} {corner:?} row {y}");
                }
            }
        }
    }
}
