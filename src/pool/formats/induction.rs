//! Instruction Induction (Honovich et al. 2022): a file a task, with the examples that an instruction is to be found for.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::super::Instance;
use super::{Visit, json, stem};
use crate::error::{Error, Result};

#[derive(Deserialize)]
struct Task {
    examples: Map<String, Value>,
}

#[derive(Deserialize)]
struct Pair {
    input: String,
    output: String,
}

pub fn read(path: &Path, visit: Visit) -> Result<()> {
    let wanted = "a task of Instruction Induction is {\"examples\": {\"1\": {\"input\", \"output\"}}}";
    let task: Task = json::document(path, wanted)?;
    let name = stem(path);
    for (number, value) in task.examples {
        let Pair { input, output } = serde_json::from_value(value)
            .map_err(|why| Error::file(path, format!("example {number:?}: {why}; {wanted}")))?;
        let instance = Instance {
            input,
            target: output,
            task: Some(name.clone()),
            source: Some("instruction-induction".to_string()),
            ..Instance::default()
        };
        visit(instance)?;
    }
    Ok(())
}
