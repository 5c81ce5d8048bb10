//! A decoder-only transformer of the Llama family: RMSNorm before each layer, rotary positions,
//! grouped-query attention, SwiGLU.

use candle_core::{Device, Tensor};
use sidenote_kernels::{self as kernels, AttentionOptions, KvCache};

use super::cache::Cache;
use super::config::DecoderConfig;
use super::generate::{Autoregressive, left_padded};
use super::layers::{FeedForward, Linear, RmsNorm};
use super::weights::{Start, Weights};
use crate::error::Result;

/// The decoder's weights under Hugging Face's names (`model.layers.0.self_attn.q_proj.weight`).
pub struct Decoder {
    config: DecoderConfig,
    embedding: Tensor,
    blocks: Vec<Block>,
    norm: RmsNorm,
    head: Tensor,
    rotary: Rotary,
}

impl Decoder {
    /// Takes the weights out of `w`.
    pub fn new(config: &DecoderConfig, w: &mut Weights) -> Result<Self> {
        config.check()?;
        let d = config.hidden_size;
        let table = (config.vocab_size, d);
        // With a tied head, this scale makes the first logits about as wide as a normal variable.
        let start = Start::Normal((d as f32).powf(-0.5));
        let embedding = w.get("model.embed_tokens.weight", table, start.clone())?;
        let blocks = (0..config.num_hidden_layers)
            .map(|i| Block::new(config, w, &format!("model.layers.{i}")))
            .collect::<Result<_>>()?;
        let norm = RmsNorm::new(w, "model.norm", d, config.rms_norm_eps)?;
        let head = match config.tie_word_embeddings {
            true => embedding.clone(),
            false => w.get("lm_head.weight", table, start)?,
        };
        let rotary = Rotary::new(config, w.device())?;
        Ok(Self { config: config.clone(), embedding, blocks, norm, head, rotary })
    }

    /// What the decoder looks like.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// The device it runs on.
    pub fn device(&self) -> &Device {
        self.embedding.device()
    }

    /// Embeds tokens of any shape `[..]` to `[.., d]`.
    pub fn embed(&self, tokens: &Tensor) -> Result<Tensor> {
        Ok(kernels::embedding(&self.embedding, tokens)?)
    }

    /// The blocks, first to last.
    pub fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    /// Reads `tokens` `[batch, tokens]` after what the cache holds, and gives the hidden states
    /// before the output head, `[batch, tokens, d]`.
    pub fn forward(&self, tokens: &Tensor, cache: &mut Cache) -> Result<Tensor> {
        let places = self.places(cache, tokens.dim(1)?)?;
        let mut h = self.embed(tokens)?;
        for i in 0..self.blocks.len() {
            h = self.attend(i, &h, &places, cache)?;
            h = self.blocks[i].feed_forward(&h)?;
        }
        cache.advance(tokens.dim(1)?);
        self.finish(&h)
    }

    /// Where the next `tokens` tokens stand after what the cache holds.
    pub fn places(&self, cache: &Cache, tokens: usize) -> Result<Places> {
        let (cos, sin) = self.rotary.at(&cache.positions(tokens))?;
        Ok(Places { cos, sin, key_mask: cache.key_mask(tokens, self.device())? })
    }

    /// The attention half of block `i`, with its residual connection, at the places that [`places`](Self::places)
    /// gave for the tokens of `h`.
    pub fn attend(&self, i: usize, h: &Tensor, places: &Places, cache: &mut Cache) -> Result<Tensor> {
        self.blocks[i].attend(h, places, cache.layer(i))
    }

    /// The last norm.
    pub fn finish(&self, h: &Tensor) -> Result<Tensor> {
        self.norm.forward(h)
    }

    /// The output head, `[vocabulary, d]`.
    pub fn head(&self) -> &Tensor {
        &self.head
    }

    /// Hidden states `[batch, tokens, d]` to logits `[batch, tokens, vocabulary]`.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        let (batch, tokens, d) = hidden.dims3()?;
        let logits = hidden.reshape((batch * tokens, d))?.matmul(&self.head.t()?)?;
        Ok(logits.reshape((batch, tokens, self.config.vocab_size))?)
    }
}

impl Autoregressive for Decoder {
    type State = Cache;

    fn vocab_size(&self) -> usize {
        self.config.vocab_size
    }

    fn longest(&self) -> usize {
        self.config.max_position_embeddings
    }

    fn start(&self, prompts: &[&[u32]]) -> Result<(Cache, Tensor)> {
        let (tokens, padding) = left_padded(prompts, self.device())?;
        let mut cache = Cache::padded(&padding);
        let hidden = self.forward(&tokens, &mut cache)?;
        let last = hidden.narrow(1, hidden.dim(1)? - 1, 1)?.squeeze(1)?.contiguous()?;
        Ok((cache, last))
    }

    fn read(&self, tokens: &Tensor, cache: &mut Cache) -> Result<Tensor> {
        self.forward(tokens, cache)
    }

    fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        Ok(kernels::linear(hidden, &self.head)?)
    }

    fn pick(&self, cache: &Cache, rows: &[usize]) -> Result<Cache> {
        cache.pick(rows)
    }
}

/// Where tokens stand in their sequences.
pub struct Places {
    /// Cosines and sines of the rotary angles, `[tokens, dim / 2]`, or `[batch, tokens, dim / 2]`.
    cos: Tensor,
    sin: Tensor,
    /// 0 for padding, `[batch, keys]`.
    key_mask: Option<Tensor>,
}

/// One block: attention, then feed-forward.
pub struct Block {
    attention_norm: RmsNorm,
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    feed_forward_norm: RmsNorm,
    feed_forward: FeedForward,
    heads: usize,
    kv_heads: usize,
}

impl Block {
    fn new(config: &DecoderConfig, w: &mut Weights, name: &str) -> Result<Self> {
        let (d, eps) = (config.hidden_size, config.rms_norm_eps);
        let kv = config.num_key_value_heads * config.head_dim();
        let start = Start::Normal((d as f32).powf(-0.5));
        // Each block adds to the residual stream twice; this keeps the sum's size (GPT-2).
        let depth = (2.0 * config.num_hidden_layers as f32).sqrt();
        let out = Start::Normal((d as f32).powf(-0.5) / depth);
        let down = Start::Normal((config.intermediate_size as f32).powf(-0.5) / depth);
        Ok(Self {
            attention_norm: RmsNorm::new(w, &format!("{name}.input_layernorm"), d, eps)?,
            q: Linear::new(w, &format!("{name}.self_attn.q_proj"), d, d, start.clone())?,
            k: Linear::new(w, &format!("{name}.self_attn.k_proj"), d, kv, start.clone())?,
            v: Linear::new(w, &format!("{name}.self_attn.v_proj"), d, kv, start)?,
            o: Linear::new(w, &format!("{name}.self_attn.o_proj"), d, d, out)?,
            feed_forward_norm: RmsNorm::new(w, &format!("{name}.post_attention_layernorm"), d, eps)?,
            feed_forward: FeedForward::new(w, &format!("{name}.mlp"), d, config.intermediate_size, down)?,
            heads: config.num_attention_heads,
            kv_heads: config.num_key_value_heads,
        })
    }

    fn attend(&self, h: &Tensor, places: &Places, cache: &mut KvCache) -> Result<Tensor> {
        let Places { cos, sin, key_mask } = places;
        let x = self.attention_norm.forward(h)?;
        let q = kernels::rotary_heads(&self.q.forward(&x)?, self.heads, cos, sin)?;
        let k = kernels::rotary_heads(&self.k.forward(&x)?, self.kv_heads, cos, sin)?;
        let v = kernels::split_heads(&self.v.forward(&x)?, self.kv_heads)?;
        let (k, v) = cache.extend(&k, &v)?;
        let scale = (q.dim(3)? as f32).powf(-0.5);
        let options =
            AttentionOptions { causal: true, key_mask: key_mask.as_ref(), ..AttentionOptions::scaled(scale) };
        let out = kernels::attention(&q, &k, &v, &options)?;
        self.o.forward_add(&kernels::merge_heads(&out)?, h)
    }

    /// The feed-forward half, with its residual connection.
    pub fn feed_forward(&self, h: &Tensor) -> Result<Tensor> {
        self.feed_forward.forward_add(&self.feed_forward_norm.forward(h)?, h)
    }
}

/// Angles of the rotary embedding (Su et al. 2021).
struct Rotary {
    frequencies: Vec<f32>,
    device: Device,
}

impl Rotary {
    fn new(config: &DecoderConfig, device: &Device) -> Result<Self> {
        let dim = config.head_dim();
        let frequencies =
            (0..dim / 2).map(|i| config.rope_theta.powf(-2.0 * i as f32 / dim as f32)).collect();
        Ok(Self { frequencies, device: device.clone() })
    }

    /// Cosines and sines of positions, `[tokens, dim / 2]` for one list, `[rows, tokens, dim / 2]` for more.
    fn at(&self, positions: &[Vec<u32>]) -> Result<(Tensor, Tensor)> {
        let (tokens, half) = (positions.first().map_or(0, Vec::len), self.frequencies.len());
        let angles: Vec<f32> = positions
            .iter()
            .flatten()
            .flat_map(|position| self.frequencies.iter().map(move |f| *position as f32 * f))
            .collect();
        let angles = match positions.len() {
            1 => Tensor::from_vec(angles, (tokens, half), &self.device)?,
            rows => Tensor::from_vec(angles, (rows, tokens, half), &self.device)?,
        };
        Ok((angles.cos()?, angles.sin()?))
    }
}
