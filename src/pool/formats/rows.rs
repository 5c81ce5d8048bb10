//! Lines as [`Instance`]s are written: `input`, `target`, and what else is known.

use serde_json::Value;

use super::{Visit, text};
use crate::error::{Error, Result};
use crate::pool::Instance;

pub fn read(stem: &str, value: &Value, visit: Visit) -> Result<()> {
    let (input, target) = (text(value, "input")?, text(value, "target")?);
    let mut rest = value.clone();
    if value.get("task").is_none() {
        rest["task"] = stem.into();
    }
    let instance: Instance = serde_json::from_value(rest)
        .map_err(|e| Error::setting("task, category, template, source or choices", e.to_string()))?;
    visit(Instance { input, target, ..instance })
}
