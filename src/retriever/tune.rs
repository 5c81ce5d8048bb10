//! How much effort a search needs for a wanted recall, measured on the index itself.

use std::path::Path;

use rand::SeedableRng;
use rand::seq::index::sample;
use rand_chacha::ChaCha8Rng;
use sidenote_index::{Hit, Index, Lock, Spec};

use super::part_writer::recommit;
use super::{IndexMeta, encode, parts};
use crate::corpus::{ChunkStore, Store};
use crate::encoder::{self, Encoder};
use crate::progress::Progress;
use crate::{Error, Result, interrupt};

/// What to tune for.
pub struct TuneOptions<'a> {
    /// The index.
    pub dir: &'a Path,
    /// Share of the true nearest chunks to find, above 0 and at most 1.
    pub recall: f64,
    /// Of how many nearest chunks.
    pub k: usize,
    /// Queries; chunks of the index are used as such where there are none.
    pub queries: &'a [String],
    /// How many chunks to use.
    pub sample: usize,
    /// The encoder of the index, for `queries`; the one that it names where `None`.
    pub encoder: Option<Box<dyn Encoder>>,
}

/// What [`tune`] found.
#[derive(Debug, Clone)]
pub struct Tuned {
    /// The index now.
    pub meta: IndexMeta,
    /// Queries that were used.
    pub queries: usize,
    /// Recall with the breadths that were set before, over all parts.
    pub before: f64,
    /// Recall with the breadths that are set now.
    pub after: f64,
}

/// The queries, each with the chunk that it is, and what they should find.
struct Trial {
    /// `[queries, dim]`
    vectors: Vec<f32>,
    /// The chunk that a query was taken from, which it must not find.
    own: Vec<Option<u32>>,
    k: usize,
}

/// One part of the index: its vectors, and where its chunks are in the store.
struct Part<'a> {
    index: Index,
    store: &'a Store,
    first: usize,
}

/// Finds for each part of the index in `options.dir` the least breadth with which a search finds the
/// wanted share of the true `k` nearest chunks, and keeps it in the manifest. Parts that are searched
/// exactly (`Flat`) have none. Where even the widest search misses the recall, that one is kept.
///
/// Queries are the given texts or chunks of the index, drawn always alike; a chunk does not count as
/// its own neighbour. The truth is by comparison with every live chunk.
///
/// # Errors
/// A recall that is no share; queries without a word that the encoder knows; an index without chunks;
/// another writer at work. None of them changes the index.
pub fn tune(options: TuneOptions, progress: Progress) -> Result<Tuned> {
    let TuneOptions { dir, recall, k, .. } = options;
    if !(recall > 0.0 && recall <= 1.0) {
        return Err(Error::setting("--recall", format!("{recall} is not above 0 and at most 1")));
    }
    if k == 0 {
        return Err(Error::setting("-k", "at least 1 neighbour"));
    }
    IndexMeta::read(dir)?;
    let _lock = Lock::acquire(dir)?;
    let (mut meta, (manifest, store)) = parts::open(dir, |dir, manifest, meta| {
        let store = parts::store(dir, manifest, meta)?;
        Ok((manifest.clone(), store))
    })?;
    let mut parts = open_parts(dir, &meta, &store)?;
    let trial = queries(&options, &meta, &store, &parts)?;
    let task = progress.task("finding the truth", trial.own.len() as u64, "queries");
    let truths = parts.iter().map(|part| part.exact(&trial)).collect::<Result<Vec<_>>>()?;
    task.advance(trial.own.len() as u64);
    drop(task);
    let whole = merge(&truths, k);
    let before = recall_of(&search(&parts, &trial)?, &whole);
    for (part, stated) in parts.iter_mut().zip(&mut meta.parts) {
        if stated.index == Spec::Flat {
            continue;
        }
        progress.note(format!("tuning the {} index of {} vectors", stated.index, part.index.len()));
        if interrupt::requested() {
            return Err(Error::Interrupted("the index is as it was; run the command again".into()));
        }
        let allow = |query: usize, row: u32| allows(part.store, part.first, &trial, query, row);
        let tuned = part.index.tune(&trial.vectors, k, recall, Some(&allow))?;
        stated.breadth = tuned.breadth;
        part.index.set_breadth(tuned.breadth);
    }
    let after = recall_of(&search(&parts, &trial)?, &whole);
    recommit(dir, &manifest, &meta)?;
    Ok(Tuned { meta, queries: trial.own.len(), before, after })
}

fn open_parts<'a>(dir: &Path, meta: &IndexMeta, store: &'a Store) -> Result<Vec<Part<'a>>> {
    let mut first = 0;
    let mut parts = Vec::with_capacity(meta.parts.len());
    for (part, chunks) in meta.parts.iter().zip(store.parts().map(ChunkStore::chunks)) {
        let index = parts::index(dir, meta, part, chunks)?;
        parts.push(Part { index, store, first });
        first += chunks;
    }
    Ok(parts)
}

/// The texts given, or chunks drawn from those that can be found.
fn queries(options: &TuneOptions, meta: &IndexMeta, store: &Store, parts: &[Part]) -> Result<Trial> {
    let (mut vectors, mut own) = (Vec::new(), Vec::new());
    if options.queries.is_empty() {
        let can_be_found: Vec<usize> =
            (0..store.chunks()).filter(|&c| store.is_live(c) && store.has_text(c)).collect();
        let mut random = ChaCha8Rng::seed_from_u64(meta.settings.seed);
        let count = options.sample.min(can_be_found.len());
        let mut drawn = sample(&mut random, can_be_found.len(), count).into_vec();
        drawn.sort_unstable();
        for chunk in drawn.into_iter().map(|place| can_be_found[place]) {
            let part = parts.iter().rfind(|part| part.first <= chunk);
            let vector = part.and_then(|part| part.index.vector((chunk - part.first) as u32));
            vectors.extend_from_slice(vector.unwrap_or_default());
            own.push(Some(chunk as u32));
        }
    } else {
        let loaded;
        let encoder = match &options.encoder {
            Some(encoder) => encoder.as_ref(),
            None => {
                loaded = encoder::load(&meta.settings.encoder.name)?;
                loaded.as_ref()
            }
        };
        meta.check_encoder(options.dir, encoder)?;
        let texts: Vec<&str> = options.queries.iter().map(String::as_str).collect();
        for vector in encode(encoder, &texts)?.chunks_exact(meta.dim) {
            if vector.iter().any(|&x| x != 0.0) {
                vectors.extend_from_slice(vector);
                own.push(None);
            }
        }
    }
    if own.is_empty() {
        let why = "nothing to search for: no chunks, or no queries with a word that the encoder knows";
        return Err(Error::file(options.dir, why));
    }
    Ok(Trial { vectors, own, k: options.k })
}

impl Part<'_> {
    /// The true nearest chunks of this part to each query, under their numbers in the store.
    fn exact(&self, trial: &Trial) -> Result<Vec<Vec<Hit>>> {
        let allow = |query: usize, row: u32| allows(self.store, self.first, trial, query, row);
        Ok(self.numbered(self.index.search_exactly(&trial.vectors, trial.k, Some(&allow))?))
    }

    /// The same as the index finds it.
    fn search(&self, trial: &Trial) -> Result<Vec<Vec<Hit>>> {
        let allow = |query: usize, row: u32| allows(self.store, self.first, trial, query, row);
        Ok(self.numbered(self.index.search_batch(&trial.vectors, trial.k, Some(&allow))?))
    }

    fn numbered(&self, mut found: Vec<Vec<Hit>>) -> Vec<Vec<Hit>> {
        found.iter_mut().flatten().for_each(|hit| hit.id += self.first as u32);
        found
    }
}

/// Whether a query may find a row of the part that begins at chunk `first`.
fn allows(store: &Store, first: usize, trial: &Trial, query: usize, row: u32) -> bool {
    let chunk = first + row as usize;
    store.is_live(chunk) && store.has_text(chunk) && trial.own[query] != Some(chunk as u32)
}

fn search(parts: &[Part], trial: &Trial) -> Result<Vec<Vec<Hit>>> {
    let found: Result<Vec<_>> = parts.iter().map(|part| part.search(trial)).collect();
    Ok(merge(&found?, trial.k))
}

/// The `k` best of all parts, for each query.
fn merge(of_parts: &[Vec<Vec<Hit>>], k: usize) -> Vec<Vec<Hit>> {
    let queries = of_parts.first().map_or(0, Vec::len);
    let best = |query: usize| {
        let mut hits: Vec<Hit> = of_parts.iter().flat_map(|part| part[query].iter().copied()).collect();
        hits.sort_unstable_by(|a, b| b.cmp(a));
        hits.truncate(k);
        hits
    };
    (0..queries).map(best).collect()
}

/// The share of the true neighbours that were found. Of equally near ones any will do.
fn recall_of(found: &[Vec<Hit>], truth: &[Vec<Hit>]) -> f64 {
    let (mut right, mut all) = (0, 0);
    for (found, truth) in found.iter().zip(truth) {
        let Some(least) = truth.last() else { continue };
        all += truth.len();
        right += found.iter().filter(|hit| hit.score >= least.score).count().min(truth.len());
    }
    if all == 0 { 1.0 } else { right as f64 / all as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::retriever::testing::{build_index, index_of, words, write_corpus};
    use crate::retriever::{Existing, Retriever, compact, delete, verify};

    fn options<'a>(dir: &'a Path, recall: f64, queries: &'a [String]) -> TuneOptions<'a> {
        TuneOptions { dir, recall, k: 5, queries, sample: 60, encoder: Some(Box::new(words())) }
    }

    #[test]
    fn the_breadth_is_the_least_that_finds_enough_and_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        drop(index_of(dir.path(), 500));
        let index = dir.path().join("index");
        compact(&index, Some("HNSW4".parse().unwrap()), Progress::Silent).unwrap();
        let open = || Retriever::open(&index, Some(Box::new(words()))).unwrap();
        let identity = open().identity();
        let tune = |recall| tune(options(&index, recall, &[]), Progress::Silent).unwrap();
        let mut last = 0;
        for recall in [0.5, 0.9, 0.99] {
            let tuned = tune(recall);
            assert!(tuned.after >= recall && tuned.queries == 60, "{recall}: {}", tuned.after);
            let breadth = tuned.meta.parts[0].breadth.unwrap();
            assert!(breadth >= last.max(5), "{recall}: {breadth} after {last}");
            last = breadth;
            assert_eq!(IndexMeta::read(&index).unwrap(), tuned.meta);
            assert_eq!(open().index().parts().map(Index::breadth).collect::<Vec<_>>(), [Some(breadth)]);
        }
        assert!(last > 5, "nothing was to be tuned");
        assert_eq!(open().identity(), identity, "chunks keep their numbers");
        assert_eq!(verify(&index), [""; 0]);
        // What was deleted is no query and no truth; deletions and breadths are kept side by side.
        let ids: Vec<String> = (0..400).map(|d| format!("doc-{d}")).collect();
        let deleted = delete(&index, &ids).unwrap();
        assert_eq!(deleted.meta.parts[0].breadth, Some(last));
        let tuned = tune(0.9);
        assert!(tuned.after >= 0.9 && tuned.meta.dead().documents == 400);
        assert_eq!(verify(&index), [""; 0]);
        assert_eq!(open().meta().live().documents, 100);
        assert_eq!(tune(0.9).before, tuned.after, "what was found is what is used from then on");
    }

    #[test]
    fn queries_of_one_s_own_and_what_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (corpus, index) = (dir.path().join("corpus.jsonl"), dir.path().join("index"));
        write_corpus(&corpus, 0, 80);
        build_index(&[corpus], &index, &words(), Existing::Fail).unwrap();
        let texts = ["w1 w2 w3".to_string(), String::new(), "w50".into()];
        let tuned = tune(options(&index, 0.95, &texts), Progress::Silent).unwrap();
        assert_eq!((tuned.queries, tuned.before, tuned.after), (2, 1.0, 1.0), "Flat is exact");
        assert_eq!(tuned.meta.parts[0].breadth, None);
        for recall in [0.0, -1.0, 1.1, f64::NAN] {
            assert!(tune(options(&index, recall, &[]), Progress::Silent).is_err());
        }
        let nothing = [String::new()];
        let error = tune(options(&index, 0.9, &nothing), Progress::Silent).err().unwrap().to_string();
        assert!(error.contains("nothing to search for"), "{error}");
    }

    #[test]
    fn recall_counts_what_is_near_enough() {
        let hits =
            |pairs: &[(u32, f32)]| pairs.iter().map(|&(id, score)| Hit { id, score }).collect::<Vec<_>>();
        let truth = [hits(&[(1, 0.9), (2, 0.5)]), hits(&[])];
        assert_eq!(recall_of(&[hits(&[(1, 0.9), (7, 0.5)]), hits(&[])], &truth), 1.0);
        assert_eq!(recall_of(&[hits(&[(1, 0.9), (7, 0.4)]), hits(&[])], &truth), 0.5);
        assert_eq!(recall_of(&[hits(&[]), hits(&[])], &truth), 0.0);
    }
}
