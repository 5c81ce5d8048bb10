//! How well a model predicts held-out text.

use std::ops::Range;

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use crate::corpus::Store;
use crate::error::{Error, Result};
use crate::memory::Memories;
use crate::model::LanguageModel;
use crate::model::reading::read;
use crate::progress::Progress;

pub use crate::model::reading::Neighbourhood;

/// Prediction of one chunk's tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct ChunkScore {
    /// Number of the chunk in its store.
    pub chunk: usize,
    /// Negative log likelihood, summed.
    pub nats: f64,
    /// Tokens predicted.
    pub tokens: usize,
    /// Bytes of UTF-8 of all text. Those of a document's first token, which nothing predicts, are among them: of articles less than a
    /// hundredth, and the same for every model.
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
    score_with(model, text, documents, neighbours, &Memories::default(), progress)
}

/// [`score`] of the model and `memories` together.
///
/// # Errors
/// A memory that another model made.
pub fn score_with(
    model: &LanguageModel,
    text: &Store,
    documents: Range<usize>,
    neighbours: Option<&Neighbourhood<'_>>,
    memories: &Memories<'_>,
    progress: Progress,
) -> Result<Scores> {
    if let Some((memory, _)) = &memories.datastore {
        memory.check_model(&model.identity()?, neighbours.is_some())?;
    }
    let mut remembering = memories.reader();
    let mut scores = Scores::default();
    read(model, text, documents, neighbours, progress, |reading| {
        let mut nats = remembering.read(reading, text)?.into_iter();
        for chunk in &reading.chunks {
            scores.chunks.push(ChunkScore {
                chunk: chunk.chunk,
                nats: nats.by_ref().take(chunk.tokens()).sum(),
                tokens: chunk.tokens(),
                bytes: text.chunk(chunk.chunk).text.len(),
            });
        }
        Ok(())
    })?;
    if scores.tokens() == 0 {
        return Err(Error::setting("corpus", "has no text to predict"));
    }
    Ok(scores)
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
