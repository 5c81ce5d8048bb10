//! Which of many near nodes to link to.

use crate::graph::near::Near;
use crate::graph::space::{Panels, Space};

/// How alike in direction, at most, a node must be to what is linked to already: the cosines that
/// one after the other is let through.
const COSINES: [f32; 10] = [0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, f32::INFINITY];

/// Room to choose in, for one node after the other.
#[derive(Default)]
pub(super) struct Chooser {
    panels: Panels,
    between: Vec<f32>,
    /// Of each candidate, whether a kept one is nearer to it than the node is.
    hidden: Vec<bool>,
    /// Of each candidate, the largest cosine between the way there and the way to a kept one.
    cosines: Vec<f32>,
    kept: Vec<bool>,
}

impl Chooser {
    /// Of `near` (nearest first) up to `degree`: those that no kept one is nearer to than the node
    /// itself, as in a relative neighbourhood graph.
    pub fn prune(&mut self, space: &Space, near: &[Near], degree: usize) -> Vec<Near> {
        self.begin(space, near);
        self.keep_visible(space, near, |_| true, degree)
    }

    /// The same among those of `near` that are `linked`, filled up to `degree` out of the others:
    /// the codes of all links are read anyway. First come those that lie in other directions than
    /// all that is kept, then ever more similar ones (section 4.2 of the SymphonyQG paper).
    pub fn choose(
        &mut self,
        space: &Space,
        near: &[Near],
        linked: impl Fn(usize) -> bool,
        degree: usize,
    ) -> Vec<Near> {
        if near.len() <= degree {
            return near.to_vec();
        }
        self.begin(space, near);
        let mut links = self.keep_visible(space, near, &linked, degree);
        for every in [false, true] {
            for most in COSINES {
                for place in 0..near.len() {
                    if links.len() == degree {
                        return links;
                    }
                    if !self.kept[place] && self.cosines[place] <= most && (every || linked(place)) {
                        self.keep(space, near, place);
                        links.push(near[place]);
                    }
                }
            }
        }
        links
    }

    fn begin(&mut self, space: &Space, near: &[Near]) {
        self.panels.fill(space, near.iter().map(|near| near.id));
        self.hidden.clear();
        self.hidden.resize(near.len(), false);
        self.kept.clear();
        self.kept.resize(near.len(), false);
        self.cosines.clear();
        self.cosines.resize(near.len(), -1.0);
    }

    fn keep_visible(
        &mut self,
        space: &Space,
        near: &[Near],
        linked: impl Fn(usize) -> bool,
        degree: usize,
    ) -> Vec<Near> {
        let mut links = Vec::with_capacity(degree);
        for (place, &candidate) in near.iter().enumerate() {
            if links.len() == degree {
                break;
            }
            if linked(place) && !self.hidden[place] {
                self.keep(space, near, place);
                links.push(candidate);
            }
        }
        links
    }

    /// Takes note of one more kept node.
    fn keep(&mut self, space: &Space, near: &[Near], place: usize) {
        self.kept[place] = true;
        self.panels.distances(space, &[near[place].id], &mut self.between);
        let a = near[place].distance;
        let notes = self.hidden.iter_mut().zip(&mut self.cosines);
        for ((other, &between), (hidden, cosine)) in near.iter().zip(&self.between).zip(notes) {
            let b = other.distance;
            *hidden |= between < b;
            // NaN, at no distance at all, is no direction.
            *cosine = cosine.max((a + b - between) / (2.0 * (a * b).sqrt()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Metric;
    use crate::scratch::Scratch;

    /// Around the node at the origin: a, b behind a, c to the other side, d beside b and farther.
    #[test]
    fn what_hides_behind_another_is_left_out_and_fills_up_by_direction() {
        let rows = [[0.0f32, 0.0], [1.0, 0.0], [1.5, 0.1], [-2.0, 0.0], [1.5, 1.5]].concat();
        let dir = tempfile::tempdir().unwrap();
        let space = Space::new(Metric::L2, &rows, 2, &Scratch::of(dir.path())).unwrap();
        let mut panels = Panels::default();
        let near = panels.nearest(&space, 0, &[1, 2, 3, 4], 9);
        let ids = |near: &[Near]| near.iter().map(|near| near.id).collect::<Vec<_>>();
        assert_eq!(ids(&near), [1, 2, 3, 4]);
        let mut chooser = Chooser::default();
        assert_eq!(ids(&chooser.prune(&space, &near, 9)), [1, 3]);
        assert_eq!(ids(&chooser.prune(&space, &near, 1)), [1]);
        // 4 lies at an angle of 45 degrees to 1, and 2 at 4.
        assert_eq!(ids(&chooser.choose(&space, &near, |_| true, 3)), [1, 3, 4]);
        assert_eq!(ids(&chooser.choose(&space, &near, |place| place == 1, 2)), [2, 3]);
        assert_eq!(ids(&chooser.choose(&space, &near, |_| true, 4)), [1, 2, 3, 4]);
    }
}
