//! The format of KILT (Petroni et al. 2021, <https://arxiv.org/abs/2009.02252>): `{"id", "input", "output": [{"answer",
//! "provenance"}]}` a line.

use serde_json::Value;

use super::{Example, Fault, id, metadata, passages, text};

/// Reads a line.
pub(super) fn example(line: &Value) -> Result<Example, Fault> {
    let mut answers: Vec<String> = Vec::new();
    for output in line["output"].as_array().into_iter().flatten() {
        if let Some(answer) =
            output["answer"].as_str().filter(|answer| !answers.iter().any(|had| had == answer))
        {
            answers.push(answer.into());
        }
    }
    Ok(Example {
        id: id(line),
        question: text(line, "input")?,
        answers,
        passages: passages(line)?,
        metadata: metadata(line, &["id", "input", "passages"]),
        ..Example::default()
    })
}
