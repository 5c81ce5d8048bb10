//! A language model as the generator takes it, whatever its network.

use std::path::Path;

use candle_core::{Device, Tensor};

use super::adapted::Wanted;
use super::cache::Cache;
use super::decoder::Decoder;
use super::generate::{Autoregressive, Generator, Retrieve};
use super::retro::reading::{Reading, Sequence};
use super::source::{ChatTemplate, Source};
use super::store::{self, LanguageModel, Network, Trainable};
use super::t5::{self, EncoderDecoder, T5};
use crate::adapter::Adapter;
use crate::corpus::Tokenizer;
use crate::error::{Error, Result};

/// A network with what it reads while it writes.
#[derive(Clone, Copy)]
pub enum Writer<'a> {
    /// A decoder.
    Decoder(&'a Decoder),
    /// A RETRO model with retrieval on.
    Reading(Reading<'a>),
    /// An encoder-decoder.
    EncoderDecoder(&'a T5),
}

/// What was read of a batch of sequences.
pub enum State {
    /// By a decoder.
    Decoder(Cache),
    /// By a RETRO model.
    Reading(Vec<Sequence>),
    /// By an encoder-decoder.
    EncoderDecoder(t5::State),
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
        Generator::new(writer, &self.tokenizer, self.end_tokens().to_vec())
    }
}

impl LanguageModel {
    /// Tokens of a text to go on from, with those that the model's texts begin with.
    ///
    /// # Errors
    /// When the text is empty.
    pub fn prompt(&self, text: &str) -> Result<Vec<u32>> {
        let words = self.tokenizer.encode(text)?.ids;
        if words.is_empty() {
            return Err(Error::setting("prompt", "is empty; give at least one word to go on from"));
        }
        Ok([self.start_tokens(), &words].concat())
    }
}

/// A model that writes, of any family.
#[expect(clippy::large_enum_variant, reason = "a program holds one or two of them, never a list")]
pub enum WritingModel {
    /// A decoder, or RETRO.
    Decoder(LanguageModel),
    /// An encoder-decoder.
    EncoderDecoder(EncoderDecoder),
}

impl WritingModel {
    /// Reads the model called `name`, as [`Source::open`](super::Source::open) understands it, to be run.
    pub fn load(name: impl AsRef<Path>, device: &Device) -> Result<Self> {
        let source = store::open(name.as_ref())?;
        match is_encoder_decoder(&source) {
            true => EncoderDecoder::from_source(source, false, device).map(Self::EncoderDecoder),
            false => LanguageModel::from_source(source, Trainable::Nothing, device).map(Self::Decoder),
        }
    }

    /// Reads the model called `name`, all of whose weights are to be trained.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_trainable(name: &Path, device: &Device) -> Result<Self> {
        let source = store::open(name)?;
        match is_encoder_decoder(&source) {
            true => EncoderDecoder::from_source(source, true, device).map(Self::EncoderDecoder),
            false => LanguageModel::from_source(source, Trainable::Everything, device).map(Self::Decoder),
        }
    }

    /// Reads the model called `name` with the adapter in the folder `adapter`, to be run.
    ///
    /// # Errors
    /// An adapter of another model.
    pub fn load_adapted(name: &Path, adapter: &Path, device: &Device) -> Result<Self> {
        let wanted = Wanted { adapter: Adapter::open(adapter)?, name, trainable: false, seed: 0 };
        Self::adapted(wanted, device)
    }

    /// Reads a model with an adapter that is trained or run.
    ///
    /// # Errors
    /// An adapter of another model.
    pub fn adapted(wanted: Wanted<'_>, device: &Device) -> Result<Self> {
        let source = store::open(wanted.name)?;
        match is_encoder_decoder(&source) {
            true => EncoderDecoder::adapted(source, wanted, device).map(Self::EncoderDecoder),
            false => LanguageModel::adapted(source, wanted, device).map(Self::Decoder),
        }
    }

    /// Whether the model called `name` has an encoder that reads its prompts.
    ///
    /// # Errors
    /// A model that is not there.
    pub fn is_encoder_decoder(name: &Path) -> Result<bool> {
        Ok(is_encoder_decoder(&store::open(name)?))
    }

    /// Its tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        match self {
            Self::Decoder(model) => &model.tokenizer,
            Self::EncoderDecoder(model) => &model.tokenizer,
        }
    }

    /// Tokens of a prompt: a text to go on from, or for an encoder to read.
    ///
    /// # Errors
    /// When the text is empty.
    pub fn prompt(&self, text: &str) -> Result<Vec<u32>> {
        match self {
            Self::Decoder(model) => model.prompt(text),
            Self::EncoderDecoder(model) => model.prompt(text),
        }
    }

    /// How conversations look as text, for a model that was trained on some.
    pub fn chat_template(&self) -> Option<&ChatTemplate> {
        match self {
            Self::Decoder(model) => model.chat_template(),
            Self::EncoderDecoder(_) => None,
        }
    }

    /// Writes and scores texts with this model. Without `retrieve`, a RETRO model is its base model.
    pub fn generator<'a>(&'a self, retrieve: Option<&'a Retrieve<'a>>) -> Generator<'a, Writer<'a>> {
        match self {
            Self::Decoder(model) => model.generator(retrieve),
            Self::EncoderDecoder(model) => {
                let writer = Writer::EncoderDecoder(&model.network);
                Generator::new(writer, &model.tokenizer, model.end_tokens().to_vec())
            }
        }
    }
}

fn is_encoder_decoder(source: &Source) -> bool {
    let kind = source.config().get("model_type").and_then(serde_json::Value::as_str);
    kind.is_some_and(|kind| t5::MODEL_TYPES.contains(&kind))
}

impl Autoregressive for Writer<'_> {
    type State = State;

    fn vocab_size(&self) -> usize {
        match self {
            Self::Decoder(decoder) => decoder.vocab_size(),
            Self::Reading(reading) => reading.vocab_size(),
            Self::EncoderDecoder(network) => network.vocab_size(),
        }
    }

    fn longest(&self) -> usize {
        match self {
            Self::Decoder(decoder) => decoder.longest(),
            Self::Reading(reading) => reading.longest(),
            Self::EncoderDecoder(network) => network.longest(),
        }
    }

    fn continues_prompt(&self) -> bool {
        !matches!(self, Self::EncoderDecoder(_))
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
            Self::EncoderDecoder(network) => {
                let (state, hidden) = Autoregressive::start(*network, prompts)?;
                (State::EncoderDecoder(state), hidden)
            }
        })
    }

    fn read(&self, tokens: &Tensor, state: &mut State) -> Result<Tensor> {
        match (self, state) {
            (Self::Decoder(decoder), State::Decoder(cache)) => decoder.read(tokens, cache),
            (Self::Reading(reading), State::Reading(sequences)) => reading.read(tokens, sequences),
            (Self::EncoderDecoder(network), State::EncoderDecoder(state)) => network.read(tokens, state),
            _ => Err(foreign()),
        }
    }

    fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        match self {
            Self::Decoder(decoder) => Autoregressive::logits(*decoder, hidden),
            Self::Reading(reading) => reading.logits(hidden),
            Self::EncoderDecoder(network) => Autoregressive::logits(*network, hidden),
        }
    }

    fn pick(&self, state: &State, rows: &[usize]) -> Result<State> {
        match (self, state) {
            (Self::Decoder(decoder), State::Decoder(cache)) => Ok(State::Decoder(decoder.pick(cache, rows)?)),
            (Self::Reading(reading), State::Reading(sequences)) => {
                Ok(State::Reading(reading.pick(sequences, rows)?))
            }
            (Self::EncoderDecoder(network), State::EncoderDecoder(state)) => {
                Ok(State::EncoderDecoder(network.pick(state, rows)?))
            }
            _ => Err(foreign()),
        }
    }
}

fn foreign() -> Error {
    Error::setting("state", "was read by another network")
}
