//! Instances in a model's tokens, as a run of kind "tune" reads them.

use std::collections::BTreeMap;

use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::config::{Learn, TuneSection};
use crate::error::Result;
use crate::eval::tasks::{self, Item, ModelText, flipped};
use crate::pool::CHAIN_OF_THOUGHT;

/// Instances whose texts are held at a time: of the others only the tokens are.
const BLOCK: usize = 4096;

/// An instance in the model's tokens.
#[derive(Debug, Clone)]
pub(super) struct Example {
    /// What is read: the same before each answer, or one for each that the instruction is guessed from.
    questions: Vec<Vec<u32>>,
    /// What is learnt: the answers to choose between, or the right one alone, or the instruction.
    answers: Vec<Vec<u32>>,
    /// The right one of the choices.
    pub right: usize,
}

impl Example {
    /// # Errors
    /// What cannot be tokenised, an instance without an answer, that does not fit the model or does not say what is its own.
    pub fn new(text: &ModelText<'_>, item: &Item, section: &TuneSection) -> Result<Self> {
        let instance = &item.instance;
        if item.references.is_empty() {
            return Err(item.fault("has no label to learn"));
        }
        let (choices, right) = match item.right() {
            Some(right) if section.ranks() => (instance.choices.as_slice(), right),
            _ => (std::slice::from_ref(&instance.target), 0),
        };
        let (asked, learnt) = match section.learn {
            Learn::Answer => (vec![instance.input.clone()], choices.to_vec()),
            Learn::Instruction => {
                let (instruction, own) = flipped::parts(item)?;
                (choices.iter().map(|choice| flipped::question(own, choice)).collect(), vec![instruction])
            }
        };
        let answer = |answer: &String| {
            let mut tokens = text.answer(&asked[0], answer)?;
            tokens.truncate(section.max_answer_tokens.saturating_sub(1).max(1));
            tokens.extend(text.end());
            match tokens.is_empty() {
                true => Err(item.fault("the answer is empty, and the model ends no text")),
                false => Ok(tokens),
            }
        };
        let answers = learnt.iter().map(answer).collect::<Result<Vec<_>>>()?;
        let longest = answers.iter().map(Vec::len).max().unwrap_or(0);
        let room = text.longest().saturating_sub(longest);
        if room == 0 {
            return Err(item.fault(format!("the answer has {longest} tokens, as many as the model reads")));
        }
        let question = |asked: &String| {
            let tokens = text.question(asked, section.max_question_tokens.min(room));
            tokens.map_err(|e| item.fault(e.to_string()))
        };
        let questions = asked.iter().map(question).collect::<Result<Vec<_>>>()?;
        Ok(Self { questions, answers, right })
    }

    /// How many choices are read.
    pub fn choices(&self) -> usize {
        self.questions.len().max(self.answers.len())
    }

    /// Question and answer of a choice.
    pub fn row(&self, choice: usize) -> (&[u32], &[u32]) {
        let of = |all: &'_ [Vec<u32>]| choice.min(all.len() - 1);
        (&self.questions[of(&self.questions)], &self.answers[of(&self.answers)])
    }

    /// Tokens of a row of it.
    pub fn tokens(&self) -> usize {
        let longest = |all: &[Vec<u32>]| all.iter().map(Vec::len).max().unwrap_or(0);
        longest(&self.questions) + longest(&self.answers)
    }

    /// The choices that are read at a time: the right one; all where answers are ranked; and of those that an instruction is
    /// guessed from, the right one and a wrong one, number `draw` of them.
    pub fn read(&self, section: &TuneSection, draw: u64) -> Vec<usize> {
        let all = self.choices();
        match section.learn {
            Learn::Answer if section.ranks() => (0..all).collect(),
            Learn::Instruction if section.ranks() && all > 1 => {
                let wrong = (draw % (all as u64 - 1)) as usize;
                vec![self.right, wrong + usize::from(wrong >= self.right)]
            }
            _ => vec![self.right],
        }
    }
}

/// An example, and where it belongs.
#[derive(Debug, Clone)]
pub(super) struct Placed {
    /// What it is drawn as a part of.
    pub group: String,
    /// Its task.
    pub task: String,
    /// Its template.
    pub template: String,
    /// The example.
    pub example: Example,
}

impl Placed {
    /// Whether its answer is reached by steps.
    pub fn reasons(&self) -> bool {
        self.template == CHAIN_OF_THOUGHT
    }
}

/// The examples of all files and pools of `section`, in their order, of each task as many as it has at most. Every item is first handed
/// to `check`.
///
/// # Errors
/// What `check` says; names the file and line that cannot be used.
pub(super) fn read(
    text: &ModelText<'_>,
    section: &TuneSection,
    seed: u64,
    check: &mut dyn FnMut(&Item) -> Result<()>,
) -> Result<Vec<Placed>> {
    let mut all = Vec::new();
    let mut block: Vec<Item> = Vec::with_capacity(BLOCK);
    let mut finish = |block: &mut Vec<Item>| -> Result<()> {
        let examples: Result<Vec<_>> = block
            .par_iter()
            .map(|item| {
                let (task, template) = (item.task(), item.template().to_string());
                let example = Example::new(text, item, section)?;
                Ok(Placed { group: section.group_of(item), task, template, example })
            })
            .collect();
        all.extend(examples?);
        block.clear();
        Ok(())
    };
    for path in &section.data {
        tasks::for_each(path, &mut |item| {
            check(&item)?;
            block.push(item);
            if block.len() == BLOCK { finish(&mut block) } else { Ok(()) }
        })?;
    }
    finish(&mut block)?;
    if let Some(most) = section.max_examples {
        limit(&mut all, most, seed);
    }
    if section.formats.few_shot > 0.0 {
        show_others(&mut all, text, section, seed)?;
    }
    Ok(all)
}

/// Leaves `most` of each task, by chance, in their order.
fn limit(all: &mut Vec<Placed>, most: usize, seed: u64) {
    let mut tasks: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (i, one) in all.iter().enumerate() {
        tasks.entry(one.task.clone()).or_default().push(i);
    }
    let mut kept = vec![true; all.len()];
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    for mut of_task in tasks.into_values() {
        of_task.shuffle(&mut rng);
        of_task.iter().skip(most).for_each(|i| kept[*i] = false);
    }
    let mut kept = kept.into_iter();
    all.retain(|_| kept.next().unwrap_or(true));
}

/// Puts others of the same task and template with their answers before the questions of a share of the examples, as many as there is
/// room for: what a model is shown in evaluation looks the same.
fn show_others(all: &mut [Placed], text: &ModelText<'_>, section: &TuneSection, seed: u64) -> Result<()> {
    let mut alike: BTreeMap<(&str, &str), Vec<usize>> = BTreeMap::new();
    for (i, one) in all.iter().enumerate() {
        alike.entry((&one.task, &one.template)).or_default().push(i);
    }
    let gap = text.0.tokenizer().encode("\n\n")?.ids;
    let shown = |i: usize, one: &Placed| {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(i as u64 + 1);
        if rng.random::<f64>() >= section.formats.few_shot {
            return None;
        }
        let others = &alike[&(one.task.as_str(), one.template.as_str())];
        let longest = one.example.answers.iter().map(Vec::len).max().unwrap_or(0);
        let room = section.max_question_tokens.min(text.longest().saturating_sub(longest));
        let question = &one.example.questions[0];
        let (start, _) = text.bare(question);
        let mut before: Vec<u32> = Vec::new();
        let drawn = others.choose_multiple(&mut rng, section.formats.shots + 1);
        for other in drawn.filter(|other| **other != i).take(section.formats.shots) {
            let (asked, answer) = all[*other].example.row(all[*other].example.right);
            let solved = [text.bare(asked).1, text.unended(answer), &gap].concat();
            if question.len() + before.len() + solved.len() > room {
                break;
            }
            before.extend(solved);
        }
        Some([start, &before, &question[start.len()..]].concat())
    };
    let questions: Vec<Option<Vec<u32>>> = all.par_iter().enumerate().map(|(i, one)| shown(i, one)).collect();
    for (one, question) in all.iter_mut().zip(questions) {
        if let Some(question) = question {
            one.example.questions = vec![question];
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use candle_core::Device;

    use super::super::config::{FormatSection, TuneLoss};
    use super::*;
    use crate::model::WritingModel;

    #[test]
    fn an_instruction_is_guessed_from_the_right_answer_and_a_wrong_one() {
        let example =
            Example { questions: vec![vec![1], vec![2], vec![3]], answers: vec![vec![9]], right: 1 };
        let section =
            |learn, losses: &[TuneLoss]| TuneSection { learn, losses: losses.to_vec(), ..Default::default() };
        let both = section(Learn::Instruction, &[TuneLoss::Lm, TuneLoss::Unlikelihood]);
        let drawn: Vec<_> = (0..4).map(|draw| example.read(&both, draw)).collect();
        assert_eq!(drawn, [[1, 0], [1, 2], [1, 0], [1, 2]]);
        assert_eq!(example.row(2), (&[3u32][..], &[9u32][..]));
        assert_eq!(example.read(&section(Learn::Instruction, &[TuneLoss::Lm]), 1), [1]);
        let ranked = Example { questions: vec![vec![1]], answers: vec![vec![7], vec![8]], right: 0 };
        assert_eq!(ranked.read(&section(Learn::Answer, &[TuneLoss::Unlikelihood]), 1), [0, 1]);
        assert_eq!(ranked.row(1), (&[1u32][..], &[8u32][..]));
    }

    /// A file of instances of two tasks, as the model of llama2.c reads it.
    fn read_by_stories(section: &TuneSection) -> Vec<Placed> {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/models/llama2c/stories260K.bin");
        let model = WritingModel::load(&file, &Device::Cpu).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("all.jsonl");
        let line = |i: usize| {
            let (task, template) = (["count", "name"][i % 2], ["one", "two"][i / 2 % 2]);
            format!(
                "{{\"input\": \"{task} {template} {i}:\", \"target\": \"yes {i}\", \"task\": \"{task}\", \"template\": \"{template}\"}}\n"
            )
        };
        fs::write(&path, (0..24).map(line).collect::<String>()).unwrap();
        let section = TuneSection { data: vec![path], ..section.clone() };
        let text = ModelText(&model);
        let read = read(&text, &section, 3, &mut |_| Ok(())).unwrap();
        let tokenizer = model.tokenizer().clone();
        read.into_iter()
            .map(|one| {
                let (start, question) = text.bare(&one.example.questions[0]);
                assert!(start.len() == 1 && !question.contains(&start[0]));
                let text = tokenizer.decode(question).unwrap();
                Placed { template: format!("{}|{text}", one.template), ..one }
            })
            .collect()
    }

    #[test]
    fn others_of_the_task_and_template_are_shown_with_their_answers() {
        let mut section = TuneSection::default();
        let texts = |section: &TuneSection| {
            read_by_stories(section).into_iter().map(|one| (one.task, one.template)).collect::<Vec<_>>()
        };
        let alone = texts(&section);
        section.formats = FormatSection { few_shot: 1.0, shots: 2, chain_of_thought: None };
        for ((task, shown), (_, own)) in texts(&section).into_iter().zip(&alone) {
            let ((template, shown), (_, own)) =
                (shown.split_once('|').unwrap(), own.split_once('|').unwrap());
            let parts: Vec<&str> = shown.split("\n\n").map(str::trim).collect();
            assert_eq!((parts.len(), parts[2]), (3, own.trim()), "{shown}");
            for part in &parts[..2] {
                let (question, answer) = part.split_once(": ").unwrap();
                let number = question.strip_prefix(&format!("{task} {template} ")).expect(part);
                assert_eq!(answer, format!("yes {number}"), "not its own answer");
                assert!(!own.contains(&format!("{question}:")) && parts[0] != parts[1], "{shown}");
            }
        }
        section.formats.few_shot = 0.5;
        let shown = texts(&section).iter().filter(|(_, text)| text.contains("\n\n")).count();
        assert!((6..=18).contains(&shown), "{shown} of 24");
        // Only as many as there is room for.
        section.formats.few_shot = 1.0;
        section.max_question_tokens = 30;
        let shots = |text: &str| text.matches("\n\n").count();
        assert!(texts(&section).iter().all(|(_, text)| shots(text) == 1), "{:?}", texts(&section));
    }

    #[test]
    fn of_each_task_as_many_are_kept_as_are_wanted() {
        let section = TuneSection { max_examples: Some(5), ..TuneSection::default() };
        let kept = read_by_stories(&section);
        let of = |task: &str| kept.iter().filter(|one| one.task == task).count();
        assert_eq!((kept.len(), of("count"), of("name")), (10, 5, 5));
        let first = kept.iter().take(5).map(|one| one.template.clone()).collect::<Vec<_>>();
        assert_ne!(first[4], "one|count one 4:", "by chance, not the first");
    }
}
