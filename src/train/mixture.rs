//! The order in which instances of many tasks are learnt from.

use std::collections::BTreeMap;

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::config::{Mixing, TuneSection, Within};
use crate::error::{Error, Result};

/// Batches that are put in order of length together, so that little is padding.
const BUCKET: usize = 32;

/// What is known of an instance that is mixed with others.
#[derive(Debug, Clone)]
pub struct Unit {
    /// The task, or cluster, that it is drawn as a part of.
    pub group: String,
    /// The template that it is written by.
    pub template: String,
    /// Whether it is a chain of thought.
    pub reasons: bool,
    /// Its tokens, as a row of a batch.
    pub tokens: usize,
    /// Its rows: as many as it has answers to learn from.
    pub rows: usize,
}

/// How often each task is drawn, and which of its instances come into which batch: a function of seed and batch number
/// alone, so that a resumed run goes on exactly where it stopped.
///
/// It goes in rounds of about as many draws as there are instances. A task whose instances are used up begins again,
/// in another order.
pub struct Mixture {
    /// The instances of each part, which is a task or a template of one, and its share of the draws.
    parts: Vec<(Vec<usize>, f64)>,
    /// Tokens of each instance, as a row of a batch.
    lengths: Vec<usize>,
    /// Rows of each instance.
    rows: Vec<usize>,
    batch_tokens: usize,
    /// Whether a batch holds as many tokens as fit, in place of rows of the length of its longest.
    packing: bool,
    seed: u64,
    round: usize,
    first: usize,
    plan: Vec<Vec<usize>>,
}

impl Mixture {
    /// A mixture of instances.
    ///
    /// # Errors
    /// A share of chains of thought where there is none, or nothing else.
    pub fn new(units: &[Unit], section: &TuneSection, batch_tokens: usize, seed: u64) -> Result<Self> {
        let mut mixture = Self {
            parts: parts(units, section)?,
            lengths: units.iter().map(|unit| unit.tokens).collect(),
            rows: units.iter().map(|unit| unit.rows.max(1)).collect(),
            batch_tokens,
            packing: section.packing,
            seed,
            round: 0,
            first: 0,
            plan: Vec::new(),
        };
        mixture.plan = mixture.plan_of(0);
        Ok(mixture)
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
        for (part, (instances, share)) in self.parts.iter().enumerate() {
            // Rounded so that the draws of all rounds together keep to the share.
            let until = |round: usize| (round as f64 * self.lengths.len() as f64 * share + 1e-6) as usize;
            let mut order: (Option<usize>, Vec<usize>) = (None, Vec::new());
            for draw in until(round)..until(round + 1) {
                let epoch = draw / instances.len();
                if order.0 != Some(epoch) {
                    let mut shuffled = instances.clone();
                    shuffled.shuffle(&mut self.random(part as u64 + 1, epoch as u64));
                    order = (Some(epoch), shuffled);
                }
                drawn.push(order.1[draw % instances.len()]);
            }
        }
        let mut rng = self.random(0, round as u64);
        drawn.shuffle(&mut rng);
        let mut plan = if self.packing { self.filled(&drawn) } else { self.of_one_length(&mut drawn) };
        plan.shuffle(&mut rng);
        plan
    }

    fn tokens(&self, i: usize) -> usize {
        self.lengths[i] * self.rows[i]
    }

    /// Batches of what was drawn in its order, as much as fits.
    fn filled(&self, drawn: &[usize]) -> Vec<Vec<usize>> {
        let mut plan: Vec<Vec<usize>> = Vec::new();
        let mut room = 0;
        for &i in drawn {
            match plan.last_mut() {
                Some(batch) if self.tokens(i) <= room => batch.push(i),
                _ => {
                    plan.push(vec![i]);
                    room = self.batch_tokens;
                }
            }
            room = room.saturating_sub(self.tokens(i));
        }
        plan
    }

    /// Batches of like lengths, so that little is padding.
    fn of_one_length(&self, drawn: &mut [usize]) -> Vec<Vec<usize>> {
        let total: usize = drawn.iter().map(|i| self.tokens(*i)).sum();
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

/// The instances of each part, and its share of the draws.
fn parts(units: &[Unit], section: &TuneSection) -> Result<Vec<(Vec<usize>, f64)>> {
    let apart = section.formats.chain_of_thought;
    // Chains of thought have a share of their own where they are given one; within it tasks have theirs.
    let kinds: Vec<(bool, f64)> = match apart {
        None => vec![(false, 1.0)],
        Some(share) => vec![(false, 1.0 - share), (true, share)],
    };
    let mut parts = Vec::new();
    for (reasons, share) in kinds {
        let mut groups: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (i, unit) in units.iter().enumerate() {
            if apart.is_none() || unit.reasons == reasons {
                groups.entry(&unit.group).or_default().push(i);
            }
        }
        if groups.is_empty() && share > 0.0 {
            let what = if reasons {
                "no instance is a chain of thought"
            } else {
                "every instance is a chain of thought"
            };
            return Err(Error::setting("tune.formats.chain_of_thought", format!("{what}; leave it out")));
        }
        if share == 0.0 {
            continue;
        }
        let sizes: Vec<usize> = groups.values().map(Vec::len).collect();
        for (instances, of_group) in groups.into_values().zip(shares(&sizes, section)) {
            let mut templates: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
            for i in instances {
                let template =
                    if section.within == Within::Template { units[i].template.as_str() } else { "" };
                templates.entry(template).or_default().push(i);
            }
            let each = share * of_group / templates.len() as f64;
            parts.extend(templates.into_values().map(|instances| (instances, each)));
        }
    }
    Ok(parts)
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
    fn pool() -> Vec<Unit> {
        let task = |i: usize| {
            if i < 60 {
                "a"
            } else if i < 90 {
                "b"
            } else {
                "c"
            }
        };
        let unit = |i: usize| Unit {
            group: task(i).into(),
            template: ["x", "y", "z"][usize::from(i.is_multiple_of(10)) + usize::from(i.is_multiple_of(20))]
                .into(),
            reasons: i.is_multiple_of(5),
            tokens: 5 + i * 7 % 40,
            rows: 1 + i % 2,
        };
        (0..100).map(unit).collect()
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
        let mut all = Mixture::new(&pool, &section(Mixing::Proportional, None, 1.0), 200, 3).unwrap();
        let mut seen = vec![0; pool.len()];
        let mut batches = 0;
        while seen.iter().sum::<usize>() < pool.len() {
            let batch = all.batch(batches).to_vec();
            let longest = batch.iter().map(|i| pool[*i].tokens).max().unwrap();
            let rows: usize = batch.iter().map(|i| pool[*i].rows).sum();
            assert!(batch.len() == 1 || longest * rows <= 200, "{batch:?}");
            batch.iter().for_each(|i| seen[*i] += 1);
            batches += 1;
        }
        assert_eq!(seen, vec![1; pool.len()], "once each in the first round");
        let packing = TuneSection { packing: true, ..section(Mixing::Proportional, None, 1.0) };
        let mut packed = Mixture::new(&pool, &packing, 200, 3).unwrap();
        let tokens = |batch: &[usize]| batch.iter().map(|i| pool[*i].tokens * pool[*i].rows).sum::<usize>();
        let filled: Vec<usize> = (0..20).map(|number| tokens(packed.batch(number))).collect();
        assert!(filled.iter().all(|tokens| *tokens <= 200), "{filled:?}");
        assert!(filled.iter().sum::<usize>() > 20 * 150, "little room is left: {filled:?}");
        let mut even = Mixture::new(&pool, &section(Mixing::Uniform, None, 1.0), 200, 3).unwrap();
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
        let new =
            |seed| Mixture::new(&pool, &section(Mixing::Proportional, Some(20), 2.0), 150, seed).unwrap();
        let (mut one, mut other) = (new(1), new(1));
        let in_turn: Vec<_> = (0..70).map(|number| one.batch(number).to_vec()).collect();
        for number in [69, 3, 40] {
            assert_eq!(other.batch(number), in_turn[number]);
        }
        assert_ne!(new(2).batch(0), in_turn[0]);
    }

    /// Fails when a template counts by its instances, or chains of thought by theirs, where it is said that they shall not.
    #[test]
    fn templates_and_chains_of_thought_have_shares_of_their_own() {
        let pool = pool();
        let drawn = |section: &TuneSection, count: &dyn Fn(&Unit) -> bool| {
            let mut mixture = Mixture::new(&pool, section, 200, 3).unwrap();
            let draws: Vec<usize> = (0..200).flat_map(|number| mixture.batch(number).to_vec()).collect();
            draws.iter().filter(|i| count(&pool[**i])).count() as f64 / draws.len() as f64
        };
        let plain = section(Mixing::Proportional, None, 1.0);
        let even = TuneSection { within: Within::Template, ..plain.clone() };
        // Task "c" has nine instances of "x" and one of "z"; task "a" three of "z" among sixty.
        let of_c = |unit: &Unit| unit.group == "c" && unit.template == "x";
        for (section, wanted) in [(&plain, 0.09), (&even, 0.05)] {
            let found = drawn(section, &of_c);
            assert!((found - wanted).abs() < 0.005, "{found} {wanted}");
        }
        let found = drawn(&even, &|unit| unit.group == "a" && unit.template == "z");
        assert!((found - 0.2).abs() < 0.01, "{found}");
        for share in [0.0, 0.5] {
            let mut reasoning = plain.clone();
            reasoning.formats.chain_of_thought = Some(share);
            let found = drawn(&reasoning, &|unit| unit.reasons);
            assert!((found - share).abs() < 0.01, "{found} {share}");
            // Of those that do not reason tasks have what they had.
            let found = drawn(&reasoning, &|unit| unit.group == "b" && !unit.reasons);
            assert!((found - 0.3 * (1.0 - share)).abs() < 0.01, "{found}");
        }
        let mut none = plain.clone();
        none.formats.chain_of_thought = Some(0.1);
        let alike: Vec<Unit> = pool.iter().filter(|unit| !unit.reasons).cloned().collect();
        assert!(Mixture::new(&alike, &none, 200, 3).is_err());
    }
}
