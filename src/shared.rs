//! Material that some tests read and that is no part of the project.

use std::io::Write;
use std::path::PathBuf;

/// A part of the folder that TIER_SHARED names. Where it names none the test is skipped, which is said on the process's own stderr: the
/// harness hides what passing tests print.
pub fn shared(part: &str) -> Option<PathBuf> {
    let found = std::env::var_os("TIER_SHARED").map(|folder| PathBuf::from(folder).join(part));
    if found.is_none() {
        let thread = std::thread::current();
        let test = thread.name().unwrap_or("a test");
        let _ = writeln!(std::io::stderr(), "skipped: {test}, since TIER_SHARED names no folder");
    }
    found
}
