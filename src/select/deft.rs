//! DEFT: the pool's rows nearest to the target's unlabelled examples.
//!
//! Ivison, Smith, Hajishirzi, Dasigi: *Data-Efficient Finetuning Using Cross-Task Nearest
//! Neighbors*, Findings of ACL 2023. Only inputs are compared, never targets. Examples and pool rows
//! go through the same encoder with the same truncation, every example is searched for, and rows are
//! told apart by their number, so two rows with the same text can both be chosen.

use std::fs;
use std::path::{Path, PathBuf};

use sidenote_index::{Builder, Index, Metric, Spec};

use super::{Chosen, Neighbours, Pool, Selection, Target, check_size};
use crate::encoder::Encoder;
use crate::error::{Error, Result};
use crate::interrupt;
use crate::progress::Progress;

/// Texts encoded, or examples searched for, at a time.
const BATCH: usize = 256;

/// How much to choose.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// Rows in all.
    pub n: usize,
    /// Neighbours of each example to look at; as many as `n` needs if not given.
    pub k: Option<usize>,
}

/// Chooses exactly `size.n` rows.
///
/// Let d be the smallest number for which the d nearest rows of every example are, taken together,
/// `n` rows or more. All rows among the d - 1 nearest of any example are chosen, and of the rows that
/// are new at rank d the nearest ones (ties by row number) until there are `n`. A row's
/// attribution frequency is the number of examples that have it among their d nearest.
///
/// `scratch` is a directory that holds an exact index over the pool while this runs; it must not
/// exist and is removed. The selection's neighbours are the `k` searched for, or d of each example.
///
/// # Errors
/// `n` is 0 or more than the pool has; the `k` nearest of all examples are fewer than `n`; an
/// example without a word that the encoder knows; whatever reading and writing can bring.
pub fn select(
    pool: &Pool,
    target: &Target,
    size: Size,
    encoder: &dyn Encoder,
    scratch: &Path,
    progress: Progress,
) -> Result<Selection> {
    check(pool, size)?;
    let queries = encode_target(target, encoder)?;
    let scratch = Scratch::create(scratch)?;
    let index = index_pool(pool, encoder, &scratch.0, progress)?;
    nearest(pool, target, size, |k| search(&index, &queries, k, progress))
}

/// Refuses sizes that no pool can give.
pub(super) fn check(pool: &Pool, size: Size) -> Result<()> {
    check_size(pool, size.n)?;
    match size.k {
        Some(0) => {
            Err(Error::setting("-k", "0 neighbours of each example choose nothing; ask for at least one"))
        }
        _ => Ok(()),
    }
}

/// The rule of [`select`], with whatever finds the `k` nearest rows of each example.
pub(super) fn nearest(
    pool: &Pool,
    target: &Target,
    size: Size,
    search: impl Fn(usize) -> Result<Vec<Neighbours>>,
) -> Result<Selection> {
    // Examples of one task share neighbours, so twice the even share is a fair first guess.
    let guess = (2 * size.n).div_ceil(target.inputs().len()).max(8);
    let mut k = size.k.unwrap_or(guess).min(pool.len());
    loop {
        let mut neighbours = search(k)?;
        if let Some((rows, depth)) = choose(&neighbours, pool.len(), size.n) {
            if size.k.is_none() {
                for found in &mut neighbours {
                    found.ids.truncate(depth);
                    found.distances.truncate(depth);
                }
            }
            return Ok(Selection { rows, neighbours });
        }
        if size.k.is_some() || k == pool.len() {
            let union = union(&neighbours, pool.len());
            let why = format!(
                "the {k} nearest rows of {} examples are only {union} rows together, and {} are wanted; \
                 raise -k, leave it out, or lower -n",
                neighbours.len(),
                size.n
            );
            return Err(Error::setting("-k", why));
        }
        k = (2 * k).min(pool.len());
    }
}

fn encode_target(target: &Target, encoder: &dyn Encoder) -> Result<Vec<f32>> {
    let mut vectors = Vec::with_capacity(target.inputs().len() * encoder.dim());
    for inputs in target.inputs().chunks(BATCH) {
        let inputs: Vec<_> = inputs.iter().map(String::as_str).collect();
        vectors.extend(encoder.encode(&inputs)?);
    }
    // A zero vector is equally far from everything: its neighbours would be the first rows.
    match vectors.chunks(encoder.dim()).position(|vector| vector.iter().all(|&value| value == 0.0)) {
        Some(query) => {
            Err(target.error(query, "the encoder knows no word of this input; leave the line out"))
        }
        None => Ok(vectors),
    }
}

fn index_pool(pool: &Pool, encoder: &dyn Encoder, dir: &Path, progress: Progress) -> Result<Index> {
    let mut builder = Builder::create(dir, encoder.dim(), Metric::L2, &Spec::Flat, 0)?;
    let task = progress.task("encode the pool", pool.len() as u64, "rows");
    let mut batch: Vec<String> = Vec::with_capacity(BATCH);
    pool.for_each(|number, _, row| {
        batch.push(row.input);
        if batch.len() == BATCH || number + 1 == pool.len() {
            if interrupt::requested() {
                return Err(Error::Interrupted("nothing was written; run the command again".to_string()));
            }
            let inputs: Vec<_> = batch.iter().map(String::as_str).collect();
            builder.add(&encoder.encode(&inputs)?)?;
            task.advance(inputs.len() as u64);
            batch.clear();
        }
        Ok(())
    })?;
    builder.finish()?;
    Ok(Index::open(dir)?)
}

fn search(index: &Index, queries: &[f32], k: usize, progress: Progress) -> Result<Vec<Neighbours>> {
    let task = progress.task("search the pool", (queries.len() / index.dim()) as u64, "examples");
    let mut neighbours = Vec::new();
    for queries in queries.chunks(BATCH * index.dim()) {
        if interrupt::requested() {
            return Err(Error::Interrupted("nothing was written; run the command again".to_string()));
        }
        let found = index.search_batch(queries, k, None)?;
        task.advance(found.len() as u64);
        neighbours.extend(found.into_iter().map(|hits| Neighbours {
            ids: hits.iter().map(|hit| hit.id).collect(),
            distances: hits.iter().map(|hit| (-hit.score).max(0.0)).collect(),
        }));
    }
    Ok(neighbours)
}

/// For each row of the pool the best rank, from 0, that any example gives it.
fn best_ranks(neighbours: &[Neighbours], rows: usize) -> Vec<u32> {
    let mut best = vec![u32::MAX; rows];
    for found in neighbours {
        for (rank, &id) in found.ids.iter().enumerate() {
            let best = &mut best[id as usize];
            *best = (*best).min(rank as u32);
        }
    }
    best
}

fn union(neighbours: &[Neighbours], rows: usize) -> usize {
    best_ranks(neighbours, rows).into_iter().filter(|&rank| rank != u32::MAX).count()
}

/// The rule of [`select`]: the chosen rows and d, or nothing if all neighbours together are fewer
/// than `n` rows.
fn choose(neighbours: &[Neighbours], rows: usize, n: usize) -> Option<(Vec<Chosen>, usize)> {
    let best = best_ranks(neighbours, rows);
    let longest = neighbours.iter().map(|found| found.ids.len()).max()?;
    let mut new_at = vec![0; longest];
    for &rank in best.iter().filter(|&&rank| rank != u32::MAX) {
        new_at[rank as usize] += 1;
    }
    let mut union = 0;
    let last = new_at.iter().position(|&new| {
        union += new;
        union >= n
    })?;

    // The rows that are new at the last rank, each at its smallest distance there.
    let mut fill: Vec<(f32, u32)> = neighbours
        .iter()
        .filter_map(|found| Some((*found.distances.get(last)?, *found.ids.get(last)?)))
        .filter(|&(_, id)| best[id as usize] == last as u32)
        .collect();
    fill.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    let mut wanted: Vec<bool> = best.iter().map(|&rank| rank < last as u32).collect();
    let mut missing = n - (union - new_at[last]);
    for (_, id) in fill {
        if missing > 0 && !wanted[id as usize] {
            wanted[id as usize] = true;
            missing -= 1;
        }
    }

    let mut frequency = vec![0; rows];
    for found in neighbours {
        for &id in found.ids.iter().take(last + 1) {
            frequency[id as usize] += 1;
        }
    }
    let chosen = (0..rows)
        .filter(|&row| wanted[row])
        .map(|row| Chosen { row, attribution_frequency: frequency[row] })
        .collect();
    Some((chosen, last + 1))
}

/// A directory that goes away with this value.
struct Scratch(PathBuf);

impl Scratch {
    fn create(dir: &Path) -> Result<Self> {
        fs::create_dir(dir).map_err(Error::io(dir))?;
        Ok(Self(dir.to_path_buf()))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::pool;
    use super::*;

    fn found(ids: &[u32], distances: &[f32]) -> Neighbours {
        Neighbours { ids: ids.to_vec(), distances: distances.to_vec() }
    }

    #[test]
    fn the_size_is_exact_and_the_last_rank_goes_by_distance() {
        let neighbours = [
            found(&[7, 3, 5], &[0.1, 0.2, 0.9]),
            found(&[7, 2, 3], &[0.3, 0.4, 0.5]),
            found(&[1, 2, 8], &[0.2, 0.3, 0.6]),
        ];
        let chosen = |n: usize| {
            let (rows, depth) = choose(&neighbours, 10, n).unwrap();
            (rows.iter().map(|row| (row.row, row.attribution_frequency)).collect::<Vec<_>>(), depth)
        };
        assert_eq!(chosen(1), (vec![(7, 2)], 1), "row 7 is at 0.1, row 1 at 0.2");
        assert_eq!(chosen(2), (vec![(1, 1), (7, 2)], 1));
        assert_eq!(chosen(3), (vec![(1, 1), (3, 1), (7, 2)], 2), "row 3 is at 0.2, row 2 at best at 0.3");
        assert_eq!(chosen(4), (vec![(1, 1), (2, 2), (3, 1), (7, 2)], 2));
        assert_eq!(chosen(5), (vec![(1, 1), (2, 2), (3, 2), (7, 2), (8, 1)], 3));
        assert_eq!(chosen(6).0.len(), 6);
        assert!(choose(&neighbours, 10, 7).is_none());
        assert_eq!(union(&neighbours, 10), 6);
    }

    #[test]
    fn equal_distances_go_by_row_number() {
        let neighbours = [found(&[4], &[0.5]), found(&[2], &[0.5]), found(&[9], &[0.5])];
        let (rows, _) = choose(&neighbours, 10, 2).unwrap();
        assert_eq!(rows.iter().map(|row| row.row).collect::<Vec<_>>(), [2, 4]);
    }

    /// Angles on a circle: the input's number in degrees. "none" is a word it does not know.
    struct Circle;

    impl Encoder for Circle {
        fn dim(&self) -> usize {
            2
        }
        fn encode(&self, texts: &[&str]) -> Result<Vec<f32>> {
            Ok(texts
                .iter()
                .flat_map(|text| {
                    match text.split(' ').next_back().and_then(|word| word.parse::<f32>().ok()) {
                        Some(degrees) => [degrees.to_radians().cos(), degrees.to_radians().sin()],
                        None => [0.0, 0.0],
                    }
                })
                .collect())
        }
        fn name(&self) -> &str {
            "circle"
        }
        fn identity(&self) -> &str {
            "circle"
        }
    }

    fn target(dir: &Path, inputs: &[&str]) -> Target {
        let path = dir.join("target.jsonl");
        let lines: Vec<_> =
            inputs.iter().map(|input| serde_json::json!({"input": input}).to_string()).collect();
        fs::write(&path, lines.join("\n")).unwrap();
        Target::open(&path).unwrap()
    }

    #[test]
    fn neighbours_come_from_the_whole_pool() {
        // More rows than one batch, and the last batch is not full.
        let (dir, pool) = pool(&[("a", 300), ("b", 21)]);
        let target = target(dir.path(), &["x 10", "x 15.2"]);
        let scratch = dir.path().join("scratch");
        let choose = |n, k| select(&pool, &target, Size { n, k }, &Circle, &scratch, Progress::Silent);
        let rows = |selection: &Selection| selection.rows.iter().map(|row| row.row).collect::<Vec<_>>();

        let selection = choose(4, None).unwrap();
        // Rows 10 and 310 share an angle, as do 15 and 315.
        assert_eq!(rows(&selection), [10, 15, 310, 315]);
        assert_eq!(selection.neighbours[0].ids, [10, 310]);
        assert!(selection.neighbours[1].distances[0] > 0.0);
        let angle = 0.2f32.to_radians();
        assert!((selection.neighbours[1].distances[0] - (2.0 - 2.0 * angle.cos())).abs() < 1e-6);

        // However deep the search has to go, the rule is the same.
        for n in [1, 2, 7, 40, 320, 321] {
            let selection = choose(n, None).unwrap();
            assert_eq!(selection.rows.len(), n);
            assert!(selection.rows.iter().all(|row| row.attribution_frequency > 0));
            let depth = selection.neighbours[0].ids.len();
            assert_eq!(selection.rows, choose(n, Some(depth)).unwrap().rows);
            assert_eq!(selection.rows, choose(n, Some(1000)).unwrap().rows);
        }
        assert_eq!(choose(4, Some(50)).unwrap().neighbours[1].ids.len(), 50);
        let why = choose(40, Some(3)).unwrap_err().to_string();
        assert!(why.contains("only 6 rows"), "{why}");
        assert!(choose(322, None).unwrap_err().to_string().contains("321 rows"));
        assert!(choose(1, Some(0)).is_err());
        assert!(!scratch.exists());
    }

    #[test]
    fn an_example_of_unknown_words_is_named() {
        let (dir, pool) = pool(&[("a", 3)]);
        let target = target(dir.path(), &["x 1", "none"]);
        let scratch = dir.path().join("scratch");
        let size = Size { n: 1, k: None };
        let why = select(&pool, &target, size, &Circle, &scratch, Progress::Silent).unwrap_err().to_string();
        assert!(why.contains("target.jsonl:2:"), "{why}");
    }
}
