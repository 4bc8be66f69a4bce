//! Drawn chest radiographs with findings, impressions and boxes: a licence-free test bed.
//!
//! A film is drawn as it is made: a patient's [anatomy](self) is laid out in centimetres, the attenuation along every beam is
//! summed, and the sum is exposed, scattered, blurred and developed. Everything follows from (seed, index): the same pixels on
//! every platform and for any number of threads.

mod anatomy;
mod bones;
mod canvas;
mod devices;
mod film;
mod findings;
mod folder;
mod lungs;
mod plan;
mod prompts;
mod shadow;
#[cfg(test)]
mod tests;
mod words;

pub use folder::{Format, SIZES, write};
pub use plan::{Label, Severity, Side};
pub use prompts::{ALL_CLEAR, NORMAL, PROMPTS, Prompts};

use crate::rng::Rng;
use anatomy::{Anatomy, Habitus, Pose};
use canvas::View;
use film::Technique;
use plan::Plan;

/// A finding that a film shows.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// Which.
    pub label: Label,
    /// Where; `None` for both sides or the midline.
    pub side: Option<Side>,
    /// How much.
    pub severity: Severity,
    /// Tight boxes, `[x, y, width, height]` in pixels: one per part that shows.
    pub boxes: Vec<[u32; 4]>,
}

impl Finding {
    /// For people: "pleural effusion (left, moderate)".
    pub fn describe(&self) -> String {
        let severity = ["mild", "moderate", "severe"][self.severity as usize];
        match self.side {
            Some(side) => format!("{} ({}, {severity})", self.label.name(), side.name()),
            None => format!("{} ({severity})", self.label.name()),
        }
    }
}

/// A drawn film.
#[derive(Clone, Debug)]
pub struct Phantom {
    /// 16-bit grey, rows of `size`; dense parts are bright.
    pub pixels: Vec<u16>,
    /// Pixels per side.
    pub size: usize,
    /// What it shows, in the order of [`Label::ALL`]; none: a normal film.
    pub findings: Vec<Finding>,
    /// Number of the patient's first film: films with the same number are of the same patient.
    pub patient: u64,
    /// `train`, `val` or `test`: about 70, 10 and 20 of 100 films, by patient.
    pub split: &'static str,
    /// The impression.
    pub text: String,
}

/// What a random stream is for; a film's streams are independent, so that its words cannot move its pixels.
#[derive(Clone, Copy)]
enum Stream {
    Patients,
    Habitus,
    Plan,
    Pose,
    Technique,
    Shadow,
    Film,
    Words,
}

fn stream(seed: u64, index: u64, of: Stream) -> Rng {
    Rng::new(seed, index << 4 | of as u64)
}

/// The patient (the number of its first film) and split of a film. Patients have one to three films and are dealt to the splits
/// within blocks of twenty films, so that even small sets have all splits.
fn patient(seed: u64, index: u64) -> (u64, &'static str) {
    const BLOCK: u64 = 20;
    let mut rng = stream(seed, index / BLOCK, Stream::Patients);
    let mut patients: Vec<std::ops::Range<u64>> = Vec::new();
    let (mut next, end) = (index / BLOCK * BLOCK, (index / BLOCK + 1) * BLOCK);
    while next < end {
        let films = if rng.chance(0.75) { 1 } else { 2 + rng.below(2) as u64 };
        patients.push(next..(next + films).min(end));
        next += films;
    }
    rng.shuffle(&mut patients);
    let mut before = 0;
    for films in patients {
        if films.contains(&index) {
            return (
                films.start,
                if before < 4 {
                    "test"
                } else if before < 6 {
                    "val"
                } else {
                    "train"
                },
            );
        }
        before += films.end - films.start;
    }
    unreachable!("the patients of a block have all its films")
}

/// Everything that is decided before a film is drawn.
struct Scene {
    seed: u64,
    index: u64,
    plan: Plan,
    anatomy: Anatomy,
    technique: Technique,
    view: View,
}

impl Scene {
    fn new(seed: u64, index: u64, size: usize) -> Self {
        let plan = Plan::draw(&mut stream(seed, index, Stream::Plan));
        let anatomy = Self::anatomy(seed, index, &plan);
        let technique = Technique::draw(&mut stream(seed, index, Stream::Technique));
        let pose = &anatomy.pose;
        let view = View {
            size,
            cm: pose.field / size as f32,
            tilt: [libm::cosf(pose.tilt), libm::sinf(pose.tilt)],
            centre: [pose.centre[0], 0.5 * anatomy.dome[0] + 2.0 + pose.centre[1]],
        };
        Self { seed, index, plan, anatomy, technique, view }
    }

    /// The patient of a film, as the plan's findings shape him.
    fn anatomy(seed: u64, index: u64, plan: &Plan) -> Anatomy {
        let habitus = Habitus::draw(&mut stream(seed, patient(seed, index).0, Stream::Habitus));
        let pose = Pose::draw(&mut stream(seed, index, Stream::Pose));
        Anatomy::new(habitus, pose, &plan.effects())
    }

    fn cast(&self) -> shadow::Shadow {
        let open = |pixel| self.technique.open(pixel, self.view.size);
        let mut rng = stream(self.seed, self.index, Stream::Shadow);
        shadow::cast(&self.anatomy, &self.view, &self.plan, &mut rng, open)
    }
}

impl Phantom {
    /// Draws film `index` of `seed` with `size` pixels per side.
    pub fn draw(seed: u64, index: u64, size: usize) -> Self {
        let scene = Scene::new(seed, index, size);
        let shadow = scene.cast();
        let boxes = |bounds: &[shadow::Bounds]| bounds.iter().filter_map(|bounds| bounds.bbox()).collect();
        let findings = scene.plan.findings.iter().zip(&shadow.bounds);
        let findings = findings
            .map(|(planned, bounds)| Finding {
                label: planned.label,
                side: planned.side,
                severity: planned.severity,
                boxes: boxes(bounds),
            })
            .collect();
        let age = scene.anatomy.habitus.age;
        let text = words::impression(&scene.plan, age, &mut stream(seed, index, Stream::Words));
        let mut rng = stream(seed, index, Stream::Film);
        let pixels = scene.technique.expose(shadow.values, &scene.view, &mut rng);
        let (patient, split) = patient(seed, index);
        Self { pixels, size, findings, patient, split, text }
    }
}
