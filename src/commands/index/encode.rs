//! `sidenote index encode`.

use std::path::PathBuf;
use std::time::Instant;

use serde_json::json;

use super::super::encoder_args::load_encoder;
use super::super::{Console, seconds_since};
use super::table;
use crate::retriever::encode_again;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    sidenote index encode my-index --encoder runs/atlas/model/retriever --out my-new-index\n  \
    sidenote index encode my-index --encoder my-encoder             # in its own place")]
pub struct Args {
    /// Folder of the index.
    dir: PathBuf,
    /// What makes the new vectors: "default" or a folder.
    #[arg(long, value_name = "NAME|DIR")]
    encoder: String,
    /// Folder of the new index; the old one is replaced, at one stroke, where it is left out.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

pub fn run(args: Args, console: Console) -> anyhow::Result<()> {
    let started = Instant::now();
    let encoder = load_encoder(&args.encoder)?;
    let out = args.out.as_deref().unwrap_or(&args.dir);
    let meta = encode_again(&args.dir, out, encoder.as_ref(), console.progress)?;
    let seconds = started.elapsed().as_secs_f64();
    let report = json!({
        "index_dir": out.display().to_string(),
        "identity": meta.identity(),
        "documents": meta.live().documents,
        "chunks": meta.live().chunks,
        "encoder": meta.settings.encoder.name,
        "index": meta.kinds(),
        "seconds": seconds_since(started),
        "chunks_per_second": meta.live().chunks as f64 / seconds.max(1e-9),
    });
    console.report(&report, || table(&report))
}
