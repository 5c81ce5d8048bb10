//! Super-NaturalInstructions (Wang et al. 2022): a file a task, with its definition, examples and instances.

use std::path::Path;

use serde::Deserialize;

use super::super::Instance;
use super::{Visit, json, stem};
use crate::error::{Error, Result};

#[derive(Deserialize)]
struct Task {
    #[serde(rename = "Definition")]
    definition: OneOrMany,
    #[serde(rename = "Categories", default)]
    categories: Vec<Option<String>>,
    #[serde(rename = "Source", default)]
    source: Vec<Option<String>>,
    #[serde(rename = "Positive Examples", default)]
    positive: Vec<Shown>,
    #[serde(rename = "Instances")]
    instances: Vec<Asked>,
}

#[derive(Deserialize)]
struct Shown {
    input: String,
    output: OneOrMany,
}

#[derive(Deserialize)]
struct Asked {
    input: String,
    output: OneOrMany,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    /// The first; of several right answers it stands for all.
    fn first(&self) -> Option<&str> {
        match self {
            Self::One(text) => Some(text),
            Self::Many(texts) => texts.first().map(String::as_str),
        }
    }
}

/// Prompts as Tk-Instruct was trained on: definition, up to `shots` positive examples, and the instance.
pub fn read(path: &Path, shots: usize, visit: Visit) -> Result<()> {
    let wanted =
        "a Super-NaturalInstructions task has \"Definition\" and \"Instances\" of \"input\" and \"output\"";
    let task: Task = json::document(path, wanted)?;
    let name = stem(path);
    let definition = task.definition.first().ok_or_else(|| Error::file(path, "\"Definition\" is empty"))?;
    let mut before = format!("Definition: {}\n\n", definition.trim());
    let shown = task.positive.iter().take(shots).enumerate();
    for (i, example) in shown.clone() {
        let output = example.output.first().unwrap_or_default();
        before +=
            &format!("Positive Example {} -\nInput: {}\nOutput: {output}\n\n", i + 1, example.input.trim());
    }
    let template = format!("definition, {} examples", shown.len());
    for (number, asked) in task.instances.into_iter().enumerate() {
        let target = asked.output.first().ok_or_else(|| {
            Error::file(path, format!("instance {}: \"output\" is empty; leave the instance out", number + 1))
        })?;
        let own = asked.input.trim().to_string();
        let instance = Instance {
            input: format!("{before}Now complete the following example -\nInput: {own}\nOutput:"),
            target: target.to_string(),
            task: Some(name.clone()),
            template: Some(template.clone()),
            cluster: task.categories.first().cloned().flatten(),
            source: Some(match task.source.first() {
                Some(Some(from)) => format!("sni/{from}"),
                _ => "sni".to_string(),
            }),
            choices: Vec::new(),
            own: Some(own),
        };
        visit(instance)?;
    }
    Ok(())
}
