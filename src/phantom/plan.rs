//! What a film shows: which findings, where, how severe, and what else catches the eye.

use super::canvas::mix;
use crate::rng::Rng;

/// The findings that a phantom can show.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Label {
    /// Heart wider than half of the chest.
    Cardiomegaly,
    /// Fluid between lung and chest wall.
    Effusion,
    /// Air spaces filled.
    Consolidation,
    /// Air between lung and chest wall.
    Pneumothorax,
    /// A round opacity below 3.5 cm.
    Nodule,
    /// Lung without air: bands, or a lobe that lost its volume.
    Atelectasis,
    /// A line, tube or pacemaker.
    Device,
}

impl Label {
    /// Every label, in the order of the tables.
    pub const ALL: [Label; 7] = [
        Label::Cardiomegaly,
        Label::Effusion,
        Label::Consolidation,
        Label::Pneumothorax,
        Label::Nodule,
        Label::Atelectasis,
        Label::Device,
    ];

    /// The name in labels, prompts and boxes.
    pub fn name(self) -> &'static str {
        match self {
            Label::Cardiomegaly => "cardiomegaly",
            Label::Effusion => "pleural effusion",
            Label::Consolidation => "consolidation",
            Label::Pneumothorax => "pneumothorax",
            Label::Nodule => "nodule",
            Label::Atelectasis => "atelectasis",
            Label::Device => "support device",
        }
    }
}

/// A side of the patient; the right is on the image's left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The patient's right.
    Right,
    /// The patient's left.
    Left,
}

impl Side {
    pub(super) fn draw(rng: &mut Rng) -> Self {
        if rng.chance(0.5) { Side::Right } else { Side::Left }
    }

    pub(super) fn of(x: f32) -> Self {
        if x < 0.0 { Side::Right } else { Side::Left }
    }

    pub(super) fn index(self) -> usize {
        self as usize
    }

    pub(super) fn other(self) -> Self {
        if self == Side::Right { Side::Left } else { Side::Right }
    }

    /// The word of reports.
    pub fn name(self) -> &'static str {
        if self == Side::Right { "right" } else { "left" }
    }
}

/// How much of a finding there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Easily missed.
    Mild,
    /// Plain.
    Moderate,
    /// Seen from across the room.
    Severe,
}

impl Severity {
    fn draw(rng: &mut Rng) -> Self {
        let x = rng.uniform();
        if x < 0.15 {
            Severity::Mild
        } else if x < 0.6 {
            Severity::Moderate
        } else {
            Severity::Severe
        }
    }

    /// One of three values.
    fn pick<T: Copy>(self, values: [T; 3]) -> T {
        values[self as usize]
    }
}

/// A third of a lung.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Zone {
    Upper,
    Middle,
    Lower,
}

impl Zone {
    pub fn name(self) -> &'static str {
        match self {
            Zone::Upper => "upper",
            Zone::Middle => "mid",
            Zone::Lower => "lower",
        }
    }

    /// The third that a share of the height lies in.
    fn of(down: f32) -> Self {
        if down < 0.36 {
            Zone::Upper
        } else if down < 0.64 {
            Zone::Middle
        } else {
            Zone::Lower
        }
    }
}

/// How a central line comes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Route {
    Jugular,
    Subclavian,
    Peripheral,
    Port,
}

/// A device and where it lies.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Device {
    /// Its tip is this far above the carina, cm.
    Endotracheal {
        above: f32,
    },
    Gastric {
        bend: f32,
    },
    Central {
        side: Side,
        route: Route,
    },
    Pacemaker {
        side: Side,
        leads: usize,
        low: f32,
    },
    ChestTube {
        side: Side,
        up: f32,
    },
}

/// A finding's shape. Places in a lung are (across, down): from mediastinum to ribs, from apex to diaphragm, 0 to 1.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Shape {
    Heart { ratio: f32 },
    Fluid { side: Side, height: f32, rise: f32 },
    Filled { side: Side, zone: Zone, centre: [f32; 2], radii: [f32; 2], density: f32, fissure: bool },
    FreeAir { side: Side, apex: f32, lateral: f32, reach: f32 },
    Round { side: Side, zone: Zone, place: [f32; 2], radius: f32 },
    Band { side: Side, start: [f32; 2], angle: f32, length: f32, half: f32, sag: f32 },
    Collapse { side: Side, zone: Zone, density: f32 },
    Device(Device),
}

/// A finding as planned.
#[derive(Clone, Debug)]
pub(super) struct Planned {
    pub label: Label,
    /// `None`: both sides or the midline.
    pub side: Option<Side>,
    pub severity: Severity,
    pub shapes: Vec<Shape>,
}

/// Things that are not findings.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Distractor {
    Nipples,
    Callus { side: Side, rib: usize },
    Calcification { side: Side, place: [f32; 2], radius: f32 },
    SkinFold { side: Side, slant: f32 },
    Leads,
    SternalWires,
    Spondylosis,
}

/// What one film shows.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub findings: Vec<Planned>,
    pub distractors: Vec<Distractor>,
}

/// How findings move the anatomy around them.
#[derive(Clone, Debug, Default)]
pub(super) struct Effects {
    /// Cardiothoracic ratio, where a finding sets it.
    pub heart: Option<f32>,
    /// Raised domes, cm: right, left.
    pub raised: [f32; 2],
    /// Shift of heart and trachea to the patient's left, cm.
    pub shift: f32,
}

/// What a finding leaves of a lung to others: bounds on (across, down).
#[derive(Clone, Copy)]
struct Free {
    across: [f32; 2],
    down: [f32; 2],
}

impl Free {
    const ALL: Free = Free { across: [0.0, 1.0], down: [0.0, 1.0] };

    fn room(&self) -> f32 {
        (self.across[1] - self.across[0]).max(0.0) * (self.down[1] - self.down[0]).max(0.0)
    }

    fn cut(&mut self, by: Free) {
        self.across = [self.across[0].max(by.across[0]), self.across[1].min(by.across[1])];
        self.down = [self.down[0].max(by.down[0]), self.down[1].min(by.down[1])];
    }

    /// A place within, as near as there is room to the wanted bounds.
    fn place(&self, rng: &mut Rng, across: [f32; 2], down: [f32; 2]) -> [f32; 2] {
        let mut inside = |free: [f32; 2], wanted: [f32; 2]| {
            let low = wanted[0].max(free[0]).min(wanted[1]);
            let high = wanted[1].min(free[1]).max(low);
            mix(low, high, rng.uniform() as f32)
        };
        [inside(self.across, across), inside(self.down, down)]
    }
}

impl Plan {
    /// Draws what a film shows: no finding in about 28 of 100, one in 38, two in 24, three in 10.
    pub fn draw(rng: &mut Rng) -> Self {
        let x = rng.uniform();
        let count = [0.28, 0.66, 0.90].iter().filter(|&&bound| x >= bound).count();
        let mut labels = Label::ALL;
        rng.shuffle(&mut labels);
        // In this order each finding takes a side that the earlier ones left.
        let mut chosen = labels[..count].to_vec();
        let order = |label: &Label| {
            use Label::*;
            [Pneumothorax, Effusion, Atelectasis, Consolidation, Device, Nodule, Cardiomegaly]
                .iter()
                .position(|other| other == label)
        };
        chosen.sort_by_key(order);
        let mut free = [Free::ALL; 2];
        let mut findings: Vec<Planned> = chosen.into_iter().map(|label| Planned::draw(label, rng, &mut free)).collect();
        findings.sort_by_key(|finding| finding.label);
        Self { findings, distractors: distractors(rng) }
    }

    /// What the findings do to the anatomy.
    pub fn effects(&self) -> Effects {
        let mut effects = Effects::default();
        for shape in self.findings.iter().flat_map(|finding| &finding.shapes) {
            match *shape {
                Shape::Heart { ratio } => effects.heart = Some(ratio),
                // Much fluid or air pushes the mediastinum away; lost volume draws it near.
                Shape::Fluid { side, height, .. } => {
                    effects.shift += away(side) * 0.22 * (height - 9.0).clamp(0.0, 6.0);
                }
                Shape::FreeAir { side, lateral, .. } => {
                    effects.shift += away(side) * 0.45 * (lateral - 3.5).clamp(0.0, 4.0);
                    effects.raised[side.index()] -= 0.25 * (lateral - 3.0).clamp(0.0, 4.0);
                }
                Shape::Collapse { side, zone, .. } => {
                    effects.shift -= away(side) * if zone == Zone::Upper { 1.3 } else { 1.7 };
                    effects.raised[side.index()] += if zone == Zone::Upper { 2.2 } else { 3.0 };
                }
                Shape::Band { side, half, .. } => effects.raised[side.index()] += 1.2 * half,
                _ => {}
            }
        }
        effects
    }
}

/// The sign of a move away from a side.
fn away(side: Side) -> f32 {
    if side == Side::Right { 1.0 } else { -1.0 }
}

/// The side with more room left, or any where both have enough.
fn roomy(rng: &mut Rng, free: &[Free; 2]) -> Side {
    let room = [0, 1].map(|i| free[i].room());
    let side = Side::draw(rng);
    if room[side.index()] < 0.9 && room[side.other().index()] > room[side.index()] { side.other() } else { side }
}

impl Planned {
    fn draw(label: Label, rng: &mut Rng, free: &mut [Free; 2]) -> Self {
        let severity = Severity::draw(rng);
        let between = |rng: &mut Rng, [low, high]: [f64; 2]| rng.range(low, high) as f32;
        let single =
            |side: Side, severity: Severity, shapes: Vec<Shape>| Self { label, side: Some(side), severity, shapes };
        match label {
            Label::Cardiomegaly => {
                let ratio = between(rng, severity.pick([[0.55, 0.58], [0.59, 0.64], [0.64, 0.72]]));
                Self { label, side: None, severity, shapes: vec![Shape::Heart { ratio }] }
            }
            Label::Effusion => {
                let both = free.iter().all(|f| f.room() == 1.0) && rng.chance(0.22);
                let side = roomy(rng, free);
                let severity = if free[side.index()].room() < 1.0 { Severity::Mild } else { severity };
                let mut fluid = |side: Side, severity: Severity| {
                    let height = between(rng, severity.pick([[2.8, 4.2], [5.0, 9.0], [9.5, 15.0]]));
                    free[side.index()].cut(Free { down: [0.0, 0.95 - 0.05 * height], ..Free::ALL });
                    Shape::Fluid {
                        side,
                        height,
                        rise: between(rng, severity.pick([[1.6, 2.8], [2.8, 5.0], [4.0, 7.0]])),
                    }
                };
                let mut shapes = vec![fluid(side, severity)];
                if both {
                    shapes.push(fluid(side.other(), severity.min(Severity::Moderate)));
                }
                Self { label, side: (!both).then_some(side), severity, shapes }
            }
            Label::Pneumothorax => {
                let side = roomy(rng, free);
                let (apex, lateral, reach) = match severity {
                    Severity::Mild => ([2.6, 3.6], [1.4, 2.0], [0.7, 0.95]),
                    Severity::Moderate => ([3.6, 5.6], [2.4, 3.8], [1.0, 1.5]),
                    Severity::Severe => ([5.0, 8.5], [4.2, 7.5], [1.8, 3.0]),
                };
                let shape = Shape::FreeAir {
                    side,
                    apex: between(rng, apex),
                    lateral: between(rng, lateral),
                    reach: between(rng, reach),
                };
                free[side.index()].cut(match severity {
                    Severity::Mild => Free { across: [0.0, 0.72], down: [0.35, 1.0] },
                    Severity::Moderate => Free { across: [0.0, 0.52], down: [0.4, 1.0] },
                    Severity::Severe => Free { across: [0.0, 0.3], down: [0.4, 0.8] },
                });
                single(side, severity, vec![shape])
            }
            Label::Consolidation => {
                let both = free.iter().all(|f| f.room() == 1.0) && rng.chance(0.14);
                let first = roomy(rng, free);
                let mut shapes = Vec::new();
                for side in if both { vec![first, first.other()] } else { vec![first] } {
                    let [across, down] = free[side.index()].place(rng, [0.25, 0.75], [0.14, 0.9]);
                    let zone = Zone::of(down);
                    let large = severity.pick([0.85, 1.1, 1.35]);
                    let radii = [between(rng, [3.4, 5.4]) * large, between(rng, [2.8, 5.0]) * large];
                    let density = between(rng, severity.pick([[0.42, 0.52], [0.56, 0.7], [0.7, 0.88]]));
                    // The minor fissure bounds what lies just above or below it in the right lung.
                    let fissure = side == Side::Right && (0.2..0.75).contains(&down) && rng.chance(0.5);
                    free[side.index()].cut(if down > 0.5 {
                        Free { down: [0.0, down - 0.25], ..Free::ALL }
                    } else {
                        Free { down: [down + 0.25, 1.0], ..Free::ALL }
                    });
                    shapes.push(Shape::Filled { side, zone, centre: [across, down], radii, density, fissure });
                }
                Self { label, side: (!both).then_some(first), severity, shapes }
            }
            Label::Nodule => {
                let count = if rng.chance(0.5) { 2 + rng.below(3) } else { 1 };
                let mut shapes: Vec<Shape> = Vec::new();
                let (mut tries, mut sides) = (0, [false; 2]);
                while shapes.len() < count && tries < 60 {
                    tries += 1;
                    let side = roomy(rng, free);
                    let place = free[side.index()].place(rng, [0.38, 0.82], [0.18, 0.8]);
                    let hilar = place[0] < 0.5 && (0.35..0.65).contains(&place[1]);
                    let near = |shape: &Shape| {
                        matches!(*shape, Shape::Round { side: s, place: p, .. }
                            if s == side && (p[0] - place[0]).abs() < 0.25 && (p[1] - place[1]).abs() < 0.2)
                    };
                    if (hilar || shapes.iter().any(near)) && tries < 50 {
                        continue;
                    }
                    sides[side.index()] = true;
                    let radius = between(rng, severity.pick([[0.65, 0.9], [1.0, 1.4], [1.4, 1.75]]));
                    shapes.push(Shape::Round { side, zone: Zone::of(place[1]), place, radius });
                }
                let side = match sides {
                    [true, false] => Some(Side::Right),
                    [false, true] => Some(Side::Left),
                    _ => None,
                };
                Self { label, side, severity, shapes }
            }
            Label::Atelectasis => {
                let side = roomy(rng, free);
                let room = free[side.index()];
                if room.room() == 1.0 && rng.chance(0.6) {
                    let zone = if rng.chance(0.4) { Zone::Upper } else { Zone::Lower };
                    let density = between(rng, severity.pick([[0.5, 0.6], [0.62, 0.78], [0.78, 0.92]]));
                    free[side.index()].cut(if zone == Zone::Upper {
                        Free { down: [0.5, 1.0], ..Free::ALL }
                    } else {
                        Free { across: [0.5, 1.0], down: [0.0, 0.75] }
                    });
                    return single(side, severity, vec![Shape::Collapse { side, zone, density }]);
                }
                let both = severity != Severity::Mild && free.iter().all(|f| f.room() == 1.0) && rng.chance(0.22);
                let mut shapes = Vec::new();
                for side in if both { vec![side, side.other()] } else { vec![side] } {
                    let start = room.place(rng, [0.2, 0.5], [0.6, 0.93]);
                    let slope = between(rng, [-0.3, 0.35]);
                    for line in 0..severity.pick([1, 2, 2]) + rng.below(2) {
                        let down = start[1] - 0.11 * line as f32;
                        shapes.push(Shape::Band {
                            side,
                            start: [start[0] + between(rng, [-0.06, 0.06]), down],
                            angle: slope + between(rng, [-0.12, 0.12]),
                            length: between(rng, severity.pick([[4.2, 5.6], [5.4, 7.6], [6.0, 9.0]])),
                            half: between(rng, severity.pick([[0.3, 0.4], [0.42, 0.58], [0.55, 0.78]])),
                            sag: between(rng, [-0.5, 0.5]),
                        });
                    }
                    free[side.index()].cut(Free { down: [0.0, start[1] - 0.15], ..Free::ALL });
                }
                Self { label, side: (!both).then_some(side), severity, shapes }
            }
            Label::Device => {
                let mut devices = vec![device(rng)];
                if matches!(devices[0], Device::Endotracheal { .. }) && rng.chance(0.8) {
                    devices.push(Device::Gastric { bend: between(rng, [-1.0, 1.0]) });
                } else if rng.chance(0.3) {
                    let second = device(rng);
                    if std::mem::discriminant(&second) != std::mem::discriminant(&devices[0]) {
                        devices.push(second);
                    }
                }
                for device in &devices {
                    // A pacemaker's can hides what lies behind it.
                    if let Device::Pacemaker { side, .. } = *device {
                        free[side.index()].cut(Free { down: [0.5, 1.0], ..Free::ALL });
                    }
                }
                let side = match devices[..] {
                    [
                        Device::Central { side, .. } | Device::Pacemaker { side, .. } | Device::ChestTube { side, .. },
                    ] => Some(side),
                    _ => None,
                };
                let severity = if devices.len() > 1 { Severity::Severe } else { Severity::Moderate };
                Self { label, side, severity, shapes: devices.into_iter().map(Shape::Device).collect() }
            }
        }
    }
}

fn device(rng: &mut Rng) -> Device {
    let x = rng.uniform();
    if x < 0.22 {
        Device::Endotracheal { above: rng.range(1.6, 5.0) as f32 }
    } else if x < 0.28 {
        Device::Gastric { bend: rng.range(-1.0, 1.0) as f32 }
    } else if x < 0.52 {
        let routes = [Route::Jugular, Route::Subclavian, Route::Peripheral, Route::Port];
        let side = if rng.chance(0.65) { Side::Right } else { Side::Left };
        Device::Central { side, route: routes[rng.below(4)] }
    } else if x < 0.88 {
        let side = if rng.chance(0.8) { Side::Left } else { Side::Right };
        Device::Pacemaker { side, leads: 1 + rng.below(2), low: rng.range(0.0, 1.0) as f32 }
    } else {
        Device::ChestTube { side: Side::draw(rng), up: rng.range(0.0, 1.0) as f32 }
    }
}

fn distractors(rng: &mut Rng) -> Vec<Distractor> {
    let mut all = Vec::new();
    if rng.chance(0.015) {
        all.push(Distractor::Nipples);
    }
    if rng.chance(0.02) {
        all.push(Distractor::Callus { side: Side::draw(rng), rib: 4 + rng.below(5) });
    }
    if rng.chance(0.02) {
        let place = [rng.range(0.15, 0.7) as f32, rng.range(0.2, 0.7) as f32];
        all.push(Distractor::Calcification { side: Side::draw(rng), place, radius: rng.range(0.12, 0.18) as f32 });
    }
    if rng.chance(0.02) {
        all.push(Distractor::SkinFold { side: Side::draw(rng), slant: rng.range(-0.5, 0.5) as f32 });
    }
    if rng.chance(0.015) {
        all.push(Distractor::Leads);
    }
    if rng.chance(0.02) {
        all.push(Distractor::SternalWires);
    }
    if rng.chance(0.06) {
        all.push(Distractor::Spondylosis);
    }
    all
}
