//! The training run: its configuration, its steps, what it resumes from.

mod average;
mod checkpoint;
mod config;
mod finite;
mod folder;
mod log;
mod memory;
mod run;
mod setup;
pub mod step;
mod tables;
mod validate;

pub use checkpoint::{Kept, State};
pub use config::{Config, DataConfig, ImageConfig, Objective, Targets, TokenizerConfig, TrainConfig};
pub use folder::{Alone, alone, seed_of};
pub use log::Record;
pub use memory::Peak;
pub use run::{Outcome, Watch, resume, start};
