//! Tasks of Super-NaturalInstructions (Wang et al. 2022, <https://arxiv.org/abs/2204.07705>), laid out as Tk-Instruct reads
//! them: the definition, some positive examples, the input.

use serde_json::Value;

use super::{Visit, first, text};
use crate::error::{Error, Result};
use crate::pool::Instance;

pub fn read(stem: &str, value: &Value, examples: usize, visit: Visit) -> Result<()> {
    let missing = |name: &str| Error::setting(name, "is missing");
    let definition = first(value, "Definition").ok_or_else(|| missing("Definition"))?;
    let mut before = format!("Definition: {}\n\n", definition.trim());
    let shown = value["Positive Examples"].as_array().into_iter().flatten().take(examples);
    for (number, example) in (1..).zip(shown) {
        let (input, output) =
            (text(example, "input")?, first(example, "output").ok_or_else(|| missing("output"))?);
        before +=
            &format!("Positive Example {number}-\nInput: {}\nOutput: {}\n\n", input.trim(), output.trim());
    }
    let instances =
        value["Instances"].as_array().ok_or_else(|| Error::setting("Instances", "must be a list"))?;
    for instance in instances {
        let input = text(instance, "input")?;
        visit(Instance {
            input: format!("{before}Now complete the following example-\nInput: {}\nOutput:", input.trim()),
            target: first(instance, "output").ok_or_else(|| missing("output"))?,
            task: stem.into(),
            category: first(value, "Categories"),
            template: Some(format!("definition, {examples} examples")),
            source: first(value, "Source"),
            choices: Vec::new(),
        })?;
    }
    Ok(())
}
