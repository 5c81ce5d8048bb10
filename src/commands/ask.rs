//! `sidenote ask`.

use std::path::PathBuf;

use serde_json::json;

use super::Console;
use crate::encoder;
use crate::error::Error;
use crate::reader::{Answer, Extractive, Reader, Source, one_line, whole_sentences};
use crate::retriever::{Passage, Retriever};

/// Arguments of `sidenote ask`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Without --model the built-in extractive reader quotes the sentence of the passages that fits best.

Example:
  sidenote ask \"What is the smallest planet?\" --index runs/wiki")]
pub struct Args {
    /// The question.
    question: String,
    /// The indexed corpus to answer from.
    #[arg(long, value_name = "DIR")]
    index: PathBuf,
    /// How many passages to read.
    #[arg(short, value_name = "PASSAGES", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=1000))]
    k: u64,
    /// The model that reads the passages.
    #[arg(long)]
    model: Option<String>,
    /// The encoder that the index was made with: "default" or a folder [default: the one that the
    /// index names].
    #[arg(long, value_name = "NAME|DIR")]
    encoder: Option<String>,
}

/// Runs `sidenote ask`.
pub fn run(args: Args, console: Console) -> anyhow::Result<()> {
    if let Some(model) = &args.model {
        let why = format!("{model}: models of this type are not supported as readers; leave the option out");
        return Err(Error::setting("--model", why).into());
    }
    let encoder = args.encoder.as_deref().map(encoder::load).transpose()?;
    let retriever = Retriever::open(&args.index, encoder)?;
    let passages = retriever.search(&args.question, usize::try_from(args.k)?)?;
    // A chunk's borders fall anywhere; what is read and shown are the whole sentences it touches.
    let texts: Vec<&str> = passages.iter().map(|passage| widen(&retriever, passage)).collect();
    let sources: Vec<Source<'_>> = passages
        .iter()
        .zip(&texts)
        .map(|(passage, text)| Source { title: &passage.title, text, score: passage.score })
        .collect();
    let answer = Extractive::new(retriever.encoder()).answer(&args.question, &sources)?;

    let listed = passages.iter().zip(&sources).enumerate().map(|(place, (passage, source))| {
        json!({
            "title": source.title,
            "text": source.text,
            "id": passage.id,
            "score": source.score,
            "cited": answer.citations.contains(&place),
        })
    });
    let value = json!({
        "question": args.question,
        "answer": answer.text,
        "reader": answer.reader,
        "sources": listed.collect::<Vec<_>>(),
    });
    console.report(&value, || human(&answer, &sources));
    Ok(())
}

fn widen<'r>(retriever: &'r Retriever, passage: &Passage) -> &'r str {
    let chunk = retriever.store().chunk(passage.chunk);
    let document = retriever.store().document(passage.document);
    whole_sentences(document.text, chunk.start..chunk.start + chunk.text.len())
}

fn human(answer: &Answer, sources: &[Source<'_>]) -> String {
    let mut text = format!("{}\n\nReader: {}\nSources:\n", answer.text, answer.reader);
    for (place, source) in sources.iter().enumerate() {
        text.push_str(&format!("[{}] {} — {}\n", place + 1, source.title, one_line(source.text)));
    }
    text
}
