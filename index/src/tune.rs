//! The least effort that finds enough.

use crate::topk::{Allow, Hit};
use crate::{Index, IndexError};

/// What [`Index::tune`] found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tuned {
    /// The breadth to search with; `None` where the kind's own is the best there is.
    pub breadth: Option<usize>,
    /// The recall that it has on the queries: less than what was asked for where no breadth
    /// reaches that.
    pub recall: f64,
}

impl Index {
    /// Finds the least [`breadth`](Index::breadth) with which searches for the `k` nearest rows
    /// have this recall: the mean share of the true `k` nearest that is found, rows as near as the
    /// last of them counted as found. `queries` `[queries, dim]` should be like those to come; a
    /// few hundred are enough. `allow` is as in [`search_batch`](Index::search_batch), such as to
    /// leave out the rows that queries were made from. The index itself is not changed.
    ///
    /// # Errors
    /// As [`search_batch`](Index::search_batch); no queries, or a recall that is not from 0 to 1.
    pub fn tune(&self, queries: &[f32], k: usize, recall: f64, allow: Allow) -> Result<Tuned, IndexError> {
        if !(0.0..=1.0).contains(&recall) || queries.is_empty() {
            return Err(IndexError::Tuning { recall, queries: queries.len() / self.dim() });
        }
        let truth = self.search_exactly(queries, k, allow)?;
        let queries = self.prepare(queries)?;
        let k = k.min(self.len());
        let found_with =
            |breadth| self.run(&queries, k, breadth, None, allow).map(|found| mean_recall(&found, &truth));
        let Some(breadths) = self.breadths(k) else {
            return Ok(Tuned { breadth: None, recall: found_with(None)? });
        };
        let (least, most) = breadths.into_inner();
        let (mut low, mut high) = (least, least);
        let mut reached = found_with(Some(high))?;
        while reached < recall && high < most {
            low = high;
            high = (2 * high).min(most);
            reached = found_with(Some(high))?;
        }
        // In steps of a tenth: more exactly, a sample of queries cannot tell.
        while reached >= recall && high - low > 1 + high / 10 {
            let middle = low.midpoint(high);
            let found = found_with(Some(middle))?;
            if found >= recall {
                (high, reached) = (middle, found);
            } else {
                low = middle;
            }
        }
        Ok(Tuned { breadth: Some(high), recall: reached })
    }
}

/// The mean share of what is to be found that was, or something as near: what searches have found,
/// against the truth ([`Index::search_exactly`]) for the same queries.
pub fn mean_recall(found: &[Vec<Hit>], truth: &[Vec<Hit>]) -> f64 {
    let each = found.iter().zip(truth).filter_map(|(found, truth)| {
        let last = truth.last()?;
        let good = found.iter().filter(|hit| hit.score >= last.score).count();
        Some(good.min(truth.len()) as f64 / truth.len() as f64)
    });
    let (sum, count) = each.fold((0.0, 0), |(sum, count), share| (sum + share, count + 1));
    if count == 0 { 1.0 } else { sum / f64::from(count) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recall_counts_what_is_near_enough() {
        let hits =
            |pairs: &[(u32, f32)]| pairs.iter().map(|&(id, score)| Hit { id, score }).collect::<Vec<_>>();
        let truth = [hits(&[(1, 0.9), (2, 0.5)]), hits(&[])];
        assert_eq!(mean_recall(&[hits(&[(1, 0.9), (7, 0.5)]), hits(&[])], &truth), 1.0);
        assert_eq!(mean_recall(&[hits(&[(1, 0.9), (7, 0.4)]), hits(&[])], &truth), 0.5);
        assert_eq!(mean_recall(&[hits(&[]), hits(&[])], &truth), 0.0);
    }
    use crate::{Builder, Metric, Spec};

    fn index(dir: &std::path::Path, spec: Spec, n: usize) -> Index {
        let mut builder = Builder::create(dir, 24, Metric::L2, &spec, 3).unwrap();
        builder.add(&rows(n, 0)).unwrap();
        builder.finish().unwrap();
        Index::open(dir).unwrap()
    }

    fn rows(n: usize, seed: usize) -> Vec<f32> {
        (seed..seed + n * 24)
            .map(|i| ((i * i % 10_007) as f32 * 0.37).sin() + (i % 24) as f32 / 24.0)
            .collect()
    }

    /// Fails when the search stops at the first breadth, or overshoots by more than its step.
    #[test]
    fn more_recall_takes_more_breadth_and_has_it() {
        for (spec, least) in [
            (Spec::Graph { degree: 32 }, 10),
            (Spec::RaBitQ { bits: 1 }, 10),
            (Spec::Ivf { lists: 100, graph: None, bits: 1 }, 1),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let mut index = index(dir.path(), spec, 6000);
            let queries = rows(100, 1 << 20);
            let mut before = 0;
            for wanted in [0.5, 0.9, 0.99] {
                let tuned = index.tune(&queries, 10, wanted, None).unwrap();
                assert!(tuned.recall >= wanted, "{spec} {wanted}: {tuned:?}");
                let breadth = tuned.breadth.unwrap();
                assert!(breadth >= before.max(least), "{spec} {wanted}: {breadth} after {before}");
                before = breadth;
                index.set_breadth(Some(breadth));
                let found = index.search_batch(&queries, 10, None).unwrap();
                let truth = index.search_exactly(&queries, 10, None).unwrap();
                assert_eq!(mean_recall(&found, &truth), tuned.recall);
            }
            assert!(before > least, "{spec}: every recall with the least breadth");
        }
    }

    #[test]
    fn what_has_no_breadth_and_what_makes_no_sense() {
        let dir = tempfile::tempdir().unwrap();
        let index = index(dir.path(), Spec::Flat, 50);
        let tuned = index.tune(&rows(5, 9), 10, 0.9, None).unwrap();
        assert_eq!(tuned, Tuned { breadth: None, recall: 1.0 });
        for (queries, recall) in [(vec![], 0.9), (rows(5, 9), 1.5), (rows(5, 9), f64::NAN)] {
            assert!(matches!(index.tune(&queries, 10, recall, None), Err(IndexError::Tuning { .. })));
        }
    }
}
