//! The walk: from node to node, always on to the most promising one.

use crate::Metric;
use crate::blocks::{BLOCK, Tables};
use crate::graph::layout::Layout;
use crate::rotation::Rotation;
use crate::rows::Rows;
use crate::simd::{Scale, prefetch};
use crate::topk::Hit;

/// What a walk needs: see [`Graph`](super::Graph).
#[derive(Clone, Copy)]
pub(crate) struct Nodes<'a> {
    pub records: &'a Rows,
    /// A record whose vector is the mean of all, and whose links are a sample of the nodes.
    pub root: &'a [f32],
    pub root_layout: Layout,
    pub layout: Layout,
    pub rotation: &'a Rotation,
}

/// Of the links of the root only so many are put on the beam: the best.
const STARTS: usize = 32;
/// Walks of so many nodes or fewer have no margin, and those of twice as many one of this much,
/// over the root of the dimension.
const NO_MARGIN: f32 = 24.0;
const PER_OCTAVE: f32 = 0.75;

/// How far a walk goes.
///
/// It keeps the `breadth` most promising nodes, and ends when all of those have been visited: for
/// an easy query long after the last neighbour has been found, for a hard one too soon. So nodes
/// are also measured against what has been found ("Distance adaptive beam search", Al-Jazzazi et
/// al., 2025; arXiv 2505.15636): one that seems farther than the last wanted so far by more than a
/// margin, a part of the squared distance, is not visited. That saves a third of the time at a
/// recall of 0.99.
///
/// How far off a node seems is an estimate, whose deviation is about `1.5 / sqrt(dim)` of the squared
/// distance. The margin is in proportion to that, and grows with the breadth so that both end a walk
/// about as often.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Effort {
    /// Nodes that are kept.
    breadth: usize,
    margin: f32,
}

impl Effort {
    /// With the margin of `breadth`, keeps `kept` nodes: more where a filter lets few be found.
    pub fn new(breadth: usize, kept: usize, dim: usize) -> Self {
        let margin = PER_OCTAVE * (breadth as f32 / NO_MARGIN).log2() / (dim as f32).sqrt();
        Self { breadth: kept, margin: margin.max(0.0) }
    }

    /// Visits all of the `breadth` most promising nodes.
    pub fn all(breadth: usize) -> Self {
        Self { breadth, margin: f32::INFINITY }
    }

    /// What a node must seem to score to be visited, where `last` is the score of the last that is
    /// wanted so far, or minus infinity while there is none.
    fn floor(self, metric: Metric, last: f32) -> f32 {
        // Half the squared distance under cosine, as its scores go. A large product is no
        // distance: how much it could be is not known.
        let distance = match metric {
            Metric::Cosine => 1.0 - last,
            Metric::L2 => -last,
            Metric::InnerProduct => return f32::NEG_INFINITY,
        };
        if self.margin == f32::INFINITY || distance == f32::INFINITY {
            return f32::NEG_INFINITY;
        }
        last - self.margin * distance
    }
}

/// Room for walks, one after the other.
pub(crate) struct Walk {
    beam: Beam,
    rotated: Vec<f32>,
    tables: Tables,
}

impl Walk {
    pub fn new(dim: usize) -> Self {
        let tables = Tables::new(&vec![0.0; dim]);
        Self { beam: Beam::default(), rotated: vec![0.0; dim], tables }
    }

    /// Walks towards `query`, keeping as many promising nodes as `effort` says, until all of those
    /// have been visited that are worth it. `visit` gets each visited node once, with its exact
    /// score, and gives back the score of the last that is wanted so far, or minus infinity.
    pub fn run(&mut self, nodes: Nodes, query: &[f32], effort: Effort, mut visit: impl FnMut(Hit) -> f32) {
        self.rotated.copy_from_slice(query);
        nodes.rotation.apply(&mut self.rotated);
        self.tables.fill(&self.rotated);
        self.beam.reset(effort.breadth);
        let rows = nodes.records.len();
        let mut reader = nodes.records.reader();

        let metric = nodes.records.metric();

        let base = metric.score(&nodes.root[..nodes.layout.dim], query);
        let mut floor = f32::NEG_INFINITY;
        self.beam.breadth = effort.breadth.min(STARTS);
        self.look(nodes.root_layout, nodes.root, base, rows, floor);
        self.beam.breadth = effort.breadth;
        // The next node is chosen, and its record asked for, before this one is read: its memory
        // is on the way meanwhile. That now and then something better turns up first costs less.
        let mut next = self.beam.next(floor);
        while let Some(id) = next {
            next = self.beam.next(floor);
            if let Some(next) = next {
                prefetch(nodes.records.record(next as usize));
            }
            let hit = reader.hit(id as usize, query, || self.beam.unvisited());
            floor = effort.floor(metric, visit(hit));
            self.look(nodes.layout, nodes.records.record(id as usize), hit.score, rows, floor);
            next = next.or_else(|| self.beam.next(floor));
        }
    }

    /// Puts the linked nodes of a record on the beam.
    #[inline]
    fn look(&mut self, layout: Layout, record: &[f32], base: f32, rows: usize, floor: f32) {
        let scale = Scale { unit: self.tables.unit, shift: self.tables.shift, base };
        let mut out = [0.0; BLOCK];
        for links in layout.links_of(record) {
            let mut passing =
                links.estimates(&self.tables.bytes, scale, self.beam.least().max(floor), &mut out);
            while passing != 0 {
                let slot = passing.trailing_zeros() as usize;
                passing &= passing - 1;
                let id = links.ids[slot];
                // No link, or what damage has made of one.
                if (id as usize) < rows {
                    self.beam.insert(Hit { id, score: out[slot] });
                }
            }
        }
    }
}

/// The most promising nodes, best first, visited ones among them.
///
/// A node is there once for each estimate that it got, from different neighbours, and the best one
/// counts. Nodes that many of the near ones link to so take more of the places, which finds more of
/// the true neighbours in as many visits than a beam on which each is there once.
#[derive(Default)]
struct Beam {
    /// Score, whether new, and id in one number, so that there is one array to shift: see
    /// [`entry`].
    entries: Vec<u64>,
    breadth: usize,
    /// All entries before this one have been visited.
    first: usize,
    visited: Visited,
}

/// Set in entries that have not been visited.
const NEW: u64 = 1 << 32;

/// An entry that sorts like its score, whose last bit is given up for [`NEW`].
fn entry(hit: Hit) -> u64 {
    let bits = hit.score.to_bits();
    // Negative numbers sort backwards by their bits, and before positive ones.
    let order = bits ^ ((bits as i32 >> 31) as u32 | 0x8000_0000);
    (u64::from(order & !1) << 32) | NEW | u64::from(hit.id)
}

/// The score of an entry, but for its last bit.
fn score(entry: u64) -> f32 {
    let order = (entry >> 32) as u32 & !1;
    f32::from_bits(order ^ ((!order as i32 >> 31) as u32 | 0x8000_0000))
}

impl Beam {
    fn reset(&mut self, breadth: usize) {
        self.entries.clear();
        self.breadth = breadth;
        self.first = 0;
        self.visited.reset(breadth);
    }

    /// What an estimate must reach to get on.
    fn least(&self) -> f32 {
        match self.entries.last() {
            Some(&last) if self.entries.len() == self.breadth => score(last),
            _ => f32::NEG_INFINITY,
        }
    }

    fn insert(&mut self, hit: Hit) {
        if hit.score.is_nan() || hit.score == f32::NEG_INFINITY {
            return;
        }
        let new = entry(hit);
        let full = self.entries.len() == self.breadth;
        if full && self.entries.last().is_some_and(|last| last >> 33 >= new >> 33)
            || self.visited.contains(hit.id)
        {
            return;
        }
        let place = self.entries.partition_point(|&other| other > new);
        if full {
            self.entries.pop();
        }
        self.entries.insert(place, new);
        self.first = self.first.min(place);
    }

    /// The best node that has not been visited, which it is from now on; none that scores less
    /// than `floor`.
    fn next(&mut self, floor: f32) -> Option<u32> {
        while let Some(ahead) = self.entries[self.first..].iter().position(|entry| entry & NEW != 0) {
            let place = self.first + ahead;
            if score(self.entries[place]) < floor {
                return None;
            }
            self.entries[place] &= !NEW;
            self.first = place + 1;
            let id = self.entries[place] as u32;
            if self.visited.insert(id) {
                return Some(id);
            }
        }
        None
    }

    fn unvisited(&self) -> impl Iterator<Item = usize> {
        self.entries[self.first..]
            .iter()
            .filter(|entry| *entry & NEW != 0)
            .map(|&entry| entry as u32 as usize)
    }
}

/// A set of nodes: open addressing in a table at most half full.
#[derive(Default)]
struct Visited {
    table: Vec<u32>,
    len: usize,
}

impl Visited {
    const EMPTY: u32 = u32::MAX;

    fn reset(&mut self, room: usize) {
        self.table.clear();
        self.table.resize((2 * room).next_power_of_two(), Self::EMPTY);
        self.len = 0;
    }

    fn place(&self, id: u32) -> usize {
        let mask = self.table.len() - 1;
        let mut place = (id.wrapping_mul(0x9E37_79B1) >> 7) as usize & mask;
        while self.table[place] != Self::EMPTY && self.table[place] != id {
            place = (place + 1) & mask;
        }
        place
    }

    fn contains(&self, id: u32) -> bool {
        self.table[self.place(id)] == id
    }

    /// False where it was there already.
    fn insert(&mut self, id: u32) -> bool {
        let place = self.place(id);
        if self.table[place] == id {
            return false;
        }
        self.table[place] = id;
        self.len += 1;
        if 2 * self.len > self.table.len() {
            let old = std::mem::take(&mut self.table);
            self.table.resize(2 * old.len(), Self::EMPTY);
            for id in old.into_iter().filter(|&id| id != Self::EMPTY) {
                let place = self.place(id);
                self.table[place] = id;
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_set_holds_what_was_put_in_as_it_grows() {
        let mut set = Visited::default();
        set.reset(1);
        let ids: Vec<u32> = (0..1000).map(|i| i * 7919 % 100_003).collect();
        for &id in &ids {
            assert!(set.insert(id) && !set.insert(id));
        }
        assert!(ids.iter().all(|&id| set.contains(id)) && !set.contains(100_004));
        set.reset(1);
        assert!(!set.contains(ids[0]));
    }

    #[test]
    fn entries_sort_like_scores_and_give_them_back() {
        let scores = [-f32::MAX, -3.5, -1e-30, 0.0, 1e-30, 0.25, 7.0, f32::INFINITY];
        assert!(scores.map(|score| entry(Hit { id: 9, score })).is_sorted());
        for given in scores {
            let back = score(entry(Hit { id: 9, score: given }));
            assert!(back == given || (back - given).abs() <= given.abs() * 3e-7, "{given} became {back}");
        }
    }

    #[test]
    fn the_beam_gives_its_best_once_each_and_forgets_the_worst() {
        let mut beam = Beam::default();
        beam.reset(3);
        for (id, score) in [(0, 1.0), (1, 3.0), (2, f32::NAN), (3, 2.0), (4, 0.5)] {
            beam.insert(Hit { id, score });
        }
        assert!((beam.least() - 1.0).abs() < 1e-6);
        assert_eq!(beam.next(f32::NEG_INFINITY), Some(1));
        for (id, score) in [(5, 8.0), (5, 9.0), (1, 10.0)] {
            beam.insert(Hit { id, score });
        }
        // 3, which scores 2, is the next.
        assert_eq!(beam.next(2.5), Some(5));
        assert_eq!([2.5, 1.5, 1.5].map(|floor| beam.next(floor)), [None, None, None]);
    }

    /// The margin is a part of the squared distance: fails where it is one of the score.
    #[test]
    fn a_margin_is_a_part_of_the_distance_of_what_has_been_found() {
        let dim = 100;
        let margin = |breadth| Effort::new(breadth, 1000, dim).margin;
        assert_eq!([margin(1), margin(24)], [0.0, 0.0]);
        assert!((margin(96) - 2.0 * PER_OCTAVE / 10.0).abs() < 1e-6 && margin(48) < margin(49));
        let effort = Effort { breadth: 9, margin: 0.5 };
        // At 60 degrees the squared distance of unit vectors is 1; half as much again is a cosine of 1/4.
        assert_eq!(effort.floor(Metric::Cosine, 0.5), 0.25);
        assert_eq!(effort.floor(Metric::L2, -4.0), -6.0);
        for nothing in [
            effort.floor(Metric::InnerProduct, 0.5),
            effort.floor(Metric::Cosine, f32::NEG_INFINITY),
            Effort { breadth: 9, margin: 0.0 }.floor(Metric::L2, f32::NEG_INFINITY),
            Effort::all(9).floor(Metric::Cosine, 0.5),
            Effort::all(9).floor(Metric::L2, 0.0),
        ] {
            assert_eq!(nothing, f32::NEG_INFINITY);
        }
    }
}
