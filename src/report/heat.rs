//! Heat maps: patch scores painted over a radiograph, blue below zero, grey at zero, orange above, on a symmetric scale.

use super::colour::{self, Colour, INK, MUTED};
use super::drawing::{self, Anchor, Drawing, Mark};
use crate::error::{Error, Result};
use crate::image::{Filter, Picture, resize};

/// Scores of the patches of one picture.
#[derive(Clone, Debug, PartialEq)]
pub struct Grid {
    rows: usize,
    columns: usize,
    scores: Vec<f32>,
}

impl Grid {
    /// `scores` row by row; an error if their number is not `rows * columns` or one is not finite.
    pub fn new(rows: usize, columns: usize, scores: Vec<f32>) -> Result<Self> {
        if rows == 0 || columns == 0 || scores.len() != rows.saturating_mul(columns) {
            return Err(Error::new(format!("{} patch scores do not fill a grid of {rows}x{columns}", scores.len())));
        }
        if let Some(i) = scores.iter().position(|s| !s.is_finite()) {
            return Err(Error::new(format!(
                "the patch score at row {}, column {} is {}; check the weights",
                i / columns,
                i % columns,
                scores[i]
            )));
        }
        Ok(Self { rows, columns, scores })
    }

    /// Patches down and across.
    pub fn size(&self) -> (usize, usize) {
        (self.rows, self.columns)
    }

    /// Row by row.
    pub fn scores(&self) -> &[f32] {
        &self.scores
    }

    /// The largest |score|.
    pub fn largest(&self) -> f32 {
        self.scores.iter().fold(0.0, |most, s| most.max(s.abs()))
    }

    /// The score at a place given as parts of height and width: of the patch there, or bilinear between patch centres.
    fn at(&self, y: f32, x: f32, smooth: bool) -> f32 {
        let near = |part: f32, n: usize| ((part * n as f32) as usize).min(n - 1);
        if !smooth {
            return self.scores[near(y, self.rows) * self.columns + near(x, self.columns)];
        }
        let ((y0, y1, v), (x0, x1, u)) = (neighbours(y, self.rows), neighbours(x, self.columns));
        let row = |y: usize| {
            let (a, b) = (self.scores[y * self.columns + x0], self.scores[y * self.columns + x1]);
            a + (b - a) * u
        };
        row(y0) + (row(y1) - row(y0)) * v
    }
}

/// The two of `n` cells whose centres enclose `part` (0..=1) of the whole, and the weight of the second.
fn neighbours(part: f32, n: usize) -> (usize, usize, f32) {
    let place = (part * n as f32 - 0.5).clamp(0.0, (n - 1) as f32);
    let low = place as usize;
    (low, (low + 1).min(n - 1), place - low as f32)
}

/// A picture with scores and boxes to paint on it.
#[derive(Clone, Copy, Debug)]
pub struct HeatMap<'a> {
    /// The radiograph.
    pub picture: &'a Picture,
    /// `[x, y, width, height]` in the picture's pixels: the part that the grid covers, which may reach outside; what lies around it is
    /// darkened. `None`: all of it.
    pub seen: Option<[f64; 4]>,
    /// Patch scores; `None` shows the radiograph alone.
    pub grid: Option<&'a Grid>,
    /// `[x, y, width, height]` in the picture's pixels; what lies outside is cut off.
    pub boxes: &'a [[f64; 4]],
    /// Bilinear between patches instead of blocks.
    pub smooth: bool,
}

/// A radiograph at its own resolution, up to 1024 pixels, and what of it a model saw.
#[derive(Clone, Debug)]
pub struct Film {
    /// To paint on.
    pub picture: Picture,
    /// `[x, y, width, height]` in the picture's pixels, as [`HeatMap::seen`].
    pub seen: [f64; 4],
    /// The picture's pixels for one of the source, across and down.
    scale: [f64; 2],
}

impl Film {
    /// Most pixels of one.
    pub const LARGEST: u64 = (FILM * FILM) as u64;

    /// Of a source and the part of it that the model saw, in its own pixels.
    pub fn new(source: &Picture, seen: [f64; 4]) -> Self {
        let longer = source.width.max(source.height);
        let side = |x: usize| if longer > FILM { (x * FILM / longer).max(1) } else { x };
        let picture = resize(source, side(source.width), side(source.height), Filter::Bilinear).into_owned();
        let scale = [picture.width as f64 / source.width as f64, picture.height as f64 / source.height as f64];
        let film = Self { picture, seen, scale };
        Self { seen: film.place(seen), ..film }
    }

    /// Where a box of the source lies.
    pub fn place(&self, [x, y, width, height]: [f64; 4]) -> [f64; 4] {
        let [across, down] = self.scale;
        [x * across, y * down, width * across, height * down]
    }
}

/// Longest side of a film, in pixels.
const FILM: usize = 1024;
/// Longer side, in pixels, that smaller pictures are enlarged to.
const SHOWN: usize = 448;
/// Most that a heat map covers of the radiograph.
const OPAQUE: f32 = 0.8;
/// How much what the model did not see is darkened.
const UNSEEN: f32 = 0.5;

impl HeatMap<'_> {
    /// The painted RGB picture, a whole number of times as large as the source; `scale` is the |score| of the map's ends.
    pub fn paint(&self, scale: f32) -> Result<Picture> {
        let source = self.picture;
        check(source)?;
        let zoom = zoom(source);
        let (width, height) = (source.width * zoom, source.height * zoom);
        let seen = self.seen.unwrap_or([0.0, 0.0, source.width as f64, source.height as f64]);
        // Of every row and column: which of the picture's it lies between, and its place in the grid as a part of that.
        let places = |n: usize, from: usize, start: f64, size: f64| -> Vec<(Between, f32)> {
            let place = |i: usize| {
                let part = (i as f32 + 0.5) / n as f32;
                (neighbours(part, from), ((f64::from(part) * from as f64 - start) / size) as f32)
            };
            (0..n).map(place).collect()
        };
        let columns = places(width, source.width, seen[0], seen[2]);
        let mut pixels = Vec::with_capacity(width * height * 3);
        for (row, v) in places(height, source.height, seen[1], seen[3]) {
            for &(column, u) in &columns {
                let under = sample(source, row, column);
                pixels.extend(match self.grid {
                    None => under,
                    Some(_) if ![u, v].iter().all(|part| (0.0..=1.0).contains(part)) => {
                        colour::blend(under, [0; 3], UNSEEN)
                    }
                    Some(grid) => {
                        let score = if scale > 0.0 { grid.at(v, u, self.smooth) / scale } else { 0.0 }.clamp(-1.0, 1.0);
                        colour::blend(under, colour::diverging(score), OPAQUE * score.abs())
                    }
                });
            }
        }
        let mut painted = Picture { width, height, channels: 3, pixels };
        self.boxes.iter().for_each(|bbox| outline(&mut painted, bbox.map(|v| v * zoom as f64)));
        Ok(painted)
    }
}

/// The scale that heat maps to be compared share: their largest |score|, or 1 if every score is zero.
pub fn shared_scale<'a>(grids: impl IntoIterator<Item = &'a Grid>) -> f32 {
    let largest = grids.into_iter().fold(0.0f32, |most, grid| most.max(grid.largest()));
    if largest > 0.0 { largest } else { 1.0 }
}

/// Heat maps side by side on one scale (their own where `None`), each under its caption, with a colour bar, as PNG.
/// One panel is a heat map of its own; three make a row x-ray | unregularised | TIER.
pub fn figure(panels: &[(&str, HeatMap)], title: &str, scale: Option<f32>) -> Result<Vec<u8>> {
    let scale = match scale {
        Some(scale) if !(scale.is_finite() && scale > 0.0) => {
            return Err(Error::usage(format!("the scale of a heat map must be above zero, not {scale}")));
        }
        Some(scale) => scale,
        None => shared_scale(panels.iter().filter_map(|p| p.1.grid)),
    };
    let painted: Vec<Picture> = panels.iter().map(|p| p.1.paint(scale)).collect::<Result<_>>()?;
    let (margin, gap, bar) = (16, 12, if panels.iter().any(|p| p.1.grid.is_some()) { 92 } else { 0 });
    let head =
        margin + if title.is_empty() { 0 } else { 26 } + if panels.iter().any(|p| !p.0.is_empty()) { 24 } else { 0 };
    let tall = painted.iter().map(|p| p.height).max().unwrap_or(0);
    let wide = painted.iter().map(|p| p.width + gap).sum::<usize>();
    let (width, height) = (2 * margin + wide + bar, head + tall + margin);
    let mut sheet = Drawing::new(width as f64, height as f64);
    let mut canvas = Picture { width, height, channels: 3, pixels: vec![255; width * height * 3] };
    if !title.is_empty() {
        let (x, size) = (margin as f64, 17.0);
        let title = fit(title, (width - 2 * margin) as f64, size);
        sheet.text((x, margin as f64 + 8.0), title, size, INK, Anchor::Left);
    }
    let mut x = margin;
    for (picture, (caption, _)) in painted.iter().zip(panels) {
        paste(&mut canvas, picture, x, head);
        let text = fit(caption, picture.width as f64, 14.0);
        sheet.text((x as f64, head as f64 - 12.0), text, 14.0, MUTED, Anchor::Left);
        x += picture.width + gap;
    }
    if bar > 0 {
        colour_bar(&mut sheet, (x as f64 + 4.0, head as f64), tall as f64, scale);
    }
    drawing::png(&sheet.over(&canvas)?)
}

/// The scale's number with three digits.
pub fn short(value: f32) -> String {
    let decimals = if value == 0.0 { 0 } else { (2 - value.abs().log10().floor() as i32).clamp(0, 6) as usize };
    format!("{value:.decimals$}").replace('-', "\u{2212}")
}

fn colour_bar(sheet: &mut Drawing, (x, top): (f64, f64), height: f64, scale: f32) {
    let (steps, wide) = (128, 18.0);
    for i in 0..steps {
        let value = 1.0 - 2.0 * (i as f32 + 0.5) / steps as f32;
        let (from, to) = (top + height * f64::from(i) / 128.0, top + height * f64::from(i + 1) / 128.0);
        let (y, height) = (from, to - from);
        sheet.marks.push(Mark::Rect { x, y, width: wide, height, colour: colour::diverging(value), opacity: 1.0 });
    }
    for i in -2..=2 {
        let value = i as f32 / 2.0;
        let y = (top + height * (1.0 - f64::from(value)) / 2.0).clamp(top + 6.0, top + height - 6.0);
        let sign = if i > 0 { "+" } else { "" };
        sheet.text((x + wide + 7.0, y), format!("{sign}{}", short(value * scale)), 13.0, INK, Anchor::Left);
    }
}

fn fit(text: &str, room: f64, size: f64) -> String {
    if drawing::text_width(text, size) <= room {
        return text.to_string();
    }
    let mut short: String = text.to_string();
    while !short.is_empty() && drawing::text_width(&short, size) + size > room {
        short.pop();
    }
    short + "\u{2026}"
}

fn check(picture: &Picture) -> Result<()> {
    let Picture { width, height, channels, pixels } = picture;
    if *width == 0 || *height == 0 || !matches!(channels, 1 | 3) || pixels.len() != width * height * channels {
        return Err(Error::new(format!(
            "a picture of {width}x{height} with {channels} channels and {} values cannot be painted on",
            pixels.len()
        )));
    }
    Ok(())
}

/// How many times a picture is enlarged, so that a small one can be looked at.
fn zoom(picture: &Picture) -> usize {
    let longer = picture.width.max(picture.height);
    if longer >= SHOWN * 2 / 3 { 1 } else { SHOWN.div_ceil(longer) }
}

type Between = (usize, usize, f32);

fn sample(picture: &Picture, (y0, y1, v): Between, (x0, x1, u): Between) -> Colour {
    let at = |y: usize, x: usize, c: usize| f32::from(picture.pixels[(y * picture.width + x) * picture.channels + c]);
    let value = |c: usize| {
        let row = |y| at(y, x0, c) + (at(y, x1, c) - at(y, x0, c)) * u;
        (row(y0) + (row(y1) - row(y0)) * v).round() as u8
    };
    if picture.channels == 1 { [value(0); 3] } else { std::array::from_fn(value) }
}

/// A white line of two pixels along the box's edge with a dark one on both sides: seen on any background.
fn outline(picture: &mut Picture, [x, y, width, height]: [f64; 4]) {
    let (left, top, right, bottom) = (x.round(), y.round(), (x + width).round(), (y + height).round());
    for (reach, value) in [(2.0, 0u8), (1.0, 255)] {
        let mut fill = |x0: f64, y0: f64, x1: f64, y1: f64| {
            let clamp = |v: f64, most: usize| v.clamp(0.0, most as f64) as usize;
            let columns = clamp(x0, picture.width)..clamp(x1, picture.width);
            for y in clamp(y0, picture.height)..clamp(y1, picture.height) {
                picture.pixels[(y * picture.width + columns.start) * 3..(y * picture.width + columns.end) * 3]
                    .fill(value);
            }
        };
        for edge in [top, bottom] {
            fill(left - reach, edge - reach, right + reach, edge + reach);
        }
        for edge in [left, right] {
            fill(edge - reach, top - reach, edge + reach, bottom + reach);
        }
    }
}

fn paste(canvas: &mut Picture, picture: &Picture, x: usize, y: usize) {
    for row in 0..picture.height {
        let to = ((y + row) * canvas.width + x) * 3;
        let from = row * picture.width * 3;
        canvas.pixels[to..to + picture.width * 3].copy_from_slice(&picture.pixels[from..from + picture.width * 3]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grey(width: usize, height: usize, value: u8) -> Picture {
        Picture { width, height, channels: 1, pixels: vec![value; width * height] }
    }

    fn at(picture: &Picture, x: usize, y: usize) -> Colour {
        std::array::from_fn(|c| picture.pixels[(y * picture.width + x) * 3 + c])
    }

    #[test]
    fn zero_leaves_the_radiograph_and_the_ends_tint_it() {
        let picture = grey(64, 64, 100);
        let grid = Grid::new(1, 3, vec![-2.0, 0.0, 2.0]).unwrap();
        let map = HeatMap { picture: &picture, seen: None, grid: Some(&grid), boxes: &[], smooth: false };
        let painted = map.paint(2.0).unwrap();
        let (w, h) = (painted.width, painted.height);
        assert_eq!((w, h), (448, 448));
        assert_eq!(at(&painted, w / 2, h / 2), [100; 3]);
        assert_eq!(at(&painted, 5, 5), colour::blend([100; 3], colour::LOWEST, OPAQUE));
        assert_eq!(at(&painted, w - 5, 5), colour::blend([100; 3], colour::HIGHEST, OPAQUE));
        // A wider scale means a weaker tint; a score beyond the scale is the end's colour.
        assert_ne!(map.paint(8.0).unwrap(), painted);
        assert_eq!(at(&map.paint(1.0).unwrap(), 5, 5), at(&painted, 5, 5));
    }

    #[test]
    fn a_grid_covers_what_the_model_saw() {
        let picture = grey(448, 500, 100);
        let grid = Grid::new(1, 2, vec![-1.0, 1.0]).unwrap();
        let seen = Some([48.0, 100.0, 500.0, 300.0]);
        let painted =
            HeatMap { picture: &picture, seen, grid: Some(&grid), boxes: &[], smooth: false }.paint(1.0).unwrap();
        let (low, high) =
            (colour::blend([100; 3], colour::LOWEST, OPAQUE), colour::blend([100; 3], colour::HIGHEST, OPAQUE));
        for (x, y, expected) in [
            (47, 200, [50; 3]),
            (200, 99, [50; 3]),
            (200, 400, [50; 3]),
            (48, 100, low),
            (297, 399, low),
            (298, 100, high),
            (447, 399, high),
        ] {
            assert_eq!(at(&painted, x, y), expected, "{x} {y}");
        }
    }

    #[test]
    fn a_film_keeps_its_resolution_up_to_a_limit() {
        let small = Film::new(&grey(448, 500, 100), [1.0, 2.0, 3.0, 4.0]);
        assert_eq!((small.picture.width, small.picture.height, small.seen), (448, 500, [1.0, 2.0, 3.0, 4.0]));
        let large = Film::new(&grey(4096, 1024, 100), [0.0, -8.0, 1024.0, 1024.0]);
        assert_eq!((large.picture.width, large.picture.height, large.seen), (1024, 256, [0.0, -2.0, 256.0, 256.0]));
        assert_eq!(large.place([4.0, 8.0, 40.0, 80.0]), [1.0, 2.0, 10.0, 20.0]);
    }

    #[test]
    fn smooth_maps_pass_through_the_patch_centres() {
        let grid = Grid::new(2, 2, vec![0.0, 1.0, 2.0, 3.0]).unwrap();
        for (y, x, value) in [(0.25, 0.25, 0.0), (0.25, 0.75, 1.0), (0.75, 0.25, 2.0), (0.5, 0.5, 1.5), (0.0, 1.0, 1.0)]
        {
            assert_eq!(grid.at(y, x, true), value);
        }
        assert_eq!(grid.at(0.49, 0.51, false), 1.0);
    }

    #[test]
    fn a_box_is_drawn_along_its_edge_and_cut_at_the_border() {
        let picture = grey(448, 448, 60);
        let boxes = [[100.0, 50.0, 200.0, 120.0]];
        let painted =
            HeatMap { picture: &picture, seen: None, grid: None, boxes: &boxes, smooth: true }.paint(1.0).unwrap();
        for (x, y) in [(100, 50), (299, 169), (100, 100), (200, 169), (300, 60)] {
            assert_eq!(at(&painted, x, y), [255; 3], "{x} {y}");
        }
        for (x, y) in [(97, 100), (103, 100), (200, 100), (200, 174), (303, 100)] {
            assert_eq!(at(&painted, x, y), [60; 3], "{x} {y}");
        }
        let wild = [[-1e9, -5.0, 2e9, 20.0], [f64::NAN; 4], [500.0, 500.0, 10.0, 10.0]];
        HeatMap { picture: &picture, seen: None, grid: None, boxes: &wild, smooth: true }.paint(1.0).unwrap();
    }

    #[test]
    fn a_row_shares_one_scale_and_repeats_to_the_byte() {
        let picture = grey(112, 96, 80);
        let (weak, strong) = (Grid::new(1, 1, vec![0.1]).unwrap(), Grid::new(1, 1, vec![-0.4]).unwrap());
        let map = |grid| HeatMap { picture: &picture, seen: None, grid, boxes: &[], smooth: true };
        let panels = [("x-ray", map(None)), ("unregularised", map(Some(&weak))), ("TIER", map(Some(&strong)))];
        let draw = || figure(&panels, "Consolidation", None).unwrap();
        assert_eq!(draw(), draw());
        assert_eq!(shared_scale([&weak, &strong]), 0.4);
        let shown = ::image::load_from_memory(&draw()).unwrap().to_rgb8();
        let (head, wide) = (16 + 26 + 24, 448 + 12);
        assert_eq!(shown.get_pixel(16 + 200, head + 200).0, [80; 3]);
        assert_eq!(
            shown.get_pixel(16 + wide + 200, head + 200).0,
            colour::blend([80; 3], colour::diverging(0.25), OPAQUE * 0.25)
        );
        assert_eq!(shown.get_pixel(16 + 2 * wide + 200, head + 200).0, colour::blend([80; 3], colour::LOWEST, OPAQUE));
        assert!(figure(&panels, "", Some(0.0)).is_err());
        assert!(figure(&[], "", None).is_ok());
    }

    #[test]
    fn what_cannot_be_painted_is_an_error() {
        assert!(Grid::new(2, 2, vec![0.0; 3]).is_err());
        assert!(Grid::new(0, 2, vec![]).is_err());
        let error = Grid::new(2, 2, vec![0.0, 0.0, f32::NAN, 0.0]).unwrap_err().to_string();
        assert!(error.contains("row 1, column 0"), "{error}");
        let broken = Picture { width: 4, height: 4, channels: 1, pixels: vec![0; 3] };
        assert!(HeatMap { picture: &broken, seen: None, grid: None, boxes: &[], smooth: true }.paint(1.0).is_err());
    }
}
