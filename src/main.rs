//! The `sidenote` command.

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use sidenote::{commands, interrupt};

/// Started by the commands that train or generate.
#[global_allocator]
static ALLOCATOR: sidenote_kernels::LargeBlocks = sidenote_kernels::LargeBlocks;

/// The error and what caused it, once each: most of the library's errors name their cause already.
fn message(error: &anyhow::Error) -> String {
    let mut message = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if !message.ends_with(&cause) {
            let colon = if message.is_empty() { "" } else { ": " };
            message = format!("{message}{colon}{cause}");
        }
    }
    message
}

fn main() -> ExitCode {
    // clap exits with 2 on wrong usage and 0 on --help and --version.
    let cli = commands::Cli::parse();
    interrupt::install();
    sidenote_kernels::keep_freed_memory();
    match commands::run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // With nobody to read it (a closed pipe) the exit code still says it.
            let _ = writeln!(std::io::stderr(), "error: {}", message(&error));
            ExitCode::FAILURE
        }
    }
}
