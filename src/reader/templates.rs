//! What a reader is given to read, and what its answer begins with.

use serde::{Deserialize, Serialize};

use super::{Source, one_line};
use crate::error::{Error, Result};

/// Texts in which `{question}`, `{query}`, `{title}` and `{text}` are filled in, and how much is read.
///
/// Atlas's own are `"question: {question} answer: <extra_id_0>"`, `"{query} title: {title} context: {text}"` and the
/// decoder prompt `"<extra_id_0>"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Templates {
    /// The query, with `{question}`.
    pub query: String,
    /// A passage as it is read, with `{query}`, `{title}` and `{text}`.
    pub passage: String,
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
            query: "question: {question}".into(),
            passage: "{query} title: {title} context: {text}".into(),
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
            ("query", &self.query, &["question"], "{question}"),
            ("passage", &self.passage, &["query", "title", "text"], "{text}"),
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
    pub fn query(&self, question: &str) -> String {
        fill(&self.query, &[("question", question)])
    }

    /// A passage with its query.
    pub fn passage(&self, query: &str, source: &Source<'_>) -> String {
        fill(&self.passage, &[("query", query), ("title", source.title), ("text", &one_line(source.text))])
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
        let query = templates.query("What is {text}?");
        let source = Source { title: "A {query}", text: "two\nlines", score: 0.0 };
        assert_eq!(
            templates.passage(&query, &source),
            "question: What is {text}? title: A {query} context: two lines"
        );
    }

    #[test]
    fn templates_that_say_nothing_are_refused() {
        let templates = Templates::default();
        templates.check().unwrap();
        for (wrong, name, word) in [
            (Templates { query: "ask:".into(), ..templates.clone() }, "templates.query", "{question}"),
            (
                Templates { query: "{question} {text}".into(), ..templates.clone() },
                "templates.query",
                "{text}",
            ),
            (Templates { passage: "{query}".into(), ..templates.clone() }, "templates.passage", "{text}"),
            (Templates { answer: "{x".into(), ..templates.clone() }, "templates.answer", "{x"),
            (Templates { passage_tokens: 0, ..templates.clone() }, "templates.passage_tokens", "1"),
        ] {
            let said = wrong.check().unwrap_err().to_string();
            assert!(said.contains(name) && said.contains(word), "{said}");
        }
    }
}
