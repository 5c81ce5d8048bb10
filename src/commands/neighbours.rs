//! `sidenote neighbours`.

use super::Console;

#[derive(Debug, clap::Args)]
pub struct Args {}

pub fn run(_args: Args, _console: Console) -> anyhow::Result<()> {
    anyhow::bail!("not built yet")
}
