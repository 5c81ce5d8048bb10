//! What a decoder remembers of a batch of sequences that it has read.

use candle_core::{DType, Device, Tensor};
use sidenote_kernels::KvCache;

use crate::error::Result;

/// Keys and values of the tokens already read, layer by layer.
///
/// Rows of a batch may be of uneven length: the shorter ones begin with padding, which nothing attends to and
/// which has no position, so that a row reads as it would alone.
#[derive(Debug, Default)]
pub struct Cache {
    layers: Vec<KvCache>,
    tokens: usize,
    /// Tokens of padding that each row begins with; empty where none has any.
    padding: Vec<usize>,
    /// Columns before the padding that are no text: those of an adapter.
    lead: usize,
}

impl Cache {
    /// A cache for rows that begin with so many tokens of padding.
    pub fn padded(padding: &[usize]) -> Self {
        let any = padding.iter().any(|tokens| *tokens > 0);
        Self { padding: if any { padding.to_vec() } else { Vec::new() }, ..Self::default() }
    }

    /// Number of tokens already read, padding included.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Says that the next `columns`, the first of all, are an adapter's: every row has them, and padding comes after them.
    pub fn begin_with(&mut self, columns: usize) {
        self.lead = columns;
    }

    /// Keys and values of layer `i`, from 0, whose queries see so many keys. Each layer adds its own while the network
    /// reads; [`advance`] is called once they all have.
    ///
    /// [`advance`]: Self::advance
    pub fn layer(&mut self, i: usize, window: Option<usize>) -> &mut KvCache {
        if self.layers.len() <= i {
            self.layers.resize_with(i + 1, || KvCache::within(window));
        }
        &mut self.layers[i]
    }

    /// Notes that all layers have read `tokens` more.
    pub fn advance(&mut self, tokens: usize) {
        self.tokens += tokens;
    }

    /// Positions of the next `tokens` tokens, counted from 0 after a row's padding: one list where all rows have
    /// the same, else one a row. Padding has position 0.
    pub fn positions(&self, tokens: usize) -> Vec<Vec<u32>> {
        let from = |padding: usize| -> Vec<u32> {
            let position = |column: usize| match column < self.lead {
                true => column as u32,
                false => column.saturating_sub(padding) as u32,
            };
            (self.tokens..self.tokens + tokens).map(position).collect()
        };
        if self.padding.is_empty() {
            return vec![from(0)];
        }
        self.padding.iter().map(|padding| from(*padding)).collect()
    }

    /// What the next `tokens` tokens may attend to, apart from causality: `[batch, keys]` as `u8`, where `keys`
    /// counts these tokens too; 0 for padding. `None` where there is no padding.
    pub fn key_mask(&self, tokens: usize, device: &Device) -> Result<Option<Tensor>> {
        if self.padding.is_empty() {
            return Ok(None);
        }
        let keys = self.tokens + tokens;
        let mask: Vec<u8> = self
            .padding
            .iter()
            .flat_map(|padding| {
                let seen = move |column| column < self.lead || column >= self.lead + padding;
                (0..keys).map(move |column| u8::from(seen(column)))
            })
            .collect();
        Ok(Some(Tensor::from_vec(mask, (self.padding.len(), keys), device)?.to_dtype(DType::U8)?))
    }

    /// Forgets all but the first `tokens` tokens of each row, padding included; no effect where it has read no more.
    ///
    /// # Errors
    /// When a layer with a window no longer holds what the next token would see.
    pub fn truncate(&mut self, tokens: usize) -> Result<()> {
        self.layers.iter_mut().try_for_each(|layer| layer.truncate(tokens))?;
        self.tokens = self.tokens.min(tokens);
        Ok(())
    }

    /// A cache of its own that holds these rows, in this order; one may be named more than once, as beams and
    /// continuations of one prompt need it.
    ///
    /// # Errors
    /// When there is no such row.
    pub fn pick(&self, rows: &[usize]) -> Result<Self> {
        let layers = self.layers.iter().map(|layer| Ok(layer.pick(rows)?)).collect::<Result<_>>()?;
        let padding: Vec<usize> = if self.padding.is_empty() {
            Vec::new()
        } else {
            rows.iter().map(|row| self.padding[*row]).collect()
        };
        Ok(Self { layers, tokens: self.tokens, lead: self.lead, ..Self::padded(&padding) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_has_no_positions_and_is_masked() {
        let mut cache = Cache::padded(&[2, 0]);
        assert_eq!(cache.positions(4), [[0, 0, 0, 1], [0, 1, 2, 3]]);
        let mask = |cache: &Cache, tokens| {
            cache.key_mask(tokens, &Device::Cpu).unwrap().map(|mask| mask.to_vec2::<u8>().unwrap())
        };
        assert_eq!(mask(&cache, 4).unwrap(), [[0, 0, 1, 1], [1, 1, 1, 1]]);
        cache.advance(4);
        assert_eq!(cache.positions(1), [[2], [4]]);
        assert_eq!(mask(&cache, 1).unwrap(), [[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]);
        cache.truncate(3).unwrap();
        assert_eq!(cache.positions(1), [[1], [3]]);
        // Rows without padding need no mask and share their positions.
        let picked = cache.pick(&[1, 1]).unwrap();
        assert_eq!((picked.positions(2), mask(&picked, 2)), (vec![vec![3, 4]], None));
        assert_eq!(cache.pick(&[0]).unwrap().positions(1), [[1]]);
        assert_eq!(Cache::padded(&[0, 0]).positions(1), [[0]]);
    }
}
