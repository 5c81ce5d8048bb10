//! Vectors under ids of the caller's own, that come and go.
//!
//! A collection is a folder of *segments*: indexes that are never changed, each with the ids of
//! its rows and the set of those that are dead. All of them hang on one manifest, so each commit
//! is there wholly or not at all, whatever happens to the program or the machine: see
//! `FORMAT.md` for the files.
//!
//! Rows lie by ascending id within a segment. An id is therefore found by bisection in the mapped
//! file, and equal scores come by id without a sort.

mod join;
mod meta;
mod pending;
mod writer;

#[cfg(test)]
pub(crate) mod faults;

use std::borrow::Cow;
use std::cmp::Ordering;
use std::fs;
use std::path::{Path, PathBuf};

use self::meta::{KIND, Meta, SegmentMeta, VERSION, dead_name, ids_name};
pub use self::writer::CollectionWriter;
use crate::artefact::{self, ArtefactError, MANIFEST, Manifest};
use crate::mapped::Mapped;
use crate::segments::{FoundInPart, How, merge};
use crate::topk::Hit;
use crate::{Bitmap, Builder, Index, IndexError, Metric, Segments, Spec, single};

/// A vector that was found, by its own id.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Neighbour {
    /// The id that it was added under.
    pub id: u64,
    /// How near it is; larger is nearer. Under L2 it is minus the squared distance.
    pub score: f32,
}

impl Eq for Neighbour {}

impl Ord for Neighbour {
    /// The greater one comes first in a result: the larger score, then the smaller id.
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then(other.id.cmp(&self.id))
    }
}

impl PartialOrd for Neighbour {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// A folder of vectors under `u64` ids, which can be added, replaced and deleted while others
/// search. This is the reading side: one *generation*, memory-mapped, that stays as it is while
/// writers go on. Any number of processes can read, and each searches from many threads at once.
///
/// ```
/// use sidenote_index::{Collection, Metric};
///
/// # fn main() -> Result<(), sidenote_index::IndexError> {
/// # let temporary = tempfile::tempdir().expect("a temporary folder");
/// # let dir = &temporary.path().join("vectors");
/// let mut writer = Collection::create(dir, 2, Metric::Cosine, None, 42)?;
/// writer.add(&[700, 800], &[1.0, 0.0, /* 800: */ 0.0, 1.0])?;
/// writer.commit()?;
///
/// let before = Collection::open(dir)?;
/// writer.upsert(&[900, 800], &[0.8, 0.6, /* 800: */ -1.0, 0.0])?;
/// writer.delete(&[700])?;
/// writer.commit()?;
///
/// let ids = |collection: &Collection| -> Result<Vec<u64>, sidenote_index::IndexError> {
///     Ok(collection.search(&[1.0, 0.0], 3, None)?.iter().map(|found| found.id).collect())
/// };
/// assert_eq!(ids(&before)?, [700, 800]);
/// assert_eq!(ids(&Collection::open(dir)?)?, [900, 800]);
/// # Ok(())
/// # }
/// ```
pub struct Collection {
    dir: PathBuf,
    manifest: Manifest,
    meta: Meta,
    segments: Segments,
    /// The ids of each segment's rows, ascending.
    ids: Vec<Mapped<u64>>,
}

impl Collection {
    /// Makes an empty collection of vectors of `dim` numbers in `dir`, which is created where it
    /// does not exist, and gives its writer. Segments are of the kind `spec`, or of the one that
    /// [`Spec::default_for`] takes for their size. `seed` fixes what is random in building them.
    ///
    /// # Errors
    /// [`IndexError::CollectionExists`] where there is one; an artefact of another kind there; a
    /// dimension or spec out of range; a folder that cannot be written.
    pub fn create(
        dir: &Path,
        dim: usize,
        metric: Metric,
        spec: Option<Spec>,
        seed: u64,
    ) -> Result<CollectionWriter, IndexError> {
        CollectionWriter::create(dir, dim, metric, spec, seed)
    }

    /// Opens the collection in `dir` for writing. There is one writer at a time; see
    /// [`Lock`](crate::Lock).
    ///
    /// # Errors
    /// [`IndexError::Locked`] while there is another writer; otherwise as for
    /// [`open`](Collection::open), and a folder that cannot be written.
    pub fn write(dir: &Path) -> Result<CollectionWriter, IndexError> {
        CollectionWriter::open(dir)
    }

    /// Opens the generation that was committed last, for reading. It needs no lock and no right
    /// to write, and a commit at the same moment does no harm.
    ///
    /// # Errors
    /// No collection there, an artefact of another kind or version, missing files or files of
    /// another length, a manifest that contradicts itself.
    pub fn open(dir: &Path) -> Result<Self, IndexError> {
        loop {
            let manifest = artefact::read_manifest(dir)?;
            match Self::of(dir, &manifest) {
                // A commit came between and removed what the old manifest names.
                Err(_) if is_outdated(dir, &manifest) => {}
                opened => return opened,
            }
        }
    }

    /// Reads every byte of the collection in `dir` and reports all that is wrong. An empty list
    /// means that it is whole.
    ///
    /// # Errors
    /// No collection there, or a manifest that names nothing to check.
    pub fn verify(dir: &Path) -> Result<Vec<ArtefactError>, IndexError> {
        loop {
            let manifest = artefact::read_manifest(dir)?;
            let problems = problems(dir, &manifest)?;
            if problems.is_empty() || !is_outdated(dir, &manifest) {
                return Ok(problems);
            }
        }
    }

    fn of(dir: &Path, manifest: &Manifest) -> Result<Self, IndexError> {
        artefact::check(dir, manifest, KIND, VERSION)?;
        let meta: Meta = manifest.meta_as(dir)?;
        if !(1..=Builder::MAX_DIM).contains(&meta.dim) {
            return Err(contradiction(dir, "the dimension is out of range".into()).into());
        }
        let mut segments = Segments::empty(meta.dim, meta.metric);
        let mut ids = Vec::new();
        for segment in &meta.segments {
            let index = Index::open(&segment.folder(dir))?;
            check_segment(dir, segment)?;
            if index.len() != segment.rows {
                let why =
                    format!("segment {} has {} rows, not {}", segment.number, index.len(), segment.rows);
                return Err(contradiction(dir, why).into());
            }
            ids.push(Mapped::open(&manifest.path(dir, &ids_name(segment.number))?, index.len())?);
            segments.push(index, read_dead(dir, manifest, segment)?)?;
        }
        Ok(Self { dir: dir.into(), manifest: manifest.clone(), meta, segments, ids })
    }

    /// Number of vectors.
    pub fn len(&self) -> usize {
        self.segments.live()
    }

    /// Whether there are no vectors.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Numbers in a vector.
    pub fn dim(&self) -> usize {
        self.meta.dim
    }

    /// How nearness is measured.
    pub fn metric(&self) -> Metric {
        self.meta.metric
    }

    /// The kind of all segments; none where it goes by their size.
    pub fn spec(&self) -> Option<Spec> {
        self.meta.spec
    }

    /// How many commits have changed the collection.
    pub fn generation(&self) -> u64 {
        self.meta.generation
    }

    /// Hash over all that the collection holds, and its generation.
    pub fn identity(&self) -> String {
        self.manifest.identity()
    }

    /// Whether this is still the generation that was committed last; when not,
    /// [`open`](Collection::open) gives the newer one.
    pub fn is_current(&self) -> bool {
        !is_outdated(&self.dir, &self.manifest)
    }

    /// Number of segments. A search goes through each of them, so when there are many (more than
    /// ten, say) it is time for [`CollectionWriter::compact`].
    pub fn segments(&self) -> usize {
        self.ids.len()
    }

    /// Number of rows that are dead but still take space and time, until they are compacted away.
    pub fn dead(&self) -> usize {
        self.segments.len() - self.segments.live()
    }

    /// Sets the effort of searches through this handle, in every segment: see
    /// [`Index::set_breadth`].
    pub fn set_breadth(&mut self, breadth: Option<usize>) {
        (0..self.segments()).for_each(|part| self.segments.set_breadth(part, breadth));
    }

    /// Whether there is a vector under `id`.
    pub fn contains(&self, id: u64) -> bool {
        self.locate(id).is_some()
    }

    /// The vector under `id` as it is stored: see [`Index::vector`].
    pub fn vector(&self, id: u64) -> Option<Cow<'_, [f32]>> {
        let (part, row) = self.locate(id)?;
        self.segments.part(part).vector(row)
    }

    /// The ids of all vectors, ascending within each segment.
    pub fn ids(&self) -> impl Iterator<Item = u64> {
        (0..self.segments()).flat_map(|part| self.rows_of(part)).map(|(id, _)| id)
    }

    /// The `k` nearest vectors to `query`, nearest first, equal scores by id. With `allow`, only
    /// those for whose id it is true; it is asked during the search, so `k` of them are found where
    /// there are as many. With `k` above the number of vectors, all.
    ///
    /// # Errors
    /// A query of another length than the dimension, or with NaN or infinity.
    pub fn search(
        &self,
        query: &[f32],
        k: usize,
        allow: Option<&(dyn Fn(u64) -> bool + Sync)>,
    ) -> Result<Vec<Neighbour>, IndexError> {
        single::search(query, self.dim(), allow, |allow| self.search_batch(query, k, allow))
    }

    /// [`search`](Collection::search) for many queries `[queries, dim]`, row-major, on all threads
    /// of the current rayon pool; the results do not depend on their number. `allow` is also given
    /// the query's place in the batch.
    ///
    /// # Errors
    /// A length that is no multiple of the dimension, or a query with NaN or infinity (its place
    /// is named).
    pub fn search_batch(
        &self,
        queries: &[f32],
        k: usize,
        allow: Option<&(dyn Fn(usize, u64) -> bool + Sync)>,
    ) -> Result<Vec<Vec<Neighbour>>, IndexError> {
        let by_row = |part: usize, query: usize, row: u32| {
            allow.is_some_and(|allow| allow(query, self.ids[part].as_slice()[row as usize]))
        };
        let found =
            self.segments.search_parts(How::ByKind, queries, k, allow.is_some().then_some(&by_row))?;
        let named = |(part, hits): FoundInPart| -> Vec<Vec<Neighbour>> {
            let ids = self.ids[part].as_slice();
            let name = |hit: Hit| Neighbour { id: ids[hit.id as usize], score: hit.score };
            hits.into_iter().map(|hits| hits.into_iter().map(name).collect()).collect()
        };
        Ok(merge(found.into_iter().map(named).collect(), queries.len() / self.dim(), k))
    }

    /// The segment and the row of the live vector under `id`.
    fn locate(&self, id: u64) -> Option<(usize, u32)> {
        // The newest first: that is where the vectors are that are asked for most.
        (0..self.segments()).rev().find_map(|part| {
            let row = self.ids[part].as_slice().binary_search(&id).ok()?;
            let is_dead = self.segments.dead(part).is_some_and(|dead| dead.get(row));
            (!is_dead).then_some((part, row as u32))
        })
    }

    /// Ids and rows of a segment's live vectors, by ascending id.
    fn rows_of(&self, part: usize) -> impl Iterator<Item = (u64, u32)> {
        let dead = self.segments.dead(part);
        let all = (0..).zip(self.ids[part].as_slice());
        all.filter(move |(row, _)| !dead.is_some_and(|dead| dead.get(*row as usize)))
            .map(|(row, &id)| (id, row))
    }
}

/// Whether the manifest in `dir` is another by now.
fn is_outdated(dir: &Path, manifest: &Manifest) -> bool {
    artefact::read_manifest(dir).is_ok_and(|now| now != *manifest)
}

fn contradiction(dir: &Path, why: String) -> ArtefactError {
    ArtefactError::BadManifest { path: dir.join(MANIFEST), why: format!("meta: {why}") }
}

/// Refuses a segment whose manifest is not the one that was committed.
fn check_segment(dir: &Path, segment: &SegmentMeta) -> Result<(), ArtefactError> {
    let path = segment.folder(dir).join(MANIFEST);
    let (_, hash) = artefact::hash_file(&path)?;
    if hash == segment.manifest {
        return Ok(());
    }
    let why = format!("content hash {hash}, but the collection's manifest says {}", segment.manifest);
    Err(ArtefactError::Damaged { path, why })
}

/// The set of a segment's dead rows, where it has any.
fn read_dead(
    dir: &Path,
    manifest: &Manifest,
    segment: &SegmentMeta,
) -> Result<Option<Bitmap>, ArtefactError> {
    let name = dead_name(segment.number);
    if !manifest.files.contains_key(&name) {
        return match segment.dead {
            0 => Ok(None),
            dead => Err(contradiction(
                dir,
                format!("segment {} has {dead} dead rows, but no file of them", segment.number),
            )),
        };
    }
    let path = manifest.path(dir, &name)?;
    let bytes = fs::read(&path).map_err(ArtefactError::io(&path))?;
    let dead = match Bitmap::from_bytes(&bytes, segment.rows) {
        Ok(dead) => dead,
        Err(why) => return Err(ArtefactError::Damaged { path, why: why.to_string() }),
    };
    if dead.count_ones() != segment.dead {
        let why = format!("{} dead rows, but the manifest says {}", dead.count_ones(), segment.dead);
        return Err(ArtefactError::Damaged { path, why });
    }
    Ok(Some(dead))
}

/// All that is wrong with the files of one generation.
fn problems(dir: &Path, manifest: &Manifest) -> Result<Vec<ArtefactError>, IndexError> {
    let meta: Meta = match artefact::check(dir, manifest, KIND, VERSION) {
        // These are among the problems.
        Ok(()) | Err(ArtefactError::Damaged { .. }) => manifest.meta_as(dir)?,
        Err(error) => return Err(error.into()),
    };
    let mut problems = artefact::problems(dir, manifest);
    for segment in &meta.segments {
        match artefact::verify(&segment.folder(dir)) {
            Ok(found) => problems.extend(found),
            Err(error) => {
                problems.push(error);
                continue;
            }
        }
        problems.extend(check_segment(dir, segment).err());
    }
    if !problems.is_empty() {
        return Ok(problems);
    }
    // Every file is as it was written; whether they are of one piece is seen when they are opened.
    match Collection::of(dir, manifest) {
        Err(IndexError::Artefact(error)) => problems.push(error),
        Err(error) => return Err(error),
        Ok(collection) => {
            for (segment, ids) in meta.segments.iter().zip(&collection.ids) {
                if !ids.as_slice().is_sorted_by(|a, b| a < b) {
                    let path = manifest.path(dir, &ids_name(segment.number))?;
                    problems.push(ArtefactError::Damaged { path, why: "its ids do not ascend".into() });
                }
            }
        }
    }
    Ok(problems)
}
