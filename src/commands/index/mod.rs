//! `sidenote index ...`.

use serde_json::Value;

use super::Console;

mod add;
mod build;
mod compact;
mod delete;
mod encode;
mod info;
mod search;
mod tune;
mod verify;

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Cut a corpus into chunks, encode them, and build an index over them.
    Build(build::Args),
    /// Add documents to an index, or replace those whose ids are there.
    Add(add::Args),
    /// Delete documents from an index.
    Delete(delete::Args),
    /// Rewrite what is left after adding and deleting into one piece.
    Compact(compact::Args),
    /// Encode the text of an index again, with another encoder or one that has learnt.
    Encode(encode::Args),
    /// Find out how widely to search for a wanted recall, and keep it.
    Tune(tune::Args),
    /// Show the passages nearest to a query.
    Search(search::Args),
    /// Say what an index is made of.
    Info(info::Args),
    /// Check every byte of an index, and that its pieces belong together.
    Verify(verify::Args),
}

pub fn run(command: Command, console: Console) -> anyhow::Result<()> {
    match command {
        Command::Build(args) => build::run(args, console),
        Command::Add(args) => add::run(args, console),
        Command::Delete(args) => delete::run(args, console),
        Command::Compact(args) => compact::run(args, console),
        Command::Encode(args) => encode::run(args, console),
        Command::Tune(args) => tune::run(args, console),
        Command::Search(args) => search::run(args, console),
        Command::Info(args) => info::run(args, console),
        Command::Verify(args) => verify::run(args, console),
    }
}

/// A report as lines of name and value; lists a line an entry.
fn table(report: &Value) -> String {
    let mut lines = String::new();
    for (name, value) in report.as_object().into_iter().flatten() {
        let values = match value {
            Value::Array(values) => values.iter().map(plain).collect(),
            value => vec![plain(value)],
        };
        for (i, value) in values.iter().enumerate() {
            let name = if i == 0 { name.replace('_', " ") } else { String::new() };
            lines += &format!("{name:<18}{value}\n");
        }
    }
    lines
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), String::from)
}
