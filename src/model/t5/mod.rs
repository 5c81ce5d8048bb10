//! T5 and its kin: an encoder that reads a prompt, and a decoder that writes (Raffel et al. 2020,
//! <https://arxiv.org/abs/1910.10683>). T5 v1.0, v1.1, LM-adapted, Flan-T5 and mT5 are this network with other
//! feed-forward layers and heads; see [`T5Config`].

use candle_core::{Device, Tensor};

use super::generate::log_sum_exp;
use super::layers::{Dropout, Embedding, Linear};
use super::weights::{Start, Weights};
use crate::error::Result;

mod checkpoint;
mod config;
mod decoder;
mod encoder;
mod generate;
mod layers;
mod positions;
mod store;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub(crate) use checkpoint::settle;
pub use config::{MODEL_TYPES, T5Config};
pub use decoder::State;
pub use encoder::{Encoded, Encoder};
pub use store::EncoderDecoder;

use decoder::Decoder;

/// Target of a position that is not scored.
pub use super::batch::IGNORE;

/// The network, its weights under transformers' names (`encoder.block.0.layer.0.SelfAttention.q.weight`).
pub struct T5 {
    config: T5Config,
    encoder: Encoder,
    decoder: Decoder,
    head: Linear,
}

impl T5 {
    /// Takes the weights out of `w`.
    pub fn new(config: &T5Config, w: &mut Weights) -> Result<Self> {
        config.check()?;
        let d = config.d_model;
        let embedding = embedding(config, w)?;
        let encoder = Encoder::new(config, w, embedding.clone())?;
        let decoder = Decoder::new(config, w, embedding.clone())?;
        let head = match config.tie_word_embeddings {
            true => Linear::of(embedding.table().clone()),
            false => Linear::new(w, HEAD, d, config.vocab_size, Start::Normal((d as f32).powf(-0.5)))?,
        };
        Ok(Self { config: config.clone(), encoder, decoder, head })
    }

    /// What it looks like.
    pub fn config(&self) -> &T5Config {
        &self.config
    }

    /// The device it runs on.
    pub fn device(&self) -> &Device {
        self.encoder.device()
    }

    /// The half that reads prompts.
    pub fn encoder(&self) -> &Encoder {
        &self.encoder
    }

    /// Begins to write after what was encoded. Texts of several passages are [joined](Encoded::joined) first.
    pub fn start(&self, encoded: &Encoded) -> Result<State> {
        self.decoder.start(encoded)
    }

    /// Reads `tokens` `[batch, tokens]` after those of `state`, and gives the hidden states that predict the token
    /// after each, `[batch, tokens, d]`, as the output head takes them.
    pub fn decode(&self, tokens: &Tensor, state: &mut State) -> Result<Tensor> {
        self.scaled(self.decoder.forward(tokens, state)?)
    }

    /// States of the decoder as the output head takes them.
    fn scaled(&self, hidden: Tensor) -> Result<Tensor> {
        Ok(match self.config.head_scale() {
            Some(scale) => (hidden * scale)?,
            None => hidden,
        })
    }

    /// The output head, `[vocabulary, d]`, in f32: a new tensor where the weights are in blocks.
    pub fn head(&self) -> Result<Tensor> {
        self.head.weight().dense()
    }

    /// Hidden states `[.., d]` to logits `[.., vocabulary]`.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        self.head.forward(hidden)
    }

    /// The hidden states that predict each of `targets` `[batch, tokens]`, given what was encoded and the targets
    /// before it: `[batch, tokens, d]`. Targets that are [`IGNORE`] are read as padding. `dropout` is for training,
    /// and another than the encoder's.
    ///
    /// With [`head`](Self::head), this is what `kernels::linear_cross_entropy` takes.
    pub fn predict(&self, encoded: &Encoded, targets: &Tensor, dropout: Option<Dropout>) -> Result<Tensor> {
        self.scaled(self.decoder.forward_whole(&self.shifted(targets)?, encoded, dropout)?)
    }

    /// Natural logarithms of the probabilities of each of `targets` `[rows, tokens]` after those before it, where `state` has read
    /// the text of each row and no token: a row each, 0 where a target is [`IGNORE`]. Without gradients.
    pub fn log_likelihoods(&self, mut state: State, targets: &Tensor) -> Result<Vec<Vec<f64>>> {
        let hidden = self.scaled(self.decoder.forward(&self.shifted(targets)?, &mut state)?)?.detach();
        let wanted = targets.to_vec2::<u32>()?;
        // A row at a time: a vocabulary's logits are large.
        let row = |(number, wanted): (usize, &Vec<u32>)| {
            let logits = self.logits(&hidden.get(number)?)?.to_vec2::<f32>()?;
            let of = |(logits, target): (&Vec<f32>, &u32)| match *target {
                IGNORE => 0.0,
                target => f64::from(logits[target as usize] - log_sum_exp(logits)),
            };
            Ok(logits.iter().zip(wanted).map(of).collect())
        };
        wanted.iter().enumerate().map(row).collect()
    }

    /// What the targets `[rows, tokens]` take of each token that was encoded for their row, `[rows, keys]`: attention's weight
    /// times the length of the value (Izacard and Grave 2021, <https://arxiv.org/abs/2012.04584>, section 3; Atlas, section 2.2),
    /// as the mean over layers, heads and the targets that are not [`IGNORE`]. Without gradients.
    pub fn taken(&self, encoded: &Encoded, targets: &Tensor) -> Result<Vec<Vec<f64>>> {
        let mut taken = Vec::new();
        self.decoder.watched(&self.shifted(targets)?, &mut self.start(encoded)?, Some(&mut taken))?;
        let rows = targets.to_vec2::<u32>()?;
        let share = |row: &Vec<u32>| {
            let own = 1.0 / row.iter().filter(|id| **id != IGNORE).count().max(1) as f32;
            row.iter().map(|id| if *id == IGNORE { 0.0 } else { own }).collect::<Vec<f32>>()
        };
        let shares: Vec<f32> = rows.iter().flat_map(share).collect();
        let shares = Tensor::from_vec(shares, (rows.len(), 1, targets.dim(1)?), targets.device())?;
        let mut sums = vec![Vec::new(); rows.len()];
        for layer in &taken {
            let mean = shares.matmul(&layer.mean(1)?)?.squeeze(1)?.to_vec2::<f32>()?;
            for (sum, row) in sums.iter_mut().zip(mean) {
                sum.resize(row.len(), 0.0);
                sum.iter_mut().zip(row).for_each(|(sum, own)| *sum += f64::from(own) / taken.len() as f64);
            }
        }
        Ok(sums)
    }

    /// What the decoder reads where `targets` are to be written: the start token, then all but the last.
    fn shifted(&self, targets: &Tensor) -> Result<Tensor> {
        let known = |&id: &u32| if id == IGNORE { self.config.pad_token_id } else { id };
        let mut rows = targets.to_vec2::<u32>()?;
        for row in &mut rows {
            let width = row.len();
            row.rotate_right(width.min(1));
            row.iter_mut().for_each(|id| *id = known(id));
            if let Some(first) = row.first_mut() {
                *first = self.config.start_token();
            }
        }
        Ok(Tensor::from_vec(rows.concat(), targets.shape(), targets.device())?)
    }
}

/// The embedding table, which encoder and decoder share.
const EMBEDDING: &str = "shared";
/// The output head where it is another matrix.
const HEAD: &str = "lm_head";

/// Takes the table out of `w`.
fn embedding(config: &T5Config, w: &mut Weights) -> Result<Embedding> {
    Embedding::new(w, EMBEDDING, config.vocab_size, config.d_model, Start::Normal(1.0))
}
