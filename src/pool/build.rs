//! Making a pool out of files.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::PathBuf;
use std::time::Instant;

use serde::Serialize;
use serde_json::json;

use super::answers::Answers;
use super::artefact::{KIND, VERSION, part};
use super::contamination::{Contamination, Evaluation};
use super::duplicates::{Duplicates, Seen};
use super::exclude::Patterns;
use super::formats::{self, Options};
use super::{Instance, sources};
use crate::artefact::{MANIFEST, Writer};
use crate::error::{Error, Result};
use crate::interrupt;
use crate::progress::Progress;

/// Instances in a part.
const PART: usize = 100_000;

/// What to build.
#[derive(Debug, Clone)]
pub struct BuildOptions {
    /// Files and folders, as [`sources::find`] understands them.
    pub sources: Vec<String>,
    /// The folder to make, in which there may be no pool or other work of Sidenote's.
    pub out: PathBuf,
    /// Examples that a Super-NaturalInstructions prompt shows.
    pub shots: usize,
    /// Where chance starts, for templates that draw.
    pub seed: u64,
    /// Files of tasks to leave out.
    pub exclude: Vec<PathBuf>,
    /// Evaluation files to look for.
    pub evaluation: Vec<PathBuf>,
    /// Leave out what was found of them.
    pub drop_contaminated: bool,
    /// Keep instances that are nearly the same.
    pub keep_near: bool,
}

/// What came of each file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FileReport {
    /// The file.
    pub file: PathBuf,
    /// The format it was read in.
    pub format: &'static str,
    /// Instances read.
    pub read: usize,
    /// Instances kept.
    pub kept: usize,
}

/// What a pool was built of.
#[derive(Debug, Clone, Serialize)]
pub struct BuildReport {
    /// The pool.
    pub out: PathBuf,
    /// Instances read.
    pub read: usize,
    /// Instances in the pool.
    pub kept: usize,
    /// Left out because their task is excluded, of each task.
    pub excluded: BTreeMap<String, usize>,
    /// Patterns of tasks to leave out that none was like.
    pub unused_patterns: Vec<String>,
    /// Left out as the same as another.
    pub duplicates: usize,
    /// Left out as nearly the same as another, of each task.
    pub near_duplicates: BTreeMap<String, usize>,
    /// Left out because nothing is asked or answered, or the target is none of the choices, of each task.
    pub unsound: BTreeMap<String, usize>,
    /// Kept, but with the only answer that their task has under their template, of each task: all that they can teach is to say it.
    pub one_answer: BTreeMap<String, usize>,
    /// Instances that share text with an evaluation file.
    pub contaminated: usize,
    /// Whether these were left out.
    pub dropped_contaminated: bool,
    /// What was found of each evaluation file.
    pub contamination: Vec<Contamination>,
    /// Instances of each task.
    pub tasks: BTreeMap<String, usize>,
    /// Instances of each source.
    pub sources: BTreeMap<String, usize>,
    /// Instances of each cluster.
    pub clusters: BTreeMap<String, usize>,
    /// Each file.
    pub files: Vec<FileReport>,
    /// The whole time.
    pub seconds: f64,
}

/// Builds the pool. It appears whole or not at all; the same files and options give the same bytes.
///
/// # Errors
/// A folder that holds some work of Sidenote's already; a file, line or field that cannot be read, named; nothing left to keep.
pub fn build(options: &BuildOptions, progress: Progress) -> Result<BuildReport> {
    let started = Instant::now();
    let out = &options.out;
    if out.join(MANIFEST).exists() {
        return Err(Error::file(out, "holds something already; choose another folder, or remove it"));
    }
    let files = sources::find(&options.sources)?;
    let mut patterns = Patterns::open(&options.exclude)?;
    let mut evaluation = Evaluation::open(&options.evaluation)?;
    let mut parts = Parts::create(Writer::create(out, KIND, VERSION)?);
    let mut answers = Answers::default();
    let mut duplicates = Duplicates::new(!options.keep_near, out)?;
    let mut report = BuildReport {
        out: out.clone(),
        read: 0,
        kept: 0,
        excluded: BTreeMap::new(),
        unused_patterns: Vec::new(),
        duplicates: 0,
        near_duplicates: BTreeMap::new(),
        unsound: BTreeMap::new(),
        one_answer: BTreeMap::new(),
        contaminated: 0,
        dropped_contaminated: options.drop_contaminated,
        contamination: Vec::new(),
        tasks: BTreeMap::new(),
        sources: BTreeMap::new(),
        clusters: BTreeMap::new(),
        files: Vec::new(),
        seconds: 0.0,
    };
    let reading = progress.task("read the sources", files.len() as u64, "files");
    for file in &files {
        let before = (report.read, report.kept);
        let how = Options { shots: options.shots, seed: options.seed };
        formats::read(file, how, &mut |instance| {
            if interrupt::requested() {
                return Err(Error::Interrupted("nothing was written; run the command again".to_string()));
            }
            report.read += 1;
            let task = instance.task_name();
            if patterns.excludes(&instance) {
                return count(&mut report.excluded, task);
            }
            if !instance.is_sound() {
                return count(&mut report.unsound, task);
            }
            match duplicates.add(&instance)? {
                Seen::New => {}
                Seen::Exactly => {
                    report.duplicates += 1;
                    return Ok(());
                }
                Seen::Nearly => return count(&mut report.near_duplicates, task),
            }
            if evaluation.touches(&instance) {
                report.contaminated += 1;
                if options.drop_contaminated {
                    return Ok(());
                }
            }
            report.kept += 1;
            answers.add(&instance);
            count(&mut report.tasks, task)?;
            count(&mut report.sources, instance.source.as_deref().unwrap_or("unknown"))?;
            count(&mut report.clusters, instance.cluster.as_deref().unwrap_or("unknown"))?;
            parts.push(&instance)
        })?;
        let (read, kept) = (report.read - before.0, report.kept - before.1);
        report.files.push(FileReport { file: file.path.clone(), format: file.format.name(), read, kept });
        reading.advance(1);
    }
    if report.kept == 0 {
        let why = format!("nothing is left of the {} instances that were read", report.read);
        return Err(Error::file(out, why));
    }
    report.unused_patterns = patterns.unused();
    report.contamination = evaluation.report();
    report.one_answer = answers.constant();
    let meta = json!({
        "instances": report.kept,
        "tasks": report.tasks,
        "sources": report.sources,
        "clusters": report.clusters,
        "excluded": report.excluded,
        "shots": options.shots,
        "seed": options.seed,
    });
    parts.finish()?.commit(meta)?;
    report.seconds = started.elapsed().as_secs_f64();
    Ok(report)
}

fn count(counts: &mut BTreeMap<String, usize>, name: &str) -> Result<()> {
    match counts.get_mut(name) {
        Some(count) => *count += 1,
        None => drop(counts.insert(name.to_string(), 1)),
    }
    Ok(())
}

/// The parts being written.
pub(super) struct Parts {
    writer: Writer,
    current: Option<(PathBuf, BufWriter<File>)>,
    rows: usize,
}

impl Parts {
    pub(super) fn create(writer: Writer) -> Self {
        Self { writer, current: None, rows: 0 }
    }

    fn push(&mut self, instance: &Instance) -> Result<()> {
        let line = serde_json::to_string(instance).map_err(|e| Error::setting("instance", e.to_string()))?;
        self.push_line(&line)
    }

    pub(super) fn push_line(&mut self, line: &str) -> Result<()> {
        if self.rows.is_multiple_of(PART) {
            self.close()?;
            let path = self.writer.path(&part(self.rows / PART));
            let file = File::create(&path).map_err(Error::io(&path))?;
            self.current = Some((path, BufWriter::new(file)));
        }
        self.rows += 1;
        let Some((path, file)) = &mut self.current else { return Ok(()) };
        writeln!(file, "{line}").map_err(Error::io(path.as_path()))
    }

    fn close(&mut self) -> Result<()> {
        match self.current.take() {
            Some((path, mut file)) => file.flush().map_err(Error::io(path)),
            None => Ok(()),
        }
    }

    pub(super) fn finish(mut self) -> Result<Writer> {
        self.close()?;
        Ok(self.writer)
    }
}

impl BuildReport {
    /// The report for people.
    pub fn human(&self) -> String {
        let sum = |counts: &BTreeMap<String, usize>| counts.values().sum::<usize>();
        let mut text = format!(
            "{}: {} instances of {} tasks, out of {} read from {} files in {:.1} s\n",
            self.out.display(),
            self.kept,
            self.tasks.len(),
            self.read,
            self.files.len(),
            self.seconds
        );
        text += &format!(
            "left out: {} of {} excluded tasks, {} duplicates, {} near-duplicates, {} without a question or an answer, or whose \
             answer is none of their choices\n",
            sum(&self.excluded),
            self.excluded.len(),
            self.duplicates,
            sum(&self.near_duplicates),
            sum(&self.unsound)
        );
        if !self.one_answer.is_empty() {
            let mut tasks: Vec<_> = self.one_answer.iter().collect();
            tasks.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
            let named: Vec<&str> = tasks.iter().take(LISTED).map(|(task, _)| task.as_str()).collect();
            text += &format!(
                "warning: {} instances of {} tasks have the only answer that their template has, and can teach no more than that \
                 ({}); --exclude them, take few of them with `select --level-answers`, or give more of these tasks' rows, if they are \
                 the beginning of a sorted file\n",
                sum(&self.one_answer),
                tasks.len(),
                named.join(", ")
            );
        }
        for (name, counts) in [("source", &self.sources), ("cluster", &self.clusters), ("task", &self.tasks)]
        {
            let mut counts: Vec<_> = counts.iter().collect();
            counts.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
            text += &format!("\n{name:<50}  instances\n");
            for (name, count) in counts.iter().take(LISTED) {
                text += &format!("{name:<50}  {count:>9}\n");
            }
            let rest: usize = counts.iter().skip(LISTED).map(|(_, count)| **count).sum();
            if rest > 0 {
                text += &format!("{:<50}  {rest:>9}\n", format!("{} others", counts.len() - LISTED));
            }
        }
        for found in &self.contamination {
            text += &format!(
                "\n{}: {} of {} examples are found in the pool, in {} rows of {} tasks{}\n",
                found.file.display(),
                found.found,
                found.examples,
                sum(&found.tasks),
                found.tasks.len(),
                if self.dropped_contaminated { ", which were left out" } else { "" }
            );
            if found.too_short > 0 {
                text += &format!("  {} examples are too short to be looked for\n", found.too_short);
            }
            let mut tasks: Vec<_> = found.tasks.iter().collect();
            tasks.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
            tasks.iter().take(5).for_each(|(task, count)| text += &format!("  {task:<48}  {count:>9}\n"));
        }
        for pattern in &self.unused_patterns {
            text += &format!("\n{pattern} is like no task that was read\n");
        }
        text
    }
}

/// Names that the human form lists.
const LISTED: usize = 10;
