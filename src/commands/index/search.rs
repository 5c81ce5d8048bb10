//! `sidenote index search`.

use std::path::PathBuf;

use serde_json::json;

use super::super::Console;
use super::super::encoder_args::EncoderArgs;
use crate::reader::one_line;
use crate::retriever::{Condition, Filter, Passage, Ranking, Retriever, SearchOptions};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    sidenote index search my-index \"how do bees make honey\" -k 3\n  \
    sidenote index search my-index \"mountains\" --filter 'source~wiki' --filter 'title!=Canada' --hybrid\n\n\
    A filter is FIELD=TEXT (is), FIELD!=TEXT (is not), FIELD~TEXT (contains, in whatever case) or \
    FIELD!~TEXT; a FIELD is id, title, section or source. With several, all must hold.\n\
    --hybrid finds names and rare words that the vectors miss. The first such search makes an index of \
    the words, which is kept in the folder of the index.")]
pub struct Args {
    /// Folder of the index.
    dir: PathBuf,
    /// What to look for.
    query: String,
    /// Number of passages.
    #[arg(short, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    k: u32,
    /// Only passages of documents for which this holds, such as title=Paris.
    #[arg(long, value_name = "FILTER")]
    filter: Vec<Condition>,
    /// Fuse the ranking by vectors with one by words (BM25).
    #[arg(long)]
    hybrid: bool,
    #[command(flatten)]
    encoder: EncoderArgs,
}

pub fn run(args: Args, console: Console) -> anyhow::Result<()> {
    let retriever = Retriever::open(&args.dir, args.encoder.load()?)?;
    let options = SearchOptions { filter: Filter::new(args.filter), ranking: Ranking::hybrid(args.hybrid) };
    let passages = retriever.search_with(&args.query, args.k as usize, &options)?;
    let report = json!({"query": args.query, "hybrid": args.hybrid, "passages": passages});
    console.report(&report, || {
        if passages.is_empty() {
            return match options.filter.is_empty() {
                true => "nothing found: the encoder knows no word of the query".into(),
                false => {
                    "nothing found: no document fits the filter, or no word of the query is known".into()
                }
            };
        }
        passages.iter().enumerate().map(|(i, passage)| show(i + 1, passage)).collect()
    })
}

fn show(rank: usize, passage: &Passage) -> String {
    let section = passage.section.as_ref().map(|s| format!(" / {s}")).unwrap_or_default();
    let heading = one_line(&format!("{}{section} [{}]", passage.title, passage.id));
    format!("{rank:>3}. {:.4}  {heading}\n     {}\n", passage.score, one_line(&passage.text))
}
