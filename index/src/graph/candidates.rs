//! Near neighbours of all vectors at once, by partition and matrix products (PiPNN; arXiv
//! 2602.21247): vectors are divided among random leaders until a part is small, all pairs in it are
//! compared in one product, and this is done a few times over with other leaders. What one division
//! puts apart, another puts together.

use std::cmp::Ordering;
use std::sync::Mutex;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use crate::graph::prune::Space;
use crate::product::inner_products;

/// Vectors that are compared with each other in one product.
const LEAF: usize = 1024;
/// Leaders that a part is divided among, at most.
const LEADERS: usize = 512;
/// Leaders that a vector follows in the first division, and in those after it.
const FOLLOWS: [usize; 2] = [2, 1];
/// Times that everything is divided anew.
const ROUNDS: usize = 3;
/// Vectors compared with leaders in one product.
const STRIP: usize = 256;

/// A node at a squared distance.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Near {
    pub distance: f32,
    pub id: u32,
}

impl Near {
    pub fn order(&self, other: &Self) -> Ordering {
        self.distance.total_cmp(&other.distance).then(self.id.cmp(&other.id))
    }
}

/// For every vector up to `count` near ones, nearest first.
pub(super) fn near_neighbours(space: &Space, count: usize, seed: u64) -> Vec<Vec<Near>> {
    let lists: Vec<Mutex<Vec<Near>>> =
        (0..space.len()).map(|_| Mutex::new(Vec::with_capacity(count))).collect();
    for round in 0..ROUNDS {
        let all: Vec<u32> = (0..space.len() as u32).collect();
        let rng = ChaCha8Rng::seed_from_u64(seed ^ (round as u64 + 1) << 32);
        divide(space, all, 0, rng, &lists, count);
    }
    lists.into_par_iter().map(|list| list.into_inner().unwrap_or_default()).collect()
}

/// Divides a part among leaders, and those parts again, down to leaves.
fn divide(
    space: &Space,
    part: Vec<u32>,
    depth: usize,
    mut rng: ChaCha8Rng,
    lists: &[Mutex<Vec<Near>>],
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
    let leader_rows = gather(space, &leaders);
    let followed: Vec<Vec<u32>> = part
        .par_chunks(STRIP)
        .map(|ids| {
            let mut products = vec![0.0; ids.len() * leaders.len()];
            inner_products(&gather(space, ids), &leader_rows, space.dim, &mut products);
            let mut nearest = Vec::with_capacity(ids.len() * follows);
            for (&id, products) in ids.iter().zip(products.chunks_exact(leaders.len())) {
                let mut best = [(f32::INFINITY, 0u32); FOLLOWS[0]];
                for (number, (&leader, &product)) in leaders.iter().zip(products).enumerate() {
                    let distance = space.distance_of(id, leader, product);
                    if distance < best[follows - 1].0 {
                        best[follows - 1] = (distance, number as u32);
                        best[..follows].sort_by(|a, b| a.0.total_cmp(&b.0));
                    }
                }
                nearest.extend(best[..follows].iter().map(|(_, number)| *number));
            }
            nearest
        })
        .collect();
    for (ids, followed) in part.chunks(STRIP).zip(&followed) {
        for (&id, leaders) in ids.iter().zip(followed.chunks_exact(follows)) {
            leaders.iter().for_each(|&leader| parts[leader as usize].push(id));
        }
    }
    drop(part);
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

fn gather(space: &Space, ids: &[u32]) -> Vec<f32> {
    ids.iter().flat_map(|&id| space.vector(id)).copied().collect()
}

/// Compares all vectors of a leaf, and leaves each the nearest of the others.
fn compare(space: &Space, leaf: &[u32], lists: &[Mutex<Vec<Near>>], count: usize) {
    if leaf.len() < 2 {
        return;
    }
    let rows = gather(space, leaf);
    let mut products = vec![0.0; STRIP.min(leaf.len()) * leaf.len()];
    let mut nearest: Vec<Near> = Vec::new();
    for (strip, ids) in leaf.chunks(STRIP).enumerate() {
        let products = &mut products[..ids.len() * leaf.len()];
        let own = &rows[strip * STRIP * space.dim..][..ids.len() * space.dim];
        inner_products(own, &rows, space.dim, products);
        for (&id, products) in ids.iter().zip(products.chunks_exact(leaf.len())) {
            let Ok(mut list) = lists[id as usize].lock() else { continue };
            // Only what betters the list so far is looked at again.
            let mut worst = if list.len() < count { f32::INFINITY } else { list[count - 1].distance };
            nearest.clear();
            for (&other, &product) in leaf.iter().zip(products) {
                let distance = space.distance_of(id, other, product);
                if distance < worst && other != id {
                    nearest.push(Near { distance, id: other });
                    if nearest.len() == 4 * count {
                        nearest.select_nth_unstable_by(count, Near::order);
                        nearest.truncate(count);
                        worst = nearest.iter().map(|near| near.distance).fold(0.0, f32::max);
                    }
                }
            }
            list.extend_from_slice(&nearest);
            keep_nearest(&mut list, count);
        }
    }
}

/// Sorts, leaves each node once, and keeps `count`.
pub(super) fn keep_nearest(list: &mut Vec<Near>, count: usize) {
    // The same pair in two products may differ in the last bit: the smaller one counts, so that
    // what is kept does not depend on which came first.
    list.sort_unstable_by(|a, b| a.id.cmp(&b.id).then(a.distance.total_cmp(&b.distance)));
    list.dedup_by_key(|near| near.id);
    list.sort_unstable_by(Near::order);
    list.truncate(count);
    list.shrink_to(count);
}
