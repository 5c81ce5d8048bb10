//! Prefix language modelling (Liu et al. 2018; Raffel et al. 2020, section 3.2.2): read the beginning of a text, write
//! the rest.

use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::Example;

/// Parts `tokens`, of which there are at least two, at a place as likely as any other that leaves neither part
/// empty. The inverse is to put the parts together.
pub fn split(mut tokens: Vec<u32>, rng: &mut ChaCha8Rng) -> Example {
    let target = tokens.split_off(rng.random_range(1..tokens.len()));
    Example::Pair { input: tokens, target }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::SeedableRng;

    use super::*;

    proptest! {
        #[test]
        fn both_parts_are_there(text in prop::collection::vec(0u32..9, 2..20), seed: u64) {
            let Example::Pair { input, target } = split(text.clone(), &mut ChaCha8Rng::seed_from_u64(seed)) else {
                panic!("no pair");
            };
            prop_assert!(!input.is_empty() && !target.is_empty());
            prop_assert_eq!([input, target].concat(), text);
        }
    }
}
