//! Search by meaning and by words at once.

use std::collections::HashMap;
use std::ops::Range;

use rayon::prelude::*;
use sidenote_index::Hit;

use super::bm25::Bm25;
use super::{Allow, Filter, Passage, Retriever};
use crate::Result;
use crate::corpus::{ChunkStore, Store};
use crate::ranking::Ranking;

/// k of reciprocal rank fusion, as in its paper.
const RANK_CONSTANT: f32 = 60.0;

/// How deep the two lists go that are fused, at least.
const DEPTH: usize = 100;

/// How to search.
#[derive(Debug, Clone, Default)]
pub struct SearchOptions {
    /// What may be found.
    pub filter: Filter,
    /// What ranks it.
    pub ranking: Ranking,
}

impl Retriever {
    /// The `k` best passages for `query` among those that the filter allows, best first. The score is that of the
    /// encoder's metric (mostly the cosine), of BM25, or of [`fuse`].
    ///
    /// # Errors
    /// What the encoder or the index refuses.
    pub fn search_with(&self, query: &str, k: usize, options: &SearchOptions) -> Result<Vec<Passage>> {
        let allowed = (!options.filter.is_empty()).then(|| options.filter.allowed(self.store()));
        let may = |_, id: u32| match &allowed {
            Some(allowed) => allowed.get(self.store().document_of(id as usize)),
            None => true,
        };
        let vector = || self.query_encoder().encode_queries(&[query]);
        let found = self.rank(&[query], vector, k, options.ranking, Some(&may))?;
        Ok(found.into_iter().flatten().map(|hit| self.passage(hit)).collect())
    }

    /// The `k` best chunks for each of `texts`, whose vectors `[texts, dim]` are asked for where they are needed, best first.
    /// What is found for a text does not depend on the others.
    pub(super) fn rank(
        &self,
        texts: &[&str],
        vectors: impl FnOnce() -> Result<Vec<f32>>,
        k: usize,
        ranking: Ranking,
        allow: Allow,
    ) -> Result<Vec<Vec<Hit>>> {
        let by_vectors = |depth: usize| self.search_vectors(&vectors()?, depth, allow);
        let by_words = |depth: usize| {
            let (store, words) = (self.store(), self.words()?);
            let of_text = |(at, text): (usize, &&str)| {
                let may = |id: u32| {
                    store.is_live(id as usize)
                        && store.has_text(id as usize)
                        && allow.is_none_or(|allow| allow(at, id))
                };
                words.search(text, depth, &may)
            };
            texts.par_iter().enumerate().map(of_text).collect::<Result<Vec<_>>>()
        };
        match ranking {
            Ranking::Vectors => by_vectors(k),
            Ranking::Words => by_words(k),
            Ranking::Hybrid => {
                let depth = k.max(DEPTH);
                let both = by_vectors(depth)?.into_iter().zip(by_words(depth)?);
                Ok(both.map(|(near, said)| fuse(&[near, said], k)).collect())
            }
        }
    }

    /// The index of the chunks' words, opened or made when it is first needed.
    fn words(&self) -> Result<&Bm25> {
        if let Some(words) = self.words.get() {
            return Ok(words);
        }
        let store = self.store();
        let texts = || (0..store.chunks()).map(|c| (c as u32, text_of(store, c)));
        let words = Bm25::open(self.dir(), &words_key(store.parts().map(ChunkStore::identity)), texts)?;
        Ok(self.words.get_or_init(|| words))
    }
}

/// What stands for the texts that a word index is made of: the identities of the chunk stores. Deletions are left out: what is deleted is
/// filtered out of what is found, so that a deletion does not make a word index useless.
pub(super) fn words_key<'a>(stores: impl Iterator<Item = &'a str>) -> String {
    let mut hasher = blake3::Hasher::new();
    stores.for_each(|identity| _ = hasher.update(identity.as_bytes()));
    hasher.finalize().to_hex()[..12].to_string()
}

/// A chunk under its document's title, which often has the name that the text does not repeat. A word
/// that is cut by the chunk's border belongs to the chunks on both sides.
fn text_of(store: &Store, c: usize) -> String {
    let chunk = store.chunk(c);
    let document = store.document(chunk.document);
    format!("{}\n{}", document.title, whole_words(document.text, chunk.start..chunk.start + chunk.text.len()))
}

/// The text at `range` with the rest of the words that its ends cut.
pub(crate) fn whole_words(text: &str, range: Range<usize>) -> &str {
    let (Some(before), Some(inside), Some(after)) =
        (text.get(..range.start), text.get(range.clone()), text.get(range.end..))
    else {
        return ""; // the tables of a damaged store
    };
    let of_word = char::is_alphanumeric;
    let (mut start, mut end) = (range.start, range.end);
    if inside.starts_with(of_word) {
        start = before.trim_end_matches(of_word).len();
    }
    if inside.ends_with(of_word) {
        end = text.len() - after.trim_start_matches(of_word).len();
    }
    &text[start..end]
}

/// Reciprocal rank fusion (Cormack et al. 2009): the `k` best by the sum over `rankings` of
/// `1 / (60 + rank)`, ranks counting from 1; equal sums by id.
pub fn fuse(rankings: &[Vec<Hit>], k: usize) -> Vec<Hit> {
    let mut scores: HashMap<u32, f32> = HashMap::new();
    for ranking in rankings {
        for (hit, rank) in ranking.iter().zip(1u32..) {
            *scores.entry(hit.id).or_default() += 1.0 / (RANK_CONSTANT + rank as f32);
        }
    }
    let mut fused: Vec<Hit> = scores.into_iter().map(|(id, score)| Hit { id, score }).collect();
    fused.sort_unstable_by(|a, b| b.cmp(a));
    fused.truncate(k);
    fused
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::retriever::testing::{index_of, words};
    use crate::retriever::{bm25, delete, verify};

    #[test]
    fn ranks_are_fused_by_hand() {
        let ranking = |ids: &[u32]| ids.iter().map(|&id| Hit { id, score: 0.0 }).collect::<Vec<_>>();
        let fused = fuse(&[ranking(&[3, 1, 2]), ranking(&[2, 7])], 10);
        let ids: Vec<u32> = fused.iter().map(|hit| hit.id).collect();
        assert_eq!(ids, [2, 3, 1, 7], "1/63 + 1/61; 1/61; 1/62 twice, by id");
        assert!((fused[0].score - (1.0 / 63.0 + 1.0 / 61.0)).abs() < 1e-7);
        assert_eq!(fuse(&[ranking(&[3, 1, 2]), ranking(&[2, 7])], 1).len(), 1);
        assert!(fuse(&[], 3).is_empty());
    }

    #[test]
    fn words_are_made_whole_at_the_ends() {
        let text = "Bees, émigrés: honey";
        let of = |from: &str, to: &str| whole_words(text, text.find(from).unwrap()..text.find(to).unwrap());
        assert_eq!(of("es,", "igr"), "Bees, émigrés");
        assert_eq!(of("émi", ": h"), "émigrés");
        assert_eq!(of(", é", "émi"), ", ");
        assert_eq!((whole_words(text, 0..text.len()), whole_words(text, 3..3)), (text, ""));
        assert_eq!(whole_words(text, 7..99), "");
    }

    #[test]
    fn words_that_no_vector_knows_are_found_where_they_may_be() {
        let dir = tempfile::tempdir().unwrap();
        let retriever = index_of(dir.path(), 60);
        let hybrid = SearchOptions { ranking: Ranking::Hybrid, ..Default::default() };
        let only = |filter: &str| SearchOptions {
            filter: Filter::new(vec![filter.parse().unwrap()]),
            ..hybrid.clone()
        };
        // "37" stands in one title only, and the encoder counts words of the texts.
        let found = retriever.search_with("37", 3, &hybrid).unwrap();
        assert!(found[..2].iter().any(|passage| passage.id == "doc-37"));
        assert!(found.is_sorted_by(|a, b| a.score >= b.score));
        let found = retriever.search_with("37 w1 w2", 50, &only("id!=doc-37")).unwrap();
        assert!(!found.is_empty() && found.iter().all(|passage| passage.id != "doc-37"));
        let found = retriever.search_with("w1 w2", 50, &only("title=Title 40")).unwrap();
        let chunks = retriever.store().chunks_of(40);
        let with_text = chunks.filter(|&c| retriever.store().has_text(c)).count();
        assert_eq!((found.len(), found.iter().all(|p| p.id == "doc-40")), (with_text, true));
        assert!(retriever.search_with("w1", 5, &only("id=nobody")).unwrap().is_empty());
        let plain = SearchOptions::default();
        assert_eq!(retriever.search_with("w1 w2", 5, &plain).unwrap(), retriever.search("w1 w2", 5).unwrap());

        // A deletion leaves the word index; what is deleted is not found by it either.
        let index = dir.path().join("index");
        let key_of = |retriever: &Retriever| words_key(retriever.store().parts().map(ChunkStore::identity));
        let key = key_of(&retriever);
        assert!(index.join("bm25").join(&key).exists());
        assert_eq!(verify(&index), [""; 0]);
        delete(&index, &["doc-37"]).unwrap();
        let after = Retriever::open(&index, Some(Box::new(words()))).unwrap();
        assert_eq!(key_of(&after), key);
        assert!(index.join("bm25").join(&key).exists());
        assert!(after.search_with("37", 100, &hybrid).unwrap().iter().all(|p| p.id != "doc-37"));
        assert!(bm25::verify(&index, &key).is_empty());
    }
}
