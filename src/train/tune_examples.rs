//! Instances in a model's tokens, as a run of kind "tune" reads them.

use rayon::prelude::*;

use super::tune_section::{Learn, TuneSection};
use crate::error::Result;
use crate::eval::tasks::{self, Item, ModelText, flipped};

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
    /// What cannot be tokenised, an instance that does not fit the model or does not say what is its own.
    pub fn new(text: &ModelText<'_>, item: &Item, section: &TuneSection) -> Result<Self> {
        let instance = &item.instance;
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

/// The examples of all files and pools of `section`, each with what it is drawn as a part of, in their order. Every item is
/// first handed to `check`.
///
/// # Errors
/// What `check` says; names the file and line that cannot be used.
pub(super) fn read(
    text: &ModelText<'_>,
    section: &TuneSection,
    check: &mut dyn FnMut(&Item) -> Result<()>,
) -> Result<Vec<(String, Example)>> {
    let mut all = Vec::new();
    let mut block: Vec<Item> = Vec::with_capacity(BLOCK);
    let mut finish = |block: &mut Vec<Item>| -> Result<()> {
        let examples: Result<Vec<_>> = block
            .par_iter()
            .map(|item| Ok((section.group_of(item), Example::new(text, item, section)?)))
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
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::super::tune_section::TuneLoss;
    use super::*;

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
}
