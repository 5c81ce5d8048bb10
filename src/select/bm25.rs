//! The pool's rows that share the most telling words with the target's unlabelled examples, by BM25 (Robertson and
//! Zaragoza 2009): as [`deft`], with words in place of vectors.

use rayon::prelude::*;
use sidenote_index::Hit;

use super::deft::{Size, check, nearest};
use super::{Neighbours, Pool, Selection, Target};
use crate::error::Result;
use crate::progress::Progress;
use crate::retriever::bm25::Bm25;

/// Chooses exactly `size.n` rows by the rule of [`deft::select`](super::deft::select). Distances are scores, negative.
///
/// # Errors
/// Sizes that the pool cannot give; too few rows that share a word with any example; unreadable files.
pub fn select(pool: &Pool, target: &Target, size: Size, progress: Progress) -> Result<Selection> {
    check(pool, size)?;
    let mut inputs = Vec::with_capacity(pool.len());
    pool.for_each(|_, _, row| {
        inputs.push(row.input);
        Ok(())
    })?;
    let words = Bm25::in_memory((0..).zip(inputs.iter()))?;
    drop(inputs);
    nearest(pool, target, size, |k| {
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
