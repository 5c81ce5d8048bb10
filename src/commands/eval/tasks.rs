//! `sidenote eval tasks`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::json;

use super::super::Console;
use super::super::device::DeviceArgs;
use super::check_unread;
use crate::artefact::{check_replaceable, write_atomically};
use crate::eval::tasks::{
    Answered, Asking, Item, TaskScores, evaluate, mean_over_tasks, predictions, read, summary,
};
use crate::model::WritingModel;

/// More different answers than this are no choices.
const MOST_CHOICES: usize = 20;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
A file has a line of JSON for each item: input, target and, where there are any, choices (or answer_choices), task and
template. ReCross's files (targets, id), MMLU's CSV (question, choice0, .., answer), RAFT's (Label, ID; the labels of all given files are
the choices) and pools' folders are read too. Items with choices are answered by the likeliest, by its log-probability (sum), that a character, a token, less what it has by itself (pmi) and,
where all of a task have the same choices, less what it has on average (batch_calibrated); others in writing.

Examples:
  sidenote eval tasks MODEL --data rte.jsonl copa.jsonl
  sidenote eval tasks MODEL --adapter runs/tuned/model --data rte.jsonl --out answers.jsonl
  sidenote eval tasks MODEL --data recross/eval/super_glue-cb.test.jsonl --choices-from-targets
  sidenote eval tasks MODEL --data mmlu/test/anatomy_test.csv --shots mmlu/dev/anatomy_dev.csv -k 5 --calibrate
  sidenote eval tasks MODEL --data ade/test_unlabeled.csv --shots ade/train.csv -k 5 --predictions ade.csv")]
pub struct Args {
    /// The model: a folder, a file, or a name on the Hugging Face hub.
    model: PathBuf,
    /// Files of items, or pools' folders. Of several, means over tasks are reported for each.
    #[arg(long, required = true, num_args = 1.., value_name = "FILE")]
    data: Vec<PathBuf>,
    /// An adapter of the model.
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    /// Write a line of JSON for each item, with what was answered.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Write the likeliest label of every row of the data there, as RAFT wants it (ID,Label): the calibrated one with --calibrate.
    #[arg(long, value_name = "FILE")]
    predictions: Option<PathBuf>,
    /// Where items have no choices: the different targets of their task under their template, if they are few.
    #[arg(long)]
    choices_from_targets: bool,
    /// Files that examples shown before each question come from; the first of its task.
    #[arg(long, num_args = 1.., value_name = "FILE", requires = "k")]
    shots: Vec<PathBuf>,
    /// How many are shown.
    #[arg(short, value_name = "EXAMPLES", default_value_t = 0, requires = "shots")]
    k: usize,
    /// What comes before all; {task} is the task's name, \\n a new line.
    #[arg(long, value_name = "TEXT", default_value = "")]
    preamble: String,
    /// Also measure the choices less what they have after the question with N/A in place of what it is about: of the texts of a CSV
    /// file's row, of the item's own text where it says which that is (own), else of all of it.
    #[arg(long)]
    calibrate: bool,
    /// Also measure how likely each choice makes the instruction (Flipped Learning); items say what is their own text (own).
    #[arg(long)]
    flipped: bool,
    /// The first items of each task and template only.
    #[arg(long, value_name = "ITEMS")]
    limit: Option<usize>,
    /// Most tokens of what is asked; the beginning of more is left out.
    #[arg(long, value_name = "TOKENS", default_value_t = 2048)]
    max_question_tokens: usize,
    /// Most tokens of a written answer.
    #[arg(long, value_name = "TOKENS", default_value_t = 64)]
    max_tokens: usize,
    /// A written answer ends before this; may be given several times. \\n is a new line.
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Most texts at a time.
    #[arg(long, value_name = "TEXTS", default_value_t = 16)]
    batch: usize,
    #[command(flatten)]
    device: DeviceArgs,
}

pub fn run(args: Args, console: Console) -> anyhow::Result<()> {
    let device = args.device.open()?;
    let mut items = read(&args.data)?;
    let mut shown = if args.shots.is_empty() { Vec::new() } else { read(&args.shots)? };
    choices_from_targets(&mut items, &mut shown, |item| {
        args.choices_from_targets || item.path.extension().is_some_and(|end| end == "csv")
    });
    if let Some(item) =
        items.iter().find(|item| args.predictions.is_some() && item.instance.choices.is_empty())
    {
        return Err(item.fault("has no labels to choose from; give the labelled file with --shots").into());
    }
    if let Some(limit) = args.limit {
        let mut seen: BTreeMap<(String, String), usize> = BTreeMap::new();
        items.retain(|item| {
            let count = seen.entry((item.task(), item.template().to_string())).or_default();
            *count += 1;
            *count <= limit
        });
    }
    let model = match &args.adapter {
        Some(adapter) => WritingModel::load_adapted(&args.model, adapter, &device)?,
        None => WritingModel::load(&args.model, &device)?,
    };
    let lines = |text: &String| text.replace("\\n", "\n");
    let asking = Asking {
        shots: args.k,
        shown,
        preamble: lines(&args.preamble),
        calibrate: args.calibrate,
        flipped: args.flipped,
        longest: args.max_question_tokens.max(1),
        max_tokens: args.max_tokens.max(1),
        stop: args.stop.iter().map(lines).collect(),
        batch: args.batch.max(1),
    };
    for out in args.out.iter().chain(&args.predictions) {
        check_replaceable(out)?;
        check_unread(out, args.data.iter().chain(&args.shots))?;
    }
    let answered = evaluate(&model, &items, &asking, console.progress)?;
    if let Some(out) = &args.out {
        let mut text = String::new();
        for one in &answered {
            text += &serde_json::to_string(one)?;
            text.push('\n');
        }
        write_atomically(out, text.as_bytes())?;
    }
    if let Some(out) = &args.predictions {
        let label = |(item, one): (&'_ Item, &Answered)| {
            let choice = one.likeliest().and_then(|place| item.instance.choices.get(place));
            (item.example.clone(), choice.cloned().unwrap_or_default())
        };
        let labels: Vec<(String, String)> = items.iter().zip(&answered).map(label).collect();
        let text = predictions(labels.iter().map(|(id, label)| (id.as_str(), label.as_str())));
        write_atomically(out, text.as_bytes())?;
    }
    let tasks = summary(&answered);
    let sets: Vec<Set> = match args.data.len() {
        1 => Vec::new(),
        _ => args.data.iter().map(|path| Set::new(path, &items, &answered)).collect(),
    };
    let mut report = json!({"model": args.model, "adapter": args.adapter, "shots": args.k, "tasks": tasks});
    if !sets.is_empty() {
        report["sets"] = json!(sets);
    }
    console.report(&report, || table(&tasks) + &sets_table(&sets))
}

/// The means over the tasks of one of several files.
#[derive(serde::Serialize)]
struct Set<'a> {
    data: &'a Path,
    tasks: usize,
    items: usize,
    scores: BTreeMap<&'static str, f64>,
}

impl<'a> Set<'a> {
    fn new(data: &'a Path, items: &[Item], answered: &[Answered]) -> Self {
        let own: Vec<Answered> = items
            .iter()
            .zip(answered)
            .filter(|(item, _)| item.path.starts_with(data))
            .map(|(_, one)| one.clone())
            .collect();
        let tasks = summary(&own);
        Self { data, tasks: tasks.len(), items: own.len(), scores: mean_over_tasks(&tasks) }
    }
}

/// A row a file and measure.
fn sets_table(sets: &[Set]) -> String {
    let mut text = String::new();
    for set in sets {
        text += &format!(
            "\n{}: {} items of {} tasks, means over tasks\n",
            set.data.display(),
            set.items,
            set.tasks
        );
        for (name, mean) in &set.scores {
            text += &format!("  {name:16} {:7.1}\n", 100.0 * mean);
        }
    }
    text
}

/// Gives items for which it `may` be, and which have no choices, the different targets of their task and template, those that are
/// shown among them.
fn choices_from_targets(items: &mut [Item], shown: &mut [Item], may: impl Fn(&Item) -> bool) {
    let key = |item: &Item| (item.task(), item.template().to_string());
    let mut targets: BTreeMap<(String, String), BTreeSet<String>> = BTreeMap::new();
    for item in items.iter().chain(shown.iter()).filter(|item| !item.references.is_empty()) {
        targets.entry(key(item)).or_default().insert(item.instance.target.clone());
    }
    let without = |item: &&mut Item| item.instance.choices.is_empty() && may(item);
    for item in items.iter_mut().chain(shown).filter(without) {
        if let Some(all) = targets.get(&key(item)).filter(|all| (2..=MOST_CHOICES).contains(&all.len())) {
            item.instance.choices = all.iter().cloned().collect();
        }
    }
}

/// A row a task and measure.
fn table(tasks: &[TaskScores]) -> String {
    let width = tasks.iter().map(|task| task.task.len()).max().unwrap_or(0).max(4);
    let mut text = format!(
        "{:width$}  {:16} {:>7} {:>7} {:>7} {:>7} {:>9} {:>8}\n",
        "task", "measure", "mean", "median", "lowest", "highest", "templates", "examples"
    );
    for task in tasks {
        for (name, spread) in &task.scores {
            let percent = [spread.mean, spread.median, spread.lowest, spread.highest].map(|x| 100.0 * x);
            let [mean, median, lowest, highest] = percent;
            text += &format!(
                "{:width$}  {name:16} {mean:7.1} {median:7.1} {lowest:7.1} {highest:7.1} {:9} {:8}\n",
                task.task, task.templates, task.examples
            );
        }
    }
    text
}
