//! `sidenote eval ...`: measuring models and encoders.

use std::fs;
use std::path::{Path, PathBuf};

use super::Console;
use crate::error::Error;

mod perplexity;
mod qa;
mod retrieval;
mod tasks;

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// How well a model predicts a text: perplexity, bits per byte, and bits per byte by how much
    /// of the text can be copied from its neighbours.
    Perplexity(perplexity::Args),
    /// How well questions are answered from a corpus: exact match, F1, ROUGE-L, accuracy, recall and attribution.
    Qa(qa::Args),
    /// How well an encoder finds relevant passages: nDCG, recall, MRR and speed.
    Retrieval(retrieval::Args),
    /// How well a model does tasks: by the likeliest of given answers, or by what it writes.
    Tasks(tasks::Args),
}

pub fn run(command: Command, console: Console) -> anyhow::Result<()> {
    match command {
        Command::Perplexity(args) => perplexity::run(args, console),
        Command::Qa(args) => qa::run(args, console),
        Command::Retrieval(args) => retrieval::run(args, console),
        Command::Tasks(args) => tasks::run(args, console),
    }
}

/// Refuses to write `out` over a file that is `read`.
///
/// # Errors
/// Names it.
fn check_unread<'a>(out: &Path, read: impl IntoIterator<Item = &'a PathBuf>) -> crate::Result<()> {
    let Ok(place) = fs::canonicalize(out) else { return Ok(()) }; // there is nothing yet
    match read.into_iter().any(|path| fs::canonicalize(path).is_ok_and(|path| path == place)) {
        true => Err(Error::file(out, "this is read, and would be written over; name another file to write")),
        false => Ok(()),
    }
}
