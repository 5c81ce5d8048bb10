//! The network's prediction and the memories', mixed.

use super::cache::Cache;
use super::datastore::{Interpolation, TokenMemory, probability};
use super::trime::Trime;
use crate::corpus::Store;
use crate::error::{Error, Result};
use crate::model::reading::Reading;

/// The continuous cache's settings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CacheSettings {
    /// Contexts that it remembers.
    pub window: usize,
    /// How sharply it tells them apart, θ.
    pub theta: f32,
    /// Its share of the prediction.
    pub lambda: f64,
}

impl Default for CacheSettings {
    fn default() -> Self {
        Self { window: 500, theta: 20.0, lambda: 0.2 }
    }
}

impl CacheSettings {
    /// Refuses what makes no distribution.
    pub fn check(&self) -> Result<()> {
        if !(0.0..1.0).contains(&self.lambda) {
            return Err(Error::setting("cache-lambda", "is a share, from 0 to below 1"));
        }
        if !(self.theta.is_finite() && self.theta >= 0.0) {
            return Err(Error::setting("cache-theta", "must be a number, 0 or more"));
        }
        match self.window {
            0 => Err(Error::setting("cache", "must remember at least 1 context")),
            _ => Ok(()),
        }
    }
}

/// What is looked at beside the network.
#[derive(Default)]
pub struct Memories<'a> {
    /// A datastore, and how it is read.
    pub datastore: Option<(&'a TokenMemory, Interpolation)>,
    /// The last contexts of the text itself.
    pub cache: Option<CacheSettings>,
    /// For a model trained with memories (TRIME): how many of the document's last contexts are in its softmax, at least
    /// one; as many as a sequence was long in training (the local memory), or more (the long one). The datastore, its external
    /// memory, is interpolated as it is for others: in one softmax with the vocabulary, as in training, some hundred
    /// contexts chosen for being near would outweigh everything.
    pub trime: Option<usize>,
}

impl Memories<'_> {
    /// Whether there is nothing beside the network.
    pub fn is_empty(&self) -> bool {
        self.datastore.is_none() && self.cache.is_none() && self.trime.is_none()
    }

    /// Begins a text.
    pub fn reader(&self) -> MemoryReader<'_> {
        let cache = self.cache.map(|settings| (Cache::new(settings.window, settings.theta), settings.lambda));
        MemoryReader { memories: self, cache, trime: self.trime.map(Trime::new) }
    }
}

/// Mixes predictions along a text.
pub struct MemoryReader<'a> {
    memories: &'a Memories<'a>,
    cache: Option<(Cache, f64)>,
    trime: Option<Trime>,
}

impl MemoryReader<'_> {
    /// The negative log likelihoods of the predicted tokens of `reading`, which is of `text` and comes after what was
    /// read before, under network and memories together.
    pub fn read(&mut self, reading: &Reading<'_>, text: &Store) -> Result<Vec<f64>> {
        let (nats, logits) = reading.predictions()?;
        if self.memories.is_empty() {
            return Ok(nats.into_iter().map(f64::from).collect());
        }
        let (contexts, tokens) = (reading.contexts()?, reading.tokens()?);
        let dim = contexts.len() / tokens.len().max(1);
        let mut mixed = Vec::with_capacity(tokens.len());
        for (here, begins) in reading.documents(text) {
            if begins {
                self.new_document();
            }
            let contexts = &contexts[here.start * dim..here.end * dim];
            mixed.extend(self.mix(contexts, &tokens[here.clone()], &nats[here.clone()], &logits[here])?);
        }
        Ok(mixed)
    }

    /// Forgets the text so far: a new document begins.
    pub fn new_document(&mut self) {
        if let Some((cache, _)) = &mut self.cache {
            cache.clear();
        }
        if let Some(trime) = &mut self.trime {
            trime.clear();
        }
    }

    /// The negative log likelihood of each of `tokens` under network and memories together, given that and the logit
    /// under the network alone, and the contexts `[tokens, dim]` that they came after, in the order of the text:
    /// `p = (1 - c) ((1 - λ) p_network + λ p_datastore) + c p_cache`, with TRIME's memories in `p_network`.
    pub fn mix(
        &mut self,
        contexts: &[f32],
        tokens: &[u32],
        nats: &[f32],
        logits: &[f32],
    ) -> Result<Vec<f64>> {
        let mut mixed: Vec<f64> = match &mut self.trime {
            Some(trime) => trime.probabilities(contexts, tokens, nats, logits),
            None => nats.iter().map(|nats| f64::from(-nats).exp()).collect(),
        };
        if let Some((memory, interpolation)) = &self.memories.datastore {
            let found = memory.neighbours(contexts, interpolation.k)?;
            for ((p, neighbours), token) in mixed.iter_mut().zip(&found).zip(tokens) {
                let nearest = neighbours.first().map_or(f64::INFINITY, |n| n.distance);
                let lambda = interpolation.lambda_at(nearest);
                *p =
                    (1.0 - lambda) * *p + lambda * probability(neighbours, interpolation.temperature, *token);
            }
        }
        if let Some((cache, share)) = &mut self.cache {
            let dim = contexts.len() / tokens.len().max(1);
            for ((p, context), token) in mixed.iter_mut().zip(contexts.chunks_exact(dim.max(1))).zip(tokens) {
                if let Some(cached) = cache.probability(context, *token) {
                    *p = (1.0 - *share) * *p + *share * cached;
                }
                cache.push(context, *token);
            }
        }
        Ok(mixed.into_iter().map(|p| -p.ln()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_memories_nothing_changes() {
        let memories = Memories::default();
        let mixed = memories.reader().mix(&[1.0, 2.0], &[3, 4], &[0.5, 2.0], &[0.0; 2]).unwrap();
        assert!((mixed[0] - 0.5).abs() < 1e-6 && (mixed[1] - 2.0).abs() < 1e-6);
    }

    #[test]
    fn the_cache_knows_what_this_document_said() {
        let cache = CacheSettings { window: 8, theta: 1.0, lambda: 0.5 };
        cache.check().unwrap();
        let memories = Memories { cache: Some(cache), ..Memories::default() };
        let mut reader = memories.reader();
        let nats = 8f32.ln();
        // The same context twice, the same token after it: at first nothing to go by, then certain.
        let mixed = reader.mix(&[1.0, 1.0], &[5, 5], &[nats, nats], &[0.0; 2]).unwrap();
        assert!((mixed[0] - f64::from(nats)).abs() < 1e-6);
        assert!((mixed[1] + (0.5f64 / 8.0 + 0.5).ln()).abs() < 1e-6);
        reader.new_document();
        assert!((reader.mix(&[1.0], &[5], &[nats], &[0.0]).unwrap()[0] - f64::from(nats)).abs() < 1e-6);
    }

    #[test]
    fn what_makes_no_distribution_is_refused() {
        let fine = CacheSettings::default();
        for theta in [0.0, f32::MAX] {
            CacheSettings { theta, ..fine }.check().unwrap();
        }
        for (wrong, name) in [
            (CacheSettings { theta: f32::NAN, ..fine }, "cache-theta"),
            (CacheSettings { theta: f32::INFINITY, ..fine }, "cache-theta"),
            (CacheSettings { theta: -1.0, ..fine }, "cache-theta"),
            (CacheSettings { lambda: 1.0, ..fine }, "cache-lambda"),
            (CacheSettings { lambda: f64::NAN, ..fine }, "cache-lambda"),
            (CacheSettings { window: 0, ..fine }, "cache"),
        ] {
            let said = wrong.check().unwrap_err().to_string();
            assert!(said.starts_with(&format!("{name}:")), "{wrong:?}: {said}");
        }
    }
}
