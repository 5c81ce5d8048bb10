//! Two stages: something cheap looks at every row, something strong at what that let through, and of what both like the rows
//! are taken that speak for most of the rest.
//!
//! The last step maximises facility location (Nemhauser, Wolsey, Fisher 1978; for data selection Wei, Iyer, Bilmes 2015):
//! `f(S) = sum over candidates c of w_c max over s in S of cos(c, s)`, where w_c is the candidate's share of the target: each
//! example gives away one, by a softmax over its cosines with the candidates. Greedily, which comes within 1 - 1/e of the best.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashSet};

use candle_core::{Device, Tensor};

use super::ordered::Ordered;
use super::selector::{Neighbours, Ranked, Ranking, Selector};
use super::{Pool, Target};
use crate::encoder::{Encoder, normalise_rows};
use crate::error::{Error, Result};
use crate::interrupt;
use crate::progress::Progress;

/// Candidates for each row wanted.
const CANDIDATES: usize = 4;
/// The softmax's temperature: RETRO-like retrievers' usual one, at which the best few candidates have most of an example.
const TEMPERATURE: f32 = 0.05;
/// Texts encoded at a time.
const BATCH: usize = 256;

/// First stage, second stage, and diversity.
pub struct TwoStage {
    first: Box<dyn Selector>,
    encoder: Box<dyn Encoder>,
    /// Chosen rows that each example is said to be near.
    k: usize,
}

impl TwoStage {
    /// `first` ranks all rows, `encoder` gives the vectors of the best of them. Of the chosen rows the `k` nearest to each example
    /// are named, or the nearest.
    pub fn new(first: Box<dyn Selector>, encoder: Box<dyn Encoder>, k: Option<usize>) -> Self {
        Self { first, encoder, k: k.unwrap_or(1) }
    }
}

impl Selector for TwoStage {
    fn rank(
        &mut self,
        pool: &Pool,
        target: Option<&Target>,
        n: usize,
        progress: Progress,
    ) -> Result<Ranking> {
        let target = super::needed(target)?;
        let encoder = self.encoder.as_ref();
        let queries = super::view::Viewer::inputs(encoder).of_target(target)?;
        let wanted = (CANDIDATES * n).min(pool.len());
        let mut candidates: Vec<usize> = self
            .first
            .rank(pool, Some(target), wanted, progress)?
            .rows
            .iter()
            .take(wanted)
            .map(|r| r.row)
            .collect();
        candidates.sort_unstable();
        let vectors = encode(pool, &candidates, encoder, progress)?;
        let (order, cosines) = by_location(&vectors, &queries, encoder.dim(), n)?;
        let rows = order.iter().map(|at| Ranked { row: candidates[*at], depth: 0 }).collect();
        // What each example is nearest to, of the rows chosen.
        let neighbours = cosines
            .iter()
            .map(|of_query| {
                let mut nearest: Vec<usize> = order.clone();
                nearest.sort_by(|a, b| of_query[*b].total_cmp(&of_query[*a]).then(a.cmp(b)));
                nearest.truncate(self.k);
                Neighbours {
                    ids: nearest.iter().map(|at| candidates[*at] as u32).collect(),
                    distances: nearest.iter().map(|at| 2.0 - 2.0 * of_query[*at]).collect(),
                }
            })
            .collect();
        Ok(Ranking { rows, neighbours })
    }
}

/// Unit vectors of the rows `wanted`, which are in order.
fn encode(pool: &Pool, wanted: &[usize], encoder: &dyn Encoder, progress: Progress) -> Result<Vec<f32>> {
    let task = progress.task("encode the candidates", wanted.len() as u64, "rows");
    let is_wanted: HashSet<usize> = wanted.iter().copied().collect();
    let (mut vectors, mut batch) = (Vec::with_capacity(wanted.len() * encoder.dim()), Vec::new());
    pool.for_each(|row, _, fields| {
        if is_wanted.contains(&row) {
            batch.push(fields.input);
        }
        if batch.len() == BATCH || row + 1 == pool.len() {
            if interrupt::requested() {
                return Err(Error::Interrupted("nothing was written; run the command again".to_string()));
            }
            let inputs: Vec<_> = batch.iter().map(String::as_str).collect();
            vectors.extend(encoder.encode(&inputs)?);
            task.advance(inputs.len() as u64);
            batch.clear();
        }
        Ok(())
    })?;
    normalise_rows(&mut vectors, encoder.dim());
    Ok(vectors)
}

/// `n` of the candidates' vectors, in the order in which they are taken, and each query's cosines with all.
fn by_location(
    vectors: &[f32],
    queries: &[f32],
    dim: usize,
    n: usize,
) -> Result<(Vec<usize>, Vec<Vec<f32>>)> {
    let count = vectors.len() / dim;
    let mut queries = queries.to_vec();
    normalise_rows(&mut queries, dim);
    let all = Tensor::from_slice(vectors, (count, dim), &Device::Cpu)?;
    let turned = all.t()?.contiguous()?;
    let cosines = Tensor::from_slice(&queries, (queries.len() / dim, dim), &Device::Cpu)?;
    let cosines = cosines.matmul(&turned)?.to_vec2::<f32>()?;
    let mut weight = vec![0f32; count];
    for row in &cosines {
        let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let shares: Vec<f32> = row.iter().map(|x| ((x - most) / TEMPERATURE).exp()).collect();
        let sum: f32 = shares.iter().sum();
        weight.iter_mut().zip(shares).for_each(|(weight, share)| *weight += share / sum);
    }
    // How near each candidate is to the nearest one taken.
    let mut near = vec![0f32; count];
    let like = |at: usize| -> Result<Vec<f32>> {
        Ok(all.narrow(0, at, 1)?.matmul(&turned)?.squeeze(0)?.to_vec1::<f32>()?)
    };
    let gain = |like: &[f32], near: &[f32]| -> f32 {
        like.iter().zip(near).zip(&weight).map(|((like, near), weight)| weight * (like - near).max(0.0)).sum()
    };
    // A gain only ever shrinks: what is on top with a gain that is up to date is the best (Minoux 1978).
    let mut heap = BinaryHeap::new();
    for block in (0..count).collect::<Vec<_>>().chunks(BATCH) {
        let likes = all.narrow(0, block[0], block.len())?.matmul(&turned)?.to_vec2::<f32>()?;
        heap.extend(
            block
                .iter()
                .zip(&likes)
                .map(|(at, like)| (Ordered(gain(like, &near).into()), Reverse(*at), 0usize)),
        );
    }
    let mut taken = Vec::with_capacity(n.min(count));
    while let Some((_, Reverse(at), when)) = heap.pop() {
        let mine = like(at)?;
        if when == taken.len() {
            near.iter_mut().zip(&mine).for_each(|(near, like)| *near = near.max(*like));
            taken.push(at);
            if taken.len() == n {
                break;
            }
        } else {
            heap.push((Ordered(gain(&mine, &near).into()), Reverse(at), taken.len()));
        }
    }
    Ok((taken, cosines))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(degrees: f32) -> [f32; 2] {
        [degrees.to_radians().cos(), degrees.to_radians().sin()]
    }

    /// What greedy facility location takes, by trying every candidate each time.
    fn plainly(vectors: &[f32], weight: &[f32], n: usize) -> Vec<usize> {
        let count = vectors.len() / 2;
        let like =
            |a: usize, b: usize| vectors[2 * a] * vectors[2 * b] + vectors[2 * a + 1] * vectors[2 * b + 1];
        let mut taken: Vec<usize> = Vec::new();
        for _ in 0..n {
            let value = |extra: usize| -> f32 {
                let near = |c: usize| taken.iter().chain([&extra]).map(|s| like(c, *s)).fold(0.0, f32::max);
                (0..count).map(|c| weight[c] * near(c)).sum()
            };
            let best =
                (0..count).filter(|c| !taken.contains(c)).max_by(|a, b| value(*a).total_cmp(&value(*b)));
            taken.extend(best);
        }
        taken
    }

    #[test]
    fn lazy_is_as_good_as_greedy_and_copies_are_not_taken_twice() {
        let degrees = [10.0, 10.0, 10.1, 10.2, 31.0, 47.0, 52.0, 180.0];
        let vectors: Vec<f32> = degrees.into_iter().flat_map(at).collect();
        let queries: Vec<f32> = [12.0, 50.0].into_iter().flat_map(at).collect();
        let (taken, cosines) = by_location(&vectors, &queries, 2, 4).unwrap();
        let weight: Vec<f32> = (0..degrees.len())
            .map(|c| {
                cosines
                    .iter()
                    .map(|row| {
                        (row[c] / TEMPERATURE).exp()
                            / row.iter().map(|x| (x / TEMPERATURE).exp()).sum::<f32>()
                    })
                    .sum()
            })
            .collect();
        assert_eq!(taken[..2], plainly(&vectors, &weight, 2)[..]);
        let near_ten = taken[..3].iter().filter(|at| **at < 4).count();
        assert_eq!(near_ten, 1, "copies of one row say nothing new: {taken:?}");
        assert!(!taken.contains(&7));
        assert_eq!(by_location(&vectors, &queries, 2, 8).unwrap().0.len(), 8);
    }
}
