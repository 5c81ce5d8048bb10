//! What the generator needs of a network.

use candle_core::Tensor;

use crate::error::Result;

/// A network that predicts a text token by token: a decoder, or an encoder-decoder, whose prompts its encoder
/// reads.
///
/// What it has read of a batch of sequences is its `State`; reading in pieces gives the same as reading at once.
pub trait Autoregressive {
    /// What was read of a batch of sequences: keys and values, and whatever else goes on from token to token.
    type State;

    /// Size of the vocabulary, V.
    fn vocab_size(&self) -> usize;

    /// Most tokens that a sequence may have: prompt and text together in a decoder, the text alone in an
    /// encoder-decoder.
    fn longest(&self) -> usize;

    /// Whether prompts are part of the text, as a decoder's are, or read by an encoder.
    fn continues_prompt(&self) -> bool {
        true
    }

    /// Reads prompts of any lengths from 1 on, and gives with them the hidden states that predict each one's
    /// first new token, `[prompts, d]`. Shorter prompts are padded on the left, so that the next token of all is
    /// in one column; what is read of one does not depend on the others.
    fn start(&self, prompts: &[&[u32]]) -> Result<(Self::State, Tensor)>;

    /// Reads more tokens, `[batch, tokens]` as `u32`, one row for each sequence of the state, and gives the hidden
    /// states that predict the token after each, `[batch, tokens, d]`.
    fn read(&self, tokens: &Tensor, state: &mut Self::State) -> Result<Tensor>;

    /// Logits of hidden states, `[n, d]` to `[n, V]`.
    fn logits(&self, hidden: &Tensor) -> Result<Tensor>;

    /// A state of its own that holds these sequences of `state`, in this order; one may be named more than once.
    fn pick(&self, state: &Self::State, rows: &[usize]) -> Result<Self::State>;
}

/// Prompts side by side: `[prompts, longest]`, filled up on the left with token 0, and how much each was.
pub fn left_padded(prompts: &[&[u32]], device: &candle_core::Device) -> Result<(Tensor, Vec<usize>)> {
    let longest = prompts.iter().map(|prompt| prompt.len()).max().unwrap_or(0);
    let padding: Vec<usize> = prompts.iter().map(|prompt| longest - prompt.len()).collect();
    let mut tokens = vec![0u32; prompts.len() * longest];
    for (i, prompt) in prompts.iter().enumerate() {
        tokens[i * longest + padding[i]..(i + 1) * longest].copy_from_slice(prompt);
    }
    Ok((Tensor::from_vec(tokens, (prompts.len(), longest), device)?, padding))
}

impl<M: Autoregressive> Autoregressive for &M {
    type State = M::State;

    fn vocab_size(&self) -> usize {
        (*self).vocab_size()
    }

    fn longest(&self) -> usize {
        (*self).longest()
    }

    fn continues_prompt(&self) -> bool {
        (*self).continues_prompt()
    }

    fn start(&self, prompts: &[&[u32]]) -> Result<(Self::State, Tensor)> {
        (*self).start(prompts)
    }

    fn read(&self, tokens: &Tensor, state: &mut Self::State) -> Result<Tensor> {
        (*self).read(tokens, state)
    }

    fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        (*self).logits(hidden)
    }

    fn pick(&self, state: &Self::State, rows: &[usize]) -> Result<Self::State> {
        (*self).pick(state, rows)
    }
}
