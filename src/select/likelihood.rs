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
use crate::eval::tasks::ModelText;
use crate::interrupt;
use crate::model::WritingModel;
use crate::progress::Progress;

/// Most tokens of an input and of a target that are read: an input's last, a target's first.
const LONGEST: usize = 512;
/// Raised when a row's number is made in another way: those that an earlier program has kept are not taken.
const VERSION: u32 = 2;

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
        if input.trim().is_empty() || target.trim().is_empty() {
            return Ok(None);
        }
        let (generator, text) = (self.model.generator(None), ModelText(&self.model));
        // Where the model reads fewer than both, a target has half of them at most, and an input what is left.
        let longest = text.longest();
        let mut answer = text.answer(input, target)?;
        answer.truncate(LONGEST.min(longest / 2));
        // The first token of a target that stands alone has nothing before it: both means are over the others.
        let from = usize::from(self.by == By::Ifd);
        if answer.len() <= from {
            return Ok(None);
        }
        let question = text.question(input, LONGEST.min(longest - answer.len()))?;
        let answer = std::slice::from_ref(&answer);
        let after = surprise(&generator.score(&question, answer, 1)?[0].tokens[from..]);
        if self.by == By::Perplexity {
            return Ok(Some(after));
        }
        let alone = match &self.model {
            WritingModel::Decoder(_) => surprise(&generator.score_texts(answer, 1)?[0].tokens),
            // `score_texts` would have the encoder read the first token: it reads an empty text instead.
            WritingModel::EncoderDecoder(_) => {
                surprise(&generator.score(&text.nothing()?, answer, 1)?[0].tokens[from..])
            }
        };
        Ok(Some(after - alone))
    }
}

/// The mean of what tokens of these log-probabilities cost.
fn surprise(logprobs: &[f32]) -> f64 {
    -logprobs.iter().map(|logprob| f64::from(*logprob)).sum::<f64>() / logprobs.len() as f64
}

impl Selector for Likelihood {
    fn rank(&mut self, pool: &Pool, _: Option<&Target>, _: usize, progress: Progress) -> Result<Ranking> {
        let task = progress.task("score the pool", pool.len() as u64, "rows");
        let of = format!("{:?} {VERSION} by {} of {}", self.by, self.identity, pool.identity());
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
            let score = self.score(&fields.input, &fields.target);
            let score = score.map_err(|why| Error::file(pool.path(), format!("row {row}: {why}")))?;
            scores.push(score.unwrap_or(f64::NAN))
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

    fn model(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/models").join(name)
    }

    fn scorer(name: &str, by: By) -> Likelihood {
        Likelihood::open(&model(name), by, PathBuf::new()).unwrap()
    }

    fn ids(of: &Likelihood, text: &str) -> Vec<u32> {
        of.model.tokenizer().encode(text).unwrap().ids
    }

    /// The mean negative log-likelihood of the last of `answer` after `prompt` and those before them.
    fn cost(of: &Likelihood, prompt: &[u32], answer: &[u32], from: usize) -> f64 {
        let scores = of.model.generator(None).score(prompt, &[answer.to_vec()], 1).unwrap();
        let logprobs = &scores[0].tokens[from..];
        assert_eq!(logprobs.len(), answer.len() - from);
        -logprobs.iter().map(|x| f64::from(*x)).sum::<f64>() / logprobs.len() as f64
    }

    /// Of a decoder: the tokens that texts begin with and those of the question; those of the answer after it.
    fn tokens(of: &Likelihood, question: &str, answer: &str) -> (Vec<u32>, Vec<u32>, Vec<u32>) {
        let WritingModel::Decoder(model) = &of.model else { panic!("no decoder") };
        let (asked, whole) = (ids(of, question), ids(of, &format!("{question} {answer}")));
        let own = whole[asked.len()..].to_vec();
        (model.start_tokens().to_vec(), asked, own)
    }

    /// Fails when the space before the target or the token before the input is left out, when a mean is over other tokens,
    /// and when IFD's sign is turned.
    #[test]
    fn scores_are_the_targets_likelihoods_after_the_input() {
        for name in ["llama2c/stories260K.bin", "gguf/gpt2.gguf"] {
            let [perplexity, ifd] = [By::Perplexity, By::Ifd].map(|by| scorer(name, by));
            let (starts, asked, answer) = tokens(&ifd, "She said", "the sea is near");
            let prompt = [starts, asked].concat();
            let found = perplexity.score("She said", "the sea is near").unwrap().unwrap();
            let wanted = cost(&ifd, &prompt, &answer, 0);
            assert!((found - wanted).abs() < 1e-5, "{name}: {found}, not {wanted}");
            let found = ifd.score("She said", "the sea is near").unwrap().unwrap();
            let wanted = cost(&ifd, &prompt, &answer, 1) - cost(&ifd, &answer[..1], &answer[1..], 0);
            assert!((found - wanted).abs() < 1e-5, "{name}: {found}, not {wanted}");
            assert!(wanted.abs() > 1e-4, "{name}: a turned sign would not show in {wanted}");
            assert_eq!(perplexity.score("She said", " ").unwrap(), None);
        }
        // The tokens with the space are others.
        let gpt2 = scorer("gguf/gpt2.gguf", By::Ifd);
        assert_ne!(tokens(&gpt2, "She said", "the sea").2, ids(&gpt2, "the sea"));
    }

    /// Fails when one mean is over tokens that the other's decoder has not read.
    #[test]
    fn of_an_encoder_decoder_the_target_alone_comes_after_an_empty_text() {
        let ifd = scorer("t5_v1_0", By::Ifd);
        let WritingModel::EncoderDecoder(model) = &ifd.model else { panic!("no encoder-decoder") };
        let end = model.end_tokens()[0];
        let (prompt, answer) = ([ids(&ifd, "the moon"), vec![end]].concat(), ids(&ifd, "a line of text"));
        let wanted = cost(&ifd, &prompt, &answer, 1) - cost(&ifd, &[end], &answer, 1);
        let found = ifd.score("the moon", "a line of text").unwrap().unwrap();
        assert!((found - wanted).abs() < 1e-5, "{found}, not {wanted}");
    }

    /// Fails when what does not fit into the model's context is not cut, or what texts begin with is cut with it.
    #[test]
    fn of_long_texts_an_inputs_end_and_a_targets_beginning_are_read() {
        let (input, target) = ("Once upon a time ".repeat(300), "there was a dog ".repeat(300));
        for by in [By::Perplexity, By::Ifd] {
            let of = scorer("llama2c/stories260K.bin", by);
            let (starts, asked, answer) = tokens(&of, input.trim_end(), &target);
            // It reads 512.
            assert_eq!((starts.len(), asked.len() > 512, answer.len() > 512), (1, true, true));
            let prompt = [starts.as_slice(), &asked[asked.len() - 255..]].concat();
            let wanted = match by {
                By::Perplexity => cost(&of, &prompt, &answer[..256], 0),
                By::Ifd => {
                    cost(&of, &prompt, &answer[..256], 1) - cost(&of, &answer[..1], &answer[1..256], 0)
                }
            };
            let found = of.score(&input, &target).unwrap().unwrap();
            assert!((found - wanted).abs() < 1e-5, "{by:?}: {found}, not {wanted}");
        }
    }

    /// Fails when scores that are there are made again, or those that are not are not.
    #[test]
    fn a_run_that_was_cut_off_goes_on() {
        let (dir, pool) = super::super::tests::pool(&[("a", 40)]);
        let model = model("llama2c/stories260K.bin");
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
