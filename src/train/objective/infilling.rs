//! Filling in the middle (Bavarian et al. 2022, <https://arxiv.org/abs/2207.14255>): a part of the text is moved to
//! its end, so that a model that writes from left to right learns to write what goes between two sides.

use std::collections::BTreeSet;
use std::ops::Range;

use rand::Rng;
use rand_chacha::ChaCha8Rng;
use serde::Deserialize;

use crate::corpus::Tokenizer;
use crate::error::{Error, Result};

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

/// The part of a `tokenizer.json` that lists the tokens which were added to those that text is made of.
#[derive(Deserialize)]
struct Listed {
    #[serde(default)]
    added_tokens: Vec<Added>,
}

#[derive(Deserialize)]
struct Added {
    id: u32,
}

impl Infilling {
    /// Refuses tokens of `tokenizer` that are the same, or that text is made of: nobody could tell where the parts begin.
    ///
    /// # Errors
    /// Names `objectives.tokens`.
    pub fn check(&self, tokenizer: &Tokenizer) -> Result<()> {
        let parts = [("prefix", self.prefix), ("suffix", self.suffix), ("middle", self.middle)];
        let all: BTreeSet<u32> = parts.iter().map(|(_, token)| *token).chain(self.end).collect();
        if all.len() < self.added() {
            let why = "name three different tokens, none of them the one that ends a text";
            return Err(Error::setting("objectives.tokens", why));
        }
        let listed: Listed =
            serde_json::from_slice(tokenizer.json()).map_err(|e| Error::Tokenizer(e.to_string()))?;
        match parts.iter().find(|(_, token)| listed.added_tokens.iter().all(|added| added.id != *token)) {
            None => Ok(()),
            Some((part, _)) => {
                let why = format!(
                    "the token before the {part} is one that text is made of; name one that was added to the tokenizer \
                     (`sidenote tokenizer train --special TOKEN`)"
                );
                Err(Error::setting("objectives.tokens", why))
            }
        }
    }

    /// Cuts `tokens` at two places, each as likely as any other, and moves the middle to the end.
    pub fn apply(&self, tokens: &[u32], rng: &mut ChaCha8Rng) -> Vec<u32> {
        let gap = gap(tokens.len(), rng);
        let layout = if rng.random::<f64>() < self.spm_rate { Layout::Spm } else { Layout::Psm };
        self.join(&tokens[..gap.start], &tokens[gap.clone()], &tokens[gap.end..], layout)
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

/// The middle of `tokens` tokens.
fn gap(tokens: usize, rng: &mut ChaCha8Rng) -> Range<usize> {
    let (a, b) = (rng.random_range(0..=tokens), rng.random_range(0..=tokens));
    a.min(b)..a.max(b)
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
    fn all_cuts_come_up() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let seen = |spm_rate: f64, rng: &mut ChaCha8Rng| {
            let infilling = Infilling { spm_rate, ..INFILLING };
            (0..2000).map(|_| infilling.apply(&[1, 2, 3], rng)).collect::<BTreeSet<_>>().len()
        };
        // Ten pairs of cuts; with the suffix first only the later one is seen, as if the prefix were empty.
        assert_eq!((seen(0.0, &mut rng), seen(1.0, &mut rng)), (10, 4));
    }

    /// Only a cut with a prefix tells the layouts apart: whether it is before the suffix or after it.
    #[test]
    fn the_rate_is_the_share_that_comes_suffix_first() {
        let text: Vec<u32> = (1..10).collect();
        for rate in [0.0, 0.25, 1.0] {
            let infilling = Infilling { spm_rate: rate, ..INFILLING };
            let (mut cuts, mut suffix_first) = (0, 0);
            for seed in 0..2000 {
                let rng = || ChaCha8Rng::seed_from_u64(seed);
                let prefix = gap(text.len(), &mut rng()).start;
                if prefix == 0 {
                    continue;
                }
                let out = infilling.apply(&text, &mut rng());
                assert_eq!(out[0], 100);
                cuts += 1;
                match out[1] {
                    101 => suffix_first += 1,
                    _ => assert!(out[1..=prefix] == text[..prefix] && out[prefix + 1] == 101, "{out:?}"),
                }
            }
            let share = f64::from(suffix_first) / f64::from(cuts);
            let tolerance = if rate == 0.25 { 0.05 } else { 0.0 };
            assert!((share - rate).abs() <= tolerance, "{share} of {cuts} at a rate of {rate}");
        }
    }

    #[test]
    fn the_tokens_are_different_and_no_text() {
        let special = ["<|p|>", "<|s|>", "<|m|>"].map(String::from);
        let tokenizer = Tokenizer::train(std::iter::once(Ok("a b c".into())), 300, &special).unwrap();
        let of = |names: [&str; 3]| {
            let [prefix, suffix, middle] = names.map(|name| tokenizer.token(name).unwrap());
            Infilling { prefix, suffix, middle, end: tokenizer.end_of_text(), spm_rate: 0.5 }
                .check(&tokenizer)
        };
        of(["<|p|>", "<|s|>", "<|m|>"]).unwrap();
        for (wrong, why) in [
            (["<|p|>", "<|p|>", "<|p|>"], "different"),
            (["<|p|>", "<|s|>", "<|p|>"], "different"),
            (["<|p|>", "<|s|>", "<|endoftext|>"], "ends a text"),
            (["a", "b", "c"], "before the prefix"),
            (["<|p|>", "<|s|>", "c"], "before the middle"),
        ] {
            let said = of(wrong).unwrap_err().to_string();
            assert!(said.contains("objectives.tokens") && said.contains(why), "{wrong:?}: {said}");
        }
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
