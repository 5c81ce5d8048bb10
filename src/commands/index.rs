//! `sidenote index ...`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context;
use serde_json::{Value, json};
use sidenote_index::Spec;

use super::Console;
use crate::corpus::{OnError, Tokenizer};
use crate::encoder::{self, Encoder};
use crate::reader::one_line;
use crate::retriever::{BuildOptions, Existing, IndexMeta, Passage, Retriever, build, verify};

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Cut a corpus into chunks, encode them, and build an index over them.
    Build(BuildArgs),
    /// Show the passages nearest to a query.
    Search(SearchArgs),
    /// Say what an index is made of.
    Info(InfoArgs),
    /// Check every byte of an index, and that its pieces belong together.
    Verify(VerifyArgs),
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    sidenote index build articles.jsonl.zst notes/ --out my-index\n  \
    sidenote index build articles.jsonl.zst notes/ --out my-index --resume  # after a crash\n\n\
    A corpus is text, Markdown and JSON lines ({\"id\", \"title\", \"section\", \"text\"}, only text being \
    necessary), each also as .gz or .zst, Parquet with those columns, and folders of all these.")]
pub struct BuildArgs {
    /// Files and folders to index.
    #[arg(required = true)]
    corpus: Vec<PathBuf>,
    /// Folder of the index.
    #[arg(long)]
    out: PathBuf,
    /// What makes the vectors: "default" or a folder.
    #[arg(long, default_value = "default")]
    encoder: String,
    /// Kind of index: Flat, RaBitQ or HNSW32; by the number of chunks where not given.
    #[arg(long, value_name = "SPEC")]
    index: Option<Spec>,
    /// A tokenizer.json to cut chunks with, instead of the one inside the program.
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
    /// Tokens in a chunk.
    #[arg(long, default_value_t = 64)]
    chunk_tokens: usize,
    /// What to do with a line or file that cannot be used.
    #[arg(long, value_enum, default_value_t = OnError::Fail)]
    on_error: OnError,
    /// Continue an unfinished build.
    #[arg(long, conflicts_with = "force")]
    resume: bool,
    /// Replace an index, or an unfinished build, that is there.
    #[arg(long)]
    force: bool,
    /// Fixes what an index does by chance (the rotation of RaBitQ).
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  sidenote index search my-index \"how do bees make honey\" -k 3")]
pub struct SearchArgs {
    /// Folder of the index.
    dir: PathBuf,
    /// What to look for.
    query: String,
    /// Number of passages.
    #[arg(short, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    k: u32,
    /// The encoder, where it is no longer where the index says.
    #[arg(long)]
    encoder: Option<String>,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  sidenote index info my-index")]
pub struct InfoArgs {
    /// Folder of the index.
    dir: PathBuf,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  sidenote index verify my-index")]
pub struct VerifyArgs {
    /// Folder of the index.
    dir: PathBuf,
}

pub fn run(command: Command, console: Console) -> anyhow::Result<()> {
    match command {
        Command::Build(args) => run_build(args, console),
        Command::Search(args) => run_search(args, console),
        Command::Info(args) => run_info(&args.dir, console),
        Command::Verify(args) => run_verify(&args.dir, console),
    }
}

/// The encoder called `name`, a folder by its full path so that an index finds it from anywhere.
pub(super) fn load_encoder(name: &str) -> anyhow::Result<Box<dyn Encoder>> {
    if name == "default" {
        return Ok(encoder::load(name)?);
    }
    let path = fs::canonicalize(name).with_context(|| format!("--encoder {name}"))?;
    Ok(encoder::load(path.to_str().context("the encoder's path is not UTF-8")?)?)
}

fn run_build(args: BuildArgs, console: Console) -> anyhow::Result<()> {
    let started = Instant::now();
    let encoder = load_encoder(&args.encoder)?;
    let tokenizer = match &args.tokenizer {
        Some(path) => Tokenizer::open(path)?,
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
        on_error: args.on_error,
        existing,
    };
    let meta = build(&options, console.progress)?;
    let mut report = describe(&args.out, &meta);
    report["seconds"] = json!((started.elapsed().as_secs_f64() * 1000.0).round() / 1000.0);
    console.report(&report, || table(&report))
}

fn run_search(args: SearchArgs, console: Console) -> anyhow::Result<()> {
    let encoder = args.encoder.as_deref().map(load_encoder).transpose()?;
    let retriever = Retriever::open(&args.dir, encoder)?;
    let passages = retriever.search(&args.query, args.k as usize)?;
    let report = json!({"query": args.query, "passages": passages});
    console.report(&report, || {
        if passages.is_empty() {
            return "nothing found: the encoder knows no word of the query".into();
        }
        passages.iter().enumerate().map(|(i, passage)| show(i + 1, passage)).collect()
    })
}

fn show(rank: usize, passage: &Passage) -> String {
    let section = passage.section.as_ref().map(|s| format!(" / {s}")).unwrap_or_default();
    let heading = one_line(&format!("{}{section} [{}]", passage.title, passage.id));
    format!("{rank:>3}. {:.4}  {heading}\n     {}\n", passage.score, one_line(&passage.text))
}

fn run_info(dir: &Path, console: Console) -> anyhow::Result<()> {
    let report = describe(dir, &IndexMeta::read(dir)?);
    console.report(&report, || table(&report))
}

/// What an index is made of, for people and machines.
fn describe(dir: &Path, meta: &IndexMeta) -> Value {
    json!({
        "index_dir": dir.display().to_string(),
        "identity": meta.identity(),
        "documents": meta.documents,
        "chunks": meta.chunks,
        "tokens": meta.tokens,
        "text_bytes": meta.text_bytes,
        "chunk_tokens": meta.settings.chunk_tokens,
        "index": meta.index,
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

/// A report as lines of name and value; lists a line an entry.
fn table(report: &Value) -> String {
    let mut lines = String::new();
    for (name, value) in report.as_object().into_iter().flatten() {
        let values = match value {
            Value::Array(values) => values.iter().map(plain).collect(),
            value => vec![plain(value)],
        };
        for (i, value) in values.iter().enumerate() {
            let name = if i == 0 { name.replace('_', " ") } else { String::new() };
            lines += &format!("{name:<18}{value}\n");
        }
    }
    lines
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), String::from)
}

fn bytes_in(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => bytes_in(&entry.path()),
            Ok(metadata) => metadata.len(),
            Err(_) => 0,
        })
        .sum()
}

fn run_verify(dir: &Path, console: Console) -> anyhow::Result<()> {
    let problems = verify(dir);
    let report =
        json!({"index_dir": dir.display().to_string(), "sound": problems.is_empty(), "problems": problems});
    console.report(&report, || match problems.is_empty() {
        true => format!("{}: sound", dir.display()),
        false => problems.join("\n"),
    })?;
    anyhow::ensure!(problems.is_empty(), "{}: {} problem(s) found", dir.display(), problems.len());
    Ok(())
}
