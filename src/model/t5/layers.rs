//! What T5's blocks are put together from. Nothing has a bias, and norms come first.

use candle_core::{D, Tensor};
use sidenote_kernels::{self as kernels, AttentionOptions};

use super::config::T5Config;
use crate::error::Result;
use crate::model::layers::{Dropout, FeedForward, Linear};
use crate::model::weights::{Start, Weights};

/// Attention, of a sequence to itself or of the decoder to what the encoder made. The starts are those of
/// Mesh TensorFlow: queries are made smaller, since scores are not divided by the root of the width.
#[derive(Clone)]
pub(super) struct Attention {
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    heads: usize,
}

impl Attention {
    /// Takes `name.q`, `name.k`, `name.v` and `name.o`.
    pub fn new(config: &T5Config, w: &mut Weights, name: &str) -> Result<Self> {
        let (d, inner) = (config.d_model, config.inner());
        let mut linear = |part: &str, input: usize, output: usize, fan: usize| {
            Linear::new(w, &format!("{name}.{part}"), input, output, Start::Normal((fan as f32).powf(-0.5)))
        };
        Ok(Self {
            q: linear("q", d, inner, d * config.d_kv)?,
            k: linear("k", d, inner, d)?,
            v: linear("v", d, inner, d)?,
            o: linear("o", inner, d, inner)?,
            heads: config.num_heads,
        })
    }

    /// Keys and values of `x` `[batch, tokens, d]`, `[batch, heads, tokens, d_kv]` each.
    pub fn keys_values(&self, x: &Tensor) -> Result<(Tensor, Tensor)> {
        let split =
            |linear: &Linear| Ok::<_, crate::Error>(kernels::split_heads(&linear.forward(x)?, self.heads)?);
        Ok((split(&self.k)?, split(&self.v)?))
    }

    /// How much each query of `x` `[texts, tokens, d]` takes of each key: its weight times the length of the key's value,
    /// `[texts, heads, tokens, keys]`, without gradients. `mask` is `[texts, keys]`, scores are not scaled.
    pub fn taken(&self, x: &Tensor, (k, v): (&Tensor, &Tensor), mask: Option<&Tensor>) -> Result<Tensor> {
        let q = kernels::split_heads(&self.q.forward(&x.detach())?.detach(), self.heads)?.contiguous()?;
        let (k, v) = (k.detach(), v.detach());
        let mut scores = q.matmul(&k.transpose(2, 3)?.contiguous()?)?;
        if let Some(mask) = mask {
            let hidden = ((mask.to_dtype(scores.dtype())? - 1.0)? * 1e30)?;
            scores = scores.broadcast_add(&hidden.unsqueeze(1)?.unsqueeze(1)?)?;
        }
        let highest = scores.max_keepdim(D::Minus1)?;
        let powers = scores.broadcast_sub(&highest)?.exp()?;
        let weights = powers.broadcast_div(&powers.sum_keepdim(D::Minus1)?)?;
        let lengths = v.sqr()?.sum(D::Minus1)?.sqrt()?.unsqueeze(2)?;
        Ok(weights.broadcast_mul(&lengths)?)
    }

    /// `residual +` what the queries made of `x` read, both `[batch, tokens, d]`. The keys may be those of fewer
    /// sequences, each read by as many consecutive rows of `x`. `dropout` drops of what is added.
    pub fn forward_add(
        &self,
        x: &Tensor,
        (k, v): (&Tensor, &Tensor),
        options: &AttentionOptions,
        residual: &Tensor,
        dropout: Option<Dropout>,
    ) -> Result<Tensor> {
        let (batch, tokens, _) = x.dims3()?;
        let sequences = k.dim(0)?;
        let q = self.q.forward(x)?.reshape((sequences, batch / sequences.max(1) * tokens, ()))?;
        let out = kernels::attention(&kernels::split_heads(&q, self.heads)?, k, v, options)?;
        let out = kernels::merge_heads(&out)?.reshape((batch, tokens, ()))?;
        match dropout {
            None => self.o.forward_add(&out, residual),
            Some(dropout) => Ok((residual + dropout.apply(&self.o.forward(&out)?, 0)?)?),
        }
    }
}

/// The feed-forward layer, `wo(f(wi(x)))` or gated `wo(f(wi_0(x)) * wi_1(x))`: takes `name.wi` (or `name.wi_0` and
/// `name.wi_1`) and `name.wo`.
pub(super) fn feed_forward(config: &T5Config, w: &mut Weights, name: &str) -> Result<FeedForward> {
    let (d, inner) = (config.d_model, config.d_ff);
    let (activation, gated) = config.activation()?;
    let mut linear = |part: &str, input: usize, output: usize| {
        Linear::new(w, &format!("{name}.{part}"), input, output, Start::Normal((input as f32).powf(-0.5)))
    };
    Ok(FeedForward {
        gate: if gated { Some(linear("wi_0", d, inner)?) } else { None },
        up: linear(if gated { "wi_1" } else { "wi" }, d, inner)?,
        down: linear("wo", inner, d)?,
        activation,
    })
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    /// Fails when lengths are not Euclidean, scores are scaled, or a masked key is looked at.
    #[test]
    fn what_is_taken_is_the_weight_times_the_length_of_the_value() {
        let config = serde_json::json!({"model_type": "t5", "vocab_size": 8, "d_model": 4, "d_kv": 2, "d_ff": 4, "num_layers": 1,
            "num_heads": 2, "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1});
        let config = T5Config::from_json(&config).unwrap();
        let mut weights = Weights::from_seed(7, &Device::Cpu);
        let attention = Attention::new(&config, &mut weights, "a").unwrap();
        let values = |seed: u64, shape: [usize; 4]| {
            let n = shape.iter().product();
            Tensor::from_vec(crate::model::normal::normal(seed, "x", n, 1.0), &shape[..], &Device::Cpu)
                .unwrap()
        };
        let x = values(1, [1, 1, 3, 4]).squeeze(0).unwrap();
        let (k, v) = (values(2, [1, 2, 4, 2]), values(3, [1, 2, 4, 2]));
        let mask = Tensor::new(&[[1u8, 1, 0, 1]], &Device::Cpu).unwrap();
        let found = attention.taken(&x, (&k, &v), Some(&mask)).unwrap();
        assert_eq!(found.dims(), [1, 2, 3, 4]);
        let rows = |x: &Tensor| -> Vec<Vec<f64>> {
            let all = x.flatten_to(candle_core::D::Minus2).unwrap().to_vec2::<f32>().unwrap();
            all.into_iter().map(|row| row.into_iter().map(f64::from).collect()).collect()
        };
        let q = rows(&kernels::split_heads(&attention.q.forward(&x).unwrap(), 2).unwrap());
        let (k, v, found) = (rows(&k), rows(&v), rows(&found));
        for head in 0..2 {
            for query in 0..3 {
                let dot = |key: usize| -> f64 {
                    q[head * 3 + query].iter().zip(&k[head * 4 + key]).map(|(a, b)| a * b).sum()
                };
                let power = |key: usize| if key == 2 { 0.0 } else { dot(key).exp() };
                let sum: f64 = (0..4).map(power).sum();
                for key in 0..4 {
                    let length = v[head * 4 + key].iter().map(|x| x * x).sum::<f64>().sqrt();
                    let (wanted, own) = (power(key) / sum * length, found[head * 3 + query][key]);
                    assert!((wanted - own).abs() < 1e-6, "{head} {query} {key}: {wanted} {own}");
                }
            }
        }
    }
}
