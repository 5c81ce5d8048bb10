//! Conversations (Tulu's and OpenAI's lines): what comes before the last thing the assistant says is the input.

use std::path::Path;

use serde::Deserialize;

use super::super::Instance;
use super::{Visit, json, stem};
use crate::error::{Error, Result};

#[derive(Deserialize)]
struct Line {
    messages: Vec<Said>,
    #[serde(default, alias = "source")]
    dataset: Option<String>,
    #[serde(default)]
    task: Option<String>,
}

#[derive(Deserialize)]
struct Said {
    role: String,
    content: Option<Content>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    /// OpenAI's, of which the texts count.
    Parts(Vec<Part>),
}

#[derive(Deserialize)]
struct Part {
    #[serde(default)]
    text: String,
}

impl Said {
    fn text(&self) -> String {
        match &self.content {
            None => String::new(),
            Some(Content::Text(text)) => text.clone(),
            Some(Content::Parts(parts)) => parts.iter().map(|part| part.text.as_str()).collect(),
        }
    }
}

pub fn read(path: &Path, visit: Visit) -> Result<()> {
    let wanted = "a conversation is {\"messages\": [{\"role\", \"content\"}, ...]}";
    let name = stem(path);
    json::records(path, wanted, &mut |number, line: Line| {
        let Some(last) = line.messages.iter().rposition(|said| said.role == "assistant").filter(|at| *at > 0)
        else {
            let why =
                format!("conversation {number} has no answer: a message of \"assistant\" after another one");
            return Err(Error::file(path, why));
        };
        let input = match &line.messages[..last] {
            [only] => only.text(),
            several => several
                .iter()
                .map(|said| format!("{}: {}", said.role, said.text()))
                .collect::<Vec<_>>()
                .join("\n\n"),
        };
        let instance = Instance {
            input,
            target: line.messages[last].text(),
            task: line.task,
            source: Some(line.dataset.unwrap_or_else(|| name.clone())),
            ..Instance::default()
        };
        visit(instance)
    })
}
