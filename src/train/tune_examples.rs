//! Instances in a model's tokens, as a run of kind "tune" reads them.

use rayon::prelude::*;

use super::tune_section::TuneSection;
use crate::error::Result;
use crate::eval::tasks::{self, Item, ModelText};

/// Instances whose texts are held at a time: of the others only the tokens are.
const BLOCK: usize = 4096;

/// An instance in the model's tokens.
#[derive(Debug, Clone)]
pub(super) struct Example {
    pub question: Vec<u32>,
    /// The answers to choose between, or the right one alone.
    pub answers: Vec<Vec<u32>>,
    pub right: usize,
}

impl Example {
    /// # Errors
    /// What cannot be tokenised, an instance that does not fit the model.
    pub fn new(text: &ModelText<'_>, item: &Item, section: &TuneSection) -> Result<Self> {
        let instance = &item.instance;
        let answer = |answer: &String| {
            let mut tokens = text.answer(&instance.input, answer)?;
            tokens.truncate(section.max_answer_tokens.saturating_sub(1).max(1));
            tokens.extend(text.end());
            match tokens.is_empty() {
                true => Err(item.fault("the answer is empty, and the model ends no text")),
                false => Ok(tokens),
            }
        };
        let (choices, right) = match item.right() {
            Some(right) if section.ranks() => (instance.choices.as_slice(), right),
            _ => (std::slice::from_ref(&instance.target), 0),
        };
        let answers = choices.iter().map(answer).collect::<Result<Vec<_>>>()?;
        let longest = answers.iter().map(Vec::len).max().unwrap_or(0);
        let room = text.longest().saturating_sub(longest);
        if room == 0 {
            return Err(item.fault(format!("the answer has {longest} tokens, as many as the model reads")));
        }
        let question = text
            .question(&instance.input, section.max_question_tokens.min(room))
            .map_err(|e| item.fault(e.to_string()))?;
        Ok(Self { question, answers, right })
    }

    /// Tokens of a row of it.
    pub fn tokens(&self) -> usize {
        self.question.len() + self.answers.iter().map(Vec::len).max().unwrap_or(0)
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
