//! Exact search: every row, every query.
//!
//! A batch goes through blocked matrix products. Their rounding depends on the machine and on the
//! blocks, so they only sieve: whatever comes within rounding error of the worst kept hit is
//! scored again by [`Table::hit`], and only that score is kept. The result is therefore the same
//! for one query or many, on any number of threads.

use std::borrow::Cow;

use rayon::prelude::*;

use crate::metric::{Metric, dot};
use crate::product::inner_products;
use crate::rows::Rows;
use crate::topk::{Allow, Hit, TopK};

/// Rows that one task goes through: the grain of parallel work.
const SEGMENT: usize = 8192;
/// Rows in one matrix product: with 384 numbers each they fill half a megabyte of cache.
const BLOCK: usize = 256;
/// Queries in one matrix product.
const GROUP: usize = 64;
/// Below so many queries the product is not worth its preparation.
const FEW: usize = 4;

/// Rows of `f32`, or that stand for such, all of which a search reads.
pub(crate) trait Table: Sync {
    /// Number of rows.
    fn len(&self) -> usize;
    /// Numbers in a row; not 0.
    fn dim(&self) -> usize;
    fn metric(&self) -> Metric;
    /// The exact score of row `id` with a prepared query.
    fn hit(&self, id: usize, query: &[f32]) -> Hit;
    /// Rows `first..first + count`, end to end.
    fn block(&self, first: usize, count: usize) -> Cow<'_, [f32]>;
}

impl Table for Rows {
    fn len(&self) -> usize {
        self.len()
    }

    fn dim(&self) -> usize {
        self.dim()
    }

    fn metric(&self) -> Metric {
        self.metric()
    }

    fn hit(&self, id: usize, query: &[f32]) -> Hit {
        self.hit(id, query)
    }

    fn block(&self, first: usize, count: usize) -> Cow<'_, [f32]> {
        self.block(first, count)
    }
}

/// The `k` nearest rows of each prepared query; `k` is at most the number of rows.
pub(crate) fn search<T: Table>(rows: &T, queries: &[f32], k: usize, allow: Allow) -> Vec<Vec<Hit>> {
    let dim = rows.dim();
    let groups = queries.par_chunks(GROUP * dim).enumerate();
    let found: Vec<Vec<Vec<Hit>>> = groups
        .map(|(group, queries)| {
            let segments: Vec<Vec<TopK>> = (0..rows.len().div_ceil(SEGMENT))
                .into_par_iter()
                .map(|segment| {
                    let first = segment * SEGMENT;
                    let count = SEGMENT.min(rows.len() - first);
                    let mut best: Vec<TopK> =
                        (0..queries.len() / dim).map(|_| TopK::new(k.min(count))).collect();
                    if best.len() < FEW {
                        scan_few(rows, first, count, queries, group * GROUP, allow, &mut best);
                    } else {
                        scan_many(rows, first, count, queries, group * GROUP, allow, &mut best);
                    }
                    best
                })
                .collect();
            merge(segments, queries.len() / dim, k)
        })
        .collect();
    found.into_iter().flatten().collect()
}

fn merge(segments: Vec<Vec<TopK>>, queries: usize, k: usize) -> Vec<Vec<Hit>> {
    let mut merged: Vec<TopK> = (0..queries).map(|_| TopK::new(k)).collect();
    for segment in segments {
        for (all, part) in merged.iter_mut().zip(segment) {
            part.into_sorted().into_iter().for_each(|hit| all.push(hit));
        }
    }
    merged.into_iter().map(TopK::into_sorted).collect()
}

fn scan_few<T: Table>(
    rows: &T,
    first: usize,
    count: usize,
    queries: &[f32],
    first_query: usize,
    allow: Allow,
    best: &mut [TopK],
) {
    for id in first..first + count {
        for (q, (query, best)) in queries.chunks_exact(rows.dim()).zip(&mut *best).enumerate() {
            let hit = rows.hit(id, query);
            if hit.score >= best.threshold() && allow.is_none_or(|allow| allow(first_query + q, hit.id)) {
                best.push(hit);
            }
        }
    }
}

fn scan_many<T: Table>(
    rows: &T,
    first: usize,
    count: usize,
    queries: &[f32],
    first_query: usize,
    allow: Allow,
    best: &mut [TopK],
) {
    let dim = rows.dim();
    let query_norms: Vec<f32> = queries.chunks_exact(dim).map(|query| dot(query, query).sqrt()).collect();
    let mut products = vec![0.0; best.len() * BLOCK];
    for block_first in (first..first + count).step_by(BLOCK) {
        let block_len = BLOCK.min(first + count - block_first);
        let block = rows.block(block_first, block_len);
        let block = block.as_ref();
        let squares: Vec<f32> = block.chunks_exact(dim).map(|row| dot(row, row)).collect();
        // `f32::max` passes over NaN, which a damaged row may hold.
        let longest = squares.iter().copied().fold(0.0, f32::max).sqrt();
        let products = &mut products[..best.len() * block_len];
        inner_products(queries, block, dim, products);
        for (q, products) in products.chunks_exact(block_len).enumerate() {
            let query = &queries[q * dim..][..dim];
            let slack = rounding(rows.metric(), dim, longest, query_norms[q]);
            let mut bar = best[q].threshold() - slack;
            for r in 0..block_len {
                let score = match rows.metric() {
                    Metric::InnerProduct | Metric::Cosine => products[r],
                    Metric::L2 => 2.0 * products[r] - squares[r] - query_norms[q] * query_norms[q],
                };
                let id = block_first + r;
                if score < bar || allow.is_some_and(|allow| !allow(first_query + q, id as u32)) {
                    continue;
                }
                best[q].push(rows.hit(id, query));
                bar = best[q].threshold() - slack;
            }
        }
    }
}

/// How far the score from a matrix product can be from that of [`Metric::score`]: each sum of
/// `dim` products is off by at most `dim` units of rounding times the product of the lengths
/// (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1), in any order of summing.
fn rounding(metric: Metric, dim: usize, row: f32, query: f32) -> f32 {
    let size = match metric {
        Metric::InnerProduct | Metric::Cosine => row * query,
        Metric::L2 => (row + query) * (row + query),
    };
    // EPSILON is two units of rounding; the rest is margin for the few steps outside the sums.
    2.0 * (dim as f32 + 4.0) * f32::EPSILON * size + f32::MIN_POSITIVE
}
