//! The continuous cache: the last contexts of the text at hand.

use std::collections::VecDeque;

/// What a text has said so far: `p(w) ∝ Σ_{j: x_j = w} exp(θ cos(h, h_j))` over the last contexts `h_j` and the tokens
/// `x_j` that came after them (Grave et al. 2017, equation 3, with the cosine in place of the inner product, so that
/// θ means the same for every model).
pub struct Cache {
    window: usize,
    theta: f32,
    contexts: VecDeque<(Vec<f32>, u32)>,
}

impl Cache {
    /// An empty cache of the last `window` contexts, sharpened by `theta`.
    pub fn new(window: usize, theta: f32) -> Self {
        Self { window, theta, contexts: VecDeque::new() }
    }

    /// Forgets everything, as a new document begins.
    pub fn clear(&mut self) {
        self.contexts.clear();
    }

    /// The probability of `token` after `context`; `None` while there is nothing to go by.
    pub fn probability(&self, context: &[f32], token: u32) -> Option<f64> {
        let context = unit(context);
        let scores: Vec<(f32, bool)> = self
            .contexts
            .iter()
            .map(|(other, next)| {
                let cosine: f32 = context.iter().zip(other).map(|(a, b)| a * b).sum();
                // Rounded to more than 1, it could take a large θ to infinity.
                (self.theta * cosine.clamp(-1.0, 1.0), *next == token)
            })
            .collect();
        let highest = scores.iter().map(|(score, _)| *score).fold(f32::NEG_INFINITY, f32::max);
        let sum = |wanted: bool| -> f64 {
            let scores = scores.iter().filter(|(_, same)| *same || !wanted);
            scores.map(|(score, _)| f64::from(score - highest).exp()).sum()
        };
        (!scores.is_empty()).then(|| sum(true) / sum(false))
    }

    /// Notes that `token` came after `context`.
    pub fn push(&mut self, context: &[f32], token: u32) {
        if self.contexts.len() == self.window {
            self.contexts.pop_front();
        }
        if self.window > 0 {
            self.contexts.push_back((unit(context), token));
        }
    }
}

/// Scaled to length 1; zeros stay.
fn unit(vector: &[f32]) -> Vec<f32> {
    let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
    vector.iter().map(|x| if length > 0.0 { x / length } else { 0.0 }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_after_like_contexts_are_likely() {
        let mut cache = Cache::new(3, 2.0);
        assert_eq!(cache.probability(&[1.0, 0.0], 7), None);
        cache.push(&[9.0, 0.0], 1); // falls out of the window
        cache.push(&[3.0, 0.0], 7);
        cache.push(&[0.0, 2.0], 8);
        cache.push(&[-1.0, 0.0], 7);
        let weights = [2f64.exp(), 1.0, (-2f64).exp()];
        let expected = (weights[0] + weights[2]) / weights.iter().sum::<f64>();
        assert!((cache.probability(&[5.0, 0.0], 7).unwrap() - expected).abs() < 1e-6);
        let all: f64 = [1, 7, 8].iter().filter_map(|&w| cache.probability(&[5.0, 0.0], w)).sum();
        assert!((all - 1.0).abs() < 1e-6, "{all}");
        assert_eq!(cache.probability(&[5.0, 0.0], 1), Some(0.0));
        cache.clear();
        assert_eq!(cache.probability(&[1.0, 0.0], 7), None);
    }

    #[test]
    fn the_largest_theta_takes_what_is_nearest() {
        for i in 1..200u8 {
            let context = [1.0, f32::from(i) / 7.0, f32::from(i) / 3.0];
            let mut cache = Cache::new(2, f32::MAX);
            cache.push(&context, 7);
            cache.push(&context.map(|x| -x), 8);
            assert_eq!(cache.probability(&context, 7), Some(1.0), "{context:?}");
        }
    }
}
