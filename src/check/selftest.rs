//! Whether the program computes on this machine what it should: kernels, gradients, small models, threads, speed.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Instant, SystemTime};

use kernels_cpu::Isa;
use kernels_cpu::gemm::{Mat, gemm};
use kernels_cpu::par::Pool;
use serde::Serialize;

use super::golden::{self, Golden, Model};
use super::kernels::{KERNELS, Kernel};
use super::machine::{Machine, day};
use crate::device::Gpu;
use crate::dtype::DType;
use crate::gradcheck::{COMPOSED, GRADIENT, Gen, ON_DEVICE, SINGLE, Tolerance};
use crate::ops::{Entry, REGISTRY};
use crate::rng::Rng;

/// What is tested, and by what it is judged.
pub struct Settings<'a> {
    /// The ops.
    pub ops: &'a [Entry],
    /// What the golden models must compute.
    pub golden: Golden,
    /// Threads of the test of speed.
    pub threads: usize,
    /// A device that is tested too, or why there is none.
    pub gpu: Result<Gpu, String>,
}

impl Settings<'static> {
    /// Everything on the CPU, by the numbers that are built in.
    pub fn new(threads: usize) -> Self {
        Self { ops: REGISTRY, golden: Golden::embedded(), threads, gpu: Err("not asked for".to_owned()) }
    }
}

/// The parts of the test.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// An op's f32 kernels on a tier, value and gradient, or a kernel outside of ops, against its definition in f64: largest error.
    Kernels,
    /// An op's gradient in f64 against central differences: largest error.
    Gradients,
    /// A fused op against its composition, value and gradient in f64: largest difference.
    Fused,
    /// A small model, four steps of training, against built-in numbers: largest difference.
    Golden,
    /// Numbers of a small model that are other ones with more threads than with one.
    Threads,
    /// A matrix product, in GFLOP/s.
    Speed,
}

/// What is allowed of a measured value.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// No more.
    AtMost(f64),
    /// No less.
    AtLeast(f64),
}

/// One check.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// What kind of check.
    pub part: Part,
    /// Of what: an op, a model.
    pub name: String,
    /// Where: a tier, f64, a number of threads.
    pub on: String,
    /// What came out; not finite (null in JSON) where nothing comparable did.
    pub measured: f64,
    /// What had to.
    pub limit: Limit,
    /// Whether it did.
    pub passed: bool,
    /// More, where it did not.
    pub why: Option<String>,
}

/// A tolerance that all checks of a part share; every finding names its own as well.
#[derive(Clone, Debug, Serialize)]
pub struct Allowed {
    /// Of what.
    pub part: Part,
    /// Where: f64, or f32 on any tier.
    pub on: &'static str,
    /// How much, and why.
    #[serde(flatten)]
    pub tolerance: Tolerance,
}

/// The tolerances of all parts that have one. No op or kernel has another.
pub fn tolerances() -> Vec<Allowed> {
    let of = |part, on, tolerance| Allowed { part, on, tolerance };
    let same = Tolerance {
        most: 0.0,
        why: "work is split by output and sums are taken in a fixed order, whatever the number of threads",
    };
    vec![
        of(Part::Gradients, "f64", GRADIENT),
        of(Part::Fused, "f64", COMPOSED),
        of(Part::Kernels, "f32", SINGLE),
        of(Part::Kernels, VULKAN, ON_DEVICE),
        of(Part::Golden, "f64", golden::DOUBLE),
        of(Part::Golden, "f32", golden::SINGLE),
        of(Part::Threads, "f32", same),
    ]
}

/// The whole record.
#[derive(Clone, Debug, Serialize)]
pub struct Record {
    /// Version of this form.
    pub schema: u32,
    /// The program's.
    pub version: &'static str,
    /// When, in UTC.
    pub date: String,
    /// Where.
    pub machine: Machine,
    /// The tier that the program's kernels run on here.
    pub tier: &'static str,
    /// Its threads.
    pub threads: usize,
    /// The device that was tested, or why none was.
    pub gpu: String,
    /// What errors are allowed, and why.
    pub tolerances: Vec<Allowed>,
    /// Every check.
    pub findings: Vec<Finding>,
    /// Whether all passed.
    pub passed: bool,
    /// How long it took.
    pub seconds: f64,
}

/// Runs every check; `say` is told what begins.
pub fn selftest(settings: &Settings<'_>, say: &dyn Fn(&str)) -> Record {
    let began = Instant::now();
    let mut findings = Vec::new();
    let tiers: Vec<Isa> = Isa::available().collect();
    say(&format!("{} ops: kernels of {} tiers, gradients", settings.ops.len(), tiers.len()));
    settings.ops.iter().for_each(|op| check_op(op, &tiers, settings.gpu.as_ref().ok(), &mut findings));
    KERNELS.iter().for_each(|kernel| check_kernel(kernel, &tiers, &mut findings));
    say("golden models");
    Model::ALL.into_iter().for_each(|model| check_model(model, &settings.golden, &tiers, &mut findings));
    say("threads");
    Model::ALL.into_iter().for_each(|model| check_threads(model, &mut findings));
    say("speed");
    check_speed(&tiers, settings.threads, &mut findings);
    Record {
        schema: 1,
        version: env!("CARGO_PKG_VERSION"),
        date: day(SystemTime::now()),
        machine: Machine::this(),
        tier: Isa::current().name(),
        threads: settings.threads,
        gpu: settings.gpu.as_ref().map_or_else(Clone::clone, Gpu::describe),
        tolerances: tolerances(),
        passed: findings.iter().all(|finding| finding.passed),
        findings,
        seconds: began.elapsed().as_secs_f64(),
    }
}

/// A check whose measure must be at most `most`; a panic is a failed one.
fn at_most(part: Part, name: &str, on: &str, most: f64, measure: impl FnOnce() -> (f64, Option<String>)) -> Finding {
    let caught = catch_unwind(AssertUnwindSafe(measure)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        (f64::INFINITY, Some(text.unwrap_or("panicked").to_owned()))
    });
    let (measured, why) = caught;
    let passed = measured <= most;
    let why = why.filter(|_| !passed);
    Finding { part, name: name.to_owned(), on: on.to_owned(), measured, limit: Limit::AtMost(most), passed, why }
}

/// Sizes that cases are drawn with: below, at and beyond vectors and their tails.
const SIZES: [usize; 4] = [3, 7, 12, 23];

/// Where a device's checks are.
const VULKAN: &str = "vulkan";

fn check_op(op: &Entry, tiers: &[Isa], gpu: Option<&Gpu>, findings: &mut Vec<Finding>) {
    // The same cases wherever they run.
    let cases = |sizes: &'static [usize]| {
        sizes.iter().enumerate().map(|(seed, &size)| {
            let mut g = Gen::new(seed as u64 + 1, size);
            ((op.cases)(&mut g), g.rng)
        })
    };
    findings.push(at_most(Part::Gradients, op.name, "f64", GRADIENT.most, || {
        let mut largest = 0.0f64;
        for (case, mut rng) in cases(&SIZES[..2]) {
            match case.gradient(&mut rng) {
                Ok(error) => largest = largest.max(error),
                Err(mismatch) => return (f64::INFINITY, Some(mismatch.to_string())),
            }
        }
        (largest, None)
    }));
    findings.push(at_most(Part::Fused, op.name, "f64", COMPOSED.most, || {
        (cases(&SIZES[..2]).map(|(case, mut rng)| case.composed_deviation(&mut rng)).fold(0.0, f64::max), None)
    }));
    for &isa in tiers {
        let pool = Pool::on(isa, 1);
        findings.push(at_most(Part::Kernels, op.name, isa.name(), SINGLE.most, || {
            let of = |(case, mut rng): (crate::gradcheck::Case, Rng)| pool.install(|| case.single_deviation(&mut rng));
            (cases(&SIZES).map(of).fold(0.0, f64::max), None)
        }));
    }
    if gpu.is_some() {
        findings.push(at_most(Part::Kernels, op.name, VULKAN, ON_DEVICE.most, || {
            (cases(&SIZES).map(|(case, mut rng)| case.deviation_on(gpu, &mut rng)).fold(0.0, f64::max), None)
        }));
    }
}

fn check_kernel(kernel: &Kernel, tiers: &[Isa], findings: &mut Vec<Finding>) {
    for &isa in tiers {
        let pool = Pool::on(isa, 1);
        findings.push(at_most(Part::Kernels, kernel.name, isa.name(), SINGLE.most, || {
            (pool.install(|| (kernel.deviation)(&mut Rng::new(1, 0x6b65_726e))), None)
        }));
    }
}

fn check_model(model: Model, golden: &Golden, tiers: &[Isa], findings: &mut Vec<Finding>) {
    let against = |dtype: DType, isa: Isa| {
        let Some(expected) = golden.0.get(model.name()) else {
            return (f64::INFINITY, Some("no numbers of this name".to_owned()));
        };
        let found = Pool::on(isa, 1).install(|| model.run(dtype).numbers);
        let (off, row) = golden::difference(&found, expected);
        (off, Some(row))
    };
    let mut check = |on: &str, most, dtype, isa| {
        findings.push(at_most(Part::Golden, model.name(), on, most, || against(dtype, isa)));
    };
    check("f64", golden::DOUBLE.most, DType::F64, Isa::Scalar);
    tiers.iter().for_each(|&isa| check(isa.name(), golden::SINGLE.most, DType::F32, isa));
}

fn check_threads(model: Model, findings: &mut Vec<Finding>) {
    let run = |threads: usize| {
        let run = Pool::new(threads).install(|| model.run(DType::F32));
        run.numbers.into_values().flatten().chain(run.parameters).map(f64::to_bits).collect::<Vec<u64>>()
    };
    let one = run(1);
    for threads in [2, 3, 7] {
        findings.push(at_most(Part::Threads, model.name(), &format!("{threads} threads"), 0.0, || {
            let more = run(threads);
            let other = one.iter().zip(&more).filter(|(a, b)| a != b).count() + one.len().abs_diff(more.len());
            (other as f64, None)
        }));
    }
}

/// A matrix product of 320: with one thread on every tier, of which the one in use must not be slower than the scalar one; with all threads.
fn check_speed(tiers: &[Isa], threads: usize, findings: &mut Vec<Finding>) {
    const N: usize = 320;
    let values: Vec<f32> = (0..N * N).map(|k| (k % 17) as f32 - 8.0).collect();
    let rate = |pool: Pool| {
        pool.install(|| {
            let mut c = vec![0.0f32; N * N];
            let matrix = Mat::new(&values, N, N);
            let mut best = f64::INFINITY;
            for _ in 0..3 {
                let began = Instant::now();
                gemm(matrix, matrix, false, &mut c, N, None);
                best = best.min(began.elapsed().as_secs_f64());
            }
            2.0 * (N * N * N) as f64 / best / 1e9
        })
    };
    let mut push = |on: String, measured: f64, least: f64| {
        let passed = measured >= least;
        let (name, limit) = ("matrix product".to_owned(), Limit::AtLeast(least));
        findings.push(Finding { part: Part::Speed, name, on, measured, limit, passed, why: None });
    };
    let scalar = rate(Pool::on(Isa::Scalar, 1));
    for &isa in tiers {
        let measured = if isa == Isa::Scalar { scalar } else { rate(Pool::on(isa, 1)) };
        // Portable may be no faster than what the compiler makes of the scalar code; the others are several times as fast.
        let least = if isa == Isa::current() && isa > Isa::Portable { scalar } else { 0.0 };
        push(isa.name().to_owned(), measured, least);
    }
    push(format!("{}, {threads} threads", Isa::current()), rate(Pool::on(Isa::current(), threads)), 0.0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::{Case, Meta, Op, Output, Saved, Saves, apply};
    use crate::tensor::Tensor;

    /// y = 3x; in f32 times a factor, and with a derivative of 3 times another: bugs of a kernel and of a vjp where they are not 1.
    #[derive(Clone, Copy)]
    struct Triple {
        kernel: f64,
        vjp: f64,
    }

    impl Op for Triple {
        fn name(&self) -> &'static str {
            "triple"
        }
        fn shape(&self, x: &[Meta]) -> Meta {
            x[0]
        }
        fn cpu(&self, x: &[&Tensor], out: Meta) -> Output {
            let factor = if out.dtype == DType::F32 { 3.0 * self.kernel } else { 3.0 };
            assert!(factor.is_finite(), "planted");
            x[0].affine(factor, 0.0).into()
        }
        fn saves(&self, _: &[bool]) -> Saves {
            Saves::NOTHING
        }
        fn vjp(&self, _: &Saved, dy: &Tensor) -> Vec<Option<Tensor>> {
            vec![Some(dy.affine(3.0 * self.vjp, 0.0))]
        }
        fn cases(_: &mut Gen) -> Case {
            unreachable!("only used here")
        }
    }

    fn findings(cases: fn(&mut Gen) -> Case) -> Vec<Finding> {
        let mut findings = Vec::new();
        check_op(&Entry { name: "triple", cases }, &Isa::available().collect::<Vec<_>>(), None, &mut findings);
        findings
    }

    fn case(g: &mut Gen, op: Triple) -> Case {
        Case::new(vec![g.tensor([5, 3])], move |x| apply(op, &[&x[0]])).equals(|x| x[0].affine(3.0, 0.0))
    }

    #[test]
    fn planted_bugs_are_found() {
        let failed = |cases| {
            let failed = findings(cases).into_iter().filter(|f| !f.passed).map(|f| f.part);
            failed.collect::<Vec<_>>()
        };
        assert_eq!(failed(|g| case(g, Triple { kernel: 1.0, vjp: 1.0 })), []);
        let tiers = Isa::available().count();
        assert_eq!(failed(|g| case(g, Triple { kernel: 1.001, vjp: 1.0 })), vec![Part::Kernels; tiers]);
        assert_eq!(failed(|g| case(g, Triple { kernel: f64::NAN, vjp: 1.0 })), vec![Part::Kernels; tiers]);
        // The f32 path has the same wrong derivative, so only definitions tell.
        assert_eq!(failed(|g| case(g, Triple { kernel: 1.0, vjp: -1.0 })), [Part::Gradients, Part::Fused]);
    }

    #[test]
    fn kernels_outside_of_ops_are_right_and_a_wrong_one_is_found() {
        let (tiers, mut findings) = (Isa::available().collect::<Vec<_>>(), Vec::new());
        KERNELS.iter().for_each(|kernel| check_kernel(kernel, &tiers, &mut findings));
        assert!(findings.len() == KERNELS.len() * tiers.len() && findings.iter().all(|f| f.passed), "{findings:?}");
        let mut findings = Vec::new();
        check_kernel(&Kernel { name: "wrong", deviation: |_| 3e-6 }, &tiers, &mut findings);
        assert!(findings.len() == tiers.len() && findings.iter().all(|f| !f.passed), "{findings:?}");
    }

    /// Every limit that a finding has is one of those that are explained.
    #[test]
    fn every_tolerance_has_its_reason() {
        let mut findings = Vec::new();
        check_op(&REGISTRY[0], &[Isa::Scalar], None, &mut findings);
        check_kernel(&KERNELS[0], &[Isa::Scalar], &mut findings);
        check_model(Model::Vit, &Golden::embedded(), &[Isa::Scalar], &mut findings);
        check_threads(Model::Vit, &mut findings);
        for f in findings {
            let explained = |a: &Allowed| {
                a.part == f.part && f.limit == Limit::AtMost(a.tolerance.most) && a.tolerance.why.len() > 20
            };
            assert!(tolerances().iter().any(explained), "{f:?}");
        }
    }

    #[test]
    fn a_wrong_expected_value_is_found() {
        let tiers = [Isa::current()];
        let failed = |golden: &Golden| {
            let mut findings = Vec::new();
            check_model(Model::Vit, golden, &tiers, &mut findings);
            assert_eq!(findings.len(), 1 + tiers.len());
            findings.retain(|f| !f.passed);
            findings
        };
        let mut golden = Golden::embedded();
        assert!(failed(&golden).is_empty(), "{:?}", failed(&golden));
        golden.0.get_mut(Model::Vit.name()).unwrap().get_mut("patch_embeds").unwrap()[3] += 0.01;
        let found = failed(&golden);
        assert!(
            found.len() == 1 + tiers.len() && found.iter().all(|f| f.why.as_deref() == Some("patch_embeds")),
            "{found:?}"
        );
        golden.0.remove(Model::Vit.name());
        assert_eq!(failed(&golden).len(), 1 + tiers.len());
    }

    #[test]
    fn threads_do_not_change_a_bit_and_speed_is_measured() {
        let mut findings = Vec::new();
        check_threads(Model::Vit, &mut findings);
        assert!(findings.len() == 3 && findings.iter().all(|f| f.passed), "{findings:?}");
        let mut findings = Vec::new();
        check_speed(&[Isa::Scalar], 1, &mut findings);
        assert!(findings.len() == 2 && findings.iter().all(|f| f.measured > 0.01), "{findings:?}");
    }
}
