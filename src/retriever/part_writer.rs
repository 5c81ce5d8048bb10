//! Writing a part of an index, and the manifest that makes it one.

use std::path::{Path, PathBuf};

use serde_json::json;
use sidenote_index::{Bitmap, Builder, Bytes, IndexError, Metric, Spec};

use super::bm25;
use super::generation::{place, remove, sweep};
use super::hybrid::words_key;
use super::meta::{Counts, IndexMeta, IndexPart, KIND, Piece, VERSION};
use crate::artefact::{Manifest, Writer};
use crate::corpus::{Block, Skipped, StoreWriter, Tokenizer};
use crate::progress::Progress;
use crate::{Error, Result};

pub(super) const STORE: &str = "store";
pub(super) const VECTORS: &str = "vectors";
const DEAD: &str = "dead";

/// How the vectors of a part become an index.
#[derive(Clone, Copy)]
pub(super) struct Indexing<'a> {
    pub metric: Metric,
    pub spec: Spec,
    pub seed: u64,
    /// Bound on the memory of its own that building may take.
    pub memory: Option<Bytes>,
    /// The vectors of a part whose lists this one takes over.
    pub lists_of: Option<&'a Path>,
    /// Whether to go on with what an interrupted run has left of the same rows.
    pub resume: bool,
}

/// Writes a store and its vectors side by side.
pub(super) struct PartWriter {
    store: StoreWriter,
    store_dir: PathBuf,
    vectors: Builder,
    vectors_dir: PathBuf,
    index: Spec,
    rows: usize,
    /// Rows that an interrupted run has left.
    there: usize,
}

impl PartWriter {
    /// Starts a part in the folder `scratch`.
    pub fn create(
        scratch: &Path,
        tokenizer: &Tokenizer,
        chunk_tokens: usize,
        dim: usize,
        indexing: Indexing,
    ) -> Result<Self> {
        let (store_dir, vectors_dir) = (scratch.join(STORE), scratch.join(VECTORS));
        remove(&store_dir)?;
        let Indexing { metric, spec, seed, memory, lists_of, resume } = indexing;
        let resumed = match resume {
            true => Builder::resume(&vectors_dir, dim, metric, &spec, seed),
            false => Err(IndexError::Unfinished { dir: vectors_dir.clone(), why: "is not wanted".into() }),
        };
        let mut vectors = match resumed {
            // Another kind of index, because there are more chunks by now.
            Err(IndexError::Unfinished { .. }) => {
                remove(&vectors_dir)?;
                Builder::create(&vectors_dir, dim, metric, &spec, seed)?
            }
            resumed => resumed?,
        };
        if let Some(bound) = memory {
            vectors = vectors.memory(bound)?;
        }
        if let Some(dir) = lists_of {
            vectors = vectors.lists_of(dir)?;
        }
        Ok(Self {
            store: StoreWriter::create(&store_dir, tokenizer, chunk_tokens)?,
            there: vectors.rows(),
            vectors,
            store_dir,
            vectors_dir,
            index: spec,
            rows: 0,
        })
    }

    /// Adds documents and the vectors `[chunks, dim]` of their chunks.
    pub fn append(&mut self, block: &Block, rows: &[f32]) -> Result<()> {
        self.store.append(block)?;
        let chunks = block.chunks();
        let there = self.there.saturating_sub(self.rows).min(chunks);
        self.vectors.add(&rows[rows.len() / chunks.max(1) * there..])?;
        self.rows += chunks;
        Ok(())
    }

    /// Builds the index over the vectors and moves both into `out`, where no manifest names them yet.
    pub fn finish(self, out: &Path, progress: Progress) -> Result<IndexPart> {
        let store = self.store.finish(Skipped::default())?;
        progress.note(format!("building the {} index of {} vectors", self.index, self.rows));
        if self.there > self.rows {
            let why =
                format!("the unfinished vectors are {}, but {} are to be indexed", self.there, self.rows);
            return Err(Error::file(&self.vectors_dir, format!("{why}; remove this folder and try again")));
        }
        let vectors = self.vectors.finish()?.identity();
        Ok(IndexPart {
            store: Piece {
                folder: place(&self.store_dir, out, STORE, &store.identity)?,
                identity: store.identity,
            },
            vectors: Piece { folder: place(&self.vectors_dir, out, VECTORS, &vectors)?, identity: vectors },
            index: self.index,
            counts: Counts {
                documents: store.documents,
                chunks: store.chunks,
                tokens: store.tokens,
                text_bytes: store.text_bytes,
            },
            dead: None,
            breadth: None,
        })
    }
}

/// Makes `meta` the index in `out` at one stroke, with the deleted documents of each part, and
/// removes what no longer belongs to it.
pub(super) fn commit(out: &Path, meta: &mut IndexMeta, dead: &[Option<Bitmap>]) -> Result<()> {
    let mut writer = Writer::create(out, KIND, VERSION)?;
    for (number, (part, bits)) in meta.parts.iter_mut().zip(dead).enumerate() {
        if let (Some(dead), Some(bits)) = (&mut part.dead, bits) {
            let bytes = bits.to_bytes();
            dead.file = format!("{DEAD}-{number}.u64");
            dead.blake3 = blake3::hash(&bytes).to_hex().to_string();
            writer.write(&dead.file, &bytes)?;
        }
    }
    let manifest = writer.commit(json!(meta))?;
    tidy(out, &manifest, meta)
}

/// Removes what does not belong to the index in `out`: older generations, also those that a crash
/// right after the swap of the manifest has left.
pub(super) fn tidy(out: &Path, manifest: &Manifest, meta: &IndexMeta) -> Result<()> {
    let mut keep = meta.folders();
    keep.extend(manifest.files.values().map(|entry| entry.file.as_str()));
    sweep(out, &[STORE, VECTORS], &[DEAD], &keep)?;
    bm25::sweep(out, &words_key(meta.parts.iter().map(|part| part.store.identity.as_str())))
}
