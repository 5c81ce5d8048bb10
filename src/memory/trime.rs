//! The memories of a model that was trained with them (TRIME; Zhong, Lei and Chen 2022,
//! <https://arxiv.org/abs/2205.12674>): contexts beside the output embeddings in one softmax (equation 4).

use std::collections::VecDeque;

/// The memories along a text: its last contexts.
pub(super) struct Trime {
    window: usize,
    recent: VecDeque<(Vec<f32>, u32)>,
}

impl Trime {
    pub fn new(window: usize) -> Self {
        Self { window, recent: VecDeque::new() }
    }

    /// Forgets the text so far.
    pub fn clear(&mut self) {
        self.recent.clear();
    }

    /// The probability of each of `tokens`, in the order of the text, given the contexts `[tokens, dim]` that they came
    /// after, and their negative log likelihoods and logits under the vocabulary alone.
    pub fn probabilities(
        &mut self,
        contexts: &[f32],
        tokens: &[u32],
        nats: &[f32],
        logits: &[f32],
    ) -> Vec<f64> {
        let dim = (contexts.len() / tokens.len().max(1)).max(1);
        let scale = (dim as f64).powf(-0.5);
        let mut all = Vec::with_capacity(tokens.len());
        for (i, context) in contexts.chunks_exact(dim).enumerate() {
            let score = |other: &[f32]| f64::from(product(context, other)) * scale;
            let memories: Vec<(u32, f64)> =
                self.recent.iter().map(|(other, token)| (*token, score(other))).collect();
            all.push(probability(tokens[i], nats[i].into(), logits[i].into(), &memories));
            if self.recent.len() == self.window {
                self.recent.pop_front();
            }
            self.recent.push_back((context.to_vec(), tokens[i]));
        }
        all
    }
}

/// The probability of `token` in one softmax over the vocabulary and `memories`: a token and a score each.
fn probability(token: u32, nats: f64, logit: f64, memories: &[(u32, f64)]) -> f64 {
    // Of the vocabulary's logits only the sum of exp is known, and the token's own.
    let all = nats + logit;
    let highest = memories.iter().map(|(_, score)| *score).fold(all, f64::max);
    let weight = |score: f64| (score - highest).exp();
    let sum = |wanted: &dyn Fn(u32) -> bool| -> f64 {
        memories.iter().filter(|(other, _)| wanted(*other)).map(|(_, score)| weight(*score)).sum()
    };
    (weight(logit) + sum(&|other| other == token)) / (weight(all) + sum(&|_| true))
}

fn product(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fails when the vocabulary's sum is left out, or a memory counts as two tokens.
    #[test]
    fn vocabulary_and_memories_are_one_softmax() {
        let logits = [0.3f64, -1.0, 2.0];
        let memories = [(1, 0.5), (2, 1.5), (1, -0.2)];
        let all = logits.iter().map(|l| l.exp()).sum::<f64>();
        let total = all + memories.iter().map(|(_, score): &(u32, f64)| score.exp()).sum::<f64>();
        let mut sum = 0.0;
        for token in 0..3u32 {
            let logit = logits[token as usize];
            let of_memories: f64 =
                memories.iter().filter(|(other, _)| *other == token).map(|(_, score)| score.exp()).sum();
            let found = probability(token, all.ln() - logit, logit, &memories);
            assert!((found - (logit.exp() + of_memories) / total).abs() < 1e-12);
            sum += found;
        }
        assert!((sum - 1.0).abs() < 1e-12);
        assert!((probability(0, 1.0, 5.0, &[]) - (-1f64).exp()).abs() < 1e-12);
        // Scores that no exp can hold.
        assert!(
            (probability(1, 2.0, 0.0, &[(1, 4000.0), (0, 3999.0)]) - 1.0 / (1.0 + (-1f64).exp())).abs()
                < 1e-9
        );
    }

    #[test]
    fn the_window_holds_the_last_contexts_of_this_document() {
        let mut trime = Trime::new(2);
        let ln2 = 2f32.ln();
        // Each context is 1, so every memory has a score of 1; token 7 has a logit of 0 of two alike.
        let expected = |right: f64, memories: f64| (1.0 + right * 1f64.exp()) / (2.0 + memories * 1f64.exp());
        let found = trime.probabilities(&[1.0; 4], &[7, 7, 8, 7], &[ln2; 4], &[0.0; 4]);
        let right = [expected(0.0, 0.0), expected(1.0, 1.0), expected(0.0, 2.0), expected(1.0, 2.0)];
        assert!(found.iter().zip(right).all(|(a, b)| (a - b).abs() < 1e-6), "{found:?} {right:?}");
        trime.clear();
        let again = trime.probabilities(&[1.0], &[9], &[ln2], &[0.0]);
        assert!((again[0] - 0.5).abs() < 1e-6);
    }
}
