//! `sidenote select`.

use std::path::PathBuf;

use super::Console;
use crate::select::explain::{self, Question};
use crate::select::{self, Job, Method};

/// Arguments of `sidenote select`.
#[derive(Debug, clap::Args)]
#[command(subcommand_negates_reqs = true, subcommand_precedence_over_arg = true)]
#[command(after_help = "\
POOL is what `pool build` made, or lines of {\"input\", \"target\"} with \"task\" if known and anything else; lines of --target
are {\"input\"}. The chosen rows are written as they are, with \"index_id\" and \"attribution_frequency\" added.

Example:
  sidenote select pool.jsonl.gz --target examples.jsonl --method deft -n 1000 --out chosen.jsonl
  sidenote select pool --target examples.jsonl --method deft -k 500 --out chosen.jsonl      # as many as DEFT takes")]
pub struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    select: Option<Select>,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Say where a choice comes from, and how near it is to the targets.
    Explain(Explain),
}

#[derive(Debug, clap::Args)]
struct Select {
    /// The instances to choose from: a folder that `pool build` made, or JSON Lines, plain, .gz or .zst.
    pool: PathBuf,
    /// Examples of a task to choose for, which need no labels but for "less"; several tasks take turns. Some methods choose
    /// without them.
    #[arg(long = "target", value_name = "FILE", required_if_eq_any([("method", "deft"), ("method", "rds+"), ("method", "task-aware"), ("method", "bm25"), ("method", "dsir"), ("method", "less"), ("method", "two-stage")]))]
    targets: Vec<PathBuf>,
    /// How to choose (rows without a task count as the task "unknown").
    #[arg(long, value_enum)]
    method: Method,
    /// How many rows to choose. Without it all that are among the -k nearest of any example, as DEFT does.
    #[arg(short, value_parser = clap::value_parser!(u64).range(1..), required_unless_present = "k")]
    n: Option<u64>,
    /// Where to write the chosen rows.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Where to write each example's neighbours (with two-stage the nearest of the chosen rows), a line {"ids", "distances"} an example.
    #[arg(long, value_name = "FILE")]
    scores: Option<PathBuf>,
    /// Look at no more than so many neighbours of each example [default: as many as -n needs]. With two-stage and less, name so many in
    /// --scores.
    #[arg(short, value_name = "NEIGHBOURS", value_parser = clap::value_parser!(u64).range(1..))]
    k: Option<u64>,
    /// Choose of each task and template no answer more than once more often than the next: what would be more is left out, and rows
    /// further down take its place.
    #[arg(long)]
    level_answers: bool,
    /// What turns text into vectors: "default", or an encoder's folder, or a decoder's folder or file.
    #[arg(long, value_name = "NAME|PATH", default_value = "default")]
    encoder: String,
    /// Keep the pool's vectors here, of a method that makes some: the next selection from the same pool finds them, and a run that was
    /// cut off goes on.
    #[arg(long, value_name = "DIR")]
    vectors: Option<PathBuf>,
    /// What looks at every row first, of two stages: "dsir", or an encoder as for --encoder.
    #[arg(long, value_name = "NAME|PATH", default_value = "default")]
    first: String,
    /// How far dsir draws the shares of the target's words to those of the pool, from 0, as in its paper, to less than 1.
    #[arg(long, value_name = "SHARE", default_value_t = select::SMOOTHING)]
    smoothing: f64,
    /// The language model of the methods less, perplexity and ifd.
    #[arg(long, value_name = "MODEL", required_if_eq_any([("method", "less"), ("method", "perplexity"), ("method", "ifd")]))]
    model: Option<PathBuf>,
    /// Where chance starts, also for the balanced random draw in the report.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  sidenote select explain chosen.jsonl --pool pool --target examples.jsonl --map map.svg")]
struct Explain {
    /// The chosen rows, as `select` wrote them.
    result: PathBuf,
    /// The pool that they were chosen from.
    #[arg(long)]
    pool: PathBuf,
    /// The examples that they were chosen for.
    #[arg(long = "target", value_name = "FILE", required = true)]
    targets: Vec<PathBuf>,
    /// What turns text into vectors: "default", or an encoder's folder, or a decoder's folder or file.
    #[arg(long, value_name = "NAME|PATH", default_value = "default")]
    encoder: String,
    /// Vectors of the pool that `select` kept.
    #[arg(long, value_name = "DIR")]
    vectors: Option<PathBuf>,
    /// Show so many pairs of an example and the chosen row nearest to it.
    #[arg(long, default_value_t = 5)]
    pairs: usize,
    /// Draw pool, choice and targets here, as an SVG.
    #[arg(long, value_name = "FILE")]
    map: Option<PathBuf>,
}

/// Runs `sidenote select`.
pub fn run(args: Args, console: Console) -> anyhow::Result<()> {
    match (args.command, args.select) {
        (Some(Command::Explain(args)), _) => explain(args, console),
        (None, Some(args)) => select(args, console),
        (None, None) => anyhow::bail!("name a pool to choose from; see --help"),
    }
}

fn select(args: Select, console: Console) -> anyhow::Result<()> {
    let job = Job {
        pool: args.pool,
        targets: args.targets,
        method: args.method,
        n: args.n.map(usize::try_from).transpose()?,
        k: args.k.map(usize::try_from).transpose()?,
        level_answers: args.level_answers,
        encoder: args.encoder,
        first: args.first,
        smoothing: args.smoothing,
        model: args.model,
        vectors: args.vectors,
        seed: args.seed,
        out: args.out,
        scores: args.scores,
    };
    let report = select::run(&job, console.progress)?;
    console.report(&serde_json::to_value(&report)?, || report.human())
}

fn explain(args: Explain, console: Console) -> anyhow::Result<()> {
    let question = Question {
        result: args.result,
        pool: args.pool,
        targets: args.targets,
        encoder: args.encoder,
        vectors: args.vectors,
        pairs: args.pairs,
        map: args.map,
    };
    let explanation = explain::explain(&question, console.progress)?;
    console.report(&serde_json::to_value(&explanation)?, || explanation.human())
}
