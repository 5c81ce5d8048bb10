//! What is read of a corpus: one chunk store or several, without the documents that were deleted.

use std::ops::Range;
use std::path::Path;

use sidenote_index::Bitmap;

use super::{Chunk, ChunkStore, StoredDocument, Tokenizer};
use crate::{Error, Result};

/// One chunk store, or several that follow one another as the parts of a corpus that grew.
///
/// Documents and chunks are numbered from 0 through all parts. Documents that were deleted keep
/// their numbers and can still be read, so that the numbers of the others stay; whoever goes
/// through the whole store asks [`document_is_live`](Self::document_is_live) or
/// [`is_live`](Self::is_live).
#[derive(Debug)]
pub struct Store {
    parts: Vec<Part>,
    /// Number of each part's first document, then the number of all; `[parts + 1]`.
    documents: Vec<usize>,
    /// The same of chunks.
    chunks: Vec<usize>,
    identity: String,
}

#[derive(Debug)]
struct Part {
    store: ChunkStore,
    /// The documents that were deleted; `None` where there are none.
    dead: Option<Bitmap>,
}

impl Store {
    /// Opens the one chunk store in `dir`.
    pub fn open(dir: &Path) -> Result<Self> {
        Self::new(vec![(ChunkStore::open(dir)?, None)])
    }

    /// Joins chunk stores, each with the set of its documents that were deleted.
    ///
    /// # Errors
    /// No part at all, another tokenizer or chunk size than the first part's, a set of another
    /// length than its part, too many chunks for the numbers that they go by.
    pub fn new(parts: Vec<(ChunkStore, Option<Bitmap>)>) -> Result<Self> {
        let (mut documents, mut chunks) = (vec![0], vec![0]);
        let mut hasher = blake3::Hasher::new();
        let mut joined: Vec<Part> = Vec::with_capacity(parts.len());
        for (store, dead) in parts {
            let first = joined.first().map_or(&store, |part| &part.store);
            let cut = |s: &ChunkStore| {
                format!("chunks of {} tokens of tokenizer {}", s.chunk_size(), s.tokenizer().identity())
            };
            if cut(first) != cut(&store) {
                return Err(Error::Mismatch {
                    what: format!("the stores {} and {}", first.dir().display(), store.dir().display()),
                    left: cut(first),
                    right: cut(&store),
                    hint: "build the index again or restore it from a copy".into(),
                });
            }
            if let Some(dead) = dead.as_ref().filter(|dead| dead.len() != store.documents()) {
                let why = format!("{} documents, but {} are marked", store.documents(), dead.len());
                return Err(Error::file(store.dir(), why));
            }
            hasher.update(store.identity().as_bytes());
            hasher.update(&dead.as_ref().map(Bitmap::to_bytes).unwrap_or_default());
            documents.push(documents[joined.len()] + store.documents());
            chunks.push(chunks[joined.len()] + store.chunks());
            joined.push(Part { store, dead: dead.filter(|dead| dead.count_ones() > 0) });
        }
        let identity = match joined.as_slice() {
            [] => return Err(Error::setting("store", "no part at all")),
            [Part { store, dead: None }] => store.identity().to_string(),
            _ => hasher.finalize().to_hex()[..32].to_string(),
        };
        if chunks.last().is_some_and(|&all| all >= u32::MAX as usize) {
            return Err(Error::setting("CORPUS", "more than 4,294,967,294 chunks; split the corpus"));
        }
        Ok(Self { parts: joined, documents, chunks, identity })
    }

    /// The chunk stores, in the order of their numbers.
    pub fn parts(&self) -> impl Iterator<Item = &ChunkStore> {
        self.parts.iter().map(|part| &part.store)
    }

    /// The deleted documents of part `part`, by their numbers in it; `None` where there are none.
    ///
    /// # Panics
    /// If there are not more than `part` parts.
    pub fn dead(&self, part: usize) -> Option<&Bitmap> {
        self.parts[part].dead.as_ref()
    }

    /// The part that document `d` is in, and its number there.
    ///
    /// # Panics
    /// If there are not more than `d` documents.
    pub fn locate_document(&self, d: usize) -> (usize, usize) {
        locate(&self.documents, d)
    }

    /// Hash over all that the store holds.
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// Tokens in a full chunk (m in the RETRO paper).
    pub fn chunk_size(&self) -> usize {
        self.parts[0].store.chunk_size()
    }

    /// Number of documents, deleted ones included: document numbers are less than this.
    pub fn documents(&self) -> usize {
        self.documents[self.parts.len()]
    }

    /// Number of chunks, those of deleted documents included: chunk numbers are less than this.
    pub fn chunks(&self) -> usize {
        self.chunks[self.parts.len()]
    }

    /// Number of tokens in all chunks, those of deleted documents included.
    pub fn tokens(&self) -> usize {
        self.parts().map(ChunkStore::tokens).sum()
    }

    /// Bytes of text in all documents, deleted ones included.
    pub fn text_bytes(&self) -> usize {
        self.parts().map(ChunkStore::text_bytes).sum()
    }

    /// The tokenizer that the store was cut with.
    pub fn tokenizer(&self) -> &Tokenizer {
        self.parts[0].store.tokenizer()
    }

    /// Whether document `d` was not deleted.
    ///
    /// # Panics
    /// If there are not more than `d` documents.
    pub fn document_is_live(&self, d: usize) -> bool {
        let (part, d) = self.locate_document(d);
        self.parts[part].dead.as_ref().is_none_or(|dead| !dead.get(d))
    }

    /// Whether chunk `c` is of a document that was not deleted.
    ///
    /// # Panics
    /// If there are not more than `c` chunks.
    pub fn is_live(&self, c: usize) -> bool {
        let (part, c) = locate(&self.chunks, c);
        let part = &self.parts[part];
        part.dead.as_ref().is_none_or(|dead| !dead.get(part.store.document_of(c)))
    }

    /// Document number `d`.
    ///
    /// # Panics
    /// If there are not more than `d` documents.
    pub fn document(&self, d: usize) -> StoredDocument<'_> {
        let (part, d) = self.locate_document(d);
        self.parts[part].store.document(d)
    }

    /// The numbers of document `d`'s chunks.
    ///
    /// # Panics
    /// If there are not more than `d` documents.
    pub fn chunks_of(&self, d: usize) -> Range<usize> {
        let (part, d) = self.locate_document(d);
        let (first, chunks) = (self.chunks[part], self.parts[part].store.chunks_of(d));
        first + chunks.start..first + chunks.end
    }

    /// Hash of document `d`'s text: equal texts have equal hashes under whatever id.
    ///
    /// # Panics
    /// If there are not more than `d` documents.
    pub fn text_hash(&self, d: usize) -> &[u8] {
        let (part, d) = self.locate_document(d);
        self.parts[part].store.text_hash(d)
    }

    /// Number of the document that chunk `c` is of.
    ///
    /// # Panics
    /// If there are not more than `c` chunks.
    pub fn document_of(&self, c: usize) -> usize {
        let (part, c) = locate(&self.chunks, c);
        self.documents[part] + self.parts[part].store.document_of(c)
    }

    /// Whether chunk `c` has any text, which a last chunk of only the end-of-text token has not.
    ///
    /// # Panics
    /// If there are not more than `c` chunks.
    pub fn has_text(&self, c: usize) -> bool {
        let (part, c) = locate(&self.chunks, c);
        self.parts[part].store.has_text(c)
    }

    /// Chunk number `c`.
    ///
    /// # Panics
    /// If there are not more than `c` chunks.
    pub fn chunk(&self, c: usize) -> Chunk<'_> {
        let (part, c) = locate(&self.chunks, c);
        let chunk = self.parts[part].store.chunk(c);
        Chunk { document: self.documents[part] + chunk.document, ..chunk }
    }

    /// The chunk that follows chunk `c` in the same document.
    ///
    /// # Panics
    /// If there are not more than `c` chunks.
    pub fn continuation(&self, c: usize) -> Option<usize> {
        let (part, c) = locate(&self.chunks, c);
        self.parts[part].store.continuation(c).map(|after| self.chunks[part] + after)
    }

    /// What RETRO reads of a neighbour: see [`ChunkStore::neighbour_tokens`].
    ///
    /// # Panics
    /// If there are not more than `c` chunks.
    pub fn neighbour_tokens(&self, c: usize) -> Vec<u32> {
        let (part, c) = locate(&self.chunks, c);
        self.parts[part].store.neighbour_tokens(c)
    }

    /// Reads the whole store and says all that does not fit together; empty for a sound one.
    pub fn check(&self) -> Vec<String> {
        self.parts().flat_map(ChunkStore::check).collect()
    }
}

/// The part that number `n` falls into and its number there, by the parts' first numbers.
fn locate(firsts: &[usize], n: usize) -> (usize, usize) {
    let part = match firsts {
        [_, end] if n < *end => 0,
        _ => firsts.partition_point(|&first| first <= n).saturating_sub(1),
    };
    assert!(part + 1 < firsts.len(), "number {n} of {}", firsts[firsts.len() - 1]);
    (part, n - firsts[part])
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use super::*;
    use crate::corpus::{OnError, build_store};
    use crate::progress::Progress;

    fn tokenizer() -> Tokenizer {
        Tokenizer::train((0..9).map(|i| Ok(format!("w{i} w{i}"))), 280, &[]).unwrap()
    }

    fn lines(documents: Range<usize>) -> String {
        let line = |d: usize| {
            let text = vec![format!("w{}", d % 9); 1 + d * 5 % 23].join(" ");
            format!("{{\"id\": \"d{d}\", \"text\": \"{text}\"}}\n")
        };
        documents.map(line).collect()
    }

    fn part(dir: &Path, documents: Range<usize>, m: usize) -> ChunkStore {
        let out = dir.join(format!("{documents:?}-{m}"));
        let corpus: PathBuf = dir.join("corpus.jsonl");
        fs::write(&corpus, lines(documents)).unwrap();
        build_store(&[corpus], &tokenizer(), m, OnError::Fail, &out, Progress::Silent).unwrap();
        ChunkStore::open(&out).unwrap()
    }

    #[test]
    fn parts_read_as_the_store_of_all_their_documents() {
        let dir = tempfile::tempdir().unwrap();
        let whole = Store::new(vec![(part(dir.path(), 0..40, 7), None)]).unwrap();
        let mut dead = Bitmap::new(9);
        dead.set(2);
        let parts =
            vec![(0..11, None), (11..12, None), (12..21, Some(dead)), (21..40, Some(Bitmap::new(19)))];
        let parts = parts.into_iter().map(|(range, dead)| (part(dir.path(), range, 7), dead)).collect();
        let joined = Store::new(parts).unwrap();
        assert_ne!(joined.identity(), whole.identity());
        assert_eq!((joined.documents(), joined.chunks()), (whole.documents(), whole.chunks()));
        assert_eq!((joined.tokens(), joined.text_bytes()), (whole.tokens(), whole.text_bytes()));
        for d in 0..40 {
            assert_eq!((joined.document(d), joined.chunks_of(d)), (whole.document(d), whole.chunks_of(d)));
            assert_eq!(joined.text_hash(d), whole.text_hash(d));
            assert_eq!((joined.document_is_live(d), whole.document_is_live(d)), (d != 14, true));
        }
        for c in 0..whole.chunks() {
            assert_eq!((joined.chunk(c), joined.continuation(c)), (whole.chunk(c), whole.continuation(c)));
            assert_eq!(
                (joined.document_of(c), joined.has_text(c)),
                (whole.document_of(c), whole.has_text(c))
            );
            assert_eq!(joined.neighbour_tokens(c), whole.neighbour_tokens(c));
            assert_eq!(joined.is_live(c), whole.document_of(c) != 14);
        }
        assert_eq!(joined.check(), [""; 0]);
    }

    #[test]
    fn parts_that_do_not_belong_together_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let error = Store::new(vec![(part(dir.path(), 0..3, 7), None), (part(dir.path(), 3..6, 8), None)]);
        let error = error.unwrap_err().to_string();
        assert!(error.contains("chunks of 7 tokens") && error.contains("chunks of 8 tokens"), "{error}");
        assert!(Store::new(vec![(part(dir.path(), 0..3, 7), Some(Bitmap::new(4)))]).is_err());
        assert!(Store::new(vec![]).is_err());
    }
}
