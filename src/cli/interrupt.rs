//! Ctrl-C: the first asks for an orderly stop, the second ends the process at once.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Error, Result};

static ASKED: AtomicBool = AtomicBool::new(false);

/// From now on the first interrupt only asks. Nothing that is being written is cut: files appear whole or not at all.
pub(super) fn catch() -> Result<()> {
    ctrlc::set_handler(|| {
        if ASKED.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
        super::tell("stopping after this step; once more to stop at once");
    })
    .map_err(|e| Error::new(format!("cannot listen for Ctrl-C: {e}")))
}

/// Whether a stop was asked for.
pub(super) fn asked() -> bool {
    ASKED.load(Ordering::Relaxed)
}
