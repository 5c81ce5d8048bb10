//! Indexes that faiss builds and searches: `faiss:HNSW32,Flat` and whatever else its
//! `index_factory` takes.
//!
//! The faiss index is a plain faiss file beside the rows, which are kept as for every other kind: faiss
//! chooses rows, and their scores are computed from what is stored. So what holds for scores, ties and
//! filters holds here too; what faiss leaves out of the `k` asked for is found by reading every row.

mod import;
mod native;

pub(crate) use import::import;

use std::path::Path;
use std::sync::{PoisonError, RwLock};

use ::faiss::Index as _;
use ::faiss::MetricType;
use ::faiss::index::autotune::ParameterSpace;
use ::faiss::index::io::{IoFlags, read_index_with_flags, write_index};
use ::faiss::index::{IndexImpl, index_factory};

use crate::artefact::{self, ArtefactError, MANIFEST, Manifest, Writer};
use crate::flat;
use crate::rows::Rows;
use crate::spec::Factory;
use crate::topk::{Allow, Hit, TopK, share};
use crate::{IndexError, Metric, parallel};

/// The faiss index, as faiss writes it.
const FILE: &str = "index.faiss";
/// IO_FLAG_MMAP_IFC: flat codes and HNSW links stay in the file. What the crate calls MEM_MAP is
/// another flag.
const MAPPED: i32 = 1 << 9;
/// Numbers that faiss is trained on at most (1 GiB); it samples further by itself.
const TRAINING: usize = 1 << 28;
/// Numbers that are added at a time.
const BATCH: usize = 1 << 24;
/// What a breadth is called, and what it is where nobody has said: faiss's own 1 and 16 find little.
const PARAMETERS: [(&str, usize); 2] = [("nprobe", 16), ("efSearch", 64)];
/// Where less than one row in so many is allowed, reading these is the better way.
const TIGHT: usize = 16;

fn error(what: impl Into<String>) -> impl FnOnce(::faiss::error::Error) -> IndexError {
    let what = what.into();
    move |cause| IndexError::Faiss { what, why: cause.to_string() }
}

/// A path as faiss takes it.
fn text(path: &Path) -> Result<&str, IndexError> {
    path.to_str().ok_or_else(|| IndexError::Faiss {
        what: path.display().to_string(),
        why: "faiss takes paths in UTF-8 only".into(),
    })
}

fn metric_of(metric: Metric) -> MetricType {
    match metric {
        Metric::InnerProduct | Metric::Cosine => MetricType::InnerProduct,
        Metric::L2 => MetricType::L2,
    }
}

/// Builds the index that `factory` says over all rows. Memory: the whole faiss index.
pub(crate) fn build(rows: &Rows, factory: Factory, writer: &mut Writer) -> Result<(), IndexError> {
    let what = format!("faiss:{factory}");
    let mut index =
        index_factory(rows.dim() as u32, factory.as_str(), metric_of(rows.metric())).map_err(error(&what))?;
    if !index.is_trained() && rows.len() > 0 {
        // From all over: rows that follow each other may be alike.
        let step = rows.len().div_ceil((TRAINING / rows.dim()).max(1));
        let sample: Vec<f32> = (0..rows.len()).step_by(step).flat_map(|id| rows.row(id)).copied().collect();
        index
            .train(&sample)
            .map_err(error(format!("{what}: training on {} rows", sample.len() / rows.dim())))?;
    }
    let batch = (BATCH / rows.dim()).max(1);
    for first in (0..rows.len()).step_by(batch) {
        index.add(&rows.block(first, batch.min(rows.len() - first))).map_err(error(&what))?;
    }
    let path = writer.path(FILE);
    write_index(&index, text(&path)?).map_err(error(path.display().to_string()))
}

/// A faiss index, opened.
pub(crate) struct Native {
    index: IndexImpl,
    /// What sets its breadth, where anything does, and what it is where nobody has said.
    parameter: Option<(&'static str, usize)>,
    /// The breadth that it has now: faiss keeps it in the index.
    set: RwLock<usize>,
}

impl Native {
    /// Opens the faiss index of `rows` rows of `dim` numbers. Since faiss trusts what it reads, the file
    /// is hashed first.
    pub fn open(
        dir: &Path,
        manifest: &Manifest,
        rows: usize,
        dim: usize,
        metric: Metric,
    ) -> Result<Self, IndexError> {
        let path = manifest.path(dir, FILE)?;
        let (_, hash) = artefact::hash_file(&path)?;
        if manifest.files.get(FILE).is_none_or(|entry| entry.blake3 != hash) {
            let why = "its hash is not the one in the manifest".into();
            return Err(ArtefactError::Damaged { path, why }.into());
        }
        let index = read(&path)?;
        let (found, wanted) = (Shape::of(&index), Shape { rows, dim, metric: Some(metric_of(metric)) });
        if found != wanted {
            let why = format!("{}: holds {found}, but the manifest says {wanted}", path.display());
            return Err(ArtefactError::BadManifest { path: dir.join(MANIFEST), why }.into());
        }
        let space = ParameterSpace::new().map_err(error("ParameterSpace"))?;
        let parameter = PARAMETERS
            .into_iter()
            .find(|(name, own)| space.set_index_parameter(&index, name, *own as f64).is_ok());
        Ok(Self { index, parameter, set: RwLock::new(parameter.map_or(0, |(_, own)| own)) })
    }

    /// Whether more breadth can find more.
    pub fn has_breadth(&self) -> bool {
        self.parameter.is_some()
    }

    /// The `k` nearest rows of each prepared query; `k` is at most the number of rows.
    pub fn search(
        &self,
        rows: &Rows,
        queries: &[f32],
        k: usize,
        breadth: Option<usize>,
        allow: Allow,
    ) -> Result<Vec<Vec<Hit>>, IndexError> {
        let dim = rows.dim();
        let Some(allow) = allow else {
            let threads = rayon::current_num_threads();
            let labels = self.ask(queries, dim, k, breadth, threads)?;
            let each: Vec<(&[f32], &[i64])> = queries.chunks_exact(dim).zip(labels.chunks_exact(k)).collect();
            return Ok(parallel::map(each.len(), true, |query| {
                let (query, labels) = each[query];
                score(rows, query, labels, k, |_| true).unwrap_or_else(|| exact(rows, query, k, None))
            }));
        };
        let each: Vec<&[f32]> = queries.chunks_exact(dim).collect();
        parallel::map(each.len(), true, |number| {
            self.search_allowed(rows, each[number], k, breadth, &|id| allow(number, id))
        })
        .into_iter()
        .collect()
    }

    /// Asks for more than `k` and leaves out what is not allowed: several kinds of faiss index know no
    /// filter, and a graph that keeps to the allowed nodes gets lost where they are few.
    fn search_allowed(
        &self,
        rows: &Rows,
        query: &[f32],
        k: usize,
        breadth: Option<usize>,
        may: &(dyn Fn(u32) -> bool + Sync),
    ) -> Result<Vec<Hit>, IndexError> {
        let (allowed, sample) = share(rows.len(), may);
        if allowed * TIGHT >= sample {
            let mut fetch = k.saturating_mul(sample) / allowed.max(1) * 5 / 4 + 8;
            while fetch < rows.len() / 4 {
                let labels = self.ask(query, rows.dim(), fetch, breadth, 1)?;
                if let Some(hits) = score(rows, query, &labels, k, may) {
                    return Ok(hits);
                }
                fetch *= 4;
            }
        }
        Ok(exact(rows, query, k, Some(&|_, id| may(id))))
    }

    /// The labels of the `k` rows that faiss finds for each query, nearest first; -1 where it finds none.
    fn ask(
        &self,
        queries: &[f32],
        dim: usize,
        k: usize,
        breadth: Option<usize>,
        threads: usize,
    ) -> Result<Vec<i64>, IndexError> {
        let search = || {
            native::search(&self.index, queries, dim, k, threads)
                .map_err(|why| IndexError::Faiss { what: "a search".into(), why })
        };
        let Some((name, own)) = self.parameter else { return search() };
        // faiss has an `int` there.
        let wanted = breadth.unwrap_or(own).clamp(1, i32::MAX as usize);
        {
            let set = self.set.read().unwrap_or_else(PoisonError::into_inner);
            if *set == wanted {
                return search();
            }
        }
        let mut set = self.set.write().unwrap_or_else(PoisonError::into_inner);
        let space = ParameterSpace::new().map_err(error("ParameterSpace"))?;
        space.set_index_parameter(&self.index, name, wanted as f64).map_err(error(name))?;
        *set = wanted;
        search()
    }
}

/// The `k` best of the allowed rows among these labels; none where there are fewer.
fn score(
    rows: &Rows,
    query: &[f32],
    labels: &[i64],
    k: usize,
    may: impl Fn(u32) -> bool,
) -> Option<Vec<Hit>> {
    let mut ids: Vec<usize> = labels
        .iter()
        .filter_map(|&label| usize::try_from(label).ok())
        .filter(|&id| id < rows.len())
        .collect();
    ids.sort_unstable();
    ids.dedup();
    let mut best = TopK::new(k);
    ids.into_iter().filter(|&id| may(id as u32)).for_each(|id| best.push(rows.hit(id, query)));
    let hits = best.into_sorted();
    (hits.len() == k).then_some(hits)
}

/// By reading every row.
fn exact(rows: &Rows, query: &[f32], k: usize, allow: Allow) -> Vec<Hit> {
    flat::search(rows, query, k, allow).pop().unwrap_or_default()
}

fn read(path: &Path) -> Result<IndexImpl, IndexError> {
    read_index_with_flags(text(path)?, IoFlags::from(MAPPED)).map_err(error(path.display().to_string()))
}

/// What a faiss index is over.
#[derive(PartialEq)]
struct Shape {
    rows: usize,
    dim: usize,
    /// None for metrics that this crate does not have.
    metric: Option<MetricType>,
}

impl Shape {
    fn of(index: &IndexImpl) -> Self {
        Self { rows: index.ntotal() as usize, dim: index.d() as usize, metric: native::metric(index) }
    }
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let metric = match self.metric {
            Some(MetricType::InnerProduct) => "inner product",
            Some(MetricType::L2) => "L2",
            None => "another metric",
        };
        write!(f, "{} x {} under {metric}", self.rows, self.dim)
    }
}
