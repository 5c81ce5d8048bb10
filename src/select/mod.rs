//! Choosing, out of a large pool of training instances, those worth training on for a target task.
//!
//! A method is a [`Selector`]: it ranks the rows of a [`Pool`] for a [`Target`]'s unlabelled examples, if it looks at them.
//! [`selector::choose`] takes an exact number of rows out of the rankings for one target or several, with their answers level
//! where that is wanted ([`answers`]). [`run`] does the rest for
//! every method: reading, the size-matched balanced random baseline, writing, and the [`Report`]; [`explain`] looks at what came
//! of it.

pub mod answers;
mod by_vectors;
mod by_words;
mod dsir;
pub mod explain;
mod less;
mod likelihood;
mod nearest;
mod ordered;
mod output;
mod pool;
mod projection;
mod random;
mod report;
mod scores;
pub mod selector;
mod tasks;
mod templates;
mod two_stage;
mod vectors;
mod view;

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::encoder;
use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::whole_file::WholeFile;

use answers::Answers;
pub use dsir::SMOOTHING;
use likelihood::By;
use nearest::Order;
pub use pool::{Pool, Row, Target};
pub use report::{NearestTasks, Report, Share};
pub use selector::{Amount, Neighbours, Ranked, Ranking, Selector};
pub use vectors::Place;
use view::View;

/// The first of two stages that is no encoder.
const DSIR: &str = "dsir";

/// A way of choosing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Method {
    /// The nearest neighbours of the target's examples, by vectors (Ivison et al., 2023).
    Deft,
    /// The same, the examples taking turns; with a decoder's vectors as RDS+ has it (Ivison et al., 2025).
    #[value(name = "rds+")]
    RdsPlus,
    /// DEFT's neighbours by what is asked as well as by what it is about: own texts and tasks' descriptions, told apart.
    TaskAware,
    /// The rows that share the most telling words with the target's examples.
    Bm25,
    /// Rows drawn by how much likelier the target makes their words than the pool does (Xie et al., 2023).
    Dsir,
    /// The rows whose gradients point where those of the target's labelled examples do (Xia et al., 2024).
    Less,
    /// A cheap first stage over all, an encoder over what it let through, and of that the rows that speak for the rest.
    TwoStage,
    /// The rows whose targets a model finds neither easy nor hard.
    Perplexity,
    /// The rows whose inputs help a model least with their targets, but do help (Li et al., 2024).
    Ifd,
    /// Every row alike.
    Random,
    /// Every task alike.
    RandomBalanced,
}

impl Method {
    /// Whether it looks at the target's examples.
    pub fn wants_target(self) -> bool {
        matches!(
            self,
            Self::Deft
                | Self::RdsPlus
                | Self::TaskAware
                | Self::Bm25
                | Self::Dsir
                | Self::Less
                | Self::TwoStage
        )
    }

    /// Whether rows are what its examples have found.
    fn asks_neighbours(self) -> bool {
        matches!(self, Self::Deft | Self::RdsPlus | Self::TaskAware | Self::Bm25)
    }

    /// Whether it says which rows each example is near.
    fn names_neighbours(self) -> bool {
        self.asks_neighbours() || matches!(self, Self::TwoStage | Self::Less)
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Deft => "deft",
            Self::RdsPlus => "rds+",
            Self::TaskAware => "task-aware",
            Self::Bm25 => "bm25",
            Self::Dsir => "dsir",
            Self::Less => "less",
            Self::TwoStage => "two-stage",
            Self::Perplexity => "perplexity",
            Self::Ifd => "ifd",
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
    /// Of each target, what each of its examples found in the pool; empty if the method did not look.
    pub neighbours: Vec<Vec<Neighbours>>,
    /// Rows that each target took.
    pub shares: Vec<usize>,
    /// Rows ranked before the last one taken that were left out so that answers are level.
    pub passed_over: usize,
}

/// One chosen row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chosen {
    /// The row's number in the pool, from 0.
    pub row: usize,
    /// How many of the targets' examples asked for it; 0 if the method asks none.
    pub attribution_frequency: u32,
}

/// A whole selection, from file to file.
#[derive(Debug, Clone)]
pub struct Job {
    /// The pool: a folder that `pool build` made, or a file.
    pub pool: PathBuf,
    /// The targets' files, for methods that look at them.
    pub targets: Vec<PathBuf>,
    /// How to choose.
    pub method: Method,
    /// How many rows to choose; where it is left out, all that are among the `k` nearest of any example.
    pub n: Option<usize>,
    /// How many neighbours of each example to look at; as many as `n` needs if not given.
    pub k: Option<usize>,
    /// Whether of each task and template no answer is chosen more than once more often than the next.
    pub level_answers: bool,
    /// The encoder's name, see [`encoder::load`].
    pub encoder: String,
    /// What looks at all rows first, of two stages: an encoder's name, or `dsir`.
    pub first: String,
    /// How far dsir draws the shares of the target's words to those of the pool, from 0, as in the paper, to less than 1.
    pub smoothing: f64,
    /// The model that says how likely a target is, or whose gradients are compared.
    pub model: Option<PathBuf>,
    /// Where the pool's vectors are kept for the next run.
    pub vectors: Option<PathBuf>,
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
    check(job)?;
    let out = WholeFile::create(&job.out)?;
    let scores = job.scores.as_deref().map(WholeFile::create).transpose()?;
    let targets = targets(job)?;
    let mut selector = selector(job)?;
    let pool = Pool::open(&job.pool)?;
    let answers = job.level_answers.then(|| Answers::of_pool(&pool)).transpose()?;
    let amount = Amount { n: job.n, keep_depth: job.k.is_some(), level: answers.as_ref() };
    let selection = selector::choose(selector.as_mut(), &pool, &targets, &amount, progress)?;
    drop(selector);
    let mut balanced = random::Random::balanced(job.seed);
    let n = selection.rows.len();
    let baseline = selector::choose(&mut balanced, &pool, &[], &Amount::exactly(n), Progress::Silent)?;
    if let Some(scores) = scores {
        output::write_neighbours(scores, &selection)?;
    }
    output::write_rows(out, &pool, &selection)?;
    let scores = scratch(&job.out, "scores");
    if scores.exists() {
        std::fs::remove_dir_all(&scores).map_err(Error::io(&scores))?;
    }
    Ok(Report::new(job, &pool, &selection, &baseline, started.elapsed()))
}

/// The targets' examples, for a method that looks at them. For any other they are read and left out: a file that is not there is a
/// mistake all the same.
fn targets(job: &Job) -> Result<Vec<Target>> {
    let wanted = job.method.wants_target();
    if wanted && job.targets.is_empty() {
        let why = format!("the method {} needs the target's examples; name their file", job.method);
        return Err(Error::setting("--target", why));
    }
    let targets: Vec<Target> = job.targets.iter().map(|path| Target::open(path)).collect::<Result<_>>()?;
    Ok(if wanted { targets } else { Vec::new() })
}

/// The target, for a method that cannot do without.
fn needed(target: Option<&Target>) -> Result<&Target> {
    target
        .ok_or_else(|| Error::setting("--target", "the method needs the target's examples; name their file"))
}

/// What ranks the rows as `job` says.
fn selector(job: &Job) -> Result<Box<dyn Selector>> {
    let by_vectors = |encoder: &str, view, order, k| -> Result<Box<dyn Selector>> {
        let place = match &job.vectors {
            Some(dir) => Place::Kept(dir.clone()),
            None => Place::Scratch(scratch(&job.out, "vectors")),
        };
        Ok(Box::new(by_vectors::Nearest::new(encoder::load(encoder)?, view, place, order, k)))
    };
    let model = || -> Result<&Path> {
        let why = || format!("the method {} needs a language model; name one", job.method);
        job.model.as_deref().ok_or_else(|| Error::setting("--model", why()))
    };
    let by_likelihood = |by| -> Result<Box<dyn Selector>> {
        Ok(Box::new(likelihood::Likelihood::open(model()?, by, scratch(&job.out, "scores"))?))
    };
    Ok(match job.method {
        Method::Deft => by_vectors(&job.encoder, View::Input, Order::Union, job.k)?,
        Method::RdsPlus => by_vectors(&job.encoder, View::Input, Order::RoundRobin, job.k)?,
        Method::TaskAware => by_vectors(&job.encoder, View::OwnAndTask, Order::Union, job.k)?,
        Method::Bm25 => Box::new(by_words::ByWords::new(job.k)),
        Method::Dsir => Box::new(dsir::Importance::new(Some(job.seed), job.smoothing)),
        Method::Less => {
            Box::new(less::Less::new(model()?.to_path_buf(), job.seed, scratch(&job.out, "scores"), job.k))
        }
        Method::TwoStage => {
            let first = match job.first.as_str() {
                DSIR => Box::new(dsir::Importance::new(None, job.smoothing)),
                encoder => by_vectors(encoder, View::Input, Order::RoundRobin, None)?,
            };
            Box::new(two_stage::TwoStage::new(first, encoder::load(&job.encoder)?, job.k))
        }
        Method::Perplexity => by_likelihood(By::Perplexity)?,
        Method::Ifd => by_likelihood(By::Ifd)?,
        Method::Random => Box::new(random::Random::uniform(job.seed)),
        Method::RandomBalanced => Box::new(random::Random::balanced(job.seed)),
    })
}

/// Refuses settings that do not fit the method, and to write over what is read.
fn check(job: &Job) -> Result<()> {
    if job.n.is_none() && !(job.method.asks_neighbours() && job.k.is_some()) {
        let why = format!("say how many rows {} shall choose", job.method);
        let hint = "with -k and a method that asks neighbours, all that are found are chosen without it";
        return Err(Error::setting("-n", format!("{why}; {hint}")));
    }
    if !(0.0..1.0).contains(&job.smoothing) {
        return Err(Error::setting("--smoothing", "must be at least 0 and less than 1"));
    }
    if job.scores.is_some() && !job.method.names_neighbours() {
        let why = format!("the method {} asks no neighbours, so it has none to write", job.method);
        return Err(Error::setting("--scores", why));
    }
    let makes_vectors = match job.method {
        Method::Deft | Method::RdsPlus | Method::TaskAware => true,
        Method::TwoStage => job.first != DSIR,
        _ => false,
    };
    if job.vectors.is_some() && !makes_vectors {
        let first = if job.method == Method::TwoStage { " with --first dsir" } else { "" };
        let why = format!("the method {}{first} makes no vectors of the pool; leave it out", job.method);
        return Err(Error::setting("--vectors", why));
    }
    let same = |a: &Path, b: &Path| match (a.canonicalize(), b.canonicalize()) {
        (Ok(a), Ok(b)) => a == b,
        _ => a == b,
    };
    let written = [("--out", Some(&job.out)), ("--scores", job.scores.as_ref())];
    for (option, path) in written.iter().filter_map(|(option, path)| Some((option, (*path)?))) {
        if [&job.pool].into_iter().chain(&job.targets).any(|read| same(path, read)) {
            let why = format!("{} is read by this command; write to another file", path.display());
            return Err(Error::setting(*option, why));
        }
    }
    if job.scores.as_ref().is_some_and(|scores| same(scores, &job.out)) {
        return Err(Error::setting("--scores", "this is the file of --out; write to another one"));
    }
    Ok(())
}

/// Where the pool's vectors, or its scores, lie while they are needed: beside the output, where there is room.
fn scratch(out: &Path, what: &str) -> PathBuf {
    let name = out.file_name().unwrap_or_default().to_string_lossy();
    out.with_file_name(format!(".{name}.{what}"))
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

    /// A target file with those inputs, another one each time.
    pub fn target(dir: &Path, inputs: &[&str]) -> Target {
        let name = (0..).map(|i| dir.join(format!("target{i}.jsonl"))).find(|path| !path.exists()).unwrap();
        let lines: Vec<_> =
            inputs.iter().map(|input| serde_json::json!({"input": input}).to_string()).collect();
        std::fs::write(&name, lines.join("\n")).unwrap();
        Target::open(&name).unwrap()
    }

    /// A job over the pool in `dir`, for DEFT.
    pub fn job(dir: &Path) -> Job {
        Job {
            pool: dir.join("pool.jsonl"),
            targets: Vec::new(),
            method: Method::Deft,
            n: Some(1),
            k: None,
            level_answers: false,
            encoder: "default".to_string(),
            first: "default".to_string(),
            smoothing: dsir::SMOOTHING,
            model: None,
            vectors: None,
            seed: 0,
            out: dir.join("out.jsonl"),
            scores: None,
        }
    }

    #[test]
    fn a_job_never_writes_over_what_it_reads() {
        let (dir, _) = pool(&[("a", 3)]);
        let path = dir.path().join("pool.jsonl");
        let before = std::fs::read(&path).unwrap();
        let job = Job {
            targets: vec![path.clone()],
            method: Method::Random,
            out: dir.path().join(".").join("pool.jsonl"),
            ..job(dir.path())
        };
        assert!(run(&job, Progress::Silent).unwrap_err().to_string().contains("--out"));
        let job = Job { out: dir.path().join("out.jsonl"), scores: Some(path.clone()), ..job };
        assert!(run(&job, Progress::Silent).unwrap_err().to_string().contains("--scores"));
        let job = Job { method: Method::Deft, scores: Some(job.out.clone()), ..job };
        assert!(run(&job, Progress::Silent).unwrap_err().to_string().contains("--scores"));
        let job = Job { targets: Vec::new(), scores: None, ..job };
        assert!(run(&job, Progress::Silent).unwrap_err().to_string().contains("--target"));
        assert_eq!(std::fs::read(&path).unwrap(), before);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "a failed job leaves nothing");
    }
}
