//! `sidenote index compact`.

use std::path::PathBuf;
use std::time::Instant;

use serde_json::json;
use sidenote_index::Spec;

use super::super::{Console, seconds_since};
use super::table;
use crate::retriever::{Compacted, compact};

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  sidenote index compact my-index\n\n\
    Nothing is encoded again. Documents keep their ids; precomputed neighbours have to be computed again, \
    as after every change.")]
pub struct Args {
    /// Folder of the index.
    dir: PathBuf,
    /// Another kind of index than it was built with.
    #[arg(long, value_name = "SPEC")]
    index: Option<Spec>,
}

pub fn run(args: Args, console: Console) -> anyhow::Result<()> {
    let started = Instant::now();
    let Compacted { meta, parts, bytes: (before, after) } = compact(&args.dir, args.index, console.progress)?;
    let report = json!({
        "index_dir": args.dir.display().to_string(),
        "identity": meta.identity(),
        "documents": meta.live().documents,
        "chunks": meta.live().chunks,
        "parts_before": parts,
        "parts": meta.parts.len(),
        "index": meta.kinds(),
        "bytes_before": before,
        "bytes": after,
        "bytes_freed": before.saturating_sub(after),
        "seconds": seconds_since(started),
    });
    console.report(&report, || table(&report))
}
