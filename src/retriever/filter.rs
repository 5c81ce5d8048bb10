//! Which documents a search may find, as users write it: `title=Paris`, `source~wiki`, `id!=17`.

use std::str::FromStr;

use rayon::prelude::*;
use sidenote_index::Bitmap;

use crate::corpus::{Store, StoredDocument};
use crate::{Error, Result};

/// Conditions that a document must fulfil, all of them. Without any, every document does.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter(Vec<Condition>);

/// One condition: `FIELD=TEXT` (is), `FIELD!=TEXT` (is not), `FIELD~TEXT` (contains, in whatever
/// case) or `FIELD!~TEXT` (does not contain), the field being `id`, `title`, `section` or `source`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    field: Field,
    negated: bool,
    text: Comparison,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    Id,
    Title,
    Section,
    Source,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Comparison {
    Is(String),
    /// In lower case.
    Contains(String),
}

impl FromStr for Condition {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = |why: &str| Error::setting(format!("filter {text:?}"), why);
        let end = text.find(['=', '~', '!']).ok_or_else(|| {
            wrong("use FIELD=TEXT, FIELD!=TEXT, FIELD~TEXT (contains) or FIELD!~TEXT, such as title=Paris")
        })?;
        let (name, rest) = text.split_at(end);
        let field = match name.trim() {
            "id" => Field::Id,
            "title" => Field::Title,
            "section" => Field::Section,
            "source" => Field::Source,
            other => {
                return Err(wrong(&format!("there is no field {other:?}; use id, title, section or source")));
            }
        };
        let (negated, rest) = match rest.strip_prefix('!') {
            Some(rest) => (true, rest),
            None => (false, rest),
        };
        let text = match (rest.strip_prefix('='), rest.strip_prefix('~')) {
            (Some(value), _) => Comparison::Is(value.into()),
            (_, Some("")) => return Err(wrong("say which text it contains: every text contains none")),
            (_, Some(value)) => Comparison::Contains(value.to_lowercase()),
            _ => return Err(wrong("after ! comes = or ~")),
        };
        Ok(Self { field, negated, text })
    }
}

impl Condition {
    fn allows(&self, document: &StoredDocument) -> bool {
        let found = match self.field {
            Field::Id => document.id,
            Field::Title => document.title,
            Field::Section => document.section.unwrap_or_default(),
            Field::Source => document.source,
        };
        let fits = match &self.text {
            Comparison::Is(text) => found == text,
            Comparison::Contains(text) => found.to_lowercase().contains(text),
        };
        fits != self.negated
    }
}

impl Filter {
    /// All of `conditions`.
    pub fn new(conditions: Vec<Condition>) -> Self {
        Self(conditions)
    }

    /// Whether every document is allowed.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether `document` fulfils all conditions.
    pub fn allows(&self, document: &StoredDocument) -> bool {
        self.0.iter().all(|condition| condition.allows(document))
    }

    /// The documents of `store` that fulfil all conditions.
    pub(super) fn allowed(&self, store: &Store) -> Bitmap {
        let found: Vec<usize> = (0..store.documents())
            .into_par_iter()
            .filter(|&d| store.document_is_live(d) && self.allows(&store.document(d)))
            .collect();
        let mut allowed = Bitmap::new(store.documents());
        for d in found {
            allowed.set(d);
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(conditions: &[&str], document: &StoredDocument) -> bool {
        Filter::new(conditions.iter().map(|c| c.parse().unwrap()).collect()).allows(document)
    }

    #[test]
    fn conditions_say_what_they_look_like() {
        let paris = StoredDocument {
            id: "a=b~c",
            title: "Paris",
            section: None,
            source: "simple-Wiki.jsonl",
            text: "A town.",
        };
        let section = StoredDocument { section: Some("Höhe"), ..paris };
        for yes in
            ["title=Paris", "id=a=b~c", "source~wiki", "title!=paris", "source!~news", "section=", " id ~B"]
        {
            assert!(allows(&[yes], &paris), "{yes}");
        }
        for no in
            ["title=paris", "id=a", "source~news", "title!=Paris", "source!~WIKI", "section~h", "section!="]
        {
            assert!(!allows(&[no], &paris), "{no}");
        }
        assert!(allows(&["section~HÖHE", "section!="], &section));
        assert!(allows(&["title=Paris", "source~wiki"], &paris) && allows(&[], &paris));
        assert!(!allows(&["title=Paris", "source~news"], &paris));
    }

    #[test]
    fn what_is_no_condition_is_told() {
        let error = |text: &str| text.parse::<Condition>().unwrap_err().to_string();
        assert!(error("titel=Paris").contains("\"titel\"; use id, title, section or source"));
        assert!(error("Paris").contains("FIELD=TEXT") && error("").contains("FIELD=TEXT"));
        assert!(error("title!Paris").contains("after !") && error("title~").contains("which text"));
        assert!(error("=x").contains("no field \"\""));
    }
}
