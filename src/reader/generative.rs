//! A decoder as a reader: the passages and the question stand before the answer in its context, as a conversation
//! where the model was trained on some.

use super::written::{Writing, answer, distribution};
use super::{Answer, Layout, Reader, Source, Templates};
use crate::error::{Error, Result};
use crate::model::LanguageModel;
use crate::model::source::{ChatTemplate, Message};

/// Continues "passages, question, answer:" with a language model, or lets it answer in a conversation.
pub struct Generative<'a> {
    model: &'a LanguageModel,
    name: String,
    templates: Templates,
}

impl<'a> Generative<'a> {
    /// A reader over `model`, which the user calls `name`.
    pub fn new(model: &'a LanguageModel, name: impl Into<String>, templates: Templates) -> Self {
        Self { model, name: name.into(), templates }
    }
}

impl Generative<'_> {
    /// The question after as many of the sources, nearest first, as the model can read.
    fn prompt(&self, question: &str, sources: &[Source<'_>]) -> Result<Vec<u32>> {
        let longest = self.model.network.decoder().config().max_position_embeddings;
        let longest = longest.min(self.templates.context_tokens.saturating_add(self.templates.answer_tokens));
        let fits = |prompt: &[u32]| prompt.len() + self.templates.answer_tokens < longest;
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
        let prompt: Vec<u32> = best.ok_or_else(|| {
            Error::setting("question", format!("too long for a model that reads {longest} tokens"))
        })?;
        match self.model.chat_template() {
            Some(_) => Ok([prompt, self.model.tokenizer.encode(&self.templates.answer)?.ids].concat()),
            None => Ok(prompt),
        }
    }

    /// A text whose continuation is the answer.
    fn continuation(&self, question: &str, sources: &[Source<'_>]) -> Result<Vec<u32>> {
        let (texts, asked) = context_texts(self.model, &self.templates, question, sources)?;
        Ok([self.model.start_tokens(), &texts.concat(), &asked].concat())
    }

    /// A conversation in which the answer is the model's turn.
    fn conversation(&self, chat: &ChatTemplate, question: &str, sources: &[Source<'_>]) -> Result<Vec<u32>> {
        let mut content = match (&self.templates.query, sources) {
            (Some(_), _) => String::new(),
            (None, []) => "Answer the question in a few words.\n\n".into(),
            (None, _) => "Answer the question in a few words, from these passages.\n\n".into(),
        };
        let query = self.templates.query(Layout::Conversation, question);
        for source in sources {
            content += &self.templates.passage(Layout::Conversation, &query, source);
        }
        content += &query;
        // A passage that spells the end of a turn does not end it.
        let content = self.model.tokenizer.unmarked(&content);
        self.model.tokenizer.encode_marked(&chat.render(&[Message::new("user", content)], true)?)
    }
}

/// The texts that a decoder reads before its answer to a question, a passage each, and what comes after them: the question, and the
/// answer's beginning.
///
/// # Errors
/// What the tokenizer refuses.
pub fn context_texts(
    model: &LanguageModel,
    templates: &Templates,
    question: &str,
    sources: &[Source<'_>],
) -> Result<(Vec<Vec<u32>>, Vec<u32>)> {
    let encode = |text: String| Ok(model.tokenizer.encode(&text)?.ids);
    let query = templates.query(Layout::Context, question);
    let passage = |source: &Source<'_>| encode(templates.passage(Layout::Context, &query, source));
    let begun = match templates.answer.as_str() {
        "" => String::new(),
        answer => templates.gap().to_string() + answer,
    };
    let asked = encode(query.clone() + &begun)?;
    Ok((sources.iter().map(passage).collect::<Result<_>>()?, asked))
}

impl Reader for Generative<'_> {
    fn name(&self) -> String {
        format!("model {}", self.name)
    }

    fn answer(&self, question: &str, sources: &[Source<'_>]) -> Result<Answer> {
        let prompt = self.prompt(question, sources)?;
        // An answer is one line.
        let options = Writing { tokens: self.templates.answer_tokens, one_line: true };
        answer(&self.model.generator(None), prompt, options, sources, self.name())
    }

    fn choose(&self, question: &str, sources: &[Source<'_>], choices: &[String]) -> Result<Vec<f64>> {
        let choices: Vec<String> = match self.model.chat_template() {
            Some(_) => choices.to_vec(),
            // A word after "answer:".
            None => choices.iter().map(|choice| format!("{}{choice}", self.templates.gap())).collect(),
        };
        distribution(&self.model.generator(None), &self.prompt(question, sources)?, &choices)
    }
}
