//! What the fuzz targets do with their bytes, apart from libFuzzer, so that an ordinary test can do the same with fuzz/corpus.
//!
//! A target fails on a panic that reaches it, on a time-out, and on an allocation beyond its bound. Panics of dependencies that the
//! library turns into errors are no failures.

mod bounds;
pub use bounds::bounded;
mod config;
pub mod dicom;
mod graph;
/// How many ops a byte of a graph chooses from.
pub use graph::OPS_OF_GRAPHS;
mod image;
mod safetensors_header;
mod tables;
mod tokenizer;
mod torch_pickle;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};

/// What runs one input; it panics where something is wrong.
pub type Target = fn(&[u8]);

macro_rules! targets {
    ($($(#[$doc:meta])* $name:ident)*) => {
        $($(#[$doc])* pub fn $name(data: &[u8]) { $name::run(data) })*
        /// Every target, by the name of its folder in fuzz/corpus.
        pub const ALL: &[(&str, Target)] = &[$((stringify!($name), $name)),*];
    };
}

targets! {
    /// Configurations of model folders and of training runs, and the networks that they describe.
    config
    /// DICOM files, whole or made around the bytes.
    dicom
    /// Graphs of ops, against a naive interpreter.
    graph
    /// Pictures: PNG and JPEG.
    image
    /// Files of weights that are taken for safetensors, and indices of several.
    safetensors_header
    /// Tables: pairs, labels, prompts, boxes.
    tables
    /// Files of tokenizers, and texts through those that can be opened.
    tokenizer
    /// Files of torch.save.
    torch_pickle
}

/// Keeps panics from being printed, or libFuzzer's hook from ending the process at those that the library turns into errors;
/// `TIER_FUZZ_PANICS=1` prints them with their place.
pub fn quiet() {
    std::panic::set_hook(Box::new(|panic| {
        if std::env::var_os("TIER_FUZZ_PANICS").is_some() {
            eprintln!("{panic}\n{}", std::backtrace::Backtrace::force_capture());
        }
    }));
}

/// Runs one input, and none beside it: allocations are counted for the whole process.
///
/// # Errors
/// What was wrong, as the target's panic says it.
pub fn check(target: Target, data: &[u8]) -> Result<(), String> {
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    catch_unwind(AssertUnwindSafe(|| target(data))).map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        format!("{} (TIER_FUZZ_PANICS=1 tells where)", text.unwrap_or("panicked"))
    })
}

/// Runs one input for libFuzzer, which takes the end of the process for a finding.
pub fn end_if_wrong(target: Target, data: &[u8]) {
    if let Err(wrong) = check(target, data) {
        eprintln!("{wrong}");
        std::process::abort();
    }
}
