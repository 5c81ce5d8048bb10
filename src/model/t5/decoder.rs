//! The decoder: every token reads the tokens before it, and what the encoder made of the prompt.

use candle_core::Tensor;
use sidenote_kernels::{self as kernels, AttentionOptions, KvCache};

use super::config::T5Config;
use super::encoder::Encoded;
use super::layers::{Attention, feed_forward};
use super::positions::{Bias, Positions};
use crate::error::{Error, Result};
use crate::model::layers::{Dropout, Embedding, FeedForward, RmsNorm, drop_at};
use crate::model::weights::Weights;

pub(super) struct Decoder {
    embedding: Embedding,
    blocks: Vec<Block>,
    positions: Positions,
    norm: RmsNorm,
    heads: usize,
    /// What prefix tuning has learnt, `[tokens, blocks * 2 * heads * d_kv]`.
    prefix: Option<Tensor>,
}

#[derive(Clone)]
struct Block {
    attention_norm: RmsNorm,
    attention: Attention,
    cross_norm: RmsNorm,
    cross: Attention,
    feed_forward_norm: RmsNorm,
    feed_forward: FeedForward,
}

/// A cache that begins with these keys and values.
fn cache_after(before: Option<&(Tensor, Tensor)>) -> Result<KvCache> {
    let mut cache = KvCache::default();
    if let Some((k, v)) = before {
        cache.extend(k, v)?;
    }
    Ok(cache)
}

/// What a block reads of what was encoded.
struct Crossing<'a> {
    /// Keys and values, `[texts, heads, keys, d_kv]`.
    kv: (&'a Tensor, &'a Tensor),
    /// `[texts, keys]`
    mask: Option<&'a Tensor>,
}

impl Block {
    /// `h` `[batch, tokens, d]` to the same shape, after what the cache holds. `taken` gets what is taken of each key.
    fn forward(
        &self,
        h: &Tensor,
        bias: &Bias,
        cache: &mut KvCache,
        crossing: &Crossing,
        dropout: Option<Dropout>,
        taken: Option<&mut Vec<Tensor>>,
    ) -> Result<Tensor> {
        let part = |number| dropout.map(|dropout| dropout.part(number));
        let causal = AttentionOptions { causal: true, ..bias.attention() };
        let x = self.attention_norm.forward(h)?;
        let (k, v) = self.attention.keys_values(&x)?;
        let (k, v) = cache.extend(&k, &v)?;
        let h = self.attention.forward_add(&x, (&k, &v), &causal, h, part(0))?;
        let x = self.cross_norm.forward(&h)?;
        if let Some(taken) = taken {
            taken.push(self.cross.taken(&x, crossing.kv, crossing.mask)?);
        }
        let options = AttentionOptions { key_mask: crossing.mask, ..AttentionOptions::scaled(1.0) };
        let h = self.cross.forward_add(&x, crossing.kv, &options, &h, part(1))?;
        self.feed_forward.forward_add_dropped(&self.feed_forward_norm.forward(&h)?, &h, part(2))
    }
}

/// What the decoder has read: the encoder's states as keys and values, and the tokens written so far.
///
/// Several rows may read the same encoded text, which is then held once.
#[derive(Debug)]
pub struct State {
    /// Keys and values `[texts, heads, keys, d_kv]` of the encoded texts, block by block.
    cross: Vec<(Tensor, Tensor)>,
    /// `[texts, keys]`
    mask: Option<Tensor>,
    /// How many consecutive rows read each text.
    rows_a_text: usize,
    /// Keys and values of what comes before the text, and of the text.
    written: Vec<KvCache>,
    /// How many tokens come before the text.
    lead: usize,
    tokens: usize,
}

impl State {
    /// Number of tokens that the decoder has read.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Forgets all but the first `tokens` that the decoder has read.
    ///
    /// # Errors
    /// As [`KvCache::truncate`], which never happens without a window.
    pub fn truncate(&mut self, tokens: usize) -> Result<()> {
        self.written.iter_mut().try_for_each(|cache| cache.truncate(self.lead + tokens))?;
        self.tokens = self.tokens.min(tokens);
        Ok(())
    }

    /// A state for each row of `masks` `[rows, keys]`, all of which read the one text of this state, each what its mask leaves of
    /// it. The text is not copied.
    ///
    /// # Errors
    /// A state of several texts, or one that has read tokens.
    pub fn with_masks(&self, masks: &Tensor) -> Result<Self> {
        let rows = masks.dim(0)?;
        if self.tokens > 0 || self.cross.iter().any(|(k, _)| k.dims()[0] != 1) {
            return Err(Error::setting("state", "masks are for one text, before anything is written"));
        }
        let spread = |x: &Tensor| {
            let mut shape = x.dims().to_vec();
            shape[0] = rows;
            Ok::<_, Error>(x.broadcast_as(shape)?)
        };
        let cross = self.cross.iter().map(|(k, v)| Ok((spread(k)?, spread(v)?))).collect::<Result<_>>()?;
        let written =
            self.written.iter().map(|cache| Ok(cache.pick(&vec![0; rows])?)).collect::<Result<_>>()?;
        Ok(Self { cross, mask: Some(masks.clone()), rows_a_text: 1, written, lead: self.lead, tokens: 0 })
    }

    /// A state of its own that holds these rows, in this order; one may be named more than once, as beams and
    /// continuations of one prompt need it. Texts are copied only where rows no longer read them evenly.
    ///
    /// # Errors
    /// When there is no such row.
    pub fn pick(&self, rows: &[usize]) -> Result<Self> {
        let texts: Vec<usize> = rows.iter().map(|row| row / self.rows_a_text.max(1)).collect();
        let held = self.cross.first().map_or(0, |(k, _)| k.dims()[0]);
        if let Some(row) = rows.iter().zip(&texts).find(|(_, text)| **text >= held).map(|(row, _)| row) {
            return Err(Error::setting("row", format!("{row}: the state has {}", held * self.rows_a_text)));
        }
        // Consecutive rows of one text go together where all texts have as many.
        let runs: Vec<&[usize]> = texts.chunk_by(|a, b| a == b).collect();
        let even = runs.iter().all(|run| run.len() == runs[0].len());
        let (texts, rows_a_text) = match even && !runs.is_empty() {
            true => (runs.iter().map(|run| run[0]).collect(), runs[0].len()),
            false => (texts, 1),
        };
        let (cross, mask) = match texts.iter().copied().eq(0..held) {
            true => (self.cross.clone(), self.mask.clone()),
            false => {
                let texts: Vec<u32> = texts.iter().map(|text| *text as u32).collect();
                let select =
                    |x: &Tensor| Ok::<_, Error>(x.index_select(&Tensor::new(&texts[..], x.device())?, 0)?);
                let cross =
                    self.cross.iter().map(|(k, v)| Ok((select(k)?, select(v)?))).collect::<Result<_>>()?;
                (cross, self.mask.as_ref().map(select).transpose()?)
            }
        };
        let written = self.written.iter().map(|cache| Ok(cache.pick(rows)?)).collect::<Result<_>>()?;
        Ok(Self { cross, mask, rows_a_text, written, lead: self.lead, tokens: self.tokens })
    }
}

impl Decoder {
    pub fn new(config: &T5Config, w: &mut Weights, embedding: Embedding) -> Result<Self> {
        let norm =
            |w: &mut Weights, name: &str| RmsNorm::new(w, name, config.d_model, config.layer_norm_epsilon);
        let block = |i: usize| {
            let name = format!("decoder.block.{i}.layer");
            Ok(Block {
                attention_norm: norm(w, &format!("{name}.0.layer_norm"))?,
                attention: Attention::new(config, w, &format!("{name}.0.SelfAttention"))?,
                cross_norm: norm(w, &format!("{name}.1.layer_norm"))?,
                cross: Attention::new(config, w, &format!("{name}.1.EncDecAttention"))?,
                feed_forward_norm: norm(w, &format!("{name}.2.layer_norm"))?,
                feed_forward: feed_forward(config, w, &format!("{name}.2.DenseReluDense"))?,
            })
        };
        let blocks = (0..config.decoder_layers()).map(block).collect::<Result<_>>()?;
        let table = "decoder.block.0.layer.0.SelfAttention.relative_attention_bias";
        let positions = Positions::new(config, w, table, false)?;
        let norm = norm(w, "decoder.final_layer_norm")?;
        let numbers = config.decoder_layers() * 2 * config.inner();
        let prefix = w.attached().map(|attached| attached.prefix(numbers)).transpose()?.flatten();
        Ok(Self { embedding, blocks, positions, norm, heads: config.num_heads, prefix })
    }

    /// Makes the keys and values of what was encoded, before any token is written.
    pub fn start(&self, encoded: &Encoded) -> Result<State> {
        let cross = self.blocks.iter().map(|block| block.cross.keys_values(&encoded.states));
        Ok(State {
            cross: cross.collect::<Result<_>>()?,
            mask: encoded.mask.clone(),
            rows_a_text: 1,
            written: (0..self.blocks.len())
                .map(|i| cache_after(self.before_the_text(i, encoded.states.dim(0)?)?.as_ref()))
                .collect::<Result<_>>()?,
            lead: self.lead(),
            tokens: 0,
        })
    }

    /// Keys and values that the tokens of `texts` texts find before them in block `i`.
    fn before_the_text(&self, i: usize, texts: usize) -> Result<Option<(Tensor, Tensor)>> {
        let Some(prefix) = &self.prefix else { return Ok(None) };
        let pairs = self.blocks.len();
        let all = prefix.reshape((prefix.dim(0)?, 2 * pairs, self.heads, ()))?;
        // PEFT means every other pair for the attention to what was encoded, and then takes that one away; having come to
        // the end it goes on from the beginning.
        let pair = 2 * i % pairs;
        let part = |number: usize| {
            let one = all.narrow(1, number, 1)?.squeeze(1)?.transpose(0, 1)?;
            one.contiguous()?.unsqueeze(0)?.repeat((texts, 1, 1, 1))
        };
        Ok(Some((part(2 * pair)?, part(2 * pair + 1)?)))
    }

    fn lead(&self) -> usize {
        self.prefix.as_ref().map_or(0, |prefix| prefix.dims()[0])
    }

    /// Reads whole texts `tokens` `[batch, tokens]`, a row for each that was encoded, and gives the states after the last norm,
    /// `[batch, tokens, d]`. For a backward pass it keeps what [`kernels::Activations`] says, a block at a time.
    pub fn forward_whole(
        &self,
        tokens: &Tensor,
        encoded: &Encoded,
        dropout: Option<Dropout>,
    ) -> Result<Tensor> {
        let (texts, n) = tokens.dims2()?;
        let read = encoded.states.dim(0)?;
        if texts != read {
            return Err(Error::setting("targets", format!("{texts} rows, but {read} texts were encoded")));
        }
        let bias = self.positions.bias(n, self.lead() + n)?;
        let mut h = drop_at(dropout, self.embedding.forward(tokens)?, 0)?;
        for (i, block) in self.blocks.iter().enumerate() {
            let (block, bias, mask) = (block.clone(), bias.clone(), encoded.mask.clone());
            let before = self.before_the_text(i, texts)?;
            let dropout = dropout.map(|dropout| dropout.part(2 + i as u64));
            h = kernels::checkpoint(&[&h, &encoded.states], move |read| {
                let (k, v) = block.cross.keys_values(&read[1])?;
                let crossing = Crossing { kv: (&k, &v), mask: mask.as_ref() };
                let mut cache = cache_after(before.as_ref())?;
                block.forward(&read[0], &bias, &mut cache, &crossing, dropout, None)
            })?;
        }
        drop_at(dropout, self.norm.forward(&h)?, 1)
    }

    /// Reads `tokens` `[batch, tokens]` after those of `state`, and gives the states after the last norm,
    /// `[batch, tokens, d]`.
    pub fn forward(&self, tokens: &Tensor, state: &mut State) -> Result<Tensor> {
        self.watched(tokens, state, None)
    }

    /// [`forward`](Self::forward), in which every block adds to `taken` what each token takes of each key of the encoded text:
    /// `[texts, heads, tokens, keys]`, as [`Attention::taken`] has it. Each row has a text of its own then.
    pub fn watched(
        &self,
        tokens: &Tensor,
        state: &mut State,
        mut taken: Option<&mut Vec<Tensor>>,
    ) -> Result<Tensor> {
        let (batch, new) = tokens.dims2()?;
        let texts = state.cross.first().map_or(0, |(k, _)| k.dims()[0]);
        if batch != texts * state.rows_a_text {
            let why = format!("{batch} rows, but the state is of {}", texts * state.rows_a_text);
            return Err(Error::setting("tokens", why));
        }
        let bias = self.positions.bias(new, state.lead + state.tokens + new)?;
        let mut h = self.embedding.forward(tokens)?;
        for ((block, (k, v)), cache) in self.blocks.iter().zip(&state.cross).zip(&mut state.written) {
            let crossing = Crossing { kv: (k, v), mask: state.mask.as_ref() };
            h = block.forward(&h, &bias, cache, &crossing, None, taken.as_deref_mut())?;
        }
        state.tokens += new;
        self.norm.forward(&h)
    }
}
