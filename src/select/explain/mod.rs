//! Where a choice comes from, and how near it is to what it was chosen for.

mod map;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::vectors::{Place, Vectors};
use super::view::Viewer;
use super::{Pool, Target};
use crate::encoder;
use crate::error::{Error, Result};
use crate::pool::UNKNOWN_TASK;
use crate::pool::lines::{Lines, reason};
use crate::progress::Progress;

/// What to explain.
#[derive(Debug, Clone)]
pub struct Question {
    /// The chosen rows, as `select` wrote them.
    pub result: PathBuf,
    /// The pool that they were chosen from.
    pub pool: PathBuf,
    /// The examples that they were chosen for.
    pub targets: Vec<PathBuf>,
    /// The encoder by which nearness is told, see [`encoder::load`].
    pub encoder: String,
    /// Vectors of the pool that `select` kept.
    pub vectors: Option<PathBuf>,
    /// Pairs to show.
    pub pairs: usize,
    /// Where the map goes.
    pub map: Option<PathBuf>,
}

/// What is to be said of a choice.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Explanation {
    /// Rows of the pool.
    pub pool: usize,
    /// Rows chosen.
    pub chosen: usize,
    /// The tasks of the chosen rows, most first.
    pub tasks: Vec<TaskShare>,
    /// How near the choice is to each target.
    pub coverage: Vec<Coverage>,
    /// The nearest pairs of an example and a chosen row, no row and no example twice.
    pub pairs: Vec<Pair>,
    /// The map, if one was drawn.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub map: Option<PathBuf>,
}

/// One task's part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TaskShare {
    /// The task.
    pub task: String,
    /// Its rows among the chosen.
    pub chosen: usize,
    /// Its rows in the pool.
    pub pool: usize,
}

/// How near the chosen rows are to a target's examples. Cosines, means over the examples.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Coverage {
    /// The target's file.
    pub target: PathBuf,
    /// Its examples.
    pub examples: usize,
    /// The nearest chosen row.
    pub nearest_chosen: f64,
    /// The nearest row of the pool: no choice could be nearer.
    pub nearest_in_pool: f64,
    /// Share of the examples whose nearest row of the pool was chosen.
    pub nearest_was_chosen: f64,
    /// Share of the examples with a chosen row among the ten nearest of the pool.
    pub chosen_in_ten_nearest: f64,
}

/// An example and a chosen row that are near each other.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Pair {
    /// Their cosine.
    pub cosine: f64,
    /// The example's input.
    pub example: String,
    /// The row's number in the pool.
    pub row: usize,
    /// The row's task.
    pub task: String,
    /// The row's input.
    pub input: String,
    /// What of it is the row's own text, where the row says it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub own: Option<String>,
    /// The row's target.
    pub answer: String,
}

/// Explains a choice.
///
/// # Errors
/// A result that is not of this pool (the line is named); unreadable files; examples that the encoder knows no word of.
pub fn explain(question: &Question, progress: Progress) -> Result<Explanation> {
    let pool = Pool::open(&question.pool)?;
    let chosen = chosen_rows(question, &pool)?;
    let targets = question.targets.iter().map(|path| Target::open(path)).collect::<Result<Vec<_>>>()?;
    let encoder = encoder::load(&question.encoder)?;
    let viewer = Viewer::inputs(encoder.as_ref());
    let queries = targets.iter().map(|target| viewer.of_target(target)).collect::<Result<Vec<_>>>()?;
    let scratch = tempfile::tempdir().map_err(Error::io(std::env::temp_dir()))?;
    let place = match &question.vectors {
        Some(dir) => Place::Kept(dir.clone()),
        None => Place::Scratch(scratch.path().join("vectors")),
    };
    let vectors = Vectors::of_pool(&pool, &viewer, &place, progress)?;
    let dim = encoder.dim();
    let mut is_chosen = vec![false; pool.len()];
    chosen.iter().for_each(|row| is_chosen[*row] = true);

    let mut coverage = Vec::new();
    let mut near = Vec::new();
    for ((target, queries), path) in targets.iter().zip(&queries).zip(&question.targets) {
        let in_pool = vectors.search(queries, 10.min(pool.len()), progress)?;
        let of_chosen = vectors.search_within(queries, question.pairs.clamp(1, chosen.len()), &is_chosen)?;
        let examples = target.inputs().len() as f64;
        let cosine =
            |distance: Option<&f32>| distance.map_or(0.0, |distance| 1.0 - f64::from(*distance) / 2.0);
        let share = |holds: &dyn Fn(&super::Neighbours) -> bool| {
            in_pool.iter().filter(|found| holds(found)).count() as f64 / examples
        };
        let chosen_at = |id: &u32| is_chosen[*id as usize];
        coverage.push(Coverage {
            target: path.clone(),
            examples: target.inputs().len(),
            nearest_chosen: of_chosen.iter().map(|found| cosine(found.distances.first())).sum::<f64>()
                / examples,
            nearest_in_pool: in_pool.iter().map(|found| cosine(found.distances.first())).sum::<f64>()
                / examples,
            nearest_was_chosen: share(&|found| found.ids.first().is_some_and(chosen_at)),
            chosen_in_ten_nearest: share(&|found| found.ids.iter().any(chosen_at)),
        });
        for (input, found) in target.inputs().iter().zip(of_chosen) {
            let pairs = found.ids.iter().zip(&found.distances);
            near.extend(pairs.map(|(id, distance)| (cosine(Some(distance)), *id as usize, input.clone())));
        }
    }
    let pairs = nearest_pairs(&pool, near, question.pairs)?;
    if let Some(path) = &question.map {
        map::draw(path, &vectors, dim, &is_chosen, &queries)?;
    }
    Ok(Explanation {
        pool: pool.len(),
        chosen: chosen.len(),
        tasks: shares(&pool, &chosen),
        coverage,
        pairs,
        map: question.map.clone(),
    })
}

/// The numbers of the chosen rows.
fn chosen_rows(question: &Question, pool: &Pool) -> Result<Vec<usize>> {
    #[derive(Deserialize)]
    struct Line {
        index_id: usize,
        task: Option<String>,
    }
    let path = &question.result;
    let mut rows = Vec::new();
    let mut lines = Lines::open(path)?;
    while let Some((line, text)) = lines.next()? {
        let found: Line = serde_json::from_str(text).map_err(|why| {
            Error::line(path, line, format!("{}; a chosen row has the number \"index_id\"", reason(&why)))
        })?;
        let task = found.task.as_deref().unwrap_or(UNKNOWN_TASK);
        if found.index_id >= pool.len() || pool.tasks()[pool.task_of(found.index_id)] != task {
            let why = format!(
                "row {} of {} is another one; name the pool it was chosen from",
                found.index_id,
                question.pool.display()
            );
            return Err(Error::line(path, line, why));
        }
        rows.push(found.index_id);
    }
    match rows.is_empty() {
        true => Err(Error::file(path, "there is no chosen row here")),
        false => Ok(rows),
    }
}

/// The tasks of the chosen rows, most first.
fn shares(pool: &Pool, chosen: &[usize]) -> Vec<TaskShare> {
    let mut counts = BTreeMap::new();
    chosen.iter().for_each(|row| *counts.entry(pool.task_of(*row)).or_insert(0) += 1);
    let mut in_pool = vec![0; pool.tasks().len()];
    (0..pool.len()).for_each(|row| in_pool[pool.task_of(row)] += 1);
    let share = |(task, chosen): (usize, usize)| TaskShare {
        task: pool.tasks()[task].clone(),
        chosen,
        pool: in_pool[task],
    };
    let mut shares: Vec<_> = counts.into_iter().map(share).collect();
    shares.sort_by(|a, b| b.chosen.cmp(&a.chosen).then(a.task.cmp(&b.task)));
    shares
}

/// The nearest of `near` (cosine, row, example), each row and each example once, with the rows' texts.
fn nearest_pairs(pool: &Pool, mut near: Vec<(f64, usize, String)>, n: usize) -> Result<Vec<Pair>> {
    near.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let mut pairs: Vec<Pair> = Vec::new();
    for (cosine, row, example) in near {
        if pairs.len() < n && pairs.iter().all(|pair| pair.row != row && pair.example != example) {
            let task = pool.tasks()[pool.task_of(row)].clone();
            let (input, answer) = (String::new(), String::new());
            pairs.push(Pair { cosine, example, row, task, input, own: None, answer });
        }
    }
    pool.for_each(|number, _, row| {
        if let Some(pair) = pairs.iter_mut().find(|pair| pair.row == number) {
            (pair.input, pair.own, pair.answer) = (row.input, row.own, row.target);
        }
        Ok(())
    })?;
    Ok(pairs)
}

impl Explanation {
    /// The explanation for people.
    pub fn human(&self) -> String {
        let mut text = format!("{} of {} rows, of {} tasks\n\n", self.chosen, self.pool, self.tasks.len());
        let _ = writeln!(text, "{:<50}  {:>8}  {:>8}", "task", "chosen", "of");
        for share in self.tasks.iter().take(15) {
            let _ = writeln!(text, "{:<50}  {:>8}  {:>8}", share.task, share.chosen, share.pool);
        }
        for c in &self.coverage {
            let _ = write!(
                text,
                "\n{}: {} examples. Mean cosine of the nearest chosen row {:.3}, of the nearest in the pool {:.3}.\n\
                 The nearest row was chosen for {:.1} % of the examples, one of the ten nearest for {:.1} %.\n",
                c.target.display(),
                c.examples,
                c.nearest_chosen,
                c.nearest_in_pool,
                100.0 * c.nearest_was_chosen,
                100.0 * c.chosen_in_ten_nearest,
            );
        }
        for pair in &self.pairs {
            let _ = write!(text, "\n{:.3}  row {} of {}\n", pair.cosine, pair.row, pair.task);
            let row = pair.own.as_ref().unwrap_or(&pair.input);
            side_by_side(&mut text, &pair.example, row, &pair.answer);
        }
        if let Some(map) = &self.map {
            let _ = write!(text, "\nThe map is in {}\n", map.display());
        }
        text
    }
}

/// Characters of a column, lines that are shown, and how many of them an answer has at most.
const COLUMN: usize = 56;
const SHOWN: usize = 12;
const ANSWER: usize = 4;
/// Where something was left out.
const CUT: char = '…';

/// An example and a row in two columns of at most [`SHOWN`] lines. The row's answer is always among them.
fn side_by_side(to: &mut String, example: &str, row: &str, answer: &str) {
    let answer = folded(&format!("=> {answer}"), ANSWER);
    let left = folded(example, SHOWN);
    let right = [folded(row, SHOWN - answer.len()), answer].concat();
    for i in 0..left.len().max(right.len()) {
        let cell = |lines: &[String]| lines.get(i).cloned().unwrap_or_default();
        let _ = writeln!(to, "{:<COLUMN$} | {}", cell(&left), cell(&right));
    }
}

/// A text in at most `shown` lines of at most [`COLUMN`] characters, broken between words where there are any.
fn folded(text: &str, shown: usize) -> Vec<String> {
    let mut lines = Vec::new();
    for line in text.lines() {
        let mut current = String::new();
        for word in line.split_whitespace() {
            let length = current.chars().count();
            if length > 0 && length + 1 + word.chars().count() > COLUMN {
                lines.push(std::mem::take(&mut current));
            }
            if !current.is_empty() {
                current.push(' ');
            }
            match word.chars().count() > COLUMN {
                true => current.extend(word.chars().take(COLUMN - 1).chain([CUT])),
                false => current.push_str(word),
            }
        }
        if !current.is_empty() {
            lines.push(current);
        }
    }
    if lines.len() > shown {
        lines.truncate(shown.saturating_sub(1));
        lines.push(CUT.to_string());
    }
    lines
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Fails when instruction and shots hide the row's own text, a long text its answer, or a cut is not to be seen.
    #[test]
    fn a_pair_shows_the_rows_own_text_and_its_answer() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pool.jsonl");
        let long = "word ".repeat(400);
        let rows = [
            json!({"input": format!("Definition: say it. {long} the dog barks"), "own": "the dog barks", "target": "yes"}),
            json!({"input": long, "target": format!("no {}", "not at all ".repeat(100))}),
        ];
        std::fs::write(&path, format!("{}\n{}\n", rows[0], rows[1])).unwrap();
        let pool = Pool::open(&path).unwrap();
        let near = vec![(0.9, 0, "short".to_string()), (0.8, 1, format!("{} {long}", "x".repeat(99)))];
        let pairs = nearest_pairs(&pool, near, 2).unwrap();
        let explanation =
            Explanation { pool: 2, chosen: 2, tasks: Vec::new(), coverage: Vec::new(), pairs, map: None };
        let human = explanation.human();
        let parts: Vec<&str> = human.split("\n\n").collect();
        let [_, _, own, cut] = parts[..] else { panic!("{human}") };
        assert!(own.contains("| the dog barks\n") && own.contains("| => yes"), "{own}");
        assert!(!own.contains("Definition") && !own.contains(CUT), "{own}");
        let cells: Vec<_> = cut.lines().skip(1).map(|line| line.split_once(" | ").unwrap()).collect();
        assert_eq!(cells.len(), SHOWN);
        assert_eq!(cells[0].0, format!("{}{CUT}", "x".repeat(COLUMN - 1)));
        assert_eq!(cells[SHOWN - 1].0.trim_end(), "…", "{cut}");
        let rights: Vec<_> = cells.iter().map(|(_, right)| *right).collect();
        assert_eq!((rights[SHOWN - ANSWER - 1], rights[SHOWN - 1]), ("…", "…"), "{cut}");
        assert!(rights[SHOWN - ANSWER].starts_with("=> no not at all"), "{cut}");
    }
}
