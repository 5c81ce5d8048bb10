//! Writing a part of an index, and the manifest that makes it one.

use std::path::{Path, PathBuf};

use serde_json::json;
use sidenote_index::{Bitmap, Builder, Metric, Spec};

use super::bm25;
use super::generation::{place, remove, sweep};
use super::hybrid::words_key;
use super::meta::{Counts, IndexMeta, IndexPart, KIND, Piece, VERSION};
use crate::Result;
use crate::artefact::{Manifest, Writer};
use crate::corpus::{Block, Skipped, StoreWriter, Tokenizer};
use crate::progress::Progress;

pub(super) const STORE: &str = "store";
pub(super) const VECTORS: &str = "vectors";
const DEAD: &str = "dead";

/// Writes a store and its vectors side by side.
pub(super) struct PartWriter {
    store: StoreWriter,
    store_dir: PathBuf,
    vectors: Builder,
    vectors_dir: PathBuf,
    index: Spec,
    rows: usize,
}

impl PartWriter {
    /// Starts a part in the folder `scratch`.
    pub fn create(
        scratch: &Path,
        tokenizer: &Tokenizer,
        chunk_tokens: usize,
        dim: usize,
        index: Spec,
        seed: u64,
    ) -> Result<Self> {
        let (store_dir, vectors_dir) = (scratch.join(STORE), scratch.join(VECTORS));
        remove(&store_dir)?;
        remove(&vectors_dir)?;
        Ok(Self {
            store: StoreWriter::create(&store_dir, tokenizer, chunk_tokens)?,
            vectors: Builder::create(&vectors_dir, dim, Metric::Cosine, &index, seed)?,
            store_dir,
            vectors_dir,
            index,
            rows: 0,
        })
    }

    /// Adds documents and the vectors `[chunks, dim]` of their chunks.
    pub fn append(&mut self, block: &Block, rows: &[f32]) -> Result<()> {
        self.store.append(block)?;
        self.vectors.add(rows)?;
        self.rows += block.chunks();
        Ok(())
    }

    /// Builds the index over the vectors and moves both into `out`, where no manifest names them yet.
    pub fn finish(self, out: &Path, progress: Progress) -> Result<IndexPart> {
        let store = self.store.finish(Skipped::default())?;
        progress.note(format!("building the {} index of {} vectors", self.index, self.rows));
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

/// Makes `meta` the index in `out`, which differs from the one of `manifest` in nothing but settings
/// of its searches: the marks of deleted documents stay where they are.
pub(super) fn recommit(out: &Path, manifest: &Manifest, meta: &IndexMeta) -> Result<()> {
    let mut writer = Writer::create(out, KIND, VERSION)?;
    for (name, entry) in &manifest.files {
        writer.keep(name, entry.clone());
    }
    writer.commit(json!(meta))?;
    Ok(())
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
    let mut keep = meta.folders();
    keep.extend(manifest.files.values().map(|entry| entry.file.as_str()));
    sweep(out, &[STORE, VECTORS], &[DEAD], &keep)?;
    bm25::sweep(out, &words_key(meta.parts.iter().map(|part| part.store.identity.as_str())))
}
