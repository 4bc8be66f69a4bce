//! How findings change the lungs: what is filled, what is empty, what is added.

use super::anatomy::{Anatomy, SIGNS};
use super::canvas::{Brush, Knot, Noise, Profile, mix, smooth, step};
use super::plan::{Shape, Side, Zone};

/// Smooth noise that gives findings their ragged edges, from coarse to fine.
pub(super) struct Texture {
    pub coarse: Noise,
    pub middle: Noise,
    pub fine: Noise,
}

/// A finding's part at one place in the lung.
#[derive(Clone, Copy, Default)]
pub(super) struct Change {
    /// Share of the air replaced by water.
    pub solid: f32,
    /// Share of the lung replaced by plain air.
    pub empty: f32,
    /// Water added, cm.
    pub water: f32,
    /// Attenuation added.
    pub line: f32,
}

/// A shape of a finding, made ready for one anatomy.
pub(super) enum Ready {
    Fluid { side: Side, height: f32, rise: f32 },
    Filled { side: Side, centre: [f32; 2], radii: [f32; 2], density: f32, fissure: Option<(f32, f32)> },
    FreeAir { side: Side, apex: f32, lateral: f32, reach: f32, line: f32 },
    Round { centre: [f32; 2], radius: f32 },
    Collapse { side: Side, zone: Zone, density: f32 },
}

impl Ready {
    /// The part of `shape` that depends on the place alone; `None` for what is drawn as a stroke. `pixel` is a pixel's side in cm.
    pub fn new(shape: &Shape, anatomy: &Anatomy, pixel: f32) -> Option<Self> {
        Some(match *shape {
            Shape::Fluid { side, height, rise } => Ready::Fluid { side, height, rise },
            Shape::Filled { side, centre, radii, density, fissure, .. } => {
                let at = anatomy.lung(side, centre[0], centre[1]);
                // The minor fissure at half height: the shape stays on its own side of it.
                let level = fissure.then(|| {
                    let y = anatomy.lung(side, 0.5, 0.5)[1];
                    (y, if at[1] < y { -1.0 } else { 1.0 })
                });
                Ready::Filled { side, centre: at, radii, density, fissure: level }
            }
            Shape::FreeAir { side, apex, lateral, reach } => Ready::FreeAir {
                side,
                apex,
                lateral,
                reach: reach * anatomy.angle(side),
                line: (0.7 * pixel).max(0.07),
            },
            Shape::Round { side, place, radius, .. } => {
                Ready::Round { centre: anatomy.lung(side, place[0], place[1]), radius }
            }
            Shape::Collapse { side, zone, density } => Ready::Collapse { side, zone, density },
            Shape::Heart { .. } | Shape::Band { .. } | Shape::Device(_) => return None,
        })
    }

    /// What the finding does at a place whose lung is `air` cm deep.
    pub fn at(&self, anatomy: &Anatomy, texture: &Texture, place: [f32; 2], air: f32) -> Change {
        let [x, y] = place;
        let none = Change::default();
        match *self {
            Ready::Fluid { side, height, rise } => {
                if Side::of(x) != side {
                    return none;
                }
                // The meniscus climbs along the ribs and a little along the mediastinum.
                let wall = (anatomy.cage(y) - x.abs()).max(0.0);
                let heart = ((x - anatomy.border(side, y)) * SIGNS[side.index()]).max(0.0);
                let climb = rise * (libm::expf(-wall / 3.2) + 0.25 * libm::expf(-heart / 1.2));
                let level = anatomy.angle(side) - height - climb + 0.15 * texture.coarse.at(place);
                let lateral = step(0.4, 2.6, x.abs());
                Change { solid: 0.97 * lateral * step(-0.35, 0.9 + 0.06 * height, y - level), ..none }
            }
            Ready::Filled { side, centre, radii, density, fissure } => {
                if Side::of(x - anatomy.shift) != side {
                    return none;
                }
                let (u, v) = ((x - centre[0]) / radii[0], (y - centre[1]) / radii[1]);
                let distance = (u * u + v * v).sqrt();
                if distance > 1.9 {
                    return none;
                }
                let [a, b, c] = [&texture.coarse, &texture.middle, &texture.fine].map(|noise| noise.at(place));
                let inside = step(-0.3, 0.75, 1.0 - distance + 0.34 * a + 0.16 * b);
                let lobe = fissure.map_or(1.0, |(level, sign)| {
                    step(-0.18, 0.18, sign * (y - level - 0.06 * (x.abs() - 8.0)) + 0.05 * b)
                });
                let fluff = (1.0 + 0.13 * b + 0.12 * c + 0.1 * a).clamp(0.0, 1.3);
                Change { solid: (density * inside * lobe * fluff).min(0.95), ..none }
            }
            Ready::FreeAir { side, apex, lateral, reach, line } => {
                if Side::of(x - anatomy.shift) != side {
                    return none;
                }
                let edge = |y: f32| {
                    let left = (1.0 - y / reach).max(0.0);
                    // However far it retracts, the lung hangs on to its root.
                    let root = (anatomy.border(side, y) * SIGNS[side.index()] + 0.9)
                        * step(anatomy.carina - 0.5, anatomy.carina + 2.5, y);
                    (anatomy.cage(y - apex * left.sqrt()) - lateral * left).max(root)
                };
                let slope = (edge(y + 0.2) - edge(y - 0.2)) * 2.5;
                let outside = (x.abs() - edge(y)) / (1.0 + slope * slope).sqrt();
                let gap = step(0.12, 0.45, anatomy.cage(y) - edge(y));
                let empty = gap * step(-0.06, 0.1, outside);
                let near = outside / line;
                let line = 0.24 * gap * (0.07 / line) * libm::expf(-near * near) * step(0.2, 1.2, air);
                // The lung that is left is less stretched.
                Change {
                    empty,
                    line,
                    solid: 0.04 * (lateral - 1.6).max(0.0) * (1.0 - empty) * step(0.0, 1.0, gap),
                    ..none
                }
            }
            Ready::Round { centre, radius } => {
                let (dx, dy) = (x - centre[0], y - centre[1]);
                let ragged = 1.0 + 0.06 * texture.middle.at([x * 1.7, y * 1.7]);
                let left = radius * radius * ragged - dx * dx - dy * dy;
                if left <= 0.0 {
                    return none;
                }
                // Denser than water and with a plain rim, as what has calcium in it.
                Change { water: 2.7 * left.sqrt() + 1.2 * step(0.0, 0.4, left / (radius * radius)), ..none }
            }
            Ready::Collapse { side, zone, density } => {
                let s = SIGNS[side.index()];
                if Side::of(x) != side {
                    return none;
                }
                let a = x * s;
                let share = match (zone, side) {
                    (Zone::Upper, Side::Right) => {
                        // The minor fissure, drawn up: from the hilum to the apex' outer side.
                        let out = ((a - 2.5) / (0.75 * anatomy.habitus.half_width)).clamp(0.0, 1.0);
                        let level = anatomy.carina + 2.2 - (anatomy.carina + 0.2) * out.sqrt() * out;
                        step(0.25, -0.25, y - level)
                    }
                    (Zone::Upper, Side::Left) => {
                        // The left upper lobe folds forwards: a veil that thins out downwards and sideways.
                        let veil = step(anatomy.dome[1] - 2.0, 2.0, y + 0.25 * a);
                        0.75 * veil * step(anatomy.cage(y) + 1.0, 3.0, a)
                    }
                    _ => {
                        // The lower lobe folds to a wedge beside the spine, from the hilum to the diaphragm.
                        let dome = anatomy.dome[side.index()];
                        let t = ((y - anatomy.carina - 2.0) / (dome - anatomy.carina - 2.0)).clamp(0.0, 1.3);
                        let edge = mix(2.4, 7.6 + if side == Side::Right { 0.8 } else { 0.0 }, t);
                        step(0.22, -0.22, a - edge) * step(-0.2, 1.2, y - anatomy.carina - 2.0)
                    }
                };
                Change { solid: density * share * (1.0 + 0.06 * texture.middle.at(place)).min(1.0), ..none }
            }
        }
    }
}

/// A band of atelectasis.
pub(super) fn band(
    shape: &Shape,
    anatomy: &Anatomy,
    texture: &Texture,
    brush: &mut Brush,
    mut paint: impl FnMut(usize, f32),
) {
    let Shape::Band { side, start, angle, length, half, sag } = *shape else { return };
    let s = SIGNS[side.index()];
    let [x0, y0] = anatomy.lung(side, start[0], start[1]);
    let (c, d) = (libm::cosf(angle), libm::sinf(angle));
    let knots: Vec<Knot> = (0..=8)
        .map(|i| {
            let t = i as f32 / 8.0;
            let along = length * t;
            let x = x0 + s * c * along;
            let y = (y0 + d * along + sag * 4.0 * t * (1.0 - t)).min(anatomy.diaphragm(x) - 0.5);
            let thin = half * (1.0 + 0.4 * texture.middle.at([x, y])) * (0.45 + 1.9 * t * (1.0 - t));
            let inside = step(0.3, 2.5, anatomy.air([x, y]));
            Knot { at: [x, y], half: thin, weight: (0.3 + 0.8 * thin) * inside }
        })
        .collect();
    brush.tube(&smooth(&knots, 4), Profile::Soft, |p, a| paint(p, 1.25 * a));
}
