//! `sidenote index ...`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context;
use serde_json::{Value, json};
use sidenote_index::{Bytes, Spec};

use super::Console;
use crate::corpus::{OnError, Tokenizer};
use crate::encoder::{self, Encoder};
use crate::model::Source;
use crate::reader::one_line;
use crate::retriever::{
    AddOptions, BuildOptions, Compacted, Condition, Existing, Filter, IndexMeta, Passage, Ranking, Retriever,
    SearchOptions, TuneOptions, add, build, bytes_in, compact, delete, encode_again, tune, verify,
};

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Cut a corpus into chunks, encode them, and build an index over them.
    Build(BuildArgs),
    /// Add documents to an index, or replace those whose ids are there.
    Add(AddArgs),
    /// Delete documents from an index.
    Delete(DeleteArgs),
    /// Rewrite what is left after adding and deleting into one piece.
    Compact(CompactArgs),
    /// Encode the text of an index again, with another encoder or one that has learnt.
    Encode(EncodeArgs),
    /// Find out how widely to search for a wanted recall, and keep it.
    Tune(TuneArgs),
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

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    sidenote index add my-index new-articles.jsonl notes/\n\n\
    A document whose id is there replaces the old one; one that has not changed is left alone, so a folder \
    of notes can be added again whenever some of them have changed. Searches see the old index until all is \
    done. After a crash or Ctrl-C, run the same command again.")]
pub struct AddArgs {
    /// Folder of the index.
    dir: PathBuf,
    /// Files and folders to add.
    #[arg(required = true)]
    corpus: Vec<PathBuf>,
    /// The encoder, where it is no longer where the index says.
    #[arg(long)]
    encoder: Option<String>,
    /// What to do with a line or file that cannot be used.
    #[arg(long, value_enum, default_value_t = OnError::Fail)]
    on_error: OnError,
    /// Drop what an unfinished run has done, and begin again.
    #[arg(long)]
    restart: bool,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    sidenote index delete my-index 4711 notes/today\n  \
    sidenote index delete my-index --ids gone.txt")]
pub struct DeleteArgs {
    /// Folder of the index.
    dir: PathBuf,
    /// Ids of the documents to delete.
    #[arg(required_unless_present = "ids", value_name = "ID")]
    id: Vec<String>,
    /// A file of ids, one a line.
    #[arg(long, value_name = "FILE")]
    ids: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  sidenote index compact my-index\n\n\
    Nothing is encoded again. Documents keep their ids; precomputed neighbours have to be computed again, \
    as after every change.")]
pub struct CompactArgs {
    /// Folder of the index.
    dir: PathBuf,
    /// Another kind of index than it was built with.
    #[arg(long, value_name = "SPEC")]
    index: Option<Spec>,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    sidenote index encode my-index --encoder runs/atlas/model/retriever --out my-new-index\n  \
    sidenote index encode my-index --encoder my-encoder             # in its own place")]
pub struct EncodeArgs {
    /// Folder of the index.
    dir: PathBuf,
    /// What makes the new vectors: "default" or a folder.
    #[arg(long, value_name = "NAME|DIR")]
    encoder: String,
    /// Folder of the new index; the old one is replaced, at one stroke, where it is left out.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    sidenote index tune my-index --recall 0.95\n  \
    sidenote index tune my-index --recall 0.99 --queries questions.txt\n\n\
    Questions that are unlike the text are harder to search for than chunks of it: give some of yours.")]
pub struct TuneArgs {
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
    /// The encoder, where it is no longer where the index says.
    #[arg(long)]
    encoder: Option<String>,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    sidenote index search my-index \"how do bees make honey\" -k 3\n  \
    sidenote index search my-index \"mountains\" --filter 'source~wiki' --filter 'title!=Canada' --hybrid\n\n\
    A filter is FIELD=TEXT (is), FIELD!=TEXT (is not), FIELD~TEXT (contains, in whatever case) or \
    FIELD!~TEXT; a FIELD is id, title, section or source. With several, all must hold.\n\
    --hybrid finds names and rare words that the vectors miss. The first such search makes an index of \
    the words, which is kept in the folder of the index.")]
pub struct SearchArgs {
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
        Command::Add(args) => run_add(args, console),
        Command::Delete(args) => run_delete(args, console),
        Command::Compact(args) => run_compact(args, console),
        Command::Encode(args) => run_encode(args, console),
        Command::Tune(args) => run_tune(args, console),
        Command::Search(args) => run_search(args, console),
        Command::Info(args) => run_info(&args.dir, console),
        Command::Verify(args) => run_verify(&args.dir, console),
    }
}

/// The encoder called `name`: a folder by its full path, so that an index finds it from anywhere, or a name on the hub.
pub(super) fn load_encoder(name: &str) -> anyhow::Result<Box<dyn Encoder>> {
    if name == "default" {
        return Ok(encoder::load(name)?);
    }
    let Ok(path) = fs::canonicalize(name) else {
        return encoder::load(name).with_context(|| format!("--encoder {name}"));
    };
    Ok(encoder::load(path.to_str().context("the encoder's path is not UTF-8")?)?)
}

fn tokenizer_of(path: &Path) -> Result<Tokenizer, crate::error::Error> {
    if path.extension().is_some_and(|end| end == "json") {
        Tokenizer::open(path)
    } else {
        Source::open(path)?.tokenizer()
    }
}

fn run_build(args: BuildArgs, console: Console) -> anyhow::Result<()> {
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

fn run_add(args: AddArgs, console: Console) -> anyhow::Result<()> {
    let started = Instant::now();
    let encoder = args.encoder.as_deref().map(load_encoder).transpose()?;
    let options = AddOptions {
        dir: &args.dir,
        corpus: &args.corpus,
        encoder,
        on_error: args.on_error,
        restart: args.restart,
    };
    let added = add(options, console.progress)?;
    let report = json!({
        "index_dir": args.dir.display().to_string(),
        "identity": added.meta.identity(),
        "added": added.added,
        "replaced": added.replaced,
        "unchanged": added.unchanged,
        "skipped": added.skipped.count,
        "skipped_first": added.skipped.first,
        "documents": added.meta.live().documents,
        "chunks": added.meta.live().chunks,
        "parts": added.meta.parts.len(),
        "dead_documents": added.meta.dead().documents,
        "seconds": seconds_since(started),
    });
    console.report(&report, || table(&report))
}

fn run_delete(args: DeleteArgs, console: Console) -> anyhow::Result<()> {
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

fn run_encode(args: EncodeArgs, console: Console) -> anyhow::Result<()> {
    let started = Instant::now();
    let encoder = encoder::load(&args.encoder)?;
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
        "seconds": seconds,
        "chunks_per_second": meta.live().chunks as f64 / seconds.max(1e-9),
    });
    console.report(&report, || table(&report))
}

fn run_compact(args: CompactArgs, console: Console) -> anyhow::Result<()> {
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

fn run_tune(args: TuneArgs, console: Console) -> anyhow::Result<()> {
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
        encoder: args.encoder.as_deref().map(load_encoder).transpose()?,
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

/// To the millisecond.
fn seconds_since(started: Instant) -> f64 {
    (started.elapsed().as_secs_f64() * 1000.0).round() / 1000.0
}

fn run_search(args: SearchArgs, console: Console) -> anyhow::Result<()> {
    let encoder = args.encoder.as_deref().map(load_encoder).transpose()?;
    let retriever = Retriever::open(&args.dir, encoder)?;
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

fn run_info(dir: &Path, console: Console) -> anyhow::Result<()> {
    let report = describe(dir, &IndexMeta::read(dir)?);
    console.report(&report, || table(&report))
}

/// What an index is made of, for people and machines.
fn describe(dir: &Path, meta: &IndexMeta) -> Value {
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
