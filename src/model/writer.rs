//! A language model as the generator takes it, whatever its network.

use candle_core::Tensor;

use super::cache::Cache;
use super::decoder::Decoder;
use super::generate::{Autoregressive, Generator, Retrieve};
use super::retro::reading::{Reading, Sequence};
use super::store::{LanguageModel, Network};
use crate::error::{Error, Result};

/// A network with what it reads while it writes.
#[derive(Clone, Copy)]
pub enum Writer<'a> {
    /// A decoder.
    Decoder(&'a Decoder),
    /// A RETRO model with retrieval on.
    Reading(Reading<'a>),
}

/// What was read of a batch of sequences.
pub enum State {
    /// By a decoder.
    Decoder(Cache),
    /// By a RETRO model.
    Reading(Vec<Sequence>),
}

impl LanguageModel {
    /// The network as the generator takes it. Without `retrieve`, a RETRO model is its base model.
    pub fn writer<'a>(&'a self, retrieve: Option<&'a Retrieve<'a>>) -> Writer<'a> {
        match (&self.network, retrieve) {
            (Network::Retro(retro), Some(retrieve)) => Writer::Reading(Reading::new(retro, retrieve)),
            (network, _) => Writer::Decoder(network.decoder()),
        }
    }

    /// Writes and scores texts with this model; see [`writer`](Self::writer).
    pub fn generator<'a>(&'a self, retrieve: Option<&'a Retrieve<'a>>) -> Generator<'a, Writer<'a>> {
        let writer = self.writer(retrieve);
        Generator::new(writer, &self.tokenizer, self.tokenizer.end_of_text().into_iter().collect())
    }
}

impl LanguageModel {
    /// Tokens of a text to go on from: with what the tokenizer puts around a text, and, for a model that was trained
    /// here, after the token that its documents begin with.
    ///
    /// # Errors
    /// When the text is empty.
    pub fn prompt(&self, text: &str) -> Result<Vec<u32>> {
        if text.is_empty() {
            return Err(Error::setting("prompt", "is empty; give at least one word to go on from"));
        }
        let words = self.tokenizer.encode_whole(text)?;
        let first = self.trained_here.then(|| self.tokenizer.end_of_text()).flatten();
        let first = first.filter(|first| words.first() != Some(first));
        Ok(first.into_iter().chain(words).collect())
    }
}

impl Autoregressive for Writer<'_> {
    type State = State;

    fn vocab_size(&self) -> usize {
        match self {
            Self::Decoder(decoder) => decoder.vocab_size(),
            Self::Reading(reading) => reading.vocab_size(),
        }
    }

    fn longest(&self) -> usize {
        match self {
            Self::Decoder(decoder) => decoder.longest(),
            Self::Reading(reading) => reading.longest(),
        }
    }

    fn start(&self, prompts: &[&[u32]]) -> Result<(State, Tensor)> {
        Ok(match self {
            Self::Decoder(decoder) => {
                let (cache, hidden) = decoder.start(prompts)?;
                (State::Decoder(cache), hidden)
            }
            Self::Reading(reading) => {
                let (sequences, hidden) = reading.start(prompts)?;
                (State::Reading(sequences), hidden)
            }
        })
    }

    fn read(&self, tokens: &Tensor, state: &mut State) -> Result<Tensor> {
        match (self, state) {
            (Self::Decoder(decoder), State::Decoder(cache)) => decoder.read(tokens, cache),
            (Self::Reading(reading), State::Reading(sequences)) => reading.read(tokens, sequences),
            _ => Err(foreign()),
        }
    }

    fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        match self {
            Self::Decoder(decoder) => Autoregressive::logits(*decoder, hidden),
            Self::Reading(reading) => reading.logits(hidden),
        }
    }

    fn pick(&self, state: &State, rows: &[usize]) -> Result<State> {
        match (self, state) {
            (Self::Decoder(decoder), State::Decoder(cache)) => Ok(State::Decoder(decoder.pick(cache, rows)?)),
            (Self::Reading(reading), State::Reading(sequences)) => {
                Ok(State::Reading(reading.pick(sequences, rows)?))
            }
            _ => Err(foreign()),
        }
    }
}

fn foreign() -> Error {
    Error::setting("state", "was read by another network")
}
