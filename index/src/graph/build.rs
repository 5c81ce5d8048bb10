//! From rows to a graph.
//!
//! 1. Near neighbours of all rows at once, by partition and matrix products ([`super::candidates`]).
//! 2. Links: of the near neighbours those that do not hide behind each other ([`super::prune`]),
//!    each in both directions: what a node links to should know the way back.
//! 3. A walk to every row on the graph so far. What it visits on its way are better candidates than
//!    any partition gives, far ones among them; step 2 again with these.
//!
//! Distances are taken between rows rounded to bytes ([`super::space`]); what the records hold is
//! made of the rows as they are. Everything is computed from the rows and the seed in an order that no thread has a say in: the
//! same input gives the same bytes.

use std::fs::File;
use std::io::Write;
use std::ops::Range;
use std::path::Path;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::candidates::{keep_nearest, near_neighbours};
use super::layout::{Layout, RecordWriter};
use super::near::Near;
use super::prune::Chooser;
use super::search::{Effort, Nodes, Walk};
use super::space::{Panels, Space};
use super::table::{STRIP, Table};
use super::{NODES, ROOT, open_rows, root_degree};
use crate::artefact::{ArtefactError, Writer};
use crate::mapped::{Mapped, as_bytes, write_numbers};
use crate::pages::PageWriter;
use crate::rabitq::mean;
use crate::rotation::Rotation;
use crate::rows::Rows;
use crate::scratch::Scratch;

/// Near neighbours that the first links are chosen from.
const NEAR: usize = 48;
/// Nodes that the walk to a row keeps. With 200, building takes a fifth longer, and walks in the
/// graph find no more for passages, and a little more for questions.
const BREADTH: usize = 120;
/// Candidates that links are chosen from after the walk.
const CANDIDATES: usize = 200;
/// Bytes of records that are made at a time.
const RECORD_BYTES: usize = 8 << 20;
/// Links to rows that are gathered at a time, for each row of the graph.
const GATHERED: usize = 2;

/// Builds the graph over all rows into the files [`NODES`] and [`ROOT`]; the records hold the rows
/// too. Each phase leaves its result in `scratch`, block by block, and is passed over where that is
/// there already.
///
/// Memory: see [`crate::memory`]. Disk: while it builds, the rows once more, and at the most
/// another graph or 1.5 kB a row.
pub(crate) fn build(
    rows: &Rows,
    degree: usize,
    seed: u64,
    writer: &mut Writer,
    scratch: &Scratch,
) -> Result<(), ArtefactError> {
    let (dim, metric) = (rows.dim(), rows.metric());
    let rotation = Rotation::new(dim, seed);
    let rotated = Rotated::new(rows, &rotation, scratch)?;
    let root = root(rows, &rotation, &rotated, seed);
    let root_path = writer.path(ROOT);
    std::fs::write(&root_path, as_bytes(&root)).map_err(ArtefactError::io(&root_path))?;

    let space = Space::new(metric, rotated.vectors.as_slice(), dim, scratch)?;
    let work =
        Work { rows, rotation: &rotation, rotated: &rotated, root: &root, space, degree, seed, scratch };
    let links = match rows.len() > 2 * degree {
        true => work.last_links()?,
        false => work.first_links()?,
    };
    work.write_records(&writer.path(NODES), &links)
}

/// What the phases have in common.
struct Work<'a> {
    rows: &'a Rows,
    rotation: &'a Rotation,
    rotated: &'a Rotated,
    root: &'a [f32],
    space: Space,
    degree: usize,
    seed: u64,
    scratch: &'a Scratch,
}

impl Work<'_> {
    /// Links out of near neighbours.
    fn first_links(&self) -> Result<Table, ArtefactError> {
        let name = "first-links";
        if let Some(whole) = Table::whole(self.scratch, name, self.rows.len(), self.degree)? {
            return Ok(whole);
        }
        let near = near_neighbours(&self.space, NEAR, self.seed, self.scratch)?;
        let links = self.link(near, "first-choice", name)?;
        self.scratch.remove("near");
        Ok(links)
    }

    /// What a walk to each row visits, with the row's links so far.
    fn candidates(&self) -> Result<Table, ArtefactError> {
        let (name, n) = ("candidates", self.rows.len());
        if let Some(whole) = Table::whole(self.scratch, name, n, CANDIDATES)? {
            return Ok(whole);
        }
        let links = self.first_links()?;
        let path = self.scratch.make("records", |path| self.write_records(path, &links))?;
        let (dim, metric) = (self.rows.dim(), self.rows.metric());
        let records = open_rows(&path, n, dim, self.degree, metric)?;
        let nodes = Nodes {
            records: &records,
            root: self.root,
            root_layout: Layout::new(dim, root_degree(n)),
            layout: Layout::new(dim, self.degree),
            rotation: self.rotation,
        };
        let found = Table::make(self.scratch, name, n, CANDIDATES, |range, out| {
            out.write(range, |strip| walk_to(&self.space, nodes, strip, &links))
        })?;
        drop((links, records));
        self.scratch.remove("records");
        self.scratch.remove("first-links");
        Ok(found)
    }

    /// Links out of these.
    fn last_links(&self) -> Result<Table, ArtefactError> {
        let name = "last-links";
        if let Some(whole) = Table::whole(self.scratch, name, self.rows.len(), self.degree)? {
            return Ok(whole);
        }
        let links = self.link(self.candidates()?, "last-choice", name)?;
        self.scratch.remove("candidates");
        Ok(links)
    }

    /// Links out of near nodes (nearest first): chosen, made in both directions, chosen again, and
    /// filled up.
    fn link(&self, near: Table, choice: &str, name: &str) -> Result<Table, ArtefactError> {
        let (space, degree, n) = (&self.space, self.degree, self.rows.len());
        let each = |strip: Range<usize>, work: &(dyn Fn(&mut Chooser, usize) -> Vec<Near> + Sync)| {
            strip.into_par_iter().map_init(Chooser::default, work).collect::<Vec<_>>()
        };
        let chosen = Table::make(self.scratch, choice, n, degree, |range, out| {
            out.write(range, |strip| each(strip, &|chooser, id| chooser.prune(space, &near.near(id), degree)))
        })?;
        let mut degrees = vec![0u32; n];
        chosen.iter().flatten().for_each(|link| degrees[link.id as usize] += 1);
        let links = Table::make(self.scratch, name, n, degree, |range, out| {
            for group in groups(range, &degrees, GATHERED * n) {
                let back = Back::new(&chosen, group.clone(), &degrees);
                let choose = |chooser: &mut Chooser, id| {
                    let mut links = chosen.near(id);
                    links.extend_from_slice(back.of(id));
                    keep_nearest(&mut links, usize::MAX);
                    let mut all = near.near(id);
                    all.extend_from_slice(&links);
                    keep_nearest(&mut all, usize::MAX);
                    let linked =
                        |place: usize| links.binary_search_by(|link| link.order(&all[place])).is_ok();
                    chooser.choose(space, &all, linked, degree)
                };
                out.write(group, |strip| each(strip, &choose))?;
            }
            Ok(())
        })?;
        drop(chosen);
        self.scratch.remove(choice);
        Ok(links)
    }

    fn write_records(&self, path: &Path, links: &Table) -> Result<(), ArtefactError> {
        let (rows, rotated) = (self.rows, self.rotated);
        let layout = Layout::new(rows.dim(), self.degree);
        let stride = layout.stride();
        let strip = (RECORD_BYTES / (4 * stride)).clamp(1, STRIP);
        let mut out = PageWriter::new(File::create(path).map_err(ArtefactError::io(path))?);
        let make = |first: usize| {
            let mut records = vec![0.0; strip.min(rows.len() - first) * stride];
            records.par_chunks_exact_mut(stride).enumerate().for_each_init(
                || RecordWriter::new(layout, rows.metric()),
                |writer, (i, record)| {
                    let id = first + i;
                    let links = links.near(id);
                    let links = links.iter().map(|link| (link.id, rotated.row(link.id as usize)));
                    writer.write(record, rows.row(id), rotated.row(id), links);
                },
            );
            records
        };
        // Records are written while the next ones are made.
        let mut ready = Vec::new();
        for first in (0..rows.len()).step_by(strip) {
            let (written, next) = rayon::join(|| write_numbers(&mut out, &ready), || make(first));
            written.map_err(ArtefactError::io(path))?;
            ready = next;
        }
        write_numbers(&mut out, &ready).and_then(|()| out.flush()).map_err(ArtefactError::io(path))
    }
}

/// A range in pieces to which no more than `most` links lead, or one row's.
fn groups(range: Range<usize>, degrees: &[u32], most: usize) -> Vec<Range<usize>> {
    let mut groups: Vec<Range<usize>> = Vec::new();
    let mut sum = 0;
    for id in range {
        let links = degrees[id] as usize;
        match groups.last_mut() {
            Some(group) if sum + links <= most => {
                group.end = id + 1;
                sum += links;
            }
            _ => {
                groups.push(id..id + 1);
                sum = links;
            }
        }
    }
    groups
}

/// The links that lead to some rows, turned round.
struct Back {
    links: Vec<Near>,
    /// Where those of each row begin, and the last ones end.
    starts: Vec<usize>,
    first: usize,
}

impl Back {
    fn new(chosen: &Table, rows: Range<usize>, degrees: &[u32]) -> Self {
        let mut starts = vec![0];
        starts.extend(degrees[rows.clone()].iter().scan(0, |end, &links| {
            *end += links as usize;
            Some(*end)
        }));
        let mut next = starts.clone();
        let mut links = vec![Near { distance: 0.0, id: 0 }; *starts.last().unwrap_or(&0)];
        for (id, own) in chosen.iter().enumerate() {
            for link in own.filter(|link| rows.contains(&(link.id as usize))) {
                let place = &mut next[link.id as usize - rows.start];
                links[*place] = Near { distance: link.distance, id: id as u32 };
                *place += 1;
            }
        }
        Self { links, starts, first: rows.start }
    }

    fn of(&self, id: usize) -> &[Near] {
        let place = id - self.first;
        &self.links[self.starts[place]..self.starts[place + 1]]
    }
}

/// All rows, rotated, in a file of their own.
struct Rotated {
    vectors: Mapped<f32>,
    dim: usize,
}

impl Rotated {
    fn new(rows: &Rows, rotation: &Rotation, scratch: &Scratch) -> Result<Self, ArtefactError> {
        let dim = rows.dim();
        let at_once = (RECORD_BYTES / (4 * dim)).clamp(1, STRIP);
        let path = scratch.make("rotated", |path| {
            let mut out = PageWriter::new(File::create(path).map_err(ArtefactError::io(path))?);
            for first in (0..rows.len()).step_by(at_once) {
                let mut strip = rows.block(first, at_once.min(rows.len() - first)).into_owned();
                strip.par_chunks_exact_mut(dim).for_each(|row| rotation.apply(row));
                write_numbers(&mut out, &strip).map_err(ArtefactError::io(path))?;
            }
            out.flush().map_err(ArtefactError::io(path))
        })?;
        Ok(Self { vectors: Mapped::open(&path, rows.len() * dim)?, dim })
    }

    fn row(&self, id: usize) -> &[f32] {
        &self.vectors.as_slice()[id * self.dim..][..self.dim]
    }
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

/// What walks to these rows visit, with the rows' links so far.
fn walk_to(space: &Space, nodes: Nodes, ids: Range<usize>, links: &Table) -> Vec<Vec<Near>> {
    let dim = nodes.records.dim();
    ids.into_par_iter()
        .map_init(
            || (Walk::new(dim), Panels::default()),
            |(walk, panels), id| {
                let mut found: Vec<u32> = links.near(id).into_iter().map(|link| link.id).collect();
                walk.run(nodes, nodes.records.row(id), Effort::all(BREADTH), |hit| {
                    found.push(hit.id);
                    f32::NEG_INFINITY
                });
                found.sort_unstable();
                found.dedup();
                found.retain(|&other| other as usize != id);
                panels.nearest(space, id as u32, &found, CANDIDATES)
            },
        )
        .collect()
}
