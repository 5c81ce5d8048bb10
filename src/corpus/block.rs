//! A run of documents, cut into chunks and ready to go to disk.

use std::ops::Range;
use std::path::Path;

use rayon::prelude::*;

use super::mapped::{bytes_of, read_numbers};
use super::{ChunkStore, Document, Documents, Tokenizer, cut};
use crate::artefact::{Manifest, Writer};
use crate::{Error, Result};

/// Columns of the document table: the first token, chunk and byte of text, and the first byte of
/// id, title, section and source in the fields. What one document has ends where the next begins.
pub(super) const COLUMNS: usize = 7;
pub(super) const TOKEN: usize = 0;
pub(super) const CHUNK: usize = 1;
pub(super) const TEXT: usize = 2;
pub(super) const ID: usize = 3;
pub(super) const TITLE: usize = 4;
pub(super) const SECTION: usize = 5;
pub(super) const SOURCE: usize = 6;

/// Bytes of a text's hash.
pub(super) const HASH: usize = 16;

/// The data files of a store, and of a part of one.
pub(super) const TOKENS_FILE: &str = "tokens.u32";
pub(super) const TEXT_FILE: &str = "text.utf8";
pub(super) const FIELDS_FILE: &str = "fields.utf8";
pub(super) const CHUNKS_FILE: &str = "chunks.u32";
pub(super) const DOCUMENTS_FILE: &str = "documents.u64";
pub(super) const HASHES_FILE: &str = "hashes.u8";

/// Documents are worked on in batches that are closed when their text reaches this many bytes: half a minute of a slow encoder's
/// work, which is what a crash loses, and much beside what it costs to keep them safely...
const BATCH_BYTES: usize = 512 << 10;
/// ...or when there are this many. The small corpora of unit tests are several batches too.
const BATCH_DOCUMENTS: usize = if cfg!(test) { 256 } else { 4096 };

/// Takes the next batch of documents; empty at the end. Where batches end depends on nothing but
/// the documents.
pub fn next_batch(documents: &mut Documents) -> Result<Vec<Document>> {
    let mut batch = Vec::new();
    let mut bytes = 0;
    while batch.len() < BATCH_DOCUMENTS && bytes < BATCH_BYTES {
        let Some(document) = documents.next().transpose()? else { break };
        bytes += document.text.len();
        batch.push(document);
    }
    Ok(batch)
}

/// A run of documents in the layout of the store, numbered from 0.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Block {
    pub(super) tokens: Vec<u32>,
    pub(super) text: Vec<u8>,
    pub(super) fields: Vec<u8>,
    /// `[chunks, 2]`: document, and the byte of its text at which the chunk begins.
    pub(super) chunks: Vec<u32>,
    /// `[documents + 1, COLUMNS]`; the last row holds the totals.
    pub(super) documents: Vec<u64>,
    /// `[documents, HASH]`
    pub(super) hashes: Vec<u8>,
}

impl Block {
    /// Cuts `documents` into chunks, on all cores.
    pub fn new(documents: &[Document], tokenizer: &Tokenizer, chunk_tokens: usize) -> Result<Self> {
        let cut_all: Result<Vec<_>> = documents
            .par_iter()
            .map(|document| {
                if u32::try_from(document.text.len()).is_err() {
                    let why = format!("document {:?} has more than 4 GiB of text; split it", document.id);
                    return Err(Error::file(&document.source, why));
                }
                let tokens = tokenizer
                    .encode(&document.text)
                    .map_err(|e| Error::file(&document.source, format!("document {:?}: {e}", document.id)))?;
                Ok(cut(&document.text, &tokens, tokenizer.end_of_text(), chunk_tokens))
            })
            .collect();
        let mut block = Self::default();
        for (number, (document, chunked)) in documents.iter().zip(cut_all?).enumerate() {
            block.open_row();
            let offset = block.documents.len();
            for (column, field) in [
                (ID, document.id.as_str()),
                (TITLE, &document.title),
                (SECTION, document.section.as_deref().unwrap_or_default()),
                (SOURCE, &document.source),
            ] {
                block.documents[offset - COLUMNS + column] = block.fields.len() as u64;
                block.fields.extend_from_slice(field.as_bytes());
            }
            block.tokens.extend_from_slice(&chunked.tokens);
            block.text.extend_from_slice(document.text.as_bytes());
            block.chunks.extend(chunked.starts.iter().flat_map(|&start| [number as u32, start as u32]));
            block.hashes.extend_from_slice(&text_hash(&document.text));
        }
        block.open_row();
        Ok(block)
    }

    /// Documents `documents` of a store, as they are: nothing is cut again.
    ///
    /// # Errors
    /// A store whose tables point outside its data.
    pub fn of(store: &ChunkStore, documents: Range<usize>) -> Result<Self> {
        let (first, end) = (store.row(documents.start), store.row(documents.end));
        let damaged = || {
            let why =
                format!("the tables of documents {documents:?} do not fit; see `sidenote index verify`");
            Error::file(store.dir(), why)
        };
        let range =
            |column: usize, width: usize| first[column] as usize * width..end[column] as usize * width;
        let mut chunks = store.chunks.get(range(CHUNK, 2)).ok_or_else(damaged)?.to_vec();
        for pair in chunks.chunks_exact_mut(2) {
            pair[0] = (pair[0] as usize).checked_sub(documents.start).ok_or_else(damaged)? as u32;
        }
        let rows = documents.start * COLUMNS..(documents.end + 1) * COLUMNS;
        let mut table = store.documents.get(rows).ok_or_else(damaged)?.to_vec();
        let mut base = [0; COLUMNS];
        base.copy_from_slice(first);
        // The fields of a document lie behind one another, so all four begin where its id does.
        base[ID..].fill(first[ID]);
        // The last row holds the totals: where the next document's id would begin.
        let totals = table.len() - COLUMNS;
        table[totals + ID..].fill(end[ID]);
        for row in table.chunks_exact_mut(COLUMNS) {
            for (value, base) in row.iter_mut().zip(base) {
                *value = value.checked_sub(base).ok_or_else(damaged)?;
            }
        }
        Ok(Self {
            tokens: store.tokens.get(range(TOKEN, 1)).ok_or_else(damaged)?.to_vec(),
            text: store.text.get(range(TEXT, 1)).ok_or_else(damaged)?.to_vec(),
            fields: store.fields.get(range(ID, 1)).ok_or_else(damaged)?.to_vec(),
            chunks,
            documents: table,
            hashes: store.hashes[documents.start * HASH..documents.end * HASH].to_vec(),
        })
    }

    /// Adds the row in which the next document begins.
    fn open_row(&mut self) {
        let mut row = [self.fields.len() as u64; COLUMNS];
        row[TOKEN] = self.tokens.len() as u64;
        row[CHUNK] = (self.chunks.len() / 2) as u64;
        row[TEXT] = self.text.len() as u64;
        self.documents.extend(row);
    }

    /// Number of documents.
    pub fn documents(&self) -> usize {
        (self.documents.len() / COLUMNS).saturating_sub(1)
    }

    /// Number of chunks.
    pub fn chunks(&self) -> usize {
        self.chunks.len() / 2
    }

    /// The text of every chunk, in order.
    pub fn chunk_texts(&self) -> Vec<&str> {
        let row = |document: u32| self.documents[document as usize * COLUMNS + TEXT] as usize;
        let chunks: Vec<_> = self.chunks.chunks_exact(2).map(|c| (c[0], c[1] as usize)).collect();
        (0..chunks.len())
            .map(|c| {
                let (document, start) = chunks[c];
                let end = match chunks.get(c + 1) {
                    Some(&(next, end)) if next == document => row(document) + end,
                    _ => row(document + 1),
                };
                std::str::from_utf8(&self.text[row(document) + start..end]).unwrap_or_default()
            })
            .collect()
    }

    /// Hands the block's columns to an artefact.
    pub fn write(&self, writer: &mut Writer) -> Result<()> {
        writer.write(TOKENS_FILE, bytes_of(&self.tokens))?;
        writer.write(TEXT_FILE, &self.text)?;
        writer.write(FIELDS_FILE, &self.fields)?;
        writer.write(CHUNKS_FILE, bytes_of(&self.chunks))?;
        writer.write(DOCUMENTS_FILE, bytes_of(&self.documents))?;
        writer.write(HASHES_FILE, &self.hashes)?;
        Ok(())
    }

    /// Reads back what [`write`](Self::write) wrote.
    pub fn read(dir: &Path, manifest: &Manifest) -> Result<Self> {
        Ok(Self {
            tokens: read_numbers(&manifest.path(dir, TOKENS_FILE)?)?,
            text: read_numbers(&manifest.path(dir, TEXT_FILE)?)?,
            fields: read_numbers(&manifest.path(dir, FIELDS_FILE)?)?,
            chunks: read_numbers(&manifest.path(dir, CHUNKS_FILE)?)?,
            documents: read_numbers(&manifest.path(dir, DOCUMENTS_FILE)?)?,
            hashes: read_numbers(&manifest.path(dir, HASHES_FILE)?)?,
        })
    }
}

/// What tells one text from another, whatever the documents are called.
pub(super) fn text_hash(text: &str) -> [u8; HASH] {
    let mut hash = [0; HASH];
    hash.copy_from_slice(&blake3::hash(text.as_bytes()).as_bytes()[..HASH]);
    hash
}
