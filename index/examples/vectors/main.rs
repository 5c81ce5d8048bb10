//! Build an index over a file of vectors, search it, and measure both.
//!
//! ```text
//! cargo run --release -p sidenote-index --example vectors -- build rows.npy index --index RaBitQ
//! cargo run --release -p sidenote-index --example vectors -- truth rows.npy queries.npy truth.ivecs
//! cargo run --release -p sidenote-index --example vectors -- search index queries.npy --truth truth.ivecs
//! cargo run --release -p sidenote-index --example vectors --features faiss -- import theirs.index index --metric l2
//! ```
//!
//! `benches/peers/ann.py` runs it beside the peers.

mod parts;
mod process;

use std::collections::HashSet;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Args, Parser, Subcommand};
use parts::Searchable;
use process::{Memory, Watch, cpu_seconds};
use rayon::ThreadPoolBuilder;
use serde::Serialize;
use sidenote_index::{Builder, Bytes, Hit, Index, IndexError, Metric, Spec, VectorFile};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// Nearest neighbours of vectors in files: .npy, .fvecs, .bvecs or .safetensors
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Build(Build),
    Import(Import),
    Search(Search),
    Truth(Truth),
}

/// Build an index over the vectors of a file
#[derive(Args)]
struct Build {
    file: PathBuf,
    dir: PathBuf,
    /// What to build, such as Flat, RaBitQ, QG32 or HNSW16 [default: by the number of vectors]
    #[arg(long)]
    index: Option<Spec>,
    /// ip, cosine or l2
    #[arg(long, default_value = "cosine")]
    metric: Metric,
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Take only the first so many vectors
    #[arg(long)]
    rows: Option<usize>,
    /// Threads [default: one a processor]
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// Most memory of its own that building may take, such as 4GiB
    #[arg(long, value_name = "SIZE")]
    memory: Option<Bytes>,
    /// Go on with a build of the same file that was cut off
    #[arg(long)]
    resume: bool,
    /// Cut the vectors into so many indexes, DIR/0, DIR/1 and so on, that `search DIR` searches as one; an IVF's take over
    /// the lists of the first
    #[arg(long, value_name = "N", conflicts_with = "resume")]
    shards: Option<NonZeroUsize>,
    /// Each shard trains lists of its own
    #[arg(long, requires = "shards")]
    own_lists: bool,
    /// One JSON object instead of text
    #[arg(long)]
    json: bool,
}

/// Make an index of a faiss file (needs the feature faiss)
#[derive(Args)]
struct Import {
    /// What faiss.write_index has written, with rows numbered from 0 on; faiss trusts it, so bring none
    /// that you do not
    file: PathBuf,
    dir: PathBuf,
    /// ip, cosine or l2: ip and cosine for METRIC_INNER_PRODUCT, l2 for METRIC_L2
    #[arg(long)]
    metric: Metric,
    /// Its vectors, where faiss does not keep them as they were [default: what faiss gives back]
    #[arg(long)]
    vectors: Option<PathBuf>,
}

/// Search an index with the vectors of a file, and say how fast, how well and in how much memory
#[derive(Args)]
struct Search {
    dir: PathBuf,
    queries: PathBuf,
    /// Neighbours a query
    #[arg(short, long, default_value_t = 10)]
    k: usize,
    /// Efforts to try, one after the other [default: the index's own]
    #[arg(long, value_delimiter = ',')]
    breadth: Vec<usize>,
    /// Threads of a batch; with one, queries are also searched one call at a time
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// True neighbours, as `truth` writes them
    #[arg(long)]
    truth: Option<PathBuf>,
    /// Repeat each measurement for at least this long
    #[arg(long, default_value_t = 0.5)]
    seconds: f64,
    /// Stop at the first answer: for measuring how long that takes from the process's start
    #[arg(long)]
    first: bool,
    /// One JSON object instead of text
    #[arg(long)]
    json: bool,
}

/// Find the true neighbours by comparing every query with every vector
#[derive(Args)]
struct Truth {
    file: PathBuf,
    queries: PathBuf,
    /// An .ivecs file: a row of int32 a query, the number of neighbours and then their ids
    out: PathBuf,
    /// Neighbours a query
    #[arg(short, long, default_value_t = 10)]
    k: usize,
    /// ip, cosine or l2
    #[arg(long, default_value = "cosine")]
    metric: Metric,
    /// Take only the first so many vectors
    #[arg(long)]
    rows: Option<usize>,
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Build(args) => build(&args),
        Command::Import(args) => import(&args),
        Command::Search(args) => search(&args),
        Command::Truth(args) => truth(&args),
    };
    if let Err(error) = outcome {
        eprintln!("error: {error}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// Rows of a file are taken so many at a time.
const BLOCK: usize = 1 << 12;

#[derive(Serialize)]
struct Built {
    index: Spec,
    metric: Metric,
    n: usize,
    dim: usize,
    threads: usize,
    build_seconds: f64,
    build_cpu_seconds: Option<f64>,
    disk_bytes: u64,
    /// Rows that a build that was cut off had left.
    resumed_rows: usize,
    /// The most memory of its own that the process had meanwhile.
    peak_anon_bytes: Option<u64>,
    #[serde(flatten)]
    memory: Memory,
}

fn build(args: &Build) -> Outcome<()> {
    ThreadPoolBuilder::new().num_threads(args.threads).build_global()?;
    let mut file = VectorFile::open(&args.file)?;
    let n = args.rows.unwrap_or(usize::MAX).min(file.len());
    let dim = file.dim();
    let spec = args.index.unwrap_or_else(|| Spec::default_for(n, dim));

    let (start, watch) = (Instant::now(), Watch::start());
    let shards = args.shards.map_or(1, NonZeroUsize::get);
    // `search` would take them for shards of this build.
    let beyond = args.dir.join(args.shards.map_or(0, NonZeroUsize::get).to_string());
    if beyond.exists() {
        let why = "a shard of an earlier build; remove it, or take another folder";
        return Err(format!("{}: {why}", beyond.display()).into());
    }
    let (mut there, mut disk_bytes) = (0, 0);
    for shard in 0..shards {
        let dir = args.shards.map_or(args.dir.clone(), |_| args.dir.join(shard.to_string()));
        let begin = if args.resume { Builder::resume } else { Builder::create };
        let mut builder = begin(&dir, dim, args.metric, &spec, args.seed)?;
        if let Some(bound) = args.memory {
            builder = builder.memory(bound)?;
        }
        if shard > 0 && !args.own_lists && matches!(spec, Spec::Ivf { .. }) {
            builder = builder.lists_of(&args.dir.join("0"))?;
        }
        there = builder.rows();
        let (begin, end) = (n * shard / shards + there, n * (shard + 1) / shards);
        if begin > end {
            return Err(format!("{}: the unfinished build has {there} rows already", dir.display()).into());
        }
        for first in (begin..end).step_by(BLOCK) {
            builder.add(&file.read(first, BLOCK.min(end - first))?)?;
        }
        disk_bytes += builder.finish()?.files.values().map(|file| file.bytes).sum::<u64>();
    }
    let built = Built {
        index: spec,
        metric: args.metric,
        n,
        dim,
        threads: rayon::current_num_threads(),
        build_seconds: start.elapsed().as_secs_f64(),
        build_cpu_seconds: cpu_seconds(),
        disk_bytes,
        resumed_rows: there,
        peak_anon_bytes: watch.stop(),
        memory: Memory::now(),
    };
    if args.json {
        println!("{}", serde_json::to_string(&built)?);
    } else {
        println!(
            "{spec} of {n} x {dim}: {:.1} s on {} threads, {} on disk, {} of its own memory at most",
            built.build_seconds,
            built.threads,
            megabytes(Some(built.disk_bytes)),
            megabytes(built.peak_anon_bytes)
        );
    }
    Ok(())
}

fn import(args: &Import) -> Outcome<()> {
    let mut vectors = args.vectors.as_deref().map(VectorFile::open).transpose()?;
    Builder::import_faiss(&args.dir, &args.file, args.metric, vectors.as_mut())?;
    let index = Index::open(&args.dir)?;
    println!("{} of {} x {}", index.spec(), index.len(), index.dim());
    Ok(())
}

#[derive(Serialize)]
struct Searched {
    index: Spec,
    metric: Metric,
    n: usize,
    dim: usize,
    k: usize,
    queries: usize,
    /// Opening the index, and that with the first query's answer.
    open_ms: f64,
    first_answer_ms: f64,
    /// The vector instructions that were used.
    instructions: &'static str,
    /// Before the index was opened, and after the first thousand queries.
    memory_before: Memory,
    memory: Memory,
    rows: Vec<Measured>,
}

#[derive(Serialize)]
struct Measured {
    breadth: Option<usize>,
    threads: usize,
    /// "single": a call a query; "batch": all queries in one call.
    mode: &'static str,
    qps: f64,
    /// Microseconds a query in the middle and at the 99th percentile, for single calls.
    #[serde(skip_serializing_if = "Option::is_none")]
    p50_us: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    p99_us: Option<f64>,
    recall: Option<f64>,
}

fn search(args: &Search) -> Outcome<()> {
    // Made before anything is measured; every search below runs on it.
    let pool = ThreadPoolBuilder::new().num_threads(args.threads).build()?;
    let mut file = VectorFile::open(&args.queries)?;
    let (queries, dim) = (file.read(0, usize::MAX)?, file.dim());
    if queries.is_empty() {
        return Err(format!("{}: no queries", args.queries.display()).into());
    }
    let truth = args.truth.as_deref().map(|path| read_ivecs(path, file.len(), args.k)).transpose()?;
    let breadths: Vec<_> = match args.breadth.as_slice() {
        [] => vec![None],
        some => some.iter().map(|&breadth| Some(breadth)).collect(),
    };

    let memory_before = Memory::now();
    let start = Instant::now();
    let mut index = Searchable::open(&args.dir)?;
    let open_ms = milliseconds(start);
    index.set_breadth(breadths[0]);
    pool.install(|| index.search(&queries[..dim], args.k))?;
    let first_answer_ms = milliseconds(start);
    if !args.first {
        pool.install(|| {
            queries.chunks(dim).take(1000).try_for_each(|query| index.search(query, args.k).map(drop))
        })?;
    }
    let mut searched = Searched {
        index: index.spec(),
        metric: index.metric(),
        n: index.len(),
        dim,
        k: args.k,
        queries: file.len(),
        open_ms,
        first_answer_ms,
        instructions: sidenote_index::instructions(),
        memory_before,
        memory: Memory::now(),
        rows: Vec::new(),
    };
    if !args.first {
        let truth = truth.map(|ids| Worst::of(&index, &queries, &ids)).transpose()?;
        for breadth in breadths {
            index.set_breadth(breadth);
            searched.rows.extend(pool.install(|| measure(&index, &queries, breadth, truth.as_ref(), args))?);
        }
    }
    report(&searched, args.json)
}

fn report(searched: &Searched, json: bool) -> Outcome<()> {
    if json {
        println!("{}", serde_json::to_string(searched)?);
        return Ok(());
    }
    let Searched { index, n, dim, k, .. } = searched;
    println!("{index} of {n} x {dim}: opened in {:.2} ms, ", searched.open_ms);
    println!("first answer after {:.2} ms", searched.first_answer_ms);
    println!(
        "memory after {} queries: {} of its own, {} of mapped files",
        searched.queries.min(1000),
        megabytes(searched.memory.anon_bytes),
        megabytes(searched.memory.file_bytes)
    );
    for row in &searched.rows {
        let effort = row.breadth.map_or("default".into(), |breadth| breadth.to_string());
        let recall = row.recall.map_or(String::new(), |recall| format!(", recall@{k} {recall:.4}"));
        let call = if row.mode == "single" { "one a call" } else { "all in one call" };
        println!("breadth {effort}, {} threads, {call}: {:.0} queries/s{recall}", row.threads, row.qps);
    }
    Ok(())
}

/// Speed and recall at one effort: single calls with one thread, a batch with any number.
fn measure(
    index: &Searchable,
    queries: &[f32],
    breadth: Option<usize>,
    truth: Option<&Worst>,
    args: &Search,
) -> Result<Vec<Measured>, IndexError> {
    let (dim, k) = (index.dim(), args.k);
    let least = Duration::from_secs_f64(args.seconds.clamp(0.0, 3600.0));
    let mut rows = Vec::new();

    // The first pass is for warming up and for recall.
    let found = index.search_batch(queries, k)?;
    let recall = truth.map(|truth| truth.recall(index, queries, &found));
    let (start, mut passes) = (Instant::now(), 0);
    while passes == 0 || start.elapsed() < least {
        index.search_batch(queries, k)?;
        passes += 1;
    }
    let qps = (passes * found.len()) as f64 / start.elapsed().as_secs_f64();
    let threads = args.threads;
    rows.push(Measured { breadth, threads, mode: "batch", qps, p50_us: None, p99_us: None, recall });

    if threads == 1 {
        let mut times = Vec::new();
        let start = Instant::now();
        while times.is_empty() || start.elapsed() < least {
            for query in queries.chunks(dim) {
                let start = Instant::now();
                index.search(query, k)?;
                times.push(start.elapsed());
            }
        }
        let qps = times.len() as f64 / start.elapsed().as_secs_f64();
        times.sort_unstable();
        let at = |part: f64| Some(times[(times.len() as f64 * part) as usize].as_secs_f64() * 1e6);
        rows.push(Measured {
            breadth,
            threads,
            mode: "single",
            qps,
            p50_us: at(0.5),
            p99_us: at(0.99),
            recall,
        });
    }
    Ok(rows)
}

/// The score of each query's k-th true neighbour. What scores as high counts as found, so that
/// of two equal rows either is right. Where rows are kept rounded, their scores cannot tell: there
/// it is the true rows that count.
struct Worst {
    scores: Vec<f64>,
    truth: Vec<HashSet<u32>>,
    k: usize,
}

impl Worst {
    fn of(index: &Searchable, queries: &[f32], truth: &[Vec<u32>]) -> Outcome<Self> {
        let k = truth.first().map_or(0, Vec::len);
        let score = |(query, ids): (&[f32], &Vec<u32>)| {
            ids.iter().try_fold(f64::INFINITY, |worst, &id| {
                let row = index.vector(id).ok_or("--truth: names a row that the index does not have")?;
                Ok::<_, &str>(worst.min(exact(index.metric(), query, &row)))
            })
        };
        let scores = queries.chunks(index.dim()).zip(truth).map(score).collect::<Result<_, _>>()?;
        let truth = truth.iter().map(|ids| ids.iter().copied().collect()).collect();
        Ok(Self { scores, truth, k })
    }

    /// The mean part of the true neighbours that were found.
    fn recall(&self, index: &Searchable, queries: &[f32], found: &[Vec<Hit>]) -> f64 {
        let mut sum = 0;
        let of_each = self.scores.iter().zip(&self.truth);
        for ((query, hits), (&worst, truth)) in queries.chunks(index.dim()).zip(found).zip(of_each) {
            let ids: HashSet<u32> = hits.iter().take(self.k).map(|hit| hit.id).collect();
            if let Spec::Sq(_) = index.spec() {
                sum += ids.intersection(truth).count();
                continue;
            }
            let near = |&&id: &&u32| {
                index.vector(id).is_some_and(|row| exact(index.metric(), query, &row) >= worst - 1e-6)
            };
            sum += ids.iter().filter(near).count();
        }
        sum as f64 / (self.k * found.len()).max(1) as f64
    }
}

/// The score as [`Metric`] defines it, but for the length of the query, which is the same for all rows.
fn exact(metric: Metric, query: &[f32], row: &[f32]) -> f64 {
    let pairs = query.iter().zip(row).map(|(&x, &y)| (f64::from(x), f64::from(y)));
    match metric {
        Metric::L2 => -pairs.map(|(x, y)| (x - y) * (x - y)).sum::<f64>(),
        Metric::InnerProduct | Metric::Cosine => pairs.map(|(x, y)| x * y).sum(),
    }
}

fn truth(args: &Truth) -> Outcome<()> {
    /// Rows that are an index at a time: 100 MB of 384 numbers.
    const PART: usize = 1 << 16;
    let queries = VectorFile::open(&args.queries)?.read(0, usize::MAX)?;
    let mut file = VectorFile::open(&args.file)?;
    let n = args.rows.unwrap_or(usize::MAX).min(file.len());
    if n < args.k {
        return Err(
            format!("{}: {n} vectors, which have no {} neighbours", args.file.display(), args.k).into()
        );
    }
    let mut best: Vec<Vec<Hit>> = vec![Vec::new(); queries.len() / file.dim()];
    for first in (0..n).step_by(PART) {
        let dir = tempfile::tempdir()?;
        let mut builder = Builder::create(dir.path(), file.dim(), args.metric, &Spec::Flat, 0)?;
        builder.add(&file.read(first, PART.min(n - first))?)?;
        builder.finish()?;
        let found = Index::open(dir.path())?.search_batch(&queries, args.k, None)?;
        for (best, hits) in best.iter_mut().zip(found) {
            best.extend(hits.iter().map(|hit| Hit { id: hit.id + first as u32, ..*hit }));
            best.sort_unstable_by(|a, b| b.cmp(a));
            best.truncate(args.k);
        }
    }
    let row = |hits: &Vec<Hit>| {
        let numbers = std::iter::once(args.k as u32).chain(hits.iter().map(|hit| hit.id));
        numbers.flat_map(u32::to_le_bytes).collect::<Vec<u8>>()
    };
    std::fs::write(&args.out, best.iter().flat_map(row).collect::<Vec<u8>>())?;
    Ok(())
}

/// The first `k` ids of each of `rows` rows.
fn read_ivecs(path: &Path, rows: usize, k: usize) -> Outcome<Vec<Vec<u32>>> {
    let bytes = std::fs::read(path).map_err(|cause| format!("{}: {cause}", path.display()))?;
    let numbers: Vec<u32> = bytes.as_chunks().0.iter().map(|&b| u32::from_le_bytes(b)).collect();
    let width = numbers.first().map_or(0, |&width| width as usize);
    if width < k || numbers.len() != rows.saturating_mul(width + 1) || bytes.len() % 4 != 0 {
        return Err(format!(
            "{}: not the ids of {rows} queries with at least {k} neighbours each: make it with `truth`",
            path.display()
        )
        .into());
    }
    Ok(numbers.chunks(width + 1).map(|row| row[1..][..k].to_vec()).collect())
}

fn milliseconds(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e3
}

fn megabytes(bytes: Option<u64>) -> String {
    bytes.map_or("unknown".into(), |bytes| format!("{:.1} MB", bytes as f64 / 1e6))
}
