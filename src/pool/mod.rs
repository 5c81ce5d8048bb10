//! Pools of instances to train on, out of the many forms that people keep them in.

mod build;
mod duplicates;
mod formats;
mod lines;

use serde::{Deserialize, Serialize};

pub use build::{BuildOptions, Report, build};
pub use formats::read;
pub use lines::{Lines, reason};

/// Something to read, what to answer, and where it is from: a line of a pool.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Instance {
    /// What the model is given.
    pub input: String,
    /// What it should answer.
    pub target: String,
    /// The task.
    pub task: String,
    /// The kind of task, such as "Question Answering".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub category: Option<String>,
    /// Which of several ways of asking made the input.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// The data set that it is from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// The answers to choose from, where there are any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub choices: Vec<String>,
}
