//! A pool in four, as OPT-IML does it (Iyer et al. 2022, <https://arxiv.org/abs/2212.12017>): what is trained on, and held out of
//! it categories, tasks of the other categories, and instances of the other tasks.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::json;

use super::artefact::{KIND, VERSION};
use super::build::Parts;
use super::lines::{Lines, reason};
use super::{Instance, UNKNOWN_TASK, parts};
use crate::artefact::{MANIFEST, Writer};
use crate::error::{Error, Result};
use crate::interrupt;

/// How a pool is split.
#[derive(Debug, Clone)]
pub struct SplitOptions {
    /// The pool: a folder or a file.
    pub pool: PathBuf,
    /// The folder to make, which gets a pool for each part that has anything.
    pub out: PathBuf,
    /// Categories (clusters) that are held out whole.
    pub categories: Vec<String>,
    /// The share of each other category's tasks that is held out, from 0 to 1; one task always stays.
    pub tasks: f64,
    /// The share of each other task's instances that is held out, from 0 to 1.
    pub instances: f64,
    /// Which tasks and instances these are.
    pub seed: u64,
}

/// A part of a pool that was split.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct PartReport {
    /// Its folder.
    pub out: PathBuf,
    /// Its instances.
    pub instances: usize,
    /// Its tasks, and the instances of each.
    pub tasks: BTreeMap<String, usize>,
}

/// What became of a pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SplitReport {
    /// `train`, `categories`, `tasks` and `instances`, where there is anything of them.
    pub parts: BTreeMap<&'static str, PartReport>,
    /// Instances left out of `train` as their text is also held out.
    pub shared: usize,
}

const TRAIN: &str = "train";

/// What two texts have in common that differ in nothing but case and white space.
pub fn text_key(text: &str) -> u64 {
    let mut hasher = blake3::Hasher::new();
    for word in text.split_whitespace() {
        hasher.update(word.to_lowercase().as_bytes());
        hasher.update(b" ");
    }
    first(&hasher)
}

fn first(hasher: &blake3::Hasher) -> u64 {
    let mut bytes = [0; 8];
    hasher.finalize_xof().fill(&mut bytes);
    u64::from_le_bytes(bytes)
}

/// A number from 0 to 1 that belongs to what is `named`, for a seed.
fn draw(seed: u64, named: &[&[u8]]) -> f64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    for part in named {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    // The upper half is enough, and exact.
    (first(&hasher) >> 32) as f64 / (1u64 << 32) as f64
}

/// Splits a pool. Each row is drawn by itself, by its task and text, so that a pool that has grown is split alike; rows of the
/// same text are never on both sides.
///
/// # Errors
/// A folder that holds something already; shares that are none; a line that cannot be read; a row without a cluster, or a task
/// in two of them, where that matters; a category that the pool has not.
pub fn split(options: &SplitOptions) -> Result<SplitReport> {
    let share = |name: &str, value: f64| match (0.0..1.0).contains(&value) {
        true => Ok(()),
        false => Err(Error::setting(name, "must be at least 0 and less than 1")),
    };
    share("tasks", options.tasks)?;
    share("instances", options.instances)?;
    if options.out.join(TRAIN).join(MANIFEST).exists() {
        return Err(Error::file(
            &options.out,
            "holds something already; choose another folder, or remove it",
        ));
    }
    let clusters = clusters(options)?;
    let kinds = kinds(options, &clusters)?;
    let kind_of = |row: &Instance| -> &'static str {
        let task = row.task_name();
        let kind = kinds.get(task).copied().unwrap_or(TRAIN);
        let own = || draw(options.seed, &[task.as_bytes(), &text_key(&row.input).to_le_bytes()]);
        if kind == TRAIN && options.instances > 0.0 && own() < options.instances { "instances" } else { kind }
    };
    let mut held_out = HashSet::new();
    for_each(&options.pool, &mut |_, _, row| {
        if kind_of(&row) != TRAIN {
            held_out.insert(text_key(&row.input));
        }
        Ok(())
    })?;
    let mut writers: BTreeMap<&'static str, (Parts, PartReport)> = BTreeMap::new();
    let mut shared = 0;
    for_each(&options.pool, &mut |_, line, row| {
        let kind = kind_of(&row);
        if kind == TRAIN && held_out.contains(&text_key(&row.input)) {
            shared += 1;
            return Ok(());
        }
        if !writers.contains_key(kind) {
            let out = options.out.join(kind);
            let parts = Parts::create(Writer::create(&out, KIND, VERSION)?);
            writers.insert(kind, (parts, PartReport { out, ..PartReport::default() }));
        }
        let Some((parts, report)) = writers.get_mut(kind) else { return Ok(()) };
        report.instances += 1;
        *report.tasks.entry(row.task_name().into()).or_default() += 1;
        parts.push_line(line)
    })?;
    if !writers.contains_key(TRAIN) {
        return Err(Error::file(&options.pool, "nothing would be left to train on; hold less out"));
    }
    // The part to train on comes last: where it is, all are.
    let train = writers.remove(TRAIN);
    let mut report = SplitReport { parts: BTreeMap::new(), shared };
    let rest: Vec<_> = writers.into_iter().collect();
    for (kind, (parts, part)) in rest.into_iter().chain(train.map(|train| (TRAIN, train))) {
        let meta = json!({
            "instances": part.instances,
            "tasks": part.tasks,
            "split": kind,
            "categories": options.categories,
            "task_share": options.tasks,
            "instance_share": options.instances,
            "seed": options.seed,
        });
        parts.finish()?.commit(meta)?;
        report.parts.insert(kind, part);
    }
    Ok(report)
}

/// The cluster of each task; nothing where clusters do not matter.
fn clusters(options: &SplitOptions) -> Result<BTreeMap<String, String>> {
    let mut clusters: BTreeMap<String, String> = BTreeMap::new();
    if options.categories.is_empty() && options.tasks == 0.0 {
        return Ok(clusters);
    }
    for_each(&options.pool, &mut |fault, _, row| {
        let Some(cluster) = row.cluster else {
            let why = "names no cluster, so that nobody can tell what category it is of; leave its task out of the pool";
            return Err(fault(why.into()));
        };
        let task = row.task.unwrap_or_else(|| UNKNOWN_TASK.into());
        match clusters.get(&task) {
            None => drop(clusters.insert(task, cluster)),
            Some(known) if *known != cluster => {
                return Err(fault(format!(
                    "the task {task} is of the cluster {cluster} here, of {known} before"
                )));
            }
            Some(_) => {}
        }
        Ok(())
    })?;
    let known: BTreeSet<&String> = clusters.values().collect();
    match options.categories.iter().find(|name| !known.contains(name)) {
        None => Ok(clusters),
        Some(name) => {
            let why = format!("{name:?} is no cluster of the pool; it has {}", listed(&known));
            Err(Error::setting("category", why))
        }
    }
}

fn listed(names: &BTreeSet<&String>) -> String {
    names.iter().map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", ")
}

/// Where each task goes that is held out whole.
fn kinds(
    options: &SplitOptions,
    clusters: &BTreeMap<String, String>,
) -> Result<BTreeMap<String, &'static str>> {
    let mut by_cluster: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (task, cluster) in clusters {
        by_cluster.entry(cluster).or_default().push(task);
    }
    let mut kinds = BTreeMap::new();
    for (cluster, mut tasks) in by_cluster {
        if options.categories.iter().any(|name| name == cluster) {
            kinds.extend(tasks.iter().map(|task| (task.to_string(), "categories")));
            continue;
        }
        tasks.sort_by(|a, b| {
            let of = |task: &str| draw(options.seed, &[task.as_bytes()]);
            of(a).total_cmp(&of(b)).then(a.cmp(b))
        });
        let count = ((tasks.len() as f64 * options.tasks).round() as usize).min(tasks.len() - 1);
        kinds.extend(tasks[..count].iter().map(|task| (task.to_string(), "tasks")));
    }
    Ok(kinds)
}

type Visit<'a> = &'a mut dyn FnMut(&dyn Fn(String) -> Error, &str, Instance) -> Result<()>;

/// Hands each row to `visit`, with what makes an error about it, and its line.
fn for_each(pool: &Path, visit: Visit) -> Result<()> {
    for part in parts(pool)? {
        let mut lines = Lines::open(&part)?;
        while let Some((number, line)) = lines.next()? {
            if interrupt::requested() {
                return Err(Error::Interrupted("nothing was written; run the command again".to_string()));
            }
            let fault = |why: String| Error::line(&part, number, why);
            let row = serde_json::from_str(line).map_err(|e| fault(reason(&e)))?;
            visit(&fault, line, row)?;
        }
    }
    Ok(())
}

impl SplitReport {
    /// The report for people.
    pub fn human(&self) -> String {
        let mut text = String::new();
        for (kind, part) in &self.parts {
            let (instances, tasks) = (part.instances, part.tasks.len());
            text += &format!(
                "{kind:<10}  {instances:>9} instances of {tasks:>5} tasks  {}\n",
                part.out.display()
            );
        }
        if self.shared > 0 {
            text += &format!("left out of train, as their text is held out: {}\n", self.shared);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Four categories of five tasks of fifty instances, of which two a task say what another task's do.
    fn pool(dir: &Path, more: &str) -> PathBuf {
        let mut text = String::new();
        for task in 0..20 {
            for row in 0..50 {
                let input = if row < 2 { format!("The same {row}") } else { format!("{task} and {row}") };
                text += &format!(
                    "{{\"input\":\"{input}\",\"target\":\"x\",\"task\":\"t{task}\",\"cluster\":\"c{}\",\"more\":1}}\n",
                    task % 4
                );
            }
        }
        fs::write(dir.join("pool.jsonl"), text + more).unwrap();
        dir.join("pool.jsonl")
    }

    fn options(dir: &Path, out: &str) -> SplitOptions {
        SplitOptions {
            pool: pool(dir, ""),
            out: dir.join(out),
            categories: vec!["c3".into()],
            tasks: 0.2,
            instances: 0.1,
            seed: 7,
        }
    }

    fn rows(dir: &Path) -> Vec<Instance> {
        let mut rows = Vec::new();
        let mut take = |_: &dyn Fn(String) -> Error, line: &str, row| {
            assert!(line.contains("\"more\":1"), "every field is kept");
            rows.push(row);
            Ok(())
        };
        for_each(dir, &mut take).unwrap();
        rows
    }

    /// Fails when a held-out category, task or text is in what is trained on, or a part has what belongs to another.
    #[test]
    fn nothing_held_out_is_trained_on() {
        let dir = tempfile::tempdir().unwrap();
        let report = split(&options(dir.path(), "out")).unwrap();
        let part = |name: &str| rows(&dir.path().join("out").join(name));
        let (train, categories, tasks, instances) =
            (part("train"), part("categories"), part("tasks"), part("instances"));
        let tasks_of =
            |rows: &[Instance]| rows.iter().map(|row| row.task.clone().unwrap()).collect::<BTreeSet<_>>();
        let clusters_of =
            |rows: &[Instance]| rows.iter().map(|row| row.cluster.clone().unwrap()).collect::<BTreeSet<_>>();
        assert_eq!((categories.len(), clusters_of(&categories)), (250, BTreeSet::from(["c3".to_string()])));
        assert!(!clusters_of(&train).contains("c3"));
        assert_eq!((tasks.len(), tasks_of(&tasks).len()), (150, 3));
        assert_eq!(clusters_of(&tasks), clusters_of(&train));
        assert!(tasks_of(&tasks).is_disjoint(&tasks_of(&train)));
        assert_eq!(tasks_of(&instances), tasks_of(&train));
        assert!((40..90).contains(&instances.len()), "{} of 600", instances.len());
        let texts: BTreeSet<_> =
            [&categories, &tasks, &instances].into_iter().flatten().map(|row| text_key(&row.input)).collect();
        assert!(train.iter().all(|row| !texts.contains(&text_key(&row.input))));
        assert!(report.shared > 0);
        let total = train.len() + categories.len() + tasks.len() + instances.len() + report.shared;
        assert_eq!((total, report.parts["train"].instances), (1000, train.len()));
        let again = split(&options(dir.path(), "again")).unwrap();
        assert_eq!(rows(&again.parts["instances"].out), instances);
        let other = split(&SplitOptions { seed: 8, ..options(dir.path(), "other") }).unwrap();
        assert_ne!(tasks_of(&rows(&other.parts["tasks"].out)), tasks_of(&tasks));
        assert!(split(&options(dir.path(), "out")).unwrap_err().to_string().contains("holds something"));
    }

    #[test]
    fn what_cannot_be_split_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = |change: &dyn Fn(&mut SplitOptions), more: &str| {
            let mut options = options(dir.path(), "bad");
            change(&mut options);
            pool(dir.path(), more);
            split(&options).unwrap_err().to_string()
        };
        assert!(
            error(&|options| options.categories = vec!["c9".into()], "").contains("\"c9\" is no cluster")
        );
        assert!(error(&|options| options.tasks = 1.0, "").contains("tasks"));
        assert!(error(&|options| options.instances = f64::NAN, "").contains("instances"));
        let row = |rest: &str| format!("{{\"input\":\"a\",\"target\":\"x\",\"task\":\"t1\"{rest}}}\n");
        assert!(error(&|_| (), &row("")).contains("pool.jsonl:1001: names no cluster"));
        assert!(error(&|_| (), &row(",\"cluster\":\"c2\"")).contains("of the cluster c2 here, of c1 before"));
        assert!(error(&|_| (), "{}").contains("pool.jsonl:1001"));
        let all = |options: &mut SplitOptions| options.categories = (0..4).map(|i| format!("c{i}")).collect();
        assert!(error(&all, "").contains("nothing would be left"));
        assert!(!dir.path().join("bad/train").exists());
    }
}
