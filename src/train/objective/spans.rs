//! T5's span corruption (Raffel et al. 2020, <https://arxiv.org/abs/1910.10683>, section 3.1.4): some spans of the text
//! are each replaced by a sentinel, and the spans are predicted, each behind its sentinel.

use rand::seq::index::sample;
use rand_chacha::ChaCha8Rng;

/// How much is corrupted, and with which tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct Spans {
    /// Share of the tokens that are taken out; 0.15 in the paper.
    pub density: f64,
    /// Mean length of a span; 3 in the paper.
    pub mean_length: f64,
    /// The tokens that stand for spans, in order (`<extra_id_0>`, `<extra_id_1>`, ...).
    pub sentinels: Vec<u32>,
}

/// A corrupted text and what was taken out of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Corrupted {
    /// The text with a sentinel in place of each span.
    pub input: Vec<u32>,
    /// Each span behind its sentinel.
    pub target: Vec<u32>,
}

impl Spans {
    /// How many spans are taken out of a text of `tokens` tokens.
    pub fn count(&self, tokens: usize) -> usize {
        self.wanted(tokens).min(self.sentinels.len())
    }

    /// How many would be, were there sentinels enough.
    pub fn wanted(&self, tokens: usize) -> usize {
        let noise = self.noise(tokens);
        let spans = (noise as f64 / self.mean_length).round() as usize;
        // Each span needs a token of its own, and one before it that stays.
        spans.max(1).min(noise).min(tokens.saturating_sub(noise))
    }

    fn noise(&self, tokens: usize) -> usize {
        ((tokens as f64 * self.density).round() as usize).max(1).min(tokens.saturating_sub(1))
    }

    /// Takes spans out of `tokens`, as T5's own code does: the text begins with a stretch that stays, stretches
    /// and spans take turns, and the lengths of both are drawn so that every division is equally likely. `None` where
    /// the text is too short, or there are no sentinels.
    pub fn apply(&self, tokens: &[u32], rng: &mut ChaCha8Rng) -> Option<Corrupted> {
        let (noise, spans) = (self.noise(tokens.len()), self.count(tokens.len()));
        if spans == 0 {
            return None;
        }
        let lengths = [divide(tokens.len() - noise, spans, rng), divide(noise, spans, rng)];
        let (mut input, mut target) = (Vec::new(), Vec::new());
        let mut rest = tokens;
        for ((stays, goes), sentinel) in lengths[0].iter().zip(&lengths[1]).zip(&self.sentinels) {
            let (stretch, after) = rest.split_at(*stays);
            let (span, after) = after.split_at(*goes);
            input.extend(stretch);
            input.push(*sentinel);
            target.push(*sentinel);
            target.extend(span);
            rest = after;
        }
        Some(Corrupted { input, target })
    }

    /// The text that was corrupted; `None` where input and target do not belong together.
    pub fn invert(&self, corrupted: &Corrupted) -> Option<Vec<u32>> {
        let mut text = Vec::new();
        let mut rest = &corrupted.target[..];
        let mut sentinels = self.sentinels.iter().peekable();
        for token in &corrupted.input {
            if Some(&token) != sentinels.peek() {
                text.push(*token);
                continue;
            }
            rest = rest.strip_prefix(&[*token])?;
            sentinels.next();
            let end = match sentinels.peek() {
                Some(next) => rest.iter().position(|t| t == *next).unwrap_or(rest.len()),
                None => rest.len(),
            };
            text.extend(&rest[..end]);
            rest = &rest[end..];
        }
        rest.is_empty().then_some(text)
    }
}

/// `total` as a sum of `parts` numbers of at least 1, every sum as likely as any other.
fn divide(total: usize, parts: usize, rng: &mut ChaCha8Rng) -> Vec<usize> {
    let mut cuts: Vec<usize> = sample(rng, total - 1, parts - 1).into_iter().map(|cut| cut + 1).collect();
    cuts.extend([0, total]);
    cuts.sort_unstable();
    cuts.windows(2).map(|pair| pair[1] - pair[0]).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::SeedableRng;

    use super::*;

    fn spans(density: f64, mean_length: f64) -> Spans {
        Spans { density, mean_length, sentinels: (1000..1100).rev().collect() }
    }

    #[test]
    fn every_division_comes_up_equally_often() {
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        let mut seen = std::collections::BTreeMap::new();
        for _ in 0..6000 {
            *seen.entry(divide(5, 3, &mut rng)).or_insert(0) += 1;
        }
        assert_eq!(seen.len(), 6, "{seen:?}");
        assert!(seen.values().all(|&count| (850..1150).contains(&count)), "{seen:?}");
    }

    #[test]
    fn the_papers_shares() {
        let spans = spans(0.15, 3.0);
        let text: Vec<u32> = (0..512).collect();
        let out = spans.apply(&text, &mut ChaCha8Rng::seed_from_u64(0)).unwrap();
        // T5's own figures for 512 tokens: 77 of them in 26 spans.
        assert_eq!((out.input.len(), out.target.len()), (512 - 77 + 26, 77 + 26));
        assert_eq!(out.target[0], 1099);
        assert_eq!(spans.invert(&out).unwrap(), text);
    }

    #[test]
    fn parts_that_do_not_belong_together_are_refused() {
        let spans = spans(0.5, 1.0);
        let input = vec![1, 1099, 2];
        assert_eq!(spans.invert(&Corrupted { input: input.clone(), target: vec![1098, 7] }), None);
        assert_eq!(spans.invert(&Corrupted { input, target: vec![1099, 7] }), Some(vec![1, 7, 2]));
        assert_eq!(spans.invert(&Corrupted { input: vec![1], target: vec![1099, 7] }), None);
    }

    proptest! {
        #[test]
        fn nothing_is_lost(
            text in prop::collection::vec(0u32..1000, 0..80), seed: u64, density in 0.0..1.0f64, mean in 1.0..9.0f64
        ) {
            let spans = spans(density, mean);
            let out = spans.apply(&text, &mut ChaCha8Rng::seed_from_u64(seed));
            prop_assert_eq!(out.is_some(), text.len() > 1);
            if let Some(out) = out {
                let count = spans.count(text.len());
                prop_assert_eq!(out.input.len() + out.target.len(), text.len() + 2 * count);
                prop_assert_eq!(spans.invert(&out), Some(text));
            }
        }
    }
}
