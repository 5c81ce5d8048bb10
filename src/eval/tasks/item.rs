//! An example of a task.

use std::path::PathBuf;

use crate::error::Error;
use crate::pool::{Instance, few_shot_task};

/// What stands in a question in place of what it is about, so that it has no content.
pub(super) const NO_CONTENT: &str = "N/A";

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
    /// What is asked, with `N/A` in place of what it is about, where the file's format says what that is.
    pub without_content: Option<String>,
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

    /// What is asked, with `N/A` in place of what it is about, its own text; none where that is not said, or not found.
    pub(super) fn without_content(&self) -> Option<String> {
        if self.without_content.is_some() {
            return self.without_content.clone();
        }
        let own = self.instance.own.as_deref().filter(|own| !own.trim().is_empty())?;
        let around = around(&self.instance.input, own)?;
        let last = around.len() - 1;
        // Lines with nothing between them are one text.
        let kept =
            around.iter().enumerate().filter(|(i, text)| [0, last].contains(i) || !text.trim().is_empty());
        Some(kept.map(|(_, text)| *text).collect::<Vec<_>>().join(NO_CONTENT))
    }

    /// An error about it.
    pub fn fault(&self, why: impl Into<String>) -> Error {
        Error::Line { path: self.path.clone(), line: self.line, why: why.into() }
    }
}

/// What stands in `input` before, between and after the text `own`: around all of it where it stands there, else around each of its
/// lines in turn.
pub(super) fn around<'a>(input: &'a str, own: &str) -> Option<Vec<&'a str>> {
    let own = own.trim();
    let pieces: Vec<&str> = match input.contains(own) {
        true => vec![own],
        false => own.lines().map(str::trim).filter(|line| !line.is_empty()).collect(),
    };
    let mut around = Vec::with_capacity(pieces.len() + 1);
    let mut rest = input;
    for piece in pieces {
        let (before, after) = rest.split_once(piece)?;
        around.push(before);
        rest = after;
    }
    around.push(rest);
    Some(around)
}
