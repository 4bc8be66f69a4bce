//! `tier phantom`: a folder of drawn radiographs.

use std::path::PathBuf;

use super::Global;
use crate::error::Result;
use crate::phantom;

/// Draws chest radiographs with findings: images, impressions, labels, boxes and prompts.
#[derive(clap::Args)]
pub struct Args {
    /// Folder to write.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// How many films.
    #[arg(long, value_name = "N")]
    pub count: usize,
    /// Same seed, same films.
    #[arg(long, value_name = "S")]
    pub seed: u64,
    /// Pixels per side.
    #[arg(long, value_name = "PIXELS", default_value_t = 256)]
    pub size: usize,
    /// DICOM files instead of PNG.
    #[arg(long)]
    pub dicom: bool,
}

pub(super) fn run(args: &Args, global: &Global) -> Result<()> {
    let bar = global.progress(args.count as u64, "drawing");
    let format = if args.dicom { phantom::Format::Dicom } else { phantom::Format::Png };
    phantom::write(&args.out, args.count, args.seed, args.size, format, |done| bar.set_position(done))?;
    bar.finish_and_clear();
    if global.json {
        let (out, count, seed, size) = (args.out.display().to_string(), args.count, args.seed, args.size);
        global.print(serde_json::json!({ "out": out, "count": count, "seed": seed, "size": size }))?;
    }
    global.say(format_args!("{} phantoms of {} pixels in {}", args.count, args.size, args.out.display()));
    Ok(())
}
