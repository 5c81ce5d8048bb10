//! What a corpus is made of.

use serde::{Deserialize, Serialize};

/// One document of a corpus.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// Names the document within its corpus. Ids stated in the input must differ; where the
    /// input states none, the id is made of the file's name (and line) and is made unique.
    pub id: String,
    /// Title; the id where the input has none.
    pub title: String,
    /// Part of a larger document, such as a heading.
    pub section: Option<String>,
    /// The file it came from, by a name that does not depend on where the corpus lies.
    pub source: String,
    /// The text; never empty.
    pub text: String,
}

/// What to do with a line or file of a corpus that cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum OnError {
    /// Stop with an error that names it.
    #[default]
    Fail,
    /// Leave it out and count it.
    Skip,
}

/// What was left out under [`OnError::Skip`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Skipped {
    /// How many lines or files.
    pub count: u64,
    /// Why, for the first few.
    pub first: Vec<String>,
}

impl Skipped {
    /// How many reasons are kept.
    const KEPT: usize = 5;

    /// Counts what `other` counts as well.
    pub fn extend(&mut self, other: &Self) {
        self.count += other.count;
        let room = Self::KEPT.saturating_sub(self.first.len());
        self.first.extend(other.first.iter().take(room).cloned());
    }

    pub(super) fn add(&mut self, why: String) {
        self.count += 1;
        if self.first.len() < Self::KEPT {
            self.first.push(why);
        }
    }
}
