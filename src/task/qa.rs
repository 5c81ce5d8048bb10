//! Questions with short answers: `{"question", "answers", "target"?, "passages"?, "id"?}` a line.

use serde_json::Value;

use super::{Example, Fault, id, metadata, passages, text};

/// Reads a line.
pub(super) fn example(line: &Value) -> Result<Example, Fault> {
    let answers = match &line["answers"] {
        Value::Null => Vec::new(),
        answers => serde_json::from_value(answers.clone()).map_err(|e| format!("\"answers\": {e}"))?,
    };
    let target = line["target"].as_str().map(String::from);
    Ok(Example {
        id: id(line),
        question: text(line, "question")?,
        answers,
        target,
        passages: passages(line)?,
        metadata: metadata(line, &["id", "question", "answers", "target", "passages"]),
        ..Example::default()
    })
}
