//! Instructions with answers: Alpaca's `{"instruction", "input", "output"}`, self-instruct's `{"instruction",
//! "instances"}`, and Unnatural Instructions', whose instances have a constraint and whose reformulations are instances of
//! their own. One array, or a line each.

use std::path::Path;

use serde::Deserialize;

use super::super::Instance;
use super::{Visit, json, stem};
use crate::error::{Error, Result};

#[derive(Deserialize)]
struct Record {
    instruction: String,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    input: Option<String>,
    #[serde(default)]
    output: Option<String>,
    #[serde(default)]
    instances: Vec<Answered>,
    #[serde(default)]
    reformulations: Vec<Answered>,
}

#[derive(Deserialize)]
struct Answered {
    #[serde(default)]
    instruction: Option<String>,
    #[serde(default)]
    instruction_with_input: Option<String>,
    #[serde(default)]
    input: String,
    #[serde(default)]
    constraints: Option<String>,
    output: String,
}

pub fn read(path: &Path, visit: Visit) -> Result<()> {
    let wanted = "a record has the string \"instruction\", and \"output\" or \"instances\" with one each";
    let source = stem(path);
    json::records(path, wanted, &mut |number, record: Record| {
        let mut give = |input: String, own: &str, target: String, template: &str| {
            let instance = Instance {
                input,
                target,
                task: record.name.clone(),
                template: Some(template.to_string()),
                source: Some(source.clone()),
                own: (!is_none(own)).then(|| own.to_string()),
                ..Instance::default()
            };
            visit(instance)
        };
        if let Some(output) = &record.output {
            let own = record.input.as_deref().unwrap_or_default();
            give(joined(&record.instruction, own, None), own, output.clone(), "instruction")?;
        } else if record.instances.is_empty() && record.reformulations.is_empty() {
            return Err(Error::file(
                path,
                format!("record {number} has no \"output\" and no \"instances\"; {wanted}"),
            ));
        }
        for (template, list) in
            [("instruction", &record.instances), ("reformulation", &record.reformulations)]
        {
            for answered in list {
                let own = answered.input.as_str();
                let input = match &answered.instruction_with_input {
                    Some(text) => with_constraint(text, answered.constraints.as_deref()),
                    None => {
                        let instruction = answered.instruction.as_ref().unwrap_or(&record.instruction);
                        joined(instruction, own, answered.constraints.as_deref())
                    }
                };
                give(input, own, answered.output.clone(), template)?;
            }
        }
        Ok(())
    })
}

fn joined(instruction: &str, input: &str, constraint: Option<&str>) -> String {
    let text = match is_none(input) {
        true => instruction.trim().to_string(),
        false => format!("{}\n\n{}", instruction.trim(), input.trim()),
    };
    with_constraint(&text, constraint)
}

/// Whether the instruction needs no input, as self-instruct marks it.
fn is_none(input: &str) -> bool {
    matches!(input.trim(), "" | "<noinput>")
}

fn with_constraint(text: &str, constraint: Option<&str>) -> String {
    match constraint.map(str::trim) {
        None | Some("" | "None" | "None.") => text.to_string(),
        Some(constraint) => format!("{text}\n\n{constraint}"),
    }
}
