//! From attenuation to a film: exposure, scatter, blur, quantum noise, the detector's curve, collimation, the side marker.

use super::canvas::{Brush, Knot, Profile, View, blur, mix, step};
use super::plan::Side;
use crate::rng::Rng;

/// How one film was taken and processed.
#[derive(Clone, Debug)]
pub(super) struct Technique {
    /// Shares of the film's side that the collimator covers: left, top, right, bottom.
    shutters: [f32; 4],
    /// Slant of the collimator's edges.
    slant: f32,
    /// Brightness of what the collimator covers, 0 to 1.
    covered: f32,
    /// Scattered over primary radiation.
    scatter: f32,
    /// Quanta per pixel of 0.15 cm in free air.
    quanta: f32,
    /// Unsharpness, cm.
    unsharp: f32,
    /// Bends the curve: above 1 darker lungs, below 1 lighter.
    gamma: f32,
    /// Gain of structures against their surroundings.
    detail: f32,
    /// Places of the darkest and the brightest body parts on the curve, 0 to 1.
    window: [f32; 2],
    /// Steepness of the curve's middle.
    contrast: f32,
    /// Fall of exposure towards the corners.
    vignette: f32,
    /// Side and place (share of the film) of the marker.
    marker: (Side, [f32; 2], f32),
}

impl Technique {
    pub fn draw(rng: &mut Rng) -> Self {
        let closed = rng.chance(0.45);
        let mut range = |low: f64, high: f64| rng.range(low, high) as f32;
        let mut shutter = || Some(range(-0.02, 0.045)).filter(|share| closed && *share > 0.008).unwrap_or(0.0);
        let shutters = [shutter(), shutter(), shutter(), shutter()];
        let side = if range(0.0, 1.0) < 0.5 { Side::Right } else { Side::Left };
        let inset = range(0.045, 0.1);
        let x = if side == Side::Right { inset } else { 1.0 - inset };
        Self {
            shutters,
            slant: range(-0.015, 0.015),
            covered: if range(0.0, 1.0) < 0.97 { range(0.0, 0.03) } else { range(0.9, 1.0) },
            scatter: range(0.3, 0.8),
            quanta: range(90_000.0, 250_000.0),
            unsharp: range(0.04, 0.085),
            detail: range(0.35, 0.8),
            gamma: range(0.88, 1.15),
            window: [range(0.06, 0.12), range(0.88, 0.96)],
            contrast: range(1.0, 1.8),
            vignette: range(0.0, 0.08),
            marker: (side, [x, range(0.05, 0.26)], range(0.75, 1.0)),
        }
    }

    /// Whether the collimator leaves a pixel open.
    pub fn open(&self, pixel: usize, size: usize) -> bool {
        let (x, y) = ((pixel % size) as f32 / size as f32, (pixel / size) as f32 / size as f32);
        let (u, v) = (x + self.slant * (y - 0.5), y - self.slant * (x - 0.5));
        let [left, top, right, bottom] = self.shutters;
        let covers = |shutter: f32, place: f32| shutter > 0.0 && place < shutter;
        !(covers(left, u) || covers(top, v) || covers(right, 1.0 - u) || covers(bottom, 1.0 - v))
    }

    /// Exposes a film: 16-bit values, dense parts bright.
    pub fn expose(&self, mut attenuation: Vec<f32>, view: &View, rng: &mut Rng) -> Vec<u16> {
        let size = view.size;
        self.lay_marker(view, rng, &mut attenuation);
        // Beer and Lambert; what the body scatters is the primary picture, spread widely (the air beside it scatters nothing).
        let mut primary: Vec<f32> = attenuation.iter().map(|a| libm::expf(-a)).collect();
        blur(&mut primary, size, self.unsharp / view.cm);
        let mut scattered: Vec<f32> = primary.iter().map(|p| p.min(0.12)).collect();
        blur(&mut scattered, size, 3.4 / view.cm);
        // Quanta per pixel fall with its area; half of the noise is spread over neighbours by the detector.
        let quanta = self.quanta * (view.cm / 0.15) * (view.cm / 0.15);
        let white: Vec<f32> = (0..size * size).map(|_| bell(rng)).collect();
        let mut soft = white.clone();
        blur(&mut soft, size, 0.85);
        let half = 0.5 * size as f32;
        let mut density: Vec<f32> = (0..size * size)
            .map(|pixel| {
                let (dx, dy) = ((pixel % size) as f32 / half - 1.0, (pixel / size) as f32 / half - 1.0);
                let exposure = (primary[pixel] + 0.4 * self.scatter * scattered[pixel])
                    * (1.0 - self.vignette * 0.5 * (dx * dx + dy * dy));
                let noise = (0.55 * white[pixel] + 1.1 * soft[pixel]) / (quanta * exposure).sqrt();
                -libm::logf(exposure.max(1e-6)) + noise
            })
            .collect();
        let mut around = density.clone();
        blur(&mut around, size, 2.2 / view.cm);
        for (d, a) in density.iter_mut().zip(&around) {
            *d += self.detail * (*d - a) - 0.12 * self.detail * (a - 2.5);
        }
        let [dark, bright] = self.anchors(&density, size);
        let scale = (self.window[1] - self.window[0]) / (bright - dark).max(0.1);
        density
            .iter()
            .enumerate()
            .map(|(pixel, d)| {
                let linear = self.window[0] + scale * (d - dark);
                let mut value = self.curve(linear);
                if !self.open(pixel, size) {
                    value = self.covered;
                }
                (value.clamp(0.0, 1.0) * 65535.0 + 0.5) as u16
            })
            .collect()
    }

    /// A sigmoid through (0, 0) and (1, 1).
    fn curve(&self, x: f32) -> f32 {
        let logistic = |x: f32| 1.0 / (1.0 + libm::expf(-self.contrast * 2.0 * (x - 0.5)));
        let (low, high) = (logistic(0.0), logistic(1.0));
        libm::powf(((logistic(x.clamp(-0.5, 1.5)) - low) / (high - low)).max(0.0), self.gamma)
    }

    /// The densities of the darkest and the brightest hundredth of the film's open middle.
    fn anchors(&self, density: &[f32], size: usize) -> [f32; 2] {
        let margin = size / 8;
        let mut middle: Vec<f32> = (margin..size - margin)
            .flat_map(|row| &density[row * size + margin..(row + 1) * size - margin])
            .copied()
            .collect();
        middle.sort_unstable_by(f32::total_cmp);
        if middle.is_empty() {
            return [0.0, 1.0];
        }
        let at = |share: f32| middle[((middle.len() - 1) as f32 * share) as usize];
        [at(0.02), at(0.985)]
    }

    /// A lead letter, as strokes.
    fn lay_marker(&self, view: &View, rng: &mut Rng, attenuation: &mut [f32]) {
        let (side, place, size) = self.marker;
        let letter: &[&[[f32; 2]]] = match side {
            Side::Right => &[
                &[[-0.5, 1.0], [-0.5, -1.0], [0.15, -1.0], [0.5, -0.75], [0.5, -0.25], [0.15, 0.0], [-0.5, 0.0]],
                &[[0.0, 0.0], [0.55, 1.0]],
            ],
            Side::Left => &[&[[-0.45, -1.0], [-0.45, 1.0], [0.5, 1.0]]],
        };
        let angle = rng.range(-0.15, 0.15) as f32;
        let (c, s) = (libm::cosf(angle), libm::sinf(angle));
        let film = view.size as f32;
        let centre = [place[0] * film, place[1] * film];
        let mut brush = Brush::new(view);
        for stroke in letter {
            let knots: Vec<Knot> = stroke
                .iter()
                .map(|[u, v]| {
                    let (dx, dy) = (size * (u * c - v * s) / view.cm, size * (u * s + v * c) / view.cm);
                    let (column, row) = (centre[0] + dx - 0.5 * film, centre[1] + dy - 0.5 * film);
                    let [tc, ts] = view.tilt;
                    let at = [
                        view.centre[0] + (column * tc + row * ts) * view.cm,
                        view.centre[1] + (row * tc - column * ts) * view.cm,
                    ];
                    Knot { at, half: 0.17, weight: 1.0 }
                })
                .collect();
            // Lead stops nearly all of the beam.
            brush.tube(&knots, Profile::Solid, |p, a| attenuation[p] = mix(attenuation[p], 5.6, step(0.1, 0.7, a)));
        }
    }
}

/// About a standard normal, from four bytes: cheap, and the same everywhere.
fn bell(rng: &mut Rng) -> f32 {
    let bits = rng.next_u32();
    let sum: u32 = (0..4).map(|i| (bits >> (8 * i)) & 255).sum();
    (sum as f32 - 510.0) * (1.0 / 147.8)
}
