//! The format of KILT (Petroni et al. 2021, <https://arxiv.org/abs/2009.02252>): `{"id", "input", "output": [{"answer",
//! "provenance": [{"wikipedia_id"}]}]}` a line. Documents of the index are known by that id.

use std::collections::BTreeSet;

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
        evidence: evidence(line),
        metadata: metadata(line, &["id", "input", "passages"]),
        ..Example::default()
    })
}

/// The pages that each output names, where it names some. An output of KILT may be an answer or evidence alone.
fn evidence(line: &Value) -> Vec<BTreeSet<String>> {
    let id = |page: &Value| match &page["wikipedia_id"] {
        Value::String(id) => Some(id.trim().to_string()),
        Value::Number(id) => Some(id.to_string()),
        _ => None,
    };
    let of = |output: &Value| output["provenance"].as_array().into_iter().flatten().filter_map(id).collect();
    let sets = line["output"].as_array().into_iter().flatten().map(of);
    sets.filter(|set: &BTreeSet<String>| !set.is_empty()).collect()
}
