//! One training instance, and its form in a file.

use serde::{Deserialize, Serialize};

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
    #[serde(default, alias = "answer_choices", skip_serializing_if = "Vec::is_empty")]
    pub choices: Vec<String>,
    /// The example's own text, where `input` has more than that: an instruction, a template's words, or other examples. It is
    /// what tells instances of one task from each other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub own: Option<String>,
}

impl Instance {
    /// The text by which it is told from others of its task.
    pub fn own_text(&self) -> &str {
        self.own.as_deref().unwrap_or(&self.input)
    }
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
    }
}
