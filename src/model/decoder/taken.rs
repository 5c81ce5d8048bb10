//! What the last tokens of a text take of all of it, for what learns from attention.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{D, Tensor};
use sidenote_kernels::{AttentionOptions, composed};

use super::Decoder;
use crate::error::Result;
use crate::model::cache::Cache;

/// Where blocks note what is taken, while they read.
#[derive(Clone)]
pub(super) struct Taken {
    /// The last queries, which are looked at.
    queries: usize,
    /// Of each block, by key: the mean over heads and queries.
    blocks: Arc<Mutex<Vec<Vec<f32>>>>,
}

impl Taken {
    fn of(queries: usize) -> Self {
        Self { queries, blocks: Arc::default() }
    }

    fn blocks(self) -> Vec<Vec<f32>> {
        std::mem::take(&mut *self.blocks.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Notes what an attention of one sequence takes of each key: its weight times the length of the value.
    pub fn note(&self, q: &Tensor, k: &Tensor, v: &Tensor, options: &AttentionOptions) -> Result<()> {
        let (q, k, v) = (q.detach(), k.detach(), v.detach());
        let last = q.dim(2)?.saturating_sub(self.queries);
        let q = q.narrow(2, last, q.dim(2)? - last)?;
        let bias = match options.bias {
            Some(bias) => Some(bias.narrow(1, last, bias.dim(1)? - last)?),
            None => None,
        };
        // Values that are nowhere but at their own key.
        let lengths = v.sqr()?.sum(D::Minus1)?.sqrt()?;
        let keys = lengths.dim(D::Minus1)?;
        let own = Tensor::eye(keys, lengths.dtype(), lengths.device())?;
        let values = lengths.unsqueeze(D::Minus1)?.broadcast_mul(&own)?;
        let options = AttentionOptions { bias: bias.as_ref(), ..*options };
        let taken = composed::attention(&q, &k, &values, &options)?;
        let taken = taken.squeeze(0)?.mean(0)?.mean(0)?.to_vec1()?;
        self.blocks.lock().unwrap_or_else(PoisonError::into_inner).push(taken);
        Ok(())
    }
}

impl Decoder {
    /// What the last `queries` of `tokens` take of each of them: attention's weight times the length of the value, as a mean over
    /// blocks, heads and queries (as Atlas has it for encoder-decoders, section 2.2). Without gradients.
    ///
    /// # Errors
    /// More tokens than the decoder reads.
    pub fn taken(&self, tokens: &[u32], queries: usize) -> Result<Vec<f64>> {
        let mut places = self.places(&Cache::default(), tokens.len())?;
        places.taken = Some(Taken::of(queries));
        let ids = Tensor::new(tokens, self.device())?.unsqueeze(0)?;
        let h = self.begin(&ids, &places)?.detach();
        self.run_blocks(0..self.blocks().len(), &h, &places)?;
        let blocks = places.taken.map(Taken::blocks).unwrap_or_default();
        let mut mean = vec![0.0; tokens.len()];
        for block in &blocks {
            // A layer with a window holds the last keys only.
            let first = mean.len() - block.len();
            let share = |taken: &f32| f64::from(*taken) / blocks.len() as f64;
            mean[first..].iter_mut().zip(block).for_each(|(sum, taken)| *sum += share(taken));
        }
        Ok(mean)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    /// Fails when lengths are not Euclidean, or something is summed that is to be averaged, or the other way round: two heads over
    /// one head of keys, three tokens of which the last two ask.
    #[test]
    fn what_is_taken_is_the_weight_times_the_length_of_the_value() {
        let (q, k) = (
            [[[0.3f64, -0.2], [1.1, 0.4], [-0.7, 0.9]], [[0.1, 0.8], [-0.5, 0.2], [0.6, 0.6]]],
            [[0.9f64, 0.1], [-0.4, 1.2], [0.5, -0.8]],
        );
        let v = [[3.0f64, 4.0], [-1.0, 1.0], [0.5, 0.0]];
        let scale = 0.7;
        let mut wanted = [0f64; 3];
        for head in &q {
            for (i, query) in head.iter().enumerate().skip(1) {
                let score = |key: &[f64; 2]| (scale * (query[0] * key[0] + query[1] * key[1])).exp();
                let sum: f64 = k[..=i].iter().map(score).sum();
                for (j, value) in v.iter().enumerate().take(i + 1) {
                    wanted[j] += score(&k[j]) / sum * value[0].hypot(value[1]) / 4.0;
                }
            }
        }
        let tensor = |values: Vec<f64>, heads: usize| {
            let values: Vec<f32> = values.into_iter().map(|x| x as f32).collect();
            Tensor::from_vec(values, (1, heads, 3, 2), &Device::Cpu).unwrap()
        };
        let taken = Taken::of(2);
        let options = AttentionOptions { causal: true, ..AttentionOptions::scaled(scale as f32) };
        let (q, k, v) = (tensor(q.concat().concat(), 2), tensor(k.concat(), 1), tensor(v.concat(), 1));
        taken.note(&q, &k, &v, &options).unwrap();
        let found = taken.blocks().remove(0);
        assert!(
            found.iter().zip(wanted).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-6),
            "{found:?} {wanted:?}"
        );
    }
}
