//! Normalisation over the last dimension.

use candle_core::{Result, Tensor};

use crate::composed;

/// Root mean square normalisation over the last dimension: `x / sqrt(mean(x^2) + eps) * weight`
/// (Zhang and Sennrich 2019, <https://arxiv.org/abs/1910.07467>, equation 4).
///
/// `x` is `[.., dim]`, `weight` is `[dim]`; both get gradients.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    composed::rms_norm(x, weight, eps)
}

/// Layer normalisation over the last dimension:
/// `(x - mean(x)) / sqrt(var(x) + eps) * weight + bias` with the biased variance
/// (Ba et al. 2016, <https://arxiv.org/abs/1607.06450>).
///
/// `x` is `[.., dim]`, `weight` and `bias` are `[dim]`; all three get gradients.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f32) -> Result<Tensor> {
    composed::layer_norm(x, weight, bias, eps)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::*;

    #[test]
    fn rms_norm_is_right() {
        let op = |t: &[Tensor]| rms_norm(&t[0], &t[1], 1e-5);
        assert_gradients_are_slopes(&[random(&[2, 3, 5], 1), random(&[5], 2)], op);
        for dim in [1, 7, 64, 129] {
            let inputs = [random(&[3, 43, dim], 1), random(&[dim], 2)];
            assert_matches_f64(&inputs, 1e-5, op);
            assert_same_on_any_number_of_threads(&inputs, op);
        }
    }

    #[test]
    fn layer_norm_is_right() {
        let op = |t: &[Tensor]| layer_norm(&t[0], &t[1], &t[2], 1e-5);
        assert_gradients_are_slopes(&[random(&[2, 3, 5], 1), random(&[5], 2), random(&[5], 3)], op);
        for dim in [2, 7, 64, 129] {
            let inputs = [random(&[3, 43, dim], 1), random(&[dim], 2), random(&[dim], 3)];
            assert_matches_f64(&inputs, 1e-5, op);
            assert_same_on_any_number_of_threads(&inputs, op);
        }
    }
}
