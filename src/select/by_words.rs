//! The pool's rows that share the most telling words with the target's unlabelled examples, by BM25 (Robertson and
//! Zaragoza 2009): as [`by_vectors`](super::by_vectors), with words in place of vectors.

use rayon::prelude::*;
use sidenote_index::Hit;

use super::nearest::{Order, rank};
use super::selector::{Neighbours, Ranking, Selector};
use super::{Pool, Target};
use crate::error::Result;
use crate::progress::Progress;
use crate::retriever::bm25::Bm25;

/// Nearest rows, by words. Distances are scores, negative.
pub struct ByWords {
    k: Option<usize>,
    words: Option<Bm25>,
}

impl ByWords {
    /// `k` neighbours of each example, or as many as are needed.
    pub fn new(k: Option<usize>) -> Self {
        Self { k, words: None }
    }
}

impl Selector for ByWords {
    fn rank(
        &mut self,
        pool: &Pool,
        target: Option<&Target>,
        n: usize,
        progress: Progress,
    ) -> Result<Ranking> {
        let target = super::needed(target)?;
        let words = match self.words.take() {
            Some(words) => words,
            None => {
                let mut inputs = Vec::with_capacity(pool.len());
                pool.for_each(|_, _, row| {
                    inputs.push(row.input);
                    Ok(())
                })?;
                Bm25::in_memory((0..).zip(inputs.iter()))?
            }
        };
        let words = self.words.insert(words);
        rank(pool, target, (n, self.k), Order::Union, |k| {
            let task = progress.task("search the pool", target.inputs().len() as u64, "examples");
            let found = |input: &String| -> Result<Neighbours> {
                let hits: Vec<Hit> = words.search(input, k, &|_| true)?;
                task.advance(1);
                let (ids, distances) = hits.iter().map(|hit| (hit.id, -hit.score)).unzip();
                Ok(Neighbours { ids, distances })
            };
            target.inputs().par_iter().map(found).collect()
        })
    }
}
