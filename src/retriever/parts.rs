//! The parts of an index directory, opened as one.

use std::fs;
use std::path::Path;

use sidenote_index::{Bitmap, Index, Segments};

use super::meta::{IndexMeta, IndexPart};
use crate::artefact::{MANIFEST, Manifest};
use crate::corpus::{ChunkStore, Store};
use crate::{Error, Result};

/// Opens what `open` opens of the index in `dir`. A writer may put a new generation in place while
/// this goes on, and remove the pieces of the old one; then the new one is opened.
pub(super) fn open<T>(
    dir: &Path,
    open: impl Fn(&Path, &Manifest, &IndexMeta) -> Result<T>,
) -> Result<(IndexMeta, T)> {
    let mut failed_with = None;
    loop {
        // Read before anything else: a change after this is seen below.
        let manifest = fs::read(dir.join(MANIFEST)).ok();
        let outcome = IndexMeta::read_manifest(dir)
            .and_then(|(manifest, meta)| open(dir, &manifest, &meta).map(|opened| (meta, opened)));
        match outcome {
            Err(_) if manifest.is_some() && manifest != failed_with => failed_with = manifest,
            outcome => return outcome,
        }
    }
}

/// The chunk stores, without what was deleted.
pub(super) fn store(dir: &Path, manifest: &Manifest, meta: &IndexMeta) -> Result<Store> {
    let open = |part: &IndexPart| {
        let store = ChunkStore::open(&part.store.path(dir)?)?;
        part.store.check(dir, "store", store.identity())?;
        let dead = IndexMeta::read_dead(dir, manifest, part)?;
        Ok((store, dead))
    };
    Store::new(meta.parts.iter().map(open).collect::<Result<_>>()?)
}

/// The chunk stores and the vectors, without what was deleted.
pub(super) fn both(dir: &Path, manifest: &Manifest, meta: &IndexMeta) -> Result<(Store, Segments)> {
    let store = store(dir, manifest, meta)?;
    let mut parts = Vec::with_capacity(meta.parts.len());
    for (number, (part, chunks)) in meta.parts.iter().zip(store.parts()).enumerate() {
        let index = index(dir, meta, part, chunks.chunks())?;
        parts.push((index, store.dead(number).map(|dead| dead_chunks(chunks, dead))));
    }
    Ok((store, Segments::new(parts)?))
}

/// The vectors of `part`, whose store has `chunks` chunks.
pub(super) fn index(dir: &Path, meta: &IndexMeta, part: &IndexPart, chunks: usize) -> Result<Index> {
    let mut index = Index::open(&part.vectors.path(dir)?)?;
    part.vectors.check(dir, "vectors", index.identity())?;
    if index.len() != chunks || index.dim() != meta.dim {
        return Err(Error::Mismatch {
            what: format!("the store and the vectors in {}", dir.display()),
            left: format!("{chunks} chunks, vectors of width {}", meta.dim),
            right: format!("{} vectors of width {}", index.len(), index.dim()),
            hint: "build the index again".into(),
        });
    }
    index.set_breadth(part.breadth);
    Ok(index)
}

/// The chunks of the documents in `dead`.
fn dead_chunks(store: &ChunkStore, dead: &Bitmap) -> Bitmap {
    let mut chunks = Bitmap::new(store.chunks());
    for d in (0..store.documents()).filter(|&d| dead.get(d)) {
        store.chunks_of(d).for_each(|c| _ = chunks.set(c));
    }
    chunks
}
