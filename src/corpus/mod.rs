//! Documents in, chunks out: reading a corpus, cutting it into chunks, and the store on disk.
//!
//! ```text
//! files --Documents--> Document --Tokenizer, cut--> Block --StoreWriter--> ChunkStore (memory-mapped)
//! ChunkStores, one a part of the index, without what was deleted --> Store, what all else reads
//! ```

mod block;
mod build;
mod check;
mod chunk;
mod chunk_store;
mod document;
mod files;
mod known;
mod mapped;
mod parquet;
mod reader;
mod record;
mod sentencepiece;
mod store;
mod tokenizer;
mod writer;

pub use block::{Block, next_batch};
pub use build::{BuildSummary, build_store};
pub use chunk::{Chunked, cut};
pub use chunk_store::{Chunk, ChunkStore, StoredDocument};
pub use document::{Document, OnError, Skipped};
pub(crate) use mapped::{Mapped, bytes_of, read_numbers};
pub use reader::Documents;
pub use store::Store;
pub use tokenizer::{Tokenizer, Tokens};
pub use writer::StoreWriter;

#[cfg(target_endian = "big")]
compile_error!("Sidenote's files are little-endian and memory-mapped as they are");
