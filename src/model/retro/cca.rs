//! Chunked cross-attention: the decoder's tokens read the neighbours of the chunk before them
//! (RETRO, section 2.4).

use candle_core::Tensor;
use sidenote_kernels::{self as kernels, AttentionOptions};

use crate::error::Result;
use crate::model::decoder::DecoderConfig;
use crate::model::layers::{Linear, RelativeBias, RmsNorm};
use crate::model::retro::RetroConfig;
use crate::model::retro::copy::Starts;
use crate::model::weights::{Start, Weights};

/// One layer of chunked cross-attention.
#[derive(Clone)]
pub struct ChunkedCrossAttention {
    norm: RmsNorm,
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    bias: RelativeBias,
    sink: Option<Tensor>,
    gate: Option<Tensor>,
    chunk_size: usize,
    heads: usize,
}

/// The encoded neighbours of chunks, as keys and values of one layer.
#[derive(Clone)]
pub struct KeysValues {
    keys: Tensor,
    values: Tensor,
    mask: Tensor,
    neighbours: usize,
}

impl ChunkedCrossAttention {
    pub fn new(decoder: &DecoderConfig, config: &RetroConfig, w: &mut Weights, name: &str) -> Result<Self> {
        let (d, d_enc) = (decoder.hidden_size, config.encoder_hidden_size);
        let inner = config.heads * config.head_dim;
        let distances = config.chunk_size + config.neighbour_tokens() - 1;
        let starts = Starts::new(decoder, config);
        let attention = starts.cross_attention();
        Ok(Self {
            norm: RmsNorm::new(w, &format!("{name}.norm"), d, decoder.norm.eps as f32)?,
            q: Linear::new(w, &format!("{name}.q_proj"), d, inner, attention.q)?,
            k: Linear::new(w, &format!("{name}.k_proj"), d_enc, inner, attention.k)?,
            v: Linear::new(w, &format!("{name}.v_proj"), d_enc, inner, attention.v)?,
            o: Linear::new(w, &format!("{name}.o_proj"), inner, d, attention.o)?,
            bias: RelativeBias::new(
                w,
                &format!("{name}.relative_bias"),
                config.heads,
                distances,
                attention.bias,
            )?,
            sink: match starts.sink() {
                Some(start) => Some(w.get(&format!("{name}.sink"), config.heads, start)?),
                None => None,
            },
            gate: match config.gate {
                true => Some(w.get(&format!("{name}.gate"), 1, Start::Constant(0.0))?),
                false => None,
            },
            chunk_size: config.chunk_size,
            heads: config.heads,
        })
    }

    /// Keys and values of `encoded` `[chunks, neighbours * r, d']`, masked by `mask`
    /// `[chunks, neighbours, r]`.
    pub fn keys_values(&self, encoded: &Tensor, mask: &Tensor) -> Result<KeysValues> {
        let (chunks, neighbours, r) = mask.dims3()?;
        Ok(KeysValues {
            keys: self.k.to_heads(encoded, self.heads, None)?,
            values: self.v.to_heads(encoded, self.heads, None)?,
            mask: mask.reshape((chunks, neighbours * r))?,
            neighbours,
        })
    }

    /// `h` `[batch, tokens, d]` with what its tokens read from the neighbours of the chunk before them, one entry
    /// of `neighbours` for each sequence's first complete chunks. Nothing is added to tokens that read none.
    pub fn forward(&self, h: &Tensor, neighbours: &KeysValues) -> Result<Tensor> {
        let columns = self.columns(0, self.chunk_size, neighbours)?;
        let q = self.q.to_heads(&self.norm.forward(h)?, self.heads, None)?;
        let KeysValues { keys, values, .. } = neighbours;
        let options = self.options(&columns, neighbours)?;
        let out = kernels::chunked_cross_attention(&q, keys, values, self.chunk_size, &options)?;
        match &self.gate {
            None => self.o.add_heads(&out, h),
            Some(_) => Ok((h + self.gated(&out)?)?),
        }
    }

    /// What is added for attended heads `[batch, heads, tokens, head_dim]`.
    fn gated(&self, out: &Tensor) -> Result<Tensor> {
        let out = self.o.forward(&kernels::merge_heads(out)?)?;
        match &self.gate {
            None => Ok(out),
            Some(gate) => Ok(out.broadcast_mul(&gate.tanh()?)?),
        }
    }

    /// Which distance each of the queries from `first` on has to each key.
    fn columns(&self, first: usize, queries: usize, neighbours: &KeysValues) -> Result<Tensor> {
        let keys = neighbours.keys.dim(2)?;
        let r = keys / neighbours.neighbours;
        // Positions are those within a neighbour: d(i, i') = i - i' + r - 1 here, the paper's
        // i - i' + m - 1 moved so that the table starts at 0.
        self.bias.columns(queries, keys, |i, j| first + i + r - 1 - j % r)
    }

    fn options<'a>(
        &'a self,
        columns: &'a Tensor,
        neighbours: &'a KeysValues,
    ) -> Result<AttentionOptions<'a>> {
        Ok(AttentionOptions {
            relative: self.bias.over(columns),
            key_mask: Some(&neighbours.mask),
            sink: self.sink.as_ref(),
            ..AttentionOptions::scaled((neighbours.keys.dim(3)? as f32).powf(-0.5))
        })
    }

    /// What is added to `h` `[chunks, queries, d]`, whose first row is query number `first` of its
    /// chunk (0 is the last token of the chunk that retrieved). Exactly zero where a chunk has no
    /// neighbours.
    pub fn attend(&self, h: &Tensor, first: usize, neighbours: &KeysValues) -> Result<Tensor> {
        let queries = h.dim(1)?;
        let columns = self.columns(first, queries, neighbours)?;
        let q = self.q.to_heads(&self.norm.forward(h)?, self.heads, None)?;
        let options = self.options(&columns, neighbours)?;
        debug_assert!(first + queries <= self.chunk_size);
        let out = kernels::attention(&q, &neighbours.keys, &neighbours.values, &options)?;
        self.gated(&out)
    }

    /// What queries are made from, `[.., d]`, and the keys and values of `encoded`, `[.., heads * head_dim]`.
    pub fn states_keys_values(&self, h: &Tensor, encoded: &Tensor) -> Result<[Tensor; 3]> {
        Ok([self.norm.forward(h)?, self.k.forward(encoded)?, self.v.forward(encoded)?])
    }
}
