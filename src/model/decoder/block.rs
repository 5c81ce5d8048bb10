//! One block: attention, then feed-forward, each before its residual connection.

use candle_core::Tensor;
use sidenote_kernels::{self as kernels, AttentionOptions, KvCache};

use super::config::DecoderConfig;
use super::places::Places;
use crate::error::Result;
use crate::model::layers::{FeedForward, Linear, Norm, split_heads};
use crate::model::weights::{Start, Weights};

/// One block of a decoder.
#[derive(Clone)]
pub struct Block {
    attention: Attention,
    feed_forward_norm: Norm,
    feed_forward: FeedForward,
    after_feed_forward: Option<Norm>,
}

#[derive(Clone)]
struct Attention {
    norm: Norm,
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    /// Norms of each head's queries and keys.
    head_norms: Option<(Norm, Norm)>,
    after: Option<Norm>,
    heads: usize,
    kv_heads: usize,
    scale: f32,
    window: Option<usize>,
}

impl Block {
    /// Takes the weights of block `i` out of `w`.
    pub(super) fn new(config: &DecoderConfig, w: &mut Weights, i: usize) -> Result<Self> {
        let names = config.family.names();
        let (d, inner) = (config.hidden_size, config.intermediate_size);
        let start = Start::Normal((d as f32).powf(-0.5));
        let down = Start::Normal((inner as f32).powf(-0.5) / depth(config));
        let norm = |w: &mut Weights, name| Norm::new(w, names.of_block(i, name), d, config.norm);
        let bias = config.feed_forward_bias;
        let attention = Attention::new(config, w, i)?;
        let feed_forward_norm = norm(w, names.feed_forward_norm)?;
        let gate = match config.gated {
            true => {
                let place = names.of_block(i, names.gate);
                Some(Linear::with_bias(w, place, d, inner, start.clone(), bias)?)
            }
            false => None,
        };
        Ok(Self {
            attention,
            feed_forward_norm,
            feed_forward: FeedForward {
                gate,
                up: Linear::with_bias(w, names.of_block(i, names.up), d, inner, start, bias)?,
                down: Linear::with_bias(w, names.of_block(i, names.down), inner, d, down, bias)?,
                activation: config.activation,
            },
            after_feed_forward: match config.post_norms {
                true => Some(norm(w, names.after_feed_forward_norm)?),
                false => None,
            },
        })
    }

    /// The attention half, with its residual connection; `h` is `[batch, tokens, d]`.
    pub(super) fn attend(&self, h: &Tensor, places: &Places, cache: &mut KvCache) -> Result<Tensor> {
        self.attention.forward(h, places, cache)
    }

    /// What the block makes of whole sequences `h` `[batch, tokens, d]`, by themselves: the same shape.
    pub(super) fn forward(&self, h: &Tensor, places: &Places) -> Result<Tensor> {
        self.feed_forward(&self.attend_alone(h, places)?)
    }

    /// The attention half for whole sequences, by themselves.
    pub(in crate::model) fn attend_alone(&self, h: &Tensor, places: &Places) -> Result<Tensor> {
        self.attend(h, places, &mut KvCache::within(self.attention.window))
    }

    /// What the feed-forward layer reads of `h`; `[batch, tokens, d]` to the same shape.
    pub(super) fn feed_forward_input(&self, h: &Tensor) -> Result<Tensor> {
        self.feed_forward_norm.forward(h)
    }

    /// The feed-forward half, with its residual connection; `[batch, tokens, d]` to the same shape.
    pub fn feed_forward(&self, h: &Tensor) -> Result<Tensor> {
        let x = self.feed_forward_input(h)?;
        match &self.after_feed_forward {
            None => self.feed_forward.forward_add(&x, h),
            Some(norm) => Ok((h + norm.forward(&self.feed_forward.forward(&x)?)?)?),
        }
    }
}

impl Attention {
    fn new(config: &DecoderConfig, w: &mut Weights, i: usize) -> Result<Self> {
        let names = config.family.names();
        let (d, dim) = (config.hidden_size, config.head_dim);
        let (heads, kv_heads) = (config.num_attention_heads, config.num_key_value_heads);
        let start = Start::Normal((d as f32).powf(-0.5));
        let out = Start::Normal(((heads * dim) as f32).powf(-0.5) / depth(config));
        let norm = |w: &mut Weights, name, dim| Norm::new(w, names.of_block(i, name), dim, config.norm);
        let [q, k, v] = names.qkv(i, heads);
        let bias = config.qkv_bias;
        let o = names.of_block(i, names.o);
        Ok(Self {
            norm: norm(w, names.attention_norm, d)?,
            q: Linear::with_bias(w, q, d, heads * dim, start.clone(), bias)?,
            k: Linear::with_bias(w, k, d, kv_heads * dim, start.clone(), bias)?,
            v: Linear::with_bias(w, v, d, kv_heads * dim, start, bias)?,
            o: Linear::with_bias(w, o, heads * dim, d, out, config.out_bias)?,
            head_norms: match config.qk_norm {
                true => Some((norm(w, names.q_norm, dim)?, norm(w, names.k_norm, dim)?)),
                false => None,
            },
            after: match config.post_norms {
                true => Some(norm(w, names.after_attention_norm, d)?),
                false => None,
            },
            heads,
            kv_heads,
            scale: config.attention_scale.unwrap_or((dim as f64).powf(-0.5)) as f32,
            window: config.window_of(i),
        })
    }

    fn forward(&self, h: &Tensor, places: &Places, cache: &mut KvCache) -> Result<Tensor> {
        let x = self.norm.forward(h)?;
        let angles = places.angles.as_ref().map(|angles| &angles[usize::from(self.window.is_some())]);
        let layers = [&self.q, &self.k, &self.v];
        let (q, k, v) = if self.head_norms.is_none() && layers.iter().all(|layer| layer.plain().is_some()) {
            let [q, k, v] = layers;
            let (heads, kv_heads) = (self.heads, self.kv_heads);
            (
                q.to_heads(&x, heads, angles)?,
                k.to_heads(&x, kv_heads, angles)?,
                v.to_heads(&x, kv_heads, None)?,
            )
        } else {
            let [mut q, mut k, v] = Linear::forward_each(layers, &x)?;
            if let Some((q_norm, k_norm)) = &self.head_norms {
                (q, k) = (q_norm.forward_heads(&q)?, k_norm.forward_heads(&k)?);
            }
            let (q, k) = (split_heads(&q, self.heads, angles)?, split_heads(&k, self.kv_heads, angles)?);
            (q, k, split_heads(&v, self.kv_heads, None)?)
        };
        let (k, v) = cache.extend(&k, &v)?;
        // A cache with a window holds only the last keys.
        let key_mask = match &places.key_mask {
            Some(mask) => Some(mask.narrow(1, mask.dim(1)? - k.dim(2)?, k.dim(2)?)?.contiguous()?),
            None => None,
        };
        let options = AttentionOptions {
            causal: true,
            window: self.window,
            bias: places.bias.as_ref(),
            key_mask: key_mask.as_ref(),
            starts: places.starts.as_ref(),
            ..AttentionOptions::scaled(self.scale)
        };
        if let Some(taken) = &places.taken {
            taken.note(&q, &k, &v, &options)?;
        }
        let out = kernels::attention(&q, &k, &v, &options)?;
        match &self.after {
            None => self.o.add_heads(&out, h),
            Some(norm) => Ok((h + norm.forward(&self.o.forward(&kernels::merge_heads(&out)?)?)?)?),
        }
    }
}

/// Each block adds to the residual stream twice; first values divided by this keep the sum's size (GPT-2).
fn depth(config: &DecoderConfig) -> f32 {
    (2.0 * config.num_hidden_layers as f32).sqrt()
}
