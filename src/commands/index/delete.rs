//! `sidenote index delete`.

use std::fs;
use std::path::PathBuf;

use anyhow::Context;
use serde_json::json;

use super::super::Console;
use super::table;
use crate::retriever::delete;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    sidenote index delete my-index 4711 notes/today\n  \
    sidenote index delete my-index --ids gone.txt")]
pub struct Args {
    /// Folder of the index.
    dir: PathBuf,
    /// Ids of the documents to delete.
    #[arg(required_unless_present = "ids", value_name = "ID")]
    id: Vec<String>,
    /// A file of ids, one a line.
    #[arg(long, value_name = "FILE")]
    ids: Option<PathBuf>,
}

pub fn run(args: Args, console: Console) -> anyhow::Result<()> {
    let mut ids = args.id;
    if let Some(path) = &args.ids {
        let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        ids.extend(text.lines().filter(|line| !line.is_empty()).map(String::from));
        anyhow::ensure!(!ids.is_empty(), "{}: no ids in it; give one a line", path.display());
    }
    let deleted = delete(&args.dir, &ids)?;
    let report = json!({
        "index_dir": args.dir.display().to_string(),
        "identity": deleted.meta.identity(),
        "deleted": deleted.deleted,
        "documents": deleted.meta.live().documents,
        "chunks": deleted.meta.live().chunks,
        "parts": deleted.meta.parts.len(),
        "dead_documents": deleted.meta.dead().documents,
    });
    console.report(&report, || table(&report))
}
