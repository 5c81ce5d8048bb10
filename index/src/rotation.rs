//! Random rotations by fast Hadamard transforms.

use rand::RngCore;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

/// Each round mixes one power-of-two stretch of the vector; six leave no trace of the axes.
const ROUNDS: usize = 6;

/// A random orthogonal map of `dim` numbers in O(dim log dim), for any `dim` without padding:
/// rounds of random signs and a Hadamard transform of the longest power of two that fits, in turn
/// at the beginning and at the end of the vector, so that the two overlap.
pub(crate) struct Rotation {
    /// `[ROUNDS, dim]`, plus or minus the scale that keeps lengths inside the stretch.
    signs: Vec<f32>,
    dim: usize,
    stretch: usize,
}

impl Rotation {
    /// The rotation of `seed`, the same on every machine.
    pub fn new(dim: usize, seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut signs = Vec::with_capacity(ROUNDS * dim);
        while signs.len() < ROUNDS * dim {
            let bits = rng.next_u64();
            signs.extend((0..64).map(|bit| if bits >> bit & 1 == 0 { 1.0 } else { -1.0 }));
        }
        Self { signs, dim, stretch: 1 << dim.max(1).ilog2() }
    }

    /// Rotates `vector`, which has `dim` numbers, in place.
    pub fn apply(&self, vector: &mut [f32]) {
        let scale = (self.stretch as f32).sqrt().recip();
        for round in 0..ROUNDS {
            let signs = &self.signs[round * self.dim..][..self.dim];
            vector.iter_mut().zip(signs).for_each(|(x, sign)| *x *= sign);
            let first = if round % 2 == 0 { 0 } else { self.dim - self.stretch };
            let stretch = &mut vector[first..first + self.stretch];
            hadamard(stretch);
            stretch.iter_mut().for_each(|x| *x *= scale);
        }
    }
}

/// The unscaled Walsh-Hadamard transform, in place; the length is a power of two.
fn hadamard(vector: &mut [f32]) {
    let mut half = 1;
    while half < vector.len() {
        for pair in vector.chunks_exact_mut(2 * half) {
            let (low, high) = pair.split_at_mut(half);
            for (a, b) in low.iter_mut().zip(high) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
        half *= 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metric::dot;

    #[test]
    fn keeps_inner_products_at_any_dimension() {
        for dim in [1, 2, 3, 5, 64, 65, 127, 384] {
            let rotation = Rotation::new(dim, 7);
            let mut a: Vec<f32> = (0..dim).map(|i| (i as f32 * 0.7).sin()).collect();
            let mut b: Vec<f32> = (0..dim).map(|i| (i as f32 * 1.1).cos()).collect();
            let before = [dot(&a, &a), dot(&a, &b), dot(&b, &b)];
            rotation.apply(&mut a);
            rotation.apply(&mut b);
            let after = [dot(&a, &a), dot(&a, &b), dot(&b, &b)];
            for (x, y) in before.iter().zip(after) {
                assert!((x - y).abs() < 1e-5 * dim as f32, "{dim}: {before:?} {after:?}");
            }
        }
    }

    /// An axis is the hardest vector to spread: here the stretches of 256 overlap in 128.
    #[test]
    fn spreads_every_axis_over_all_numbers() {
        let dim = 384;
        let rotation = Rotation::new(dim, 3);
        for axis in [0, 100, 200, 300, 383] {
            let mut v = vec![0.0; dim];
            v[axis] = 1.0;
            rotation.apply(&mut v);
            // A random direction has a mean absolute value of sqrt(2 / (pi dim)).
            let mean = v.iter().map(|x| x.abs()).sum::<f32>() / dim as f32;
            let random = (2.0 / (std::f32::consts::PI * dim as f32)).sqrt();
            assert!((mean / random - 1.0).abs() < 0.1, "axis {axis}: {mean} against {random}");
        }
    }
}
