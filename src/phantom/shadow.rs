//! The sum of a patient's attenuation along every beam, and where each finding shows in it.

use super::anatomy::{Anatomy, SIGNS};
use super::canvas::{Brush, Noise, View, step};
use super::findings::{Ready, Texture, band};
use super::plan::{Plan, Shape};
use super::{bones, devices, lungs};
use crate::rng::Rng;

/// Attenuation of a centimetre of water for a chest beam (about 120 kV, hardened), with the film's usual processing.
const WATER: f32 = 0.19;

/// A pixel belongs to a finding where the finding changes its attenuation by at least this much.
const VISIBLE: f32 = 0.075;

/// The pixels a shape covers, as bounds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    left: usize,
    top: usize,
    right: usize,
    bottom: usize,
}

impl Bounds {
    const NONE: Bounds = Bounds { left: usize::MAX, top: usize::MAX, right: 0, bottom: 0 };

    fn add(&mut self, column: usize, row: usize) {
        self.left = self.left.min(column);
        self.top = self.top.min(row);
        self.right = self.right.max(column + 1);
        self.bottom = self.bottom.max(row + 1);
    }

    /// `[x, y, width, height]` in pixels; `None` where nothing shows.
    pub fn bbox(&self) -> Option<[u32; 4]> {
        (self.right > self.left && self.bottom > self.top)
            .then(|| [self.left, self.top, self.right - self.left, self.bottom - self.top].map(|v| v as u32))
    }
}

/// The attenuation picture.
pub(super) struct Shadow {
    /// Sum of attenuation per pixel, rows of `view.size`.
    pub values: Vec<f32>,
    /// For each finding of the plan, the bounds of each of its shapes.
    pub bounds: Vec<Vec<Bounds>>,
}

/// Casts the shadow of a patient with the plan's findings; `seen(pixel)` tells what the collimator leaves open.
pub(super) fn cast(anatomy: &Anatomy, view: &View, plan: &Plan, rng: &mut Rng, seen: impl Fn(usize) -> bool) -> Shadow {
    let size = view.size;
    let texture = Texture { coarse: Noise::new(rng, 2.6), middle: Noise::new(rng, 1.1), fine: Noise::new(rng, 0.5) };
    let flesh = Noise::new(rng, 6.0);
    let mut range = |low: f64, high: f64| rng.range(low, high) as f32;
    let density = range(0.22, 0.31);
    let markings = range(0.02, 0.045);
    let breasts = anatomy.habitus.female.then(|| {
        let [width, thickness] = anatomy.habitus.breast;
        let y = anatomy.dome[0] - 4.6 + 0.5 * thickness + range(-1.2, 1.2);
        [0, 1].map(|i| ([SIGNS[i] * (8.0 + range(-0.5, 0.5)), y + range(-0.5, 0.5)], width, thickness))
    });
    let gas = gas(anatomy, rng);
    let mut range = |low: f64, high: f64| rng.range(low, high) as f32;
    let perfusion = range(0.6, 1.0);

    let ready: Vec<Vec<Option<Ready>>> = plan
        .findings
        .iter()
        .map(|finding| finding.shapes.iter().map(|shape| Ready::new(shape, anatomy, view.cm)).collect())
        .collect();
    let mut bounds: Vec<Vec<Bounds>> = ready.iter().map(|shapes| vec![Bounds::NONE; shapes.len()]).collect();
    let mut values = vec![0.0f32; size * size];
    // How much of what runs through the lung is seen against it, and how much of the lung is solid.
    let mut clear = vec![0.0f32; size * size];
    let mut filled = vec![0.0f32; size * size];

    for row in 0..size {
        for column in 0..size {
            let pixel = row * size + column;
            let place = view.patient(column, row);
            let [x, y] = place;
            let body = anatomy.body(place);
            if body == 0.0 {
                continue;
            }
            let air = anatomy.air(place);
            let mut tissue = body * (1.0 + 0.015 * flesh.at(place));
            let mut extra = 0.0;
            if air > 0.0 {
                let (mut solid, mut empty) = (0.0, 0.0);
                for (shapes, bounds) in ready.iter().zip(&mut bounds) {
                    for (shape, bounds) in shapes.iter().zip(bounds) {
                        let Some(shape) = shape else { continue };
                        let change = shape.at(anatomy, &texture, place, air);
                        solid = 1.0 - (1.0 - solid) * (1.0 - change.solid);
                        empty = 1.0 - (1.0 - empty) * (1.0 - change.empty);
                        tissue += change.water;
                        extra += change.line;
                        let shows = match shape {
                            Ready::FreeAir { .. } => change.empty > 0.5 && air > 1.2,
                            Ready::Round { .. } => change.water > 0.0,
                            _ => change.solid * air * (1.0 - density) * WATER > VISIBLE,
                        };
                        if shows && seen(pixel) {
                            bounds.add(column, row);
                        }
                    }
                }
                let grain = texture.middle.at(place) * 0.6 + texture.fine.at(place);
                let lung = (density + 0.05 * (y / anatomy.dome[0] - 0.5)) * (1.0 + 0.12 * texture.coarse.at(place));
                let lung = lung * (1.0 - empty) + 0.03 * empty;
                tissue -= air * (1.0 - lung) * (1.0 - solid);
                clear[pixel] = (air / 7.0).min(1.0) * (1.0 - solid) * (1.0 - empty);
                filled[pixel] = solid * (air / 7.0).min(1.0);
                extra += markings * grain * clear[pixel];
            }
            if let Some(breasts) = &breasts {
                for &([bx, by], width, thickness) in breasts {
                    let (u, v) = ((x - bx) / width, (y - by) / (0.9 * width));
                    // Fuller below: the lower border is the one that shows.
                    let round = 1.0 - u * u - v * v * if v > 0.0 { 1.0 } else { 0.55 };
                    if round > 0.0 {
                        tissue += thickness * 1.3 * round.sqrt() * step(0.0, 0.25, round) * step(-1.2, 0.7, v);
                    }
                }
            }
            let under = y - anatomy.diaphragm(x);
            if under > 0.3 {
                let deepest = gas.iter().fold(0.0f32, |most, bubble| most.max(bubble.depth(place, &texture.middle)));
                tissue -= deepest * step(0.3, 1.0, under);
            }
            values[pixel] = WATER * tissue.max(0.0) + extra;
        }
    }

    let mut brush = Brush::new(view);
    let mut vessels = vec![0.0f32; size * size];
    let mut bronchi = vec![0.0f32; size * size];
    lungs::paint(anatomy, &mut brush, rng, &mut vessels, &mut bronchi);
    for pixel in 0..values.len() {
        values[pixel] += perfusion * vessels[pixel] * clear[pixel] * (0.4 + 0.6 * clear[pixel]);
        values[pixel] -= 1.6 * bronchi[pixel] * filled[pixel];
    }
    lungs::airway(anatomy, &mut brush, &mut values);
    bones::paint(anatomy, view, &mut brush, &plan.distractors, rng, &mut values);
    for distractor in &plan.distractors {
        devices::paint_distractor(distractor, anatomy, view, &mut brush, rng, &mut values);
    }
    for (finding, bounds) in plan.findings.iter().zip(&mut bounds) {
        for (shape, bounds) in finding.shapes.iter().zip(bounds) {
            let mut mark = |pixel: usize, amount: f32| {
                values[pixel] += amount;
                if amount > VISIBLE && seen(pixel) {
                    bounds.add(pixel % size, pixel / size);
                }
            };
            match shape {
                Shape::Band { .. } => band(shape, anatomy, &texture, &mut brush, &mut mark),
                Shape::Device(device) => devices::paint(*device, anatomy, view, &mut brush, rng, &mut mark),
                Shape::Heart { .. } => {
                    for pixel in (0..size * size).filter(|&pixel| seen(pixel)) {
                        let (column, row) = (pixel % size, pixel / size);
                        if anatomy.in_heart(view.patient(column, row)) {
                            bounds.add(column, row);
                        }
                    }
                }
                _ => {}
            }
        }
    }
    values.iter_mut().for_each(|value| *value = value.max(0.0));
    Shadow { values, bounds }
}

/// Gas in stomach or bowel.
struct Bubble {
    centre: [f32; 2],
    radii: [f32; 2],
    thickness: f32,
}

impl Bubble {
    fn depth(&self, [x, y]: [f32; 2], noise: &Noise) -> f32 {
        let (u, v) = ((x - self.centre[0]) / self.radii[0], (y - self.centre[1]) / self.radii[1]);
        let round = 1.0 - u * u - v * v;
        if round < -0.3 { 0.0 } else { self.thickness * (round + 0.18 * noise.at([x, y])).max(0.0).sqrt() }
    }
}

/// The stomach's bubble under the left dome and, at times, the haustra of the colon beside it.
fn gas(anatomy: &Anatomy, rng: &mut Rng) -> Vec<Bubble> {
    let mut range = |low: f64, high: f64| rng.range(low, high) as f32;
    let dome = anatomy.dome[1];
    let mut bubbles = Vec::new();
    let wide = anatomy.pose.stomach;
    if wide > 0.0 {
        let high = wide * range(0.42, 0.8);
        let thickness = range(1.5, 4.5);
        bubbles.push(Bubble { centre: [range(4.6, 7.6), dome + 0.7 + 0.85 * high], radii: [wide, high], thickness });
    }
    if range(0.0, 1.0) < 0.35 {
        let (x, y, thickness) = (range(8.0, 11.5), dome + range(3.0, 6.0), range(1.2, 3.0));
        let (dx, dy) = (range(-2.4, -0.6), range(0.4, 2.0));
        for i in 0..(range(2.0, 6.0) as usize) {
            let n = i as f32;
            let centre = [x + dx * n + range(-0.3, 0.3), y + dy * n + range(-0.3, 0.3)];
            bubbles.push(Bubble { centre, radii: [range(0.9, 1.7), range(0.9, 1.6)], thickness });
        }
    }
    bubbles
}
