//! `[model]` and `[t5]`: shapes of what is trained from scratch.

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::model::DecoderConfig;
use crate::model::t5::T5Config;

/// The decoder's shape.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSection {
    /// Width d.
    pub hidden_size: usize,
    /// Blocks.
    pub layers: usize,
    /// Attention heads.
    pub heads: usize,
    /// Width inside the feed-forward layers; 8/3 d, rounded up to 32, where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub intermediate_size: Option<usize>,
    /// Longest sequence, in tokens.
    #[serde(default = "default_positions")]
    pub max_positions: usize,
}

fn default_positions() -> usize {
    1024
}

impl ModelSection {
    /// The decoder for a vocabulary of `vocab_size` tokens.
    pub fn decoder(&self, vocab_size: usize) -> DecoderConfig {
        DecoderConfig {
            vocab_size,
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size.unwrap_or_else(|| usual_inner(self.hidden_size)),
            num_hidden_layers: self.layers,
            num_attention_heads: self.heads,
            num_key_value_heads: self.heads,
            max_position_embeddings: self.max_positions,
            tie_word_embeddings: true,
            ..DecoderConfig::llama()
        }
        .with_usual_heads()
    }
}

/// The shape of an encoder-decoder like T5 v1.1, with gated GELU and an output head of its own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct T5Section {
    /// Width d.
    pub hidden_size: usize,
    /// Blocks of the encoder, and of the decoder.
    pub layers: usize,
    /// Attention heads, of d / heads numbers each.
    pub heads: usize,
    /// Width inside the feed-forward layers; 8/3 d, rounded up to 32, where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub intermediate_size: Option<usize>,
    /// Share of the numbers that are dropped in training; T5 v1.1 was pre-trained without.
    #[serde(default)]
    pub dropout: f32,
}

impl T5Section {
    /// The model for a vocabulary of `vocab_size` tokens.
    ///
    /// # Errors
    /// A shape that no network can have.
    pub fn config(&self, vocab_size: usize) -> Result<T5Config> {
        T5Config::from_json(&serde_json::json!({
            "model_type": "t5",
            "vocab_size": vocab_size,
            "d_model": self.hidden_size,
            "d_kv": self.hidden_size / self.heads.max(1),
            "d_ff": self.intermediate_size.unwrap_or_else(|| usual_inner(self.hidden_size)),
            "num_layers": self.layers,
            "num_heads": self.heads,
            "feed_forward_proj": "gated-gelu",
            "tie_word_embeddings": false,
            "dropout_rate": self.dropout,
        }))
    }
}

/// 8/3 of the width, rounded up to 32.
fn usual_inner(width: usize) -> usize {
    width.saturating_mul(8).div_ceil(96).saturating_mul(32)
}
