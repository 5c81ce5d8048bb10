//! `sidenote ask`.

use std::path::PathBuf;

use serde_json::json;

use super::Console;
use super::device::DeviceArgs;
use crate::encoder;
use crate::reader::{Extractive, Reader, ReaderModel, Response, ask, one_line};
use crate::retriever::{Condition, Filter, Ranking, Retriever, SearchOptions};
use crate::task::Calibration;

/// Arguments of `sidenote ask`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Without --model the built-in extractive reader quotes the sentence of the passages that fits best.

Examples:
  sidenote ask \"What is the smallest planet?\" --index runs/wiki
  sidenote eval qa default --index runs/wiki --data heldout.jsonl --calibrate runs/sure.json
  sidenote ask \"Who won the 2094 Olympics?\" --index runs/wiki --sure runs/sure.json")]
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
    /// Say "Not found in the corpus." where the support for an answer is less than this file says, which `sidenote eval qa
    /// --calibrate` has made with the same reader.
    #[arg(long, value_name = "FILE")]
    sure: Option<PathBuf>,
    /// The encoder that the index was made with: "default" or a folder [default: the one that the
    /// index names].
    #[arg(long, value_name = "NAME|DIR")]
    encoder: Option<String>,
    #[command(flatten)]
    device: DeviceArgs,
}

/// Runs `sidenote ask`.
pub fn run(args: Args, console: Console) -> anyhow::Result<()> {
    let device = args.device.open()?;
    let encoder = args.encoder.as_deref().map(encoder::load).transpose()?;
    let mut retriever = Retriever::open(&args.index, encoder)?;
    let model = args.model.as_deref().map(|name| ReaderModel::load(name, &device)).transpose()?;
    if let Some(model) = &model {
        retriever = model.asks(retriever)?;
    }
    let reader: Box<dyn Reader> = match &model {
        Some(model) => model.reader(),
        None => Box::new(Extractive::new(retriever.encoder())),
    };
    let calibration = args.sure.as_deref().map(Calibration::read).transpose()?;
    let options = SearchOptions { filter: Filter::new(args.filter), ranking: Ranking::hybrid(args.hybrid) };
    let k = usize::try_from(args.k)?;
    let threshold = calibration.as_ref().map(|calibration| calibration.threshold);
    let response = ask(&retriever, &args.question, k, &options, reader.as_ref(), threshold)?;
    if let Some(calibration) = &calibration {
        calibration.check(&response.answer.reader)?;
    }
    let value = json!({
        "question": response.question,
        "answer": response.answer.text,
        "reader": response.answer.reader,
        "confidence": response.answer.confidence,
        "found": !response.answer.citations.is_empty(),
        "calibration": calibration,
        "sources": response.sources,
    });
    console.report(&value, || human(&response))
}

fn human(response: &Response) -> String {
    let answer = &response.answer;
    let none = if response.sources.is_empty() { " none found" } else { "" };
    let mut text = format!(
        "{}\n\nReader: {}, confidence {:.2}\nSources:{none}\n",
        answer.text, answer.reader, answer.confidence
    );
    for (place, source) in response.sources.iter().enumerate() {
        let title = if source.title.is_empty() { "(no title)" } else { &source.title };
        text.push_str(&format!("[{}] {title} — {}\n", place + 1, one_line(&source.text)));
    }
    text
}
