//! Lines, tubes, pacemakers, and the things on a patient that are not findings.

use super::anatomy::{Anatomy, SIGNS};
use super::canvas::{Brush, Knot, Profile, View, smooth, step};
use super::plan::{Device, Distractor, Route, Side};
use crate::rng::Rng;

/// A smooth tube of even width through places.
fn line(places: &[[f32; 2]], half: f32, weight: f32) -> Vec<Knot> {
    let knots: Vec<Knot> = places.iter().map(|&at| Knot { at, half, weight }).collect();
    smooth(&knots, 12)
}

/// Calls `paint(pixel, attenuation)` for a device.
pub(super) fn paint(
    device: Device,
    anatomy: &Anatomy,
    view: &View,
    brush: &mut Brush,
    rng: &mut Rng,
    mut paint: impl FnMut(usize, f32),
) {
    let mut wobble = |size: f64| rng.range(-size, size) as f32;
    let carina = anatomy.carina;
    // The superior vena cava, right of the spine, ends in the atrium.
    let cava = |y: f32| [anatomy.border(Side::Right, y) + 0.75, y];
    match device {
        Device::Endotracheal { above } => {
            let x = |y: f32| anatomy.shift * step(-5.0, 5.0, y) - 0.2 * step(0.0, 6.0, y);
            let tip = carina - above;
            let bow = wobble(0.25);
            let places: Vec<[f32; 2]> = (0..=6)
                .map(|i| {
                    let t = i as f32 / 6.0;
                    let y = -13.0 + (tip + 13.0) * t;
                    [x(y) + bow * 4.0 * t * (1.0 - t), y]
                })
                .collect();
            brush.tube(&line(&places, 0.55, 0.55), Profile::Shell(0.22), &mut paint);
            let stripe: Vec<[f32; 2]> = places.iter().map(|p| [p[0] + 0.34, p[1]]).collect();
            brush.tube(&line(&stripe, 0.16, 0.9), Profile::Solid, &mut paint);
        }
        Device::Gastric { bend } => {
            let dome = anatomy.dome[1];
            let places = [
                [0.3 + wobble(0.2), -13.0],
                [0.5 + wobble(0.3), -2.0],
                [0.4 + wobble(0.3), 6.0],
                [0.1 + 0.8 * anatomy.shift + wobble(0.3), 13.0],
                [1.2 + wobble(0.3), dome - 1.0],
                [3.6, dome + 3.2],
                [6.6, dome + 4.6 + bend],
                [8.6, dome + 3.6 + 2.0 * bend],
            ];
            brush.tube(&line(&places, 0.3, 0.45), Profile::Solid, &mut paint);
            let stripe = places.map(|p| [p[0] + 0.1, p[1]]);
            brush.tube(&line(&stripe, 0.13, 0.8), Profile::Solid, &mut paint);
        }
        Device::Central { side, route } => {
            let s = SIGNS[side.index()];
            let tip = carina + 2.6 + wobble(1.6);
            let mut places = match route {
                Route::Jugular => vec![
                    [s * (5.2 + wobble(0.6)), -13.0],
                    [s * (4.6 + wobble(0.4)), -6.0],
                    [s * (4.0 + wobble(0.3)), -1.5],
                    [s * 3.0, 1.5],
                ],
                Route::Subclavian => vec![
                    [s * 11.5, 6.0 + wobble(1.0)],
                    [s * 10.2, 2.6 + wobble(0.4)],
                    [s * 7.6, 1.2 + wobble(0.3)],
                    [s * 4.6, 1.9],
                    [s * 2.8, 2.7],
                ],
                Route::Peripheral => vec![
                    [s * 24.0, 16.0 + wobble(2.0)],
                    [s * 19.0, 7.5 + wobble(0.8)],
                    [s * 15.0, 3.8 + wobble(0.5)],
                    [s * 10.5, 2.2 + wobble(0.4)],
                    [s * 6.5, 1.7],
                    [s * 3.0, 2.5],
                ],
                Route::Port => vec![
                    [s * 9.2, 7.4 + wobble(0.5)],
                    [s * 10.2, 4.4],
                    [s * 8.4, 1.3],
                    [s * 5.0, 0.4 + wobble(0.3)],
                    [s * 3.0, 2.2],
                ],
            };
            if route == Route::Port {
                let at = places[0];
                view.ellipse(at, [1.35, 1.35], 0.0, |p, d| {
                    paint(p, 0.7 * step(1.0, 0.9, d) + 1.0 * step(0.5, 0.42, d) + 0.3 * step(0.72, 0.95, d));
                });
            }
            if side == Side::Left {
                places.push([0.0, 4.0]);
            }
            let first = 4.6f32.min(carina - 1.5);
            places.extend([cava(first), cava(0.5 * (first + tip)), cava(tip)]);
            let (half, weight) = if route == Route::Peripheral { (0.17, 0.95) } else { (0.22, 0.9) };
            brush.tube(&line(&places, half, weight), Profile::Solid, &mut paint);
        }
        Device::Pacemaker { side, leads, low } => {
            let s = SIGNS[side.index()];
            let centre = [s * (9.8 + wobble(0.9)), 5.6 + 1.6 * low + wobble(0.4)];
            let (wide, high) = (2.5 + wobble(0.25), 2.05 + wobble(0.25));
            let angle = wobble(0.3);
            let (c, d) = (libm::cosf(angle), libm::sinf(angle));
            view.ellipse(centre, [4.2, 4.2], 0.0, |pixel, _| {
                let [x, y] = view.patient(pixel % view.size, pixel / view.size);
                let (dx, dy) = (x - centre[0], y - centre[1]);
                let (u, v) = ((dx * c + dy * d) / wide, (dy * c - dx * d) / high);
                // A rounded can with a header for the leads on top.
                let round = u * u * u * u + v * v * v * v;
                let header = step(-0.62, -0.68, v);
                let circuit = 0.4 * step(0.55, 0.45, (u * u).max((v - 0.1) * (v - 0.1) * 1.6));
                let amount = step(1.05, 0.95, round) * (1.9 - 0.8 * header + circuit);
                if amount > 0.0 {
                    paint(pixel, amount);
                }
            });
            let atrium = [anatomy.border(Side::Right, carina + 5.5) + 2.2, carina + 6.2];
            let apex_y = anatomy.dome[1] - 0.8;
            let apex = [anatomy.border(Side::Left, apex_y) * 0.66, apex_y - 0.4];
            for lead in 0..leads {
                let n = lead as f32;
                let exit = [centre[0] - s * (0.3 - 0.5 * n), centre[1] - high];
                let mut places = vec![
                    exit,
                    [exit[0] + s * (0.9 + 0.4 * n), exit[1] - 1.2],
                    [s * (8.2 + 0.3 * n), 1.9 + 0.25 * n + wobble(0.2)],
                    [s * 4.6, 1.9 + 0.3 * n],
                    [s * 2.4, 2.9 + 0.2 * n],
                ];
                if side == Side::Left {
                    places.push([0.0, 4.2 + 0.2 * n]);
                }
                let down = |y: f32| [cava(y)[0] + 0.25 * n, y];
                places.extend([down(carina - 0.5), down(carina + 3.0)]);
                if lead == 0 {
                    places.extend([
                        [atrium[0] - 1.2, carina + 6.5],
                        [atrium[0] + 1.0, apex_y - 1.6],
                        [apex[0] * 0.5, apex_y - 0.2],
                        apex,
                    ]);
                } else {
                    places.extend([
                        [atrium[0] - 1.4, carina + 6.0],
                        [atrium[0] - 0.2, carina + 6.4],
                        [atrium[0] + 0.3, carina + 5.2],
                    ]);
                }
                brush.tube(&line(&places, 0.18, 1.05), Profile::Solid, &mut paint);
                // The electrode at the tip.
                brush.tube(&line(&places[places.len() - 2..], 0.22, 0.5), Profile::Solid, &mut paint);
            }
        }
        Device::ChestTube { side, up } => {
            let s = SIGNS[side.index()];
            let wall = anatomy.cage(14.0);
            let places = if up > 0.4 {
                vec![
                    [s * (wall + 6.0), 18.0 + wobble(1.0)],
                    [s * (wall + 0.8), 14.5 + wobble(0.8)],
                    [s * (wall - 1.6), 11.5],
                    [s * (wall - 3.6 + wobble(0.8)), 6.5],
                    [s * (5.6 + wobble(1.0)), 2.8 + wobble(0.6)],
                ]
            } else {
                vec![
                    [s * (wall + 6.0), 15.0 + wobble(1.0)],
                    [s * (wall + 0.6), 15.2 + wobble(0.8)],
                    [s * (wall - 2.0), 15.8],
                    [s * (7.6 + wobble(0.6)), anatomy.dome[side.index()] - 2.4],
                    [s * (5.4 + wobble(0.5)), anatomy.dome[side.index()] - 1.6],
                ]
            };
            brush.tube(&line(&places, 0.5, 0.5), Profile::Shell(0.3), &mut paint);
            brush.tube(&line(&places, 0.16, 0.9), Profile::Solid, &mut paint);
        }
    }
}

/// Adds what lies on or in a patient without being a finding; marks on bones are the bones' own affair.
pub(super) fn paint_distractor(
    distractor: &Distractor,
    anatomy: &Anatomy,
    view: &View,
    brush: &mut Brush,
    rng: &mut Rng,
    shadow: &mut [f32],
) {
    let mut range = |low: f64, high: f64| rng.range(low, high) as f32;
    match *distractor {
        Distractor::Nipples => {
            let (y, x) = (anatomy.dome[0] - range(1.8, 3.6), 0.62 * anatomy.habitus.half_width + range(-0.8, 0.8));
            for s in SIGNS {
                let at = [s * x + range(-0.3, 0.3), y + range(-0.5, 0.5)];
                let strength = range(0.05, 0.13);
                view.ellipse(at, [0.29, 0.27], 0.0, |p, d| shadow[p] += strength * (1.0 - d * d));
            }
        }
        Distractor::Calcification { side, place, radius } => {
            let [x, y] = anatomy.lung(side, place[0], place[1]);
            for _ in 0..3 {
                let at = [x + range(-0.5, 0.5) * radius, y + range(-0.5, 0.5) * radius];
                view.ellipse(at, [radius, radius * range(0.7, 1.1)], 0.0, |p, d| shadow[p] += 0.3 * (1.0 - d).sqrt());
            }
        }
        Distractor::SkinFold { side, slant } => {
            // An edge, not a line: brightness grows towards it and drops beyond.
            let s = SIGNS[side.index()];
            let top = [s * (8.5 + 2.0 * slant), 2.0];
            let bottom = [s * (11.0 - 1.5 * slant), 24.0];
            for row in 0..view.size {
                for column in 0..view.size {
                    let [x, y] = view.patient(column, row);
                    let t = (y - top[1]) / (bottom[1] - top[1]);
                    let edge = top[0] + t * (bottom[0] - top[0]) + s * 1.2 * t * (1.0 - t);
                    let inside = (edge - x) * s;
                    let fade = step(-0.05, 0.2, t) * step(1.1, 0.75, t);
                    shadow[row * view.size + column] += 0.2 * fade * step(-0.08, 0.08, inside) * step(4.0, 0.0, inside);
                }
            }
        }
        Distractor::Leads => {
            let spots = [[-11.5, 3.0], [11.5, 3.2], [12.5, 17.5], [-12.0, 18.0]];
            for (i, spot) in spots.iter().enumerate().take(2 + (range(0.0, 2.99) as usize)) {
                let at = [spot[0] + range(-1.5, 1.5), spot[1] + range(-1.2, 1.2)];
                view.ellipse(at, [0.85, 0.85], 0.0, |p, d| {
                    shadow[p] += 0.2 * step(0.45, 0.6, d) * step(1.0, 0.85, d) + 0.6 * step(0.12, 0.06, d);
                });
                let s = if i % 3 == 0 { -1.0 } else { 1.0 };
                let places = [
                    at,
                    [at[0] + s * range(1.0, 3.0), at[1] - range(0.0, 2.0)],
                    [at[0] + s * range(3.0, 6.0), at[1] + range(-1.0, 3.0)],
                    [s * 24.0, at[1] + range(-8.0, 4.0)],
                ];
                brush.tube(&line(&places, 0.09, 0.36), Profile::Solid, |p, a| shadow[p] += a);
            }
        }
        Distractor::SternalWires => {
            for i in 0..5 {
                let y = 4.6 + 2.9 * i as f32 + range(-0.3, 0.3);
                let x = 0.8 * anatomy.pose.turn + range(-0.2, 0.2);
                let loop_of = [[-0.75, 0.1], [-0.3, -0.4], [0.35, -0.35], [0.75, 0.15], [0.15, 0.45], [-0.75, 0.1]];
                let places = loop_of.map(|[dx, dy]| [x + dx + range(-0.1, 0.1), y + dy]);
                brush.tube(&line(&places, 0.06, 0.5), Profile::Solid, |p, a| shadow[p] += a);
            }
        }
        Distractor::Callus { .. } | Distractor::Spondylosis => {}
    }
}
