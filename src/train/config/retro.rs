//! `[retro]`.

use serde::{Deserialize, Serialize};

use crate::model::{DecoderConfig, Initialisation, RetroConfig};

/// RETRO's layers; what is left out is chosen for the decoder.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RetroSection {
    /// Neighbours a chunk, k.
    pub neighbours: Option<usize>,
    /// Decoder blocks with chunked cross-attention, from 1.
    pub layers: Option<Vec<usize>>,
    /// Heads of the chunked cross-attention.
    pub heads: Option<usize>,
    /// Width of such a head.
    pub head_dim: Option<usize>,
    /// Width of the neighbour encoder, d'.
    pub encoder_hidden_size: Option<usize>,
    /// Width inside its feed-forward layers.
    pub encoder_intermediate_size: Option<usize>,
    /// Its heads.
    pub encoder_heads: Option<usize>,
    /// Its layers.
    pub encoder_layers: Option<usize>,
    /// Its layers that attend to the decoder's chunk, from 1.
    pub encoder_cross_layers: Option<Vec<usize>>,
    /// "random" or "copy", which it is where it is left out.
    pub initialisation: Option<Initialisation>,
    /// Whether what is added starts at nothing, behind a gate.
    pub gate: Option<bool>,
}

impl RetroSection {
    /// Fills in what is best for layers that start by copying, which they do unless this says otherwise
    /// (benches/quality/retrofit.md), or the paper's choices, for a decoder from scratch or one that stays as it is.
    pub fn config(&self, decoder: &DecoderConfig, chunk_size: usize, frozen: bool) -> RetroConfig {
        let paper = match frozen {
            true => RetroConfig::for_frozen(decoder, chunk_size),
            false => RetroConfig::for_decoder(decoder, chunk_size),
        };
        let start = self.initialisation.unwrap_or(Initialisation::Copy);
        let paper = paper.starting(start, decoder);
        RetroConfig {
            chunk_size,
            neighbours: self.neighbours.unwrap_or(paper.neighbours),
            ranking: paper.ranking,
            layers: self.layers.clone().unwrap_or(paper.layers),
            heads: self.heads.unwrap_or(paper.heads),
            head_dim: self.head_dim.unwrap_or(paper.head_dim),
            encoder_hidden_size: self.encoder_hidden_size.unwrap_or(paper.encoder_hidden_size),
            encoder_intermediate_size: self
                .encoder_intermediate_size
                .unwrap_or(paper.encoder_intermediate_size),
            encoder_heads: self.encoder_heads.unwrap_or(paper.encoder_heads),
            encoder_layers: self.encoder_layers.unwrap_or(paper.encoder_layers),
            encoder_cross_layers: self.encoder_cross_layers.clone().unwrap_or(paper.encoder_cross_layers),
            initialisation: start,
            gate: self.gate.unwrap_or(paper.gate),
        }
    }
}
