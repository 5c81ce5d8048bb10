//! How a node lies in the file.
//!
//! A record is everything that a visit reads, end to end, in units of four bytes:
//!
//! ```text
//! vector [dim], filled up to a multiple of 16
//! for each 32 links: codes of the linked rows (see `blocks`), add [32], scale [32], ids [32]
//! ```
//!
//! The linked rows are coded relative to the record's own vector c. With r = x - c for a link to x,
//! `k` times the sum of signs estimates `<r, q>`, so that `<r, q - c>` becomes `k S(q) - k S(c)`:
//! the second part is known beforehand and goes into `add`, and one table of the query serves for
//! all nodes.

use crate::blocks::{self, BLOCK};
use crate::mapped::{as_bytes, as_u32};
use crate::metric::{Metric, dot};
use crate::simd::{Scale, estimates, prefetch};

/// Where there is no link.
pub(crate) const NONE: u32 = u32::MAX;

/// Numbers in the vector of a record: whole cache lines.
const LINE: usize = 16;

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Layout {
    pub dim: usize,
    /// Links of a node: a multiple of 32.
    pub degree: usize,
    codes: usize,
}

/// A piece of a record: 32 links.
pub(crate) struct Links<'a> {
    codes: &'a [f32],
    factors: &'a [f32],
    pub ids: &'a [u32],
}

impl Layout {
    pub fn new(dim: usize, degree: usize) -> Self {
        Self { dim, degree, codes: blocks::code_bytes(dim) / 4 }
    }

    fn vector(&self) -> usize {
        self.dim.next_multiple_of(LINE)
    }

    fn links(&self) -> usize {
        self.codes + 3 * BLOCK
    }

    /// Numbers in a record.
    pub fn stride(&self) -> usize {
        self.vector() + self.degree / BLOCK * self.links()
    }

    /// The links of a record, 32 at a time.
    #[inline]
    pub fn links_of<'a>(&self, record: &'a [f32]) -> impl Iterator<Item = Links<'a>> {
        let codes = self.codes;
        record[self.vector()..].chunks_exact(self.links()).map(move |links| {
            let (codes, rest) = links.split_at(codes);
            let (factors, ids) = rest.split_at(2 * BLOCK);
            Links { codes, factors, ids: as_u32(ids) }
        })
    }
}

impl Links<'_> {
    /// Estimates of the scores of the linked rows, and a bit for each that is at least `least`.
    #[inline]
    pub fn estimates(&self, tables: &[u8], scale: Scale, least: f32, out: &mut [f32; BLOCK]) -> u32 {
        estimates(as_bytes(self.codes), tables, self.factors, scale, least, out)
    }
}

/// Room to write records in.
pub(crate) struct RecordWriter {
    layout: Layout,
    metric: Metric,
    residual: Vec<f32>,
    codes: Vec<u8>,
}

impl RecordWriter {
    pub fn new(layout: Layout, metric: Metric) -> Self {
        let codes = vec![0; 4 * layout.codes];
        Self { layout, metric, residual: vec![0.0; layout.dim], codes }
    }

    /// Fills `record`, of [`stride`](Layout::stride) numbers: the node's `vector`, the same rotated,
    /// and its links with their rotated vectors. Links beyond the degree are left out.
    pub fn write<'a>(
        &mut self,
        record: &mut [f32],
        vector: &[f32],
        rotated: &[f32],
        links: impl Iterator<Item = (u32, &'a [f32])>,
    ) {
        record.fill(0.0);
        record[..self.layout.dim].copy_from_slice(vector);
        let mut links = links.peekable();
        for piece in record[self.layout.vector()..].chunks_exact_mut(self.layout.links()) {
            let (codes, rest) = piece.split_at_mut(self.layout.codes);
            let (factors, ids) = rest.split_at_mut(2 * BLOCK);
            ids.fill(f32::from_bits(NONE));
            // What is no link is estimated as the worst there is.
            factors[..BLOCK].fill(f32::NEG_INFINITY);
            self.codes.fill(0);
            for slot in 0..BLOCK {
                let Some((id, other)) = links.next() else { break };
                // It may be anywhere, and is on its way meanwhile.
                if let Some((_, next)) = links.peek() {
                    prefetch(next);
                }
                self.residual.iter_mut().zip(other.iter().zip(rotated)).for_each(|(r, (x, c))| *r = x - c);
                let square = dot(&self.residual, &self.residual);
                let with_centre = dot(&self.residual, rotated);
                let (absolute, signs) = blocks::sums_of_signs(&self.residual, rotated);
                let kept = blocks::factors(self.metric, self.layout.dim, square, with_centre, absolute);
                blocks::write_signs(&self.residual, slot, &mut self.codes);
                factors[slot] = kept.add - kept.scale * signs;
                factors[BLOCK + slot] = kept.scale;
                ids[slot] = f32::from_bits(id);
            }
            for (number, bytes) in codes.iter_mut().zip(self.codes.chunks_exact(4)) {
                *number = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blocks::Tables;
    use crate::rotation::Rotation;

    fn vector(dim: usize, seed: usize, spread: f32) -> Vec<f32> {
        (0..dim)
            .map(|i| (i as f32 * 0.3).cos() + spread * ((i * 31 + seed * 977) as f32 * 0.618).sin())
            .collect()
    }

    /// A node's neighbours are estimated relative to the node: fails when the node's own part of
    /// the sum of signs, or its exact score, is left out.
    #[test]
    fn links_are_estimated_without_bias_under_every_metric() {
        let (dim, degree) = (200, 64);
        let layout = Layout::new(dim, degree);
        let rotation = Rotation::new(dim, 1);
        let rotated = |vector: &[f32]| {
            let mut vector = vector.to_vec();
            rotation.apply(&mut vector);
            vector
        };
        let links: Vec<Vec<f32>> = (0..50).map(|i| vector(dim, i + 1, 0.5)).collect();
        let turned: Vec<Vec<f32>> = links.iter().map(|link| rotated(link)).collect();
        let node = vector(dim, 0, 0.3);
        for metric in [Metric::InnerProduct, Metric::Cosine, Metric::L2] {
            let mut record = vec![f32::NAN; layout.stride()];
            let ids = (100..).zip(turned.iter().map(Vec::as_slice));
            RecordWriter::new(layout, metric).write(&mut record, &node, &rotated(&node), ids);
            assert_eq!(record[..dim], node);
            let (mut bias, mut spread, mut count) = (0.0, 0.0, 0.0);
            for seed in 0..30 {
                let query = vector(dim, seed + 1000, 0.8);
                let tables = Tables::new(&rotated(&query));
                let base = metric.score(&node, &query);
                let scale = Scale { unit: tables.unit, shift: tables.shift, base };
                let mut place = 0;
                for piece in layout.links_of(&record) {
                    let mut out = [0.0; BLOCK];
                    let all = piece.estimates(&tables.bytes, scale, f32::MIN, &mut out);
                    for slot in 0..BLOCK {
                        if place >= links.len() {
                            assert!(piece.ids[slot] == NONE && all >> slot & 1 == 0, "{metric}: {place}");
                        } else {
                            assert_eq!(piece.ids[slot], 100 + place as u32);
                            let exact = metric.score(&links[place], &query);
                            let difference = out[slot] - exact;
                            bias += difference;
                            spread += difference * difference;
                            count += 1.0;
                        }
                        place += 1;
                    }
                }
            }
            let (bias, spread) = (bias / count, (spread / count).sqrt());
            // |q - c| is about 8.5, |r| about 6, and the error about 0.75 / sqrt(dim) of their product.
            let expected = crate::blocks::weight(metric) * 8.5 * 6.0 * 0.75 / (dim as f32).sqrt();
            assert!(bias.abs() < 0.3 * expected, "{metric}: bias {bias} of {expected}");
            assert!(spread < 1.5 * expected, "{metric}: spread {spread} of {expected}");
        }
    }
}
