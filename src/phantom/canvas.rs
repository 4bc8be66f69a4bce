//! Drawing tools: the view from film pixels to the patient, smooth curves, tubes, discs, noise and blur.
//!
//! Lengths are centimetres in the patient's plane: x grows to the image's right (the patient's left) from the midline, y grows
//! downwards from the lung apices. Only IEEE arithmetic, square roots and `libm`: the same bits on every platform.

use crate::rng::Rng;

/// Where the film lies over the patient.
#[derive(Clone, Debug)]
pub(super) struct View {
    /// Pixels per side.
    pub size: usize,
    /// Centimetres per pixel.
    pub cm: f32,
    /// Cosine and sine of the tilt in the film's plane.
    pub tilt: [f32; 2],
    /// Patient coordinates of the film's centre.
    pub centre: [f32; 2],
}

impl View {
    /// Patient coordinates of a pixel's centre.
    pub fn patient(&self, column: usize, row: usize) -> [f32; 2] {
        let half = self.size as f32 * 0.5;
        let (dx, dy) = ((column as f32 + 0.5 - half) * self.cm, (row as f32 + 0.5 - half) * self.cm);
        let [c, s] = self.tilt;
        [self.centre[0] + dx * c + dy * s, self.centre[1] - dx * s + dy * c]
    }

    /// Film coordinates (in pixels, pixel centres at whole numbers) of a place in the patient.
    pub fn film(&self, [x, y]: [f32; 2]) -> [f32; 2] {
        let half = self.size as f32 * 0.5;
        let (dx, dy) = ((x - self.centre[0]) / self.cm, (y - self.centre[1]) / self.cm);
        let [c, s] = self.tilt;
        [dx * c - dy * s + half - 0.5, dx * s + dy * c + half - 0.5]
    }

    /// Columns and rows that a disc of `radius` around `place` can touch.
    fn window(&self, place: [f32; 2], radius: f32) -> [std::ops::Range<usize>; 2] {
        let reach = radius / self.cm + 1.0;
        self.film(place).map(|p| self.clip(p - reach)..self.clip(p + reach + 1.0))
    }

    fn clip(&self, pixel: f32) -> usize {
        pixel.clamp(0.0, self.size as f32) as usize
    }

    /// Calls `paint(pixel, squared distance)` for every pixel inside an ellipse; the distance is 1 on its edge.
    pub fn ellipse(&self, centre: [f32; 2], radii: [f32; 2], angle: f32, mut paint: impl FnMut(usize, f32)) {
        let (c, s) = (libm::cosf(angle), libm::sinf(angle));
        let [columns, rows] = self.window(centre, radii[0].max(radii[1]));
        for row in rows {
            for column in columns.clone() {
                let [x, y] = self.patient(column, row);
                let (dx, dy) = (x - centre[0], y - centre[1]);
                let (u, v) = ((dx * c + dy * s) / radii[0], (dy * c - dx * s) / radii[1]);
                let squared = u * u + v * v;
                if squared < 1.0 {
                    paint(row * self.size + column, squared);
                }
            }
        }
    }
}

/// A point of a tube's centre line.
#[derive(Clone, Copy, Debug)]
pub(super) struct Knot {
    /// Place in the patient.
    pub at: [f32; 2],
    /// Half of the width there.
    pub half: f32,
    /// Attenuation at the centre of a solid tube there.
    pub weight: f32,
}

/// How a tube attenuates across its width; r is the distance from the centre line, 1 at the edge.
#[derive(Clone, Copy, Debug)]
pub(super) enum Profile {
    /// A full cylinder: the chord.
    Solid,
    /// A cylinder with a wall of this relative thickness, partly filled: bright edges.
    Shell(f32),
    /// A bell without edges.
    Soft,
}

impl Profile {
    fn at(self, r: f32) -> f32 {
        let solid = (1.0 - r * r).max(0.0);
        match self {
            Profile::Solid => solid.sqrt(),
            Profile::Shell(wall) => {
                let inner = r / (1.0 - wall);
                solid.sqrt() - 0.62 * (1.0 - wall) * (1.0 - inner * inner).max(0.0).sqrt()
            }
            Profile::Soft => solid * solid,
        }
    }
}

/// Draws tubes so that the joints of their pieces count once.
pub(super) struct Brush<'v> {
    view: &'v View,
    near: Vec<f32>,
    weight: Vec<f32>,
}

impl<'v> Brush<'v> {
    pub fn new(view: &'v View) -> Self {
        let pixels = view.size * view.size;
        Self { view, near: vec![f32::MAX; pixels], weight: vec![0.0; pixels] }
    }

    /// Calls `paint(pixel, attenuation)` for every pixel of the tube along `knots`.
    pub fn tube(&mut self, knots: &[Knot], profile: Profile, mut paint: impl FnMut(usize, f32)) {
        let size = self.view.size;
        let (mut low, mut high) = ([size; 2], [0; 2]);
        // A tube thinner than a pixel is widened and weakened: the same area, no gaps.
        let thinnest = 0.8f32;
        for pair in knots.windows(2) {
            let [[ax, ay], [bx, by]] = [self.view.film(pair[0].at), self.view.film(pair[1].at)];
            let halves = [pair[0].half, pair[1].half].map(|h| h / self.view.cm);
            let reach = halves[0].max(halves[1]).max(thinnest);
            let columns = self.view.clip(ax.min(bx) - reach)..self.view.clip(ax.max(bx) + reach + 1.0);
            let rows = self.view.clip(ay.min(by) - reach)..self.view.clip(ay.max(by) + reach + 1.0);
            if columns.is_empty() || rows.is_empty() {
                continue;
            }
            low = [low[0].min(columns.start), low[1].min(rows.start)];
            high = [high[0].max(columns.end), high[1].max(rows.end)];
            let (dx, dy) = (bx - ax, by - ay);
            let length = (dx * dx + dy * dy).max(1e-9);
            for row in rows {
                for column in columns.clone() {
                    let (px, py) = (column as f32 - ax, row as f32 - ay);
                    let along = ((px * dx + py * dy) / length).clamp(0.0, 1.0);
                    let (ex, ey) = (px - along * dx, py - along * dy);
                    let half = halves[0] + along * (halves[1] - halves[0]);
                    let wide = half.max(thinnest);
                    let r = (ex * ex + ey * ey).sqrt() / wide;
                    let pixel = row * size + column;
                    if r < 1.0 && r < self.near[pixel] {
                        self.near[pixel] = r;
                        let weight = pair[0].weight + along * (pair[1].weight - pair[0].weight);
                        self.weight[pixel] = weight * (half / wide).min(1.0);
                    }
                }
            }
        }
        for row in low[1]..high[1] {
            for pixel in row * size + low[0]..row * size + high[0] {
                if self.near[pixel] < 1.0 {
                    paint(pixel, self.weight[pixel] * profile.at(self.near[pixel]));
                    self.near[pixel] = f32::MAX;
                }
            }
        }
    }
}

/// A smooth curve through `knots` (corners rounded by Catmull-Rom tangents), resampled often enough for linear look-up.
pub(super) fn smooth(knots: &[Knot], pieces: usize) -> Vec<Knot> {
    let mut curve = Vec::with_capacity(knots.len() * pieces);
    for i in 0..knots.len().saturating_sub(1) {
        let [a, b, c, d] = [i.saturating_sub(1), i, i + 1, (i + 2).min(knots.len() - 1)].map(|j| knots[j]);
        for piece in 0..pieces {
            let t = piece as f32 / pieces as f32;
            let cubic = |a: f32, b: f32, c: f32, d: f32| {
                let (m0, m1) = ((c - a) * 0.5, (d - b) * 0.5);
                let (t2, t3) = (t * t, t * t * t);
                b * (2.0 * t3 - 3.0 * t2 + 1.0) + m0 * (t3 - 2.0 * t2 + t) + c * (3.0 * t2 - 2.0 * t3) + m1 * (t3 - t2)
            };
            curve.push(Knot {
                at: [0, 1].map(|k| cubic(a.at[k], b.at[k], c.at[k], d.at[k])),
                half: b.half + t * (c.half - b.half),
                weight: b.weight + t * (c.weight - b.weight),
            });
        }
    }
    curve.extend(knots.last());
    curve
}

/// A function of one variable through given points, as a table.
#[derive(Clone, Debug)]
pub(super) struct Curve {
    start: f32,
    values: Vec<f32>,
}

impl Curve {
    const STEPS_PER_CM: f32 = 8.0;

    /// A smooth curve through `(x, y)` points with growing x; constant outside them.
    pub fn through(points: &[(f32, f32)]) -> Self {
        let slope = |i: usize| {
            let (a, b) = (points[i.saturating_sub(1)], points[(i + 1).min(points.len() - 1)]);
            (b.1 - a.1) / (b.0 - a.0)
        };
        let mut piece = 0;
        Self::of(points[0].0, points[points.len() - 1].0, |x| {
            while piece + 2 < points.len() && x > points[piece + 1].0 {
                piece += 1;
            }
            let ((x0, y0), (x1, y1)) = (points[piece], points[piece + 1]);
            let (width, t) = (x1 - x0, ((x - x0) / (x1 - x0)).clamp(0.0, 1.0));
            let (t2, t3) = (t * t, t * t * t);
            y0 * (2.0 * t3 - 3.0 * t2 + 1.0)
                + y1 * (3.0 * t2 - 2.0 * t3)
                + width * (slope(piece) * (t3 - 2.0 * t2 + t) + slope(piece + 1) * (t3 - t2))
        })
    }

    /// The table of a function between two places.
    pub fn of(start: f32, end: f32, mut f: impl FnMut(f32) -> f32) -> Self {
        let steps = ((end - start) * Self::STEPS_PER_CM) as usize + 2;
        Self { start, values: (0..steps).map(|i| f(start + i as f32 / Self::STEPS_PER_CM)).collect() }
    }

    /// The value at `x`.
    pub fn at(&self, x: f32) -> f32 {
        let place = ((x - self.start) * Self::STEPS_PER_CM).clamp(0.0, (self.values.len() - 1) as f32);
        let i = (place as usize).min(self.values.len() - 2);
        self.values[i] + (place - i as f32) * (self.values[i + 1] - self.values[i])
    }
}

/// Smooth random values in the patient's plane, about -1 to 1, with features of a given size.
pub(super) struct Noise {
    cells_per_cm: f32,
    side: usize,
    values: Vec<f32>,
}

impl Noise {
    pub fn new(rng: &mut Rng, feature: f32) -> Self {
        let side = (60.0 / feature) as usize + 2;
        let values = (0..side * side).map(|_| 2.0 * (rng.next_u32() as f32 / u32::MAX as f32) - 1.0).collect();
        Self { cells_per_cm: 1.0 / feature, side, values }
    }

    pub fn at(&self, [x, y]: [f32; 2]) -> f32 {
        let last = (self.side - 2) as f32;
        let (u, v) = ((x + 30.0) * self.cells_per_cm, (y + 18.0) * self.cells_per_cm);
        let (u, v) = (u.clamp(0.0, last), v.clamp(0.0, last));
        let (i, j) = (u as usize, v as usize);
        let ease = |t: f32| t * t * (3.0 - 2.0 * t);
        let (s, t) = (ease(u - i as f32), ease(v - j as f32));
        let at = |i: usize, j: usize| self.values[j * self.side + i];
        let top = at(i, j) + s * (at(i + 1, j) - at(i, j));
        let bottom = at(i, j + 1) + s * (at(i + 1, j + 1) - at(i, j + 1));
        top + t * (bottom - top)
    }
}

/// 0 below `low`, 1 above `high`, smooth between.
pub(super) fn step(low: f32, high: f32, x: f32) -> f32 {
    let t = ((x - low) / (high - low)).clamp(0.0, 1.0);
    t * t * (3.0 - 2.0 * t)
}

/// A straight mix of two values.
pub(super) fn mix(a: f32, b: f32, t: f32) -> f32 {
    a + (b - a) * t
}

/// Blurs a square picture by about a Gaussian of `sigma` pixels: three running means each way, edges repeated.
pub(super) fn blur(picture: &mut Vec<f32>, size: usize, sigma: f32) {
    // The variance of three means of width 2r+1 is ((2r+1)^2 - 1) / 4.
    let radius = (((4.0 * sigma * sigma + 1.0).sqrt() - 1.0) * 0.5 + 0.5) as usize;
    let radius = radius.min(size.saturating_sub(1) / 2);
    if radius == 0 {
        return;
    }
    let mut other = vec![0.0; picture.len()];
    for _ in 0..3 {
        // Along rows, written transposed; twice gives rows and columns.
        for _ in 0..2 {
            for (row, line) in picture.chunks_exact(size).enumerate() {
                let at = |i: isize| line[i.clamp(0, size as isize - 1) as usize];
                let mut sum: f64 = (-(radius as isize)..=radius as isize).map(|i| f64::from(at(i))).sum();
                let scale = 1.0 / (2 * radius + 1) as f64;
                for column in 0..size {
                    other[column * size + row] = (sum * scale) as f32;
                    let (leaves, enters) = (column as isize - radius as isize, (column + radius + 1) as isize);
                    sum += f64::from(at(enters)) - f64::from(at(leaves));
                }
            }
            std::mem::swap(picture, &mut other);
        }
    }
}
