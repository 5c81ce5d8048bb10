//! The `sidenote` command.

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use sidenote::{commands, interrupt};

fn main() -> ExitCode {
    // clap exits with 2 on wrong usage and 0 on --help and --version.
    let cli = commands::Cli::parse();
    interrupt::install();
    sidenote_kernels::keep_freed_memory();
    match commands::run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // With nobody to read it (a closed pipe) the exit code still says it.
            let _ = writeln!(std::io::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
