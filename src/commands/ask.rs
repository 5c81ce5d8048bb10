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
Without --model the built-in extractive reader quotes the sentence of the passages that fits best. With --json, \"found\" says
whether a passage that was read says the answer, which then cites it.

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
    /// How many passages to read; those that are parts of the same sentences are read once.
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
    if let Some(calibration) = &calibration {
        calibration.check(&reader.name())?;
    }
    let options = SearchOptions { filter: Filter::new(args.filter), ranking: Ranking::hybrid(args.hybrid) };
    let k = usize::try_from(args.k)?;
    let threshold = calibration.as_ref().map(|calibration| calibration.threshold);
    let response = ask(&retriever, &args.question, k, &options, reader.as_ref(), threshold)?;
    let found = !response.answer.citations.is_empty();
    let value = json!({
        "question": response.question,
        "answer": response.answer.text,
        "reader": response.answer.reader,
        "confidence": response.answer.confidence,
        "found": found,
        "calibration": calibration,
        "sources": response.sources,
        "unread": response.unread,
    });
    // The reader that quotes says by itself that nothing was found, and so does `--sure`.
    let unfounded = model.is_some() && calibration.is_none() && !found;
    console.report(&value, || human(&response, unfounded))
}

fn human(response: &Response, unfounded: bool) -> String {
    let answer = &response.answer;
    let warning = if unfounded { "No passage that was read says this.\n" } else { "" };
    let sources = match (response.unread, response.sources.is_empty()) {
        (0, true) => " none found".to_string(),
        (0, false) => String::new(),
        (unread, _) => format!(" ({unread} more were found that the model has no room for)"),
    };
    let mut text = format!(
        "{}\n{warning}\nReader: {}, confidence {:.2}\nSources:{sources}\n",
        one_line(&answer.text),
        answer.reader,
        answer.confidence
    );
    for (place, source) in response.sources.iter().enumerate() {
        let title = one_line(&source.title);
        let title = if title.is_empty() { "(no title)" } else { &title };
        text.push_str(&format!("[{}] {title} — {}\n", place + 1, one_line(&source.text)));
    }
    text
}
