//! How RETRO's layers start: at random as in the paper, or set so that they copy.
//!
//! The copy initialisation changes nothing about the layers, only their first values:
//!
//! - The neighbour encoder's residual stream has two halves. The input projection puts a token's
//!   embedding into the first. In the first layer, heads whose relative bias points 1, 2 or 3
//!   tokens back write a random projection of those tokens' embeddings into the second. Everything
//!   else starts by adding nothing.
//! - The cross-attention's keys read the second half (the tokens *before* a neighbour's token),
//!   its values the first (the token itself).
//! - Its queries are fitted to data by least squares so that a state of the decoder matches the
//!   key of the token that came next, and its output is what tells values apart: `train::copy` does it.
//! - A sink, a key of learned height whose value is zero, takes the attention when nothing
//!   matches.
//!
//! So the model starts as an induction head (Olsson et al. 2022) over its neighbours: it looks up
//! where the last tokens occur in them and proposes what came next there. Training does the rest.

use candle_core::Tensor;

use super::{Initialisation, Retro, RetroConfig};
use crate::error::{Error, Result};
use crate::model::cache::Cache;
use crate::model::decoder::DecoderConfig;
use crate::model::normal::normal;
use crate::model::weights::Start;

/// Height of a relative bias that makes a head look at one distance only.
const POINT: f32 = 10.0;
/// How far back the copying heads look; nearer tokens get more heads.
const OFFSETS: [usize; 3] = [1, 2, 3];
/// Key positions before this one have fewer tokens before them than the heads look back.
const FIRST_WHOLE_KEY: usize = OFFSETS.len();

/// First values of an attention's matrices.
pub struct AttentionStarts {
    /// Queries, `[inner, in]`.
    pub q: Start,
    /// Keys, `[inner, in]`.
    pub k: Start,
    /// Values, `[inner, in]`.
    pub v: Start,
    /// Output, `[out, inner]`.
    pub o: Start,
    /// Relative bias, `[heads, distances]`.
    pub bias: Start,
}

/// First values of everything that RETRO adds.
pub struct Starts<'a> {
    decoder: &'a DecoderConfig,
    config: &'a RetroConfig,
}

impl<'a> Starts<'a> {
    /// Of shapes that [`RetroConfig::check`] has let pass.
    pub fn new(decoder: &'a DecoderConfig, config: &'a RetroConfig) -> Self {
        Self { decoder, config }
    }

    fn copies(&self) -> bool {
        self.config.initialisation == Initialisation::Copy
    }

    fn encoder_head_dim(&self) -> usize {
        self.config.encoder_hidden_size / self.config.encoder_heads
    }

    /// Embedding to encoder stream, `[d', d]`.
    pub fn encoder_input(&self) -> Start {
        let (d, d_enc) = (self.decoder.hidden_size, self.config.encoder_hidden_size);
        match self.copies() {
            true => Start::Values(matrix(d_enc, d, |i, j| (i == j) as u8 as f32)),
            false => Start::Normal((d as f32).powf(-0.5)),
        }
    }

    /// Self-attention of encoder layer `layer`, from 0.
    pub fn encoder_attention(&self, layer: usize) -> AttentionStarts {
        let (d, d_enc) = (self.decoder.hidden_size, self.config.encoder_hidden_size);
        let random = Start::Normal((d_enc as f32).powf(-0.5));
        if !self.copies() {
            return AttentionStarts::random(d_enc, d_enc, d_enc, self.residual_scale());
        }
        if layer > 0 {
            return AttentionStarts {
                o: Start::Constant(0.0),
                ..AttentionStarts::random(d_enc, d_enc, d_enc, 1.0)
            };
        }
        let head_dim = self.encoder_head_dim();
        let copying = (d_enc - d) / head_dim;
        let r = self.config.neighbour_tokens();
        let mut bias = vec![0.0; self.config.encoder_heads * (2 * r - 1)];
        for head in 0..copying {
            // Of four heads two look one token back, one two, one three.
            let back = OFFSETS[[0, 1, 0, 2][head % 4]];
            bias[head * (2 * r - 1) + (r - 1).saturating_sub(back)] = POINT;
        }
        let sketch = normal(0, "copy sketch", copying * head_dim * d, (d as f32).powf(-0.5));
        AttentionStarts {
            q: Start::Constant(0.0),
            k: random,
            v: Start::Values(matrix(d_enc, d_enc, |i, j| {
                if i < copying * head_dim && j < d { sketch[i * d + j] } else { 0.0 }
            })),
            o: Start::Values(matrix(d_enc, d_enc, |i, j| (i >= d && i - d == j) as u8 as f32)),
            bias: Start::Values(bias),
        }
    }

    /// The encoder's attention to the decoder's chunk.
    pub fn encoder_cross_attention(&self) -> AttentionStarts {
        let (d, d_enc) = (self.decoder.hidden_size, self.config.encoder_hidden_size);
        let random = AttentionStarts::random(d_enc, d, d_enc, self.residual_scale());
        match self.copies() {
            true => AttentionStarts { o: Start::Constant(0.0), ..random },
            false => random,
        }
    }

    /// The last matrix of the encoder's feed-forward layers.
    pub fn encoder_down(&self) -> Start {
        match self.copies() {
            true => Start::Constant(0.0),
            false => {
                let inner = self.config.encoder_intermediate_size as f32;
                Start::Normal(inner.powf(-0.5) * self.residual_scale())
            }
        }
    }

    /// Chunked cross-attention.
    pub fn cross_attention(&self) -> AttentionStarts {
        let (d, d_enc) = (self.decoder.hidden_size, self.config.encoder_hidden_size);
        let inner = self.config.heads * self.config.head_dim;
        let depth = (2.0 * self.decoder.num_hidden_layers as f32).powf(-0.5);
        let random = AttentionStarts::random(d, d_enc, inner, depth);
        if !self.copies() {
            return random;
        }
        let width = d_enc - d;
        let per_head = self.config.head_dim;
        let mix = normal(0, "copy keys", inner * width, (per_head as f32).powf(-0.5));
        AttentionStarts {
            q: random.q,
            k: Start::Values(matrix(inner, d_enc, |i, j| match j.checked_sub(d) {
                None => 0.0,
                // A head as wide as the sketch reads it as it is, another a random projection.
                Some(j) if per_head == width => (i % per_head == j) as u8 as f32,
                Some(j) => mix[i * width + j],
            })),
            v: Start::Values(matrix(inner, d_enc, |i, j| (i == j && j < d) as u8 as f32)),
            o: Start::Values(matrix(d, inner, |i, j| (i == j) as u8 as f32)),
            bias: Start::Constant(0.0),
        }
    }

    /// The sink's first height, where there is one.
    pub fn sink(&self) -> Option<Start> {
        self.copies().then_some(Start::Constant(0.0))
    }

    fn residual_scale(&self) -> f32 {
        (3.0 * self.config.encoder_layers as f32).powf(-0.5)
    }
}

impl AttentionStarts {
    fn random(queries: usize, keys: usize, inner: usize, out_scale: f32) -> Self {
        Self {
            q: Start::Normal((queries as f32).powf(-0.5)),
            k: Start::Normal((keys as f32).powf(-0.5)),
            v: Start::Normal((keys as f32).powf(-0.5)),
            o: Start::Normal((inner as f32).powf(-0.5) * out_scale),
            bias: Start::Constant(0.0),
        }
    }
}

fn matrix(rows: usize, columns: usize, value: impl Fn(usize, usize) -> f32) -> Vec<f32> {
    let value = &value;
    (0..rows).flat_map(|i| (0..columns).map(move |j| value(i, j))).collect()
}

/// For one retro layer, rows that belong together.
pub struct MatchingPairs {
    /// Normed states of the decoder, what the queries are made from, `[pairs, d]`.
    pub states: Tensor,
    /// Keys of the tokens that came next, `[pairs, heads * head_dim]`.
    pub keys: Tensor,
    /// Their values, `[pairs, heads * head_dim]`.
    pub values: Tensor,
    /// Root mean square of each of the decoder's states before the norm, `[states]`.
    pub sizes: Vec<f32>,
}

impl Retro {
    /// Reads `tokens` `[batch, tokens]` both as text and as a neighbour of itself, and pairs each
    /// state with the key of the next token, at every retro layer.
    pub fn matching_pairs(&self, tokens: &Tensor) -> Result<Vec<MatchingPairs>> {
        let (batch, n) = tokens.dims2()?;
        let (m, r) = (self.config.chunk_size, self.config.neighbour_tokens());
        let (d, windows) = (self.base.config().hidden_size, n / r);
        let rows = batch * windows;
        if rows == 0 {
            return Err(Error::setting(
                "training.chunks",
                "the copy initialisation needs sequences of 2 chunks",
            ));
        }
        let whole = tokens.narrow(1, 0, windows * r)?.contiguous()?;
        let neighbours = whole.reshape((rows, 1, r))?;
        let device = tokens.device();
        let mask = Tensor::ones((rows, 1, r), candle_core::DType::U8, device)?;
        let nothing = Tensor::zeros((rows, m, d), candle_core::DType::F32, device)?;
        let encoded = self.encoder.forward(&self.base, &neighbours, &mask, &nothing)?;
        let mut pairs = Vec::new();
        let mut cache = Cache::default();
        let places = self.base.places(&cache, windows * r)?;
        let mut h = self.base.begin(&whole, &places)?;
        for (i, block) in self.base.blocks().iter().enumerate() {
            h = self.base.attend(i, &h, &places, &mut cache)?;
            if let Some((_, cross)) = self.cross_at(i) {
                let [states, keys, values] = cross.states_keys_values(&h.reshape((rows, r, d))?, &encoded)?;
                let (first, count) = (FIRST_WHOLE_KEY, r - FIRST_WHOLE_KEY);
                let flat = |x: &Tensor, from: usize| -> Result<Tensor> {
                    Ok(x.narrow(1, from, count)?.contiguous()?.flatten(0, 1)?.detach())
                };
                pairs.push(MatchingPairs {
                    states: flat(&states, first - 1)?,
                    keys: flat(&keys, first)?,
                    values: flat(&values, first)?,
                    sizes: h.flatten_to(1)?.sqr()?.mean(1)?.sqrt()?.to_vec1()?,
                });
            }
            h = block.feed_forward(&h)?;
        }
        Ok(pairs)
    }
}
