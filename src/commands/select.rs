//! `sidenote select`.

use std::path::PathBuf;

use super::Console;
use crate::select::{self, Job, Method};

/// Arguments of `sidenote select`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Lines of POOL are {\"input\", \"target\"} with \"task\" if known and anything else, lines of --target are {\"input\"}.
The chosen rows are written as they are, with \"index_id\" and \"attribution_frequency\" added.

Example:
  sidenote select pool.jsonl.gz --target examples.jsonl --method deft -n 1000 --out chosen.jsonl")]
pub struct Args {
    /// The instances to choose from: JSON Lines, plain, .gz or .zst.
    pool: PathBuf,
    /// Unlabelled examples of the task to choose for; the random methods do not read them.
    #[arg(long, value_name = "FILE", required_if_eq_any([("method", "deft"), ("method", "bm25"), ("method", "dsir")]))]
    target: Option<PathBuf>,
    /// How to choose: nearest to the target by vectors (deft) or words (bm25), in proportion to how likely the target
    /// makes a row (dsir), every row alike, or every task alike (rows without a task count as the task "unknown").
    #[arg(long, value_enum)]
    method: Method,
    /// How many rows to choose.
    #[arg(short, value_parser = clap::value_parser!(u64).range(1..))]
    n: u64,
    /// Where to write the chosen rows.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Where to write each example's neighbours, a line {"ids", "distances"} an example.
    #[arg(long, value_name = "FILE")]
    scores: Option<PathBuf>,
    /// Look at no more than so many neighbours of each example [default: as many as -n needs].
    #[arg(short, value_name = "NEIGHBOURS", value_parser = clap::value_parser!(u64).range(1..))]
    k: Option<u64>,
    /// What turns text into vectors: "default" or a folder.
    #[arg(long, value_name = "NAME|DIR", default_value = "default")]
    encoder: String,
    /// Where chance starts, also for the balanced random draw in the report.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

/// Runs `sidenote select`.
pub fn run(args: Args, console: Console) -> anyhow::Result<()> {
    let job = Job {
        pool: args.pool,
        target: args.target,
        method: args.method,
        n: usize::try_from(args.n)?,
        k: args.k.map(usize::try_from).transpose()?,
        encoder: args.encoder,
        seed: args.seed,
        out: args.out,
        scores: args.scores,
    };
    let report = select::run(&job, console.progress)?;
    console.report(&serde_json::to_value(&report)?, || report.human())
}
