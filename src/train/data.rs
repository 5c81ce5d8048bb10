//! Batches out of a chunk store: each sequence is a window of consecutive chunks of one document,
//! so that neighbours stay aligned with chunks and no sequence crosses into another document.

use std::ops::Range;

use candle_core::{Device, Tensor};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use crate::corpus::Store;
use crate::error::Result;
use crate::model::Retrieved;
use crate::retriever::neighbours::ABSENT;

/// Target of a position that is not scored.
pub const IGNORE: u32 = u32::MAX;

/// Sequences side by side.
pub struct Batch {
    /// Token ids, `[batch, tokens]`, filled up at the end of shorter rows.
    pub tokens: Tensor,
    /// The token that comes next, `[batch * tokens]`, [`IGNORE`] where there is none.
    pub targets: Tensor,
    /// Number of targets.
    pub scored: usize,
    /// The chunks of each row.
    pub rows: Vec<Range<usize>>,
}

/// Puts windows of chunks side by side.
pub fn assemble(store: &Store, rows: &[Range<usize>], device: &Device) -> Result<Batch> {
    let sequences: Vec<Vec<u32>> = rows
        .iter()
        .map(|row| row.clone().flat_map(|chunk| store.chunk(chunk).tokens.iter().copied()).collect())
        .collect();
    let width = sequences.iter().map(Vec::len).max().unwrap_or(0);
    let mut tokens = vec![0u32; rows.len() * width];
    let mut targets = vec![IGNORE; tokens.len()];
    let mut scored = 0;
    for (i, (sequence, row)) in sequences.iter().zip(rows).enumerate() {
        let at = i * width;
        tokens[at..at + sequence.len()].copy_from_slice(sequence);
        // The window's last token predicts the first of the chunk after it, where there is one.
        let next = row.clone().last().and_then(|chunk| store.continuation(chunk));
        let next = next.and_then(|chunk| store.chunk(chunk).tokens.first());
        let following: Vec<u32> = sequence.iter().skip(1).chain(next).copied().collect();
        targets[at..at + following.len()].copy_from_slice(&following);
        scored += following.len();
    }
    Ok(Batch {
        tokens: Tensor::from_vec(tokens, (rows.len(), width), device)?,
        targets: Tensor::from_vec(targets, rows.len() * width, device)?,
        scored,
        rows: rows.to_vec(),
    })
}

/// Gathers the neighbours of a batch's complete chunks: `of(chunk)` names chunks of `library`.
pub fn gather<'a>(
    batch: &Batch,
    queries: &Store,
    library: &Store,
    of: impl Fn(usize) -> &'a [u32],
    k: usize,
    device: &Device,
) -> Result<Retrieved> {
    let m = queries.chunk_size();
    let complete = batch.tokens.dim(1)? / m;
    let neighbours: Vec<Vec<Vec<Vec<u32>>>> = batch
        .rows
        .iter()
        .map(|row| {
            let chunk = |u: usize| match row.start + u {
                chunk if chunk < row.end && queries.chunk(chunk).tokens.len() == m => of(chunk)
                    .iter()
                    .take(k)
                    .filter(|id| **id != ABSENT)
                    .map(|id| library.neighbour_tokens(*id as usize))
                    .collect(),
                _ => Vec::new(),
            };
            (0..complete).map(chunk).collect()
        })
        .collect();
    Retrieved::pack(&neighbours, k, 2 * m, device)
}

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
