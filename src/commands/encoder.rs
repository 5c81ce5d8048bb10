//! `sidenote encoder ...`.

use std::path::PathBuf;

use anyhow::Context;
use serde_json::json;

use super::Console;
use crate::corpus::{Documents, OnError};
use crate::encoder::distill::distill;
use crate::encoder::{self, Encoder, Quantised, SentenceEncoder, quantise};

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Make a static encoder (a vector a token) out of a BERT-family sentence encoder.
    Distill(DistillArgs),
    /// Round the weights of a BERT-family sentence encoder to 8 bits: it encodes about twice as fast.
    #[command(visible_alias = "quantize")]
    Quantise(QuantiseArgs),
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  sidenote encoder distill models/all-MiniLM-L6-v2 --corpus corpus/ --out my-encoder\n  \
                        sidenote index build corpus/ --encoder my-encoder --out my-index"
)]
pub struct DistillArgs {
    /// Folder of the sentence encoder (config.json, tokenizer.json, model.safetensors).
    source: PathBuf,
    /// Folder to write the static encoder to.
    #[arg(long)]
    out: PathBuf,
    /// Numbers a token.
    #[arg(long, default_value_t = 256)]
    dim: usize,
    /// Text like that to be searched, in any format that `index build` reads: its token frequencies
    /// decide the weights. Without it they are guessed from the vocabulary's order.
    #[arg(long)]
    corpus: Vec<PathBuf>,
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  sidenote encoder quantise models/all-MiniLM-L6-v2 --out minilm-8-bits\n  \
                        sidenote index build corpus/ --encoder minilm-8-bits --out my-index"
)]
pub struct QuantiseArgs {
    /// Folder of the sentence encoder (config.json, tokenizer.json, model.safetensors).
    source: PathBuf,
    /// Folder to write the rounded encoder to.
    #[arg(long)]
    out: PathBuf,
}

pub fn run(command: Command, console: Console) -> anyhow::Result<()> {
    match command {
        Command::Distill(args) => run_distill(args, console),
        Command::Quantise(args) => run_quantise(args, console),
    }
}

fn run_distill(args: DistillArgs, console: Console) -> anyhow::Result<()> {
    let source = args.source.to_str().context("the folder's name is not UTF-8")?;
    encoder::check_new(&args.out)?;
    let teacher = SentenceEncoder::open(source)?;
    let mut texts = Vec::new();
    if !args.corpus.is_empty() {
        for document in Documents::open(&args.corpus, OnError::Fail)? {
            texts.push(document?.text);
        }
    }
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let made = distill(&teacher, args.dim, &texts, console.progress)?;
    made.save(&args.out)?;
    let out = args.out.to_str().context("the folder's name is not UTF-8")?;
    let identity = encoder::load(out)?.identity().to_string();
    let result = json!({"out": out, "tokens": made.tokens(), "dim": args.dim, "identity": identity});
    console.report(&result, || {
        format!("{out}: {} tokens of {} numbers, from {}", made.tokens(), args.dim, teacher.name())
    })
}

fn run_quantise(args: QuantiseArgs, console: Console) -> anyhow::Result<()> {
    let source = args.source.to_str().context("the folder's name is not UTF-8")?;
    let out = args.out.to_str().context("the folder's name is not UTF-8")?;
    let Quantised { f32_bytes, bytes } = quantise(source, &args.out)?;
    let identity = encoder::load(out)?.identity().to_string();
    let result = json!({"out": out, "f32_bytes": f32_bytes, "bytes": bytes, "identity": identity});
    let megabytes = |bytes: usize| bytes as f64 / 1e6;
    console.report(&result, || {
        format!("{out}: weights of {:.1} MB, {:.1} in f32", megabytes(bytes), megabytes(f32_bytes))
    })
}
