//! A decoder as a reader: the passages and the question stand before the answer in its context, as a conversation
//! where the model was trained on some.

use super::sentence::border;
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
    /// The question after as many of the sources, nearest first, as the model can read whole, and these; where not even the
    /// first fits, after its beginning.
    fn prompt<'s>(&self, question: &str, sources: &[Source<'s>]) -> Result<(Vec<u32>, Vec<Source<'s>>)> {
        let longest = self.model.network.decoder().config().max_position_embeddings;
        let longest = longest.min(self.templates.context_tokens.saturating_add(self.templates.answer_tokens));
        let fitting = |sources: &[Source<'_>]| -> Result<Option<Vec<u32>>> {
            let prompt = match self.model.chat_template() {
                Some(chat) => self.conversation(chat, question, sources)?,
                None => self.continuation(question, sources)?,
            };
            Ok(Some(prompt).filter(|prompt| prompt.len() + self.templates.answer_tokens < longest))
        };
        let mut prompt = fitting(&[])?.ok_or_else(|| {
            Error::setting("question", format!("too long for a model that reads {longest} tokens"))
        })?;
        let mut read: Vec<Source<'s>> = Vec::new();
        for source in sources {
            let with = |text: &'s str| [read.as_slice(), &[Source { text, ..*source }]].concat();
            let whole = with(source.text);
            if let Some(longer) = fitting(&whole)? {
                (prompt, read) = (longer, whole);
                continue;
            }
            if read.is_empty() {
                let text = beginning(source.text, |text| Ok(fitting(&with(text))?.is_some()))?;
                let cut = with(text);
                if let Some(longer) = fitting(&cut)?.filter(|_| !text.is_empty()) {
                    (prompt, read) = (longer, cut);
                }
            }
            break;
        }
        if self.model.chat_template().is_some() {
            prompt.extend(self.model.tokenizer.encode(&self.templates.answer)?.ids);
        }
        Ok((prompt, read))
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
        let (prompt, read) = self.prompt(question, sources)?;
        // An answer is one line.
        let options = Writing { tokens: self.templates.answer_tokens, one_line: true };
        answer(&self.model.generator(None), prompt, options, &read, self.name())
    }

    fn choose(&self, question: &str, sources: &[Source<'_>], choices: &[String]) -> Result<Vec<f64>> {
        let choices: Vec<String> = match self.model.chat_template() {
            Some(_) => choices.to_vec(),
            // A word after "answer:".
            None => choices.iter().map(|choice| format!("{}{choice}", self.templates.gap())).collect(),
        };
        let (prompt, _) = self.prompt(question, sources)?;
        distribution(&self.model.generator(None), &prompt, &choices)
    }
}

/// About the longest beginning that `fits` of a text that does not fit whole, cut at white space where there is some.
fn beginning<'t>(text: &'t str, fits: impl Fn(&'t str) -> Result<bool>) -> Result<&'t str> {
    let (mut short, mut long) = (0usize, text.len());
    loop {
        let middle = border(text, short.midpoint(long));
        if middle <= short {
            break;
        }
        match fits(&text[..middle])? {
            true => short = middle,
            false => long = middle,
        }
    }
    let fitting = &text[..short];
    Ok(fitting.rfind(char::is_whitespace).map_or(fitting, |end| &fitting[..end]))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use candle_core::Device;

    use super::*;
    use crate::model::Trainable;

    /// Fails when a first source that is too long ends the reading unread, or what was not read is cited.
    #[test]
    fn a_source_that_does_not_fit_is_cut_and_the_rest_is_not_read() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/models/llama2c/stories260K.bin");
        let model = LanguageModel::load(file, Trainable::Nothing, &Device::Cpu).unwrap();
        let templates = Templates { context_tokens: 160, answer_tokens: 8, ..Templates::default() };
        let reader = Generative::new(&model, "stories", templates);
        let story = "Once upon a time there was a cat named Tom. ".repeat(40);
        let source = |text| Source { title: "Cat", text, score: 0.0 };
        let sources = [source("Tom was happy."), source(story.trim()), source("She was happy.")];

        // As in training (train/atlas/context.rs), whole ones while they fit.
        let (_, read) = reader.prompt("Who was happy?", &sources).unwrap();
        assert_eq!(read, sources[..1]);
        let (prompt, read) = reader.prompt("Who was happy?", &sources[1..]).unwrap();
        assert!(read.len() == 1 && prompt.len() < 160, "{read:?}");
        let rest = story.strip_prefix(read[0].text).unwrap();
        assert!(!read[0].text.is_empty() && rest.len() > 40 && rest.starts_with(' '), "{read:?}");
        assert_eq!(prompt, reader.continuation("Who was happy?", &read).unwrap());

        let answer = reader.answer("Who was happy?", &sources[1..]).unwrap();
        assert_eq!(answer.read, [read[0].text.len()]);
        assert!(answer.citations.iter().all(|place| *place < 1), "{answer:?}");
        let all = [sources[0], sources[2]];
        let (prompt, read) = reader.prompt("Who was happy?", &all).unwrap();
        assert_eq!((prompt, &read[..]), (reader.continuation("Who was happy?", &all).unwrap(), &all[..]));
    }

    #[test]
    fn beginnings_end_at_words() {
        let of = |text: &'static str, most: usize| beginning(text, |text| Ok(text.len() <= most)).unwrap();
        assert_eq!((of("one two three", 9), of("one two", 0)), ("one two", ""));
        assert_eq!(of("ééééé", 5), "éé");
    }
}
