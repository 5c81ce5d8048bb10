//! Choosing, out of a large pool of training instances, those worth training on for a target task.
//!
//! A method is a function from a [`Pool`], the [`Target`]'s unlabelled examples if it looks at
//! them, and the number of rows wanted, to a [`Selection`]. [`run`] does the rest for every method:
//! reading, the size-matched balanced random baseline, writing, and the [`Report`].

pub mod bm25;
pub mod deft;
pub mod dsir;
mod output;
mod pool;
pub mod random;
mod report;

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::Serialize;

use crate::encoder;
use crate::error::{Error, Result};
use crate::progress::Progress;

pub use pool::{Pool, Row, Target};
pub use report::{NearestTasks, Report};

/// A way of choosing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Method {
    /// The nearest neighbours of the target's examples (Ivison et al., 2023).
    Deft,
    /// The rows that share the most telling words with the target's examples.
    Bm25,
    /// Rows drawn by how much likelier the target makes their words than the pool does (Xie et al., 2023).
    Dsir,
    /// Every row alike.
    Random,
    /// Every task alike.
    RandomBalanced,
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Deft => "deft",
            Self::Bm25 => "bm25",
            Self::Dsir => "dsir",
            Self::Random => "random",
            Self::RandomBalanced => "random-balanced",
        })
    }
}

/// What a method chose.
#[derive(Debug, Clone, PartialEq)]
pub struct Selection {
    /// The chosen rows, in the pool's order, each once.
    pub rows: Vec<Chosen>,
    /// What each of the target's examples found in the pool; empty if the method did not look.
    pub neighbours: Vec<Neighbours>,
}

/// One chosen row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chosen {
    /// The row's number in the pool, from 0.
    pub row: usize,
    /// How many of the target's examples asked for it; 0 if the method asks none.
    pub attribution_frequency: u32,
}

/// The pool's rows nearest to one example, nearest first.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Neighbours {
    /// Row numbers.
    pub ids: Vec<u32>,
    /// Squared Euclidean distances between the unit vectors, so 2 - 2 cos: the number that faiss
    /// calls an L2 distance, and that DEFT logs.
    pub distances: Vec<f32>,
}

/// A whole selection, from file to file.
#[derive(Debug, Clone)]
pub struct Job {
    /// The pool's file.
    pub pool: PathBuf,
    /// The target's file, for methods that look at it.
    pub target: Option<PathBuf>,
    /// How to choose.
    pub method: Method,
    /// How many rows to choose.
    pub n: usize,
    /// How many neighbours of each example to look at; as many as `n` needs if not given.
    pub k: Option<usize>,
    /// The encoder's name, see [`encoder::load`].
    pub encoder: String,
    /// Where chance starts.
    pub seed: u64,
    /// Where the chosen rows go.
    pub out: PathBuf,
    /// Where each example's neighbours go.
    pub scores: Option<PathBuf>,
}

/// Does `job`: both files appear whole or not at all.
///
/// # Errors
/// Files that cannot be read or written, a line that is no instance (named), a size that the pool
/// cannot give, settings that do not fit the method.
pub fn run(job: &Job, progress: Progress) -> Result<Report> {
    let started = Instant::now();
    check_files(job)?;
    let out = output::File::create(&job.out)?;
    let scores = job.scores.as_deref().map(output::File::create).transpose()?;
    let pool = Pool::open(&job.pool)?;
    let size = deft::Size { n: job.n, k: job.k };
    let selection = match job.method {
        Method::Deft => {
            let encoder = encoder::load(&job.encoder)?;
            deft::select(&pool, &target(job)?, size, encoder.as_ref(), &scratch(&job.out), progress)?
        }
        Method::Bm25 => bm25::select(&pool, &target(job)?, size, progress)?,
        Method::Dsir => dsir::select(&pool, &target(job)?, job.n, job.seed)?,
        Method::Random => random::uniform(&pool, job.n, job.seed)?,
        Method::RandomBalanced => random::balanced(&pool, job.n, job.seed)?,
    };
    let baseline = random::balanced(&pool, job.n, job.seed)?;
    if let Some(scores) = scores {
        scores.write_neighbours(&selection)?;
    }
    out.write_rows(&pool, &selection)?;
    Ok(Report::new(job, &pool, &selection, &baseline, started.elapsed()))
}

/// The target's examples, for a method that looks at them.
fn target(job: &Job) -> Result<Target> {
    match &job.target {
        Some(path) => Target::open(path),
        None => {
            let why = format!("the method {} needs the target's examples; name their file", job.method);
            Err(Error::setting("--target", why))
        }
    }
}

/// Refuses to write over what is read.
fn check_files(job: &Job) -> Result<()> {
    if job.scores.is_some() && !matches!(job.method, Method::Deft | Method::Bm25) {
        let why = format!("the method {} asks no neighbours, so it has none to write", job.method);
        return Err(Error::setting("--scores", why));
    }
    let same = |a: &Path, b: &Path| match (a.canonicalize(), b.canonicalize()) {
        (Ok(a), Ok(b)) => a == b,
        _ => a == b,
    };
    let written = [("--out", Some(&job.out)), ("--scores", job.scores.as_ref())];
    for (option, path) in written.iter().filter_map(|(option, path)| Some((option, (*path)?))) {
        if [Some(&job.pool), job.target.as_ref()].into_iter().flatten().any(|read| same(path, read)) {
            let why = format!("{} is read by this command; write to another file", path.display());
            return Err(Error::setting(*option, why));
        }
    }
    if job.scores.as_ref().is_some_and(|scores| same(scores, &job.out)) {
        return Err(Error::setting("--scores", "this is the file of --out; write to another one"));
    }
    Ok(())
}

/// Where the index over the pool lies while it is needed: beside the output, where there is room.
fn scratch(out: &Path) -> PathBuf {
    let name = out.file_name().unwrap_or_default().to_string_lossy();
    out.with_file_name(format!(".{name}.index.{}", std::process::id()))
}

fn check_size(pool: &Pool, n: usize) -> Result<()> {
    if n == 0 {
        return Err(Error::setting("-n", "0 rows are no selection; ask for at least one"));
    }
    if n > pool.len() {
        let why = format!("{n} rows are wanted, but the pool has only {} rows; ask for fewer", pool.len());
        return Err(Error::setting("-n", why));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A pool file with so many rows of each task, task by task. Lives as long as the directory.
    pub fn pool(tasks: &[(&str, usize)]) -> (tempfile::TempDir, Pool) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pool.jsonl");
        let mut lines = String::new();
        for (task, rows) in tasks {
            for row in 0..*rows {
                let input = format!("{task} {row}");
                let line = serde_json::json!({"input": input, "target": "yes", "task": task});
                lines.push_str(&format!("{line}\n"));
            }
        }
        std::fs::write(&path, lines).unwrap();
        let pool = Pool::open(&path).unwrap();
        (dir, pool)
    }

    #[test]
    fn a_job_never_writes_over_what_it_reads() {
        let (dir, _) = pool(&[("a", 3)]);
        let path = dir.path().join("pool.jsonl");
        let before = std::fs::read(&path).unwrap();
        let job = Job {
            pool: path.clone(),
            target: Some(path.clone()),
            method: Method::Random,
            n: 1,
            k: None,
            encoder: "default".to_string(),
            seed: 0,
            out: dir.path().join(".").join("pool.jsonl"),
            scores: None,
        };
        assert!(run(&job, Progress::Silent).unwrap_err().to_string().contains("--out"));
        let job = Job { out: dir.path().join("out.jsonl"), scores: Some(path.clone()), ..job };
        assert!(run(&job, Progress::Silent).unwrap_err().to_string().contains("--scores"));
        let job = Job { method: Method::Deft, scores: Some(job.out.clone()), ..job };
        assert!(run(&job, Progress::Silent).unwrap_err().to_string().contains("--scores"));
        let job = Job { target: None, scores: None, ..job };
        assert!(run(&job, Progress::Silent).unwrap_err().to_string().contains("--target"));
        assert_eq!(std::fs::read(&path).unwrap(), before);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "a failed job leaves nothing");
    }
}
