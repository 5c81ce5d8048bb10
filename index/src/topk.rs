//! The best k of a stream of scored ids.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

/// Which rows may be found: called with the query's place in the batch and the row's id.
pub(crate) type Allow<'a> = Option<&'a (dyn Fn(usize, u32) -> bool + Sync)>;

/// For each query of a batch what a score must reach to be of use, where that is known before the
/// search: what has been found elsewhere.
pub(crate) type Least<'a> = Option<&'a [f32]>;

/// That of one query.
pub(crate) fn least_of(least: Least, query: usize) -> f32 {
    least.map_or(f32::NEG_INFINITY, |least| least[query])
}

/// Rows asked to find out how many a filter allows.
const SAMPLE: usize = 256;

/// How many rows of a sample a filter allows, and how many are in it. Rows that follow each other
/// may be of one document: they are taken from all over.
pub(crate) fn share(rows: usize, may: impl Fn(u32) -> bool) -> (usize, usize) {
    let sample = SAMPLE.min(rows);
    ((0..sample).filter(|i| may((i * rows / sample) as u32)).count(), sample)
}

/// One neighbour.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Hit {
    /// The row's number, in the order of adding.
    pub id: u32,
    /// How near it is; larger is nearer. Under L2 it is minus the squared distance.
    pub score: f32,
}

impl Eq for Hit {}

impl Ord for Hit {
    /// The greater hit comes first in a result: the larger score, then the smaller id.
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then(other.id.cmp(&self.id))
    }
}

impl PartialOrd for Hit {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Keeps the `k` greatest hits of those pushed.
#[derive(Clone)]
pub(crate) struct TopK {
    k: usize,
    /// The least of the kept ones is on top.
    heap: BinaryHeap<Reverse<Hit>>,
}

impl TopK {
    /// Room for `k` hits; the caller bounds `k` by the number of rows.
    pub fn new(k: usize) -> Self {
        Self { k, heap: BinaryHeap::with_capacity(k) }
    }

    /// What a score must reach to be kept: minus infinity until there are `k`.
    pub fn threshold(&self) -> f32 {
        if self.heap.len() < self.k {
            return f32::NEG_INFINITY;
        }
        self.heap.peek().map_or(f32::INFINITY, |worst| worst.0.score)
    }

    /// Offers a hit. A score of NaN, which only a damaged row can have, is never kept.
    pub fn push(&mut self, hit: Hit) {
        if hit.score.is_nan() {
            return;
        }
        if self.heap.len() < self.k {
            self.heap.push(Reverse(hit));
        } else if let Some(mut worst) = self.heap.peek_mut()
            && hit > worst.0
        {
            *worst = Reverse(hit);
        }
    }

    /// The kept hits, in no order.
    pub fn into_unsorted(self) -> impl Iterator<Item = Hit> {
        self.heap.into_iter().map(|hit| hit.0)
    }

    /// The kept hits, best first.
    pub fn into_sorted(self) -> Vec<Hit> {
        self.heap.into_sorted_vec().into_iter().map(|hit| hit.0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_best_and_breaks_ties_by_id() {
        let scores = [1.0, 3.0, 2.0, 3.0, f32::NAN, -1.0, 3.0];
        let mut top = TopK::new(3);
        assert_eq!(top.threshold(), f32::NEG_INFINITY);
        // Backwards, so that the smaller ids of equal scores come last.
        for (id, &score) in scores.iter().enumerate().rev() {
            top.push(Hit { id: id as u32, score });
        }
        assert_eq!(top.threshold(), 3.0);
        let ids: Vec<u32> = top.into_sorted().iter().map(|hit| hit.id).collect();
        assert_eq!(ids, [1, 3, 6]);
    }

    #[test]
    fn room_for_none_keeps_none() {
        let mut top = TopK::new(0);
        top.push(Hit { id: 0, score: 1.0 });
        assert_eq!(top.threshold(), f32::INFINITY);
        assert!(top.into_sorted().is_empty());
    }
}
