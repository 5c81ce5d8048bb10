//! An index on disk, opened for search.

use std::borrow::Cow;
use std::ops::RangeInclusive;
use std::path::Path;

use crate::artefact::{self, ArtefactError, MANIFEST};
use crate::faiss::Native;
use crate::graph::{self, Graph};
use crate::hnsw::Hnsw;
use crate::ivf::{self, CoarseSpec, Ivf};
use crate::meta::{KIND, Meta, VECTORS, VERSIONS};
use crate::quantized::QuantizedRows;
use crate::rabitq::Codes;
use crate::rows::Rows;
use crate::topk::{Allow, Hit, Least};
use crate::{Builder, IndexError, Metric, Spec, flat, single};

/// More breadth than this makes reading every row the better way.
const MOST: usize = 1 << 14;

/// An index, memory-mapped: opening reads the manifest only, and searches read what they need.
/// It can be searched from many threads at once.
pub struct Index {
    len: usize,
    dim: usize,
    metric: Metric,
    spec: Spec,
    engine: Engine,
    identity: String,
    breadth: Option<usize>,
}

/// The rows, and what chooses among them.
enum Engine {
    Flat(Rows),
    Sq(QuantizedRows),
    Hnsw(Rows, Hnsw),
    RaBitQ(Rows, Codes),
    Graph(Rows, Graph),
    Ivf(Rows, Box<Ivf>),
    Faiss(Rows, Native),
}

/// The rows of an index of any kind.
enum Stored<'a> {
    Whole(&'a Rows),
    Quantized(&'a QuantizedRows),
}

impl Engine {
    fn stored(&self) -> Stored<'_> {
        match self {
            Engine::Flat(rows)
            | Engine::Hnsw(rows, _)
            | Engine::RaBitQ(rows, _)
            | Engine::Graph(rows, _)
            | Engine::Ivf(rows, _)
            | Engine::Faiss(rows, _) => Stored::Whole(rows),
            Engine::Sq(rows) => Stored::Quantized(rows),
        }
    }
}

impl Index {
    /// Opens the index in `dir`. The lengths of the files are checked; for their contents there is
    /// [`artefact::verify`]. A file whose bytes have changed gives wrong neighbours, never worse.
    ///
    /// # Errors
    /// No index there, an artefact of another kind or version, missing files or files of another
    /// length, a manifest that contradicts itself.
    pub fn open(dir: &Path) -> Result<Self, IndexError> {
        let manifest = artefact::open(dir, KIND, VERSIONS)?;
        let meta: Meta = manifest.meta_as(dir)?;
        let contradiction =
            |why: &str| ArtefactError::BadManifest { path: dir.join(MANIFEST), why: why.into() };
        if !(1..=Builder::MAX_DIM).contains(&meta.dim) {
            return Err(contradiction("meta: the dimension is out of range").into());
        }
        if meta.rows > u32::MAX as usize {
            return Err(contradiction("meta: more rows than ids").into());
        }
        let rows = || Rows::open(&manifest.path(dir, VECTORS)?, meta.rows, meta.dim, meta.metric);
        let scattered =
            || Rows::open_scattered(&manifest.path(dir, VECTORS)?, meta.rows, meta.dim, meta.metric);
        let engine = match meta.spec {
            Spec::Flat => Engine::Flat(rows()?),
            Spec::Sq(quantizer) => {
                let path = manifest.path(dir, quantizer.file())?;
                Engine::Sq(QuantizedRows::open(&path, quantizer, meta.rows, meta.dim, meta.metric)?)
            }
            Spec::Hnsw { m } => {
                let graph = meta.graph.ok_or_else(|| contradiction("meta: an HNSW index without graph"))?;
                Engine::Hnsw(rows()?, Hnsw::open(dir, &manifest, graph, m, meta.rows)?)
            }
            // Its codes can no longer be read; the rows can. Compacting makes it fast again.
            Spec::RaBitQ { .. } if manifest.format_version == 1 => Engine::Flat(rows()?),
            Spec::RaBitQ { bits } => {
                let codes = Codes::open(dir, &manifest, meta.rows, meta.dim, bits, meta.seed)?;
                Engine::RaBitQ(scattered()?, codes)
            }
            Spec::Graph { degree } => {
                let path = manifest.path(dir, graph::NODES)?;
                let rows = graph::open_rows(&path, meta.rows, meta.dim, degree, meta.metric)?;
                Engine::Graph(rows, Graph::open(dir, &manifest, meta.rows, meta.dim, degree, meta.seed)?)
            }
            Spec::Ivf { lists, graph, bits } => {
                let lists = (CoarseSpec { lists, degree: graph }, bits);
                let lists = Ivf::open(dir, &manifest, meta.dim, meta.metric, lists, meta.seed)?;
                Engine::Ivf(scattered()?, Box::new(lists))
            }
            Spec::Faiss(_) => {
                let native = Native::open(dir, &manifest, meta.rows, meta.dim, meta.metric)?;
                Engine::Faiss(rows()?, native)
            }
        };
        Ok(Self {
            len: meta.rows,
            dim: meta.dim,
            metric: meta.metric,
            spec: meta.spec,
            engine,
            identity: manifest.identity(),
            breadth: None,
        })
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Numbers in a vector.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// How nearness is measured.
    pub fn metric(&self) -> Metric {
        self.metric
    }

    /// What kind of index it is.
    pub fn spec(&self) -> Spec {
        self.spec
    }

    /// Hash over all that the index holds: two with the same identity hold the same bytes.
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// The effort of searches through this handle, where it has been set: the nodes that a walk on
    /// a graph keeps, the most rows that a scan of codes scores, or the lists that an inverted file
    /// probes. More breadth finds more of the true neighbours, and takes longer. `Flat` and its like
    /// need none.
    pub fn breadth(&self) -> Option<usize> {
        self.breadth
    }

    /// Sets the [`breadth`](Index::breadth); `None` is the kind's own: for graphs one that finds
    /// about 97 in 100 of the ten nearest on text, for codes as many rows as their error bound asks for, for
    /// an inverted file one in sixteen of its lists, and eight at least, for faiss an `efSearch` of 64 or an
    /// `nprobe` of 16.
    pub fn set_breadth(&mut self, breadth: Option<usize>) {
        self.breadth = breadth;
    }

    /// Row `id` as it is stored: scaled to length 1 under cosine, and rounded where the kind rounds.
    /// Rows that are kept as `f32` are borrowed from the mapped file.
    pub fn vector(&self, id: u32) -> Option<Cow<'_, [f32]>> {
        let id = id as usize;
        (id < self.len).then(|| match self.engine.stored() {
            Stored::Whole(rows) => Cow::Borrowed(rows.row(id)),
            Stored::Quantized(rows) => Cow::Owned(rows.row(id)),
        })
    }

    /// The `k` nearest rows to `query`, nearest first, equal scores by id. With `allow`, only rows
    /// for which it is true; it is asked during the search, so `k` of them are found where there
    /// are as many. With `k` above the number of rows, all rows.
    ///
    /// # Errors
    /// A query of another length than the dimension, or with NaN or infinity.
    pub fn search(
        &self,
        query: &[f32],
        k: usize,
        allow: Option<&(dyn Fn(u32) -> bool + Sync)>,
    ) -> Result<Vec<Hit>, IndexError> {
        single::search(query, self.dim(), allow, |allow| self.search_batch(query, k, allow))
    }

    /// [`search`](Index::search) for many queries `[queries, dim]`, row-major, on all threads of
    /// the current rayon pool; the results do not depend on their number. `allow` is also given
    /// the query's place in the batch.
    ///
    /// # Errors
    /// A length that is no multiple of the dimension, or a query with NaN or infinity (its place
    /// is named).
    pub fn search_batch(
        &self,
        queries: &[f32],
        k: usize,
        allow: Option<&(dyn Fn(usize, u32) -> bool + Sync)>,
    ) -> Result<Vec<Vec<Hit>>, IndexError> {
        self.search_above(queries, k, None, allow)
    }

    /// [`search_batch`](Index::search_batch), where only those rows are of use that reach `least`: a scan of codes leaves
    /// others out. A graph finds them all the same, for a walk has to pass what is far.
    pub(crate) fn search_above(
        &self,
        queries: &[f32],
        k: usize,
        least: Least,
        allow: Allow,
    ) -> Result<Vec<Vec<Hit>>, IndexError> {
        self.run(&self.prepare(queries)?, k.min(self.len()), self.breadth, least, allow)
    }

    /// [`search_batch`](Index::search_batch) by comparing with every row as it is stored, whatever
    /// the kind of the index: the truth that recall is measured by.
    ///
    /// # Errors
    /// As [`search_batch`](Index::search_batch).
    pub fn search_exactly(
        &self,
        queries: &[f32],
        k: usize,
        allow: Option<&(dyn Fn(usize, u32) -> bool + Sync)>,
    ) -> Result<Vec<Vec<Hit>>, IndexError> {
        let queries = self.prepare(queries)?;
        Ok(match (k.min(self.len), self.engine.stored()) {
            (0, _) => vec![Vec::new(); queries.len() / self.dim],
            (k, Stored::Whole(rows)) => flat::search(rows, &queries, k, allow),
            (k, Stored::Quantized(rows)) => flat::search(rows, &queries, k, allow),
        })
    }

    /// The lists and rows of an inverted file, and how many lists are probed.
    pub(crate) fn lists(&self) -> Option<(&Ivf, &Rows, usize)> {
        match &self.engine {
            Engine::Ivf(rows, lists) => {
                Some((lists.as_ref(), rows, self.breadth.unwrap_or(lists.default_breadth())))
            }
            _ => None,
        }
    }

    /// The least and the most [`breadth`](Index::breadth) that makes sense for `k`; none where
    /// more does not find more.
    pub(crate) fn breadths(&self, k: usize) -> Option<RangeInclusive<usize>> {
        match (&self.engine, self.spec) {
            (Engine::Flat(_) | Engine::Sq(_), _) => None,
            (_, Spec::Ivf { lists, .. }) => Some(1..=lists),
            (Engine::Faiss(_, native), _) => native.has_breadth().then(|| 1..=MOST.min(self.len).max(1)),
            _ => Some(k.max(1)..=MOST.min(self.len()).max(k).max(1)),
        }
    }

    /// Checks queries and makes them ready.
    pub(crate) fn prepare(&self, queries: &[f32]) -> Result<Vec<f32>, IndexError> {
        let dim = self.dim();
        if !queries.len().is_multiple_of(dim) {
            return Err(IndexError::Length { what: "queries", found: queries.len(), dim, many: true });
        }
        let mut queries = queries.to_vec();
        for (number, query) in queries.chunks_exact_mut(dim).enumerate() {
            if !self.metric().prepare(query) {
                return Err(IndexError::NotFinite { what: "query", number });
            }
        }
        Ok(queries)
    }

    /// Searches with prepared queries; `k` is at most the number of rows. Only faiss has errors.
    pub(crate) fn run(
        &self,
        queries: &[f32],
        k: usize,
        breadth: Option<usize>,
        least: Least,
        allow: Allow,
    ) -> Result<Vec<Vec<Hit>>, IndexError> {
        if k == 0 {
            return Ok(vec![Vec::new(); queries.len() / self.dim()]);
        }
        Ok(match &self.engine {
            Engine::Flat(rows) => flat::search(rows, queries, k, allow),
            Engine::Sq(rows) => flat::search(rows, queries, k, allow),
            Engine::Hnsw(rows, graph) => {
                let breadth = breadth.unwrap_or(Hnsw::default_breadth(k));
                graph.search(rows, queries, k, breadth, allow)
            }
            Engine::RaBitQ(rows, codes) => {
                // A row that is not scored is not found.
                let breadth = breadth.map_or(usize::MAX, |breadth| breadth.max(k));
                codes.search(rows, queries, k, breadth, least, allow)
            }
            Engine::Graph(rows, graph) => {
                let breadth = breadth.unwrap_or(graph.default_breadth(k));
                graph.search(rows, queries, k, breadth, allow)
            }
            Engine::Ivf(rows, lists) => {
                let breadth = breadth.unwrap_or(lists.default_breadth());
                let member = ivf::Member { ivf: lists, rows, allow };
                ivf::search(&[member], queries, k, breadth, least).remove(0)
            }
            Engine::Faiss(rows, native) => native.search(rows, queries, k, breadth, allow)?,
        })
    }
}
