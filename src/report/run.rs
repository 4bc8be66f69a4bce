//! The report and the curves of a training run.

use super::curves;
use super::page::{Cell, Page, Table};
use super::parts::{self, Comparison};
use super::plot;
use super::results::{Course, Example, ModelResult, Provenance};
use crate::error::Result;

/// What a training run left.
#[derive(Clone, Debug, Default)]
pub struct RunReport {
    /// Where it comes from.
    pub provenance: Provenance,
    /// The run's name: its directory.
    pub name: String,
    /// What was logged.
    pub course: Course,
    /// The checkpoints kept, best first.
    pub best: Vec<Checkpoint>,
    /// What they were judged by, "mean zero-shot AUROC on val" or "validation loss".
    pub judged_by: String,
    /// config.toml as it took effect.
    pub config: String,
    /// Warnings and what was left out, one line each.
    pub notes: Vec<String>,
    /// The best epoch on validation rows, where their findings are boxed.
    pub judged: Option<Judged>,
}

/// What an evaluation on validation rows found.
#[derive(Clone, Debug, Default)]
pub struct Judged {
    /// Validation rows.
    pub images: usize,
    /// What a reader must know, one line each.
    pub notes: Vec<String>,
    /// What was measured.
    pub model: ModelResult,
    /// Heat maps to show.
    pub examples: Vec<Example>,
}

/// A checkpoint that was kept.
#[derive(Clone, Debug, Default)]
pub struct Checkpoint {
    /// Its name in checkpoints/.
    pub name: String,
    /// Optimiser steps so far.
    pub step: usize,
    /// Its value of what the checkpoints are judged by, where it is known.
    pub value: Option<f64>,
}

/// The page as HTML.
pub fn html(report: &RunReport) -> Result<String> {
    let steps = report.course.steps.last().map_or(0, |s| s.step);
    let mut page = Page::new(&format!("Training run {}", report.name), &format!("{steps} optimiser steps."));
    report.notes.iter().for_each(|note| page.notice(note));
    page.section("Curves");
    curves::training(&mut page, std::slice::from_ref(&report.course))?;
    if !report.best.is_empty() {
        page.section("Best checkpoints");
        let columns = vec!["Checkpoint".into(), "Step".into(), report.judged_by.clone()];
        let row = |c: &Checkpoint| vec![Cell::text(&c.name), Cell::number(c.step.to_string()), Cell::value(c.value, 4)];
        page.table(&Table { caption: "Best first.".into(), columns, rows: report.best.iter().map(row).collect() });
    }
    if let Some(judged) = &report.judged {
        let comparison = Comparison { baseline: None, model: &judged.model, differences: None };
        judged.notes.iter().for_each(|note| page.notice(note));
        let images = judged.images;
        page.paragraph(&format!(
            "What follows is of the best checkpoint on the {images} validation rows it was chosen by."
        ));
        comparison.localisation(&mut page)?;
        parts::heat_maps(&mut page, &judged.examples)?;
        comparison.sparsity(&mut page)?;
    }
    page.section("Configuration");
    page.paragraph("As it took effect; config.toml in the run directory holds the same.");
    page.details("config.toml", |page| page.preformatted(&report.config));
    page.provenance(&report.provenance);
    Ok(page.finish())
}

/// curves.png: the charts of one or several runs, two to a row, at twice the logical size.
pub fn curves_png(courses: &[Course]) -> Result<Vec<u8>> {
    plot::panels(&curves::curves(courses), 2).png(2)
}
