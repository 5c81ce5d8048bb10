//! What readers that write have in common: from a prompt to an answer with its citations and its confidence.

use super::{Answer, Source};
use crate::error::Result;
use crate::eval::metrics::holds;
use crate::model::generate::{Autoregressive, Generator, Options};

/// How much is written.
#[derive(Clone, Copy)]
pub(super) struct Writing {
    /// Tokens at most.
    pub tokens: usize,
    /// Whether the answer ends with its first line.
    pub one_line: bool,
}

/// The likeliest continuation of `prompt`, which has the `sources`, as an answer. It cites those that hold it, and its confidence is
/// the geometric mean of its tokens' probabilities.
pub(super) fn answer<M: Autoregressive>(
    generator: &Generator<'_, M>,
    prompt: Vec<u32>,
    writing: Writing,
    sources: &[Source<'_>],
    reader: String,
) -> Result<Answer> {
    let options = Options { max_tokens: writing.tokens, logprobs: Some(0), ..Options::default() };
    let mut text = String::new();
    let written = generator.generate(&[prompt], &options, &mut |piece| {
        text.push_str(piece.text);
        !(writing.one_line && text.trim_start().contains('\n'))
    })?;
    let generation = match writing.one_line {
        true => text.trim_start().lines().next().unwrap_or_default().trim().to_string(),
        false => text.trim().to_string(),
    };
    let logprobs =
        written.into_iter().flatten().next().and_then(|written| written.logprobs).unwrap_or_default();
    let mean =
        logprobs.iter().map(|token| f64::from(token.logprob)).sum::<f64>() / logprobs.len().max(1) as f64;
    let confidence = if generation.is_empty() { 0.0 } else { mean.exp() };
    let says =
        |source: &Source<'_>| holds(source.text, &[&generation]) || holds(source.title, &[&generation]);
    let citations: Vec<usize> =
        sources.iter().enumerate().filter(|(_, source)| says(source)).map(|(place, _)| place).collect();
    let marks: String = citations.iter().map(|place| format!(" [{}]", place + 1)).collect();
    let read = sources.iter().map(|source| source.text.len()).collect();
    Ok(Answer { text: format!("{generation}{marks}"), generation, reader, citations, confidence, read })
}

/// The probabilities of `choices` after `prompt`, as parts of 1.
pub(super) fn distribution<M: Autoregressive>(
    generator: &Generator<'_, M>,
    prompt: &[u32],
    choices: &[String],
) -> Result<Vec<f64>> {
    let (_, scores) = generator.choose(prompt, choices, choices.len())?;
    let sums: Vec<f64> = scores.iter().map(|score| score.sum()).collect();
    let highest = sums.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let shares: Vec<f64> = sums.iter().map(|sum| (sum - highest).exp()).collect();
    let total: f64 = shares.iter().sum();
    Ok(shares.into_iter().map(|share| share / total).collect())
}
