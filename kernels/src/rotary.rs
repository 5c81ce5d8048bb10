//! Rotary position embedding.

use candle_core::{Result, Tensor};

use crate::composed;

/// Rotary position embedding (Su et al. 2021, <https://arxiv.org/abs/2104.09864>, equation 34) in the
/// order of Llama and Hugging Face: component `i` turns together with component `i + dim / 2`.
///
/// `x` is `[batch, heads, tokens, dim]` and gets a gradient; `cos` and `sin` are
/// `[tokens, dim / 2]` and are constants.
pub fn rotary(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    composed::rotary(x, cos, sin)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::*;

    #[test]
    fn rotary_is_right() {
        for (batch, heads, tokens, dim) in [(1, 1, 1, 2), (2, 3, 5, 6), (2, 3, 41, 32)] {
            let angles = (random(&[tokens, dim / 2], 5) * 4.0).unwrap();
            let (cos, sin) = (angles.cos().unwrap(), angles.sin().unwrap());
            let op = |t: &[Tensor]| rotary(&t[0], &cos.to_dtype(t[0].dtype())?, &sin.to_dtype(t[0].dtype())?);
            let inputs = [random(&[batch, heads, tokens, dim], 1)];
            if tokens < 10 {
                assert_gradients_are_slopes(&inputs, op);
            }
            assert_matches_f64(&inputs, 1e-6, op);
            assert_same_on_any_number_of_threads(&inputs, op);
        }
    }
}
