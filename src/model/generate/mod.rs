//! Writing and scoring texts with any network that predicts a text token by token.
//!
//! [`Generator`] takes the likeliest token, draws one, or goes on with the best of several beams; [`Options`] says
//! how. Prompts of uneven lengths are read side by side, each once, whatever number of texts is written for it.

use std::collections::HashSet;

use candle_core::{DType, Tensor};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use crate::corpus::Tokenizer;
use crate::error::{Error, Result};

mod autoregressive;
mod beam;
mod choices;
mod distribution;
mod options;
mod score;
#[cfg(test)]
mod tests;
mod text;

pub use autoregressive::{Autoregressive, left_padded};
pub use choices::Choices;
pub use options::Options;
pub use score::Score;

pub(in crate::model) use distribution::log_sum_exp;
use distribution::{Distribution, largest, penalise, top};
use text::Text;

/// Finds neighbours for a complete chunk of tokens: at most k token lists `[N; F]`.
pub type Retrieve<'a> = dyn Fn(&[u32]) -> Result<Vec<Vec<u32>>> + 'a;

/// Why a text ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The model ended it.
    EndOfText,
    /// A stop string was written.
    Stop,
    /// It is the choice of this number, from 0.
    Choice(usize),
    /// It has as many tokens as were asked for, or as the model can read.
    Length,
    /// Whoever it was written for wanted no more.
    Interrupted,
}

impl Ended {
    /// `stop`, `length` or `interrupted`, as the APIs of language models say it.
    pub fn reason(self) -> &'static str {
        match self {
            Self::EndOfText | Self::Stop | Self::Choice(_) => "stop",
            Self::Length => "length",
            Self::Interrupted => "interrupted",
        }
    }
}

/// A token with its log-probability (natural) under the model itself, before temperature and the like.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprob {
    /// The token.
    pub token: u32,
    /// Its log-probability.
    pub logprob: f32,
    /// The likeliest tokens in its place, likeliest first.
    pub top: Vec<(u32, f32)>,
}

/// A text that was written.
#[derive(Debug, Clone, PartialEq)]
pub struct Written {
    /// The text; without the stop string that ended it.
    pub text: String,
    /// Its tokens; those that spell the stop string among them, the end of text not.
    pub tokens: Vec<u32>,
    /// Log-probabilities of the tokens, where asked for.
    pub logprobs: Option<Vec<TokenLogprob>>,
    /// Of beam search: the log-probability of the text with its end, divided by its length to the length penalty.
    pub score: Option<f32>,
    /// Why it ends.
    pub ended: Ended,
}

/// More of a text, as it is written.
#[derive(Debug, Clone, Copy)]
pub struct Piece<'a> {
    /// Number of the prompt.
    pub prompt: usize,
    /// Number of the prompt's sample.
    pub sample: usize,
    /// Whole characters, none where a token ends inside one.
    pub text: &'a str,
}

/// Writes and scores texts with a network.
pub struct Generator<'a, M> {
    network: M,
    tokenizer: &'a Tokenizer,
    ends: Vec<u32>,
}

impl<'a, M: Autoregressive> Generator<'a, M> {
    /// A generator whose texts end with any of the tokens `ends`.
    pub fn new(network: M, tokenizer: &'a Tokenizer, ends: Vec<u32>) -> Self {
        Self { network, tokenizer, ends }
    }

    /// Goes on from each of `prompts`, the texts of which are in the same order in the result: as many a prompt as
    /// the options say. `write` gets each text piece by piece and says whether to go on; with beams or choices, only
    /// the whole text is written, but `write` is asked after each token.
    ///
    /// # Errors
    /// When an option or a prompt cannot be used, or the network fails.
    pub fn generate(
        &self,
        prompts: &[Vec<u32>],
        options: &Options,
        write: &mut dyn FnMut(Piece<'_>) -> bool,
    ) -> Result<Vec<Vec<Written>>> {
        options.check()?;
        for (number, prompt) in prompts.iter().enumerate() {
            self.check_prompt(prompt, number, prompts.len())?;
        }
        let choices = match options.choices.is_empty() {
            true => None,
            false => Some(Choices::new(&options.choices, self.tokenizer, self.ends.first().copied())?),
        };
        let longest = choices.iter().flat_map(Choices::paths).map(Vec::len).max().unwrap_or(0);
        for prompt in prompts {
            // The last token is not read.
            if longest > self.room(prompt).saturating_add(1) {
                let why = format!("{longest} tokens are more than the model can read after the prompt");
                return Err(Error::setting("choice", why));
            }
        }
        // Prompts of like length side by side leave little padding.
        let mut order: Vec<usize> = (0..prompts.len()).collect();
        order.sort_by_key(|i| prompts[*i].len());
        let rows_a_prompt = options.samples.max(options.beams);
        let mut written: Vec<Vec<Written>> = prompts.iter().map(|_| Vec::new()).collect();
        for group in order.chunks((options.batch / rows_a_prompt).max(1)) {
            let job = Job { prompts, group, options, choices: choices.as_ref() };
            let texts = match options.beams {
                1 => self.sample(&job, write)?,
                _ => self.beam_search(&job, write)?,
            };
            for (prompt, text) in texts {
                written[prompt].push(text);
            }
        }
        Ok(written)
    }

    fn check_prompt(&self, prompt: &[u32], number: usize, of: usize) -> Result<()> {
        let name = if of == 1 { "prompt".to_string() } else { format!("prompt {}", number + 1) };
        let vocabulary = self.network.vocab_size();
        if prompt.is_empty() {
            return Err(Error::setting(name, "has no tokens; give at least one word"));
        }
        if let Some(token) = prompt.iter().find(|token| **token as usize >= vocabulary) {
            return Err(Error::setting(
                name,
                format!("token {token} is not one of the model's {vocabulary}"),
            ));
        }
        if self.room(prompt) == 0 {
            let why =
                format!("{} tokens, but the model reads at most {}", prompt.len(), self.network.longest());
            return Err(Error::setting(name, why));
        }
        Ok(())
    }

    /// Most tokens that can be written after `prompt`.
    fn room(&self, prompt: &[u32]) -> usize {
        let longest = self.network.longest();
        if self.network.continues_prompt() { longest.saturating_sub(prompt.len()) } else { longest }
    }

    fn start(&self, prompts: &[Vec<u32>], group: &[usize]) -> Result<(M::State, Tensor)> {
        let prompts: Vec<&[u32]> = group.iter().map(|i| prompts[*i].as_slice()).collect();
        self.network.start(&prompts)
    }

    /// Logits of hidden states `[n, d]` as n rows of V in one list.
    fn logits(&self, hidden: &Tensor) -> Result<Vec<f32>> {
        Ok(self.network.logits(hidden)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
    }

    /// Reads a token for each sequence, and gives the logits of the next.
    fn step(&self, tokens: &[u32], state: &mut M::State, like: &Tensor) -> Result<Vec<f32>> {
        let tokens = Tensor::new(tokens, like.device())?.unsqueeze(1)?;
        self.logits(&self.network.read(&tokens, state)?.squeeze(1)?)
    }

    /// Writes each text by itself, greedily or by drawing.
    fn sample(
        &self,
        job: &Job<'_>,
        write: &mut dyn FnMut(Piece<'_>) -> bool,
    ) -> Result<Vec<(usize, Written)>> {
        let (prompts, hidden) = self.start(job.prompts, job.group)?;
        // The rows of each prompt one after the other.
        let all: Vec<(usize, usize)> = (0..job.group.len())
            .flat_map(|place| (0..job.options.samples).map(move |sample| (place, sample)))
            .collect();
        let mut written = Vec::new();
        let vocabulary = self.network.vocab_size();
        let first = self.logits(&hidden)?;
        for part in all.chunks(job.options.batch) {
            let places: Vec<usize> = part.iter().map(|(place, _)| *place).collect();
            let mut state = self.network.pick(&prompts, &places)?;
            let mut logits: Vec<f32> = Vec::with_capacity(places.len() * vocabulary);
            for place in &places {
                logits.extend_from_slice(&first[place * vocabulary..(place + 1) * vocabulary]);
            }
            let mut rows: Vec<Row> =
                part.iter().map(|(place, sample)| self.row(job, job.group[*place], *sample)).collect();
            let mut done: Vec<Row> = Vec::new();
            let room = |row: &Row| match job.choices {
                Some(_) => self.room(&job.prompts[row.prompt]),
                None => job.options.max_tokens.min(self.room(&job.prompts[row.prompt])),
            };
            if job.options.max_tokens == 0 && job.choices.is_none() {
                done.append(&mut rows);
            }
            while !rows.is_empty() {
                let ends = &self.ends;
                let chosen: Vec<Option<u32>> = rows
                    .par_iter_mut()
                    .zip(logits.par_chunks_mut(vocabulary))
                    .map(|(row, logits)| row.choose(logits, job, ends))
                    .collect();
                let mut go_on = true;
                for (row, token) in rows.iter_mut().zip(&chosen) {
                    let piece = row.push(*token, job, self.tokenizer, &self.ends, room(row))?;
                    go_on &= write(Piece { prompt: row.prompt, sample: row.sample, text: &piece });
                }
                if !go_on {
                    rows.iter_mut().for_each(|row| _ = row.ended.get_or_insert(Ended::Interrupted));
                }
                let keep: Vec<usize> = (0..rows.len()).filter(|i| rows[*i].ended.is_none()).collect();
                let all = keep.len() == rows.len();
                let (going, ended): (Vec<Row>, Vec<Row>) =
                    rows.into_iter().partition(|row| row.ended.is_none());
                (rows, done) = (going, done.into_iter().chain(ended).collect());
                if rows.is_empty() {
                    break;
                }
                if !all {
                    state = self.network.pick(&state, &keep)?;
                }
                let tokens: Vec<u32> = rows.iter().filter_map(|row| row.tokens.last().copied()).collect();
                logits = self.step(&tokens, &mut state, &hidden)?;
            }
            done.sort_by_key(|row| (row.prompt, row.sample));
            written.extend(done.into_iter().map(|row| (row.prompt, row.finish())));
        }
        Ok(written)
    }

    fn row(&self, job: &Job<'_>, prompt: usize, sample: usize) -> Row {
        let tokens = &job.prompts[prompt];
        Row {
            prompt,
            sample,
            rng: rng(job.options.seed, tokens, sample),
            seen: seen(job.options, self.context(tokens)),
            text: Text::after(self.context(tokens)),
            shown: String::new(),
            tokens: Vec::new(),
            logprobs: Vec::new(),
            logprobs_asked: job.options.logprobs.is_some(),
            node: 0,
            ended: None,
        }
    }

    /// The tokens that a text goes on from; none where an encoder has read them.
    fn context<'p>(&self, prompt: &'p [u32]) -> &'p [u32] {
        if self.network.continues_prompt() { prompt } else { &[] }
    }
}

/// What is written in one batch.
struct Job<'j> {
    prompts: &'j [Vec<u32>],
    /// Numbers of the prompts in the batch.
    group: &'j [usize],
    options: &'j Options,
    choices: Option<&'j Choices>,
}

/// A text that is being written.
struct Row {
    prompt: usize,
    sample: usize,
    rng: ChaCha8Rng,
    /// Tokens that the repetition penalty is for.
    seen: HashSet<u32>,
    text: Text,
    shown: String,
    tokens: Vec<u32>,
    logprobs: Vec<TokenLogprob>,
    logprobs_asked: bool,
    /// Where it is in the trie of the choices.
    node: usize,
    ended: Option<Ended>,
}

impl Row {
    /// The next token, after `logits`, which are changed.
    fn choose(&mut self, logits: &mut [f32], job: &Job<'_>, ends: &[u32]) -> Option<u32> {
        let options = job.options;
        let log_total = options.logprobs.map(|n| (log_sum_exp(logits), top(logits, n)));
        // The penalty changes what is reported, were it not put aside before.
        let plain: Option<Vec<f32>> = (log_total.is_some() && !self.seen.is_empty()).then(|| logits.to_vec());
        penalise(logits, &self.seen, options.repetition_penalty);
        let token = match job.choices {
            None if options.temperature == 0.0 => Some(largest(logits.iter().copied()) as u32),
            None => {
                let all = logits.iter().enumerate().map(|(token, logit)| (token as u32, *logit)).collect();
                Distribution::new(all, options).draw(&mut self.rng)
            }
            Some(choices) => {
                let allowed = allowed(choices, self.node, logits, ends);
                match options.temperature == 0.0 {
                    true => {
                        allowed.get(largest(allowed.iter().map(|(_, logit)| *logit))).map(|(token, _)| *token)
                    }
                    false => Distribution::new(allowed, options).draw(&mut self.rng),
                }
            }
        }?;
        if let Some((log_total, mut top)) = log_total {
            let logit = plain.as_deref().unwrap_or(logits)[token as usize];
            top.iter_mut().for_each(|(_, logit)| *logit -= log_total);
            self.logprobs.push(TokenLogprob { token, logprob: logit - log_total, top });
        }
        if options.repetition_penalty != 1.0 {
            self.seen.insert(token);
        }
        Some(token)
    }

    /// Adds `token`, and gives what it adds to the text; `room` is how many tokens the text may have.
    fn push(
        &mut self,
        token: Option<u32>,
        job: &Job<'_>,
        tokenizer: &Tokenizer,
        ends: &[u32],
        room: usize,
    ) -> Result<String> {
        let stop = &job.options.stop;
        let Some(token) = token else {
            self.ended = Some(Ended::Length);
            return Ok(String::new());
        };
        if let Some(choices) = job.choices {
            self.ended = match choices.step(self.node, token) {
                Some(node) => {
                    self.node = node;
                    self.tokens.push(token);
                    choices.is_leaf(node).then_some(Ended::Length)
                }
                None => Some(Ended::EndOfText),
            };
            if self.ended.is_some() {
                self.ended = choices.choice(self.node).map(Ended::Choice);
                let number = choices.choice(self.node).unwrap_or_default();
                self.shown = job.options.choices[number].clone();
                return Ok(self.shown.clone());
            }
            return Ok(String::new());
        }
        let mut piece = if ends.contains(&token) {
            self.ended = Some(Ended::EndOfText);
            String::new()
        } else {
            self.tokens.push(token);
            self.text.push(token, tokenizer, stop)?
        };
        if self.text.stopped() {
            self.ended = Some(Ended::Stop);
        } else if self.tokens.len() >= room {
            self.ended.get_or_insert(Ended::Length);
        }
        if self.ended.is_some() {
            piece.push_str(&self.text.finish(tokenizer, stop)?);
            if self.text.stopped() {
                self.ended = Some(Ended::Stop);
            }
        }
        self.shown.push_str(&piece);
        Ok(piece)
    }

    fn finish(mut self) -> Written {
        // The end of text is no token of the text.
        self.logprobs.truncate(self.tokens.len());
        Written {
            text: self.shown,
            logprobs: self.logprobs_asked.then_some(self.logprobs),
            tokens: self.tokens,
            score: None,
            ended: self.ended.unwrap_or(Ended::Length),
        }
    }
}

/// The tokens that may come next where a text must be one of `choices`, with their logits.
fn allowed(choices: &Choices, node: usize, logits: &[f32], ends: &[u32]) -> Vec<(u32, f32)> {
    let ends = ends.iter().copied().filter(|_| choices.choice(node).is_some());
    choices
        .next(node)
        .chain(ends)
        .filter_map(|token| logits.get(token as usize).map(|logit| (token, *logit)))
        .collect()
}

/// The tokens that the repetition penalty is for.
fn seen(options: &Options, tokens: &[u32]) -> HashSet<u32> {
    if options.repetition_penalty == 1.0 { HashSet::new() } else { tokens.iter().copied().collect() }
}

/// The source of a text's draws, which is the same wherever its prompt stands.
fn rng(seed: u64, prompt: &[u32], sample: usize) -> ChaCha8Rng {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.update(&(sample as u64).to_le_bytes());
    for token in prompt {
        hasher.update(&token.to_le_bytes());
    }
    ChaCha8Rng::from_seed(*hasher.finalize().as_bytes())
}
