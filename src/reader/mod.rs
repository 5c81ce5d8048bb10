//! Reading: from a question and retrieved passages to an answer that cites them.

mod ask;
mod extractive;
mod generative;
mod sentence;

use serde::Serialize;

use crate::error::Result;

pub use ask::{ReadSource, Response, ask};
pub use extractive::Extractive;
pub use generative::Generative;
pub use sentence::{one_line, sentences, whole_sentences};

/// A passage that may be cited.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Source<'a> {
    /// Title of the document that it comes from; empty if there is none.
    pub title: &'a str,
    /// The passage itself.
    pub text: &'a str,
    /// The retriever's score, larger is nearer.
    pub score: f32,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Answer {
    /// The answer, with `[1]` after what the first source says, and so on.
    pub text: String,
    /// Which reader gave it.
    pub reader: String,
    /// Places of the cited sources among those given, from 0, each once, in the order of citation.
    /// Empty if the sources do not answer.
    pub citations: Vec<usize>,
}

/// Answers questions from passages.
pub trait Reader {
    /// Answers `question` from `sources`, nearest first.
    ///
    /// # Errors
    /// An encoder or a model that fails. Sources that do not answer are no error: the answer says so.
    fn answer(&self, question: &str, sources: &[Source<'_>]) -> Result<Answer>;
}
