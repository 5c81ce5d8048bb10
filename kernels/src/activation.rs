//! Activation functions.

use candle_core::{Result, Tensor};

use crate::composed;

/// `silu(gate) * up` (Shazeer 2020, <https://arxiv.org/abs/2002.05202>, equation 6).
///
/// Both inputs have the same shape and both get gradients.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    composed::swiglu(gate, up)
}

/// Gaussian error linear unit in the exact form, `x * (1 + erf(x / sqrt(2))) / 2`
/// (Hendrycks and Gimpel 2016, <https://arxiv.org/abs/1606.08415>, equation 1).
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    composed::gelu(x)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::*;

    #[test]
    fn swiglu_is_right() {
        let op = |t: &[Tensor]| swiglu(&t[0], &t[1]);
        assert_gradients_are_slopes(&[random(&[3, 5], 1), random(&[3, 5], 2)], op);
        for shape in [&[1usize][..], &[3, 5, 7], &[70, 1001]] {
            let inputs = [(random(shape, 1) * 20.0).unwrap(), random(shape, 2)];
            assert_matches_f64(&inputs, 1e-6, op);
            assert_same_on_any_number_of_threads(&inputs, op);
        }
    }

    #[test]
    fn gelu_is_right() {
        let op = |t: &[Tensor]| gelu(&t[0]);
        assert_gradients_are_slopes(&[(random(&[7, 5], 1) * 3.0).unwrap()], op);
        for shape in [&[1usize][..], &[3, 5, 7], &[70, 1001]] {
            let inputs = [(random(shape, 1) * 8.0).unwrap()];
            assert_matches_f64(&inputs, 1e-6, op);
            assert_same_on_any_number_of_threads(&inputs, op);
        }
    }
}
