//! The command line: every command is a thin call into the rooms above. Human text goes to stderr, results to stdout.

mod devices;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::error::{Error, Kind, Result};

/// Trains and runs CLIP-style chest x-ray models with the TIER entropy regulariser.
#[derive(Parser)]
#[command(name = "tier", version, propagate_version = true)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Flags of every command.
#[derive(clap::Args, Clone, Debug)]
pub struct Global {
    /// Threads of all CPU work (default: cores).
    #[arg(long, global = true, value_name = "N")]
    pub threads: Option<usize>,
    /// Loader threads within them.
    #[arg(long, global = true, value_name = "N")]
    pub workers: Option<usize>,
    /// Where to compute: cpu.
    #[arg(long, global = true, default_value = "cpu")]
    pub device: String,
    /// One JSON object per line on stdout.
    #[arg(long, global = true)]
    pub json: bool,
    /// Say more.
    #[arg(short, long, global = true)]
    pub verbose: bool,
    /// Say nothing but errors.
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Copy weights instead of mapping their file.
    #[arg(long, global = true)]
    pub no_mmap: bool,
}

impl Global {
    /// A line for the person at the terminal, unless `--quiet`.
    pub fn say(&self, line: impl std::fmt::Display) {
        if !self.quiet {
            eprintln!("{line}");
        }
    }

    /// A progress bar on stderr; hidden where quiet or not a terminal.
    pub fn progress(&self, steps: u64, what: &'static str) -> indicatif::ProgressBar {
        if self.quiet {
            return indicatif::ProgressBar::hidden();
        }
        let style = indicatif::ProgressStyle::with_template("{msg:>12} {wide_bar} {pos}/{len} {per_sec} ETA {eta}")
            .unwrap_or_else(|_| indicatif::ProgressStyle::default_bar());
        indicatif::ProgressBar::new(steps).with_style(style).with_message(what)
    }

    /// Threads that compute.
    pub fn thread_count(&self) -> usize {
        self.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from)).max(1)
    }
}

#[derive(Subcommand)]
enum Command {
    /// Where this machine can compute.
    Devices(devices::Args),
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    // Exit code 2 and the usage are clap's own for wrong flags.
    let cli = Cli::parse();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tier: {error}");
            ExitCode::from(if error.kind() == Kind::Usage { 2 } else { 1 })
        }
    }
}

fn run(cli: Cli) -> Result<()> {
    kernels_cpu::Isa::requested().map_err(Error::usage)?;
    if cli.global.device != "cpu" {
        return Err(Error::usage(format!(
            "--device {}: this build computes on the CPU only; use --device cpu",
            cli.global.device
        )));
    }
    let threads = cli.global.thread_count();
    kernels_cpu::par::Pool::new(threads).install(|| {
        let global = &cli.global;
        match &cli.command {
            Command::Devices(args) => devices::run(args, global),
        }
    })
}
