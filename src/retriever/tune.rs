//! How much effort a search needs for a wanted recall, measured on the index itself.

use std::path::Path;

use rand::SeedableRng;
use rand::seq::index::sample;
use rand_chacha::ChaCha8Rng;
use serde_json::json;
use sidenote_index::{Lock, Segments, Spec, mean_recall};

use super::meta::VERSION;
use super::{IndexMeta, encode, parts};
use crate::artefact;
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

/// The queries, each with the chunk that it is.
struct Trial {
    /// `[queries, dim]`
    vectors: Vec<f32>,
    /// The chunk that a query was taken from, which it must not find.
    own: Vec<Option<u32>>,
}

/// Finds for each part of the index in `options.dir` the least breadth with which a search finds the
/// wanted share of the true `k` nearest chunks, and keeps it in the manifest. Parts that are searched
/// exactly (`Flat`, `SQbf16`, `SQ8`) have none. Where even the widest search misses the recall, that one is kept.
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
    let mut segments = open_segments(dir, &meta, &store)?;
    let trial = queries(&options, &meta, &store, &segments)?;
    let allow = |query: usize, chunk: u32| {
        store.is_live(chunk as usize) && store.has_text(chunk as usize) && trial.own[query] != Some(chunk)
    };
    let task = progress.task("finding the truth", trial.own.len() as u64, "queries");
    let truth = segments.search_exactly(&trial.vectors, k, Some(&allow))?;
    task.advance(trial.own.len() as u64);
    drop(task);
    let recall_of = |segments: &Segments| -> Result<f64> {
        Ok(mean_recall(&segments.search_batch(&trial.vectors, k, Some(&allow))?, &truth))
    };
    let before = recall_of(&segments)?;
    let mut first = 0;
    for (number, stated) in meta.parts.iter_mut().enumerate() {
        let Some(index) = segments.parts().nth(number) else { continue };
        let rows = index.len();
        if !matches!(stated.index, Spec::Flat | Spec::Sq(_)) {
            progress.note(format!("tuning the {} index of {rows} vectors", stated.index));
            if interrupt::requested() {
                return Err(Error::Interrupted("the index is as it was; run the command again".into()));
            }
            let allow = |query: usize, row: u32| allow(query, first + row);
            stated.breadth = index.tune(&trial.vectors, k, recall, Some(&allow))?.breadth;
            segments.set_breadth(number, stated.breadth);
        }
        first += rows as u32;
    }
    let after = recall_of(&segments)?;
    // Only settings of searches differ: the marks of deleted documents stay where they are.
    artefact::recommit(dir, &manifest, VERSION, json!(meta))?;
    Ok(Tuned { meta, queries: trial.own.len(), before, after })
}

fn open_segments(dir: &Path, meta: &IndexMeta, store: &Store) -> Result<Segments> {
    let parts = meta.parts.iter().zip(store.parts().map(ChunkStore::chunks));
    let opened: Result<Vec<_>> =
        parts.map(|(part, chunks)| Ok((parts::index(dir, meta, part, chunks)?, None))).collect();
    Ok(Segments::new(opened?)?)
}

/// The texts given, or chunks drawn from those that can be found.
fn queries(options: &TuneOptions, meta: &IndexMeta, store: &Store, segments: &Segments) -> Result<Trial> {
    let (mut vectors, mut own) = (Vec::new(), Vec::new());
    if options.queries.is_empty() {
        let can_be_found: Vec<usize> =
            (0..store.chunks()).filter(|&c| store.is_live(c) && store.has_text(c)).collect();
        let mut random = ChaCha8Rng::seed_from_u64(meta.settings.seed);
        let count = options.sample.min(can_be_found.len());
        let mut drawn = sample(&mut random, can_be_found.len(), count).into_vec();
        drawn.sort_unstable();
        for chunk in drawn.into_iter().map(|place| can_be_found[place]) {
            vectors.extend_from_slice(&segments.vector(chunk as u32).unwrap_or_default());
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
    Ok(Trial { vectors, own })
}

#[cfg(test)]
mod tests {
    use sidenote_index::Index;

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
}
