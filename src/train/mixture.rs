//! The order in which instances of many tasks are learnt from.

use std::collections::BTreeMap;

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::tune_section::{Mixing, TuneSection};

/// Batches that are put in order of length together, so that little is padding.
const BUCKET: usize = 32;

/// How often each task is drawn, and which of its instances come into which batch: a function of seed and batch number
/// alone, so that a resumed run goes on exactly where it stopped.
///
/// It goes in rounds of about as many draws as there are instances. A task whose instances are used up begins again,
/// in another order.
pub struct Mixture {
    /// The instances of each task, and its share of the draws.
    tasks: Vec<(Vec<usize>, f64)>,
    /// Tokens of each instance, as a row of a batch.
    lengths: Vec<usize>,
    /// Rows of each instance: as many as it has answers to learn from.
    rows: Vec<usize>,
    batch_tokens: usize,
    seed: u64,
    round: usize,
    first: usize,
    plan: Vec<Vec<usize>>,
}

impl Mixture {
    /// A mixture of instances, of each of which the task (or cluster) is given, its tokens and its rows in a batch.
    pub fn new(of: &[(String, usize, usize)], section: &TuneSection, batch_tokens: usize, seed: u64) -> Self {
        let mut by_name: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (i, (task, ..)) in of.iter().enumerate() {
            by_name.entry(task).or_default().push(i);
        }
        let all: Vec<Vec<usize>> = by_name.into_values().collect();
        let sizes: Vec<usize> = all.iter().map(Vec::len).collect();
        let mut mixture = Self {
            tasks: all.into_iter().zip(shares(&sizes, section)).collect(),
            lengths: of.iter().map(|(_, length, _)| *length).collect(),
            rows: of.iter().map(|(.., rows)| (*rows).max(1)).collect(),
            batch_tokens,
            seed,
            round: 0,
            first: 0,
            plan: Vec::new(),
        };
        mixture.plan = mixture.plan_of(0);
        mixture
    }

    /// The instances of batch `number`, at least one.
    pub fn batch(&mut self, number: usize) -> &[usize] {
        if number < self.first {
            (self.round, self.first) = (0, 0);
            self.plan = self.plan_of(0);
        }
        while number >= self.first + self.plan.len() {
            self.first += self.plan.len();
            self.round += 1;
            self.plan = self.plan_of(self.round);
        }
        &self.plan[number - self.first]
    }

    fn plan_of(&self, round: usize) -> Vec<Vec<usize>> {
        let mut drawn = Vec::new();
        for (task, (instances, share)) in self.tasks.iter().enumerate() {
            // Rounded so that the draws of all rounds together keep to the share.
            let until = |round: usize| (round as f64 * self.lengths.len() as f64 * share + 1e-6) as usize;
            let mut order: (Option<usize>, Vec<usize>) = (None, Vec::new());
            for draw in until(round)..until(round + 1) {
                let epoch = draw / instances.len();
                if order.0 != Some(epoch) {
                    let mut shuffled = instances.clone();
                    shuffled.shuffle(&mut self.random(task as u64 + 1, epoch as u64));
                    order = (Some(epoch), shuffled);
                }
                drawn.push(order.1[draw % instances.len()]);
            }
        }
        let mut rng = self.random(0, round as u64);
        drawn.shuffle(&mut rng);
        let tokens = |i: usize| self.lengths[i] * self.rows[i];
        let total: usize = drawn.iter().map(|i| tokens(*i)).sum();
        let batches = total.div_ceil(self.batch_tokens.max(1)).max(1);
        let bucket = (drawn.len() * BUCKET).div_ceil(batches).max(1);
        let mut plan: Vec<Vec<usize>> = Vec::new();
        for drawn in drawn.chunks_mut(bucket) {
            drawn.sort_by_key(|i| self.lengths[*i]);
            let mut batch: Vec<usize> = Vec::new();
            let mut rows = 0;
            for &i in &*drawn {
                // Sorted, so that this is the longest.
                if !batch.is_empty() && (rows + self.rows[i]) * self.lengths[i] > self.batch_tokens {
                    plan.push(std::mem::take(&mut batch));
                    rows = 0;
                }
                batch.push(i);
                rows += self.rows[i];
            }
            plan.push(batch);
        }
        plan.shuffle(&mut rng);
        plan
    }

    fn random(&self, what: u64, number: u64) -> ChaCha8Rng {
        let mut seed = [0; 32];
        seed[..8].copy_from_slice(&self.seed.to_le_bytes());
        seed[8..16].copy_from_slice(&what.to_le_bytes());
        seed[16..24].copy_from_slice(&number.to_le_bytes());
        ChaCha8Rng::from_seed(seed)
    }
}

/// Each task's share of the draws: by its instances, as many as the cap at most, to the power of one over the
/// temperature (Raffel et al. 2020, section 3.5.2); or the same for all.
fn shares(sizes: &[usize], section: &TuneSection) -> Vec<f64> {
    let weight = |size: &usize| match section.mixing {
        Mixing::Uniform => 1.0,
        Mixing::Proportional => {
            let counted = section.cap.map_or(*size, |cap| cap.min(*size));
            (counted as f64).powf(1.0 / section.temperature)
        }
    };
    let weights: Vec<f64> = sizes.iter().map(weight).collect();
    let sum: f64 = weights.iter().sum();
    weights.into_iter().map(|weight| weight / sum).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tasks of 60, 30 and 10 instances of uneven lengths.
    fn pool() -> Vec<(String, usize, usize)> {
        let task = |i: usize| {
            if i < 60 {
                "a"
            } else if i < 90 {
                "b"
            } else {
                "c"
            }
        };
        (0..100).map(|i| (task(i).to_string(), 5 + i * 7 % 40, 1 + i % 2)).collect()
    }

    fn section(mixing: Mixing, cap: Option<usize>, temperature: f64) -> TuneSection {
        TuneSection { mixing, cap, temperature, ..TuneSection::default() }
    }

    #[test]
    fn shares_are_those_of_the_papers() {
        let of = |mixing, cap, temperature| shares(&[60, 30, 10], &section(mixing, cap, temperature));
        assert_eq!(of(Mixing::Proportional, None, 1.0), [0.6, 0.3, 0.1]);
        assert_eq!(of(Mixing::Proportional, Some(10), 1.0), [1.0 / 3.0; 3]);
        assert_eq!(of(Mixing::Uniform, None, 1.0), [1.0 / 3.0; 3]);
        let roots = [60f64, 30.0, 10.0].map(f64::sqrt);
        let sum: f64 = roots.iter().sum();
        assert_eq!(of(Mixing::Proportional, None, 2.0), roots.map(|root| root / sum));
    }

    /// Fails when a task is drawn more often than its share, an instance comes again before the others of its task have
    /// come, or a batch is larger than told.
    #[test]
    fn draws_keep_to_the_shares_and_go_through_every_instance() {
        let pool = pool();
        let mut all = Mixture::new(&pool, &section(Mixing::Proportional, None, 1.0), 200, 3);
        let mut seen = vec![0; pool.len()];
        let mut batches = 0;
        while seen.iter().sum::<usize>() < pool.len() {
            let batch = all.batch(batches).to_vec();
            let longest = batch.iter().map(|i| pool[*i].1).max().unwrap();
            let rows: usize = batch.iter().map(|i| pool[*i].2).sum();
            assert!(batch.len() == 1 || longest * rows <= 200, "{batch:?}");
            batch.iter().for_each(|i| seen[*i] += 1);
            batches += 1;
        }
        assert_eq!(seen, vec![1; pool.len()], "once each in the first round");
        let mut even = Mixture::new(&pool, &section(Mixing::Uniform, None, 1.0), 200, 3);
        let mut of_task = [0usize; 3];
        let mut of_c = [0usize; 10];
        for number in 0..200 {
            for i in even.batch(number) {
                of_task[usize::from(*i >= 60) + usize::from(*i >= 90)] += 1;
                if *i >= 90 {
                    of_c[i - 90] += 1;
                }
            }
        }
        let total: usize = of_task.iter().sum();
        assert!(of_task.iter().all(|n| n.abs_diff(total / 3) < total / 50), "{of_task:?}");
        // Each of a task's instances as often as the others, but for the last round.
        assert!(of_c.iter().max().unwrap() - of_c.iter().min().unwrap() <= 4, "{of_c:?}");
    }

    #[test]
    fn a_batch_is_the_same_however_it_is_come_by() {
        let pool = pool();
        let new = |seed| Mixture::new(&pool, &section(Mixing::Proportional, Some(20), 2.0), 150, seed);
        let (mut one, mut other) = (new(1), new(1));
        let in_turn: Vec<_> = (0..70).map(|number| one.batch(number).to_vec()).collect();
        for number in [69, 3, 40] {
            assert_eq!(other.batch(number), in_turn[number]);
        }
        assert_ne!(new(2).batch(0), in_turn[0]);
    }
}
