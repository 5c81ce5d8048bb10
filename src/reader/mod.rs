//! Reading: from a question and retrieved passages to an answer that cites them.

mod ask;
mod extractive;
mod fusion;
mod generative;
mod model;
mod sentence;
mod templates;
mod written;

use serde::Serialize;

use crate::error::{Error, Result};

pub use ask::{NOT_FOUND, ReadSource, Response, ask, widened};
pub use extractive::Extractive;
pub use fusion::{Fusion, texts};
pub use generative::{Generative, context_texts};
pub use model::{ReaderModel, Trained, folders};
pub use sentence::{one_line, sentences, whole_sentences};
pub use templates::{Layout, Templates};

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
    /// The same without citations.
    pub generation: String,
    /// Which reader gave it, by its [name](Reader::name).
    pub reader: String,
    /// Places of the cited sources among those given, from 0, each once, in the order of citation.
    /// Empty if the sources do not answer.
    pub citations: Vec<usize>,
    /// How sure the reader is, from 0 to 1: of a model the geometric mean of the probabilities of the answer's tokens, of the
    /// extractive reader the score of the sentence that it quotes.
    pub confidence: f64,
    /// Bytes of each source's text that were read, for those that were: a model has not always room for the last ones.
    #[serde(skip)]
    pub read: Vec<usize>,
}

impl Answer {
    /// The confidence where a source says the answer, else 0: what is not found in what was read is not supported by it.
    pub fn support(&self) -> f64 {
        if self.citations.is_empty() { 0.0 } else { self.confidence }
    }
}

/// Answers questions from passages.
pub trait Reader {
    /// What it is called in its answers.
    fn name(&self) -> String;

    /// Answers `question` from `sources`, nearest first.
    ///
    /// # Errors
    /// An encoder or a model that fails. Sources that do not answer are no error: the answer says so.
    fn answer(&self, question: &str, sources: &[Source<'_>]) -> Result<Answer>;

    /// How probable each of `choices` is as the answer, as parts of 1.
    ///
    /// # Errors
    /// A reader that writes nothing, and as [`answer`](Self::answer).
    fn choose(&self, _question: &str, _sources: &[Source<'_>], _choices: &[String]) -> Result<Vec<f64>> {
        Err(Error::setting("reader", "quotes sentences and cannot choose; give a model"))
    }
}
