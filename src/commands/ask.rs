//! `sidenote ask`.

use std::path::PathBuf;

use serde_json::json;

use super::Console;
use crate::encoder;
use crate::model::{LanguageModel, Trainable};
use crate::reader::{Extractive, Generative, Reader, Response, ask, one_line};
use crate::retriever::{Condition, Filter, Retriever, SearchOptions};

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
    /// Only passages of documents for which this holds, such as source~wiki: see `index search --help`.
    #[arg(long, value_name = "FILTER")]
    filter: Vec<Condition>,
    /// Fuse the ranking by vectors with one by words (BM25).
    #[arg(long)]
    hybrid: bool,
    /// The model that reads the passages: a folder, a file (GGUF, safetensors), or a name on the Hugging Face hub.
    #[arg(long, value_name = "MODEL")]
    model: Option<PathBuf>,
    /// The encoder that the index was made with: "default" or a folder [default: the one that the
    /// index names].
    #[arg(long, value_name = "NAME|DIR")]
    encoder: Option<String>,
}

/// Runs `sidenote ask`.
pub fn run(args: Args, console: Console) -> anyhow::Result<()> {
    let encoder = args.encoder.as_deref().map(encoder::load).transpose()?;
    let retriever = Retriever::open(&args.index, encoder)?;
    let model = match &args.model {
        Some(dir) => Some(LanguageModel::load(dir, Trainable::Nothing, &candle_core::Device::Cpu)?),
        None => None,
    };
    let reader: Box<dyn Reader> = match (&model, &args.model) {
        (Some(model), Some(dir)) => Box::new(Generative::new(model, dir.display().to_string())),
        _ => Box::new(Extractive::new(retriever.encoder())),
    };
    let options = SearchOptions { filter: Filter::new(args.filter), hybrid: args.hybrid };
    let response = ask(&retriever, &args.question, usize::try_from(args.k)?, &options, reader.as_ref())?;
    let value = json!({
        "question": response.question,
        "answer": response.answer.text,
        "reader": response.answer.reader,
        "sources": response.sources,
    });
    console.report(&value, || human(&response))
}

fn human(response: &Response) -> String {
    let answer = &response.answer;
    let none = if response.sources.is_empty() { " none found" } else { "" };
    let mut text = format!("{}\n\nReader: {}\nSources:{none}\n", answer.text, answer.reader);
    for (place, source) in response.sources.iter().enumerate() {
        let title = if source.title.is_empty() { "(no title)" } else { &source.title };
        text.push_str(&format!("[{}] {title} — {}\n", place + 1, one_line(&source.text)));
    }
    text
}
