//! Prefix tuning (Li and Liang 2021, "Prefix-tuning: optimizing continuous prompts for generation",
//! <https://arxiv.org/abs/2101.00190>): keys and values of tokens before the text, in every block (of an
//! encoder-decoder, the decoder's), without the paper's reparametrisation.
//!
//! Block `i` of an encoder-decoder of `n` blocks reads those of number `2 i` modulo `n`, as in PEFT: where `n` is even, two
//! blocks share theirs, and every other is read by none.

use serde::{Deserialize, Serialize};

/// Learned keys and values before the text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Prefix {
    /// How many.
    pub tokens: usize,
}

impl Default for Prefix {
    fn default() -> Self {
        Self { tokens: 20 }
    }
}
