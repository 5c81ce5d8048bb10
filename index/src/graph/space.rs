//! The space that a graph is built in: rows as bytes.
//!
//! To choose links takes thousands of distances a row, and none of them has to be exact: a row is
//! rotated, which makes its numbers alike in size, and rounded to steps of a 127th of the largest.
//! That is off by about a hundredth of the row's length, in a direction of its own, which moves the
//! distance of two rows by much less. Bytes are four times less to read and to multiply, and
//! their products are exact, so that the distance of a pair does not depend on who takes it.

use std::fs::File;
use std::io::Write;

use rayon::prelude::*;

use crate::Metric;
use crate::artefact::ArtefactError;
use crate::graph::near::Near;
use crate::mapped::{Mapped, write_numbers};
use crate::metric::lifts;
use crate::pages::PageWriter;
use crate::scratch::Scratch;
use crate::simd::{PANEL, PANEL_GROUP, byte_products, prefetch};

/// Rows that are rounded at a time.
const STRIP: usize = 4096;

/// The rows of a graph.
///
/// The squared distance of a and b is `squares[a] + squares[b] - 2 (<a, b> + lifts[a] lifts[b])`. For
/// the inner product, the lifts give all rows the same length in one dimension more.
pub(super) struct Space {
    /// `[rows, width]`.
    bytes: Mapped<i8>,
    /// Numbers of a row, and zeros up to whole groups.
    width: usize,
    /// What a step of each row is worth.
    scales: Vec<f32>,
    /// Squared lengths, the lifts included.
    squares: Vec<f32>,
    /// Empty where there are none.
    lifts: Vec<f32>,
}

impl Space {
    /// Of rotated rows `[rows, dim]`; the bytes go to a file in `scratch`.
    pub fn new(
        metric: Metric,
        rotated: &[f32],
        dim: usize,
        scratch: &Scratch,
    ) -> Result<Self, ArtefactError> {
        let width = dim.next_multiple_of(PANEL_GROUP);
        let scales: Vec<f32> = rotated
            .par_chunks_exact(dim)
            .map(|row| row.iter().fold(0.0f32, |most, x| most.max(x.abs())) / 127.0)
            .collect();
        let path = scratch.make("bytes", |path| {
            let mut out = PageWriter::new(File::create(path).map_err(ArtefactError::io(path))?);
            for (rows, scales) in rotated.chunks(STRIP * dim).zip(scales.chunks(STRIP)) {
                let mut bytes = vec![0i8; scales.len() * width];
                bytes.par_chunks_exact_mut(width).zip(rows.par_chunks_exact(dim)).zip(scales).for_each(
                    |((bytes, row), &scale)| {
                        let steps = if scale > 0.0 { 1.0 / scale } else { 0.0 };
                        // Not below -127: see `byte_products`.
                        let byte = |x: f32| (x * steps).round().clamp(-127.0, 127.0) as i8;
                        bytes.iter_mut().zip(row).for_each(|(b, &x)| *b = byte(x));
                    },
                );
                write_numbers(&mut out, &bytes).map_err(ArtefactError::io(path))?;
            }
            out.flush().map_err(ArtefactError::io(path))
        })?;
        let bytes = Mapped::<i8>::open(&path, scales.len() * width)?;
        let square = |(row, scale): (&[i8], &f32)| {
            scale * scale * row.iter().map(|&b| i32::from(b) * i32::from(b)).sum::<i32>() as f32
        };
        let mut squares: Vec<f32> =
            bytes.as_slice().par_chunks_exact(width).zip(&scales).map(square).collect();
        let lifts = match metric {
            Metric::InnerProduct => lifts(&mut squares),
            Metric::Cosine | Metric::L2 => Vec::new(),
        };
        Ok(Self { bytes, width, scales, squares, lifts })
    }

    pub fn len(&self) -> usize {
        self.scales.len()
    }

    fn row(&self, id: u32) -> &[i8] {
        &self.bytes.as_slice()[id as usize * self.width..][..self.width]
    }

    fn lift(&self, id: u32) -> f32 {
        if self.lifts.is_empty() { 0.0 } else { self.lifts[id as usize] }
    }
}

/// Rows laid side by side, so that the distances of others to all of them come at once.
#[derive(Default)]
pub(super) struct Panels {
    bytes: Vec<i8>,
    /// Of the rows, and of none up to whole panels: those are infinitely far.
    scales: Vec<f32>,
    squares: Vec<f32>,
    lifts: Vec<f32>,
    ids: Vec<u32>,
    products: Vec<i32>,
}

impl Panels {
    /// Lays these rows, and no others, side by side.
    pub fn fill(&mut self, space: &Space, ids: impl Iterator<Item = u32>) {
        self.ids.clear();
        self.ids.extend(ids);
        let width = self.ids.len().next_multiple_of(PANEL);
        for (numbers, vacant) in
            [(&mut self.scales, 0.0), (&mut self.squares, f32::INFINITY), (&mut self.lifts, 0.0)]
        {
            numbers.clear();
            numbers.resize(width, vacant);
        }
        for (place, &id) in self.ids.iter().enumerate() {
            self.scales[place] = space.scales[id as usize];
            self.squares[place] = space.squares[id as usize];
            self.lifts[place] = space.lift(id);
        }
        self.bytes.resize(width * space.width, 0);
        let panels = self.bytes.chunks_exact_mut(PANEL * space.width);
        for (number, (panel, ids)) in panels.zip(self.ids.chunks(PANEL)).enumerate() {
            // The rows of the next panel may be anywhere: they are on their way meanwhile.
            self.ids.iter().skip((number + 1) * PANEL).take(PANEL).for_each(|&id| prefetch(space.row(id)));
            // What is left in the places behind the last row does no harm.
            let mut rows = [space.row(ids[0]).as_chunks::<PANEL_GROUP>().0; PANEL];
            rows.iter_mut().zip(ids).for_each(|(row, &id)| *row = space.row(id).as_chunks().0);
            let (panel, _) = panel.as_chunks_mut::<PANEL_GROUP>();
            let (panel, _) = panel.as_chunks_mut::<PANEL>();
            for (group, places) in panel.iter_mut().enumerate() {
                places.iter_mut().zip(&rows).for_each(|(place, row)| *place = row[group]);
            }
        }
    }

    /// Places for rows: whole panels.
    pub fn width(&self) -> usize {
        self.scales.len()
    }

    /// The squared distances of each of `from` to all that lie here, into `out`
    /// `[from, width]`: infinity where nothing does.
    pub fn distances(&mut self, space: &Space, from: &[u32], out: &mut Vec<f32>) {
        let width = self.width();
        self.products.resize(from.len() * width, 0);
        let rows: Vec<&[i8]> = from.iter().map(|&id| space.row(id)).collect();
        byte_products(&rows, &self.bytes, &mut self.products);
        out.resize(from.len() * width, 0.0);
        if width == 0 {
            return;
        }
        let lines = self.products.chunks_exact(width).zip(out.chunks_exact_mut(width));
        for (&id, (products, out)) in from.iter().zip(lines) {
            let (scale, square, lift) =
                (space.scales[id as usize], space.squares[id as usize], space.lift(id));
            let others = self.scales.iter().zip(&self.squares).zip(&self.lifts);
            for ((out, &product), ((&other_scale, &other_square), &other_lift)) in
                out.iter_mut().zip(products).zip(others)
            {
                // The same for both ways: sums and products of two do not depend on the order.
                let inner = scale * other_scale * product as f32 + lift * other_lift;
                *out = (square + other_square - 2.0 * inner).max(0.0);
            }
        }
    }

    /// The `count` nearest to `id` of `others`, which are sorted by id and each there once.
    pub fn nearest(&mut self, space: &Space, id: u32, others: &[u32], count: usize) -> Vec<Near> {
        let mut distances = Vec::new();
        self.fill(space, others.iter().copied());
        self.distances(space, &[id], &mut distances);
        let mut near: Vec<Near> =
            others.iter().zip(distances).map(|(&id, distance)| Near { distance, id }).collect();
        near.sort_unstable_by(Near::order);
        near.truncate(count);
        near
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::squared_distance;

    /// Distances are those of the rows but for rounding, the same there and back; under the inner
    /// product the nearest has the largest product. Fails when a scale or the lift is left out.
    #[test]
    fn distances_are_those_of_the_rows_but_for_rounding() {
        let (n, dim) = (37, 50);
        let rows: Vec<f32> =
            (0..n * dim).map(|i| ((i * i) as f32 * 0.37).sin() * (1.0 + (i / dim) as f32 * 0.1)).collect();
        let row = |id: u32| &rows[id as usize * dim..][..dim];
        for metric in [Metric::L2, Metric::Cosine, Metric::InnerProduct] {
            let dir = tempfile::tempdir().unwrap();
            let space = Space::new(metric, &rows, dim, &Scratch::of(dir.path())).unwrap();
            let mut panels = Panels::default();
            let (mut there, mut back) = (Vec::new(), Vec::new());
            let all: Vec<u32> = (0..n as u32).collect();
            panels.fill(&space, all.iter().copied());
            panels.distances(&space, &all, &mut there);
            let width = panels.width();
            assert!(there.chunks(width).all(|line| line[n..].iter().all(|d| *d == f32::INFINITY)));
            for a in 0..n as u32 {
                panels.fill(&space, std::iter::once(a));
                panels.distances(&space, &all, &mut back);
                for b in 0..n as u32 {
                    let found = there[a as usize * width + b as usize];
                    assert_eq!(found, back[b as usize * panels.width()], "{metric}: {a} and {b}");
                    let wanted = match metric {
                        Metric::InnerProduct => {
                            let most =
                                (0..n as u32).map(|i| crate::metric::dot(row(i), row(i))).fold(0.0, f32::max);
                            let lift = |x: &[f32]| (most - crate::metric::dot(x, x)).max(0.0).sqrt();
                            squared_distance(row(a), row(b)) + (lift(row(a)) - lift(row(b))).powi(2)
                        }
                        _ => squared_distance(row(a), row(b)),
                    };
                    let largest = crate::metric::dot(row(36), row(36)).sqrt();
                    let error = (found.sqrt() - wanted.sqrt()).abs();
                    assert!(error < 0.03 * largest, "{metric}: {a} and {b}: {found}, not {wanted}");
                }
            }
        }
    }
}
