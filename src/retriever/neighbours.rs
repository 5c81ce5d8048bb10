//! RETRO's neighbours, computed beforehand: for each chunk of a store the nearest chunks of an
//! index, none of them from the chunk's own document (Borgeaud et al., arXiv 2112.04426, 2.3).

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::generation::{is_there, place, remove, sweep};
use super::{IndexMeta, Ranking, Retriever};
use crate::artefact::{self, ArtefactError, Manifest, Writer};
use crate::corpus::{Mapped, OnError, Store, build_store, bytes_of};
use crate::progress::Progress;
use crate::{Error, Result, interrupt};

/// Stands where a chunk has fewer than k neighbours.
pub const ABSENT: u32 = u32::MAX;

/// Tokens of the neighbours `ids`, chunks of `library` with their continuations; those that are
/// [`ABSENT`] are left out.
pub fn tokens_of(library: &Store, ids: &[u32]) -> Vec<Vec<u32>> {
    ids.iter().filter(|id| **id != ABSENT).map(|id| library.neighbour_tokens(*id as usize)).collect()
}

const KIND: &str = "neighbours";
const VERSION: u32 = 1;
const IDS: &str = "ids.u32";
const SCORES: &str = "scores.f32";
const QUERIES: &str = "queries";

/// Chunks are searched for this many at a time.
const SEARCH_BATCH: usize = 1024;
/// So many neighbours may be asked for where the index has fewer chunks, too.
const FEW: usize = 1000;

/// What a neighbours artefact's manifest says: all that the neighbours depend on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Meta {
    k: usize,
    chunks: usize,
    index: String,
    index_chunks: usize,
    encoder: String,
    #[serde(default, skip_serializing_if = "Ranking::is_vectors")]
    ranking: Ranking,
    queries: String,
    /// The folder of the query store, where it is not the index's own.
    queries_folder: Option<String>,
}

/// The neighbours of every chunk of a store, in memory.
#[derive(Debug, Clone, PartialEq)]
pub struct NeighbourTable {
    k: usize,
    /// `[chunks, k]`, nearest first.
    ids: Vec<u32>,
    /// `[chunks, k]`; minus infinity where the neighbour is absent.
    scores: Vec<f32>,
}

impl NeighbourTable {
    /// Neighbours a chunk.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Number of chunks.
    pub fn len(&self) -> usize {
        self.ids.len() / self.k
    }

    /// Whether there are no chunks.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// The neighbours of `chunk`, nearest first, [`ABSENT`] where there are fewer than k: chunks
    /// of the index's store.
    ///
    /// # Panics
    /// If there are not more than `chunk` chunks.
    pub fn of(&self, chunk: usize) -> &[u32] {
        &self.ids[chunk * self.k..][..self.k]
    }

    /// The scores of [`of`](Self::of).
    ///
    /// # Panics
    /// If there are not more than `chunk` chunks.
    pub fn scores_of(&self, chunk: usize) -> &[f32] {
        &self.scores[chunk * self.k..][..self.k]
    }
}

/// Finds the `k` best chunks of `retriever`'s index by `ranking` for every chunk of `queries`, which may be
/// the index's own store.
///
/// A neighbour never comes from the chunk's own document: the one with the same number (in the
/// index's own store), the same id, or the same text. Its continuation then does not either. A
/// chunk without text has no neighbours. Each chunk's neighbours depend on the two stores and the
/// encoder only.
///
/// # Errors
/// `k` = 0, or more than the index has chunks and than 1000; what the encoder or the index refuses; an interruption.
pub fn compute(
    retriever: &Retriever,
    queries: &Store,
    k: usize,
    ranking: Ranking,
    progress: Progress,
) -> Result<NeighbourTable> {
    if k == 0 {
        return Err(Error::setting("k", "at least 1 neighbour a chunk"));
    }
    let store = retriever.store();
    let most = store.chunks().max(FEW);
    if k > most {
        let why =
            format!("{k} neighbours a chunk, but the index has {} chunks; at most {most}", store.chunks());
        return Err(Error::setting("k", why));
    }
    let own = queries.identity() == store.identity();
    let chunks = queries.chunks();
    let mut table =
        NeighbourTable { k, ids: vec![ABSENT; chunks * k], scores: vec![f32::NEG_INFINITY; chunks * k] };
    let task = progress.task("finding neighbours", chunks as u64, "chunks");
    for first in (0..chunks).step_by(SEARCH_BATCH) {
        if interrupt::requested() {
            return Err(Error::Interrupted("no neighbours were written; run the command again".into()));
        }
        let last = chunks.min(first + SEARCH_BATCH);
        // What is behind a chunk is not known yet when its neighbours are looked up: not even the rest of a word that it cuts.
        let texts: Vec<_> = (first..last).map(|c| queries.chunk(c).text).collect();
        let vectors = || match own {
            true => Ok((first..last)
                .flat_map(|c| retriever.index().vector(c as u32).unwrap_or_default().into_owned())
                .collect()),
            false => retriever.encode(&texts),
        };
        // Chunks are in the order of their documents, so a document's exclusions are found once.
        let mut excluded: Vec<(usize, Vec<u32>)> = Vec::new();
        let mut of_query = Vec::with_capacity(last - first);
        for c in first..last {
            let document = queries.document_of(c);
            if excluded.last().is_none_or(|(d, _)| *d != document) {
                let mut same = retriever.same().as_in(store, queries, document);
                same.extend(own.then_some(document as u32));
                excluded.push((document, same));
            }
            of_query.push(excluded.len() - 1);
        }
        let may = |query: usize, id: u32| {
            !excluded[of_query[query]].1.contains(&(store.document_of(id as usize) as u32))
        };
        let found = retriever.rank(&texts, vectors, k, ranking, Some(&may))?;
        for (c, hits) in (first..last).zip(found) {
            if queries.has_text(c) && queries.is_live(c) {
                for (rank, hit) in hits.iter().enumerate() {
                    table.ids[c * k + rank] = hit.id;
                    table.scores[c * k + rank] = hit.score;
                }
            }
        }
        task.advance((last - first) as u64);
    }
    Ok(table)
}

/// Computes neighbours and keeps them in `out` (artefact kind `"neighbours"`): for the chunks of
/// the corpus `queries`, cut as the index's are and kept in the same folder, or for the index's
/// own chunks where there is none.
///
/// # Errors
/// Neighbours that are there already, unless `replace`; what [`build_store`] and [`compute`]
/// report.
pub fn precompute(
    retriever: &Retriever,
    queries: Option<(&[PathBuf], OnError)>,
    k: usize,
    ranking: Ranking,
    out: &Path,
    replace: bool,
    progress: Progress,
) -> Result<Neighbours> {
    if is_there(out, KIND, &["ids."])? && !replace {
        return Err(Error::file(
            out,
            "there are neighbours here; use --force to replace them, or another --out",
        ));
    }
    let (table, identity, queries_folder) = match queries {
        None => {
            let store = retriever.store();
            (compute(retriever, store, k, ranking, progress)?, store.identity().to_string(), None)
        }
        Some((corpus, on_error)) => {
            let new = out.join("queries-new");
            remove(&new)?;
            let own = retriever.store();
            let outcome = build_store(corpus, own.tokenizer(), own.chunk_size(), on_error, &new, progress)
                .and_then(|_| Store::open(&new))
                .and_then(|store| Ok((compute(retriever, &store, k, ranking, progress)?, store)));
            let (table, store) = outcome.inspect_err(|_| drop(remove(&new)))?;
            let identity = store.identity().to_string();
            drop(store);
            (table, identity.clone(), Some(place(&new, out, QUERIES, &identity)?))
        }
    };
    let meta = Meta {
        k,
        chunks: table.len(),
        index: retriever.identity(),
        index_chunks: retriever.store().chunks(),
        encoder: retriever.encoder().identity().into(),
        ranking,
        queries: identity,
        queries_folder,
    };
    let mut writer = Writer::create(out, KIND, VERSION)?;
    writer.write(IDS, bytes_of(&table.ids))?;
    writer.write(SCORES, bytes_of(&table.scores))?;
    writer.commit(serde_json::json!(meta))?;
    let keep = meta.queries_folder.as_deref().unwrap_or_default();
    sweep(out, &[QUERIES], &[], &[keep])?;
    Neighbours::open(out)
}

/// Precomputed neighbours, memory-mapped.
pub struct Neighbours {
    dir: PathBuf,
    meta: Meta,
    identity: String,
    ids: Mapped<u32>,
    scores: Mapped<f32>,
}

impl Neighbours {
    /// Opens the neighbours in `dir`.
    ///
    /// # Errors
    /// None there, damaged ones, and ids that no chunk of the index has.
    pub fn open(dir: &Path) -> Result<Self> {
        let manifest: Manifest = artefact::open(dir, KIND, VERSION)?;
        let meta: Meta = manifest.meta_as(dir)?;
        let bad = |why: &str| {
            Error::from(ArtefactError::BadManifest { path: dir.join(artefact::MANIFEST), why: why.into() })
        };
        let numbers = meta.k.checked_mul(meta.chunks).ok_or_else(|| bad("counts too large"))?;
        if meta.k == 0 {
            return Err(bad("k is 0"));
        }
        let path = manifest.path(dir, IDS)?;
        let ids: Mapped<u32> = Mapped::open(&path, numbers)?;
        if let Some(at) = ids.iter().position(|&id| id != ABSENT && id as usize >= meta.index_chunks) {
            let why = format!(
                "chunk {} has neighbour {}, but the index has {} chunks",
                at / meta.k,
                ids[at],
                meta.index_chunks
            );
            return Err(ArtefactError::Damaged { path, why }.into());
        }
        Ok(Self {
            dir: dir.into(),
            scores: Mapped::open(&manifest.path(dir, SCORES)?, numbers)?,
            ids,
            meta,
            identity: manifest.identity(),
        })
    }

    /// Opens the neighbours in `dir`, which must have been found in the index in `index`.
    ///
    /// # Errors
    /// Those of [`open`](Self::open), and neighbours found in another index: the error names both.
    pub fn open_for(dir: &Path, index: &Path) -> Result<Self> {
        let neighbours = Self::open(dir)?;
        let wanted = IndexMeta::read(index)?.identity();
        if neighbours.meta.index != wanted {
            return Err(Error::Mismatch {
                what: format!("the neighbours in {} and the index", dir.display()),
                left: format!("neighbours found in index {}", neighbours.meta.index),
                right: format!("index {wanted} in {}", index.display()),
                hint: "use that index, or compute the neighbours again".into(),
            });
        }
        Ok(neighbours)
    }

    /// Neighbours a chunk.
    pub fn k(&self) -> usize {
        self.meta.k
    }

    /// What they are the best by.
    pub fn ranking(&self) -> Ranking {
        self.meta.ranking
    }

    /// Refuses a model that reads more neighbours a chunk, `k`, as `setting` says.
    ///
    /// # Errors
    /// Names the setting and both numbers.
    pub fn check_enough(&self, setting: &str, k: usize) -> Result<()> {
        if self.k() >= k {
            return Ok(());
        }
        let why = format!(
            "the model reads {k} a chunk, but {} holds {}; run `sidenote neighbours` with -k {k}",
            self.dir.display(),
            self.k()
        );
        Err(Error::setting(setting, why))
    }

    /// Refuses a model that looks up by another ranking.
    ///
    /// # Errors
    /// Names both.
    pub fn check_ranking(&self, wanted: Ranking) -> Result<()> {
        if self.meta.ranking == wanted {
            return Ok(());
        }
        Err(Error::Mismatch {
            what: format!("the neighbours in {} and the model", self.dir.display()),
            left: format!("neighbours found by {}", self.meta.ranking),
            right: format!("a model that reads what is found by {wanted}"),
            hint: format!("run `sidenote neighbours` with --ranking {wanted}"),
        })
    }

    /// Number of chunks that have neighbours here.
    pub fn len(&self) -> usize {
        self.meta.chunks
    }

    /// Whether there are no chunks.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The neighbours of `chunk`, nearest first, [`ABSENT`] where there are fewer than k: chunks
    /// of the index's store.
    ///
    /// # Panics
    /// If there are not more than `chunk` chunks.
    pub fn of(&self, chunk: usize) -> &[u32] {
        &self.ids[chunk * self.meta.k..][..self.meta.k]
    }

    /// The scores of [`of`](Self::of); minus infinity where the neighbour is absent.
    ///
    /// # Panics
    /// If there are not more than `chunk` chunks.
    pub fn scores_of(&self, chunk: usize) -> &[f32] {
        &self.scores[chunk * self.meta.k..][..self.meta.k]
    }

    /// Hash over all that is here and that it depends on.
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// Identity of the index that the neighbours are in.
    pub fn index_identity(&self) -> &str {
        &self.meta.index
    }

    /// Identity of the store whose chunks the neighbours are of.
    pub fn queries_identity(&self) -> &str {
        &self.meta.queries
    }

    /// The store whose chunks the neighbours are of, where it is kept here; `None` where it is
    /// the index's own.
    pub fn queries(&self) -> Result<Option<Store>> {
        let Some(folder) = &self.meta.queries_folder else { return Ok(None) };
        let piece = super::Piece { folder: folder.clone(), identity: self.meta.queries.clone() };
        let store = Store::open(&piece.path(&self.dir)?)?;
        if store.identity() != self.meta.queries || store.chunks() != self.meta.chunks {
            return Err(Error::Mismatch {
                what: format!("the neighbours and the query store in {}", self.dir.display()),
                left: format!("{} chunks of store {}", self.meta.chunks, self.meta.queries),
                right: format!("{} chunks of store {}", store.chunks(), store.identity()),
                hint: "compute the neighbours again".into(),
            });
        }
        Ok(Some(store))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::retriever::testing::{build_index, files, index_of, tokenizer, words, write_corpus};
    use crate::retriever::{Existing, verify};

    fn dot(a: &[f32], b: &[f32]) -> f32 {
        a.iter().zip(b).map(|(x, y)| x * y).sum()
    }

    /// The best scores for chunk `c` of `queries` by comparing with everything.
    fn best(retriever: &Retriever, queries: &Store, c: usize, k: usize) -> Vec<f32> {
        let store = retriever.store();
        let chunk = queries.chunk(c);
        let document = queries.document(chunk.document);
        let query = retriever.encode(&[chunk.text]).unwrap();
        let mut scores: Vec<f32> = (0..store.chunks())
            .filter(|&id| {
                let other = store.document(store.document_of(id));
                !store.chunk(id).text.is_empty() && other.id != document.id && other.text != document.text
            })
            .map(|id| dot(&query, &retriever.index().vector(id as u32).unwrap()))
            .collect();
        scores.sort_by(|a, b| b.total_cmp(a));
        scores.truncate(k);
        scores
    }

    fn check(retriever: &Retriever, queries: &Store, table: &NeighbourTable) {
        let store = retriever.store();
        assert_eq!(table.len(), queries.chunks());
        for c in 0..table.len() {
            let chunk = queries.chunk(c);
            let expected =
                if chunk.text.is_empty() { vec![] } else { best(retriever, queries, c, table.k()) };
            for (rank, (&id, &score)) in table.of(c).iter().zip(table.scores_of(c)).enumerate() {
                let Some(&wanted) = expected.get(rank) else {
                    assert_eq!((id, score), (ABSENT, f32::NEG_INFINITY), "chunk {c}");
                    continue;
                };
                assert!((score - wanted).abs() < 1e-5, "chunk {c}, rank {rank}: {score}, not {wanted}");
                let neighbour = store.document(store.document_of(id as usize));
                assert_ne!(neighbour.id, queries.document(chunk.document).id);
                if let Some(after) = store.continuation(id as usize) {
                    assert_eq!(store.document_of(after), store.document_of(id as usize));
                }
            }
        }
    }

    #[test]
    fn the_index_s_own_chunks_get_the_nearest_of_other_documents() {
        let dir = tempfile::tempdir().unwrap();
        let retriever = index_of(dir.path(), 90);
        let table = compute(&retriever, retriever.store(), 3, Ranking::Vectors, Progress::Silent).unwrap();
        check(&retriever, retriever.store(), &table);
        // As many as no machine has room for, too.
        for k in [0, usize::MAX] {
            let found = compute(&retriever, retriever.store(), k, Ranking::Vectors, Progress::Silent);
            assert!(found.unwrap_err().to_string().starts_with("k: "), "{k}");
        }
    }

    #[test]
    fn a_document_known_by_its_id_or_its_text_is_no_neighbour_of_itself() {
        let dir = tempfile::tempdir().unwrap();
        let retriever = index_of(dir.path(), 90);
        // Documents 80 to 89 are in the index under their ids, and are here with another text;
        // 200 to 203 have the texts of 4 to 7.
        let queries = dir.path().join("queries.jsonl");
        write_corpus(&queries, 80, 14);
        let text = fs::read_to_string(&queries).unwrap().replace("w3", "w5");
        let copies = dir.path().join("copies.jsonl");
        write_corpus(&copies, 4, 4);
        let copied = fs::read_to_string(&copies).unwrap().replace("doc-", "copy-");
        fs::write(&queries, format!("{text}\n{copied}\n{{\"text\": \"unknown\"}}")).unwrap();
        let store = dir.path().join("query-store");
        build_store(&[queries], &tokenizer(), 16, OnError::Fail, &store, Progress::Silent).unwrap();
        let queries = Store::open(&store).unwrap();
        assert_eq!(queries.documents(), 19);
        let table = compute(&retriever, &queries, 4, Ranking::Vectors, Progress::Silent).unwrap();
        check(&retriever, &queries, &table);
        let copy = queries.chunks_of(14).start;
        assert_eq!(queries.document(14).id, "copy-4");
        let own = retriever.store();
        assert!(table.of(copy).iter().all(|&id| own.document(own.document_of(id as usize)).id != "doc-4"));
    }

    #[test]
    fn words_find_what_shares_them_and_both_are_fused() {
        let dir = tempfile::tempdir().unwrap();
        let retriever = index_of(dir.path(), 90);
        let store = retriever.store();
        let by = |ranking| compute(&retriever, store, 3, ranking, Progress::Silent).unwrap();
        let (near, said, both) = (by(Ranking::Vectors), by(Ranking::Words), by(Ranking::Hybrid));
        assert!(near != said && said != both && near != both);
        for c in 0..store.chunks() {
            let words: Vec<&str> = store.chunk(c).text.split_whitespace().collect();
            for &id in said.of(c).iter().filter(|id| **id != ABSENT) {
                let id = id as usize;
                assert_ne!(store.document_of(id), store.document_of(c));
                // A word that the chunk's border cuts counts as a whole in what is found.
                let other = store.document(store.document_of(id));
                let shares = |word: &&str| other.text.contains(*word) || other.title.contains(*word);
                assert!(words.iter().any(shares), "{c}, {id}");
            }
            assert!(
                both.of(c)
                    .iter()
                    .all(|&id| id == ABSENT || store.document_of(id as usize) != store.document_of(c))
            );
            assert!(
                said.scores_of(c).is_sorted_by(|a, b| a >= b)
                    && both.scores_of(c).is_sorted_by(|a, b| a >= b)
            );
        }
        // Only what is known when they are looked up counts: the chunk's text, whatever follows.
        let texts: Vec<&str> = (0..store.chunks()).map(|c| store.chunk(c).text).collect();
        let ids: Vec<_> =
            (0..store.chunks()).map(|c| Some(store.document(store.document_of(c)).id)).collect();
        let found = retriever.neighbour_search(&texts, &ids, 3, Ranking::Words).unwrap();
        for (c, hits) in found.iter().enumerate() {
            let kept: Vec<u32> = said.of(c).iter().copied().filter(|id| *id != ABSENT).collect();
            assert_eq!(hits.iter().map(|hit| hit.id).collect::<Vec<_>>(), kept, "chunk {c}");
        }
    }

    #[test]
    fn too_few_documents_leave_neighbours_absent() {
        let dir = tempfile::tempdir().unwrap();
        let retriever = index_of(dir.path(), 1);
        let table = compute(&retriever, retriever.store(), 2, Ranking::Vectors, Progress::Silent).unwrap();
        assert!(table.of(0) == [ABSENT, ABSENT]);
        let dir = tempfile::tempdir().unwrap();
        let retriever = index_of(dir.path(), 2);
        let table = compute(&retriever, retriever.store(), 50, Ranking::Vectors, Progress::Silent).unwrap();
        check(&retriever, retriever.store(), &table);
        assert!(table.of(0)[0] != ABSENT && table.of(0)[49] == ABSENT);
    }

    #[test]
    fn what_is_kept_is_what_was_computed_and_belongs_to_its_index() {
        let dir = tempfile::tempdir().unwrap();
        let retriever = index_of(dir.path(), 90);
        let out = dir.path().join("out");
        let kept = precompute(&retriever, None, 3, Ranking::Vectors, &out, false, Progress::Silent).unwrap();
        let table = compute(&retriever, retriever.store(), 3, Ranking::Vectors, Progress::Silent).unwrap();
        for c in 0..table.len() {
            assert_eq!((kept.of(c), kept.scores_of(c)), (table.of(c), table.scores_of(c)));
        }
        assert!(kept.queries().unwrap().is_none());
        assert_eq!(kept.queries_identity(), retriever.store().identity());
        let error = precompute(&retriever, None, 3, Ranking::Vectors, &out, false, Progress::Silent)
            .err()
            .unwrap()
            .to_string();
        assert!(error.contains("--force"), "{error}");
        assert!(
            precompute(
                &retriever,
                None,
                3,
                Ranking::Vectors,
                &dir.path().join("index"),
                true,
                Progress::Silent
            )
            .is_err()
        );

        let corpus = [dir.path().join("queries.jsonl")];
        write_corpus(&corpus[0], 300, 20);
        let queries = Some((&corpus[..], OnError::Fail));
        let kept =
            precompute(&retriever, queries, 2, Ranking::Vectors, &out, true, Progress::Silent).unwrap();
        let store = kept.queries().unwrap().unwrap();
        assert_eq!((store.documents(), store.chunks(), store.chunk_size()), (20, kept.len(), 16));
        check(
            &retriever,
            &store,
            &compute(&retriever, &store, 2, Ranking::Vectors, Progress::Silent).unwrap(),
        );
        let again = dir.path().join("again");
        precompute(&retriever, queries, 2, Ranking::Vectors, &again, false, Progress::Silent).unwrap();
        assert_eq!(files(&out), files(&again), "nothing of the first neighbours is left");

        write_corpus(&corpus[0], 400, 40);
        let other = dir.path().join("other");
        build_index(&corpus, &other, &words(), Existing::Fail).unwrap();
        assert_eq!(verify(&other), [""; 0]);
        let other = Retriever::open(&other, Some(Box::new(words()))).unwrap();
        let error = Neighbours::open_for(&out, other.dir()).err().unwrap().to_string();
        assert!(error.contains(&other.identity()) && error.contains(&retriever.identity()), "{error}");
        assert!(Neighbours::open_for(&out, retriever.dir()).is_ok());
    }

    #[test]
    fn damaged_neighbours_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let retriever = index_of(dir.path(), 30);
        let out = dir.path().join("out");
        let chunks =
            precompute(&retriever, None, 2, Ranking::Vectors, &out, false, Progress::Silent).unwrap().len();
        let ids = files(&out).into_keys().find(|name| name.to_str().unwrap().starts_with("ids.")).unwrap();
        let bytes = fs::read(out.join(&ids)).unwrap();
        let mut outside = bytes.clone();
        outside[4..8].copy_from_slice(&(chunks as u32).to_le_bytes());
        fs::write(out.join(&ids), outside).unwrap();
        let error = Neighbours::open(&out).err().unwrap().to_string();
        assert!(error.contains("chunk 0 has neighbour"), "{error}");
        fs::write(out.join(&ids), &bytes[..bytes.len() - 4]).unwrap();
        assert!(Neighbours::open(&out).is_err());
    }
}
