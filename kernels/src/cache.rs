//! Keys and values of the tokens already read.

use candle_core::{Result, Tensor, bail};

/// Room for this many tokens is made at a time, at least.
const ROOM: usize = 64;

/// Keys and values of one layer's tokens, to which each step of generation adds its own without copying the
/// others. [`crate::attention`] reads them where they lie.
///
/// A layer with a window has no use for keys that no later query can see: they are dropped whenever room has to be made, so
/// that a long text takes the memory of one window.
#[derive(Debug, Default)]
pub struct KvCache {
    /// `[batch, kv_heads, room, dim]` each.
    held: Option<(Tensor, Tensor)>,
    tokens: usize,
    /// How many of the first tokens are no longer held.
    forgotten: usize,
    /// Whether the room beyond what is held is this cache's own to write to.
    room: bool,
    window: Option<usize>,
}

impl KvCache {
    /// The cache of a layer whose queries see the last `window` keys only, their own included, as
    /// [`crate::AttentionOptions::window`] says; `None` is the default.
    pub fn within(window: Option<usize>) -> Self {
        Self { window, ..Self::default() }
    }

    /// How many tokens it has read.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Adds keys and values of more tokens, `[batch, kv_heads, tokens, dim]` each, and gives those of all, or with a
    /// window at least those of the last that these tokens see. Where gradients are asked for they are put together anew,
    /// so that gradients reach the earlier ones.
    ///
    /// # Errors
    /// When the shapes do not fit to what is held.
    pub fn extend(&mut self, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor)> {
        let (batch, heads, new, dim) = k.dims4()?;
        if v.dims() != k.dims() {
            bail!("key cache: keys are {:?} but values {:?}", k.dims(), v.dims());
        }
        let Some((keys, values)) = &self.held else {
            self.held = Some((k.clone(), v.clone()));
            self.tokens = new;
            return Ok((k.clone(), v.clone()));
        };
        let (held_batch, held_heads, room, held_dim) = keys.dims4()?;
        if (held_batch, held_heads, held_dim) != (batch, heads, dim) {
            bail!("key cache: it holds {:?}, to which {:?} cannot be added", keys.dims(), k.dims());
        }
        let before = self.tokens - self.forgotten;
        let total = before + new;
        if [keys, values, k, v].iter().any(|x| x.track_op()) {
            let joined = |old: &Tensor, new: &Tensor| Tensor::cat(&[&old.narrow(2, 0, before)?, new], 2);
            let (keys, values) = (joined(keys, k)?, joined(values, v)?);
            self.held = Some((keys.clone(), values.clone()));
            (self.tokens, self.room) = (self.tokens + new, false);
            return Ok((keys, values));
        }
        let (keys, values, kept) = if self.room && total <= room {
            (keys.clone(), values.clone(), before)
        } else {
            // What the first of the new tokens sees.
            let kept = self.window.map_or(before, |window| before.min(window.saturating_sub(1)));
            let room = if self.window.is_some() { kept + new + ROOM } else { (2 * total).max(ROOM) };
            let moved = |old: &Tensor| {
                let moved = Tensor::zeros((batch, heads, room, dim), old.dtype(), old.device())?;
                if kept > 0 {
                    moved.slice_set(&old.narrow(2, before - kept, kept)?.contiguous()?, 2, 0)?;
                }
                Ok::<_, candle_core::Error>(moved)
            };
            (moved(keys)?, moved(values)?, kept)
        };
        keys.slice_set(&k.contiguous()?, 2, kept)?;
        values.slice_set(&v.contiguous()?, 2, kept)?;
        let all = (keys.narrow(2, 0, kept + new)?, values.narrow(2, 0, kept + new)?);
        self.held = Some((keys, values));
        self.forgotten += before - kept;
        (self.tokens, self.room) = (self.tokens + new, true);
        Ok(all)
    }

    /// Forgets all but the first `tokens` tokens; no effect where it has read no more.
    ///
    /// # Errors
    /// When the window before the next token is no longer held whole.
    pub fn truncate(&mut self, tokens: usize) -> Result<()> {
        if tokens >= self.tokens {
            return Ok(());
        }
        let seen = self.window.map_or(tokens, |window| tokens.min(window.saturating_sub(1)));
        if tokens - seen < self.forgotten {
            bail!(
                "key cache: it cannot be cut back to {tokens} tokens, of which the last {seen} would be needed: it has \
                 forgotten the first {}",
                self.forgotten
            );
        }
        self.tokens = tokens;
        Ok(())
    }

    /// A cache of its own that holds these sequences of the batch, in this order; one may be named more than
    /// once. What is added to either is not seen by the other.
    ///
    /// # Errors
    /// When there is no such sequence.
    pub fn pick(&self, rows: &[usize]) -> Result<Self> {
        let Some((keys, values)) = &self.held else {
            return Ok(Self::within(self.window));
        };
        let batch = keys.dim(0)?;
        if let Some(row) = rows.iter().find(|row| **row >= batch) {
            bail!("key cache: it holds {batch} sequences, numbered from 0; there is no {row}");
        }
        let rows: Vec<u32> = rows.iter().map(|row| *row as u32).collect();
        let rows = Tensor::new(rows, keys.device())?;
        // Keys from outside may have any strides; room of our own is copied along, to be used again.
        let picked = |held: &Tensor| held.contiguous()?.index_select(&rows, 0);
        Ok(Self { held: Some((picked(keys)?, picked(values)?)), ..*self })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::*;
    use crate::{AttentionOptions, attention};

    /// One token at a time reads what all at once read, grouped heads and room that has to grow included.
    #[test]
    fn one_query_at_a_time_gives_the_same() {
        for [batch, heads, kv_heads, tokens, dim] in [[1, 1, 1, 1, 1], [2, 4, 2, 9, 5], [1, 6, 2, 200, 32]] {
            let q = random(&[batch, heads, tokens, dim], 1);
            let k = random(&[batch, kv_heads, tokens, dim], 2);
            let v = random(&[batch, kv_heads, tokens, dim], 3);
            let options = AttentionOptions { causal: true, ..AttentionOptions::scaled(0.4) };
            let whole = attention(&q, &k, &v, &options).unwrap();
            let mut cache = KvCache::default();
            let mut at = 0;
            // A prompt, then single tokens, then two at a time.
            while at < tokens {
                let n = [3, 1, 2][usize::from(at > 0) + usize::from(at > 70)].min(tokens - at);
                let part = |x: &Tensor| x.narrow(2, at, n).unwrap();
                let (keys, values) = cache.extend(&part(&k), &part(&v)).unwrap();
                at += n;
                assert_eq!((cache.tokens(), keys.dim(2).unwrap()), (at, at));
                let out = attention(&q.narrow(2, at - n, n).unwrap(), &keys, &values, &options).unwrap();
                assert!(distance(&out, &whole.narrow(2, at - n, n).unwrap()) < 1e-5);
            }
        }
    }

    /// A layer with a window reads the same, and holds hardly more than the window however long the text is. Fails with one
    /// key fewer kept, and with none ever dropped.
    #[test]
    fn a_window_is_all_that_is_held() {
        let (tokens, batch, dim) = (400, 2, 3);
        let q = random(&[batch, 4, tokens, dim], 1);
        let (k, v) = (random(&[batch, 2, tokens, dim], 2), random(&[batch, 2, tokens, dim], 3));
        for window in [1, 2, 7, 100] {
            let options =
                AttentionOptions { causal: true, window: Some(window), ..AttentionOptions::scaled(0.4) };
            let whole = attention(&q, &k, &v, &options).unwrap();
            let mut cache = KvCache::within(Some(window));
            let mut at = 0;
            for n in [150, 1, 20].into_iter().chain([1, 2, 1].into_iter().cycle()) {
                let n = n.min(tokens - at);
                if n == 0 {
                    break;
                }
                let part = |x: &Tensor| x.narrow(2, at, n).unwrap();
                let (keys, values) = cache.extend(&part(&k), &part(&v)).unwrap();
                let out = attention(&part(&q), &keys, &values, &options).unwrap();
                assert!(distance(&out, &part(&whole)) < 1e-5, "window {window} at {at}");
                at += n;
                assert_eq!(cache.tokens(), at);
                let held = keys.dim(2).unwrap();
                assert!(at == 150 || held <= window + 20 + ROOM, "window {window} at {at}: {held} keys");
                // What was picked goes on alike.
                cache = cache.pick(&[0, 1]).unwrap();
            }
            assert_eq!(at, tokens);
            // What is gone does not come back.
            assert!(cache.truncate(tokens - 200).is_err());
            assert_eq!(cache.tokens(), tokens);
        }
    }

    /// What a cache of `tokens` tokens of `x` [batch, heads, tokens, dim] holds after one more step.
    fn step(cache: &mut KvCache, x: &Tensor, at: usize) -> Tensor {
        let part = x.narrow(2, at, 1).unwrap();
        cache.extend(&part, &part).unwrap().0
    }

    #[test]
    fn a_cache_that_was_cut_back_goes_on_as_if_it_had_read_no_more() {
        let (x, other) = (random(&[2, 2, 90, 4], 1), random(&[2, 2, 90, 4], 2));
        for keep in [0, 1, 3, 70] {
            let mut cache = KvCache::default();
            let first = x.narrow(2, 0, 3).unwrap();
            cache.extend(&first, &first).unwrap();
            for at in 3..80 {
                step(&mut cache, &x, at);
            }
            cache.truncate(keep).unwrap();
            assert_eq!(cache.tokens(), keep);
            let held = step(&mut cache, &other, keep);
            let right = Tensor::cat(&[x.narrow(2, 0, keep).unwrap(), other.narrow(2, keep, 1).unwrap()], 2);
            assert_eq!(distance(&held, &right.unwrap()), 0.0, "{keep}");
        }
        // What was given first is not ours to write to.
        let first = x.narrow(2, 0, 3).unwrap();
        let mut cache = KvCache::default();
        cache.extend(&first, &first).unwrap();
        cache.truncate(1).unwrap();
        step(&mut cache, &other, 1);
        assert_eq!(distance(&x, &random(&[2, 2, 90, 4], 1)), 0.0);
    }

    #[test]
    fn picked_sequences_go_their_own_way() {
        let (x, other) = (random(&[3, 2, 9, 4], 1), random(&[4, 2, 9, 4], 2));
        for first in [4, 1] {
            let mut cache = KvCache::default();
            for at in 0..first {
                step(&mut cache, &x, at);
            }
            let part = x.narrow(2, first, 2).unwrap();
            cache.extend(&part, &part).unwrap();
            let rows = [2, 0, 0, 1];
            let mut picked = cache.pick(&rows).unwrap();
            let held = step(&mut picked, &other, first + 2);
            let whole = step(&mut cache, &x, first + 2);
            for (new, old) in rows.into_iter().enumerate() {
                let part =
                    |x: &Tensor, row: usize| x.narrow(0, row, 1).unwrap().narrow(2, 0, first + 2).unwrap();
                assert_eq!(distance(&part(&held, new), &part(&x, old)), 0.0);
            }
            let last = |x: &Tensor| x.narrow(2, first + 2, 1).unwrap();
            assert_eq!(distance(&last(&held), &last(&other)), 0.0);
            assert_eq!(distance(&last(&whole), &last(&x)), 0.0);
        }
        assert!(KvCache::default().pick(&[5]).unwrap().tokens() == 0);
        let mut cache = KvCache::default();
        step(&mut cache, &x, 0);
        assert!(cache.pick(&[3]).is_err());
    }

    #[test]
    fn gradients_reach_earlier_tokens() {
        let inputs = [random(&[1, 2, 3, 4], 1), random(&[1, 2, 5, 4], 2)];
        assert_gradients_are_slopes(&inputs, |t| {
            let mut cache = KvCache::default();
            let options = AttentionOptions { causal: true, ..AttentionOptions::scaled(0.4) };
            cache.extend(&t[1].narrow(2, 0, 2)?, &t[1].narrow(2, 1, 2)?)?;
            let (k, v) = cache.extend(&t[1].narrow(2, 2, 3)?, &t[1].narrow(2, 0, 3)?)?;
            attention(&t[0], &k, &v, &options)
        });
        let mut cache = KvCache::default();
        cache.extend(&inputs[0], &inputs[0]).unwrap();
        assert!(cache.extend(&random(&[1, 3, 1, 4], 1), &random(&[1, 3, 1, 4], 1)).is_err());
    }
}
