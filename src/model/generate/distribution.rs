//! From logits to the tokens that may come next.

use std::collections::HashSet;

use rand::Rng;

use super::options::Options;

/// How many of the likeliest tokens are put in order at first, to find those that have top-p together.
const SORTED: usize = 128;

/// Divides the positive logits of `seen` by `penalty` and multiplies the negative ones (Keskar et al. 2019,
/// section 4.1, with the sign taken care of as in transformers).
pub fn penalise(logits: &mut [f32], seen: &HashSet<u32>, penalty: f64) {
    let penalty = penalty as f32;
    for token in seen {
        if let Some(logit) = logits.get_mut(*token as usize) {
            *logit = if *logit < 0.0 { *logit * penalty } else { *logit / penalty };
        }
    }
}

/// The place of the largest value; of equal ones, the first.
pub fn largest(values: impl Iterator<Item = f32>) -> usize {
    let mut best = (0, f32::NEG_INFINITY);
    for (i, value) in values.enumerate() {
        if value > best.1 {
            best = (i, value);
        }
    }
    best.0
}

/// ln of the sum of exp, the number that makes log-probabilities of logits when taken off.
pub fn log_sum_exp(logits: &[f32]) -> f32 {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    // In f32 by blocks, which the compiler turns into vectors, and those in f64.
    let total: f64 = logits
        .chunks(256)
        .map(|block| f64::from(block.iter().map(|logit| (logit - largest).exp()).sum::<f32>()))
        .sum();
    largest + total.ln() as f32
}

/// The `n` largest logits with their tokens, largest first; of equal ones, the earlier token first.
pub fn top(logits: &[f32], n: usize) -> Vec<(u32, f32)> {
    let n = n.min(logits.len());
    let room = 4 * n.max(16);
    let mut best: Vec<(u32, f32)> = Vec::with_capacity(room);
    let mut least = f32::NEG_INFINITY;
    for (token, logit) in logits.iter().enumerate() {
        if *logit > least || best.len() < n {
            best.push((token as u32, *logit));
        }
        // Now and then all but the best are thrown out; what is no larger than the last of them cannot be among them.
        if best.len() == room {
            order(&mut best, n);
            best.truncate(n);
            least = best.last().map_or(f32::INFINITY, |(_, logit)| *logit);
        }
    }
    order(&mut best, n);
    best.truncate(n);
    best
}

/// Brings the `n` largest to the front, in order.
fn order(all: &mut [(u32, f32)], n: usize) {
    let larger = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    let n = n.min(all.len());
    if n == 0 {
        return;
    }
    if n < all.len() {
        all.select_nth_unstable_by(n - 1, larger);
    }
    all[..n].sort_unstable_by(larger);
}

/// Tokens to draw from, each with its weight; the weights need not sum to 1.
#[derive(Debug)]
pub struct Distribution {
    tokens: Vec<(u32, f32)>,
}

impl Distribution {
    /// What is left of `tokens`, logits that the penalty was applied to, after temperature, top-k, top-p and min-p
    /// in this order. The temperature is more than 0.
    pub fn new(mut tokens: Vec<(u32, f32)>, options: &Options) -> Self {
        let k = options.top_k;
        if k > 0 && k < tokens.len() {
            tokens.select_nth_unstable_by(k - 1, |a, b| b.1.total_cmp(&a.1));
            // As in transformers, those equal to the last are kept with it.
            let least = tokens[k - 1].1;
            tokens.retain(|(_, logit)| *logit >= least);
        }
        let largest = tokens.iter().map(|(_, logit)| *logit).fold(f32::NEG_INFINITY, f32::max);
        // The largest weight is 1, however cold it is.
        let scale = (1.0 / options.temperature).min(f64::from(f32::MAX)) as f32;
        for (_, logit) in &mut tokens {
            *logit = ((*logit - largest) * scale).exp();
        }
        if options.top_p < 1.0 {
            keep_mass(&mut tokens, options.top_p);
        }
        if options.min_p > 0.0 {
            tokens.retain(|(_, weight)| f64::from(*weight) >= options.min_p);
        }
        // Whatever order the tokens were brought into, a draw depends on the weights alone.
        tokens.sort_unstable_by_key(|(token, _)| *token);
        Self { tokens }
    }

    /// Draws a token.
    pub fn draw(&self, rng: &mut impl Rng) -> Option<u32> {
        let total: f64 = self.tokens.iter().map(|(_, weight)| f64::from(*weight)).sum();
        let mut left = rng.random::<f64>() * total;
        let drawn = self.tokens.iter().find(|(_, weight)| {
            left -= f64::from(*weight);
            left < 0.0
        });
        // Rounding may leave a little over at the end.
        drawn.or(self.tokens.iter().rev().find(|(_, weight)| *weight > 0.0)).map(|(token, _)| *token)
    }

    /// The tokens with their probabilities, in the order of their ids.
    #[cfg(test)]
    pub fn probabilities(&self) -> Vec<(u32, f64)> {
        let total: f64 = self.tokens.iter().map(|(_, weight)| f64::from(*weight)).sum();
        self.tokens.iter().map(|(token, weight)| (*token, f64::from(*weight) / total)).collect()
    }
}

/// Keeps the fewest of the largest weights that have `share` of the total. Only as many as that takes are put in
/// order.
fn keep_mass(tokens: &mut Vec<(u32, f32)>, share: f64) {
    let enough = share * tokens.iter().map(|(_, weight)| f64::from(*weight)).sum::<f64>();
    let mut sorted = SORTED;
    loop {
        sorted = sorted.min(tokens.len());
        order(tokens, sorted);
        let mut mass = 0.0;
        let kept = tokens[..sorted].iter().position(|(_, weight)| {
            mass += f64::from(*weight);
            mass >= enough
        });
        match kept {
            Some(last) => return tokens.truncate(last + 1),
            None if sorted == tokens.len() => return,
            None => sorted *= 4,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    fn logits(n: usize, seed: u64) -> Vec<(u32, f32)> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        (0..n as u32).map(|token| (token, rng.random_range(-4.0..4.0))).collect()
    }

    /// Against a full sort.
    #[test]
    fn the_fewest_likeliest_tokens_are_kept() {
        for (n, top_p) in [(1, 0.5), (7, 0.01), (50, 0.4), (1000, 0.3), (3000, 0.999), (3000, 0.8)] {
            let options = Options { top_p, temperature: 0.7, ..Options::default() };
            let kept = Distribution::new(logits(n, 3), &options).probabilities();
            let mut all =
                Distribution::new(logits(n, 3), &Options { temperature: 0.7, ..Options::default() })
                    .probabilities();
            assert_eq!(all.len(), n);
            all.sort_by(|a, b| b.1.total_cmp(&a.1));
            let mut before = 0.0;
            let mut expected: Vec<u32> = Vec::new();
            for (token, p) in all {
                if before < top_p {
                    expected.push(token);
                }
                before += p;
            }
            expected.sort_unstable();
            let tokens: Vec<u32> = kept.iter().map(|(token, _)| *token).collect();
            assert_eq!(tokens, expected, "{n} {top_p}");
            assert!((kept.iter().map(|(_, p)| p).sum::<f64>() - 1.0).abs() < 1e-6);
        }
    }

    #[test]
    fn draws_follow_the_weights() {
        let options = Options { temperature: 1.0, top_k: 3, ..Options::default() };
        let distribution = Distribution::new(vec![(0, 0.0), (1, 1.0), (2, -9.0), (3, 2.0)], &options);
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let mut counts = [0f64; 4];
        for _ in 0..20_000 {
            counts[distribution.draw(&mut rng).unwrap() as usize] += 1.0 / 20_000.0;
        }
        assert_eq!(counts[2], 0.0);
        for (token, p) in distribution.probabilities() {
            assert!((counts[token as usize] - p).abs() < 0.02, "{token}: {} {p}", counts[token as usize]);
        }
    }

    #[test]
    fn ties_and_extremes() {
        // Equal to the k-th: all kept. Nothing is drawn from nothing.
        let options = Options { temperature: 1.0, top_k: 2, ..Options::default() };
        let kept = |tokens: Vec<(u32, f32)>| Distribution::new(tokens, &options).probabilities().len();
        assert_eq!(kept(vec![(0, 1.0), (1, 1.0), (2, 1.0), (3, 0.0)]), 3);
        let none = Distribution::new(Vec::new(), &options);
        assert_eq!(none.draw(&mut ChaCha8Rng::seed_from_u64(0)), None);
        let cold = Options { temperature: 1e-9, ..Options::default() };
        let cold = Distribution::new(vec![(4, 1.0), (5, 1.001)], &cold);
        assert_eq!(cold.draw(&mut ChaCha8Rng::seed_from_u64(0)), Some(5));
        assert_eq!(largest([1.0, 3.0, 3.0].into_iter()), 1);
        assert_eq!(top(&[1.0, 3.0, 2.0, 3.0], 3), [(1, 3.0), (3, 3.0), (2, 2.0)]);
        assert_eq!(top(&[1.0, 3.0], usize::MAX), [(1, 3.0), (0, 1.0)]);
        assert!((log_sum_exp(&[1000.0, 1000.0]) - 1000.6931).abs() < 1e-3);
        let many: Vec<f32> = logits(1000, 4).iter().map(|(_, logit)| (logit * 20.0).round()).collect();
        for n in [0, 1, 17, 400, 1000, 2000] {
            let mut sorted: Vec<(u32, f32)> =
                many.iter().enumerate().map(|(token, logit)| (token as u32, *logit)).collect();
            sorted.sort_by(|a, b| b.1.total_cmp(&a.1));
            sorted.truncate(n);
            assert_eq!(top(&many, n), sorted, "{n}");
        }
        let mut logits = [2.0, -2.0, 5.0];
        penalise(&mut logits, &HashSet::from([0, 1, 9]), 2.0);
        assert_eq!(logits, [1.0, -4.0, 5.0]);
    }
}
