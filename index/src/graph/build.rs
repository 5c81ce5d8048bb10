//! From rows to a graph.
//!
//! 1. Near neighbours of all rows at once, by partition and matrix products ([`super::candidates`]).
//! 2. Links: of the near neighbours those that do not hide behind each other ([`super::prune`]),
//!    each in both directions.
//! 3. A walk to every row on the graph so far. What it visits on its way are better candidates than
//!    any partition gives, far ones among them; step 2 again with these.
//!
//! Everything is computed from the rows and the seed in an order that no thread has a say in: the
//! same input gives the same bytes.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::candidates::{Near, keep_nearest, near_neighbours};
use super::layout::{Layout, RecordWriter};
use super::prune::{Space, fill, prune};
use super::search::{Nodes, Walk};
use super::{NODES, ROOT, open_rows, root_degree};
use crate::Metric;
use crate::artefact::{ArtefactError, Writer};
use crate::mapped::{Mapped, as_bytes, write_numbers};
use crate::metric::dot;
use crate::pages::PageWriter;
use crate::rabitq::mean;
use crate::rotation::Rotation;
use crate::rows::Rows;

/// Near neighbours that the first links are chosen from.
const NEAR: usize = 48;
/// Nodes that the walk to a row keeps.
const BREADTH: usize = 100;
/// Candidates that links are chosen from after the walk.
const CANDIDATES: usize = 128;
/// Records written at a time.
const STRIP: usize = 4096;

/// Builds the graph over all rows into the files [`NODES`] and [`ROOT`]; the records hold the rows
/// too. While it builds, another file as large as the rows lies in the directory.
///
/// Memory: about 1 kB a row.
pub(crate) fn build(rows: &Rows, degree: usize, seed: u64, writer: &mut Writer) -> Result<(), ArtefactError> {
    let (dim, metric) = (rows.dim(), rows.metric());
    let rotation = Rotation::new(dim, seed);
    let path = writer.path(NODES);
    let rotated = Rotated::new(rows, &rotation, path.parent().unwrap_or(Path::new(".")))?;
    let space = space(metric, rotated.vectors.as_slice(), dim);
    let root = root(rows, &rotation, &rotated, seed);
    let root_path = writer.path(ROOT);
    std::fs::write(&root_path, as_bytes(&root)).map_err(ArtefactError::io(&root_path))?;

    let near = near_neighbours(&space, NEAR, seed);
    let links = link(&space, near, degree);
    write_records(&path, rows, &rotated, &links, degree)?;
    if rows.len() > 2 * degree {
        let records = open_rows(&path, rows.len(), dim, degree, metric)?;
        let nodes = Nodes {
            records: &records,
            root: &root,
            root_layout: Layout::new(dim, root_degree(rows.len())),
            layout: Layout::new(dim, degree),
            rotation: &rotation,
        };
        let found = walk_to_all(&space, nodes, &links);
        drop((links, records));
        let links = link(&space, found, degree);
        write_records(&path, rows, &rotated, &links, degree)?;
    }
    Ok(())
}

/// All rows, rotated, in a file of their own.
struct Rotated {
    vectors: Mapped<f32>,
    dim: usize,
}

impl Rotated {
    fn new(rows: &Rows, rotation: &Rotation, dir: &Path) -> Result<Self, ArtefactError> {
        let dim = rows.dim();
        // Without a name: nothing of it is left after a crash.
        let file = tempfile::tempfile_in(dir).map_err(ArtefactError::io(dir))?;
        let mut out = PageWriter::new(file);
        for first in (0..rows.len()).step_by(STRIP) {
            let mut strip = rows.block(first, STRIP.min(rows.len() - first)).into_owned();
            strip.par_chunks_exact_mut(dim).for_each(|row| rotation.apply(row));
            write_numbers(&mut out, &strip).map_err(ArtefactError::io(dir))?;
        }
        let file = out.into_file().map_err(ArtefactError::io(dir))?;
        Ok(Self { vectors: Mapped::of(&file, dir, rows.len() * dim)?, dim })
    }

    fn row(&self, id: usize) -> &[f32] {
        &self.vectors.as_slice()[id * self.dim..][..self.dim]
    }
}

fn space(metric: Metric, vectors: &[f32], dim: usize) -> Space<'_> {
    let mut squares: Vec<f32> = vectors.par_chunks_exact(dim).map(|row| dot(row, row)).collect();
    let mut lift = Vec::new();
    if metric == Metric::InnerProduct {
        let largest = squares.iter().copied().fold(0.0, f32::max);
        lift = squares.iter().map(|square| (largest - square).sqrt()).collect();
        squares.fill(largest);
    }
    Space { vectors, dim, squares, lift }
}

/// The record that walks begin at.
fn root(rows: &Rows, rotation: &Rotation, rotated: &Rotated, seed: u64) -> Vec<f32> {
    let layout = Layout::new(rows.dim(), root_degree(rows.len()));
    let centre = mean(rows);
    let mut turned = centre.clone();
    rotation.apply(&mut turned);
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut sample = rand::seq::index::sample(&mut rng, rows.len(), layout.degree.min(rows.len())).into_vec();
    sample.sort_unstable();
    let mut record = vec![0.0; layout.stride()];
    let links = sample.into_iter().map(|id| (id as u32, rotated.row(id)));
    RecordWriter::new(layout, rows.metric()).write(&mut record, &centre, &turned, links);
    record
}

/// Links out of near neighbours (nearest first): chosen, made in both directions, chosen again, and
/// filled up.
fn link(space: &Space, near: Vec<Vec<Near>>, degree: usize) -> Vec<Vec<Near>> {
    let mut both: Vec<Vec<Near>> = near.par_iter().map(|near| prune(space, near, degree)).collect();
    let own: Vec<usize> = both.iter().map(Vec::len).collect();
    for (id, own) in own.into_iter().enumerate() {
        for place in 0..own {
            let link = both[id][place];
            both[link.id as usize].push(Near { distance: link.distance, id: id as u32 });
        }
    }
    both.into_par_iter()
        .zip(near)
        .map(|(mut links, mut near)| {
            keep_nearest(&mut links, usize::MAX);
            let mut kept = prune(space, &links, degree);
            near.extend(links);
            keep_nearest(&mut near, usize::MAX);
            fill(space, &near, &mut kept, degree);
            kept
        })
        .collect()
}

/// What a walk to each row visits, with the row's links so far.
fn walk_to_all(space: &Space, nodes: Nodes, links: &[Vec<Near>]) -> Vec<Vec<Near>> {
    let dim = space.dim;
    links
        .par_iter()
        .enumerate()
        .map_init(
            || Walk::new(dim),
            |walk, (id, links)| {
                let mut found = links.clone();
                let row = nodes.records.row(id);
                walk.run(nodes, row, BREADTH, |hit| {
                    if hit.id as usize != id {
                        let distance = space.distance_of(id as u32, hit.id, product(nodes, row, hit));
                        found.push(Near { distance, id: hit.id });
                    }
                });
                keep_nearest(&mut found, CANDIDATES);
                found
            },
        )
        .collect()
}

/// The inner product that a walk's score stands for.
fn product(nodes: Nodes, row: &[f32], hit: crate::Hit) -> f32 {
    match nodes.records.metric() {
        Metric::InnerProduct | Metric::Cosine => hit.score,
        Metric::L2 => dot(row, nodes.records.row(hit.id as usize)),
    }
}

fn write_records(
    path: &Path,
    rows: &Rows,
    rotated: &Rotated,
    links: &[Vec<Near>],
    degree: usize,
) -> Result<(), ArtefactError> {
    let layout = Layout::new(rows.dim(), degree);
    let stride = layout.stride();
    let mut out = PageWriter::new(File::create(path).map_err(ArtefactError::io(path))?);
    for (strip, links) in links.chunks(STRIP).enumerate() {
        let mut records = vec![0.0; links.len() * stride];
        records.par_chunks_exact_mut(stride).zip(links).enumerate().for_each_init(
            || RecordWriter::new(layout, rows.metric()),
            |writer, (i, (record, links))| {
                let id = strip * STRIP + i;
                let links = links.iter().map(|link| (link.id, rotated.row(link.id as usize)));
                writer.write(record, rows.row(id), rotated.row(id), links);
            },
        );
        write_numbers(&mut out, &records).map_err(ArtefactError::io(path))?;
    }
    out.flush().map_err(ArtefactError::io(path))
}
