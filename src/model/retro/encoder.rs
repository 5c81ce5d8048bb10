//! The neighbour encoder: a small bidirectional transformer over each neighbour, conditioned on
//! the chunk that retrieved it (RETRO, section 2.3 and algorithm 1).

use candle_core::Tensor;
use sidenote_kernels::{self as kernels, Activations, AttentionOptions};

use crate::error::Result;
use crate::model::decoder::{Decoder, DecoderConfig};
use crate::model::layers::{FeedForward, Linear, RelativeBias, RmsNorm};
use crate::model::retro::RetroConfig;
use crate::model::retro::copy::Starts;
use crate::model::weights::Weights;

/// Turns neighbours' tokens into what the decoder's cross-attention reads.
#[derive(Clone)]
pub struct NeighbourEncoder {
    embedding_norm: RmsNorm,
    input: Linear,
    layers: Vec<Layer>,
    norm: RmsNorm,
}

#[derive(Clone)]
struct Layer {
    attention: Attention,
    cross: Option<Attention>,
    feed_forward_norm: RmsNorm,
    feed_forward: FeedForward,
}

/// Attention with a learned bias for each distance.
#[derive(Clone)]
struct Attention {
    norm: RmsNorm,
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    bias: RelativeBias,
    heads: usize,
}

impl NeighbourEncoder {
    pub fn new(decoder: &DecoderConfig, config: &RetroConfig, w: &mut Weights) -> Result<Self> {
        let (d, d_enc, eps) = (decoder.hidden_size, config.encoder_hidden_size, decoder.norm.eps as f32);
        let (m, r) = (config.chunk_size, config.neighbour_tokens());
        let starts = Starts::new(decoder, config);
        let layer = |i: usize, w: &mut Weights| {
            let name = format!("retro.encoder.layers.{i}");
            let attention = Attention::new(
                w,
                &format!("{name}.self_attn"),
                (d_enc, d_enc),
                config.encoder_heads,
                2 * r - 1,
                eps,
                starts.encoder_attention(i),
            )?;
            let cross = match config.encoder_cross_layers.contains(&(i + 1)) {
                true => Some(Attention::new(
                    w,
                    &format!("{name}.cross_attn"),
                    (d_enc, d),
                    config.encoder_heads,
                    m + r - 1,
                    eps,
                    starts.encoder_cross_attention(),
                )?),
                false => None,
            };
            let down = starts.encoder_down();
            Ok(Layer {
                attention,
                cross,
                feed_forward_norm: RmsNorm::new(w, &format!("{name}.post_attention_layernorm"), d_enc, eps)?,
                feed_forward: FeedForward::new(
                    w,
                    &format!("{name}.mlp"),
                    d_enc,
                    config.encoder_intermediate_size,
                    down,
                )?,
            })
        };
        Ok(Self {
            embedding_norm: RmsNorm::new(w, "retro.encoder.embedding_norm", d, eps)?,
            input: Linear::new(w, "retro.encoder.input", d, d_enc, starts.encoder_input())?,
            layers: (0..config.encoder_layers).map(|i| layer(i, w)).collect::<Result<_>>()?,
            norm: RmsNorm::new(w, "retro.encoder.norm", d_enc, eps)?,
        })
    }

    /// Encodes `tokens` `[chunks, neighbours, r]`, of which `mask` says which are there, for
    /// chunks whose states at the first retro layer are `chunk` `[chunks, m, d]`. Gives
    /// `[chunks, neighbours * r, d']`.
    pub fn forward(&self, base: &Decoder, tokens: &Tensor, mask: &Tensor, chunk: &Tensor) -> Result<Tensor> {
        let (chunks, k, r) = tokens.dims3()?;
        let rows = chunks * k;
        let mask = mask.reshape((rows, r))?;
        let mut x =
            self.input.forward(&self.embedding_norm.forward(&base.embed(&tokens.reshape((rows, r))?)?)?)?;
        for part in Activations::current().parts(0..self.layers.len()) {
            let (layers, mask) = (self.layers[part].to_vec(), mask.clone());
            x = kernels::checkpoint(&[&x, chunk], move |read| {
                layers.iter().try_fold(read[0].clone(), |x, layer| layer.forward(&x, &mask, &read[1]))
            })?;
        }
        let d = x.dim(2)?;
        Ok(self.norm.forward(&x)?.reshape((chunks, k * r, d))?)
    }
}

impl Layer {
    /// Neighbours `x` `[chunks * neighbours, r, d']`, of which `mask` says which tokens are there, after those of each chunk have read
    /// its states `chunk` `[chunks, m, d]`.
    fn forward(&self, x: &Tensor, mask: &Tensor, chunk: &Tensor) -> Result<Tensor> {
        let ((rows, r, d), (chunks, m, _)) = (x.dims3()?, chunk.dims3()?);
        let a = &self.attention;
        let normed = a.norm.forward(x)?;
        let distances = a.bias.columns(r, r, |i, j| j + r - 1 - i)?;
        let mut x = a.forward(&normed, &normed, &distances, Some(mask), x)?;
        if let Some(cross) = &self.cross {
            // All neighbours of a chunk are queries over the same keys; each has its own
            // positions, d(i', i) = i' - i.
            let all = rows / chunks * r;
            let distances = cross.bias.columns(all, m, |i, j| i % r + m - 1 - j)?;
            let wide = x.reshape((chunks, all, d))?;
            let queries = cross.norm.forward(&wide)?;
            x = cross.forward(&queries, chunk, &distances, None, &wide)?.reshape((rows, r, d))?;
        }
        self.feed_forward.forward_add(&self.feed_forward_norm.forward(&x)?, &x)
    }
}

impl Attention {
    fn new(
        w: &mut Weights,
        name: &str,
        (query_dim, key_dim): (usize, usize),
        heads: usize,
        distances: usize,
        eps: f32,
        starts: super::copy::AttentionStarts,
    ) -> Result<Self> {
        Ok(Self {
            norm: RmsNorm::new(w, &format!("{name}.norm"), query_dim, eps)?,
            q: Linear::new(w, &format!("{name}.q_proj"), query_dim, query_dim, starts.q)?,
            k: Linear::new(w, &format!("{name}.k_proj"), key_dim, query_dim, starts.k)?,
            v: Linear::new(w, &format!("{name}.v_proj"), key_dim, query_dim, starts.v)?,
            o: Linear::new(w, &format!("{name}.o_proj"), query_dim, query_dim, starts.o)?,
            bias: RelativeBias::new(w, &format!("{name}.relative_bias"), heads, distances, starts.bias)?,
            heads,
        })
    }

    /// `residual +` what `queries` read from `keys`.
    fn forward(
        &self,
        queries: &Tensor,
        keys: &Tensor,
        distances: &Tensor,
        mask: Option<&Tensor>,
        residual: &Tensor,
    ) -> Result<Tensor> {
        let q = self.q.to_heads(queries, self.heads, None)?;
        let k = self.k.to_heads(keys, self.heads, None)?;
        let v = self.v.to_heads(keys, self.heads, None)?;
        let scale = (q.dim(3)? as f32).powf(-0.5);
        let relative = self.bias.over(distances);
        let options = AttentionOptions { relative, key_mask: mask, ..AttentionOptions::scaled(scale) };
        self.o.add_heads(&kernels::attention(&q, &k, &v, &options)?, residual)
    }
}
