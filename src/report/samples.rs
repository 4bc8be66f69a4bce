//! Every report filled with invented values. `TIER_SAMPLES=DIR` makes the test write the pages there, to be looked at.

use super::demo::{self, DemoReport, SeedResult};
use super::eval::{self, EvalReport};
use super::heat::{self, Film, Grid, HeatMap};
use super::page::tests::check;
use super::results::*;
use super::run::{self, Checkpoint, Judged, RunReport};
use super::xray::{self, XrayLabel, XrayReport};
use crate::image::Picture;
use crate::rng::Rng;

const LABELS: [&str; 8] = [
    "normal",
    "cardiomegaly",
    "pleural effusion",
    "consolidation",
    "pneumothorax",
    "nodule",
    "atelectasis",
    "support device",
];

fn folder() -> Option<std::path::PathBuf> {
    std::env::var_os("TIER_SAMPLES").map(Into::into)
}

fn noise(seed: u64) -> impl FnMut() -> f64 {
    let mut rng = Rng::new(seed, 9);
    move || rng.uniform() - 0.5
}

/// Two dark lungs in a grey chest, with a bright spot.
fn chest(size: usize, spot: (f64, f64), seed: u64) -> Picture {
    let mut noise = noise(seed);
    let ellipse =
        |x: f64, y: f64, cx: f64, cy: f64, rx: f64, ry: f64| ((x - cx) / rx).powi(2) + ((y - cy) / ry).powi(2);
    let mut pixels = Vec::new();
    for i in 0..size * size {
        let (x, y) = ((i % size) as f64 / size as f64, (i / size) as f64 / size as f64);
        let lungs = ellipse(x, y, 0.3, 0.5, 0.16, 0.32).min(ellipse(x, y, 0.7, 0.5, 0.16, 0.32));
        let mut v = if ellipse(x, y, 0.5, 0.6, 0.46, 0.6) < 1.0 { 150.0 } else { 20.0 };
        v -= 105.0 * (1.0 / (1.0 + ((lungs - 1.0) * 6.0).exp()));
        v += 14.0 * ((y * 60.0 + (x - 0.5).abs() * 20.0).sin().max(0.0));
        v += 90.0 * (-ellipse(x, y, spot.0, spot.1, 0.08, 0.08)).exp();
        pixels.push((v + 12.0 * noise()).clamp(0.0, 255.0) as u8);
    }
    Picture { width: size, height: size, channels: 1, pixels }
}

fn grid(n: usize, spot: (f64, f64), sharp: f64, seed: u64) -> Grid {
    let mut noise = noise(seed);
    let scores = (0..n * n).map(|i| {
        let (x, y) = (((i % n) as f64 + 0.5) / n as f64, ((i / n) as f64 + 0.5) / n as f64);
        let d = (x - spot.0).powi(2) + (y - spot.1).powi(2);
        (0.5 * (-d * sharp).exp() - 0.12 + 0.25 / sharp.sqrt() * noise()) as f32
    });
    Grid::new(n, n, scores.collect()).unwrap()
}

fn example(label: &str, spot: (f64, f64), seed: u64) -> Example {
    let boxed = [(spot.0 - 0.1) * 128.0, (spot.1 - 0.1) * 128.0, 0.2 * 128.0, 0.2 * 128.0];
    Example {
        caption: label.into(),
        picture: chest(128, spot, seed),
        boxes: vec![boxed],
        maps: vec![
            ("unregularised".into(), grid(16, spot, 8.0, seed)),
            ("TIER".into(), grid(16, spot, 60.0, seed + 1)),
        ],
    }
}

fn model(name: &str, lift: f64) -> ModelResult {
    let mut noise = noise(lift.to_bits());
    let labels = (LABELS.iter().enumerate())
        .map(|(i, label)| {
            let auc = 0.86 + lift + 0.12 * noise();
            let power = (1.0 - auc) / auc;
            LabelResult {
                label: label.to_string(),
                positives: 40 + 7 * i,
                negatives: 360 - 7 * i,
                auroc: (i != 7).then(|| Estimate::within(auc, auc - 0.04, auc + 0.03)),
                ap: (i != 7).then_some(auc - 0.2),
                mcc: (i != 7).then_some(auc - 0.4),
                f1: (i != 7).then_some(auc - 0.3),
                threshold: (i != 7).then_some(0.013 * noise()),
                roc: (0..=1000)
                    .filter(|_| i != 7)
                    .map(|k| (f64::from(k) / 1e3, (f64::from(k) / 1e3).powf(power)))
                    .collect(),
            }
        })
        .collect();
    ModelResult {
        name: name.into(),
        labels,
        auc_mean: Some(Estimate::within(0.912 + lift, 0.9 + lift, 0.924 + lift)),
        retrieval: Some(Retrieval {
            recall_at_1: 0.21,
            recall_at_5: 0.55,
            chance_at_1: 0.0025,
            chance_at_5: 0.0125,
            n: 400,
        }),
        localisation: Some(Localisation {
            inside_minus_outside: Some(Estimate::within(0.08 + 6.0 * lift, 0.06 + 6.0 * lift, 0.1 + 6.0 * lift)),
            pointing_game: Some(Estimate::within(0.44 + 9.0 * lift, 0.4 + 9.0 * lift, 0.48 + 9.0 * lift)),
            pointing_chance: Some(0.08),
            centre_prior: Some(0.19),
            contrast_to_noise: Some(Estimate::within(0.8, 0.7, 0.9)),
            iou: vec![(0.1, 0.21), (0.2, 0.25), (0.3, 0.19)],
            findings: (LABELS[1..7].iter())
                .map(|l| {
                    let outside = -0.02 - lift + 0.05 * noise();
                    FindingSimilarity { label: l.to_string(), n: 60, inside: outside + 0.08 + 6.0 * lift, outside }
                })
                .collect(),
            n: 388,
        }),
        sparsity: Some(Sparsity { patches: 0.05 + 8.0 * lift, tokens: 0.03 + 3.0 * lift }),
        ranked: Some(Ranked {
            raw: (0..256).map(|i| 0.4 * (-(i as f64) * (0.01 + lift)).exp() - 0.1).collect(),
            normalised: (0..256).map(|i| 0.02 * (-(i as f64) * (0.01 + lift)).exp()).collect(),
            pairs: 160,
        }),
    }
}

fn differences() -> Differences {
    Differences {
        labels: (LABELS.iter().take(7).enumerate())
            .map(|(i, l)| {
                let d = 0.01 * (i as f64 - 2.0);
                (l.to_string(), Estimate::within(d, d - 0.012, d + 0.012))
            })
            .collect(),
        auc_mean: Some(Estimate::within(0.008, -0.002, 0.018)),
        inside_minus_outside: Some(Estimate::within(0.12, 0.09, 0.15)),
        pointing_game: Some(Estimate::within(0.18, 0.11, 0.25)),
        sparsity_patches: Some(Estimate::within(0.16, 0.15, 0.17)),
        sparsity_tokens: Some(Estimate::within(0.06, 0.05, 0.07)),
    }
}

fn course(name: &str, tier: f64) -> Course {
    let mut noise = noise(3);
    let mut steps = Vec::new();
    for i in 0..900 {
        let t = f64::from(i) / 900.0;
        let clip = 0.9 + 2.4 * (-5.0 * t).exp() + 0.3 * noise();
        let patch = 5.5 - 0.35 * tier * t;
        steps.push(LoggedStep {
            step: i as usize + 1,
            loss: clip + 0.2 * patch + 0.1 * (3.2 - 0.2 * t),
            loss_clip: Some(clip),
            patch_entropy: Some(patch),
            token_entropy: Some(3.2 - 0.25 * tier * t),
            lr: Some(3e-4 * (t * 10.0).min(1.0) * 0.5 * (1.0 + (t * std::f64::consts::PI).cos())),
        });
    }
    let validations = (1..=10).map(|e| Validation {
        step: e * 90,
        auc: Some(0.93 - 0.4 * (-(e as f64) * 0.6).exp() + 0.02 * noise()),
        loss: Some(1.0 + 1.5 * (-(e as f64) * 0.5).exp()),
    });
    Course { name: name.into(), steps, validations: validations.collect() }
}

fn provenance(command: &str) -> Provenance {
    let more = [("Instruction set", "avx512"), ("Data", "phantoms, 400 held out")];
    Provenance {
        version: "0.1.0".into(),
        command: command.into(),
        seed: Some(1),
        more: more.map(|(k, v)| (k.into(), v.into())).to_vec(),
    }
}

fn demo_report() -> DemoReport {
    DemoReport {
        provenance: provenance("tier demo --out demo --seeds 3"),
        training_images: 4000,
        test_images: 400,
        lambda_p: 0.2,
        lambda_t: 0.1,
        temperature: 1.0,
        notes: vec![],
        unregularised: model("unregularised", 0.0),
        tier: model("TIER", 0.02),
        differences: differences(),
        courses: vec![course("unregularised", 0.1), course("TIER", 1.0)],
        phantoms: (0..if folder().is_some() { 8 } else { 1 })
            .map(|i| Example { maps: vec![], ..example(LABELS[i as usize], (0.25 + 0.06 * i as f64, 0.5), i) })
            .collect(),
        examples: vec![example("consolidation, right", (0.3, 0.62), 5), example("nodule, left", (0.7, 0.4), 6)],
        seeds: (1..=3)
            .map(|seed| SeedResult {
                seed,
                auc_mean: [Some(0.91), Some(0.92)],
                sparsity_patches: [Some(0.05), Some(0.21)],
                sparsity_tokens: [Some(0.03), Some(0.09)],
                inside_minus_outside: [Some(0.08), Some(0.2)],
                pointing_game: [None, Some(0.62)],
            })
            .collect(),
        pooled: Differences { pointing_game: None, ..differences() },
    }
}

fn eval_report(against: bool) -> EvalReport {
    EvalReport {
        provenance: provenance("tier eval --model runs/tier/model --against runs/clip/model --pairs data/pairs.csv --out out"),
        images: 400,
        split: "test".into(),
        notes: vec!["prompts.csv: the positive prompt \"the lungs are clear\" stands verbatim in 12 training texts; its AUROC is \
                     not zero-shot."
            .into()],
        model: model("tier", 0.02),
        against: against.then(|| model("clip", 0.0)),
        differences: against.then(differences),
        examples: if against { vec![example("consolidation, right", (0.3, 0.62), 5)] } else { vec![] },
    }
}

fn run_report() -> RunReport {
    RunReport {
        provenance: provenance("tier train config.toml --pairs pairs.csv --out runs/tier"),
        name: "runs/tier".into(),
        course: course("", 1.0),
        best: vec![
            Checkpoint { name: "step-000810".into(), step: 810, value: Some(0.9312) },
            Checkpoint { name: "step-000720".into(), step: 720, value: Some(0.9287) },
        ],
        judged_by: "mean zero-shot AUROC on val".into(),
        config: "[model]\nwidth = 192\ndepth = 6\n\n[loss]\nlambda_p = 0.2\nlambda_t = 0.1\n".into(),
        notes: vec!["No split column: 10% of the patients were drawn for validation; val.csv lists them.".into()],
        judged: Some(Judged {
            images: 40,
            notes: vec![],
            model: model("model", 0.02),
            examples: vec![example("nodule, left", (0.7, 0.4), 6)],
        }),
    }
}

fn xray_report() -> XrayReport {
    let spot = (0.3, 0.62);
    let labels = LABELS[1..7].iter().enumerate().map(|(i, l)| XrayLabel {
        label: l.to_string(),
        score: 0.12 - 0.04 * i as f64,
        probability: Some(0.8 - 0.1 * i as f64),
        grid: (i < 3 || folder().is_some()).then(|| grid(14, spot, 10.0 + 20.0 * i as f64, i as u64)),
        positive: vec![format!("{l} is present.")],
        negative: vec![format!("no {l}."), "the lungs are clear.".into()],
    });
    XrayReport {
        provenance: provenance("tier report model --prompts prompts.csv chest.png -o out.html"),
        image: "chest.png".into(),
        source: (2544, 3056),
        film: Film::new(&chest(640, spot, 1), [64.0, 64.0, 512.0, 512.0]),
        picture: chest(224, spot, 1),
        model: [("Weights", "model/model.safetensors (11.2 M parameters, f32)"), ("Tokenizer", "model/tokenizer.json")]
            .map(|(k, v)| (k.into(), v.into()))
            .to_vec(),
        preprocessing: "shorter side to 256 (bicubic), centre crop 224, mean 0.485 0.456 0.406, std 0.229 0.224 0.225"
            .into(),
        labels: labels.collect(),
        warnings: vec![],
    }
}

fn pages() -> Vec<(&'static str, String)> {
    vec![
        ("demo", demo::html(&demo_report()).unwrap()),
        ("eval", eval::html(&eval_report(true)).unwrap()),
        ("eval-alone", eval::html(&eval_report(false)).unwrap()),
        ("run", run::html(&run_report()).unwrap()),
        ("xray", xray::html(&xray_report()).unwrap()),
    ]
}

/// The page without the bytes of its pictures, in which any word may stand by chance.
fn words(html: &str) -> String {
    let after = |part: &str| part.split_once('"').map_or(String::new(), |p| p.1.to_string());
    html.split("base64,").enumerate().map(|(i, part)| if i == 0 { part.to_string() } else { after(part) }).collect()
}

#[test]
fn every_report_is_well_formed_self_contained_and_repeats_to_the_byte() {
    let pages = pages();
    for (name, html) in &pages {
        check(html);
        let words = words(html);
        assert!(words.contains("<svg") && !words.contains("NaN") && !words.contains(">inf"), "{name}");
    }
    assert_eq!(pages[0].1, demo::html(&demo_report()).unwrap());
    let Some(folder) = folder() else { return };
    for (name, html) in pages {
        std::fs::write(folder.join(name).with_extension("html"), html).unwrap();
    }
    let example = example("consolidation", (0.3, 0.62), 5);
    let map = |grid| HeatMap { picture: &example.picture, seen: None, grid, boxes: &example.boxes, smooth: true };
    let maps = &example.maps;
    let row = [("x-ray", map(None)), (&maps[0].0, map(Some(&maps[0].1))), (&maps[1].0, map(Some(&maps[1].1)))];
    let blocks = HeatMap { smooth: false, ..map(Some(&maps[1].1)) };
    std::fs::write(folder.join("row.png"), heat::figure(&row, "Consolidation, right lower zone", None).unwrap())
        .unwrap();
    std::fs::write(folder.join("one.png"), heat::figure(&[("blocks", blocks)], "", Some(0.75)).unwrap()).unwrap();
    std::fs::write(folder.join("curves.png"), run::curves_png(&[course("", 1.0)]).unwrap()).unwrap();
}

#[test]
fn nothing_to_report_is_still_a_page() {
    for html in [
        demo::html(&DemoReport::default()).unwrap(),
        eval::html(&EvalReport::default()).unwrap(),
        run::html(&RunReport::default()).unwrap(),
        xray::html(&XrayReport { labels: vec![], ..xray_report() }).unwrap(),
    ] {
        check(&html);
        assert!(!words(&html).contains("NaN"));
    }
    assert!(run::html(&RunReport::default()).unwrap().contains("no data"));
}

#[test]
fn a_value_is_marked_only_where_the_interval_excludes_zero() {
    let mut report = EvalReport { examples: vec![], ..eval_report(true) };
    let marked = |report: &EvalReport| eval::html(report).unwrap().matches("class=\"n best\"").count();
    // Labels 0, 4, 5, 6 and two measures of localisation.
    assert_eq!(marked(&report), 6);
    let differences = report.differences.as_mut().unwrap();
    differences.labels.iter_mut().for_each(|(_, d)| d.ci95 = None);
    differences.inside_minus_outside = None;
    differences.pointing_game = Some(Estimate::within(0.1, -0.1, 0.3));
    assert_eq!(marked(&report), 0);
}

#[test]
fn the_demo_says_no_more_than_its_intervals_allow() {
    let mut report = DemoReport { examples: vec![], phantoms: vec![], ..demo_report() };
    let html = demo::html(&report).unwrap();
    // Of seed 0 four and one, of all seeds three and one.
    assert_eq!((html.matches(">higher with TIER<").count(), html.matches(">not told apart<").count()), (7, 2));
    report.differences.auc_mean = Some(Estimate::within(-0.02, -0.03, -0.01));
    report.differences.pointing_game = Some(Estimate::new(0.2));
    let html = demo::html(&report).unwrap();
    assert_eq!((html.matches(">lower with TIER<").count(), html.matches(">no interval<").count()), (1, 1));
}
