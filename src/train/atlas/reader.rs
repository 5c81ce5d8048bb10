//! The reader that learns, of either kind: by fusion in the decoder, or with the passages in its context.

use std::path::Path;

use candle_core::{Device, Tensor, Var};

use super::read::Read;
use super::{context, fusion};
use crate::corpus::Tokenizer;
use crate::error::Result;
use crate::model::{Dropout, EncoderDecoder, LanguageModel, Precision, Trainable, WritingModel};
use crate::reader::{Source, Templates, texts};

/// See [the module](self).
pub enum TrainedReader {
    /// An encoder-decoder.
    Fusion(Box<EncoderDecoder>),
    /// A decoder.
    Context(Box<LanguageModel>),
}

impl TrainedReader {
    /// Reads the model called `name`, of which all weights are trained.
    ///
    /// # Errors
    /// As for the models.
    pub fn load(name: &Path, device: &Device) -> Result<Self> {
        Ok(match WritingModel::is_encoder_decoder(name)? {
            true => Self::Fusion(Box::new(EncoderDecoder::load(name, true, device)?)),
            false => Self::Context(Box::new(LanguageModel::load(name, Trainable::Everything, device)?)),
        })
    }

    /// Its tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        match self {
            Self::Fusion(model) => &model.tokenizer,
            Self::Context(model) => &model.tokenizer,
        }
    }

    /// The weights, by name.
    pub fn variables(&self) -> &[(String, Var)] {
        match self {
            Self::Fusion(model) => model.variables(),
            Self::Context(model) => model.variables(),
        }
    }

    /// Share of the numbers that its configuration wants dropped in training.
    pub fn dropout_rate(&self) -> f32 {
        match self {
            Self::Fusion(model) => model.network.config().dropout_rate(),
            Self::Context(_) => 0.0,
        }
    }

    /// Writes it to the new folder `dir`.
    ///
    /// # Errors
    /// A full disk.
    pub fn save_as(&self, dir: &Path, precision: Precision) -> Result<()> {
        match self {
            Self::Fusion(model) => model.save_as(dir, precision),
            Self::Context(model) => model.save_as(dir, precision),
        }
    }

    /// What is read for a question, which may spell sentinels; a decoder may have no room for the last sources.
    ///
    /// # Errors
    /// What the tokenizer refuses, and a question that is too long by itself.
    pub fn read(
        &self,
        templates: &Templates,
        question: &str,
        sources: &[Source<'_>],
        target: &[u32],
    ) -> Result<Read> {
        match self {
            Self::Fusion(model) => {
                Ok(Read { texts: texts(model, templates, question, sources)?, asked: Vec::new() })
            }
            Self::Context(model) => context::read(model, templates, question, sources, target.len()),
        }
    }

    /// The tokens of an answer, cut to `most`, and its end.
    ///
    /// # Errors
    /// What the tokenizer refuses.
    pub fn target(&self, templates: &Templates, answer: &str, most: usize) -> Result<Vec<u32>> {
        let (mut ids, end) = match self {
            Self::Fusion(model) => (
                model.tokenizer.encode_marked(&(templates.answer.clone() + answer))?,
                model.end_tokens().first(),
            ),
            // A word after "answer:", unless the answer's beginning stands between.
            Self::Context(model) => {
                let gap = if templates.answer.is_empty() { templates.gap() } else { "" };
                let answer = format!("{gap}{answer}");
                (model.tokenizer.encode(&answer)?.ids, model.end_tokens().first())
            }
        };
        ids.truncate(most);
        ids.extend(end);
        Ok(ids)
    }

    /// The mean negative log-likelihood of a token of the answers.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn nats(&self, batch: &[(&Read, &[u32])], dropout: Option<Dropout>) -> Result<Tensor> {
        match self {
            Self::Fusion(model) => fusion::nats(model, batch, dropout),
            Self::Context(model) => context::nats(model, batch),
        }
    }

    /// Log-likelihoods of the answer's tokens given each passage alone.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn given_each(&self, read: &Read, target: &[u32]) -> Result<Vec<Vec<f64>>> {
        match self {
            Self::Fusion(model) => fusion::given_each(&model.network, &read.texts, target),
            Self::Context(model) => context::given_each(model, read, target),
        }
    }

    /// Log-likelihoods of the answer's tokens given all passages but each.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn given_all_but_each(&self, read: &Read, target: &[u32]) -> Result<Vec<Vec<f64>>> {
        match self {
            Self::Fusion(model) => fusion::given_all_but_each(&model.network, &read.texts, target),
            Self::Context(model) => context::given_all_but_each(model, read, target),
        }
    }

    /// What the answer takes of each passage, when it is written from all of them.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn taken_of_each(&self, read: &Read, target: &[u32]) -> Result<Vec<f64>> {
        match self {
            Self::Fusion(model) => fusion::taken_of_each(&model.network, &read.texts, target),
            Self::Context(model) => context::taken_of_each(model, read, target),
        }
    }
}
