//! The shape of a drawn patient: outlines of body, rib cage, mediastinum, heart and diaphragm, and the lung's depth everywhere.

use super::canvas::{Curve, mix, step};
use super::plan::{Effects, Side};
use crate::rng::Rng;

/// What stays the same in every film of one patient.
#[derive(Clone, Debug)]
pub(super) struct Habitus {
    /// Breast shadows are drawn.
    pub female: bool,
    /// Largest half-width inside the ribs, cm.
    pub half_width: f32,
    /// Largest half-depth inside the ribs, cm.
    pub half_depth: f32,
    /// Soft tissue outside the ribs, cm.
    pub wall: f32,
    /// Height from the apices to the right dome in full inspiration, cm.
    pub height: f32,
    /// Cardiothoracic ratio without disease.
    pub heart: f32,
    /// Attenuation of bone, relative to the usual.
    pub bone: f32,
    /// Size of the aortic knob, cm beyond the mediastinum.
    pub knob: f32,
    /// Width and thickness of the breasts, cm.
    pub breast: [f32; 2],
    /// Sideways curve of the spine, cm.
    pub scoliosis: f32,
    /// Years; the older, the more degenerative change.
    pub age: f32,
}

impl Habitus {
    pub fn draw(rng: &mut Rng) -> Self {
        let mut range = |low: f64, high: f64| rng.range(low, high) as f32;
        let age = range(18.0, 88.0);
        let size = range(-1.0, 1.0);
        let fat = range(0.0, 1.0);
        Self {
            half_width: 13.6 + 0.9 * size + range(-0.5, 0.5),
            half_depth: 7.6 + 0.6 * size + range(-0.4, 0.8),
            wall: 1.5 + 3.0 * fat * fat,
            height: 22.6 + 1.2 * size + range(-0.9, 0.9),
            heart: range(0.385, 0.465),
            bone: range(0.8, 1.08) * (1.15 - 0.004 * age),
            knob: range(0.2, 0.5) + 0.009 * age,
            breast: [range(6.2, 8.2), range(0.5, 1.1) + 1.4 * fat],
            scoliosis: range(-1.0, 1.0) * range(0.0, 1.0),
            female: range(0.0, 1.0) < 0.48,
            age,
        }
    }
}

/// What changes from film to film: breath, position, the film's place.
#[derive(Clone, Debug)]
pub(super) struct Pose {
    /// Share of a full inspiration, 0 to 1.
    pub breath: f32,
    /// Turn about the long axis: cm that the sternum moves to the image's right.
    pub turn: f32,
    /// Tilt in the film's plane, radians.
    pub tilt: f32,
    /// Film's side, cm.
    pub field: f32,
    /// Patient coordinates of the film's centre.
    pub centre: [f32; 2],
    /// How far the shoulders are pulled up, cm.
    pub shrug: f32,
    /// How far the shoulder blades overlie the lungs, cm.
    pub blades: f32,
    /// Length of the stomach's gas, cm; 0 for none.
    pub stomach: f32,
}

impl Pose {
    pub fn draw(rng: &mut Rng) -> Self {
        let mut range = |low: f64, high: f64| rng.range(low, high) as f32;
        let lazy = range(0.0, 1.0);
        Self {
            breath: 1.0 - 0.6 * lazy * lazy.sqrt(),
            turn: range(-0.8, 0.8) * range(0.1, 1.0),
            tilt: range(-0.035, 0.035),
            field: range(34.0, 37.0),
            centre: [range(-0.8, 0.8), range(-0.8, 0.8)],
            shrug: range(-0.5, 1.2),
            blades: range(-1.6, 0.6),
            stomach: if range(0.0, 1.0) < 0.75 { range(1.2, 3.4) } else { 0.0 },
        }
    }
}

/// One side's part of a symmetric structure: -1 for the patient's right (the image's left), 1 for the left.
pub(super) const SIGNS: [f32; 2] = [-1.0, 1.0];

/// The geometry of one film.
pub(super) struct Anatomy {
    pub habitus: Habitus,
    pub pose: Pose,
    /// Height of the domes: right, left.
    pub dome: [f32; 2],
    /// From a dome down to its costophrenic angle.
    pub drop: f32,
    /// Height of the tracheal bifurcation.
    pub carina: f32,
    /// Lung roots: right, left.
    pub hila: [[f32; 2]; 2],
    /// Sideways place of the trachea and heart against the spine.
    pub shift: f32,
    cage: Curve,
    depth: Curve,
    borders: [Curve; 2],
    filling: Curve,
    outline: Curve,
    trunk: Curve,
    shoulder: Curve,
}

impl Anatomy {
    pub fn new(habitus: Habitus, pose: Pose, effects: &Effects) -> Self {
        let height = habitus.height - 3.8 * (1.0 - pose.breath);
        let dome = [height - effects.raised[0], height + 0.9 - effects.raised[1]];
        let drop = 5.0;
        let bottom = height + 0.5 + drop;
        let (width, deep) = (habitus.half_width, habitus.half_depth);
        let round = |y: f32, power: f32| {
            let v = ((y + 0.2) / (0.78 * bottom)).clamp(0.0, 1.0);
            libm::sqrtf(1.0 - libm::powf(1.0 - v, power))
        };
        let cage = Curve::of(-1.0, bottom + 8.0, |y| width * round(y, 2.3) * (1.0 + 0.004 * (y - 14.0).max(0.0)));
        let depth = Curve::of(-1.0, bottom + 8.0, |y| deep * (0.3 + 0.7 * round(y, 1.7)));
        let carina = 0.33 * height + 0.3;
        let ratio = effects.heart.unwrap_or(habitus.heart);
        // The heart's width is shared about 1 to 2 between the right and the left of the midline.
        let across = ratio * 2.0 * cage.at(bottom - 1.0);
        let (right, left) = (0.335 * across, 0.665 * across);
        let swell = (ratio - 0.45).max(0.0);
        let knob = carina - 1.3;
        let top = carina + 3.0 - 4.0 * swell;
        let reach = |dome: f32, t: f32| top + t * (dome - top);
        let (r, l) = (dome[0].max(height - 1.0), dome[1].max(height));
        let borders = [
            Curve::through(&[
                (-12.0, 4.6),
                (-2.5, 4.3),
                (0.0, 3.7),
                (1.8, 2.9),
                (carina - 2.0, 2.5),
                (carina, 2.65),
                (carina + 2.0, 2.6),
                (reach(r, 0.3), right * 0.84),
                (reach(r, 0.62), right),
                (reach(r, 0.95), right * 0.88),
                (reach(r, 1.35), right * 0.6),
            ]),
            Curve::through(&[
                (-12.0, 4.6),
                (-2.5, 4.3),
                (0.0, 3.6),
                (1.8, 2.8),
                (knob - 1.7, 2.55),
                (knob, 2.9 + habitus.knob),
                (knob + 1.7, 2.75),
                (carina + 1.7, 3.2 + 4.0 * swell),
                (reach(l, 0.28), left * 0.62),
                (reach(l, 0.56), left * 0.87),
                (reach(l, 0.86), left),
                (reach(l, 1.12), left * 0.94),
                (reach(l, 1.5), left * 0.55),
            ]),
        ];
        let filling = Curve::through(&[
            (-12.0, 8.0),
            (0.0, 7.5),
            (carina, 8.6),
            (reach(height, 0.5), (10.5 + 10.0 * swell).min(1.65 * deep)),
            (height + 3.0, (11.0 + 10.0 * swell).min(1.7 * deep)),
        ]);
        let outer = width + 1.0 + habitus.wall;
        let outline = Curve::through(&[
            (-14.0, 31.0),
            (0.0, 29.0),
            (5.0, outer + 6.5),
            (9.0, outer + 1.6),
            (13.0, outer + 0.2),
            (20.0, outer - 0.3),
            (27.0, outer - 0.6 + 0.25 * habitus.wall),
            (40.0, outer - 0.4 + 0.5 * habitus.wall),
        ]);
        let front = deep + 1.2 + 0.55 * habitus.wall;
        let trunk = Curve::through(&[
            (-16.0, 5.2),
            (-7.0, 5.6),
            (-2.0, 0.62 * front + 1.0),
            (4.0, 0.88 * front + 0.4),
            (10.0, front),
            (22.0, front + 0.4),
            (40.0, front + 0.3),
        ]);
        let lift = pose.shrug;
        let shoulder = Curve::through(&[
            (0.0, -40.0),
            (5.6, -22.0),
            (6.6, -8.5 - 0.3 * lift),
            (8.5, -5.6 - 0.6 * lift),
            (12.0, -3.9 - lift),
            (17.0, -2.4 - lift),
            (21.0, 0.2 - lift),
            (26.0, 6.0),
        ]);
        let shift = 0.55 * pose.turn + effects.shift;
        let hila = [[-3.9 + 0.6 * shift, carina + 2.5], [4.1 + 0.6 * shift, carina + 1.7]];
        Self { habitus, pose, dome, drop, carina, hila, shift, cage, depth, borders, filling, outline, trunk, shoulder }
    }

    /// Sideways place of the spine.
    pub fn spine(&self, y: f32) -> f32 {
        self.habitus.scoliosis * libm::sinf(0.17 * (y - 2.0)) - 0.25 * self.pose.turn
    }

    /// Inner half-width of the rib cage.
    pub fn cage(&self, y: f32) -> f32 {
        self.cage.at(y)
    }

    /// Place of the mediastinum's or heart's border.
    pub fn border(&self, side: Side, y: f32) -> f32 {
        // Mediastinal shift acts in full at the heart and fades at the thoracic inlet.
        SIGNS[side.index()] * self.borders[side.index()].at(y) + self.shift * step(-2.0, 6.0, y)
    }

    /// Height of the lower costophrenic angle.
    pub fn angle(&self, side: Side) -> f32 {
        self.dome[side.index()] + self.drop
    }

    /// Height of the diaphragm over a place.
    pub fn diaphragm(&self, x: f32) -> f32 {
        let a = x.abs();
        // The central tendon joins the domes.
        let dome = mix(self.dome[0], self.dome[1], step(-3.0, 3.0, x));
        let bottom = dome + self.drop;
        let (peak, end) = (0.47 * self.habitus.half_width, self.cage(bottom));
        if a > peak {
            let u = (a - peak) / (end - peak);
            bottom - self.drop * (1.0 - u * u).max(0.0).sqrt()
        } else {
            let u = (peak - a) / peak;
            dome + 1.7 * u * u
        }
    }

    /// The place in a lung at `across` (0 the mediastinum, 1 the ribs) and `down` (0 the apex, 1 the diaphragm).
    pub fn lung(&self, side: Side, across: f32, down: f32) -> [f32; 2] {
        let s = SIGNS[side.index()];
        let mut x = s * 0.6 * self.habitus.half_width;
        let mut y = 0.0;
        // The diaphragm's height depends on the place itself: two rounds settle it.
        for _ in 0..2 {
            y = mix(0.8, self.diaphragm(x), down);
            x = mix(self.border(side, y), s * self.cage(y), across);
        }
        [x, y]
    }

    /// Depth of the lung in cm along the beam, 0 outside the lungs.
    pub fn air(&self, [x, y]: [f32; 2]) -> f32 {
        let cage = self.cage(y);
        let u = x.abs() / cage.max(0.01);
        if u >= 1.0 {
            return 0.0;
        }
        let chord = 2.0 * self.depth.at(y) * (1.0 - u * u * u).sqrt();
        let under = y - self.diaphragm(x);
        // Behind the dome the lung goes on into the posterior recess.
        let recess = 0.13 * (1.0 - under / 6.0).clamp(0.0, 1.0);
        let open = mix(1.0, recess, step(-0.14, 0.14, under)) * step(0.3, 0.0, y - self.angle(Side::of(x)));
        let side = Side::of(x - self.shift * step(-2.0, 6.0, y));
        let middle = self.shift * step(-2.0, 6.0, y);
        let across = (x - middle) / (self.border(side, y) - middle);
        let heart = self.filling.at(y) * (1.0 - across * across).max(0.0).sqrt();
        let column = (x - self.spine(y)) / 2.35;
        let column = 2.6 * (1.0 - column * column).max(0.0);
        ((chord - heart - column).max(0.0) * open).max(0.0)
    }

    /// Soft tissue of trunk, neck, shoulders in cm along the beam, 0 beside the body; lungs are not yet taken out.
    pub fn body(&self, [x, y]: [f32; 2]) -> f32 {
        let a = x.abs();
        let u = a / self.outline.at(y);
        if u >= 1.0 {
            return 0.0;
        }
        let below = ((y - self.shoulder.at(a)) / 4.5).clamp(0.0, 1.0);
        2.0 * self.trunk.at(y) * (1.0 - u * u * u).sqrt() * (below * (2.0 - below)).sqrt()
    }

    /// Whether a place lies in the heart's silhouette above the diaphragm.
    pub fn in_heart(&self, [x, y]: [f32; 2]) -> bool {
        y > self.carina + 2.6
            && y < self.diaphragm(x)
            && x > self.border(Side::Right, y)
            && x < self.border(Side::Left, y)
    }
}
