//! The answers of a choice, kept level, so that a model does not learn which answer is the usual one.

use std::collections::{HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};

use super::Pool;
use crate::error::Result;

/// Which answer every row of a pool has, among those of its task and template.
pub struct Answers {
    /// Of each row the number of its task and template, and its answer's hash.
    of: Vec<(u32, u64)>,
}

/// What was taken of a task and template, and what waits.
struct Group<T> {
    taken: HashMap<u64, usize>,
    /// How often the most frequent answer was taken, and how many answers were taken as often.
    most: usize,
    leaders: usize,
    /// All of the one most frequent answer.
    waiting: VecDeque<T>,
}

impl Answers {
    /// Reads the pool once. Takes 16 bytes a row.
    ///
    /// # Errors
    /// A pool that changed.
    pub fn of_pool(pool: &Pool) -> Result<Self> {
        let mut groups: HashMap<(usize, Option<String>), u32> = HashMap::new();
        let mut of = Vec::with_capacity(pool.len());
        pool.for_each(|number, _, row| {
            let next = groups.len() as u32;
            let group = *groups.entry((pool.task_of(number), row.template)).or_insert(next);
            let mut answer = DefaultHasher::new();
            row.target.trim().hash(&mut answer);
            of.push((group, answer.finish()));
            Ok(())
        })?;
        Ok(Self { of })
    }

    /// Puts `ranked`, best first, in an order of which every beginning has, of each task and template, no answer more than once
    /// more often than the next. What would be more waits until that has caught up, for ever if it does not.
    ///
    /// Where answers differ from row to row nothing waits; of a task that always has the same one, one row is left.
    pub fn level<T>(&self, ranked: Vec<T>, row: impl Fn(&T) -> usize) -> Vec<T> {
        let mut groups: HashMap<u32, Group<T>> = HashMap::new();
        let mut taken = Vec::with_capacity(ranked.len());
        for one in ranked {
            let (group, answer) = self.of[row(&one)];
            let group = groups.entry(group).or_default();
            if !group.take(answer) {
                group.waiting.push_back(one);
                continue;
            }
            taken.push(one);
            while let Some(first) = group.waiting.pop_front() {
                if !group.take(self.of[row(&first)].1) {
                    group.waiting.push_front(first);
                    break;
                }
                taken.push(first);
            }
        }
        taken
    }
}

impl<T> Default for Group<T> {
    fn default() -> Self {
        Self { taken: HashMap::new(), most: 0, leaders: 0, waiting: VecDeque::new() }
    }
}

impl<T> Group<T> {
    /// Takes a row with that answer, unless it alone is the most frequent one.
    fn take(&mut self, answer: u64) -> bool {
        let taken = self.taken.entry(answer).or_insert(0);
        if *taken > 0 && *taken == self.most && self.leaders == 1 {
            return false;
        }
        *taken += 1;
        if *taken > self.most {
            (self.most, self.leaders) = (*taken, 1);
        } else if *taken == self.most {
            self.leaders += 1;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows named by their answer's letter; capitals are of another template.
    fn level(ranked: &str) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pool.jsonl");
        let line = |letter: char| {
            let template = if letter.is_uppercase() { "two" } else { "one" };
            let (answer, input) = (letter.to_lowercase().to_string(), "asked");
            format!(
                "{}\n",
                serde_json::json!({"input": input, "target": answer, "task": "t", "template": template})
            )
        };
        std::fs::write(&path, ranked.chars().map(line).collect::<String>()).unwrap();
        let answers = Answers::of_pool(&Pool::open(&path).unwrap()).unwrap();
        let order = answers.level((0..ranked.len()).collect(), |&row| row);
        order.into_iter().map(|row| ranked.as_bytes()[row] as char).collect()
    }

    #[test]
    fn the_usual_answer_waits_for_the_next() {
        assert_eq!(level("aaaa"), "a");
        assert_eq!(level("aaaabb"), "ababa");
        // What waited comes as soon as it may, before what is ranked after it.
        assert_eq!(level("aabc"), "abac");
        // Of three answers none waits while two are level.
        assert_eq!(level("abcabc"), "abcabc");
        // Free text.
        assert_eq!(level("abcdefg"), "abcdefg");
        // Each template by itself.
        assert_eq!(level("aaAABb"), "aABAba");
        assert_eq!(level("aaabBBA"), "abaBAB");
    }

    #[test]
    fn every_beginning_is_level() {
        let ranked: String = (0..400).map(|i: u32| if i % 7 < 4 || i < 90 { 'a' } else { 'b' }).collect();
        let order = level(&ranked);
        for end in 1..=order.len() {
            let a = order[..end].matches('a').count();
            assert!(a.abs_diff(end - a) <= 1, "{end}: {a}");
        }
        // All of the rarer answer, and one more of the other.
        assert_eq!(order.len(), 2 * ranked.matches('b').count() + 1);
    }
}
