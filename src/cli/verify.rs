//! `tier verify`: a model against what PyTorch computed with it.

use std::path::PathBuf;

use super::Global;
use super::model::ModelArgs;
use crate::check::verify::contradictions;
use crate::check::{Case, Check, verify_on};
use crate::error::{Error, Result};

/// Recomputes a parity case with a model: embeddings, similarities, losses, gradients, running statistics and steps of Adam. Ends with 0
/// only if every tensor is within the case's own tolerance.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// The case: a safetensors file of inputs and expected tensors.
    #[arg(long, value_name = "FILE")]
    case: PathBuf,
}

pub(super) fn run(args: &Args, global: &Global) -> Result<()> {
    let case = Case::open(&args.case, !global.no_mmap)?;
    if args.model.ways().is_some() {
        global.say("a case has pixels and ids already: flags on tokenizer and preprocessing are not used");
    }
    let checkpoint = args.model.checkpoint(global)?;
    global.say(format_args!("{}: {}; {}", args.model.name(), checkpoint.layout_name(), checkpoint.config.describe()));
    for note in checkpoint.notes.iter().cloned().chain(contradictions(&checkpoint.config, &case)) {
        global.say(note);
    }
    if !case.ignored.is_empty() {
        global.say(format_args!("not compared, neither inputs nor expected: {}", case.ignored.join(", ")));
    }
    let checks = verify_on(global.gpu()?.as_ref(), &checkpoint, &case)?;
    let shown = show(&checks, global);
    let failed = checks.iter().filter(|check| !check.passed).count();
    // Also where nobody reads on: `verify | head` must not pass.
    if failed > 0 {
        return Err(Error::new(format!("{failed} of {} tensors differ by more than the case allows", checks.len()))
            .at(&args.case));
    }
    shown?;
    global.say(format_args!("all {} tensors are within the case's tolerance", checks.len()));
    Ok(())
}

/// Prints a line for each tensor.
fn show(checks: &[Check], global: &Global) -> Result<()> {
    let width = checks.iter().map(|check| check.name.len()).max().unwrap_or(0);
    if !global.json {
        global.print(format_args!("{:width$}  {:>9}  {:>9}  {:>7}", "tensor", "max abs", "rel L2", "allowed"))?;
    }
    for check in checks {
        let Check { name, max_abs, relative, tolerance, passed, why } = check;
        if global.json {
            global.print(
                serde_json::json!({ "tensor": name, "max_abs": max_abs, "rel_l2": relative, "tolerance": tolerance,
                "pass": passed, "why": why }),
            )?;
            continue;
        }
        let verdict = if *passed { "pass" } else { "FAIL" };
        let why = why.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
        global
            .print(format_args!("{name:width$}  {max_abs:9.2e}  {relative:9.2e}  {tolerance:7.0e}  {verdict}{why}"))?;
    }
    Ok(())
}
