//! What all methods have in common: each ranks the pool for one target, and the rankings of several are merged.

use std::collections::HashSet;

use serde::Serialize;

use super::{Chosen, Pool, Selection, Target, check_size};
use crate::error::{Error, Result};
use crate::progress::Progress;

/// A way of ranking a pool's rows.
pub trait Selector {
    /// Rows of the pool, best first, each once: at least `n` unless the method finds no more. `target` is there for a method
    /// that looks at one.
    ///
    /// # Errors
    /// Unreadable files, and what the method itself cannot do.
    fn rank(&mut self, pool: &Pool, target: Option<&Target>, n: usize, progress: Progress)
    -> Result<Ranking>;
}

/// A method's ranking for one target.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Ranking {
    /// The rows, best first.
    pub rows: Vec<Ranked>,
    /// What each of the target's examples found; empty if the method did not look.
    pub neighbours: Vec<Neighbours>,
}

/// One row of a ranking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ranked {
    /// The row's number in the pool.
    pub row: usize,
    /// How deep in its example's neighbours it was found, from 0.
    pub depth: usize,
}

/// The pool's rows nearest to one example, nearest first.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Neighbours {
    /// Row numbers.
    pub ids: Vec<u32>,
    /// Squared Euclidean distances between the unit vectors, so 2 - 2 cos: the number that faiss
    /// calls an L2 distance, and that DEFT logs. Of two such vectors side by side, 4 - 2 (cos + cos); of words, minus the
    /// score.
    pub distances: Vec<f32>,
}

/// Chooses exactly `n` rows: the targets take turns, each taking the best row of its ranking that is not chosen yet. With no
/// target, of a method that looks at none, its one ranking is taken as it is.
///
/// The neighbours of an example go as deep as its target had to look, or as the method was told to.
///
/// # Errors
/// `n` is 0 or more than the pool has; the rankings together are fewer than `n` rows; what the method brings.
pub fn choose(
    selector: &mut dyn Selector,
    pool: &Pool,
    targets: &[Target],
    n: usize,
    keep_depth: bool,
    progress: Progress,
) -> Result<Selection> {
    check_size(pool, n)?;
    take(pool, rankings(selector, pool, targets, n, progress)?, n, keep_depth)
}

/// Chooses all that the rankings hold, of a method that looks at so many neighbours of each example: DEFT's own union, whose size
/// follows.
///
/// # Errors
/// What the method brings.
pub fn choose_all(
    selector: &mut dyn Selector,
    pool: &Pool,
    targets: &[Target],
    progress: Progress,
) -> Result<Selection> {
    let rankings = rankings(selector, pool, targets, 1, progress)?;
    let rows = rankings.iter().flat_map(|ranking| &ranking.rows);
    let n = rows.map(|ranked| ranked.row).collect::<HashSet<_>>().len();
    take(pool, rankings, n, true)
}

fn rankings(
    selector: &mut dyn Selector,
    pool: &Pool,
    targets: &[Target],
    n: usize,
    progress: Progress,
) -> Result<Vec<Ranking>> {
    match targets {
        [] => Ok(vec![selector.rank(pool, None, n, progress)?]),
        targets => targets.iter().map(|target| selector.rank(pool, Some(target), n, progress)).collect(),
    }
}

fn take(pool: &Pool, rankings: Vec<Ranking>, n: usize, keep_depth: bool) -> Result<Selection> {
    let mut shares = vec![0; rankings.len()];
    let mut depths = vec![0; rankings.len()];
    let mut chosen = vec![false; pool.len()];
    let mut count = 0;
    let mut next: Vec<_> = rankings.iter().map(|ranking| ranking.rows.iter()).collect();
    let mut order = Vec::with_capacity(n);
    while count < n {
        let before = count;
        for (i, next) in next.iter_mut().enumerate() {
            if count == n {
                break;
            }
            if let Some(ranked) = next.find(|ranked| !chosen[ranked.row]) {
                chosen[ranked.row] = true;
                order.push(ranked.row);
                depths[i] = depths[i].max(ranked.depth + 1);
                shares[i] += 1;
                count += 1;
            }
        }
        if count == before {
            // Of a method that was not told how deep to look, nothing is left to find.
            let hint = match keep_depth {
                true => "raise -k, leave it out, or lower -n",
                false => "the target's examples have nothing in common with more; lower -n",
            };
            let why = format!("only {count} rows were found, and {n} are wanted; {hint}");
            return Err(Error::setting("-n", why));
        }
    }
    let mut frequency = vec![0; pool.len()];
    let mut neighbours = Vec::new();
    for (mut ranking, depth) in rankings.into_iter().zip(depths) {
        for found in &mut ranking.neighbours {
            found.ids.iter().take(depth).for_each(|id| frequency[*id as usize] += 1);
            if !keep_depth {
                found.ids.truncate(depth);
                found.distances.truncate(depth);
            }
        }
        neighbours.push(ranking.neighbours);
    }
    order.sort_unstable();
    let rows = order.into_iter().map(|row| Chosen { row, attribution_frequency: frequency[row] }).collect();
    Ok(Selection { rows, neighbours, shares })
}
