//! What a model learns to write: transforms of a text's tokens into something to read and something to
//! predict, each with its inverse.

mod denoising;
mod infilling;
mod prefix;
mod spans;

use rand_chacha::ChaCha8Rng;

pub use denoising::{continuation, drop_spans, restore_continuation};
pub use infilling::{Infilling, Layout};
pub use prefix::split;
pub use spans::{Corrupted, Spans};

/// What is learnt from one text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Example {
    /// Read from left to right.
    Text {
        /// The tokens.
        tokens: Vec<u32>,
        /// The first token that is predicted, at least 1; those before it are only read.
        from: usize,
    },
    /// Read one part, write the other: what an encoder and a decoder do.
    Pair {
        /// What is read.
        input: Vec<u32>,
        /// What is written.
        target: Vec<u32>,
    },
}

impl Example {
    /// For a model without an encoder: one part after the other, of which the second is predicted.
    pub fn left_to_right(self) -> (Vec<u32>, usize) {
        match self {
            Self::Text { tokens, from } => (tokens, from),
            Self::Pair { mut input, target } => {
                let from = input.len();
                input.extend(target);
                (input, from)
            }
        }
    }
}

/// One way of making an [`Example`] of a text.
#[derive(Debug, Clone, PartialEq)]
pub enum Objective {
    /// Predict every token from those before it.
    Causal,
    /// Read the beginning, predict the rest: see [`split`].
    Prefix,
    /// Predict a part from the middle after both sides of it.
    Infilling(Infilling),
    /// T5's: predict the spans that sentinels stand for.
    Spans(Spans),
    /// Predict the whole text after reading it with spans dropped: see [`drop_spans`].
    Denoising,
    /// Predict the rest after reading the beginning behind a token that says so: see [`continuation`].
    Continuation {
        /// The token that says so, AlexaTM's `[CLM]`.
        clm: u32,
    },
}

impl Objective {
    /// The example of `tokens`; [`Example::Text`] of all of it where it is too short to be parted.
    pub fn apply(&self, tokens: Vec<u32>, rng: &mut ChaCha8Rng) -> Example {
        if tokens.len() < 2 {
            return Example::Text { tokens, from: 1 };
        }
        match self {
            Self::Causal => Example::Text { tokens, from: 1 },
            Self::Prefix => split(tokens, rng),
            Self::Infilling(infilling) => Example::Text { tokens: infilling.apply(&tokens, rng), from: 1 },
            Self::Spans(spans) => match spans.apply(&tokens, rng) {
                Some(Corrupted { input, target }) => Example::Pair { input, target },
                None => Example::Text { tokens, from: 1 },
            },
            Self::Denoising => Example::Pair { input: drop_spans(&tokens, rng), target: tokens },
            Self::Continuation { clm } => continuation(*clm, tokens, rng),
        }
    }

    /// The most that an example has more tokens than its text, both parts together.
    pub fn added(&self, tokens: usize) -> usize {
        match self {
            Self::Causal | Self::Prefix => 0,
            Self::Infilling(infilling) => infilling.added(),
            Self::Spans(spans) => 2 * spans.count(tokens),
            Self::Denoising => tokens,
            Self::Continuation { .. } => 1,
        }
    }
}
