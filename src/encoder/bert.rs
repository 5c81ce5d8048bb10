//! BERT's encoder stack (Devlin et al. 2019, <https://arxiv.org/abs/1810.04805>), inference only.

use candle_core::{CpuStorage, D, Device, InplaceOp1, Layout, Module, Tensor};
use candle_nn::{Embedding, LayerNorm, Linear};
use serde::Deserialize;

use super::folder::Weights;

use crate::error::Result;

pub(super) const MODEL_TYPE: &str = "bert";

/// The fields of `config.json` that decide the arithmetic.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Config {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub intermediate_size: usize,
    pub max_position_embeddings: usize,
    pub type_vocab_size: usize,
    pub layer_norm_eps: f64,
    #[serde(default)]
    pub hidden_act: Activation,
    #[serde(default)]
    #[expect(dead_code, reason = "reading it refuses the kinds that are not absolute")]
    pub position_embedding_type: Positions,
}

impl Config {
    /// Says what is wrong with the numbers, if anything is.
    pub fn check(&self) -> std::result::Result<(), String> {
        let (hidden, heads) = (self.hidden_size, self.num_attention_heads);
        if hidden == 0 || heads == 0 || hidden % heads != 0 {
            return Err(format!("hidden_size {hidden} is not a multiple of num_attention_heads {heads}"));
        }
        if self.max_position_embeddings < 3 {
            return Err(format!(
                "max_position_embeddings {} leaves no room for text",
                self.max_position_embeddings
            ));
        }
        if self.type_vocab_size == 0 {
            return Err("type_vocab_size must be at least 1".into());
        }
        Ok(())
    }
}

/// The activation between the two halves of the feed-forward layer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize)]
pub(super) enum Activation {
    /// With the exact error function.
    #[default]
    #[serde(rename = "gelu")]
    Gelu,
    /// The approximation by tanh.
    #[serde(rename = "gelu_new", alias = "gelu_pytorch_tanh")]
    GeluTanh,
    #[serde(rename = "relu")]
    Relu,
}

/// How a position is told to the network. BERT's later variants with relative positions are other
/// arithmetic and are refused when the configuration is read.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Positions {
    #[default]
    Absolute,
}

/// The network: embeddings, then `num_hidden_layers` post-norm transformer layers.
pub(super) struct Bert {
    words: Embedding,
    /// Position embedding plus the first token type's, which is the type of all our text:
    /// `[max_position_embeddings, hidden]`.
    positions: Tensor,
    norm: LayerNorm,
    layers: Vec<Layer>,
    heads: usize,
}

struct Layer {
    /// Query, key and value in one product: `[3 * hidden, hidden]`.
    qkv: Linear,
    attention_out: Linear,
    attention_norm: LayerNorm,
    up: Linear,
    activation: Activation,
    down: Linear,
    norm: LayerNorm,
}

impl Bert {
    /// Takes the tensors that Hugging Face's `BertModel` writes, with or without the prefix
    /// `bert.` of models that have a head.
    pub fn load(config: &Config, weights: &Weights) -> Result<Self> {
        let word_name = "embeddings.word_embeddings.weight";
        let prefix = if weights.has(&format!("bert.{word_name}")) { "bert." } else { "" };
        let h = config.hidden_size;
        let tensor = |name: &str, shape: &[usize]| weights.tensor(&format!("{prefix}{name}"), shape);
        let linear = |name: &str, out: usize, input: usize| -> Result<Linear> {
            let weight = tensor(&format!("{name}.weight"), &[out, input])?;
            Ok(Linear::new(weight, Some(tensor(&format!("{name}.bias"), &[out])?)))
        };
        let norm = |name: &str| -> Result<LayerNorm> {
            let (weight, bias) =
                (tensor(&format!("{name}.weight"), &[h])?, tensor(&format!("{name}.bias"), &[h])?);
            Ok(LayerNorm::new(weight, bias, config.layer_norm_eps))
        };
        let layer = |i: usize| -> Result<Layer> {
            let at = format!("encoder.layer.{i}");
            let mut qkv = Vec::new();
            for part in ["query", "key", "value"] {
                qkv.push(linear(&format!("{at}.attention.self.{part}"), h, h)?);
            }
            let weight = Tensor::cat(&qkv.iter().map(Linear::weight).collect::<Vec<_>>(), 0)?;
            let bias = Tensor::cat(&qkv.iter().filter_map(Linear::bias).collect::<Vec<_>>(), 0)?;
            Ok(Layer {
                qkv: Linear::new(weight, Some(bias)),
                attention_out: linear(&format!("{at}.attention.output.dense"), h, h)?,
                attention_norm: norm(&format!("{at}.attention.output.LayerNorm"))?,
                up: linear(&format!("{at}.intermediate.dense"), config.intermediate_size, h)?,
                activation: config.hidden_act,
                down: linear(&format!("{at}.output.dense"), h, config.intermediate_size)?,
                norm: norm(&format!("{at}.output.LayerNorm"))?,
            })
        };
        let types = tensor("embeddings.token_type_embeddings.weight", &[config.type_vocab_size, h])?;
        let positions =
            tensor("embeddings.position_embeddings.weight", &[config.max_position_embeddings, h])?;
        Ok(Self {
            words: Embedding::new(tensor(word_name, &[config.vocab_size, h])?, h),
            positions: positions.broadcast_add(&types.narrow(0, 0, 1)?)?,
            norm: norm("embeddings.LayerNorm")?,
            layers: (0..config.num_hidden_layers).map(layer).collect::<Result<_>>()?,
            heads: config.num_attention_heads,
        })
    }

    /// Runs a batch of token sequences, none longer than `max_position_embeddings`, and gives the
    /// last hidden states `[batch, longest, hidden]`. Shorter sequences are padded at the end; no
    /// token sees the padding, and the states there mean nothing.
    pub fn forward(&self, batch: &[&[u32]]) -> Result<Tensor> {
        let tokens = batch.iter().map(|ids| ids.len()).max().unwrap_or(0);
        let mut ids = vec![0u32; batch.len() * tokens];
        for (row, text) in ids.chunks_exact_mut(tokens.max(1)).zip(batch) {
            row[..text.len()].copy_from_slice(text);
        }
        let ids = Tensor::from_vec(ids, (batch.len(), tokens), &Device::Cpu)?;
        let x = self.words.forward(&ids)?.broadcast_add(&self.positions.narrow(0, 0, tokens)?)?;
        let mut x = self.norm.forward(&x)?;
        let mask = padding_mask(batch, tokens)?;
        for layer in &self.layers {
            x = layer.forward(&x, mask.as_ref(), self.heads)?;
        }
        Ok(x)
    }
}

/// What to add to the attention scores, `[batch, 1, 1, tokens]`: minus infinity at padding. `None`
/// where nothing is padded.
fn padding_mask(batch: &[&[u32]], tokens: usize) -> Result<Option<Tensor>> {
    if batch.iter().all(|ids| ids.len() == tokens) {
        return Ok(None);
    }
    let mut mask = vec![0f32; batch.len() * tokens];
    for (row, text) in mask.chunks_exact_mut(tokens).zip(batch) {
        row[text.len()..].fill(f32::NEG_INFINITY);
    }
    Ok(Some(Tensor::from_vec(mask, (batch.len(), 1, 1, tokens), &Device::Cpu)?))
}

impl Layer {
    fn forward(&self, x: &Tensor, mask: Option<&Tensor>, heads: usize) -> Result<Tensor> {
        let attended = self.attention_out.forward(&self.attend(x, mask, heads)?)?;
        let x = self.attention_norm.forward(&(x + attended)?)?;
        let inner = self.up.forward(&x)?;
        let inner = match self.activation {
            Activation::Gelu => {
                inner.inplace_op1(&GeluErf)?;
                inner
            }
            Activation::GeluTanh => inner.gelu()?,
            Activation::Relu => inner.relu()?,
        };
        Ok(self.norm.forward(&(x + self.down.forward(&inner)?)?)?)
    }

    fn attend(&self, x: &Tensor, mask: Option<&Tensor>, heads: usize) -> Result<Tensor> {
        let (batch, tokens, hidden) = x.dims3()?;
        let dim = hidden / heads;
        let qkv = self.qkv.forward(x)?.reshape((batch, tokens, 3, heads, dim))?;
        // [3, batch, heads, tokens, dim]
        let qkv = qkv.permute((2, 0, 3, 1, 4))?.contiguous()?;
        let (q, k, v) = (qkv.get(0)?, qkv.get(1)?, qkv.get(2)?);
        let scores = (q.matmul(&k.transpose(2, 3)?)? * (1.0 / (dim as f64).sqrt()))?;
        let scores = match mask {
            Some(mask) => scores.broadcast_add(mask)?,
            None => scores,
        };
        let weights = candle_nn::ops::softmax_last_dim(&scores)?;
        Ok(weights.matmul(&v)?.transpose(1, 2)?.flatten_from(D::Minus2)?)
    }
}

/// `x -> x/2 (1 + erf(x / sqrt 2))` in place. candle's own is exact in f64 and about ten times
/// slower, which would be a third of the encoder's time.
struct GeluErf;

impl InplaceOp1 for GeluErf {
    fn name(&self) -> &'static str {
        "gelu-erf"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        let Some((from, to)) = layout.contiguous_offsets() else {
            candle_core::bail!("gelu-erf needs a contiguous tensor");
        };
        let CpuStorage::F32(values) = storage else {
            candle_core::bail!("gelu-erf needs f32");
        };
        for x in &mut values[from..to] {
            *x = 0.5 * *x * (1.0 + erf(*x * std::f32::consts::FRAC_1_SQRT_2));
        }
        Ok(())
    }
}

/// The error function to within 5e-7: an odd rational approximation on [-4, 4], beyond which f32
/// knows only plus and minus one. Coefficients as in Eigen's `generic_fast_erf_float`.
fn erf(x: f32) -> f32 {
    const P: [f32; 7] = [
        -2.726_142_3e-10,
        2.770_681_4e-8,
        -2.101_024e-6,
        -5.692_506_4e-5,
        -7.349_906_3e-4,
        -2.954_6e-3,
        -1.609_603_3e-2,
    ];
    const Q: [f32; 5] = [-1.456_607_2e-5, -2.133_740_6e-4, -1.682_827e-3, -7.373_329_2e-3, -1.426_473_9e-2];
    let x = x.clamp(-4.0, 4.0);
    let y = x * x;
    let horner = |coefficients: &[f32]| coefficients.iter().fold(0.0, |sum, c| sum * y + c);
    x * horner(&P) / horner(&Q)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn erf_is_right_at_known_points() {
        // Abramowitz & Stegun, table 7.1.
        for (x, value) in [
            (0.0, 0.0),
            (0.1, 0.112_462_916_0),
            (0.5, 0.520_499_877_8),
            (1.0, 0.842_700_792_9),
            (1.5, 0.966_105_146_5),
            (2.0, 0.995_322_265_0),
            (3.0, 0.999_977_909_5),
            (9.0, 1.0),
        ] {
            for sign in [1.0, -1.0] {
                let error = (f64::from(erf(sign * x)) - f64::from(sign) * value).abs();
                assert!(error < 5e-7, "erf({x}) is off by {error:e}");
            }
        }
    }
}
