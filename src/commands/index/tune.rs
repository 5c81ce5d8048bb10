//! `sidenote index tune`.

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::Context;
use serde_json::{Value, json};

use super::super::encoder_args::EncoderArgs;
use super::super::{Console, seconds_since};
use crate::retriever::{TuneOptions, tune};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    sidenote index tune my-index --recall 0.95\n  \
    sidenote index tune my-index --recall 0.99 --queries questions.txt\n\n\
    Questions that are unlike the text are harder to search for than chunks of it: give some of yours.")]
pub struct Args {
    /// Folder of the index.
    dir: PathBuf,
    /// Share of the true nearest chunks that searches are to find.
    #[arg(long)]
    recall: f64,
    /// Of how many nearest chunks.
    #[arg(short, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    k: u32,
    /// A file of queries, one a line, instead of chunks of the index.
    #[arg(long, value_name = "FILE")]
    queries: Option<PathBuf>,
    /// How many chunks to use as queries.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..))]
    sample: u32,
    #[command(flatten)]
    encoder: EncoderArgs,
}

pub fn run(args: Args, console: Console) -> anyhow::Result<()> {
    let started = Instant::now();
    let mut queries = Vec::new();
    if let Some(path) = &args.queries {
        let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        queries.extend(text.lines().filter(|line| !line.trim().is_empty()).map(String::from));
        anyhow::ensure!(!queries.is_empty(), "{}: no queries in it; give one a line", path.display());
    }
    let options = TuneOptions {
        dir: &args.dir,
        recall: args.recall,
        k: args.k as usize,
        queries: &queries,
        sample: args.sample as usize,
        encoder: args.encoder.load()?,
    };
    let tuned = tune(options, console.progress)?;
    let parts: Vec<Value> = tuned
        .meta
        .parts
        .iter()
        .map(|part| json!({"index": part.index, "chunks": part.counts.chunks, "breadth": part.breadth}))
        .collect();
    let report = json!({
        "index_dir": args.dir.display().to_string(),
        "queries": tuned.queries,
        "k": args.k,
        "recall_wanted": args.recall,
        "recall_before": tuned.before,
        "recall": tuned.after,
        "parts": parts,
        "seconds": seconds_since(started),
    });
    console.report(&report, || {
        let mut text = format!(
            "recall@{} {:.4}, before {:.4}, of {} queries\n",
            args.k, tuned.after, tuned.before, tuned.queries
        );
        for part in &tuned.meta.parts {
            let breadth = part.breadth.map_or("searched exactly".into(), |b| format!("breadth {b}"));
            text += &format!("  {} of {} chunks: {breadth}\n", part.index, part.counts.chunks);
        }
        if tuned.after < args.recall {
            text += "the widest search finds no more; another kind of index may (compact --index)\n";
        }
        text
    })
}
