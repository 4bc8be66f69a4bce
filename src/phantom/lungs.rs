//! What runs through the lungs: vessels and bronchi that branch from the hila, and the trachea.

use super::anatomy::{Anatomy, SIGNS};
use super::canvas::{Brush, Knot, Profile, step};
use super::plan::Side;
use crate::rng::Rng;

/// A piece of the tree that is still to be drawn.
struct Branch {
    at: [f32; 2],
    /// Radians; 0 points to the side, positive down.
    angle: f32,
    radius: f32,
    generation: usize,
}

/// Draws the vessels' attenuation into `vessels` and the bronchi's air into `bronchi`.
pub(super) fn paint(anatomy: &Anatomy, brush: &mut Brush, rng: &mut Rng, vessels: &mut [f32], bronchi: &mut [f32]) {
    let plump = rng.range(0.85, 1.2) as f32;
    for side in [Side::Right, Side::Left] {
        let s = SIGNS[side.index()];
        let hilum = anatomy.hila[side.index()];
        // Angle and radius of what leaves the hilum; more flows to the bases.
        let roots = [
            (-1.35, 0.24),
            (-0.95, 0.27),
            (-0.55, 0.25),
            (-0.15, 0.25),
            (0.25, 0.28),
            (0.62, 0.34),
            (0.95, 0.37),
            (1.2, 0.4),
            (1.42, 0.34),
        ];
        let mut branches: Vec<Branch> = roots
            .iter()
            .map(|&(angle, radius)| Branch {
                at: [hilum[0] + s * rng.range(-0.5, 0.2) as f32, hilum[1] + 0.9 * angle + rng.range(-0.3, 0.3) as f32],
                angle: angle + rng.range(-0.16, 0.16) as f32,
                radius: radius * plump,
                generation: 0,
            })
            .collect();
        // The descending artery makes most of the hilum's shadow.
        let trunk = [[-0.9, -1.3], [0.0, -0.5], [0.35, 0.9], [0.3, 2.6], [0.0, 4.2]];
        let trunk: Vec<Knot> = trunk
            .iter()
            .zip([0.65, 0.85, 0.75, 0.6, 0.4])
            .map(|(d, half)| Knot {
                at: [hilum[0] + s * d[0], hilum[1] + d[1]],
                half: half * plump,
                weight: 0.36 * half * plump,
            })
            .collect();
        brush.tube(&super::canvas::smooth(&trunk, 5), Profile::Solid, |p, a| vessels[p] += a);
        while let Some(branch) = branches.pop() {
            let length = rng.range(1.5, 2.9) as f32 * (0.55 + 1.6 * branch.radius);
            let tip_radius = branch.radius * 0.84;
            let mut knots = Vec::with_capacity(4);
            let (mut at, mut angle) = (branch.at, branch.angle);
            let steps = 3;
            for i in 0..=steps {
                let t = i as f32 / steps as f32;
                let half = branch.radius + t * (tip_radius - branch.radius);
                knots.push(Knot { at, half, weight: 0.54 * half + 0.012 });
                at = [
                    at[0] + s * libm::cosf(angle) * length / steps as f32,
                    at[1] + libm::sinf(angle) * length / steps as f32,
                ];
                angle += rng.range(-0.24, 0.24) as f32;
            }
            brush.tube(&knots, Profile::Solid, |p, a| vessels[p] += a);
            if branch.generation < 4 {
                // A bronchus keeps its artery company.
                let beside: Vec<Knot> = knots
                    .iter()
                    .map(|k| Knot {
                        at: [k.at[0] - s * 0.3, k.at[1] + 0.45],
                        half: k.half * 0.85,
                        weight: 0.3 * k.half + 0.03,
                    })
                    .collect();
                brush.tube(&beside, Profile::Solid, |p, a| bronchi[p] = bronchi[p].max(a));
            }
            let end = knots[steps].at;
            if branch.radius < 0.055 || anatomy.air(end) < 0.8 {
                continue;
            }
            let turn = rng.range(0.18, 0.55) as f32;
            let sign = if rng.chance(0.5) { 1.0 } else { -1.0 };
            let mut child = |turn: f32, radius: f32| {
                branches.push(Branch { at: end, angle: angle + turn, radius, generation: branch.generation + 1 })
            };
            child(sign * turn * 0.5, branch.radius * rng.range(0.76, 0.86) as f32);
            child(-sign * turn * 1.3, branch.radius * rng.range(0.55, 0.72) as f32);
        }
    }
}

/// The air of the trachea and main bronchi: (removed) attenuation.
pub(super) fn airway(anatomy: &Anatomy, brush: &mut Brush, shadow: &mut [f32]) {
    let shift = |y: f32| anatomy.shift * step(-5.0, 5.0, y) + 0.35 * step(0.0, 6.0, y) * -0.6;
    let carina = anatomy.carina;
    let knot = |x: f32, y: f32, half: f32, weight: f32| Knot { at: [x, y], half, weight };
    let mut trachea: Vec<Knot> = (0..=12)
        .map(|i| {
            let y = -12.0 + (carina + 12.3) * i as f32 / 12.0;
            knot(shift(y), y, 0.8, 0.13 + 0.12 * step(-5.0, 2.0, y))
        })
        .collect();
    trachea.push(knot(shift(carina), carina + 0.7, 0.55, 0.1));
    brush.tube(&trachea, Profile::Solid, |p, a| shadow[p] -= a);
    for (side, steep, length) in [(Side::Right, 0.98, 3.2), (Side::Left, 0.62, 4.6)] {
        let s = SIGNS[side.index()];
        let (c, d) = (libm::cosf(steep), libm::sinf(steep));
        let bronchus: Vec<Knot> = (0..=5)
            .map(|i| {
                let t = i as f32 / 5.0;
                let away = length * t;
                knot(
                    shift(carina) + s * (0.3 + c * away),
                    carina + 0.1 + d * away,
                    0.62 - 0.12 * t,
                    0.17 * (1.0 - t * t),
                )
            })
            .collect();
        brush.tube(&bronchus, Profile::Solid, |p, a| shadow[p] -= a);
    }
}
