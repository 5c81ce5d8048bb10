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
    content: String,
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
            [only] => only.content.clone(),
            several => several
                .iter()
                .map(|said| format!("{}: {}", said.role, said.content))
                .collect::<Vec<_>>()
                .join("\n\n"),
        };
        let instance = Instance {
            input,
            target: line.messages[last].content.clone(),
            task: line.task,
            source: Some(line.dataset.unwrap_or_else(|| name.clone())),
            ..Instance::default()
        };
        visit(instance)
    })
}
