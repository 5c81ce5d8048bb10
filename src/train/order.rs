//! The order in which a run reads its text.

use std::collections::VecDeque;
use std::ops::Range;

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use rayon::prelude::*;

use crate::corpus::Store;
use crate::error::Result;
use crate::retriever::bm25::Bm25;

/// Which windows come into a batch together.
enum Together {
    /// Those of equal length, so that little is padding.
    Length,
    /// Consecutive ones of a document, which are its windows by number.
    Document(Vec<Range<usize>>),
    /// Those with the same words: for each window others, the most alike first.
    Words(Vec<Vec<u32>>),
}

/// Windows that are looked up for each, for every one that fits into a batch: others may be in batches already.
const CANDIDATES: usize = 4;

/// The order in which a run reads its text: a function of seed and step alone, so that a resumed
/// run goes on exactly where it stopped.
pub struct Order {
    windows: Vec<Range<usize>>,
    batch_chunks: usize,
    longest: usize,
    together: Together,
    seed: u64,
    epoch: usize,
    first_step: usize,
    plan: Vec<Vec<usize>>,
}

impl Order {
    /// Windows of at most `chunks` chunks over all documents of `store`, about `batch_tokens`
    /// tokens a batch.
    pub fn new(store: &Store, chunks: usize, batch_tokens: usize, seed: u64) -> Self {
        let windows: Vec<Range<usize>> = (0..store.documents())
            .filter(|document| store.document_is_live(*document))
            .flat_map(|document| {
                let all = store.chunks_of(document);
                all.clone().step_by(chunks).map(move |start| start..start.saturating_add(chunks).min(all.end))
            })
            // A single token has nothing to predict.
            .filter(|window| window.len() > 1 || store.chunk(window.start).tokens.len() > 1)
            .collect();
        let batch_chunks = (batch_tokens / store.chunk_size()).max(chunks);
        let together = Together::Length;
        let mut order = Self {
            windows,
            batch_chunks,
            longest: chunks,
            together,
            seed,
            epoch: 0,
            first_step: 0,
            plan: Vec::new(),
        };
        order.plan = order.plan_epoch(0);
        order
    }

    /// The same windows with consecutive ones of a document in a batch, in their order: long memories of TRIME.
    pub fn by_document(mut self, store: &Store) -> Self {
        let document = |window: &Range<usize>| store.document_of(window.start);
        let mut documents = Vec::new();
        for (number, window) in self.windows.iter().enumerate() {
            match documents.last_mut() {
                Some(last @ Range { .. }) if document(&self.windows[last.start]) == document(window) => {
                    last.end = number + 1;
                }
                _ => documents.push(number..number + 1),
            }
        }
        self.together = Together::Document(documents);
        self.plan = self.plan_epoch(0);
        self
    }

    /// The same windows with those of other documents in a batch that have the same words, by BM25: external memories of
    /// TRIME (section 4.2 of its paper).
    ///
    /// # Errors
    /// What the index of words refuses.
    pub fn by_words(mut self, store: &Store) -> Result<Self> {
        let text = |window: &Range<usize>| -> String {
            window.clone().map(|chunk| store.chunk(chunk).text).collect::<Vec<_>>().join(" ")
        };
        let texts: Vec<String> = self.windows.iter().map(text).collect();
        let words = Bm25::in_memory((0..).zip(&texts))?;
        let documents: Vec<usize> =
            self.windows.iter().map(|window| store.document_of(window.start)).collect();
        let wanted = CANDIDATES * (self.batch_chunks / self.longest).max(1);
        let like = |(number, text): (usize, &String)| -> Result<Vec<u32>> {
            let other = |id: u32| documents[id as usize] != documents[number];
            Ok(words.search(text, wanted, &other)?.into_iter().map(|hit| hit.id).collect())
        };
        self.together = Together::Words(texts.par_iter().enumerate().map(like).collect::<Result<_>>()?);
        self.plan = self.plan_epoch(0);
        Ok(self)
    }

    /// Whether there is nothing to train on.
    pub fn is_empty(&self) -> bool {
        self.windows.is_empty()
    }

    /// The windows of step `step`, from 0.
    pub fn batch(&mut self, step: usize) -> Vec<Range<usize>> {
        if step < self.first_step {
            (self.epoch, self.first_step) = (0, 0);
            self.plan = self.plan_epoch(0);
        }
        while step - self.first_step >= self.plan.len() {
            self.first_step += self.plan.len();
            self.epoch += 1;
            self.plan = self.plan_epoch(self.epoch);
        }
        self.plan[step - self.first_step].iter().map(|i| self.windows[*i].clone()).collect()
    }

    /// Epoch that the last asked step belongs to, from 0.
    pub fn epoch(&self) -> usize {
        self.epoch
    }

    /// The batches of an epoch.
    fn plan_epoch(&self, epoch: usize) -> Vec<Vec<usize>> {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(epoch as u64);
        match &self.together {
            Together::Length => self.of_one_length(&mut rng),
            Together::Document(documents) => self.in_documents(documents, &mut rng),
            Together::Words(like) => self.alike(like, &mut rng),
        }
    }

    fn shuffled(n: usize, rng: &mut ChaCha8Rng) -> Vec<usize> {
        let mut shuffled: Vec<usize> = (0..n).collect();
        shuffled.shuffle(rng);
        shuffled
    }

    /// Shuffles the windows and groups those of equal length.
    fn of_one_length(&self, rng: &mut ChaCha8Rng) -> Vec<Vec<usize>> {
        // No longer than there are: windows may be allowed more chunks than any document has.
        let longest = self.windows.iter().map(Range::len).max().unwrap_or(0);
        let mut waiting: Vec<Vec<usize>> = vec![Vec::new(); longest + 1];
        let mut plan = Vec::new();
        for window in Self::shuffled(self.windows.len(), rng) {
            let chunks = self.windows[window].len();
            waiting[chunks].push(window);
            if (waiting[chunks].len() + 1) * chunks > self.batch_chunks {
                plan.push(std::mem::take(&mut waiting[chunks]));
            }
        }
        plan.extend(waiting.into_iter().filter(|group| !group.is_empty()));
        plan
    }

    /// Windows that fit into a batch, each as long as the longest.
    fn batch_windows(&self) -> usize {
        (self.batch_chunks / self.longest).max(1)
    }

    /// Cuts documents into runs of windows, shuffles these, and fills batches with them.
    fn in_documents(&self, documents: &[Range<usize>], rng: &mut ChaCha8Rng) -> Vec<Vec<usize>> {
        let most = self.batch_windows();
        let runs: Vec<Range<usize>> = documents
            .iter()
            .flat_map(|all| all.clone().step_by(most).map(|first| first..all.end.min(first + most)))
            .collect();
        let mut plan: Vec<Vec<usize>> = Vec::new();
        for run in Self::shuffled(runs.len(), rng) {
            let run = runs[run].clone();
            match plan.last_mut() {
                Some(last) if last.len() + run.len() <= most => last.extend(run),
                _ => plan.push(run.collect()),
            }
        }
        plan
    }

    /// Begins each batch with a random window that no batch has yet, and fills it up with the windows most like those
    /// that are in it.
    fn alike(&self, like: &[Vec<u32>], rng: &mut ChaCha8Rng) -> Vec<Vec<usize>> {
        let most = self.batch_windows();
        let mut taken = vec![false; self.windows.len()];
        let mut plan = Vec::new();
        for first in Self::shuffled(self.windows.len(), rng) {
            if taken[first] {
                continue;
            }
            taken[first] = true;
            let (mut batch, mut next) = (vec![first], VecDeque::from([first]));
            while let (true, Some(window)) = (batch.len() < most, next.pop_front()) {
                for &other in &like[window] {
                    if batch.len() < most && !std::mem::replace(&mut taken[other as usize], true) {
                        batch.push(other as usize);
                        next.push_back(other as usize);
                    }
                }
            }
            plan.push(batch);
        }
        // Those that nothing like them was left for are read together.
        let (alone, mut plan): (Vec<_>, Vec<_>) =
            plan.into_iter().partition(|batch| batch.len() < most.div_ceil(2));
        let alone: Vec<usize> = alone.into_iter().flatten().collect();
        plan.extend(alone.chunks(most).map(<[usize]>::to_vec));
        plan.shuffle(rng);
        plan
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::corpus::Tokenizer;
    use crate::encoder;
    use crate::progress::Progress;
    use crate::retriever::testing::options;
    use crate::retriever::{build, open_store};

    /// Documents of 5, 2, 9 and 1 windows of two chunks.
    fn order(together: Together) -> Order {
        let windows = (0..17).map(|i| 2 * i..2 * i + 2).collect();
        Order {
            windows,
            batch_chunks: 8,
            longest: 2,
            together,
            seed: 3,
            epoch: 0,
            first_step: 0,
            plan: Vec::new(),
        }
    }

    fn all_once(plan: &[Vec<usize>]) {
        let mut all = plan.concat();
        all.sort_unstable();
        assert_eq!(all, (0..17).collect::<Vec<_>>(), "{plan:?}");
        assert!(plan.iter().all(|batch| (1..=4).contains(&batch.len())), "{plan:?}");
    }

    #[test]
    fn windows_may_be_allowed_more_than_any_document_has() {
        let plan = order(Together::Length).plan_epoch(0);
        all_once(&plan);
        let allowed = Order { longest: usize::MAX, ..order(Together::Length) };
        assert_eq!(allowed.plan_epoch(0), plan);
    }

    #[test]
    fn windows_of_a_document_come_together_in_their_order() {
        let documents = vec![0..5, 5..7, 7..16, 16..17];
        let order = order(Together::Document(documents.clone()));
        let plan = order.plan_epoch(0);
        let document = |window: usize| documents.iter().position(|all| all.contains(&window));
        for epoch in 0..20 {
            let plan = order.plan_epoch(epoch);
            all_once(&plan);
            for batch in &plan {
                for pair in batch.windows(2).filter(|pair| document(pair[0]) == document(pair[1])) {
                    assert_eq!(pair[0] + 1, pair[1], "{plan:?}");
                }
            }
            // The longest document fills two batches of its own.
            assert!([7, 11].iter().all(|first| plan.contains(&(*first..first + 4).collect())), "{plan:?}");
        }
        assert_eq!(plan, order.plan_epoch(0));
        assert_ne!(plan, order.plan_epoch(1));
    }

    #[test]
    fn windows_with_the_same_words_come_together() {
        // Window i is like those with the same rest by 4.
        let like = (0..17u32).map(|i| (0..17).filter(|j| *j != i && j % 4 == i % 4).collect()).collect();
        let order = order(Together::Words(like));
        let plan = order.plan_epoch(0);
        all_once(&plan);
        let pure = plan.iter().filter(|batch| batch.iter().all(|window| window % 4 == batch[0] % 4)).count();
        assert!(pure >= 4, "{plan:?}");
        assert_eq!(plan, order.plan_epoch(0));
        assert_ne!(plan, order.plan_epoch(1));
    }

    /// Fails when windows of one document count as alike, or those with other words come first.
    #[test]
    fn windows_are_like_those_of_other_documents_with_their_words() {
        let dir = tempfile::tempdir().unwrap();
        let corpus = [dir.path().join("corpus.jsonl")];
        let topics = [["moon", "orbit", "tide", "crater"], ["king", "castle", "crown", "throne"]];
        let document = |i: usize| {
            let words: Vec<&str> = (0..60).map(|at| topics[i % 2][(at * (i + 1) + at / 7) % 4]).collect();
            serde_json::json!({"id": format!("d{i}"), "title": "", "text": words.join(" ")}).to_string()
        };
        std::fs::write(&corpus[0], (0..8).map(document).collect::<Vec<_>>().join("\n")).unwrap();
        let out = dir.path().join("index");
        let encoder = encoder::load("default").unwrap();
        let tokenizer = Tokenizer::default_lm().unwrap();
        build(&options(&corpus, &out, encoder.as_ref(), &tokenizer, 16), Progress::Silent).unwrap();
        let store = open_store(&out).unwrap();
        let order = Order::new(&store, 2, 64, 1).by_words(&store).unwrap();
        let document = |window: usize| store.document_of(order.windows[window].start);
        let Together::Words(like) = &order.together else { panic!("by something else") };
        assert_eq!(like.len(), order.windows.len());
        for (window, like) in like.iter().enumerate() {
            assert!(like.len() >= 3, "window {window} is like {like:?}");
            for other in like {
                let (own, other) = (document(window), document(*other as usize));
                assert!(
                    own != other && own % 2 == other % 2,
                    "window {window} of {own} is like one of {other}"
                );
            }
        }
        // So do batches come together: each is of one topic.
        for batch in order.plan_epoch(0).iter().filter(|batch| batch.len() > 1) {
            assert!(batch.iter().all(|window| document(*window) % 2 == document(batch[0]) % 2), "{batch:?}");
        }
    }
}
