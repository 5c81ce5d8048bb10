//! Tasks: what is asked, what is to be answered, and how answers are judged. A file for each kind, after those of Atlas
//! (Izacard et al. 2022, <https://arxiv.org/abs/2208.03299>, section 3).

mod calibration;
mod evaluate;
pub mod fact_checking;
pub mod kilt;
pub mod masked;
pub mod multiple_choice;
pub mod prefix;
pub mod qa;
pub mod section;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Error, Result};

pub use calibration::{Calibration, Judged};
pub use evaluate::{Evaluation, Line, LinePassage, Mode, Summary, evaluate};
pub use multiple_choice::Permutations;

/// A kind of task whose examples are lines of JSON.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Task {
    /// Questions with short answers.
    #[default]
    Qa,
    /// Questions with options, of which one is right.
    MultipleChoice,
    /// Claims that are true, false, or neither as far as one can tell (FEVER).
    FactChecking,
    /// Whatever is in the format of KILT.
    Kilt,
}

/// Something to be answered.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Example {
    /// Its id, or where it has none its number in the file, from 0.
    pub id: String,
    /// What is asked, as the reader gets it and the retriever looks for it.
    pub question: String,
    /// All right answers.
    pub answers: Vec<String>,
    /// What is learnt to be written; the first answer where there is nothing here.
    pub target: Option<String>,
    /// What the answer is chosen from; empty where it is written freely.
    pub choices: Vec<String>,
    /// Options behind the choices, where these are letters.
    pub options: Vec<String>,
    /// Passages that came with it.
    pub passages: Option<Vec<GivenPassage>>,
    /// Ids of the documents that are evidence together: a set for each output that names some.
    pub evidence: Vec<BTreeSet<String>>,
    /// What else its line says.
    pub metadata: Value,
}

/// A passage that comes with a question.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct GivenPassage {
    /// Id of its document.
    #[serde(default)]
    pub id: String,
    /// Its title.
    #[serde(default)]
    pub title: String,
    /// Its text.
    pub text: String,
}

impl Example {
    /// The passages that came with it.
    ///
    /// # Errors
    /// There are none.
    pub fn given(&self) -> Result<&[GivenPassage]> {
        let none = || Error::setting("passages", format!("question {:?} comes without any", self.id));
        self.passages.as_deref().ok_or_else(none)
    }

    /// Whether there is something to judge by: right answers, or documents that are evidence.
    pub fn has_answers(&self) -> bool {
        !self.answers.is_empty() || !self.evidence.is_empty()
    }

    /// What is learnt to be written.
    pub fn target(&self) -> Option<&str> {
        self.target.as_deref().or(self.answers.first().map(String::as_str))
    }
}

/// What went wrong with a line, without its place.
type Fault = String;

impl Task {
    /// Reads a file of examples, a JSON object a line.
    ///
    /// # Errors
    /// Names the line at fault and what it lacks.
    pub fn read(self, path: &Path) -> Result<Vec<Example>> {
        let file = File::open(path).map_err(Error::io(path))?;
        let mut examples = Vec::new();
        for (number, line) in BufReader::new(file).lines().enumerate() {
            let line = line.map_err(Error::io(path))?;
            if line.trim().is_empty() {
                continue;
            }
            let fault = |why: String| Error::line(path, number as u64 + 1, why);
            let value: Value = serde_json::from_str(&line).map_err(|e| fault(e.to_string()))?;
            let mut example = self.example(&value).map_err(fault)?;
            if example.id.is_empty() {
                example.id = examples.len().to_string();
            }
            examples.push(example);
        }
        match examples.is_empty() {
            true => Err(Error::file(path, "holds no example")),
            false => Ok(examples),
        }
    }

    fn example(self, line: &Value) -> std::result::Result<Example, Fault> {
        match self {
            Self::Qa => qa::example(line),
            Self::MultipleChoice => multiple_choice::example(line),
            Self::FactChecking => fact_checking::example(line),
            Self::Kilt => kilt::example(line),
        }
    }
}

/// The field `name` of a line, as text.
fn text(line: &Value, name: &str) -> std::result::Result<String, Fault> {
    match &line[name] {
        Value::String(text) => Ok(text.clone()),
        Value::Null => Err(format!("there is no {name:?}")),
        other => Err(format!("{name:?} is no text but {other}")),
    }
}

/// The id of a line, a text or a number; empty where there is none.
fn id(line: &Value) -> String {
    match &line["id"] {
        Value::String(id) => id.clone(),
        Value::Number(id) => id.to_string(),
        _ => String::new(),
    }
}

/// All of a line but what is read from it.
fn metadata(line: &Value, read: &[&str]) -> Value {
    match line {
        Value::Object(fields) => fields
            .iter()
            .filter(|(name, _)| !read.contains(&name.as_str()))
            .map(|(n, v)| (n.clone(), v.clone()))
            .collect(),
        _ => Value::Null,
    }
}

/// The passages of a line, where it has some.
fn passages(line: &Value) -> std::result::Result<Option<Vec<GivenPassage>>, Fault> {
    match &line["passages"] {
        Value::Null => Ok(None),
        given => serde_json::from_value(given.clone()).map_err(|e| format!("\"passages\": {e}")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn lines_at_fault_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data.jsonl");
        let read = |task: Task, text: &str| {
            std::fs::write(&path, text).unwrap();
            task.read(&path).unwrap_err().to_string()
        };
        let good = "{\"question\": \"Q?\", \"answers\": [\"a\"]}\n";
        assert!(
            read(Task::Qa, &format!("{good}\n{{\"answers\": []}}"))
                .contains("data.jsonl:3: there is no \"question\"")
        );
        assert!(read(Task::Qa, &format!("{good}nonsense")).contains(":2:"));
        assert!(read(Task::Qa, "{\"question\": \"Q?\", \"answers\": \"a\"}").contains("answers"));
        assert!(read(Task::Qa, "{\"question\": \"Q?\", \"passages\": [{}]}").contains("passages"));
        assert!(read(Task::Qa, "\n").contains("holds no example"));
        assert!(read(Task::FactChecking, "{\"claim\": \"C\", \"label\": \"PERHAPS\"}").contains("PERHAPS"));
        assert!(
            read(
                Task::MultipleChoice,
                "{\"question\": \"Q\", \"options\": {\"A\": \"x\", \"B\": \"y\"}, \"answer\": \"C\"}"
            )
            .contains("\"C\"")
        );
        assert!(read(Task::Kilt, "{\"id\": 1, \"output\": []}").contains("input"));
    }

    #[test]
    fn every_format_becomes_an_example() {
        let qa = Task::Qa
            .example(&json!({"question": "Q?", "answers": ["a", "b"], "target": "t", "id": 7, "x": 1}))
            .unwrap();
        assert_eq!((qa.id.as_str(), qa.target(), qa.metadata["x"].as_u64()), ("7", Some("t"), Some(1)));
        let fact = Task::FactChecking.example(&json!({"claim": "C", "label": "REFUTES"})).unwrap();
        assert_eq!((fact.question.as_str(), fact.target(), fact.choices.len()), ("C", Some("false"), 3));
        let kilt = json!({"id": "k", "input": "Q?", "output": [
            {"answer": "a", "provenance": [{"wikipedia_id": "7", "title": "Seven"}, {"wikipedia_id": 30}, {"wikipedia_id": "7"}]},
            {"provenance": []}, {"answer": "b"}, {"answer": "a", "provenance": [{"wikipedia_id": "5"}, {"title": "Nowhere"}]}
        ]});
        let kilt = Task::Kilt.example(&kilt).unwrap();
        assert_eq!((kilt.id.as_str(), kilt.answers), ("k", vec!["a".to_string(), "b".into()]));
        let evidence: Vec<Vec<&str>> =
            kilt.evidence.iter().map(|set| set.iter().map(String::as_str).collect()).collect();
        assert_eq!(evidence, [vec!["30", "7"], vec!["5"]]);
    }
}
