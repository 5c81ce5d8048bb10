//! A decoder as a reader: the passages and the question stand before the answer in its context, as a conversation
//! where the model was trained on some.

use super::{Answer, Reader, Source, one_line};
use crate::error::{Error, Result};
use crate::model::LanguageModel;
use crate::model::generate::{Sampling, generate};
use crate::model::source::{ChatTemplate, Message};

/// Most tokens of an answer.
const ANSWER_TOKENS: usize = 48;

/// Continues "passages, question, answer:" with a language model, or lets it answer in a conversation.
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

impl Generative<'_> {
    /// The question after as many of the sources, nearest first, as the model can read.
    fn prompt(&self, question: &str, sources: &[Source<'_>]) -> Result<Vec<u32>> {
        let longest = self.model.network.decoder().config().max_position_embeddings;
        let fits = |prompt: &[u32]| prompt.len() + ANSWER_TOKENS < longest;
        let mut best = None;
        for count in 0..=sources.len() {
            let prompt = match self.model.chat_template() {
                Some(chat) => self.conversation(chat, question, &sources[..count])?,
                None => self.continuation(question, &sources[..count])?,
            };
            if !fits(&prompt) {
                break;
            }
            best = Some(prompt);
        }
        best.ok_or_else(|| {
            Error::setting("question", format!("too long for a model that reads {longest} tokens"))
        })
    }

    /// A text whose continuation is the answer.
    fn continuation(&self, question: &str, sources: &[Source<'_>]) -> Result<Vec<u32>> {
        let tokenizer = &self.model.tokenizer;
        let mut prompt = self.model.start_tokens().to_vec();
        for source in sources {
            let passage = format!("title: {}\ncontext: {}\n\n", source.title, one_line(source.text));
            prompt.extend(tokenizer.encode(&passage)?.ids);
        }
        prompt.extend(tokenizer.encode(&format!("question: {question}\nanswer:"))?.ids);
        Ok(prompt)
    }

    /// A conversation in which the answer is the model's turn.
    fn conversation(&self, chat: &ChatTemplate, question: &str, sources: &[Source<'_>]) -> Result<Vec<u32>> {
        let mut content = String::from("Answer the question in a few words, from these passages.\n\n");
        for source in sources {
            content += &format!("{}: {}\n\n", source.title, one_line(source.text));
        }
        content += &format!("Question: {question}");
        // A passage that spells the end of a turn does not end it.
        let content = self.model.tokenizer.unmarked(&content);
        self.model.tokenizer.encode_marked(&chat.render(&[Message::new("user", content)], true)?)
    }
}

impl Reader for Generative<'_> {
    fn answer(&self, question: &str, sources: &[Source<'_>]) -> Result<Answer> {
        let tokenizer = &self.model.tokenizer;
        let prompt = self.prompt(question, sources)?;
        let sampling = Sampling { max_tokens: ANSWER_TOKENS, temperature: 0.0, seed: 0 };
        let mut written = Vec::new();
        let mut failed = None;
        generate(self.model, &prompt, &sampling, None, &mut |token| {
            written.push(token);
            // An answer is one line.
            match tokenizer.decode(&written) {
                Ok(text) => !text.trim_start().contains('\n'),
                Err(error) => {
                    failed = Some(error);
                    false
                }
            }
        })?;
        if let Some(error) = failed {
            return Err(error);
        }
        let text = tokenizer.decode(&written)?;
        let answer = text.trim_start().lines().next().unwrap_or_default().trim().to_string();
        let said = answer.to_lowercase();
        let holds = |source: &Source<'_>| !said.is_empty() && source.text.to_lowercase().contains(&said);
        let citations: Vec<usize> =
            sources.iter().enumerate().filter(|(_, source)| holds(source)).map(|(place, _)| place).collect();
        let marks: String = citations.iter().map(|place| format!(" [{}]", place + 1)).collect();
        Ok(Answer { text: format!("{answer}{marks}"), reader: format!("model {}", self.name), citations })
    }
}
