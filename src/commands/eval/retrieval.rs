//! `sidenote eval retrieval`.

use std::path::PathBuf;

use super::super::Console;
use crate::encoder;
use crate::eval::retrieval;
use crate::retriever::Ranking;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  sidenote eval retrieval default datasets/scifact\n  \
    sidenote eval retrieval default datasets/scifact --hybrid")]
pub struct Args {
    /// "default" or an encoder's folder.
    encoder: String,
    /// Folder in BEIR's layout: corpus.jsonl, queries.jsonl, qrels/test.tsv.
    dataset: PathBuf,
    /// What ranks the passages.
    #[arg(long, value_enum, default_value_t = Ranking::Vectors)]
    ranking: Ranking,
    /// Short for --ranking hybrid.
    #[arg(long, conflicts_with = "ranking")]
    hybrid: bool,
}

pub fn run(args: Args, console: Console) -> anyhow::Result<()> {
    let encoder = encoder::load(&args.encoder)?;
    let dataset = retrieval::Dataset::open(&args.dataset)?;
    let ranking = if args.hybrid { Ranking::Hybrid } else { args.ranking };
    let report = retrieval::evaluate(&*encoder, &dataset, ranking, console.progress)?;
    console.report(&serde_json::to_value(&report)?, || {
        let scores = report.scores;
        format!(
            "{}: {} passages, {} queries, {} numbers a vector\n\
             nDCG@10     {:.4}\nrecall@10   {:.4}\nrecall@100  {:.4}\nMRR@10      {:.4}\n\
             passages/s  {:.0}\nqueries/s   {:.0} (encoding and exact search)",
            report.encoder,
            report.passages,
            report.queries,
            report.dim,
            scores.ndcg_at_10,
            scores.recall_at_10,
            scores.recall_at_100,
            scores.mrr_at_10,
            report.passages_per_second,
            report.queries_per_second,
        )
    })
}
