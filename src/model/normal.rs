//! Values that weights begin with.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// `n` values of a normal distribution that depend on `seed` and `name` only.
pub fn normal(seed: u64, name: &str, n: usize, deviation: f32) -> Vec<f32> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.update(name.as_bytes());
    let mut rng = ChaCha8Rng::from_seed(*hasher.finalize().as_bytes());
    let mut values = Vec::with_capacity(n + 1);
    while values.len() < n {
        // Box and Muller: two normal values out of two uniform ones.
        let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
        let angle = std::f64::consts::TAU * rng.random::<f64>();
        values.push((radius * angle.cos()) as f32 * deviation);
        values.push((radius * angle.sin()) as f32 * deviation);
    }
    values.truncate(n);
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_depend_on_seed_and_name_only() {
        assert_eq!(normal(1, "a", 5, 1.0), normal(1, "a", 5, 1.0));
        assert_ne!(normal(1, "a", 5, 1.0), normal(1, "b", 5, 1.0));
        assert_ne!(normal(1, "a", 5, 1.0), normal(2, "a", 5, 1.0));
        let values = normal(3, "x", 10_000, 2.0);
        let mean = values.iter().sum::<f32>() / 1e4;
        let variance = values.iter().map(|v| v * v).sum::<f32>() / 1e4;
        assert!(mean.abs() < 0.1 && (variance - 4.0).abs() < 0.2, "{mean} {variance}");
    }
}
