//! From a question to an answer with its sources: retrieve, widen, read.

use std::collections::HashSet;

use serde::Serialize;

use super::{Answer, Reader, Source, whole_sentences};
use crate::error::Result;
use crate::retriever::{Passage, Retriever, SearchOptions};

/// An answer with everything that was read for it.
#[derive(Debug, Clone, Serialize)]
pub struct Response {
    /// The question.
    pub question: String,
    /// The answer.
    #[serde(flatten)]
    pub answer: Answer,
    /// What was read, best first.
    pub sources: Vec<ReadSource>,
    /// Passages that were found and not read: the reader has no room for them.
    pub unread: usize,
}

/// A passage that was read.
#[derive(Debug, Clone, Serialize)]
pub struct ReadSource {
    /// Title of its document.
    pub title: String,
    /// What was read of it.
    pub text: String,
    /// Id of its document.
    pub id: String,
    /// The retriever's score.
    pub score: f32,
    /// Whether the answer cites it.
    pub cited: bool,
}

/// Said where what was read does not support an answer.
pub const NOT_FOUND: &str = "Not found in the corpus.";

/// Answers `question` from the `k` best passages, of which those with the same title and sentences are read once; with a
/// `threshold`, only where the [support](Answer::support) reaches it, and else says that the answer was [not found](NOT_FOUND),
/// with no citation.
pub fn ask(
    retriever: &Retriever,
    question: &str,
    k: usize,
    options: &SearchOptions,
    reader: &dyn Reader,
    threshold: Option<f64>,
) -> Result<Response> {
    let mut had = HashSet::new();
    let passages: Vec<(&str, Passage)> = retriever
        .search_with(question, k, options)?
        .into_iter()
        .map(|passage| (widened(retriever, &passage), passage))
        .filter(|(text, passage)| had.insert((passage.title.clone(), *text)))
        .collect();
    let sources: Vec<Source<'_>> = passages
        .iter()
        .map(|(text, passage)| Source { title: &passage.title, text, score: passage.score })
        .collect();
    let mut answer = reader.answer(question, &sources)?;
    if threshold.is_some_and(|threshold| answer.support() < threshold) {
        (answer.text, answer.generation) = (NOT_FOUND.into(), String::new());
        answer.citations.clear();
    }
    let unread = passages.len().saturating_sub(answer.read.len());
    let read = passages.into_iter().zip(&answer.read).enumerate();
    let read = read.map(|(place, ((text, passage), bytes))| ReadSource {
        title: passage.title,
        text: text.get(..*bytes).unwrap_or(text).into(),
        id: passage.id,
        score: passage.score,
        cited: answer.citations.contains(&place),
    });
    let sources = read.collect();
    Ok(Response { question: question.into(), answer, sources, unread })
}

/// A chunk's borders fall anywhere; what is read and shown are the [whole sentences](whole_sentences) it touches.
pub fn widened<'r>(retriever: &'r Retriever, passage: &Passage) -> &'r str {
    let chunk = retriever.store().chunk(passage.chunk);
    let document = retriever.store().document(passage.document);
    whole_sentences(document.text, chunk.start..chunk.start + chunk.text.len())
}
