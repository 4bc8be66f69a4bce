//! Zero-shot scores, metrics with intervals, retrieval, localisation and sparsity.
//!
//! Everything here works on plain numbers: a column of scores and a column of labels per label, embeddings as rows,
//! maps of patches. Labels are `Option<bool>`; `None` is an unknown one, and is left out for that label.

pub mod bootstrap;
pub mod compare;
pub mod decisions;
pub mod evaluation;
pub mod localisation;
pub mod measure;
pub mod metrics;
pub mod retrieval;
pub mod scores;
pub mod sparsity;
pub mod tables;
pub mod zero_shot;

pub use evaluation::Evaluation;
pub use scores::{Criterion, ScoreInput, ScoreOptions, Scores, score_table};
