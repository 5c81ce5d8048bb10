//! `sidenote index add`.

use std::path::PathBuf;
use std::time::Instant;

use serde_json::json;

use super::super::encoder_args::EncoderArgs;
use super::super::{Console, seconds_since};
use super::table;
use crate::corpus::OnError;
use crate::retriever::{AddOptions, add};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    sidenote index add my-index new-articles.jsonl notes/\n\n\
    A document whose id is there replaces the old one; one that has not changed is left alone, so a folder \
    of notes can be added again whenever some of them have changed. Searches see the old index until all is \
    done. After a crash or Ctrl-C, run the same command again.")]
pub struct Args {
    /// Folder of the index.
    dir: PathBuf,
    /// Files and folders to add.
    #[arg(required = true)]
    corpus: Vec<PathBuf>,
    #[command(flatten)]
    encoder: EncoderArgs,
    /// What to do with a line or file that cannot be used.
    #[arg(long, value_enum, default_value_t = OnError::Fail)]
    on_error: OnError,
    /// Drop what an unfinished run has done, and begin again.
    #[arg(long)]
    restart: bool,
}

pub fn run(args: Args, console: Console) -> anyhow::Result<()> {
    let started = Instant::now();
    let options = AddOptions {
        dir: &args.dir,
        corpus: &args.corpus,
        encoder: args.encoder.load()?,
        on_error: args.on_error,
        restart: args.restart,
    };
    let added = add(options, console.progress)?;
    let report = json!({
        "index_dir": args.dir.display().to_string(),
        "identity": added.meta.identity(),
        "added": added.added,
        "replaced": added.replaced,
        "unchanged": added.unchanged,
        "skipped": added.skipped.count,
        "skipped_first": added.skipped.first,
        "documents": added.meta.live().documents,
        "chunks": added.meta.live().chunks,
        "parts": added.meta.parts.len(),
        "dead_documents": added.meta.dead().documents,
        "seconds": seconds_since(started),
    });
    console.report(&report, || table(&report))
}
