//! `sidenote index build`.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context;
use serde_json::json;
use sidenote_index::{Bytes, Spec};

use super::super::encoder_args::load_encoder;
use super::super::{Console, seconds_since};
use super::info::describe;
use super::table;
use crate::corpus::{OnError, Tokenizer};
use crate::model::Source;
use crate::retriever::{BuildOptions, Existing, build};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    sidenote index build articles.jsonl.zst notes/ --out my-index\n  \
    sidenote index build articles.jsonl.zst notes/ --out my-index --resume  # after a crash\n\n\
    A corpus is text, Markdown and JSON lines ({\"id\", \"title\", \"section\", \"text\"}, only text being \
    necessary), each also as .gz or .zst, Parquet with those columns, and folders of all these.")]
pub struct Args {
    /// Files and folders to index.
    #[arg(required = true)]
    corpus: Vec<PathBuf>,
    /// Folder of the index.
    #[arg(long)]
    out: PathBuf,
    /// What makes the vectors: "default" or a folder.
    #[arg(long, default_value = "default")]
    encoder: String,
    /// Kind of index: Flat, RaBitQ, QG32, IVF1024,RaBitQ or HNSW32; by the number of chunks where not given.
    #[arg(long, value_name = "SPEC")]
    index: Option<Spec>,
    /// What to cut chunks with, instead of the tokenizer inside the program: a tokenizer.json, or a model (a folder, a
    /// GGUF file, or a name on the hub), whose own is taken.
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
    /// Tokens in a chunk.
    #[arg(long, default_value_t = 64)]
    chunk_tokens: usize,
    /// Most memory of its own that building the index over the vectors may take, such as 4GiB: what
    /// would need more is refused.
    #[arg(long, value_name = "SIZE")]
    memory: Option<Bytes>,
    /// What to do with a line or file that cannot be used.
    #[arg(long, value_enum, default_value_t = OnError::Fail)]
    on_error: OnError,
    /// Continue an unfinished build.
    #[arg(long, conflicts_with = "force")]
    resume: bool,
    /// Replace an index, or an unfinished build, that is there.
    #[arg(long)]
    force: bool,
    /// Fixes what an index does by chance (the rotation of its codes).
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

pub fn run(args: Args, console: Console) -> anyhow::Result<()> {
    let started = Instant::now();
    let encoder = load_encoder(&args.encoder)?;
    let tokenizer = match &args.tokenizer {
        Some(path) => tokenizer_of(path).with_context(|| format!("--tokenizer {}", path.display()))?,
        None => Tokenizer::default_lm()?,
    };
    let existing = match (args.resume, args.force) {
        (true, _) => Existing::Resume,
        (_, true) => Existing::Replace,
        _ => Existing::Fail,
    };
    let options = BuildOptions {
        corpus: &args.corpus,
        out: &args.out,
        encoder: encoder.as_ref(),
        tokenizer: &tokenizer,
        chunk_tokens: args.chunk_tokens,
        index: args.index,
        seed: args.seed,
        memory: args.memory,
        on_error: args.on_error,
        existing,
    };
    let meta = build(&options, console.progress)?;
    let mut report = describe(&args.out, &meta);
    report["seconds"] = json!(seconds_since(started));
    console.report(&report, || table(&report))
}

fn tokenizer_of(path: &Path) -> Result<Tokenizer, crate::error::Error> {
    if path.extension().is_some_and(|end| end == "json") {
        Tokenizer::open(path)
    } else {
        Source::open(path)?.tokenizer()
    }
}
