//! The `tier` command.

fn main() -> std::process::ExitCode {
    tiergrad::cli::main()
}
