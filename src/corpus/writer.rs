//! Writing the store.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use super::block::{
    Block, CHUNK, CHUNKS_FILE, COLUMNS, DOCUMENTS_FILE, FIELDS_FILE, HASHES_FILE, ID, TEXT, TEXT_FILE, TOKEN,
    TOKENS_FILE,
};
use super::chunk_store::{KIND, StoreMeta, TOKENIZER_FILE, VERSION};
use super::mapped::bytes_of;
use super::{BuildSummary, Skipped, Tokenizer};
use crate::artefact::Writer;
use crate::{Error, Result};

/// Writes a chunk store block by block. Nothing is there until [`finish`](Self::finish).
pub struct StoreWriter {
    writer: Writer,
    tokenizer: Tokenizer,
    chunk_tokens: usize,
    tokens: Column,
    text: Column,
    fields: Column,
    chunks: Column,
    documents: Column,
    hashes: Column,
    /// Where the next document begins, in each column of the document table.
    totals: [u64; COLUMNS],
    count: u64,
}

struct Column {
    path: PathBuf,
    file: BufWriter<File>,
}

impl Column {
    fn create(writer: &mut Writer, name: &str) -> Result<Self> {
        let path = writer.path(name);
        let file = File::create(&path).map_err(Error::io(&path))?;
        Ok(Self { path, file: BufWriter::with_capacity(1 << 18, file) })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(Error::io(&self.path))
    }

    fn close(mut self) -> Result<()> {
        self.file.flush().map_err(Error::io(&self.path))
    }
}

impl StoreWriter {
    /// Starts a store in `dir` of chunks of `chunk_tokens` tokens.
    pub fn create(dir: &Path, tokenizer: &Tokenizer, chunk_tokens: usize) -> Result<Self> {
        if chunk_tokens == 0 {
            return Err(Error::setting("chunk-tokens", "a chunk has at least 1 token"));
        }
        let mut writer = Writer::create(dir, KIND, VERSION)?;
        writer.write(TOKENIZER_FILE, tokenizer.json())?;
        Ok(Self {
            tokens: Column::create(&mut writer, TOKENS_FILE)?,
            text: Column::create(&mut writer, TEXT_FILE)?,
            fields: Column::create(&mut writer, FIELDS_FILE)?,
            chunks: Column::create(&mut writer, CHUNKS_FILE)?,
            documents: Column::create(&mut writer, DOCUMENTS_FILE)?,
            hashes: Column::create(&mut writer, HASHES_FILE)?,
            writer,
            tokenizer: tokenizer.clone(),
            chunk_tokens,
            totals: [0; COLUMNS],
            count: 0,
        })
    }

    /// Adds a block's documents behind those already there.
    pub fn append(&mut self, block: &Block) -> Result<()> {
        let documents = block.documents();
        let first = u32::try_from(self.count).unwrap_or(u32::MAX);
        if self.count + documents as u64 >= u64::from(u32::MAX)
            || self.totals[CHUNK] + (block.chunks.len() / 2) as u64 >= u64::from(u32::MAX)
        {
            return Err(Error::setting(
                "CORPUS",
                "more than 4,294,967,294 documents or chunks; split the corpus",
            ));
        }
        let chunks: Vec<u32> = block.chunks.chunks_exact(2).flat_map(|c| [c[0] + first, c[1]]).collect();
        let mut rows: Vec<u64> = block.documents.clone();
        for row in rows.chunks_exact_mut(COLUMNS) {
            row.iter_mut().zip(self.totals).for_each(|(value, base)| *value += base);
        }
        // The block's last row, its totals, is where the next document begins.
        let next = rows.split_off(documents * COLUMNS);
        self.tokens.write(bytes_of(&block.tokens))?;
        self.text.write(&block.text)?;
        self.fields.write(&block.fields)?;
        self.chunks.write(bytes_of(&chunks))?;
        self.documents.write(bytes_of(&rows))?;
        self.hashes.write(&block.hashes)?;
        self.totals.copy_from_slice(&next);
        self.count += documents as u64;
        Ok(())
    }

    /// Makes the store real.
    pub fn finish(mut self, skipped: Skipped) -> Result<BuildSummary> {
        self.documents.write(bytes_of(&self.totals))?;
        for column in [self.tokens, self.text, self.fields, self.chunks, self.documents, self.hashes] {
            column.close()?;
        }
        let meta = StoreMeta {
            chunk_tokens: self.chunk_tokens,
            documents: self.count as usize,
            chunks: self.totals[CHUNK] as usize,
            tokens: self.totals[TOKEN] as usize,
            text_bytes: self.totals[TEXT] as usize,
            fields_bytes: self.totals[ID] as usize,
            tokenizer: self.tokenizer.identity().into(),
            vocab_size: self.tokenizer.vocab_size(),
            end_of_text: self.tokenizer.end_of_text(),
        };
        let manifest = self.writer.commit(serde_json::json!(meta))?;
        Ok(BuildSummary {
            documents: meta.documents,
            chunks: meta.chunks,
            tokens: meta.tokens,
            text_bytes: meta.text_bytes,
            skipped,
            identity: manifest.identity(),
        })
    }
}
