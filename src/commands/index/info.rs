//! `sidenote index info`.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::super::Console;
use super::table;
use crate::retriever::{IndexMeta, bytes_in};

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  sidenote index info my-index")]
pub struct Args {
    /// Folder of the index.
    dir: PathBuf,
}

pub fn run(args: Args, console: Console) -> anyhow::Result<()> {
    let report = describe(&args.dir, &IndexMeta::read(&args.dir)?);
    console.report(&report, || table(&report))
}

/// What an index is made of, for people and machines.
pub fn describe(dir: &Path, meta: &IndexMeta) -> Value {
    let (live, dead) = (meta.live(), meta.dead());
    json!({
        "index_dir": dir.display().to_string(),
        "identity": meta.identity(),
        "documents": live.documents,
        "chunks": live.chunks,
        "tokens": live.tokens,
        "text_bytes": live.text_bytes,
        "parts": meta.parts.len(),
        "dead_documents": dead.documents,
        "dead_chunks": dead.chunks,
        "chunk_tokens": meta.settings.chunk_tokens,
        "index": meta.kinds(),
        "breadth": meta.parts.iter().map(|part| part.breadth).collect::<Vec<_>>(),
        "dim": meta.dim,
        "encoder": meta.settings.encoder.name,
        "encoder_identity": meta.settings.encoder.identity,
        "tokenizer": meta.settings.tokenizer,
        "sources": meta.settings.sources,
        "skipped": meta.skipped.count,
        "skipped_first": meta.skipped.first,
        "disk_bytes": bytes_in(dir),
    })
}
