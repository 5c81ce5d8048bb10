//! T5 as the generator takes it: prompts are read by the encoder, and what is written begins with the start token.

use candle_core::Tensor;

use super::{State, T5};
use crate::error::Result;
use crate::model::generate::Autoregressive;

impl Autoregressive for T5 {
    type State = State;

    fn vocab_size(&self) -> usize {
        self.config().vocab_size
    }

    /// Positions are relative and have no end.
    fn longest(&self) -> usize {
        usize::MAX
    }

    fn continues_prompt(&self) -> bool {
        false
    }

    fn start(&self, prompts: &[&[u32]]) -> Result<(State, Tensor)> {
        let mut state = T5::start(self, &self.encoder().read(prompts, None)?)?;
        let first = Tensor::full(self.config().start_token(), (prompts.len(), 1), self.device())?;
        let hidden = self.decode(&first, &mut state)?.squeeze(1)?;
        Ok((state, hidden))
    }

    fn read(&self, tokens: &Tensor, state: &mut State) -> Result<Tensor> {
        self.decode(tokens, state)
    }

    fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        T5::logits(self, hidden)
    }

    fn pick(&self, state: &State, rows: &[usize]) -> Result<State> {
        state.pick(rows)
    }
}
