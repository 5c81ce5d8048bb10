//! Rows that are not committed yet.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::path::{Path, PathBuf};

use super::meta::UNFINISHED;
use crate::artefact::ArtefactError;
use crate::disk;
use crate::mapped::{Mapped, as_bytes};

/// Rows waiting on disk, with their ids in memory (some 30 bytes each).
pub(super) struct Pending {
    folder: PathBuf,
    path: PathBuf,
    file: Option<File>,
    dim: usize,
    /// Rows in the file, those that were replaced or deleted since included.
    written: usize,
    /// Which row of the file an id has.
    places: BTreeMap<u64, usize>,
}

impl Pending {
    /// None yet; nothing is on disk until there are some.
    pub fn new(dir: &Path, dim: usize) -> Self {
        let folder = dir.join(UNFINISHED);
        let path = folder.join("rows.f32");
        Self { folder, path, file: None, dim, written: 0, places: BTreeMap::new() }
    }

    pub fn len(&self) -> usize {
        self.places.len()
    }

    pub fn contains(&self, id: u64) -> bool {
        self.places.contains_key(&id)
    }

    /// Takes the rows; an id that is there gets the new one. After an error none is taken.
    pub fn push(&mut self, ids: &[u64], rows: &[f32]) -> Result<(), ArtefactError> {
        if ids.is_empty() {
            return Ok(());
        }
        if self.file.is_none() {
            disk::create_dir_all(&self.folder)?;
            disk::create(&self.path)?;
            let options = File::options().read(true).write(true).open(&self.path);
            self.file = Some(options.map_err(ArtefactError::io(&self.path))?);
        }
        let Some(mut file) = self.file.as_ref() else { return Ok(()) };
        // What a full disk left of an earlier attempt is written over.
        file.seek(SeekFrom::Start(self.bytes())).map_err(ArtefactError::io(&self.path))?;
        disk::write_all(file, &self.path, as_bytes(rows))?;
        for (place, &id) in (self.written..).zip(ids) {
            self.places.insert(id, place);
        }
        self.written += ids.len();
        Ok(())
    }

    /// Forgets the row of `id`; whether there was one.
    pub fn remove(&mut self, id: u64) -> bool {
        self.places.remove(&id).is_some()
    }

    /// The rows, to read while the commit is at work.
    pub fn open(&self) -> Result<PendingRows<'_>, ArtefactError> {
        let rows = match &self.file {
            None => None,
            Some(file) => {
                file.set_len(self.bytes()).map_err(ArtefactError::io(&self.path))?;
                Some(Mapped::open(&self.path, self.written * self.dim)?)
            }
        };
        Ok(PendingRows { pending: self, rows })
    }

    fn bytes(&self) -> u64 {
        (self.written * self.dim * size_of::<f32>()) as u64
    }
}

/// The rows of [`Pending`], mapped.
pub(super) struct PendingRows<'a> {
    pending: &'a Pending,
    rows: Option<Mapped<f32>>,
}

impl PendingRows<'_> {
    /// Ids and rows, by ascending id.
    pub fn iter(&self) -> impl Iterator<Item = (u64, Cow<'_, [f32]>)> {
        let dim = self.pending.dim;
        let rows = self.rows.as_ref().map_or(&[][..], Mapped::as_slice);
        self.pending.places.iter().map(move |(&id, &place)| (id, Cow::Borrowed(&rows[place * dim..][..dim])))
    }
}
