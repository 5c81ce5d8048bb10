//! Prompt tuning (Lester et al. 2021, "The power of scale for parameter-efficient prompt tuning",
//! <https://arxiv.org/abs/2104.08691>): embeddings of tokens that are no words, before every text. An encoder-decoder
//! has them before what its encoder reads.

use serde::{Deserialize, Serialize};

/// PEFT's name of the embeddings.
pub const PROMPT: &str = "prompt_embeddings";

/// Learned embeddings before the text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Prompt {
    /// How many.
    pub tokens: usize,
}

impl Default for Prompt {
    fn default() -> Self {
        Self { tokens: 20 }
    }
}
