//! Attention of few queries on a cache of keys, `cuda/decode.cu`.

use candle_core::{Result, bail};

use super::attention::{Bias, Masks, Problem, THREADS};
use super::device::{Device, Source, Storage, Tensor, grid, grid3, launch, size};

/// Keys of a block.
const SPLIT: usize = 256;
/// Queries of a block.
const ROWS: usize = 4;

/// Keys and values of one layer's tokens on the GPU, with room for more: the counterpart of [`crate::KvCache`].
pub struct KvCache<T> {
    /// `[batch, key_heads, room, dim]` each.
    keys: Tensor<T>,
    values: Tensor<T>,
    tokens: usize,
}

impl<T: Storage> KvCache<T> {
    /// Room for `room` tokens of `batch` sequences with `key_heads` heads of `dim` numbers.
    ///
    /// # Errors
    /// When the GPU's memory does not suffice.
    pub fn new(device: &Device, batch: usize, key_heads: usize, room: usize, dim: usize) -> Result<Self> {
        let shape = [batch, key_heads, room, dim];
        Ok(Self { keys: device.zeros(&shape)?, values: device.zeros(&shape)?, tokens: 0 })
    }

    /// How many tokens it has read.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Forgets all but the first `tokens` tokens.
    pub fn truncate(&mut self, tokens: usize) {
        self.tokens = self.tokens.min(tokens);
    }

    /// Adds keys and values of more tokens, `[batch, key_heads, tokens, dim]` each.
    ///
    /// # Errors
    /// When the shapes do not fit, or there is no room left.
    pub fn extend(&mut self, device: &Device, k: &Tensor<T>, v: &Tensor<T>) -> Result<()> {
        let (&[batch, heads, room, dim], &[new_batch, new_heads, new, new_dim]) =
            (self.keys.dims(), k.dims())
        else {
            bail!("key cache: keys are [batch, key_heads, tokens, dim], not {:?}", k.dims());
        };
        if (new_batch, new_heads, new_dim) != (batch, heads, dim) || v.dims() != k.dims() || new == 0 {
            bail!("key cache: it holds {:?}, to which {:?} cannot be added", self.keys.dims(), k.dims());
        }
        if self.tokens + new > room {
            bail!("key cache: it has room for {room} tokens, not for {}", self.tokens + new);
        }
        let (width, added, at, room) = (size(dim)?, size(new)?, size(self.tokens)?, size(room)?);
        let name = format!("cache_append_{}", T::NAME);
        for (from, to) in [(k, &self.keys), (v, &self.values)] {
            let blocks = grid(batch * heads * new, 1, THREADS)?;
            // SAFETY: the arguments are the kernel's, and `to` has the room.
            unsafe { launch!(device, Source::Decode, &name, blocks, from, to, width, added, at, room) };
        }
        self.tokens += new;
        Ok(())
    }

    /// Attention of the last tokens, `q` `[batch, heads, queries, dim]`, on all that the cache holds; the
    /// result is of the shape of `q`. The masks' `offset` is not used: the queries are the last tokens. A bias is `[heads, queries, tokens]`, the key mask
    /// `[batch, tokens]`.
    ///
    /// # Errors
    /// When the shapes do not fit together.
    pub fn attention(&self, device: &Device, q: &Tensor<T>, scale: f32, masks: &Masks) -> Result<Tensor<T>> {
        decode(device, q, &self.keys, &self.values, self.tokens, scale, masks)
    }
}

/// Attention of the last tokens, `q` `[batch, heads, queries, dim]`, on the first `tokens` of the keys and values, `[batch,
/// key_heads, room, dim]` each; see [`KvCache::attention`].
///
/// # Errors
/// When the shapes do not fit together.
pub(crate) fn decode<T: Storage>(
    device: &Device,
    q: &Tensor<T>,
    keys: &Tensor<T>,
    values: &Tensor<T>,
    tokens: usize,
    scale: f32,
    masks: &Masks,
) -> Result<Tensor<T>> {
    let (&[batch, _, queries, dim], &[key_batch, key_heads, room, key_dim]) = (q.dims(), keys.dims()) else {
        bail!("attention: q and k are [batch, heads, tokens, dim], not {:?} and {:?}", q.dims(), keys.dims());
    };
    if queries > tokens
        || tokens > room
        || values.dims() != keys.dims()
        || matches!(masks.bias, Some(Bias::Relative { .. }))
    {
        bail!("attention: {queries} queries on a cache of {tokens} tokens; a bias is one of each place");
    }
    // What is in use; the kernel steps over the rest.
    let used = [key_batch, key_heads, tokens, key_dim];
    let masks = Masks { offset: size(tokens)? - size(queries)?, ..*masks };
    let problem = Problem::new(device, [q.dims(), &used, &used], None, scale, &masks)?;
    let Problem { mask, bias, sink, sizes, heads, .. } = &problem;
    let pieces = tokens.div_ceil(SPLIT);
    let partial: Tensor<f32> = device.unwritten(&[batch * heads * queries, pieces, dim + 2])?;
    let out = device.unwritten(q.dims())?;
    let room = size(room)?;
    let groups = (heads / key_heads * queries).div_ceil(ROWS);
    let blocks = grid3([pieces, batch * key_heads, groups], THREADS)?;
    let name = format!("decode_part_{}_{dim}", T::NAME);
    // SAFETY: the arguments are the kernel's, and `Problem::new` made sure of their sizes.
    unsafe {
        launch!(device, Source::Decode, &name, blocks, q, keys, values, mask, bias, partial, room, sizes);
    }
    let blocks = grid(batch * heads * queries, 1, THREADS)?;
    let (pieces, name) = (size(pieces)?, format!("decode_combine_{}_{dim}", T::NAME));
    // SAFETY: as above.
    unsafe { launch!(device, Source::Decode, &name, blocks, partial, sink, out, pieces, sizes) };
    Ok(out)
}
