//! How well a model predicts held-out text.
//!
//! A document is read in windows as long as the model was trained on. Each window after the first
//! begins with the last chunk of the one before it, which is read but not scored again, so every
//! token but a document's first is scored exactly once.

use std::ops::Range;

use candle_core::Tensor;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use crate::corpus::Store;
use crate::error::{Error, Result};
use crate::interrupt;
use crate::model::batch::{assemble, gather};
use crate::model::{Decoder, LanguageModel};
use crate::progress::Progress;

/// Tokens a window, in whole chunks but at least two of them; fewer where a model reads fewer.
const WINDOW_TOKENS: usize = 256;
/// Windows read at once.
const BATCH: usize = 8;

/// Where a text's neighbours come from.
pub struct Neighbourhood<'a> {
    /// Tokens of a chunk's neighbours, nearest first.
    pub of: Box<dyn Fn(usize) -> Vec<Vec<u32>> + 'a>,
    /// How many of them are read.
    pub k: usize,
}

/// Prediction of one chunk's tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct ChunkScore {
    /// Number of the chunk in its store.
    pub chunk: usize,
    /// Negative log likelihood, summed.
    pub nats: f64,
    /// Tokens predicted.
    pub tokens: usize,
    /// Bytes of UTF-8 that they stand for.
    pub bytes: usize,
}

/// Predictions of a text, chunk by chunk.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Scores {
    /// The chunks, in order.
    pub chunks: Vec<ChunkScore>,
}

impl Scores {
    /// Tokens predicted.
    pub fn tokens(&self) -> usize {
        self.chunks.iter().map(|score| score.tokens).sum()
    }

    /// Bytes of UTF-8 that they stand for.
    pub fn bytes(&self) -> usize {
        self.chunks.iter().map(|score| score.bytes).sum()
    }

    /// Mean negative log likelihood, nats a token.
    pub fn loss(&self) -> f64 {
        self.nats() / self.tokens() as f64
    }

    /// exp of the mean negative log likelihood of a token.
    pub fn perplexity(&self) -> f64 {
        self.loss().exp()
    }

    /// Bits that the model needs for a byte of UTF-8.
    pub fn bits_per_byte(&self) -> f64 {
        self.nats() / std::f64::consts::LN_2 / self.bytes() as f64
    }

    fn nats(&self) -> f64 {
        self.chunks.iter().map(|score| score.nats).sum()
    }
}

/// Scores `documents` of `text` under `model`; without neighbours, retrieval is off.
pub fn score(
    model: &LanguageModel,
    text: &Store,
    documents: Range<usize>,
    neighbours: Option<&Neighbourhood<'_>>,
    progress: Progress,
) -> Result<Scores> {
    let decoder = model.network.decoder();
    let device = decoder.device();
    let m = text.chunk_size();
    let positions = decoder.config().max_position_embeddings;
    let longest = (WINDOW_TOKENS.min(positions) / m).max(2);
    if longest * m > positions {
        let why =
            format!("windows of {longest} chunks of {m} tokens, but the model reads only {positions} tokens");
        return Err(Error::setting("chunk size", why));
    }
    let windows: Vec<(Range<usize>, usize)> =
        documents.flat_map(|d| windows(text.chunks_of(d), longest)).collect();
    let task = progress.task("score", windows.len() as u64, "windows");
    let mut scores = Scores::default();
    for group in windows.chunks(BATCH) {
        if interrupt::requested() {
            return Err(Error::Interrupted("nothing was measured to the end".into()));
        }
        let rows: Vec<Range<usize>> = group.iter().map(|(row, _)| row.clone()).collect();
        let batch = assemble(text, &rows, device)?;
        let retrieved = match neighbours {
            Some(n) => Some(gather(&batch, text, &n.of, n.k, device)?),
            None => None,
        };
        let hidden = model.network.forward(&batch.tokens, retrieved.as_ref())?.detach();
        let width = batch.tokens.dim(1)?;
        let nats = token_nats(&hidden, decoder, &batch.targets)?;
        for (i, (row, context)) in group.iter().enumerate() {
            for (u, chunk) in row.clone().enumerate().skip(*context) {
                let here = text.chunk(chunk);
                // The token at position p is predicted at p - 1; a document's first is not.
                let first = (u * m).max(1);
                let last = u * m + here.tokens.len();
                let of_chunk = &nats[i * width + first - 1..i * width + last - 1];
                scores.chunks.push(ChunkScore {
                    chunk,
                    nats: of_chunk.iter().map(|n| *n as f64).sum(),
                    tokens: of_chunk.len(),
                    bytes: here.text.len(),
                });
            }
        }
        task.advance(group.len() as u64);
    }
    if scores.tokens() == 0 {
        return Err(Error::setting("corpus", "has no text to predict"));
    }
    Ok(scores)
}

/// Windows of at most `longest` (2 or more) of a document's chunks, each with the number of chunks
/// that are only context.
fn windows(all: Range<usize>, longest: usize) -> Vec<(Range<usize>, usize)> {
    let mut windows = Vec::new();
    let mut scored = all.start;
    while scored < all.end {
        let context = (scored > all.start) as usize;
        let start = scored - context;
        let end = (start + longest).min(all.end);
        windows.push((start..end, context));
        scored = end;
    }
    windows
}

/// Negative log likelihood of each target, `[tokens]`; 0 where there is none.
fn token_nats(hidden: &Tensor, decoder: &Decoder, targets: &Tensor) -> Result<Vec<f32>> {
    let hidden = hidden.flatten(0, 1)?;
    let targets = targets.to_vec1::<u32>()?;
    let vocabulary = decoder.config().vocab_size;
    let mut nats = Vec::with_capacity(targets.len());
    // The logits of all tokens at once would be large; some hundred rows are enough for speed.
    for (i, targets) in targets.chunks(256).enumerate() {
        let logits = decoder.logits(&hidden.narrow(0, i * 256, targets.len())?)?;
        let logits = logits.flatten_all()?.to_vec1::<f32>()?;
        nats.par_extend(logits.par_chunks(vocabulary).zip(targets).map(|(row, target)| {
            let Some(own) = row.get(*target as usize) else { return 0.0 };
            let highest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            highest + row.iter().map(|logit| (logit - highest).exp()).sum::<f32>().ln() - own
        }));
    }
    Ok(nats)
}

/// Gives every chunk some other chunk's neighbours: the control that shows whether a model uses
/// what is retrieved or only profits from having more weights.
pub fn shuffled(chunks: usize, seed: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..chunks).collect();
    order.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
    // One long cycle through all chunks, so that none keeps its own.
    let mut other = vec![0; chunks];
    for (i, chunk) in order.iter().enumerate() {
        other[*chunk] = order[(i + 1) % chunks];
    }
    other
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_chunk_is_scored_once() {
        for (chunks, longest) in (1..12).flat_map(|chunks| (2..6).map(move |longest| (chunks, longest))) {
            let windows = windows(5..5 + chunks, longest);
            let scored: Vec<usize> =
                windows.iter().flat_map(|(row, context)| row.clone().skip(*context)).collect();
            assert_eq!(scored, (5..5 + chunks).collect::<Vec<_>>());
            assert!(windows.iter().all(|(row, _)| row.len() <= longest));
        }
    }

    #[test]
    fn nobody_keeps_its_own_neighbours() {
        for chunks in 2..20 {
            let mut other = shuffled(chunks, 7);
            assert!(other.iter().enumerate().all(|(i, o)| i != *o));
            other.sort_unstable();
            assert_eq!(other, (0..chunks).collect::<Vec<_>>());
        }
    }

    #[test]
    fn bits_and_perplexity() {
        let chunk = ChunkScore { chunk: 0, nats: 8.0 * std::f64::consts::LN_2, tokens: 4, bytes: 2 };
        let scores = Scores { chunks: vec![chunk] };
        assert!((scores.perplexity() - 4.0).abs() < 1e-9);
        assert!((scores.bits_per_byte() - 4.0).abs() < 1e-9);
    }
}
