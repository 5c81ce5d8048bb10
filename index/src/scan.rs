//! Blocks of one-bit codes as they lie in a file, and a search through them: estimate every row,
//! score exactly the few that may be among the nearest. `RaBitQ` scans all blocks so, an inverted
//! file those of the lists it probes.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use crate::blocks::{self, BLOCK, CONFIDENCE, Factors, Tables};
use crate::mapped::as_bytes;
use crate::metric::{Metric, dot};
use crate::planes;
use crate::rotation::Rotation;
use crate::rows::Rows;
use crate::simd::{Scale, estimates};
use crate::topk::{Hit, TopK};

/// Numbers at the end of a block that bound its factors: the largest error and the largest scale,
/// then zeros.
const BOUNDS: usize = 16;

/// How a block lies in the file, in units of four bytes: codes, `add` `[32]`, `scale` `[32]`,
/// `error` `[32]`, bounds `[16]`.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    pub codes: usize,
    pub block: usize,
}

impl Shape {
    pub fn new(dim: usize) -> Self {
        let codes = blocks::code_bytes(dim) / 4;
        Self { codes, block: codes + 3 * BLOCK + BOUNDS }
    }
}

/// What the codes of a block are relative to.
#[derive(Clone, Copy)]
pub(crate) struct Centre<'a> {
    pub vector: &'a [f32],
    /// What queries come with is rotated relative to another point m; this is `vector - m`,
    /// rotated alike. `scale` times its sum of signs then goes into `add` (as in the records of a
    /// graph: see `graph::layout`), and one table of the query serves for blocks of any centre.
    pub turned: Option<&'a [f32]>,
}

/// Writes blocks.
pub(crate) struct Encoder<'a> {
    pub rows: &'a Rows,
    pub rotation: &'a Rotation,
    /// Bits a dimension; those after the first go into planes.
    pub bits: usize,
}

impl Encoder<'_> {
    /// A block of at most 32 rows, and their planes where there are any. Places without a row have
    /// `vacant` for their `add`.
    pub fn encode(
        &self,
        ids: impl ExactSizeIterator<Item = usize>,
        centre: Centre,
        vacant: f32,
    ) -> (Vec<f32>, Vec<u64>) {
        let (dim, metric) = (self.rows.dim(), self.rows.metric());
        let shape = Shape::new(dim);
        // Relative to a centre of many, a row has one word more: see below.
        let more = usize::from(centre.turned.is_some());
        let words = if self.bits > 1 { planes::words(dim, self.bits) + more } else { 0 };
        let mut codes = vec![0; 4 * shape.codes];
        let mut factors = vec![0.0; 3 * BLOCK + BOUNDS];
        let mut row_planes = vec![0; ids.len() * words];
        let mut residual = vec![0.0; dim];
        factors[ids.len()..BLOCK].fill(vacant);
        for (slot, id) in ids.enumerate() {
            let row = self.rows.row(id);
            residual.iter_mut().zip(row.iter().zip(centre.vector)).for_each(|(r, (x, c))| *r = x - c);
            let (square, with_centre) = (dot(&residual, &residual), dot(&residual, centre.vector));
            self.rotation.apply(&mut residual);
            let (absolute, signs) = blocks::sums_of_signs(&residual, centre.turned.unwrap_or(&residual));
            blocks::write_signs(&residual, slot, &mut codes);
            let Factors { mut add, scale, error } =
                blocks::factors(metric, dim, square, with_centre, absolute);
            if centre.turned.is_some() {
                add -= scale * signs;
            }
            factors[slot] = add;
            factors[BLOCK + slot] = scale;
            factors[2 * BLOCK + slot] = error;
            let bounds = &mut factors[3 * BLOCK..];
            bounds[0] = bounds[0].max(error);
            bounds[1] = bounds[1].max(scale);
            if words > 0 {
                let planes = &mut row_planes[slot * words..][..words];
                planes::encode(metric, &residual, square, self.bits, planes);
                if let Some(turned) = centre.turned {
                    // `add` has the centre's part by the first bit: what to add where it is to be
                    // by all bits.
                    let (part, _) = planes::estimate(planes, self.bits, turned, planes::total(turned));
                    planes[words - 1] = u64::from((scale * signs - part).to_bits());
                }
            }
        }
        let codes = codes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        (codes.chain(factors).collect(), row_planes)
    }
}

/// A query, ready to meet blocks.
pub(crate) struct Query<'a> {
    /// As it came.
    pub given: &'a [f32],
    /// Less the centre, rotated; and what [`planes`] need of that.
    pub rotated: Vec<f32>,
    pub total: f32,
    pub tables: Tables,
    base: f32,
    /// To the centre.
    distance: f32,
}

impl<'a> Query<'a> {
    /// With what blocks of codes are relative to, and how many bits they have.
    pub fn new(metric: Metric, given: &'a [f32], centre: &[f32], rotation: &Rotation, bits: usize) -> Self {
        let mut rotated: Vec<f32> = given.iter().zip(centre).map(|(q, c)| q - c).collect();
        let distance = dot(&rotated, &rotated).sqrt();
        let base = blocks::query_base(metric, given, centre, &rotated);
        rotation.apply(&mut rotated);
        let total = if bits > 1 { planes::total(&rotated) } else { 0.0 };
        Self { given, tables: Tables::new(&rotated), rotated, total, base, distance }
    }

    /// For blocks that are relative to the centre itself.
    pub fn probe(&self) -> Probe<'_> {
        Probe::new(&self.tables, self.base, self.distance)
    }
}

/// A query, ready to meet blocks of one centre.
#[derive(Clone, Copy)]
pub(crate) struct Probe<'a> {
    tables: &'a Tables,
    pub base: f32,
    /// What a row's `error` and `scale` are multiplied with to bound the error of its score.
    pub error: f32,
    pub rounding: f32,
    /// Which centre it is, for the caller.
    pub list: u32,
}

impl<'a> Probe<'a> {
    /// With the part of the score that the query and the centre make, and the distance of the two.
    pub fn new(tables: &'a Tables, base: f32, distance: f32) -> Self {
        Self { tables, base, error: CONFIDENCE * distance, rounding: CONFIDENCE * tables.rounding(), list: 0 }
    }
}

/// A row that may be among the nearest, by the most that it can reach.
pub(crate) struct Candidate {
    highest: f32,
    pub id: u32,
    /// What its score is beside the part that codes estimate; NaN once all bits have been seen.
    pub add: f32,
    /// The probe's.
    pub list: u32,
}

impl PartialEq for Candidate {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}
impl Eq for Candidate {}
impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> Ordering {
        self.highest.total_cmp(&other.highest).then(other.id.cmp(&self.id))
    }
}

/// What a query has found so far.
pub(crate) struct Found {
    /// The k highest of the scores that the bounds promise at least.
    promised: TopK,
    candidates: Vec<Candidate>,
    /// What scores less is of no use to the caller.
    least: f32,
}

impl Found {
    /// For the `k` nearest.
    pub fn new(k: usize) -> Self {
        Self::above(k, f32::NEG_INFINITY)
    }

    /// For those of the `k` nearest that score no less than `least`.
    pub fn above(k: usize, least: f32) -> Self {
        Self { promised: TopK::new(k), candidates: Vec::new(), least }
    }

    /// For the nearest of these rows and of others that are looked through next: what these promise counts there too.
    pub fn after(others: &Self) -> Self {
        Self { promised: others.promised.clone(), candidates: Vec::new(), least: others.least }
    }

    /// Counts in that what scores less than this is of no use.
    pub fn raise(&mut self, least: f32) {
        self.least = self.least.max(least);
    }

    /// What a row must reach to be among them, as far as is known.
    pub fn threshold(&self) -> f32 {
        self.promised.threshold().max(self.least)
    }

    /// Takes in the rows of a block that may be among the nearest. `id_of` gives the row in each
    /// place: it is none where it is not less than `rows`.
    #[inline]
    pub fn look(
        &mut self,
        shape: Shape,
        block: &[f32],
        probe: Probe,
        rows: usize,
        id_of: impl Fn(usize) -> u32,
        may: impl Fn(u32) -> bool,
    ) {
        let (codes, rest) = block.split_at(shape.codes);
        let (factors, bounds) = rest.split_at(3 * BLOCK);
        // No row of the block is further off than its bounds allow.
        let slack = probe.error * bounds[0] + probe.rounding * bounds[1];
        let scale = Scale { unit: probe.tables.unit, shift: probe.tables.shift, base: probe.base };
        let least = self.threshold() - slack;
        let mut out = [0.0; BLOCK];
        let mut passing = estimates(as_bytes(codes), &probe.tables.bytes, factors, scale, least, &mut out);
        while passing != 0 {
            let slot = passing.trailing_zeros() as usize;
            passing &= passing - 1;
            let error = probe.error * factors[2 * BLOCK + slot] + probe.rounding * factors[BLOCK + slot];
            let (lowest, highest) = (out[slot] - error, out[slot] + error);
            let id = id_of(slot);
            if id as usize >= rows || highest < self.threshold() || !may(id) {
                continue;
            }
            self.promised.push(Hit { id, score: lowest });
            // Without a number to go by, the row has to be scored.
            let highest = if highest.is_nan() { f32::INFINITY } else { highest };
            self.candidates.push(Candidate {
                highest,
                id,
                add: probe.base + factors[slot],
                list: probe.list,
            });
        }
    }

    /// Forgets what has turned out not to be among the nearest.
    pub fn prune(&mut self) {
        let least = self.threshold();
        self.candidates.retain(|candidate| candidate.highest >= least);
    }

    /// Takes over what another has found among other rows.
    pub fn merge(&mut self, other: Self) {
        other.promised.into_unsorted().for_each(|hit| self.promised.push(hit));
        self.candidates.extend(other.candidates);
    }

    /// Scores candidates, best first, until none of the rest can be among the `k` nearest, or
    /// `most` have been. `refine` tells the most that a row can reach from more than one bit.
    pub fn decide(
        mut self,
        rows: &Rows,
        query: &[f32],
        k: usize,
        most: usize,
        refine: Option<&dyn Fn(&Candidate) -> f32>,
    ) -> Vec<Hit> {
        self.prune();
        let mut candidates = BinaryHeap::from(self.candidates);
        let mut best = TopK::new(k);
        let mut scored = 0;
        let mut reader = rows.reader();
        while let Some(candidate) = candidates.pop() {
            if candidate.highest < best.threshold().max(self.least) || scored >= most {
                break;
            }
            match refine {
                Some(refine) if !candidate.add.is_nan() => {
                    let highest = refine(&candidate);
                    let highest = if highest.is_nan() { f32::INFINITY } else { highest };
                    candidates.push(Candidate { highest, add: f32::NAN, ..candidate });
                }
                _ => {
                    let ahead = || candidates.iter().take(most - scored).map(|next| next.id as usize);
                    best.push(reader.hit(candidate.id as usize, query, ahead));
                    scored += 1;
                }
            }
        }
        best.into_sorted()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::mapped::write_numbers;

    /// Rows that cannot reach what the caller has are no candidates, and those that do are: fails
    /// where `least` is not looked at, or looked at for the lower bound.
    #[test]
    fn what_is_of_no_use_is_no_candidate() {
        let dim = 64;
        let points: Vec<f32> = (0..BLOCK * dim).map(|i| ((i * i % 977) as f32 * 0.11).sin()).collect();
        let mut file = tempfile::tempfile().unwrap();
        write_numbers(&mut file, &points).unwrap();
        let rows = Rows::of(&file, "test".as_ref(), BLOCK, dim, Metric::L2).unwrap();
        let (rotation, centre) = (Rotation::new(dim, 1), crate::rabitq::mean(&rows));
        let encoder = Encoder { rows: &rows, rotation: &rotation, bits: 1 };
        let (block, _) = encoder.encode(0..BLOCK, Centre { vector: &centre, turned: None }, 0.0);
        let query = Query::new(Metric::L2, &points[..dim], &centre, &rotation, 1);
        let mut scores: Vec<f32> = (0..BLOCK).map(|id| rows.hit(id, query.given).score).collect();
        scores.sort_unstable_by(|a, b| b.total_cmp(a));
        let found = |least| {
            let mut found = Found::above(BLOCK, least);
            found.look(Shape::new(dim), &block, query.probe(), BLOCK, |slot| slot as u32, |_| true);
            found
        };
        assert_eq!(found(f32::NEG_INFINITY).candidates.len(), BLOCK);
        let some = found(scores[4]);
        assert!(
            some.candidates.len() < BLOCK && some.candidates.iter().all(|c| c.highest >= scores[4]),
            "{}",
            some.candidates.len()
        );
        let best = some.decide(&rows, query.given, BLOCK, usize::MAX, None);
        assert!(best.len() >= 5 && best.iter().zip(&scores).take(5).all(|(hit, score)| hit.score == *score));
    }

    /// Over many rotations estimates are right on average, and within the bound but for one in so
    /// many, relative to a centre that the query was rotated for and relative to one that it was
    /// not. Fails when the centre's part is left out of `add`, or added instead.
    #[test]
    fn estimates_are_unbiased_and_bounded_for_any_centre() {
        let dim = 100;
        let vector = |seed: usize, scale: f32| -> Vec<f32> {
            (0..dim).map(|i| scale * ((i * 31 + seed * 17) as f32 * 0.61).sin()).collect()
        };
        let mean = vector(1000, 2.0);
        let plus = |a: &[f32], b: &[f32]| -> Vec<f32> { a.iter().zip(b).map(|(a, b)| a + b).collect() };
        let minus = |a: &[f32], b: &[f32]| -> Vec<f32> { a.iter().zip(b).map(|(a, b)| a - b).collect() };
        let other = plus(&mean, &vector(2000, 1.0));
        let points: Vec<f32> = (0..BLOCK).flat_map(|row| plus(&other, &vector(row, 0.5))).collect();
        let mut file = tempfile::tempfile().unwrap();
        write_numbers(&mut file, &points).unwrap();
        file.flush().unwrap();
        let query = plus(&other, &vector(3000, 0.7));
        for metric in [Metric::InnerProduct, Metric::L2] {
            let rows = Rows::of(&file, "test".as_ref(), BLOCK, dim, metric).unwrap();
            for centre in [&mean, &other] {
                let (mut sum, mut squares, mut outside, mut bounds) = (0.0, 0.0, 0, 0.0);
                let seeds = 200;
                for seed in 0..seeds {
                    let rotation = Rotation::new(dim, seed);
                    let mut turned = minus(centre, &mean);
                    rotation.apply(&mut turned);
                    let encoder = Encoder { rows: &rows, rotation: &rotation, bits: 1 };
                    let centre = Centre { vector: centre, turned: Some(&turned) };
                    let (block, _) = encoder.encode(0..BLOCK, centre, 0.0);
                    let residual = minus(&query, centre.vector);
                    let mut asked = minus(&query, &mean);
                    rotation.apply(&mut asked);
                    let tables = Tables::new(&asked);
                    let base = blocks::query_base(metric, &query, centre.vector, &residual);
                    let probe = Probe::new(&tables, base, dot(&residual, &residual).sqrt());
                    let mut found = Found::new(BLOCK);
                    found.look(Shape::new(dim), &block, probe, BLOCK, |slot| slot as u32, |_| true);
                    assert_eq!(found.candidates.len(), BLOCK);
                    let promised: Vec<Hit> = found.promised.into_unsorted().collect();
                    for candidate in &found.candidates {
                        let exact = rows.hit(candidate.id as usize, &query).score;
                        let lowest = promised.iter().find(|hit| hit.id == candidate.id).unwrap().score;
                        let (estimate, bound) =
                            ((candidate.highest + lowest) / 2.0, (candidate.highest - lowest) / 2.0);
                        sum += f64::from(estimate - exact);
                        squares += f64::from((estimate - exact) * (estimate - exact));
                        outside += usize::from((estimate - exact).abs() > bound);
                        bounds += f64::from(bound);
                    }
                }
                let count = f64::from(seeds as u32) * BLOCK as f64;
                let deviation = (squares / count).sqrt();
                // Rows share rotations: their errors are not independent.
                let unsure = deviation / f64::from(seeds as u32).sqrt();
                assert!((sum / count).abs() < 4.0 * unsure, "{metric}: {} of {unsure}", sum / count);
                let outside = outside as f64 / count;
                assert!(outside < 0.08, "{metric}: {outside} outside of the bound");
                let bound = bounds / count;
                assert!(bound < 3.0 * deviation, "{metric}: bound {bound}, deviation {deviation}");
            }
        }
    }
}
