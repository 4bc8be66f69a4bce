//! Plots, heat maps and the self-contained HTML reports.
//!
//! Lowest first: [`colour`] (the palette and the diverging map), [`drawing`] (marks on a sheet, as SVG or PNG), [`axis`]
//! and [`plot`] (charts as drawings), [`heat`] (patch scores over a picture), [`page`] (one HTML file), [`results`] (what
//! the reports show), `parts` and `curves` (sections that several reports share); then one file per report: [`eval`],
//! [`demo`], [`run`], [`xray`]. No report holds a date: same results, same bytes.

pub mod axis;
pub mod colour;
mod curves;
pub mod demo;
pub mod drawing;
pub mod eval;
pub mod found;
pub mod heat;
pub mod page;
mod parts;
pub mod plot;
pub mod results;
pub mod run;
#[cfg(test)]
mod samples;
pub mod xray;

pub use results::{Estimate, Provenance};
