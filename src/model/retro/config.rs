//! What RETRO adds to a decoder, as the section `retro` of `config.json` says it.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::model::LARGEST;
use crate::model::decoder::DecoderConfig;
use crate::ranking::Ranking;

/// How the parts that RETRO adds to a decoder start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Initialisation {
    /// Small random matrices, as in the paper.
    Random,
    /// The same layers, set so that they copy from the start: a neighbour's token is looked up by
    /// the tokens before it, and its embedding is the value. See `retro/copy.rs`.
    Copy,
}

/// What RETRO adds to a decoder (Borgeaud et al. 2022, arXiv 2112.04426).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RetroConfig {
    /// Tokens a chunk, m. A neighbour is a chunk and its continuation, r = 2 m tokens.
    pub chunk_size: usize,
    /// Neighbours a chunk, k, in training; any number may be given later.
    pub neighbours: usize,
    /// What neighbours are found by, in training and later.
    #[serde(default, skip_serializing_if = "Ranking::is_vectors")]
    pub ranking: Ranking,
    /// Decoder blocks with chunked cross-attention, counted from 1 (the paper's P).
    pub layers: Vec<usize>,
    /// Heads of the chunked cross-attention.
    pub heads: usize,
    /// Width of one such head.
    pub head_dim: usize,
    /// Width of the neighbour encoder, d'.
    pub encoder_hidden_size: usize,
    /// Width inside the neighbour encoder's feed-forward layers.
    pub encoder_intermediate_size: usize,
    /// Heads of the neighbour encoder; divides `encoder_hidden_size`.
    pub encoder_heads: usize,
    /// Layers of the neighbour encoder.
    pub encoder_layers: usize,
    /// Encoder layers that attend to the decoder's chunk, counted from 1 (the paper's P_enc).
    pub encoder_cross_layers: Vec<usize>,
    /// How it all starts.
    pub initialisation: Initialisation,
    /// Whether what each cross-attention adds is multiplied by the tanh of a number that starts at 0, so that the model
    /// starts as its base (Alayrac et al. 2022, <https://arxiv.org/abs/2204.14198>, section 2.2).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub gate: bool,
}

impl RetroConfig {
    /// The paper's choices for a decoder that is trained from scratch (section 2.4 and table 9): every third block from the sixth, in
    /// deeper ones than 15 from the ninth (and the one in the middle when there are fewer than six), two encoder layers, the first of
    /// them conditioned on the chunk.
    pub fn for_decoder(decoder: &DecoderConfig, chunk_size: usize) -> Self {
        let blocks = decoder.num_hidden_layers;
        let first = if blocks > 15 { 9 } else { 6 };
        Self {
            chunk_size,
            neighbours: 2,
            ranking: Ranking::Vectors,
            layers: every_third(blocks, first),
            heads: decoder.num_attention_heads,
            head_dim: decoder.head_dim,
            encoder_hidden_size: decoder.hidden_size,
            encoder_intermediate_size: decoder.intermediate_size,
            encoder_heads: decoder.num_attention_heads,
            encoder_layers: 2,
            encoder_cross_layers: vec![1],
            initialisation: Initialisation::Random,
            gate: false,
        }
    }

    /// The paper's choices for a decoder that stays as it is (section 4.2): every third block from the sixth, however deep it is.
    pub fn for_frozen(decoder: &DecoderConfig, chunk_size: usize) -> Self {
        let layers = every_third(decoder.num_hidden_layers, 6);
        Self { layers, ..Self::for_decoder(decoder, chunk_size) }
    }

    /// The same where the layers start so. What copies is one layer of one head, as wide as the decoder, after its last
    /// attention, and an encoder with room for a token beside those before it: that learns to use its neighbours
    /// better than the paper's layers do (benches/quality/retrofit.md).
    pub fn starting(self, initialisation: Initialisation, decoder: &DecoderConfig) -> Self {
        match initialisation {
            Initialisation::Random => Self { initialisation, ..self },
            Initialisation::Copy => Self {
                initialisation,
                layers: vec![decoder.num_hidden_layers],
                heads: 1,
                head_dim: decoder.hidden_size,
                encoder_hidden_size: 2 * decoder.hidden_size,
                encoder_heads: 2 * self.encoder_heads,
                ..self
            },
        }
    }

    /// Tokens of one neighbour with its continuation, r.
    pub fn neighbour_tokens(&self) -> usize {
        2 * self.chunk_size
    }

    /// Refuses shapes that no network can have.
    pub fn check(&self, decoder: &DecoderConfig) -> Result<()> {
        let positive = [
            ("retro.chunk_size", self.chunk_size),
            ("retro.neighbours", self.neighbours),
            ("retro.heads", self.heads),
            ("retro.head_dim", self.head_dim),
            ("retro.encoder_intermediate_size", self.encoder_intermediate_size),
            ("retro.encoder_heads", self.encoder_heads),
            ("retro.encoder_layers", self.encoder_layers),
        ];
        if let Some((name, _)) = positive.iter().find(|(_, value)| *value == 0) {
            return Err(Error::setting(*name, "must be at least 1"));
        }
        let width = ("retro.encoder_hidden_size", self.encoder_hidden_size);
        if let Some((name, value)) = positive.iter().chain([&width]).find(|(_, value)| *value > LARGEST) {
            return Err(Error::setting(
                *name,
                format!("{value} is more than any model has; at most {LARGEST}"),
            ));
        }
        if self.encoder_hidden_size == 0 || !self.encoder_hidden_size.is_multiple_of(self.encoder_heads) {
            let why = format!(
                "{} is not a positive multiple of retro.encoder_heads, {}",
                self.encoder_hidden_size, self.encoder_heads
            );
            return Err(Error::setting("retro.encoder_hidden_size", why));
        }
        check_layers("retro.layers", &self.layers, decoder.num_hidden_layers)?;
        if self.layers.is_empty() {
            return Err(Error::setting("retro.layers", "needs at least one decoder block"));
        }
        check_layers("retro.encoder_cross_layers", &self.encoder_cross_layers, self.encoder_layers)?;
        match self.initialisation {
            Initialisation::Random => Ok(()),
            Initialisation::Copy => self.check_copy(decoder.hidden_size),
        }
    }

    /// The copy initialisation puts a token's embedding, d wide, and a sketch of the tokens before it
    /// side by side in the encoder's stream, and copies the embedding through the cross-attention.
    fn check_copy(&self, d: usize) -> Result<()> {
        let head = self.encoder_hidden_size / self.encoder_heads;
        if self.encoder_hidden_size <= d || !(self.encoder_hidden_size - d).is_multiple_of(head) {
            let why = format!(
                "initialisation = \"copy\" needs it larger than hidden_size ({d}) by whole heads of {head}; try {}, or \
                 initialisation = \"random\"",
                2 * d
            );
            return Err(Error::setting("retro.encoder_hidden_size", why));
        }
        if self.heads * self.head_dim < d {
            let why =
                format!("initialisation = \"copy\" needs heads * head_dim of at least hidden_size ({d})");
            return Err(Error::setting("retro.head_dim", why));
        }
        Ok(())
    }
}

fn check_layers(name: &str, layers: &[usize], count: usize) -> Result<()> {
    let ascending = layers.windows(2).all(|pair| pair[0] < pair[1]);
    let in_range = layers.iter().all(|layer| (1..=count).contains(layer));
    if ascending && in_range {
        return Ok(());
    }
    Err(Error::setting(name, format!("{layers:?}: give ascending numbers from 1 to {count}")))
}

/// Every third of `blocks` from `first`, or the one in the middle of fewer than six.
fn every_third(blocks: usize, first: usize) -> Vec<usize> {
    match blocks {
        0..6 => vec![blocks.div_ceil(2)],
        _ => (first..=blocks).step_by(3).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoder(blocks: usize) -> DecoderConfig {
        DecoderConfig {
            vocab_size: 10,
            hidden_size: 8,
            intermediate_size: 8,
            num_hidden_layers: blocks,
            num_attention_heads: 2,
            num_key_value_heads: 1,
            max_position_embeddings: 16,
            ..DecoderConfig::llama()
        }
        .with_usual_heads()
    }

    #[test]
    fn the_papers_layers() {
        let layers = |blocks| RetroConfig::for_decoder(&decoder(blocks), 64).layers;
        assert_eq!(layers(12), [6, 9, 12]);
        assert_eq!(layers(24), [9, 12, 15, 18, 21, 24]);
        assert_eq!(layers(4), [2]);
        assert_eq!(layers(5), [3]);
        let frozen = |blocks| RetroConfig::for_frozen(&decoder(blocks), 64).layers;
        assert_eq!(frozen(30), [6, 9, 12, 15, 18, 21, 24, 27, 30]);
        assert_eq!((frozen(12), frozen(4)), (layers(12), layers(4)));
    }

    #[test]
    fn what_copies_is_wide_enough() {
        for (blocks, head_dim) in [(4, 4), (12, 2), (12, 8)] {
            let decoder = DecoderConfig { head_dim, ..decoder(blocks) };
            let paper = RetroConfig::for_decoder(&decoder, 4);
            let random = paper.clone().starting(Initialisation::Random, &decoder);
            assert_eq!(random, paper);
            let copy = paper.clone().starting(Initialisation::Copy, &decoder);
            assert!(copy.check(&decoder).is_ok(), "{copy:?}");
            assert!(RetroConfig { encoder_hidden_size: 8, ..copy }.check(&decoder).is_err());
        }
    }

    #[test]
    fn impossible_shapes_are_named() {
        let decoder = decoder(4);
        let mut retro = RetroConfig::for_decoder(&decoder, 4);
        assert!(retro.check(&decoder).is_ok());
        let wide = RetroConfig { encoder_intermediate_size: usize::MAX, ..retro.clone() };
        assert!(wide.check(&decoder).unwrap_err().to_string().contains("retro.encoder_intermediate_size"));
        retro.layers = vec![2, 5];
        assert!(retro.check(&decoder).unwrap_err().to_string().contains("retro.layers"));
    }
}
