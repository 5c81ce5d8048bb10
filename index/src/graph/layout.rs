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
use crate::simd::{Scale, estimates};

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
        let mut links = links.take(self.layout.degree);
        for piece in record[self.layout.vector()..].chunks_exact_mut(self.layout.links()) {
            let (codes, rest) = piece.split_at_mut(self.layout.codes);
            let (factors, ids) = rest.split_at_mut(2 * BLOCK);
            ids.fill(f32::from_bits(NONE));
            // What is no link is estimated as the worst there is.
            factors[..BLOCK].fill(f32::NEG_INFINITY);
            self.codes.fill(0);
            for (slot, (id, other)) in links.by_ref().take(BLOCK).enumerate() {
                self.residual.iter_mut().zip(other.iter().zip(rotated)).for_each(|(r, (x, c))| *r = x - c);
                let square = dot(&self.residual, &self.residual);
                let with_centre = dot(&self.residual, rotated);
                let (mut absolute, mut signs) = (0.0, 0.0);
                for (r, c) in self.residual.iter().zip(rotated) {
                    absolute += r.abs();
                    signs += if *r >= 0.0 { *c } else { -*c };
                }
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
