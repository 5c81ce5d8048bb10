//! How probable given texts are.

use candle_core::Tensor;
use rayon::prelude::*;

use super::distribution::log_sum_exp;
use super::{Autoregressive, Choices, Generator};
use crate::error::{Error, Result};

/// Most logits that are held at a time.
const LOGITS: usize = 1 << 23;

/// Log-probabilities (natural) of a given text's tokens, each after those before it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Score {
    /// One a token.
    pub tokens: Vec<f32>,
}

impl Score {
    /// Log-probability of the whole.
    pub fn sum(&self) -> f64 {
        self.tokens.iter().map(|logprob| f64::from(*logprob)).sum()
    }

    /// Log-probability a token, for which a longer text is not at a disadvantage; 0 for no tokens.
    pub fn mean(&self) -> f64 {
        self.sum() / self.tokens.len().max(1) as f64
    }
}

impl<M: Autoregressive> Generator<'_, M> {
    /// Scores `continuations` of `prompt`, `batch` at a time. The prompt is read once for all.
    ///
    /// # Errors
    /// When the prompt or a continuation cannot be read, or the network fails.
    pub fn score(&self, prompt: &[u32], continuations: &[Vec<u32>], batch: usize) -> Result<Vec<Score>> {
        self.check_prompt(prompt, 0, 1)?;
        let rows: Vec<(usize, &[u32])> = continuations.iter().map(|text| (0, text.as_slice())).collect();
        self.score_after(&[prompt], &rows, batch)
    }

    /// Scores texts, each after the prompt of the number that it comes with, `batch` at a time. All prompts are read at once.
    ///
    /// # Errors
    /// As of [`score`](Self::score).
    pub fn score_each(
        &self,
        prompts: &[&[u32]],
        rows: &[(usize, &[u32])],
        batch: usize,
    ) -> Result<Vec<Score>> {
        for (number, prompt) in prompts.iter().enumerate() {
            self.check_prompt(prompt, number, prompts.len())?;
        }
        self.score_after(prompts, rows, batch)
    }

    /// Scores whole texts, `batch` at a time: every token but the first, which nothing comes before.
    ///
    /// # Errors
    /// When a text is empty or cannot be read, or the network fails.
    pub fn score_texts(&self, texts: &[Vec<u32>], batch: usize) -> Result<Vec<Score>> {
        for (number, text) in texts.iter().enumerate() {
            self.check_prompt(&text[..text.len().min(1)], number, texts.len())?;
        }
        // Texts of like length side by side leave little padding.
        let mut order: Vec<usize> = (0..texts.len()).collect();
        order.sort_by_key(|i| texts[*i].len());
        let mut scores = vec![Score::default(); texts.len()];
        for group in order.chunks(batch.max(1)) {
            let firsts: Vec<&[u32]> = group.iter().map(|i| &texts[*i][..1]).collect();
            let rows: Vec<(usize, &[u32])> =
                group.iter().enumerate().map(|(row, i)| (row, &texts[*i][1..])).collect();
            for (i, score) in group.iter().zip(self.score_after(&firsts, &rows, batch)?) {
                scores[*i] = score;
            }
        }
        Ok(scores)
    }

    /// The most probable of `choices` after `prompt` and the scores of all, in their order. A choice that is the
    /// beginning of another is scored with the end of text after it.
    ///
    /// # Errors
    /// When there are no choices or they cannot be told apart, and as [`score`](Self::score).
    pub fn choose(&self, prompt: &[u32], choices: &[String], batch: usize) -> Result<(usize, Vec<Score>)> {
        let choices = Choices::new(choices, self.tokenizer, self.ends.first().copied())?;
        let scores = self.score(prompt, choices.paths(), batch)?;
        let best =
            (0..scores.len()).max_by(|a, b| scores[*a].sum().total_cmp(&scores[*b].sum()).then(b.cmp(a)));
        let best = best.ok_or_else(|| Error::setting("choice", "give at least one"))?;
        Ok((best, scores))
    }

    /// Scores texts, each after the prompt of the number that it comes with.
    fn score_after(&self, prompts: &[&[u32]], rows: &[(usize, &[u32])], batch: usize) -> Result<Vec<Score>> {
        let vocabulary = self.network.vocab_size();
        for (prompt, text) in rows {
            // The last token is predicted, not read.
            if text.len() > self.room(prompts[*prompt]).saturating_add(1) {
                let why = format!(
                    "{} tokens after {} of prompt, but the model reads at most {}",
                    text.len(),
                    prompts[*prompt].len(),
                    self.network.longest()
                );
                return Err(Error::setting("text", why));
            }
            if let Some(token) = text.iter().find(|token| **token as usize >= vocabulary) {
                return Err(Error::setting(
                    "text",
                    format!("token {token} is not one of the model's {vocabulary}"),
                ));
            }
        }
        let (state, hidden) = self.network.start(prompts)?;
        let first = self.logits(&hidden)?;
        let totals: Vec<f32> = first.par_chunks(vocabulary).map(log_sum_exp).collect();
        let mut scores = vec![Score::default(); rows.len()];
        for (score, (prompt, text)) in scores.iter_mut().zip(rows) {
            let logprob = |token: &u32| first[prompt * vocabulary + *token as usize] - totals[*prompt];
            score.tokens.extend(text.first().map(logprob));
        }
        let mut order: Vec<usize> = (0..rows.len()).filter(|i| rows[*i].1.len() > 1).collect();
        order.sort_by_key(|i| rows[*i].1.len());
        for group in order.chunks(batch.max(1)) {
            let picked: Vec<usize> = group.iter().map(|i| rows[*i].0).collect();
            let mut state = self.network.pick(&state, &picked)?;
            // What is to be read, filled up on the right, where nothing that counts can see it.
            let width = group.iter().map(|i| rows[*i].1.len() - 1).max().unwrap_or(0);
            let mut tokens = vec![0u32; group.len() * width];
            let mut places: Vec<(usize, u32, u32)> = Vec::new();
            for (row, i) in group.iter().enumerate() {
                for (column, pair) in rows[*i].1.windows(2).enumerate() {
                    tokens[row * width + column] = pair[0];
                    places.push((*i, (row * width + column) as u32, pair[1]));
                }
            }
            let tokens = Tensor::from_vec(tokens, (group.len(), width), hidden.device())?;
            let read = self.network.read(&tokens, &mut state)?.flatten(0, 1)?;
            for part in places.chunks((LOGITS / vocabulary).max(1)) {
                let at: Vec<u32> = part.iter().map(|(_, at, _)| *at).collect();
                let at = Tensor::new(at, hidden.device())?;
                let logits = self.logits(&read.index_select(&at, 0)?)?;
                let logprobs: Vec<f32> = logits
                    .par_chunks(vocabulary)
                    .zip(part)
                    .map(|(logits, (_, _, token))| logits[*token as usize] - log_sum_exp(logits))
                    .collect();
                for ((i, _, _), logprob) in part.iter().zip(logprobs) {
                    scores[*i].tokens.push(logprob);
                }
            }
        }
        Ok(scores)
    }
}
