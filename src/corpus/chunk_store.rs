//! A chunk store on disk: documents cut into chunks, memory-mapped.

use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::block::{
    CHUNK, CHUNKS_FILE, COLUMNS, DOCUMENTS_FILE, FIELDS_FILE, HASH, HASHES_FILE, ID, SECTION, SOURCE, TEXT,
    TEXT_FILE, TITLE, TOKEN, TOKENS_FILE,
};
use super::mapped::Mapped;
use super::{Tokenizer, check};
use crate::artefact::{self, ArtefactError};
use crate::{Error, Result};

pub(super) const KIND: &str = "chunk-store";
pub(super) const VERSION: u32 = 1;
pub(super) const TOKENIZER_FILE: &str = "tokenizer.json";

/// What a store's manifest says about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StoreMeta {
    pub chunk_tokens: usize,
    pub documents: usize,
    pub chunks: usize,
    pub tokens: usize,
    pub text_bytes: usize,
    pub fields_bytes: usize,
    pub tokenizer: String,
    pub vocab_size: usize,
    pub end_of_text: Option<u32>,
}

/// A memory-mapped chunk store (artefact kind `"chunk-store"`).
///
/// A document's token stream is its text's tokens with the tokenizer's end-of-text token before
/// and behind (where it has one), cut into chunks of exactly [`chunk_size`](Self::chunk_size)
/// tokens, the last possibly shorter. The chunks' texts tile the document's text. Documents and
/// chunks are numbered from 0 through the whole store.
///
/// Opening reads the manifest and the tokenizer, whatever the size of the corpus. Damage inside a
/// data file is found by [`check`](Self::check) and [`artefact::verify`]; reading a damaged store
/// may give wrong or empty texts, but does not panic.
pub struct ChunkStore {
    dir: PathBuf,
    identity: String,
    meta: StoreMeta,
    tokenizer: Tokenizer,
    pub(super) tokens: Mapped<u32>,
    pub(super) text: Mapped<u8>,
    pub(super) fields: Mapped<u8>,
    pub(super) chunks: Mapped<u32>,
    pub(super) documents: Mapped<u64>,
    pub(super) hashes: Mapped<u8>,
}

/// A document in a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredDocument<'a> {
    /// Its name within the corpus.
    pub id: &'a str,
    /// Its title.
    pub title: &'a str,
    /// The part of a larger document that it is.
    pub section: Option<&'a str>,
    /// The file it came from.
    pub source: &'a str,
    /// Its text.
    pub text: &'a str,
}

/// A chunk in a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk<'a> {
    /// Number of its document.
    pub document: usize,
    /// Its tokens: 1 to [`ChunkStore::chunk_size`] of them.
    pub tokens: &'a [u32],
    /// Its text; empty for a last chunk that only holds the end-of-text token.
    pub text: &'a str,
    /// The byte of the document's text at which `text` begins.
    pub start: usize,
}

impl ChunkStore {
    /// Opens the store in `dir`.
    pub fn open(dir: &Path) -> Result<Self> {
        let manifest = artefact::open(dir, KIND, VERSION)?;
        let meta: StoreMeta = manifest.meta_as(dir)?;
        let bad = |why: &str| {
            Error::from(ArtefactError::BadManifest { path: dir.join(artefact::MANIFEST), why: why.into() })
        };
        if meta.chunk_tokens == 0 {
            return Err(bad("chunk_tokens is 0"));
        }
        let rows = meta.documents.checked_add(1).and_then(|n| n.checked_mul(COLUMNS));
        let pairs = meta.chunks.checked_mul(2);
        let hashes = meta.documents.checked_mul(HASH);
        let (Some(rows), Some(pairs), Some(hashes)) = (rows, pairs, hashes) else {
            return Err(bad("counts too large"));
        };
        let path = |name| manifest.path(dir, name);
        let tokenizer_path = path(TOKENIZER_FILE)?;
        let tokenizer = Tokenizer::open(&tokenizer_path)?;
        if tokenizer.identity() != meta.tokenizer {
            return Err(Error::Mismatch {
                what: "tokenizers".into(),
                left: format!("{} in {}", tokenizer.identity(), tokenizer_path.display()),
                right: format!("{} in the manifest", meta.tokenizer),
                hint: "build the store again".into(),
            });
        }
        let store = Self {
            tokens: Mapped::open(&path(TOKENS_FILE)?, meta.tokens)?,
            text: Mapped::open(&path(TEXT_FILE)?, meta.text_bytes)?,
            fields: Mapped::open(&path(FIELDS_FILE)?, meta.fields_bytes)?,
            chunks: Mapped::open(&path(CHUNKS_FILE)?, pairs)?,
            documents: Mapped::open(&path(DOCUMENTS_FILE)?, rows)?,
            hashes: Mapped::open(&path(HASHES_FILE)?, hashes)?,
            dir: dir.into(),
            identity: manifest.identity(),
            meta,
            tokenizer,
        };
        Ok(store)
    }

    /// The folder it was opened from.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Hash over all that the store holds.
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// Tokens in a full chunk (m in the RETRO paper).
    pub fn chunk_size(&self) -> usize {
        self.meta.chunk_tokens
    }

    /// Number of documents.
    pub fn documents(&self) -> usize {
        self.meta.documents
    }

    /// Number of chunks.
    pub fn chunks(&self) -> usize {
        self.meta.chunks
    }

    /// Number of tokens in all chunks.
    pub fn tokens(&self) -> usize {
        self.meta.tokens
    }

    /// Bytes of text in all documents.
    pub fn text_bytes(&self) -> usize {
        self.meta.text_bytes
    }

    /// The tokenizer that the store was cut with.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Document number `d`.
    ///
    /// # Panics
    /// If there are not more than `d` documents.
    pub fn document(&self, d: usize) -> StoredDocument<'_> {
        let (row, next) = (self.row(d), self.row(d + 1));
        let field = |from: u64, to: u64| utf8(&self.fields, from, to);
        let section = field(row[SECTION], row[SOURCE]);
        StoredDocument {
            id: field(row[ID], row[TITLE]),
            title: field(row[TITLE], row[SECTION]),
            section: (!section.is_empty()).then_some(section),
            source: field(row[SOURCE], next[ID]),
            text: utf8(&self.text, row[TEXT], next[TEXT]),
        }
    }

    /// The numbers of document `d`'s chunks.
    ///
    /// # Panics
    /// If there are not more than `d` documents.
    pub fn chunks_of(&self, d: usize) -> Range<usize> {
        let limit = |row: &[u64]| (row[CHUNK] as usize).min(self.meta.chunks);
        limit(self.row(d))..limit(self.row(d + 1))
    }

    /// How many tokens document `d` has.
    ///
    /// # Panics
    /// If there are not more than `d` documents.
    pub fn tokens_in(&self, d: usize) -> usize {
        self.row(d + 1)[TOKEN].saturating_sub(self.row(d)[TOKEN]) as usize
    }

    /// Hash of document `d`'s text: equal texts have equal hashes under whatever id.
    ///
    /// # Panics
    /// If there are not more than `d` documents.
    pub fn text_hash(&self, d: usize) -> &[u8] {
        &self.hashes[d * HASH..(d + 1) * HASH]
    }

    /// Number of the document that chunk `c` is of.
    ///
    /// # Panics
    /// If there are not more than `c` chunks.
    pub fn document_of(&self, c: usize) -> usize {
        // A damaged store may name a document that is not there.
        (self.chunks[2 * c] as usize).min(self.meta.documents.saturating_sub(1))
    }

    /// Whether chunk `c` has any text, which a last chunk of only the end-of-text token has not.
    ///
    /// # Panics
    /// If there are not more than `c` chunks.
    pub fn has_text(&self, c: usize) -> bool {
        let start = u64::from(self.chunks[2 * c + 1]);
        match self.continuation(c) {
            Some(after) => u64::from(self.chunks[2 * after + 1]) > start,
            None => {
                let d = self.document_of(c);
                self.row(d + 1)[TEXT].saturating_sub(self.row(d)[TEXT]) > start
            }
        }
    }

    /// Chunk number `c`.
    ///
    /// # Panics
    /// If there are not more than `c` chunks.
    pub fn chunk(&self, c: usize) -> Chunk<'_> {
        let document = self.document_of(c);
        let (row, next) = (self.row(document), self.row(document + 1));
        let start = u64::from(self.chunks[2 * c + 1]);
        let end = match self.continuation(c) {
            Some(after) => row[TEXT].saturating_add(u64::from(self.chunks[2 * after + 1])),
            None => next[TEXT],
        };
        let first = (c as u64).saturating_sub(row[CHUNK]).saturating_mul(self.meta.chunk_tokens as u64);
        let from = row[TOKEN].saturating_add(first);
        let to = next[TOKEN].min(from.saturating_add(self.meta.chunk_tokens as u64));
        Chunk {
            document,
            tokens: self.tokens.get(from as usize..to as usize).unwrap_or_default(),
            text: utf8(&self.text, row[TEXT].saturating_add(start), end),
            start: start as usize,
        }
    }

    /// The chunk that follows chunk `c` in the same document.
    ///
    /// # Panics
    /// If there are not more than `c` chunks.
    pub fn continuation(&self, c: usize) -> Option<usize> {
        let after = c + 1;
        (after < self.meta.chunks && self.chunks[2 * after] == self.chunks[2 * c]).then_some(after)
    }

    /// What RETRO reads of a neighbour: the chunk's tokens, then those of its continuation
    /// (`[N; F]`, at most twice the chunk size). A chunk that ends its document has no
    /// continuation: other documents' tokens never follow.
    ///
    /// # Panics
    /// If there are not more than `c` chunks.
    pub fn neighbour_tokens(&self, c: usize) -> Vec<u32> {
        let mut tokens = self.chunk(c).tokens.to_vec();
        if let Some(after) = self.continuation(c) {
            tokens.extend_from_slice(self.chunk(after).tokens);
        }
        tokens
    }

    /// Reads the whole store and says all that does not fit together; empty for a sound one.
    pub fn check(&self) -> Vec<String> {
        check::check(self)
    }

    pub(super) fn row(&self, d: usize) -> &[u64] {
        &self.documents[d * COLUMNS..(d + 1) * COLUMNS]
    }
}

/// The text at `from..to`, or nothing where a damaged table points outside or into a character.
fn utf8(bytes: &[u8], from: u64, to: u64) -> &str {
    bytes.get(from as usize..to as usize).and_then(|b| std::str::from_utf8(b).ok()).unwrap_or_default()
}

impl std::fmt::Debug for ChunkStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChunkStore").field("dir", &self.dir).field("meta", &self.meta).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::corpus::{Documents, OnError, build_store};
    use crate::progress::Progress;

    const M: usize = 5;

    fn tokenizer() -> Tokenizer {
        Tokenizer::train((0..50).map(|i| Ok(format!("word{i} é東 the the"))), 300, &[]).unwrap()
    }

    /// 700 documents over two files, so that batches end inside and between them.
    fn corpus(dir: &Path) -> Vec<PathBuf> {
        fs::create_dir_all(dir).unwrap();
        let lines = |range: Range<usize>| -> String {
            range
                .map(|d| {
                    let text = "é東 the word1 🦀".chars().cycle().take(1 + d * 13 % 60).collect::<String>();
                    let section = ["", "part"][d % 2];
                    format!("{}\n", serde_json::json!({"id": d, "title": format!("T{d}"), "section": section, "text": text}))
                })
                .collect()
        };
        fs::write(dir.join("a.jsonl"), lines(0..300)).unwrap();
        fs::write(dir.join("b.jsonl"), lines(300..700)).unwrap();
        vec![dir.join("a.jsonl"), dir.join("b.jsonl")]
    }

    fn build(dir: &Path, m: usize) -> ChunkStore {
        let corpus = corpus(&dir.join("corpus"));
        let out = dir.join(format!("store-{m}"));
        let summary = build_store(&corpus, &tokenizer(), m, OnError::Fail, &out, Progress::Silent).unwrap();
        let store = ChunkStore::open(&out).unwrap();
        assert_eq!(summary.identity, store.identity());
        assert_eq!(
            (summary.documents, summary.chunks, summary.tokens, summary.text_bytes),
            (store.documents(), store.chunks(), store.tokens(), store.text_bytes())
        );
        store
    }

    #[test]
    fn the_store_gives_back_the_corpus_and_its_chunks() {
        let dir = tempfile::tempdir().unwrap();
        let store = build(dir.path(), M);
        let tokenizer = store.tokenizer();
        let end = tokenizer.end_of_text().unwrap();
        let documents = Documents::open(&corpus(&dir.path().join("corpus")), OnError::Fail).unwrap();
        let mut next_chunk = 0;
        for (d, expected) in documents.map(Result::unwrap).enumerate() {
            let found = store.document(d);
            assert_eq!(
                (found.id, found.title, found.text),
                (&*expected.id, &*expected.title, &*expected.text)
            );
            assert_eq!((found.section, found.source), (expected.section.as_deref(), &*expected.source));
            let chunks = store.chunks_of(d);
            assert_eq!(chunks.start, next_chunk);
            next_chunk = chunks.end;
            let mut stream = vec![end];
            stream.extend(tokenizer.encode(&expected.text).unwrap().ids);
            stream.push(end);
            let (mut tokens, mut text) = (Vec::new(), String::new());
            for c in chunks.clone() {
                let chunk = store.chunk(c);
                assert_eq!((chunk.document, chunk.start), (d, text.len()));
                assert!(chunk.tokens.len() == M || c + 1 == chunks.end && !chunk.tokens.is_empty());
                assert_eq!(store.has_text(c), !chunk.text.is_empty());
                let after = (c + 1 < chunks.end).then_some(c + 1);
                assert_eq!(store.continuation(c), after, "a continuation stays in its document");
                let with_next = [chunk.tokens, after.map_or(&[], |c| store.chunk(c).tokens)].concat();
                assert_eq!(store.neighbour_tokens(c), with_next);
                tokens.extend_from_slice(chunk.tokens);
                text.push_str(chunk.text);
            }
            assert_eq!((tokens, text), (stream, expected.text));
        }
        assert_eq!((next_chunk, store.documents()), (store.chunks(), 700));
        assert_eq!(store.check(), [""; 0]);
    }

    #[test]
    fn the_identity_depends_on_the_content_and_not_on_the_place() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        assert_eq!(build(one.path(), M).identity(), build(two.path(), M).identity());
        assert_ne!(build(one.path(), M).identity(), build(one.path(), M + 1).identity());
    }

    #[test]
    fn a_failed_build_leaves_the_old_store() {
        let dir = tempfile::tempdir().unwrap();
        let old = build(dir.path(), M).identity().to_string();
        let bad = dir.path().join("bad.jsonl");
        fs::write(&bad, "{\"text\": \"good\"}\nbad\n").unwrap();
        let out = dir.path().join(format!("store-{M}"));
        let error =
            build_store(std::slice::from_ref(&bad), &tokenizer(), M, OnError::Fail, &out, Progress::Silent)
                .unwrap_err();
        assert!(error.to_string().contains("bad.jsonl:2"), "{error}");
        assert_eq!(ChunkStore::open(&out).unwrap().identity(), old);
        let summary = build_store(&[bad], &tokenizer(), M, OnError::Skip, &out, Progress::Silent).unwrap();
        assert_eq!((summary.documents, summary.skipped.count), (1, 1));
        assert_eq!(ChunkStore::open(&out).unwrap().documents(), 1);
        assert!(
            build_store(std::slice::from_ref(&out), &tokenizer(), 0, OnError::Skip, &out, Progress::Silent)
                .is_err()
        );
    }

    #[test]
    fn check_finds_tables_that_do_not_fit() {
        let dir = tempfile::tempdir().unwrap();
        let store = build(dir.path(), M);
        let manifest = artefact::read_manifest(store.dir()).unwrap();
        for (file, at, value) in [
            (CHUNKS_FILE, 8, 9),                      // chunk 1 of another document
            (CHUNKS_FILE, 12, 200),                   // chunk 1 begins outside the text
            (DOCUMENTS_FILE, 8 * COLUMNS, 200),       // document 1's tokens begin elsewhere
            (DOCUMENTS_FILE, 8 * (COLUMNS + 2), 99),  // document 1's text begins elsewhere
            (DOCUMENTS_FILE, 8 * (COLUMNS + 4), 255), // document 1's title begins elsewhere
            (TOKENS_FILE, 3, 255),                    // a token outside the vocabulary
            (TEXT_FILE, 0, b'x'),                     // another text
        ] {
            let path = manifest.path(store.dir(), file).unwrap();
            let bytes = fs::read(&path).unwrap();
            let mut changed = bytes.clone();
            changed[at] = value;
            fs::write(&path, changed).unwrap();
            let damaged = ChunkStore::open(store.dir()).unwrap();
            assert!(!damaged.check().is_empty(), "{file} at {at}");
            assert!((0..damaged.chunks()).all(|c| damaged.chunk(c).tokens.len() <= M));
            assert!((0..damaged.documents()).all(|d| damaged.chunks_of(d).end <= damaged.chunks()));
            fs::write(&path, bytes).unwrap();
        }
        assert_eq!(store.check(), [""; 0]);
    }
}
