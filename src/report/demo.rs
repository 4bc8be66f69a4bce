//! The report of `tier demo`: what TIER does to a small model, on drawn radiographs with known findings.

use super::curves;
use super::page::{self, Cell, Page, Table};
use super::parts::{self, Comparison};
use super::results::{Course, Differences, Estimate, Example, ModelResult, Provenance};
use crate::error::Result;

/// What the demo found.
#[derive(Clone, Debug, Default)]
pub struct DemoReport {
    /// Where it comes from.
    pub provenance: Provenance,
    /// Phantoms trained on.
    pub training_images: usize,
    /// Held-out phantoms evaluated on.
    pub test_images: usize,
    /// Weight of the entropy over patches.
    pub lambda_p: f64,
    /// Weight of the entropy over tokens.
    pub lambda_t: f64,
    /// Temperature of both softmaxes.
    pub temperature: f64,
    /// Warnings, one line each.
    pub notes: Vec<String>,
    /// The model trained with both weights zero.
    pub unregularised: ModelResult,
    /// The model trained with TIER.
    pub tier: ModelResult,
    /// Paired differences, TIER minus unregularised.
    pub differences: Differences,
    /// Both training runs, unregularised first.
    pub courses: Vec<Course>,
    /// Phantoms to show, without heat maps.
    pub phantoms: Vec<Example>,
    /// Heat maps to show: unregularised, then TIER.
    pub examples: Vec<Example>,
    /// One entry per seed where there were several.
    pub seeds: Vec<SeedResult>,
    /// Paired differences over all seeds together.
    pub pooled: Differences,
}

/// What one seed gave, unregularised and with TIER.
#[derive(Clone, Debug, Default)]
pub struct SeedResult {
    /// The seed.
    pub seed: u64,
    /// Mean zero-shot area under the curve.
    pub auc_mean: [Option<f64>; 2],
    /// Sparsity over patches, nats.
    pub sparsity_patches: [Option<f64>; 2],
    /// Sparsity over tokens, nats.
    pub sparsity_tokens: [Option<f64>; 2],
    /// Mean similarity inside minus outside.
    pub inside_minus_outside: [Option<f64>; 2],
    /// Pointing game.
    pub pointing_game: [Option<f64>; 2],
}

/// The page as HTML.
pub fn html(report: &DemoReport) -> Result<String> {
    let comparison = Comparison {
        baseline: Some(&report.unregularised),
        model: &report.tier,
        differences: Some(&report.differences),
    };
    let mut page = Page::new(
        "What TIER does to a small model",
        &format!(
            "One model, trained twice from one seed on {} drawn chest radiographs: without and with the entropy penalty. \
             Judged on {} others.",
            report.training_images, report.test_images
        ),
    );
    page.cards(&comparison.cards());
    report.notes.iter().for_each(|note| page.notice(note));

    page.section("In short");
    page.paragraph(&format!(
        "A CLIP-style model learns from pairs of image and report only; nobody tells it where a finding lies. TIER adds a penalty on \
         the entropy of its local similarities, so that a report should look like few patches (lambda_p = {}) and a patch like few words \
         (lambda_t = {}; temperature {}). On these phantoms:",
        report.lambda_p, report.lambda_t, report.temperature
    ));
    page.table(&findings(report));
    page.paragraph(
        "The phantoms are drawings, so the findings and their places are known exactly and nothing here is a patient's. They say \
         nothing about how a model reads real radiographs.",
    );
    if !report.seeds.is_empty() {
        seeds(&mut page, &report.seeds, &report.pooled);
    }
    if !report.examples.is_empty() {
        page.section("Where the models look");
        page.paragraph(
            "Each patch's similarity to the label's prompt: orange above zero, blue below, untouched at zero. Both maps of a row share \
             one scale; the white boxes show where the finding was drawn.",
        );
        parts::gallery(&mut page, &report.examples)?;
    }
    comparison.localisation(&mut page)?;
    comparison.sparsity(&mut page)?;
    comparison.labels(&mut page)?;
    comparison.retrieval(&mut page);
    if !report.courses.is_empty() {
        page.section("Training");
        curves::training(&mut page, &report.courses)?;
    }
    if !report.phantoms.is_empty() {
        page.section("The phantoms");
        parts::pictures(
            &mut page,
            &report.phantoms,
            "Drawn by tier phantom; the same seed gives the same pixels everywhere.",
        )?;
    }
    page.provenance(&report.provenance);
    Ok(page.finish())
}

/// One row per measure, with the interval's verdict and no more.
fn findings(report: &DemoReport) -> Table {
    let (a, b, by) = (&report.unregularised, &report.tier, &report.differences);
    type Get = fn(&ModelResult) -> Option<f64>;
    let measures: [(&str, usize, Get, Option<Estimate>); 5] = [
        ("Sparsity over patches, nats", 3, |m| Some(m.sparsity?.patches), by.sparsity_patches),
        ("Sparsity over tokens, nats", 3, |m| Some(m.sparsity?.tokens), by.sparsity_tokens),
        (
            "Similarity inside \u{2212} outside the boxes",
            3,
            |m| Some(m.localisation.as_ref()?.inside_minus_outside?.value),
            by.inside_minus_outside,
        ),
        (
            "Best patch lies in a box (pointing game)",
            2,
            |m| Some(m.localisation.as_ref()?.pointing_game?.value),
            by.pointing_game,
        ),
        ("Mean zero-shot AUROC", 3, |m| Some(m.auc_mean?.value), by.auc_mean),
    ];
    let rows = (measures.into_iter())
        .filter(|(_, _, get, _)| get(a).is_some() || get(b).is_some())
        .map(|(name, decimals, get, by)| {
            let decimals = by.map_or(decimals, |by| page::decimals(by, decimals));
            vec![
                Cell::text(name),
                Cell::value(get(a), decimals),
                Cell::value(get(b), decimals),
                by.map_or_else(|| Cell::value(None, 0), |by| Cell::number(page::difference(by, decimals))),
                Cell::text(by.map_or("", verdict)),
            ]
        })
        .collect();
    let columns = ["Measure", "Without", "With TIER", "Difference", "Reading"].map(String::from).to_vec();
    Table { caption: "Differences are paired, with 95% intervals.".into(), columns, rows }
}

/// What the interval allows to say.
fn verdict(by: Estimate) -> &'static str {
    match (by.sign(), by.ci95) {
        (Some(sign), _) if sign > 0.0 => "higher with TIER",
        (Some(_), _) => "lower with TIER",
        (None, Some(_)) => "not told apart",
        (None, None) => "no interval",
    }
}

fn seeds(page: &mut Page, seeds: &[SeedResult], pooled: &Differences) {
    page.section("Over several seeds");
    type Get = fn(&SeedResult) -> [Option<f64>; 2];
    let measures: [(&str, Get, Option<Estimate>); 5] = [
        ("AUROC", |s| s.auc_mean, pooled.auc_mean),
        ("Sparsity, patches", |s| s.sparsity_patches, pooled.sparsity_patches),
        ("Sparsity, tokens", |s| s.sparsity_tokens, pooled.sparsity_tokens),
        ("Inside \u{2212} outside", |s| s.inside_minus_outside, pooled.inside_minus_outside),
        ("Pointing game", |s| s.pointing_game, pooled.pointing_game),
    ];
    let seen: Vec<_> =
        measures.into_iter().filter(|m| seeds.iter().any(|s| m.1(s).iter().any(Option::is_some))).collect();
    let mut columns = vec!["Seed".to_string(), "Model".into()];
    columns.extend(seen.iter().map(|m| m.0.to_string()));
    let mut rows = Vec::new();
    for seed in seeds {
        for (side, name) in ["unregularised", "TIER"].into_iter().enumerate() {
            let mut row = vec![Cell::text(seed.seed.to_string()), Cell::text(name)];
            row.extend(seen.iter().map(|m| Cell::value(m.1(seed)[side], 4)));
            rows.push(row);
        }
    }
    page.table(&Table { caption: "Each seed trains both models anew.".into(), columns, rows });
    let together = |(name, _, by): &(&str, Get, Option<Estimate>)| {
        let by = (*by)?;
        Some(vec![Cell::text(*name), Cell::number(page::difference(by, 4)), Cell::text(verdict(by))])
    };
    let caption = "All seeds together, TIER minus unregularised: paired, with 95% intervals over patients.";
    let columns = ["Measure", "Difference", "Reading"].map(String::from).to_vec();
    page.table(&Table { caption: caption.into(), columns, rows: seen.iter().filter_map(together).collect() });
}
