//! Which of many near nodes to link to.

use crate::graph::candidates::Near;
use crate::simd::dot;

/// The vectors that a graph is built over, in whatever space its distances are taken.
///
/// The squared distance of a and b is `squares[a] + squares[b] - 2 (<a, b> + lift[a] lift[b])`. For
/// the inner product, the lift gives all rows the same length in one dimension more: there the
/// nearest to a query is the row with the largest inner product (Bachrach et al., RecSys 2014).
pub(super) struct Space<'a> {
    /// `[rows, dim]`.
    pub vectors: &'a [f32],
    pub dim: usize,
    /// Squared lengths, the lift included.
    pub squares: Vec<f32>,
    /// Empty where there is none.
    pub lift: Vec<f32>,
}

impl Space<'_> {
    pub fn len(&self) -> usize {
        self.squares.len()
    }

    pub fn vector(&self, id: u32) -> &[f32] {
        &self.vectors[id as usize * self.dim..][..self.dim]
    }

    /// The squared distance, from an inner product.
    #[inline]
    pub fn distance_of(&self, a: u32, b: u32, product: f32) -> f32 {
        let (a, b) = (a as usize, b as usize);
        let lifted = if self.lift.is_empty() { 0.0 } else { self.lift[a] * self.lift[b] };
        (self.squares[a] + self.squares[b] - 2.0 * (product + lifted)).max(0.0)
    }

    pub fn distance(&self, a: u32, b: u32) -> f32 {
        self.distance_of(a, b, dot(self.vector(a), self.vector(b)))
    }
}

/// Of `near` (sorted, nearest first) up to `degree`: those that no kept one is nearer to than the
/// node itself, as in a relative neighbourhood graph.
pub(super) fn prune(space: &Space, near: &[Near], degree: usize) -> Vec<Near> {
    let mut kept: Vec<Near> = Vec::with_capacity(degree);
    for &candidate in near {
        if kept.len() == degree {
            break;
        }
        if !kept.iter().any(|kept| space.distance(kept.id, candidate.id) < candidate.distance) {
            kept.push(candidate);
        }
    }
    kept
}

/// Fills `kept` up to `degree` out of `near` (sorted, nearest first), which may hold the kept ones
/// too: the codes of all links are read anyway. First come those that lie in other directions than
/// all that is kept, then ever more similar ones (section 4.2 of the SymphonyQG paper).
pub(super) fn fill(space: &Space, near: &[Near], kept: &mut Vec<Near>, degree: usize) {
    let mut others: Vec<Other> = near
        .iter()
        .filter(|near| !kept.iter().any(|kept| kept.id == near.id))
        .map(|&near| Other { near, cosine: -1.0 })
        .collect();
    if kept.len() + others.len() <= degree {
        kept.extend(others.iter().map(|other| other.near));
        return;
    }
    kept.iter().for_each(|kept| turn_towards(space, kept, &mut others));
    for most in [0.5, 0.6, 0.7, 0.8, 0.9, f32::INFINITY] {
        let mut i = 0;
        while i < others.len() {
            if kept.len() == degree {
                return;
            }
            if others[i].cosine > most {
                i += 1;
                continue;
            }
            let near = others.remove(i).near;
            turn_towards(space, &near, &mut others);
            kept.push(near);
        }
    }
}

/// A node that might be linked to.
struct Other {
    near: Near,
    /// The largest cosine between the way there and the way to a kept node.
    cosine: f32,
}

/// Takes note of one more kept node.
fn turn_towards(space: &Space, kept: &Near, others: &mut [Other]) {
    for other in others {
        let (a, b) = (kept.distance, other.near.distance);
        let between = space.distance(kept.id, other.near.id);
        // NaN, at no distance at all, is no direction.
        other.cosine = other.cosine.max((a + b - between) / (2.0 * (a * b).sqrt()));
    }
}
