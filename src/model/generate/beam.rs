//! Beam search, as transformers does it (`num_beams`, `length_penalty`, `early_stopping=False`).

use rayon::prelude::*;

use super::distribution::{log_sum_exp, penalise, top};
use super::text::Text;
use super::{Autoregressive, Ended, Generator, Job, Piece, TokenLogprob, Written, allowed, seen};
use crate::error::Result;

/// A text that beam search goes on with.
#[derive(Clone)]
struct Beam {
    tokens: Vec<u32>,
    logprobs: Vec<TokenLogprob>,
    /// Sum of log-probabilities.
    sum: f32,
    text: Text,
    shown: String,
    node: usize,
}

/// A way to go on with a beam.
struct Candidate {
    /// Number of the beam in the batch.
    row: usize,
    token: u32,
    /// Sum of log-probabilities with the token.
    sum: f32,
    /// Log-probability of the token under the model itself.
    logprob: f32,
}

/// The likeliest tokens after a beam, with their log-probabilities.
type Top = Vec<(u32, f32)>;

/// The beams of one prompt.
struct Search {
    prompt: usize,
    running: Vec<Beam>,
    /// Best first; at most as many as there are beams.
    finished: Vec<Written>,
}

impl<M: Autoregressive> Generator<'_, M> {
    pub(super) fn beam_search(
        &self,
        job: &Job<'_>,
        write: &mut dyn FnMut(Piece<'_>) -> bool,
    ) -> Result<Vec<(usize, Written)>> {
        let (mut state, hidden) = self.start(job.prompts, job.group)?;
        let mut logits = self.logits(&hidden)?;
        let vocabulary = self.network.vocab_size();
        let mut searches: Vec<Search> = job.group.iter().map(|prompt| self.search(job, *prompt)).collect();
        let mut done: Vec<Search> = Vec::new();
        if job.options.max_tokens == 0 && job.choices.is_none() {
            searches.iter_mut().for_each(|search| {
                let empty = search.running.drain(..).map(|beam| beam.finish(job, 0.0, Ended::Length)).next();
                search.finished.extend(empty);
            });
            done.append(&mut searches);
        }
        let mut length = 0;
        while !searches.is_empty() {
            length += 1;
            // Which row of the state each beam goes on from.
            let mut rows: Vec<usize> = Vec::new();
            let mut first = 0;
            for search in &mut searches {
                let beams = search.running.len();
                let logits = &mut logits[first * vocabulary..(first + beams) * vocabulary];
                let parents = self.advance(search, job, logits, length)?;
                rows.extend(parents.into_iter().map(|row| first + row));
                first += beams;
            }
            let mut go_on = true;
            for search in &searches {
                go_on &= write(Piece { prompt: search.prompt, sample: 0, text: "" });
            }
            if !go_on {
                for search in &mut searches {
                    let ended = search.running.drain(..).map(|beam| beam.finish_now(job));
                    search.finished.extend(ended);
                }
                rows.clear();
            }
            let (going, ended): (Vec<Search>, Vec<Search>) =
                searches.into_iter().partition(|search| !search.running.is_empty());
            (searches, done) = (going, done.into_iter().chain(ended).collect());
            if searches.is_empty() {
                break;
            }
            if rows.iter().copied().ne(0..first) {
                state = self.network.pick(&state, &rows)?;
            }
            let beams = searches.iter().flat_map(|search| &search.running);
            let tokens: Vec<u32> = beams.filter_map(|beam| beam.tokens.last().copied()).collect();
            logits = self.step(&tokens, &mut state, &hidden)?;
        }
        let mut written = Vec::new();
        for search in done {
            for (sample, text) in search.finished.into_iter().take(job.options.samples).enumerate() {
                write(Piece { prompt: search.prompt, sample, text: &text.text });
                written.push((search.prompt, text));
            }
        }
        Ok(written)
    }

    fn search(&self, job: &Job<'_>, prompt: usize) -> Search {
        let beam = Beam {
            tokens: Vec::new(),
            logprobs: Vec::new(),
            sum: 0.0,
            text: Text::after(self.context(&job.prompts[prompt])),
            shown: String::new(),
            node: 0,
        };
        Search { prompt, running: vec![beam], finished: Vec::new() }
    }

    /// Gives each beam its next token; the beams that go on after it, and which one each was, in order. `length`
    /// counts the new token.
    fn advance(
        &self,
        search: &mut Search,
        job: &Job<'_>,
        logits: &mut [f32],
        length: usize,
    ) -> Result<Vec<usize>> {
        let options = job.options;
        let room = self.room(&job.prompts[search.prompt]);
        let longest = if job.choices.is_some() { room } else { room.min(options.max_tokens) };
        // Enough that as many as there are beams go on, should all the others end.
        let wanted = options.beams * (1 + self.ends.len()).max(2);
        let context = self.context(&job.prompts[search.prompt]);
        let (vocabulary, ends) = (self.network.vocab_size(), &self.ends);
        let (next, alternatives): (Vec<Vec<Candidate>>, Vec<Top>) = search
            .running
            .par_iter()
            .zip(logits.par_chunks_mut(vocabulary))
            .enumerate()
            .map(|(row, (beam, logits))| {
                let log_total = log_sum_exp(logits);
                logits.iter_mut().for_each(|logit| *logit -= log_total);
                let alternatives = options.logprobs.map_or(Vec::new(), |n| top(logits, n));
                // transformers penalises log-probabilities here, where sampling penalises logits.
                let mut seen = seen(options, context);
                let plain: Option<Vec<f32>> = (options.repetition_penalty != 1.0).then(|| logits.to_vec());
                if plain.is_some() {
                    seen.extend(&beam.tokens);
                    penalise(logits, &seen, options.repetition_penalty);
                }
                let next = match job.choices {
                    Some(choices) => allowed(choices, beam.node, logits, ends),
                    None => top(logits, wanted),
                };
                let candidate = |(token, logprob): (u32, f32)| Candidate {
                    row,
                    token,
                    sum: beam.sum + logprob,
                    logprob: plain.as_ref().map_or(logprob, |plain| plain[token as usize]),
                };
                (next.into_iter().map(candidate).collect(), alternatives)
            })
            .unzip();
        let mut candidates: Vec<Candidate> = next.into_iter().flatten().collect();
        candidates.sort_by(|a, b| b.sum.total_cmp(&a.sum));
        candidates.truncate(wanted);
        let mut running = Vec::new();
        let mut parents = Vec::new();
        for (rank, candidate) in candidates.into_iter().enumerate() {
            if running.len() == options.beams {
                break;
            }
            let mut beam = search.running[candidate.row].clone();
            let top = &alternatives[candidate.row];
            let ended = beam.push(self, job, &candidate, top, longest)?;
            match ended {
                Some(ended) if rank < options.beams => {
                    let score = beam.sum / (length as f32).powf(options.length_penalty as f32);
                    search.finished.push(beam.finish(job, score, ended));
                }
                Some(_) => {}
                None => {
                    running.push(beam);
                    parents.push(candidate.row);
                }
            }
        }
        let score = |text: &Written| text.score.unwrap_or(f32::NEG_INFINITY);
        search.finished.sort_by(|a, b| score(b).total_cmp(&score(a)));
        search.finished.truncate(options.beams);
        // The best beam, were it to end here, against the worst text that is kept.
        let hope = running
            .first()
            .map_or(f32::NEG_INFINITY, |beam| beam.sum / (length as f32).powf(options.length_penalty as f32));
        let worst = search.finished.last().map_or(f32::NEG_INFINITY, score);
        if search.finished.len() == options.beams && hope <= worst {
            running.clear();
            parents.clear();
        }
        search.running = running;
        Ok(parents)
    }
}

impl Beam {
    /// Goes on with a candidate, and says why the text ends where it does.
    fn push<M: Autoregressive>(
        &mut self,
        generator: &Generator<'_, M>,
        job: &Job<'_>,
        candidate: &Candidate,
        top: &[(u32, f32)],
        longest: usize,
    ) -> Result<Option<Ended>> {
        let (token, options) = (candidate.token, job.options);
        self.sum = candidate.sum;
        let step = job.choices.map(|choices| (choices, choices.step(self.node, token)));
        let ends = match step {
            Some((_, step)) => step.is_none(),
            None => generator.ends.contains(&token),
        };
        if !ends {
            self.tokens.push(token);
            if options.logprobs.is_some() {
                let logprob = candidate.logprob;
                self.logprobs.push(TokenLogprob { token, logprob, top: top.to_vec() });
            }
        }
        if let Some((choices, step)) = step {
            let Some(node) = step else { return Ok(choices.choice(self.node).map(Ended::Choice)) };
            self.node = node;
            if choices.is_leaf(node) {
                return Ok(choices.choice(node).map(Ended::Choice));
            }
            return Ok(None);
        }
        let mut ended = ends.then_some(Ended::EndOfText);
        if !ends {
            self.shown.push_str(&self.text.push(token, generator.tokenizer, &options.stop)?);
        }
        if self.tokens.len() >= longest {
            ended = ended.or(Some(Ended::Length));
        }
        if ended.is_some() && !self.text.stopped() {
            self.shown.push_str(&self.text.finish(generator.tokenizer, &options.stop)?);
        }
        Ok(if self.text.stopped() { Some(Ended::Stop) } else { ended })
    }

    fn finish(self, job: &Job<'_>, score: f32, ended: Ended) -> Written {
        let text = match ended {
            Ended::Choice(number) => job.options.choices[number].clone(),
            _ => self.shown,
        };
        let logprobs = job.options.logprobs.map(|_| self.logprobs);
        Written { text, tokens: self.tokens, logprobs, score: Some(score), ended }
    }

    fn finish_now(self, job: &Job<'_>) -> Written {
        let score = self.sum / (self.tokens.len().max(1) as f32).powf(job.options.length_penalty as f32);
        self.finish(job, score, Ended::Interrupted)
    }
}
