//! `tier train`: pairs in, a run directory with a model out.

use std::cell::RefCell;
use std::path::PathBuf;

use indicatif::ProgressBar;

use super::Global;
use crate::error::{Error, Result};
use crate::train::{self, Config, Objective, Record, Watch};

/// Trains a model on pairs of images and texts (or on labels), or continues a run.
#[derive(clap::Args)]
pub struct Args {
    /// A configuration in TOML; what it does not say keeps its default.
    config: Option<PathBuf>,
    /// Table of pairs: image, text, split, patient_id.
    #[arg(long)]
    pairs: Option<PathBuf>,
    /// Run directory.
    #[arg(long)]
    out: PathBuf,
    /// Continue the run of --out; everything else comes from its config.toml.
    #[arg(long, conflicts_with_all = ["config", "pairs", "labels", "labels_from", "prompts", "boxes", "init", "init_image", "init_text", "set", "objective"])]
    resume: bool,
    /// Table of labels: what a supervised run learns, or what zero-shot validation is judged by.
    #[arg(long)]
    labels: Option<PathBuf>,
    /// A column of the pairs that serves as labels, one per value; with --labels, a table of these values' labels.
    #[arg(long, value_name = "COLUMN")]
    labels_from: Option<String>,
    /// Prompts for zero-shot validation.
    #[arg(long)]
    prompts: Option<PathBuf>,
    /// Boxes of findings (COCO): at the end, heat maps of validation rows are judged by them.
    #[arg(long)]
    boxes: Option<PathBuf>,
    /// Model whose weights, sizes and tokenizer the run starts from.
    #[arg(long, value_name = "MODEL")]
    init: Option<PathBuf>,
    /// Model whose image side the run starts from.
    #[arg(long, value_name = "MODEL")]
    init_image: Option<PathBuf>,
    /// Model whose text side and tokenizer the run starts from.
    #[arg(long, value_name = "MODEL")]
    init_text: Option<PathBuf>,
    /// A value of the configuration, as in --set train.batch=64.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// What is learned.
    #[arg(long)]
    objective: Option<Objective>,
}

pub(super) fn run(args: &Args, global: &Global) -> Result<()> {
    let screen = Screen::new(global);
    super::interrupt::catch()?;
    let gpu = global.gpu()?;
    let outcome = if args.resume {
        train::resume(&args.out, global.worker_count(), gpu.as_ref(), &screen)?
    } else {
        train::start(configure(args)?, &args.out, global.worker_count(), gpu.as_ref(), &screen)?
    };
    screen.finish();
    let best = outcome.kept.first();
    if global.json {
        global.print(serde_json::json!({ "finished": outcome.finished, "out": args.out, "steps": outcome.records.last().map(|r| r.step),
                "best_epoch": best.map(|k| k.epoch), "best_score": best.and_then(|k| k.score),
                "memory": { "predicted": outcome.memory.predicted, "measured": outcome.memory.measured } }))?;
    }
    if outcome.finished {
        let best = best.map_or_else(String::new, |k| format!(" (epoch {})", k.epoch));
        global.say(format!("the model is {}{best}", args.out.join("model").display()));
    } else {
        global.say(format!("stopped and saved; continue with: tier train --resume --out {}", args.out.display()));
    }
    Ok(())
}

fn configure(args: &Args) -> Result<Config> {
    let mut config = Config::read(args.config.as_deref(), &args.set)?;
    let data = &mut config.data;
    if let Some(pairs) = &args.pairs {
        data.pairs = pairs.clone();
    }
    if data.pairs.as_os_str().is_empty() {
        return Err(Error::usage("which pairs? Give --pairs TABLE.csv (or data.pairs in the configuration)"));
    }
    for (value, flag) in [
        (&mut data.prompts, &args.prompts),
        (&mut data.boxes, &args.boxes),
        (&mut data.init, &args.init),
        (&mut data.init_image, &args.init_image),
        (&mut data.init_text, &args.init_text),
    ] {
        if flag.is_some() {
            value.clone_from(flag);
        }
    }
    if args.labels.is_some() || args.labels_from.is_some() {
        (data.labels, data.labels_from) = (args.labels.clone(), args.labels_from.clone());
    }
    if let Some(objective) = args.objective {
        config.objective = objective;
    }
    Ok(config)
}

/// Progress at the terminal.
pub(super) struct Screen<'a> {
    global: &'a Global,
    bar: RefCell<Option<ProgressBar>>,
}

impl<'a> Screen<'a> {
    pub(super) fn new(global: &'a Global) -> Self {
        Self { global, bar: RefCell::new(None) }
    }

    pub(super) fn finish(&self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Watch for Screen<'_> {
    fn say(&self, line: &str) {
        match &*self.bar.borrow() {
            Some(bar) if !self.global.quiet => bar.suspend(|| super::tell(line)),
            _ => self.global.say(line),
        }
    }

    fn step(&self, record: &Record, total: u64) {
        let line = format!(
            "epoch {} loss {:.3} clip {:.3} H_patch {:.3} H_token {:.3} {:.0} img/s",
            record.epoch, record.loss, record.loss_clip, record.patch_entropy, record.token_entropy, record.items_per_s
        );
        {
            let mut bar = self.bar.borrow_mut();
            let bar = bar.get_or_insert_with(|| {
                let bar = self.global.progress(total, "");
                bar.set_style(super::step_style());
                bar.reset_eta();
                bar
            });
            bar.set_position(record.step);
            bar.set_message(line);
        }
        if let Some(v) = &record.validation {
            self.say(&format!("epoch {:>3}: training loss {:.3}, {v}", record.epoch, record.loss));
        }
    }

    fn stop(&self) -> bool {
        super::interrupt::asked()
    }
}
