//! RETRO: a decoder that reads retrieved neighbours through chunked cross-attention (Borgeaud et
//! al. 2022, "Improving language models by retrieving from trillions of tokens", section 2).
//!
//! The tokens of a sequence are cut into chunks of m. Chunk u, once complete, is given k
//! neighbours, each r = 2m tokens: the nearest chunk N and its continuation F. They influence the
//! positions from the last token of chunk u (which predicts the first token of chunk u + 1) to
//! the last but one of chunk u + 1, and none before: that shift by m - 1 keeps the model causal.
//!
//! Departures from the paper: positions are rotary in the decoder and learned biases for each
//! distance elsewhere (the paper: Transformer-XL's); the encoder reads the decoder's embedding
//! table (Table 13: .823 against .822 bits per byte); masks, which the paper does not give, make
//! an absent or padded neighbour contribute exactly nothing.

use candle_core::{DType, Tensor};
use sidenote_kernels::{self as kernels, Activations};

use super::cache::Cache;
use super::decoder::Decoder;
use super::weights::Weights;
use crate::error::{Error, Result};
use cca::{ChunkedCrossAttention, KeysValues};
pub use config::{Initialisation, RetroConfig};
use encoder::NeighbourEncoder;

mod cca;
mod config;
pub mod copy;
mod encoder;
pub mod reading;

/// Neighbours of the complete chunks of a batch of sequences.
#[derive(Clone)]
pub struct Retrieved {
    /// Token ids, `[batch, chunks, neighbours, neighbour tokens]`, u32.
    pub tokens: Tensor,
    /// 1 where `tokens` holds a token, 0 where it is padding or the neighbour is absent; u8.
    pub mask: Tensor,
}

impl Retrieved {
    /// Packs token lists: `neighbours[sequence][chunk]` holds at most `k` neighbours of at most
    /// `r` tokens each; whatever is missing is masked.
    pub fn pack(
        neighbours: &[Vec<Vec<Vec<u32>>>],
        k: usize,
        r: usize,
        device: &candle_core::Device,
    ) -> Result<Self> {
        let chunks = neighbours.iter().map(Vec::len).max().unwrap_or(0);
        let shape = (neighbours.len(), chunks, k, r);
        let mut tokens = vec![0u32; shape.0 * chunks * k * r];
        let mut mask = vec![0u8; tokens.len()];
        for (b, sequence) in neighbours.iter().enumerate() {
            for (u, chunk) in sequence.iter().enumerate() {
                for (j, neighbour) in chunk.iter().take(k).enumerate() {
                    let at = ((b * chunks + u) * k + j) * r;
                    let n = neighbour.len().min(r);
                    tokens[at..at + n].copy_from_slice(&neighbour[..n]);
                    mask[at..at + n].fill(1);
                }
            }
        }
        Ok(Self {
            tokens: Tensor::from_vec(tokens, shape, device)?,
            mask: Tensor::from_vec(mask, shape, device)?,
        })
    }
}

/// What RETRO remembers of a sequence between calls of [`Retro::read`].
#[derive(Default)]
pub struct State {
    cache: Cache,
    /// States of the current chunk's tokens at the first retro layer, `[batch, tokens, d]`.
    chunk: Option<Tensor>,
    /// Neighbours of the last complete chunk, as keys and values of each retro layer.
    active: Option<Vec<KeysValues>>,
}

impl State {
    /// Number of tokens already read.
    pub fn tokens(&self) -> usize {
        self.cache.tokens()
    }

    /// A state of its own that goes on from here.
    pub fn copy(&self) -> Result<Self> {
        Ok(Self { cache: self.cache.pick(&[0])?, chunk: self.chunk.clone(), active: self.active.clone() })
    }
}

/// A decoder with chunked cross-attention.
#[derive(Clone)]
pub struct Retro {
    base: Decoder,
    config: RetroConfig,
    encoder: NeighbourEncoder,
    cross: Vec<ChunkedCrossAttention>,
}

impl Retro {
    /// What the names of the tensors that it adds to a decoder begin with.
    pub const PREFIX: &str = "retro.";

    /// Adds RETRO's layers to `base`, taking their weights (`retro.*`) out of `w`.
    pub fn new(base: Decoder, config: &RetroConfig, w: &mut Weights) -> Result<Self> {
        config.check(base.config())?;
        let encoder = NeighbourEncoder::new(base.config(), config, w)?;
        let cross = config
            .layers
            .iter()
            .map(|layer| ChunkedCrossAttention::new(base.config(), config, w, &format!("retro.cca.{layer}")))
            .collect::<Result<_>>()?;
        Ok(Self { base, config: config.clone(), encoder, cross })
    }

    /// The decoder underneath. It is what this model is when retrieval is off.
    pub fn base(&self) -> &Decoder {
        &self.base
    }

    /// What RETRO's layers look like.
    pub fn config(&self) -> &RetroConfig {
        &self.config
    }

    fn cross_at(&self, block: usize) -> Option<(usize, &ChunkedCrossAttention)> {
        let which = self.config.layers.iter().position(|layer| *layer == block + 1)?;
        Some((which, &self.cross[which]))
    }

    /// Reads whole sequences `[batch, tokens]`, and gives the hidden states before the output
    /// head, `[batch, tokens, d]`. `retrieved` has one entry a complete chunk (more are an error,
    /// fewer leave the later chunks without neighbours); `None` is the base model, bit for bit.
    pub fn forward(&self, tokens: &Tensor, retrieved: Option<&Retrieved>) -> Result<Tensor> {
        match retrieved {
            Some(retrieved) if retrieved.tokens.dim(1)? > 0 => Ok(self.run(tokens, retrieved)?.0),
            _ => self.base.forward_whole(tokens),
        }
    }

    /// [`forward`](Self::forward), and what the decoder's last feed-forward layer read, `[batch, tokens, d]`.
    pub fn forward_with_contexts(
        &self,
        tokens: &Tensor,
        retrieved: Option<&Retrieved>,
    ) -> Result<(Tensor, Tensor)> {
        match retrieved {
            Some(retrieved) if retrieved.tokens.dim(1)? > 0 => {
                let (hidden, last) = self.run(tokens, retrieved)?;
                Ok((hidden, self.base.context_of(&last)?))
            }
            _ => self.base.forward_whole_with_contexts(tokens),
        }
    }

    /// The hidden states, and those before the last block's feed-forward half.
    fn run(&self, tokens: &Tensor, retrieved: &Retrieved) -> Result<(Tensor, Tensor)> {
        let retrieved = self.fit_chunks(retrieved, tokens.dim(1)?)?;
        let (batch, chunks, k, r) = retrieved.tokens.dims4()?;
        let (m, d) = (self.config.chunk_size, self.base.config().hidden_size);
        let neighbours = retrieved.tokens.reshape((batch * chunks, k, r))?;
        let mask = retrieved.mask.reshape((batch * chunks, k, r))?;
        let places = self.base.places(&Cache::default(), tokens.dim(1)?)?;
        let blocks = self.base.blocks();
        // The first block that reads. The network is cut between attention and feed-forward from there on, since it is there
        // that neighbours come in.
        let first = self.config.layers[0] - 1;
        let h = self.base.run_blocks(0..first, &self.base.begin(tokens, &places)?, &places)?;
        let (block, at) = (blocks[first].clone(), places.clone());
        let h = kernels::checkpoint(&[&h], move |read| block.attend_alone(&read[0], &at))?;
        let own = h.narrow(1, 0, chunks * m)?.reshape((batch * chunks, m, d))?;
        let encoded = self.encoder.forward(&self.base, &neighbours, &mask, &own)?;
        let (model, seen) = (self.clone(), mask.clone());
        let mut before =
            kernels::checkpoint(&[&h, &encoded], move |read| model.cross(first, &read[0], &read[1], &seen))?;
        for part in Activations::current().parts(first + 1..blocks.len()) {
            let (model, places, mask) = (self.clone(), places.clone(), mask.clone());
            before = kernels::checkpoint(&[&before, &encoded], move |read| {
                part.clone().try_fold(read[0].clone(), |before, i| {
                    let h = model.base.blocks()[i - 1].feed_forward(&before)?;
                    model.cross(i, &model.base.blocks()[i].attend_alone(&h, &places)?, &read[1], &mask)
                })
            })?;
        }
        let h = blocks[blocks.len() - 1].feed_forward(&before)?;
        Ok((self.base.finish(&h)?, before))
    }

    /// `h` `[batch, tokens, d]` after the attention of block `i`, with what it reads of the neighbours, if it does.
    fn cross(&self, i: usize, h: &Tensor, encoded: &Tensor, mask: &Tensor) -> Result<Tensor> {
        match self.cross_at(i) {
            Some((_, cross)) => cross.forward(h, &cross.keys_values(encoded, mask)?),
            None => Ok(h.clone()),
        }
    }

    /// Checks the neighbours' shape against the sequence and fills up chunks that were left out.
    fn fit_chunks(&self, retrieved: &Retrieved, tokens: usize) -> Result<Retrieved> {
        let (batch, chunks, k, r) = retrieved.tokens.dims4()?;
        let complete = tokens / self.config.chunk_size;
        if r != self.config.neighbour_tokens() {
            let why =
                format!("{r} tokens a neighbour, but the model reads {}", self.config.neighbour_tokens());
            return Err(Error::setting("neighbours", why));
        }
        if chunks > complete {
            let why = format!("for {chunks} chunks, but the sequence has {complete} complete ones");
            return Err(Error::setting("neighbours", why));
        }
        if chunks == complete {
            return Ok(retrieved.clone());
        }
        let missing = (batch, complete - chunks, k, r);
        let device = retrieved.tokens.device();
        Ok(Retrieved {
            tokens: Tensor::cat(&[&retrieved.tokens, &Tensor::zeros(missing, DType::U32, device)?], 1)?,
            mask: Tensor::cat(&[&retrieved.mask, &Tensor::zeros(missing, DType::U8, device)?], 1)?,
        })
    }

    /// Reads more tokens of one sequence, `[1, tokens]`, after what `state` holds, and gives their
    /// hidden states, `[1, tokens, d]`, the same as [`forward`](Self::forward) would. Each time a
    /// chunk becomes complete, `retrieve` is asked for its neighbours: it gets the number of the
    /// chunk, from 0, and gives at most k lists of at most 2m tokens.
    pub fn read(
        &self,
        tokens: &[u32],
        state: &mut State,
        retrieve: &mut dyn FnMut(usize) -> Result<Vec<Vec<u32>>>,
    ) -> Result<Tensor> {
        let m = self.config.chunk_size;
        let mut hidden = Vec::new();
        let mut rest = tokens;
        while !rest.is_empty() {
            // A chunk's last token is read by itself, for it is the first that sees the chunk's
            // own neighbours; those before it still see the neighbours of the chunk before.
            let before_last = m - 1 - state.tokens() % m;
            let n = if before_last == 0 { 1 } else { before_last.min(rest.len()) };
            let (now, later) = rest.split_at(n);
            rest = later;
            let completes = before_last == 0;
            let neighbours = if completes { Some(retrieve(state.tokens() / m)?) } else { None };
            hidden.push(self.read_within_chunk(now, state, neighbours)?);
        }
        let hidden: Vec<&Tensor> = hidden.iter().collect();
        Ok(Tensor::cat(&hidden, 1)?)
    }

    fn read_within_chunk(
        &self,
        tokens: &[u32],
        state: &mut State,
        neighbours: Option<Vec<Vec<u32>>>,
    ) -> Result<Tensor> {
        // As a query, the last token of a chunk has number 0, the next chunk's first has number 1.
        let query = (state.tokens() + 1) % self.config.chunk_size;
        let input = Tensor::new(tokens, self.base.device())?.unsqueeze(0)?;
        let places = self.base.places(&state.cache, tokens.len())?;
        let mut h = self.base.begin(&input, &places)?;
        if neighbours.is_some() {
            state.active = None;
        }
        for (i, block) in self.base.blocks().iter().enumerate() {
            h = self.base.attend(i, &h, &places, &mut state.cache)?;
            if let Some((which, cross)) = self.cross_at(i) {
                if which == 0 {
                    let own = match state.chunk.take() {
                        Some(earlier) => Tensor::cat(&[&earlier, &h], 1)?,
                        None => h.clone(),
                    };
                    match &neighbours {
                        Some(list) => state.active = self.encode(list, &own)?,
                        None => state.chunk = Some(own),
                    }
                }
                if let Some(active) = &state.active {
                    h = (&h + cross.attend(&h, query, &active[which])?)?;
                }
            }
            h = block.feed_forward(&h)?;
        }
        state.cache.advance(tokens.len());
        self.base.finish(&h)
    }

    /// Keys and values, for each retro layer, of one chunk's neighbours; `own` are the chunk's
    /// states at the first retro layer, `[1, m, d]`.
    fn encode(&self, neighbours: &[Vec<u32>], own: &Tensor) -> Result<Option<Vec<KeysValues>>> {
        if neighbours.is_empty() {
            return Ok(None);
        }
        let (k, r) = (neighbours.len(), self.config.neighbour_tokens());
        let packed = Retrieved::pack(&[vec![neighbours.to_vec()]], k, r, self.base.device())?;
        let (tokens, mask) = (packed.tokens.squeeze(0)?, packed.mask.squeeze(0)?);
        let encoded = self.encoder.forward(&self.base, &tokens, &mask, own)?;
        self.cross.iter().map(|cross| cross.keys_values(&encoded, &mask)).collect::<Result<_>>().map(Some)
    }
}

#[cfg(test)]
mod tests;
