//! A decoder as a reader: the passages and the question stand before the answer in its context.

use super::{Answer, Reader, Source, one_line};
use crate::error::{Error, Result};
use crate::model::LanguageModel;
use crate::model::generate::Options;

/// Most tokens of an answer.
const ANSWER_TOKENS: usize = 48;

/// Continues "passages, question, answer:" with a language model.
pub struct Generative<'a> {
    model: &'a LanguageModel,
    name: String,
}

impl<'a> Generative<'a> {
    /// A reader over `model`, which the user calls `name`.
    pub fn new(model: &'a LanguageModel, name: impl Into<String>) -> Self {
        Self { model, name: name.into() }
    }
}

impl Reader for Generative<'_> {
    fn answer(&self, question: &str, sources: &[Source<'_>]) -> Result<Answer> {
        let tokenizer = &self.model.tokenizer;
        let longest = self.model.network.decoder().config().max_position_embeddings;
        let ending = tokenizer.encode(&format!("question: {question}\nanswer:"))?.ids;
        let room = longest.checked_sub(ending.len() + ANSWER_TOKENS + 1).ok_or_else(|| {
            Error::setting("question", format!("too long for a model that reads {longest} tokens"))
        })?;
        let mut prompt: Vec<u32> = tokenizer.end_of_text().into_iter().collect();
        for source in sources {
            let passage = format!("title: {}\ncontext: {}\n\n", source.title, one_line(source.text));
            let passage = tokenizer.encode(&passage)?.ids;
            if prompt.len() + passage.len() > room {
                break;
            }
            prompt.extend(passage);
        }
        prompt.extend(ending);
        let options = Options { max_tokens: ANSWER_TOKENS, ..Options::default() };
        // An answer is one line.
        let mut text = String::new();
        self.model.generator(None).generate(&[prompt], &options, &mut |piece| {
            text.push_str(piece.text);
            !text.trim_start().contains('\n')
        })?;
        let answer = text.trim_start().lines().next().unwrap_or_default().trim().to_string();
        let said = answer.to_lowercase();
        let holds = |source: &Source<'_>| !said.is_empty() && source.text.to_lowercase().contains(&said);
        let citations: Vec<usize> =
            sources.iter().enumerate().filter(|(_, source)| holds(source)).map(|(place, _)| place).collect();
        let marks: String = citations.iter().map(|place| format!(" [{}]", place + 1)).collect();
        Ok(Answer { text: format!("{answer}{marks}"), reader: format!("model {}", self.name), citations })
    }
}
