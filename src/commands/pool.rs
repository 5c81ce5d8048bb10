//! `sidenote pool`.

use std::path::PathBuf;

use serde_json::json;

use super::Console;
use crate::pool::{self, BuildOptions};

/// Subcommands of `sidenote pool`.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Make one pool of instances out of files in many forms
    Build(BuildArgs),
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Sources are JSON or lines of JSON, plain, .gz or .zst, or folders of them: {\"input\", \"target\"}, P3's {\"prompt\",
\"completion\"}, Alpaca's {\"instruction\", \"input\", \"output\"} (and Unnatural Instructions' and self-instruct's \"instances\"),
{\"messages\"}, tasks of Super-NaturalInstructions. Each file is read as what it looks like.

Example:
  sidenote pool build p3/ natural-instructions/tasks --evaluation rte.jsonl --drop-contaminated --out pool.jsonl")]
pub struct BuildArgs {
    /// Files and folders of instances.
    #[arg(required = true)]
    sources: Vec<PathBuf>,
    /// The file to write: a line of JSON an instance.
    #[arg(long)]
    out: PathBuf,
    /// What models will be evaluated on: instances that share 13 words in a row with it are counted.
    #[arg(long, num_args = 1.., value_name = "FILE")]
    evaluation: Vec<PathBuf>,
    /// Leave these out.
    #[arg(long, requires = "evaluation")]
    drop_contaminated: bool,
    /// Leave a task out, by its name (of a file, where that says it); may be given again.
    #[arg(long, value_name = "TASK")]
    without: Vec<String>,
    /// Positive examples shown before each instance of Super-NaturalInstructions.
    #[arg(long, default_value_t = 0)]
    examples: usize,
}

/// Runs `sidenote pool`.
pub fn run(command: Command, console: Console) -> anyhow::Result<()> {
    let Command::Build(args) = command;
    let options = BuildOptions {
        sources: &args.sources,
        evaluation: &args.evaluation,
        drop_contaminated: args.drop_contaminated,
        without: &args.without,
        examples: args.examples,
        out: &args.out,
    };
    let report = pool::build(&options, console.progress)?;
    console.report(&json!(report), || {
        format!(
            "{}: {} instances of {} tasks out of {} ({} the same as another, {} nearly; {} of tasks left out; {} share a \
             stretch with the evaluation files{})",
            args.out.display(),
            report.written,
            report.tasks.len(),
            report.read,
            report.same,
            report.nearly_same,
            report.without,
            report.contaminated,
            if args.drop_contaminated { " and are left out" } else { "" },
        )
    })
}
