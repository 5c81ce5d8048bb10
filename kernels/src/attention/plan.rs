//! Which keys each query sees.

use std::ops::Range;

use candle_core::{Result, Tensor};

use super::{AttentionOptions, Chunks};

/// The sizes, and which keys each query sees.
pub struct Plan {
    /// Sequences of keys.
    pub batch: usize,
    pub heads: usize,
    pub kv_heads: usize,
    /// Of one sequence of queries, which [`Chunks`] deals out.
    pub tokens: usize,
    /// How many sequences of keys read one sequence of queries, and from which token on.
    pub chunks: usize,
    pub shift: usize,
    /// Of one sequence of keys; the last may have fewer.
    pub queries: usize,
    pub keys: usize,
    pub dim: usize,
    causal: bool,
    window: Option<usize>,
    /// `[batch, queries]`: the first key that each query sees.
    starts: Option<Vec<u32>>,
    pub scale: f32,
    /// `[batch, keys]`: zero or minus infinity, added to the scores.
    pub mask: Option<Vec<f32>>,
    /// For each sequence of the batch the number of keys up to its last visible one.
    visible: Vec<usize>,
}

impl Plan {
    pub fn new(q: &Tensor, k: &Tensor, options: &AttentionOptions, chunks: Chunks) -> Result<Self> {
        let (_, heads, tokens, dim) = q.dims4()?;
        let (batch, kv_heads, keys, _) = k.dims4()?;
        let Chunks { number: chunks, shift, queries, .. } = chunks;
        let (mut mask, mut visible) = (None, vec![keys; batch]);
        if let Some(key_mask) = options.key_mask {
            let seen = key_mask.flatten_all()?.to_vec1::<u8>()?;
            for (visible, seen) in visible.iter_mut().zip(seen.chunks(keys.max(1))) {
                *visible = seen.iter().rposition(|&seen| seen != 0).map_or(0, |last| last + 1);
            }
            mask = Some(seen.into_iter().map(|s| if s != 0 { 0.0 } else { f32::NEG_INFINITY }).collect());
        }
        let AttentionOptions { causal, window, scale, .. } = *options;
        let starts = options.starts.map(|starts| starts.flatten_all()?.to_vec1::<u32>()).transpose()?;
        Ok(Self {
            batch,
            heads,
            kv_heads,
            tokens,
            chunks,
            shift,
            queries,
            keys,
            dim,
            causal,
            window,
            starts,
            scale,
            mask,
            visible,
        })
    }

    /// Up to which key, exclusive, `query` sees (unless masked).
    pub fn sight(&self, batch: usize, query: usize) -> usize {
        let visible = self.visible[batch];
        if self.causal { (query + self.keys + 1).saturating_sub(self.queries).min(visible) } else { visible }
    }

    /// From which key on `query` sees: the first, or that which its text or its window begins with.
    pub fn begin(&self, batch: usize, query: usize) -> usize {
        let window =
            self.window.map_or(0, |window| (query + self.keys + 1).saturating_sub(self.queries + window));
        let start = self.starts.as_ref().map_or(0, |starts| starts[batch * self.queries + query] as usize);
        window.max(start)
    }

    /// The keys that some of the `rows` queries from `first` on may see.
    pub fn span(&self, batch: usize, first: usize, rows: usize) -> Range<usize> {
        let end = self.sight(batch, first + rows - 1);
        self.begin(batch, first).min(end)..end
    }

    /// The token that is the first query of a sequence of keys, and how many there are.
    pub fn own(&self, batch: usize) -> (usize, usize) {
        let first = self.shift + batch % self.chunks * self.queries;
        (first, self.queries.min(self.tokens - first))
    }
}
