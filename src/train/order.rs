//! The order in which a run reads its text.

use std::ops::Range;

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use crate::corpus::Store;

/// The order in which a run reads its text: a function of seed and step alone, so that a resumed
/// run goes on exactly where it stopped.
pub struct Order {
    windows: Vec<Range<usize>>,
    batch_chunks: usize,
    longest: usize,
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
                all.clone().step_by(chunks).map(move |start| start..(start + chunks).min(all.end))
            })
            // A single token has nothing to predict.
            .filter(|window| window.len() > 1 || store.chunk(window.start).tokens.len() > 1)
            .collect();
        let batch_chunks = (batch_tokens / store.chunk_size()).max(chunks);
        let mut order =
            Self { windows, batch_chunks, longest: chunks, seed, epoch: 0, first_step: 0, plan: Vec::new() };
        order.plan = order.plan_epoch(0);
        order
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

    /// Shuffles the windows and groups those of equal length, so that little is padding.
    fn plan_epoch(&self, epoch: usize) -> Vec<Vec<usize>> {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(epoch as u64);
        let mut shuffled: Vec<usize> = (0..self.windows.len()).collect();
        shuffled.shuffle(&mut rng);
        let mut waiting: Vec<Vec<usize>> = vec![Vec::new(); self.longest + 1];
        let mut plan = Vec::new();
        for window in shuffled {
            let chunks = self.windows[window].len();
            waiting[chunks].push(window);
            if (waiting[chunks].len() + 1) * chunks > self.batch_chunks {
                plan.push(std::mem::take(&mut waiting[chunks]));
            }
        }
        plan.extend(waiting.into_iter().filter(|group| !group.is_empty()));
        plan
    }
}
