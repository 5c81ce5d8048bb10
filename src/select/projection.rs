//! Long vectors made short, so that their inner products stay nearly what they were.

use crate::pool::ngrams::mix;

/// Blocks of the short vector, in each of which a number of the long one has one place.
const BLOCKS: usize = 4;

/// A sparse Johnson-Lindenstrauss projection (Kane and Nelson 2014, "Sparser Johnson-Lindenstrauss transforms", block
/// construction, <https://arxiv.org/abs/1012.1577>): every number is added to or taken from one place of each of four blocks,
/// by a hash of its own place, times 1/2. Inner products are kept in expectation over the seed, with a variance of at most
/// 2 |x|^2 |y|^2 / `to`; squared lengths likewise.
#[derive(Debug, Clone, Copy)]
pub struct Projection {
    seed: u64,
    /// Places of a block; a power of two.
    block: usize,
}

impl Projection {
    /// To `to` numbers, a power of two of at least four and at most 2^18.
    pub fn new(to: usize, seed: u64) -> Self {
        debug_assert!(to.is_power_of_two() && (BLOCKS..=1 << 18).contains(&to));
        Self { seed: mix(seed), block: to / BLOCKS }
    }

    /// `vector` made short.
    pub fn apply(&self, vector: &[f32]) -> Vec<f32> {
        let mut short = vec![0f32; BLOCKS * self.block];
        let scale = (BLOCKS as f32).sqrt().recip();
        for (place, value) in vector.iter().enumerate().filter(|(_, value)| **value != 0.0) {
            // Sixteen bits a block, and a sign for each in what follows them.
            let places = mix(self.seed ^ place as u64);
            let signs = mix(!places);
            for (number, block) in short.chunks_exact_mut(self.block).enumerate() {
                let at = (places >> (16 * number)) as usize & (self.block - 1);
                block[at] += if signs >> number & 1 == 0 { scale * value } else { -scale * value };
            }
        }
        short
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dot(a: &[f32], b: &[f32]) -> f64 {
        a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    }

    /// Fails when signs or scale are wrong: without signs everything looks alike.
    #[test]
    fn inner_products_are_kept() {
        let number = |i: u64| (mix(i) >> 40) as f32 / (1u64 << 24) as f32 - 0.4;
        let a: Vec<f32> = (0..5000).map(number).collect();
        let b: Vec<f32> = (0..5000).map(|i| number(i) / 2.0 + number(i + 9000)).collect();
        let size = (dot(&a, &a) * dot(&b, &b)).sqrt();
        let (mut sum, mut squares, tries) = (0.0, 0.0, 200);
        for seed in 0..tries {
            let project = Projection::new(1024, seed);
            let error = (dot(&project.apply(&a), &project.apply(&b)) - dot(&a, &b)) / size;
            sum += error;
            squares += error * error;
        }
        let (mean, deviation) = (sum / tries as f64, (squares / tries as f64).sqrt());
        // The bound, sqrt(2 / 1024) = 0.044; the mean of 200 lies within four of its own deviations.
        assert!(deviation < 0.05, "{deviation}");
        assert!(mean.abs() < 4.0 * 0.05 / (tries as f64).sqrt(), "{mean}");
        let project = Projection::new(1024, 1);
        assert_eq!(project.apply(&a), Projection::new(1024, 1).apply(&a));
        assert_ne!(project.apply(&a), Projection::new(1024, 2).apply(&a));
    }
}
