//! Prompts out of a file.

use std::io::Read;
use std::path::Path;

use serde_json::Value;

use crate::{Error, Result};

/// The prompts in `file`, one a line; in a `.jsonl` file, the field `prompt` of each line's object. `-` is stdin.
pub fn read(file: &Path) -> Result<Vec<String>> {
    let mut text = String::new();
    match file == Path::new("-") {
        true => std::io::stdin().read_to_string(&mut text).map(drop),
        false => std::fs::read_to_string(file).map(|content| text = content),
    }
    .map_err(Error::io(file))?;
    let objects = file.extension().is_some_and(|extension| extension == "jsonl");
    let mut prompts = Vec::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let wrong = |why: String| Error::line(file, number as u64 + 1, why);
        prompts.push(match objects {
            false => line.to_string(),
            true => {
                let object: Value =
                    serde_json::from_str(line).map_err(|e| wrong(format!("not JSON: {e}")))?;
                let prompt = object.get("prompt").and_then(Value::as_str);
                prompt.ok_or_else(|| wrong("has no text in the field \"prompt\"".into()))?.to_string()
            }
        });
    }
    if prompts.is_empty() {
        return Err(Error::file(file, "has no prompts; give one a line"));
    }
    Ok(prompts)
}
