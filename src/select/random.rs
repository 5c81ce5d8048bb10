//! Chance, the baselines that any other method has to beat: uniform, and balanced over the tasks.

use rand::SeedableRng;
use rand::seq::{SliceRandom, index};
use rand_chacha::ChaCha8Rng;

use super::selector::{Ranked, Ranking, Selector};
use super::{Pool, Target};
use crate::error::Result;
use crate::progress::Progress;

/// A draw of rows.
pub struct Random {
    /// Whether every task gives alike, not every row.
    balanced: bool,
    seed: u64,
}

impl Random {
    /// Draws each row as likely as any other.
    pub fn uniform(seed: u64) -> Self {
        Self { balanced: false, seed }
    }

    /// Draws as nearly as can be the same number from every task: a task that runs out gives all it has and the others share
    /// the rest. Which tasks give one row more when the shares are not whole is left to chance. Rows without a task count as
    /// one task.
    pub fn balanced(seed: u64) -> Self {
        Self { balanced: true, seed }
    }
}

impl Selector for Random {
    fn rank(&mut self, pool: &Pool, _: Option<&Target>, n: usize, _: Progress) -> Result<Ranking> {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        let rows = match self.balanced {
            true => balanced(pool, n, &mut rng),
            false => index::sample(&mut rng, pool.len(), n).into_vec(),
        };
        let rows = rows.into_iter().map(|row| Ranked { row, depth: 0 }).collect();
        Ok(Ranking { rows, neighbours: Vec::new() })
    }
}

fn balanced(pool: &Pool, n: usize, rng: &mut ChaCha8Rng) -> Vec<usize> {
    let mut rows_of = vec![Vec::new(); pool.tasks().len()];
    for row in 0..pool.len() {
        rows_of[pool.task_of(row)].push(row);
    }
    // Water filling: the highest level to which every task can be drawn without passing `n`.
    let filled = |level: usize| rows_of.iter().map(|rows| rows.len().min(level)).sum::<usize>();
    let (mut level, mut above) = (0, n + 1);
    while above - level > 1 {
        let middle = level + (above - level) / 2;
        if filled(middle) <= n { level = middle } else { above = middle }
    }
    let mut left = n - filled(level);
    rows_of.shuffle(rng);
    let mut chosen = Vec::with_capacity(n);
    for rows in &rows_of {
        let extra = usize::from(left > 0 && rows.len() > level);
        left -= extra;
        let share = rows.len().min(level) + extra;
        chosen.extend(index::sample(rng, rows.len(), share).into_iter().map(|at| rows[at]).enumerate());
    }
    // The tasks take turns, so that the beginning is balanced too.
    chosen.sort_by_key(|&(turn, _)| turn);
    chosen.into_iter().map(|(_, row)| row).collect()
}

#[cfg(test)]
mod tests {
    use super::super::Selection;
    use super::super::selector::{Amount, choose};
    use super::super::tests::pool;
    use super::*;

    fn uniform(pool: &Pool, n: usize, seed: u64) -> Result<Selection> {
        choose(&mut Random::uniform(seed), pool, &[], &Amount::exactly(n), Progress::Silent)
    }

    fn balanced(pool: &Pool, n: usize, seed: u64) -> Result<Selection> {
        choose(&mut Random::balanced(seed), pool, &[], &Amount::exactly(n), Progress::Silent)
    }

    fn counts(pool: &Pool, selection: &Selection) -> Vec<usize> {
        let mut counts = vec![0; pool.tasks().len()];
        for chosen in &selection.rows {
            counts[pool.task_of(chosen.row)] += 1;
        }
        counts
    }

    #[test]
    fn draws_are_exact_sorted_and_repeatable() {
        let (_dir, pool) = pool(&[("a", 40), ("b", 7), ("c", 1)]);
        for draw in [uniform, balanced] {
            let first = draw(&pool, 17, 5).unwrap();
            assert_eq!(first.rows.len(), 17);
            assert!(first.rows.is_sorted_by(|a, b| a.row < b.row));
            assert_eq!(first.rows, draw(&pool, 17, 5).unwrap().rows);
            assert_ne!(first.rows, draw(&pool, 17, 6).unwrap().rows);
            assert_eq!(draw(&pool, 48, 5).unwrap().rows.len(), 48);
            assert!(draw(&pool, 49, 5).unwrap_err().to_string().contains("48 rows"));
            assert!(draw(&pool, 0, 5).is_err());
        }
    }

    #[test]
    fn uniform_draws_every_row_alike() {
        let (_dir, pool) = pool(&[("a", 10)]);
        let mut seen = [0; 10];
        for seed in 0..2000 {
            for chosen in uniform(&pool, 3, seed).unwrap().rows {
                seen[chosen.row] += 1;
            }
        }
        // 600 expected, standard deviation 20.5.
        assert!(seen.iter().all(|&count| (500..700).contains(&count)), "{seen:?}");
    }

    #[test]
    fn balanced_shares_what_small_tasks_lack() {
        let (_dir, pool) = pool(&[("large", 50), ("tiny", 2), ("middle", 9), ("other", 60)]);
        // 4 shares of 10; tiny gives 2, so 38 are left for three: 9 from middle, 29 left for two.
        let drawn = counts(&pool, &balanced(&pool, 40, 3).unwrap());
        assert_eq!((drawn[1], drawn[2]), (2, 9));
        assert!(drawn[0].abs_diff(drawn[3]) == 1 && drawn[0] + drawn[3] == 29, "{drawn:?}");
        // Fewer rows than tasks: one row from each of some tasks, and chance says which.
        let mut seen = [0; 4];
        for seed in 0..200 {
            for (seen, drawn) in seen.iter_mut().zip(counts(&pool, &balanced(&pool, 2, seed).unwrap())) {
                assert!(drawn <= 1);
                *seen += drawn;
            }
        }
        // A fixed order of equal tasks would leave some of them out for ever.
        assert!(seen.iter().all(|&count| count > 0), "{seen:?}");
    }
}
