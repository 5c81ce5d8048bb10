//! The output layer and its loss in one operation.

use candle_core::{Result, Tensor};

use crate::composed;

/// The sum of `-log softmax(hidden weight^T)[target]` over the rows whose target is not `ignore`.
///
/// `hidden` is `[tokens, dim]`, `weight` is `[vocabulary, dim]`, `targets` is `[tokens]` as `u32`;
/// the result is a scalar (in nats). `hidden` and `weight` get gradients.
///
/// # Errors
/// When the shapes do not fit together or a target that is not ignored lies outside the vocabulary.
pub fn linear_cross_entropy(
    hidden: &Tensor,
    weight: &Tensor,
    targets: &Tensor,
    ignore: Option<u32>,
) -> Result<Tensor> {
    composed::linear_cross_entropy(hidden, weight, targets, ignore)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::*;
    use candle_core::Device;

    fn targets(tokens: usize, vocabulary: usize) -> Tensor {
        let targets: Vec<u32> =
            (0..tokens).map(|i| if i % 5 == 3 { 1_000_000 } else { (i * 7 % vocabulary) as u32 }).collect();
        Tensor::new(targets, &Device::Cpu).unwrap()
    }

    #[test]
    fn linear_cross_entropy_is_right() {
        for (tokens, dim, vocabulary) in [(1, 1, 1), (5, 3, 7), (131, 33, 259)] {
            let targets = targets(tokens, vocabulary);
            let op = |t: &[Tensor]| linear_cross_entropy(&t[0], &t[1], &targets, Some(1_000_000));
            let inputs = [(random(&[tokens, dim], 1) * 3.0).unwrap(), random(&[vocabulary, dim], 2)];
            if tokens < 10 {
                assert_gradients_are_slopes(&inputs, op);
            }
            assert_matches_f64(&inputs, 1e-5, op);
            assert_same_on_any_number_of_threads(&inputs, op);
        }
    }
}
