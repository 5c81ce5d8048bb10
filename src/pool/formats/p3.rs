//! P3 as T0 was trained on it: a file a template, lines of `{"prompt", "completion"}` or of the data set's own fields
//! `inputs_pretokenized` and `targets_pretokenized`; and ReCross's lines `{"input", "targets", "id"}`.

use std::path::Path;

use serde::Deserialize;

use super::super::Instance;
use super::super::lines::{Lines, reason};
use super::{Visit, stem, t0};
use crate::error::{Error, Result};

/// What GPT's tokenizer ends a text with; it is no part of the answer.
const END: &str = "<|endoftext|>";

#[derive(Deserialize)]
struct Line {
    #[serde(alias = "inputs_pretokenized", alias = "input", alias = "inputs")]
    prompt: String,
    #[serde(alias = "targets_pretokenized", alias = "target", alias = "targets")]
    completion: Completion,
    id: Option<serde_json::Value>,
    #[serde(default, alias = "answer_choices")]
    choices: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Completion {
    One(String),
    Several(Vec<String>),
}

pub fn read(path: &Path, visit: Visit) -> Result<()> {
    let name = stem(path);
    let of_file = t0::split(&name);
    let mut lines = Lines::open(path)?;
    while let Some((line, text)) = lines.next()? {
        let wrong = |why: &str| Error::line(path, line, why.to_string());
        let found: Line = serde_json::from_str(text).map_err(|why| {
            wrong(&format!("{}; a line of P3 has \"prompt\" and \"completion\"", reason(&why)))
        })?;
        let completion = match found.completion {
            Completion::One(text) => text,
            Completion::Several(texts) => {
                texts.into_iter().next().ok_or_else(|| wrong("\"targets\" is empty"))?
            }
        };
        // ReCross: `anli|train_r1|justified in saying|#4045`.
        let id = found.id.as_ref().and_then(serde_json::Value::as_str).unwrap_or_default();
        let parts: Vec<_> = id.split('|').collect();
        let (task, template) = match parts.as_slice() {
            [task, _, template, _] => (task.to_string(), Some(template.to_string())),
            _ => (of_file.0.to_string(), of_file.1.map(str::to_string)),
        };
        let instance = Instance {
            input: found.prompt,
            target: completion.trim().trim_end_matches(END).trim_end().to_string(),
            cluster: t0::cluster(&task).map(str::to_string),
            template,
            task: Some(task),
            source: Some("p3".to_string()),
            choices: found.choices.unwrap_or_default(),
            own: None,
        };
        visit(instance)?;
    }
    Ok(())
}
