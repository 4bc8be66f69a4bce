//! The command line: every command is a thin call into the rooms above. Human text goes to stderr, results to stdout.

#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))] // they panic where nobody reads

mod bench;
mod bench_ops;
mod classify;
mod convert;
mod demo;
mod devices;
mod embed;
mod eval;
mod heatmap;
mod inspect;
mod interrupt;
mod metrics;
mod model;
mod outputs;
mod phantom;
mod preprocess;
mod report;
mod selftest;
mod tokenize;
mod train;
mod verify;

use std::io::{ErrorKind, Write};
use std::process::ExitCode;
use std::sync::Mutex;

use clap::{Parser, Subcommand};

use crate::device::{self, Gpu};
use crate::error::{Error, Kind, Result};
use crate::memory::mib;
use crate::models::Held;
use crate::process;

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
    /// Threads that compute and load pictures (default: cores).
    #[arg(long, global = true, value_name = "N")]
    pub threads: Option<usize>,
    /// Pictures that are loaded at once ahead of their use, by the same threads; 0: none are (default: as many as --threads, and 0 with --threads 1).
    #[arg(long, global = true, value_name = "N")]
    pub workers: Option<usize>,
    /// Where to compute: cpu, vulkan (the best GPU; the CPU where there is none), vulkan:INDEX or vulkan:UUID; see `tier devices`.
    /// Default: the environment's TIER_DEVICE, or cpu.
    #[arg(long, global = true)]
    pub device: Option<String>,
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
    /// How the weights of matrix products are held to infer.
    #[arg(long, global = true, value_enum, default_value_t, value_name = "HOW")]
    pub weights: Held,
}

/// The device of this process's command, once it was asked for.
static OPENED: Mutex<Option<Option<Gpu>>> = Mutex::new(None);

impl Global {
    /// A line for the person at the terminal, unless `--quiet`.
    pub fn say(&self, line: impl std::fmt::Display) {
        if !self.quiet {
            tell(line);
        }
    }

    /// A line of results on stdout. Commands pass the error on, so that they end where nobody reads any further.
    ///
    /// # Errors
    /// If it cannot be written; of [`Kind::Unread`] if its reader has gone, as in `tier inspect MODEL | head`.
    pub fn print(&self, line: impl std::fmt::Display) -> Result<()> {
        writeln!(std::io::stdout(), "{line}").map_err(|error| match error.kind() {
            ErrorKind::BrokenPipe => Error::unread(),
            _ => Error::from(error).at("stdout"),
        })
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

    /// The device that is asked for, opened when it is first; `None`: the CPU.
    ///
    /// # Errors
    /// If it is named and cannot be opened. Where just any GPU is asked for and there is none, that is said.
    pub fn gpu(&self) -> Result<Option<Gpu>> {
        let Some(which) = self.which()? else { return Ok(None) };
        let mut kept = OPENED.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(opened) = &*kept {
            return Ok(opened.clone());
        }
        let opened = match Gpu::open(&which) {
            Ok(gpu) => {
                self.say(gpu.describe());
                Some(gpu)
            }
            Err((true, why)) => {
                self.say(format_args!("{why}: computing on the CPU"));
                None
            }
            Err((false, why)) => return Err(why),
        };
        Ok(kept.insert(opened).clone())
    }

    /// What stands behind `vulkan:`, where a device beside the CPU is asked for.
    fn which(&self) -> Result<Option<String>> {
        let asked = self.device.clone().or_else(|| std::env::var("TIER_DEVICE").ok()).unwrap_or_default();
        match asked.split_once(':').unwrap_or((&asked, "")) {
            ("" | "cpu", "") => Ok(None),
            ("vulkan", which) => Ok(Some(which.to_owned())),
            _ => Err(Error::usage(format!("--device {asked}: cpu, vulkan, vulkan:INDEX or vulkan:UUID"))),
        }
    }

    /// Lets the device go, and says what of a command's work ran on the CPU although it was asked for.
    fn close(&self) {
        let opened = OPENED.lock().unwrap_or_else(|e| e.into_inner()).take();
        let all = opened.flatten().map(|gpu| gpu.fallbacks()).unwrap_or_default();
        if !all.is_empty() {
            let names: Vec<String> = all.iter().map(|(name, n)| format!("{name} ({n})")).collect();
            self.say(format_args!("ran on the CPU instead of the device: {}", names.join(", ")));
        }
    }

    /// Pictures that are loaded at once ahead of their use. With one thread that is told to do everything, none.
    pub fn worker_count(&self) -> usize {
        self.workers.unwrap_or_else(|| Some(self.thread_count()).filter(|&n| n > 1).unwrap_or(0))
    }

    /// Threads that compute.
    pub fn thread_count(&self) -> usize {
        self.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from)).max(1)
    }
}

/// A line on stderr. Where that cannot be written, there is nobody left to tell.
fn tell(line: impl std::fmt::Display) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// A bar whose message says how training goes.
fn step_style() -> indicatif::ProgressStyle {
    indicatif::ProgressStyle::with_template("{bar:20} {pos}/{len} {msg} ETA {eta}")
        .unwrap_or_else(|_| indicatif::ProgressStyle::default_bar())
}

// Made once per process: the size of its largest command does not matter.
#[allow(clippy::large_enum_variant)]
#[derive(Subcommand)]
enum Command {
    /// Draw phantoms, train without and with TIER, and report the difference.
    Demo(demo::Args),
    /// Where this machine can compute.
    Devices(devices::Args),
    /// Zero-shot scores of images.
    Classify(Box<classify::Args>),
    /// Where in an x-ray a text is seen.
    Heatmap(Box<heatmap::Args>),
    /// A model judged on a table, alone or against another.
    Eval(Box<eval::Args>),
    /// One x-ray as a page: scores, heat maps, what was loaded.
    Report(Box<report::Args>),
    /// Images and texts to vectors in the joint space.
    Embed(Box<embed::Args>),
    /// What a model folder or file of weights holds.
    Inspect(inspect::Args),
    /// How fast a model runs, or a training step is, here.
    Bench(Box<bench::Args>),
    /// A model of any layout as a folder of ours, or in Hugging Face's.
    Convert(Box<convert::Args>),
    /// Train a model on pairs of images and texts, or continue a run.
    Train(Box<train::Args>),
    /// Whether the program computes on this machine what it should.
    Selftest(selftest::Args),
    /// A model against what PyTorch computed with it.
    Verify(Box<verify::Args>),
    /// The ids that texts become.
    Tokenize(tokenize::Args),
    /// Scores, decisions and readers against a table of labels.
    Metrics(metrics::Args),
    /// Draws chest radiographs with findings: images, impressions, labels, boxes and prompts.
    Phantom(phantom::Args),
    /// What a model gets to see of an image.
    Preprocess(preprocess::Args),
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    process::start();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(asked) if !asked.use_stderr() || asked.kind() == HELP => asked.exit(),
        Err(wrong) => {
            tell(format_args!("tier: {}", one_line(&wrong)));
            return ExitCode::from(2);
        }
    };
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.kind() == Kind::Unread => ExitCode::SUCCESS,
        Err(error) => {
            tell(format_args!("tier: {error}"));
            ExitCode::from(if error.kind() == Kind::Usage { 2 } else { 1 })
        }
    }
}

/// The help where no command is named, with exit code 2.
const HELP: clap::error::ErrorKind = clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand;

/// What is wrong with the flags, and clap's tips, without its lines of usage.
fn one_line(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let usage = |part: &&str| ["Usage:", "For more information"].iter().any(|start| part.starts_with(start));
    let said: Vec<&str> = text.split("\n\n").filter(|part| !usage(part)).flat_map(str::split_whitespace).collect();
    format!("{}; see --help", said.join(" ").trim_start_matches("error: "))
}

/// This process's command line, for the provenance of reports.
fn command_line() -> String {
    std::iter::once("tier".to_owned()).chain(std::env::args().skip(1)).collect::<Vec<_>>().join(" ")
}

fn run(cli: Cli) -> Result<()> {
    kernels_cpu::Isa::requested().map_err(Error::usage)?;
    if cli.global.which()?.is_some() && !cli.command.takes_device() && cli.global.device.is_some() {
        return Err(Error::usage("--device: this command computes on the CPU; leave it out"));
    }
    /// Each takes memory and some 0.1 ms to start.
    const MOST_THREADS: usize = 1024;
    if cli.global.threads.is_some_and(|n| !(1..=MOST_THREADS).contains(&n)) {
        return Err(Error::usage(format!("--threads: 1 to {MOST_THREADS}")));
    }
    // It computes nothing: starting threads would take longer than all it does.
    if let Command::Inspect(args) = &cli.command {
        return inspect::run(args, &cli.global);
    }
    let threads = cli.global.thread_count();
    let work = || {
        let global = &cli.global;
        let done = match &cli.command {
            Command::Demo(args) => demo::run(args, global),
            Command::Devices(args) => devices::run(args, global),
            Command::Classify(args) => classify::run(args, global),
            Command::Heatmap(args) => heatmap::run(args, global),
            Command::Eval(args) => eval::run(args, global),
            Command::Report(args) => report::run(args, global),
            Command::Embed(args) => embed::run(args, global),
            Command::Inspect(args) => inspect::run(args, global),
            Command::Bench(args) => bench::run(args, global),
            Command::Convert(args) => convert::run(args, global),
            Command::Train(args) => train::run(args, global),
            Command::Selftest(args) => selftest::run(args, global),
            Command::Verify(args) => verify::run(args, global),
            Command::Tokenize(args) => tokenize::run(args, global),
            Command::Metrics(args) => metrics::run(args, global),
            Command::Phantom(args) => phantom::run(args, global),
            Command::Preprocess(args) => preprocess::run(args, global),
        };
        if let Some(bytes) = process::most_resident().filter(|_| global.verbose) {
            global.say(format_args!("memory: {} at most in the end", mib(bytes)));
        }
        done
    };
    kernels_cpu::par::Pool::new(threads).install(|| {
        let result = device::caught(work);
        cli.global.close();
        result
    })
}

impl Command {
    /// Whether it computes with a model and takes a device for that.
    fn takes_device(&self) -> bool {
        matches!(
            self,
            Self::Classify(_)
                | Self::Heatmap(_)
                | Self::Eval(_)
                | Self::Report(_)
                | Self::Demo(_)
                | Self::Train(_)
                | Self::Embed(_)
                | Self::Bench(_)
                | Self::Selftest(_)
                | Self::Verify(_)
        )
    }
}
