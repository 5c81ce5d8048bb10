//! Hierarchical navigable small worlds (Malkov and Yashunin, 2016; arXiv 1603.09320).
//!
//! The crate `hnsw_rs` builds the graph, from row numbers and a distance that looks the rows up in
//! the mapped file. What it links is then written in a form that can be mapped too, and searched
//! here (algorithms 2 and 5 of the paper): `hnsw_rs` would read its own files into one allocation
//! a link, and end the process where they are damaged.
//!
//! The graph is the same each time: rows go in one by one, in order, and the levels come from a
//! fixed seed inside `hnsw_rs`.

use std::collections::{BinaryHeap, HashMap};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use hnsw_rs::anndists::dist::Distance;

use serde::{Deserialize, Serialize};

use crate::artefact::{ArtefactError, MANIFEST, Manifest, Writer};
use crate::mapped::Mapped;
use crate::metric::{Metric, dot, lifts, squared_distance};
use crate::rows::Rows;
use crate::topk::{Allow, Hit, TopK};
use crate::{flat, parallel};

/// Links of the lowest layer `[rows, 2 m]`, the free places filled with [`NONE`].
const LINKS: &str = "links.u32";
/// The layers above, lowest first: for each node of a layer, by id, its id and its `m` links.
const UPPER: &str = "upper.u32";
/// No node.
const NONE: u32 = u32::MAX;

/// Candidates that an insertion looks at (`efConstruction`).
const BUILD_BREADTH: usize = 200;
/// The most layers that `hnsw_rs` makes.
const LAYERS: usize = 16;

/// What the manifest says of the graph.
#[derive(Serialize, Deserialize)]
pub(crate) struct GraphMeta {
    /// The node that searches start from.
    entry: u32,
    /// How many nodes each upper layer has, lowest first.
    upper: Vec<usize>,
}

/// The distance between rows that the graph is built with: squared Euclidean, with one dimension
/// more for the inner product.
struct RowDistance<'a> {
    rows: &'a Rows,
    /// The additional number of each row (see [`lifts`]); empty but for the inner product.
    lifts: Vec<f32>,
}

impl<'a> RowDistance<'a> {
    fn new(rows: &'a Rows) -> Self {
        let square = |id| dot(rows.row(id), rows.row(id));
        let lifts = match rows.metric() {
            Metric::InnerProduct => lifts(&mut (0..rows.len()).map(square).collect::<Vec<_>>()),
            Metric::Cosine | Metric::L2 => Vec::new(),
        };
        Self { rows, lifts }
    }
}

impl Distance<u32> for RowDistance<'_> {
    fn eval(&self, a: &[u32], b: &[u32]) -> f32 {
        let (a, b) = (a[0] as usize, b[0] as usize);
        let distance = squared_distance(self.rows.row(a), self.rows.row(b));
        match self.lifts.is_empty() {
            true => distance,
            false => distance + (self.lifts[a] - self.lifts[b]).powi(2),
        }
    }
}

/// Builds the graph over all rows. Memory: the links, a few hundred bytes a row and link.
pub(crate) fn build(rows: &Rows, m: usize, writer: &mut Writer) -> Result<GraphMeta, ArtefactError> {
    let hnsw: hnsw_rs::hnsw::Hnsw<u32, RowDistance> =
        hnsw_rs::hnsw::Hnsw::new(m, rows.len(), LAYERS, BUILD_BREADTH, RowDistance::new(rows));
    for id in 0..rows.len() {
        hnsw.insert((&[id as u32], id));
    }

    // All links, by layer and node; `hnsw_rs` keeps its nodes by their highest layer.
    let mut layers: Vec<HashMap<u32, Vec<u32>>> = vec![HashMap::new(); LAYERS];
    let mut entry = 0;
    for top in 0..LAYERS {
        for (rank, point) in hnsw.get_point_indexation().get_layer_iterator(top).enumerate() {
            let id = point.get_origin_id() as u32;
            if rank == 0 {
                // `hnsw_rs` enters at the first node of the highest layer.
                entry = id;
            }
            for (layer, links) in point.get_neighborhood_id().into_iter().take(top + 1).enumerate() {
                layers[layer].insert(id, links.iter().map(|link| link.d_id as u32).collect());
            }
        }
    }
    drop(hnsw);

    let path = writer.path(LINKS);
    write(&path, |out| {
        (0..rows.len() as u32).try_for_each(|id| {
            let links = layers[0].get(&id).map_or(&[][..], Vec::as_slice);
            write_links(out, links, 2 * m)
        })
    })?;
    let path = writer.path(UPPER);
    write(&path, |out| {
        for layer in &layers[1..] {
            let mut nodes: Vec<_> = layer.iter().collect();
            nodes.sort_unstable_by_key(|(id, _)| **id);
            for (id, links) in nodes {
                out.write_all(&id.to_le_bytes())?;
                write_links(out, links, m)?;
            }
        }
        Ok(())
    })?;
    let upper = layers[1..].iter().map(HashMap::len).take_while(|&nodes| nodes > 0).collect();
    Ok(GraphMeta { entry, upper })
}

fn write(
    path: &Path,
    content: impl FnOnce(&mut BufWriter<File>) -> std::io::Result<()>,
) -> Result<(), ArtefactError> {
    let write = || {
        let mut out = BufWriter::new(File::create(path)?);
        content(&mut out)?;
        out.flush()
    };
    write().map_err(ArtefactError::io(path))
}

fn write_links(out: &mut impl Write, links: &[u32], places: usize) -> std::io::Result<()> {
    let free = std::iter::repeat(&NONE);
    links.iter().chain(free).take(places).try_for_each(|id| out.write_all(&id.to_le_bytes()))
}

/// The graph of an index, mapped from disk.
pub(crate) struct Hnsw {
    links: Mapped<u32>,
    upper: Mapped<u32>,
    /// How many nodes each upper layer has, lowest first.
    upper_len: Vec<usize>,
    entry: usize,
    m: usize,
}

impl Hnsw {
    /// Maps the graph over `rows` rows. The ids in its files are checked where they are used.
    pub fn open(
        dir: &Path,
        manifest: &Manifest,
        meta: GraphMeta,
        m: usize,
        rows: usize,
    ) -> Result<Self, ArtefactError> {
        let entry = meta.entry as usize;
        let nodes = meta.upper.iter().try_fold(0usize, |sum, &nodes| sum.checked_add(nodes));
        let (Some(nodes), true) = (nodes, entry < rows.max(1)) else {
            let why = "meta: a graph with nodes that are no rows".into();
            return Err(ArtefactError::BadManifest { path: dir.join(MANIFEST), why });
        };
        Ok(Self {
            links: Mapped::open(&manifest.path(dir, LINKS)?, rows.saturating_mul(2 * m))?,
            upper: Mapped::open(&manifest.path(dir, UPPER)?, nodes.saturating_mul(m + 1))?,
            upper_len: meta.upper,
            entry,
            m,
        })
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
        let one = |number, query: &[f32]| self.search_one(rows, query, number, k, breadth, allow);
        parallel::each_query(queries, rows.dim(), || (), |(), number, query| one(number, query))
    }

    /// Candidates that a search looks at (`ef`): enough for a recall@10 of 0.98 on most data.
    pub fn default_breadth(k: usize) -> usize {
        (4 * k).max(128)
    }

    fn search_one(
        &self,
        rows: &Rows,
        query: &[f32],
        number: usize,
        k: usize,
        breadth: usize,
        allow: Allow,
    ) -> Vec<Hit> {
        let allow = |id: u32| allow.is_none_or(|allow| allow(number, id));
        let breadth = breadth.max(k);
        if breadth < rows.len() {
            let mut found = self.walk(rows, query, breadth, &allow);
            found.truncate(k);
            if found.len() == k {
                return found;
            }
        }
        // The walk costs as much as reading all rows, or cannot reach enough of those allowed.
        flat::search(rows, query, k, Some(&|_, id| allow(id))).pop().unwrap_or_default()
    }

    /// Algorithm 5 of the paper, with up to `breadth` (`ef`) results. Rows that are not allowed
    /// are walked over, but neither kept nor counted.
    fn walk(&self, rows: &Rows, query: &[f32], breadth: usize, allow: &dyn Fn(u32) -> bool) -> Vec<Hit> {
        let mut visited = vec![0u64; rows.len().div_ceil(64)];
        let mut is_new = |id: usize| {
            let seen = visited[id / 64] >> (id % 64) & 1 == 1;
            visited[id / 64] |= 1 << (id % 64);
            !seen
        };
        let entry = self.descend(rows, query);
        is_new(entry.id as usize);
        let mut found = TopK::new(breadth);
        let mut frontier = BinaryHeap::from([entry]);
        if allow(entry.id) {
            found.push(entry);
        }
        while let Some(node) = frontier.pop() {
            if node.score < found.threshold() {
                break;
            }
            let links = &self.links.as_slice()[node.id as usize * 2 * self.m..][..2 * self.m];
            for id in valid(links, rows.len()) {
                if !is_new(id) {
                    continue;
                }
                let hit = rows.hit(id, query);
                if hit.score >= found.threshold() {
                    frontier.push(hit);
                    if allow(hit.id) {
                        found.push(hit);
                    }
                }
            }
        }
        found.into_sorted()
    }

    /// Walks down the upper layers, in each to a node that none of its links betters.
    fn descend(&self, rows: &Rows, query: &[f32]) -> Hit {
        let mut best = rows.hit(self.entry, query);
        let mut layers = Vec::with_capacity(self.upper_len.len());
        let mut rest = self.upper.as_slice();
        for &nodes in &self.upper_len {
            let (layer, above) = rest.split_at(nodes * (self.m + 1));
            layers.push(layer);
            rest = above;
        }
        for layer in layers.into_iter().rev() {
            loop {
                let links = valid(self.upper_links(layer, best.id), rows.len());
                let nearest = links.map(|id| rows.hit(id, query)).filter(|hit| hit.score > best.score).max();
                match nearest {
                    Some(nearest) => best = nearest,
                    None => break,
                }
            }
        }
        best
    }

    /// The links of a node in an upper layer; none where it is not there.
    fn upper_links<'a>(&self, layer: &'a [u32], id: u32) -> &'a [u32] {
        let stride = self.m + 1;
        let (mut low, mut high) = (0, layer.len() / stride);
        while low < high {
            let middle = (low + high) / 2;
            match layer[middle * stride].cmp(&id) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
                std::cmp::Ordering::Equal => return &layer[middle * stride + 1..][..self.m],
            }
        }
        &[]
    }
}

/// The links that lead to a row; free places and what damage has made of others do not.
fn valid(links: &[u32], rows: usize) -> impl Iterator<Item = usize> {
    links.iter().map(|&id| id as usize).filter(move |&id| id < rows)
}
