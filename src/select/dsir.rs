//! DSIR: rows drawn by how much likelier the target makes their words than the pool does.
//!
//! Xie, Santurkar, Ma, Liang: *Data Selection for Language Models via Importance Resampling*, NeurIPS 2023
//! (<https://arxiv.org/abs/2302.03169>), section 3. No model, and the pool is read front to back twice.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::ordered::Ordered;
use super::selector::{Ranked, Ranking, Selector};
use super::{Pool, Target};
use crate::error::Result;
use crate::progress::Progress;

/// Buckets that words and pairs of words are hashed into.
const BUCKETS: usize = 10_000;

/// How far the target's shares are drawn to the pool's where nobody says: half of the way. A target of a few hundred examples lacks
/// most words of its kind, each of which the paper's own shares forbid.
pub const SMOOTHING: f64 = 0.5;

/// Added to the shares, as in the authors' code, so that what the target lacks can be drawn at all.
const LEAST: f64 = 1e-8;

/// Rows with the greatest `ln (p(x) / q(x)) + G`, where p and q give a row's words and pairs of words their shares among the
/// target's examples and in the pool, and G is drawn from Gumbel's distribution anew for each row (which draws without
/// replacement, each row in proportion to p / q). The same seed draws the same.
pub struct Importance {
    /// Where chance starts; without it, the likeliest rows are taken.
    seed: Option<u64>,
    smoothing: f64,
    /// How often the pool has each bucket.
    there: Option<Vec<u64>>,
}

impl Importance {
    /// Draws from `seed`, or ranks by likelihood alone; p is drawn towards q by `smoothing`, 0 as in the paper.
    pub fn new(seed: Option<u64>, smoothing: f64) -> Self {
        Self { seed, smoothing, there: None }
    }
}

impl Selector for Importance {
    fn rank(&mut self, pool: &Pool, target: Option<&Target>, n: usize, _: Progress) -> Result<Ranking> {
        let target = super::needed(target)?;
        let mut wanted = vec![0u64; BUCKETS];
        target.inputs().iter().for_each(|input| features(input, |bucket| wanted[bucket] += 1));
        let there = match self.there.take() {
            Some(there) => there,
            None => {
                let mut there = vec![0u64; BUCKETS];
                pool.for_each(|_, _, row| {
                    features(&row.input, |bucket| there[bucket] += 1);
                    Ok(())
                })?;
                there
            }
        };
        let gain = gains(&wanted, self.there.insert(there), self.smoothing);
        let mut rng = self.seed.map(ChaCha8Rng::seed_from_u64);
        // The least of the best so far on top; of equal ones the later row.
        let mut best: BinaryHeap<Reverse<(Ordered, Reverse<usize>)>> = BinaryHeap::new();
        pool.for_each(|row, _, fields| {
            let (mut weight, mut count) = (0.0, 0usize);
            features(&fields.input, |bucket| {
                weight += gain[bucket];
                count += 1;
            });
            let key = match &mut rng {
                Some(rng) => weight - (-(1.0 - rng.random::<f64>()).ln()).ln(),
                // Without chance a sum would go by length above all.
                None => weight / (count.max(1) as f64).sqrt(),
            };
            best.push(Reverse((Ordered(key), Reverse(row))));
            if best.len() > n {
                best.pop();
            }
            Ok(())
        })?;
        // Sorted by `Reverse`: best first.
        let rows =
            best.into_sorted_vec().into_iter().map(|entry| Ranked { row: entry.0.1.0, depth: 0 }).collect();
        Ok(Ranking { rows, neighbours: Vec::new() })
    }
}

/// `ln (p / q)` of each bucket (equation 1 of the paper), of p drawn towards q by `smoothing`.
fn gains(wanted: &[u64], there: &[u64], smoothing: f64) -> Vec<f64> {
    let total = |counts: &[u64]| counts.iter().sum::<u64>().max(1) as f64;
    let (of_target, of_pool) = (total(wanted), total(there));
    let gain = |(wanted, there): (&u64, &u64)| match *there {
        // No row of the pool has it.
        0 => 0.0,
        there => {
            let (p, q) = (*wanted as f64 / of_target, there as f64 / of_pool);
            (((1.0 - smoothing) * p + smoothing * q + LEAST) / (q + LEAST)).ln()
        }
    };
    wanted.iter().zip(there).map(gain).collect()
}

/// The buckets of a text's words, in lower case and apart from punctuation, and of its pairs of consecutive words.
fn features(text: &str, mut visit: impl FnMut(usize)) {
    let mut last: Option<u64> = None;
    for word in words(text) {
        let hash = hash(word.bytes().map(|b| b.to_ascii_lowercase()), 0xCBF2_9CE4_8422_2325);
        visit((hash % BUCKETS as u64) as usize);
        if let Some(last) = last {
            visit((last.rotate_left(23).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ hash) as usize % BUCKETS);
        }
        last = Some(hash);
    }
}

/// Runs of letters and digits, and each sign of punctuation by itself.
fn words(text: &str) -> impl Iterator<Item = &str> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut rest = text.trim_start();
    std::iter::from_fn(move || {
        let first = rest.chars().next()?;
        let end = match is_word(first) {
            true => rest.find(|c| !is_word(c)).unwrap_or(rest.len()),
            false => first.len_utf8(),
        };
        let word = &rest[..end];
        rest = rest[end..].trim_start();
        Some(word)
    })
}

/// FNV-1a.
fn hash(bytes: impl Iterator<Item = u8>, start: u64) -> u64 {
    bytes.fold(start, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3))
}

#[cfg(test)]
mod tests {
    use super::super::Selection;
    use super::super::selector::{Amount, choose};
    use super::*;

    fn select(pool: &Pool, target: &Target, n: usize, seed: u64) -> Result<Selection> {
        choose(
            &mut Importance::new(Some(seed), SMOOTHING),
            pool,
            std::slice::from_ref(target),
            &Amount::exactly(n),
            Progress::Silent,
        )
    }

    fn files(rows: &[String], examples: &[&str]) -> (tempfile::TempDir, Pool, Target) {
        let dir = tempfile::tempdir().unwrap();
        let lines = |texts: &mut dyn Iterator<Item = serde_json::Value>| {
            texts.map(|line| format!("{line}\n")).collect::<String>()
        };
        let (pool, target) = (dir.path().join("pool.jsonl"), dir.path().join("target.jsonl"));
        let row = |input: &String| serde_json::json!({"input": input, "target": "x"});
        std::fs::write(&pool, lines(&mut rows.iter().map(row))).unwrap();
        let example = |input: &&str| serde_json::json!({ "input": input });
        std::fs::write(&target, lines(&mut examples.iter().map(example))).unwrap();
        let opened = (Pool::open(&pool).unwrap(), Target::open(&target).unwrap());
        (dir, opened.0, opened.1)
    }

    /// The pool has 6 of the first bucket's words, 3 of the second's, 1 of the third's, the target 1, 1 and 0.
    #[test]
    fn gains_are_those_worked_out_by_hand() {
        let near = |found: &[f64], wanted: [f64; 4]| {
            let close = found.iter().zip(wanted).all(|(found, wanted)| (found - wanted).abs() < 1e-6);
            assert!(close, "{found:?} {wanted:?}");
        };
        let (wanted, there) = ([1, 1, 0, 0], [6, 3, 1, 0]);
        // ln (.5 / .6), ln (.5 / .3), ln (1e-8 / .1): the paper's shares as they are.
        near(&gains(&wanted, &there, 0.0), [-0.182_321_5, 0.510_825_6, -16.118_095_7, 0.0]);
        // ln (.55 / .6), ln (.4 / .3), ln (.05 / .1).
        near(&gains(&wanted, &there, 0.5), [-0.087_011_4, 0.287_682_1, -std::f64::consts::LN_2, 0.0]);
    }

    /// Fails when the pool's own frequencies are left out: "the" would outweigh what is rare.
    #[test]
    fn rows_with_the_targets_words_are_drawn_and_common_words_say_nothing() {
        let topic = |i: usize| {
            ["bees make honey in the hive", "the king lives in the castle", "the moon and the sun"][i % 3]
        };
        let rows: Vec<String> = (0..300).map(|i| format!("{} {}", topic(i), i)).collect();
        let (_dir, pool, target) = files(&rows, &["the hive of the bees", "honey and bees in the hive"]);
        let selection = select(&pool, &target, 60, 1).unwrap();
        assert_eq!(selection.rows.len(), 60);
        let right = selection.rows.iter().filter(|chosen| chosen.row % 3 == 0).count();
        assert!(right >= 55, "{right} of 60");
        assert_eq!(select(&pool, &target, 60, 1).unwrap(), selection);
        assert_ne!(select(&pool, &target, 60, 2).unwrap(), selection);
        assert!(select(&pool, &target, 301, 1).is_err() && select(&pool, &target, 0, 1).is_err());
        assert_eq!(select(&pool, &target, 300, 1).unwrap().rows.len(), 300);
    }

    /// Gumbel's noise draws in proportion to the weights: without it the best alone would be chosen.
    #[test]
    fn rows_alike_are_drawn_alike() {
        let rows: Vec<String> = (0..50).map(|i| format!("word{}", i % 2)).collect();
        let (_dir, pool, target) = files(&rows, &["word0 word1"]);
        let mut drawn = vec![0; 50];
        for seed in 0..400 {
            select(&pool, &target, 5, seed).unwrap().rows.iter().for_each(|chosen| drawn[chosen.row] += 1);
        }
        assert!(drawn.iter().all(|count| (15..70).contains(count)), "{drawn:?}");
    }

    #[test]
    fn words_and_pairs_are_counted_whatever_their_case() {
        let all = |text: &str| {
            let mut found = Vec::new();
            features(text, |bucket| found.push(bucket));
            found
        };
        assert_eq!(all("The hive, the HIVE").len(), 5 + 4);
        assert_eq!(all("the Hive"), all("THE hive"));
        assert_ne!(all("the hive"), all("hive the"));
        assert!(all("").is_empty());
    }
}
