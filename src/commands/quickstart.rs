//! `sidenote quickstart`.

use std::path::PathBuf;

use super::Console;
use crate::quickstart::{self, Options};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sidenote quickstart
  sidenote quickstart --short --json --out runs/first")]
pub struct Args {
    /// Folder for everything that is made [default: runs/quickstart, or runs/quickstart-2, ...].
    #[arg(long)]
    out: Option<PathBuf>,
    /// Do the same on less data, in under two minutes.
    #[arg(long)]
    short: bool,
    /// Seed of the models' weights and of the order of the text.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

pub fn run(args: Args, console: Console) -> anyhow::Result<()> {
    sidenote_kernels::LargeBlocks::start();
    let out = args.out.unwrap_or_else(free_folder);
    let options = Options { out, short: args.short, seed: args.seed };
    let report = quickstart::run(&options, console.progress)?;
    console.report(&report, || quickstart::human(&report))
}

/// The first of runs/quickstart, runs/quickstart-2, ... that is not there.
fn free_folder() -> PathBuf {
    let numbered = (2u32..).map(|n| PathBuf::from(format!("runs/quickstart-{n}")));
    std::iter::once(PathBuf::from("runs/quickstart"))
        .chain(numbered)
        .find(|dir| !dir.exists())
        .unwrap_or_default()
}
