//! The one who changes a collection.

use std::fs;
use std::path::{Path, PathBuf};

use super::join::{Shape, Source, build_segment};
use super::meta::{KIND, Meta, SegmentMeta, UNFINISHED, VERSION, dead_name, folder_name, ids_name, is_ours};
use super::pending::Pending;
use super::{Collection, is_outdated};
use crate::artefact::{self, ArtefactError, MANIFEST, Manifest, Writer};
use crate::{Bitmap, Builder, IndexError, Lock, Metric, Spec, disk};

/// Segments are joined by a commit up to this many numbers in all (64 MiB): the work that a small
/// commit can turn out to be is bounded.
const JOINED_NUMBERS: usize = 16 << 20;

/// The one writer of a [`Collection`], made by [`Collection::create`] or [`Collection::write`].
///
/// Changes wait until [`commit`](CollectionWriter::commit), which makes all of them real at once:
/// after a crash at any moment the collection is as the last commit left it. A writer that is
/// dropped takes its uncommitted changes with it. Readers go on with the generation that they
/// opened.
///
/// **How large and how often.** A commit writes its rows as one segment and a bit for each row of
/// the segments in which rows have died. It also joins the newest segments with its own as long as
/// they are not larger, up to 64 MiB of vectors, so that a thousand commits of one row make ten
/// segments and not a thousand. Beyond that size segments stay apart, and dead rows stay in them,
/// until [`compact`](CollectionWriter::compact): call it when [`Collection::segments`] has grown
/// beyond ten, or [`Collection::dead`] beyond a fifth of the rows.
///
/// **Memory.** Uncommitted rows wait on disk; their ids take some 30 bytes each. The rest is what
/// [`Builder`] takes for the new segment.
pub struct CollectionWriter {
    dir: PathBuf,
    /// The generation that the changes are made to.
    base: Collection,
    /// Its dead rows and those that have died since, by segment.
    dead: Vec<Bitmap>,
    pending: Pending,
    /// Whether a commit was made that could not be opened afterwards.
    is_behind: bool,
    _lock: Lock,
}

impl CollectionWriter {
    pub(super) fn create(
        dir: &Path,
        dim: usize,
        metric: Metric,
        spec: Option<Spec>,
        seed: u64,
    ) -> Result<Self, IndexError> {
        if !(1..=Builder::MAX_DIM).contains(&dim) {
            return Err(IndexError::Dimension { dim });
        }
        let spec = spec.map(Spec::check).transpose()?;
        disk::create_dir_all(dir)?;
        check_free(dir)?;
        let lock = Lock::acquire(dir)?;
        check_free(dir)?;
        let meta = Meta { dim, metric, spec, seed, generation: 0, next: 0, segments: Vec::new() };
        Writer::create(dir, KIND, VERSION)?.commit(to_json(&meta))?;
        Self::locked(dir, lock)
    }

    pub(super) fn open(dir: &Path) -> Result<Self, IndexError> {
        // Nothing is written into a folder that is no collection, not even the lock.
        artefact::open(dir, KIND, VERSION)?;
        let lock = Lock::acquire(dir)?;
        Self::locked(dir, lock)
    }

    fn locked(dir: &Path, lock: Lock) -> Result<Self, IndexError> {
        let base = Collection::open(dir)?;
        sweep(&base, &[]);
        let (dead, pending) = (working_copy(&base), Pending::new(dir, base.dim()));
        Ok(Self { dir: dir.into(), base, dead, pending, is_behind: false, _lock: lock })
    }

    /// The generation that was committed last, without the changes since.
    pub fn committed(&self) -> &Collection {
        &self.base
    }

    /// Number of vectors, with the changes since the last commit.
    pub fn len(&self) -> usize {
        self.pending.len() + (0..self.dead.len()).map(|part| self.live(part)).sum::<usize>()
    }

    /// Whether there are no vectors, with the changes since the last commit.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether there is a vector under `id`, with the changes since the last commit.
    pub fn contains(&self, id: u64) -> bool {
        self.pending.contains(id) || self.locate(id).is_some()
    }

    /// Adds rows `[ids, dim]`, row-major, under ids that are new.
    ///
    /// # Errors
    /// Another number of rows than of ids, a row with NaN or infinity, an id that is given twice
    /// or is there already; a full disk. Then none of these rows is added.
    pub fn add(&mut self, ids: &[u64], rows: &[f32]) -> Result<(), IndexError> {
        let rows = self.checked(ids, rows)?;
        if let Some(&id) = ids.iter().find(|id| self.contains(**id)) {
            return Err(IndexError::IdExists { id });
        }
        Ok(self.pending.push(ids, &rows)?)
    }

    /// Adds rows `[ids, dim]`, row-major; where an id is there already, its row is replaced.
    /// Returns how many were replaced.
    ///
    /// # Errors
    /// As for [`add`](CollectionWriter::add), but for ids that are there.
    pub fn upsert(&mut self, ids: &[u64], rows: &[f32]) -> Result<usize, IndexError> {
        let rows = self.checked(ids, rows)?;
        let replaced = ids.iter().filter(|id| self.contains(**id)).count();
        self.pending.push(ids, &rows)?;
        ids.iter().for_each(|id| {
            self.bury(*id);
        });
        Ok(replaced)
    }

    /// Deletes the vectors under these ids. Returns how many there were: an id that is not there,
    /// or no longer, is passed over, so a list of deletions can be applied again after a crash.
    ///
    /// # Errors
    /// None of its own; see [`commit`](CollectionWriter::commit).
    pub fn delete(&mut self, ids: &[u64]) -> Result<usize, IndexError> {
        self.catch_up()?;
        Ok(ids.iter().filter(|id| self.pending.remove(**id) || self.bury(**id)).count())
    }

    /// Makes all changes since the last commit real at once, and returns the generation that the
    /// collection is at. When this returns they are on disk, power cuts included. Without changes
    /// it does nothing.
    ///
    /// # Errors
    /// A full disk, a folder that somebody else has touched. The changes are kept, unless the new
    /// generation was already in place when the error came, and commit can be called again.
    pub fn commit(&mut self) -> Result<u64, IndexError> {
        self.catch_up()?;
        let is_changed =
            |part: usize| self.live(part) < self.base.segments.part(part).len() - self.base_dead(part);
        if self.pending.len() == 0 && !(0..self.dead.len()).any(is_changed) {
            return Ok(self.base.generation());
        }
        // The newest segments that are not larger than what is written anyway.
        let (mut first, mut rows) = (self.dead.len(), self.pending.len());
        while let Some(part) = first.checked_sub(1) {
            let (live, dim) = (self.live(part), self.base.dim());
            if live > rows || (rows + live).saturating_mul(dim) > JOINED_NUMBERS {
                break;
            }
            (first, rows) = (part, rows + live);
        }
        self.change(first)
    }

    /// Commits, with all vectors in one new segment: dead rows are gone then, and a search goes
    /// through one index. Takes as long as building an index of all vectors, and their space once
    /// more on disk until it is done. Readers go on meanwhile.
    ///
    /// # Errors
    /// As for [`commit`](CollectionWriter::commit); more than `u32::MAX` vectors.
    pub fn compact(&mut self) -> Result<u64, IndexError> {
        self.catch_up()?;
        let spec = self.spec_for(self.len());
        let is_compact = match self.dead.len() {
            0 => true,
            1 => self.dead[0].count_ones() == 0 && self.base.segments.part(0).spec() == spec,
            _ => false,
        };
        if is_compact && self.pending.len() == 0 {
            return Ok(self.base.generation());
        }
        self.change(0)
    }

    /// Commits a generation in which the segments from `first` on and the pending rows are one.
    fn change(&mut self, first: usize) -> Result<u64, IndexError> {
        let committed = self.write_generation(first);
        if committed.is_err() && !is_outdated(&self.dir, &self.base.manifest) {
            return committed.map(|_| self.base.generation());
        }
        // The new generation is in place, even if what came after the swap has failed.
        self.is_behind = true;
        self.pending = Pending::new(&self.dir, self.base.dim());
        self.dead.clear();
        self.catch_up()?;
        committed.map(|_| self.base.generation())
    }

    fn write_generation(&self, first: usize) -> Result<Manifest, IndexError> {
        let dir = &self.dir;
        // What an attempt that failed has left, but not the pending rows.
        sweep(&self.base, &[UNFINISHED]);
        let old = &self.base.meta;
        let mut meta =
            Meta { generation: old.generation.saturating_add(1), segments: Vec::new(), ..old.clone() };
        let mut writer = Writer::create(dir, KIND, VERSION)?;
        for (part, segment) in old.segments.iter().enumerate().take(first) {
            let dead = self.dead[part].count_ones();
            if dead == segment.rows {
                continue;
            }
            let ids = ids_name(segment.number);
            writer.keep(&ids, self.entry(&ids)?);
            let name = dead_name(segment.number);
            if dead != segment.dead {
                writer.write(&name, &self.dead[part].to_bytes())?;
            } else if dead > 0 {
                writer.keep(&name, self.entry(&name)?);
            }
            meta.segments.push(SegmentMeta { dead, ..segment.clone() });
        }
        let rows = self.pending.len() + (first..self.dead.len()).map(|part| self.live(part)).sum::<usize>();
        if rows > 0 {
            let number = meta.next;
            meta.next = number.saturating_add(1);
            let manifest = self.write_segment(first, number, rows, &writer.path(&ids_name(number)))?;
            meta.segments.push(SegmentMeta { number, manifest, rows, dead: 0 });
        }
        Ok(writer.commit(to_json(&meta))?)
    }

    /// Builds the new segment and moves it to where the manifest will look for it; the hash of its
    /// own manifest.
    fn write_segment(
        &self,
        first: usize,
        number: u64,
        rows: usize,
        ids_path: &Path,
    ) -> Result<String, IndexError> {
        let pending = self.pending.open()?;
        let mut sources: Vec<Source> = Vec::new();
        for part in first..self.dead.len() {
            let (index, dead) = (self.base.segments.part(part), &self.dead[part]);
            let rows = self.base.rows_of(part).filter(|(_, row)| !dead.get(*row as usize));
            sources.push(Box::new(rows.filter_map(|(id, row)| Some((id, index.vector(row)?)))));
        }
        sources.push(Box::new(pending.iter()));
        let spec = self.spec_for(rows);
        let lists_of = self.lists_for(first, spec, rows);
        let shape = Shape {
            dim: self.base.dim(),
            metric: self.base.metric(),
            spec,
            seed: self.base.meta.seed,
            lists_of: lists_of.as_deref(),
        };
        let unfinished = self.dir.join(UNFINISHED).join(folder_name(number));
        build_segment(&unfinished, ids_path, &shape, sources)?;
        let (_, hash) = artefact::hash_file(&unfinished.join(MANIFEST))?;
        disk::rename(&unfinished, &self.dir.join(folder_name(number)))?;
        Ok(hash)
    }

    fn spec_for(&self, rows: usize) -> Spec {
        self.base.spec().unwrap_or_else(|| Spec::default_for(rows, self.base.dim()))
    }

    /// The folder of that of the first `kept` segments whose lists a new one of so many rows takes over.
    fn lists_for(&self, kept: usize, spec: Spec, rows: usize) -> Option<PathBuf> {
        let segments = &self.base.meta.segments[..kept];
        let there =
            self.base.segments.parts().zip(segments).map(|(index, segment)| (index.spec(), segment.rows));
        spec.lists_among(rows, there).map(|number| segments[number].folder(&self.dir))
    }

    fn entry(&self, name: &str) -> Result<artefact::FileEntry, ArtefactError> {
        let missing = || super::contradiction(&self.dir, format!("names no file {name:?}"));
        self.base.manifest.files.get(name).cloned().ok_or_else(missing)
    }

    /// Opens the generation that this writer has committed, where that is not done yet.
    fn catch_up(&mut self) -> Result<(), IndexError> {
        if self.is_behind {
            self.base = Collection::open(&self.dir)?;
            self.dead = working_copy(&self.base);
            self.is_behind = false;
            sweep(&self.base, &[]);
        }
        Ok(())
    }

    /// The rows as they will be stored, when ids and rows are as they must be.
    fn checked(&mut self, ids: &[u64], rows: &[f32]) -> Result<Vec<f32>, IndexError> {
        self.catch_up()?;
        let dim = self.base.dim();
        if !rows.len().is_multiple_of(dim) {
            return Err(IndexError::Length { what: "rows", found: rows.len(), dim, many: true });
        }
        if rows.len() / dim != ids.len() {
            return Err(IndexError::IdsAndRows { ids: ids.len(), rows: rows.len() / dim });
        }
        let mut sorted = ids.to_vec();
        sorted.sort_unstable();
        if let Some(pair) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(IndexError::IdTwice { id: pair[0] });
        }
        let mut rows = rows.to_vec();
        for (&id, row) in ids.iter().zip(rows.chunks_exact_mut(dim)) {
            if !self.base.metric().prepare(row) {
                return Err(IndexError::NotFinite { what: "the row of id", number: id as usize });
            }
        }
        Ok(rows)
    }

    /// Where the live row of `id` is in the base generation, if it has not died since.
    fn locate(&self, id: u64) -> Option<(usize, u32)> {
        self.base
            .locate(id)
            .filter(|&(part, row)| !self.dead.get(part).is_none_or(|dead| dead.get(row as usize)))
    }

    /// Marks the row of `id` in the base generation as dead; whether there was one.
    fn bury(&mut self, id: u64) -> bool {
        self.locate(id).is_some_and(|(part, row)| self.dead[part].set(row as usize))
    }

    fn live(&self, part: usize) -> usize {
        self.dead[part].len() - self.dead[part].count_ones()
    }

    fn base_dead(&self, part: usize) -> usize {
        self.base.segments.dead(part).map_or(0, Bitmap::count_ones)
    }
}

impl Drop for CollectionWriter {
    fn drop(&mut self) {
        // The next writer would remove it too.
        let _ = disk::remove_dir_all(&self.dir.join(UNFINISHED));
    }
}

fn working_copy(base: &Collection) -> Vec<Bitmap> {
    let dead = |part| base.segments.dead(part).cloned();
    let all = |part| Bitmap::new(base.segments.part(part).len());
    (0..base.segments()).map(|part| dead(part).unwrap_or_else(|| all(part))).collect()
}

fn to_json(meta: &Meta) -> serde_json::Value {
    serde_json::to_value(meta).expect("the meta is plain JSON")
}

/// Refuses a folder in which there is an artefact already.
fn check_free(dir: &Path) -> Result<(), IndexError> {
    match artefact::read_manifest(dir) {
        Err(ArtefactError::Missing { .. }) => Ok(()),
        Err(error) => Err(error.into()),
        Ok(manifest) if manifest.kind == KIND => Err(IndexError::CollectionExists { dir: dir.into() }),
        Ok(manifest) => {
            let (dir, found, wanted) = (dir.into(), manifest.kind, KIND.into());
            Err(ArtefactError::WrongKind { dir, found, wanted }.into())
        }
    }
}

/// Removes what is not of this generation, but for what is to be kept: older generations, and what
/// a crash left. It is done by the one writer only, and harms nobody when it fails.
fn sweep(current: &Collection, keep: &[&str]) {
    let dir = &current.dir;
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        let is_named = current.manifest.files.values().any(|entry| entry.file == name)
            || current.meta.segments.iter().any(|segment| folder_name(segment.number) == name);
        if !is_ours(name) || is_named || keep.contains(&name) {
            continue;
        }
        let _ = match entry.file_type().is_ok_and(|file_type| file_type.is_dir()) {
            true => disk::remove_dir_all(&entry.path()),
            false => disk::remove_file(&entry.path()),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lists_of_a_larger_segment_are_taken_over_and_of_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let spec: Spec = "IVF4,RaBitQ".parse().unwrap();
        let mut writer = Collection::create(dir.path(), 2, Metric::L2, Some(spec), 1).unwrap();
        let rows: Vec<f32> = (0..60).map(|x| x as f32 * 0.1).collect();
        writer.add(&(0..30).collect::<Vec<_>>(), &rows).unwrap();
        writer.commit().unwrap();
        let folder = writer.base.meta.segments[0].folder(dir.path());
        assert_eq!(writer.lists_for(1, spec, 30), Some(folder));
        assert_eq!(writer.lists_for(1, spec, 31), None);
        assert_eq!(writer.lists_for(0, spec, 30), None);
        assert_eq!(writer.lists_for(1, "IVF5,RaBitQ".parse().unwrap(), 30), None);
    }

    #[test]
    fn what_has_no_lists_has_none_to_take_over() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = Collection::create(dir.path(), 1, Metric::L2, Some(Spec::Flat), 1).unwrap();
        writer.add(&[7], &[1.0]).unwrap();
        writer.commit().unwrap();
        assert_eq!(writer.lists_for(1, Spec::Flat, 1), None);
    }
}
