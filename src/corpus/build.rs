//! A corpus into a store, without vectors.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::{Block, Documents, OnError, Skipped, StoreWriter, Tokenizer, next_batch};
use crate::progress::Progress;
use crate::{Error, Result, interrupt};

/// What a store holds and what was left out of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BuildSummary {
    /// Number of documents.
    pub documents: usize,
    /// Number of chunks.
    pub chunks: usize,
    /// Number of tokens.
    pub tokens: usize,
    /// Bytes of text.
    pub text_bytes: usize,
    /// What was left out.
    pub skipped: Skipped,
    /// The store's identity.
    pub identity: String,
}

/// Cuts a corpus into a chunk store in `dir`, without vectors: for evaluation texts and for
/// queries. An old store in `dir` stays until the new one is whole.
pub fn build_store(
    corpus: &[PathBuf],
    tokenizer: &Tokenizer,
    chunk_tokens: usize,
    on_error: OnError,
    dir: &Path,
    progress: Progress,
) -> Result<BuildSummary> {
    let mut documents = Documents::open(corpus, on_error)?;
    let mut writer = StoreWriter::create(dir, tokenizer, chunk_tokens)?;
    let task = progress.task("cutting into chunks", documents.total_bytes() / 1000, "kB");
    let mut shown = 0;
    loop {
        let batch = next_batch(&mut documents)?;
        if batch.is_empty() {
            break;
        }
        if interrupt::requested() {
            return Err(Error::Interrupted("nothing was written; run the command again".into()));
        }
        writer.append(&Block::new(&batch, tokenizer, chunk_tokens)?)?;
        let read = documents.bytes_read() / 1000;
        task.advance(read - shown);
        shown = read;
    }
    drop(task);
    writer.finish(documents.skipped().clone())
}
