//! A flat index of RaBitQ codes: every code is read, and few rows.
//!
//! A search estimates all rows from their one-bit codes (see [`crate::blocks`]) and scores exactly,
//! best first, those whose estimate plus its error bound still reaches the k best found. With more
//! bits a row is first estimated again from all of them ([`crate::planes`]), which leaves fewer
//! rows to be read: worth it where rows come from a disk.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::Write;
use std::ops::Range;
use std::path::Path;

use rayon::prelude::*;

use crate::artefact::{ArtefactError, Manifest, Writer};
use crate::blocks::{self, BLOCK, CONFIDENCE, Factors, Tables};
use crate::mapped::{Mapped, as_bytes, write_numbers};
use crate::metric::{Metric, dot};
use crate::pages::PageWriter;
use crate::rotation::Rotation;
use crate::rows::Rows;
use crate::simd::{Scale, estimates};
use crate::topk::{Allow, Hit, TopK};
use crate::{parallel, planes};

/// The mean of the rows `[dim]`.
const CENTRE: &str = "centre.f32";
/// Blocks of 32 codes with their factors: see [`Shape`].
const CODES: &str = "codes.f32";
/// All bits of each row, and its factors: see [`planes`]. There only with more bits than one.
const PLANES: &str = "planes.u64";

/// Blocks that one task goes through: the grain of parallel work.
const SEGMENT: usize = 512;
/// So many segments are worth several threads for one query.
const MANY_SEGMENTS: usize = 8;
/// Queries that meet a block while it is in the nearest cache.
const GROUP: usize = 8;
/// Numbers at the end of a block that bound its factors: the largest error and the largest scale,
/// then zeros.
const BOUNDS: usize = 16;

/// How a block lies in the file, in units of four bytes: codes, `add` `[32]`, `scale` `[32]`,
/// `error` `[32]`, bounds `[16]`.
struct Shape {
    codes: usize,
    block: usize,
}

impl Shape {
    fn new(dim: usize) -> Self {
        let codes = blocks::code_bytes(dim) / 4;
        Self { codes, block: codes + 3 * BLOCK + BOUNDS }
    }
}

/// Encodes all rows. Memory: a few thousand codes at a time.
pub(crate) fn build(rows: &Rows, bits: usize, seed: u64, writer: &mut Writer) -> Result<(), ArtefactError> {
    let centre = mean(rows);
    let mut bytes = Vec::new();
    write_numbers(&mut bytes, &centre).expect("a vector takes all bytes");
    writer.write(CENTRE, &bytes)?;

    let rotation = Rotation::new(rows.dim(), seed);
    let shape = Shape::new(rows.dim());
    let words = planes::words(rows.dim(), bits);
    let codes_path = writer.path(CODES);
    let planes_path = (bits > 1).then(|| writer.path(PLANES));
    let create = |path: &Path| File::create(path).map(PageWriter::new).map_err(ArtefactError::io(path));
    let mut codes_file = create(&codes_path)?;
    let mut planes_file = planes_path.as_deref().map(create).transpose()?;
    let blocks = rows.len().div_ceil(BLOCK);
    for first in (0..blocks).step_by(SEGMENT) {
        let segment = first..blocks.min(first + SEGMENT);
        let encoded: Vec<(Vec<f32>, Vec<u64>)> = segment
            .into_par_iter()
            .map(|block| {
                let ids = block * BLOCK..rows.len().min((block + 1) * BLOCK);
                let mut encoder = Encoder {
                    rows,
                    centre: &centre,
                    rotation: &rotation,
                    codes: vec![0; 4 * shape.codes],
                    factors: vec![0.0; 3 * BLOCK + BOUNDS],
                    planes: vec![0; if bits > 1 { ids.len() * words } else { 0 }],
                };
                encoder.encode(ids, bits);
                let codes =
                    encoder.codes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
                (codes.chain(encoder.factors).collect(), encoder.planes)
            })
            .collect();
        for (block, row_planes) in &encoded {
            write_numbers(&mut codes_file, block).map_err(ArtefactError::io(&codes_path))?;
            if let (Some(file), Some(path)) = (&mut planes_file, &planes_path) {
                write_numbers(file, row_planes).map_err(ArtefactError::io(path))?;
            }
        }
    }
    codes_file.flush().map_err(ArtefactError::io(&codes_path))?;
    if let (Some(file), Some(path)) = (&mut planes_file, &planes_path) {
        file.flush().map_err(ArtefactError::io(path))?;
    }
    Ok(())
}

/// The mean of all rows `[dim]`.
pub(crate) fn mean(rows: &Rows) -> Vec<f32> {
    let mut sums = vec![0.0f64; rows.dim()];
    for id in 0..rows.len() {
        sums.iter_mut().zip(rows.row(id)).for_each(|(sum, &x)| *sum += f64::from(x));
    }
    sums.iter().map(|sum| (sum / rows.len().max(1) as f64) as f32).collect()
}

/// One block in the making.
struct Encoder<'a> {
    rows: &'a Rows,
    centre: &'a [f32],
    rotation: &'a Rotation,
    codes: Vec<u8>,
    factors: Vec<f32>,
    planes: Vec<u64>,
}

impl Encoder<'_> {
    fn encode(&mut self, ids: Range<usize>, bits: usize) {
        let dim = self.rows.dim();
        let words = planes::words(dim, bits);
        let mut residual = vec![0.0; dim];
        for (slot, id) in ids.enumerate() {
            residual
                .iter_mut()
                .zip(self.rows.row(id).iter().zip(self.centre))
                .for_each(|(r, (x, c))| *r = x - c);
            let (square, with_centre) = (dot(&residual, &residual), dot(&residual, self.centre));
            self.rotation.apply(&mut residual);
            let (absolute, _) = blocks::sums_of_signs(&residual, &residual);
            blocks::write_signs(&residual, slot, &mut self.codes);
            let Factors { add, scale, error } =
                blocks::factors(self.rows.metric(), dim, square, with_centre, absolute);
            self.factors[slot] = add;
            self.factors[BLOCK + slot] = scale;
            self.factors[2 * BLOCK + slot] = error;
            let bounds = &mut self.factors[3 * BLOCK..];
            bounds[0] = bounds[0].max(error);
            bounds[1] = bounds[1].max(scale);
            if bits > 1 {
                let planes = &mut self.planes[slot * words..][..words];
                planes::encode(self.rows.metric(), &residual, square, bits, planes);
            }
        }
    }
}

/// The codes of an index, mapped from disk.
pub(crate) struct Codes {
    centre: Vec<f32>,
    codes: Mapped<f32>,
    planes: Option<Mapped<u64>>,
    bits: usize,
    rotation: Rotation,
    shape: Shape,
    rows: usize,
}

/// A query, ready to meet codes.
struct Query<'a> {
    /// As it came.
    given: &'a [f32],
    /// Less the centre, rotated; and the sum of its numbers.
    rotated: Vec<f32>,
    total: f32,
    tables: Tables,
    base: f32,
    /// What a row's `error` and `scale` are multiplied with to bound the error of its score.
    error: f32,
    rounding: f32,
}

/// A row that may be among the nearest, by the most that it can reach.
struct Candidate {
    highest: f32,
    id: u32,
    /// What its score is beside the part that codes estimate; NaN once all bits have been seen.
    add: f32,
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

/// What a query has found so far among the rows of a segment.
struct Found {
    /// The k highest of the scores that the bounds promise at least.
    promised: TopK,
    candidates: Vec<Candidate>,
}

impl Codes {
    /// Maps the codes of `rows` rows of `dim` numbers.
    pub fn open(
        dir: &Path,
        manifest: &Manifest,
        rows: usize,
        dim: usize,
        bits: usize,
        seed: u64,
    ) -> Result<Self, ArtefactError> {
        let shape = Shape::new(dim);
        let planes = match bits > 1 {
            true => {
                let len = rows.saturating_mul(planes::words(dim, bits));
                Some(Mapped::open(&manifest.path(dir, PLANES)?, len)?)
            }
            false => None,
        };
        Ok(Self {
            centre: Mapped::<f32>::open(&manifest.path(dir, CENTRE)?, dim)?.as_slice().to_vec(),
            codes: Mapped::open(
                &manifest.path(dir, CODES)?,
                rows.div_ceil(BLOCK).saturating_mul(shape.block),
            )?,
            planes,
            bits,
            rotation: Rotation::new(dim, seed),
            shape,
            rows,
        })
    }

    /// The `k` nearest rows of each prepared query, of which at most `breadth` are scored; `k` is
    /// at most the number of rows.
    pub fn search(
        &self,
        rows: &Rows,
        queries: &[f32],
        k: usize,
        breadth: usize,
        allow: Allow,
    ) -> Vec<Vec<Hit>> {
        let dim = rows.dim();
        let blocks = rows.len().div_ceil(BLOCK);
        let segments = blocks.div_ceil(SEGMENT);
        let groups = (queries.len() / dim).div_ceil(GROUP);
        let group = |group: usize| {
            let queries: Vec<Query> = queries[group * GROUP * dim..]
                .chunks_exact(dim)
                .take(GROUP)
                .map(|query| self.prepare(rows.metric(), query))
                .collect();
            // Where there are groups for all threads, a segment after the other.
            let many = groups < rayon::current_num_threads() && segments >= MANY_SEGMENTS;
            let segments: Vec<Vec<Found>> = parallel::map(segments, many, |segment| {
                let blocks = segment * SEGMENT..blocks.min((segment + 1) * SEGMENT);
                self.scan(blocks, &queries, group * GROUP, k, allow)
            });
            let mut found: Vec<Vec<Candidate>> = queries.iter().map(|_| Vec::new()).collect();
            let mut promised: Vec<TopK> = queries.iter().map(|_| TopK::new(k)).collect();
            for segment in segments {
                for (q, part) in segment.into_iter().enumerate() {
                    part.promised.into_unsorted().for_each(|hit| promised[q].push(hit));
                    found[q].extend(part.candidates);
                }
            }
            let each = queries.iter().zip(found).zip(promised);
            each.map(|((query, found), promised)| {
                self.decide(rows, query, found, promised.threshold(), k, breadth)
            })
            .collect::<Vec<_>>()
        };
        parallel::map(groups, true, group).into_iter().flatten().collect()
    }

    fn prepare<'a>(&self, metric: Metric, query: &'a [f32]) -> Query<'a> {
        let mut rotated: Vec<f32> = query.iter().zip(&self.centre).map(|(q, c)| q - c).collect();
        let length = dot(&rotated, &rotated).sqrt();
        let base = blocks::query_base(metric, query, &self.centre, &rotated);
        self.rotation.apply(&mut rotated);
        let tables = Tables::new(&rotated);
        let rounding = CONFIDENCE * tables.rounding();
        Query {
            given: query,
            total: if self.bits > 1 { planes::total(&rotated) } else { 0.0 },
            rotated,
            tables,
            base,
            error: CONFIDENCE * length,
            rounding,
        }
    }

    /// For each query the rows of these blocks that may be among the `k` nearest.
    fn scan(
        &self,
        blocks: Range<usize>,
        queries: &[Query],
        first_query: usize,
        k: usize,
        allow: Allow,
    ) -> Vec<Found> {
        let rows = blocks.len() * BLOCK;
        let mut found: Vec<Found> = queries
            .iter()
            .map(|_| Found { promised: TopK::new(k.min(rows)), candidates: Vec::new() })
            .collect();
        let mut out = [0.0; BLOCK];
        for number in blocks {
            let block = &self.codes.as_slice()[number * self.shape.block..][..self.shape.block];
            let (codes, rest) = block.split_at(self.shape.codes);
            let (factors, bounds) = rest.split_at(3 * BLOCK);
            let there = self.rows - number * BLOCK;
            let mask = if there >= BLOCK { u32::MAX } else { (1 << there) - 1 };
            for (q, (query, found)) in queries.iter().zip(&mut found).enumerate() {
                // No row of the block is further off than its bounds allow.
                let slack = query.error * bounds[0] + query.rounding * bounds[1];
                let scale = Scale { unit: query.tables.unit, shift: query.tables.shift, base: query.base };
                let least = found.promised.threshold() - slack;
                let mut passing =
                    estimates(as_bytes(codes), &query.tables.bytes, factors, scale, least, &mut out) & mask;
                while passing != 0 {
                    let slot = passing.trailing_zeros() as usize;
                    passing &= passing - 1;
                    let error =
                        query.error * factors[2 * BLOCK + slot] + query.rounding * factors[BLOCK + slot];
                    let (lowest, highest) = (out[slot] - error, out[slot] + error);
                    let id = (number * BLOCK + slot) as u32;
                    if highest < found.promised.threshold()
                        || allow.is_some_and(|allow| !allow(first_query + q, id))
                    {
                        continue;
                    }
                    found.promised.push(Hit { id, score: lowest });
                    // Without a number to go by, the row has to be scored.
                    let highest = if highest.is_nan() { f32::INFINITY } else { highest };
                    found.candidates.push(Candidate { highest, id, add: query.base + factors[slot] });
                }
            }
        }
        for found in &mut found {
            let least = found.promised.threshold();
            found.candidates.retain(|candidate| candidate.highest >= least);
        }
        found
    }

    /// Scores candidates, best first, until none of the rest can be among the `k` nearest.
    fn decide(
        &self,
        rows: &Rows,
        query: &Query,
        mut candidates: Vec<Candidate>,
        least: f32,
        k: usize,
        breadth: usize,
    ) -> Vec<Hit> {
        candidates.retain(|candidate| candidate.highest >= least);
        let mut candidates = BinaryHeap::from(candidates);
        let mut best = TopK::new(k);
        let mut scored = 0;
        let mut reader = rows.reader();
        while let Some(candidate) = candidates.pop() {
            if candidate.highest < best.threshold() || scored >= breadth {
                break;
            }
            match &self.planes {
                Some(planes) if !candidate.add.is_nan() => {
                    let words = planes::words(rows.dim(), self.bits);
                    let row = &planes.as_slice()[candidate.id as usize * words..][..words];
                    let (estimate, error) = planes::estimate(row, self.bits, &query.rotated, query.total);
                    let highest = candidate.add + estimate + query.error * error;
                    let highest = if highest.is_nan() { f32::INFINITY } else { highest };
                    candidates.push(Candidate { highest, id: candidate.id, add: f32::NAN });
                }
                _ => {
                    let ahead = || candidates.iter().take(breadth - scored).map(|next| next.id as usize);
                    best.push(reader.hit(candidate.id as usize, query.given, ahead));
                    scored += 1;
                }
            }
        }
        best.into_sorted()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Builder, Index, Spec};

    /// Rows with a common direction and larger numbers on some axes.
    fn rows(n: usize, dim: usize) -> Vec<f32> {
        let value = |i: usize| {
            ((i * i) as f32 * 0.618).sin() + if i % dim < 8 { 2.0 * (i as f32).cos() + 1.0 } else { 0.0 }
        };
        (0..n * dim).map(value).collect()
    }

    /// The bound of 1.9 deviations must hold for 97 % of rows on one side, and not be idle either:
    /// the estimates must be unbiased, and off by about one deviation. Fails when the shift of the
    /// tables is left out, or `base` out of the score.
    #[test]
    fn estimates_are_unbiased_and_bounded() {
        for dim in [64, 100, 384] {
            let (n, data) = (1000, rows(1020, dim));
            for metric in [Metric::InnerProduct, Metric::Cosine, Metric::L2] {
                let dir = tempfile::tempdir().unwrap();
                let spec = Spec::RaBitQ { bits: 1 };
                let mut builder = Builder::create(dir.path(), dim, metric, &spec, 5).unwrap();
                builder.add(&data[..n * dim]).unwrap();
                let manifest = builder.finish().unwrap();
                let index = Index::open(dir.path()).unwrap();
                let codes = Codes::open(dir.path(), &manifest, n, dim, 1, 5).unwrap();
                let (mut bias, mut spread, mut beyond, mut count) = (0.0, 0.0, 0, 0);
                for query in data[n * dim..].chunks(dim) {
                    let mut query = query.to_vec();
                    metric.prepare(&mut query);
                    let prepared = codes.prepare(metric, &query);
                    let Tables { bytes, unit, shift } = &prepared.tables;
                    let scale = Scale { unit: *unit, shift: *shift, base: prepared.base };
                    for (number, block) in codes.codes.as_slice().chunks(codes.shape.block).enumerate() {
                        let (signs, factors) = block.split_at(codes.shape.codes);
                        let mut out = [0.0; BLOCK];
                        estimates(as_bytes(signs), bytes, factors, scale, f32::NEG_INFINITY, &mut out);
                        for (slot, estimate) in out.into_iter().enumerate() {
                            let Some(row) = index.vector((number * BLOCK + slot) as u32) else { continue };
                            let exact = metric.score(row, &query);
                            let error = prepared.error * factors[2 * BLOCK + slot]
                                + prepared.rounding * factors[BLOCK + slot];
                            let deviations = (estimate - exact) / error * CONFIDENCE;
                            bias += deviations;
                            spread += deviations * deviations;
                            beyond += usize::from(exact > estimate + error);
                            count += 1;
                        }
                    }
                }
                assert_eq!(count, 20 * n);
                let (bias, spread) = (bias / count as f32, (spread / count as f32).sqrt());
                let beyond = beyond as f32 / count as f32;
                println!("{metric} {dim}: bias {bias}, spread {spread}, beyond {beyond}");
                assert!(bias.abs() < 0.2, "{metric} {dim}: bias of {bias} deviations");
                assert!((0.5..1.1).contains(&spread), "{metric} {dim}: spread of {spread} deviations");
                assert!(beyond < 0.04, "{metric} {dim}: {beyond} of the rows beyond the bound");
            }
        }
    }
}
