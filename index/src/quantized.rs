//! Rows in 16 or 8 bits a number: what `SQbf16` and `SQ8` keep in place of `f32` rows.
//!
//! A number that was rounded stands for one `f32`: of bf16 the same number; of a byte c in a row
//! with an offset and a step, `offset + step * c`, with both operations rounded to `f32`. Scores are
//! [`Metric::score`] of these `f32` rows, bit for bit, whether they are made first
//! ([`QuantizedRows::row`]) or on the way ([`QuantizedRows::hit`]).

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use half::bf16;

use crate::Metric;
use crate::artefact::ArtefactError;
use crate::flat::Table;
use crate::mapped::{Mapped, as_bytes};
use crate::simd::{self, Bytes};
use crate::spec::Quantizer;
use crate::topk::Hit;

/// Rows of bf16 `[rows, dim]`.
const BF16: &str = "vectors.bf16";
/// Rows of bytes: each its offset `f32`, its step `f32` and its codes `[dim]`.
const SQ8: &str = "vectors.sq8";
/// Bytes before the codes of a row.
const HEAD: usize = 8;
/// The largest code of a byte.
const TOP: f32 = 255.0;

impl Quantizer {
    /// The data file of the rows.
    pub(crate) fn file(self) -> &'static str {
        match self {
            Quantizer::Bf16 => BF16,
            Quantizer::Int8 => SQ8,
        }
    }

    /// Bytes of a stored row.
    pub(crate) fn row_bytes(self, dim: usize) -> usize {
        match self {
            Quantizer::Bf16 => 2 * dim,
            Quantizer::Int8 => HEAD + dim,
        }
    }

    /// Writes a row that [`Metric::prepare`] has seen.
    pub(crate) fn write(self, row: &[f32], metric: Metric, out: &mut impl Write) -> io::Result<()> {
        match self {
            // Ties go to the even neighbour.
            Quantizer::Bf16 => {
                let numbers: Vec<u16> = row.iter().map(|&x| bf16::from_f32(x).to_bits()).collect();
                out.write_all(as_bytes(&numbers))
            }
            Quantizer::Int8 => {
                let (offset, step, codes) = to_bytes(row, metric);
                out.write_all(as_bytes(&[offset, step]))?;
                out.write_all(&codes)
            }
        }
    }
}

/// Offset, step and codes of a row: its least number has code 0 and its largest 255. Under cosine
/// offset and step are such that what is stored has length 1, as the row has: recall is the better
/// for it, if only by some hits in ten thousand.
fn to_bytes(row: &[f32], metric: Metric) -> (f32, f32, Vec<u8>) {
    let least = row.iter().copied().fold(f32::INFINITY, f32::min);
    let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let (mut offset, mut step) = (least, (most - least) / TOP);
    let codes: Vec<u8> = match step > 0.0 {
        // The step of numbers that are nearly alike may itself be rounded: `as` keeps to 255.
        true => row.iter().map(|x| ((x - least) / step).round_ties_even() as u8).collect(),
        false => vec![0; row.len()],
    };
    if metric == Metric::Cosine {
        let stored = Bytes { offset, step, codes: &codes };
        let square = |&code: &u8| f64::from(stored.number(code)).powi(2);
        let length = stored.codes.iter().map(square).sum::<f64>().sqrt();
        if length > 0.0 {
            (offset, step) = ((f64::from(offset) / length) as f32, (f64::from(step) / length) as f32);
        }
    }
    (offset, step, codes)
}

/// The rows of an index `[rows, dim]`, mapped from disk.
pub(crate) struct QuantizedRows {
    numbers: Numbers,
    len: usize,
    dim: usize,
    metric: Metric,
}

enum Numbers {
    Bf16(Mapped<u16>),
    Int8(Mapped<u8>),
}

impl QuantizedRows {
    /// Maps the file at `path`, which must hold `len` rows of `dim` numbers; `dim` is not 0.
    pub fn open(
        path: &Path,
        quantizer: Quantizer,
        len: usize,
        dim: usize,
        metric: Metric,
    ) -> Result<Self, ArtefactError> {
        let file = File::open(path).map_err(ArtefactError::io(path))?;
        Self::of(&file, path, quantizer, len, dim, metric)
    }

    /// Maps an open file of `len` rows, which errors call `path`.
    pub fn of(
        file: &File,
        path: &Path,
        quantizer: Quantizer,
        len: usize,
        dim: usize,
        metric: Metric,
    ) -> Result<Self, ArtefactError> {
        let numbers = match quantizer {
            Quantizer::Bf16 => Numbers::Bf16(Mapped::of(file, path, len.saturating_mul(dim))?),
            Quantizer::Int8 => {
                Numbers::Int8(Mapped::of(file, path, len.saturating_mul(quantizer.row_bytes(dim)))?)
            }
        };
        Ok(Self { numbers, len, dim, metric })
    }

    /// Row `id`, which must be less than [`len`](Table::len), as the `f32` that it stands for.
    pub fn row(&self, id: usize) -> Vec<f32> {
        let mut row = Vec::with_capacity(self.dim);
        self.append(id, &mut row);
        row
    }

    fn append(&self, id: usize, out: &mut Vec<f32>) {
        match &self.numbers {
            Numbers::Bf16(all) => out.extend(self.bf16(all, id).iter().copied().map(simd::from_bf16)),
            Numbers::Int8(all) => {
                let row = self.bytes(all, id);
                out.extend(row.codes.iter().map(|&code| row.number(code)));
            }
        }
    }

    #[inline]
    fn bf16<'a>(&self, all: &'a Mapped<u16>, id: usize) -> &'a [u16] {
        &all.as_slice()[id * self.dim..][..self.dim]
    }

    #[inline]
    fn bytes<'a>(&self, all: &'a Mapped<u8>, id: usize) -> Bytes<'a> {
        let record = &all.as_slice()[id * (HEAD + self.dim)..][..HEAD + self.dim];
        let number = |at: usize| f32::from_le_bytes([0, 1, 2, 3].map(|i| record[at + i]));
        Bytes { offset: number(0), step: number(4), codes: &record[HEAD..] }
    }
}

impl Table for QuantizedRows {
    fn len(&self) -> usize {
        self.len
    }

    fn dim(&self) -> usize {
        self.dim
    }

    fn metric(&self) -> Metric {
        self.metric
    }

    fn hit(&self, id: usize, query: &[f32]) -> Hit {
        let score = match (&self.numbers, self.metric) {
            (Numbers::Bf16(all), Metric::L2) => 0.0 - simd::squared_distance_bf16(self.bf16(all, id), query),
            (Numbers::Bf16(all), _) => simd::dot_bf16(self.bf16(all, id), query),
            (Numbers::Int8(all), Metric::L2) => {
                0.0 - simd::squared_distance_bytes(self.bytes(all, id), query)
            }
            (Numbers::Int8(all), _) => simd::dot_bytes(self.bytes(all, id), query),
        };
        Hit { id: id as u32, score }
    }

    fn block(&self, first: usize, count: usize) -> Cow<'_, [f32]> {
        let mut block = Vec::with_capacity(count * self.dim);
        (first..first + count).for_each(|id| self.append(id, &mut block));
        Cow::Owned(block)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Builder, Index, Spec};

    const DIM: usize = 70;

    fn rows(n: usize) -> Vec<f32> {
        (0..n * DIM).map(|i| ((i * i % 9973) as f32 * 0.61).sin() * (1.0 + (i % 7) as f32) + 0.3).collect()
    }

    fn index(dir: &Path, quantizer: Quantizer, metric: Metric, rows: &[f32]) -> Index {
        let mut builder = Builder::create(dir, DIM, metric, &Spec::Sq(quantizer), 0).unwrap();
        rows.chunks(7 * DIM).for_each(|rows| builder.add(rows).unwrap());
        builder.finish().unwrap();
        Index::open(dir).unwrap()
    }

    /// Half a step from the row as it came, and the row's own extremes kept. Fails when numbers are
    /// cut off instead of rounded.
    #[test]
    fn stored_rows_are_as_near_as_their_numbers_allow() {
        let rows = rows(50);
        for metric in [Metric::InnerProduct, Metric::L2] {
            for quantizer in [Quantizer::Bf16, Quantizer::Int8] {
                let dir = tempfile::tempdir().unwrap();
                let index = index(dir.path(), quantizer, metric, &rows);
                for (id, row) in rows.chunks(DIM).enumerate() {
                    let least = row.iter().copied().fold(f32::INFINITY, f32::min);
                    let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                    let stored = index.vector(id as u32).unwrap();
                    for (&own, &stored) in row.iter().zip(stored.iter()) {
                        let half_step = match quantizer {
                            Quantizer::Bf16 => own.abs() / 256.0,
                            Quantizer::Int8 => (most - least) / 255.0 * 0.5001,
                        };
                        assert!((own - stored).abs() <= half_step, "{quantizer:?}: {own} became {stored}");
                    }
                }
            }
        }
    }

    #[test]
    fn ties_of_bf16_go_to_even() {
        let mut out = Vec::new();
        // Between 1 and its neighbour above, and between that one and the next.
        Quantizer::Bf16.write(&[1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0], Metric::L2, &mut out).unwrap();
        let stored = out.as_chunks().0.iter().map(|&pair| simd::from_bf16(u16::from_le_bytes(pair)));
        assert_eq!(stored.collect::<Vec<_>>(), [1.0, 1.0 + 4.0 / 256.0]);
    }

    /// Fails when a search scores anything but what [`Index::vector`] shows.
    #[test]
    fn every_score_is_that_of_the_stored_row_to_the_bit() {
        let (rows, queries) = (rows(600), rows(9));
        for metric in [Metric::InnerProduct, Metric::Cosine, Metric::L2] {
            for quantizer in [Quantizer::Bf16, Quantizer::Int8] {
                let dir = tempfile::tempdir().unwrap();
                let index = index(dir.path(), quantizer, metric, &rows);
                let batch = index.search_batch(&queries, 600, None).unwrap();
                for (query, hits) in queries.chunks(DIM).zip(batch) {
                    assert_eq!(index.search(query, 600, None).unwrap(), hits);
                    let mut query = query.to_vec();
                    metric.prepare(&mut query);
                    for hit in hits {
                        let wanted = metric.score(&index.vector(hit.id).unwrap(), &query);
                        assert_eq!(hit.score.to_bits(), wanted.to_bits(), "{quantizer:?} {metric}");
                    }
                }
            }
        }
    }

    /// Fails when offset and step are left as they come from the least and the largest number.
    #[test]
    fn bytes_have_length_one_under_cosine() {
        let dir = tempfile::tempdir().unwrap();
        let index = index(dir.path(), Quantizer::Int8, Metric::Cosine, &rows(200));
        for id in 0..200 {
            let square: f64 = index.vector(id).unwrap().iter().map(|&x| f64::from(x).powi(2)).sum();
            assert!((square - 1.0).abs() < 1e-6, "row {id} has a squared length of {square}");
        }
    }

    #[test]
    fn rows_of_one_number_repeated_and_of_extremes() {
        for metric in [Metric::InnerProduct, Metric::L2] {
            for number in [0.0, -3.7, 1e-40, 1e18, -1e18] {
                let (offset, step, codes) = to_bytes(&[number; 5], metric);
                let stored = Bytes { offset, step, codes: &codes };
                assert!(codes.iter().all(|&code| stored.number(code) == number), "{number}");
            }
            let (offset, step, codes) = to_bytes(&[-1e18, 0.0, 1e18, f32::MIN_POSITIVE], metric);
            assert_eq!((offset, codes), (-1e18, vec![0, 128, 255, 128]));
            assert!(step.is_finite());
        }
    }
}
