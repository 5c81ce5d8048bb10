//! Normalisation in place.

use crate::simd::{sum, vectorised};

/// Normalises each row of `x`, as wide as `weight` and `bias`, to mean 0 and variance 1, then times `weight` plus
/// `bias` (Ba et al. 2016, <https://arxiv.org/abs/1607.06450>, equation 3).
///
/// # Panics
/// When `bias` is not as wide as `weight`.
pub fn layer_norm(x: &mut [f32], weight: &[f32], bias: &[f32], epsilon: f32) {
    assert_eq!(weight.len(), bias.len(), "weight and bias of a norm");
    normalise(x, weight, bias, epsilon);
}

vectorised! {
    fn normalise(x: &mut [f32], weight: &[f32], bias: &[f32], epsilon: f32) {
        let n = weight.len();
        let bias = &bias[..n];
        for row in x.chunks_exact_mut(n.max(1)) {
            let mean = sum(n, |i| row[i]) / n as f32;
            let variance = sum(n, |i| (row[i] - mean) * (row[i] - mean)) / n as f32;
            let scale = 1.0 / (variance + epsilon).sqrt();
            for i in 0..n {
                row[i] = (row[i] - mean) * scale * weight[i] + bias[i];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_normalised() {
        for n in [1usize, 2, 15, 16, 17, 100] {
            let x: Vec<f32> = (0..3 * n).map(|i| ((i * 37) % 11) as f32 - 3.0).collect();
            let weight: Vec<f32> = (0..n).map(|i| 1.0 + i as f32 / 10.0).collect();
            let bias: Vec<f32> = (0..n).map(|i| i as f32 / 5.0 - 1.0).collect();
            let mut out = x.clone();
            layer_norm(&mut out, &weight, &bias, 1e-5);
            for (row, out) in x.chunks_exact(n).zip(out.chunks_exact(n)) {
                let mean = row.iter().map(|&x| f64::from(x)).sum::<f64>() / n as f64;
                let variance = row.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / n as f64;
                for i in 0..n {
                    let exact = (f64::from(row[i]) - mean) / (variance + 1e-5).sqrt() * f64::from(weight[i])
                        + f64::from(bias[i]);
                    assert!((f64::from(out[i]) - exact).abs() < 1e-4, "{n} wide, at {i}");
                }
            }
        }
    }
}
