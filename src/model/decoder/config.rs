//! What a decoder looks like, in terms that all families share.

use sidenote_kernels::Activation;

use super::family::Family;
use crate::error::{Error, Result};
use crate::model::LARGEST;
pub use crate::model::layers::{NormConfig, NormKind};

/// A decoder: what its blocks are made of, and how large they are.
///
/// The family gives the names that its weights and settings have in a checkpoint; the rest decides the arithmetic.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderConfig {
    /// Whose checkpoints it is read from and written to.
    pub family: Family,
    /// Number of tokens in the vocabulary.
    pub vocab_size: usize,
    /// Width of the residual stream, d.
    pub hidden_size: usize,
    /// Width inside the feed-forward layers.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Number of query heads.
    pub num_attention_heads: usize,
    /// Number of key and value heads; divides `num_attention_heads`.
    pub num_key_value_heads: usize,
    /// Width of one attention head.
    pub head_dim: usize,
    /// Longest sequence the model is meant for, in tokens.
    pub max_position_embeddings: usize,
    /// The norms, all of one kind.
    pub norm: NormConfig,
    /// How a position is told to the network.
    pub positions: Positions,
    /// Blocks that see only the last tokens.
    pub window: Option<Window>,
    /// Whether queries, keys and values have a bias.
    pub qkv_bias: bool,
    /// Whether the output of the attention has a bias.
    pub out_bias: bool,
    /// Whether each head's queries and keys are normed (Henry et al. 2020, <https://arxiv.org/abs/2010.04245>).
    pub qk_norm: bool,
    /// What the scores are multiplied by; usually `1 / sqrt(head_dim)`, which is `None`.
    pub attention_scale: Option<f64>,
    /// What is between the two products of the feed-forward layers.
    pub activation: Activation,
    /// Whether the activation gates a third product (Shazeer 2020, <https://arxiv.org/abs/2002.05202>).
    pub gated: bool,
    /// Whether the feed-forward layers' products have biases.
    pub feed_forward_bias: bool,
    /// Whether what a block adds to the stream is normed, too.
    pub post_norms: bool,
    /// What embeddings are multiplied by.
    pub embedding_scale: Option<f64>,
    /// Whether embeddings are normed.
    pub embedding_norm: bool,
    /// Whether the output head is the embedding table.
    pub tie_word_embeddings: bool,
}

/// How a position is told to the network.
#[derive(Debug, Clone, PartialEq)]
pub enum Positions {
    /// Queries and keys turn (Su et al. 2021, <https://arxiv.org/abs/2104.09864>).
    Rotary(Rotary),
    /// A learned embedding is added to the token's; the table has `offset` rows before that of position 0.
    Learned {
        /// 2 in OPT, 0 elsewhere.
        offset: usize,
    },
    /// Scores fall with the distance (Press et al. 2021, <https://arxiv.org/abs/2108.12409>).
    Alibi,
}

/// How queries and keys turn.
#[derive(Debug, Clone, PartialEq)]
pub struct Rotary {
    /// Components of a head that turn, the first ones; even.
    pub dim: usize,
    /// Base of the frequencies.
    pub theta: f64,
    /// How the frequencies are stretched for longer texts.
    pub scaling: Scaling,
    /// Base in the blocks that [`Window`] names, where it is another; nothing is stretched there.
    pub local_theta: Option<f64>,
}

/// How rotary frequencies are stretched.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Scaling {
    /// Not at all.
    None,
    /// All divided by `factor` (Chen et al. 2023, <https://arxiv.org/abs/2306.15595>).
    Linear {
        /// How much longer texts become.
        factor: f64,
    },
    /// Low frequencies are divided by `factor`, high ones not, those between by something between (Llama 3.1;
    /// Grattafiori et al. 2024, <https://arxiv.org/abs/2407.21783>).
    Llama3 {
        /// How much longer texts become.
        factor: f64,
        /// Waves as long as the original length over this, or longer, are low.
        low_freq_factor: f64,
        /// Waves as long as the original length over this, or shorter, are high.
        high_freq_factor: f64,
        /// Tokens that the model was meant for before.
        original_max_position_embeddings: f64,
    },
}

/// Blocks that see only the last tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct Window {
    /// How many tokens, the reading one included.
    pub tokens: usize,
    /// For each block whether it has the window.
    pub blocks: Vec<bool>,
}

/// The width of a head where nothing says another; 0 if there is none.
pub(super) fn usual_head_dim(hidden_size: usize, heads: usize) -> usize {
    if heads > 0 && hidden_size.is_multiple_of(heads) { hidden_size / heads } else { 0 }
}

/// Positions go further than other sizes.
const LARGEST_POSITION: usize = 1 << 27;

impl DecoderConfig {
    /// A decoder of the Llama family without sizes: RMSNorm before each layer, rotary positions, a gated
    /// feed-forward layer and no biases. Give the sizes, and what differs, with `..DecoderConfig::llama()`.
    pub fn llama() -> Self {
        Self {
            family: Family::Llama,
            vocab_size: 0,
            hidden_size: 0,
            intermediate_size: 0,
            num_hidden_layers: 0,
            num_attention_heads: 0,
            num_key_value_heads: 0,
            head_dim: 0,
            max_position_embeddings: 0,
            norm: NormConfig { kind: NormKind::Rms, eps: 1e-5 },
            positions: Positions::Rotary(Rotary {
                dim: 0,
                theta: 10_000.0,
                scaling: Scaling::None,
                local_theta: None,
            }),
            window: None,
            qkv_bias: false,
            out_bias: false,
            qk_norm: false,
            attention_scale: None,
            activation: Activation::Silu,
            gated: true,
            feed_forward_bias: false,
            post_norms: false,
            embedding_scale: None,
            embedding_norm: false,
            tie_word_embeddings: false,
        }
    }

    /// The same decoder with heads `hidden_size / num_attention_heads` wide that turn as a whole.
    pub fn with_usual_heads(mut self) -> Self {
        self.head_dim = usual_head_dim(self.hidden_size, self.num_attention_heads);
        if let Positions::Rotary(rotary) = &mut self.positions {
            rotary.dim = self.head_dim;
        }
        self
    }

    /// The window of block `i`, if it has one.
    pub fn window_of(&self, i: usize) -> Option<usize> {
        let window = self.window.as_ref()?;
        window.blocks.get(i).is_some_and(|has| *has).then_some(window.tokens)
    }

    /// Refuses shapes that no network can have.
    pub fn check(&self) -> Result<()> {
        let sizes = [
            ("vocab_size", self.vocab_size, LARGEST),
            ("hidden_size", self.hidden_size, LARGEST),
            ("intermediate_size", self.intermediate_size, LARGEST),
            ("num_hidden_layers", self.num_hidden_layers, LARGEST),
            ("num_attention_heads", self.num_attention_heads, LARGEST),
            ("num_key_value_heads", self.num_key_value_heads, LARGEST),
            ("max_position_embeddings", self.max_position_embeddings, LARGEST_POSITION),
        ];
        if let Some((name, ..)) = sizes.iter().find(|(_, value, _)| *value == 0) {
            return Err(Error::setting(*name, "must be at least 1"));
        }
        if let Some((name, value, largest)) = sizes.iter().find(|(_, value, largest)| value > largest) {
            let why = format!("{value} is more than any model has; at most {largest}");
            return Err(Error::setting(*name, why));
        }
        if self.head_dim > LARGEST {
            let why = format!("{} is more than any model has; at most {LARGEST}", self.head_dim);
            return Err(Error::setting("head_dim", why));
        }
        if self.head_dim == 0 {
            let why = format!(
                "{} is not a multiple of num_attention_heads, {}, and no head_dim is given",
                self.hidden_size, self.num_attention_heads
            );
            return Err(Error::setting("hidden_size", why));
        }
        if !self.num_attention_heads.is_multiple_of(self.num_key_value_heads) {
            let why = format!(
                "{} does not divide num_attention_heads, {}",
                self.num_key_value_heads, self.num_attention_heads
            );
            return Err(Error::setting("num_key_value_heads", why));
        }
        if let Positions::Rotary(rotary) = &self.positions
            && (rotary.dim == 0 || rotary.dim > self.head_dim || !rotary.dim.is_multiple_of(2))
        {
            let why = format!(
                "{} of a head's {} components turn; it must be an even number from 2 to that (hidden_size is {}, \
                 num_attention_heads {})",
                rotary.dim, self.head_dim, self.hidden_size, self.num_attention_heads
            );
            return Err(Error::setting("head_dim", why));
        }
        if let Some(window) = &self.window {
            if window.tokens == 0 {
                return Err(Error::setting("sliding_window", "must be at least 1"));
            }
            if window.blocks.len() != self.num_hidden_layers {
                let why = format!(
                    "has {} entries, but num_hidden_layers is {}",
                    window.blocks.len(),
                    self.num_hidden_layers
                );
                return Err(Error::setting("layer_types", why));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_shapes_are_named() {
        let sound = DecoderConfig {
            vocab_size: 10,
            hidden_size: 8,
            intermediate_size: 8,
            num_hidden_layers: 3,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            max_position_embeddings: 16,
            ..DecoderConfig::llama()
        }
        .with_usual_heads();
        sound.check().unwrap();
        let complaint = |change: fn(&mut DecoderConfig)| {
            let mut config = sound.clone();
            change(&mut config);
            config.check().unwrap_err().to_string()
        };
        assert!(complaint(|c| c.num_key_value_heads = 3).contains("num_key_value_heads"));
        assert!(complaint(|c| c.vocab_size = 0).contains("vocab_size"));
        assert!(complaint(|c| c.intermediate_size = usize::MAX).contains("intermediate_size"));
        assert!(complaint(|c| c.head_dim = 0).contains("num_attention_heads"));
        assert!(complaint(|c| c.head_dim = 1).contains("head_dim"));
        let window = |tokens, blocks| Some(Window { tokens, blocks: vec![true; blocks] });
        let mut config = sound.clone();
        config.window = window(0, 3);
        assert!(config.check().unwrap_err().to_string().contains("sliding_window"));
        config.window = window(4, 2);
        assert!(config.check().unwrap_err().to_string().contains("layer_types"));
    }
}
