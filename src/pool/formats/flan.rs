//! FLAN's templates (Wei et al. 2022, Longpre et al. 2023) over raw rows: `{"TASK": [[input, target], ...]}`, in which `{name}`
//! is a row's field and `{options_}` the list of its field `options`. A pair whose target is not the answer (which FLAN calls
//! inverted) is a pair like any other.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value};

use super::super::Instance;
use super::own::own_text;
use super::{Visit, json, rows, t0};
use crate::error::{Error, Result};

pub fn read(path: &Path, data: &Path, visit: Visit) -> Result<()> {
    let wanted = "FLAN's templates are {\"TASK\": [[input, target], ...]}";
    let tasks: BTreeMap<String, Vec<(String, String)>> = json::document(path, wanted)?;
    rows::read(data, &mut |number, row| {
        let options: Vec<String> =
            row.get("options").and_then(Value::as_array).into_iter().flatten().map(text).collect();
        for (task, pairs) in &tasks {
            for (i, (input, target)) in pairs.iter().enumerate() {
                let filled = |template: &str| {
                    fill(template, &row, &options).map_err(|field| {
                        let why = format!(
                            "row {number} has no field {field:?}, which template {} of {task:?} asks for",
                            i + 1
                        );
                        Error::file(data, why)
                    })
                };
                let inverted = !target.contains("{answer}");
                let (input, target) = (filled(input)?, filled(target)?);
                let answers: Vec<&str> = options.iter().chain([&target]).map(String::as_str).collect();
                let instance = Instance {
                    own: own_text(&row, &input, &answers),
                    input,
                    target,
                    cluster: t0::cluster(task).map(str::to_string),
                    task: Some(task.clone()),
                    template: Some(format!("{}{}", i + 1, if inverted { ", inverted" } else { "" })),
                    source: Some("flan".to_string()),
                    choices: if inverted { Vec::new() } else { options.clone() },
                };
                visit(instance)?;
            }
        }
        Ok(())
    })
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_string)
}

/// `template` with the row's fields in it, or the name of the field that is not there. `{{` and `}}` are braces, as Python's
/// `str.format` has them.
fn fill(template: &str, row: &Map<String, Value>, options: &[String]) -> std::result::Result<String, String> {
    let mut filled = String::new();
    let mut rest = template;
    while let Some(at) = rest.find(['{', '}']) {
        filled += &rest[..at];
        let brace = &rest[at..=at];
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix(brace) {
            filled += brace;
            rest = after;
        } else if let Some((name, after)) = rest.split_once('}').filter(|_| brace == "{") {
            match name {
                "options_" if options.is_empty() => return Err("options".to_string()),
                "options_" => {
                    filled += "OPTIONS:";
                    options.iter().for_each(|option| filled += &format!("\n- {option}"));
                }
                name => filled += &text(row.get(name).ok_or_else(|| name.to_string())?),
            }
            rest = after;
        } else {
            filled += brace;
        }
    }
    Ok(filled + rest)
}
