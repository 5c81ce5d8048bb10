//! `sidenote eval qa`.

use std::path::PathBuf;

use candle_core::Device;
use serde_json::json;

use super::super::Console;
use super::super::device::DeviceArgs;
use super::check_unread;
use crate::artefact::check_replaceable;
use crate::encoder;
use crate::error::Error;
use crate::reader::{Extractive, Reader, ReaderModel};
use crate::retriever::{Condition, Filter, Ranking, Retriever, SearchOptions};
use crate::task::{Calibration, Evaluation, Example, Line, Mode, Permutations, Task, evaluate};
use crate::whole_file::WholeFile;

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
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
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
    check(&args)?;
    let device = args.device.open()?;
    let mut examples = args.task.read(&args.data)?;
    examples.truncate(args.limit.map_or(Ok(usize::MAX), usize::try_from)?);
    let judged = examples.iter().filter(|example| example.has_answers()).count();
    if judged == 0 && args.out.is_none() {
        return Err(without_answers(&args, &examples).into());
    }
    let model = if is_default(&args) { None } else { Some(model(&args, &device)?) };
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
    let mut out = args.out.as_deref().map(WholeFile::create).transpose()?;
    let mut write = |line: &Line| -> crate::Result<()> {
        let Some(file) = &mut out else { return Ok(()) };
        let mut value = serde_json::to_value(line).map_err(|e| Error::file(file.path(), e.to_string()))?;
        if args.no_passages
            && let Some(fields) = value.as_object_mut()
        {
            fields.shift_remove("passages");
        }
        file.line(format_args!("{value}"))
    };
    let summary = evaluate(
        Some(reader.as_ref()),
        retriever.as_ref(),
        &examples,
        &options,
        &mut write,
        console.progress,
    )?;
    if let Some(file) = out {
        file.finish()?;
    }
    let calibrated = args.calibrate.as_deref().map(|path| -> crate::Result<Calibration> {
        let calibration = Calibration::of(&reader.name(), &summary.judged, args.precision)?;
        calibration.write(path)?;
        Ok(calibration)
    });
    // What was measured is reported though it gives no calibration.
    let (calibration, failure) = match calibrated.transpose() {
        Ok(calibration) => (calibration, None),
        Err(failure) => (None, Some(failure)),
    };
    let mut value = serde_json::to_value(&summary)?;
    value["model"] = json!(args.model);
    value["data"] = json!(args.data);
    value["judged"] = json!(judged);
    value["ranking"] = json!(args.ranking);
    value["calibration"] = json!(calibration);
    console.report(&value, || {
        let some = match judged == summary.questions {
            true => String::new(),
            false => format!(" ({judged} judged, the others have no answers)"),
        };
        let mut text =
            format!("{} questions{some}, {:.1} a second\n", summary.questions, summary.questions_per_second);
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
    })?;
    failure.map_or(Ok(()), |failure| Err(failure.into()))
}

fn is_default(args: &Args) -> bool {
    args.model.as_os_str() == "default"
}

/// Refuses, before anything is asked, options that would do nothing, and files that could not be written in the end.
fn check(args: &Args) -> crate::Result<()> {
    let of_models = [
        ("--qa-prompt", args.qa_prompt.is_some()),
        ("--encoder-format", args.encoder_format.is_some()),
        ("--decoder-prompt", args.decoder_prompt.is_some()),
        ("--max-tokens", args.max_tokens.is_some()),
    ];
    if let Some((name, _)) = of_models.iter().find(|(_, given)| is_default(args) && *given) {
        return Err(Error::setting(*name, "is for models; the default reader quotes sentences"));
    }
    if args.permutations != Permutations::Single && args.task != Task::MultipleChoice {
        return Err(Error::setting(
            "--permutations",
            "is for --task multiple-choice; others have no options",
        ));
    }
    if let Some(precision) = args.precision.filter(|share| !(f64::MIN_POSITIVE..=1.0).contains(share)) {
        let why = format!("{precision} is no share; give more than 0 and at most 1");
        return Err(Error::setting("--precision", why));
    }
    for path in args.out.iter().chain(&args.calibrate) {
        check_unread(path, [&args.data])?;
    }
    if let Some(path) = &args.calibrate {
        check_replaceable(path)?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        if let Some(folder) = folder.filter(|folder| !folder.is_dir()) {
            return Err(Error::file(path, format!("there is no folder {}; make it first", folder.display())));
        }
    }
    Ok(())
}

/// Says where right answers are missed.
fn without_answers(args: &Args, examples: &[Example]) -> Error {
    let wanted = match args.task {
        Task::Kilt => "\"output\": [{\"answer\": \"...\"}]",
        _ => "\"answers\": [\"...\"]",
    };
    let slip = match examples.iter().any(|example| !example.metadata["answer"].is_null()) {
        true => " (but \"answer\", which is not read)",
        false => "",
    };
    let why = format!(
        "none of {} questions has {wanted}{slip}, so that nothing can be judged; give --out to have answers written all \
         the same",
        examples.len()
    );
    Error::file(&args.data, why)
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
