//! AlexaTM's two tasks (Soltan et al. 2022, <https://arxiv.org/abs/2208.01448>): write a text that was read with spans
//! dropped, without a mark where they were; and, behind a token that asks for it, write how a text goes on. AlexaTM
//! learnt by the first four times as often as by the second. The numbers here are those of its section 4.

use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::Example;

/// Share of the tokens that are dropped.
const DROPPED: f64 = 0.15;

/// Mean length of a dropped span, of a Poisson distribution.
const MEAN_LENGTH: f64 = 3.0;

/// Least and greatest share of a text that is given to go on from.
const GIVEN: (f64, f64) = (0.2, 0.8);

/// `tokens` without spans of together 15 % of them, whose lengths are of a Poisson distribution of mean 3. Nothing says
/// where they were, so there is no inverse: the whole text is what is to be predicted. One token at least stays.
pub fn drop_spans(tokens: &[u32], rng: &mut ChaCha8Rng) -> Vec<u32> {
    let wanted = ((tokens.len() as f64 * DROPPED).round() as usize).clamp(1, tokens.len().max(2) - 1);
    let mut dropped = vec![false; tokens.len()];
    let mut left = wanted.min(tokens.len().saturating_sub(1));
    while left > 0 {
        let start = rng.random_range(0..tokens.len());
        let length = poisson(MEAN_LENGTH, rng).max(1);
        for dropped in dropped[start..].iter_mut().take(length) {
            if !*dropped && left > 0 {
                *dropped = true;
                left -= 1;
            }
        }
    }
    tokens.iter().zip(dropped).filter(|(_, dropped)| !dropped).map(|(token, _)| *token).collect()
}

/// The first 20 to 80 % of `tokens` behind `clm`, and the rest to be predicted. There must be two tokens at least.
pub fn continuation(clm: u32, mut tokens: Vec<u32>, rng: &mut ChaCha8Rng) -> Example {
    let share = rng.random_range(GIVEN.0..=GIVEN.1);
    let at = ((tokens.len() as f64 * share).round() as usize).clamp(1, tokens.len() - 1);
    let target = tokens.split_off(at);
    tokens.insert(0, clm);
    Example::Pair { input: tokens, target }
}

/// The text that [`continuation`] parted; `None` where there is no `clm` before it.
pub fn restore_continuation(clm: u32, input: &[u32], target: &[u32]) -> Option<Vec<u32>> {
    Some([input.strip_prefix(&[clm])?, target].concat())
}

/// A number of a Poisson distribution (Knuth's method, good for small means).
fn poisson(mean: f64, rng: &mut ChaCha8Rng) -> usize {
    let least = (-mean).exp();
    let mut product = rng.random::<f64>();
    let mut count = 0;
    while product > least {
        product *= rng.random::<f64>();
        count += 1;
    }
    count
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn lengths_have_the_mean_and_variance_of_the_distribution() {
        let mut rng = ChaCha8Rng::seed_from_u64(4);
        let drawn: Vec<f64> = (0..20_000).map(|_| poisson(3.0, &mut rng) as f64).collect();
        let mean = drawn.iter().sum::<f64>() / drawn.len() as f64;
        let variance = drawn.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / drawn.len() as f64;
        assert!((mean - 3.0).abs() < 0.06 && (variance - 3.0).abs() < 0.15, "{mean} {variance}");
    }

    proptest! {
        #[test]
        fn what_stays_is_in_order_and_of_the_right_size(n in 0usize..200, seed: u64) {
            let text: Vec<u32> = (0..n as u32).collect();
            let kept = drop_spans(&text, &mut ChaCha8Rng::seed_from_u64(seed));
            prop_assert!(kept.windows(2).all(|pair| pair[0] < pair[1]));
            let dropped = ((n as f64 * DROPPED).round() as usize).max(1).min(n.saturating_sub(1));
            prop_assert_eq!(kept.len(), n - dropped);
        }

        #[test]
        fn a_continuation_is_parted_where_it_should_be(text in prop::collection::vec(0u32..9, 2..60), seed: u64) {
            let n = text.len() as f64;
            let Example::Pair { input, target } = continuation(77, text.clone(), &mut ChaCha8Rng::seed_from_u64(seed))
            else { panic!("no pair") };
            let given = (input.len() - 1) as f64;
            prop_assert!(given >= 1.0 && !target.is_empty());
            prop_assert!(n < 5.0 || (given >= (0.2 * n).floor() && given <= (0.8 * n).ceil()));
            prop_assert_eq!(restore_continuation(77, &input, &target), Some(text));
        }
    }
}
