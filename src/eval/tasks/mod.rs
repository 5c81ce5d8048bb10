//! Tasks: which of the given answers a model holds for the likeliest, or what it writes.

mod batch;
mod csv;
mod files;
pub mod flipped;
mod item;
mod pairs;
mod tokens;

use std::collections::BTreeMap;

use serde::Serialize;

use super::metrics;
use crate::error::{Error, Result};
use crate::interrupt;
use crate::model::WritingModel;
use crate::model::generate::Options;
use crate::progress::Progress;
use item::NO_CONTENT;
use pairs::{Pairs, Place, Scores};

pub use csv::predictions;
pub use files::{for_each, read};
pub use item::Item;
pub use tokens::{ModelText, after};

/// How tasks are asked.
#[derive(Debug, Clone)]
pub struct Asking {
    /// Examples shown before each question.
    pub shots: usize,
    /// What they are taken from.
    pub shown: Vec<Item>,
    /// What comes before all; `{task}` is the task's name.
    pub preamble: String,
    /// Whether scores are also calibrated by those of a question without content.
    pub calibrate: bool,
    /// Whether each choice is also scored by how likely it makes the instruction.
    pub flipped: bool,
    /// Most tokens of what is asked.
    pub longest: usize,
    /// Most tokens of an answer that is written.
    pub max_tokens: usize,
    /// Before which a written answer ends.
    pub stop: Vec<String>,
    /// Most texts at a time.
    pub batch: usize,
}

/// What a model made of an item.
#[derive(Debug, Clone, Serialize)]
pub struct Answered {
    /// The task.
    pub task: String,
    /// The template.
    pub template: String,
    /// The example that the item is made of.
    pub example: String,
    /// By measure, from 0 to 1; see [`evaluate`].
    pub scores: BTreeMap<&'static str, f64>,
    /// The right one of the choices.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub right: Option<usize>,
    /// Of each choice.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub choices: Vec<Choice>,
    /// What was written where there are no choices.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub written: Option<String>,
}

/// How likely a choice is.
#[derive(Debug, Clone, Serialize)]
pub struct Choice {
    /// Its log-probability after the question.
    pub logprob: f64,
    /// Its tokens.
    pub tokens: usize,
    /// Its characters.
    pub characters: usize,
    /// Its log-probability after nothing.
    pub alone: f64,
    /// Its log-probability after a question without content.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub without_content: Option<f64>,
    /// The instruction's log-probability after the item's own text and it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instruction: Option<f64>,
}

/// Asks `model` every item. Those with choices are answered by the likeliest one, and right or not by:
///
/// - `sum`, its log-probability (lm-evaluation-harness's acc; T0's rank classification);
/// - `per_character`, that divided by its characters (acc_norm);
/// - `per_token`, that divided by its tokens (T-Few);
/// - `pmi`, that less its log-probability after nothing (acc_mutual_info; Holtzman et al. 2021,
///   <https://arxiv.org/abs/2104.08315>, equation 2);
/// - `calibrated`, that less its log-probability after the same question without content (Zhao et al. 2021,
///   <https://arxiv.org/abs/2102.09690>, section 5), where it is asked for: `N/A` stands in place of the texts of a CSV file's row, of the
///   item's own text where it says which that is, and else of all that is asked;
/// - `batch_calibrated`, that less its mean over all items of the task under the template, where these have the same choices
///   (after Zhou et al. 2024, <https://arxiv.org/abs/2309.17249>);
/// - `flipped`, by the log-probability of the instruction after the item's own text and it ([`flipped`]), where it is asked for.
///
/// Those without are answered in writing, and have `exact_match` and `f1` as SQuAD defines them, `rouge1`, `rouge2` and
/// `rougeL`, each the best over the right answers.
///
/// # Errors
/// Names the item that cannot be asked; an interruption.
pub fn evaluate(
    model: &WritingModel,
    items: &[Item],
    asking: &Asking,
    progress: Progress,
) -> Result<Vec<Answered>> {
    let asker = Asker { model, text: ModelText(model), asking };
    let mut pairs = Pairs::default();
    let prepared: Vec<Option<Asked>> = items
        .iter()
        .map(|item| match item.instance.choices.is_empty() {
            false => asker.prepare(item, &mut pairs).map(Some).map_err(|e| in_item(item, e)),
            true => Ok(None),
        })
        .collect::<Result<_>>()?;
    let written = prepared.iter().filter(|asked| asked.is_none()).count();
    let task = progress.task("tasks", (pairs.len() + written) as u64, "questions");
    let scores = pairs.score(model, asking.batch, &|count| task.advance(count))?;
    let mut all = Vec::with_capacity(items.len());
    for (item, asked) in items.iter().zip(prepared) {
        if interrupt::requested() {
            return Err(Error::Interrupted(format!("{} of {} items were asked", all.len(), items.len())));
        }
        all.push(match asked {
            Some(asked) => asker.choose(item, &asked, &scores),
            None => {
                let answered = asker.write(item).map_err(|e| in_item(item, e))?;
                task.advance(1);
                answered
            }
        });
    }
    batch::calibrate(items, &mut all);
    Ok(all)
}

/// An error with the item's line, unless it names a line already.
fn in_item(item: &Item, error: Error) -> Error {
    match error {
        Error::Line { .. } => error,
        other => item.fault(other.to_string()),
    }
}

/// Where the scores of an item's choices will be found.
struct Asked {
    right: Option<usize>,
    choices: Vec<AskedChoice>,
}

struct AskedChoice {
    after_question: Place,
    alone: Place,
    without_content: Option<Place>,
    instruction: Option<Place>,
}

struct Asker<'a> {
    model: &'a WritingModel,
    text: ModelText<'a>,
    asking: &'a Asking,
}

impl Asker<'_> {
    /// What is shown before a question, and the question.
    fn asked(&self, item: &Item, input: &str) -> Result<String> {
        let asking = self.asking;
        let mut asked = asking.preamble.replace("{task}", &item.task().replace('_', " "));
        if asking.shots == 0 {
            return Ok(asked + input);
        }
        let task = item.task();
        let same = |other: &&Item| {
            other.task() == task && (other.path != item.path || other.example != item.example)
        };
        let of_task: Vec<&Item> = asking.shown.iter().filter(same).collect();
        // Under the same template where some are.
        let alike: Vec<&Item> =
            of_task.iter().copied().filter(|other| other.template() == item.template()).collect();
        let shown = if alike.is_empty() { of_task } else { alike };
        if shown.len() < asking.shots {
            let why = format!(
                "{} examples of the task {task} can be shown, {} are asked for",
                shown.len(),
                asking.shots
            );
            return Err(Error::setting("shots", why));
        }
        for other in &shown[..asking.shots] {
            let (question, answer) = after(&other.instance.input, &other.instance.target);
            asked.push_str(question);
            asked.push_str(&answer);
            asked.push_str("\n\n");
        }
        Ok(asked + input)
    }

    /// Adds `choices` after `input`; gives each one's place and tokens. `name` is what errors call them.
    fn add(
        &self,
        name: &str,
        input: &str,
        choices: &[String],
        pairs: &mut Pairs,
    ) -> Result<Vec<(Place, Vec<u32>)>> {
        let answers: Vec<Vec<u32>> =
            choices.iter().map(|choice| self.text.answer(input, choice)).collect::<Result<_>>()?;
        if answers.iter().any(Vec::is_empty) {
            return Err(Error::setting(name, "one of them is empty"));
        }
        let longest = answers.iter().map(Vec::len).max().unwrap_or(0);
        let reads = self.text.longest();
        if longest >= reads {
            let why = format!(
                "{longest} tokens, but the model reads at most {reads}, some of them the question's; shorten the text or leave the item out"
            );
            return Err(Error::setting(name, why));
        }
        let question = self.text.question(input, self.asking.longest.min(reads - longest))?;
        Ok(answers.into_iter().map(|answer| (pairs.add(&question, &answer), answer)).collect())
    }

    fn prepare(&self, item: &Item, pairs: &mut Pairs) -> Result<Asked> {
        let choices = &item.instance.choices;
        let right = match item.references.is_empty() {
            true => None,
            false => Some(item.right().ok_or_else(|| Error::setting("target", "is none of the choices"))?),
        };
        let asked = self.add("choices", &self.asked(item, &item.instance.input)?, choices, pairs)?;
        let nothing = self.text.nothing()?;
        let without_content = match self.asking.calibrate {
            true => {
                let nothing = item.without_content().unwrap_or_else(|| NO_CONTENT.into());
                let asked = self.asked(item, &nothing)?;
                Some(self.add("choices", &asked, choices, pairs)?)
            }
            false => None,
        };
        let instructions = match self.asking.flipped {
            true => Some(self.add_instruction(item, pairs)?),
            false => None,
        };
        let choice = |(i, (after_question, answer)): (usize, (Place, Vec<u32>))| AskedChoice {
            after_question,
            alone: pairs.add(&nothing, &answer),
            without_content: without_content.as_ref().map(|places| places[i].0),
            instruction: instructions.as_ref().map(|places| places[i]),
        };
        Ok(Asked { right, choices: asked.into_iter().enumerate().map(choice).collect() })
    }

    /// Adds the instruction after the item's own text and each of the choices.
    fn add_instruction(&self, item: &Item, pairs: &mut Pairs) -> Result<Vec<Place>> {
        let (instruction, own) = flipped::parts(item)?;
        let place = |choice: &String| {
            let asked = flipped::question(own, choice);
            let added = self.add("instruction", &asked, std::slice::from_ref(&instruction), pairs)?;
            Ok(added[0].0)
        };
        item.instance.choices.iter().map(place).collect()
    }

    fn choose(&self, item: &Item, asked: &Asked, scores: &Scores) -> Answered {
        let right = asked.right;
        let sum = |place: Option<Place>| place.map(|place| scores.get(place).sum());
        let choices: Vec<Choice> = asked
            .choices
            .iter()
            .zip(&item.instance.choices)
            .map(|(asked, text)| {
                let score = scores.get(asked.after_question);
                Choice {
                    logprob: score.sum(),
                    tokens: score.tokens.len(),
                    characters: text.chars().count(),
                    alone: scores.get(asked.alone).sum(),
                    without_content: sum(asked.without_content),
                    instruction: sum(asked.instruction),
                }
            })
            .collect();
        let mut measured = BTreeMap::new();
        let mut measure = |name, of: &dyn Fn(&Choice) -> f64| {
            let Some(right) = right else { return };
            measured.insert(name, f64::from(u8::from(best(&choices, of) == right)));
        };
        measure("sum", &|choice| choice.logprob);
        measure("per_character", &|choice| choice.logprob / choice.characters.max(1) as f64);
        measure("per_token", &|choice| choice.logprob / choice.tokens.max(1) as f64);
        measure("pmi", &|choice| choice.logprob - choice.alone);
        if self.asking.calibrate {
            measure("calibrated", &|choice| choice.logprob - choice.without_content.unwrap_or(0.0));
        }
        if self.asking.flipped {
            measure("flipped", &|choice| choice.instruction.unwrap_or(f64::NEG_INFINITY));
        }
        Answered { right, choices, ..self.answered(item, measured) }
    }

    fn write(&self, item: &Item) -> Result<Answered> {
        let asking = self.asking;
        let room = self.text.longest().saturating_sub(asking.max_tokens).max(1);
        let asked = self.asked(item, &item.instance.input)?;
        let question = self.text.question(&asked, asking.longest.min(room))?;
        let options =
            Options { max_tokens: asking.max_tokens, stop: asking.stop.clone(), ..Options::default() };
        let written = self.model.generator(None).generate(&[question], &options, &mut |_| true)?;
        let written = written.into_iter().flatten().next().map(|text| text.text).unwrap_or_default();
        let written = written.trim().to_string();
        if item.references.is_empty() {
            return Ok(Answered { written: Some(written), ..self.answered(item, BTreeMap::new()) });
        }
        let best = |of: &dyn Fn(&str) -> f64| metrics::best(&item.references, of);
        let rouge = |right: &str| metrics::rouge(&written, right);
        let measured = BTreeMap::from([
            ("exact_match", best(&|right| metrics::exact_match(&written, right))),
            ("f1", best(&|right| metrics::f1(&written, right))),
            ("rouge1", best(&|right| rouge(right).rouge1)),
            ("rouge2", best(&|right| rouge(right).rouge2)),
            ("rougeL", best(&|right| rouge(right).rouge_l)),
        ]);
        Ok(Answered { written: Some(written.clone()), ..self.answered(item, measured) })
    }

    fn answered(&self, item: &Item, scores: BTreeMap<&'static str, f64>) -> Answered {
        Answered {
            task: item.task(),
            template: item.template().to_string(),
            example: item.example.clone(),
            scores,
            right: None,
            choices: Vec::new(),
            written: None,
        }
    }
}

impl Answered {
    /// The place of the likeliest choice, by `calibrated` where that was asked for, else by `sum`; none where there are no choices.
    pub fn likeliest(&self) -> Option<usize> {
        let score = |choice: &Choice| choice.logprob - choice.without_content.unwrap_or(0.0);
        (!self.choices.is_empty()).then(|| best(&self.choices, &score))
    }
}

/// The first of the best.
fn best(choices: &[Choice], of: &dyn Fn(&Choice) -> f64) -> usize {
    highest(choices.iter().map(of))
}

/// The place of the first of the highest.
fn highest(scores: impl Iterator<Item = f64>) -> usize {
    let better = |a: &(usize, f64), b: &(usize, f64)| a.1.total_cmp(&b.1).then(b.0.cmp(&a.0));
    scores.enumerate().max_by(better).map_or(0, |(place, _)| place)
}

/// A task's numbers.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TaskScores {
    /// The task.
    pub task: String,
    /// Templates that it was asked under.
    pub templates: usize,
    /// Examples, whatever the number of templates.
    pub examples: usize,
    /// Items: an example under a template.
    pub items: usize,
    /// By measure.
    pub scores: BTreeMap<&'static str, Spread>,
    /// The means under each template, by measure.
    pub by_template: BTreeMap<String, BTreeMap<&'static str, f64>>,
}

/// A measure over templates.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Spread {
    /// Mean of the templates' means.
    pub mean: f64,
    /// Their median.
    pub median: f64,
    /// The lowest.
    pub lowest: f64,
    /// The highest.
    pub highest: f64,
}

/// The numbers of every task, by name.
pub fn summary(answered: &[Answered]) -> Vec<TaskScores> {
    let mut tasks: BTreeMap<&str, Vec<&Answered>> = BTreeMap::new();
    for one in answered {
        tasks.entry(&one.task).or_default().push(one);
    }
    tasks.into_iter().map(|(task, all)| of_task(task, &all)).collect()
}

/// The mean of each measure over the tasks that have it, a task counting as one whatever its size.
pub fn mean_over_tasks(tasks: &[TaskScores]) -> BTreeMap<&'static str, f64> {
    let mut all: BTreeMap<&'static str, Vec<f64>> = BTreeMap::new();
    for (name, spread) in tasks.iter().flat_map(|task| &task.scores) {
        all.entry(name).or_default().push(spread.mean);
    }
    all.into_iter().map(|(name, means)| (name, means.iter().sum::<f64>() / means.len() as f64)).collect()
}

fn of_task(task: &str, all: &[&Answered]) -> TaskScores {
    let mut templates: BTreeMap<&str, BTreeMap<&'static str, Vec<f64>>> = BTreeMap::new();
    let mut examples: Vec<&str> = all.iter().map(|one| one.example.as_str()).collect();
    for one in all {
        let measures = templates.entry(&one.template).or_default();
        for (name, score) in &one.scores {
            measures.entry(name).or_default().push(*score);
        }
    }
    examples.sort_unstable();
    examples.dedup();
    let mean = |all: &[f64]| all.iter().sum::<f64>() / all.len().max(1) as f64;
    let by_template: BTreeMap<String, BTreeMap<&'static str, f64>> = templates
        .into_iter()
        .map(|(template, measures)| {
            (template.to_string(), measures.iter().map(|(name, all)| (*name, mean(all))).collect())
        })
        .collect();
    let mut measures: BTreeMap<&'static str, Vec<f64>> = BTreeMap::new();
    for (name, score) in by_template.values().flatten() {
        measures.entry(name).or_default().push(*score);
    }
    let spread = |mut all: Vec<f64>| {
        all.sort_by(f64::total_cmp);
        let median = (all[(all.len() - 1) / 2] + all[all.len() / 2]) / 2.0;
        Spread { mean: mean(&all), median, lowest: all[0], highest: all[all.len() - 1] }
    };
    TaskScores {
        task: task.to_string(),
        templates: by_template.len(),
        examples: examples.len(),
        items: all.len(),
        scores: measures.into_iter().map(|(name, all)| (name, spread(all))).collect(),
        by_template,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fails when calibration would ask without the format, or with what the item is about.
    #[test]
    fn a_question_without_content_is_what_is_left_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let mmlu =
            write("sky_test.csv", "question,choice0,choice1,answer\nblue?,a,b,0\n\"red, or?\",A,B,1\n");
        let raft = write("ade.csv", "Sentence,ID,Label\ne,7,far\n");
        let lines = r#"{"input": "Does A b. hold? Yes or no?", "own": " A b.\n", "target": "no", "choices": ["yes", "no"]}
{"input": "Given A b,\nand c. Does it follow that C d? ", "own": "A b,\n and c.\nC d", "target": "no", "choices": ["yes", "no"]}
{"input": "all", "own": "all", "target": "no", "choices": ["yes", "no"]}
{"input": "Is it so?", "own": "elsewhere", "target": "no", "choices": ["yes", "no"]}
{"input": "Is it so?", "target": "no", "choices": ["yes", "no"]}"#;
        let items = read(&[mmlu, raft, write("own.jsonl", lines)]).unwrap();
        let found: Vec<Option<String>> = items.iter().map(Item::without_content).collect();
        let lettered = "N/A\nA. N/A\nB. N/A\nAnswer:";
        let wanted = [
            Some(lettered),
            Some(lettered),
            Some("Sentence: N/A\nLabel:"),
            Some("Does N/A hold? Yes or no?"),
            Some("Given N/A Does it follow that N/A? "),
            Some("N/A"),
            None,
            None,
        ];
        assert_eq!(found, wanted.map(|text| text.map(String::from)));
    }

    #[test]
    fn a_task_is_the_mean_of_its_templates_however_many_items_they_have() {
        let one = |template: &str, example: &str, sum: f64| Answered {
            task: "rte".into(),
            template: template.into(),
            example: example.into(),
            scores: BTreeMap::from([("sum", sum)]),
            right: None,
            choices: Vec::new(),
            written: None,
        };
        let all = [
            one("a", "1", 1.0),
            one("b", "1", 0.0),
            one("b", "2", 1.0),
            one("b", "3", 0.0),
            one("b", "4", 0.0),
            one("c", "1", 0.0),
        ];
        let found = summary(&all);
        assert_eq!((found[0].templates, found[0].examples, found[0].items), (3, 4, 6));
        let right = Spread { mean: 1.25 / 3.0, median: 0.25, lowest: 0.0, highest: 1.0 };
        assert_eq!(found[0].scores["sum"], right);
        assert_eq!(found[0].by_template["b"]["sum"], 0.25);
    }
}
