//! `tier selftest`: whether the program computes on this machine what it should.

use std::path::PathBuf;

use super::Global;
use crate::check::golden::Golden;
use crate::check::selftest::{Allowed, Finding, Limit, Part, Record, Settings, selftest};
use crate::device::Gpu;
use crate::error::{Error, Result};
use crate::files;

/// Checks this machine: every op's kernels on every instruction set, and on the GPU, against their definitions, gradients against differences, two small
/// models against built-in numbers, the same bits with any number of threads, speed. Ends with 0 only if everything passed.
#[derive(clap::Args)]
pub struct Args {
    /// The whole record as JSON.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Other expected numbers of the small models, to see that a wrong one is found.
    #[arg(long, value_name = "FILE", hide = true)]
    golden: Option<PathBuf>,
}

pub(super) fn run(args: &Args, global: &Global) -> Result<()> {
    let mut settings = Settings::new(global.thread_count());
    if let Some(path) = &args.golden {
        settings.golden = Golden::open(path)?;
    }
    settings.gpu = match global.gpu()? {
        Some(gpu) => Ok(gpu),
        // Not asked for, a GPU is tested all the same; a software device is not.
        None => Gpu::open("").map_err(|(_, why)| why.to_string()),
    };
    let record = selftest(&settings, &|begins| global.say(begins));
    let json = |value: serde_json::Result<String>| value.map_err(|e| Error::new(e.to_string()));
    if global.json {
        for finding in &record.findings {
            global.print(json(serde_json::to_string(finding))?)?;
        }
        let summary = serde_json::json!({ "version": record.version, "date": record.date, "machine": record.machine, "tier": record.tier,
            "threads": record.threads, "gpu": record.gpu, "tolerances": record.tolerances, "checks": record.findings.len(), "passed": record.passed, "seconds": record.seconds });
        global.print(summary)?;
    } else {
        table(&record).iter().try_for_each(|line| global.print(line))?;
    }
    if let Some(path) = &args.output {
        files::write_atomic(path, (json(serde_json::to_string_pretty(&record))? + "\n").as_bytes())?;
    }
    let failed = record.findings.iter().filter(|f| !f.passed).count();
    if failed > 0 {
        let message =
            format!("{failed} of {} checks failed: do not use results of this machine", record.findings.len());
        return Err(Error::new(message));
    }
    Ok(())
}

/// The record as a person reads it.
fn table(record: &Record) -> Vec<String> {
    let machine = &record.machine;
    let memory = machine.memory_mib.map_or_else(String::new, |mib| format!(", {mib} MiB"));
    let processor = machine.processor.as_deref().unwrap_or("unknown processor");
    let mut lines = vec![
        format!("machine   {processor}; {}, {} cores{memory}", machine.system, machine.cores),
        format!("features  {}", machine.features.join(" ")),
        format!("tier      {} with {} threads; GPU: {}", record.tier, record.threads, record.gpu),
    ];
    for (parts, title) in [
        (
            &[Part::Gradients, Part::Fused, Part::Kernels][..],
            "ops: gradient against differences, fused against composed (both f64), f32 kernels of each tier against f64; kernels outside of ops",
        ),
        (&[Part::Golden], "small models, four steps of training, against built-in numbers"),
        (&[Part::Threads], "small models: numbers that are others than with one thread"),
        (&[Part::Speed], "speed in GFLOP/s"),
    ] {
        lines.push(String::new());
        lines.push(title.to_owned());
        lines.extend(grid(record.findings.iter().filter(|f| parts.contains(&f.part)).collect()));
        lines.extend(record.tolerances.iter().filter(|a| parts.contains(&a.part)).map(reason));
    }
    lines.push(String::new());
    let failed: Vec<&Finding> = record.findings.iter().filter(|f| !f.passed).collect();
    for f in &failed {
        let why = f.why.as_ref().map_or_else(String::new, |why| format!(": {why}"));
        lines.push(format!("FAIL {} on {}: {:.2e}, {}{why}", f.name, f.on, f.measured, allowed(f.limit)));
    }
    let (checks, version) = (record.findings.len(), record.version);
    let verdict =
        if failed.is_empty() { format!("all {checks} checks passed") } else { format!("{} FAILED", failed.len()) };
    lines.push(format!("{verdict} in {:.1} s; tier {version}, {}, {processor}", record.seconds, record.date));
    lines
}

/// Why a tolerance is what it is.
fn reason(allowed: &Allowed) -> String {
    let what = match allowed.part {
        Part::Gradients => "gradient",
        Part::Fused => "fused",
        _ => allowed.on,
    };
    format!("  {what}: {:.0e}, {}", allowed.tolerance.most, allowed.tolerance.why)
}

/// Names down, places across, and what is allowed at the bottom.
fn grid(findings: Vec<&Finding>) -> Vec<String> {
    let column = |f: &Finding| match f.part {
        Part::Gradients => "gradient".to_owned(),
        Part::Fused => "fused".to_owned(),
        _ => f.on.clone(),
    };
    let (mut names, mut columns): (Vec<&str>, Vec<String>) = (Vec::new(), Vec::new());
    for f in &findings {
        if !names.contains(&f.name.as_str()) {
            names.push(&f.name);
        }
        if !columns.contains(&column(f)) {
            columns.push(column(f));
        }
    }
    let width = |column: &String| column.len().max(9);
    let first = names.iter().map(|name| name.len()).max().unwrap_or(0).max(8);
    let row = |name: &str, cell: &dyn Fn(&String) -> String| {
        let cells: String = columns.iter().map(|c| format!("  {:>1$}", cell(c), width(c))).collect();
        format!("  {name:first$}{cells}")
    };
    let at = |name: &str, c: &String| findings.iter().find(|f| f.name == name && column(f) == *c);
    let shown = |f: &Finding| match (f.passed, f.part) {
        (false, _) => "FAIL".to_owned(),
        (_, Part::Speed) => format!("{:.1}", f.measured),
        (_, Part::Threads) => format!("{}", f.measured),
        _ => format!("{:.1e}", f.measured),
    };
    let mut lines = vec![row("", &|c| c.clone())];
    lines.extend(names.iter().map(|name| row(name, &|c| at(name, c).map_or_else(String::new, |f| shown(f)))));
    let limits = |c: &String| {
        let limit = findings.iter().find(|f| column(f) == *c).map(|f| f.limit);
        match limit {
            Some(Limit::AtMost(most)) => format!("{most:.0e}"),
            Some(Limit::AtLeast(least)) if least > 0.0 => format!(">= {least:.1}"),
            _ => String::new(),
        }
    };
    lines.push(row("allowed", &limits));
    lines
}

fn allowed(limit: Limit) -> String {
    match limit {
        Limit::AtMost(most) => format!("at most {most:.0e} is allowed"),
        Limit::AtLeast(least) => format!("at least {least:.1} is asked for"),
    }
}
