//! `sidenote pool`.

use std::path::PathBuf;

use super::Console;
use crate::pool::{self, BuildOptions, SplitOptions};

/// What to do with a pool.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Make a pool out of files, without duplicates.
    Build(Args),
    /// Split a pool: what is trained on, and held-out categories, tasks and instances.
    Split(SplitArgs),
}

/// Arguments of `sidenote pool build`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
A SOURCE is a file or a folder, whose format is found by its content, or FORMAT:PATH. Formats are instances
({\"input\", \"target\"}), p3, sni, promptsource and flan (TEMPLATES=ROWS), flan-cot, alpaca, messages and induction.

Example:
  sidenote pool build p3_t0_train sni/tasks_en promptsource:rte/templates.yaml=rte.jsonl --out pool \\
    --exclude left_out.txt --evaluation rte.val.jsonl --drop-contaminated")]
pub struct Args {
    /// What to read.
    #[arg(required = true, value_name = "SOURCE")]
    sources: Vec<String>,
    /// The folder to make.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Leave out these tasks: a pattern a line, `*` standing for anything, or `source:` and a pattern of sources.
    #[arg(long, value_name = "FILE")]
    exclude: Vec<PathBuf>,
    /// Look for the texts of this evaluation file (JSONL, JSON, Parquet or CSV) or pool: runs of 13 words, or shorter texts
    /// whole.
    #[arg(long, value_name = "FILE")]
    evaluation: Vec<PathBuf>,
    /// Leave out what is found of the evaluation files.
    #[arg(long, requires = "evaluation")]
    drop_contaminated: bool,
    /// Keep instances of one task, template and target whose texts are nearly the same.
    #[arg(long)]
    keep_near: bool,
    /// Examples that the prompt of a Super-NaturalInstructions task shows.
    #[arg(long, default_value_t = 0)]
    shots: usize,
    /// Where chance starts, for templates that draw.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

/// Arguments of `sidenote pool split`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
DIR gets the pools train, categories (those named), tasks (a share of each other category's) and instances (a share of each
other task's). The same text is never on both sides. `sidenote train` with [tune.splits] measures each apart and refuses data
that holds any of it; `sidenote eval tasks --data DIR/categories DIR/tasks DIR/instances` reports each apart.

Example:
  sidenote pool split pool --out splits --category \"Textual Entailment\" --tasks 0.1 --instances 0.02")]
pub struct SplitArgs {
    /// The pool: a folder or a file of instances.
    pool: PathBuf,
    /// The folder to make.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Hold out this category (cluster) whole; may be given several times.
    #[arg(long, value_name = "NAME")]
    category: Vec<String>,
    /// Hold out this share of each other category's tasks.
    #[arg(long, value_name = "SHARE", default_value_t = 0.1)]
    tasks: f64,
    /// Hold out this share of each other task's instances.
    #[arg(long, value_name = "SHARE", default_value_t = 0.02)]
    instances: f64,
    /// Which tasks and instances these are.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

/// Runs `sidenote pool`.
pub fn run(command: Command, console: Console) -> anyhow::Result<()> {
    match command {
        Command::Build(args) => run_build(args, console),
        Command::Split(args) => run_split(args, console),
    }
}

fn run_split(args: SplitArgs, console: Console) -> anyhow::Result<()> {
    let options = SplitOptions {
        pool: args.pool,
        out: args.out,
        categories: args.category,
        tasks: args.tasks,
        instances: args.instances,
        seed: args.seed,
    };
    let report = pool::split(&options)?;
    console.report(&serde_json::to_value(&report)?, || report.human())
}

fn run_build(args: Args, console: Console) -> anyhow::Result<()> {
    let options = BuildOptions {
        sources: args.sources,
        out: args.out,
        shots: args.shots,
        seed: args.seed,
        exclude: args.exclude,
        evaluation: args.evaluation,
        drop_contaminated: args.drop_contaminated,
        keep_near: args.keep_near,
    };
    let report = pool::build(&options, console.progress)?;
    console.report(&serde_json::to_value(&report)?, || report.human())
}
