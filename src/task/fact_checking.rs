//! Claims to be checked, as FEVER has them (Thorne et al. 2018, <https://arxiv.org/abs/1803.05355>): `{"claim", "label"}` a line.
//! Readers answer in words that they know, as in Atlas.

use serde_json::Value;

use super::{Example, Fault, id, metadata, passages, text};

/// Labels, and the answers that stand for them.
const LABELS: [(&str, &str); 3] = [("SUPPORTS", "true"), ("REFUTES", "false"), ("NOT ENOUGH INFO", "maybe")];

/// Reads a line.
pub(super) fn example(line: &Value) -> Result<Example, Fault> {
    let label = text(line, "label")?;
    let known = LABELS.iter().find(|(name, _)| *name == label);
    let (_, answer) =
        known.ok_or_else(|| format!("label {label:?} is none of {:?}", LABELS.map(|(name, _)| name)))?;
    Ok(Example {
        id: id(line),
        question: text(line, "claim")?,
        answers: vec![answer.to_string()],
        choices: LABELS.map(|(_, answer)| answer.to_string()).to_vec(),
        passages: passages(line)?,
        metadata: metadata(line, &["id", "claim", "label", "passages"]),
        ..Example::default()
    })
}
