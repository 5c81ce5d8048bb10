//! `sidenote index verify`.

use std::path::PathBuf;

use super::super::Console;
use crate::retriever::verify;

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  sidenote index verify my-index")]
pub struct Args {
    /// Folder of the index.
    dir: PathBuf,
}

pub fn run(args: Args, console: Console) -> anyhow::Result<()> {
    console.report_problems("index_dir", &args.dir, &verify(&args.dir))
}
