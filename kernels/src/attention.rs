//! Scaled dot-product attention.

use candle_core::{Result, Tensor, bail};

use crate::composed;

/// What [`attention`] does between the scores and their softmax.
#[derive(Clone, Copy, Debug)]
pub struct AttentionOptions<'a> {
    /// Query `i` sees only keys `j <= i + (keys - queries)`: the last query sees every key.
    pub causal: bool,
    /// What the dot products are multiplied by, usually `1 / sqrt(dim)`; T5 uses 1.
    pub scale: f32,
    /// Added to the scores, `[heads, queries, keys]`; gets a gradient.
    pub bias: Option<&'a Tensor>,
    /// `[batch, keys]` as `u8`: 1 where the key may be attended, 0 where not.
    pub key_mask: Option<&'a Tensor>,
    /// `[heads]`: the score of one extra key whose value is zero, which lets a head attend to
    /// nothing; gets a gradient.
    pub sink: Option<&'a Tensor>,
}

/// Scaled dot-product attention with grouped key heads: `softmax(scale * q k^T + bias) v`
/// (Vaswani et al. 2017, <https://arxiv.org/abs/1706.03762>, equation 1).
///
/// `q` is `[batch, heads, queries, dim]`, `k` and `v` are `[batch, kv_heads, keys, dim]` where
/// `kv_heads` divides `heads`; query head `h` reads key head `h / (heads / kv_heads)`. The result is
/// `[batch, heads, queries, dim]`. A query that may attend to no key gives exactly zero and zero
/// gradients. `q`, `k`, `v`, the bias and the sink get gradients.
///
/// # Errors
/// When the shapes do not fit together.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, options: &AttentionOptions) -> Result<Tensor> {
    check(q, k, v, options)?;
    composed::attention(q, k, v, options)
}

fn check(q: &Tensor, k: &Tensor, v: &Tensor, options: &AttentionOptions) -> Result<()> {
    let (batch, heads, queries, dim) = q.dims4()?;
    let (k_batch, kv_heads, keys, k_dim) = k.dims4()?;
    if k.dims() != v.dims() || k_batch != batch || k_dim != dim || kv_heads == 0 || heads % kv_heads != 0 {
        bail!(
            "attention: q {:?}, k {:?} and v {:?} do not fit together; expected [batch, heads, queries, \
             dim] and twice [batch, kv_heads, keys, dim] where kv_heads divides heads",
            q.dims(),
            k.dims(),
            v.dims()
        );
    }
    let expect = |name: &str, tensor: Option<&Tensor>, shape: &[usize]| match tensor {
        Some(tensor) if tensor.dims() != shape => {
            bail!("attention: {name} is {:?}, expected {shape:?}", tensor.dims())
        }
        _ => Ok(()),
    };
    expect("bias", options.bias, &[heads, queries, keys])?;
    expect("key_mask", options.key_mask, &[batch, keys])?;
    expect("sink", options.sink, &[heads])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::*;
    use candle_core::Device;

    /// Batch, heads, key heads, queries, keys, dim.
    const SHAPES: [[usize; 6]; 6] = [
        [1, 1, 1, 1, 1, 1],
        [2, 4, 2, 3, 5, 3],
        [2, 2, 1, 5, 2, 4],
        [3, 2, 2, 1, 7, 8],
        [2, 4, 4, 67, 67, 16],
        [2, 6, 3, 33, 130, 20],
    ];

    fn check_shape([batch, heads, kv_heads, queries, keys, dim]: [usize; 6]) {
        let inputs = [
            random(&[batch, heads, queries, dim], 1),
            random(&[batch, kv_heads, keys, dim], 2),
            random(&[batch, kv_heads, keys, dim], 3),
            random(&[heads, queries, keys], 4),
            random(&[heads], 5),
        ];
        // The first sequence may attend to nothing.
        let mask: Vec<u8> = (0..batch * keys).map(|i| u8::from(i >= keys && i % 3 != 1)).collect();
        let mask = Tensor::from_vec(mask, (batch, keys), &Device::Cpu).unwrap();
        for variant in 0..16 {
            let [causal, biased, masked, sunk] = [1, 2, 4, 8].map(|bit| variant & bit != 0);
            let op = |t: &[Tensor]| {
                let options = AttentionOptions {
                    causal,
                    scale: 0.7,
                    bias: biased.then(|| &t[3]),
                    key_mask: masked.then_some(&mask),
                    sink: sunk.then(|| t.last().unwrap()),
                };
                attention(&t[0], &t[1], &t[2], &options)
            };
            let mut inputs = inputs.to_vec();
            if !sunk {
                inputs.pop();
            }
            if !biased {
                inputs.remove(3);
            }
            let op = |t: &[Tensor]| {
                // The bias is the fourth input only if there is one.
                op(t)
            };
            if queries * keys < 20 {
                assert_gradients_are_slopes(&inputs, op);
            }
            assert_matches_f64(&inputs, 1e-5, op);
            assert_same_on_any_number_of_threads(&inputs, op);
        }
    }

    #[test]
    fn attention_is_right() {
        SHAPES.into_iter().for_each(check_shape);
    }
}
