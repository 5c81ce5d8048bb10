//! A flat index of RaBitQ codes: every code is read, and few rows.
//!
//! A search estimates all rows from their one-bit codes (see [`crate::blocks`]) and scores exactly,
//! best first, those whose estimate plus its error bound still reaches the k best found. With more
//! bits a row is first estimated again from all of them ([`crate::planes`]), which leaves fewer
//! rows to be read: worth it where rows come from a disk.

use std::fs::File;
use std::io::Write;
use std::ops::Range;
use std::path::Path;

use rayon::prelude::*;

use crate::artefact::{ArtefactError, Manifest, Writer};
use crate::blocks::BLOCK;
use crate::mapped::{Mapped, write_numbers};
use crate::metric::Metric;
use crate::pages::PageWriter;
use crate::rotation::Rotation;
use crate::rows::Rows;
use crate::scan::{Centre, Encoder, Found, Probe, Query, Shape};
use crate::topk::{self, Allow, Hit, Least};
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

/// Encodes all rows. Memory: a few thousand codes at a time.
pub(crate) fn build(rows: &Rows, bits: usize, seed: u64, writer: &mut Writer) -> Result<(), ArtefactError> {
    let centre = mean(rows);
    let mut bytes = Vec::new();
    write_numbers(&mut bytes, &centre).expect("a vector takes all bytes");
    writer.write(CENTRE, &bytes)?;

    let rotation = Rotation::new(rows.dim(), seed);
    let encoder = Encoder { rows, rotation: &rotation, bits };
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
                encoder.encode(ids, Centre { vector: &centre, turned: None }, 0.0)
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

    /// The `k` nearest rows of each prepared query, of which at most `breadth` are scored, or those
    /// of them that reach `least`; `k` is at most the number of rows.
    pub fn search(
        &self,
        rows: &Rows,
        queries: &[f32],
        k: usize,
        breadth: usize,
        least: Least,
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
                self.scan(blocks, &queries, group * GROUP, k, least, allow)
            });
            let mut found = above(queries.len(), group * GROUP, k, least);
            for segment in segments {
                found.iter_mut().zip(segment).for_each(|(found, part)| found.merge(part));
            }
            queries
                .iter()
                .zip(found)
                .map(|(query, found)| self.decide(rows, query, found, k, breadth))
                .collect::<Vec<_>>()
        };
        parallel::map(groups, true, group).into_iter().flatten().collect()
    }

    fn prepare<'a>(&self, metric: Metric, query: &'a [f32]) -> Query<'a> {
        Query::new(metric, query, &self.centre, &self.rotation, self.bits)
    }

    /// For each query the rows of these blocks that may be among the `k` nearest.
    fn scan(
        &self,
        blocks: Range<usize>,
        queries: &[Query],
        first_query: usize,
        k: usize,
        least: Least,
        allow: Allow,
    ) -> Vec<Found> {
        let rows = blocks.len() * BLOCK;
        let mut found = above(queries.len(), first_query, k.min(rows), least);
        let probes: Vec<Probe> = queries.iter().map(Query::probe).collect();
        for number in blocks {
            let block = &self.codes.as_slice()[number * self.shape.block..][..self.shape.block];
            for (q, (probe, found)) in probes.iter().zip(&mut found).enumerate() {
                let id_of = |slot| (number * BLOCK + slot) as u32;
                let may = |id| allow.is_none_or(|allow| allow(first_query + q, id));
                found.look(self.shape, block, *probe, self.rows, id_of, may);
            }
        }
        found.iter_mut().for_each(Found::prune);
        found
    }

    fn decide(&self, rows: &Rows, query: &Query, found: Found, k: usize, breadth: usize) -> Vec<Hit> {
        let Some(planes) = &self.planes else { return found.decide(rows, query.given, k, breadth, None) };
        let words = planes::words(rows.dim(), self.bits);
        let error_of = query.probe().error;
        found.decide(
            rows,
            query.given,
            k,
            breadth,
            Some(&|candidate| {
                let row = &planes.as_slice()[candidate.id as usize * words..][..words];
                let (estimate, error) = planes::estimate(row, self.bits, &query.rotated, query.total);
                candidate.add + estimate + error_of * error
            }),
        )
    }
}

/// Nothing found yet, for each of so many queries from `first` on.
fn above(queries: usize, first: usize, k: usize, least: Least) -> Vec<Found> {
    (first..first + queries).map(|query| Found::above(k, topk::least_of(least, query))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blocks::CONFIDENCE;
    use crate::mapped::as_bytes;
    use crate::simd::{Scale, estimates};
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
                    let probe = prepared.probe();
                    let crate::blocks::Tables { bytes, unit, shift } = &prepared.tables;
                    let scale = Scale { unit: *unit, shift: *shift, base: probe.base };
                    for (number, block) in codes.codes.as_slice().chunks(codes.shape.block).enumerate() {
                        let (signs, factors) = block.split_at(codes.shape.codes);
                        let mut out = [0.0; BLOCK];
                        estimates(as_bytes(signs), bytes, factors, scale, f32::NEG_INFINITY, &mut out);
                        for (slot, estimate) in out.into_iter().enumerate() {
                            let Some(row) = index.vector((number * BLOCK + slot) as u32) else { continue };
                            let exact = metric.score(&row, &query);
                            let error = probe.error * factors[2 * BLOCK + slot]
                                + probe.rounding * factors[BLOCK + slot];
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
