//! What came of a selection, beside the balanced random draw of the same size.

use std::collections::HashMap;
use std::fmt::Write;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;
use serde_json::{Map, Value};

use super::{Job, Method, Pool, Selection};

/// How many tasks count as the target's nearest.
const NEAREST: usize = 5;
/// How many tasks the human form lists.
const LISTED: usize = 15;

/// The report of one selection.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The method's name.
    pub method: String,
    /// Rows in the pool.
    pub pool: usize,
    /// Rows chosen.
    pub chosen: usize,
    /// Rows chosen of each task, most first, ties by name.
    pub tasks: Map<String, Value>,
    /// Rows of each task in the balanced random draw of the same size and seed.
    pub random_tasks: Map<String, Value>,
    /// The tasks nearest to the target, if the method looked for neighbours.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nearest_tasks: Option<NearestTasks>,
    /// Rows that each target took, where there are several.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub targets: Vec<Share>,
    /// Rows better placed than the last one chosen that were left out to keep answers level, where that was wanted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub passed_over: Option<usize>,
    /// Where chance started.
    pub seed: u64,
    /// Time for all of it, reading and writing included.
    pub seconds: f64,
    /// The file of chosen rows.
    pub out: PathBuf,
}

/// What one of several targets took.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Share {
    /// The target's file.
    pub target: PathBuf,
    /// Rows that it was the first to take.
    pub rows: usize,
}

/// The tasks that hold the nearest row of most of the target's examples, at most five.
#[derive(Debug, Clone, Serialize)]
pub struct NearestTasks {
    /// Their names, most examples first, ties by name.
    pub names: Vec<String>,
    /// Their share of the chosen rows, from 0 to 1.
    pub chosen_share: f64,
    /// Their share of the balanced random draw.
    pub random_share: f64,
}

impl Report {
    /// Sums up `selection` beside `baseline`, the balanced random draw of the same size.
    pub fn new(
        job: &Job,
        pool: &Pool,
        selection: &Selection,
        baseline: &Selection,
        elapsed: Duration,
    ) -> Self {
        let tasks = by_task(pool, selection.rows.iter().map(|chosen| chosen.row));
        let random_tasks = by_task(pool, baseline.rows.iter().map(|chosen| chosen.row));
        let nearest = selection
            .neighbours
            .iter()
            .flatten()
            .filter_map(|found| found.ids.first().map(|&id| id as usize));
        let names: Vec<_> = by_task(pool, nearest).into_iter().take(NEAREST).map(|(name, _)| name).collect();
        let nearest_tasks = (!names.is_empty()).then(|| NearestTasks {
            chosen_share: share(&tasks, &names),
            random_share: share(&random_tasks, &names),
            names: names.into_iter().map(String::from).collect(),
        });
        let object = |counts: Vec<(&str, usize)>| {
            counts.into_iter().map(|(name, count)| (name.to_string(), count.into())).collect()
        };
        Self {
            method: job.method.to_string(),
            pool: pool.len(),
            chosen: selection.rows.len(),
            tasks: object(tasks),
            random_tasks: object(random_tasks),
            nearest_tasks,
            targets: match selection.shares.len() {
                1 => Vec::new(),
                _ => {
                    let share =
                        |(target, rows): (&PathBuf, &usize)| Share { target: target.clone(), rows: *rows };
                    job.targets.iter().zip(&selection.shares).map(share).collect()
                }
            },
            passed_over: job.level_answers.then_some(selection.passed_over),
            seed: job.seed,
            seconds: elapsed.as_secs_f64(),
            out: job.out.clone(),
        }
    }

    /// The report as a table for people.
    pub fn human(&self) -> String {
        let count =
            |tasks: &Map<String, Value>, name: &str| tasks.get(name).and_then(Value::as_u64).unwrap_or(0);
        let mut names: Vec<_> = self.tasks.keys().collect();
        names.truncate(LISTED);
        let width = names.iter().map(|name| name.chars().count()).max().unwrap_or(0).clamp(4, 60);
        let percent = |count: u64| 100.0 * count as f64 / self.chosen.max(1) as f64;
        let mut table = format!(
            "{}: {} of {} rows chosen in {:.1} s, written to {}\n\n{:width$}  {:>16}  {:>16}\n",
            self.method,
            self.chosen,
            self.pool,
            self.seconds,
            self.out.display(),
            "task",
            "chosen",
            "balanced random",
        );
        let mut row = |name: &str, chosen: u64, random: u64| {
            let cell = |count: u64| format!("{count} ({:4.1} %)", percent(count));
            let name: String = name.chars().take(width).collect();
            let _ = writeln!(table, "{name:width$}  {:>16}  {:>16}", cell(chosen), cell(random));
        };
        let mut listed = (0, 0);
        for name in &names {
            let (chosen, random) = (count(&self.tasks, name), count(&self.random_tasks, name));
            row(name, chosen, random);
            listed = (listed.0 + chosen, listed.1 + random);
        }
        let total = self.chosen as u64;
        if listed.0 < total || listed.1 < total {
            row("other tasks", total - listed.0, total - listed.1);
        }
        if let Some(nearest) = &self.nearest_tasks {
            let _ = writeln!(
                table,
                "\nThe target's nearest tasks ({}) make up {:.1} % of the chosen rows and {:.1} % of the balanced random draw.",
                nearest.names.join(", "),
                100.0 * nearest.chosen_share,
                100.0 * nearest.random_share,
            );
        }
        if let Some(rows) = self.passed_over {
            let _ = writeln!(table, "{rows} better rows were left out to keep each task's answers level.");
        }
        for share in &self.targets {
            let _ = writeln!(table, "{}: {} rows", share.target.display(), share.rows);
        }
        if self.method != Method::RandomBalanced.to_string() {
            let _ = writeln!(
                table,
                "The balanced random draw of the same size is the baseline to beat in training."
            );
        }
        table
    }
}

/// How many of `rows` each task has: most first, ties by name.
fn by_task(pool: &Pool, rows: impl Iterator<Item = usize>) -> Vec<(&str, usize)> {
    let mut counts = HashMap::new();
    for row in rows {
        *counts.entry(pool.tasks()[pool.task_of(row)].as_str()).or_insert(0) += 1;
    }
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_by(|(name, count), (other, than)| than.cmp(count).then(name.cmp(other)));
    counts
}

fn share(counts: &[(&str, usize)], names: &[&str]) -> f64 {
    let all: usize = counts.iter().map(|(_, count)| count).sum();
    let named: usize = counts.iter().filter(|(name, _)| names.contains(name)).map(|(_, count)| count).sum();
    named as f64 / all.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::super::selector::{Amount, choose};
    use super::super::tests::{job, pool};
    use super::super::{Chosen, Neighbours, random};
    use super::*;
    use crate::progress::Progress;

    #[test]
    fn the_report_counts_tasks_and_shares() {
        let (dir, pool) = pool(&[("a", 4), ("b", 10), ("c", 2)]);
        let job = Job { n: Some(6), seed: 1, ..job(dir.path()) };
        let rows = [0, 4, 5, 6, 7, 14].map(|row| Chosen { row, attribution_frequency: 1 }).to_vec();
        let neighbours = vec![vec![
            Neighbours { ids: vec![5, 0], distances: vec![0.1, 0.2] },
            Neighbours { ids: vec![6, 15], distances: vec![0.1, 0.2] },
        ]];
        let selection = Selection { rows, neighbours, shares: vec![6], passed_over: 0 };
        let mut balanced = random::Random::balanced(1);
        let baseline = choose(&mut balanced, &pool, &[], &Amount::exactly(6), Progress::Silent).unwrap();
        let report = Report::new(&job, &pool, &selection, &baseline, Duration::from_millis(1500));
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["chosen"], 6);
        assert_eq!(json["tasks"].to_string(), r#"{"b":4,"a":1,"c":1}"#);
        assert_eq!(json["random_tasks"].to_string(), r#"{"a":2,"b":2,"c":2}"#);
        assert_eq!(json["nearest_tasks"]["names"], serde_json::json!(["b"]));
        assert_eq!(json["nearest_tasks"]["chosen_share"], 4.0 / 6.0);
        assert_eq!(json["nearest_tasks"]["random_share"], 2.0 / 6.0);
        let human = report.human();
        let lines: Vec<_> =
            human.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        assert!(lines.contains(&"b 4 (66.7 %) 2 (33.3 %)".to_string()), "{human}");
        assert!(human.contains("(b) make up 66.7 % of the chosen rows and 33.3 %"), "{human}");
    }
}
