//! `tier devices`: where this machine can compute.

use super::Global;
use crate::error::Result;

/// Lists the devices that `--device` takes, and the kernels that the CPU runs on.
#[derive(clap::Args)]
pub struct Args {}

pub(super) fn run(_: &Args, global: &Global) -> Result<()> {
    let isa = kernels_cpu::Isa::current();
    let threads = global.thread_count();
    if global.json {
        global.print(serde_json::json!({ "device": "cpu", "isa": isa.name(), "threads": threads }))?;
    } else {
        global.print(format_args!("cpu: {isa} kernels, {threads} threads"))?;
    }
    match crate::device::found() {
        Ok(all) => all.into_iter().try_for_each(|(line, json)| match global.json {
            true => global.print(json),
            false => global.print(line),
        }),
        Err(why) => {
            global.say(why);
            Ok(())
        }
    }
}
