//! The command line: one file a subcommand, each only turning arguments into a library call and
//! its result into a report.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context;
use clap::{Parser, Subcommand};
use serde_json::json;

use crate::corpus::{OnError, Store, Tokenizer, build_store};
use crate::hub;
use crate::progress::Progress;

mod ask;
mod device;
mod encoder;
mod encoder_args;
mod eval;
mod generate;
mod index;
mod memory;
mod neighbours;
mod pool;
mod quickstart;
mod select;
mod tokenizer;
mod train;
mod trime;

/// Sidenote: language models that read while they write.
#[derive(Debug, Parser)]
#[command(name = "sidenote", version, max_term_width = 100)]
pub struct Cli {
    /// Print the result as one JSON object on stdout, and nothing else there.
    #[arg(long, global = true)]
    json: bool,
    /// Show no progress.
    #[arg(long, short, global = true)]
    quiet: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// See all four jobs work on a real corpus that ships with the program.
    Quickstart(quickstart::Args),
    /// Build, search and check the index of a corpus.
    #[command(subcommand)]
    Index(index::Command),
    /// Precompute each chunk's nearest neighbours, for RETRO.
    Neighbours(neighbours::Args),
    /// Make and tune token-level memories: what came next where a context was like the one at hand.
    #[command(subcommand)]
    Memory(memory::Command),
    /// Train a model as a TOML file says.
    Train(train::Args),
    /// Measure a model or an encoder.
    #[command(subcommand)]
    Eval(eval::Command),
    /// Continue a text.
    Generate(generate::Args),
    /// Answer a question from an indexed corpus, with sources.
    Ask(ask::Args),
    /// Make a pool of training instances out of the formats that people have.
    #[command(subcommand)]
    Pool(pool::Command),
    /// Choose the training instances nearest to a target task.
    Select(select::Args),
    /// Make a small, fast encoder out of a large one.
    #[command(subcommand)]
    Encoder(encoder::Command),
    /// Train a tokenizer on a corpus.
    #[command(subcommand)]
    Tokenizer(tokenizer::Command),
}

/// How a command talks: progress on stderr, results on stdout.
#[derive(Debug, Clone, Copy)]
pub struct Console {
    /// Results go out as one JSON object.
    pub json: bool,
    /// Where progress goes.
    pub progress: Progress,
}

impl Console {
    /// Prints a result: `value` with `--json`, else what `human` makes.
    fn report(&self, value: &serde_json::Value, human: impl FnOnce() -> String) -> anyhow::Result<()> {
        let text = if self.json { format!("{value:#}") } else { human() };
        print(&format!("{}\n", text.trim_end())).map(drop)
    }

    /// Prints what was found to be wrong with the folder `dir`, which `--json` calls `name`.
    ///
    /// # Errors
    /// If anything is wrong.
    fn report_problems(&self, name: &str, dir: &Path, problems: &[String]) -> anyhow::Result<()> {
        let (dir, sound) = (dir.display().to_string(), problems.is_empty());
        self.report(&json!({name: dir, "sound": sound, "problems": problems}), || match sound {
            true => format!("{dir}: sound"),
            false => problems.join("\n"),
        })?;
        anyhow::ensure!(sound, "{dir}: {} problem(s) found", problems.len());
        Ok(())
    }
}

/// Writes to stdout and says whether somebody reads on. A closed pipe (`sidenote ... | head -1`)
/// is no failure; a full disk is.
fn print(text: &str) -> anyhow::Result<bool> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(e) => Err(e).context("the result cannot be written to stdout"),
    }
}

/// Seconds since `started`, to the millisecond.
fn seconds_since(started: Instant) -> f64 {
    (started.elapsed().as_secs_f64() * 1000.0).round() / 1000.0
}

/// Texts cut into chunks of `chunk_size` tokens, in a store in the temporary folder `scratch`.
fn cut(
    corpus: &[PathBuf],
    tokenizer: &Tokenizer,
    chunk_size: usize,
    on_error: OnError,
    scratch: &Path,
    console: Console,
) -> anyhow::Result<Store> {
    let dir = scratch.join("text");
    build_store(corpus, tokenizer, chunk_size, on_error, &dir, console.progress)?;
    Ok(Store::open(&dir)?)
}

/// Runs the command that the arguments name.
pub fn run(cli: Cli) -> anyhow::Result<()> {
    let console = Console { json: cli.json, progress: Progress::new(cli.quiet) };
    if cli.quiet {
        hub::be_quiet();
    }
    match cli.command {
        Command::Quickstart(args) => quickstart::run(args, console),
        Command::Index(command) => index::run(command, console),
        Command::Neighbours(args) => neighbours::run(args, console),
        Command::Memory(command) => memory::run(command, console),
        Command::Train(args) => train::run(args, console),
        Command::Eval(command) => eval::run(command, console),
        Command::Generate(args) => generate::run(args, console),
        Command::Ask(args) => ask::run(args, console),
        Command::Pool(command) => pool::run(command, console),
        Command::Select(args) => select::run(args, console),
        Command::Encoder(command) => encoder::run(command, console),
        Command::Tokenizer(command) => tokenizer::run(command, console),
    }
}
