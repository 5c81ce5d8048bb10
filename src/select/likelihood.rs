//! Rows by what a language model says of them, whatever the target.
//!
//! - Perplexity of the target after the input: the rows in the middle (Ivison et al. 2025 find these better than either end).
//! - IFD, instruction-following difficulty: how much less the input helps with the target than it might, as the ratio of the
//!   target's perplexity after the input to that without it (Li et al. 2024, *From Quantity to Quality*). Rows with the greatest
//!   ratio below 1; those at 1 and above, whose input misleads, come after.

use std::path::{Path, PathBuf};

use candle_core::Device;

use super::scores::{Scores, identity_of};
use super::selector::{Ranked, Ranking, Selector};
use super::{Pool, Target};
use crate::error::{Error, Result};
use crate::interrupt;
use crate::model::WritingModel;
use crate::progress::Progress;

/// Tokens of an input or target that are read: an input's last, a target's first.
const LONGEST: usize = 512;

/// Which number rows go by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// Perplexity, nearest to the median first.
    Perplexity,
    /// IFD, greatest below 1 first.
    Ifd,
}

/// Rows by a model's likelihood.
pub struct Likelihood {
    model: WritingModel,
    /// Hash of its weights.
    identity: String,
    by: By,
    /// The folder where scores lie until the selection is written.
    scratch: PathBuf,
}

impl Likelihood {
    /// By what the model called `name` says; scores lie in the folder `scratch` until it is removed.
    ///
    /// # Errors
    /// As for the model.
    pub fn open(name: &Path, by: By, scratch: PathBuf) -> Result<Self> {
        let identity = identity_of(name)?;
        Ok(Self { model: WritingModel::load(name, &Device::Cpu)?, identity, by, scratch })
    }

    /// The row's number: the logarithm of its perplexity, or of its IFD. None for a target without a token to score.
    fn score(&self, input: &str, target: &str) -> Result<Option<f64>> {
        let generator = self.model.generator(None);
        let tokenizer = self.model.tokenizer();
        let mut answer = tokenizer.encode(target)?.ids;
        answer.truncate(LONGEST);
        if answer.is_empty() || input.trim().is_empty() {
            return Ok(None);
        }
        let mut prompt = self.model.prompt(input)?;
        prompt.drain(..prompt.len().saturating_sub(LONGEST));
        let after = -generator.score(&prompt, std::slice::from_ref(&answer), 1)?[0].mean();
        if self.by == By::Perplexity {
            return Ok(Some(after));
        }
        // The first token has nothing before it; both means are over the others.
        if answer.len() < 2 {
            return Ok(None);
        }
        let scores = generator.score(&prompt, std::slice::from_ref(&answer), 1)?;
        let tail = &scores[0].tokens[1..];
        let after = -tail.iter().map(|x| f64::from(*x)).sum::<f64>() / tail.len() as f64;
        let alone = -generator.score_texts(&[answer], 1)?[0].mean();
        Ok(Some(after - alone))
    }
}

impl Selector for Likelihood {
    fn rank(&mut self, pool: &Pool, _: Option<&Target>, _: usize, progress: Progress) -> Result<Ranking> {
        let task = progress.task("score the pool", pool.len() as u64, "rows");
        let of = format!("{:?} by {} of {}", self.by, self.identity, pool.identity());
        let mut scores = Scores::open(&self.scratch.join("pool"), &of)?;
        let there = scores.all().len();
        pool.for_each(|row, _, fields| {
            task.advance(1);
            if row < there {
                return Ok(());
            }
            if interrupt::requested() {
                scores.keep()?;
                return Err(Error::Interrupted("run the same command again to go on".to_string()));
            }
            scores.push(self.score(&fields.input, &fields.target)?.unwrap_or(f64::NAN))
        })?;
        let scored = scores.finish()?.into_iter().map(|score| (!score.is_nan()).then_some(score));
        let scored = scored.enumerate().collect();
        let rows = ranked(scored, self.by).into_iter().map(|row| Ranked { row, depth: 0 }).collect();
        Ok(Ranking { rows, neighbours: Vec::new() })
    }
}

/// Rows in the order of their scores; those without one last.
fn ranked(scored: Vec<(usize, Option<f64>)>, by: By) -> Vec<usize> {
    let mut all: Vec<f64> = scored.iter().filter_map(|(_, score)| *score).collect();
    all.sort_by(f64::total_cmp);
    let median = all.get(all.len() / 2).copied().unwrap_or(0.0);
    let key = |score: &Option<f64>| match (score, by) {
        (None, _) => f64::INFINITY,
        (Some(score), By::Perplexity) => (score - median).abs(),
        // Logarithms: a ratio below 1 is below 0. The nearest to 0 from below come first.
        (Some(score), By::Ifd) if *score < 0.0 => -score,
        (Some(score), By::Ifd) => 1e9 + score,
    };
    let mut rows: Vec<_> = scored.iter().map(|(row, score)| (key(score), *row)).collect();
    rows.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    rows.into_iter().map(|(_, row)| row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_of_perplexity_and_the_top_of_ifd_below_one() {
        let scored =
            vec![(0, Some(9.0)), (1, Some(2.0)), (2, Some(2.5)), (3, Some(0.1)), (4, None), (5, Some(3.1))];
        assert_eq!(ranked(scored, By::Perplexity), [2, 1, 5, 3, 0, 4]);
        let scored = vec![(0, Some(-2.0)), (1, Some(0.3)), (2, Some(-0.1)), (3, None), (4, Some(0.1))];
        assert_eq!(ranked(scored, By::Ifd), [2, 0, 4, 1, 3]);
    }

    /// Fails when scores that are there are made again, or those that are not are not.
    #[test]
    fn a_run_that_was_cut_off_goes_on() {
        let (dir, pool) = super::super::tests::pool(&[("a", 40)]);
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/models/llama2c/stories260K.bin");
        let scratch = dir.path().join("scratch");
        let rank = || {
            let mut by = Likelihood::open(&model, By::Perplexity, scratch.clone()).unwrap();
            let rows = by.rank(&pool, None, 1, Progress::Silent).unwrap().rows;
            rows.into_iter().map(|ranked| ranked.row).collect::<Vec<_>>()
        };
        let whole = rank();
        let bytes = std::fs::read(scratch.join("pool")).unwrap();
        std::fs::write(scratch.join("pool"), &bytes[..bytes.len() / 2]).unwrap();
        assert_eq!(rank(), whole);
        assert_eq!(std::fs::read(scratch.join("pool")).unwrap(), bytes);
        // Five that nobody has made: they are taken as they are, and are the farthest from the middle.
        let of = bytes.split(|byte| *byte == b'\n').next().unwrap();
        let of = String::from_utf8(of.to_vec()).unwrap();
        std::fs::remove_file(scratch.join("pool")).unwrap();
        let mut scores = Scores::open(&scratch.join("pool"), &of).unwrap();
        (0..5).for_each(|i| scores.push(1e6 + f64::from(i)).unwrap());
        scores.finish().unwrap();
        assert_eq!(rank()[35..], [0, 1, 2, 3, 4]);
    }
}
