//! Texts that are nearly the same, and texts that hold a stretch of others.

use std::collections::{HashMap, HashSet};

/// Words of a shingle.
const WORDS: usize = 13;
/// Numbers of a signature, in bands of so many rows: two texts whose sets of shingles have a Jaccard similarity of s share
/// a band with the probability `1 - (1 - s^8)^16`: .95 at .8, .06 at .5.
const ROWS: usize = 8;
const BANDS: usize = 16;
/// From this estimate of the similarity on, texts count as the same.
const SAME: f64 = 0.8;

/// Finds texts that were there before, but for a few words (MinHash; Broder 1997).
#[derive(Default)]
pub struct Duplicates {
    exact: HashSet<[u8; 16]>,
    /// Texts by what a band of their signatures says.
    bands: HashMap<(u8, u64), Vec<u32>>,
    signatures: Vec<[u32; ROWS * BANDS]>,
}

/// How a text was there before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// Word for word.
    Exactly,
    /// Nearly.
    Nearly,
}

impl Duplicates {
    /// Whether `input` with `target` was there before; if not, it is from now on. Texts with different targets are
    /// different, since their answers are what is learnt.
    pub fn seen(&mut self, input: &str, target: &str) -> Option<Seen> {
        let mut hash = blake3::Hasher::new();
        hash.update(input.as_bytes()).update(&[0]).update(target.as_bytes());
        let mut key = [0; 16];
        key.copy_from_slice(&hash.finalize().as_bytes()[..16]);
        if !self.exact.insert(key) {
            return Some(Seen::Exactly);
        }
        let answer = mix(hash_of(target.trim()));
        let signature = signature(input)?;
        let keys: Vec<(u8, u64)> = (0..BANDS)
            .map(|band| {
                let rows = &signature[band * ROWS..][..ROWS];
                (band as u8, rows.iter().fold(answer, |key, row| mix(key ^ u64::from(*row))))
            })
            .collect();
        let alike = |other: &u32| {
            let other = &self.signatures[*other as usize];
            let same = signature.iter().zip(other).filter(|(a, b)| a == b).count();
            same as f64 >= SAME * signature.len() as f64
        };
        if keys.iter().filter_map(|key| self.bands.get(key)).flatten().any(alike) {
            return Some(Seen::Nearly);
        }
        let number = self.signatures.len() as u32;
        self.signatures.push(signature);
        keys.into_iter().for_each(|key| self.bands.entry(key).or_default().push(number));
        None
    }
}

/// The least hash of all shingles under each of many orders; `None` for a text without words.
fn signature(text: &str) -> Option<[u32; ROWS * BANDS]> {
    let mut least = [u32::MAX; ROWS * BANDS];
    let mut any = false;
    for shingle in shingles(text) {
        any = true;
        let mut order = shingle;
        for least in &mut least {
            order = mix(order);
            *least = (*least).min(order as u32);
        }
    }
    any.then_some(least)
}

/// Stretches of other texts.
#[derive(Default)]
pub struct Stretches {
    known: HashSet<u64>,
}

impl Stretches {
    /// Adds all stretches of 13 words of a text, or the whole of a shorter one.
    pub fn add(&mut self, text: &str) {
        self.known.extend(shingles(text));
    }

    /// Whether a text holds one of them.
    pub fn are_in(&self, text: &str) -> bool {
        shingles(text).any(|shingle| self.known.contains(&shingle))
    }
}

/// A number for each stretch of 13 words, in lower case and without punctuation; one for a text that has fewer.
fn shingles(text: &str) -> impl Iterator<Item = u64> {
    let words: Vec<u64> = text
        .split(|c: char| !c.is_alphanumeric())
        .filter(|word| !word.is_empty())
        .map(|word| hash_of(&word.to_lowercase()))
        .collect();
    let length = WORDS.min(words.len()).max(1);
    let count = if words.is_empty() { 0 } else { words.len() - length + 1 };
    (0..count).map(move |first| words[first..first + length].iter().fold(0, |key, word| mix(key ^ word)))
}

/// FNV-1a.
fn hash_of(text: &str) -> u64 {
    text.bytes()
        .fold(0xCBF2_9CE4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3))
}

/// A permutation of numbers that looks random (SplitMix64's).
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(words: std::ops::Range<usize>) -> String {
        words.map(|i| format!("w{i}")).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn what_is_the_same_but_for_a_few_words_is_found() {
        let mut all = Duplicates::default();
        let first = text(0..400);
        assert_eq!(all.seen(&first, "yes"), None);
        assert_eq!(all.seen(&first, "yes"), Some(Seen::Exactly));
        assert_eq!(all.seen(&first.to_uppercase(), "yes"), Some(Seen::Nearly));
        // 13 of 388 shingles differ.
        assert_eq!(all.seen(&first.replacen("w4 ", "w4x ", 1), "yes"), Some(Seen::Nearly));
        // The same question with another answer is not the same instance.
        assert_eq!(all.seen(&first, "no"), None);
        assert_eq!(all.seen(&text(200..600), "yes"), None);
        assert_eq!(all.seen(&text(2000..2400), "yes"), None);
        assert_eq!((all.seen("", "yes"), all.seen("", "yes")), (None, Some(Seen::Exactly)));
        assert_eq!((all.seen("A dog.", "yes"), all.seen("a dog", "yes")), (None, Some(Seen::Nearly)));
    }

    #[test]
    fn stretches_of_thirteen_words_are_found_and_shorter_ones_are_not() {
        let mut stretches = Stretches::default();
        stretches.add(&text(0..50));
        stretches.add("A whole, short one.");
        assert!(stretches.are_in(&format!("before it {} and after", text(20..33))));
        assert!(!stretches.are_in(&format!("before it {} and after", text(20..32))));
        assert!(stretches.are_in("a whole short ONE"));
        assert!(!stretches.are_in(""));
    }
}
