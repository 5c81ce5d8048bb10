//! `sidenote tokenizer ...`.

use std::path::PathBuf;

use serde_json::json;

use super::Console;
use crate::artefact::check_replaceable;
use crate::corpus::{Documents, OnError, Tokenizer};
use crate::{Error, interrupt};

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Train a byte-level BPE tokenizer.
    Train(TrainArgs),
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  sidenote tokenizer train articles.jsonl.zst --vocab-size 4096 --out tokenizer.json"
)]
pub struct TrainArgs {
    /// Files and folders to train on, as for `sidenote index build`.
    #[arg(required = true)]
    corpus: Vec<PathBuf>,
    /// Tokens at most, at least 257: the bytes and the end of text.
    #[arg(long, default_value_t = 4096)]
    vocab_size: usize,
    /// A token that stands for itself, such as "<|fim_middle|>"; may be given again.
    #[arg(long, value_name = "TOKEN")]
    special: Vec<String>,
    /// File to write, in Hugging Face's tokenizer.json format.
    #[arg(long)]
    out: PathBuf,
    /// What to do with a line or file that cannot be used.
    #[arg(long, value_enum, default_value_t = OnError::Fail)]
    on_error: OnError,
}

pub fn run(command: Command, console: Console) -> anyhow::Result<()> {
    match command {
        Command::Train(args) => train(args, console),
    }
}

fn train(args: TrainArgs, console: Console) -> anyhow::Result<()> {
    check_replaceable(&args.out)?;
    let mut documents = Documents::open(&args.corpus, args.on_error)?;
    let task = console.progress.task("reading", documents.total_bytes() / 1000, "kB");
    let (mut count, mut shown) = (0u64, 0);
    let texts = std::iter::from_fn(|| {
        if interrupt::requested() {
            return Some(Err(Error::Interrupted("nothing was written; run the command again".into())));
        }
        let next = documents.next();
        let read = documents.bytes_read() / 1000;
        task.advance(read - shown);
        shown = read;
        count += u64::from(matches!(next, Some(Ok(_))));
        next.map(|document| document.map(|document| document.text))
    });
    let tokenizer = Tokenizer::train(texts, args.vocab_size, &args.special)?;
    drop(task);
    tokenizer.save(&args.out)?;
    let report = json!({
        "out": args.out.display().to_string(),
        "vocab_size": tokenizer.vocab_size(),
        "documents": count,
        "skipped": documents.skipped().count,
        "identity": tokenizer.identity(),
    });
    console.report(&report, || {
        let out = args.out.display();
        format!("{out}: {} tokens, learnt from {count} documents", tokenizer.vocab_size())
    })
}
