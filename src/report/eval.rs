//! The report of `tier eval`: one model (or ensemble), alone or against another.

use super::page::Page;
use super::parts::{self, Comparison};
use super::results::{Differences, Example, ModelResult, Provenance};
use crate::error::Result;

/// What an evaluation found.
#[derive(Clone, Debug, Default)]
pub struct EvalReport {
    /// Where it comes from.
    pub provenance: Provenance,
    /// Images evaluated.
    pub images: usize,
    /// The name of the split, "test".
    pub split: String,
    /// Warnings and what was left out, one line each.
    pub notes: Vec<String>,
    /// The model or ensemble.
    pub model: ModelResult,
    /// What it is compared with.
    pub against: Option<ModelResult>,
    /// Paired differences, model minus against.
    pub differences: Option<Differences>,
    /// Heat maps to show.
    pub examples: Vec<Example>,
}

/// The page as HTML.
pub fn html(report: &EvalReport) -> Result<String> {
    let comparison = Comparison {
        baseline: report.against.as_ref(),
        model: &report.model,
        differences: report.differences.as_ref().filter(|_| report.against.is_some()),
    };
    let title = match &report.against {
        Some(against) => format!("{} against {}", report.model.name, against.name),
        None => format!("Evaluation of {}", report.model.name),
    };
    let split = if report.split.is_empty() { String::new() } else { format!(" of the {} split", report.split) };
    let mut page = Page::new(&title, &format!("{} images{split}.", report.images));
    page.cards(&comparison.cards());
    report.notes.iter().for_each(|note| page.notice(note));
    comparison.labels(&mut page)?;
    comparison.localisation(&mut page)?;
    parts::heat_maps(&mut page, &report.examples)?;
    comparison.sparsity(&mut page)?;
    comparison.retrieval(&mut page);
    page.provenance(&report.provenance);
    Ok(page.finish())
}
