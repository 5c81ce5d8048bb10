//! Conversations: each answer of the assistant is an instance, whose input is what was said before it.

use serde_json::Value;

use super::{Visit, first, text};
use crate::error::{Error, Result};
use crate::pool::Instance;

pub fn read(stem: &str, value: &Value, visit: Visit) -> Result<()> {
    let Some(messages) = value["messages"].as_array() else {
        return Err(Error::setting("messages", "must be a list of objects with role and content"));
    };
    let task = first(value, "task").unwrap_or_else(|| stem.into());
    let mut said: Vec<String> = Vec::new();
    for message in messages {
        let (role, content) = (text(message, "role")?, text(message, "content")?);
        if role == "assistant" && !said.is_empty() {
            visit(Instance {
                input: said.join("\n\n"),
                target: content.clone(),
                task: task.clone(),
                source: Some(stem.into()),
                ..Instance::default()
            })?;
        }
        said.push(content);
    }
    Ok(())
}
