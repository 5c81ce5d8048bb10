//! One training instance, and its form in a file.

use std::path::Path;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::UNKNOWN_TASK;

/// What a model is given and what it should answer, with where both come from.
///
/// In a file it is a line of JSON; `input` and `target` must be there, what is not known is left
/// out, and fields of other names are passed over. `choices` is also read as `answer_choices`,
/// the name that P3 and DEFT have for it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// The text that the model is given.
    pub input: String,
    /// The text that it should answer: one of `choices`, where there are any.
    pub target: String,
    /// The task, such as `rte` or `task1390_wscfixed_coreference`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    /// The prompt template that made `input` and `target` out of a task's example.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// The group of like tasks that `task` belongs to (FLAN's and T0's cluster, SNI's category).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// The collection or data set that the example is from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// The answers to choose between; none where the answer is free text.
    #[serde(
        default,
        alias = "answer_choices",
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "null_is_none"
    )]
    pub choices: Vec<String>,
    /// The example's own text, where `input` has more than that: an instruction, a template's words, or other examples. It is
    /// what tells instances of one task from each other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub own: Option<String>,
}

fn null_is_none<'de, D: Deserializer<'de>>(list: D) -> Result<Vec<String>, D::Error> {
    Ok(Option::deserialize(list)?.unwrap_or_default())
}

impl Instance {
    /// Whether a model can learn it: something is asked and answered, with one of the choices where there are any.
    pub fn is_sound(&self) -> bool {
        let said = |text: &str| !text.trim().is_empty();
        let chosen = self.choices.is_empty() || self.choices.contains(&self.target);
        said(&self.input) && said(&self.target) && chosen
    }

    /// What its task is called, also where it names none.
    pub fn task_name(&self) -> &str {
        self.task.as_deref().unwrap_or(UNKNOWN_TASK)
    }

    /// The text by which it is told from others of its task.
    pub fn own_text(&self) -> &str {
        self.own.as_deref().unwrap_or(&self.input)
    }
}

/// Puts the right choice in place of its number, where a line has a number as its `target`, as T-Few's and DEFT's files have.
///
/// # Errors
/// A number that is none of the choices'.
pub fn name_choice(line: &mut Value) -> Result<(), String> {
    let Some(number) = line["target"].as_u64() else { return Ok(()) };
    let choices = line.get("choices").or(line.get("answer_choices"));
    let right = choices.and_then(|choices| choices.get(usize::try_from(number).ok()?)).cloned();
    line["target"] = right.ok_or_else(|| format!("the target {number} is none of the choices"))?;
    Ok(())
}

/// The task of a file that T-Few has drawn, `TASK/32_shot/0_seed.jsonl`; none for other names.
pub fn few_shot_task(path: &Path) -> Option<String> {
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let folder = path.ancestors().nth(2).map(name).filter(|folder| !folder.is_empty());
    folder.filter(|_| name(path).split('.').next().is_some_and(|stem| stem.ends_with("_seed")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_keeps_every_field_and_leaves_out_the_unknown() {
        let line = r#"{"input":"i","target":"a","task":"t","template":"p","cluster":"c","source":"s","choices":["a","b"],"own":"o"}"#;
        let instance: Instance = serde_json::from_str(line).unwrap();
        assert_eq!(serde_json::to_string(&instance).unwrap(), line);
        let deft = r#"{"input":"i","target":"a","answer_choices":["a"],"index_id":7}"#;
        let instance: Instance = serde_json::from_str(deft).unwrap();
        assert_eq!(instance.choices, ["a"]);
        assert_eq!(
            serde_json::to_string(&instance).unwrap(),
            r#"{"input":"i","target":"a","choices":["a"]}"#
        );
        assert!(serde_json::from_str::<Instance>(r#"{"input":"i"}"#).is_err());
        let of = |line: &str| serde_json::from_str::<Instance>(line).unwrap();
        assert!(of(r#"{"input":"i","target":"a","choices":null}"#).is_sound());
        assert!(!of(r#"{"input":"i","target":""}"#).is_sound());
        assert!(!of(r#"{"input":" ","target":"a"}"#).is_sound());
        assert!(!of(r#"{"input":"i","target":"c","choices":["a","b"]}"#).is_sound());
    }
}
