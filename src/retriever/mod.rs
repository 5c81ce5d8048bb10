//! Text in, passages out: an encoder, a nearest-neighbour index and the chunk store behind it.
//!
//! An index directory (artefact kind `"corpus-index"`) holds parts, each of two artefacts,
//! `store-<id>` and `vectors-<id>`, and a manifest that ties them to each other and to the encoder:
//! row `c` of a part's vectors is chunk `c` of its store. What was deleted is marked in data files
//! of the manifest's own. Every change makes a new generation by the swap of that one manifest.

pub mod bm25;
mod build;
mod encode_again;
mod filter;
mod generation;
mod hybrid;
mod living;
mod meta;
pub mod neighbours;
mod part_writer;
mod parts;
mod same;
mod tombstones;
mod tune;
mod unfinished;
mod verify;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rayon::prelude::*;
use serde::Serialize;
use sidenote_index::{Hit, Segments};

use crate::corpus::Store;
use crate::encoder::{self, Encoder};
use crate::{Error, Result};

pub use build::{BuildOptions, Existing, build};
pub use encode_again::encode_again;
pub use filter::{Condition, Filter};
pub use generation::bytes_in;
pub(crate) use hybrid::whole_words;
pub use hybrid::{SearchOptions, fuse};
pub use living::{AddOptions, Added, Compacted, Deleted, add, compact, delete};
pub use meta::{Counts, Dead, EncoderMeta, IndexMeta, IndexPart, Piece, Settings};
pub use tune::{TuneOptions, Tuned, tune};
pub use verify::verify;

pub use crate::ranking::Ranking;

use bm25::Bm25;
use living::live_runs;
use same::SameDocument;

/// Which chunks may be found: called with the query's place in the batch and the chunk.
pub type Allow<'a> = Option<&'a (dyn Fn(usize, u32) -> bool + Sync)>;

/// Texts are encoded in batches of this many. Batches are cut from the front of whatever list is
/// encoded, so the same list gives the same bits.
const ENCODER_BATCH: usize = 64;

/// A chunk that was found, with where it comes from.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Passage {
    /// Number of the chunk in the store.
    pub chunk: usize,
    /// Number of its document.
    pub document: usize,
    /// Nearness to the query: the cosine of their vectors, or the fused ranks of a hybrid search.
    pub score: f32,
    /// The document's id.
    pub id: String,
    /// The document's title.
    pub title: String,
    /// The part of a larger document that it is.
    pub section: Option<String>,
    /// The file that it came from.
    pub source: String,
    /// The chunk's text.
    pub text: String,
}

/// Opens the chunk store of the index in `dir`, without its vectors and encoder: all that training
/// on its text needs.
pub fn open_store(dir: &Path) -> Result<Store> {
    Ok(parts::open(dir, parts::store)?.1)
}

/// An index directory, opened together with its encoder.
pub struct Retriever {
    dir: PathBuf,
    meta: IndexMeta,
    store: Store,
    index: Segments,
    encoder: Box<dyn Encoder>,
    queries: Option<Box<dyn Encoder>>,
    same: OnceLock<SameDocument>,
    words: OnceLock<Bm25>,
}

impl Retriever {
    /// Opens the index in `dir` with `encoder`, or with the encoder that the index names. It stays
    /// what it is now, whatever is added or deleted meanwhile.
    ///
    /// # Errors
    /// Anything missing or damaged, pieces that do not belong together, and another encoder than
    /// the one that the index was built with: the error names both.
    pub fn open(dir: &Path, encoder: Option<Box<dyn Encoder>>) -> Result<Self> {
        let meta = IndexMeta::read(dir)?;
        let encoder = match encoder {
            Some(encoder) => encoder,
            None => encoder::load(&meta.settings.encoder.name)?,
        };
        let (meta, (store, index)) = parts::open(dir, parts::both)?;
        meta.check_encoder(dir, encoder.as_ref())?;
        if index.dim() != encoder.dim() {
            return Err(Error::Mismatch {
                what: format!("the encoder and the vectors in {}", dir.display()),
                left: format!("encoder width {}", encoder.dim()),
                right: format!("vectors of width {}", index.dim()),
                hint: "build the index again".into(),
            });
        }
        Ok(Self {
            dir: dir.into(),
            meta,
            store,
            index,
            encoder,
            queries: None,
            same: OnceLock::new(),
            words: OnceLock::new(),
        })
    }

    /// The same with queries encoded by `queries`, which was trained for the vectors of this index: query-side tuning
    /// leaves those as they are.
    ///
    /// # Errors
    /// An encoder whose vectors have another width.
    pub fn with_query_encoder(mut self, queries: Box<dyn Encoder>) -> Result<Self> {
        if queries.dim() != self.index.dim() {
            return Err(Error::Mismatch {
                what: format!(
                    "the query encoder {:?} and the vectors in {}",
                    queries.name(),
                    self.dir.display()
                ),
                left: format!("vectors of width {}", queries.dim()),
                right: format!("vectors of width {}", self.index.dim()),
                hint: "give the encoder that was trained with this index".into(),
            });
        }
        self.queries = Some(queries);
        Ok(self)
    }

    /// The folder it was opened from.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What the index is made of.
    pub fn meta(&self) -> &IndexMeta {
        &self.meta
    }

    /// Hash over the store, the vectors and the encoder.
    pub fn identity(&self) -> String {
        self.meta.identity()
    }

    /// The chunks and their documents.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The chunks' vectors.
    pub fn index(&self) -> &Segments {
        &self.index
    }

    /// What turns text into vectors.
    pub fn encoder(&self) -> &dyn Encoder {
        self.encoder.as_ref()
    }

    /// What turns questions into vectors.
    pub fn query_encoder(&self) -> &dyn Encoder {
        self.queries.as_ref().unwrap_or(&self.encoder).as_ref()
    }

    /// Vectors `[texts, dim]` of `texts`, on all cores.
    pub fn encode(&self, texts: &[&str]) -> Result<Vec<f32>> {
        encode(self.encoder.as_ref(), texts)
    }

    /// The `k` passages nearest to `query`, nearest first. None where the query holds no token
    /// that the encoder knows.
    pub fn search(&self, query: &str, k: usize) -> Result<Vec<Passage>> {
        self.search_with(query, k, &SearchOptions::default())
    }

    /// The `k` nearest chunks to each of `queries` `[queries, dim]`, nearest first; equal scores
    /// by chunk. Chunks without text are never found, and a zero query finds nothing.
    pub fn search_vectors(&self, queries: &[f32], k: usize, allow: Allow) -> Result<Vec<Vec<Hit>>> {
        let may = |query: usize, id: u32| {
            self.store.has_text(id as usize) && allow.is_none_or(|allow| allow(query, id))
        };
        let mut found = self.index.search_batch(queries, k, Some(&may))?;
        for (hits, query) in found.iter_mut().zip(queries.chunks_exact(self.index.dim())) {
            if query.iter().all(|&x| x == 0.0) {
                hits.clear();
            }
        }
        Ok(found)
    }

    /// The `k` best chunks for each text by `ranking`, none of them from the document whose id `exclude`
    /// gives at the same place: retrieval while a text is being written or evaluated.
    ///
    /// # Errors
    /// Texts and exclusions of different numbers, and what the encoder refuses.
    pub fn neighbour_search(
        &self,
        texts: &[&str],
        exclude: &[Option<&str>],
        k: usize,
        ranking: Ranking,
    ) -> Result<Vec<Vec<Hit>>> {
        if texts.len() != exclude.len() {
            let why = format!("{} texts, but {} exclusions", texts.len(), exclude.len());
            return Err(Error::setting("exclude", why));
        }
        let excluded: Vec<Vec<u32>> = exclude
            .iter()
            .map(|id| id.map(|id| self.same().by_id(&self.store, id)).unwrap_or_default())
            .collect();
        let may =
            |query: usize, id: u32| !excluded[query].contains(&(self.store.document_of(id as usize) as u32));
        let mut found = self.rank(texts, || self.encode(texts), k, ranking, Some(&may))?;
        for (hits, text) in found.iter_mut().zip(texts) {
            if text.is_empty() {
                hits.clear();
            }
        }
        Ok(found)
    }

    /// A hit with its text and source.
    pub fn passage(&self, hit: Hit) -> Passage {
        let chunk = self.store.chunk(hit.id as usize);
        let document = self.store.document(chunk.document);
        Passage {
            chunk: hit.id as usize,
            document: chunk.document,
            score: hit.score,
            id: document.id.into(),
            title: document.title.into(),
            section: document.section.map(String::from),
            source: document.source.into(),
            text: chunk.text.into(),
        }
    }

    fn same(&self) -> &SameDocument {
        self.same.get_or_init(|| SameDocument::of(&self.store))
    }
}

impl std::fmt::Debug for Retriever {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Retriever").field("dir", &self.dir).field("meta", &self.meta).finish_non_exhaustive()
    }
}

/// Encodes any number of texts in batches, the batches on all cores.
fn encode(encoder: &dyn Encoder, texts: &[&str]) -> Result<Vec<f32>> {
    let batches: Result<Vec<_>> =
        texts.par_chunks(ENCODER_BATCH).map(|batch| encoder.encode(batch)).collect();
    let rows = batches?.concat();
    if rows.len() != texts.len() * encoder.dim() {
        let why = format!("{} numbers for {} texts of width {}", rows.len(), texts.len(), encoder.dim());
        return Err(Error::setting(format!("encoder {:?}", encoder.name()), why));
    }
    Ok(rows)
}

#[cfg(test)]
mod living_tests;
#[cfg(test)]
pub(crate) mod testing;

#[cfg(test)]
mod tests {
    use super::testing::{HashedWords, index_of, words};
    use super::*;

    #[test]
    fn a_chunk_finds_itself_and_its_source() {
        let dir = tempfile::tempdir().unwrap();
        let retriever = index_of(dir.path(), 60);
        let store = retriever.store();
        for c in (0..store.chunks()).step_by(5).filter(|&c| store.has_text(c)) {
            let text = store.chunk(c).text;
            let passages = retriever.search(text, 4).unwrap();
            assert_eq!(passages.len(), 4);
            assert!(passages.is_sorted_by(|a, b| a.score >= b.score));
            assert!((passages[0].score - 1.0).abs() < 1e-5 || text.trim().is_empty());
            for passage in passages {
                let document = store.document(passage.document);
                assert!(store.chunks_of(passage.document).contains(&passage.chunk));
                assert_eq!((passage.id.as_str(), passage.title.as_str()), (document.id, document.title));
                assert_eq!(passage.source, "corpus.jsonl");
                assert!(document.text.contains(&passage.text) && !passage.text.is_empty());
            }
        }
        assert!(retriever.search("", 4).unwrap().is_empty());
        let all = retriever.search("w1", usize::MAX).unwrap();
        assert_eq!(all.len(), (0..store.chunks()).filter(|&c| store.has_text(c)).count());
    }

    #[test]
    fn another_encoder_is_refused_and_both_are_named() {
        let dir = tempfile::tempdir().unwrap();
        drop(index_of(dir.path(), 5));
        let other = HashedWords { name: "others".into(), ..words() };
        let error =
            Retriever::open(&dir.path().join("index"), Some(Box::new(other))).unwrap_err().to_string();
        assert!(error.contains("\"others\"") && error.contains("\"words\""), "{error}");
        let error = Retriever::open(dir.path(), Some(Box::new(words()))).unwrap_err().to_string();
        assert!(error.contains("manifest.json"), "{error}");
    }

    #[test]
    fn an_excluded_document_is_not_found() {
        let dir = tempfile::tempdir().unwrap();
        let retriever = index_of(dir.path(), 60);
        let store = retriever.store();
        let c = store.chunks_of(17).start;
        let text = store.chunk(c).text;
        let found = retriever
            .neighbour_search(&[text, text, ""], &[None, Some("doc-17"), None], 3, Ranking::Vectors)
            .unwrap();
        assert_eq!(store.document_of(found[0][0].id as usize), 17);
        assert!(found[1].iter().all(|hit| store.document_of(hit.id as usize) != 17));
        assert_eq!((found[1].len(), found[2].len()), (3, 0));
        assert!(retriever.neighbour_search(&[text], &[], 3, Ranking::Vectors).is_err());
        let alone = retriever.neighbour_search(&[text], &[Some("doc-17")], 3, Ranking::Vectors).unwrap();
        assert_eq!(alone[0], found[1], "a text's neighbours do not depend on the batch");
    }
}
