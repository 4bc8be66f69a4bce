//! Ribs, spine, clavicles, shoulder blades and upper arms.

use std::f32::consts::PI;

use super::anatomy::{Anatomy, SIGNS};
use super::canvas::{Brush, Knot, Profile, View, mix, smooth, step};
use super::plan::{Distractor, Side};
use crate::rng::Rng;

/// Adds the skeleton's attenuation to `shadow`.
pub(super) fn paint(
    anatomy: &Anatomy,
    view: &View,
    brush: &mut Brush,
    distractors: &[Distractor],
    rng: &mut Rng,
    shadow: &mut [f32],
) {
    let strength = anatomy.habitus.bone;
    let worn = distractors.contains(&Distractor::Spondylosis);
    spine(anatomy, view, brush, worn, rng, shadow);
    for side in [Side::Right, Side::Left] {
        for rib in 0..11 {
            let callus = distractors.contains(&Distractor::Callus { side, rib });
            draw_rib(anatomy, brush, side, rib, callus, rng, shadow);
        }
        let s = SIGNS[side.index()];
        let lift = anatomy.pose.shrug;
        let turn = anatomy.pose.turn;
        let uneven = rng.range(-0.3, 0.3) as f32;
        let knot = |x: f32, y: f32, half: f32, weight: f32| Knot { at: [x, y], half, weight: weight * strength };
        let place = |x: f32, y: f32| [s * x, y - lift + uneven];

        // Clavicle: an S from the sternum, whose ends move with the turn of the chest, to the acromion.
        let head = [s * 1.7 + turn, 2.7 - 0.2 * lift];
        let points = [(4.6, 2.1), (8.0, 0.9), (11.8, 0.4), (15.2, -0.5), (17.6, -0.3)].map(|(x, y)| place(x, y));
        let mut clavicle = vec![knot(head[0], head[1], 0.85, 0.26)];
        let shapes = [(0.58, 0.28), (0.5, 0.3), (0.5, 0.3), (0.62, 0.26), (0.72, 0.2)];
        clavicle.extend(points.iter().zip(shapes).map(|(p, (half, weight))| knot(p[0], p[1], half, weight)));
        brush.tube(&smooth(&clavicle, 8), Profile::Shell(0.34), |p, a| shadow[p] += 1.15 * a);

        // Shoulder blade: a thin plate with thick borders.
        let overlap = anatomy.pose.blades;
        let corner = |x: f32, y: f32| [s * (x - overlap), y - 0.7 * lift];
        let [top, tip, neck] = [corner(11.4, 1.6), corner(14.2, 14.6), corner(17.2, 4.2)];
        plate(view, [top, tip, neck], 0.1 * strength, shadow);
        let line = |a: [f32; 2], b: [f32; 2], bend: f32, half: f32, weight: f32| {
            let middle = [mix(a[0], b[0], 0.5) + s * bend, mix(a[1], b[1], 0.5)];
            smooth(&[a, middle, b].map(|at| knot(at[0], at[1], half, weight)), 10)
        };
        brush.tube(&line(top, tip, -0.5, 0.22, 0.12), Profile::Soft, |p, a| shadow[p] += a);
        brush.tube(&line(neck, tip, 0.5, 0.42, 0.26), Profile::Soft, |p, a| shadow[p] += a);
        let acromion = place(18.2, -1.0);
        brush.tube(&line(corner(12.4, 3.4), acromion, 0.0, 0.5, 0.2), Profile::Shell(0.4), |p, a| shadow[p] += a);
        view.ellipse(corner(15.8, 2.6), [1.0, 0.75], s * 0.5, |p, d| shadow[p] += 0.22 * strength * (1.0 - d));
        view.ellipse(corner(17.6, 4.0), [0.9, 1.9], s * -0.2, |p, d| {
            shadow[p] += 0.2 * strength * (1.0 - d).sqrt();
        });

        // Upper arm: a head in the socket and a shaft that hangs outwards, in its own soft tissue.
        let reach = rng.range(0.0, 3.5) as f32;
        let shaft = [corner(20.2, 3.6), corner(21.4 + 0.3 * reach, 11.0), corner(22.6 + reach, 26.0)];
        view.ellipse(corner(19.7, 3.2), [2.4, 2.4], 0.0, |p, d| {
            shadow[p] += strength * (0.34 * (1.0 - d).sqrt() + 0.1 * step(0.75, 0.97, d));
        });
        let humerus = smooth(&shaft.map(|at| knot(at[0], at[1], 1.15, 0.5)), 10);
        brush.tube(&humerus, Profile::Shell(0.32), |p, a| shadow[p] += a);
        let flesh = 3.6 + 0.5 * anatomy.habitus.wall;
        let arm = smooth(&shaft.map(|at| Knot { at: [at[0] + s * 0.6, at[1]], half: flesh, weight: 0.36 * flesh }), 10);
        brush.tube(&arm, Profile::Solid, |p, a| shadow[p] = shadow[p].max(a + 0.25 * shadow[p]));
    }
}

/// The rib `rib` (0 the first) from its head at the spine around the side to its anterior end.
fn draw_rib(
    anatomy: &Anatomy,
    brush: &mut Brush,
    side: Side,
    rib: usize,
    callus: bool,
    rng: &mut Rng,
    shadow: &mut [f32],
) {
    let s = SIGNS[side.index()];
    let n = rib as f32;
    let breath = anatomy.pose.breath;
    // Heads are one vertebra apart; ribs slope more in a shallow breath.
    let spacing = anatomy.habitus.height / 9.4;
    let head = -0.2 + spacing * n - 0.014 * n * n + rng.range(-0.12, 0.12) as f32;
    let fall = [2.6, 5.2, 7.2, 8.4, 9.2, 9.8, 10.2, 10.4, 9.8, 8.4, 6.5][rib] * (1.12 - 0.16 * breath);
    let wide = anatomy.cage(head + 0.5 * fall + 0.35) + 0.3;
    let end = [2.55, 2.6, 2.62, 2.6, 2.55, 2.5, 2.4, 2.25, 2.0, 1.75, 1.55][rib];
    let root = anatomy.spine(head) + s * 1.9;
    let strength = anatomy.habitus.bone * [0.8, 0.9, 1.0, 1.0, 1.0, 1.0, 1.0, 0.95, 0.9, 0.8, 0.6][rib];
    let broken = rng.range(0.75, 1.05) as f32;
    let pieces = 46;
    let knots: Vec<Knot> = (0..=pieces)
        .map(|i| {
            let angle = end * i as f32 / pieces as f32;
            let (sin, cos) = (libm::sinf(angle), libm::cosf(angle));
            let behind = angle < 0.5 * PI;
            let inner = if behind { root } else { s * (1.6 + 0.12 * n) + 0.8 * anatomy.pose.turn };
            let x = inner + (s * wide - inner) * sin;
            let arch = if behind { 0.55 * libm::sinf(2.0 * angle) } else { -0.25 * libm::sinf(2.0 * angle) };
            let y = head - arch + 0.5 * fall * (1.0 - cos);
            // Seen along its blade at the side, a rib is narrow and dense; in front it is broad and fades into cartilage.
            let along = 1.0 / cos.abs().max(0.5);
            let half = if behind { 0.56 - 0.012 * n } else { 0.64 } * mix(0.8, 1.0, cos.abs());
            let fade = 1.0 - step(end - 0.28, end, angle);
            let mut knot =
                Knot { at: [x, y], half, weight: 0.215 * strength * along * fade * if behind { 1.0 } else { 0.78 } };
            if callus {
                let swell = (1.0 - ((angle - broken) / 0.09) * ((angle - broken) / 0.09)).max(0.0);
                knot.half += 0.32 * swell;
                knot.weight *= 1.0 + 0.9 * swell;
            }
            knot
        })
        .collect();
    brush.tube(&knots, Profile::Shell(0.3), |p, a| shadow[p] += a);
}

/// A triangle of even thickness with soft edges.
fn plate(view: &View, corners: [[f32; 2]; 3], weight: f32, shadow: &mut [f32]) {
    let middle = [0, 1].map(|k| (corners[0][k] + corners[1][k] + corners[2][k]) / 3.0);
    view.ellipse(middle, [9.0, 9.0], 0.0, |pixel, _| {
        let [x, y] = view.patient(pixel % view.size, pixel / view.size);
        let mut inside = f32::MAX;
        for i in 0..3 {
            let ([ax, ay], [bx, by]) = (corners[i], corners[(i + 1) % 3]);
            let (dx, dy) = (bx - ax, by - ay);
            let distance = ((x - ax) * dy - (y - ay) * dx) / (dx * dx + dy * dy).sqrt();
            let towards = ((middle[0] - ax) * dy - (middle[1] - ay) * dx).signum();
            inside = inside.min(distance * towards);
        }
        shadow[pixel] += weight * step(-0.15, 0.25, inside);
    });
}

/// Vertebrae with end plates, pedicles, spinous and transverse processes.
fn spine(anatomy: &Anatomy, view: &View, brush: &mut Brush, worn: bool, rng: &mut Rng, shadow: &mut [f32]) {
    let strength = anatomy.habitus.bone;
    let spacing = anatomy.habitus.height / 9.4;
    for level in -4..15 {
        let n = level as f32;
        let y = -0.1 + spacing * n - 0.014 * n * n;
        let growth = step(-4.0, 14.0, n);
        let (half_wide, half_high) = (mix(1.35, 2.15, growth), spacing * 0.42);
        let x = anatomy.spine(y);
        let centre = [x, y];
        view.ellipse(centre, [half_wide * 1.5, half_high * 1.5], 0.0, |pixel, _| {
            let [px, py] = view.patient(pixel % view.size, pixel / view.size);
            let (u, v) = ((px - x).abs() / half_wide, (py - y) / half_high);
            // A waist between the end plates.
            let waist = 0.9 + 0.1 * v * v;
            let body = step(1.1, 0.72, u / waist) * step(1.12, 0.86, v.abs());
            let rim = step(0.6, 0.9, v.abs()) * 0.7 + step(0.6, 0.9, u / waist) * 0.2;
            shadow[pixel] += strength * 0.15 * body * (0.7 + rim);
        });
        for s in SIGNS {
            view.ellipse([x + s * half_wide * 0.64, y - 0.2], [0.42, 0.62], s * 0.15, |p, d| {
                shadow[p] += strength * 0.1 * step(0.3, 0.85, d) * step(1.0, 0.9, d);
            });
            if (0..12).contains(&level) {
                let tip = [x + s * (half_wide + 1.5), y - 0.55];
                let process = [[x + s * half_wide * 0.8, y - 0.1], tip].map(|at| Knot {
                    at,
                    half: 0.42,
                    weight: 0.11 * strength,
                });
                brush.tube(&process, Profile::Shell(0.35), |p, a| shadow[p] += a);
            }
            if worn && level > 3 {
                let spur = rng.range(0.25, 0.75) as f32;
                let at = [x + s * (half_wide + 0.1), y + half_high];
                view.ellipse(at, [0.3 + spur, 0.3], s * 0.35, |p, d| shadow[p] += strength * 0.32 * (1.0 - d));
            }
        }
        let spinous = [x - 0.35 * anatomy.pose.turn, y + 0.75];
        view.ellipse(spinous, [0.34, 0.72], 0.0, |p, d| {
            shadow[p] += strength * (0.05 + 0.09 * step(0.45, 0.9, d)) * step(1.0, 0.85, d);
        });
    }
}
