//! A graph whose nodes bring the codes of their neighbours with them: SymphonyQG (Gou et al.,
//! SIGMOD 2025; arXiv 2411.12229), memory-mapped.
//!
//! A visit to a node reads one record, front to back ([`layout`]): its own vector, which gives one
//! exact score, and the one-bit codes of its neighbours, which give an estimate for all of them at
//! once. A search keeps a beam of the most promising nodes and visits the best until all of the
//! beam has been visited ([`search`]).
//!
//! The graph is built without inserting one node after the other ([`build`]).

mod build;
mod candidates;
mod layout;
mod near;
mod prune;
mod search;
mod space;
mod table;

use std::path::Path;

pub(crate) use build::build;
pub(crate) use layout::Layout;

use crate::artefact::{ArtefactError, Manifest};
use crate::graph::search::{Effort, Nodes, Walk};
use crate::mapped::Mapped;
use crate::rotation::Rotation;
use crate::rows::Rows;
use crate::topk::{Allow, Hit, TopK, share};
use crate::{flat, parallel};

/// Records of all nodes.
pub(crate) const NODES: &str = "nodes.f32";
/// The record of the root.
const ROOT: &str = "root.f32";
/// All of them.
pub(crate) const FILES: [&str; 2] = [NODES, ROOT];

/// Nodes that the root links to where there are as many.
const ROOT_DEGREE: usize = 1024;
/// Of so few allowed rows in a thousand it is faster to score every one.
const FEW_ALLOWED: usize = 20;

fn root_degree(rows: usize) -> usize {
    ROOT_DEGREE.min(rows.next_multiple_of(32))
}

/// Maps the records as rows.
pub(crate) fn open_rows(
    path: &Path,
    rows: usize,
    dim: usize,
    degree: usize,
    metric: crate::Metric,
) -> Result<Rows, ArtefactError> {
    Rows::open_strided(path, rows, dim, Layout::new(dim, degree).stride(), metric)
}

/// The graph of an index, mapped from disk.
pub(crate) struct Graph {
    root: Mapped<f32>,
    root_layout: Layout,
    layout: Layout,
    rotation: Rotation,
}

impl Graph {
    /// Maps the graph over `rows` rows. The ids in its files are checked where they are used.
    pub fn open(
        dir: &Path,
        manifest: &Manifest,
        rows: usize,
        dim: usize,
        degree: usize,
        seed: u64,
    ) -> Result<Self, ArtefactError> {
        let root_layout = Layout::new(dim, root_degree(rows));
        Ok(Self {
            root: Mapped::open(&manifest.path(dir, ROOT)?, root_layout.stride())?,
            root_layout,
            layout: Layout::new(dim, degree),
            rotation: Rotation::new(dim, seed),
        })
    }

    /// Nodes that a walk keeps where nobody has said: for a recall@10 of about 0.97 on text.
    pub fn default_breadth(&self, k: usize) -> usize {
        self.unsure((4 * k).max(100))
    }

    /// A breadth in many dimensions, made as good in those of these rows: codes of few dimensions
    /// tell less, and their errors grow as the root of these falls.
    pub fn unsure(&self, breadth: usize) -> usize {
        (breadth as f32 * (128.0 / self.layout.dim as f32).sqrt().max(1.0)) as usize
    }

    /// The `k` nearest rows of each prepared query; `k` is at most the number of rows.
    pub fn search(
        &self,
        rows: &Rows,
        queries: &[f32],
        k: usize,
        breadth: usize,
        allow: Allow,
    ) -> Vec<Vec<Hit>> {
        let dim = rows.dim();
        parallel::each_query(
            queries,
            dim,
            || Walk::new(dim),
            |walk, number, query| self.search_one(rows, query, number, k, breadth, allow, walk),
        )
    }

    fn search_one(
        &self,
        rows: &Rows,
        query: &[f32],
        number: usize,
        k: usize,
        breadth: usize,
        allow: Allow,
        walk: &mut Walk,
    ) -> Vec<Hit> {
        let may = |id: u32| allow.is_none_or(|allow| allow(number, id));
        let filter: Option<&dyn Fn(u32) -> bool> = if allow.is_some() { Some(&may) } else { None };
        // More than all rows there are not.
        let mut wanted = breadth.max(k).min(rows.len());
        while let Some(breadth) = self.widen(rows.len(), wanted, filter) {
            let nodes = Nodes {
                records: rows,
                root: self.root.as_slice(),
                root_layout: self.root_layout,
                layout: self.layout,
                rotation: &self.rotation,
            };
            let mut best = TopK::new(k);
            walk.run(nodes, query, Effort::new(wanted, breadth, rows.dim()), |hit| {
                if hit.score >= best.threshold() && may(hit.id) {
                    best.push(hit);
                }
                best.threshold()
            });
            let found = best.into_sorted();
            if found.len() == k {
                return found;
            }
            // A node can be on the beam more than once, and a filter may allow fewer than it seemed.
            wanted *= 2;
        }
        // The walk costs as much as reading all rows, or cannot reach enough of those allowed.
        flat::search(rows, query, k, Some(&|_, id| may(id))).pop().unwrap_or_default()
    }

    /// The breadth that finds as many allowed rows as `breadth` finds rows; none where the rows
    /// are so few, or those allowed, that to score them all is faster.
    fn widen(&self, rows: usize, breadth: usize, allow: Option<&dyn Fn(u32) -> bool>) -> Option<usize> {
        if breadth * self.layout.degree / 4 >= rows {
            return None;
        }
        let Some(allow) = allow else { return Some(breadth) };
        let (allowed, sample) = share(rows, allow);
        if allowed * 1000 < FEW_ALLOWED * sample {
            return None;
        }
        Some(breadth * sample / allowed)
    }
}
