//! An example of a task.

use std::path::PathBuf;

use crate::error::Error;
use crate::pool::{Instance, few_shot_task};

/// An instance, and what a file says of it beside that.
#[derive(Debug, Clone, PartialEq)]
pub struct Item {
    /// What is asked and what is right.
    pub instance: Instance,
    /// All answers that are right; the target is the first. None where a file does not tell: such an item has no scores.
    pub references: Vec<String>,
    /// The example that the instance was made of: under several templates it is the same.
    pub example: String,
    /// The file that it is from.
    pub path: PathBuf,
    /// Its line there, from 1.
    pub line: u64,
}

impl Item {
    /// The task: as the file says, else the file's name, or of T-Few's `TASK/32_shot/0_seed.jsonl` the folder's.
    pub fn task(&self) -> String {
        if let Some(task) = &self.instance.task {
            return task.clone();
        }
        few_shot_task(&self.path).unwrap_or_else(|| {
            let name = self.path.file_name().unwrap_or_default().to_string_lossy();
            name.split('.').next().unwrap_or_default().to_string()
        })
    }

    /// The template; the same for all where the file does not say.
    pub fn template(&self) -> &str {
        self.instance.template.as_deref().unwrap_or_default()
    }

    /// The place of the answer among the choices.
    pub fn right(&self) -> Option<usize> {
        self.instance.choices.iter().position(|choice| *choice == self.instance.target)
    }

    /// An error about it.
    pub fn fault(&self, why: impl Into<String>) -> Error {
        Error::Line { path: self.path.clone(), line: self.line, why: why.into() }
    }
}
