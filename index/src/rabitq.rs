//! One bit a dimension, and what can be told from it: RaBitQ (Gao and Long, 2024; arXiv
//! 2405.12497).
//!
//! A row x is taken relative to the mean c of all rows, rotated at random, and kept as the signs
//! of what comes out. With r = x - c, o = r / |r|, and the code as a unit vector ō (signs over
//! sqrt(D), rotated back), `<ō, q> / <ō, o>` estimates `<o, q>` for any q (equation 15 and theorem
//! 3.2 there), with an error of the order of
//!
//! ```text
//! |q| sqrt((1 - <ō, o>²) / <ō, o>²) / sqrt(D - 1)
//! ```
//!
//! Every metric follows from `<r, q - c>`: the inner product is `<r, q - c> + <r, c> + <c, q>`, and
//! minus the squared distance is `2 <r, q - c> - |r|² - |q - c|²`.
//!
//! A search estimates all rows, and scores exactly, best estimate first, those whose estimate
//! plus its error bound still reaches the k best found.

use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use rayon::prelude::*;

use crate::artefact::{ArtefactError, Manifest, Writer};
use crate::mapped::Mapped;
use crate::metric::{Metric, dot};
use crate::rotation::Rotation;
use crate::rows::{Rows, write_f32};
use crate::topk::{Allow, Hit, TopK};

/// The mean of the rows `[dim]`.
const CENTRE: &str = "centre.f32";
/// The signs `[rows, words]`: bit b of word w is set where number 64 w + b is not negative.
const CODES: &str = "codes.u64";
/// What an estimate needs besides the code `[rows, 3]`: see [`Factors`].
const FACTORS: &str = "factors.f32";

/// Errors in units of their standard deviation that the bound allows for: the ε₀ of section 3.2.2
/// of the paper, which 1 row in 35 exceeds.
const CONFIDENCE: f32 = 1.9;
/// The largest multiple that a number of the query is rounded to: four bits of a number, whose
/// rounding is small beside the code's, and sums of eight of them that fit a byte.
const LARGEST: f32 = 15.0;
/// Rows that one task goes through: the grain of parallel work.
const SEGMENT: usize = 16384;

/// The numbers beside a row's code.
struct Factors {
    /// The part of the score that does not depend on the query.
    base: f32,
    /// `|r| / (<ō, o> sqrt(D))`: times the sum of signs, an estimate of `<r, q - c>`.
    scale: f32,
    /// `|r| sqrt((1 - <ō, o>²) / <ō, o>²) / sqrt(D - 1)`: the error of that, for `|q - c|` = 1.
    error: f32,
}

/// Encodes all rows. Memory: a few thousand codes at a time.
pub(crate) fn build(rows: &Rows, seed: u64, writer: &mut Writer) -> Result<(), ArtefactError> {
    let centre = mean(rows);
    let mut bytes = Vec::new();
    write_f32(&mut bytes, &centre).expect("a vector takes all bytes");
    writer.write(CENTRE, &bytes)?;

    let rotation = Rotation::new(rows.dim(), seed);
    let words = rows.dim().div_ceil(64);
    let (codes_path, factors_path) = (writer.path(CODES), writer.path(FACTORS));
    let create = |path: &Path| File::create(path).map(BufWriter::new).map_err(ArtefactError::io(path));
    let (mut codes_file, mut factors_file) = (create(&codes_path)?, create(&factors_path)?);
    for first in (0..rows.len()).step_by(SEGMENT) {
        let segment = first..rows.len().min(first + SEGMENT);
        let mut codes = vec![0u64; segment.len() * words];
        let factors: Vec<Factors> = codes
            .par_chunks_exact_mut(words)
            .zip(segment)
            .map_init(
                || vec![0.0; rows.dim()],
                |scratch, (code, id)| encode(rows.metric(), rows.row(id), &centre, &rotation, scratch, code),
            )
            .collect();
        codes
            .iter()
            .try_for_each(|word| codes_file.write_all(&word.to_le_bytes()))
            .map_err(ArtefactError::io(&codes_path))?;
        factors
            .iter()
            .try_for_each(|f| write_f32(&mut factors_file, &[f.base, f.scale, f.error]))
            .map_err(ArtefactError::io(&factors_path))?;
    }
    codes_file.flush().map_err(ArtefactError::io(&codes_path))?;
    factors_file.flush().map_err(ArtefactError::io(&factors_path))
}

fn mean(rows: &Rows) -> Vec<f32> {
    let mut sums = vec![0.0f64; rows.dim()];
    for id in 0..rows.len() {
        sums.iter_mut().zip(rows.row(id)).for_each(|(sum, &x)| *sum += f64::from(x));
    }
    sums.iter().map(|sum| (sum / rows.len().max(1) as f64) as f32).collect()
}

fn encode(
    metric: Metric,
    row: &[f32],
    centre: &[f32],
    rotation: &Rotation,
    scratch: &mut [f32],
    code: &mut [u64],
) -> Factors {
    let dim = row.len();
    scratch.iter_mut().zip(row.iter().zip(centre)).for_each(|(r, (x, c))| *r = x - c);
    let base = match metric {
        Metric::InnerProduct | Metric::Cosine => dot(scratch, centre),
        Metric::L2 => -dot(scratch, scratch),
    };
    let length = dot(scratch, scratch).sqrt();
    rotation.apply(scratch);
    let mut sum = 0.0;
    for (i, &x) in scratch.iter().enumerate() {
        sum += x.abs();
        if x >= 0.0 {
            code[i / 64] |= 1 << (i % 64);
        }
    }
    // <ō, o>: between 1 / sqrt(D) and 1, about 0.8 for most.
    let fit = sum / (length * (dim as f32).sqrt());
    if sum == 0.0 {
        // The row is the centre itself: <r, q - c> is 0, exactly.
        return Factors { base, scale: 0.0, error: 0.0 };
    }
    if !fit.is_finite() {
        // Squares too large or too small for f32: nothing is known, so the row is always scored.
        return Factors { base, scale: 0.0, error: f32::INFINITY };
    }
    let spread = (1.0 - fit * fit).max(0.0).sqrt() / fit;
    Factors {
        base,
        scale: length / (fit * (dim as f32).sqrt()),
        error: length * spread / ((dim - 1).max(1) as f32).sqrt(),
    }
}

/// The codes of an index, mapped from disk.
pub(crate) struct Codes {
    centre: Vec<f32>,
    codes: Mapped<u64>,
    factors: Mapped<f32>,
    rotation: Rotation,
    words: usize,
}

/// A query, ready to meet codes. Each number of q' (q - c, rotated) is rounded to an odd multiple of
/// a unit, from -15 to 15: four bits.
struct Query {
    /// For each byte of a code and each value it can have, the sum of the multiples of q' where the
    /// byte's bits are set: at most 8 times 15.
    tables: Vec<[i8; 256]>,
    /// What one multiple is worth.
    unit: f32,
    /// Minus the sum of all of the rounded q': what a code without a bit set stands for.
    shift: f32,
    /// The part of the score that does not depend on the row.
    base: f32,
    /// How often `<r, q - c>` counts in the score.
    weight: f32,
    /// What a row's `error` and `scale` are multiplied with to bound the error of its score.
    error: f32,
    rounding: f32,
}

impl Codes {
    /// Maps the codes of `rows` rows of `dim` numbers.
    pub fn open(
        dir: &Path,
        manifest: &Manifest,
        rows: usize,
        dim: usize,
        seed: u64,
    ) -> Result<Self, ArtefactError> {
        let words = dim.div_ceil(64);
        Ok(Self {
            centre: Mapped::<f32>::open(&manifest.path(dir, CENTRE)?, dim)?.as_slice().to_vec(),
            codes: Mapped::open(&manifest.path(dir, CODES)?, rows.saturating_mul(words))?,
            factors: Mapped::open(&manifest.path(dir, FACTORS)?, rows.saturating_mul(3))?,
            rotation: Rotation::new(dim, seed),
            words,
        })
    }

    /// The `k` nearest rows of each prepared query; `k` is at most the number of rows.
    pub fn search(&self, rows: &Rows, queries: &[f32], k: usize, allow: Allow) -> Vec<Vec<Hit>> {
        let queries = queries.par_chunks(rows.dim()).enumerate();
        queries.map(|(number, query)| self.search_one(rows, query, number, k, allow)).collect()
    }

    fn search_one(&self, rows: &Rows, query: &[f32], number: usize, k: usize, allow: Allow) -> Vec<Hit> {
        let prepared = self.prepare(rows.metric(), query);
        let segments: Vec<Vec<Hit>> = (0..rows.len().div_ceil(SEGMENT))
            .into_par_iter()
            .map(|segment| {
                let ids = segment * SEGMENT..rows.len().min((segment + 1) * SEGMENT);
                self.candidates(ids, &prepared, number, k, allow)
            })
            .collect();
        // By what they can reach at most: when the best of the rest falls short, all do.
        let mut candidates: BinaryHeap<Hit> = segments.into_iter().flatten().collect();
        let mut best = TopK::new(k);
        while let Some(candidate) = candidates.pop() {
            if candidate.score < best.threshold() {
                break;
            }
            best.push(rows.hit(candidate.id as usize, query));
        }
        best.into_sorted()
    }

    fn prepare(&self, metric: Metric, query: &[f32]) -> Query {
        let dim = query.len();
        let mut rotated: Vec<f32> = query.iter().zip(&self.centre).map(|(q, c)| q - c).collect();
        let length = dot(&rotated, &rotated).sqrt();
        let (base, weight) = match metric {
            Metric::InnerProduct | Metric::Cosine => (dot(query, &self.centre), 1.0),
            Metric::L2 => (-dot(&rotated, &rotated), 2.0),
        };
        self.rotation.apply(&mut rotated);
        let largest = rotated.iter().fold(0.0f32, |max, x| max.max(x.abs()));
        let unit = largest / LARGEST;
        let mut multiples = vec![0i8; self.words * 64];
        for (multiple, x) in multiples.iter_mut().zip(&rotated) {
            // For a query at the centre this is NaN, which becomes 0.
            let odd = 2.0 * ((x / unit - 1.0) / 2.0).round() + 1.0;
            *multiple = odd.clamp(-LARGEST, LARGEST) as i8;
        }
        let total: i32 = multiples.iter().map(|&multiple| i32::from(multiple)).sum();
        Query {
            tables: multiples.chunks_exact(8).map(sums_of_subsets).collect(),
            unit,
            shift: -unit * total as f32,
            base,
            weight,
            error: CONFIDENCE * weight * length,
            // Multiples are two units apart, so a rounded number is off by 2 / sqrt(12) on average.
            rounding: CONFIDENCE * weight * unit * (dim as f32 / 3.0).sqrt(),
        }
    }

    /// The rows among `ids` that may be among the `k` nearest, each with the highest score that
    /// its bound leaves possible.
    fn candidates(
        &self,
        ids: std::ops::Range<usize>,
        query: &Query,
        number: usize,
        k: usize,
        allow: Allow,
    ) -> Vec<Hit> {
        // The k highest of the scores that the bounds promise at least.
        let mut promised = TopK::new(k.min(ids.len()));
        let mut candidates = Vec::new();
        for id in ids {
            let (estimate, error) = self.estimate(id, query);
            let id = id as u32;
            // Without a number to go by, the row has to be scored.
            let highest = if (estimate + error).is_nan() { f32::INFINITY } else { estimate + error };
            if highest >= promised.threshold() && allow.is_none_or(|allow| allow(number, id)) {
                candidates.push(Hit { id, score: highest });
                promised.push(Hit { id, score: estimate - error });
            }
        }
        let least = promised.threshold();
        candidates.retain(|hit| hit.score >= least);
        candidates
    }

    /// What the code of row `id` tells of its score, and by how much that may be wrong.
    #[inline]
    fn estimate(&self, id: usize, query: &Query) -> (f32, f32) {
        let signs = query.sum_of_signs(&self.codes.as_slice()[id * self.words..][..self.words]);
        let factors = &self.factors.as_slice()[id * 3..][..3];
        let (base, scale, error) = (factors[0], factors[1], factors[2]);
        let estimate = query.base + base + query.weight * scale * signs;
        (estimate, query.error * error + query.rounding * scale)
    }
}

impl Query {
    /// The sum over all numbers of q', each with the sign that the code has there: twice the sum
    /// over those with plus, less the sum over all.
    #[inline]
    fn sum_of_signs(&self, code: &[u64]) -> f32 {
        let mut sum = 0;
        for (word, tables) in code.iter().zip(self.tables.chunks_exact(8)) {
            for (byte, table) in word.to_le_bytes().into_iter().zip(tables) {
                sum += i32::from(table[usize::from(byte)]);
            }
        }
        2.0 * self.unit * sum as f32 + self.shift
    }
}

/// For every byte, the sum of those of eight numbers whose bits are set in it.
fn sums_of_subsets(numbers: &[i8]) -> [i8; 256] {
    let mut sums = [0; 256];
    for byte in 1..256usize {
        let lowest = byte.trailing_zeros() as usize;
        sums[byte] = sums[byte & (byte - 1)] + numbers[lowest];
    }
    sums
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
    /// the estimates must be unbiased, and off by about one deviation. Fails when `shift` is left
    /// out of the sum of signs, or `base` out of the score.
    #[test]
    fn estimates_are_unbiased_and_bounded() {
        for dim in [64, 100, 384] {
            let (n, data) = (1000, rows(1020, dim));
            for metric in [Metric::InnerProduct, Metric::Cosine, Metric::L2] {
                let dir = tempfile::tempdir().unwrap();
                let mut builder = Builder::create(dir.path(), dim, metric, &Spec::RaBitQ, 5).unwrap();
                builder.add(&data[..n * dim]).unwrap();
                let manifest = builder.finish().unwrap();
                let index = Index::open(dir.path()).unwrap();
                let codes = Codes::open(dir.path(), &manifest, n, dim, 5).unwrap();
                let (mut bias, mut spread, mut beyond, mut count) = (0.0, 0.0, 0, 0);
                for query in data[n * dim..].chunks(dim) {
                    let mut query = query.to_vec();
                    metric.prepare(&mut query);
                    let prepared = codes.prepare(metric, &query);
                    for id in 0..n {
                        let exact = metric.score(index.vector(id as u32).unwrap(), &query);
                        let (estimate, error) = codes.estimate(id, &prepared);
                        let deviations = (estimate - exact) / error * CONFIDENCE;
                        bias += deviations;
                        spread += deviations * deviations;
                        beyond += usize::from(exact > estimate + error);
                        count += 1;
                    }
                }
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
