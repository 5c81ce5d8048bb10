//! `sidenote eval qa`.

use std::fs;
use std::io::{BufWriter, Write};
use std::path::PathBuf;

use anyhow::Context;
use candle_core::Device;
use serde_json::json;

use super::super::Console;
use super::super::device::DeviceArgs;
use crate::encoder;
use crate::error::Error;
use crate::reader::{Extractive, Reader, ReaderModel};
use crate::retriever::{Condition, Filter, Ranking, Retriever, SearchOptions};
use crate::task::{Calibration, Evaluation, Line, Mode, Permutations, Task, evaluate};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
A line of the data is {\"question\", \"answers\"}; of multiple choice {\"question\", \"options\": {\"A\": ...}, \"answer\": \"A\"}; of fact \
checking {\"claim\", \"label\"}; KILT's is its own, and its provenance is scored where the index's documents have Wikipedia's ids. Passages may come with a line: \"passages\": [{\"title\", \"text\"}].

Examples:
  sidenote eval qa default --index runs/wiki --data dev.jsonl
  sidenote eval qa flan-t5-base --index runs/wiki --data dev.jsonl -k 20 --out answers.jsonl
  sidenote eval qa flan-t5-base --data dev.jsonl --mode closed-book
  sidenote eval qa default --index runs/wiki --data dev.jsonl --mode retrieve-only --ranking words -k 100
  sidenote eval qa runs/atlas/model --index runs/wiki --data heldout.jsonl --calibrate runs/sure.json")]
pub struct Args {
    /// The reader: a model (a folder, a file, a name on the hub, or what `sidenote train` with kind \"atlas\" has left), or \"default\", which
    /// quotes sentences.
    model: PathBuf,
    /// The questions: a JSON object a line.
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// What they are.
    #[arg(long, value_enum, default_value_t = Task::Qa)]
    task: Task,
    /// The indexed corpus to retrieve from.
    #[arg(long, value_name = "DIR")]
    index: Option<PathBuf>,
    /// Where passages come from.
    #[arg(long, value_enum, default_value_t = Mode::Retrieve)]
    mode: Mode,
    /// Passages a question.
    #[arg(short, value_name = "PASSAGES", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=1000))]
    k: u64,
    /// What ranks passages.
    #[arg(long, value_enum, default_value_t = Ranking::Vectors)]
    ranking: Ranking,
    /// Only passages of documents for which this holds: see `index search --help`.
    #[arg(long, value_name = "FILTER")]
    filter: Vec<Condition>,
    /// Only the first N questions.
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Orders in which the options of multiple choice are asked; answers are the mean over them.
    #[arg(long, value_enum, default_value_t = Permutations::Single)]
    permutations: Permutations,
    /// Write every answer there, a JSON object a line, as Atlas does.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Leave the passages out of it.
    #[arg(long, requires = "out")]
    no_passages: bool,
    /// Find the least support with which answers should be given, and write it there for `ask --sure`.
    #[arg(long, value_name = "FILE")]
    calibrate: Option<PathBuf>,
    /// Share of the given answers that should be right; where it is left out, precision and recall are balanced.
    #[arg(long, requires = "calibrate")]
    precision: Option<f64>,
    /// The query as the model reads it, with {question}.
    #[arg(long, value_name = "TEXT")]
    qa_prompt: Option<String>,
    /// A passage as the model reads it, with {query}, {title} and {text}.
    #[arg(long, value_name = "TEXT")]
    encoder_format: Option<String>,
    /// What every answer begins with.
    #[arg(long, value_name = "TEXT")]
    decoder_prompt: Option<String>,
    /// Most tokens of an answer.
    #[arg(long, value_name = "TOKENS")]
    max_tokens: Option<usize>,
    #[command(flatten)]
    device: DeviceArgs,
}

pub fn run(args: Args, console: Console) -> anyhow::Result<()> {
    let device = args.device.open()?;
    let mut examples = args.task.read(&args.data)?;
    examples.truncate(args.limit.unwrap_or(usize::MAX));
    let is_default = args.model.as_os_str() == "default";
    let of_models = [
        ("--qa-prompt", args.qa_prompt.is_some()),
        ("--encoder-format", args.encoder_format.is_some()),
        ("--decoder-prompt", args.decoder_prompt.is_some()),
        ("--max-tokens", args.max_tokens.is_some()),
    ];
    if let Some((name, _)) = of_models.iter().find(|(_, given)| is_default && *given) {
        return Err(Error::setting(*name, "is for models; the default reader quotes sentences").into());
    }
    let model = if is_default { None } else { Some(model(&args, &device)?) };
    let retriever = match (&args.index, &model) {
        (Some(dir), Some(model)) => Some(model.asks(Retriever::open(dir, None)?)?),
        (Some(dir), None) => Some(Retriever::open(dir, None)?),
        (None, _) => None,
    };
    let quoting = match (&model, &retriever) {
        (None, None) => Some(encoder::load("default")?),
        _ => None,
    };
    let reader: Box<dyn Reader + '_> = match (&model, &retriever, &quoting) {
        (Some(model), ..) => model.reader(),
        (None, Some(retriever), _) => Box::new(Extractive::new(retriever.encoder())),
        (None, None, Some(encoder)) => Box::new(Extractive::new(encoder.as_ref())),
        (None, None, None) => anyhow::bail!("there is no reader"),
    };
    let options = Evaluation {
        mode: args.mode,
        k: usize::try_from(args.k)?,
        search: SearchOptions { filter: Filter::new(args.filter.clone()), ranking: args.ranking },
        permutations: args.permutations,
    };
    let mut out = match &args.out {
        Some(path) => {
            let mut part = path.as_os_str().to_owned();
            part.push(".part");
            let part = PathBuf::from(part);
            let file = fs::File::create(&part).with_context(|| part.display().to_string())?;
            Some((BufWriter::new(file), part))
        }
        None => None,
    };
    let mut write = |line: &Line| -> crate::Result<()> {
        let Some((file, part)) = &mut out else { return Ok(()) };
        let mut value = serde_json::to_value(line).map_err(|e| Error::file(&*part, e.to_string()))?;
        if args.no_passages
            && let Some(fields) = value.as_object_mut()
        {
            fields.shift_remove("passages");
        }
        writeln!(file, "{value}").map_err(Error::io(&*part))
    };
    let summary = evaluate(
        Some(reader.as_ref()),
        retriever.as_ref(),
        &examples,
        &options,
        &mut write,
        console.progress,
    )?;
    if let (Some((mut file, part)), Some(path)) = (out, &args.out) {
        file.flush()
            .and_then(|()| file.get_ref().sync_all())
            .and_then(|()| fs::rename(&part, path))
            .with_context(|| path.display().to_string())?;
    }
    let calibration = match &args.calibrate {
        Some(path) => {
            let calibration = Calibration::of(&reader.name(), &summary.judged, args.precision)?;
            calibration.write(path)?;
            Some(calibration)
        }
        None => None,
    };
    let mut value = serde_json::to_value(&summary)?;
    value["model"] = json!(args.model);
    value["data"] = json!(args.data);
    value["ranking"] = json!(args.ranking);
    value["calibration"] = json!(calibration);
    console.report(&value, || {
        let mut text = format!("{} questions, {:.1} a second\n", summary.questions, summary.questions_per_second);
        for (name, mean) in &summary.means {
            text += &format!("{name:<20}{:.4}\n", mean.as_f64().unwrap_or(f64::NAN));
        }
        if let Some(calibration) = &calibration {
            let show = |share: Option<f64>| share.map_or("-".into(), |share| format!("{share:.3}"));
            text += &format!(
                "answers with a support of {:.4} or more: precision {}, recall {} ({} of {} questions answered)\n",
                calibration.threshold,
                show(calibration.precision),
                show(calibration.recall),
                calibration.answered,
                calibration.questions
            );
        }
        text
    })
}

/// The model, with what the arguments change of its templates.
fn model(args: &Args, device: &Device) -> anyhow::Result<ReaderModel> {
    let mut model = ReaderModel::load(&args.model, device)?;
    let templates = &mut model.templates;
    for (template, given) in
        [(&mut templates.query, &args.qa_prompt), (&mut templates.passage, &args.encoder_format)]
    {
        if given.is_some() {
            template.clone_from(given);
        }
    }
    if let Some(prompt) = &args.decoder_prompt {
        templates.answer.clone_from(prompt);
    }
    if let Some(tokens) = args.max_tokens {
        templates.answer_tokens = tokens;
    }
    templates.check()?;
    Ok(model)
}
