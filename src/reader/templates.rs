//! What a reader is given to read, and what its answer begins with.

use serde::{Deserialize, Serialize};

use super::{Source, one_line};
use crate::error::{Error, Result};

/// How a kind of reader lays out what it reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// An encoder-decoder's: each passage by itself, with the query.
    Fusion,
    /// A decoder's: the passages, then the query, whose continuation is the answer.
    Context,
    /// The same as a user's turn of a conversation, in which the answer is the model's.
    Conversation,
}

impl Layout {
    /// The query where none is given.
    fn query(self) -> &'static str {
        match self {
            Self::Fusion => "question: {question}",
            Self::Context => "question: {question}\nanswer:",
            Self::Conversation => "Question: {question}",
        }
    }

    /// A passage where none is given.
    fn passage(self) -> &'static str {
        match self {
            Self::Fusion => "{query} title: {title} context: {text}",
            Self::Context => "title: {title}\ncontext: {text}\n\n",
            Self::Conversation => "{title}: {text}\n\n",
        }
    }
}

/// Texts in which `{question}`, `{query}`, `{title}` and `{text}` are filled in, and how much is read.
///
/// Atlas's own are `"question: {question} answer: <extra_id_0>"`, `"{query} title: {title} context: {text}"` and the
/// decoder prompt `"<extra_id_0>"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Templates {
    /// The query, with `{question}`; where it is left out, what is usual for the [layout](Layout). In a conversation nothing else
    /// says what to do then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub query: Option<String>,
    /// A passage as it is read, with `{query}`, `{title}` and `{text}`; where it is left out, what is usual for the layout.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub passage: Option<String>,
    /// What the answer begins with, before anything is written.
    pub answer: String,
    /// Tokens of a passage with its query that an encoder-decoder reads; the rest is cut off.
    pub passage_tokens: usize,
    /// Tokens of all passages and the question together that a decoder reads, where its own limit is not smaller.
    pub context_tokens: usize,
    /// Most tokens of an answer.
    pub answer_tokens: usize,
}

impl Default for Templates {
    fn default() -> Self {
        Self {
            query: None,
            passage: None,
            answer: String::new(),
            passage_tokens: 384,
            context_tokens: 2048,
            answer_tokens: 48,
        }
    }
}

impl Templates {
    /// Refuses templates without what they are for.
    ///
    /// # Errors
    /// Names the template, and the field that it lacks or has beside its own.
    pub fn check(&self) -> Result<()> {
        let fields: [(&str, &str, &[&str], &str); 3] = [
            ("query", self.query.as_deref().unwrap_or("{question}"), &["question"], "{question}"),
            ("passage", self.passage.as_deref().unwrap_or("{text}"), &["query", "title", "text"], "{text}"),
            ("answer", &self.answer, &[], ""),
        ];
        for (name, template, known, needed) in fields {
            let mut rest = template;
            while let Some((_, after)) = rest.split_once('{') {
                let field = after.split_once('}').map_or(after, |(field, _)| field);
                if !known.contains(&field) {
                    let why = format!("{{{field}}} is not filled in here; {known:?} are");
                    return Err(Error::setting(format!("templates.{name}"), why));
                }
                rest = after;
            }
            if !template.contains(needed) {
                return Err(Error::setting(format!("templates.{name}"), format!("{needed} is missing")));
            }
        }
        let sizes = [
            ("passage_tokens", self.passage_tokens),
            ("context_tokens", self.context_tokens),
            ("answer_tokens", self.answer_tokens),
        ];
        match sizes.iter().find(|(_, size)| *size == 0) {
            Some((name, _)) => Err(Error::setting(format!("templates.{name}"), "must be at least 1")),
            None => Ok(()),
        }
    }

    /// The query of a question.
    pub fn query(&self, layout: Layout, question: &str) -> String {
        fill(self.query.as_deref().unwrap_or(layout.query()), &[("question", question)])
    }

    /// A passage with its query.
    pub fn passage(&self, layout: Layout, query: &str, source: &Source<'_>) -> String {
        let template = self.passage.as_deref().unwrap_or(layout.passage());
        fill(template, &[("query", query), ("title", source.title), ("text", &one_line(source.text))])
    }

    /// What stands between a [context's](Layout::Context) query and the word after it.
    pub fn gap(&self) -> &'static str {
        let query = self.query.as_deref().unwrap_or(Layout::Context.query());
        if query.ends_with(char::is_whitespace) { "" } else { " " }
    }
}

/// Fills in fields, each once: what is filled in is not looked at again.
fn fill(template: &str, fields: &[(&str, &str)]) -> String {
    let mut filled = String::new();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once('{') {
        filled.push_str(before);
        let known = after.split_once('}').and_then(|(name, after)| {
            fields.iter().find(|(field, _)| *field == name).map(|(_, value)| (*value, after))
        });
        match known {
            Some((value, after)) => {
                filled.push_str(value);
                rest = after;
            }
            None => {
                filled.push('{');
                rest = after;
            }
        }
    }
    filled + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_filled_in_once() {
        let templates = Templates::default();
        let source = Source { title: "A {query}", text: "two\nlines", score: 0.0 };
        let both = |templates: &Templates, layout: Layout| {
            let query = templates.query(layout, "What is {text}?");
            (templates.passage(layout, &query, &source), query)
        };
        let asked = "question: What is {text}?";
        let read = format!("{asked} title: A {{query}} context: two lines");
        assert_eq!(both(&templates, Layout::Fusion), (read, asked.to_string()));
        let read = "title: A {query}\ncontext: two lines\n\n".to_string();
        assert_eq!(both(&templates, Layout::Context), (read, format!("{asked}\nanswer:")));
        let own = Templates {
            query: Some("Q {question}\n".into()),
            passage: Some("{text}|{query}".into()),
            ..templates.clone()
        };
        for layout in [Layout::Fusion, Layout::Context, Layout::Conversation] {
            let asked = "Q What is {text}?\n".to_string();
            assert_eq!(both(&own, layout), (format!("two lines|{asked}"), asked));
        }
        assert_eq!((templates.gap(), own.gap()), (" ", ""));
    }

    #[test]
    fn templates_that_say_nothing_are_refused() {
        let templates = Templates::default();
        templates.check().unwrap();
        for (wrong, name, word) in [
            (Templates { query: Some("ask:".into()), ..templates.clone() }, "templates.query", "{question}"),
            (
                Templates { query: Some("{question} {text}".into()), ..templates.clone() },
                "templates.query",
                "{text}",
            ),
            (
                Templates { passage: Some("{query}".into()), ..templates.clone() },
                "templates.passage",
                "{text}",
            ),
            (Templates { answer: "{x".into(), ..templates.clone() }, "templates.answer", "{x"),
            (Templates { passage_tokens: 0, ..templates.clone() }, "templates.passage_tokens", "1"),
        ] {
            let said = wrong.check().unwrap_err().to_string();
            assert!(said.contains(name) && said.contains(word), "{said}");
        }
    }
}
