//! RETRO as the generator takes it: neighbours are looked up again each time a chunk is complete.

use candle_core::Tensor;

use super::{Retro, State};
use crate::error::Result;
use crate::model::generate::{Autoregressive, Retrieve};

/// A RETRO model with retrieval on.
#[derive(Clone, Copy)]
pub struct Reading<'a> {
    retro: &'a Retro,
    retrieve: &'a Retrieve<'a>,
}

/// What was read of one sequence.
pub struct Sequence {
    state: State,
    /// Tokens of the chunk that is not complete.
    chunk: Vec<u32>,
}

impl<'a> Reading<'a> {
    /// Reads with `retro` what `retrieve` finds for a complete chunk of tokens.
    pub fn new(retro: &'a Retro, retrieve: &'a Retrieve<'a>) -> Self {
        Self { retro, retrieve }
    }

    /// Hidden states of `tokens` after `sequence`, `[1, tokens, d]`.
    fn go_on(&self, tokens: &[u32], sequence: &mut Sequence) -> Result<Tensor> {
        let m = self.retro.config().chunk_size;
        let Sequence { state, chunk } = sequence;
        let first = state.tokens() / m;
        chunk.extend(tokens);
        let mut find =
            |number: usize| (self.retrieve)(&chunk[(number - first) * m..(number - first + 1) * m]);
        let hidden = self.retro.read(tokens, state, &mut find)?;
        chunk.drain(..chunk.len() / m * m);
        Ok(hidden)
    }
}

/// Sequences are at different places of their chunks, and so each is read by itself.
impl Autoregressive for Reading<'_> {
    type State = Vec<Sequence>;

    fn vocab_size(&self) -> usize {
        self.retro.base().vocab_size()
    }

    fn longest(&self) -> usize {
        self.retro.base().longest()
    }

    fn start(&self, prompts: &[&[u32]]) -> Result<(Vec<Sequence>, Tensor)> {
        let mut sequences = Vec::new();
        let mut last = Vec::new();
        for prompt in prompts {
            let mut sequence = Sequence { state: State::default(), chunk: Vec::new() };
            let hidden = self.go_on(prompt, &mut sequence)?;
            last.push(hidden.narrow(1, hidden.dim(1)? - 1, 1)?.squeeze(1)?);
            sequences.push(sequence);
        }
        Ok((sequences, Tensor::cat(&last, 0)?))
    }

    fn read(&self, tokens: &Tensor, sequences: &mut Vec<Sequence>) -> Result<Tensor> {
        let rows: Vec<Vec<u32>> = tokens.to_vec2()?;
        let hidden = rows.iter().zip(sequences).map(|(row, sequence)| self.go_on(row, sequence));
        Ok(Tensor::cat(&hidden.collect::<Result<Vec<_>>>()?, 0)?)
    }

    fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        Autoregressive::logits(self.retro.base(), hidden)
    }

    fn pick(&self, sequences: &Vec<Sequence>, rows: &[usize]) -> Result<Vec<Sequence>> {
        let copy = |row: &usize| {
            let Sequence { state, chunk } = &sequences[*row];
            Ok(Sequence { state: state.copy()?, chunk: chunk.clone() })
        };
        rows.iter().map(copy).collect()
    }
}
