//! The `tier` command.

fn main() -> std::process::ExitCode {
    eprintln!("tier: no command has landed yet; the engine is a library so far (see README.md and CHANGELOG.md)");
    std::process::ExitCode::FAILURE
}
