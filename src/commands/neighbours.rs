//! `sidenote neighbours`.

use std::path::PathBuf;
use std::time::Instant;

use serde_json::json;

use super::encoder_args::EncoderArgs;
use super::{Console, seconds_since};
use crate::corpus::OnError;
use crate::retriever::neighbours::{ABSENT, precompute};
use crate::retriever::{Ranking, Retriever};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    sidenote neighbours my-index -k 2 --out my-index-neighbours\n  \
    sidenote neighbours my-index --queries heldout.jsonl -k 2 --out heldout-neighbours")]
pub struct Args {
    /// Folder of the index to find neighbours in.
    dir: PathBuf,
    /// Files and folders whose chunks need neighbours; the index's own chunks where not given.
    #[arg(long, num_args = 1.., value_name = "CORPUS")]
    queries: Vec<PathBuf>,
    /// Neighbours a chunk.
    #[arg(short, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=1000))]
    k: u32,
    /// What they are found by. A model that is trained with them looks up by the same.
    #[arg(long, value_enum, default_value_t = Ranking::Vectors)]
    ranking: Ranking,
    /// Folder to write the neighbours to.
    #[arg(long)]
    out: PathBuf,
    /// What to do with a line or file of the queries that cannot be used.
    #[arg(long, value_enum, default_value_t = OnError::Fail)]
    on_error: OnError,
    /// Replace neighbours that are there.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    encoder: EncoderArgs,
}

pub fn run(args: Args, console: Console) -> anyhow::Result<()> {
    let started = Instant::now();
    let retriever = Retriever::open(&args.dir, args.encoder.load()?)?;
    let queries = (!args.queries.is_empty()).then_some((args.queries.as_slice(), args.on_error));
    let (k, ranking) = (args.k as usize, args.ranking);
    let found = precompute(&retriever, queries, k, ranking, &args.out, args.force, console.progress)?;
    let absent = (0..found.len()).flat_map(|c| found.of(c)).filter(|&&id| id == ABSENT).count();
    let report = json!({
        "out": args.out.display().to_string(),
        "chunks": found.len(),
        "k": found.k(),
        "ranking": found.ranking(),
        "absent": absent,
        "identity": found.identity(),
        "index": found.index_identity(),
        "queries": found.queries_identity(),
        "seconds": seconds_since(started),
    });
    console.report(&report, || {
        let out = args.out.display();
        format!("{out}: {} neighbours for each of {} chunks, {absent} absent", found.k(), found.len())
    })
}
