//! Instructions with their outputs: Alpaca's fields, and Unnatural Instructions' and self-instruct's, which have several
//! instances to an instruction.

use serde_json::Value;

use super::{Visit, first, text};
use crate::error::Result;
use crate::pool::Instance;

pub fn read(stem: &str, value: &Value, visit: Visit) -> Result<()> {
    let instruction = text(value, "instruction")?;
    let task = first(value, "name").or_else(|| first(value, "id")).unwrap_or_else(|| stem.into());
    let mut one = |value: &Value| {
        let input = first(value, "input").unwrap_or_default();
        let input =
            if input.trim().is_empty() { instruction.clone() } else { format!("{instruction}\n\n{input}") };
        visit(Instance {
            input,
            target: text(value, "output")?,
            task: task.clone(),
            source: Some(stem.into()),
            ..Instance::default()
        })
    };
    match value.get("instances").and_then(Value::as_array) {
        Some(several) => several.iter().try_for_each(one),
        None => one(value),
    }
}
