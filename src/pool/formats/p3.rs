//! P3 as T0's training mixture is kept: a file a template, lines of `prompt` and `completion`, which may end in GPT's token
//! for the end of a text.

use serde_json::Value;

use super::{Visit, text};
use crate::error::Result;
use crate::pool::Instance;

const END: &str = "<|endoftext|>";

pub fn read(stem: &str, value: &Value, visit: Visit) -> Result<()> {
    let target = text(value, "completion")?;
    visit(Instance {
        input: text(value, "prompt")?.trim().to_string(),
        target: target.strip_suffix(END).unwrap_or(&target).trim().to_string(),
        task: stem.into(),
        template: Some(stem.into()),
        source: Some("p3".into()),
        ..Instance::default()
    })
}
