//! What all methods have in common: each ranks the pool for one target, and the rankings of several are merged.

use serde::Serialize;

use super::answers::Answers;
use super::{Chosen, Pool, Selection, Target, check_size};
use crate::error::{Error, Result};
use crate::progress::Progress;

/// A way of ranking a pool's rows.
pub trait Selector {
    /// Rows of the pool, best first, each once: at least `n` unless the method finds no more. Were more asked for, those after the
    /// `n`th could be others. `target` is there for a method
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

/// How much is chosen of what is ranked.
pub struct Amount<'a> {
    /// So many rows exactly; all that is ranked where it is left out.
    pub n: Option<usize>,
    /// Whether the method was told how deep to look, so that it looks no deeper for `n`'s sake.
    pub keep_depth: bool,
    /// The pool's answers, which the choice has level ([`Answers::level`]).
    pub level: Option<&'a Answers>,
}

impl Amount<'_> {
    /// So many rows, of a method that looks as deep as it takes.
    pub fn exactly(n: usize) -> Self {
        Self { n: Some(n), keep_depth: false, level: None }
    }
}

/// A row that one of the targets asks for.
struct Asked {
    target: usize,
    ranked: Ranked,
    /// How many are asked for before it.
    place: usize,
}

/// Chooses `amount` of the rows: the targets take turns, each taking the best row of its ranking that is not chosen yet. With no
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
    amount: &Amount<'_>,
    progress: Progress,
) -> Result<Selection> {
    // All of DEFT's own union, whose size follows, is there at once.
    let n = amount.n.unwrap_or(1);
    check_size(pool, n)?;
    let (mut deep, mut before) = (n, 0);
    loop {
        let mut rankings = rankings(selector, pool, targets, deep, progress)?;
        if amount.n.is_some() && !amount.keep_depth {
            rankings.iter_mut().for_each(|ranking| ranking.rows.truncate(deep));
        }
        let ranked = in_turns(&rankings, pool.len());
        let found = ranked.len();
        let order = match amount.level {
            Some(answers) => answers.level(ranked, |asked| asked.ranked.row),
            None => ranked,
        };
        let enough = order.len() >= n || amount.keep_depth || amount.level.is_none();
        if enough || deep == pool.len() || found == before {
            let n = amount.n.unwrap_or(order.len());
            return take(pool, rankings, order, n, amount);
        }
        (deep, before) = ((2 * deep).min(pool.len()), found);
    }
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

/// The rows of all rankings, each once, in the order in which the targets ask for them.
fn in_turns(rankings: &[Ranking], rows: usize) -> Vec<Asked> {
    let mut asked_for = vec![false; rows];
    let mut next: Vec<_> = rankings.iter().map(|ranking| ranking.rows.iter()).collect();
    let mut order = Vec::new();
    loop {
        let place = order.len();
        for (target, next) in next.iter_mut().enumerate() {
            if let Some(&ranked) = next.find(|ranked| !asked_for[ranked.row]) {
                asked_for[ranked.row] = true;
                order.push(Asked { target, ranked, place: order.len() });
            }
        }
        if order.len() == place {
            return order;
        }
    }
}

fn take(
    pool: &Pool,
    rankings: Vec<Ranking>,
    mut order: Vec<Asked>,
    n: usize,
    amount: &Amount<'_>,
) -> Result<Selection> {
    if order.len() < n {
        // Of a method that was not told how deep to look, nothing is left to find.
        let hint = match (amount.keep_depth, amount.level) {
            (true, _) => "raise -k, leave it out, or lower -n",
            (false, None) => "the target's examples have nothing in common with more; lower -n",
            (false, Some(_)) => "the others would have the usual answer of their task once more; lower -n",
        };
        let why = format!("only {} rows were found, and {n} are wanted; {hint}", order.len());
        return Err(Error::setting("-n", why));
    }
    order.truncate(n);
    let mut shares = vec![0; rankings.len()];
    let mut depths = vec![0; rankings.len()];
    let mut passed_over = 0;
    for asked in &order {
        shares[asked.target] += 1;
        depths[asked.target] = depths[asked.target].max(asked.ranked.depth + 1);
        passed_over = passed_over.max((asked.place + 1).saturating_sub(n));
    }
    let mut frequency = vec![0; pool.len()];
    let mut neighbours = Vec::new();
    for (mut ranking, depth) in rankings.into_iter().zip(depths) {
        for found in &mut ranking.neighbours {
            found.ids.iter().take(depth).for_each(|id| frequency[*id as usize] += 1);
            if !amount.keep_depth {
                found.ids.truncate(depth);
                found.distances.truncate(depth);
            }
        }
        neighbours.push(ranking.neighbours);
    }
    let mut rows: Vec<usize> = order.iter().map(|asked| asked.ranked.row).collect();
    rows.sort_unstable();
    let rows = rows.into_iter().map(|row| Chosen { row, attribution_frequency: frequency[row] }).collect();
    Ok(Selection { rows, neighbours, shares, passed_over })
}
