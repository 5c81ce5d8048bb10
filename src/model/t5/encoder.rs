//! The encoder: every token reads the whole text.

use candle_core::{Device, Tensor};
use sidenote_kernels::{self as kernels, Activations, AttentionOptions};

use super::config::T5Config;
use super::layers::{Attention, feed_forward};
use super::positions::Positions;
use super::{checkpoint, embedding};
use crate::error::{Error, Result};
use crate::model::batch::side_by_side;
use crate::model::layers::{Dropout, Embedding, FeedForward, RmsNorm, drop_at};
use crate::model::source::Source;
use crate::model::weights::Weights;

/// T5's encoder, with the embedding table.
pub struct Encoder {
    embedding: Embedding,
    blocks: Vec<Block>,
    positions: Positions,
    norm: RmsNorm,
    /// Embeddings that an adapter puts before every text, `[tokens, d]`.
    prompt: Option<Tensor>,
    config: T5Config,
}

#[derive(Clone)]
struct Block {
    attention_norm: RmsNorm,
    attention: Attention,
    feed_forward_norm: RmsNorm,
    feed_forward: FeedForward,
}

/// Texts as the encoder has read them: what a decoder reads.
#[derive(Debug, Clone)]
pub struct Encoded {
    /// `[batch, tokens, d]`
    pub states: Tensor,
    /// `[batch, tokens]` as `u8`: 1 where there is text, 0 for padding. `None` where there is none.
    pub mask: Option<Tensor>,
}

impl Encoded {
    /// Joins each `passages` consecutive texts into one, for fusion in the decoder (Izacard and Grave 2021,
    /// <https://arxiv.org/abs/2007.01282>, section 3): states `[batch * passages, tokens, d]` become
    /// `[batch, passages * tokens, d]`. A passage that is absent is one whose mask is 0 throughout.
    pub fn joined(&self, passages: usize) -> Result<Self> {
        let (texts, tokens, d) = self.states.dims3()?;
        if passages == 0 || !texts.is_multiple_of(passages) {
            return Err(Error::setting("passages", format!("{texts} texts cannot be joined by {passages}")));
        }
        let (batch, tokens) = (texts / passages, passages * tokens);
        let mask = self.mask.as_ref().map(|mask| mask.reshape((batch, tokens))).transpose()?;
        Ok(Self { states: self.states.reshape((batch, tokens, d))?, mask })
    }
}

impl Block {
    /// `[batch, tokens, d]` to the same shape.
    fn forward(&self, h: &Tensor, options: &AttentionOptions, dropout: Option<Dropout>) -> Result<Tensor> {
        let part = |number| dropout.map(|dropout| dropout.part(number));
        let x = self.attention_norm.forward(h)?;
        let (k, v) = self.attention.keys_values(&x)?;
        let h = self.attention.forward_add(&x, (&k, &v), options, h, part(0))?;
        self.feed_forward.forward_add_dropped(&self.feed_forward_norm.forward(&h)?, &h, part(1))
    }
}

impl Encoder {
    /// Takes the weights out of `w`, those of the embedding table among them.
    pub fn take(config: &T5Config, w: &mut Weights) -> Result<Self> {
        let embedding = embedding(config, w)?;
        Self::new(config, w, embedding)
    }

    /// Takes the weights out of `w`; `embedding` is its table of tokens.
    pub fn new(config: &T5Config, w: &mut Weights, embedding: Embedding) -> Result<Self> {
        let norm =
            |w: &mut Weights, name: &str| RmsNorm::new(w, name, config.d_model, config.layer_norm_epsilon);
        let block = |i: usize| {
            let name = format!("encoder.block.{i}.layer");
            Ok(Block {
                attention_norm: norm(w, &format!("{name}.0.layer_norm"))?,
                attention: Attention::new(config, w, &format!("{name}.0.SelfAttention"))?,
                feed_forward_norm: norm(w, &format!("{name}.1.layer_norm"))?,
                feed_forward: feed_forward(config, w, &format!("{name}.1.DenseReluDense"))?,
            })
        };
        let blocks = (0..config.num_layers).map(block).collect::<Result<_>>()?;
        let table = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias";
        let positions = Positions::new(config, w, table, true)?;
        let norm = norm(w, "encoder.final_layer_norm")?;
        let prompt = match w.attached() {
            Some(attached) => attached.prompt(config.d_model)?,
            None => None,
        };
        Ok(Self { embedding, blocks, positions, norm, prompt, config: config.clone() })
    }

    /// Reads the encoder alone out of a checkpoint, whatever else that holds.
    pub fn from_source(mut source: Source, device: &Device) -> Result<Self> {
        let path = source.path().to_path_buf();
        let named = |e: Error| match e {
            Error::Setting { name, why } => Error::file(&path, format!("{name}: {why}")),
            other => other,
        };
        let config = checkpoint::settle(&mut source).map_err(named)?;
        let mut w = Weights::from_source(source, device);
        w.set_trainable(false);
        w.keep_blocks(true);
        Self::take(&config, &mut w)
    }

    /// What the network that it is half of looks like.
    pub fn config(&self) -> &T5Config {
        &self.config
    }

    /// The device it runs on.
    pub fn device(&self) -> &Device {
        self.embedding.table().device()
    }

    /// Reads `tokens` `[batch, tokens]`; `mask`, of the same shape as `u8`, is 0 for padding, which may be
    /// anywhere: nothing attends to it, and the states there mean nothing. Where it is trained, `dropout` drops as
    /// transformers does, but for attention's weights.
    pub fn forward(
        &self,
        tokens: &Tensor,
        mask: Option<&Tensor>,
        dropout: Option<Dropout>,
    ) -> Result<Encoded> {
        let (mut h, mask) = self.after_prompt(self.embedding.forward(tokens)?, mask)?;
        let n = h.dim(1)?;
        let bias = self.positions.bias(n, n)?;
        h = drop_at(dropout, h, 0)?;
        for part in Activations::current().parts(0..self.blocks.len()) {
            let (first, blocks) = (part.start, self.blocks[part].to_vec());
            let (bias, mask) = (bias.clone(), mask.clone());
            h = kernels::checkpoint(&[&h], move |read| {
                let options = AttentionOptions { key_mask: mask.as_ref(), ..bias.attention() };
                blocks.iter().zip(first..).try_fold(read[0].clone(), |h, (block, number)| {
                    block.forward(&h, &options, dropout.map(|dropout| dropout.part(2 + number as u64)))
                })
            })?;
        }
        Ok(Encoded { states: drop_at(dropout, self.norm.forward(&h)?, 1)?, mask })
    }

    /// `h` `[batch, tokens, d]` and its mask after the prompt of an adapter, if there is one.
    fn after_prompt(&self, h: Tensor, mask: Option<&Tensor>) -> Result<(Tensor, Option<Tensor>)> {
        let Some(prompt) = &self.prompt else { return Ok((h, mask.cloned())) };
        let (rows, tokens) = (h.dim(0)?, prompt.dim(0)?);
        let h = Tensor::cat(&[&prompt.unsqueeze(0)?.repeat((rows, 1, 1))?, &h], 1)?;
        let seen = |mask: &Tensor| {
            let ones = Tensor::ones((rows, tokens), mask.dtype(), mask.device())?;
            Tensor::cat(&[&ones, mask], 1)
        };
        Ok((h, mask.map(seen).transpose()?))
    }

    /// Reads texts of uneven lengths.
    pub fn read(&self, texts: &[&[u32]], dropout: Option<Dropout>) -> Result<Encoded> {
        let (tokens, mask) = side_by_side(texts, self.device())?;
        self.forward(&tokens, mask.as_ref(), dropout)
    }
}
