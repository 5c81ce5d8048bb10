//! P3 as T0 was trained on it: a file a template, lines of `{"prompt", "completion"}` or of the data set's own fields
//! `inputs_pretokenized` and `targets_pretokenized`; and ReCross's lines `{"input", "targets", "id"}`.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::super::Instance;
use super::{Visit, json, stem, t0};
use crate::error::{Error, Result};

/// What GPT's tokenizer ends a text with; it is no part of the answer.
const END: &str = "<|endoftext|>";

#[derive(Deserialize)]
struct Line {
    inputs_pretokenized: Option<String>,
    targets_pretokenized: Option<String>,
    #[serde(alias = "input", alias = "inputs")]
    prompt: Option<Text>,
    #[serde(alias = "target", alias = "targets")]
    completion: Option<Text>,
    id: Option<Value>,
    #[serde(default, alias = "answer_choices")]
    choices: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Text {
    One(String),
    /// Answers that are all right, of which the first stands for them; or T5's tokens, beside which the text stands.
    Several(Vec<Value>),
}

/// The text that `pretokenized` or else `text` is.
fn text(pretokenized: Option<String>, text: Option<Text>) -> Option<String> {
    pretokenized.or_else(|| match text? {
        Text::One(text) => Some(text),
        Text::Several(list) => list.first()?.as_str().map(str::to_string),
    })
}

pub fn read(path: &Path, visit: Visit) -> Result<()> {
    let name = stem(path);
    let of_file = t0::split(&name);
    let wanted = "a line of P3 has the texts \"prompt\" and \"completion\", or \"inputs_pretokenized\" and \"targets_pretokenized\"";
    json::records(path, wanted, &mut |line, found: Line| {
        let input = text(found.inputs_pretokenized, found.prompt);
        let target = text(found.targets_pretokenized, found.completion);
        let (Some(input), Some(target)) = (input, target) else {
            return Err(Error::line(path, line, wanted));
        };
        // ReCross: `anli|train_r1|justified in saying|#4045`.
        let id = found.id.as_ref().and_then(Value::as_str).unwrap_or_default();
        let parts: Vec<_> = id.split('|').collect();
        let (task, template) = match parts.as_slice() {
            [task, _, template, _] => (task.to_string(), Some(template.to_string())),
            _ => (of_file.0.to_string(), of_file.1.map(str::to_string)),
        };
        let instance = Instance {
            input,
            target: target.trim().trim_end_matches(END).trim_end().to_string(),
            cluster: t0::cluster(&task).map(str::to_string),
            template,
            task: Some(task),
            source: Some("p3".to_string()),
            choices: found.choices.unwrap_or_default(),
            own: None,
        };
        visit(instance)
    })
}
