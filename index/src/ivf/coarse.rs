//! Which lists are nearest to a query: by a scan of their centroids' codes, or by a walk on a graph
//! of their centroids, which pays from some ten thousand lists on.

use std::path::Path;

use rayon::prelude::*;

use crate::artefact::{ArtefactError, Manifest, Writer};
use crate::blocks::BLOCK;
use crate::graph::{self, Graph};
use crate::mapped::{Mapped, as_bytes};
use crate::metric::Metric;
use crate::rotation::Rotation;
use crate::rows::Rows;
use crate::scan::{Centre, Encoder, Found, Query, Shape};
use crate::scratch::Scratch;
use crate::topk::Hit;

/// `[lists, dim]`.
const CENTROIDS: &str = "centroids.f32";
/// Blocks of the centroids' codes, relative to the mean of the rows.
const LISTS: &str = "lists.f32";

/// A walk that is to find some lists keeps so many more, and as many again as a quarter of them.
const MORE: usize = 32;

/// How lists are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CoarseSpec {
    /// How many there are.
    pub lists: usize,
    /// Links of a centroid; without a graph none.
    pub degree: Option<usize>,
}

/// The centroids of all lists, mapped from disk.
pub(super) struct Coarse {
    centroids: Rows,
    by: By,
}

enum By {
    Scan(Mapped<f32>),
    Graph(Graph),
}

impl Coarse {
    /// The files that find lists.
    pub fn names(spec: CoarseSpec) -> &'static [&'static str] {
        match spec.degree {
            Some(_) => &graph::FILES,
            None => &[CENTROIDS, LISTS],
        }
    }

    /// Writes what finds lists by their centroids `[lists, dim]`; gives these back as rows.
    pub fn build(
        centroids: &[f32],
        spec: CoarseSpec,
        metric: Metric,
        centre: &[f32],
        rotation: &Rotation,
        seed: u64,
        writer: &mut Writer,
        scratch: &Scratch,
    ) -> Result<Rows, ArtefactError> {
        let (dim, lists, metric) = (centre.len(), spec.lists, metric_of(metric));
        let write = |path: &Path| std::fs::write(path, as_bytes(centroids)).map_err(ArtefactError::io(path));
        if let Some(degree) = spec.degree {
            let rows = Rows::open(&scratch.make("centroids", write)?, lists, dim, metric)?;
            graph::build(&rows, degree, seed, writer, scratch)?;
            return Ok(rows);
        }
        let path = writer.path(CENTROIDS);
        write(&path)?;
        let rows = Rows::open(&path, lists, dim, metric)?;
        let encoder = Encoder { rows: &rows, rotation, bits: 1 };
        let blocks: Vec<Vec<f32>> = (0..lists.div_ceil(BLOCK))
            .into_par_iter()
            .map(|block| {
                let ids = block * BLOCK..lists.min((block + 1) * BLOCK);
                encoder.encode(ids, Centre { vector: centre, turned: None }, f32::NEG_INFINITY).0
            })
            .collect();
        writer.write(LISTS, as_bytes(&blocks.concat()))?;
        Ok(rows)
    }

    /// Maps what [`build`](Coarse::build) wrote.
    pub fn open(
        dir: &Path,
        manifest: &Manifest,
        spec: CoarseSpec,
        dim: usize,
        metric: Metric,
        seed: u64,
    ) -> Result<Self, ArtefactError> {
        let (lists, metric) = (spec.lists, metric_of(metric));
        let Some(degree) = spec.degree else {
            let numbers = lists.div_ceil(BLOCK) * Shape::new(dim).block;
            return Ok(Self {
                centroids: Rows::open(&manifest.path(dir, CENTROIDS)?, lists, dim, metric)?,
                by: By::Scan(Mapped::open(&manifest.path(dir, LISTS)?, numbers)?),
            });
        };
        let nodes = manifest.path(dir, graph::NODES)?;
        Ok(Self {
            centroids: graph::open_rows(&nodes, lists, dim, degree, metric)?,
            by: By::Graph(Graph::open(dir, manifest, lists, dim, degree, seed)?),
        })
    }

    /// The centroids `[lists, dim]`.
    pub fn into_centroids(self) -> Rows {
        self.centroids
    }

    /// How many lists there are.
    pub fn len(&self) -> usize {
        self.centroids.len()
    }

    /// The centroid of a list, which must be less than [`len`](Coarse::len).
    pub fn centroid(&self, list: u32) -> &[f32] {
        self.centroids.row(list as usize)
    }

    /// The nearest `count` lists, nearest first, with the exact scores of their centroids, but for those that `may` not.
    /// A scan finds others in their place.
    pub fn nearest(&self, query: &Query, count: usize, may: impl Fn(u32) -> bool) -> Vec<Hit> {
        match &self.by {
            By::Scan(codes) => {
                let shape = Shape::new(self.centroids.dim());
                let mut found = Found::new(count);
                let probe = query.probe();
                for (number, block) in codes.as_slice().chunks_exact(shape.block).enumerate() {
                    let id_of = |slot| (number * BLOCK + slot) as u32;
                    found.look(shape, block, probe, self.len(), id_of, &may);
                }
                found.decide(&self.centroids, query.given, count, usize::MAX, None)
            }
            By::Graph(graph) => {
                let breadth = graph.unsure(count + count / 4 + MORE);
                let found = graph.search(&self.centroids, query.given, count, breadth, None);
                found.into_iter().flatten().filter(|list| may(list.id)).collect()
            }
        }
    }
}

/// Centroids of rows of length 1 are shorter, each by its own.
fn metric_of(metric: Metric) -> Metric {
    match metric {
        Metric::Cosine => Metric::InnerProduct,
        other => other,
    }
}
