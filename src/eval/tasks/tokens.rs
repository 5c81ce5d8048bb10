//! What is asked and what is answered, as a model reads them.

use crate::error::{Error, Result};
use crate::model::WritingModel;

/// Puts questions and answers into a model's tokens, in training and evaluation alike.
///
/// A decoder reads an answer after its question, with the white space that the question ends in between them, or a space.
/// Both are tokenised as one text, as lm-evaluation-harness does it.
pub struct ModelText<'a>(pub &'a WritingModel);

impl ModelText<'_> {
    /// The question: what a decoder goes on from, or an encoder reads. Of one with more than `longest` tokens the
    /// beginning is left out.
    ///
    /// # Errors
    /// When it is empty.
    pub fn question(&self, input: &str, longest: usize) -> Result<Vec<u32>> {
        let (tokens, starts): (_, &[u32]) = match self.0 {
            WritingModel::Decoder(model) => (model.prompt(input.trim_end())?, model.start_tokens()),
            WritingModel::EncoderDecoder(model) => (model.prompt(input)?, &[]),
        };
        if tokens.len() <= longest {
            return Ok(tokens);
        }
        let kept = longest.saturating_sub(starts.len()).max(1);
        Ok([starts, &tokens[tokens.len() - kept..]].concat())
    }

    /// An answer to `input`, without the token that ends it.
    ///
    /// # Errors
    /// When the text cannot be tokenised.
    pub fn answer(&self, input: &str, answer: &str) -> Result<Vec<u32>> {
        let tokenizer = self.0.tokenizer();
        let WritingModel::Decoder(_) = self.0 else { return Ok(tokenizer.encode(answer)?.ids) };
        let (asked, after) = after(input, answer);
        let whole = tokenizer.encode(&format!("{asked}{after}"))?.ids;
        let question = tokenizer.encode(asked)?.ids.len();
        match whole.get(question..) {
            Some(own) if !own.is_empty() => Ok(own.to_vec()),
            _ => Ok(tokenizer.encode(&after)?.ids),
        }
    }

    /// A question as it is tokenised here, parted into what begins every one and the text without what ends every one.
    pub fn bare<'q>(&self, question: &'q [u32]) -> (&'q [u32], &'q [u32]) {
        match self.0 {
            WritingModel::Decoder(model) => question.split_at(model.start_tokens().len().min(question.len())),
            WritingModel::EncoderDecoder(_) => (&[], self.unended(question)),
        }
    }

    /// A text without the token that ends texts.
    pub fn unended<'q>(&self, text: &'q [u32]) -> &'q [u32] {
        match (text, self.end()) {
            ([before @ .., last], Some(end)) if *last == end => before,
            _ => text,
        }
    }

    /// Tokens that stand for no question at all: what an answer's probability by itself is measured after.
    ///
    /// # Errors
    /// When the model has no token that begins or ends a text.
    pub fn nothing(&self) -> Result<Vec<u32>> {
        let tokens = match self.0 {
            WritingModel::Decoder(model) if !model.start_tokens().is_empty() => model.start_tokens().to_vec(),
            _ => self.end().into_iter().collect(),
        };
        match tokens.is_empty() {
            true => Err(Error::setting("pmi", "the model has no token that begins or ends a text")),
            false => Ok(tokens),
        }
    }

    /// What ends an answer.
    pub fn end(&self) -> Option<u32> {
        match self.0 {
            WritingModel::Decoder(model) => model.end_tokens().first().copied(),
            WritingModel::EncoderDecoder(model) => model.end_tokens().first().copied(),
        }
    }

    /// Most tokens that question and answer may have together; of an encoder-decoder, the question alone.
    pub fn longest(&self) -> usize {
        match self.0 {
            WritingModel::Decoder(model) => {
                crate::model::generate::Autoregressive::longest(model.network.decoder())
            }
            WritingModel::EncoderDecoder(_) => usize::MAX,
        }
    }
}

/// The question without the white space that it ends in, and the answer with it, or with a space.
pub fn after<'a>(input: &'a str, answer: &str) -> (&'a str, String) {
    let asked = input.trim_end();
    let between = if asked.len() == input.len() { " " } else { &input[asked.len()..] };
    (asked, format!("{between}{}", answer.trim_start()))
}

#[cfg(test)]
mod tests {
    use super::after;

    #[test]
    fn between_question_and_answer_is_one_space_or_what_was_there() {
        assert_eq!(after("Yes or no?", "yes"), ("Yes or no?", " yes".into()));
        assert_eq!(after("Answer:\n", " yes"), ("Answer:", "\nyes".into()));
    }
}
