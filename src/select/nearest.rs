//! Rankings out of the neighbours of a target's examples.

use super::selector::{Neighbours, Ranked, Ranking};
use super::{Pool, Target};
use crate::error::{Error, Result};

/// How the examples' neighbours become one ranking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// DEFT's union, made exact: by the best rank that any example gives a row, of equal ones by the smallest distance
    /// there, then by row number. The first n rows are all those that are among the d - 1 nearest of any example, for the
    /// smallest d whose union has n rows, and the nearest of those that are new at d.
    Union,
    /// RDS+'s round robin: the examples take turns, each taking its nearest row that none has taken.
    RoundRobin,
}

/// Ranks at least `n` rows with whatever finds the `k` nearest of each example: `k` of them, or as many as `n` needs.
pub fn rank(
    pool: &Pool,
    target: &Target,
    (n, k): (usize, Option<usize>),
    order: Order,
    search: impl Fn(usize) -> Result<Vec<Neighbours>>,
) -> Result<Ranking> {
    if k == Some(0) {
        return Err(Error::setting(
            "-k",
            "0 neighbours of each example choose nothing; ask for at least one",
        ));
    }
    // Examples of one task share neighbours, so twice the even share is a fair first guess.
    let guess = (2 * n).div_ceil(target.inputs().len()).max(8);
    let mut depth = k.unwrap_or(guess).min(pool.len());
    loop {
        let neighbours = search(depth)?;
        let rows = match order {
            Order::Union => union(&neighbours),
            Order::RoundRobin => round_robin(&neighbours),
        };
        let whole = match order {
            Order::Union => rows.len() >= n,
            // An example whose neighbours are all taken would have taken a further one.
            Order::RoundRobin => rows.len() >= n && !runs_dry(&neighbours, &rows[..n]),
        };
        if whole || k.is_some() || depth == pool.len() {
            return Ok(Ranking { rows, neighbours });
        }
        depth = (2 * depth).min(pool.len());
    }
}

/// By best rank, smallest distance there, row number.
fn union(neighbours: &[Neighbours]) -> Vec<Ranked> {
    let mut best: std::collections::HashMap<u32, (usize, f32)> = std::collections::HashMap::new();
    for found in neighbours {
        for (rank, (id, distance)) in found.ids.iter().zip(&found.distances).enumerate() {
            let entry = best.entry(*id).or_insert((rank, *distance));
            if (rank, *distance) < *entry {
                *entry = (rank, *distance);
            }
        }
    }
    let mut rows: Vec<_> = best.into_iter().map(|(id, (rank, distance))| (rank, distance, id)).collect();
    rows.sort_unstable_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)).then(a.2.cmp(&b.2)));
    rows.into_iter().map(|(depth, _, id)| Ranked { row: id as usize, depth }).collect()
}

fn round_robin(neighbours: &[Neighbours]) -> Vec<Ranked> {
    let mut taken = std::collections::HashSet::new();
    let mut next: Vec<_> = neighbours.iter().map(|found| found.ids.iter().enumerate()).collect();
    let mut rows = Vec::new();
    loop {
        let before = rows.len();
        for next in &mut next {
            if let Some((depth, id)) = next.find(|(_, id)| taken.insert(**id)) {
                rows.push(Ranked { row: *id as usize, depth });
            }
        }
        if rows.len() == before {
            return rows;
        }
    }
}

/// Whether an example has nothing left before the turn in which the last of `rows` was taken.
fn runs_dry(neighbours: &[Neighbours], rows: &[Ranked]) -> bool {
    let mut taken = std::collections::HashSet::new();
    let mut next: Vec<_> = neighbours.iter().map(|found| found.ids.iter()).collect();
    loop {
        for next in &mut next {
            if taken.len() == rows.len() {
                return false;
            }
            if next.find(|id| taken.insert(**id)).is_none() {
                return true;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(ids: &[u32], distances: &[f32]) -> Neighbours {
        Neighbours { ids: ids.to_vec(), distances: distances.to_vec() }
    }

    fn order(rows: Vec<Ranked>) -> Vec<(usize, usize)> {
        rows.into_iter().map(|ranked| (ranked.row, ranked.depth)).collect()
    }

    #[test]
    fn the_union_goes_by_rank_then_distance_then_row() {
        let neighbours = [
            found(&[7, 3, 5], &[0.1, 0.2, 0.9]),
            found(&[7, 2, 3], &[0.3, 0.4, 0.5]),
            found(&[1, 2, 8], &[0.2, 0.3, 0.6]),
        ];
        assert_eq!(order(union(&neighbours)), [(7, 0), (1, 0), (3, 1), (2, 1), (8, 2), (5, 2)]);
        let equal = [found(&[4], &[0.5]), found(&[2], &[0.5]), found(&[9], &[0.5])];
        assert_eq!(order(union(&equal)), [(2, 0), (4, 0), (9, 0)]);
    }

    #[test]
    fn in_a_round_robin_each_takes_its_next_untaken() {
        let neighbours = [found(&[7, 3, 5], &[0.1, 0.2, 0.9]), found(&[7, 3, 2], &[0.0, 0.1, 0.5])];
        let rows = round_robin(&neighbours);
        assert_eq!(order(rows.clone()), [(7, 0), (3, 1), (5, 2), (2, 2)]);
        assert!(!runs_dry(&neighbours, &rows));
        let uneven = [found(&[7], &[0.1]), found(&[3, 2, 1], &[0.0, 0.1, 0.5])];
        let rows = round_robin(&uneven);
        assert!(!runs_dry(&uneven, &rows[..2]) && runs_dry(&uneven, &rows[..3]));
    }
}
