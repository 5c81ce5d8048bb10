//! Filling in the middle (Bavarian et al. 2022, <https://arxiv.org/abs/2207.14255>): a part of the text is moved to
//! its end, so that a model that writes from left to right learns to write what goes between two sides.

use rand::Rng;
use rand_chacha::ChaCha8Rng;

/// In which order the parts come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// `PRE prefix SUF suffix MID middle`.
    Psm,
    /// `PRE SUF suffix MID prefix middle`, the paper's form of suffix first that learns from both layouts at once.
    Spm,
}

/// The tokens that part the text, and how often which layout is taken.
#[derive(Debug, Clone, PartialEq)]
pub struct Infilling {
    /// Before the prefix.
    pub prefix: u32,
    /// Before the suffix.
    pub suffix: u32,
    /// Before the middle.
    pub middle: u32,
    /// After the middle, where there is such a token: how a model says that the gap is filled.
    pub end: Option<u32>,
    /// Share of texts that come suffix first; 0.5 in the paper's joint training.
    pub spm_rate: f64,
}

impl Infilling {
    /// Cuts `tokens` at two places, each as likely as any other, and moves the middle to the end.
    pub fn apply(&self, tokens: &[u32], rng: &mut ChaCha8Rng) -> Vec<u32> {
        let (a, b) = (rng.random_range(0..=tokens.len()), rng.random_range(0..=tokens.len()));
        let layout = if rng.random::<f64>() < self.spm_rate { Layout::Spm } else { Layout::Psm };
        self.join(&tokens[..a.min(b)], &tokens[a.min(b)..a.max(b)], &tokens[a.max(b)..], layout)
    }

    /// Puts the three parts in order.
    pub fn join(&self, prefix: &[u32], middle: &[u32], suffix: &[u32], layout: Layout) -> Vec<u32> {
        let mut out = Vec::with_capacity(prefix.len() + middle.len() + suffix.len() + self.added());
        out.push(self.prefix);
        if layout == Layout::Psm {
            out.extend(prefix);
        }
        out.push(self.suffix);
        out.extend(suffix);
        out.push(self.middle);
        if layout == Layout::Spm {
            out.extend(prefix);
        }
        out.extend(middle);
        out.extend(self.end);
        out
    }

    /// The text that `tokens` were made of; `None` where they are not laid out so.
    pub fn invert(&self, tokens: &[u32]) -> Option<Vec<u32>> {
        let rest = tokens.strip_prefix(&[self.prefix])?;
        let suffix = rest.iter().position(|&token| token == self.suffix)?;
        let (prefix, rest) = (&rest[..suffix], &rest[suffix + 1..]);
        let middle = rest.iter().position(|&token| token == self.middle)?;
        let (suffix, mut rest) = (&rest[..middle], &rest[middle + 1..]);
        if let Some(end) = self.end {
            rest = rest.strip_suffix(&[end])?;
        }
        // With the suffix first, prefix and middle follow each other as they do in the text.
        Some([prefix, rest, suffix].concat())
    }

    /// How many tokens are added.
    pub fn added(&self) -> usize {
        3 + usize::from(self.end.is_some())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::SeedableRng;

    use super::*;

    const INFILLING: Infilling =
        Infilling { prefix: 100, suffix: 101, middle: 102, end: Some(103), spm_rate: 0.5 };

    #[test]
    fn the_two_layouts() {
        let (prefix, middle, suffix) = (&[1, 2][..], &[3][..], &[4, 5][..]);
        assert_eq!(INFILLING.join(prefix, middle, suffix, Layout::Psm), [100, 1, 2, 101, 4, 5, 102, 3, 103]);
        assert_eq!(INFILLING.join(prefix, middle, suffix, Layout::Spm), [100, 101, 4, 5, 102, 1, 2, 3, 103]);
    }

    #[test]
    fn both_layouts_and_all_cuts_come_up() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let text = [1, 2, 3];
        let seen: std::collections::BTreeSet<_> =
            (0..2000).map(|_| INFILLING.apply(&text, &mut rng)).collect();
        // Ten pairs of cuts; with the suffix first only the later cut is seen, as if the prefix were empty.
        assert_eq!(seen.len(), 10);
        let psm = Infilling { spm_rate: 0.0, ..INFILLING };
        assert!((0..200).all(|_| {
            let out = psm.apply(&text, &mut rng);
            let at = |token| out.iter().position(|&t| t == token).unwrap();
            text.iter().all(|&t| t != 1 || at(1) < at(101) || at(101) == 1)
        }));
    }

    #[test]
    fn what_is_laid_out_otherwise_is_no_example() {
        for tokens in [&[][..], &[1], &[100, 1, 102, 2, 103], &[100, 101, 102], &[101, 100, 102, 103]] {
            assert_eq!(INFILLING.invert(tokens), None, "{tokens:?}");
        }
    }

    proptest! {
        #[test]
        fn nothing_is_lost(text in prop::collection::vec(0u32..100, 0..40), seed: u64, spm in 0.0..=1.0f64, end: bool) {
            let infilling = Infilling { end: end.then_some(103), spm_rate: spm, ..INFILLING };
            let out = infilling.apply(&text, &mut ChaCha8Rng::seed_from_u64(seed));
            prop_assert_eq!(out.len(), text.len() + infilling.added());
            prop_assert_eq!(infilling.invert(&out), Some(text));
        }
    }
}
