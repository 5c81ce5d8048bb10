//! What is asked and what is answered, as a model reads them.

use crate::error::Result;
use crate::model::WritingModel;

/// What a decoder reads between a question and its answer: nothing where the question ends in white space.
pub fn joined(input: &str, answer: &str) -> String {
    match input.chars().last() {
        Some(last) if !last.is_whitespace() => format!(" {}", answer.trim_start()),
        _ => answer.trim_start().to_string(),
    }
}

/// Puts questions and answers into a model's tokens, in training and evaluation alike.
pub struct ModelText<'a>(pub &'a WritingModel);

impl ModelText<'_> {
    /// The question: what a decoder goes on from, or an encoder reads. Of one with more than `longest` tokens the
    /// beginning is left out.
    ///
    /// # Errors
    /// When it is empty.
    pub fn question(&self, input: &str, longest: usize) -> Result<Vec<u32>> {
        let tokens = self.0.prompt(input)?;
        if tokens.len() <= longest {
            return Ok(tokens);
        }
        let starts = match self.0 {
            WritingModel::Decoder(model) => model.start_tokens(),
            WritingModel::EncoderDecoder(_) => &[],
        };
        let kept = longest.saturating_sub(starts.len()).max(1);
        Ok([starts, &tokens[tokens.len() - kept..]].concat())
    }

    /// An answer to `input`, without the token that ends it.
    ///
    /// # Errors
    /// When the text cannot be tokenised.
    pub fn answer(&self, input: &str, answer: &str) -> Result<Vec<u32>> {
        let text = match self.0 {
            WritingModel::Decoder(_) => joined(input, answer),
            WritingModel::EncoderDecoder(_) => answer.to_string(),
        };
        Ok(self.0.tokenizer().encode(&text)?.ids)
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
