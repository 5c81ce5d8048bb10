//! Near neighbours of all vectors at once, by partition and matrix products (PiPNN; arXiv
//! 2602.21247): vectors are divided among random leaders until a part is small, all pairs in it are
//! compared in one product, and this is done a few times over with other leaders. What one division
//! puts apart, another puts together.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use crate::artefact::ArtefactError;
use crate::graph::near::Near;
use crate::graph::space::{Panels, Space};
use crate::graph::table::{Table, pack, unpack};
use crate::mapped::SharedRows;
use crate::scratch::Scratch;

/// Vectors that are compared with each other in one product.
const LEAF: usize = 1024;
/// Leaders that a part is divided among, at most.
const LEADERS: usize = 512;
/// Leaders that a vector follows in the first division, and in those after it.
const FOLLOWS: [usize; 2] = [2, 1];
/// Times that everything is divided anew.
const ROUNDS: usize = 3;
/// Distances that are looked at at once.
const EIGHT: usize = 8;
/// Vectors that one task divides among leaders.
const DIVIDED: usize = 4096;
/// Vectors compared with others in one product.
const STRIP: usize = 64;

/// For every vector up to `count` near ones, nearest first. They are kept in `scratch` after each
/// round, under the name of `near`.
pub(super) fn near_neighbours(
    space: &Space,
    count: usize,
    seed: u64,
    scratch: &Scratch,
) -> Result<Table, ArtefactError> {
    let name = |round| format!("near-{round}");
    let done = (0..ROUNDS).rev().find(|&round| scratch.is_there(&name(round)));
    for round in done.map_or(0, |round| round + 1)..ROUNDS {
        let before = round.checked_sub(1).map(|round| scratch.path(&name(round)));
        scratch.make(&name(round), |path| {
            let lists = SharedRows::create(path, space.len(), count, before.as_deref())?;
            let all: Vec<u32> = (0..space.len() as u32).collect();
            let rng = ChaCha8Rng::seed_from_u64(seed ^ (round as u64 + 1) << 32);
            divide(space, all, 0, rng, &lists, count);
            Ok(())
        })?;
        if let Some(round) = round.checked_sub(1) {
            scratch.remove(&name(round));
        }
    }
    Table::of_one(&scratch.path(&name(ROUNDS - 1)), space.len(), count)
}

/// Divides a part among leaders, and those parts again, down to leaves.
fn divide(
    space: &Space,
    part: Vec<u32>,
    depth: usize,
    mut rng: ChaCha8Rng,
    lists: &SharedRows,
    count: usize,
) {
    if part.len() <= LEAF {
        compare(space, &part, lists, count);
        return;
    }
    let follows = FOLLOWS[depth.min(FOLLOWS.len() - 1)];
    let wanted = (follows * part.len()).div_ceil(LEAF / 2).clamp(2, LEADERS);
    let leaders: Vec<u32> = rand::seq::index::sample(&mut rng, part.len(), wanted.min(part.len()))
        .iter()
        .map(|i| part[i])
        .collect();
    let mut parts: Vec<Vec<u32>> = vec![Vec::new(); leaders.len()];
    let followed: Vec<Vec<u32>> = part
        .par_chunks(DIVIDED)
        .map(|part| {
            let (mut panels, mut distances) = (Panels::default(), Vec::new());
            panels.fill(space, leaders.iter().copied());
            let mut nearest = Vec::with_capacity(part.len() * follows);
            for ids in part.chunks(STRIP) {
                panels.distances(space, ids, &mut distances);
                for distances in distances.chunks_exact(panels.width()).take(ids.len()) {
                    let mut best = [(f32::INFINITY, 0u32); FOLLOWS[0]];
                    for (number, &distance) in distances.iter().enumerate() {
                        if distance < best[follows - 1].0 {
                            best[follows - 1] = (distance, number as u32);
                            best[..follows].sort_by(|a, b| a.0.total_cmp(&b.0));
                        }
                    }
                    nearest.extend(best[..follows].iter().map(|(_, number)| *number));
                }
            }
            nearest
        })
        .collect();
    // Counted first: a vector that grows takes up to twice the room.
    let mut sizes = vec![0; leaders.len()];
    followed.iter().flatten().for_each(|&leader| sizes[leader as usize] += 1);
    parts.iter_mut().zip(sizes).for_each(|(part, size)| part.reserve_exact(size));
    for (ids, followed) in part.chunks(DIVIDED).zip(&followed) {
        for (&id, leaders) in ids.iter().zip(followed.chunks_exact(follows)) {
            leaders.iter().for_each(|&leader| parts[leader as usize].push(id));
        }
    }
    drop((part, followed));
    // Where vectors are all alike, one leader may get everything: cut what does not get smaller.
    let mut small: Vec<u32> = Vec::new();
    let mut next: Vec<Vec<u32>> = Vec::new();
    for part in parts {
        if part.len() > LEAF * 3 / 4 {
            next.push(part);
        } else {
            // Small parts share a product.
            if small.len() + part.len() > LEAF {
                next.push(std::mem::take(&mut small));
            }
            small.extend(part);
        }
    }
    next.push(small);
    let whole = next.iter().map(Vec::len).sum::<usize>();
    let next: Vec<(Vec<u32>, u64)> = next
        .into_iter()
        .flat_map(|part| match part.len() * 10 > whole * 9 {
            true => part.chunks(LEAF).map(<[u32]>::to_vec).collect(),
            false => vec![part],
        })
        .map(|part| (part, rng.random()))
        .collect();
    next.into_par_iter().for_each(|(mut part, seed)| {
        // A vector may have come by two leaders whose small parts were put together.
        part.sort_unstable();
        part.dedup();
        divide(space, part, depth + 1, ChaCha8Rng::seed_from_u64(seed), lists, count);
    });
}

/// Compares all vectors of a leaf, and leaves each the nearest of the others.
fn compare(space: &Space, leaf: &[u32], lists: &SharedRows, count: usize) {
    if leaf.len() < 2 {
        return;
    }
    let (mut panels, mut distances) = (Panels::default(), Vec::new());
    panels.fill(space, leaf.iter().copied());
    let (mut nearest, mut list): (Vec<Near>, Vec<Near>) = (Vec::new(), Vec::new());
    for ids in leaf.chunks(STRIP) {
        panels.distances(space, ids, &mut distances);
        for (&id, distances) in ids.iter().zip(distances.chunks_exact(panels.width())) {
            lists.with(id as usize, |row| {
                // Only what betters the list so far is looked at again.
                list.clear();
                list.extend(unpack(row));
                let mut worst = if list.len() < count { f32::INFINITY } else { list[count - 1].distance };
                nearest.clear();
                for (distances, others) in distances.chunks(EIGHT).zip(leaf.chunks(EIGHT)) {
                    // Most are too far, which is seen of several at once.
                    if !distances.iter().fold(false, |any, distance| any | (*distance < worst)) {
                        continue;
                    }
                    for (&distance, &other) in distances.iter().zip(others) {
                        if distance < worst && other != id {
                            nearest.push(Near { distance, id: other });
                        }
                    }
                    if nearest.len() >= 2 * count {
                        nearest.select_nth_unstable_by(count - 1, Near::order);
                        nearest.truncate(count);
                        worst = nearest[count - 1].distance;
                    }
                }
                if !nearest.is_empty() {
                    list.extend_from_slice(&nearest);
                    keep_nearest(&mut list, count);
                    pack(&list, row);
                }
            });
        }
    }
}

/// Sorts, leaves each node once, and keeps `count`.
pub(super) fn keep_nearest(list: &mut Vec<Near>, count: usize) {
    // The distance of a pair is always the same, so that a node twice is one behind the other.
    list.sort_unstable_by(Near::order);
    list.dedup();
    list.truncate(count);
}
