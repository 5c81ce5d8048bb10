//! `sidenote index ...`.

use super::Console;

#[derive(Debug, clap::Subcommand)]
pub enum Command {}

pub fn run(command: Command, _console: Console) -> anyhow::Result<()> {
    match command {}
}
